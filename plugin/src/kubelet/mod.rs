//! `penstock-plugin device-plugin`: our three resources, offered to the kubelet of this node.
//!
//! ```text
//!            kubelet.sock ◄── lifecycle  registers, and again when the kubelet has forgotten us
//!                             registrar  decides when (no I/O)
//!   penstock-<resource>.sock ► service   one per resource: what the kubelet calls
//!                                │
//!                              owner     owns the Assigner; device lists out, calls that must wait
//!                                │
//!  pod-resources/kubelet.sock ◄ pod_resources   which container holds which device
//!                                │
//!                              report    who holds what and uses what ──► metrics, GpuNode, Events
//! ```

pub(crate) mod checkpoint;
mod container_answer;
mod devices;
mod known;
mod lifecycle;
mod metrics;
mod owner;
mod pod_resources;
mod proto;
mod registrar;
mod report;
mod service;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use penstock_core::ids::NodeName;
use penstock_core::packing::Resources;
use penstock_core::units::{SmPercent, VRAM_BLOCK_BYTES, VramBlocks};
use penstock_shell::{ops, shutdown};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) use owner::Answers;

use crate::assign::GpuOffer;
use crate::cdi::Inject;
use crate::gpus::{Description, Followed, Gpus};
use crate::mps::{self, Layout};
use crate::pods::PodEvent;
use crate::settings::{GpuArgs, Settings};
use crate::standalone::{self, Capacity};
use lifecycle::Lifecycle;
use metrics::Metrics;
use owner::Owner;
use pod_resources::{Looker, Looks};
use report::{Occupied, Reporter};

/// The oldest Kubernetes whose kubelet this works with.
///
/// | what of the kubelet | since |
/// |---|---|
/// | device plugins, v1beta1 | 1.10 |
/// | `GetPreferredAllocation`, without which a container's devices would be of several GPUs | 1.19 |
/// | podresources v1 (`List`), which tells the pod that holds a device | 1.20 |
/// | `cdi_devices` in answers, where CDI is chosen | 1.29 (1.28 behind `DevicePluginCDIDevices`) |
///
/// See <https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/>.
pub(crate) const OLDEST_KUBERNETES: &str = "1.20";

/// Offer slices of this node's GPUs to its kubelet, as penstock.dev/nvenc, penstock.dev/mps and penstock.dev/vram.
///
/// A pod asks for amounts of them in its containers' limits, and gets all of them from one GPU. See what a node
/// offers with `kubectl describe node`.
///
/// A GPU that another plugin has handed out is not used as long as that lasts.
///
/// Runs on each node with GPUs, as a DaemonSet with the kubelet's directory mounted, and may be restarted at any
/// time: pods that run are not touched. It waits for the kubelet where that is away, and registers again within a
/// second where it was restarted.
///
/// Why a pod was refused stands in its status: `kubectl get pod NAME -o jsonpath='{.status.message}'`.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("Works with the kubelets of Kubernetes {OLDEST_KUBERNETES} and later."))]
pub(crate) struct Args {
    /// The kubelet's directory: device-plugins/ and pod-resources/ are in it
    #[arg(
        long,
        env = "PENSTOCK_KUBELET_DIR",
        default_value = "/var/lib/kubelet",
        value_name = "PATH"
    )]
    kubelet_dir: PathBuf,
    #[command(flatten)]
    gpus: GpuArgs,
    /// How GPUs get into containers
    #[arg(long, env = "PENSTOCK_INJECT", value_enum, default_value_t = Inject::DEFAULT)]
    inject: Inject,
    /// Offer this node's CPU as one GPU: its encoder units are x264's; what it offers of SMs (100 %) and video memory
    /// (as much as it has memory) is only counted. For nodes without GPU
    #[arg(long, env = "PENSTOCK_SOFTWARE_SLICES", conflicts_with = "gpus")]
    software_slices: bool,
    /// This node's name: its pods are then watched at the API server, and a pod gets the GPU that the scheduler chose
    /// for it. Without it calls are told apart by their amounts alone
    #[arg(long, env = "PENSTOCK_NODE_NAME", value_name = "NAME")]
    node_name: Option<NodeName>,
    /// Where the MPS daemons' pipes are, as `penstock-plugin mps --root` has them
    #[arg(long, env = mps::ENV_ROOT, default_value = mps::DEFAULT_ROOT, value_name = "PATH")]
    mps_root: PathBuf,
    /// Serve /metrics, /healthz and /readyz (ready: the kubelet knows us) on this TCP address
    #[arg(long, env = "PENSTOCK_PLUGIN_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// The streamer program, which measures the CPU's encoder [default: penstock-streamer beside this program]
    #[arg(long, env = "PENSTOCK_AGENT_STREAMER", value_name = "PATH")]
    streamer: Option<PathBuf>,
    #[command(flatten)]
    capacity: Capacity,
}

