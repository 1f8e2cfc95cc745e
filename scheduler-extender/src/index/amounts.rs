//! Amounts of all that a pod takes of a GPU, side by side, so that a question reads each GPU's in one go.

use std::fmt;

use penstock_core::gpu_node::{Allocation, Capacity, Health, ResourceHealth};
use penstock_core::pod_demand::PodDemand;
use penstock_core::units::{EncoderUnits, SmPercent, VramBlocks};

/// What a GPU can run out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dimension {
    /// Encoder units.
    Encoder,
    /// Percent of the SMs.
    Sms,
    /// Video memory.
    Memory,
    /// Clients of the MPS daemon.
    Clients,
}

/// How many dimensions there are.
pub(crate) const DIMENSIONS: usize = 4;

impl Dimension {
    /// All, in the order of [`Amounts`].
    pub(crate) const ALL: [Self; DIMENSIONS] = [Self::Encoder, Self::Sms, Self::Memory, Self::Clients];

    /// An amount of it, in words: `13 encoder units`.
    pub(crate) fn words(self, amount: u32) -> String {
        match self {
            Self::Encoder => EncoderUnits(amount).to_string(),
            Self::Sms => SmPercent(amount).to_string(),
            Self::Memory => VramBlocks(amount).to_string(),
            Self::Clients => format!("{amount} MPS client{}", if amount == 1 { "" } else { "s" }),
        }
    }

    /// How much is free of how much, in words: `9 of 124 encoder units`.
    pub(crate) fn free_words(self, free: u32, capacity: u32) -> String {
        match self {
            Self::Memory => format!("{} of {}", u64::from(free) * 256, self.words(capacity)),
            _ => format!("{free} of {}", self.words(capacity)),
        }
    }

    /// An amount without its unit, in the unit that [`Self::free_words`] counts in.
    pub(crate) fn count(self, amount: u32) -> u64 {
        u64::from(amount) * if self == Self::Memory { 256 } else { 1 }
    }

    /// Whether it can be used now. MPS clients can be if the SMs can.
    fn health(self, health: &Health) -> Option<&ResourceHealth> {
        match self {
            Self::Encoder => health.nvenc.as_ref(),
            Self::Sms | Self::Clients => health.mps.as_ref(),
            Self::Memory => health.vram.as_ref(),
        }
    }

    /// Why it can't be used; `None` where it can.
    pub(crate) fn problem(self, health: &Health) -> Option<&str> {
        let health = self.health(health)?;
        (!health.healthy).then(|| health.reason.as_deref().unwrap_or("no reason is known"))
    }
}

/// An amount of each [`Dimension`]. In a demand, 0 means "not asked for".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Amounts(pub(crate) [u32; DIMENSIONS]);

impl Amounts {
    /// Nothing of anything.
    pub(crate) const NONE: Self = Self([0; DIMENSIONS]);

    /// What a pod takes. Each of its containers with `mps` is one client of the MPS daemon, as in a GpuNode: where they
    /// are several, the plugin publishes room for fewer.
    pub(crate) fn of_pod(demand: PodDemand) -> Self {
        Self([
            demand.resources.nvenc.0,
            demand.resources.mps.0,
            demand.resources.vram.0,
            demand.mps_containers,
        ])
    }

    /// All that a GPU offers.
    pub(crate) fn of_gpu(capacity: Capacity) -> Self {
        Self([
            capacity.nvenc.0,
            capacity.mps.0,
            capacity.vram.0,
            capacity.mps_clients,
        ])
    }

    /// What a GpuNode shows as held by a pod.
    pub(crate) fn of_allocation(held: &Allocation) -> Self {
        Self([held.nvenc.0, held.mps.0, held.vram.0, held.mps_clients])
    }

    /// Whether `demand` fits in.
    pub(crate) fn holds(self, demand: Self) -> bool {
        (0..DIMENSIONS).all(|i| demand.0[i] <= self.0[i])
    }

    /// Whether all that a pod asks for by name fits in. MPS clients are not: whoever counts them counts by rules of its own.
    pub(crate) fn holds_what_is_asked(self, demand: Self) -> bool {
        let asked = Dimension::ALL.into_iter().filter(|d| *d != Dimension::Clients);
        asked.map(|d| d as usize).all(|i| demand.0[i] <= self.0[i])
    }

    /// The greater of each.
    pub(crate) fn most(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].max(other.0[i])))
    }

    /// Both together, at most the largest number.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].saturating_add(other.0[i])))
    }

    /// What is left of it, at least nothing.
    pub(crate) fn less(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].saturating_sub(other.0[i])))
    }

    /// The encoder units of it.
    pub(crate) fn encoder(self) -> u32 {
        self.0[Dimension::Encoder as usize]
    }
}

impl fmt::Display for Amounts {
    /// Names what there is some of: `13 encoder units, 20 % of the SMs`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = Dimension::ALL
            .into_iter()
            .zip(self.0)
            .filter(|&(_, amount)| amount > 0)
            .map(|(dimension, amount)| dimension.words(amount))
            .collect();
        if parts.is_empty() {
            return f.write_str("nothing");
        }
        f.write_str(&parts.join(", "))
    }
}
