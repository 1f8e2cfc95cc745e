//! Start-up, the HTTP endpoints, and shutdown.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get};
use axum::serve::ListenerExt as _;
use axum::{Json, Router};
use penstock_core::ids::SessionId;
use penstock_core::wire::agent::Problem;
use penstock_core::wire::signalling::MAX_MESSAGE_BYTES;
use penstock_core::wire::status::StreamerStatus;
use penstock_shell::{children, events, ops, shutdown};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{Source, StreamArgs};
use crate::display::{self, Display, Ours};
use crate::input::Input;
use crate::link::{self, Shared};
use crate::media::{self, Media};
use crate::metrics::Metrics;
use crate::owner::{Identity, Owner};

/// Streams until told to end, or until something that it can't do without fails.
///
/// # Errors
/// What failed, in words.
pub async fn run(args: StreamArgs) -> anyhow::Result<()> {
    children::adopt_orphans().context("becoming the reaper of our children")?;
    let told = shutdown::token()?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!(
            "listening on {}: choose another address with --listen",
            args.listen
        )
    })?;
    media::init()?;
    let mut display = match args.source {
        Source::X11 => Some(Display::open(&args).await?),
        Source::Test => None,
    };
    let outcome = stream(&args, listener, &mut display, told).await;
    if let Some(display) = display {
        display.close().await;
    }
    outcome
}

/// All that runs over the display, if there is one.
async fn stream(
    args: &StreamArgs,
    listener: TcpListener,
    display: &mut Option<Display>,
    told: CancellationToken,
) -> anyhow::Result<()> {
    let metrics = Metrics::new()?;
    let name = display.as_ref().map(|display| display.name.clone());
    let (input, mut input_watch) = name
        .as_deref()
        .map_or_else(|| Ok(Input::nowhere()), Input::connect)?;
    let (media, failures) = Media::start(args, name.as_deref(), &metrics)?;
    let media = Arc::new(media);
    let media_ips = if args.media_ip.is_empty() {
        vec![default_ip()]
    } else {
        args.media_ip.clone()
    };
    let identity = Identity {
        streamer_id: args.name.clone(),
        application: args.app_name.clone(),
        stream: args.stream,
        media_addresses: media_ips.clone(),
        limits: args.limits(),
    };
    let (owner, handle, status) = Owner::new(identity, Arc::clone(&media), metrics.clone());
    let capture = Arc::clone(&media);
    let (ends, ends_at) = watch::channel(None);
    let shared = Arc::new(Shared {
        owner: handle,
        viewers: args.limits().viewers.is_some(),
        ends_at,
        media,
        input,
        metrics: metrics.clone(),
        name: args.name.clone(),
        stream: args.stream,
        media_ips,
    });
    announce(args, name.as_deref(), &shared);
    let app = router(shared, status, &metrics);
    // Messages are small and follow one another: held back until the last is acknowledged, each would be late.
    let listener = listener.tap_io(|stream| {
        // Slower, but no worse.
        let _ = stream.set_nodelay(true);
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, app).await.context("serving HTTP") });
    let end = CancellationToken::new();
    let ours = Ours::new(display.as_ref().and_then(Display::server_pid));
    let outcome = tokio::select! {
        () = owner.run(told.clone(), end.clone()) => Ok(()),
        () = grace_over(told, Duration::from_secs(args.grace), ends, end) => Ok(()),
        ended = over_display(args, display, &ours, &metrics) => ended,
        reaped = display::reap_orphans(&ours) => reaped,
        failure = failed(failures) => Err(anyhow!("the pipeline failed: {failure}")),
        failure = input_watch.failed() => Err(anyhow!("the X display takes no input: {failure}")),
        failure = capture.stalled() => Err(anyhow!("the pipeline stalled: {failure}")),
        Some(ended) = tasks.join_next() => ended.context("the HTTP task failed")?,
    };
    if let Err(error) = &outcome {
        // Said at once: where the source hangs, Xlib may end this process before it ends by itself.
        tracing::error!("{error:#}");
    }
    // Before its display goes: Xlib ends a process whose display went away.
    capture.stop().await;
    // With its task the application's shell was dropped, and so killed; this ends the rest of it.
    children::sweep(&display.iter().filter_map(Display::server_pid).collect()).await;
    outcome
}

/// Keeps the application running, and watches the X server.
async fn over_display(
    args: &StreamArgs,
    display: &mut Option<Display>,
    ours: &Ours,
    metrics: &Metrics,
) -> anyhow::Result<()> {
    let Some(display) = display else {
        return std::future::pending().await;
    };
    let Some(app) = &args.app else {
        return Err(anyhow!(display.ended().await));
    };
    let on = display.name.clone();
    tokio::select! {
        kept = display::keep_running(app, &on, ours, metrics) => kept,
        ended = display.ended() => Err(anyhow!(ended)),
    }
}

