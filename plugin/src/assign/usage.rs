//! Who holds what: as the kubelet says, and what was given since.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use penstock_core::device::{DeviceId, Resource};
use penstock_core::ids::{GpuUuid, PodUid};
use penstock_core::packing::Resources;
use penstock_core::pod_demand::ContainerKind;

use super::pods::Pods;
use super::{Devices, Held, Stored};
use crate::pods::PodOnNode;

/// What is held on this node.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// As podresources says: all but what init containers have.
    listed: Vec<Held>,
    /// As the kubelet's checkpoint says, where it can be read: all that it gave to containers that are finished with.
    stored: Option<Vec<Stored>>,
    /// What of `stored` counts besides `listed`, by the pods that are known.
    resolved: Vec<Held>,
    /// Whether the kubelet has begun anew: then it lists a pod only once it has come to it.
    begun_anew: bool,
    /// Given since, and when.
    fresh: Vec<(Instant, Held)>,
    /// Pods that have ended, since the kubelet gives to others what it had shown them to have. It may go on showing that,
    /// and the API server tell of it later.
    over: BTreeSet<PodUid>,
    /// Pods that are gone and still stored: not to be taken for new ones.
    gone: BTreeSet<PodUid>,
}

/// A list may be this much older than it looks; what was given within it stays counted.
pub(super) const LIST_LAG: Duration = Duration::from_secs(5);

impl Usage {
    /// Takes a new list. What it shows, or is old enough to show, is no longer counted as given since. One that is
    /// `certain` has all that was given to containers that are finished with; but without a checkpoint none of what init
    /// containers have.
    pub(super) fn replace(
        &mut self,
        now: Instant,
        (listed, stored): (Vec<Held>, Option<Vec<Stored>>),
        certain: bool,
        restarted: bool,
        pods: &Pods,
    ) {
        self.listed = listed;
        self.stored = stored;
        self.begun_anew = restarted;
        let stored_pods: BTreeSet<_> = self.stored.iter().flatten().map(|stored| &stored.pod).collect();
        self.gone.retain(|uid| stored_pods.contains(uid));
        self.resolve(pods);
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.retain(|(given, held)| {
            let out_of_sight = self.stored.is_none() && is_init(pods, held);
            let left_by = |shown: &Held| {
                (&shown.namespace, &shown.pod) == (&held.namespace, &held.pod)
                    && shown.container != held.container
            };
            !self.shows(held.resource, &held.ids, left_by)
                && (out_of_sight || !certain && now.duration_since(*given) < LIST_LAG)
        });
        self.fresh = fresh;
    }

    /// Finds out again what of the checkpoint counts: pods have changed.
    pub(super) fn resolve(&mut self, pods: &Pods) {
        let mut listed: BTreeMap<_, Vec<&Held>> = BTreeMap::new();
        for held in &self.listed {
            let pod = (held.namespace.as_str(), held.pod.as_str());
            listed.entry(pod).or_default().push(held);
        }
        let stored = self.stored.as_deref().unwrap_or_default();
        let counts = stored.iter().filter_map(|stored| {
            let pod = pods
                .get(&stored.pod)
                .filter(|pod| !pods.has_ended(pod) && !self.over.contains(&pod.uid))?;
            let listed = listed.get(&(pod.namespace.as_str(), pod.name.as_str()));
            // The kubelet strikes out what has ended only when it writes for another pod. A pod that it has stored more of
            // than init containers, and does not list, has ended.
            let runs = listed.is_some() || self.begun_anew || !stored_for_long(pod, self.of_pod(&pod.uid));
            let again =
                |held: &&Held| (&held.container, held.resource) == (&stored.container, stored.resource);
            let is_new = !listed.into_iter().flatten().copied().any(|held| again(&held));
            (runs && is_new).then(|| stored.of(pod))
        });
        self.resolved = counts.collect();
    }

    /// Whether the last list has what init containers were given.
    pub(super) fn has_init_containers(&self) -> bool {
        self.stored.is_some()
    }

    /// Counts what was given to pods that are known now.
    pub(super) fn give(&mut self, now: Instant, held: Vec<Held>) {
        self.fresh.extend(held.into_iter().map(|held| (now, held)));
    }

