//! Who holds what: as podresources says, and what was given since.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use penstock_core::device::{DeviceId, Resource};
use penstock_core::ids::GpuUuid;
use penstock_core::packing::Resources;

use super::Held;
use super::pods::Pods;
use crate::pods::PodOnNode;

/// What is held on this node.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// As podresources says.
    listed: Vec<Held>,
    /// Given since, and when.
    fresh: Vec<(Instant, Held)>,
    /// Whether a list that is certain to have it does not show what was given since.
    undone: bool,
}

/// A list of podresources may be this much older than it looks; what was given within it stays counted.
const LIST_LAG: Duration = Duration::from_secs(5);

impl Usage {
    /// Takes a new list. What it shows, or is old enough to show, is no longer counted as given since; but the list has
    /// no init containers. A list that is `certain` to have all the rest may be believed, should that be in the way.
    pub(super) fn replace(&mut self, now: Instant, held: &[Held], certain: bool, pods: &Pods) {
        let shown: BTreeSet<_> = held
            .iter()
            .flat_map(|held| held.ids.iter().map(|id| (held.resource, id)))
            .collect();
        let on_list: BTreeSet<_> = held.iter().map(|held| (&*held.namespace, &*held.pod)).collect();
        self.fresh.retain(|(given, held)| {
            let seen = held.ids.iter().all(|id| shown.contains(&(held.resource, id)));
            let pod = pods.by_name(&held.namespace, &held.pod);
            let complete = pod.is_some_and(|pod| pods.is_complete(pod));
            let ended = certain && complete && !on_list.contains(&(&*held.namespace, &*held.pod));
            (pods.is_init(held) && !ended) || (!seen && now.duration_since(*given) < LIST_LAG)
        });
        self.listed = held.to_vec();
        self.undone = certain && self.fresh.iter().any(|(_, held)| !pods.is_init(held));
    }

    /// Forgets what podresources is certain not to show; gives whether there was any.
    pub(super) fn forget_undone(&mut self, pods: &Pods) -> bool {
        let undone = std::mem::take(&mut self.undone);
        if undone {
            self.fresh.retain(|(_, held)| pods.is_init(held));
        }
        undone
    }

    /// Counts what was given to pods that are known now.
    pub(super) fn give(&mut self, now: Instant, held: Vec<Held>) {
        self.undone = false;
        self.fresh.extend(held.into_iter().map(|held| (now, held)));
    }

    /// Forgets a pod that is gone: another of its name begins with nothing.
    pub(super) fn forget(&mut self, pod: &PodOnNode) {
        let another = |held: &Held| held.namespace != pod.namespace || held.pod != pod.name;
        self.listed.retain(another);
        self.fresh.retain(|(_, held)| another(held));
    }

    /// All that is held.
    pub(super) fn held(&self) -> impl Iterator<Item = &Held> {
        self.listed.iter().chain(self.fresh.iter().map(|(_, held)| held))
    }

    /// Whether a container was given a resource.
    pub(super) fn has(&self, pod: &PodOnNode, container: &str, resource: Resource) -> bool {
        self.of(pod)
            .any(|held| held.container == container && held.resource == resource)
    }

    /// Whether podresources has shown that a container holds a resource.
    pub(super) fn shows(&self, pod: &PodOnNode, container: &str, resource: Resource) -> bool {
        self.listed.iter().any(|held| {
            held.namespace == pod.namespace
                && held.pod == pod.name
                && held.container == container
                && held.resource == resource
        })
    }

    /// Whether a pod holds any of `ids`.
    pub(super) fn holds_any(&self, pod: &PodOnNode, ids: &[DeviceId]) -> bool {
        self.of(pod)
            .any(|held| held.ids.iter().any(|id| ids.contains(id)))
    }

    /// The GPU that a pod is on.
    pub(super) fn gpu_of(&self, pod: &PodOnNode) -> Option<GpuUuid> {
        self.of(pod)
            .flat_map(|held| held.ids.first())
            .map(|id| id.gpu().clone())
            .next()
    }

    /// Whether what is held still counts: not where its pod is known to have ended, since the kubelet takes the
    /// devices back as soon as it needs them.
    pub(super) fn counted<'a>(&'a self, pods: &'a Pods) -> impl Iterator<Item = &'a Held> {
        self.held().filter(|held| {
            pods.by_name(&held.namespace, &held.pod)
                .is_none_or(|pod| !pods.has_ended(pod))
        })
    }

    fn of<'a>(&'a self, pod: &'a PodOnNode) -> impl Iterator<Item = &'a Held> {
        self.held()
            .filter(|held| held.namespace == pod.namespace && held.pod == pod.name)
    }
}

/// How much of each resource of `gpu` is taken by `held`. A pod that is known takes all that it asks for, even where
/// its init containers' devices are not listed, or it is not through with its calls. A device that an init container
/// handed on counts once.
pub(super) fn taken<'a>(pods: &Pods, gpu: &GpuUuid, held: impl Iterator<Item = &'a Held>) -> Resources {
    let mut by_pod: BTreeMap<(&str, &str), BTreeMap<Resource, BTreeSet<&DeviceId>>> = BTreeMap::new();
    for held in held {
        let mut ids = held.ids.iter().filter(|id| id.gpu() == gpu).peekable();
        if ids.peek().is_some() {
            let pod = by_pod.entry((&held.namespace, &held.pod)).or_default();
            pod.entry(held.resource).or_default().extend(ids);
        }
    }
    let amounts = by_pod.into_iter().flat_map(|((namespace, name), ids)| {
        let demand = pods.by_name(namespace, name).map(|pod| pod.demand().resources);
        Resource::ALL.map(|resource| {
            let ids = ids.get(&resource).map_or(0, BTreeSet::len);
            let asked = demand.map_or(0, |demand| resource.of(demand));
            resource.amount(asked.max(u32::try_from(ids).unwrap_or(u32::MAX)))
        })
    });
    amounts.fold(Resources::NONE, |sum, amount| {
        sum.checked_add(amount).unwrap_or(sum)
    })
}

/// Containers that use MPS on `gpu`: of a pod that is known, as many as it runs at once.
pub(super) fn mps_clients<'a>(pods: &Pods, gpu: &GpuUuid, held: impl Iterator<Item = &'a Held>) -> u32 {
    let mut by_pod: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for held in held.filter(|held| held.ids.iter().any(|id| id.gpu() == gpu)) {
        let uses_mps = u32::from(held.resource == Resource::Mps);
        *by_pod.entry((&held.namespace, &held.pod)).or_default() += uses_mps;
    }
    let at_once = |((namespace, name), containers): ((&str, &str), u32)| {
        pods.by_name(namespace, name)
            .map_or(containers, |pod| pod.demand().mps_containers)
    };
    by_pod.into_iter().map(at_once).sum()
}