/// Says when this streamer ends, once it was told to; then says `end`, and leaves the players a moment to hear of it.
async fn grace_over(
    told: CancellationToken,
    grace: Duration,
    ends: watch::Sender<Option<Instant>>,
    end: CancellationToken,
) {
    told.cancelled().await;
    // Without links nobody listens.
    let _ = ends.send(Some(Instant::now() + grace));
    tokio::time::sleep(grace).await;
    end.cancel();
    tokio::time::sleep(GOODBYE).await;
}

/// How long players get to be told that they move.
const GOODBYE: Duration = Duration::from_secs(2);

async fn failed(mut failures: mpsc::UnboundedReceiver<media::Failure>) -> String {
    match failures.recv().await {
        Some(failure) => failure,
        None => std::future::pending().await,
    }
}

fn announce(args: &StreamArgs, on: Option<&str>, shared: &Shared) {
    let on = on.unwrap_or("no display");
    tracing::info!(
        name = %args.name, listen = %args.listen, stream = %args.stream, units = args.stream.units().0,
        kbps = args.bitrate_kbps(), source = ?args.source, on, media = ?shared.media_ips, "streaming"
    );
}

fn router(shared: Arc<Shared>, status: watch::Receiver<StreamerStatus>, metrics: &Metrics) -> Router {
    let ready = {
        let media = Arc::clone(&shared.media);
        Arc::new(move || match *media.first_picture.borrow() {
            true => Ok(()),
            false => Err("the source has shown no picture yet".to_owned()),
        })
    };
    let (once, each) = (status.clone(), status);
    Router::new()
        .route("/status", get(move || async move { Json(once.borrow().clone()) }))
        .route("/events", get(move || async move { events::sse(each) }))
        .route("/session", get(session))
        .route("/session/{id}", delete(end_session))
        .with_state(shared)
        .merge(ops::router(metrics.registry.clone(), ready))
}

/// The matchmaker's way in. A browser names an origin with every WebSocket, and has no business here.
async fn session(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    if headers.contains_key(header::ORIGIN) {
        return not_for_browsers();
    }
    upgrade
        .max_message_size(MAX_MESSAGE_BYTES)
        .max_frame_size(MAX_MESSAGE_BYTES)
        .on_upgrade(move |socket| link::serve(socket, shared))
}

/// Ends a session for its player and all who watch. Like `/session`, it is for matchmakers: the cluster's network
/// decides who reaches it, and no page may.
async fn end_session(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Path(id): Path<SessionId>,
) -> Response {
    if headers.contains_key(header::ORIGIN) {
        return not_for_browsers();
    }
    if shared.owner.end(id).await {
        return StatusCode::NO_CONTENT.into_response();
    }
    let error = "ending a session: it is not on this streamer (any more)".to_owned();
    (StatusCode::NOT_FOUND, Json(Problem { error })).into_response()
}

fn not_for_browsers() -> Response {
    let advice = "browsers are served by penstock-matchmaker: open its page instead\n";
    (StatusCode::FORBIDDEN, advice).into_response()
}

/// The address that has the default route, of IPv4 first; loopback where nothing has one.
fn default_ip() -> IpAddr {
    default_ip_by(address_towards)
}

fn default_ip_by(address_towards: impl Fn(IpAddr) -> Option<IpAddr>) -> IpAddr {
    // Addresses for documentation (RFC 5737, RFC 3849): only the routes to them are looked up.
    let elsewhere: [IpAddr; 2] = [
        Ipv4Addr::new(192, 0, 2, 1).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    ];
    let routed = elsewhere.into_iter().find_map(address_towards);
    routed.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// The address of ours that packets to `ip` leave from. Connecting a UDP socket sends nothing.
fn address_towards(ip: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((ip, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_leaves_by_ipv4_or_else_by_ipv6_or_else_by_loopback() {
        let v4: IpAddr = "203.0.113.7".parse().unwrap();
        let v6: IpAddr = "2001:db8:7::7".parse().unwrap();
        assert_eq!(default_ip_by(|to| Some(if to.is_ipv4() { v4 } else { v6 })), v4);
        assert_eq!(default_ip_by(|to| to.is_ipv6().then_some(v6)), v6);
        assert_eq!(default_ip_by(|_| None), Ipv4Addr::LOCALHOST);
    }

    #[test]
    fn packets_to_this_machine_leave_from_the_address_they_go_to() {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(address_towards(loopback), Some(loopback));
    }
}