    /// The kubelet has devices to give that others than `whose` had, as far as is known: those have ended. Gives whether there
    /// are such.
    pub(super) fn take_back(
        &mut self,
        pods: &Pods,
        resource: Resource,
        ids: &Devices,
        whose: &[&PodOnNode],
    ) -> bool {
        let is_one = |held: &&Held| held.resource == resource && ids.contain_any(&held.ids);
        let over: Vec<_> = self
            .held()
            .filter(is_one)
            .filter_map(|held| pods.by_name(&held.namespace, &held.pod))
            .collect();
        let over: Vec<_> = over
            .into_iter()
            .filter(|pod| !whose.iter().any(|other| other.uid == pod.uid))
            .collect();
        for pod in &over {
            self.over.insert(pod.uid.clone());
            self.forget_held(pod);
        }
        let is_one = |stored: &&Stored| stored.resource == resource && ids.contain_any(&stored.ids);
        let unknown = |stored: &&Stored| pods.get(&stored.pod).is_none();
        let stored = self.stored.iter().flatten().filter(is_one).filter(unknown);
        self.gone.extend(stored.map(|stored| stored.pod.clone()));
        !over.is_empty()
    }

    /// Forgets a pod that is gone: another of its name begins with nothing.
    pub(super) fn forget(&mut self, pod: &PodOnNode) {
        self.over.remove(&pod.uid);
        self.gone.insert(pod.uid.clone());
        self.forget_held(pod);
    }

    fn forget_held(&mut self, pod: &PodOnNode) {
        let another = |held: &Held| !pod.is(&held.namespace, &held.pod);
        self.listed.retain(another);
        self.fresh.retain(|(_, held)| another(held));
        self.resolved.retain(another);
    }

    /// All that is held.
    fn held(&self) -> impl Iterator<Item = &Held> {
        self.shown().chain(self.fresh.iter().map(|(_, held)| held))
    }

    fn shown(&self) -> impl Iterator<Item = &Held> {
        self.listed.iter().chain(&self.resolved)
    }

    /// Whether a container was given a resource.
    pub(super) fn has(&self, pod: &PodOnNode, container: &str, resource: Resource) -> bool {
        self.of(pod)
            .any(|held| held.container == container && held.resource == resource)
    }

    /// Whether the kubelet has shown that one container holds these devices, other than ones that may have left them to the
    /// container in question.
    pub(super) fn shows(&self, resource: Resource, ids: &Devices, left_by: impl Fn(&Held) -> bool) -> bool {
        self.shown()
            .any(|held| held.resource == resource && held.ids.contain_all(ids) && !left_by(held))
    }

    /// Whether the kubelet has shown that a container was given a resource, even if it may have ended since.
    pub(super) fn shows_for(&self, pod: &PodOnNode, container: &str, resource: Resource) -> bool {
        let mut listed = self.shown().filter(|held| pod.is(&held.namespace, &held.pod));
        listed.any(|held| held.container == container && held.resource == resource)
            || self
                .of_pod(&pod.uid)
                .any(|stored| stored.container == container && stored.resource == resource)
    }

    /// Whether the checkpoint has these devices as a container's, even if its pod may have ended since.
    pub(super) fn has_stored(
        &self,
        pod: &PodUid,
        container: &str,
        resource: Resource,
        ids: &Devices,
    ) -> bool {
        self.of_pod(pod).any(|stored| {
            stored.container == container && stored.resource == resource && stored.ids.contain_all(ids)
        })
    }

    /// Whether the kubelet has shown that a pod which is not known was given these devices.
    pub(super) fn is_a_strangers(&self, resource: Resource, ids: &Devices, pods: &Pods) -> bool {
        let is_unknown = |uid: &PodUid| pods.get(uid).is_none() && !self.gone.contains(uid);
        let listed = self.listed.iter().any(|held| {
            held.resource == resource
                && held.ids.contain_all(ids)
                && pods.by_name(&held.namespace, &held.pod).is_none()
        });
        let mut stored = self.stored.iter().flatten();
        listed
            || stored.any(|stored| {
                stored.resource == resource && stored.ids.contain_all(ids) && is_unknown(&stored.pod)
            })
    }

    /// Whether a pod holds any of these devices.
    pub(super) fn holds_any(&self, pod: &PodOnNode, resource: Resource, ids: &Devices) -> bool {
        self.of(pod)
            .any(|held| held.resource == resource && held.ids.contain_any(ids))
    }

    /// Whether a pod holds a device of a resource.
    pub(super) fn holds(&self, pod: &PodOnNode, resource: Resource, id: &DeviceId) -> bool {
        self.of(pod)
            .any(|held| held.resource == resource && held.ids.contains(id))
    }

    /// The GPU that a pod is on.
    pub(super) fn gpu_of(&self, pod: &PodOnNode) -> Option<GpuUuid> {
        self.of(pod).find_map(|held| held.ids.gpus().next().cloned())
    }

