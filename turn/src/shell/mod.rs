//! The shell: sockets, a clock and signals around the core.
//!
//! ```text
//!  main thread (tokio)                      shards: a thread for each core that this process may use
//!  ├─ SIGTERM ──► Control::drain ─ eventfd ─► epoll ─► recvmmsg ─► Server ─► sendmmsg
//!  └─ /metrics, /status ◄── prometheus counters ◄ after each wake-up
//! ```
//!
//! A shard owns all it touches per packet: its sockets, its server, its numbers. Each has listeners of its own at the
//! same addresses (`SO_REUSEPORT`), and the kernel gives it its share of the clients; a client's relay is its shard's.
//! They share the nonces' key, what is asked for when an allocation is made (quotas and ports), and what is asked for when
//! somebody has not authenticated (limits of each source).

mod addresses;
pub mod clock;
mod connection;
mod control;
pub mod datagrams;
pub mod gathering;
mod metrics;
mod outbox;
mod shard;
pub mod sockets;
mod status;
mod streams;
mod token;
pub mod xdp;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use penstock_shell::{ops, shutdown};
use prometheus::Registry;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::core::nonce::Nonces;
use crate::core::peers::PeerPolicy;
use crate::core::server::{Config, Rules, Server};
use crate::core::shared::Shared;
use crate::core::throttle::Throttle;
use crate::open_files::{self, Shares};
use crate::options::Settings;
use control::{Control, News};
use metrics::Meter;
use shard::{Shard, StreamSetup};
use sockets::Listener;
use status::{Listeners, Status};
use streams::StreamListener;
use xdp::Xdp;

/// Why the server could not start, or ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The clients' address.
    #[error("listening for clients on {transport} {address}: {}", hint(source, option))]
    Listen {
        /// What is spoken there.
        transport: &'static str,
        /// The option that names it.
        option: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The relays' address.
    #[error("opening a relay on {ip}: {}", hint(source, "--relay-ip"))]
    RelayIp {
        /// The address.
        ip: IpAddr,
        /// Why not.
        source: io::Error,
    },
    /// The operators' address.
    #[error(
        "listening for /metrics on tcp {address}: {}",
        hint(source, "--metrics-listen")
    )]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The network driver.
    #[error(transparent)]
    Xdp(#[from] xdp::Refused),
    /// Something of the system.
    #[error("{doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A part of the program ended.
    #[error("{0} ended without being told to; this is a bug")]
    Ended(&'static str),
}

/// What to do about an address that can't be bound.
fn hint(error: &io::Error, option: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("another program has that port: stop it, or choose another with {option}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("this machine has no such address: choose another with {option}")
        }
        io::ErrorKind::PermissionDenied => format!("not permitted: choose a port from 1024 on with {option}"),
        _ => format!("choose another with {option}"),
    }
}

/// Serves until SIGTERM or SIGINT, then drains. On SIGHUP `read_again` gives the settings anew, of which users,
/// certificates and rules count.
///
/// # Errors
/// [`Error`] says what to do.
pub async fn run(settings: Settings, read_again: impl Fn() -> Result<Settings, String>) -> Result<(), Error> {
    let mut settings = located(settings);
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    limit_to_open_files(&mut settings, cores);
    let registry = Registry::new();
    let meter = Meter::new(&registry).map_err(|error| Error::System {
        doing: "registering the metrics",
        source: io::Error::other(error),
    })?;
    let controls: Arc<[_]> = system("making an eventfd", Control::of_shards(cores))?.into();
    let xdp = past_user_space(&settings)?;
    let own = sockets::own_addresses();
    let shards = shards(&settings, &meter, &controls, xdp.as_ref())?;
    let metrics = TcpListener::bind(settings.metrics_listen)
        .await
        .map_err(|source| Error::Metrics {
            address: settings.metrics_listen,
            source,
        })?;
    let hangup = system("installing signal handlers", signal(SignalKind::hangup()))?;
    let told_to_end = system("installing signal handlers", shutdown::token())?;
    announce(
        &settings,
        &shards[0],
        system("reading an address", metrics.local_addr())?,
    );

    let status = status_of(&settings, &shards[0], meter.clone());
    let ready = ready(controls.clone());
    let serving = async {
        let controls = controls.clone();
        let status = status.clone().router(move || is_draining(&controls));
        let served = axum::serve(metrics, ops::router::<()>(registry, ready).merge(status)).await;
        system("serving /metrics", served).and(Err(Error::Ended("the metrics endpoint")))
    };
    let drained = relay(shards, &controls)?;
    let draining = async {
        told_to_end.cancelled().await;
        for control in &*controls {
            system("telling a shard to drain", control.drain())?;
        }
        std::future::pending().await
    };
    tokio::select! {
        ended = drained => ended,
        failed = serving => failed,
        failed = draining => failed,
        failed = reload(settings, own, hangup, read_again, &controls) => failed,
        () = meter.clone().publish_xdp(xdp) => Err(Error::Ended("the count of what network drivers relayed")),
        () = status.clone().measure() => Err(Error::Ended("the measure of what is relayed")),
    }
}

