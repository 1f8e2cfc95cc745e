//! What the device plugin shows to Prometheus.
//!
//! Labels are bounded: GPUs, resources and XIDs by what there is, pods by those that hold a slice of this node now.

use penstock_core::device::Resource;
use penstock_core::metrics::{self, Metric};
use penstock_core::packing::Resources;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, GaugeVec, IntCounterVec, Opts, Registry};
use tokio::sync::watch;

use super::known::{GpuKnown, NodeKnown, PodKnown};

/// The metrics.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    /// Allocations, by resource.
    pub(super) allocations: IntCounterVec,
    /// Refusals, by resource.
    pub(super) refusals: IntCounterVec,
    /// The driver's errors, by GPU and code.
    pub(super) xids: IntCounterVec,
    node: watch::Sender<NodeKnown>,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// Where a name is registered already.
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counters = |metric: Metric, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(metric.name, metric.help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            prometheus::Result::Ok(counters)
        };
        let allocations = counters(metrics::PLUGIN_ALLOCATIONS, &["resource"])?;
        let refusals = counters(metrics::PLUGIN_REFUSALS, &["resource"])?;
        // A counter that is not there until it counts can't be alerted on.
        for resource in Resource::ALL {
            allocations.with_label_values(&[short(resource)]);
            refusals.with_label_values(&[short(resource)]);
        }
        let xids = counters(metrics::PLUGIN_XIDS, &["gpu", "xid"])?;
        let (node, known) = watch::channel(NodeKnown::default());
        let gauges = Gauges::new()?;
        registry.register(Box::new(OfNode { known, gauges }))?;
        Ok(Self {
            allocations,
            refusals,
            xids,
            node,
        })
    }

    /// Shows the node as it is now, and nothing of what was.
    pub(super) fn show(&self, node: NodeKnown) {
        self.node.send_replace(node);
    }
}

/// The metrics of the node: made when somebody asks for them, since there are many and they change often.
struct OfNode {
    known: watch::Receiver<NodeKnown>,
    /// By which the registry knows what they will be.
    gauges: Gauges,
}

impl Collector for OfNode {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // The same was done when they were registered, so it works.
        let Ok(gauges) = Gauges::new() else {
            return Vec::new();
        };
        gauges.show(&self.known.borrow());
        gauges.all().into_iter().flat_map(Collector::collect).collect()
    }
}

/// What there is to say of a node.
#[derive(Debug)]
struct Gauges {
    registered: Gauge,
    capacity: GaugeVec,
    allocated: GaugeVec,
    healthy: GaugeVec,
    gpu: Load,
    pod: Load,
    pod_slice: GaugeVec,
    pod_units: GaugeVec,
    pod_over: GaugeVec,
}

/// What was measured of a GPU, or of a pod on one.
#[derive(Debug)]
struct Load {
    encoder: GaugeVec,
    sm: GaugeVec,
    memory: GaugeVec,
    sessions: GaugeVec,
    fps: GaugeVec,
}

impl Gauges {
    fn new() -> prometheus::Result<Self> {
        let registered = metrics::PLUGIN_REGISTERED;
        Ok(Self {
            registered: Gauge::new(registered.name, registered.help)?,
            capacity: gauges(metrics::PLUGIN_CAPACITY, &["gpu", "model", "resource"])?,
            allocated: gauges(metrics::PLUGIN_ALLOCATED, &["gpu", "resource"])?,
            healthy: gauges(metrics::PLUGIN_HEALTHY, &["gpu", "resource"])?,
            gpu: Load {
                encoder: gauges(metrics::PLUGIN_GPU_ENCODER, GPU)?,
                sm: gauges(metrics::PLUGIN_GPU_SM, GPU)?,
                memory: gauges(metrics::PLUGIN_GPU_MEMORY, GPU)?,
                sessions: gauges(metrics::PLUGIN_GPU_SESSIONS, GPU)?,
                fps: gauges(metrics::PLUGIN_GPU_FPS, GPU)?,
            },
            pod: Load {
                encoder: gauges(metrics::PLUGIN_POD_ENCODER, POD)?,
                sm: gauges(metrics::PLUGIN_POD_SM, POD)?,
                memory: gauges(metrics::PLUGIN_POD_MEMORY, POD)?,
                sessions: gauges(metrics::PLUGIN_POD_SESSIONS, POD)?,
                fps: gauges(metrics::PLUGIN_POD_FPS, POD)?,
            },
            pod_slice: gauges(
                metrics::PLUGIN_POD_SLICE,
                &["gpu", "namespace", "pod", "resource"],
            )?,
            pod_units: gauges(metrics::PLUGIN_POD_ENCODER_UNITS, POD)?,
            pod_over: gauges(metrics::PLUGIN_POD_OVER_SLICE, POD)?,
        })
    }

