//! The pods of this node, in order.

use std::collections::{BTreeMap, BTreeSet};

use penstock_core::ids::PodUid;

use crate::pods::PodOnNode;

/// The pods of this node, in the order in which they were first seen: about the order of their binding, which is the
/// kubelet's.
#[derive(Debug, Default)]
pub(super) struct Pods {
    by_uid: BTreeMap<PodUid, (u64, PodOnNode)>,
    /// By namespace, then name: the one of that name that came last.
    by_name: BTreeMap<String, BTreeMap<String, PodUid>>,
    seen: u64,
    /// The place of the pod that the kubelet was at last.
    reached: u64,
    /// Those that were refused something, most likely; that they have failed for it is not known yet.
    refused: BTreeSet<PodUid>,
    /// Those that the kubelet has shown to have all they ask for: it asks nothing more for them, whatever becomes of them.
    complete: BTreeSet<PodUid>,
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
        let namespace = self.by_name.entry(pod.namespace.clone()).or_default();
        namespace.insert(pod.name.clone(), pod.uid.clone());
        self.by_uid.insert(pod.uid.clone(), (order, pod));
    }

    pub(super) fn delete(&mut self, uid: &PodUid) -> Option<PodOnNode> {
        self.refused.remove(uid);
        self.complete.remove(uid);
        let (_, pod) = self.by_uid.remove(uid)?;
        let namespace = self.by_name.get_mut(&pod.namespace);
        if let Some(names) = namespace.filter(|names| names.get(&pod.name) == Some(uid)) {
            names.remove(&pod.name);
        }
        Some(pod)
    }

    /// The kubelet is at this pod.
    pub(super) fn reached(&mut self, uid: &PodUid) {
        if let Some((order, _)) = self.by_uid.get(uid) {
            self.reached = *order;
        }
    }

    /// Expects no call for a pod any more that was shown to have all it asks for.
    pub(super) fn complete(&mut self, uid: PodUid) {
        self.complete.insert(uid);
    }

    /// Expects no call for a pod any more that was refused something: the kubelet fails it.
    pub(super) fn refused(&mut self, uid: PodUid) {
        self.refused.insert(uid);
    }

    /// Expects calls for all pods again, since there is one that fits no other; gives whether that changes anything.
    pub(super) fn forget_refused(&mut self) -> bool {
        !std::mem::take(&mut self.refused).is_empty()
    }

    /// A pod has ended that never had all it asked for: then it is the one that was refused something.
    pub(super) fn ended_early(&mut self, uid: &PodUid) {
        if !self.refused.remove(uid) {
            self.refused.clear();
        }
    }

    /// Whether a pod has ended, as far as can be told: what it held is free again.
    pub(super) fn has_ended(&self, pod: &PodOnNode) -> bool {
        pod.terminal || self.refused.contains(&pod.uid)
    }

    pub(super) fn get(&self, uid: &PodUid) -> Option<&PodOnNode> {
        self.by_uid.get(uid).map(|(_, pod)| pod)
    }

    pub(super) fn by_name(&self, namespace: &str, name: &str) -> Option<&PodOnNode> {
        self.get(self.by_name.get(namespace)?.get(name)?)
    }

    /// The kubelet has begun anew: it comes to those that are there by the time when they were made.
    pub(super) fn order_by_creation(&mut self) {
        let mut made: Vec<_> = self.by_uid.values_mut().collect();
        made.sort_by(|(_, a), (_, b)| (a.created, &a.uid).cmp(&(b.created, &b.uid)));
        for (place, (order, _)) in (0_u64..).zip(made) {
            *order = place;
        }
        self.reached = 0;
    }

    /// Those that the kubelet may yet ask for, likeliest first: from the one that it was at on, first come first, then those
    /// that it has passed. It goes on with one that was told to end meanwhile, and may even begin it.
    pub(super) fn expected(&self) -> Vec<&PodOnNode> {
        let mut pods: Vec<_> = self
            .by_uid
            .values()
            .filter(|(_, pod)| !self.has_ended(pod) && !self.complete.contains(&pod.uid))
            .collect();
        pods.sort_by_key(|(order, _)| (*order < self.reached, *order));
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
