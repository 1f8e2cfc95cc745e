//! What one container is told when devices are allocated to it.
//!
//! ```text
//!   Grant: GPU, all that the container holds of it, ──► answer ──► Answer: environment, mounts, CDI names
//!          whether its pod encodes, how GPUs get in
//! ```
//!
//! The kubelet asks once per resource, in no order, and merges the answers of one container: where two set a
//! variable to different values, one wins silently. So an answer depends on nothing but its [`Grant`]: calls for
//! one container that are given the same grant give the same answer. Where the container's demand is not known as
//! a whole, a grant of only what was asked for gives part of that answer, and parts never contradict each other.
//!
//! | held | what it gives |
//! |---|---|
//! | anything | the GPU, `PENSTOCK_GPU`, `PENSTOCK_SLICE`, `NVIDIA_DRIVER_CAPABILITIES` |
//! | nvenc, in any container of the pod | the `video` capability in every container of the pod |
//! | nvenc | `PENSTOCK_NVENC_UNITS`; `PENSTOCK_NVENC_STREAM_UNITS` where it is known what one encoder engine has |
//! | mps | `CUDA_MPS_ACTIVE_THREAD_PERCENTAGE`, `CUDA_MPS_PIPE_DIRECTORY`, the pipes and /dev/shm |
//! | vram | `PENSTOCK_VRAM_BYTES` |
//! | vram and mps | `CUDA_MPS_PINNED_DEVICE_MEM_LIMIT` |
//!
//! A process without a container ([`environment`]) gets the same, but that it sees the GPU by `CUDA_VISIBLE_DEVICES`
//! and the daemon's pipes where they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use penstock_core::ids::{GpuUuid, SliceId};
use penstock_core::names::{ENV_GPU, ENV_NVENC_STREAM_UNITS, ENV_NVENC_UNITS, ENV_SLICE, ENV_VRAM_BYTES};
use penstock_core::packing::Resources;
use penstock_core::units::EncoderUnits;

use crate::cdi::Injection;
use crate::mps::Layout;

/// What a container holds, and how it gets it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grant<'a> {
    /// The GPU or MIG instance, or `CPU-…`.
    pub(crate) gpu: &'a GpuUuid,
    /// All that the container asks for; where that is not known, what this call is for.
    pub(crate) demand: Resources,
    /// What one encoder engine of the GPU has, where that is known.
    pub(crate) engine: Option<EncoderUnits>,
    /// Whether any container of the pod asks for encoder units. The same for all containers of a pod, so that all
    /// of them find the same libraries.
    pub(crate) pod_encodes: bool,
    /// The slice's name, where it is known.
    pub(crate) slice: Option<&'a SliceId>,
    /// How the GPU gets into the container.
    pub(crate) injection: &'a Injection,
    /// Where the MPS daemons' pipes are.
    pub(crate) mps: &'a Layout,
}

/// What the container is told. The kubelet's `ContainerAllocateResponse` in our own words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Environment variables.
    pub(crate) env: BTreeMap<&'static str, String>,
    /// Directories of the host.
    pub(crate) mounts: Vec<Mount>,
    /// Qualified names of CDI devices.
    pub(crate) cdi_devices: Vec<String>,
}

/// A directory of the host in the container. Always writable: MPS clients and server make files in /dev/shm, and
/// NVIDIA's own plugin mounts the pipes so, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// On the host.
    pub(crate) host_path: PathBuf,
    /// In the container.
    pub(crate) container_path: PathBuf,
}

/// The answer to a grant.
pub(crate) fn answer(grant: &Grant<'_>) -> Answer {
    let mut answer = Answer::default();
    answer.slice(grant);
    if !is_software(grant.gpu) {
        answer.gpu(grant);
        answer.mps(grant);
    }
    answer
}

