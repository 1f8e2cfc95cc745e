//! Which GPU a call for a preference gets, and which of its devices. No state: all that it depends on is in
//! [`Choosing`].

use std::collections::{BTreeMap, BTreeSet};

use penstock_core::device::Resource;
use penstock_core::ids::GpuUuid;
use penstock_core::packing::{Candidate, Resources, best_fit};

use super::usage::Taken;
use super::{Devices, GpuOffer};
use crate::pods::PodOnNode;

/// A call for a preference.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) resource: Resource,
    /// What the kubelet has for it, `must_include` among that.
    pub(super) available: &'a Devices,
    /// What the container gets in any case: an init container has left it.
    pub(super) must_include: &'a Devices,
    pub(super) size: usize,
}

impl Call<'_> {
    /// Its size, where an amount is wanted.
    pub(super) fn amount(&self) -> u32 {
        u32::try_from(self.size).unwrap_or(u32::MAX)
    }
}

/// What one whose turn it may be needs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// The GPU that the pod is on.
    Gpu(GpuUuid),
    /// Room for all of a pod that has nothing yet.
    Room(Wish),
}

/// What a pod asks for in all.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wish {
    gpu: Option<GpuUuid>,
    demand: Resources,
    mps: u32,
}

impl Wish {
    /// A pod's.
    pub(super) fn of(pod: &PodOnNode) -> Self {
        let demand = pod.demand();
        Self {
            gpu: pod.gpu.clone(),
            demand: demand.resources,
            mps: demand.mps_containers,
        }
    }

    /// One for what a call asks, where no pod is known that it is for.
    pub(super) fn of_call(call: &Call<'_>) -> Self {
        Self {
            gpu: None,
            demand: call.resource.amount(call.amount()),
            mps: u32::from(call.resource == Resource::Mps),
        }
    }
}

/// A call, and what there is to choose from for it.
#[derive(Debug)]
pub(super) struct Choosing<'a> {
    call: Call<'a>,
    gpus: &'a BTreeMap<GpuUuid, GpuOffer>,
    /// What is taken of each GPU, by what is known here.
    taken: BTreeMap<GpuUuid, Taken>,
}

impl<'a> Choosing<'a> {
    /// For `call`, out of `gpus`, of which that much is taken.
    pub(super) fn new(
        call: Call<'a>,
        gpus: &'a BTreeMap<GpuUuid, GpuOffer>,
        taken: BTreeMap<GpuUuid, Taken>,
    ) -> Self {
        Self { call, gpus, taken }
    }

    /// The GPU for those who `need` one, likeliest first: the likeliest one's. Where there is none for it, the call may be the
    /// next one's and gets that one's, but not where the likeliest would then run more MPS clients than the GPU takes.
    pub(super) fn choose(&self, needs: &[Need]) -> Option<GpuUuid> {
        // Should it be that pod's, it would be split anywhere else.
        if let Some(first @ Need::Gpu(gpu)) = needs.first()
            && !self.suits(gpu, first)
        {
            return None;
        }
        needs.iter().enumerate().find_map(|(at, need)| {
            let gpu = self.place(need)?;
            let is_safe = needs[..at].iter().all(|likelier| match likelier {
                Need::Gpu(_) => true,
                Need::Room(wish) => self.takes_clients(gpu, wish),
            });
            is_safe.then(|| gpu.uuid.clone())
        })
    }

    /// `gpu`, where the kubelet has enough of it for the call.
    pub(super) fn on(&self, gpu: &GpuUuid) -> Option<GpuUuid> {
        self.has_enough(gpu).then(|| gpu.clone())
    }

    /// Whether `gpu` is what one needs.
    pub(super) fn suits(&self, gpu: &GpuUuid, need: &Need) -> bool {
        match need {
            Need::Gpu(held) => held == gpu && self.has_enough(gpu),
            Need::Room(wish) => self.gpus.get(gpu).is_some_and(|gpu| self.fits(gpu, wish)),
        }
    }

    /// The devices of `gpu` for the call: what must be included, then the lowest numbers.
    pub(super) fn pick(&self, gpu: &GpuUuid) -> Devices {
        let Call {
            available,
            must_include,
            size,
            ..
        } = self.call;
        Devices::fill_up(must_include, gpu, available, size)
    }

