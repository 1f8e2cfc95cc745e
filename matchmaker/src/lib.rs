//! The front door for players.
//!
//! ```text
//!              web (page, /status, /healthz …)          discovery (agent, --streamer)
//!  browser ──► page_socket ──┐                            │ StreamerStatus
//!              limits, ice   │ events                     ▼
//!                            └───────────►  desk: one task that owns  lobby::Lobby
//!  streamer ◄── link ◄───────────────────── commands
//! ```
//!
//! The lobby decides, and does no I/O. The desk is the only task that touches it, and never waits for anyone:
//! whoever is too slow to take a message loses its connection. Every channel is bounded.

pub mod args;
pub mod desk;
pub mod discovery;
pub mod events;
pub mod ice;
pub mod limits;
pub mod link;
pub mod lobby;
pub mod metrics;
pub mod page_socket;
pub mod web;

use std::future::IntoFuture as _;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::args::Args;
use crate::desk::Desk;
use crate::discovery::Discovery;
use crate::metrics::Metrics;
use crate::web::Front;

/// Serves until `stop` is cancelled.
///
/// # Errors
/// Where the page or the TURN secret can't be read, the address is taken, or a part that everything hangs on ends.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let page = args.page()?;
    let ice = args.ice()?;
    let metrics = Metrics::new()?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!(
            "listening on {}: choose another address with --listen",
            args.listen
        )
    })?;
    let address = listener.local_addr().context("asking for the own address")?;

    let (events, desk) = Desk::new(metrics.clone());
    let discovery = Discovery::new(args.agent(), args.streamer.clone(), events.clone())?;
    let pages = TaskTracker::new();
    let front = Front {
        events,
        ice,
        metrics,
        agent_seen: discovery.agent_seen(),
        pages: pages.clone(),
        stop: stop.clone(),
    };
    let app = web::router(front, &page);
    // Messages are small and follow one another: held back until the last is acknowledged, each would be late.
    let listener = listener.tap_io(|stream| {
        // Slower, but no worse.
        let _ = stream.set_nodelay(true);
    });
    let serve = axum::serve(listener, app).with_graceful_shutdown(stop.clone().cancelled_owned());
    tracing::info!(%address, page = %page.display(), "serving players on http://{address}/");

    let mut desk = pin!(desk.run());
    tokio::select! {
        served = serve.into_future() => served.context("serving players")?,
        () = &mut desk => anyhow::bail!("the desk ended by itself"),
        () = discovery.run() => anyhow::bail!("the discovery of streamers ended by itself"),
        () = stop.cancelled() => {}
    }
    // Each page's task says its own goodbye; the desk goes on meanwhile, and closes the links to streamers.
    pages.close();
    tokio::select! {
        left = tokio::time::timeout(GOODBYE, pages.wait()) => if left.is_err() {
            tracing::warn!(left = pages.len(), "some pages did not take their goodbye");
        },
        () = &mut desk => {}
    }
    Ok(())
}

/// How long pages get to take the closing of their sockets.
const GOODBYE: Duration = Duration::from_secs(2);
