//! The kubelet's device manager, as a real one was seen to behave.

use std::collections::{BTreeMap, BTreeSet};

use penstock_core::device::{DeviceId, Resource};
use penstock_core::ids::{GpuUuid, PodUid};
use penstock_core::packing::Resources;
use penstock_core::pod_demand::{ContainerKind, PodDemand};

use super::super::{GpuOffer, Held, Stored};
use super::dice::Dice;
use crate::pods::{ContainerAsk, PodOnNode};

/// Which container holds what: by pod and container, the devices of each resource.
type Given = BTreeMap<(String, String), BTreeMap<Resource, Vec<DeviceId>>>;

/// What the kubelet knows.
pub(super) struct Kubelet {
    /// As the plugin has listed them.
    pub(super) gpus: Vec<GpuOffer>,
    given: Given,
    /// Written when a container has all it asks for; all that is left after a restart.
    checkpoint: Given,
    /// The init containers that end: podresources has none of them.
    init: BTreeSet<(String, String)>,
}

impl Kubelet {
    pub(super) fn new(gpus: Vec<GpuOffer>) -> Self {
        Self {
            gpus,
            given: Given::new(),
            checkpoint: Given::new(),
            init: BTreeSet::new(),
        }
    }

    /// Knows what is in the checkpoint, of `pods`: all that it will ever hear of.
    pub(super) fn restart(&mut self, pods: &[PodOnNode]) {
        self.given = self.checkpoint.clone();
        self.given
            .retain(|(name, _), _| pods.iter().any(|pod| pod.name == *name));
    }

    pub(super) fn write_checkpoint(&mut self) {
        self.checkpoint = self.given.clone();
    }

    /// What a container has of a resource already: nothing is asked for that again.
    pub(super) fn has(&self, pod: &str, container: &str, resource: Resource) -> Option<&Vec<DeviceId>> {
        self.given
            .get(&(pod.to_owned(), container.to_owned()))?
            .get(&resource)
    }

    pub(super) fn hand_out(&mut self, pod: &str, ask: &ContainerAsk, resource: Resource, ids: Vec<DeviceId>) {
        let taken = self.in_use(resource, |other| other != pod);
        assert!(
            ids.iter().all(|id| !taken.contains(id)),
            "{pod} was given what another pod has: {ids:?}"
        );
        let key = (pod.to_owned(), ask.name.clone());
        if ask.kind == ContainerKind::Init {
            self.init.insert(key.clone());
        }
        self.given.entry(key).or_default().insert(resource, ids);
    }

    pub(super) fn remove(&mut self, pod: &str) {
        // The checkpoint is written only for the next pod that asks for something.
        self.given.retain(|(name, _), _| name != pod);
    }

    /// Whether an init container was given something, and not all: neither podresources nor the checkpoint has it.
    pub(super) fn is_out_of_sight(&self, pod: &str) -> bool {
        let of_pod = self.given.iter().filter(|((name, _), _)| name == pod);
        let mut unwritten = of_pod.filter(|(key, by)| self.checkpoint.get(key) != Some(by));
        unwritten.any(|(key, _)| self.init.contains(key))
    }

    pub(super) fn gpus_of(&self, pod: &str) -> BTreeSet<GpuUuid> {
        let of_pod = self.given.iter().filter(|((name, _), _)| name == pod);
        of_pod
            .flat_map(|(_, by)| by.values().flatten())
            .map(|id| id.gpu().clone())
            .collect()
    }

    /// The devices that are healthy and free.
    pub(super) fn free(&self, resource: Resource) -> Vec<DeviceId> {
        let used = self.in_use(resource, |_| true);
        let healthy = self
            .gpus
            .iter()
            .filter(|gpu| !gpu.unhealthy.contains_key(&resource));
        let all = healthy
            .flat_map(|gpu| (0..resource.of(gpu.capacity)).map(|n| DeviceId::new(gpu.uuid.clone(), n)));
        all.filter(|id| !used.contains(id)).collect()
    }