    /// Why `pod` gets nothing: names each GPU, what is free there, and what to do.
    pub(super) fn refusal(&self, pod: &str, wish: &Wish) -> String {
        let wished = wish.gpu.as_ref().map(|gpu| format!(" (it was meant for {gpu})"));
        let gpus: Vec<_> = self.gpus.values().map(|gpu| self.state_of(gpu)).collect();
        let gpus = if gpus.is_empty() {
            "this node offers no GPU".to_owned()
        } else {
            gpus.join("; ")
        };
        format!(
            "no GPU of this node has room for all of {pod}, which asks for {}{}: {gpus}. End a pod there, or let the \
             penstock scheduler place it: it counts by GPU, the default scheduler by node",
            wish.demand,
            wished.unwrap_or_default()
        )
    }

    /// The GPU that is needed, or that a wish names, where it has room; else the fullest that has.
    fn place(&self, need: &Need) -> Option<&'a GpuOffer> {
        let wish = match need {
            Need::Gpu(gpu) => return self.gpus.get(&self.on(gpu)?),
            Need::Room(wish) => wish,
        };
        let fitting = || self.gpus.values().filter(|gpu| self.fits(gpu, wish));
        let named = fitting().find(|gpu| Some(&gpu.uuid) == wish.gpu.as_ref());
        named.or_else(|| {
            let best = best_fit(wish.demand, fitting().map(|gpu| self.candidate(gpu)))?;
            self.gpus.get(best)
        })
    }

    /// Whether all of a wish has room on `gpu`, by what is known here and by what the kubelet says is available.
    fn fits(&self, gpu: &GpuOffer, wish: &Wish) -> bool {
        let asked = self.call.resource;
        let healthy = Resource::ALL
            .iter()
            .all(|r| r.of(wish.demand) == 0 || !gpu.unhealthy.contains_key(r));
        let free = free(gpu, &self.taken);
        // Of the resource asked for the kubelet knows best.
        let room = Resource::ALL
            .iter()
            .all(|r| *r == asked || r.of(wish.demand) <= r.of(free));
        healthy
            && self.takes_clients(gpu, wish)
            && room
            && self.has_enough(&gpu.uuid)
            && self.there(&gpu.uuid) >= asked.of(wish.demand) as usize
    }

    fn takes_clients(&self, gpu: &GpuOffer, wish: &Wish) -> bool {
        let taken = self.taken.get(&gpu.uuid).map_or(0, |taken| taken.mps_clients);
        wish.mps == 0 || taken + wish.mps <= gpu.mps_clients
    }

    /// A GPU as packing sees it. Of the resource asked for the kubelet knows best what is free.
    fn candidate(&self, gpu: &'a GpuOffer) -> Candidate<'a> {
        let asked = self.call.resource;
        let known = free(gpu, &self.taken);
        let there = asked.amount(u32::try_from(self.there(&gpu.uuid)).unwrap_or(u32::MAX));
        let others = known
            .checked_sub(asked.amount(asked.of(known)))
            .unwrap_or(Resources::NONE);
        Candidate {
            gpu: &gpu.uuid,
            capacity: gpu.capacity,
            free: others.checked_add(there).unwrap_or(known),
        }
    }

    fn has_enough(&self, gpu: &GpuUuid) -> bool {
        self.there(gpu) >= self.call.size
    }

    /// How many devices of `gpu` the kubelet has for this call.
    fn there(&self, gpu: &GpuUuid) -> usize {
        self.call.available.on(gpu)
    }

    fn state_of(&self, gpu: &GpuOffer) -> String {
        let why: BTreeSet<_> = gpu.unhealthy.values().map(String::as_str).collect();
        let unhealthy = if why.is_empty() {
            String::new()
        } else {
            format!(" (not used: {})", why.into_iter().collect::<Vec<_>>().join(", "))
        };
        format!("{} has {} free{unhealthy}", gpu.uuid, free(gpu, &self.taken))
    }
}

/// What is free of a GPU.
pub(super) fn free(gpu: &GpuOffer, taken: &BTreeMap<GpuUuid, Taken>) -> Resources {
    let taken = taken
        .get(&gpu.uuid)
        .map_or(Resources::NONE, |taken| taken.amounts);
    Resource::ALL.into_iter().fold(Resources::NONE, |free, resource| {
        let left = resource.of(gpu.capacity).saturating_sub(resource.of(taken));
        free.checked_add(resource.amount(left)).unwrap_or(free)
    })
}
