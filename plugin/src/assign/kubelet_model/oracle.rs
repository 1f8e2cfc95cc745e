//! A packer that is told which pod it places, with the same policy.

use std::collections::BTreeMap;

use penstock_core::device::Resource;
use penstock_core::ids::GpuUuid;
use penstock_core::packing::{Candidate, Resources, best_fit};
use penstock_core::pod_demand::PodDemand;

use super::super::GpuOffer;
use crate::pods::PodOnNode;

#[derive(Default)]
pub(super) struct Oracle {
    placed: BTreeMap<String, (GpuUuid, PodDemand)>,
    pub(super) refused: u32,
}

impl Oracle {
    /// Places a pod that is not placed yet, where one of `gpus` has room for it. Gives whether it is.
    pub(super) fn admit(&mut self, pod: &PodOnNode, gpus: &[GpuOffer]) -> bool {
        if self.placed.contains_key(&pod.name) {
            return true;
        }
        let demand = pod.demand();
        let fitting: Vec<_> = gpus
            .iter()
            .filter(|gpu| self.fits(gpu, &demand))
            .map(|gpu| Candidate {
                gpu: &gpu.uuid,
                capacity: gpu.capacity,
                free: self.free(gpu),
            })
            .collect();
        let annotated = fitting
            .iter()
            .map(|c| c.gpu)
            .find(|gpu| Some(*gpu) == pod.gpu.as_ref());
        let chosen = annotated.or_else(|| best_fit(demand.resources, fitting.iter().copied()));
        match chosen {
            Some(gpu) => drop(self.placed.insert(pod.name.clone(), (gpu.clone(), demand))),
            None => self.refused += 1,
        }
        chosen.is_some()
    }

    pub(super) fn remove(&mut self, pod: &str) {
        self.placed.remove(pod);
    }

    fn fits(&self, gpu: &GpuOffer, demand: &PodDemand) -> bool {
        let healthy = Resource::ALL
            .iter()
            .all(|r| r.of(demand.resources) == 0 || !gpu.unhealthy.contains_key(r));
        let clients: u32 = self.on(gpu).map(|placed| placed.mps_containers).sum();
        healthy
            && self.free(gpu).checked_sub(demand.resources).is_some()
            && (demand.mps_containers == 0 || clients + demand.mps_containers <= gpu.mps_clients)
    }

    fn free(&self, gpu: &GpuOffer) -> Resources {
        self.on(gpu).fold(gpu.capacity, |free, placed| {
            free.checked_sub(placed.resources).unwrap()
        })
    }

    fn on(&self, gpu: &GpuOffer) -> impl Iterator<Item = &PodDemand> {
        let uuid = gpu.uuid.clone();
        self.placed
            .values()
            .filter(move |(on, _)| *on == uuid)
            .map(|(_, demand)| demand)
    }
}
