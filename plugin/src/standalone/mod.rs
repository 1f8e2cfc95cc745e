//! `penstock-plugin standalone`: the agent of a machine without Kubernetes.
//!
//! ```text
//!   offered    this machine's GPUs, or its CPU   agent     decisions, and all state (no I/O)
//!   software   what its CPU encodes              owner     the task that owns it and carries out
//!   socket     who may ask, one agent only       process   one streamer process, start to end
//!   api        what can be asked
//! ```
//!
//! Nothing is left running when the agent ends. Told to, it ends its streamers and waits for them; killed, it
//! leaves that to the kernel, which sends them SIGTERM; and what a killed streamer leaves behind is killed. What does
//! not heed that is ended by the next agent.

mod agent;
mod api;
mod metrics;
mod offered;
mod owner;
mod process;
mod socket;
mod software;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use axum::Router;
use axum::serve::Listener;
use penstock_core::ids::NodeName;
use penstock_core::packing::Resources;
use penstock_core::units::{EncoderUnits, SmPercent, VramBlocks};
use penstock_core::wire::agent::SliceSpec;
use penstock_shell::{children, ops, shutdown};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) use agent::Offer;
pub(crate) use socket::{DEFAULT_SOCKET, ENV_SOCKET};

use crate::settings::Settings;
use agent::Agent;
use metrics::Metrics;
use offered::Offered;
use owner::Owner;
use process::Streamer;

use crate::mps::{self, Layout};
use crate::settings::GpuArgs;

/// Offer slices of this machine without Kubernetes, and keep one streamer running in each.
///
/// Its GPUs are offered where NVIDIA's driver shows one whose encoder is known: encoder units (10 megapixels per second
/// each: 720p30 takes 3, 1080p30 7, 1080p60 13), and SMs and video memory for CUDA where `penstock-plugin mps` runs, too.
/// Else the CPU is offered as one software GPU, with as many encoder units as `penstock-streamer calibrate` measures, less
/// headroom.
///
/// All of a slice is on one GPU, and its streamer sees that GPU as CUDA's only one.
///
/// Slices are started here with --slices, later with `penstock-plugin slice start`, or over HTTP on the socket:
/// `curl --unix-socket /run/penstock/agent.sock http://agent/v1/slices` lists them.
///
/// A streamer that ends by itself is started again, after 0.5 s at first and 30 s at most. All end with the
/// agent.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Unix socket of the HTTP API, for this user only; its directory is made
    #[arg(long, env = ENV_SOCKET, default_value = DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// Serve /metrics, /healthz and /readyz on this TCP address too (they are on the socket in any case)
    #[arg(long, env = "PENSTOCK_AGENT_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// The streamer program [default: penstock-streamer beside this program]
    #[arg(long, env = "PENSTOCK_AGENT_STREAMER", value_name = "PATH")]
    streamer: Option<PathBuf>,
    /// Seconds that a streamer told to end has for it before it is killed
    #[arg(
        long,
        env = "PENSTOCK_AGENT_GRACE",
        default_value_t = 5,
        value_name = "SECONDS"
    )]
    grace: u32,
    #[command(flatten)]
    gpus: GpuArgs,
    /// Where the MPS daemons' pipes are, as `penstock-plugin mps --root` has them
    #[arg(long, env = mps::ENV_ROOT, default_value = mps::DEFAULT_ROOT, value_name = "PATH")]
    mps_root: PathBuf,
    #[command(flatten)]
    capacity: Capacity,
    #[command(flatten)]
    first: FirstSlices,
}

/// What the machine offers.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Capacity")]
pub(crate) struct Capacity {
    /// Encoder units of the CPU to offer [default: what the configuration file says, or measured at start, which takes some
    /// seconds]
    #[arg(long, env = "PENSTOCK_AGENT_UNITS", value_name = "N", conflicts_with = "gpus")]
    units: Option<NonZeroU32>,
    /// Percent of the measured throughput to keep for capture, applications and sending
    #[arg(long, env = "PENSTOCK_AGENT_HEADROOM", default_value_t = 50, value_name = "PERCENT",
          value_parser = clap::value_parser!(u8).range(0..=99))]
    headroom: u8,
}

/// Slices to start with.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Slices to start with")]
struct FirstSlices {
    /// How many slices to start at once, all alike
    #[arg(long, value_name = "N")]
    slices: Option<u32>,
    /// Encoder units of each of them (3: 720p30)
    #[arg(long, value_name = "UNITS", default_value = "3", requires = "slices")]
    slice_units: NonZeroU32,
    /// Percent of the SMs that CUDA programs in each of them have
    #[arg(long, value_name = "PERCENT", default_value = "0", requires = "slices",
          value_parser = clap::value_parser!(u32).range(0..=100))]
    slice_mps: u32,
    /// Video memory of each of them, in blocks of 256 MiB
    #[arg(long, value_name = "BLOCKS", default_value = "0", requires = "slices")]
    slice_vram: u32,
    /// What each of them streams: penstock-streamer's own arguments
    #[arg(last = true, value_name = "STREAMER ARGUMENTS", requires = "slices")]
    streamer_args: Vec<String>,
}

/// Runs the agent until it is told to end.
///
/// # Errors
/// What keeps it from starting, in words that say what to do. Nothing is left running then.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    children::adopt_orphans().context("becoming the parent of what streamers leave behind")?;
    let told_to_end = shutdown::token().context("listening for SIGTERM and SIGINT")?;
    let outcome = start_and_serve(&args, &told_to_end).await;
    // Where all went well there is nothing left to find.
    children::sweep(&BTreeSet::new()).await;
    outcome
}

