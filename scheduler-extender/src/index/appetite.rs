//! What pods ask for, how often, and so what a hole is worth that a placement leaves behind.
//!
//! A GPU's free amounts are a vector. Part of it is of no use to the pods that come:
//!
//! ```text
//!   encoder  ████████████░░░░░░   free: a pod that asks for more than this can't come here (a hole)
//!   SMs      ████████████████░░   the encoder's rest has too few SMs beside it (stranded)
//! ```
//!
//! The hole is that of "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent"
//! (USENIX ATC 2023): the free amounts, weighed with the popularity of those demands that don't fit in. What is
//! stranded is what would be left of one resource if the GPU were filled up with the average demand.
//!
//! Popularity is learned from all pods that the index knows, so a restart learns the same again. Sums are of 64-bit
//! floating point numbers in a fixed order: every machine comes to the same order of GPUs.

use std::collections::BTreeMap;

use super::amounts::{Amounts, DIMENSIONS};

/// How often each demand is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Appetite {
    counts: BTreeMap<Amounts, u32>,
    /// Changes since the last [`Self::taste`].
    stale: u32,
    pods: u32,
}

/// A digest of [`Appetite`] that questions are answered with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taste {
    /// The most popular demands, with their shares of all pods.
    classes: Vec<(Amounts, f64)>,
    /// The average demand.
    mean: [f64; DIMENSIONS],
    /// What one of each dimension is worth: its scarcity, over the size of an average GPU.
    price: [f64; DIMENSIONS],
}

/// Capacities of a cluster, summed up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// How many GPUs.
    pub(crate) gpus: u64,
    /// What they have.
    pub(crate) capacity: [u64; DIMENSIONS],
}

impl Appetite {
    /// A pod that asks for `demand` has come.
    pub(crate) fn add(&mut self, demand: Amounts) {
        *self.counts.entry(demand).or_default() += 1;
        self.pods += 1;
        self.stale += 1;
    }

    /// It is gone.
    pub(crate) fn remove(&mut self, demand: Amounts) {
        if let Some(count) = self.counts.get_mut(&demand) {
            *count -= 1;
            self.pods -= 1;
            self.stale += 1;
            if *count == 0 {
                self.counts.remove(&demand);
            }
        }
    }

    /// Whether so much has changed that the digest should be made anew.
    pub(crate) fn has_changed(&self) -> bool {
        self.stale > self.pods / CHANGES_PER_DIGEST
    }

    /// The digest, for a cluster of that size.
    pub(crate) fn taste(&mut self, totals: &Totals) -> Taste {
        self.stale = 0;
        let mut classes: Vec<_> = self
            .counts
            .iter()
            .map(|(demand, count)| (*demand, *count))
            .collect();
        classes.sort_by_key(|&(demand, count)| (std::cmp::Reverse(count), demand));
        classes.truncate(MOST_CLASSES);
        let kept = f64::from(classes.iter().map(|(_, count)| count).sum::<u32>());
        let asked = self.asked();
        Taste {
            classes: classes
                .into_iter()
                .map(|(demand, count)| (demand, f64::from(count) / kept))
                .collect(),
            mean: asked.map(|amount| amount / f64::from(self.pods.max(1))),
            price: prices(asked, totals),
        }
    }

    fn asked(&self) -> [f64; DIMENSIONS] {
        let sum = |i: usize| {
            self.counts
                .iter()
                .map(|(demand, count)| f64::from(demand.0[i]) * f64::from(*count))
                .sum()
        };
        std::array::from_fn(sum)
    }
}

/// Scarcity is how much is asked of how much there is. The prices of an average GPU's parts sum up to 1.
fn prices(asked: [f64; DIMENSIONS], totals: &Totals) -> [f64; DIMENSIONS] {
    let capacity = totals.capacity.map(|amount| amount as f64);
    let scarcity: [f64; DIMENSIONS] = std::array::from_fn(|i| {
        if capacity[i] > 0.0 {
            asked[i] / capacity[i]
        } else {
            0.0
        }
    });
    let all: f64 = scarcity.iter().sum();
    std::array::from_fn(|i| {
        if scarcity[i] > 0.0 {
            scarcity[i] / all * totals.gpus as f64 / capacity[i]
        } else {
            0.0
        }
    })
}

impl Taste {
    /// What of `free` is of no use, in average GPUs.
    pub(crate) fn waste(&self, free: Amounts) -> f64 {
        let worth: [f64; DIMENSIONS] = std::array::from_fn(|i| f64::from(free.0[i]) * self.price[i]);
        let unfit: f64 = self
            .classes
            .iter()
            .filter(|(demand, _)| !free.holds(*demand))
            .map(|(_, share)| share)
            .sum();
        worth.iter().sum::<f64>() * unfit + self.stranded(free)
    }

    /// How much more of it is of no use once `demand` is taken from `free`, in millionths of an average GPU. Less is
    /// better. Whole millionths: what differs by less is left to the next criterion.
    pub(crate) fn cost(&self, free: Amounts, demand: Amounts) -> i64 {
        ((self.waste(free.less(demand)) - self.waste(free)) * 1e6).round() as i64
    }

    fn stranded(&self, free: Amounts) -> f64 {
        let asked = (0..DIMENSIONS).filter(|&i| self.mean[i] > 0.0);
        let fills = |i: usize| f64::from(free.0[i]) / self.mean[i];
        let filled = asked.clone().map(fills).fold(f64::INFINITY, f64::min);
        asked
            .map(|i| (f64::from(free.0[i]) - filled * self.mean[i]) * self.price[i])
            .sum()
    }
}

/// A digest names this many demands. A question looks at each of them for each GPU.
const MOST_CLASSES: usize = 32;

/// The digest is made anew when one pod in this many has come or gone.
const CHANGES_PER_DIGEST: u32 = 32;