/// Tells shards of other rules: when SIGHUP says so, and when this machine's `own` addresses are others.
async fn reload(
    mut settings: Settings,
    mut own: BTreeSet<IpAddr>,
    mut hangup: Signal,
    read_again: impl Fn() -> Result<Settings, String>,
    controls: &[Arc<Control>],
) -> Result<(), Error> {
    let mut looks = tokio::time::interval(ADDRESSES_LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            hung_up = hangup.recv() => {
                hung_up.ok_or(Error::Ended("the signal handler"))?;
                let read = read_again().and_then(|read| match (&settings.tls, &read.tls) {
                    (Some(_), None) => Err(TLS_IS_GONE.to_owned()),
                    _ => Ok(read),
                });
                match read {
                    Ok(read) => {
                        settings = located(read);
                        tell(&settings, controls)?;
                        tracing::info!("SIGHUP: users, certificates and rules were read again");
                    }
                    Err(error) => tracing::error!("SIGHUP: nothing has changed: {error}"),
                }
            }
            _ = looks.tick() => {
                let now = sockets::own_addresses();
                if now != own {
                    tell(&settings, controls)?;
                    tracing::debug!(addresses = ?now, "this machine's own addresses are others");
                    own = now;
                }
            }
        }
    }
}

fn tell(settings: &Settings, controls: &[Arc<Control>]) -> Result<(), Error> {
    let news = news(settings);
    for control in controls {
        system("telling a shard of new rules", control.reload(news.clone()))?;
    }
    Ok(())
}

fn status_of(settings: &Settings, shard: &Shard, meter: Meter) -> Status {
    let listeners = Listeners {
        udp: shard.listen_addresses().collect(),
        tcp: shard.stream_addresses(false).collect(),
        tls: shard.stream_addresses(true).collect(),
    };
    let name = settings.tls_name.as_deref();
    let urls = status::urls(&listeners, &settings.addresses, settings.relay_ips, name);
    Status::new(urls, settings.limits.total, meter)
}

/// With what was left to the node: where clients come in, and what relays are bound to.
fn located(mut settings: Settings) -> Settings {
    if settings.listen.is_empty() {
        settings.listen = addresses::listen_default();
    }
    settings.relay_ips = addresses::relay_ips(settings.relay_ips, &settings.listen);
    settings
}

fn ready(controls: Arc<[Arc<Control>]>) -> ops::Ready {
    Arc::new(move || match is_draining(&controls) {
        true => Err("draining".to_owned()),
        false => Ok(()),
    })
}

fn is_draining(controls: &[Arc<Control>]) -> bool {
    controls.iter().any(|control| control.is_draining())
}

/// Runs each shard on a thread of its own, until all have drained or one failed.
fn relay(
    shards: Vec<Shard>,
    controls: &[Arc<Control>],
) -> Result<impl Future<Output = Result<(), Error>>, Error> {
    let mut running = JoinSet::new();
    for (number, shard) in shards.into_iter().enumerate() {
        let (ended, receiver) = oneshot::channel();
        let thread = std::thread::Builder::new().name(format!("shard-{number}"));
        let started = thread.spawn(move || {
            // If nobody listens any more, the process is ending anyway.
            let _ = ended.send(shard.run());
        });
        system("starting a shard's thread", started)?;
        running.spawn(receiver);
    }
    Ok(async move {
        while let Some(ended) = running.join_next().await {
            // Without a word its thread has panicked.
            let ended = ended.ok().and_then(Result::ok);
            match ended {
                Some(Ok(())) if is_draining(controls) => {}
                Some(Err(source)) => {
                    return Err(Error::System {
                        doing: "relaying",
                        source,
                    });
                }
                Some(Ok(())) | None => return Err(Error::Ended("a shard")),
            }
        }
        Ok(())
    })
}

