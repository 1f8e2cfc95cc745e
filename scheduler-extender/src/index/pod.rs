//! What the index is told of a pod and of a PodDisruptionBudget: plain data, read from the API server's objects.

use std::collections::{BTreeMap, BTreeSet};

use penstock_core::ids::{GpuUuid, NodeName, PodUid};
use penstock_core::packing::Resources;
use penstock_core::pod_demand::{ContainerKind, PodDemand, pod_demand};

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    /// Which pod, of all there ever were.
    pub(crate) uid: PodUid,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// The node that it is bound to.
    pub(crate) node: Option<NodeName>,
    /// The GPU that its annotation names.
    pub(crate) gpu: Option<GpuUuid>,
    /// What each container asks for: init containers and sidecars in their order, then the others in theirs.
    pub(crate) containers: Vec<(ContainerKind, Resources)>,
    /// Its priority; a pod of a higher one may take its place.
    pub(crate) priority: i32,
    /// The value of its annotation `controller.kubernetes.io/pod-deletion-cost`: higher with players.
    pub(crate) deletion_cost: i32,
    /// Its labels, by which budgets find it.
    pub(crate) labels: BTreeMap<String, String>,
    /// Whether all its containers have ended, for good.
    pub(crate) terminal: bool,
    /// Whether it was told to end.
    pub(crate) deleting: bool,
}

impl Pod {
    /// What all its containers take together.
    pub(crate) fn demand(&self) -> PodDemand {
        pod_demand(self.containers.iter().copied())
    }

    /// Whether a call of the kubelet for one of these pods could be taken for one of the other's: some container of
    /// each asks for the same amount of the same resource.
    pub(crate) fn confusable_with(&self, other: &Self) -> bool {
        let asks = |pod: &Self| -> BTreeSet<(u8, u32)> {
            let of = |(_, r): &(ContainerKind, Resources)| [(0, r.nvenc.0), (1, r.mps.0), (2, r.vram.0)];
            pod.containers
                .iter()
                .flat_map(of)
                .filter(|&(_, amount)| amount > 0)
                .collect()
        };
        !asks(self).is_disjoint(&asks(other))
    }
}

/// A PodDisruptionBudget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Its namespace, in which its pods are too.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Which pods it is about.
    pub(crate) selector: Selector,
    /// How many of its pods may be ended now.
    pub(crate) disruptions_allowed: i32,
    /// Pods that the API server has counted as ended already, by their names.
    pub(crate) disrupted: BTreeSet<String>,
}

/// A label selector: all must hold. An empty one selects every pod of the namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector(pub(crate) Vec<Requirement>);

/// One condition of a [`Selector`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Requirement {
    /// The label has one of these values.
    In(String, BTreeSet<String>),
    /// The label is absent, or has none of these values.
    NotIn(String, BTreeSet<String>),
    /// The label is there.
    Exists(String),
    /// The label is absent.
    Absent(String),
}

impl Selector {
    fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Absent(key) => !labels.contains_key(key),
        })
    }
}

impl Budget {
    /// Whether ending `pod` counts against it.
    pub(crate) fn covers(&self, pod: &Pod) -> bool {
        self.namespace == pod.namespace
            && !self.disrupted.contains(&pod.name)
            && self.selector.selects(&pod.labels)
    }
}
