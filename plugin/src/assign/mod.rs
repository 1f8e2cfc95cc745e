//! Which GPU a container's devices come from: a stand-in that knows neither pods nor what it handed out before. It
//! keeps what one call asks for on one GPU, the fullest that has enough.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use penstock_core::device::{DeviceId, Resource};
use penstock_core::ids::GpuUuid;
use penstock_core::packing::Resources;

/// A GPU as it is offered to the kubelet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GpuOffer {
    /// Its name.
    pub(crate) uuid: GpuUuid,
    /// All that pods may take of it.
    pub(crate) capacity: Resources,
    /// MPS clients that it takes.
    pub(crate) mps_clients: u32,
    /// The resources that it can't give now, each with the reason.
    pub(crate) unhealthy: BTreeMap<Resource, String>,
}

/// What a container is to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "the watch of pods makes them"))]
pub(crate) enum ContainerKind {
    /// Runs to its end before the others start.
    Init,
    /// An init container that goes on beside the others.
    Sidecar,
    /// One of the pod's containers.
    App,
}

/// What one container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerAsk {
    /// Its name.
    pub(crate) name: String,
    /// What it is.
    pub(crate) kind: ContainerKind,
    /// All it asks for of us.
    pub(crate) demand: Resources,
}

/// A pod bound to this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodOnNode {
    /// Its UID.
    pub(crate) uid: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// When it was made, in seconds since 1970.
    pub(crate) created_unix_s: i64,
    /// The GPU that the scheduler chose.
    pub(crate) gpu: Option<GpuUuid>,
    /// Whether it has ended or is being deleted.
    pub(crate) over: bool,
    /// Its containers in the order in which the kubelet admits them.
    pub(crate) containers: Vec<ContainerAsk>,
}

/// What the kubelet says that a container holds of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    /// The pod's namespace.
    pub(crate) namespace: String,
    /// The pod's name.
    pub(crate) pod: String,
    /// The container.
    pub(crate) container: String,
    /// The resource.
    pub(crate) resource: Resource,
    /// Its devices.
    pub(crate) ids: Vec<DeviceId>,
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome<T> {
    /// This.
    Done(T),
    /// Ask again when pods, GPUs or what is held change, or at that instant.
    Wait(Instant),
    /// No, in words for the pod's owner.
    Refuse(String),
}

/// What a container is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The GPU.
    pub(crate) gpu: GpuUuid,
    /// The pod, as `namespace/name`, where it is known.
    pub(crate) pod: Option<String>,
    /// The container's whole demand, as far as it is known.
    pub(crate) container: Resources,
    /// Whether some container of the pod encodes.
    pub(crate) pod_has_nvenc: bool,
}

/// The decisions.
#[derive(Debug, Default)]
pub(crate) struct Assigner {
    gpus: Vec<GpuOffer>,
}

impl Assigner {
    /// The GPUs as they are now.
    pub(crate) fn set_gpus(&mut self, gpus: Vec<GpuOffer>) {
        self.gpus = gpus;
    }

    /// All pods of this node.
    pub(crate) fn set_pods(&mut self, _pods: Vec<PodOnNode>) {}

    /// One pod, new or changed.
    pub(crate) fn apply_pod(&mut self, _pod: PodOnNode) {}

    /// A pod that is gone.
    pub(crate) fn delete_pod(&mut self, _uid: &str) {}

    /// What the kubelet says is held.
    pub(crate) fn set_held(&mut self, _now: Instant, _held: &[Held]) {}

    /// `size` of `available`, with all of `must_include`, from one GPU.
    pub(crate) fn preferred(
        &mut self,
        now: Instant,
        resource: Resource,
        available: &[DeviceId],
        must_include: &[DeviceId],
        size: usize,
    ) -> Outcome<Vec<DeviceId>> {
        if self.gpus.is_empty() {
            return Outcome::Wait(now + ASK_AGAIN);
        }
        let fitting = by_gpu(available)
            .into_iter()
            .filter(|(gpu, ids)| ids.len() >= size && must_include.iter().all(|id| id.gpu() == *gpu));
        let Some((_, ids)) = fitting.min_by_key(|(_, ids)| ids.len()) else {
            let name = resource.name();
            return Outcome::Refuse(format!(
                "no GPU of this node has {size} of {name} free: ask for less, or end a pod"
            ));
        };
        let others = ids.into_iter().filter(|id| !must_include.contains(id)).cloned();
        let mut preferred = must_include.to_vec();
        preferred.extend(others.take(size.saturating_sub(must_include.len())));
        Outcome::Done(preferred)
    }

    /// What the container that is given `ids` gets.
    pub(crate) fn allocate(&mut self, now: Instant, resource: Resource, ids: &[DeviceId]) -> Outcome<Grant> {
        if self.gpus.is_empty() {
            return Outcome::Wait(now + ASK_AGAIN);
        }
        let gpus: BTreeSet<_> = ids.iter().map(DeviceId::gpu).collect();
        match gpus.into_iter().collect::<Vec<_>>()[..] {
            [gpu] => Outcome::Done(Grant {
                gpu: gpu.clone(),
                pod: None,
                container: resource.amount(u32::try_from(ids.len()).unwrap_or(u32::MAX)),
                pod_has_nvenc: resource == Resource::Nvenc,
            }),
            _ => Outcome::Refuse(format!(
                "the {} devices that the kubelet chose are not of one GPU: delete the pod, and it is placed anew",
                resource.name()
            )),
        }
    }
}

fn by_gpu(ids: &[DeviceId]) -> BTreeMap<&GpuUuid, Vec<&DeviceId>> {
    let mut gpus: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for id in ids {
        gpus.entry(id.gpu()).or_default().push(id);
    }
    gpus
}

const ASK_AGAIN: Duration = Duration::from_secs(1);
