//! The pods of this node that ask for our resources.
//!
//! ```text
//!   API server ──list, watch──► penstock_shell::watches ──► read ──► PodEvent ──► the task that owns the node's state
//! ```
//!
//! A pod is turned into plain data by [`read`], which does no I/O. The agent's account needs the verbs `list` and
//! `watch` on `pods`.

mod object;

use std::collections::BTreeSet;
use std::pin::pin;

use futures_util::StreamExt as _;
use kube::runtime::watcher;
use kube::{Api, Client};
use penstock_core::ids::{GpuUuid, NodeName, PodUid};
use penstock_core::names::{ANNOTATION_GPU, RESOURCE_MPS, RESOURCE_NVENC, RESOURCE_VRAM};
use penstock_core::packing::Resources;
use penstock_core::pod_demand::{ContainerKind, PodDemand, pod_demand};
use penstock_core::quantity::whole_number;
use penstock_core::units::{EncoderUnits, SmPercent, VramBlocks};
use penstock_shell::watches::{self, Change, Resume, Words};
use tokio::sync::mpsc;

use object::{Container, Pod, ResourceRequirements};

/// A pod of this node that asks for our resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodOnNode {
    /// Which pod, of all there ever were.
    pub(crate) uid: PodUid,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// When it was made, in seconds since 1970.
    pub(crate) created: i64,
    /// The GPU that the scheduler chose.
    pub(crate) gpu: Option<GpuUuid>,
    /// Whether all its containers have ended, for good.
    pub(crate) terminal: bool,
    /// Whether it was told to end.
    pub(crate) deleting: bool,
    /// All its containers: init containers and sidecars in their order, then the others in theirs.
    pub(crate) containers: Vec<ContainerAsk>,
}

/// What one container asks for; nothing, for some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerAsk {
    /// Its name.
    pub(crate) name: String,
    /// When it runs.
    pub(crate) kind: ContainerKind,
    /// What it asks for.
    pub(crate) demand: Resources,
}

impl PodOnNode {
    /// What the pod takes in all.
    pub(crate) fn demand(&self) -> PodDemand {
        pod_demand(self.containers.iter().map(|c| (c.kind, c.demand)))
    }
}

/// A change among the pods of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PodEvent {
    /// These are all pods; whatever was known before is no more.
    All(Vec<PodOnNode>),
    /// A pod is new, or has changed.
    Changed(PodOnNode),
    /// A pod is gone. It may be one that never was of interest.
    Gone(PodUid),
}

/// Tells `events` of the pods on `node` until its receiver is gone: all of them first, then each change. After a
/// time without an API server, or when the watch can't be taken up where it ended, all of them again.
pub(crate) async fn watch(client: Client, node: &NodeName, events: mpsc::Sender<PodEvent>) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let words = Words {
        what: format!("the pods of node {node}"),
        needs: "the agent needs the verbs list and watch on pods",
    };
    let changes = watches::changes(Api::<Pod>::all(client), config, Resume::WhereItEnded, words);
    let mut changes = pin!(changes.take_until(events.closed()));
    let mut listener = Listener::default();
    while let Some(change) = changes.next().await {
        if let Some(event) = listener.take(change)
            && events.send(event).await.is_err()
        {
            return;
        }
    }
}

#[derive(Default)]
struct Listener {
    /// The pods whose faults the log has spoken of.
    spoken_of: BTreeSet<PodUid>,
}

impl Listener {
    fn take(&mut self, change: Change<Pod>) -> Option<PodEvent> {
        match change {
            Change::All(pods) => {
                let pods: Vec<_> = pods.iter().filter_map(|pod| self.read(pod)).collect();
                self.spoken_of
                    .retain(|uid| pods.iter().any(|pod| pod.uid == *uid));
                Some(PodEvent::All(pods))
            }
            Change::Changed(pod) => self.read(&pod).map(PodEvent::Changed),
            Change::Gone(pod) => {
                let uid = PodUid::new(pod.metadata.uid?).ok()?;
                self.spoken_of.remove(&uid);
                Some(PodEvent::Gone(uid))
            }
            Change::Silent => None,
        }
    }

    /// Reads a pod, and logs its faults where that was not done before.
    fn read(&mut self, pod: &Pod) -> Option<PodOnNode> {
        let Read { pod, faults } = read(pod);
        let unheard = |uid: &PodUid| self.spoken_of.insert(uid.clone());
        if let Some(first) = faults.first()
            && first.uid.as_ref().is_none_or(unheard)
        {
            for fault in &faults {
                tracing::warn!("{fault}");
            }
        }
        pod
    }
}