/// The environment of a process without a container that has the whole grant: all of [`VARIABLES`] that it has not is
/// to be taken from it. It has encoder units in any case, since a streamer that knows of none takes what it likes.
pub(crate) fn environment(grant: &Grant<'_>) -> BTreeMap<&'static str, String> {
    let mut answer = Answer::default();
    answer.slice(grant);
    answer.set(ENV_NVENC_UNITS, grant.demand.nvenc.0);
    if !is_software(grant.gpu) {
        answer.set(ENV_CUDA_DEVICES, grant.gpu);
        answer.mps_limits(grant, &grant.mps.pipe_dir(grant.gpu));
    }
    answer.env
}

/// The variables that [`environment`] may set.
pub(crate) const VARIABLES: [&str; 9] = [
    ENV_GPU,
    ENV_SLICE,
    ENV_NVENC_UNITS,
    ENV_NVENC_STREAM_UNITS,
    ENV_VRAM_BYTES,
    ENV_CUDA_DEVICES,
    ENV_MPS_PERCENTAGE,
    ENV_MPS_PIPE_DIRECTORY,
    ENV_MPS_MEMORY_LIMIT,
];

impl Answer {
    /// What our own programs read.
    fn slice(&mut self, grant: &Grant<'_>) {
        let Resources { nvenc, vram, .. } = grant.demand;
        self.set(ENV_GPU, grant.gpu);
        if let Some(slice) = grant.slice {
            self.set(ENV_SLICE, slice);
        }
        if nvenc.0 > 0 {
            self.set(ENV_NVENC_UNITS, nvenc.0);
            if let Some(engine) = grant.engine {
                self.set(ENV_NVENC_STREAM_UNITS, nvenc.min(engine).0);
            }
        }
        if vram.0 > 0 {
            self.set(ENV_VRAM_BYTES, vram.bytes());
        }
    }

    /// The GPU, and NVIDIA's libraries for it.
    fn gpu(&mut self, grant: &Grant<'_>) {
        match grant.injection {
            Injection::Environment => self.set(ENV_VISIBLE_DEVICES, grant.gpu),
            Injection::Cdi(name) => {
                // Images often carry `all`. Where NVIDIA's runtime is the default one, it would see that beside
                // the CDI device and add every GPU; `void` makes it add none. NVIDIA's generated specifications
                // set the same (https://github.com/NVIDIA/nvidia-container-toolkit/pull/395).
                self.set(ENV_VISIBLE_DEVICES, "void");
                self.cdi_devices.push(name.to_string());
            }
        }
        let video = if grant.pod_encodes { ",video" } else { "" };
        self.set(ENV_CAPABILITIES, format_args!("compute,utility,graphics{video}"));
    }

    /// The way to the MPS daemon, and what limits a client of it.
    fn mps(&mut self, grant: &Grant<'_>) {
        if grant.demand.mps.0 == 0 {
            return;
        }
        self.mps_limits(grant, CONTAINER_PIPE_DIR.as_ref());
        self.mount(grant.mps.pipe_dir(grant.gpu), CONTAINER_PIPE_DIR);
        // Client and server share memory by files there, and the path can't be changed.
        self.mount(grant.mps.shm_dir(), "/dev/shm");
    }

    /// What limits a client of the MPS daemon whose pipes it sees in `pipes`.
    fn mps_limits(&mut self, grant: &Grant<'_>, pipes: &Path) {
        let Resources { mps, vram, .. } = grant.demand;
        if mps.0 == 0 {
            return;
        }
        self.set(ENV_MPS_PERCENTAGE, mps.0);
        self.set(ENV_MPS_PIPE_DIRECTORY, pipes.display());
        if vram.0 > 0 {
            // The slice sees one GPU, so that is CUDA's device 0. MPS reads an integer with M or G.
            let mebibytes = vram.bytes() >> 20;
            self.set(ENV_MPS_MEMORY_LIMIT, format_args!("0={mebibytes}M"));
        }
    }

    fn set(&mut self, name: &'static str, value: impl ToString) {
        self.env.insert(name, value.to_string());
    }

    fn mount(&mut self, host_path: PathBuf, container_path: &str) {
        let container_path = container_path.into();
        self.mounts.push(Mount {
            host_path,
            container_path,
        });
    }
}

fn is_software(gpu: &GpuUuid) -> bool {
    gpu.as_str().starts_with("CPU-")
}

const ENV_VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";
const ENV_CAPABILITIES: &str = "NVIDIA_DRIVER_CAPABILITIES";
const ENV_CUDA_DEVICES: &str = "CUDA_VISIBLE_DEVICES";
const ENV_MPS_PERCENTAGE: &str = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE";
const ENV_MPS_PIPE_DIRECTORY: &str = "CUDA_MPS_PIPE_DIRECTORY";
const ENV_MPS_MEMORY_LIMIT: &str = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT";
/// One GPU, so one path for all. Not MPS's own default, /tmp/nvidia-mps: NVIDIA's runtime may mount the host's
/// there.
const CONTAINER_PIPE_DIR: &str = "/run/penstock/mps/pipe";

#[cfg(test)]
mod tests;
