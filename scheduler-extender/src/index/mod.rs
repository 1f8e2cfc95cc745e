//! What is known of the cluster: GpuNodes, pods, budgets. One synchronous struct with one owner.
//!
//! ```text
//!   GpuNodes ──apply, delete──┐                 ┌── filter      which nodes have ONE GPU with room, and why not
//!   pods     ──apply, delete──┼──►   Index   ◄──┼── prioritize  in which order
//!   budgets  ──apply, delete──┘        │        ├── choose_gpu  onto which GPU; remembered until a GpuNode shows it
//!                                      │        └── preempt     who would have to go
//!                        node ─► rooms: free amounts of each GPU, side by side
//! ```
//!
//! A GPU's free amounts are its capacity, less what its GpuNode shows as allocated, less what was promised to pods that
//! it does not show yet. After each change the rooms of the one node that it is about are counted anew from all of that,
//! so nothing can drift.

mod amounts;
mod appetite;
mod bind;
mod filter;
mod pod;
mod preempt;
mod prioritize;
mod room;
mod usage;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};

use penstock_core::gpu_node::GpuNodeSpec;
use penstock_core::ids::{GpuUuid, NodeName, PodUid};

pub(crate) use amounts::{Amounts, Dimension};
use appetite::{Appetite, Taste, Totals};
pub(crate) use bind::BindRefusal;
pub(crate) use filter::{Obstacle, Refusal, Verdict};
pub(crate) use pod::{Budget, Pod, Requirement, Selector};
pub(crate) use preempt::Victims;
pub(crate) use room::Room;
use room::{Claim, Node};
pub(crate) use usage::Usage;

/// What an administrator may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    /// From this measured encoder load on, in percent, a GPU takes nothing new.
    pub(crate) encoder_load_limit: u8,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            encoder_load_limit: 90,
        }
    }
}

/// What is known of the cluster. See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Index {
    settings: Settings,
    nodes: Vec<Node>,
    /// Where in `nodes` a name is. A name keeps its place for good: nodes come back under their names.
    places: HashMap<NodeName, usize>,
    pods: HashMap<PodUid, Known>,
    budgets: HashMap<(String, String), Budget>,
    appetite: Appetite,
    taste: Taste,
    totals: Totals,
}

/// A pod, and where it was put.
#[derive(Debug, Clone)]
struct Known {
    pod: Pod,
    demand: Amounts,
    /// Where it was put by [`Index::choose_gpu`], until the API server says the same.
    promised: Option<(usize, GpuUuid)>,
    /// The node that it counts on.
    place: Option<usize>,
}

impl Index {
    /// An empty one.
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            ..Self::default()
        }
    }

    /// A GpuNode that is new or has changed.
    pub(crate) fn apply_gpu_node(&mut self, name: &NodeName, spec: &GpuNodeSpec) {
        let place = self.place(name);
        let before = self.totals;
        self.totals.less(&self.nodes[place]);
        self.nodes[place].describe(spec);
        self.totals.plus(&self.nodes[place]);
        self.settle(place);
        self.digest(self.totals != before);
    }

    /// A GpuNode that is gone: the node takes nothing new.
    pub(crate) fn delete_gpu_node(&mut self, name: &NodeName) {
        self.apply_gpu_node(name, &GpuNodeSpec::default());
    }

    /// A pod that is new or has changed. Pods that ask for nothing of ours need not be told.
    pub(crate) fn apply_pod(&mut self, pod: Pod) {
        let demand = Amounts::of_pod(pod.demand());
        let before = self.pods.remove(&pod.uid);
        let was = before.as_ref().and_then(|known| known.place);
        let promised = before.as_ref().and_then(|known| known.promised.clone());
        match before {
            Some(known) if known.demand == demand => {}
            known => {
                known
                    .into_iter()
                    .for_each(|known| self.appetite.remove(known.demand));
                self.appetite.add(demand);
            }
        }
        let bound = pod.node.as_ref().map(|node| self.place(node));
        let place = bound.or(promised.as_ref().map(|(place, _)| *place));
        // Once the API server names a node, that holds; which GPU of it, the promise still says if the pod does not.
        let promised = promised.filter(|(promised, _)| Some(*promised) == place);
        let uid = pod.uid.clone();
        self.pods.insert(
            uid.clone(),
            Known {
                pod,
                demand,
                promised,
                place,
            },
        );
        self.moved(&uid, was, place);
        self.digest(false);
    }

    /// A pod that is gone.
    pub(crate) fn delete_pod(&mut self, uid: &PodUid) {
        if let Some(known) = self.pods.remove(uid) {
            self.appetite.remove(known.demand);
            self.moved(uid, known.place, None);
            self.digest(false);
        }
    }

    /// A budget that is new or has changed.
    pub(crate) fn apply_budget(&mut self, budget: Budget) {
        self.budgets
            .insert((budget.namespace.clone(), budget.name.clone()), budget);
    }

    /// A budget that is gone.
    pub(crate) fn delete_budget(&mut self, namespace: &str, name: &str) {
        self.budgets.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// What is free on a node, GPU by GPU in the order of their names.
    pub(crate) fn rooms(&self, name: &NodeName) -> &[Room] {
        self.node(name).map_or(&[], |node| &node.rooms)
    }

    fn node(&self, name: &NodeName) -> Option<&Node> {
        self.places.get(name).map(|place| &self.nodes[*place])
    }

    fn place(&mut self, name: &NodeName) -> usize {
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        self.nodes.push(Node::new(name.clone()));
        self.places.insert(name.clone(), self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    /// A pod counts on another node than before, or otherwise on the same.
    fn moved(&mut self, uid: &PodUid, from: Option<usize>, to: Option<usize>) {
        if let Some(from) = from {
            self.nodes[from].pods.remove(uid);
        }
        if let Some(to) = to {
            self.nodes[to].pods.insert(uid.clone());
        }
        let touched: BTreeSet<_> = [from, to].into_iter().flatten().collect();
        touched.into_iter().for_each(|place| self.settle(place));
    }

    /// Counts anew what is free on a node.
    fn settle(&mut self, place: usize) {
        let claims: HashMap<&PodUid, Claim> = self.nodes[place]
            .pods
            .iter()
            .filter_map(|uid| Some((uid, self.pods.get(uid)?)))
            .filter(|(_, known)| !known.pod.terminal)
            .map(|(uid, known)| (uid, known.claim()))
            .collect();
        let (taken, rooms) = self.nodes[place].count(&claims, &self.settings);
        let waiting = |uid: &&PodUid| {
            self.pods
                .get(*uid)
                .is_some_and(|known| known.is_in_flight(&self.nodes[place]))
        };
        let in_flight = self.nodes[place].pods.iter().filter(waiting).cloned().collect();
        let node = &mut self.nodes[place];
        (node.taken, node.rooms, node.in_flight) = (taken, rooms, in_flight);
    }

    fn digest(&mut self, now: bool) {
        if now || self.appetite.has_changed() {
            self.taste = self.appetite.taste(&self.totals);
        }
    }
}

impl Known {
    /// The GPU that it was promised.
    fn gpu(&self) -> Option<&GpuUuid> {
        self.pod
            .gpu
            .as_ref()
            .or(self.promised.as_ref().map(|(_, gpu)| gpu))
    }

    fn claim(&self) -> Claim {
        Claim {
            demand: self.demand,
            gpu: self.gpu().cloned(),
        }
    }
}