/// As many relays and connections as there may be sockets for.
fn limit_to_open_files(settings: &mut Settings, shards: usize) {
    let families = settings.relay_ips.present().count();
    let tcp = settings.listen_tcp.as_ref().unwrap_or(&settings.listen).len();
    let tls = match (&settings.listen_tls, &settings.tls) {
        (Some(said), _) => said.len(),
        (None, Some(_)) => settings.listen.len(),
        (None, None) => 0,
    };
    let limits = &mut settings.limits;
    if tcp + tls == 0 {
        limits.connections = 0;
    }
    let wanted = Shares {
        relays: limits.total.saturating_mul(families),
        connections: limits.connections,
    };
    let listeners = settings.listen.len() + tcp + tls;
    let files = sockets::raise_open_files(usize::MAX);
    let room = wanted.within(files.saturating_sub(open_files::of_shards(shards, listeners)));
    if room != wanted {
        tracing::info!(
            "fewer relays or connections than wanted ({} and {}): a process may have only so many files open; raise \
             ulimit -Hn, or lower --max-allocations and --max-connections",
            wanted.relays,
            wanted.connections,
        );
    }
    limits.ports = room.relays;
    limits.total = limits.total.min(room.relays);
    limits.connections = room.connections;
}

/// Lets network drivers relay, where that was asked for, and says so.
fn past_user_space(settings: &Settings) -> Result<Option<Arc<Xdp>>, Error> {
    if settings.xdp.is_empty() {
        return Ok(None);
    }
    let xdp = Xdp::attach(&settings.xdp)?;
    for (interface, mode) in xdp.interfaces() {
        match mode {
            xdp::Mode::Native => tracing::info!("the driver of {interface} relays channels itself (XDP)"),
            xdp::Mode::Generic => tracing::warn!(
                "the driver of {interface} can not relay: the kernel relays channels after it (generic XDP), which costs more"
            ),
        }
    }
    Ok(Some(Arc::new(xdp)))
}

/// One for each control.
fn shards(
    settings: &Settings,
    meter: &Meter,
    controls: &[Arc<Control>],
    xdp: Option<&Arc<Xdp>>,
) -> Result<Vec<Shard>, Error> {
    for (_, ip) in settings.relay_ips.present() {
        sockets::udp((*ip, 0).into()).map_err(|source| Error::RelayIp { ip: *ip, source })?;
    }
    #[allow(
        clippy::disallowed_methods,
        reason = "the shell seeds the core's generator, from the system's"
    )]
    let mut rng: StdRng = rand::make_rng();
    let mut key = [0; 32];
    rng.fill_bytes(&mut key);
    let nonces = Nonces::new(key, clock::read().instant);
    let config = config(settings, &mut rng);
    let doors = doors(settings, controls.len())?;
    let shard = |(control, (listeners, stream_listeners)): (&Arc<Control>, Doors)| {
        let streams = StreamSetup {
            listeners: stream_listeners,
            shared: config.shared.clone(),
        };
        let shard = Shard::new(
            Server::new(config.clone(), nonces.clone(), StdRng::from_rng(&mut rng)),
            listeners,
            streams,
            settings.addresses.clone(),
            settings.grace,
            meter.clone(),
            control.clone(),
        );
        Ok(system("making an epoll instance", shard)?.with_xdp(xdp.cloned()))
    };
    controls.iter().zip(doors).map(shard).collect()
}

/// Where one shard's clients come in.
type Doors = (Vec<Listener>, Vec<StreamListener>);

/// The same addresses for each shard.
fn doors(settings: &Settings, shards: usize) -> Result<Vec<Doors>, Error> {
    let udp = |address: &SocketAddr| {
        let listener = Listener::bind(*address);
        listener.map_err(|source| Error::Listen {
            transport: "udp",
            option: "--listen",
            address: *address,
            source,
        })
    };
    let udp: Vec<_> = settings.listen.iter().map(udp).collect::<Result<_, _>>()?;
    let streams = stream_listeners(settings, &udp)?;
    let beside = |_| {
        let udp = udp.iter().map(Listener::beside).collect::<io::Result<_>>()?;
        let streams = streams
            .iter()
            .map(StreamListener::beside)
            .collect::<io::Result<_>>()?;
        Ok((udp, streams))
    };
    let others: io::Result<Vec<Doors>> = (1..shards).map(beside).collect();
    let mut doors = system("listening with several shards", others)?;
    doors.push((udp, streams));
    Ok(doors)
}

