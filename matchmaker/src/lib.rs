//! The front door for players.
//!
//! ```text
//!  serve (connections, TLS)
//!    └─► web (page), api (sessions) ── caller ── auth: who asks, and may they?    discovery (pods, agent, --streamer)
//!              │ WebSocket                                                          │ StreamerStatus
//!  browser ──► page_socket ──┐                                                      │
//!              limits, ice   │ events                                               ▼
//!                            └───────────►  desk: one task that owns  lobby::Lobby
//!  streamer ◄── link ◄───────────────────── commands
//! ```
//!
//! The lobby decides, and does no I/O. The desk is the only task that touches it, and never waits for anyone:
//! whoever is too slow to take a message loses its connection. Every channel is bounded.

pub mod addresses;
pub mod api;
pub mod args;
pub mod auth;
pub mod caller;
pub mod client_address;
pub mod clock;
pub mod cluster;
pub mod cost;
pub mod desk;
pub mod discovery;
mod duration;
pub mod events;
pub mod front;
pub mod ice;
pub mod join;
pub mod lease;
pub mod limits;
pub mod link;
pub mod lobby;
pub mod metrics;
pub mod overview;
pub mod page_socket;
pub mod pods;
pub mod prefix;
pub mod problem;
pub mod reload;
pub mod serve;
pub mod signed;
pub mod site;
pub mod start;
pub mod turn_servers;
pub mod web;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future;
use penstock_shell::open_files;
use penstock_shell::ops::Ready;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::addresses::Gate;
use crate::api::Api;
use crate::args::Args;
use crate::cluster::ClusterArgs;
use crate::desk::Desk;
use crate::discovery::{Discovery, Pods};
use crate::events::Event;
use crate::front::Front;
use crate::ice::Ice;
use crate::metrics::Metrics;
use crate::overview::places::Places;
use crate::overview::{Overviews, gpu_nodes};
use crate::serve::Door;

/// Serves until `stop` is cancelled, and where it is one of a cluster's pods for [`LAST_CALLS`] more: those who were told
/// where it is go on coming until they are told that it ends.
///
/// # Errors
/// Where the page, a secret, the users or the certificate can't be read, the address is taken, or a part that everything
/// hangs on ends.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    // Each player takes two connections: its page's, and that to its streamer.
    open_files::raise_limit();
    let last_calls = args.cluster.pods.as_ref().map_or(Duration::ZERO, |_| LAST_CALLS);
    let (told, stop) = (stop, CancellationToken::new());
    let page = args.page()?;
    let ice = args.ice()?;
    // Tasks that go on as long as the program: what they follow may change.
    let mut followers = JoinSet::new();
    let auth = start::authenticator(&args.access, args.listen, &mut followers)?;
    let tls = start::certificate(&args.site, &mut followers)?;
    let metrics = Metrics::new()?;
    let listener = listen(args.listen).await?;
    let address = listener.local_addr().context("asking for the own address")?;

    let (events, desk) = Desk::new(metrics.clone(), ice.clone());
    let mut cluster = JoinSet::new();
    let places = Places::new(args.agent().is_some(), args.cluster.pods.is_some());
    let parts = (&mut cluster, &mut followers);
    // Once it is told to end, another replica may write on pods at once.
    let pods = pods_of(&args.cluster, &ice, &places, parts, &told).await?;
    let overviews = overviews(&args, &places, &ice, &events, &stop);
    followers.spawn(overviews.clone().run());
    let by_hand = args.streamer.clone();
    let discovery = Discovery::new(args.agent(), pods, by_hand, events.clone(), places)?;
    let pages = TaskTracker::new();
    let site = args.site.site();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let door = Door {
        listener,
        tls,
        gate: Gate::new(args.site.per_address()),
        proxies: site.proxies.clone(),
        metrics: metrics.clone(),
    };
    let front = Front {
        events,
        ice,
        metrics,
        discovered: until(told.clone(), discovery.ready()),
        auth: Arc::new(auth),
        api: Api::new(args.access.join_link_ttl)?,
        overviews,
        gate: Gate::new(args.site.per_address()),
        site: Arc::new(site),
        pages: pages.clone(),
        stop: stop.clone(),
    };
    let path = front.site.cookie_path();
    let app = web::router(front, &page);
    tracing::info!(%address, page = %page.display(), "serving players on {scheme}://{address}{path}");

    let mut desk = pin!(desk.run());
    let ending = async {
        told.cancelled().await;
        tokio::time::sleep(last_calls).await;
        stop.cancel();
    };
    tokio::select! {
        _ = future::join(ending, door.run(app, pages.clone(), stop.clone())) => {}
        () = &mut desk => anyhow::bail!("the desk ended by itself"),
        () = discovery.run() => anyhow::bail!("the discovery of streamers ended by itself"),
        () = one_ends(&mut cluster, &told) => anyhow::bail!("a part that works with the cluster ended by itself"),
        Some(_) = followers.join_next() => anyhow::bail!("a task that follows files or keys ended by itself"),
    }
    // Each page's task says its own goodbye; the desk goes on meanwhile, and closes the links to streamers.
    pages.close();
    tokio::select! {
        left = tokio::time::timeout(GOODBYE, pages.wait()) => if left.is_err() {
            tracing::warn!(left = pages.len(), "some pages did not take their goodbye");
        },
        () = &mut desk => {}
    }
    last_writes(cluster).await;
    Ok(())
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}: choose another address with --listen"))
}

