//! What of the whole cluster is packed, free, and of no use.

use super::Index;
use super::amounts::DIMENSIONS;

/// The cluster in a few numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usage {
    /// What pods hold or were promised of each dimension.
    pub(crate) packed: [u64; DIMENSIONS],
    /// What is left of each.
    pub(crate) free: [u64; DIMENSIONS],
    /// The share of all GPUs that is free but of no use to the pods that come, 0 to 1.
    pub(crate) fragmentation: f64,
}

impl Index {
    /// Sums up all GPUs: their number is what it takes.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for room in self.nodes.iter().flat_map(|node| &node.rooms) {
            let packed = room.capacity.less(room.free);
            for i in 0..DIMENSIONS {
                usage.packed[i] += u64::from(packed.0[i]);
                usage.free[i] += u64::from(room.free.0[i]);
            }
            usage.fragmentation += self.taste.waste(room.free);
        }
        // Both are measured in average GPUs; what is lost in rounding must not show as less than nothing.
        usage.fragmentation = (usage.fragmentation / self.totals.gpus.max(1) as f64).clamp(0.0, 1.0);
        usage
    }
}
