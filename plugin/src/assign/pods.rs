//! The pods of this node, in order.

use std::collections::{BTreeMap, BTreeSet};

use penstock_core::ids::PodUid;
use penstock_core::pod_demand::ContainerKind;

use super::Held;
use crate::pods::PodOnNode;

/// The pods of this node, in the order in which they were first seen: about the order of their binding, which is the
/// kubelet's.
#[derive(Debug, Default)]
pub(super) struct Pods {
    by_uid: BTreeMap<PodUid, (u64, PodOnNode)>,
    seen: u64,
    /// Those that have all they ask for.
    complete: BTreeSet<PodUid>,
    /// Those that were refused something, most likely; that they have failed for it is not known yet.
    refused: BTreeSet<PodUid>,
}

impl Pods {
    /// Takes a whole list, and gives those that are not in it any more.
    pub(super) fn replace(&mut self, mut pods: Vec<PodOnNode>) -> Vec<PodOnNode> {
        pods.sort_by(|a, b| (a.created, &a.uid).cmp(&(b.created, &b.uid)));
        let gone = |uid: &PodUid| pods.iter().all(|pod| pod.uid != *uid);
        let uids: Vec<_> = self.by_uid.keys().filter(|uid| gone(uid)).cloned().collect();
        let gone = uids.iter().filter_map(|uid| self.delete(uid)).collect();
        pods.into_iter().for_each(|pod| self.apply(pod));
        gone
    }

    pub(super) fn apply(&mut self, pod: PodOnNode) {
        let order = self.by_uid.get(&pod.uid).map_or(self.seen, |(order, _)| *order);
        self.seen += 1;
        if pod.terminal {
            self.ended(&pod.uid);
        }
        self.by_uid.insert(pod.uid.clone(), (order, pod));
    }

    pub(super) fn delete(&mut self, uid: &PodUid) -> Option<PodOnNode> {
        if self.by_uid.get(uid).is_some_and(|(_, pod)| !pod.terminal) {
            self.ended(uid);
        }
        self.refused.remove(uid);
        self.complete.remove(uid);
        self.by_uid.remove(uid).map(|(_, pod)| pod)
    }

    /// Expects no call for a pod any more that has all it asks for.
    pub(super) fn complete(&mut self, uid: PodUid) {
        self.complete.insert(uid);
    }

    /// Expects no call for a pod any more that was refused something: the kubelet fails it.
    pub(super) fn refused(&mut self, uid: PodUid) {
        self.refused.insert(uid);
    }

    /// Expects calls for all pods again, since there is one that fits no other; gives whether that changes anything.
    pub(super) fn expect_anything(&mut self) -> bool {
        let refused = !std::mem::take(&mut self.refused).is_empty();
        !std::mem::take(&mut self.complete).is_empty() || refused
    }

    /// A pod has ended. If it never had all it asked for, then it is the one that was refused something.
    fn ended(&mut self, uid: &PodUid) {
        if !self.refused.remove(uid) && !self.complete.contains(uid) {
            self.refused.clear();
        }
    }

    /// Whether a pod has all it asks for.
    pub(super) fn is_complete(&self, pod: &PodOnNode) -> bool {
        self.complete.contains(&pod.uid)
    }

    /// Whether a pod has ended, as far as can be told: what it held is free again.
    pub(super) fn has_ended(&self, pod: &PodOnNode) -> bool {
        pod.terminal || self.refused.contains(&pod.uid)
    }

    /// Whether no call is expected for a pod.
    pub(super) fn is_over(&self, pod: &PodOnNode) -> bool {
        self.has_ended(pod) || self.complete.contains(&pod.uid)
    }

    pub(super) fn get(&self, uid: &PodUid) -> Option<&PodOnNode> {
        self.by_uid.get(uid).map(|(_, pod)| pod)
    }

    pub(super) fn by_name(&self, namespace: &str, name: &str) -> Option<&PodOnNode> {
        self.by_uid
            .values()
            .map(|(_, pod)| pod)
            .find(|pod| pod.namespace == namespace && pod.name == name)
    }

    /// Whether an init container that ends was given this. podresources lists sidecars and app containers only.
    pub(super) fn is_init(&self, held: &Held) -> bool {
        let pod = self.by_name(&held.namespace, &held.pod);
        let mut containers = pod.into_iter().flat_map(|pod| &pod.containers);
        containers.any(|c| c.name == held.container && c.kind == ContainerKind::Init)
    }

    /// Those that the kubelet may yet admit, first seen first. It goes on with one that was told to end meanwhile, and
    /// may even begin it.
    pub(super) fn alive(&self) -> Vec<&PodOnNode> {
        let mut pods: Vec<_> = self
            .by_uid
            .values()
            .filter(|(_, pod)| !self.is_over(pod))
            .collect();
        pods.sort_by_key(|(order, _)| *order);
        pods.into_iter().map(|(_, pod)| pod).collect()
    }
}

impl PodOnNode {
    /// Whether it has that name.
    pub(super) fn is(&self, namespace: &str, name: &str) -> bool {
        self.namespace == namespace && self.name == name
    }

    /// As people name it.
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
