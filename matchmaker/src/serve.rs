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
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::addresses::{Gate, Pass};
use crate::client_address::{Peer, Proxies};
use crate::metrics::Metrics;
use crate::problem::Reason;

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
    pass: Option<Pass>,
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

async fn serve<S>(stream: S, peer: Peer, app: Router, stop: CancellationToken, _pass: Option<Pass>)
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
        .serve_connection(TokioIo::new(stream), service)
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
const MAX_HEADER_BYTES: usize = 64 << 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
