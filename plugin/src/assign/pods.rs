//! The pods of this node, and what each takes in all.

use std::collections::BTreeMap;

use penstock_core::device::Resource;
use penstock_core::packing::Resources;

use super::{ContainerKind, PodOnNode};

/// The pods of this node, in the order in which they were first seen: about the order of their binding, which is the
/// kubelet's.
#[derive(Debug, Default)]
pub(super) struct Pods {
    by_uid: BTreeMap<String, (u64, PodOnNode)>,
    seen: u64,
}

impl Pods {
    /// Takes a whole list, and gives those that are not in it any more.
    pub(super) fn replace(&mut self, mut pods: Vec<PodOnNode>) -> Vec<PodOnNode> {
        pods.sort_by(|a, b| (a.created_unix_s, &a.uid).cmp(&(b.created_unix_s, &b.uid)));
        let gone = |uid: &String| pods.iter().all(|pod| pod.uid != *uid);
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

    pub(super) fn delete(&mut self, uid: &str) -> Option<PodOnNode> {
        self.by_uid.remove(uid).map(|(_, pod)| pod)
    }

    pub(super) fn get(&self, uid: &str) -> Option<&PodOnNode> {
        self.by_uid.get(uid).map(|(_, pod)| pod)
    }

    pub(super) fn by_name(&self, namespace: &str, name: &str) -> Option<&PodOnNode> {
        self.by_uid
            .values()
            .map(|(_, pod)| pod)
            .find(|pod| pod.namespace == namespace && pod.name == name)
    }

    /// Those that have not ended, first seen first.
    pub(super) fn alive(&self) -> Vec<&PodOnNode> {
        let mut pods: Vec<_> = self.by_uid.values().filter(|(_, pod)| !pod.over).collect();
        pods.sort_by_key(|(order, _)| *order);
        pods.into_iter().map(|(_, pod)| pod).collect()
    }
}

impl PodOnNode {
    /// As people name it.
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// All that it takes of a GPU at once.
    pub(super) fn demand(&self) -> Resources {
        Resource::ALL.into_iter().fold(Resources::NONE, |sum, resource| {
            let amount = resource.amount(self.at_once(|container| resource.of(container)));
            sum.checked_add(amount).unwrap_or(sum)
        })
    }

    /// How many containers with `mps` run at once.
    pub(super) fn mps_containers(&self) -> u32 {
        self.at_once(|demand| u32::from(demand.mps.0 > 0))
    }

    /// Counted as Kubernetes counts (KEP-753, "resources calculation"): sidecars and applications run together; an
    /// init container runs beside the sidecars that were started before it.
    fn at_once(&self, amount: impl Fn(Resources) -> u32) -> u32 {
        let (mut sidecars, mut most, mut apps) = (0u32, 0u32, 0u32);
        for container in &self.containers {
            let asked = amount(container.demand);
            match container.kind {
                ContainerKind::Init => most = most.max(sidecars.saturating_add(asked)),
                ContainerKind::Sidecar => sidecars = sidecars.saturating_add(asked),
                ContainerKind::App => apps = apps.saturating_add(asked),
            }
        }
        most.max(sidecars.saturating_add(apps))
    }
}
