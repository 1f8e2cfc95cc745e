//! In which order nodes should take a pod: least waste first, then the fullest.

use penstock_core::ids::NodeName;

use super::amounts::{Amounts, DIMENSIONS};
use super::appetite::Taste;
use super::room::{Node, Room};
use super::{Index, Pod};

/// The highest score that kube-scheduler takes from an extender (`MaxExtenderPriority`).
const HIGHEST_SCORE: u8 = 10;

/// How well a GPU takes a pod: less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fit {
    /// What more would be of no use, in millionths of an average GPU.
    pub(crate) cost: i64,
    /// What would be left over, in parts per million of each capacity, summed up.
    pub(crate) left_over: u64,
}

impl Index {
    /// A score for each of `names`, in that order: the best gets the highest, each further one less by 1, those that
    /// have no room now 0. Equals go by name, so the same cluster always gets the same answer.
    pub(crate) fn prioritize(&self, pod: &Pod, names: &[NodeName]) -> Vec<u8> {
        let demand = Amounts::of_pod(pod.demand());
        let mut scores = vec![0; names.len()];
        if demand == Amounts::NONE {
            return scores;
        }
        let fit = |(i, name)| Some((self.best_on(pod, demand, self.node(name)?)?.0, name, i));
        let mut ranked: Vec<_> = names.iter().enumerate().filter_map(fit).collect();
        let kept = ranked.len().min(usize::from(HIGHEST_SCORE));
        if kept < ranked.len() {
            ranked.select_nth_unstable(kept);
        }
        ranked[..kept].sort_unstable();
        for (score, (.., i)) in (1..=HIGHEST_SCORE).rev().zip(&ranked[..kept]) {
            scores[*i] = score;
        }
        scores
    }

    /// How well a node takes a pod, and on which of its GPUs; `None` where it can't take it now.
    pub(crate) fn fit(&self, pod: &Pod, name: &NodeName) -> Option<(Fit, usize)> {
        self.best_on(pod, Amounts::of_pod(pod.demand()), self.node(name)?)
    }

    /// The GPU of a node that is best for a pod which asks for `demand`.
    pub(super) fn best_on(&self, pod: &Pod, demand: Amounts, node: &Node) -> Option<(Fit, usize)> {
        let only = self.must_go_to(pod, node).ok()?;
        node.takes(demand)
            .filter(|gpu| only.is_none_or(|only| only == *gpu))
            .map(|gpu| (Fit::of(&self.taste, &node.rooms[gpu], demand), gpu))
            .min()
    }
}

impl Fit {
    pub(super) fn of(taste: &Taste, room: &Room, demand: Amounts) -> Self {
        Self {
            cost: taste.cost(room.free, demand),
            left_over: left_over(room.free.less(demand), room.capacity),
        }
    }
}

fn left_over(free: Amounts, capacity: Amounts) -> u64 {
    let share = |i: usize| u64::from(free.0[i]) * 1_000_000 / u64::from(capacity.0[i].max(1));
    (0..DIMENSIONS).map(share).sum()
}
