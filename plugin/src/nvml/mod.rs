//! GPUs through NVIDIA's management library (NVML), never by parsing `nvidia-smi`.
//!
//! ```text
//!              ┌─ watch: a thread of its own ──────────────────────┐
//!  NVML ─────► │ open ─► inventory ─► events ─► probes ─► measures │ ──► Report: plain data
//!   raw        └─────────────────────────│─────────│───────────────┘
//!                                        ▼         ▼
//!                              xid: what a code means    health: healthy or why not (no I/O, no clock)
//!
//!  pods    whose process is it? pid ─► cgroup ─► pod
//!  show    `penstock-plugin gpus`
//! ```
//!
//! What NVML can't tell (an older driver, a MIG instance, a missing permission) is `None`, never 0.

pub(crate) mod health;
pub(crate) mod inventory;
pub(crate) mod measures;
pub(crate) mod pods;
mod probe;
mod raw;
mod show;
pub(crate) mod watch;
mod xid;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use nvml_wrapper::error::NvmlError;

pub(crate) use nvml_wrapper::Nvml;

pub(crate) use show::{Args as GpusArgs, run as gpus};

/// Where NVML is.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct NvmlArgs {
    /// NVIDIA's management library [default: libnvidia-ml.so.1, wherever the loader finds it]
    #[arg(
        long,
        env = "PENSTOCK_NVML_LIBRARY",
        value_name = "PATH",
        help_heading = "NVIDIA driver"
    )]
    pub(crate) nvml_library: Option<PathBuf>,
}

/// Why there is no NVML.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The library can't be loaded.
    #[error(
        "loading NVIDIA's management library {library} (install the NVIDIA driver on this node and run this \
         container with the NVIDIA runtime, or name the library's place with --nvml-library): {why}"
    )]
    Missing {
        /// What was looked for.
        library: String,
        /// What the loader says. Its error is no source, since it names its own source in its text.
        why: String,
    },
    /// The library is there, the driver isn't.
    #[error(
        "starting NVIDIA's management library {library} (the NVIDIA kernel driver is not loaded, or this \
         container may not use it: `modprobe nvidia`, and look for /dev/nvidiactl)"
    )]
    NoDriver {
        /// What was loaded.
        library: String,
        /// What NVML says.
        source: NvmlError,
    },
    /// The library and the kernel driver are of different releases.
    #[error(
        "starting NVIDIA's management library {library} (the driver was updated under a running kernel \
         module: reboot this node or reload the module)"
    )]
    Mismatch {
        /// What was loaded.
        library: String,
        /// What NVML says.
        source: NvmlError,
    },
    /// Anything else.
    #[error("starting NVIDIA's management library {library} (`dmesg` may say more)")]
    Start {
        /// What was loaded.
        library: String,
        /// What NVML says.
        source: NvmlError,
    },
}

/// Loads and starts NVML: `library`, or the one that the loader finds.
///
/// # Errors
/// [`OpenError`], with what is missing and what to do.
pub(crate) fn open(library: Option<&Path>) -> Result<Nvml, OpenError> {
    let library = library.unwrap_or(Path::new(DEFAULT_LIBRARY));
    let opened = Nvml::builder().lib_path(library.as_os_str()).init();
    opened.map_err(|source| why_not(library.display().to_string(), source))
}

/// Waits until NVML can be opened, asking anew `every` so often. Logs what it is waiting for, once per
/// reason. To give up, drop it.
pub(crate) async fn wait_for(library: Option<&Path>, every: Duration) -> Nvml {
    let mut waiting = Waiting::default();
    loop {
        match open(library) {
            Ok(nvml) => return nvml,
            Err(error) => waiting.say(&error),
        };
        tokio::time::sleep(every).await;
    }
}

/// An error and its sources in one line.
pub(crate) fn in_full(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// Logs why there is no NVML: each reason when it is new, not at every attempt.
#[derive(Debug, Default)]
struct Waiting {
    said: Option<String>,
}

impl Waiting {
    /// Gives the reason where it is new.
    fn say(&mut self, error: &OpenError) -> Option<String> {
        let why = in_full(error);
        if self.said.as_ref() == Some(&why) {
            return None;
        }
        tracing::warn!("no GPU can be offered yet, still asking: {why}");
        self.said = Some(why.clone());
        Some(why)
    }
}

fn why_not(library: String, source: NvmlError) -> OpenError {
    match source {
        NvmlError::LibloadingError(error) => OpenError::Missing {
            library,
            why: error.to_string(),
        },
        NvmlError::FailedToLoadSymbol(why) => OpenError::Missing { library, why },
        NvmlError::DriverNotLoaded | NvmlError::NoPermission => OpenError::NoDriver { library, source },
        NvmlError::LibRmVersionMismatch => OpenError::Mismatch { library, source },
        _ => OpenError::Start { library, source },
    }
}

const DEFAULT_LIBRARY: &str = "libnvidia-ml.so.1";
/// How often to ask for a driver that is not there yet.
pub(crate) const RETRY_EVERY: Duration = Duration::from_secs(10);
