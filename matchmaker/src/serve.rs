//! Connections, up to the requests on them: HTTP/1.1, with TLS where there is a certificate.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::addresses::{Gate, Pass};
use crate::client_address::{Peer, Proxies};
use crate::impatient::Impatient;
use crate::metrics::Metrics;
use crate::problem::Reason;

/// The most connections at once that are no WebSockets. Each may hold [`MAX_HEADER_BYTES`] and as much of an answer.
pub const MAX_CONNECTIONS: usize = 8192;

/// What a connection gives back when it ends.
type Admission = (Option<Pass>, OwnedSemaphorePermit);

/// Ends the connection that a request came over, at once and whatever is still to be sent. Each request carries one.
#[derive(Debug, Clone)]
pub struct HangUp(pub CancellationToken);

/// What connections come in by.
pub struct Door {
    /// Where they come in.
    pub listener: TcpListener,
    /// The certificate, as it is now, and its key; without it nothing is encrypted.
    pub tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    /// How many an address may have. WebSockets no longer count here: they have a gate of their own.
    pub gate: Gate,
    /// How many there may be of all addresses together, each of which takes some memory before anybody has said who they
    /// are. WebSockets don't count here either.
    pub room: Arc<Semaphore>,
    /// They are as many clients as they say.
    pub proxies: Proxies,
    /// Where it counts those turned away.
    pub metrics: Metrics,
}

impl Door {
    /// Serves until `stop` is cancelled, then until `connections` have ended.
    pub async fn run(self, app: Router, connections: TaskTracker, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, address)) => self.admit(stream, address, &app, &connections, &stop),
                Err(error) => recover(&error).await,
            }
        }
    }

    fn admit(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        app: &Router,
        connections: &TaskTracker,
        stop: &CancellationToken,
    ) {
        let pass = match self.proxies.trusts(address.ip()) {
            true => None,
            false => match self.gate.enter(Instant::now(), address.ip()) {
                Ok(pass) => Some(pass),
                Err(error) => {
                    self.metrics.refused(Reason::Connections);
                    tracing::debug!(%address, %error, "a connection was turned away");
                    return;
                }
            },
        };
        let Ok(place) = self.room.clone().try_acquire_owned() else {
            self.metrics.refused(Reason::Connections);
            tracing::debug!(%address, "a connection was turned away: there are as many as there may be");
            return;
        };
        let pass = (pass, place);
        // Messages are small and follow one another: held back until the last is acknowledged, each would be late.
        // Where that can't be had it is slower, but no worse.
        let _ = stream.set_nodelay(true);
        let tls = self
            .tls
            .as_ref()
            .map(|tls| TlsAcceptor::from(tls.borrow().clone()));
        let connection = connection(stream, address, tls, app.clone(), stop.clone(), pass);
        connections.spawn(connection);
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    app: Router,
    stop: CancellationToken,
    pass: Admission,
) {
    let peer = Peer {
        address,
        tls: tls.is_some(),
    };
    let Some(tls) = tls else {
        return serve(stream, peer, app, stop, pass).await;
    };
    match tokio::time::timeout(HANDSHAKE_WITHIN, tls.accept(stream)).await {
        Ok(Ok(stream)) => serve(stream, peer, app, stop, pass).await,
        Ok(Err(error)) => tracing::debug!(%address, %error, "a TLS handshake failed"),
        Err(_) => tracing::debug!(%address, "a TLS handshake took too long"),
    }
}

async fn serve<S>(stream: S, peer: Peer, app: Router, stop: CancellationToken, _pass: Admission)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let hang_up = CancellationToken::new();
    let handle = HangUp(hang_up.clone());
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(handle.clone());
        app.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(Impatient::new(stream, TAKES_WITHIN)), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = hang_up.cancelled() => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(address = %peer.address, %error, "a connection broke");
    }
}

/// Most failures are one connection's own. Where there are no file descriptors left, the next try fails at once too.
async fn recover(error: &io::Error) {
    tracing::warn!(%error, "accepting a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Also how long a connection may be idle between requests.
const HEADERS_WITHIN: Duration = Duration::from_secs(20);
/// How long a client may take nothing of an answer.
const TAKES_WITHIN: Duration = Duration::from_secs(30);
/// The longest token, and as much again as others' headers come to.
const MAX_HEADER_BYTES: usize = crate::auth::jwt::MAX_TOKEN_BYTES + (8 << 10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::addresses::PerAddress;

    #[tokio::test]
    async fn all_addresses_together_have_so_many_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let no_limit = PerAddress {
            per_second: 0,
            burst: 0,
            at_once: 0,
        };
        let door = Door {
            listener,
            tls: None,
            gate: Gate::new(no_limit),
            room: Arc::new(Semaphore::new(2)),
            proxies: Proxies::default(),
            metrics: Metrics::new().unwrap(),
        };
        let stop = CancellationToken::new();
        tokio::spawn(door.run(Router::new(), TaskTracker::new(), stop.clone()));
        let is_closed = async |stream: &mut TcpStream| {
            let read = tokio::time::timeout(Duration::from_millis(300), stream.read_u8()).await;
            read.is_ok()
        };
        let mut held = [
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
        ];
        let mut third = TcpStream::connect(address).await.unwrap();
        assert!(is_closed(&mut third).await);
        assert!(!is_closed(&mut held[0]).await && !is_closed(&mut held[1]).await);
        drop(held);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut fourth = TcpStream::connect(address).await.unwrap();
        assert!(!is_closed(&mut fourth).await);
        stop.cancel();
    }
}
