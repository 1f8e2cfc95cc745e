//! A stand-in for a Kubernetes API server, over HTTP on loopback, for tests on machines without a cluster.
//!
//! ```text
//!   a program, or kube::Client ──HTTP──► server   who asks for what; faults on demand; the log
//!                                          │ rbac     may they? By the roles that were applied
//!   a test ──FakeKube (no HTTP)──┐         ▼
//!                                └─────► verbs, watch   get, create, update, patch, delete, bind; list, watch
//!                                          │ kinds, schema, selector, patch, apply, status
//!                                          ▼
//!                                        store    objects, versions, all changes; one lock
//! ```
//!
//! It follows what a real one does, also in its words: resource versions and 409, 410 after a compaction, selectors
//! in watches, bookmarks and streaming lists, server-side apply with owners of fields, definitions with their
//! schemas, status as a path of its own, graceful deletion of pods, Bindings that carry annotations, RBAC.
//!
//! What it does not have: controllers (nothing is made, run or collected but by a test), admission, discovery,
//! tables, old snapshots for lists, CEL rules (a definition that has them is refused), quotas.

mod apply;
mod fault;
mod kinds;
mod manifests;
mod patch;
mod rbac;
mod schema;
mod selector;
mod server;
mod status;
mod store;
pub mod story;
mod verbs;
mod watch;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::serve::ListenerExt as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use fault::Fault;
pub use manifests::objects;
pub use server::Request;

use kinds::Kind;
use selector::Selector;
use server::{Shared, State};
use status::Failure;
use store::{Key, Store};
use verbs::Target;

/// The API server, on a thread of its own, so that it can go away as a machine does, connections and all.
///
/// Its methods act as the cluster's administrator, and panic where what they are told makes no sense: this is for
/// tests.
#[derive(Debug)]
pub struct FakeKube {
    address: SocketAddr,
    shared: Arc<Shared>,
    running: Option<(CancellationToken, JoinHandle<io::Result<()>>)>,
}

impl FakeKube {
    /// A server with the namespaces `default` and `kube-system`, on a free port.
    ///
    /// # Panics
    /// Where there is no loopback.
    pub fn start() -> Self {
        match Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))) {
            Ok(kube) => kube,
            Err(error) => panic!("listening on loopback: {error}"),
        }
    }

    /// The same at an address.
    ///
    /// # Errors
    /// Where it can't listen there.
    pub fn start_at(address: SocketAddr) -> io::Result<Self> {
        let mut kube = Self {
            address,
            shared: Arc::new(Shared::new()),
            running: None,
        };
        kube.listen()?;
        for name in ["default", "kube-system"] {
            kube.namespace(name);
        }
        Ok(kube)
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A client that may do everything.
    pub fn admin(&self) -> kube::Client {
        self.client_with(rbac::ADMIN_TOKEN)
    }

    /// A client that may do what is granted to a service account.
    pub fn client(&self, namespace: &str, account: &str) -> kube::Client {
        self.client_with(&verbs::token(namespace, account))
    }

    fn client_with(&self, token: &str) -> kube::Client {
        let url = self.url();
        let uri = url
            .parse()
            .unwrap_or_else(|error| panic!("{url} is no URI: {error}"));
        let mut config = kube::Config::new(uri);
        config.auth_info.token = Some(token.to_owned().into());
        kube::Client::try_from(config).unwrap_or_else(|error| panic!("making a client: {error}"))
    }

    /// Writes a kubeconfig: for a service account, or for the administrator where `account` is none.
    ///
    /// # Errors
    /// Where the file can't be written.
    pub fn kubeconfig(&self, path: &Path, account: Option<(&str, &str)>) -> io::Result<()> {
        let token = account.map_or(rbac::ADMIN_TOKEN.to_owned(), |(namespace, name)| {
            verbs::token(namespace, name)
        });
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake-kube",
            "clusters": [{ "name": "fake-kube", "cluster": { "server": self.url() } }],
            "users": [{ "name": "fake-kube", "user": { "token": token } }],
            "contexts": [{ "name": "fake-kube", "context": { "cluster": "fake-kube", "user": "fake-kube" } }],
        });
        let yaml = serde_yaml_ng::to_string(&config).map_err(io::Error::other)?;
        std::fs::write(path, yaml)
    }
}

