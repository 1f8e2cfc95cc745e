//! A look at a GPU: does it answer, and what does it say of itself?

use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION;
use nvml_wrapper::{Device, Nvml};

use super::health::{Probe, Recovery, Vitals};
use super::inventory::Gpu;

/// Looks at a GPU. A MIG instance is well if it is there and its GPU is well.
pub(crate) fn probe(nvml: &Nvml, gpu: &Gpu) -> Probe {
    match look(nvml, gpu) {
        Ok(vitals) => Probe::Answers(vitals),
        Err(error @ (NvmlError::GpuLost | NvmlError::NotFound | NvmlError::ResetRequired)) => {
            Probe::Lost(error.to_string())
        }
        Err(error) => Probe::Silent(error.to_string()),
    }
}

fn look(nvml: &Nvml, gpu: &Gpu) -> Result<Vitals, NvmlError> {
    let device = nvml.device_by_uuid(gpu.uuid.as_str())?;
    // Finding it needs no word from the GPU; this does.
    device.memory_info()?;
    let physical = nvml.device_by_uuid(gpu.physical().as_str())?;
    Ok(Vitals {
        uncorrectable: known(physical.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile))?,
        recovery: known(recovery(&physical))?,
    })
}

fn recovery(device: &Device<'_>) -> Result<Recovery, NvmlError> {
    let fields = device.field_values_for(&[FieldId(NVML_FI_DEV_GET_GPU_RECOVERY_ACTION)])?;
    let sample = fields.into_iter().next().ok_or(NvmlError::NoData)??;
    match sample.value? {
        SampleValue::U32(action) => Ok(Recovery::from_nvml(action)),
        SampleValue::U64(action) => {
            u32::try_from(action).map_or(Err(NvmlError::NoData), |a| Ok(Recovery::from_nvml(a)))
        }
        SampleValue::F64(_) | SampleValue::I64(_) => Err(NvmlError::NoData),
    }
}

/// `None` for what can't be told; an error only where the GPU itself is the trouble.
fn known<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::Uninitialized)) => Err(error),
        Err(_) => Ok(None),
    }
}
