//! Which GPUs are used, and what an administrator wants offered of them.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use penstock_core::ids::GpuUuid;
use serde::Deserialize;

use crate::nvml::inventory::{Compute, Gpu};
use crate::nvml::{self, NvmlArgs};

/// The plugin's one configuration file, YAML:
///
/// ```text
/// headroomPercent: 10              # of the encoder units, kept free; 0
/// mpsClientsPerContainer: 2        # processes with CUDA that a container with `mps` has; 1
/// encoderSessions: 12              # that the driver allows on GeForce GPUs together; by the driver's release
/// models:                          # by NVML's name
///   NVIDIA L4: { nvenc: 200, nvencEngine: 100 }
/// gpus:                            # by UUID; goes before the model
///   GPU-8dcd…: { nvenc: 100, mps: 80, vram: 80, mpsClients: 40 }
/// software: { nvenc: 12 }          # of the CPU, where it is offered; measured at start
/// ```
///
/// `nvencEngine` is what one encoder engine has: the largest single stream, however large a slice is.
///
/// `penstock-streamer calibrate --write FILE` measures, and sets `nvenc` of the GPUs and of the CPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct Settings {
    pub(crate) headroom_percent: u32,
    pub(crate) encoder_sessions: Option<u32>,
    mps_clients_per_container: Option<NonZeroU32>,
    models: BTreeMap<String, Override>,
    gpus: BTreeMap<GpuUuid, Override>,
    software: Software,
}

/// The CPU as a GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Software {
    nvenc: Option<NonZeroU32>,
}

/// What an administrator knows better.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct Override {
    pub(crate) nvenc: Option<u32>,
    pub(crate) nvenc_engine: Option<u32>,
    pub(crate) mps: Option<u32>,
    pub(crate) vram: Option<u32>,
    pub(crate) mps_clients: Option<u32>,
}

impl Settings {
    /// Reads the file.
    fn read(path: &Path) -> anyhow::Result<Self> {
        let doing = || format!("reading the configuration file {}", path.display());
        let text = std::fs::read_to_string(path).with_context(doing)?;
        Self::parse(&text).with_context(doing)
    }

    /// What `file` says, or nothing in particular.
    pub(crate) fn of(file: Option<&Path>) -> anyhow::Result<Self> {
        file.map_or_else(|| Ok(Self::default()), Self::read)
    }

    /// How many clients of an MPS daemon a container with `mps` is, at least 1. So many fewer containers a GPU takes: what
    /// is published and asked about counts containers, and nobody else has to know this number.
    pub(crate) fn clients_per_container(&self) -> u32 {
        self.mps_clients_per_container.map_or(1, NonZeroU32::get)
    }

    /// The CPU's encoder units, where they are set.
    pub(crate) fn software_units(&self) -> Option<NonZeroU32> {
        self.software.nvenc
    }

    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let settings: Option<Self> = serde_yaml_ng::from_str(text)?;
        let settings = settings.unwrap_or_default();
        anyhow::ensure!(
            settings.headroom_percent < 100,
            "headroomPercent is {}: it must be 0 to 99",
            settings.headroom_percent
        );
        let bad = settings
            .models
            .values()
            .chain(settings.gpus.values())
            .filter_map(|o| o.mps)
            .find(|mps| *mps > 100);
        anyhow::ensure!(
            bad.is_none(),
            "mps is {}: it is percent of the SMs, 0 to 100",
            bad.unwrap_or_default()
        );
        Ok(settings)
    }

    /// Whether CUDA programs share a GPU by MPS: it runs CUDA, and some of its SMs are offered.
    pub(crate) fn has_mps(&self, gpu: &Gpu) -> bool {
        gpu.compute_mode != Some(Compute::Prohibited) && self.wished(gpu, |o| o.mps) != Some(0)
    }

    /// What is wished of a GPU itself, else of its model.
    pub(crate) fn wished(&self, gpu: &Gpu, of: fn(&Override) -> Option<u32>) -> Option<u32> {
        let [itself, model] = [self.gpus.get(&gpu.uuid), self.models.get(&gpu.model)];
        itself.and_then(of).or_else(|| model.and_then(of))
    }
}

/// The GPUs that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OptedIn {
    /// All that NVML shows.
    All,
    /// These; a GPU's MIG instances with it.
    Only(Vec<GpuUuid>),
}

/// Which GPUs a command uses, and how it finds them.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GpuArgs {
    /// The GPUs to use: `all`, or their UUIDs, separated by commas. A GPU's MIG instances come with it
    #[arg(long, env = "PENSTOCK_GPUS", value_name = "all|UUID,…")]
    pub(crate) gpus: Option<OptedIn>,
    /// Configuration file (YAML): `headroomPercent`, and what to offer by model or UUID where the table of models does
    /// not know it. `penstock-streamer calibrate --write FILE` measures it
    #[arg(long, env = "PENSTOCK_PLUGIN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// End where there is no NVIDIA driver at the start, instead of waiting for it
    #[arg(long, env = "PENSTOCK_FAIL_FAST")]
    fail_fast: bool,
    #[command(flatten)]
    pub(crate) nvml: NvmlArgs,
}

impl GpuArgs {
    /// The configuration, once it is known that NVML is there or may be waited for.
    ///
    /// # Errors
    /// Where the file can't be read; with `--fail-fast` where there is no NVML.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        if self.fail_fast {
            nvml::open(self.nvml.nvml_library.as_deref())?;
        }
        self.config()
    }

    /// The configuration, whether NVML is there or not.
    ///
    /// # Errors
    /// Where the file can't be read.
    pub(crate) fn config(&self) -> anyhow::Result<Settings> {
        Settings::of(self.config.as_deref())
    }
}

impl FromStr for OptedIn {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text == "all" {
            return Ok(Self::All);
        }
        let uuids: Result<_, _> = text.split(',').map(|uuid| uuid.trim().parse()).collect();
        Ok(Self::Only(uuids.context(
            "it takes `all`, or UUIDs separated by commas (`penstock-plugin gpus` lists them)",
        )?))
    }
}

impl OptedIn {
    /// Whether `gpu` is one of them.
    pub(crate) fn has(&self, gpu: &Gpu) -> bool {
        match self {
            Self::All => true,
            Self::Only(uuids) => uuids.contains(&gpu.uuid) || uuids.contains(gpu.physical()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gpus_opted_in_are_all_or_named() {
        assert_eq!("all".parse::<OptedIn>().unwrap(), OptedIn::All);
        let two = ["GPU-1", "MIG-2"].map(|uuid| uuid.parse().unwrap());
        assert_eq!(
            "GPU-1, MIG-2".parse::<OptedIn>().unwrap(),
            OptedIn::Only(two.to_vec())
        );
        for bad in ["", "GPU-1,", "GPU 1"] {
            let error = bad.parse::<OptedIn>().unwrap_err().to_string();
            assert!(error.contains("separated by commas"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_bad_file_is_named() {
        for bad in [
            "headroomPercent: 100",
            "models: { x: { mps: 101 } }",
            "nonsense: 1",
            "gpus: { 'a b': {} }",
            "software: { nvenc: 0 }",
            "mpsClientsPerContainer: 0",
            "software: { mps: 1 }",
        ] {
            assert!(Settings::parse(bad).is_err(), "{bad}");
        }
        let error = Settings::read(Path::new("/nowhere/plugin.yaml")).unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/plugin.yaml"));
    }
}
