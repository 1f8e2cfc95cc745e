//! What the device plugin tells of its node: to Prometheus, and to the cluster.
//!
//! ```text
//!   occupancy   who holds what ──┐                    ┌──► Metrics
//!   described   models ──────────┼──► NodeKnown ──────┼──► NodeState ──► GpuNode
//!   measures    NVML ─► by pod ──┘    (one moment)    └──► over its slice ──► an Event on the pod
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use kube::Client;
use penstock_core::device::Resource;
use penstock_core::gpu_node::{
    self, Allocation, Capacity, ConditionStatus, Health, Measured, ResourceHealth,
};
use penstock_core::ids::{GpuUuid, NodeName, PodUid};
use penstock_core::packing::Resources;
use penstock_core::units::EncoderUnits;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::metrics::Metrics;
use crate::assign::{GpuOffer, Occupancy, Slice};
use crate::gpunode::{NodeState, Observed, Overuse, OveruseReporter, PodRef, Reading, publish};
use crate::gpus::{Described, Description, Measuring};
use crate::load::{EncoderUse, PodLoad, Sessions, Watch, by_pod};
use crate::nvml::measures::Measures;
use crate::nvml::pods::PodFinder;

/// Who holds what; none until it is known.
pub(super) type Occupied = watch::Receiver<Option<Arc<Occupancy>>>;

/// All that is known of the node at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct NodeKnown {
    /// Whether the kubelet knows us.
    pub(super) registered: bool,
    /// Its GPUs.
    pub(super) gpus: Vec<GpuKnown>,
    /// The pods that hold something of them.
    pub(super) pods: Vec<PodKnown>,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct GpuKnown {
    pub(super) offer: GpuOffer,
    pub(super) model: String,
    /// What one of its encoder engines has, where that is known.
    pub(super) engine: Option<EncoderUnits>,
    /// Encoder sessions that the driver allows at one time, where it caps them.
    pub(super) session_limit: Option<u32>,
    /// What pods hold of it.
    pub(super) allocated: Resources,
    /// The MPS clients that are kept for them.
    pub(super) allocated_clients: u32,
    pub(super) measured: Option<Measures>,
    /// Its encoder sessions, summed up.
    pub(super) sessions: Option<Sessions>,
}

/// One pod on one GPU.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PodKnown {
    pub(super) slice: Slice,
    pub(super) load: Option<PodLoad>,
    /// What it uses of the encoder.
    pub(super) encoder_use: Option<EncoderUnits>,
    /// Whether that has been more than its slice for a while.
    pub(super) over: bool,
}

/// What pods use, by GPU.
type Loads = BTreeMap<GpuUuid, BTreeMap<PodUid, PodLoad>>;

/// Tells of the node.
pub(super) struct Reporter {
    inputs: Inputs,
    metrics: Metrics,
    finder: PodFinder,
    measures: Arc<Vec<Measures>>,
    loads: Loads,
    watch: Watch,
    over: Vec<EncoderUse>,
    cluster: Option<Cluster>,
}

/// What is told of.
pub(super) struct Inputs {
    pub(super) occupied: Occupied,
    pub(super) described: Described,
    pub(super) measured: Measuring,
    pub(super) registered: watch::Receiver<bool>,
}

/// The cluster that is told.
struct Cluster {
    client: Client,
    node: NodeName,
    /// Begun with the first state that is known.
    telling: Option<Telling>,
}

struct Telling {
    states: watch::Sender<NodeState>,
    overuse: mpsc::Sender<(PodRef, Overuse)>,
    _tasks: JoinSet<()>,
}

impl Reporter {
    /// One that shows `metrics`, and tells the cluster of `node` where there is one.
    pub(super) fn new(inputs: Inputs, metrics: Metrics, cluster: Option<(Client, NodeName)>) -> Self {
        Self {
            inputs,
            metrics,
            finder: PodFinder::default(),
            measures: Arc::default(),
            loads: Loads::new(),
            watch: Watch::default(),
            over: Vec::new(),
            cluster: cluster.map(|(client, node)| Cluster {
                client,
                node,
                telling: None,
            }),
        }
    }

