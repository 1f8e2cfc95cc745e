//! The compute mode of GPUs, set through NVML.

use std::collections::BTreeSet;

use anyhow::Context as _;
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::ComputeMode;
use penstock_core::ids::GpuUuid;

/// GPUs that only one process may make CUDA contexts on: their MPS server. They take all comers again when this
/// is dropped.
pub(super) struct Exclusive {
    nvml: Nvml,
    gpus: Vec<GpuUuid>,
}

impl Exclusive {
    /// Sets the mode.
    ///
    /// # Errors
    /// Where NVML can't be loaded or refuses; what was set is undone then.
    pub(super) fn set(gpus: &BTreeSet<GpuUuid>) -> anyhow::Result<Self> {
        let nvml = Nvml::init().context(
            "loading NVML to set the compute mode (install NVIDIA's driver, or leave --exclusive-process out)",
        )?;
        let mut exclusive = Self {
            nvml,
            gpus: Vec::new(),
        };
        for gpu in gpus {
            set(&exclusive.nvml, gpu, ComputeMode::ExclusiveProcess)?;
            exclusive.gpus.push(gpu.clone());
        }
        Ok(exclusive)
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        for gpu in &self.gpus {
            if let Err(error) = set(&self.nvml, gpu, ComputeMode::Default) {
                tracing::warn!(%gpu, "{error:#}");
            }
        }
    }
}

fn set(nvml: &Nvml, gpu: &GpuUuid, mode: ComputeMode) -> anyhow::Result<()> {
    let name = format!("{mode:?}");
    let set = || nvml.device_by_uuid(gpu.as_str())?.set_compute_mode(mode);
    set().with_context(|| {
        format!(
            "setting the compute mode of {gpu} to {name} (it takes root, and a MIG instance has none: \
             leave --exclusive-process out)"
        )
    })
}
