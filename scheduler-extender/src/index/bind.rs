//! Onto which GPU of a node a pod goes.
//!
//! The kubelet names no pod when it asks for devices, so the plugin has to guess which one a call is for. It can't guess
//! wrong if the pods that a call could be meant for all go to one GPU. So a pod follows those on the same node that were
//! bound before it, that no GpuNode shows yet, and that a call could confuse it with; where that GPU has no room, it
//! waits.

use std::fmt;

use penstock_core::ids::{GpuUuid, NodeName, PodUid};

use super::amounts::Amounts;
use super::filter::Refusal;
use super::room::Node;
use super::{Index, Known, Pod, Verdict};

/// Why a pod can't be bound now. The scheduler tries again after any of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BindRefusal {
    /// The watch has not brought it yet, or it is gone.
    #[error("pod {0} is not known: it was deleted, or the API server has not told of it yet")]
    UnknownPod(PodUid),
    /// It has a place.
    #[error("pod {pod} was put on node {node} already")]
    Placed {
        /// As people name it.
        pod: String,
        /// Where.
        node: NodeName,
    },
    /// No GPU has room.
    #[error("node {node} has no room: {reason}")]
    NoRoom {
        /// The node.
        node: NodeName,
        /// In words.
        reason: String,
    },
    /// Another pod has to be through first.
    #[error(
        "node {node} is still taking in {other}, which its kubelet could confuse with this pod: try again"
    )]
    Wait {
        /// The node.
        node: NodeName,
        /// That other pod.
        other: String,
    },
}

impl Index {
    /// Chooses a GPU of `node` for a pod, and remembers the choice until a GpuNode shows it.
    ///
    /// # Errors
    /// [`BindRefusal`]; nothing is then remembered.
    pub(crate) fn choose_gpu(&mut self, uid: &PodUid, node: &NodeName) -> Result<GpuUuid, BindRefusal> {
        let known = self
            .pods
            .get(uid)
            .ok_or_else(|| BindRefusal::UnknownPod(uid.clone()))?;
        if let Some(name) = known.place.and_then(|place| self.nodes[place].name.clone()) {
            return Err(BindRefusal::Placed {
                pod: known.pod.full_name(),
                node: name,
            });
        }
        let no_room = |reason: String| BindRefusal::NoRoom {
            node: node.clone(),
            reason,
        };
        let Some(place) = self.places.get(node).copied() else {
            return Err(no_room(Refusal::NoGpus.to_string()));
        };
        if let Err(other) = self.must_go_to(&known.pod, &self.nodes[place]) {
            return Err(BindRefusal::Wait {
                node: node.clone(),
                other,
            });
        }
        let Some((_, gpu)) = self.best_on(&known.pod, known.demand, &self.nodes[place]) else {
            return Err(self.why_not(known, &self.nodes[place], node));
        };
        let gpu = self.nodes[place].gpus[gpu].uuid.clone();
        self.promise(uid, Some((place, gpu.clone())));
        Ok(gpu)
    }

    /// The pod was not bound after all: what was promised to it is free again.
    pub(crate) fn forget(&mut self, uid: &PodUid) {
        self.promise(uid, None);
    }

    fn promise(&mut self, uid: &PodUid, to: Option<(usize, GpuUuid)>) {
        let Some(known) = self.pods.get_mut(uid).filter(|known| known.pod.node.is_none()) else {
            return;
        };
        let was = known.place;
        known.place = to.as_ref().map(|(place, _)| *place);
        known.promised = to;
        let place = known.place;
        self.moved(uid, was, place);
    }

    /// A node that has room for a pod as such can lack it on the one GPU that the pod has to go to.
    fn why_not(&self, known: &Known, node: &Node, name: &NodeName) -> BindRefusal {
        match self.filter(&known.pod, std::slice::from_ref(name)).pop() {
            Some(Verdict::Refused(reason) | Verdict::Unresolvable(reason)) => BindRefusal::NoRoom {
                node: name.clone(),
                reason: reason.to_string(),
            },
            _ => match self.in_the_way(&known.pod, node).next() {
                Some((other, _)) => BindRefusal::Wait {
                    node: name.clone(),
                    other: other.full_name(),
                },
                // One that asks for nothing passes the filter, and still needs a GPU that takes it.
                None => BindRefusal::NoRoom {
                    node: name.clone(),
                    reason: self.refusal(known.demand, node).to_string(),
                },
            },
        }
    }

    /// The one GPU that a pod has to go to, if there is such; otherwise any will do.
    ///
    /// # Errors
    /// The name of another pod, where there is no such GPU: the pod has to wait for that one.
    pub(super) fn must_go_to(&self, pod: &Pod, node: &Node) -> Result<Option<usize>, String> {
        let mut only = None;
        for (other, gpu) in self.in_the_way(pod, node) {
            if gpu.is_none() || only.is_some_and(|only| Some(only) != gpu) {
                return Err(other.full_name());
            }
            only = gpu;
        }
        Ok(only)
    }

    /// The pods in flight that a pod could be confused with, each with its GPU where that is known.
    fn in_the_way<'a>(
        &'a self,
        pod: &'a Pod,
        node: &'a Node,
    ) -> impl Iterator<Item = (&'a Pod, Option<usize>)> {
        let in_flight = node.in_flight.iter().filter_map(|uid| self.pods.get(uid));
        in_flight
            .filter(|known| known.pod.uid != pod.uid && known.pod.confusable_with(pod))
            .map(|known| (&known.pod, known.gpu_on(node)))
    }
}

impl Known {
    /// The GPU that it is shown on, or was promised.
    fn gpu_on(&self, node: &Node) -> Option<usize> {
        let shown = node.shows(&self.pod.uid).map(|(gpu, _)| gpu);
        shown.or_else(|| node.find(self.gpu()?))
    }

    /// Whether its GpuNode does not show all of it yet. Of a GPU that the GpuNode has no more it never will.
    pub(super) fn is_in_flight(&self, node: &Node) -> bool {
        let shown = node.shows(&self.pod.uid).map(|(_, amounts)| amounts);
        let is_gone = |gpu: &GpuUuid| shown.is_none() && node.find(gpu).is_none();
        let shown = shown.unwrap_or(Amounts::NONE);
        !self.pod.terminal && !shown.holds_what_is_asked(self.demand) && !self.gpu().is_some_and(is_gone)
    }
}

impl Pod {
    /// As people name it.
    pub(crate) fn full_name(&self) -> String {
        Name(self).to_string()
    }
}

struct Name<'a>(&'a Pod);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.namespace, self.0.name)
    }
}