/// Objects.
impl FakeKube {
    /// Makes a namespace, unless it is there.
    pub fn namespace(&self, name: &str) {
        if self.get("namespaces", None, name).is_none() {
            self.create(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }));
        }
    }

    /// Makes all that a path stands for (see [`objects`]), or puts it in the place of what is there: namespaces and
    /// definitions first.
    ///
    /// # Panics
    /// Where something can't be read, has fields that its kind does not know, or is refused.
    pub fn apply_manifests(&self, path: &Path) {
        let mut objects = objects(path).unwrap_or_else(|error| panic!("{error:#}"));
        objects.sort_by_key(|object| match object["kind"].as_str() {
            Some("Namespace") => 0,
            Some("CustomResourceDefinition") => 1,
            _ => 2,
        });
        for object in objects {
            self.check(&object);
            self.put(object);
        }
    }

    fn check(&self, object: &Value) {
        let unknown = self.on_store(|store| store.as_server(object)?.kind.unknown_fields(object));
        let what = format!("{} {}", object["kind"], object["metadata"]["name"]);
        assert!(
            unknown.is_empty(),
            "{what} has fields that nobody knows: {}",
            unknown.join(", ")
        );
    }

    /// Makes an object, and gives it as it is then. A pod gets no containers' image, and a Node its status,
    pub fn create(&self, object: Value) -> Value {
        self.on_store(|store| {
            let target = store.as_server(&object)?;
            let status = object["status"].clone();
            let made = store.create(
                &Target {
                    name: String::new(),
                    ..target.clone()
                },
                &object,
            )?;
            match status.is_null() || !target.kind.status {
                true => Ok(made),
                false => write_status(store, &made, status),
            }
        })
    }

    /// Makes an object, or puts it in the place of the one that is there.
    pub fn put(&self, object: Value) -> Value {
        let there = self.on_store(|store| {
            let target = store.as_server(&object)?;
            Ok(store.read(&target).is_ok())
        });
        match there {
            true => self.on_store(|store| {
                let target = store.as_server(&object)?;
                let mut newest = object.clone();
                newest["metadata"]["resourceVersion"] =
                    store.read(&target)?["metadata"]["resourceVersion"].clone();
                store.update(&target, &newest)
            }),
            false => self.create(object),
        }
    }

    /// Changes an object's status.
    pub fn set_status(&self, plural: &str, namespace: Option<&str>, name: &str, status: Value) -> Value {
        let object = self.existing(plural, namespace, name);
        self.on_store(|store| write_status(store, &object, status))
    }

    /// Changes an object, its status aside.
    pub fn edit(
        &self,
        plural: &str,
        namespace: Option<&str>,
        name: &str,
        edit: impl FnOnce(&mut Value),
    ) -> Value {
        let mut object = self.existing(plural, namespace, name);
        edit(&mut object);
        self.put(object)
    }

    /// An object, where it is there.
    pub fn get(&self, plural: &str, namespace: Option<&str>, name: &str) -> Option<Value> {
        self.on_store(|store| {
            let kind = called(store, plural)?;
            Ok(store
                .get(&Key::new(&kind, namespace, name))
                .map(|stored| kind.show(&stored.object)))
        })
    }

    /// All objects of a kind.
    pub fn list(&self, plural: &str) -> Vec<Value> {
        self.on_store(|store| {
            let kind = called(store, plural)?;
            Ok(store
                .list(&kind, &Selector::default())
                .map(|(_, object)| kind.show(object))
                .collect())
        })
    }

    /// Deletes an object: it is gone at once, but for finalizers, and pods that have a grace period on their node.
    pub fn delete(&self, plural: &str, namespace: Option<&str>, name: &str) {
        let object = self.existing(plural, namespace, name);
        self.on_store(|store| store.delete(&store.as_server(&object)?, &Value::Null));
    }

    /// Removes a pod for good, as its kubelet does once its containers have ended.
    pub fn finish(&self, namespace: &str, pod: &str) {
        let object = self.existing("pods", Some(namespace), pod);
        let at_once = json!({ "gracePeriodSeconds": 0 });
        self.on_store(|store| store.delete(&store.as_server(&object)?, &at_once));
    }

    fn existing(&self, plural: &str, namespace: Option<&str>, name: &str) -> Value {
        let found = self.get(plural, namespace, name);
        found.unwrap_or_else(|| panic!("there is no {plural} {name}"))
    }

    fn on_store<T>(&self, work: impl FnOnce(&mut Store) -> Result<T, Failure>) -> T {
        let outcome = self.shared.with(|state: &mut State| work(&mut state.store));
        outcome.unwrap_or_else(|failure| panic!("the stand-in for Kubernetes says: {}", failure.status()))
    }
}