    /// Whether what is held still counts: not where its pod is known to have ended, since the kubelet takes the
    /// devices back as soon as it needs them.
    pub(super) fn counted<'a>(&'a self, pods: &'a Pods) -> impl Iterator<Item = &'a Held> {
        self.held().filter(|held| {
            pods.by_name(&held.namespace, &held.pod)
                .is_none_or(|pod| !pods.has_ended(pod))
        })
    }

    fn of<'a>(&'a self, pod: &'a PodOnNode) -> impl Iterator<Item = &'a Held> {
        self.held().filter(|held| pod.is(&held.namespace, &held.pod))
    }

    fn of_pod<'a>(&'a self, uid: &'a PodUid) -> impl Iterator<Item = &'a Stored> {
        self.stored
            .iter()
            .flatten()
            .filter(move |stored| stored.pod == *uid)
    }
}

impl Stored {
    fn of(&self, pod: &PodOnNode) -> Held {
        Held {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            container: self.container.clone(),
            resource: self.resource,
            ids: self.ids.clone(),
        }
    }
}

/// Whether more than a pod's init containers is among what is stored for it.
fn stored_for_long<'a>(pod: &PodOnNode, mut stored: impl Iterator<Item = &'a Stored>) -> bool {
    stored.any(|stored| kind_of(pod, &stored.container) != Some(ContainerKind::Init))
}

/// Whether an init container that ends was given this.
fn is_init(pods: &Pods, held: &Held) -> bool {
    let pod = pods.by_name(&held.namespace, &held.pod);
    pod.and_then(|pod| kind_of(pod, &held.container)) == Some(ContainerKind::Init)
}

fn kind_of(pod: &PodOnNode, container: &str) -> Option<ContainerKind> {
    pod.containers
        .iter()
        .find(|c| c.name == container)
        .map(|c| c.kind)
}

/// What is taken of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) amounts: Resources,
    /// Containers that use MPS there: of a pod that is known, as many as it runs at once.
    pub(super) mps_clients: u32,
}

impl Taken {
    pub(super) const NOTHING: Self = Self {
        amounts: Resources::NONE,
        mps_clients: 0,
    };

    fn and(self, other: Self) -> Self {
        Self {
            amounts: self.amounts.checked_add(other.amounts).unwrap_or(self.amounts),
            mps_clients: self.mps_clients + other.mps_clients,
        }
    }
}

/// How much of each GPU is taken by `held`. A pod that is known takes all that it asks for, even where its init containers'
/// devices are not listed, or it is not through with its calls. A device that an init container handed on counts once.
pub(super) fn taken<'a>(pods: &Pods, held: impl Iterator<Item = &'a Held>) -> BTreeMap<GpuUuid, Taken> {
    let mut by_pod: BTreeMap<(&GpuUuid, &str, &str), Vec<&Held>> = BTreeMap::new();
    for held in held {
        for gpu in held.ids.gpus() {
            by_pod
                .entry((gpu, &held.namespace, &held.pod))
                .or_default()
                .push(held);
        }
    }
    let mut taken = BTreeMap::new();
    for ((gpu, namespace, name), held) in by_pod {
        let of_pod = taken_by(pods.by_name(namespace, name), gpu, &held);
        let of_gpu = taken.entry(gpu.clone()).or_insert(Taken::NOTHING);
        *of_gpu = of_gpu.and(of_pod);
    }
    taken
}

fn taken_by(pod: Option<&PodOnNode>, gpu: &GpuUuid, held: &[&Held]) -> Taken {
    let demand = pod.map(PodOnNode::demand);
    let amount = |resource: Resource| {
        let asked = demand.map_or(0, |demand| resource.of(demand.resources));
        let of_it = held.iter().filter(|held| held.resource == resource);
        let most = of_it.clone().map(|held| held.ids.on(gpu)).sum::<usize>();
        // Telling which were handed on takes longer, and it is rarely needed.
        let unlike = if most > asked as usize {
            of_it
                .flat_map(|held| held.ids.numbers(gpu))
                .collect::<BTreeSet<_>>()
                .len()
        } else {
            0
        };
        resource.amount(asked.max(u32::try_from(unlike).unwrap_or(u32::MAX)))
    };
    let with_mps = held.iter().filter(|held| held.resource == Resource::Mps).count();
    Taken {
        amounts: Resource::ALL
            .map(amount)
            .into_iter()
            .fold(Resources::NONE, |sum, amount| {
                sum.checked_add(amount).unwrap_or(sum)
            }),
        mps_clients: demand.map_or(u32::try_from(with_mps).unwrap_or(u32::MAX), |demand| {
            demand.mps_containers
        }),
    }
}