/// Serves the kubelet until told to end.
///
/// # Errors
/// What keeps it from starting, in words that say what to do.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let told_to_end = shutdown::token().context("listening for SIGTERM and SIGINT")?;
    let mut tasks = JoinSet::new();
    let registry = Registry::new();
    let metrics = Metrics::new(&registry).context("registering the metrics")?;
    let offered = tokio::select! {
        offered = offered(&mut tasks, &args, &metrics) => offered?,
        () = told_to_end.cancelled() => return Ok(()),
    };
    let mut cluster = None;
    let mut pods = None;
    if let Some(node) = args.node_name {
        let client = kube::Client::try_default()
            .await
            .context("finding the API server, to see which pods are bound to this node (--node-name)")?;
        pods = Some(watch_pods(&mut tasks, client.clone(), node.clone()));
        cluster = Some((client, node));
    }
    let seams = Seams {
        pods,
        gpus: offered.offers,
        answers: container_answer::answers(
            args.inject,
            offered.described.clone(),
            Layout::new(args.mps_root),
        ),
        metrics: metrics.clone(),
    };
    let (plugin, view) = Plugin::new(&args.kubelet_dir, seams);
    let inputs = report::Inputs {
        occupied: view.occupied,
        described: offered.described,
        measured: offered.measured,
        registered: view.registered.clone(),
        ending: told_to_end.clone(),
    };
    let reporter = Reporter::new(inputs, metrics, cluster);
    let plugin_ends = CancellationToken::new();
    let cluster_is_told = plugin_ends.clone().drop_guard();
    tasks.spawn(async move {
        // Nobody should be bound here any more before the kubelet finds nobody to ask.
        let _cluster_is_told = cluster_is_told;
        reporter.run().await;
        Ok(())
    });
    if let Some(address) = args.metrics_listen {
        serve_ops(&mut tasks, address, registry, view.registered).await?;
    }
    let mut running = pin!(plugin.run(plugin_ends));
    loop {
        tokio::select! {
            ended = &mut running => return ended,
            Some(part) = tasks.join_next() => {
                // At the end they go one after the other, as those whom they tell of things do.
                if !told_to_end.is_cancelled() {
                    if let Ok(Err(error)) = part {
                        return Err(error);
                    }
                    bail!("a part of the device plugin ended by itself: {part:?}");
                }
            }
        }
    }
}

/// Follows the pods of `node` at the API server of this cluster.
fn watch_pods(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    client: kube::Client,
    node: NodeName,
) -> mpsc::Receiver<PodEvent> {
    let (events, pods) = mpsc::channel(64);
    tasks.spawn(async move {
        crate::pods::watch(client, &node, events).await;
        Ok(())
    });
    pods
}

async fn offered(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    args: &Args,
    metrics: &Metrics,
) -> anyhow::Result<Followed> {
    if args.software_slices {
        let (offer, model) = software_offer(args, &args.gpus.config()?).await?;
        tracing::info!(gpu = %offer.uuid, "offering {}", offer.capacity);
        return Ok(unchanging(tasks, offer, model));
    }
    let opted_in = args.gpus.gpus.clone().context(NONE_OPTED_IN)?;
    let settings = args.gpus.settings()?;
    let library = args.gpus.nvml.nvml_library.clone();
    let layout = Layout::new(&args.mps_root);
    let (follower, followed) = Gpus::follow(library, opted_in, settings, layout, metrics.xids.clone())?;
    // The kubelet starts a container anew whose program has ended: then the driver's libraries are mounted anew too.
    tasks.spawn(follower.run(true));
    Ok(followed)
}

/// One GPU that stays as it is, for as long as anybody listens.
fn unchanging(tasks: &mut JoinSet<anyhow::Result<()>>, offer: GpuOffer, model: String) -> Followed {
    let description = Description {
        model,
        encoders: offer.capacity.nvenc,
        engine: None,
        session_limit: None,
        wanted: None,
    };
    let described = Arc::new(BTreeMap::from([(offer.uuid.clone(), description)]));
    let (offers, seen_offers) = watch::channel(Some(vec![offer]));
    let (describe, described) = watch::channel(described);
    let (measure, measured) = watch::channel(Arc::default());
    tasks.spawn(async move {
        tokio::join!(offers.closed(), describe.closed(), measure.closed());
        Ok(())
    });
    Followed {
        offers: seen_offers,
        described,
        measured,
    }
}

/// The node's CPU as a GPU. It has no SMs and no video memory of a GPU's, but pods that ask for them shall run here
/// too.
async fn software_offer(args: &Args, settings: &Settings) -> anyhow::Result<(GpuOffer, String)> {
    let (streamer, node) = (args.streamer.as_deref(), args.node_name.as_ref());
    let offer = standalone::software_offer(&args.capacity, settings, streamer, node).await?;
    let memory_info = std::fs::read_to_string(MEMORY_INFO)
        .with_context(|| format!("reading from {MEMORY_INFO} how much memory this node has"))?;
    let gpu = GpuOffer {
        uuid: offer.uuid,
        capacity: Resources {
            mps: SmPercent(100),
            vram: memory(&memory_info),
            ..offer.capacity
        },
        mps_clients: SOFTWARE_CLIENTS,
        unhealthy: BTreeMap::new(),
    };
    Ok((gpu, offer.model))
}

