//! What every request may need.

use std::sync::Arc;

use penstock_shell::ops;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::addresses::Gate;
use crate::api::Api;
use crate::auth::Authenticator;
use crate::events::Event;
use crate::ice::Ice;
use crate::metrics::Metrics;
use crate::overview::Overviews;
use crate::players::Players;
use crate::site::Site;

/// See the module. A clone shares all of it.
#[derive(Clone)]
pub struct Front {
    /// Where the desk is.
    pub events: mpsc::Sender<Event>,
    /// What pages are told of ICE servers.
    pub ice: Ice,
    /// The metrics.
    pub metrics: Metrics,
    /// Whether all that says where streamers are was heard.
    pub discovered: ops::Ready,
    /// Finds out who asks.
    pub auth: Arc<Authenticator>,
    /// What the API needs.
    pub api: Api,
    /// What the overview shows.
    pub overviews: Overviews,
    /// Where the site is.
    pub site: Arc<Site>,
    /// How many players came by one link, or as one user.
    pub players: Players,
    /// How many pages an address may have.
    pub gate: Gate,
    /// The tasks of all pages.
    pub pages: TaskTracker,
    /// Cancelled when the program ends.
    pub stop: CancellationToken,
}
