//! The stand-ins: a streamer, an agent, a player; and the real program between them.

#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]

mod door;
mod kube;
mod player;
mod streamer;

pub(crate) use door::{Answer, KUBECONFIG, Matchmaker, ask_over, run};
pub(crate) use kube::{cluster, costs, run_pod, until};
pub(crate) use player::Player;
pub(crate) use streamer::StandIn;

use std::time::Duration;

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