/// The memory of `MemTotal: 16318480 kB` (proc_meminfo(5)).
fn memory(memory_info: &str) -> VramBlocks {
    let line = memory_info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    let blocks = kib.unwrap_or_default() * 1024 / VRAM_BLOCK_BYTES;
    VramBlocks(
        u32::try_from(blocks)
            .unwrap_or(u32::MAX)
            .min(MOST_SOFTWARE_BLOCKS),
    )
}

async fn serve_ops(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    address: SocketAddr,
    registry: Registry,
    registered: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let doing = || format!("listening on {address} for /metrics (--metrics-listen chooses another)");
    let listener = TcpListener::bind(address).await.with_context(doing)?;
    let ready = move || match *registered.borrow() {
        true => Ok(()),
        false => Err("the kubelet does not know this plugin as yet; its log says why".to_owned()),
    };
    let router = ops::router::<()>(registry, Arc::new(ready));
    tasks.spawn(async move { Ok(axum::serve(listener, router).await?) });
    Ok(())
}

/// What the plugin is told, and how it answers.
pub(crate) struct Seams {
    /// The pods of this node, where they are watched.
    pub(crate) pods: Option<mpsc::Receiver<PodEvent>>,
    /// Its GPUs; none before they are known.
    pub(crate) gpus: watch::Receiver<Option<Vec<GpuOffer>>>,
    /// Builds what a container gets.
    pub(crate) answers: Answers,
    /// Counts what the kubelet is answered.
    pub(crate) metrics: Metrics,
}

/// What others may see of the plugin.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// Who holds what, once pods and kubelet have told of themselves.
    pub(crate) occupied: Occupied,
    /// Whether the kubelet knows us.
    pub(crate) registered: watch::Receiver<bool>,
}

/// The plugin, for one kubelet.
pub(crate) struct Plugin {
    lifecycle: Lifecycle,
    owner: Owner,
    looker: Looker,
}

impl Plugin {
    /// A plugin for the kubelet whose directory that is.
    pub(crate) fn new(kubelet_dir: &Path, seams: Seams) -> (Self, View) {
        let (calling, calls) = mpsc::channel(64);
        let (holdings, seen_holdings) = mpsc::channel(1);
        let (occupied, seen_occupied) = watch::channel(None);
        let (registered, seen_registered) = watch::channel(false);
        let (lists, listed) = devices::lists();
        let looks = Looks::default();
        let inputs = owner::Inputs {
            calls,
            pods: seams.pods,
            gpus: seams.gpus,
            holdings: seen_holdings,
            registered: seen_registered.clone(),
        };
        let outputs = owner::Outputs {
            answers: seams.answers,
            lists,
            occupied,
            metrics: seams.metrics,
        };
        let plugin = Self {
            lifecycle: Lifecycle {
                directory: kubelet_dir.join("device-plugins"),
                listed,
                calls: calling,
                registered,
            },
            owner: Owner::new(inputs, outputs, looks.clone()),
            looker: Looker {
                socket: kubelet_dir.join("pod-resources/kubelet.sock"),
                checkpoint: kubelet_dir.join("device-plugins").join(checkpoint::FILE),
                looks,
                registered: seen_registered.clone(),
                holdings,
            },
        };
        let view = View {
            occupied: seen_occupied,
            registered: seen_registered,
        };
        (plugin, view)
    }

    /// Runs until `told_to_end`, and until the kubelet's calls are answered, its streams ended and our sockets gone.
    ///
    /// # Errors
    /// Where a part of it ends by itself, which is a bug.
    pub(crate) async fn run(self, told_to_end: CancellationToken) -> anyhow::Result<()> {
        let mut parts = JoinSet::new();
        let all_answered = CancellationToken::new();
        parts.spawn(self.owner.run(all_answered.clone()));
        parts.spawn(self.looker.run(told_to_end.clone()));
        let lifecycle = self.lifecycle.run(told_to_end.clone());
        parts.spawn(async move {
            let _owner_goes_on_until_then = all_answered.drop_guard();
            lifecycle.await;
        });
        while let Some(ended) = parts.join_next().await {
            ended.context("a part of the device plugin failed")?;
            if !told_to_end.is_cancelled() {
                bail!("a part of the device plugin ended by itself");
            }
        }
        Ok(())
    }
}

const NONE_OPTED_IN: &str = "no GPU was opted in: pass --gpus all, or the UUIDs of those to use \
    (`penstock-plugin gpus` lists them), or --software-slices for this node's CPU";
/// No CUDA program runs there, so this bounds nothing.
const SOFTWARE_CLIENTS: u32 = 10_000;
const MEMORY_INFO: &str = "/proc/meminfo";
/// 256 GiB: more devices than a CPU's streams can use only lengthen the kubelet's lists.
const MOST_SOFTWARE_BLOCKS: u32 = 1024;