    /// Tells until those it hears from are gone.
    pub(super) async fn run(mut self) {
        loop {
            self.tell();
            let inputs = &mut self.inputs;
            let heard = tokio::select! {
                heard = inputs.occupied.changed() => heard,
                heard = inputs.described.changed() => heard,
                heard = inputs.registered.changed() => heard,
                heard = inputs.measured.changed() => {
                    if heard.is_ok() {
                        self.measured();
                    }
                    heard
                }
            };
            if heard.is_err() {
                return;
            }
        }
    }

    fn measured(&mut self) {
        self.measures = Arc::clone(&self.inputs.measured.borrow_and_update());
        let finder = &mut self.finder;
        let load = |measures: &Measures| {
            let pods = by_pod(measures, |pid| finder.pod_of(pid));
            (measures.gpu.clone(), pods)
        };
        self.loads = self.measures.iter().map(load).collect();
        let uses = match self.known() {
            Some(known) => uses(&known, &self.inputs.described.borrow()),
            None => Vec::new(),
        };
        self.over = self.watch.take(&uses);
    }

    fn tell(&mut self) {
        let Some(known) = self.known() else { return };
        self.metrics.show(&known);
        if let Some(cluster) = &mut self.cluster {
            cluster.tell(&known);
        }
    }

    fn known(&mut self) -> Option<NodeKnown> {
        let occupancy = self.inputs.occupied.borrow_and_update().clone()?;
        let described = self.inputs.described.borrow_and_update().clone();
        let (gpus, pods) = known(&occupancy, &described, &self.measures, &self.loads, &self.over);
        Some(NodeKnown {
            registered: *self.inputs.registered.borrow_and_update(),
            gpus,
            pods,
        })
    }
}

impl Cluster {
    fn tell(&mut self, known: &NodeKnown) {
        let state = node_state(known);
        let telling = match &self.telling {
            Some(telling) => {
                telling.states.send_replace(state);
                telling
            }
            None => self
                .telling
                .insert(Telling::begin(&self.client, &self.node, state)),
        };
        for pod in known.pods.iter().filter(|pod| pod.over) {
            // Where the API server is slow the rest is told of at the next measurement.
            let _ = overuse(pod).map(|event| telling.overuse.try_send(event));
        }
    }
}

impl Telling {
    fn begin(client: &Client, node: &NodeName, state: NodeState) -> Self {
        let mut tasks = JoinSet::new();
        let (states, seen_states) = watch::channel(state);
        tasks.spawn(publish(client.clone(), node.clone(), seen_states));
        let (overuse, events) = mpsc::channel(MOST_EVENTS_WAITING);
        let reporter = OveruseReporter::new(client.clone(), node);
        tasks.spawn(write_events(reporter, events));
        Self {
            states,
            overuse,
            _tasks: tasks,
        }
    }
}

async fn write_events(mut reporter: OveruseReporter, mut events: mpsc::Receiver<(PodRef, Overuse)>) {
    while let Some((pod, overuse)) = events.recv().await {
        if let Err(error) = reporter.report(Instant::now(), &pod, &overuse).await {
            tracing::warn!("{error}");
        }
    }
}

fn known(
    occupancy: &Occupancy,
    described: &BTreeMap<GpuUuid, Description>,
    measures: &[Measures],
    loads: &Loads,
    over: &[EncoderUse],
) -> (Vec<GpuKnown>, Vec<PodKnown>) {
    let gpu = |offer: &GpuOffer| {
        let slices = || occupancy.slices.iter().filter(|slice| slice.gpu == offer.uuid);
        let description = described.get(&offer.uuid);
        let measured = measures.iter().find(|measures| measures.gpu == offer.uuid);
        let sessions = measured.and_then(|measures| measures.sessions.as_ref());
        GpuKnown {
            offer: offer.clone(),
            model: description.map(|d| d.model.clone()).unwrap_or_default(),
            engine: description.and_then(|d| d.engine),
            session_limit: description.and_then(|d| d.session_limit),
            allocated: slices().fold(Resources::NONE, |sum, slice| {
                sum.checked_add(slice.amounts).unwrap_or(sum)
            }),
            allocated_clients: slices().map(|slice| slice.mps_clients).sum(),
            measured: measured.cloned(),
            sessions: sessions.map(Sessions::of),
        }
    };
    let pod = |slice: &Slice| {
        let uid = slice.uid.as_ref();
        let load = uid.and_then(|uid| loads.get(&slice.gpu)?.get(uid));
        let all = described.get(&slice.gpu).map(|d| d.encoders);
        PodKnown {
            slice: slice.clone(),
            load: load.cloned(),
            encoder_use: load.zip(all).and_then(|(load, all)| load.encoder_use(all)),
            over: over
                .iter()
                .any(|one| Some(&one.pod) == uid && one.gpu == slice.gpu),
        }
    };
    let gpus = occupancy.gpus.iter().map(gpu).collect();
    let pods = occupancy.slices.iter().map(pod).collect();
    (gpus, pods)
}

