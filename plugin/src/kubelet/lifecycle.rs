//! Registers with the kubelet, and again whenever it has forgotten us; [`Registrar`] decides when.
//!
//! ```text
//!   end the old streams ──► bind three sockets, serve ──► Register, three times ──► look every 0.2 s
//!          ▲                                                    │ failed                 │
//!          └────────────────────────────────────────────────────┴────────────────────────┘
//! ```
//!
//! The order matters. The kubelet dials back before it answers a registration, so we serve first. And it knows a
//! plugin by its resource only: the end of an old stream would take a new registration with it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use penstock_core::device::Resource;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Server};

use super::devices::Listed;
use super::owner::Call;
use super::proto::DEVICE_PLUGIN_VERSION;
use super::proto::device_plugin::RegisterRequest;
use super::proto::device_plugin::device_plugin_server::DevicePluginServer;
use super::proto::device_plugin::registration_client::RegistrationClient;
use super::registrar::{Registrar, Seen, SocketIdentity, Step, Why};
use super::service::{self, Service};
use super::socket::{self, OurSocket};

/// Keeps us registered.
#[derive(Debug)]
pub(super) struct Lifecycle {
    /// The kubelet's device plugin directory.
    pub(super) directory: PathBuf,
    /// What the kubelet is shown.
    pub(super) listed: Listed,
    /// Where its calls go.
    pub(super) calls: mpsc::Sender<Call>,
    /// Whether the kubelet knows us, for others to see.
    pub(super) registered: watch::Sender<bool>,
}

/// The file name of `resource`'s socket in the kubelet's device plugin directory.
pub(super) fn socket_name(resource: Resource) -> &'static str {
    match resource {
        Resource::Nvenc => "penstock-nvenc.sock",
        Resource::Mps => "penstock-mps.sock",
        Resource::Vram => "penstock-vram.sock",
    }
}

impl Lifecycle {
    /// Runs until `told_to_end`. Then the calls that wait have three seconds, since one without an answer fails its
    /// pod for good; and the streams end and the sockets go, before this returns.
    pub(super) async fn run(self, told_to_end: CancellationToken) {
        let mut registrar = Registrar::new();
        let mut open: Option<Open> = None;
        while !told_to_end.is_cancelled() {
            match registrar.look(Instant::now(), self.see(open.as_mut())) {
                Step::Rest => {}
                Step::SayAway => self.say_away(),
                Step::Register(kubelet, why) => {
                    say_why(why);
                    self.registered.send_replace(false);
                    close(open.take()).await;
                    let registering = self.register(&mut registrar, kubelet);
                    open = told_to_end.run_until_cancelled(registering).await.flatten();
                }
            }
            let pause = tokio::time::sleep(LOOK_EVERY);
            told_to_end.run_until_cancelled(pause).await;
        }
        self.registered.send_replace(false);
        if let Some(open) = &mut open {
            let answered = tokio::time::timeout(ANSWER_WITHIN, open.until_answered());
            if answered.await.is_err() {
                tracing::warn!(
                    "ending while the kubelet waits for a device: its pod fails, and is to be made anew"
                );
            }
        }
        close(open).await;
    }

    fn see(&self, open: Option<&mut Open>) -> Seen {
        let (sockets, watched) = open.map_or((false, false), |open| {
            (open.sockets_are_served(), open.is_watched())
        });
        Seen {
            kubelet: socket::identity(&self.kubelet_socket()),
            sockets,
            watched,
        }
    }

    fn say_away(&self) {
        self.registered.send_replace(false);
        tracing::warn!(
            "waiting for the kubelet: there is no socket at {} (--kubelet-dir chooses another place); nothing can \
             be allocated until there is",
            self.kubelet_socket().display()
        );
    }

    async fn register(&self, registrar: &mut Registrar, kubelet: SocketIdentity) -> Option<Open> {
        match self.try_to_register().await {
            Ok(open) => {
                registrar.registered(Instant::now(), kubelet);
                self.registered.send_replace(true);
                tracing::info!("registered with the kubelet");
                Some(open)
            }
            Err(error) => {
                match registrar.failed(Instant::now(), kubelet) {
                    true => {
                        tracing::warn!("{error:#}; nothing can be allocated; trying again until it works")
                    }
                    false => tracing::debug!("{error:#}"),
                }
                None
            }
        }
    }

