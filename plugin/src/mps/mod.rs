//! MPS, NVIDIA's Multi-Process Service: one control daemon for each GPU or MIG instance.
//!
//! ```text
//!   penstock-plugin mps                            the device plugin, in a pod of its own
//!     supervisor  when to start which (no I/O)       watch   is a daemon at its pipes? It only looks
//!     fleet       the task that carries it out       layout  where the pipes are
//!     daemon      one daemon, start to end
//!           │                                          │
//!           ▼                                          ▼
//!   nvidia-cuda-mps-control -f ── makes ──► <root>/<GPU>/pipe/control ◄── mounted into containers
//! ```
//!
//! The end of a daemon ends every CUDA client of its GPU, so the daemons belong to a process that is seldom
//! replaced, and the device plugin touches none of them.
//!
//! Source: NVIDIA's [MPS documentation](https://docs.nvidia.com/deploy/mps/).

mod compute_mode;
mod daemon;
mod fleet;
mod layout;
mod limit;
mod supervisor;
mod watch;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use penstock_core::ids::GpuUuid;
use penstock_shell::shutdown;

pub(crate) use layout::{DEFAULT_ROOT, ENV_ROOT, Layout};
pub(crate) use limit::mps_client_limit;
pub(crate) use watch::{Health, follow, look};

use crate::nvml::inventory::Inventory;
use crate::nvml::{self, NvmlArgs};
use compute_mode::Exclusive;
use daemon::Program;
use fleet::Fleet;

/// Keep an MPS control daemon running for each of the GPUs named, so that CUDA programs can share them.
///
/// Each daemon has a directory of its own, `<root>/<GPU>/`, with its pipes and its logs. A container that was
/// allocated penstock.dev/mps gets the pipes and `<root>/shm` (as /dev/shm) mounted.
///
/// Run it where /dev/shm IS `<root>/shm` (in a pod: a hostPath volume of `<root>/shm` mounted at /dev/shm), since
/// daemons and clients meet there; give it its own DaemonSet with updateStrategy OnDelete, since the end of a
/// daemon ends every CUDA program on its GPU. A daemon that dies is started again, after 0.5 s at first and 30 s
/// at most.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// GPU or MIG instance to serve, by its UUID (GPU-…, MIG-…); repeat it for each. `all`: those that NVIDIA's
    /// driver lists once it is there
    #[arg(long = "gpu", env = "PENSTOCK_MPS_GPUS", value_name = "UUID|all", required = true, value_delimiter = ',',
          value_parser = opted_in)]
    gpus: Vec<OptedIn>,
    #[command(flatten)]
    nvml: NvmlArgs,
    /// Directory of the daemons' pipes and logs, the same as the device plugin's
    #[arg(long, env = ENV_ROOT, default_value = DEFAULT_ROOT, value_name = "PATH")]
    root: PathBuf,
    /// MPS's control program, looked up in PATH
    #[arg(
        long,
        env = "PENSTOCK_MPS_CONTROL_PROGRAM",
        default_value = "nvidia-cuda-mps-control",
        value_name = "PATH"
    )]
    control_program: PathBuf,
    /// Let only one Linux user at a time use a GPU, where by default all share one server that runs as root
    #[arg(long, env = "PENSTOCK_MPS_SINGLE_USER")]
    single_user: bool,
    /// Refuse GPUs to CUDA programs outside MPS. NVENC needs a CUDA context too: pods that ask for
    /// penstock.dev/nvenc without penstock.dev/mps then find no encoder
    #[arg(long, env = "PENSTOCK_MPS_EXCLUSIVE_PROCESS")]
    exclusive_process: bool,
    /// Seconds that a daemon told to end has for it before it is killed
    #[arg(
        long,
        env = "PENSTOCK_MPS_GRACE",
        default_value_t = 10,
        value_name = "SECONDS"
    )]
    grace: u32,
}

/// Runs the daemons until told to end.
///
/// # Errors
/// What keeps it from starting, in words that say what to do. No daemon is left running then.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let told_to_end = shutdown::token().context("listening for SIGTERM and SIGINT")?;
    let gpus = tokio::select! {
        gpus = chosen(&args.gpus, args.nvml) => gpus?,
        () = told_to_end.cancelled() => return Ok(()),
    };
    let layout = Layout::new(args.root);
    let _lock = layout.prepare(&gpus)?;
    if !layout.shm_is_ours() {
        let shm = layout.shm_dir();
        tracing::warn!(
            "/dev/shm is not {}: clients in containers will not find the MPS server; mount that directory at /dev/shm",
            shm.display()
        );
    }
    let program = Program {
        path: args.control_program,
        multi_user: !args.single_user,
        grace: Duration::from_secs(args.grace.into()),
    };
    let exclusive = args
        .exclusive_process
        .then(|| Exclusive::set(&gpus))
        .transpose()?;
    let outcome = Fleet::new(program, layout, gpus).run(told_to_end).await;
    drop(exclusive);
    outcome
}

/// What `--gpu` names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum OptedIn {
    All,
    One(GpuUuid),
}

/// The GPUs meant; for `all` it waits for the driver.
async fn chosen(named: &[OptedIn], nvml: NvmlArgs) -> anyhow::Result<BTreeSet<GpuUuid>> {
    let each: Option<BTreeSet<GpuUuid>> = named
        .iter()
        .map(|named| match named {
            OptedIn::All => None,
            OptedIn::One(gpu) => Some(gpu.clone()),
        })
        .collect();
    if let Some(gpus) = each {
        return Ok(gpus);
    }
    let nvml = nvml::wait_for(nvml.nvml_library.as_deref(), nvml::RETRY_EVERY).await;
    let inventory = Inventory::read(&nvml)?;
    let gpus: BTreeSet<_> = inventory.usable().map(|gpu| gpu.uuid.clone()).collect();
    if gpus.is_empty() {
        bail!("NVIDIA's driver lists no GPU that can be used (`penstock-plugin gpus` shows what it lists)");
    }
    Ok(gpus)
}

/// `all`, or a GPU's name that is also a safe name of a directory.
fn opted_in(text: &str) -> anyhow::Result<OptedIn> {
    if text == "all" {
        return Ok(OptedIn::All);
    }
    if !["GPU-", "MIG-"].iter().any(|prefix| text.starts_with(prefix)) {
        bail!("it is not `all` and does not begin with GPU- or MIG-: `nvidia-smi -L` lists the names");
    }
    Ok(OptedIn::One(GpuUuid::new(text)?))
}
