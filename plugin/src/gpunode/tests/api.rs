//! A stand-in for the API server: as much of it as the agent talks to, and ways to make it fail.
//!
//! It runs on a thread of its own, so that it can go away as a machine does, connections and all, and come back.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The API server.
pub(crate) struct ApiServer {
    address: SocketAddr,
    cluster: Arc<Mutex<Cluster>>,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

/// What it knows, and what was asked of it.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    /// The uid of node `node-1`.
    pub(crate) node_uid: Option<String>,
    /// What an apply of a `GpuNode` is answered with, if not with yes.
    pub(crate) refuse: Option<StatusCode>,
    /// Each apply that was taken: when, the query, the content.
    pub(crate) applied: Vec<(Instant, BTreeMap<String, String>, Value)>,
    /// Applies, taken or not.
    pub(crate) attempts: usize,
    /// Each Event that was made.
    pub(crate) events: Vec<Value>,
    /// Says "too old" as an answer, and not as an event.
    pub(crate) too_old_at_once: bool,
    /// How often the pods were listed, and with which field selectors.
    pub(crate) lists: Vec<String>,
    pods: BTreeMap<String, Value>,
    version: u64,
    changes: Vec<(u64, Value)>,
    forgotten: u64,
    cuts: u64,
}

impl Cluster {
    /// A pod is new, has changed, or is gone: `ADDED`, `MODIFIED`, `DELETED`.
    pub(crate) fn change(&mut self, kind: &str, mut pod: Value) {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        self.changes
            .push((self.version, json!({ "type": kind, "object": pod })));
        match kind {
            "DELETED" => self.pods.remove(&name),
            _ => self.pods.insert(name, pod),
        };
    }

    /// Ends all watches.
    pub(crate) fn cut(&mut self) {
        self.cuts += 1;
    }

    /// Forgets all changes, so that no watch can begin with one of them.
    pub(crate) fn forget(&mut self) {
        self.version += 1;
        self.forgotten = self.version;
        self.changes.clear();
    }
}

impl ApiServer {
    /// An API server with one node.
    pub(crate) fn start() -> Self {
        let cluster = Cluster {
            node_uid: Some("node-uid-1".to_owned()),
            ..Cluster::default()
        };
        let mut server = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            cluster: Arc::new(Mutex::new(cluster)),
            running: None,
        };
        server.come_back();
        server
    }

    /// Is there again, under the same address.
    pub(crate) fn come_back(&mut self) {
        let listener = std::net::TcpListener::bind(self.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (router, told) = (router(self.cluster.clone()), stop.clone());
        let thread = std::thread::spawn(move || serve(listener, router, &told));
        self.running = Some((stop, thread));
    }

    /// Is gone, and all connections to it.
    pub(crate) fn go_away(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.cancel();
            thread.join().unwrap();
        }
    }

    pub(crate) fn client(&self) -> kube::Client {
        let config = kube::Config::new(format!("http://{}", self.address).parse().unwrap());
        kube::Client::try_from(config).unwrap()
    }

    pub(crate) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }

    /// Waits for something to be so.
    pub(crate) async fn until(&self, what: &str, so: impl Fn(&Cluster) -> bool) {
        let patience = Instant::now() + Duration::from_secs(20);
        while !so(&self.cluster()) {
            assert!(Instant::now() < patience, "waited in vain until {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.go_away();
    }
}

/// Serves until told not to; the runtime then takes all connections with it.
fn serve(listener: std::net::TcpListener, router: Router, stop: &CancellationToken) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener).unwrap();
        tokio::select! {
            ended = axum::serve(listener, router) => ended.unwrap(),
            () = stop.cancelled() => {}
        }
    });
}

type Shared = State<Arc<Mutex<Cluster>>>;
type Asked = Query<BTreeMap<String, String>>;

fn router(cluster: Arc<Mutex<Cluster>>) -> Router {
    Router::new()
        .route("/api/v1/nodes/{name}", get(node))
        .route("/api/v1/pods", get(pods))
        .route("/apis/penstock.dev/v1alpha1/gpunodes/{name}", patch(apply))
        .route(
            "/apis/events.k8s.io/v1/namespaces/{namespace}/events",
            post(event),
        )
        .with_state(cluster)
}

async fn node(State(cluster): Shared, Path(name): Path<String>) -> Response {
    match &cluster.lock().unwrap().node_uid {
        Some(uid) if name == "node-1" => {
            let metadata = json!({ "name": name, "uid": uid });
            let kind = "PartialObjectMetadata";
            Json(json!({ "apiVersion": "meta.k8s.io/v1", "kind": kind, "metadata": metadata }))
                .into_response()
        }
        _ => refusal(StatusCode::NOT_FOUND),
    }
}

async fn apply(State(cluster): Shared, Query(query): Asked, headers: HeaderMap, content: Bytes) -> Response {
    let content: Value = serde_json::from_slice(&content).unwrap();
    let mut cluster = cluster.lock().unwrap();
    cluster.attempts += 1;
    assert_eq!(headers[header::CONTENT_TYPE], "application/apply-patch+yaml");
    match cluster.refuse {
        // An API server that does not know a kind has no such path, and does not answer in its usual form.
        Some(StatusCode::NOT_FOUND) => (StatusCode::NOT_FOUND, "404 page not found\n").into_response(),
        Some(status) => refusal(status),
        None => {
            cluster.applied.push((Instant::now(), query, content.clone()));
            Json(content).into_response()
        }
    }
}

async fn event(
    State(cluster): Shared,
    Path(namespace): Path<String>,
    Json(content): Json<Value>,
) -> Response {
    let mut cluster = cluster.lock().unwrap();
    if let Some(status) = cluster.refuse {
        return refusal(status);
    }
    assert_eq!(content["metadata"]["namespace"], namespace);
    cluster.events.push(content.clone());
    (StatusCode::CREATED, Json(content)).into_response()
}

async fn pods(State(cluster): Shared, Query(query): Asked) -> Response {
    if query.contains_key("watch") {
        let since = query.get("resourceVersion").and_then(|text| text.parse().ok());
        return watch(&cluster, since.unwrap_or(0));
    }
    let mut cluster = cluster.lock().unwrap();
    let selector = query.get("fieldSelector").cloned().unwrap_or_default();
    cluster.lists.push(selector);
    let items: Vec<_> = cluster.pods.values().collect();
    let metadata = json!({ "resourceVersion": cluster.version.to_string() });
    Json(json!({ "apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": items }))
        .into_response()
}

fn watch(shared: &Arc<Mutex<Cluster>>, since: u64) -> Response {
    let cluster = shared.lock().unwrap();
    if since < cluster.forgotten {
        if cluster.too_old_at_once {
            return refusal(StatusCode::GONE);
        }
        let event = json!({ "type": "ERROR", "object": status(StatusCode::GONE) });
        return format!("{event}\n").into_response();
    }
    let cuts = cluster.cuts;
    let changes = stream::unfold((shared.clone(), since), move |(shared, since)| async move {
        loop {
            {
                let cluster = shared.lock().unwrap();
                if cluster.cuts != cuts {
                    return None;
                }
                let next = cluster.changes.iter().find(|(version, _)| *version > since);
                if let Some((version, change)) = next {
                    let line = Ok::<_, Infallible>(format!("{change}\n"));
                    return Some((line, (shared.clone(), *version)));
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    Body::from_stream(changes).into_response()
}

fn refusal(code: StatusCode) -> Response {
    (code, Json(status(code))).into_response()
}

fn status(code: StatusCode) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code.as_u16(),
        "reason": code.canonical_reason(), "message": "the stand-in was told to say so", "metadata": {},
    })
}
