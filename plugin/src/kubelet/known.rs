//! All that is known of a node at one moment, put together from what holds, describes and measures it. No I/O.

use std::collections::BTreeMap;

use penstock_core::device::Resource;
use penstock_core::gpu_node::{
    self, Allocation, Capacity, ConditionStatus, Health, Measured, REGISTERED, ResourceHealth,
};
use penstock_core::ids::{GpuUuid, PodUid};
use penstock_core::packing::Resources;
use penstock_core::units::EncoderUnits;

use crate::assign::{GpuOffer, Occupancy, Slice};
use crate::gpunode::{NodeState, Observed, Overuse, PodRef, Reading};
use crate::gpus::Description;
use crate::load::{EncoderUse, PodLoad, Sessions};
use crate::nvml::measures::Measures;

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
pub(super) type Loads = BTreeMap<GpuUuid, BTreeMap<PodUid, PodLoad>>;

pub(super) fn known(
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
pub(super) fn uses(known: &NodeKnown, described: &BTreeMap<GpuUuid, Description>) -> Vec<EncoderUse> {
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

pub(super) fn node_state(known: &NodeKnown) -> NodeState {
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
        about: REGISTERED.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

/// The last that is said: the next plugin says something else once the kubelet knows it.
pub(super) fn ending() -> Observed {
    Observed {
        about: REGISTERED.to_owned(),
        status: ConditionStatus::False,
        reason: "Ending".to_owned(),
        message: "the device plugin of this node ends; until another is there no pod gets a slice".to_owned(),
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

pub(super) fn overuse(pod: &PodKnown) -> Option<(PodRef, Overuse)> {
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

#[cfg(test)]
pub(super) mod tests {
    use penstock_core::units::{SmPercent, VramBlocks};

    use super::*;
    use crate::nvml::measures::{Codec, EncoderSession};

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
    fn only_who_stays_over_its_slice_is_told_of() {
        let known = node();
        let (pod, over) = overuse(&known.pods[0]).unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("games", "a"));
        assert_eq!((over.used.0, over.slice.0), (37, 13));
        assert!(!known.pods[1].over);
        assert_eq!(overuse(&known.pods[1]), None);
    }

    /// One GPU with a pod over its slice, and a slice that nobody is known to hold.
    pub(in crate::kubelet) fn node() -> NodeKnown {
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

    pub(in crate::kubelet) fn t4() -> Description {
        Description {
            model: "Tesla T4".to_owned(),
            encoders: EncoderUnits(124),
            engine: Some(EncoderUnits(120)),
            session_limit: Some(8),
            wanted: None,
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