    fn all(&self) -> Vec<&dyn Collector> {
        let mut all: Vec<&dyn Collector> = vec![&self.registered];
        for gauges in [
            &self.capacity,
            &self.allocated,
            &self.healthy,
            &self.pod_slice,
            &self.pod_units,
            &self.pod_over,
        ] {
            all.push(gauges);
        }
        for load in [&self.gpu, &self.pod] {
            for gauges in [&load.encoder, &load.sm, &load.memory, &load.sessions, &load.fps] {
                all.push(gauges);
            }
        }
        all
    }

    fn show(&self, node: &NodeKnown) {
        self.registered.set(f64::from(u8::from(node.registered)));
        for gpu in &node.gpus {
            self.show_gpu(gpu);
        }
        for pod in &node.pods {
            self.show_pod(pod);
        }
    }

    fn show_gpu(&self, gpu: &GpuKnown) {
        let uuid = gpu.offer.uuid.as_str();
        let capacity = amounts(gpu.offer.capacity, gpu.offer.mps_clients);
        for (resource, amount) in capacity {
            set(
                &self.capacity,
                &[uuid, &gpu.model, resource],
                Some(f64::from(amount)),
            );
        }
        for (resource, amount) in amounts(gpu.allocated, gpu.allocated_clients) {
            set(&self.allocated, &[uuid, resource], Some(f64::from(amount)));
        }
        for resource in Resource::ALL {
            let healthy = !gpu.offer.unhealthy.contains_key(&resource);
            set(
                &self.healthy,
                &[uuid, short(resource)],
                Some(f64::from(u8::from(healthy))),
            );
        }
        let Some(measured) = &gpu.measured else { return };
        let labels = &[uuid];
        set(&self.gpu.encoder, labels, measured.encoder_percent.map(as_ratio));
        set(&self.gpu.sm, labels, measured.sm_percent.map(as_ratio));
        set(
            &self.gpu.memory,
            labels,
            measured.memory_used_bytes.map(as_number),
        );
        set(
            &self.gpu.sessions,
            labels,
            gpu.sessions.map(|s| f64::from(s.count)),
        );
        set(&self.gpu.fps, labels, gpu.sessions.map(|s| f64::from(s.fps)));
    }

    fn show_pod(&self, pod: &PodKnown) {
        let slice = &pod.slice;
        let [gpu, namespace, name] = [slice.gpu.as_str(), &slice.namespace, &slice.pod];
        for (resource, amount) in amounts(slice.amounts, slice.mps_clients) {
            let labels = &[gpu, namespace, name, resource];
            set(&self.pod_slice, labels, Some(f64::from(amount)));
        }
        let Some(load) = &pod.load else { return };
        let labels = &[gpu, namespace, name];
        set(&self.pod.encoder, labels, load.encoder_percent.map(as_ratio));
        set(&self.pod.sm, labels, load.sm_percent.map(as_ratio));
        set(&self.pod.memory, labels, load.memory_bytes.map(as_number));
        set(
            &self.pod.sessions,
            labels,
            load.sessions.map(|s| f64::from(s.count)),
        );
        set(&self.pod.fps, labels, load.sessions.map(|s| f64::from(s.fps)));
        set(
            &self.pod_units,
            labels,
            pod.encoder_use.map(|units| f64::from(units.0)),
        );
        let over = pod.encoder_use.map(|_| f64::from(u8::from(pod.over)));
        set(&self.pod_over, labels, over);
    }
}