/// What each pod uses of the encoder, where it can be measured.
fn uses(known: &NodeKnown, described: &BTreeMap<GpuUuid, Description>) -> Vec<EncoderUse> {
    let one = |pod: &PodKnown| {
        Some(EncoderUse {
            pod: pod.slice.uid.clone()?,
            gpu: pod.slice.gpu.clone(),
            used: pod.encoder_use?,
            slice: pod.slice.amounts.nvenc,
            all: described.get(&pod.slice.gpu)?.encoders,
        })
    };
    known.pods.iter().filter_map(one).collect()
}

fn node_state(known: &NodeKnown) -> NodeState {
    let gpu = |gpu: &GpuKnown| gpu_node::Gpu {
        uuid: gpu.offer.uuid.clone(),
        model: gpu.model.clone(),
        capacity: Capacity {
            nvenc: gpu.offer.capacity.nvenc,
            mps: gpu.offer.capacity.mps,
            vram: gpu.offer.capacity.vram,
            mps_clients: gpu.offer.mps_clients,
        },
        encoder_engine_units: gpu.engine,
        allocated: known
            .pods
            .iter()
            .filter(|pod| pod.slice.gpu == gpu.offer.uuid)
            .filter_map(|pod| allocation(&pod.slice))
            .collect(),
        measured: Measured::default(),
        encoder_session_limit: gpu.session_limit,
        health: health(&gpu.offer),
    };
    let reading = |gpu: &GpuKnown| {
        let reading = Reading {
            encoder_percent: gpu
                .measured
                .as_ref()
                .and_then(|measures| u8::try_from(measures.encoder_percent?).ok()),
            encoder_sessions: gpu.sessions.map(|sessions| sessions.count),
        };
        (gpu.offer.uuid.clone(), reading)
    };
    NodeState {
        gpus: known.gpus.iter().map(gpu).collect(),
        readings: known.gpus.iter().map(reading).collect(),
        conditions: vec![registered(known.registered)],
    }
}

