//! The stand-alone agent's local HTTP API (`penstock-plugin standalone`, over a Unix socket).
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/gpus` | `[GpuStatus]` |
//! | `GET /v1/slices` | `[SliceStatus]` |
//! | `POST /v1/slices` with [`SliceSpec`] | 201 and [`SliceStatus`]; 409 where there is no room or the name is taken |
//! | `GET /v1/slices/{id}` | [`SliceStatus`], or 404 |
//! | `DELETE /v1/slices/{id}` | 204 once its processes are gone, or 404 |
//! | `GET /v1/events` | server-sent events, each one the whole list of slices, first at once and then on every change |
//!
//! Errors are [`Problem`] as JSON.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{GpuUuid, SliceId};
use crate::packing::Resources;

/// An error's body in every HTTP API of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What was being done, what is wrong, and what to do about it.
    pub error: String,
}

/// A slice to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SliceSpec {
    /// Its name; chosen by the agent (`slice-1`, `slice-2`, …) where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<SliceId>,
    /// What it takes of one GPU.
    pub demand: Resources,
    /// The streamer's own arguments: what to stream and how. The agent adds where to listen, and the slice's
    /// environment.
    #[serde(default)]
    pub streamer_args: Vec<String>,
}

/// A slice as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceStatus {
    /// Its name.
    pub id: SliceId,
    /// The GPU that all of it is on.
    pub gpu: GpuUuid,
    /// What it holds of that GPU.
    pub demand: Resources,
    /// What its streamer process is doing.
    pub state: SliceState,
    /// Where that process listens (HTTP and WebSocket); absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// The process; absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// How often the process was started again.
    pub restarts: u32,
    /// How it ended last, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
    /// Why its GPU would not be given to a slice like this now; absent while it would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy: Option<String>,
}

/// The life of a slice's process: `starting → running → (backing-off → starting …) → stopping`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SliceState {
    /// The process was started and does not answer yet.
    Starting,
    /// The process answers.
    Running,
    /// The process ended by itself; the next start waits.
    BackingOff,
    /// The process was told to end.
    Stopping,
}

/// A GPU, or the software encoder of a node that has none, as the agent offers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuStatus {
    /// Its name.
    pub uuid: GpuUuid,
    /// What it is, for people.
    pub model: String,
    /// All that is offered of it.
    pub capacity: Resources,
    /// What no slice holds.
    pub free: Resources,
    /// Why a resource of it (`nvenc`, `mps`, `vram`) is not given to new slices now; absent while it is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unhealthy: BTreeMap<String, String>,
}
