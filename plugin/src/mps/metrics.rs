//! What the daemons' process shows to Prometheus, and whether it is ready.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use penstock_core::ids::GpuUuid;
use penstock_core::metrics::{MPS_CLIENTS, MPS_RESTARTS, MPS_UP, Metric};
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};
use tokio::sync::watch;

use super::layout::Layout;
use super::watch::{Health, look};
use crate::nvml::measures::mps_clients;

/// What is served, for others to see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Served {
    /// The GPUs that have daemons, or shall have.
    pub(super) gpus: BTreeSet<GpuUuid>,
    /// Why NVML can't say which GPUs there are.
    pub(super) unavailable: Option<String>,
}

/// The metrics, each by GPU.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    up: IntGaugeVec,
    restarts: IntCounterVec,
    clients: IntGaugeVec,
    /// The GPUs that had a daemon before.
    started: BTreeSet<GpuUuid>,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// Where a name is registered already, or none.
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let opts = |metric: Metric| Opts::new(metric.name, metric.help);
        let metrics = Self {
            up: IntGaugeVec::new(opts(MPS_UP), &["gpu"])?,
            restarts: IntCounterVec::new(opts(MPS_RESTARTS), &["gpu"])?,
            clients: IntGaugeVec::new(opts(MPS_CLIENTS), &["gpu"])?,
            started: BTreeSet::new(),
        };
        registry.register(Box::new(metrics.up.clone()))?;
        registry.register(Box::new(metrics.restarts.clone()))?;
        registry.register(Box::new(metrics.clients.clone()))?;
        Ok(metrics)
    }

    /// A daemon is started, for the first time or again.
    pub(super) fn started(&mut self, gpu: &GpuUuid) {
        let restarts = self.restarts.with_label_values(&[gpu.as_str()]);
        if !self.started.insert(gpu.clone()) {
            restarts.inc();
        }
    }

    /// The GPU is gone, and its daemon with it.
    pub(super) fn forget(&mut self, gpu: &GpuUuid) {
        self.started.remove(gpu);
        // Of one that was never shown there is nothing to remove.
        let _ = self.restarts.remove_label_values(&[gpu.as_str()]);
    }
}

/// Looks at the daemons of what is served, for as long as anybody serves.
pub(super) async fn follow(
    metrics: Metrics,
    layout: Layout,
    library: Option<PathBuf>,
    served: watch::Receiver<Served>,
) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    for nth in 0_u64.. {
        ticks.tick().await;
        let gpus = served.borrow().gpus.clone();
        metrics.up.reset();
        for gpu in &gpus {
            let is_up = look(&layout.pipe_dir(gpu)) == Health::Alive;
            metrics.up.with_label_values(&[gpu.as_str()]).set(is_up.into());
        }
        if nth.is_multiple_of(COUNT_CLIENTS_EVERY) {
            let library = library.clone();
            // NVML may take its time, and daemons that die are not to wait for that.
            let counted = tokio::task::spawn_blocking(move || mps_clients(library.as_deref(), &gpus)).await;
            metrics.clients.reset();
            for (gpu, clients) in counted.unwrap_or_default() {
                metrics.clients.with_label_values(&[gpu.as_str()]).set(clients);
            }
        }
        if served.has_changed().is_err() {
            return;
        }
    }
}

/// Ready: there are GPUs to serve, and every daemon's pipe answers.
pub(super) fn ready(layout: &Layout, served: &Served) -> Result<(), String> {
    if served.gpus.is_empty() {
        let unavailable = served.unavailable.clone();
        return Err(
            unavailable.unwrap_or_else(|| "NVML shows no GPU that is to have an MPS daemon".to_owned())
        );
    }
    let dead = served
        .gpus
        .iter()
        .find_map(|gpu| match look(&layout.pipe_dir(gpu)) {
            Health::Alive => None,
            Health::Dead(cause) => Some(format!("{gpu}: {cause}")),
        });
    dead.map_or(Ok(()), Err)
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// In looks: each question to NVML is one for the driver, too.
const COUNT_CLIENTS_EVERY: u64 = 15;
