//! Which nodes have ONE GPU with room for all of a pod, and why the others have none.

use std::fmt;

use penstock_core::ids::{GpuUuid, NodeName};

use super::amounts::{Amounts, DIMENSIONS, Dimension};
use super::room::{Node, Room};
use super::{Index, Pod};

/// What becomes of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// One of its GPUs has room.
    Fits,
    /// None has; it might, if pods went.
    Refused(Refusal),
    /// None has, and no choice of the scheduler's own preemption can change that: nothing here is large enough, or
    /// what is free would do if it were on one GPU.
    Unresolvable(Refusal),
}

/// Why a node has no room, in words of bounded length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Nothing is known of its GPUs.
    NoGpus,
    /// The kubelet does not know the plugin: it is being replaced, or does not come up.
    Unregistered,
    /// The driver allows no further encoder session on this node.
    Sessions { open: u32, limit: u32 },
    /// What is in the way on the GPU that comes nearest, and how many others have no room either.
    Gpu {
        gpu: GpuUuid,
        obstacle: Obstacle,
        others: usize,
    },
}

/// Why a GPU can't take a demand. Those that are nearer to taking it come first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// There is room, but its encoder is busy.
    Load { limit: u8 },
    /// Too little of something is free.
    Short {
        dimension: Dimension,
        free: u32,
        capacity: u32,
        asked: u32,
    },
    /// Too little of something is there at all.
    TooSmall {
        dimension: Dimension,
        capacity: u32,
        asked: u32,
    },
    /// It is not to be used now.
    Unhealthy { dimension: Dimension, reason: String },
}

impl Index {
    /// What becomes of each of `names`, in that order. A pod that asks for none of our resources fits everywhere.
    pub(crate) fn filter(&self, pod: &Pod, names: &[NodeName]) -> Vec<Verdict> {
        let demand = Amounts::of_pod(pod.demand());
        names
            .iter()
            .map(|name| self.verdict(demand, self.node(name)))
            .collect()
    }

    fn verdict(&self, demand: Amounts, node: Option<&Node>) -> Verdict {
        if demand == Amounts::NONE {
            return Verdict::Fits;
        }
        let Some(node) = node.filter(|node| !node.rooms.is_empty()) else {
            return Verdict::Unresolvable(Refusal::NoGpus);
        };
        if node.unregistered {
            return Verdict::Unresolvable(Refusal::Unregistered);
        }
        if node.takes(demand).next().is_some() {
            return Verdict::Fits;
        }
        let refusal = self.refusal(demand, node);
        if could_be_preempted(demand, node) {
            Verdict::Refused(refusal)
        } else {
            Verdict::Unresolvable(refusal)
        }
    }

    pub(super) fn refusal(&self, demand: Amounts, node: &Node) -> Refusal {
        if node.unregistered {
            return Refusal::Unregistered;
        }
        if let Some((open, limit)) = node.capped_sessions()
            && node.rooms.iter().any(|room| room.takes(demand))
        {
            return Refusal::Sessions { open, limit };
        }
        let limit = self.settings.encoder_load_limit;
        let obstacles = node
            .rooms
            .iter()
            .enumerate()
            .map(|(i, room)| (room.obstacle(demand, limit), i));
        let Some((nearest, i)) = obstacles.min_by_key(|(near, i)| (near.distance(), *i)) else {
            return Refusal::NoGpus;
        };
        Refusal::Gpu {
            gpu: node.gpus[i].uuid.clone(),
            obstacle: nearest.with_reason(node, i),
            others: node.rooms.len() - 1,
        }
    }
}

impl Node {
    /// The GPUs that could take `demand` now.
    pub(super) fn takes(&self, demand: Amounts) -> impl Iterator<Item = usize> {
        let full = demand.encoder() > 0 && self.capped_sessions().is_some_and(|(open, limit)| open >= limit);
        let fits = move |(i, room): (usize, &Room)| {
            let capped = full && self.gpus[i].encoder_session_limit.is_some();
            (room.takes(demand) && !capped).then_some(i)
        };
        let rooms = self.rooms.iter().enumerate().filter(|_| !self.unregistered);
        rooms.filter_map(fits)
    }
}

