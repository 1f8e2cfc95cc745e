//! What is free on one node, and what a question needs to know of its GPUs.

use std::collections::{BTreeSet, HashMap};

use penstock_core::gpu_node::{Allocation, Gpu, GpuNodeSpec};
use penstock_core::ids::{GpuUuid, NodeName, PodUid};

use super::Settings;
use super::amounts::{Amounts, DIMENSIONS, Dimension};
use super::appetite::Totals;

/// A node.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) name: Option<NodeName>,
    /// Whether its kubelet does not know the plugin: it would refuse what is bound here, for good.
    pub(super) unregistered: bool,
    /// Its GPUs as the GpuNode says, in the order of their names.
    pub(super) gpus: Vec<Gpu>,
    /// What is free of each of them.
    pub(super) rooms: Vec<Room>,
    /// What is taken of each of them; more than there is, where a capacity was lowered.
    pub(super) taken: Vec<Amounts>,
    /// The pods that were put here and that the GpuNode does not show in full yet.
    pub(super) in_flight: Vec<PodUid>,
    /// The pods that are bound here, and those that were put here.
    pub(super) pods: BTreeSet<PodUid>,
}

/// What is free of one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// What nobody holds and nobody was promised.
    pub(crate) free: Amounts,
    /// All there is.
    pub(crate) capacity: Amounts,
    /// Which dimensions can be used now.
    pub(crate) healthy: [bool; DIMENSIONS],
    /// Whether its measured encoder load is over the limit.
    pub(crate) overloaded: bool,
    /// Encoder sessions: those measured, or one for each pod with encoder units if that is more.
    pub(crate) sessions: u32,
}

/// What a live pod of a node was promised.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) demand: Amounts,
    /// Of which GPU, which need not be there any more; `None` where nobody said.
    pub(super) gpu: Option<GpuUuid>,
}

impl Node {
    pub(super) fn new(name: NodeName) -> Self {
        Self {
            name: Some(name),
            ..Self::default()
        }
    }

    /// Takes what a GpuNode says.
    pub(super) fn describe(&mut self, spec: &GpuNodeSpec) {
        self.unregistered = spec.is_unregistered();
        self.gpus.clone_from(&spec.gpus);
        self.gpus.sort_by(|a, b| a.uuid.cmp(&b.uuid));
    }

    /// Counts what is taken and free.
    pub(super) fn count(
        &self,
        claims: &HashMap<&PodUid, Claim>,
        settings: &Settings,
    ) -> (Vec<Amounts>, Vec<Room>) {
        let mut taken = vec![Amounts::NONE; self.gpus.len()];
        let mut streams = vec![0; self.gpus.len()];
        let mut hold = |gpu: usize, amounts: Amounts| {
            taken[gpu] = taken[gpu].plus(amounts);
            streams[gpu] += u32::from(amounts.encoder() > 0);
        };
        let mut shown = BTreeSet::new();
        for (gpu, allocation) in self.allocations() {
            let held = Amounts::of_allocation(allocation);
            // The kubelet allocates one resource after the other: what is not shown yet is still the pod's.
            let claim = claims
                .get(&allocation.pod_uid)
                .map_or(Amounts::NONE, |claim| claim.demand);
            let first = shown.insert(&allocation.pod_uid);
            hold(gpu, if first { held.most(claim) } else { held });
        }
        for (_, claim) in claims.iter().filter(|(uid, _)| !shown.contains(**uid)) {
            match &claim.gpu {
                // One that is gone (lost, divided anew, opted in no more) took its pods along, running or not.
                Some(gpu) => self.find(gpu).into_iter().for_each(|gpu| hold(gpu, claim.demand)),
                // Nobody knows which it will be. For the moment until a GpuNode shows it, it counts on each.
                None => (0..self.gpus.len()).for_each(|gpu| hold(gpu, claim.demand)),
            }
        }
        let counted = self.gpus.iter().zip(&taken).zip(streams);
        let rooms = counted
            .map(|((gpu, taken), streams)| Room::of(gpu, *taken, streams, settings))
            .collect();
        (taken, rooms)
    }

    /// Which of its GPUs has that name.
    pub(super) fn find(&self, gpu: &GpuUuid) -> Option<usize> {
        self.gpus.binary_search_by(|known| known.uuid.cmp(gpu)).ok()
    }

    /// On which of its GPUs the GpuNode shows a pod, and with what.
    pub(super) fn shows(&self, uid: &PodUid) -> Option<(usize, Amounts)> {
        let mut found = self
            .allocations()
            .filter(|(_, allocation)| allocation.pod_uid == *uid);
        found
            .next()
            .map(|(gpu, allocation)| (gpu, Amounts::of_allocation(allocation)))
    }

    /// How many encoder sessions GPUs with a limit have, and the limit. Drivers count over the whole system.
    pub(super) fn capped_sessions(&self) -> Option<(u32, u32)> {
        let capped = || {
            self.gpus
                .iter()
                .zip(&self.rooms)
                .filter(|(gpu, _)| gpu.encoder_session_limit.is_some())
        };
        let limit = capped().filter_map(|(gpu, _)| gpu.encoder_session_limit).min()?;
        Some((
            capped()
                .map(|(_, room)| room.sessions)
                .fold(0, u32::saturating_add),
            limit,
        ))
    }

    fn allocations(&self) -> impl Iterator<Item = (usize, &Allocation)> {
        let gpus = self.gpus.iter().enumerate();
        gpus.flat_map(|(i, gpu)| gpu.allocated.iter().map(move |held| (i, held)))
    }
}

impl Room {
    fn of(gpu: &Gpu, taken: Amounts, streams: u32, settings: &Settings) -> Self {
        let capacity = Amounts::of_gpu(gpu.capacity);
        let load = gpu.measured.encoder_load_percent;
        Self {
            free: capacity.less(taken),
            capacity,
            healthy: Dimension::ALL.map(|dimension| dimension.problem(&gpu.health).is_none()),
            overloaded: load.is_some_and(|load| load.percent() >= settings.encoder_load_limit),
            sessions: gpu.measured.encoder_sessions.unwrap_or_default().max(streams),
        }
    }

    /// Whether all that is asked for can be used now.
    pub(super) fn is_healthy_for(&self, demand: Amounts) -> bool {
        (0..DIMENSIONS).all(|i| demand.0[i] == 0 || self.healthy[i])
    }

    /// Whether `demand` could be put here now.
    pub(crate) fn takes(&self, demand: Amounts) -> bool {
        self.free.holds(demand) && !self.overloaded && self.is_healthy_for(demand)
    }
}

impl Totals {
    /// A node more.
    pub(super) fn plus(&mut self, node: &Node) {
        self.gpus += node.gpus.len() as u64;
        for gpu in &node.gpus {
            let capacity = Amounts::of_gpu(gpu.capacity);
            (0..DIMENSIONS).for_each(|i| self.capacity[i] += u64::from(capacity.0[i]));
        }
    }

    /// A node less.
    pub(super) fn less(&mut self, node: &Node) {
        self.gpus -= node.gpus.len() as u64;
        for gpu in &node.gpus {
            let capacity = Amounts::of_gpu(gpu.capacity);
            (0..DIMENSIONS).for_each(|i| self.capacity[i] -= u64::from(capacity.0[i]));
        }
    }
}
