//! The pods of our namespace that have a label: streamers, TURN servers.
//!
//! ```text
//!   API server ──list, watch──► watcher ──► read ──► Seen ──► whoever asked
//!                                  ▲ after an error: again, from where it ended; from a new list if that is gone
//! ```
//!
//! A pod is turned into plain data by [`read`], which does no I/O. While no API server answers, nothing is said, so
//! what was seen last holds. The account needs the verbs `list` and `watch` on `pods` of the namespace.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use penstock_core::deletion_cost::Annotations;
use penstock_core::ids::PodUid;
use penstock_core::names::{ANNOTATION_DELETION_COST, ANNOTATION_SAFE_TO_EVICT, ANNOTATION_SET};
use tokio::sync::mpsc;

/// A pod with our label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledPod {
    /// Which pod, of all there ever were.
    pub uid: PodUid,
    /// Its name.
    pub name: String,
    /// Its address, once it has one, and until its containers have ended.
    pub ip: Option<IpAddr>,
    /// The ports that its containers name.
    pub ports: BTreeMap<String, u16>,
    /// Whether it was told to end, or has ended.
    pub ending: bool,
    /// Those of its annotations that are about its deletion.
    pub annotations: Annotations,
}

impl LabelledPod {
    /// Where it listens: at its port of that name, else at `default`.
    pub fn address(&self, port: &str, default: u16) -> Option<SocketAddr> {
        let port = self.ports.get(port).copied().unwrap_or(default);
        self.ip.map(|ip| SocketAddr::new(ip, port))
    }
}

/// A change among the pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// These are all; whatever was known before is no more.
    All(Vec<LabelledPod>),
    /// A pod is new, or has changed.
    Changed(LabelledPod),
    /// A pod is gone, or has lost its label.
    Gone(PodUid),
}

/// Notes a change.
pub fn apply(known: &mut BTreeMap<PodUid, LabelledPod>, seen: &Seen) {
    match seen {
        Seen::All(pods) => *known = pods.iter().map(|pod| (pod.uid.clone(), pod.clone())).collect(),
        Seen::Changed(pod) => {
            known.insert(pod.uid.clone(), pod.clone());
        }
        Seen::Gone(uid) => {
            known.remove(uid);
        }
    }
}

/// Which pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Their namespace.
    pub namespace: String,
    /// A label selector.
    pub selector: String,
}

/// Tells `seen` of the pods until its receiver is gone: all of them first, then each change.
pub async fn watch(client: Client, wanted: Wanted, seen: mpsc::Sender<Seen>) {
    let mut watch = Watch {
        wanted,
        seen,
        listed: None,
        in_trouble: false,
    };
    // A watch that is refused because its place is too old is begun anew: the library knows that only as an event.
    while watch.until_too_old(&client).await == Ended::TooOld {}
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    TooOld,
    NobodyListens,
}

struct Watch {
    wanted: Wanted,
    seen: mpsc::Sender<Seen>,
    /// The pods of a list that is not complete yet.
    listed: Option<Vec<LabelledPod>>,
    in_trouble: bool,
}

impl Watch {
    async fn until_too_old(&mut self, client: &Client) -> Ended {
        let api = Api::<Pod>::namespaced(client.clone(), &self.wanted.namespace);
        let config = watcher::Config::default().labels(&self.wanted.selector);
        let mut stream = pin!(watcher(api, config).default_backoff());
        let seen = self.seen.clone();
        loop {
            let next = tokio::select! {
                next = stream.next() => next,
                () = seen.closed() => return Ended::NobodyListens,
            };
            let change = match next {
                Some(Ok(event)) => self.well(event),
                Some(Err(error)) if is_too_old(&error) => return Ended::TooOld,
                Some(Err(error)) => self.ill(&error),
                // The back-off never gives up, so the stream never ends; if it did, a new one goes on.
                None => return Ended::TooOld,
            };
            if let Some(change) = change
                && seen.send(change).await.is_err()
            {
                return Ended::NobodyListens;
            }
        }
    }

