//! The compute mode of GPUs, set through NVML.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Context as _;
use nvml_wrapper::enum_wrappers::device::ComputeMode;
use penstock_core::ids::GpuUuid;

use crate::nvml;

/// GPUs that only one process may make CUDA contexts on: their MPS server. They take all comers again when they are
/// released, or this is dropped.
#[derive(Debug)]
pub(super) struct Exclusive {
    library: Option<PathBuf>,
    gpus: BTreeSet<GpuUuid>,
}

impl Exclusive {
    /// None yet. NVML is opened anew for each, since a driver may come and go.
    pub(super) fn new(library: Option<PathBuf>) -> Self {
        Self {
            library,
            gpus: BTreeSet::new(),
        }
    }

    /// Sets the mode of a GPU.
    ///
    /// # Errors
    /// Where NVML can't be loaded or refuses.
    pub(super) fn set(&mut self, gpu: &GpuUuid) -> anyhow::Result<()> {
        self.put(gpu, ComputeMode::ExclusiveProcess)?;
        self.gpus.insert(gpu.clone());
        Ok(())
    }

    /// Lets a GPU take all comers again, where it was set.
    pub(super) fn release(&mut self, gpu: &GpuUuid) {
        if self.gpus.remove(gpu)
            && let Err(error) = self.put(gpu, ComputeMode::Default)
        {
            tracing::warn!(%gpu, "{error:#}");
        }
    }

    fn put(&self, gpu: &GpuUuid, mode: ComputeMode) -> anyhow::Result<()> {
        let name = format!("{mode:?}");
        let put = || -> anyhow::Result<()> {
            let nvml = nvml::open(self.library.as_deref())?;
            nvml.device_by_uuid(gpu.as_str())?.set_compute_mode(mode)?;
            Ok(())
        };
        put().with_context(|| {
            format!(
                "setting the compute mode of {gpu} to {name} (it takes root, and a MIG instance has none: \
                 leave --exclusive-process out)"
            )
        })
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        for gpu in self.gpus.clone() {
            self.release(&gpu);
        }
    }
}