    async fn try_to_register(&self) -> anyhow::Result<Open> {
        let mut open = Open::new();
        for (resource, devices) in self.listed.each() {
            let path = self.directory.join(socket_name(resource));
            let shown = path.display().to_string();
            let (socket, listener) =
                socket::listen(path).with_context(|| format!("listening for the kubelet on {shown}"))?;
            let (watchers, watched) = watch::channel(0);
            let (unanswered, waiting) = watch::channel(0);
            let service = Service {
                resource,
                devices,
                calls: self.calls.clone(),
                watchers,
                unanswered,
                closing: open.closing.clone(),
            };
            open.serve(service, listener);
            open.resources.push(Served {
                socket,
                watched,
                waiting,
            });
        }
        self.tell_kubelet().await?;
        Ok(open)
    }

    async fn tell_kubelet(&self) -> anyhow::Result<()> {
        let path = self.kubelet_socket();
        let doing = || format!("connecting to the kubelet at {}", path.display());
        let channel = socket::connect(&path).await.with_context(doing)?;
        let mut client = RegistrationClient::new(channel);
        for resource in Resource::ALL {
            tell(&mut client, resource).await.with_context(|| {
                format!(
                    "registering {} with the kubelet at {}",
                    resource.name(),
                    path.display()
                )
            })?;
        }
        Ok(())
    }

    fn kubelet_socket(&self) -> PathBuf {
        self.directory.join(Path::new(KUBELET_SOCKET))
    }
}

/// A first attempt is told by what comes of it, and so are those that follow a failed one.
fn say_why(why: Why) {
    match why {
        Why::NotYet => tracing::debug!("registering with the kubelet"),
        why => tracing::info!("registering with the kubelet again: {}", why.words()),
    }
}

async fn tell(client: &mut RegistrationClient<Channel>, resource: Resource) -> anyhow::Result<()> {
    let request = RegisterRequest {
        version: DEVICE_PLUGIN_VERSION.to_owned(),
        endpoint: socket_name(resource).to_owned(),
        resource_name: resource.name().to_owned(),
        options: Some(service::options()),
    };
    let registered = client.register(request).await;
    registered.map_err(|status| socket::in_words(&status))?;
    Ok(())
}

/// The sockets and servers of one registration. Dropped, it takes all of them along.
#[derive(Debug)]
struct Open {
    resources: Vec<Served>,
    servers: JoinSet<()>,
    closing: CancellationToken,
    _close_on_drop: DropGuard,
}

#[derive(Debug)]
struct Served {
    socket: OurSocket,
    watched: watch::Receiver<usize>,
    waiting: watch::Receiver<usize>,
}

impl Open {
    fn new() -> Self {
        let closing = CancellationToken::new();
        Self {
            resources: Vec::new(),
            servers: JoinSet::new(),
            _close_on_drop: closing.clone().drop_guard(),
            closing,
        }
    }

    fn serve(&mut self, service: Service, listener: UnixListener) {
        let resource = service.resource.name();
        let closing = self.closing.clone().cancelled_owned();
        self.servers.spawn(async move {
            let serving = Server::builder().serve_with_incoming_shutdown(
                DevicePluginServer::new(service),
                socket::connections(listener),
                closing,
            );
            if let Err(error) = serving.await {
                tracing::error!(resource, "serving the kubelet: {error}");
            }
        });
    }

    fn sockets_are_served(&mut self) -> bool {
        self.servers.try_join_next().is_none() && self.resources.iter().all(|served| served.socket.is_there())
    }

    /// Waits until all calls are answered and none has followed for a moment: a pod brings on several in a row.
    async fn until_answered(&mut self) {
        loop {
            for served in &mut self.resources {
                // An error says that the service is gone, and the calls with it.
                let _ = served.waiting.wait_for(|count| *count == 0).await;
            }
            tokio::time::sleep(QUIET).await;
            let has_more = |served: &Served| served.waiting.has_changed().unwrap_or(false);
            if !self.resources.iter().any(has_more) {
                return;
            }
        }
    }

    fn is_watched(&self) -> bool {
        self.resources.iter().all(|served| *served.watched.borrow() > 0)
    }
}

/// Ends the streams, and waits until they have ended.
async fn close(open: Option<Open>) {
    let Some(mut open) = open else { return };
    open.closing.cancel();
    let all = async { while open.servers.join_next().await.is_some() {} };
    if tokio::time::timeout(CLOSE_WITHIN, all).await.is_err() {
        tracing::debug!("a connection of the kubelet's does not close");
    }
}

const KUBELET_SOCKET: &str = "kubelet.sock";
const LOOK_EVERY: Duration = Duration::from_millis(200);
const QUIET: Duration = Duration::from_millis(100);
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
const CLOSE_WITHIN: Duration = Duration::from_millis(500);
