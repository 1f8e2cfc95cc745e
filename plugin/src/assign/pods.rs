//! The pods of this node, in order.

use std::collections::BTreeMap;

use penstock_core::ids::PodUid;

use crate::pods::PodOnNode;

/// The pods of this node, in the order in which they were first seen: about the order of their binding, which is the
/// kubelet's.
#[derive(Debug, Default)]
pub(super) struct Pods {
    by_uid: BTreeMap<PodUid, (u64, PodOnNode)>,
    seen: u64,
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
        self.by_uid.insert(pod.uid.clone(), (order, pod));
    }

    pub(super) fn delete(&mut self, uid: &PodUid) -> Option<PodOnNode> {
        self.by_uid.remove(uid).map(|(_, pod)| pod)
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

    /// Those that the kubelet may yet admit, first seen first.
    pub(super) fn alive(&self) -> Vec<&PodOnNode> {
        let mut pods: Vec<_> = self
            .by_uid
            .values()
            .filter(|(_, pod)| !pod.terminal && !pod.deleting)
            .collect();
        pods.sort_by_key(|(order, _)| *order);
        pods.into_iter().map(|(_, pod)| pod).collect()
    }
}

impl PodOnNode {
    /// As people name it.
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
