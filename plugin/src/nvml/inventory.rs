//! Which GPUs there are, and what they are like: plain data, read once.

use nvml_wrapper::enum_wrappers::device::{Clock, ComputeMode};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml, cuda_driver_version_major, cuda_driver_version_minor};
use penstock_core::ids::GpuUuid;
use serde::Serialize;

use super::raw;

/// The GPUs of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Inventory {
    /// As in `580.95.05`.
    pub(crate) driver_version: Option<String>,
    /// The newest CUDA that the driver serves.
    pub(crate) cuda_version: Option<CudaVersion>,
    /// Physical GPUs, each followed by its MIG instances.
    pub(crate) gpus: Vec<Gpu>,
    /// GPUs that are there but could not be asked.
    pub(crate) unreadable: Vec<Unreadable>,
}

/// A CUDA version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct CudaVersion {
    /// As in 13.
    pub(crate) major: i32,
    /// As in .1.
    pub(crate) minor: i32,
}

/// A GPU, or a MIG instance as a GPU of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Gpu {
    /// `GPU-…` or `MIG-…`.
    pub(crate) uuid: GpuUuid,
    /// NVML's index, which changes when GPUs come and go; that of its parent for a MIG instance.
    pub(crate) index: u32,
    /// The N of `/dev/nvidiaN`; that of its parent for a MIG instance.
    pub(crate) minor: Option<u32>,
    /// The product: `NVIDIA L4`; that of its parent for a MIG instance.
    pub(crate) model: String,
    /// Bytes of memory.
    pub(crate) memory_bytes: Option<u64>,
    /// The highest clock of the video engines, MHz; that of its parent for a MIG instance.
    pub(crate) max_video_clock_mhz: Option<u32>,
    /// Who may use it.
    pub(crate) compute_mode: Option<Compute>,
    /// A whole GPU, or a part of one.
    pub(crate) kind: Kind,
}

/// Who may create CUDA contexts on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Compute {
    /// Any process.
    Shared,
    /// One process, which may be an MPS daemon.
    ExclusiveProcess,
    /// None.
    Prohibited,
}

/// What of a GPU this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "is", rename_all = "camelCase")]
pub(crate) enum Kind {
    /// A GPU without MIG.
    Whole,
    /// A GPU with MIG on: only its instances can be used.
    Divided,
    /// A MIG instance.
    Mig(MigInstance),
}

/// A MIG instance: a compute instance of a GPU instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MigInstance {
    /// The physical GPU.
    pub(crate) parent: GpuUuid,
    /// Its place among the physical GPU's instances, as NVML counts them; some may be empty.
    pub(crate) index: u32,
    /// The profile: `1g.6gb`.
    pub(crate) profile: Option<String>,
    /// The GPU instance.
    pub(crate) gpu_instance: Option<u32>,
    /// The compute instance in it.
    pub(crate) compute_instance: Option<u32>,
    /// Encoder engines of its profile.
    pub(crate) encoders: Option<u32>,
}

/// A GPU that could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Unreadable {
    /// NVML's index.
    pub(crate) index: u32,
    /// What NVML says.
    pub(crate) why: String,
}