    fn in_use(&self, resource: Resource, whose: impl Fn(&str) -> bool) -> BTreeSet<DeviceId> {
        self.given
            .iter()
            .filter(|((pod, _), _)| whose(pod))
            .filter_map(|(_, by)| by.get(&resource))
            .flatten()
            .cloned()
            .collect()
    }

    /// What the checkpoint has; pods that have ended too, as long as no other was given something.
    pub(super) fn stored(&self) -> Vec<Stored> {
        let mut list = Vec::new();
        for ((pod, container), by) in &self.checkpoint {
            list.extend(by.iter().map(|(resource, ids)| Stored {
                pod: PodUid::new(pod.replace("pod", "uid")).unwrap(),
                container: container.clone(),
                resource: *resource,
                ids: ids.iter().cloned().collect(),
            }));
        }
        list
    }

    pub(super) fn podresources(&self) -> Vec<Held> {
        let mut list = Vec::new();
        for ((pod, container), by) in self.given.iter().filter(|(key, _)| !self.init.contains(key)) {
            list.extend(by.iter().map(|(resource, ids)| Held {
                namespace: "games".to_owned(),
                pod: pod.clone(),
                container: container.clone(),
                resource: *resource,
                ids: ids.iter().cloned().collect(),
            }));
        }
        list
    }

    /// Whether `gpu` has room for all of `demand`. `pods` are all that there are.
    pub(super) fn has_room(&self, gpu: &GpuOffer, demand: PodDemand, pods: &[PodOnNode]) -> bool {
        let free = self.room_on(gpu);
        let room = Resource::ALL.into_iter().all(|r| {
            let asked = r.of(demand.resources);
            asked == 0 || (!gpu.unhealthy.contains_key(&r) && asked <= r.of(free))
        });
        let clients = demand.mps_containers;
        room && (clients == 0 || self.mps_clients(gpu, pods) + clients <= gpu.mps_clients)
    }

    fn room_on(&self, gpu: &GpuOffer) -> Resources {
        let taken = |r| {
            self.in_use(r, |_| true)
                .iter()
                .filter(|id| *id.gpu() == gpu.uuid)
                .count()
        };
        Resource::ALL.into_iter().fold(Resources::NONE, |sum, r| {
            let left = r.of(gpu.capacity) - u32::try_from(taken(r)).unwrap();
            sum.checked_add(r.amount(left)).unwrap()
        })
    }

    /// Containers that use MPS on `gpu` at one time.
    pub(super) fn mps_clients(&self, gpu: &GpuOffer, pods: &[PodOnNode]) -> u32 {
        let on_it = |pod: &&PodOnNode| {
            self.given.iter().any(|((name, _), by)| {
                let mps = by.get(&Resource::Mps).into_iter().flatten();
                *name == pod.name && mps.into_iter().any(|id| *id.gpu() == gpu.uuid)
            })
        };
        pods.iter()
            .filter(on_it)
            .map(|pod| pod.demand().mps_containers)
            .sum()
    }

    /// Devices that a container gets without asking: those that init containers have left. The others, if any, are
    /// to be chosen out of `available`, which has these too.
    pub(super) fn handed_on(
        &self,
        resource: Resource,
        size: usize,
        reusable: &BTreeSet<DeviceId>,
        dice: &mut Dice,
    ) -> HandedOn {
        let mut first: Vec<_> = reusable.iter().cloned().collect();
        dice.shuffle(&mut first);
        first.truncate(size);
        let mut available = self.free(resource);
        available.retain(|id| !first.contains(id));
        let enough = available.len() >= size - first.len();
        available.extend(first.iter().cloned());
        dice.shuffle(&mut available);
        HandedOn {
            first,
            available,
            enough,
        }
    }
}

pub(super) struct HandedOn {
    pub(super) first: Vec<DeviceId>,
    pub(super) available: Vec<DeviceId>,
    pub(super) enough: bool,
}
