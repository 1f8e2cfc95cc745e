//! What the agent shows to Prometheus.

use penstock_core::device::Resource;
use penstock_core::metrics::{
    AGENT_CAPACITY, AGENT_FREE, AGENT_HEALTHY, AGENT_RESTARTS, AGENT_SLICES, Metric,
};
use penstock_core::packing::Resources;
use penstock_core::wire::agent::{GpuStatus, SliceState, SliceStatus};
use prometheus::{IntCounter, IntGaugeVec, Opts, Registry};

/// The agent's metrics.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    /// Streamers that were started again.
    pub(super) restarts: IntCounter,
    slices: IntGaugeVec,
    capacity: IntGaugeVec,
    free: IntGaugeVec,
    healthy: IntGaugeVec,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// Where a name is registered already, or none.
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let gauges = |metric: Metric, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(metric.name, metric.help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let restarts = IntCounter::new(AGENT_RESTARTS.name, AGENT_RESTARTS.help)?;
        registry.register(Box::new(restarts.clone()))?;
        Ok(Self {
            restarts,
            slices: gauges(AGENT_SLICES, &["state"])?,
            capacity: gauges(AGENT_CAPACITY, &["gpu", "resource"])?,
            free: gauges(AGENT_FREE, &["gpu", "resource"])?,
            healthy: gauges(AGENT_HEALTHY, &["gpu", "resource"])?,
        })
    }

    /// Shows the state as it stands.
    pub(super) fn show(&self, slices: &[SliceStatus], gpus: &[GpuStatus]) {
        for (state, label) in STATES {
            let count = slices.iter().filter(|slice| slice.state == state).count();
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.slices.with_label_values(&[label]).set(count);
        }
        // GPUs may be gone.
        for gauges in [&self.capacity, &self.free, &self.healthy] {
            gauges.reset();
        }
        for gpu in gpus {
            show_amounts(&self.capacity, gpu, gpu.capacity);
            show_amounts(&self.free, gpu, gpu.free);
            for resource in Resource::ALL.map(Resource::short_name) {
                let healthy = self.healthy.with_label_values(&[gpu.uuid.as_str(), resource]);
                healthy.set((!gpu.unhealthy.contains_key(resource)).into());
            }
        }
    }
}

fn show_amounts(gauges: &IntGaugeVec, gpu: &GpuStatus, amounts: Resources) {
    for resource in Resource::ALL {
        gauges
            .with_label_values(&[gpu.uuid.as_str(), resource.short_name()])
            .set(resource.of(amounts).into());
    }
}

const STATES: [(SliceState, &str); 4] = [
    (SliceState::Starting, "starting"),
    (SliceState::Running, "running"),
    (SliceState::BackingOff, "backing-off"),
    (SliceState::Stopping, "stopping"),
];