async fn start_and_serve(args: &Args, told_to_end: &CancellationToken) -> anyhow::Result<()> {
    let mut claimed = socket::claim(&args.socket)?;
    let streamer = Streamer {
        program: streamer_program(args.streamer.as_deref())?,
        socket: std::path::absolute(&args.socket).context("finding the socket's place")?,
        mps: Layout::new(&args.mps_root),
        grace: Duration::from_secs(args.grace.into()),
        http: health_client()?,
    };
    streamer.end_left_behind().await?;
    let registry = Registry::new();
    let mps = streamer.mps.clone();
    let offered = Offered::find(&args.gpus, &args.capacity, mps, &streamer.program, &registry);
    let mut offered = tokio::select! {
        offered = offered => offered?,
        () = told_to_end.cancelled() => return Ok(()),
    };
    let offers = offered.now();
    for offer in &offers {
        tracing::info!(gpu = %offer.uuid, "offering {}: {}", offer.model, offer.capacity);
    }
    let mut agent = Agent::new(offers);
    args.first.start(&mut agent)?;

    let metrics = Metrics::new(&registry).context("registering the metrics")?;
    let (owner, handle) = Owner::new(agent, offered, streamer, metrics);
    let ops = ops_router(registry, told_to_end.clone());
    let mut servers = Servers::default();
    if let Some(address) = args.metrics_listen {
        let listener = TcpListener::bind(address).await;
        let doing = || format!("listening on {address} for /metrics (--metrics-listen chooses another)");
        servers.serve(listener.with_context(doing)?, ops.clone());
    }
    servers.serve(claimed.listen()?, api::router(handle).merge(ops));
    tracing::info!(socket = %args.socket.display(), "ready");
    servers.until(owner.run(told_to_end.clone())).await
}

/// The machine's CPU as a GPU, of the capacity that was told, or that `settings` say, or else that `streamer` (where it
/// is not told, the one beside this program) measures. `node` is what a cluster calls the machine.
///
/// # Errors
/// Where it can't be measured or named; the words say what to do.
pub(crate) async fn software_offer(
    capacity: &Capacity,
    settings: &Settings,
    streamer: Option<&Path>,
    node: Option<&NodeName>,
) -> anyhow::Result<Offer> {
    let units = match capacity.units.or(settings.software_units()) {
        Some(units) => EncoderUnits(units.get()),
        None => {
            let measured = software::measure(&streamer_program(streamer)?).await?;
            software::units(&measured, capacity.headroom)?
        }
    };
    software::offer(units, node)
}

impl FirstSlices {
    /// Places all of them, or fails before any process is started.
    fn start(&self, agent: &mut Agent) -> anyhow::Result<()> {
        let count = self.slices.unwrap_or(0);
        let demand = Resources {
            nvenc: EncoderUnits(self.slice_units.get()),
            mps: SmPercent(self.slice_mps),
            vram: VramBlocks(self.slice_vram),
        };
        for nth in 1..=count {
            let spec = SliceSpec {
                id: None,
                demand,
                streamer_args: self.streamer_args.clone(),
            };
            agent.start(spec).with_context(|| {
                format!(
                    "starting slice {nth} of {count} with {demand} each (fewer --slices, smaller --slice-units, \
                     or more capacity by --units or less --headroom would fit)"
                )
            })?;
        }
        Ok(())
    }
}

/// The HTTP servers.
#[derive(Default)]
struct Servers {
    tasks: JoinSet<std::io::Result<()>>,
    closing: CancellationToken,
}

impl Servers {
    fn serve<L>(&mut self, listener: L, router: Router)
    where
        L: Listener,
        L::Addr: std::fmt::Debug,
    {
        let closing = self.closing.clone().cancelled_owned();
        self.tasks.spawn(async move {
            axum::serve(listener, router)
                .with_graceful_shutdown(closing)
                .await
        });
    }

    /// Serves until `owner` ends; the last answers still go out.
    async fn until(mut self, owner: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        tokio::select! {
            ended = owner => ended?,
            server = self.tasks.join_next() => {
                let error = anyhow!("an HTTP server ended by itself: {server:?}");
                return Err(error);
            }
        }
        self.closing.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        // A client that does not read is not waited for.
        let _ = tokio::time::timeout(CLOSE_WITHIN, all).await;
        Ok(())
    }
}

fn ops_router(registry: Registry, told_to_end: CancellationToken) -> Router {
    let ready = move || match told_to_end.is_cancelled() {
        true => Err("the agent is ending".to_owned()),
        false => Ok(()),
    };
    ops::router(registry, Arc::new(ready))
}

fn health_client() -> anyhow::Result<reqwest::Client> {
    // Streamers listen on loopback: no proxy is ever between, and a redirect is no answer.
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .context("preparing to ask streamers after their health")
}

fn streamer_program(told: Option<&Path>) -> anyhow::Result<PathBuf> {
    let program = match told {
        Some(told) => told.to_owned(),
        None => std::env::current_exe()
            .context("looking for penstock-streamer beside this program (--streamer names another place)")?
            .with_file_name("penstock-streamer"),
    };
    if !program.is_file() {
        let program = program.display();
        bail!("there is no streamer program at {program}: put it there, or name its place with --streamer");
    }
    Ok(program)
}

const CLOSE_WITHIN: Duration = Duration::from_secs(1);
