//! Which GPU each streamer is on, as far as anything says so: the stand-alone agent, or pods and GpuNodes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use penstock_core::gpu_node::GpuNodeSpec;
use penstock_core::ids::{NodeName, PodUid};
use penstock_core::wire::agent::{GpuStatus, SliceStatus};
use tokio::sync::watch;

/// What a source said, and whether that is still so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard<T> {
    /// It is not asked.
    NotAsked,
    /// It has said nothing yet.
    NotYet,
    /// It says this.
    Now(T),
    /// It said this, and can't be heard any more.
    Once(T),
}

impl<T> Heard<T> {
    /// What it said last.
    pub fn last(&self) -> Option<&T> {
        match self {
            Self::NotAsked | Self::NotYet => None,
            Self::Now(said) | Self::Once(said) => Some(said),
        }
    }

    /// Whether it is asked and does not answer.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::NotYet | Self::Once(_))
    }

    /// Notes that it can't be heard any more. What it said last is kept.
    pub fn away(&mut self) {
        *self = match std::mem::replace(self, Self::NotYet) {
            Self::Now(said) => Self::Once(said),
            other => other,
        };
    }
}

/// All sources, each written by whoever follows it. A clone is another handle to the same.
#[derive(Debug, Clone)]
pub struct Places {
    /// The agent's slices.
    pub slices: watch::Sender<Heard<Vec<SliceStatus>>>,
    /// The agent's GPUs.
    pub gpus: watch::Sender<Vec<GpuStatus>>,
    /// Where each pod's streamer listens.
    pub pods: watch::Sender<Heard<BTreeMap<PodUid, SocketAddr>>>,
    /// What each node says about its GPUs.
    pub nodes: watch::Sender<Heard<BTreeMap<NodeName, GpuNodeSpec>>>,
}

impl Places {
    /// Nothing yet, of those that are asked.
    pub fn new(agent: bool, cluster: bool) -> Self {
        fn begin<T>(asked: bool) -> watch::Sender<Heard<T>> {
            watch::Sender::new(if asked { Heard::NotYet } else { Heard::NotAsked })
        }
        Self {
            slices: begin(agent),
            gpus: watch::Sender::new(Vec::new()),
            pods: begin(cluster),
            nodes: begin(cluster),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_once_is_kept_and_known_to_be_old() {
        let mut heard = Heard::Now(7);
        for _ in 0..2 {
            heard.away();
            assert_eq!((heard.last(), heard.is_silent()), (Some(&7), true));
        }
        let mut nothing = Heard::<u8>::NotYet;
        nothing.away();
        assert_eq!(nothing, Heard::NotYet);
        assert!(!Heard::<u8>::NotAsked.is_silent());
    }
}