/// What is in a pod for us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Read {
    /// The pod, where it asks for any of our resources.
    pub(crate) pod: Option<PodOnNode>,
    /// What in it was ignored.
    pub(crate) faults: Vec<Fault>,
}

/// Something in a pod that was ignored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pod {pod}: {what}: {why}; it is ignored")]
pub(crate) struct Fault {
    uid: Option<PodUid>,
    pod: String,
    what: String,
    why: String,
}

/// Reads a pod as the API server gives it.
pub(crate) fn read(pod: &Pod) -> Read {
    let uid = pod.metadata.uid.as_deref().map(PodUid::new).and_then(Result::ok);
    let mut reader = Reader {
        pod,
        uid,
        faults: Vec::new(),
    };
    let pod = reader.pod();
    Read {
        pod,
        faults: reader.faults,
    }
}

struct Reader<'a> {
    pod: &'a Pod,
    uid: Option<PodUid>,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn pod(&mut self) -> Option<PodOnNode> {
        let containers = self.containers();
        if containers.iter().all(|c| c.demand == Resources::NONE) {
            return None;
        }
        let Some(uid) = self.uid.clone() else {
            self.ignore("the whole of it", "it has no uid that is one");
            return None;
        };
        let metadata = &self.pod.metadata;
        Some(PodOnNode {
            uid,
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            created: metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |t| t.0.as_second()),
            gpu: self.gpu(),
            terminal: is_terminal(self.pod),
            deleting: metadata.deletion_timestamp.is_some(),
            containers,
        })
    }

    fn containers(&mut self) -> Vec<ContainerAsk> {
        let Some(spec) = &self.pod.spec else {
            return Vec::new();
        };
        let init = spec.init_containers.iter().flatten().map(|c| (init_kind(c), c));
        let apps = spec.containers.iter().flatten().map(|c| (ContainerKind::App, c));
        init.chain(apps)
            .map(|(kind, container)| ContainerAsk {
                name: container.name.clone(),
                kind,
                demand: self.demand(container),
            })
            .collect()
    }

    fn demand(&mut self, container: &Container) -> Resources {
        Resources {
            nvenc: EncoderUnits(self.amount(container, RESOURCE_NVENC)),
            mps: SmPercent(self.amount(container, RESOURCE_MPS)),
            vram: VramBlocks(self.amount(container, RESOURCE_VRAM)),
        }
    }

    fn amount(&mut self, container: &Container, resource: &str) -> u32 {
        let Some(text) = container.resources.as_ref().and_then(|r| asked(r, resource)) else {
            return 0;
        };
        whole_number(text).unwrap_or_else(|| {
            let what = format!("{resource}: {text} of container {}", container.name);
            self.ignore(&what, "it is no whole number of units");
            0
        })
    }

    fn gpu(&mut self) -> Option<GpuUuid> {
        let text = self.pod.metadata.annotations.as_ref()?.get(ANNOTATION_GPU)?;
        let gpu = GpuUuid::new(text.as_str());
        gpu.map_err(|error| self.ignore(&format!("annotation {ANNOTATION_GPU}"), &error.to_string()))
            .ok()
    }

    fn ignore(&mut self, what: &str, why: &str) {
        let metadata = &self.pod.metadata;
        let name = |text: &Option<String>| text.clone().unwrap_or_default();
        self.faults.push(Fault {
            uid: self.uid.clone(),
            pod: format!("{}/{}", name(&metadata.namespace), name(&metadata.name)),
            what: what.to_owned(),
            why: why.to_owned(),
        });
    }
}

fn init_kind(container: &Container) -> ContainerKind {
    match container.restart_policy.as_deref() {
        Some("Always") => ContainerKind::Sidecar,
        _ => ContainerKind::Init,
    }
}

fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The text of what is asked for. Kubernetes wants a limit for resources such as ours, and a request of the same
/// amount or none: <https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/#extended-resources>.
fn asked<'a>(resources: &'a ResourceRequirements, name: &str) -> Option<&'a str> {
    let amounts = [&resources.limits, &resources.requests];
    let quantity = amounts
        .into_iter()
        .flatten()
        .find_map(|amounts| amounts.get(name))?;
    Some(&quantity.0)
}

#[cfg(test)]
mod tests;