/// Why nothing can be said about any GPU.
#[derive(Debug, thiserror::Error)]
#[error("asking NVML how many GPUs there are (`dmesg | grep -i nvrm` may say more)")]
pub(crate) struct CountError(#[source] NvmlError);

impl Inventory {
    /// Asks NVML. A GPU that does not answer hides none of the others.
    ///
    /// # Errors
    /// Where NVML does not even count them.
    pub(crate) fn read(nvml: &Nvml) -> Result<Self, CountError> {
        let mut inventory = Self {
            driver_version: nvml.sys_driver_version().ok(),
            cuda_version: nvml.sys_cuda_driver_version().ok().map(CudaVersion::from),
            gpus: Vec::new(),
            unreadable: Vec::new(),
        };
        for index in 0..nvml.device_count().map_err(CountError)? {
            match read_gpu(nvml, index) {
                Ok(gpus) => inventory.gpus.extend(gpus),
                Err(why) => inventory.unreadable.push(Unreadable { index, why }),
            }
        }
        Ok(inventory)
    }

    /// The GPUs that work can be put on: all but those with MIG on, whose instances stand for them.
    pub(crate) fn usable(&self) -> impl Iterator<Item = &Gpu> {
        self.gpus.iter().filter(|gpu| gpu.kind != Kind::Divided)
    }

    /// The physical GPUs.
    pub(crate) fn physical(&self) -> impl Iterator<Item = &Gpu> {
        self.gpus.iter().filter(|gpu| !matches!(gpu.kind, Kind::Mig(_)))
    }
}

impl Gpu {
    /// The physical GPU that this is, or is a part of.
    pub(crate) fn physical(&self) -> &GpuUuid {
        match &self.kind {
            Kind::Mig(mig) => &mig.parent,
            Kind::Whole | Kind::Divided => &self.uuid,
        }
    }
}

impl From<i32> for CudaVersion {
    fn from(version: i32) -> Self {
        Self {
            major: cuda_driver_version_major(version),
            minor: cuda_driver_version_minor(version),
        }
    }
}

impl CudaVersion {
    /// As NVML writes it: 13010 is 13.1.
    pub(crate) fn number(self) -> i32 {
        self.major * 1000 + self.minor * 10
    }
}

impl std::fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

fn read_gpu(nvml: &Nvml, index: u32) -> Result<Vec<Gpu>, String> {
    let device = nvml.device_by_index(index).map_err(|error| error.to_string())?;
    let mut gpu = Gpu {
        uuid: uuid(&device)?,
        index,
        minor: device.minor_number().ok(),
        model: device.name().map_err(|error| error.to_string())?,
        memory_bytes: memory(&device),
        max_video_clock_mhz: device.max_clock_info(Clock::Video).ok(),
        compute_mode: device.compute_mode().ok().map(Compute::from),
        kind: Kind::Whole,
    };
    // Only data-centre GPUs know MIG; for all others the question is an error.
    if !device.mig_mode().is_ok_and(|mode| mode.current == MIG_ON) {
        return Ok(vec![gpu]);
    }
    gpu.kind = Kind::Divided;
    let instances = read_instances(nvml, &device, &gpu)?;
    Ok([gpu].into_iter().chain(instances).collect())
}

/// The instances of a GPU. Not every place below the greatest number of them is taken. That one can't be asked is said
/// of the whole GPU: without that it would be taken for one that was removed.
fn read_instances(nvml: &Nvml, device: &Device<'_>, parent: &Gpu) -> Result<Vec<Gpu>, String> {
    let places = device.mig_device_count().map_err(|error| error.to_string())?;
    let mut instances = Vec::new();
    for place in 0..places {
        match device.mig_device_by_index(place) {
            Ok(mig) => instances.push(read_instance(nvml, &mig, parent, place)?),
            Err(NvmlError::NotFound | NvmlError::InvalidArg) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(instances)
}

fn read_instance(nvml: &Nvml, mig: &Device<'_>, parent: &Gpu, index: u32) -> Result<Gpu, String> {
    let ids = raw::mig_ids(nvml, mig).ok();
    let instance = MigInstance {
        parent: parent.uuid.clone(),
        index,
        profile: mig.name().ok().and_then(|name| profile(&name)),
        gpu_instance: ids.map(|ids| ids.0),
        compute_instance: ids.map(|ids| ids.1),
        encoders: raw::mig_encoders(nvml, mig).ok(),
    };
    Ok(Gpu {
        uuid: uuid(mig)?,
        memory_bytes: memory(mig),
        kind: Kind::Mig(instance),
        ..parent.clone()
    })
}

/// The profile in a MIG instance's name: what follows ` MIG ` in `NVIDIA A30 MIG 1g.6gb`.
fn profile(name: &str) -> Option<String> {
    name.split_once(" MIG ")
        .map(|(_, profile)| profile.trim().to_owned())
}

fn uuid(device: &Device<'_>) -> Result<GpuUuid, String> {
    let text = device.uuid().map_err(|error| error.to_string())?;
    GpuUuid::new(text).map_err(|error| error.to_string())
}

fn memory(device: &Device<'_>) -> Option<u64> {
    device.memory_info().ok().map(|memory| memory.total)
}

impl From<ComputeMode> for Compute {
    fn from(mode: ComputeMode) -> Self {
        match mode {
            ComputeMode::Default => Self::Shared,
            ComputeMode::ExclusiveThread | ComputeMode::ExclusiveProcess => Self::ExclusiveProcess,
            ComputeMode::Prohibited => Self::Prohibited,
        }
    }
}

/// `NVML_DEVICE_MIG_ENABLE`.
const MIG_ON: u32 = 1;
