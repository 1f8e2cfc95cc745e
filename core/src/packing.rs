//! Which GPU a demand goes to.
//!
//! ```text
//!   demand ──► best_fit over [free of GPU 0, free of GPU 1, …] ──► a GPU, or a reason per GPU
//!                                   ▲
//!   Ledger: GPU ─► capacity         │ capacity less what its slices hold
//!                  slice ─► demand ─┘
//! ```
//!
//! All that one demand asks for comes from ONE GPU. The ledger never grants more than a GPU has, and freeing a
//! slice gives back exactly what it took.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{GpuUuid, SliceId};
use crate::units::{EncoderUnits, SmPercent, VramBlocks};

/// Amounts of the three resources: a GPU's capacity, what is free of it, or what a slice asks for. In a demand,
/// 0 means "not asked for".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Encoder units.
    #[serde(default)]
    pub nvenc: EncoderUnits,
    /// Percent of the SMs.
    #[serde(default)]
    pub mps: SmPercent,
    /// Video memory.
    #[serde(default)]
    pub vram: VramBlocks,
}

impl Resources {
    /// Nothing of anything.
    pub const NONE: Self = Self {
        nvenc: EncoderUnits(0),
        mps: SmPercent(0),
        vram: VramBlocks(0),
    };

    /// What is left after taking `demand`; `None` where some resource falls short.
    pub fn checked_sub(self, demand: Self) -> Option<Self> {
        Some(Self {
            nvenc: EncoderUnits(self.nvenc.0.checked_sub(demand.nvenc.0)?),
            mps: SmPercent(self.mps.0.checked_sub(demand.mps.0)?),
            vram: VramBlocks(self.vram.0.checked_sub(demand.vram.0)?),
        })
    }

    /// Both together; `None` on overflow.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        Some(Self {
            nvenc: EncoderUnits(self.nvenc.0.checked_add(other.nvenc.0)?),
            mps: SmPercent(self.mps.0.checked_add(other.mps.0)?),
            vram: VramBlocks(self.vram.0.checked_add(other.vram.0)?),
        })
    }

    fn amounts(self) -> [u32; 3] {
        [self.nvenc.0, self.mps.0, self.vram.0]
    }
}

impl fmt::Display for Resources {
    /// Names what there is some of: `13 encoder units, 20 % of the SMs`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.nvenc.0 > 0 {
            parts.push(self.nvenc.to_string());
        }
        if self.mps.0 > 0 {
            parts.push(self.mps.to_string());
        }
        if self.vram.0 > 0 {
            parts.push(self.vram.to_string());
        }
        if parts.is_empty() {
            f.write_str("nothing")
        } else {
            f.write_str(&parts.join(", "))
        }
    }
}

/// What is free on one GPU, seen by a packing decision.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The GPU.
    pub gpu: &'a GpuUuid,
    /// All it has.
    pub capacity: Resources,
    /// What is not taken.
    pub free: Resources,
}

/// The fullest candidate that `demand` fits on: the one with the smallest share of its capacity left over,
/// summed over the resources it has; equals go to the smaller UUID, so the answer depends on nothing else.
pub fn best_fit<'a>(
    demand: Resources,
    candidates: impl IntoIterator<Item = Candidate<'a>>,
) -> Option<&'a GpuUuid> {
    candidates
        .into_iter()
        .filter_map(|c| Some((left_over(c.free.checked_sub(demand)?, c.capacity), c.gpu)))
        .min()
        .map(|(_, gpu)| gpu)
}

/// The share of a capacity that is left, in parts per million, summed over the resources: integers, so that
/// every machine orders GPUs alike.
fn left_over(free: Resources, capacity: Resources) -> u64 {
    free.amounts()
        .into_iter()
        .zip(capacity.amounts())
        .filter(|&(_, all)| all > 0)
        .map(|(free, all)| u64::from(free) * 1_000_000 / u64::from(all))
        .sum()
}

/// Which slice holds what of which GPU.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    gpus: BTreeMap<GpuUuid, Gpu>,
}

