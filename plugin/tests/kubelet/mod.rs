//! A kubelet for tests: it treats device plugins as the real one of Kubernetes 1.36 was seen to.
//!
//! ```text
//!   script ──► Kubelet::admit, remove, restart …
//!                 │
//!                 ├─ servers   kubelet.sock (Registration), pod-resources/kubelet.sock
//!                 ├─ watch     dials a plugin back; ListAndWatch
//!                 ├─ admission one pod at a time: GetPreferredAllocation, Allocate
//!                 └─ books     which devices there are, which pods hold them
//! ```
//!
//! Chance is seeded: the order of a container's resources, of device IDs, and what fills up a short list.

#![allow(dead_code, clippy::unwrap_used)] // Each test program uses a part; a panic is a failed test.

mod admission;
mod books;
mod chance;
mod servers;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

pub(crate) use admission::{Allocated, PodSpec};
pub(crate) use books::{Event, Happened, Took};

use books::Books;
use chance::Chance;
use servers::Servers;

/// Device plugins, as generated.
pub(crate) mod device_plugin {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines)]
    include!(concat!(env!("OUT_DIR"), "/v1beta1.rs"));
}

/// Pod resources, as generated.
pub(crate) mod pod_resources {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines)]
    include!(concat!(env!("OUT_DIR"), "/v1.rs"));
}

/// Long enough for a busy machine; what takes this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The kubelet.
pub(crate) struct Kubelet {
    shared: Arc<Shared>,
    servers: Mutex<Option<Servers>>,
    /// Held while a pod is admitted: there is only one at a time.
    chance: tokio::sync::Mutex<Chance>,
}

/// What the kubelet's tasks share.
struct Shared {
    directory: PathBuf,
    books: Mutex<Books>,
}

impl Kubelet {
    /// A kubelet whose directory (`--kubelet-dir`) is `directory`, running.
    pub(crate) fn start(directory: &Path, seed: u64) -> Self {
        let kubelet = Self::stopped(directory, seed);
        kubelet.begin();
        kubelet
    }

    /// A kubelet that does not run yet; its directories are there.
    pub(crate) fn stopped(directory: &Path, seed: u64) -> Self {
        for part in ["device-plugins", "pod-resources"] {
            std::fs::create_dir_all(directory.join(part)).unwrap();
        }
        Self {
            shared: Arc::new(Shared {
                directory: directory.to_owned(),
                books: Mutex::default(),
            }),
            servers: Mutex::default(),
            chance: tokio::sync::Mutex::new(Chance::new(seed)),
        }
    }

    /// Starts it: every socket in the plugin directory is deleted, no plugin is known, and what pods hold is.
    pub(crate) fn begin(&self) {
        for entry in std::fs::read_dir(self.shared.plugin_dir()).unwrap() {
            let path = entry.unwrap().path();
            if !path.ends_with(servers::CHECKPOINT) {
                std::fs::remove_file(path).unwrap();
            }
        }
        self.shared.books().begin();
        *self.servers.lock().unwrap() = Some(Servers::start(&self.shared));
    }

    /// Kills it: streams and connections end, its sockets stay.
    pub(crate) fn stop(&self) {
        self.servers.lock().unwrap().take();
        self.shared.books().stop();
    }

    /// Kills it and starts it anew.
    pub(crate) fn restart(&self) {
        self.stop();
        self.begin();
    }

    /// Puts a new `kubelet.sock` in place of the old one, while the streams of plugins go on.
    pub(crate) fn replace_socket(&self) {
        std::fs::remove_file(self.shared.plugin_dir().join("kubelet.sock")).unwrap();
        let mut servers = self.servers.lock().unwrap();
        servers.as_mut().unwrap().serve_registration(&self.shared);
    }

    /// Admits a pod, and gives what each of its containers was given by each plugin, in the order of the calls. An
    /// error is what the pod's status would say; the pod has failed for good then, and holds nothing.
    pub(crate) async fn admit(&self, pod: &PodSpec) -> Result<Vec<Allocated>, String> {
        let mut chance = self.chance.lock().await;
        self.shared.admit(pod, &mut chance).await
    }

    /// Ends a pod (`namespace/name`).
    pub(crate) fn remove(&self, pod: &str) {
        self.shared.books().remove(pod);
    }

    /// Another plugin's devices, in the hands of a container `app` of `pod`.
    pub(crate) fn handed_out_by_another(&self, pod: &str, resource: &str, ids: &[&str]) {
        self.shared
            .books()
            .hand_out((pod, pod), ("app", false), resource, ids.iter().copied());
    }

    /// How many healthy devices of `resource` there are.
    pub(crate) fn allocatable(&self, resource: &str) -> usize {
        self.shared.books().healthy(resource).len()
    }

    /// How many devices of `resource` pods hold.
    pub(crate) fn in_use(&self, resource: &str) -> usize {
        self.shared.books().in_use(resource).len()
    }

    /// All that plugins did so far.
    pub(crate) fn events(&self) -> Vec<Happened> {
        self.shared.books().events.clone()
    }

    /// How long plugins took to answer so far.
    pub(crate) fn took(&self) -> Took {
        self.shared.books().took.clone()
    }

    /// What plugins did wrong so far, where anything.
    pub(crate) fn faults(&self) -> Result<(), String> {
        match self.shared.books().faults() {
            [] => Ok(()),
            faults => Err(faults.join("; ")),
        }
    }

    /// How often plugins have registered.
    pub(crate) fn registrations(&self) -> usize {
        let registered = |happened: &&Happened| matches!(happened.event, Event::Registered(_));
        self.events().iter().filter(registered).count()
    }

    /// Waits until as many healthy devices of `resource` are known.
    pub(crate) async fn until_allocatable(&self, resource: &str, count: usize) {
        until(&format!("{count} of {resource} are allocatable"), || {
            self.allocatable(resource) == count
        })
        .await;
    }
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    fn plugin_dir(&self) -> PathBuf {
        self.directory.join("device-plugins")
    }
}

/// Looks until it is so.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A connection with the authority that the real kubelet sends.
pub(crate) async fn dial(socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_static("http://localhost")
        .connect_with_connector(service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
}
