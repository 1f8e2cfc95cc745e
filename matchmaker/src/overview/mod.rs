//! The overview: nodes, GPUs, slices and sessions as a picture that is kept up to date.
//!
//! ```text
//!  agent, pods, GpuNodes ──► places ──┐
//!  desk ──────────────────────────────┼──► picture::overview ──► run, twice a second while anybody listens
//!  TURN servers ──────────────────────┘                            │ text, when it changed
//!                                           page ◄── listener ◄────┘
//! ```
//!
//! A listener that takes nothing for a while loses its connection, and there are only so many.

pub mod agent;
pub mod gpu_nodes;
mod listener;
pub mod picture;
pub mod places;
pub mod routes;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::picture::{Known, Overview, overview};
use self::places::Places;
use crate::events::Event;
use crate::turn_servers::TurnServers;

/// How many may listen at one time.
pub const LISTENERS: usize = 64;
/// How often a listener is told of changes, at most.
pub const EVERY: Duration = Duration::from_millis(500);
/// How often a listener hears something, at least.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long a listener may take nothing.
pub const SLOW: Duration = Duration::from_secs(20);

/// Gives the overview. A clone gives the same.
#[derive(Debug, Clone)]
pub struct Overviews {
    places: Places,
    turn: Option<TurnServers>,
    desk: mpsc::Sender<Event>,
    /// As it was last, in JSON.
    latest: watch::Sender<Arc<str>>,
    seats: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Overviews {
    /// What `places`, the desk and the TURN servers say; listeners are let go when `stop` is cancelled.
    pub fn new(
        places: Places,
        turn: Option<TurnServers>,
        desk: mpsc::Sender<Event>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            places,
            turn,
            desk,
            latest: watch::Sender::new(Arc::from("")),
            seats: Arc::new(Semaphore::new(LISTENERS)),
            stop,
        }
    }

    /// Works for ever: what all listeners are told is put together once.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.latest.receiver_count() == 0 {
                continue;
            }
            if let Some(text) = self.text().await {
                self.latest.send_if_modified(|latest| {
                    let changed = *latest != text;
                    *latest = text;
                    changed
                });
            }
        }
    }

    /// As it is now; nothing while the program ends.
    async fn now(&self) -> Option<Overview> {
        let (answer, survey) = oneshot::channel();
        self.desk.send(Event::Survey(answer)).await.ok()?;
        let survey = survey.await.ok()?;
        Some(overview(&Known {
            survey,
            slices: self.places.slices.borrow().clone(),
            gpus: self.places.gpus.borrow().clone(),
            pods: self.places.pods.borrow().clone(),
            nodes: self.places.nodes.borrow().clone(),
            turn: self.turn.as_ref().map(TurnServers::all),
        }))
    }

    /// The same in JSON.
    async fn text(&self) -> Option<Arc<str>> {
        let text = serde_json::to_string(&self.now().await?);
        text.inspect_err(|error| tracing::error!(%error, "writing the overview as JSON"))
            .ok()
            .map(Arc::from)
    }
}
