//! What GPUs are doing: load, memory, encoder sessions, processes.
//!
//! What can't be measured is `None` or absent. On a MIG instance NVML knows memory and processes, and no
//! load.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::{ProcessInfo, ProcessUtilizationSample};
use nvml_wrapper::{Device, Nvml};
use penstock_core::ids::GpuUuid;
use serde::Serialize;

use super::open;
use super::raw::{self, Session};

/// What one GPU is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Measures {
    /// Which one.
    pub(crate) gpu: GpuUuid,
    /// Percent of the encoders' time, over NVML's last sampling period (up to 1 s).
    pub(crate) encoder_percent: Option<u32>,
    /// Percent of the time in which some kernel or shader ran, over NVML's last sampling period.
    pub(crate) sm_percent: Option<u32>,
    /// Bytes of memory in use.
    pub(crate) memory_used_bytes: Option<u64>,
    /// All encoder sessions.
    pub(crate) sessions: Option<Vec<EncoderSession>>,
    /// Those who use it, by process ID (of the host).
    pub(crate) processes: BTreeMap<u32, ProcessLoad>,
}

/// One encoder session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EncoderSession {
    /// The process that encodes (of the host).
    pub(crate) pid: u32,
    /// What it encodes to.
    pub(crate) codec: Codec,
    /// Pixels across.
    pub(crate) width: u32,
    /// Pixels down.
    pub(crate) height: u32,
    /// Frames per second, a moving average.
    pub(crate) fps: u32,
    /// Microseconds per frame, a moving average.
    pub(crate) latency_us: u32,
}

/// `nvmlEncoderType_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Codec {
    /// H.264.
    H264,
    /// HEVC.
    Hevc,
    /// AV1.
    Av1,
    /// One that this version does not know.
    Other,
}

/// What a process uses of one GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProcessLoad {
    /// Bytes of memory.
    pub(crate) memory_bytes: Option<u64>,
    /// Percent of the encoders, at the newest sample since the last call.
    pub(crate) encoder_percent: Option<u32>,
    /// Percent of the SMs, at the newest sample since the last call.
    pub(crate) sm_percent: Option<u32>,
}

/// Measures GPUs, and remembers which samples it has seen.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    /// The newest timestamp seen of each GPU, microseconds.
    seen: BTreeMap<GpuUuid, u64>,
}

impl Sampler {
    /// Measures one GPU.
    ///
    /// # Errors
    /// Where it can't even be found.
    pub(crate) fn measure(&mut self, nvml: &Nvml, gpu: &GpuUuid) -> Result<Measures, NvmlError> {
        let device = nvml.device_by_uuid(gpu.as_str())?;
        let mut processes = memory_by_process(&device);
        self.add_load(&device, gpu, &mut processes);
        Ok(Measures {
            gpu: gpu.clone(),
            encoder_percent: device.encoder_utilization().ok().map(|load| load.utilization),
            sm_percent: device.utilization_rates().ok().map(|load| load.gpu),
            memory_used_bytes: device.memory_info().ok().map(|memory| memory.used),
            sessions: sessions(nvml, &device),
            processes,
        })
    }

    /// Adds what the newest samples say. That there are none since the last call is no load of 0: a process
    /// that idles has samples, one that has just begun has none.
    fn add_load(&mut self, device: &Device<'_>, gpu: &GpuUuid, processes: &mut BTreeMap<u32, ProcessLoad>) {
        let seen = self.seen.entry(gpu.clone()).or_default();
        let samples = device.process_utilization_stats(*seen).unwrap_or_default();
        let newest = newest_by_process(samples, *seen);
        for (pid, sample) in newest {
            *seen = (*seen).max(sample.timestamp);
            let load = processes.entry(pid).or_default();
            load.encoder_percent = Some(sample.enc_util);
            load.sm_percent = Some(sample.sm_util);
        }
    }
}

/// How many processes use each GPU through MPS; a GPU that can't tell is left out.
pub(crate) fn mps_clients(library: Option<&Path>, gpus: &BTreeSet<GpuUuid>) -> BTreeMap<GpuUuid, i64> {
    let Ok(nvml) = open(library) else {
        return BTreeMap::new();
    };
    let count = |gpu: &GpuUuid| {
        let device = nvml.device_by_uuid(gpu.as_str()).ok()?;
        let processes = device.mps_running_compute_processes().ok()?;
        Some((gpu.clone(), i64::try_from(processes.len()).ok()?))
    };
    gpus.iter().filter_map(count).collect()
}

/// The newest sample of each process. NVML fills places that it has no sample for with rubbish: no process, a
/// time long past, or more than 100 percent.
fn newest_by_process(
    samples: Vec<ProcessUtilizationSample>,
    since: u64,
) -> BTreeMap<u32, ProcessUtilizationSample> {
    let mut newest: BTreeMap<u32, ProcessUtilizationSample> = BTreeMap::new();
    for sample in samples {
        let sane = sample.pid != 0 && sample.timestamp > since && sample.enc_util.max(sample.sm_util) <= 100;
        let newer = newest
            .get(&sample.pid)
            .is_none_or(|known| known.timestamp < sample.timestamp);
        if sane && newer {
            newest.insert(sample.pid, sample);
        }
    }
    newest
}

/// Who has memory. A process may be on several of NVML's lists, each time with all that it has.
fn memory_by_process(device: &Device<'_>) -> BTreeMap<u32, ProcessLoad> {
    let lists = [
        device.running_compute_processes(),
        device.running_graphics_processes(),
        device.mps_running_compute_processes(),
    ];
    let mut processes: BTreeMap<u32, ProcessLoad> = BTreeMap::new();
    for process in lists.into_iter().flatten().flatten() {
        let load = processes.entry(process.pid).or_default();
        load.memory_bytes = load.memory_bytes.max(bytes(&process));
    }
    processes
}

fn bytes(process: &ProcessInfo) -> Option<u64> {
    match process.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    }
}

fn sessions(nvml: &Nvml, device: &Device<'_>) -> Option<Vec<EncoderSession>> {
    let sessions = raw::encoder_sessions(nvml, device).ok()?;
    Some(sessions.into_iter().map(EncoderSession::from).collect())
}

impl From<Session> for EncoderSession {
    fn from(raw: Session) -> Self {
        Self {
            pid: raw.pid,
            codec: Codec::from_nvml(raw.codec),
            width: raw.width,
            height: raw.height,
            fps: raw.fps,
            latency_us: raw.latency_us,
        }
    }
}

impl Codec {
    fn from_nvml(codec: u32) -> Self {
        match codec {
            0 => Self::H264,
            1 => Self::Hevc,
            2 => Self::Av1,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_sample_counts_and_rubbish_does_not() {
        let sample = |pid, timestamp, enc_util| ProcessUtilizationSample {
            pid,
            timestamp,
            sm_util: 1,
            mem_util: 0,
            enc_util,
            dec_util: 0,
        };
        let samples = vec![
            sample(7, 200, 40),
            sample(7, 300, 50),
            sample(7, 250, 60),
            sample(8, 100, 10),
            sample(9, 300, 4_000_000),
            sample(0, 300, 1),
        ];
        let newest = newest_by_process(samples, 100);
        assert_eq!(newest.keys().copied().collect::<Vec<_>>(), [7]);
        assert_eq!(newest[&7].enc_util, 50);
    }
}
