//! The pods of our namespace that have a label: streamers, TURN servers.
//!
//! ```text
//!   API server ──list, watch──► penstock_shell::watches ──► read ──► Seen ──► whoever asked
//! ```
//!
//! A pod is turned into plain data by [`read`], which does no I/O. While no API server answers, nothing is said, so
//! what was seen last holds. The account needs the verbs `list` and `watch` on `pods` of the namespace.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use kube::{Api, Client};
use penstock_core::deletion_cost::Annotations;
use penstock_core::ids::PodUid;
use penstock_core::names::{
    ANNOTATION_DELETION_COST, ANNOTATION_SAFE_TO_EVICT, ANNOTATION_SET, PORT_SIGNALLING,
};
use penstock_shell::watches::{self, Change, Resume, Words};
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

    /// Where its streamer listens.
    pub fn streamer(&self) -> Option<SocketAddr> {
        self.address(PORT_SIGNALLING, STREAMER_PORT)
    }
}

/// The port of a streamer's pod that names none.
pub const STREAMER_PORT: u16 = 9000;

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
    let Wanted { namespace, selector } = wanted;
    let api = Api::<Pod>::namespaced(client, &namespace);
    let config = watcher::Config::default().labels(&selector);
    let words = Words {
        what: format!("the pods {selector} of namespace {namespace}"),
        needs: "the matchmaker needs the verbs list and watch on pods there",
    };
    let changes = watches::changes(api, config, Resume::WhereItEnded, words);
    let mut changes = pin!(changes.take_until(seen.closed()));
    while let Some(change) = changes.next().await {
        let news = match change {
            Change::All(pods) => Some(Seen::All(pods.iter().filter_map(read).collect())),
            Change::Changed(pod) => read(&pod).map(Seen::Changed),
            Change::Gone(pod) => uid(&pod).map(Seen::Gone),
            Change::Silent => None,
        };
        if let Some(news) = news
            && seen.send(news).await.is_err()
        {
            return;
        }
    }
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
        uid: uid(pod)?,
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

fn uid(pod: &Pod) -> Option<PodUid> {
    PodUid::new(pod.metadata.uid.clone()?).ok()
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
        assert_eq!(running.streamer(), "10.0.0.9:7000".parse().ok());
        assert_eq!(running.address("metrics", 9641), "10.0.0.9:9641".parse().ok());
        assert!(!running.ending);
    }

    #[test]
    fn a_pod_that_has_no_address_or_has_ended_is_nowhere() {
        assert_eq!(pod(json!({ "phase": "Pending" })).streamer(), None);
        let failed = pod(json!({ "phase": "Failed", "podIP": "10.0.0.9" }));
        assert_eq!(failed.streamer(), None);
        assert!(failed.ending);
    }
}