    fn well(&mut self, event: watcher::Event<Pod>) -> Option<Seen> {
        // That a list begins says nothing yet: it is asked for only then.
        if !matches!(event, watcher::Event::Init) && std::mem::take(&mut self.in_trouble) {
            tracing::info!(selector = self.wanted.selector, "watching pods again");
        }
        match event {
            watcher::Event::Init => {
                self.listed = Some(Vec::new());
                None
            }
            watcher::Event::InitApply(pod) => {
                self.listed.get_or_insert_default().extend(read(&pod));
                None
            }
            watcher::Event::InitDone => Some(Seen::All(self.listed.take().unwrap_or_default())),
            watcher::Event::Apply(pod) => read(&pod).map(Seen::Changed),
            watcher::Event::Delete(pod) => PodUid::new(pod.metadata.uid?).ok().map(Seen::Gone),
        }
    }

    fn ill(&mut self, error: &watcher::Error) -> Option<Seen> {
        let Wanted { namespace, selector } = &self.wanted;
        let why = why_of_watch(error);
        if std::mem::replace(&mut self.in_trouble, true) {
            tracing::debug!("still watching for the pods {selector} of namespace {namespace}: {why}");
        } else {
            tracing::warn!(
                "watching the pods {selector} of namespace {namespace}: {why}; it is tried again, at least every 30 s \
                 (the matchmaker needs the verbs list and watch on pods there)"
            );
        }
        None
    }
}

fn is_too_old(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

/// What is in a pod for us.
pub fn read(pod: &Pod) -> Option<LabelledPod> {
    let (metadata, status) = (&pod.metadata, pod.status.as_ref());
    let phase = status.and_then(|status| status.phase.as_deref());
    let finished = matches!(phase, Some("Succeeded" | "Failed"));
    let ip = status.and_then(|status| status.pod_ip.as_deref());
    // Streamers may run as sidecars, which are init containers to Kubernetes.
    let spec = pod.spec.iter();
    let containers = spec.flat_map(|spec| {
        spec.init_containers
            .iter()
            .flatten()
            .chain(spec.containers.iter())
    });
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let annotation = |name: &str| metadata.annotations.as_ref()?.get(name).cloned();
    Some(LabelledPod {
        uid: PodUid::new(metadata.uid.clone()?).ok()?,
        name: metadata.name.clone()?,
        ip: ip.filter(|_| !finished).and_then(|ip| ip.parse().ok()),
        ports: ports
            .filter_map(|port| Some((port.name.clone()?, u16::try_from(port.container_port).ok()?)))
            .collect(),
        ending: finished || metadata.deletion_timestamp.is_some(),
        annotations: Annotations {
            cost: annotation(ANNOTATION_DELETION_COST),
            safe_to_evict: annotation(ANNOTATION_SAFE_TO_EVICT),
            set: annotation(ANNOTATION_SET),
        },
    })
}

/// What went wrong between us and the API server, in words: the client library's own repeat themselves.
pub fn why(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("the API server says {} {}", status.code, status.message.trim()),
        other => {
            let causes = std::iter::successors(other.source(), |error| (*error).source());
            let words: Vec<_> = causes.map(ToString::to_string).collect();
            if words.is_empty() {
                other.to_string()
            } else {
                words.join(": ")
            }
        }
    }
}

fn why_of_watch(error: &watcher::Error) -> String {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => why(error),
        WatchError(status) => format!("the API server says {} {}", status.code, status.message.trim()),
        NoResourceVersion => "the API server gave no resource version".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> LabelledPod {
        let pod = json!({
            "metadata": { "name": "a", "uid": "u" },
            "spec": { "containers": [{ "name": "c", "ports": [{ "name": "signalling", "containerPort": 7000 }] }] },
            "status": status,
        });
        read(&serde_json::from_value(pod).unwrap()).unwrap()
    }

    #[test]
    fn a_pod_is_where_its_named_port_is() {
        let running = pod(json!({ "phase": "Running", "podIP": "10.0.0.9" }));
        assert_eq!(running.address("signalling", 9000), "10.0.0.9:7000".parse().ok());
        assert_eq!(running.address("metrics", 9000), "10.0.0.9:9000".parse().ok());
        assert!(!running.ending);
    }

    #[test]
    fn a_pod_that_has_no_address_or_has_ended_is_nowhere() {
        assert_eq!(pod(json!({ "phase": "Pending" })).address("signalling", 1), None);
        let failed = pod(json!({ "phase": "Failed", "podIP": "10.0.0.9" }));
        assert_eq!(failed.address("signalling", 1), None);
        assert!(failed.ending);
    }
}
