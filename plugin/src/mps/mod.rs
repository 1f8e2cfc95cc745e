//! MPS, NVIDIA's Multi-Process Service: one control daemon for each GPU or MIG instance.
//!
//! ```text
//!   penstock-plugin mps                            the device plugin, in a pod of its own
//!     supervisor  when to start which (no I/O)       watch   is a daemon at its pipes? It only looks
//!     fleet       the task that carries it out       layout  where the pipes are
//!     daemon      one daemon, start to end
//!     metrics     /metrics and /readyz
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
mod metrics;
mod supervisor;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use penstock_shell::{ops, shutdown};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub(crate) use self::watch::{Health, follow, look};
pub(crate) use layout::{DEFAULT_ROOT, ENV_ROOT, Layout};
pub(crate) use limit::mps_client_limit;

use compute_mode::Exclusive;
use daemon::Program;
use fleet::{Choice, Fleet, Running};
use metrics::{Metrics, Served};

use crate::nvml::watch::{Pace, start};
use crate::settings::GpuArgs;

/// Keep an MPS control daemon running for each GPU and MIG instance, so that CUDA programs can share them.
///
/// GPUs are found through NVIDIA's driver, which is waited for where there is none yet. One that appears gets a daemon,
/// and the daemon of one that is gone is ended; that the driver does not answer for a while ends none.
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
    #[command(flatten)]
    gpus: GpuArgs,
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
    /// Serve /metrics, /healthz and /readyz (ready: every daemon's pipe answers) on this TCP address
    #[arg(long, env = "PENSTOCK_MPS_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,
}

/// Runs the daemons until told to end.
///
/// # Errors
/// What keeps it from starting, in words that say what to do. No daemon is left running then.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let told_to_end = shutdown::token().context("listening for SIGTERM and SIGINT")?;
    let choice = Choice {
        opted_in: args.gpus.gpus.clone().context(NONE_OPTED_IN)?,
        settings: args.gpus.settings()?,
    };
    let layout = Layout::new(args.root);
    let _lock = layout.claim()?;
    if !layout.shm_is_ours() {
        let shm = layout.shm_dir();
        tracing::warn!(
            "/dev/shm is not {}: clients in containers will not find the MPS server; mount that directory at /dev/shm",
            shm.display()
        );
    }
    let registry = Registry::new();
    let library = args.gpus.nvml.nvml_library;
    let running = Running {
        program: Program {
            path: args.control_program,
            multi_user: !args.single_user,
            grace: Duration::from_secs(args.grace.into()),
        },
        layout: layout.clone(),
        exclusive: args.exclusive_process.then(|| Exclusive::new(library.clone())),
        metrics: Metrics::new(&registry).context("registering the metrics")?,
    };
    let metrics = running.metrics.clone();
    let reports = start(library.clone(), PACE).context("starting the thread that talks to NVML")?;
    let (fleet, served) = Fleet::new(running, choice, reports);
    let mut helpers = JoinSet::new();
    if let Some(address) = args.metrics_listen {
        helpers.spawn(metrics::follow(metrics, layout.clone(), library, served.clone()));
        serve_ops(&mut helpers, address, registry, layout, served).await?;
    }
    // The helpers only tell of what the fleet does, and end with it.
    fleet.run(told_to_end).await
}

async fn serve_ops(
    helpers: &mut JoinSet<()>,
    address: SocketAddr,
    registry: Registry,
    layout: Layout,
    served: tokio::sync::watch::Receiver<Served>,
) -> anyhow::Result<()> {
    let doing = || format!("listening on {address} for /metrics (--metrics-listen chooses another)");
    let listener = TcpListener::bind(address).await.with_context(doing)?;
    let ready = move || metrics::ready(&layout, &served.borrow());
    let router = ops::router::<()>(registry, Arc::new(ready));
    helpers.spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!("serving /metrics ended: {error}");
        }
    });
    Ok(())
}

const NONE_OPTED_IN: &str = "no GPU was opted in: pass --gpus all, or the UUIDs of those to serve \
    (`penstock-plugin gpus` lists them)";
/// Of NVML only the GPUs that there are matter here.
const PACE: Pace = Pace {
    probe: Duration::from_secs(10),
    measure: Duration::from_secs(24 * 60 * 60),
    reopen: Duration::from_secs(5),
    // Nobody here heeds it: the end of this program would end every daemon.
    stale: Duration::MAX,
    rediscover: Duration::from_secs(5),
    quiet: Duration::from_secs(60),
};