/// Waits until one of `parts` ends that was not told to.
async fn one_ends(parts: &mut JoinSet<()>, told: &CancellationToken) {
    while parts.join_next().await.is_some() {
        if !told.is_cancelled() {
            return;
        }
    }
    future::pending().await
}

/// Ready no more once it is told to end.
fn until(told: CancellationToken, ready: Ready) -> Ready {
    Arc::new(move || match told.is_cancelled() {
        true => Err("it was told to end".to_owned()),
        false => ready(),
    })
}

async fn last_writes(cluster: JoinSet<()>) {
    let written = tokio::time::timeout(LAST_WRITES, cluster.join_all()).await;
    if written.is_err() {
        tracing::warn!("the API server is too slow for a goodbye");
    }
}

fn overviews(
    args: &Args,
    places: &Places,
    ice: &Ice,
    events: &mpsc::Sender<Event>,
    stop: &CancellationToken,
) -> Overviews {
    let followed = args.cluster.turn_pods.as_ref().and(ice.turn.as_ref());
    let turn = followed.map(|turn| turn.servers.clone());
    Overviews::new(places.clone(), turn, events.clone(), stop.clone())
}

/// The streamers in pods, if they are looked for, with what writes on these pods, which goes into `tasks`: it has
/// something to do at the end. GpuNodes and TURN servers are followed, too.
async fn pods_of(
    args: &ClusterArgs,
    ice: &Ice,
    places: &Places,
    (tasks, followers): (&mut JoinSet<()>, &mut JoinSet<()>),
    stop: &CancellationToken,
) -> anyhow::Result<Option<Pods>> {
    let Some(cluster) = args.connect().await? else {
        return Ok(None);
    };
    if let (Some(selector), Some(turn)) = (&args.turn_pods, &ice.turn) {
        let (client, wanted) = (cluster.client.clone(), cluster.pods(selector));
        let follow = turn_servers::follow(client, wanted, turn.servers.clone())?;
        followers.spawn(follow);
    }
    Ok(args.pods.as_deref().map(|selector| {
        let (cost, work) = cost::start(&cluster, args, lease::identity(), stop.clone());
        tasks.spawn(work);
        followers.spawn(gpu_nodes::follow(cluster.client.clone(), places.clone()));
        let wanted = cluster.pods(selector);
        let client = cluster.client;
        Pods { client, wanted, cost }
    }))
}

/// How long a pod that was told to end goes on as before. Ingresses and the nodes' own forwarding hear of its end at about
/// the time when it does, and act on it a little later; one that probes for itself asks every few seconds.
pub const LAST_CALLS: Duration = Duration::from_secs(5);

/// How long the writes on pods, and giving the Lease back, may take at the end.
const LAST_WRITES: Duration = Duration::from_secs(8);

/// How long pages get to take the closing of their sockets.
const GOODBYE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    /// Else the kubelet would kill it in the midst of them.
    #[test]
    fn the_last_seconds_fit_into_the_grace_of_the_pod() {
        let manifest = include_str!("../../manifests/base/matchmaker/deployment.yaml");
        let grace = manifest
            .split_once("terminationGracePeriodSeconds: ")
            .and_then(|(_, rest)| rest.lines().next()?.parse().ok())
            .map(Duration::from_secs);
        assert!(
            grace.is_some_and(|grace| LAST_CALLS + GOODBYE + LAST_WRITES < grace),
            "{grace:?}"
        );
    }
}