#[derive(Debug, Clone)]
struct Gpu {
    capacity: Resources,
    slices: BTreeMap<SliceId, Resources>,
}

/// Why a demand was not placed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing was asked for.
    #[error("slice {0} asks for nothing: ask for at least one of nvenc, mps and vram")]
    Empty(SliceId),
    /// The name is in use.
    #[error("a slice named {0} exists already: choose another name, or end that one first")]
    Exists(SliceId),
    /// No GPU has room.
    #[error("no GPU has room for {demand}: {}", describe(.free, .unusable))]
    NoRoom {
        /// What was asked for.
        demand: Resources,
        /// What each GPU has left that can be used.
        free: Vec<(GpuUuid, Resources)>,
        /// The GPUs that can't be used for it, and why.
        unusable: Vec<(GpuUuid, String)>,
    },
}

fn describe(free: &[(GpuUuid, Resources)], unusable: &[(GpuUuid, String)]) -> String {
    if free.is_empty() && unusable.is_empty() {
        return "there is no GPU at all".to_owned();
    }
    let free = free.iter().map(|(gpu, free)| format!("{gpu} has {free} free"));
    let unusable = unusable
        .iter()
        .map(|(gpu, why)| format!("{gpu} can't be used now: {why}"));
    free.chain(unusable).collect::<Vec<_>>().join("; ")
}

impl Ledger {
    /// A ledger over GPUs that nothing is placed on.
    pub fn new(gpus: impl IntoIterator<Item = (GpuUuid, Resources)>) -> Self {
        let gpus = gpus
            .into_iter()
            .map(|(gpu, capacity)| {
                (
                    gpu,
                    Gpu {
                        capacity,
                        slices: BTreeMap::new(),
                    },
                )
            })
            .collect();
        Self { gpus }
    }

    /// Takes in the GPUs that there are now. One that is missing goes once it holds no slice; until then nothing of it
    /// is free.
    pub fn set_gpus(&mut self, gpus: impl IntoIterator<Item = (GpuUuid, Resources)>) {
        for gpu in self.gpus.values_mut() {
            gpu.capacity = Resources::NONE;
        }
        for (name, capacity) in gpus {
            let slices = BTreeMap::new();
            let gpu = self.gpus.entry(name).or_insert(Gpu { capacity, slices });
            gpu.capacity = capacity;
        }
        self.gpus
            .retain(|_, gpu| gpu.capacity != Resources::NONE || !gpu.slices.is_empty());
    }

    /// Takes `demand` for `slice` from the GPU that [`best_fit`] chooses.
    ///
    /// # Errors
    /// [`Refusal`], with what is free on each GPU; the ledger is then unchanged.
    pub fn place(&mut self, slice: SliceId, demand: Resources) -> Result<GpuUuid, Refusal> {
        self.place_where(slice, demand, |_| None)
    }

    /// The same among those GPUs that `why_not` gives no reason against.
    ///
    /// # Errors
    /// [`Refusal`], with what is free on each GPU or why it can't be used; the ledger is then unchanged.
    pub fn place_where(
        &mut self,
        slice: SliceId,
        demand: Resources,
        why_not: impl Fn(&GpuUuid) -> Option<String>,
    ) -> Result<GpuUuid, Refusal> {
        if demand == Resources::NONE {
            return Err(Refusal::Empty(slice));
        }
        if self.gpu_of(&slice).is_some() {
            return Err(Refusal::Exists(slice));
        }
        let usable = || self.candidates().filter(|c| why_not(c.gpu).is_none());
        let Some(gpu) = best_fit(demand, usable()).cloned() else {
            let reason = |c: Candidate<'_>| Some((c.gpu.clone(), why_not(c.gpu)?));
            return Err(Refusal::NoRoom {
                demand,
                free: usable().map(|c| (c.gpu.clone(), c.free)).collect(),
                unusable: self.candidates().filter_map(reason).collect(),
            });
        };
        if let Some(chosen) = self.gpus.get_mut(&gpu) {
            chosen.slices.insert(slice, demand);
        }
        Ok(gpu)
    }