/// Whether the scheduler's own preemption makes sense: it adds up what is free on all GPUs, so where that sum does, it
/// would end nobody; and where no GPU is large enough, ending pods is of no use.
fn could_be_preempted(demand: Amounts, node: &Node) -> bool {
    let healthy = || node.rooms.iter().filter(|room| room.is_healthy_for(demand));
    let sum = healthy().fold(Amounts::NONE, |sum, room| sum.plus(room.free));
    healthy().any(|room| room.capacity.holds(demand)) && !sum.holds(demand)
}

impl Room {
    /// What keeps `demand` from this GPU, which does not take it.
    fn obstacle(&self, demand: Amounts, limit: u8) -> Obstacle {
        let of = |i: usize| (Dimension::ALL[i], demand.0[i], self.free.0[i], self.capacity.0[i]);
        let mut all = (0..DIMENSIONS).map(of);
        if let Some(i) = (0..DIMENSIONS).find(|&i| demand.0[i] > 0 && !self.healthy[i]) {
            let (dimension, reason) = (Dimension::ALL[i], String::new());
            return Obstacle::Unhealthy { dimension, reason };
        }
        if let Some((dimension, asked, _, capacity)) =
            all.clone().find(|(_, asked, _, capacity)| asked > capacity)
        {
            return Obstacle::TooSmall {
                dimension,
                capacity,
                asked,
            };
        }
        match all.find(|(_, asked, free, _)| asked > free) {
            Some((dimension, asked, free, capacity)) => Obstacle::Short {
                dimension,
                free,
                capacity,
                asked,
            },
            None => Obstacle::Load { limit },
        }
    }
}

impl Obstacle {
    /// Which kind, and within a kind how much is missing, in thousandths of the capacity.
    fn distance(&self) -> (u8, u64) {
        let share = |part: u32, all: u32| u64::from(part) * 1000 / u64::from(all.max(1));
        match self {
            Self::Load { .. } => (0, 0),
            Self::Short {
                free,
                capacity,
                asked,
                ..
            } => (1, share(asked - free, *capacity)),
            Self::TooSmall { capacity, asked, .. } => (2, share(asked - capacity, *capacity)),
            Self::Unhealthy { .. } => (3, 0),
        }
    }

    /// Reasons of ill health are looked up for the one GPU that is named.
    fn with_reason(self, node: &Node, gpu: usize) -> Self {
        let Self::Unhealthy { dimension, .. } = self else {
            return self;
        };
        let reason = dimension.problem(&node.gpus[gpu].health).unwrap_or_default();
        let reason = reason.chars().take(LONGEST_REASON).collect();
        Self::Unhealthy { dimension, reason }
    }
}

/// A plugin's reason is cut after this many characters.
const LONGEST_REASON: usize = 120;

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGpus => f.write_str("no GPU is known here: is penstock-plugin running on it?"),
            Self::Unregistered => f.write_str(
                "its kubelet does not know penstock-plugin now and would refuse the pod: it is being replaced, or its log says \
                 why",
            ),
            Self::Sessions { open, limit } => {
                write!(
                    f,
                    "{open} encoder sessions are open, and the driver allows {limit} on this node"
                )
            }
            Self::Gpu {
                gpu,
                obstacle,
                others,
            } => {
                write!(f, "{gpu}: {obstacle}")?;
                match others {
                    0 => Ok(()),
                    1 => f.write_str("; the other GPU has no room either"),
                    _ => write!(f, "; {others} other GPUs have no room either"),
                }
            }
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load { limit } => write!(f, "its encoder is measured at {limit} % load or more"),
            Self::Short {
                dimension,
                free,
                capacity,
                asked,
            } => {
                let words = dimension.free_words(*free, *capacity);
                write!(f, "{words} free, {} asked", dimension.count(*asked))
            }
            Self::TooSmall {
                dimension,
                capacity,
                asked,
            } => {
                write!(
                    f,
                    "{} in all, {} asked",
                    dimension.words(*capacity),
                    dimension.count(*asked)
                )
            }
            Self::Unhealthy { reason, .. } => write!(f, "not to be used now: {reason}"),
        }
    }
}
