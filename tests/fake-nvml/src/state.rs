//! What the stand-in's GPUs are like: plain data, written by tests as JSON.

use serde::{Deserialize, Serialize};

/// The machine. The default has a driver and no GPU.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// As in `580.95.05`.
    pub driver_version: String,
    /// 1000 × major + 10 × minor.
    pub cuda_version: i32,
    /// What `nvmlInit_v2` returns: 9 is "driver not loaded".
    pub init_error: u32,
    /// The GPUs by index.
    pub gpus: Vec<Gpu>,
    /// All events so far, oldest first. A set that registered a GPU gets those that were added later.
    pub events: Vec<Event>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            driver_version: "580.95.05".into(),
            cuda_version: 13_000,
            init_error: 0,
            gpus: Vec::new(),
            events: Vec::new(),
        }
    }
}

/// A GPU. The default is an idle L4; `None` means that NVML can't tell (`NVML_ERROR_NOT_SUPPORTED`).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gpu {
    /// `GPU-…`
    pub uuid: String,
    /// The product.
    pub name: String,
    /// The N of `/dev/nvidiaN`.
    pub minor: u32,
    /// Bytes of memory.
    pub memory_total: u64,
    /// Bytes of memory in use.
    pub memory_used: u64,
    /// MHz.
    pub max_video_clock: Option<u32>,
    /// 0 default, 2 prohibited, 3 exclusive process.
    pub compute_mode: u32,
    /// It fell off the bus.
    pub lost: bool,
    /// Whether MIG is on.
    pub mig: Option<bool>,
    /// Its MIG instances, which it has only while MIG is on.
    pub mig_devices: Vec<MigDevice>,
    /// Percent.
    pub encoder_utilization: Option<u32>,
    /// Percent.
    pub sm_utilization: Option<u32>,
    /// Uncorrectable memory errors since the last reset.
    pub ecc_uncorrected: Option<u64>,
    /// What `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION` says: 0 none, 1 reset the GPU, 2 reboot.
    pub recovery_action: Option<u32>,
    /// Encoder sessions.
    pub encoder_sessions: Option<Vec<EncoderSession>>,
    /// Processes with memory on it.
    pub processes: Option<Vec<Process>>,
    /// Samples of per-process utilisation.
    pub samples: Option<Vec<Sample>>,
    /// Whether events can be registered.
    pub has_events: bool,
}

impl Default for Gpu {
    fn default() -> Self {
        Self {
            uuid: "GPU-4a7f0000-0000-4000-8000-000000000000".into(),
            name: "NVIDIA L4".into(),
            minor: 0,
            memory_total: 23_034 << 20,
            memory_used: 0,
            max_video_clock: Some(1_770),
            compute_mode: 0,
            lost: false,
            mig: None,
            mig_devices: Vec::new(),
            encoder_utilization: Some(0),
            sm_utilization: Some(0),
            ecc_uncorrected: Some(0),
            recovery_action: Some(0),
            encoder_sessions: Some(Vec::new()),
            processes: Some(Vec::new()),
            samples: Some(Vec::new()),
            has_events: true,
        }
    }
}

/// A MIG instance: a compute instance of a GPU instance. It is asked for less than a GPU: no utilisation, no
/// encoder sessions.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MigDevice {
    /// `MIG-…`
    pub uuid: String,
    /// The product with its profile: `NVIDIA A30 MIG 1g.6gb`.
    pub name: String,
    /// The GPU instance.
    pub gpu_instance: u32,
    /// The compute instance in it.
    pub compute_instance: u32,
    /// Bytes of memory.
    pub memory_total: u64,
    /// Bytes of memory in use.
    pub memory_used: u64,
    /// Encoder engines that it shares, as its attributes tell.
    pub encoders: Option<u32>,
    /// Processes with memory on it.
    pub processes: Vec<Process>,
}

/// Something that NVML tells those who wait.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Event {
    /// The physical GPU.
    pub gpu: String,
    /// The XID; `None` for a double-bit ECC error.
    pub xid: Option<u64>,
    /// The MIG GPU instance that it concerns alone.
    pub gpu_instance: Option<u32>,
}

/// An encoder session.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EncoderSession {
    /// Its number.
    pub id: u32,
    /// Whose it is.
    pub pid: u32,
    /// 0 H.264, 1 HEVC, 2 AV1.
    pub codec: u32,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Frames per second, averaged.
    pub fps: u32,
    /// Microseconds, averaged.
    pub latency_us: u32,
}

/// A process with memory on a GPU.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Process {
    /// Its number on the host.
    pub pid: u32,
    /// Bytes.
    pub memory: Option<u64>,
    /// It is listed as a compute process.
    pub compute: bool,
    /// It is listed as a graphics process.
    pub graphics: bool,
    /// It is listed as a client of MPS.
    pub mps: bool,
}

/// What a process used of a GPU's engines until a moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sample {
    /// The process.
    pub pid: u32,
    /// Microseconds.
    pub timestamp: u64,
    /// Percent of the SMs.
    pub sm: u32,
    /// Percent of the encoders.
    pub encoder: u32,
}