    /// Gives back what `slice` took, and says what that was.
    pub fn free(&mut self, slice: &SliceId) -> Option<Resources> {
        self.gpus.values_mut().find_map(|gpu| gpu.slices.remove(slice))
    }

    /// The GPU that `slice` is on.
    pub fn gpu_of(&self, slice: &SliceId) -> Option<&GpuUuid> {
        self.gpus
            .iter()
            .find(|(_, gpu)| gpu.slices.contains_key(slice))
            .map(|(name, _)| name)
    }

    /// Every GPU with what it has and what is free, in the order of their UUIDs.
    pub fn candidates(&self) -> impl Iterator<Item = Candidate<'_>> {
        self.gpus.iter().map(|(gpu, state)| Candidate {
            gpu,
            capacity: state.capacity,
            free: state.free(),
        })
    }
}

impl Gpu {
    fn free(&self) -> Resources {
        // `place` only adds what is still free, so this falls short only where a capacity has shrunk since.
        self.slices.values().fold(self.capacity, |left, taken| {
            left.checked_sub(*taken).unwrap_or(Resources::NONE)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_fuller_gpu_is_filled_first() {
        let mut ledger = two_gpus(20);
        ledger.place(slice(0), nvenc(5)).unwrap();
        let first = ledger.gpu_of(&slice(0)).cloned();
        ledger.place(slice(1), nvenc(13)).unwrap();
        assert_eq!(ledger.gpu_of(&slice(1)).cloned(), first);
    }

    #[test]
    fn free_units_on_two_gpus_do_not_add_up() {
        let mut ledger = two_gpus(10);
        let refusal = ledger.place(slice(0), nvenc(13)).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "no GPU has room for 13 encoder units: GPU-0 has 10 encoder units free; GPU-1 has 10 encoder units free"
        );
    }

    #[test]
    fn a_gpu_with_a_reason_against_it_takes_nothing_and_the_refusal_says_why() {
        let mut ledger = two_gpus(10);
        let ill = |on: &GpuUuid| (*on == gpu(0)).then(|| "XID 48".to_owned());
        ledger.place_where(slice(0), nvenc(7), ill).unwrap();
        assert_eq!(ledger.gpu_of(&slice(0)), Some(&gpu(1)));
        let refusal = ledger.place_where(slice(1), nvenc(7), ill).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "no GPU has room for 7 encoder units: GPU-1 has 3 encoder units free; GPU-0 can't be used now: XID 48"
        );
    }

    #[test]
    fn a_gpu_that_is_gone_offers_nothing_and_goes_with_its_last_slice() {
        let mut ledger = two_gpus(10);
        ledger.place(slice(0), nvenc(7)).unwrap();
        let on = ledger.gpu_of(&slice(0)).cloned().unwrap();
        ledger.set_gpus([(gpu(2), nvenc(5))]);
        let names: Vec<_> = ledger.candidates().map(|c| (c.gpu.clone(), c.free)).collect();
        assert_eq!(names, [(on.clone(), nvenc(0)), (gpu(2), nvenc(5))]);
        assert_eq!(ledger.gpu_of(&slice(0)), Some(&on));
        ledger.set_gpus([(on.clone(), nvenc(10)), (gpu(2), nvenc(5))]);
        assert_eq!(
            ledger.candidates().next().map(|c| c.free),
            Some(nvenc(3)),
            "it is back"
        );
        ledger.free(&slice(0));
        ledger.set_gpus([(gpu(2), nvenc(5))]);
        assert_eq!(ledger.candidates().count(), 1);
    }

    #[test]
    fn one_short_resource_refuses_the_whole_demand() {
        let capacity = Resources {
            nvenc: EncoderUnits(50),
            mps: SmPercent(100),
            vram: VramBlocks(4),
        };
        let mut ledger = Ledger::new([(gpu(0), capacity)]);
        let demand = Resources {
            nvenc: EncoderUnits(3),
            mps: SmPercent(10),
            vram: VramBlocks(5),
        };
        assert!(matches!(
            ledger.place(slice(0), demand),
            Err(Refusal::NoRoom { .. })
        ));
        assert_eq!(ledger.candidates().next().map(|c| c.free), Some(capacity));
    }

    #[test]
    fn a_name_is_placed_once_and_an_empty_demand_never() {
        let mut ledger = two_gpus(10);
        ledger.place(slice(0), nvenc(1)).unwrap();
        assert_eq!(ledger.place(slice(0), nvenc(1)), Err(Refusal::Exists(slice(0))));
        assert_eq!(
            ledger.place(slice(1), Resources::NONE),
            Err(Refusal::Empty(slice(1)))
        );
    }

    #[derive(Debug, Clone)]
    enum Step {
        Place(u8, Resources),
        Free(u8),
    }

    fn amounts(most: u32) -> impl Strategy<Value = Resources> {
        (0..=most, 0..=most, 0..=most).prop_map(|(n, m, v)| Resources {
            nvenc: EncoderUnits(n),
            mps: SmPercent(m),
            vram: VramBlocks(v),
        })
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0..12u8, amounts(40)).prop_map(|(s, d)| Step::Place(s, d)),
            2 => (0..12u8).prop_map(Step::Free),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        /// The model is a plain list of who holds what; it decides alone whether something fits anywhere.
        #[test]
        fn the_ledger_grants_exactly_what_fits_on_one_gpu(
            capacities in proptest::collection::vec(amounts(60), 1..4),
            steps in steps(),
        ) {
            let mut ledger = Ledger::new(capacities.iter().enumerate().map(|(i, c)| (gpu(i), *c)));
            let mut held: Vec<(SliceId, GpuUuid, Resources)> = Vec::new();
            for step in steps {
                match step {
                    Step::Place(name, demand) => {
                        let name = slice(name);
                        let fits = (0..capacities.len()).any(|i| {
                            let taken = taken_on(&held, &gpu(i));
                            taken.checked_add(demand).is_some_and(|all| capacities[i].checked_sub(all).is_some())
                        });
                        let fresh = held.iter().all(|(held, ..)| *held != name);
                        let placed = ledger.place(name.clone(), demand);
                        prop_assert_eq!(placed.is_ok(), fits && fresh && demand != Resources::NONE);
                        if let Ok(on) = placed {
                            held.push((name, on, demand));
                        }
                    }
                    Step::Free(name) => {
                        let name = slice(name);
                        let known = held.iter().position(|(held, ..)| *held == name).map(|i| held.remove(i).2);
                        prop_assert_eq!(ledger.free(&name), known);
                    }
                }
                for (i, candidate) in ledger.candidates().enumerate() {
                    let taken = taken_on(&held, candidate.gpu);
                    prop_assert_eq!(capacities[i].checked_sub(taken), Some(candidate.free));
                }
                for (name, on, _) in &held {
                    prop_assert_eq!(ledger.gpu_of(name), Some(on));
                }
            }
        }
    }

    fn taken_on(held: &[(SliceId, GpuUuid, Resources)], gpu: &GpuUuid) -> Resources {
        held.iter()
            .filter(|(_, on, _)| on == gpu)
            .fold(Resources::NONE, |sum, (.., demand)| {
                sum.checked_add(*demand).unwrap()
            })
    }

    fn two_gpus(units: u32) -> Ledger {
        Ledger::new([(gpu(0), nvenc(units)), (gpu(1), nvenc(units))])
    }

    fn nvenc(units: u32) -> Resources {
        Resources {
            nvenc: EncoderUnits(units),
            ..Resources::NONE
        }
    }

    fn gpu(i: usize) -> GpuUuid {
        GpuUuid::new(format!("GPU-{i}")).unwrap()
    }

    fn slice(i: u8) -> SliceId {
        SliceId::new(format!("slice-{i}")).unwrap()
    }
}