/// TCP where it was said, else where UDP is; TLS where it was said, else on its own port beside.
fn stream_listeners(settings: &Settings, udp: &[Listener]) -> Result<Vec<StreamListener>, Error> {
    let beside = |port: Option<u16>| {
        let address =
            |listener: &Listener| SocketAddr::new(listener.local.ip(), port.unwrap_or(listener.local.port()));
        udp.iter().map(address).collect::<Vec<_>>()
    };
    let tcp = match &settings.listen_tcp {
        Some(said) => said.clone(),
        None => beside(None),
    };
    // Where there is no certificate, clap takes no --listen-tls.
    let tls = settings.tls.iter().flat_map(|config| {
        let said = settings.listen_tls.clone();
        let addresses = said.unwrap_or_else(|| beside(Some(TLS_PORT)));
        addresses.into_iter().map(move |address| (address, config))
    });
    let listen = |transport, option, address, tls: Option<&Arc<ServerConfig>>| {
        StreamListener::bind(address, tls.cloned()).map_err(|source| Error::Listen {
            transport,
            option,
            address,
            source,
        })
    };
    let tcp = tcp
        .into_iter()
        .map(|address| listen("tcp", "--listen-tcp", address, None));
    let tls = tls.map(|(address, config)| listen("tls", "--listen-tls", address, Some(config)));
    tcp.chain(tls).collect()
}

fn config(settings: &Settings, rng: &mut StdRng) -> Config {
    Config {
        realm: settings.realm.clone(),
        rules: rules(settings),
        relay_ips: settings.relay_ips,
        shared: Shared::new(settings.relay_ports, settings.limits),
        alternates: settings.alternates,
        unproven_answers: Throttle::new(settings.unproven_answers, rng.next_u64()),
        auth_failures: Throttle::new(settings.auth_failures, rng.next_u64()),
    }
}

fn news(settings: &Settings) -> News {
    News {
        rules: rules(settings),
        tls: settings.tls.clone(),
    }
}

fn rules(settings: &Settings) -> Rules {
    let listen = settings.listen.iter().map(SocketAddr::ip);
    let relay = settings.relay_ips.present().map(|(_, ip)| *ip);
    let external = settings.addresses.external.iter().map(|known| known.external);
    let own = listen
        .chain(relay)
        .chain(external)
        .chain(sockets::own_addresses());
    Rules {
        users: settings.users.clone(),
        peers: PeerPolicy::new(settings.allow_peers.clone(), own, settings.only_allowed_peers),
    }
}

/// Says what clients will be told, and whom they may reach.
fn announce(settings: &Settings, shard: &Shard, metrics: SocketAddr) {
    let streams_at = [false, true]
        .into_iter()
        .flat_map(|tls| shard.stream_addresses(tls));
    let listen: Vec<_> = shard
        .listen_addresses()
        .chain(streams_at)
        .map(|at| at.ip())
        .collect();
    let (told, bound) = settings.addresses.announced(&listen, settings.relay_ips);
    tracing::info!(
        "listening on udp {}{}{}; clients are told relays at {}, ports {}; relays are bound to {}; room for {} \
         allocations with {} relays, and {} connections; peers allowed: {}; metrics on http://{metrics}/metrics",
        list(shard.listen_addresses()),
        streams(shard, false),
        streams(shard, true),
        told,
        settings.relay_ports,
        bound,
        settings.limits.total,
        settings.limits.ports,
        settings.limits.connections,
        peers(settings),
    );
}

fn streams(shard: &Shard, tls: bool) -> String {
    let addresses = list(shard.stream_addresses(tls));
    let name = if tls { "tls" } else { "tcp" };
    if addresses.is_empty() {
        String::new()
    } else {
        format!("; {name} {addresses}")
    }
}

fn peers(settings: &Settings) -> String {
    let names = list(&settings.allow_peers);
    match (settings.only_allowed_peers, names.is_empty()) {
        (true, true) => "nobody: --only-allowed-peers without --allow-peer".to_owned(),
        (true, false) => format!("{names} only"),
        (false, true) => "public addresses only; open others with --allow-peer".to_owned(),
        (false, false) => format!("public addresses and {names}"),
    }
}

fn list(things: impl IntoIterator<Item = impl ToString>) -> String {
    let things: Vec<_> = things.into_iter().map(|thing| thing.to_string()).collect();
    things.join(", ")
}

fn system<T>(doing: &'static str, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::System { doing, source })
}

const TLS_IS_GONE: &str = "there is no certificate any more, and clients come in over TLS: give --tls-cert and --tls-key \
     again, or restart the server to serve without TLS";
/// The port of TURN over TLS (RFC 8656, section 4).
const TLS_PORT: u16 = 5349;
/// How soon an address that this machine gets is out of clients' reach.
const ADDRESSES_LOOK: Duration = Duration::from_secs(2);