/// What clients have asked for, and trouble.
impl FakeKube {
    /// All requests since the start, in the order of their answers.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().log.clone()
    }

    /// The requests of one verb for one resource: `patch`, `gpunodes`.
    pub fn requests_to(&self, verb: &str, plural: &str) -> Vec<Request> {
        let leads_there = |path: &str| path.split('/').any(|step| step == plural);
        let mut requests = self.requests();
        requests.retain(|request| request.verb == verb && leads_there(&request.path));
        requests
    }

    /// From now on there is this trouble, beside what there was.
    pub fn fail(&self, fault: Fault) {
        self.shared.with(|state| state.faults.push(fault));
    }

    /// Ends all trouble that [`Self::fail`] has made.
    pub fn heal(&self) {
        self.shared.with(|state| state.faults.clear());
    }

    /// Goes away, and all connections with it.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.cancel();
            // What ended in a panic has said so.
            let _ = thread.join();
        }
    }

    /// Is there again, at the same address and with all that it knew.
    ///
    /// # Panics
    /// Where somebody else has taken its port meanwhile.
    pub fn resume(&mut self) {
        self.listen()
            .unwrap_or_else(|error| panic!("listening on {} again: {error}", self.address));
    }

    /// Ends all watches, as a server does now and then.
    pub fn end_watches(&self) {
        self.shared.with(|state| state.cuts += 1);
    }

    /// Ends all watches and does things before any client may ask again.
    pub fn unseen<T>(&self, work: impl FnOnce(&Self) -> T) -> T {
        self.shared.with(|state| {
            state.cuts += 1;
            state.paused = true;
        });
        let outcome = work(self);
        self.shared.with(|state| state.paused = false);
        outcome
    }

    /// Sends a bookmark on each watch that wants them.
    pub fn send_bookmarks(&self) {
        self.shared.with(|state| state.bookmarks += 1);
    }

    /// Forgets all versions but the newest: no watch can begin with an older one.
    pub fn compact(&self) {
        self.shared.with(|state| {
            state.store.version += 1;
            state.store.compacted = state.store.version;
        });
    }

    /// Waits for something to be so.
    ///
    /// # Panics
    /// Where it is not within 20 s.
    pub async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let patience = Instant::now() + Duration::from_secs(20);
        while !so(self) {
            assert!(Instant::now() < patience, "waited in vain until {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn listen(&mut self) -> io::Result<()> {
        let listener = std::net::TcpListener::bind(self.address)?;
        listener.set_nonblocking(true)?;
        self.address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let (shared, told) = (self.shared.clone(), stop.clone());
        let thread = std::thread::spawn(move || serve(listener, shared, &told));
        self.running = Some((stop, thread));
        Ok(())
    }
}

impl Drop for FakeKube {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Serves until told not to; the runtime then takes all connections with it.
fn serve(listener: std::net::TcpListener, shared: Arc<Shared>, stop: &CancellationToken) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // As the real one's: an event does not wait until the one before it is acknowledged.
        let listener = TcpListener::from_std(listener)?.tap_io(|connection| {
            let _ = connection.set_nodelay(true);
        });
        let serving = axum::serve(listener, server::router(shared));
        stop.run_until_cancelled(serving.into_future())
            .await
            .unwrap_or(Ok(()))
    })
}

fn called(store: &Store, plural: &str) -> Result<Kind, Failure> {
    store
        .kind_called(plural)
        .cloned()
        .ok_or_else(Failure::no_such_path)
}

fn write_status(store: &mut Store, object: &Value, status: Value) -> Result<Value, Failure> {
    let target = Target {
        subresource: Some("status".to_owned()),
        ..store.as_server(object)?
    };
    let mut with_status = object.clone();
    with_status["status"] = status;
    let current = store.read(&target)?;
    with_status["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"].clone();
    store.update(&target, &with_status)
}
