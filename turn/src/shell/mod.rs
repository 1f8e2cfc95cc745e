//! The shell: sockets, a clock and signals around the core.
//!
//! ```text
//!  main thread (tokio)                      shard: a thread of its own
//!  ├─ SIGTERM ──► Control::drain ─ eventfd ─► epoll ─► recv ─► Server ─► send
//!  └─ /metrics ◄── prometheus counters ◄───── after each wake-up
//! ```
//!
//! A shard owns all it touches per packet: its sockets, its server, its numbers. There is one now; more of them, each
//! with a `SO_REUSEPORT` listener, share nothing but the nonces' key.

mod clock;
pub mod datagrams;
pub mod gathering;
mod metrics;
mod outbox;
mod shard;
pub mod sockets;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use penstock_shell::{ops, shutdown};
use prometheus::Registry;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::core::nonce::Nonces;
use crate::core::peers::PeerPolicy;
use crate::core::server::{Config, Server};
use crate::options::Settings;
use metrics::Meter;
use shard::{Control, Shard};
use sockets::Listener;

/// Why the server could not start, or ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The clients' address.
    #[error("listening for clients on udp {address}: {}", hint(source, "--listen"))]
    Listen {
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

/// Serves until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// [`Error`] says what to do.
pub async fn run(settings: Settings) -> Result<(), Error> {
    let registry = Registry::new();
    let meter = Meter::new(&registry).map_err(|error| Error::System {
        doing: "registering the metrics",
        source: io::Error::other(error),
    })?;
    let control = Arc::new(system("making an eventfd", Control::new())?);
    let shard = shard(&settings, meter, control.clone())?;
    let metrics = TcpListener::bind(settings.metrics_listen)
        .await
        .map_err(|source| Error::Metrics {
            address: settings.metrics_listen,
            source,
        })?;
    let told_to_end = system("installing signal handlers", shutdown::token())?;
    announce(
        &settings,
        &shard,
        system("reading an address", metrics.local_addr())?,
    );

    let ready = {
        let control = control.clone();
        Arc::new(move || {
            if control.is_draining() {
                Err("draining".to_owned())
            } else {
                Ok(())
            }
        })
    };
    let serving = async {
        let served = axum::serve(metrics, ops::router::<()>(registry, ready)).await;
        system("serving /metrics", served).and(Err(Error::Ended("the metrics endpoint")))
    };
    let drained = relay(shard)?;
    let draining = async {
        told_to_end.cancelled().await;
        system("telling the shard to drain", control.drain())?;
        std::future::pending().await
    };
    tokio::select! {
        ended = drained => end(ended, control.is_draining()),
        failed = serving => failed,
        failed = draining => failed,
    }
}

/// Runs a shard on a thread of its own. The receiver says how it ended, a panic included.
fn relay(shard: Shard) -> Result<oneshot::Receiver<io::Result<()>>, Error> {
    let (ended, receiver) = oneshot::channel();
    let thread = std::thread::Builder::new().name("shard".to_owned());
    let started = thread.spawn(move || {
        // If nobody listens any more, the process is ending anyway.
        let _ = ended.send(shard.run());
    });
    system("starting the shard's thread", started)?;
    Ok(receiver)
}

fn end(ended: Result<io::Result<()>, oneshot::error::RecvError>, draining: bool) -> Result<(), Error> {
    match ended {
        Ok(Ok(())) if draining => Ok(()),
        Ok(Err(source)) => Err(Error::System {
            doing: "relaying",
            source,
        }),
        Ok(Ok(())) | Err(_) => Err(Error::Ended("the shard")),
    }
}

fn shard(settings: &Settings, meter: Meter, control: Arc<Control>) -> Result<Shard, Error> {
    let listeners: Vec<_> = settings
        .listen
        .iter()
        .map(|address| {
            Listener::bind(*address).map_err(|source| Error::Listen {
                address: *address,
                source,
            })
        })
        .collect::<Result<_, _>>()?;
    sockets::udp((settings.relay_ip, 0).into()).map_err(|source| Error::RelayIp {
        ip: settings.relay_ip,
        source,
    })?;
    sockets::raise_open_files(settings.limits.total);
    #[allow(
        clippy::disallowed_methods,
        reason = "the shell seeds the core's generator, from the system's"
    )]
    let mut rng: StdRng = rand::make_rng();
    let mut key = [0; 32];
    rng.fill_bytes(&mut key);
    let nonces = Nonces::new(key, clock::read().instant);
    let server = Server::new(config(settings), nonces, StdRng::from_rng(&mut rng));
    let shard = Shard::new(
        server,
        listeners,
        settings.external_ip,
        settings.grace,
        meter,
        control,
    );
    system("making an epoll instance", shard)
}

fn config(settings: &Settings) -> Config {
    let named = settings.listen.iter().map(SocketAddr::ip);
    let own = named
        .chain(settings.external_ip)
        .chain([settings.relay_ip])
        .chain(sockets::own_addresses());
    Config {
        realm: settings.realm.clone(),
        users: settings.users.clone(),
        peers: PeerPolicy::new(settings.allow_peers.clone(), own, settings.only_allowed_peers),
        relay_ip: settings.relay_ip,
        ports: settings.relay_ports,
        limits: settings.limits,
    }
}

/// Says what clients will be told, and whom they may reach.
fn announce(settings: &Settings, shard: &Shard, metrics: SocketAddr) {
    let listen: Vec<_> = shard
        .listen_addresses()
        .map(|address| address.to_string())
        .collect();
    let told = match (settings.external_ip, settings.listen.as_slice()) {
        (Some(ip), _) => ip.to_string(),
        (None, [one]) if !one.ip().is_unspecified() => one.ip().to_string(),
        _ => "the address that each reached".to_owned(),
    };
    let names: Vec<_> = settings.allow_peers.iter().map(ToString::to_string).collect();
    let peers = match (settings.only_allowed_peers, names.is_empty()) {
        (true, true) => "nobody: --only-allowed-peers without --allow-peer".to_owned(),
        (true, false) => format!("{} only", names.join(", ")),
        (false, true) => "public addresses only; open others with --allow-peer".to_owned(),
        (false, false) => format!("public addresses and {}", names.join(", ")),
    };
    tracing::info!(
        "listening on udp {}; clients are told relays at {told}, ports {}; relays are bound to {}; peers allowed: \
         {peers}; metrics on http://{metrics}/metrics",
        listen.join(", "),
        settings.relay_ports,
        settings.relay_ip,
    );
}

fn system<T>(doing: &'static str, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::System { doing, source })
}