/// Where the kubelet does not know us it starts no pod that asks for us.
fn registered(registered: bool) -> Observed {
    let (status, reason, message) = match registered {
        true => (ConditionStatus::True, "KubeletAnswered", ""),
        false => (
            ConditionStatus::False,
            "NoKubelet",
            "the kubelet does not know the device plugin; the plugin's log says why",
        ),
    };
    Observed {
        about: "Registered".to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

/// What is held of a GPU without anybody knowing by whom counts all the same: it is not free.
fn allocation(slice: &Slice) -> Option<Allocation> {
    let uid = || slice.uid.clone().or_else(|| PodUid::new(UNKNOWN).ok());
    Some(Allocation {
        namespace: slice.namespace.clone(),
        pod: slice.pod.clone(),
        pod_uid: uid()?,
        nvenc: slice.amounts.nvenc,
        mps: slice.amounts.mps,
        vram: slice.amounts.vram,
        mps_clients: slice.mps_clients,
    })
}

/// A resource that the GPU does not have has no health.
fn health(offer: &GpuOffer) -> Health {
    let of = |resource: Resource| {
        if resource.of(offer.capacity) == 0 {
            return None;
        }
        Some(match offer.unhealthy.get(&resource) {
            None => ResourceHealth::HEALTHY,
            Some(why) => ResourceHealth::unhealthy(why),
        })
    };
    Health {
        nvenc: of(Resource::Nvenc),
        mps: of(Resource::Mps),
        vram: of(Resource::Vram),
    }
}

fn overuse(pod: &PodKnown) -> Option<(PodRef, Overuse)> {
    let PodKnown { slice, .. } = pod;
    let reference = PodRef {
        namespace: slice.namespace.clone(),
        name: slice.pod.clone(),
        uid: slice.uid.clone()?,
    };
    let overuse = Overuse {
        gpu: slice.gpu.clone(),
        used: pod.encoder_use?,
        slice: slice.amounts.nvenc,
    };
    Some((reference, overuse))
}

/// The UID of a pod that is not known.
const UNKNOWN: &str = "unknown";
const MOST_EVENTS_WAITING: usize = 64;

#[cfg(test)]
mod tests {
    use penstock_core::units::{SmPercent, VramBlocks};
    use prometheus::{Encoder as _, Registry, TextEncoder};

    use super::*;
    use crate::nvml::measures::{Codec, EncoderSession, ProcessLoad};
    use crate::nvml::pods::tests::Proc;

    #[test]
    fn a_node_is_told_as_it_is() {
        let state = node_state(&node());
        let [gpu] = &state.gpus[..] else {
            panic!("{state:?}")
        };
        assert_eq!(
            (gpu.model.as_str(), gpu.encoder_session_limit),
            ("Tesla T4", Some(8))
        );
        assert_eq!(gpu.encoder_engine_units, Some(EncoderUnits(120)));
        assert_eq!(
            (gpu.capacity.nvenc.0, gpu.capacity.mps_clients, gpu.free().nvenc.0),
            (124, 48, 91)
        );
        let [a, unknown] = &gpu.allocated[..] else {
            panic!("{gpu:?}")
        };
        assert_eq!(
            (a.namespace.as_str(), a.pod.as_str(), a.pod_uid.as_str()),
            ("games", "a", "uid-a")
        );
        assert_eq!((a.nvenc.0, a.mps.0, a.mps_clients), (13, 20, 1));
        assert_eq!((unknown.pod_uid.as_str(), unknown.nvenc.0), ("unknown", 20));
        let reading = state.readings[&gpu.uuid];
        assert_eq!(
            (reading.encoder_percent, reading.encoder_sessions),
            (Some(47), Some(2))
        );
        assert_eq!(state.conditions[0].status, ConditionStatus::True);
    }

    #[test]
    fn what_a_gpu_lacks_has_no_health() {
        let mut known = node();
        known.gpus[0].offer.capacity.mps = SmPercent(0);
        known.gpus[0]
            .offer
            .unhealthy
            .insert(Resource::Nvenc, "XID 47".to_owned());
        let health = node_state(&known).gpus[0].health.clone();
        assert_eq!(health.nvenc, Some(ResourceHealth::unhealthy("XID 47")));
        assert_eq!((health.mps, health.vram), (None, Some(ResourceHealth::HEALTHY)));
    }

    #[test]
    fn metrics_say_what_is_known_and_nothing_of_what_was() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        metrics.show(&node());
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
        metrics.show(&later);
        let text = shown(&registry);
        assert!(!text.contains(r#"pod="a""#), "{text}");
    }

    #[test]
    fn only_who_stays_over_its_slice_is_told_of() {
        let known = node();
        let (pod, over) = overuse(&known.pods[0]).unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("games", "a"));
        assert_eq!((over.used.0, over.slice.0), (37, 13));
        assert!(!known.pods[1].over);
        assert_eq!(overuse(&known.pods[1]), None);
    }

    #[tokio::test]
    async fn a_process_of_a_pod_is_counted_as_the_pods_and_told_of_once_it_stays_over() {
        let proc = Proc::new();
        let uid = "0c2d3e4f-1a2b-4c3d-8e9f-0123456789ab";
        proc.write(7, 100, &format!("0::/kubepods/burstable/pod{uid}/ab12\n"));
        let (gpu, mut slice) = {
            let known = node();
            (known.gpus[0].clone(), known.pods[0].slice.clone())
        };
        slice.uid = Some(PodUid::new(uid).unwrap());
        let occupancy = Occupancy {
            gpus: vec![gpu.offer],
            slices: vec![slice],
        };
        let described = Arc::new(BTreeMap::from([("GPU-1".parse().unwrap(), t4())]));
        let (_occupied, occupied) = watch::channel(Some(Arc::new(occupancy)));
        let (_described, described) = watch::channel(described);
        let (measure, measured) = watch::channel(Arc::default());
        let (_registered, registered) = watch::channel(true);
        let inputs = Inputs {
            occupied,
            described,
            measured,
            registered,
        };
        let registry = Registry::new();
        let mut reporter = Reporter::new(inputs, Metrics::new(&registry).unwrap(), None);
        reporter.finder = proc.finder();
        let line = |value| {
            format!(r#"penstock_plugin_pod_over_slice{{gpu="GPU-1",namespace="games",pod="a"}} {value}"#)
        };
        let mut over = Vec::new();
        for percent in [30, 30, 30, 5] {
            let load = ProcessLoad {
                encoder_percent: Some(percent),
                ..ProcessLoad::default()
            };
            let measures = Measures {
                processes: BTreeMap::from([(7, load)]),
                ..gpu.measured.clone().unwrap()
            };
            measure.send_replace(Arc::new(vec![measures]));
            reporter.measured();
            reporter.tell();
            let text = shown(&registry);
            assert!(text.contains(&line(0)) || text.contains(&line(1)), "{text}");
            over.push(text.contains(&line(1)));
        }
        assert_eq!(over, [false, false, true, false]);
    }

    fn shown(registry: &Registry) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn t4() -> Description {
        Description {
            model: "Tesla T4".to_owned(),
            encoders: EncoderUnits(124),
            engine: Some(EncoderUnits(120)),
            session_limit: Some(8),
            wanted: None,
        }
    }

    /// One GPU with a pod over its slice, and a slice that nobody is known to hold.
    fn node() -> NodeKnown {
        let uuid: GpuUuid = "GPU-1".parse().unwrap();
        let uid = PodUid::new("uid-a").unwrap();
        let offer = GpuOffer {
            uuid: uuid.clone(),
            capacity: amounts(124, 100, 60),
            mps_clients: 48,
            unhealthy: BTreeMap::new(),
        };
        let slice = |pod: &str, uid: Option<&PodUid>, amounts| Slice {
            namespace: if pod.is_empty() { "" } else { "games" }.to_owned(),
            pod: pod.to_owned(),
            uid: uid.cloned(),
            gpu: uuid.clone(),
            amounts,
            mps_clients: u32::from(!pod.is_empty()),
        };
        let occupancy = Occupancy {
            gpus: vec![offer],
            slices: vec![
                slice("a", Some(&uid), amounts(13, 20, 4)),
                slice("", None, amounts(20, 0, 0)),
            ],
        };
        let session = |fps| EncoderSession {
            pid: 1,
            codec: Codec::H264,
            width: 1280,
            height: 720,
            fps,
            latency_us: 900,
        };
        let measures = Measures {
            gpu: uuid.clone(),
            encoder_percent: Some(47),
            sm_percent: None,
            memory_used_bytes: Some(5 << 20),
            sessions: Some(vec![session(30), session(60)]),
            processes: BTreeMap::new(),
        };
        let load = PodLoad {
            encoder_percent: Some(30),
            memory_bytes: Some(1000),
            ..PodLoad::default()
        };
        let loads = BTreeMap::from([(uuid.clone(), BTreeMap::from([(uid.clone(), load)]))]);
        let over = EncoderUse {
            pod: uid,
            gpu: uuid.clone(),
            used: EncoderUnits(37),
            slice: EncoderUnits(13),
            all: EncoderUnits(124),
        };
        let described = BTreeMap::from([(uuid, t4())]);
        let (gpus, pods) = known(&occupancy, &described, &[measures], &loads, &[over]);
        NodeKnown {
            registered: true,
            gpus,
            pods,
        }
    }

    fn amounts(nvenc: u32, mps: u32, vram: u32) -> Resources {
        Resources {
            nvenc: EncoderUnits(nvenc),
            mps: SmPercent(mps),
            vram: VramBlocks(vram),
        }
    }
}
