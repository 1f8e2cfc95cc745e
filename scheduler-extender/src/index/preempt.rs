//! Which pods of ONE GPU would have to go so that another fits.
//!
//! The scheduler adds up what is free on all GPUs, so the pods it names need not help. Per GPU, all pods of lower
//! priority are taken off, then put back one by one as long as the new pod still fits, those worth most first. Who
//! can't be put back has to go.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use penstock_core::ids::{NodeName, PodUid};

use super::amounts::Amounts;
use super::room::Node;
use super::{Budget, Index, Known, Pod};

/// What the scheduler proposes for a node, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Victims {
    /// The node.
    pub(crate) node: NodeName,
    /// The pods that would have to go.
    pub(crate) pods: Vec<PodUid>,
    /// How many of them a PodDisruptionBudget says should not.
    pub(crate) budget_violations: usize,
}

impl Index {
    /// What would have to go on each of the proposed nodes. Nodes where nothing helps are left out.
    ///
    /// Of what the scheduler proposes, pods that hold nothing of ours stay in: it needs them for other reasons.
    pub(crate) fn preempt(&self, pod: &Pod, proposed: &[Victims]) -> Vec<Victims> {
        let demand = Amounts::of_pod(pod.demand());
        if demand == Amounts::NONE {
            return proposed.to_vec();
        }
        proposed
            .iter()
            .filter_map(|proposal| self.victims(pod, demand, proposal))
            .collect()
    }

    fn victims(&self, pod: &Pod, demand: Amounts, proposal: &Victims) -> Option<Victims> {
        let node = self.node(&proposal.node).filter(|node| !node.unregistered)?;
        let ours = |uid: &&PodUid| {
            self.pods
                .get(*uid)
                .is_some_and(|known| known.demand != Amounts::NONE)
        };
        let mut pods: Vec<PodUid> = proposal.pods.iter().filter(|uid| !ours(uid)).cloned().collect();
        let sets = (0..node.rooms.len()).filter_map(|gpu| self.least_loss(pod, demand, node, gpu));
        let best = sets.min_by(|a, b| self.loss(a).cmp(&self.loss(b)))?;
        pods.extend(best.iter().map(|known| known.pod.uid.clone()));
        let foreign = pods.len() - best.len();
        let violations = self.violations(&best);
        // The scheduler has counted the violations of the pods that are not ours; those can't be told from the others.
        let budget_violations = violations + foreign.min(proposal.budget_violations);
        (!pods.is_empty()).then(|| Victims {
            node: proposal.node.clone(),
            pods,
            budget_violations,
        })
    }

    /// The pods that would have to go from one GPU; `None` where that does not help.
    fn least_loss<'a>(
        &'a self,
        pod: &Pod,
        demand: Amounts,
        node: &Node,
        gpu: usize,
    ) -> Option<Vec<&'a Known>> {
        let room = &node.rooms[gpu];
        if room.overloaded || !room.is_healthy_for(demand) {
            return None;
        }
        let mut going = self.lower(pod, node, gpu);
        let all = going.iter().fold(Amounts::NONE, |sum, (_, held)| sum.plus(*held));
        // Capacity less what stays: what is over the capacity now must not count as free.
        let staying = node.taken[gpu].less(all);
        let mut free = room.capacity.less(staying);
        let mut streams = going.iter().filter(|(_, held)| held.encoder() > 0).count();
        if !free.holds(demand) || !self.sessions_allow(demand, node, gpu, streams) {
            return None;
        }
        going.sort_by_key(|(known, _)| Reverse(self.worth(known)));
        let mut victims = Vec::new();
        for (known, held) in going {
            let fewer = streams - usize::from(held.encoder() > 0);
            // One that is ending anyway needs no help, and can't be kept.
            let stays = !known.pod.deleting
                && free.holds(held)
                && free.less(held).holds(demand)
                && self.sessions_allow(demand, node, gpu, fewer);
            if stays {
                free = free.less(held);
                streams = fewer;
            } else if !known.pod.deleting {
                victims.push(known);
            }
        }
        Some(victims)
    }

    /// The pods of lower priority on a GPU, each with what it holds there.
    fn lower<'a>(&'a self, pod: &Pod, node: &Node, gpu: usize) -> Vec<(&'a Known, Amounts)> {
        let here = node.pods.iter().filter_map(|uid| self.pods.get(uid));
        let lower = here.filter(|known| known.pod.priority < pod.priority && !known.pod.terminal);
        let held = lower.filter_map(|known| Some((known, known.held_on(node)?)));
        held.filter(|(_, (on, _))| *on == gpu)
            .map(|(known, (_, held))| (known, held))
            .collect()
    }

    /// Whether the driver allows the session of a pod once `fewer` have gone.
    fn sessions_allow(&self, demand: Amounts, node: &Node, gpu: usize, fewer: usize) -> bool {
        let capped = demand.encoder() > 0 && node.gpus[gpu].encoder_session_limit.is_some();
        !capped
            || node
                .capped_sessions()
                .is_none_or(|(open, limit)| (open as usize).saturating_sub(fewer) < limit as usize)
    }

    /// What keeps a pod from going, most important first: players, a budget, its priority.
    fn worth<'a>(&self, known: &'a Known) -> (i32, bool, i32, &'a PodUid) {
        let covered = self
            .budgets
            .values()
            .any(|budget| budget.covers(&known.pod) && budget.disruptions_allowed <= 0);
        (
            known.pod.deletion_cost,
            covered,
            known.pod.priority,
            &known.pod.uid,
        )
    }

    /// What is lost with a set of pods, most important first. The names make equals comparable.
    fn loss<'a>(&self, victims: &[&'a Known]) -> (usize, i64, i32, usize, Vec<&'a PodUid>) {
        let players = victims
            .iter()
            .map(|known| i64::from(known.pod.deletion_cost))
            .sum();
        let highest = victims
            .iter()
            .map(|known| known.pod.priority)
            .max()
            .unwrap_or(i32::MIN);
        let mut names: Vec<_> = victims.iter().map(|known| &known.pod.uid).collect();
        names.sort();
        (self.violations(victims), players, highest, victims.len(), names)
    }

    /// How many of `victims` go beyond what budgets allow.
    fn violations(&self, victims: &[&Known]) -> usize {
        let mut left: HashMap<*const Budget, i32> = HashMap::new();
        let mut violating = HashSet::new();
        for known in victims {
            for budget in self.budgets.values().filter(|budget| budget.covers(&known.pod)) {
                let left = left
                    .entry(std::ptr::from_ref(budget))
                    .or_insert(budget.disruptions_allowed);
                *left -= 1;
                if *left < 0 {
                    violating.insert(&known.pod.uid);
                }
            }
        }
        violating.len()
    }
}

impl Known {
    /// The GPU that it is on, and what it holds there.
    fn held_on(&self, node: &Node) -> Option<(usize, Amounts)> {
        let shown = node
            .shows(&self.pod.uid)
            .map(|(gpu, amounts)| (gpu, amounts.most(self.demand)));
        shown.or_else(|| Some((node.find(self.gpu()?)?, self.demand)))
    }
}