fn gauges(metric: Metric, labels: &[&str]) -> prometheus::Result<GaugeVec> {
    GaugeVec::new(Opts::new(metric.name, metric.help), labels)
}

/// What is not known is left out.
fn set(gauges: &GaugeVec, labels: &[&str], value: Option<f64>) {
    if let Some(value) = value {
        gauges.with_label_values(labels).set(value);
    }
}

fn amounts(amounts: Resources, mps_clients: u32) -> [(&'static str, u32); 4] {
    [
        (short(Resource::Nvenc), amounts.nvenc.0),
        (short(Resource::Mps), amounts.mps.0),
        (short(Resource::Vram), amounts.vram.0),
        ("mps-clients", mps_clients),
    ]
}

/// Without the domain, which all have in common.
pub(super) fn short(resource: Resource) -> &'static str {
    match resource {
        Resource::Nvenc => "nvenc",
        Resource::Mps => "mps",
        Resource::Vram => "vram",
    }
}

fn as_ratio(percent: u32) -> f64 {
    f64::from(percent) / 100.0
}

/// Prometheus has no other numbers; exact up to 8 PiB.
fn as_number(bytes: u64) -> f64 {
    bytes as f64
}

const GPU: &[&str] = &["gpu"];
const POD: &[&str] = &["gpu", "namespace", "pod"];

#[cfg(test)]
pub(super) mod tests {
    use prometheus::{Encoder as _, TextEncoder};

    use super::super::known::tests::node;
    use super::*;

    #[test]
    fn metrics_say_what_is_known_and_nothing_of_what_was() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        metrics.show(node());
        let text = shown(&registry);
        let pod = r#"gpu="GPU-1",namespace="games",pod="a""#;
        for line in [
            "penstock_plugin_registered 1".to_owned(),
            r#"penstock_plugin_capacity{gpu="GPU-1",model="Tesla T4",resource="nvenc"} 124"#.to_owned(),
            r#"penstock_plugin_allocated{gpu="GPU-1",resource="nvenc"} 33"#.to_owned(),
            r#"penstock_plugin_healthy{gpu="GPU-1",resource="mps"} 1"#.to_owned(),
            r#"penstock_plugin_gpu_encoder_utilization_ratio{gpu="GPU-1"} 0.47"#.to_owned(),
            r#"penstock_plugin_gpu_encoder_sessions{gpu="GPU-1"} 2"#.to_owned(),
            r#"penstock_plugin_gpu_encoder_fps{gpu="GPU-1"} 90"#.to_owned(),
            format!("penstock_plugin_pod_encoder_utilization_ratio{{{pod}}} 0.3"),
            format!("penstock_plugin_pod_encoder_units{{{pod}}} 37"),
            format!("penstock_plugin_pod_over_slice{{{pod}}} 1"),
            format!("penstock_plugin_pod_memory_used_bytes{{{pod}}} 1000"),
            r#"penstock_plugin_refusals_total{resource="nvenc"} 0"#.to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        // NVML could not tell.
        assert!(!text.contains("gpu_sm_utilization") && !text.contains("pod_sm_utilization"));
        let later = NodeKnown {
            pods: Vec::new(),
            ..node()
        };
        metrics.show(later);
        let text = shown(&registry);
        assert!(!text.contains(r#"pod="a""#), "{text}");
    }

    /// All of them, as Prometheus reads them.
    pub(in crate::kubelet) fn shown(registry: &Registry) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }
}
