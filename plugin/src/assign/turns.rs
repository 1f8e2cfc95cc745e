//! Which container the kubelet is at.
//!
//! ```text
//!  bound: a {c0: nvenc 13}, b {c0: nvenc 13, vram 8}
//!  call nvenc 13   ─► a's c0 or b's      doubtful: the kubelet is asked before the next answer
//!  (podresources: b's c0 has it)
//!  call vram 8     ─► b's c0, which has all it asks for with that
//! ```
//!
//! The kubelet makes all calls of a container in a row, and of a pod's containers in their order; only then comes another
//! pod. So what is open is one container at most, and once it has all it asks for, the kubelet writes it down.

use std::time::{Duration, Instant};

use penstock_core::device::{DeviceId, Resource};
use penstock_core::ids::{GpuUuid, PodUid};
use penstock_core::pod_demand::ContainerKind;

use super::pods::Pods;
use super::usage::{LIST_LAG, Usage};
use super::{Devices, Held};
use crate::pods::{ContainerAsk, PodOnNode};

/// A call as it is seen.
#[derive(Debug)]
pub(super) struct Seen<'a> {
    pub(super) resource: Resource,
    pub(super) size: u32,
    /// Devices that the pod is known to have or get.
    pub(super) ids: &'a Devices,
}

/// A container whose turn it may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) pod: PodUid,
    /// Its place among the pod's containers.
    pub(super) at: usize,
}

/// Whose turn a call may be, likeliest first; none where no pod of this node fits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Turns {
    pub(super) of: Vec<Turn>,
    /// Whether it is the container that the kubelet was at already.
    continues: bool,
    /// Whether what was thought of earlier calls does not hold, should it be theirs.
    pub(super) passes_over: bool,
}

/// The container that the kubelet is at.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    /// What it was given so far.
    given: Vec<(Resource, Devices)>,
    /// Which it may be, likeliest first.
    whose: Vec<Turn>,
    /// How many of the first of `given` may have been for another, which has failed since.
    doubted: usize,
    last: Option<Last>,
    /// Whether the last calls can be read in several ways.
    doubtful: bool,
    /// Whether the kubelet was asked since, and has not shown it: it is an init container's, or nobody's any more.
    unshown: bool,
}

/// The last call that was granted, whatever came of it.
#[derive(Debug)]
struct Last {
    at: Instant,
    resource: Resource,
    id: DeviceId,
}

/// A pod left half done for this long has been given up: the kubelet makes a pod's calls within milliseconds, but for
/// what other plugins take in between.
const GIVEN_UP: Duration = Duration::from_secs(10);

impl UnderWay {
    /// Whose turn `call` may be.
    pub(super) fn turns(&self, now: Instant, pods: &Pods, usage: &Usage, call: &Seen<'_>) -> Turns {
        let expected = pods.expected();
        let turn = |pod: &&PodOnNode| self.turn_of(pod, usage, call);
        // What init containers have left is handed on within the pod.
        if let Some(turn) = expected
            .iter()
            .filter(|pod| usage.holds_any(pod, call.resource, call.ids))
            .find_map(turn)
        {
            let continues = self.whose.contains(&turn);
            return Turns {
                of: vec![turn],
                continues,
                passes_over: false,
            };
        }
        let goes_on = |turn: &&Turn| {
            expected
                .iter()
                .any(|pod| pod.uid == turn.pod && self.turn_of(pod, usage, call).as_ref() == Some(*turn))
        };
        let same: Vec<_> = self.whose.iter().filter(goes_on).cloned().collect();
        if !same.is_empty() {
            return Turns {
                of: same,
                continues: true,
                passes_over: false,
            };
        }
        // A pod that was not known when the container was begun.
        let is_over =
            self.given.is_empty() || self.whose.iter().all(|turn| self.is_full(turn, pods)) && !self.unshown;
        let is_new = self.given.iter().all(|(given, _)| *given != call.resource);
        let may_be = |pod: &&&PodOnNode| !is_over && is_new && self.may_be_open(pod, usage);
        let other: Vec<_> = expected.iter().filter(may_be).filter_map(turn).collect();
        if !other.is_empty() {
            return Turns {
                of: other,
                continues: true,
                passes_over: true,
            };
        }
        let half_done = expected
            .iter()
            .find(|pod| self.is_current(pod, usage))
            .filter(|pod| next_container(pod, |step| self.has(pod, usage, step)).is_some());
        let patient = self
            .last
            .as_ref()
            .is_none_or(|last| now.duration_since(last.at) < GIVEN_UP);
        if patient
            && is_over
            && let Some(turn) = half_done.and_then(turn)
        {
            return Turns {
                of: vec![turn],
                continues: false,
                passes_over: false,
            };
        }
        // After a restart the kubelet goes on with what it had begun, but other pods may come before.
        let (begun, new): (Vec<&PodOnNode>, Vec<_>) = expected
            .iter()
            .filter(|pod| turn(pod).is_some())
            .partition(|pod| usage.gpu_of(pod).is_some());
        let all = begun.into_iter().chain(first_of_each_kind(new));
        let of = all.filter_map(|pod| turn(&pod)).collect();
        Turns {
            of,
            continues: false,
            passes_over: half_done.is_some() || !is_over,
        }
    }

    /// Notes that a call was granted; gives what need not be kept open any more, by the likeliest reading.
    pub(super) fn grant(
        &mut self,
        now: Instant,
        pods: &Pods,
        turns: Turns,
        resource: Resource,
        ids: &Devices,
    ) -> Vec<Held> {
        let closed = match turns.continues {
            true => Vec::new(),
            false => self.close(pods),
        };
        self.given.push((resource, ids.clone()));
        self.whose = turns.of;
        self.doubtful = self.whose.len() > 1;
        self.last = ids.first().map(|id| Last {
            at: now,
            resource,
            id,
        });
        self.unshown = false;
        closed
    }

    /// What may have been for a pod that has failed since was for it, if the kubelet has it to give again: not for the one that
    /// it is at.
    pub(super) fn undo(&mut self, resource: Resource, available: &Devices) {
        let mut at = 0;
        let doubted = self.doubted;
        self.given.retain(|(given, ids)| {
            at += 1;
            let is_back = *given == resource && available.contain_all(ids);
            !(at <= doubted && is_back)
        });
        self.doubted -= at - self.given.len();
        if self.given.is_empty() {
            self.forget();
        }
    }

    /// Whether the calls so far can be read in several ways.
    pub(super) fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// Takes note of what the kubelet says that it knows. What it shows is not open any more. Where the list is
    /// `certain` to have all that is finished, the rest was undone, or is an init container that is not finished.
    pub(super) fn check(&mut self, pods: &Pods, usage: &Usage, now: Instant, certain: bool) {
        self.doubtful &= !certain;
        self.given
            .retain(|(resource, ids)| !usage.is_a_strangers(*resource, ids, pods));
        self.doubted = self.doubted.min(self.given.len());
        if self.given.is_empty() {
            return self.forget();
        }
        let containers = || self.whose.iter().filter_map(|turn| container_of(pods, turn));
        let left_by = |held: &Held| {
            containers().any(|(pod, container)| {
                pod.is(&held.namespace, &held.pod) && container.name != held.container
            })
        };
        let is_shown = |(resource, ids): &(Resource, Devices)| usage.shows(*resource, ids, left_by);
        let goes_on =
            |turn: &Turn| is_init(pods, turn) && (!self.is_full(turn, pods) || !usage.has_init_containers());
        let is_stored = |(resource, ids): &(Resource, Devices)| {
            containers().any(|(pod, container)| usage.has_stored(&pod.uid, &container.name, *resource, ids))
        };
        // Of one that is stored and not listed the pod has ended.
        let is_shown = |given: &(Resource, Devices)| is_shown(given) || is_stored(given);
        if self.given.iter().all(is_shown) || certain && self.given.iter().any(is_shown) {
            self.forget();
        } else if certain {
            let whose: Vec<_> = self.whose.iter().filter(|turn| goes_on(turn)).cloned().collect();
            // It may be a pod's that is not known yet. Without a checkpoint nothing follows of it for an init container.
            self.unshown = whose.is_empty() || usage.has_init_containers();
            self.whose = whose;
        } else if self
            .last
            .as_ref()
            .is_some_and(|last| now.duration_since(last.at) >= LIST_LAG)
            && !self.whose.iter().any(goes_on)
        {
            self.forget();
        }
    }

    /// Drops what was for pods that have ended: their devices are free again.
    pub(super) fn forget_ended(&mut self, pods: &Pods) {
        let is_there = |turn: &Turn| pods.get(&turn.pod).is_some_and(|pod| !pod.terminal);
        if !self.whose.is_empty() && !self.whose.iter().any(is_there) {
            self.forget();
        }
        let before = self.whose.len();
        self.whose.retain(is_there);
        if self.whose.len() < before {
            self.doubted = self.given.len();
        }
    }

    /// Whether the open container can be this pod's next.
    fn may_be_open(&self, pod: &PodOnNode, usage: &Usage) -> bool {
        let has = |(at, resource): Step| usage.has(pod, &pod.containers[at].name, resource);
        next_container(pod, has).is_some_and(|at| {
            let is_asked = |(resource, ids): &(Resource, Devices)| {
                resource.of(pod.containers[at].demand) as usize == ids.len() && !has((at, *resource))
            };
            self.given.iter().all(is_asked)
        })
    }

    /// Takes the open container for another, where `turns` pass over what it was taken for; or for one that has failed, if
    /// the kubelet has gone on. Gives whether there was one.
    pub(super) fn read_again(&mut self, turns: &Turns) -> bool {
        match turns.continues {
            true => self.whose.clone_from(&turns.of),
            false => return self.abandon(),
        }
        true
    }

    /// Forgets the container that was open: its pod has failed. Gives whether there was one.
    pub(super) fn abandon(&mut self) -> bool {
        let any = !self.given.is_empty();
        self.forget();
        any
    }

    /// The device that was given last.
    pub(super) fn last(&self) -> Option<(Resource, &DeviceId)> {
        self.last.as_ref().map(|last| (last.resource, &last.id))
    }

    /// What is open, as the kubelet will show it if the likeliest reading is true.
    pub(super) fn as_held(&self, pods: &Pods) -> Vec<Held> {
        let Some(turn) = self.whose.first() else {
            return Vec::new();
        };
        let Some(pod) = pods.get(&turn.pod).filter(|pod| !pods.has_ended(pod)) else {
            return Vec::new();
        };
        let held = |(resource, ids): &(Resource, Devices)| Held {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            container: pod.containers[turn.at].name.clone(),
            resource: *resource,
            ids: ids.clone(),
        };
        self.given.iter().map(held).collect()
    }

    /// The GPU that a turn's pod is on.
    pub(super) fn gpu_of(&self, turn: &Turn, pods: &Pods, usage: &Usage) -> Option<GpuUuid> {
        let is_open = self.whose.iter().any(|open| open.pod == turn.pod);
        let open = is_open.then(|| self.given.first()).flatten();
        let given = open.and_then(|(_, ids)| ids.gpus().next().cloned());
        given.or_else(|| usage.gpu_of(pods.get(&turn.pod)?))
    }

    fn close(&mut self, pods: &Pods) -> Vec<Held> {
        let held = self.as_held(pods);
        self.forget();
        held
    }

    fn forget(&mut self) {
        self.given.clear();
        self.whose.clear();
        self.doubted = 0;
        self.unshown = false;
    }

    /// Whether the last call was for this pod.
    fn is_current(&self, pod: &PodOnNode, usage: &Usage) -> bool {
        let holds = |last: &Last| usage.holds(pod, last.resource, &last.id);
        match self.whose.first() {
            Some(turn) => turn.pod == pod.uid,
            None => self.last.as_ref().is_some_and(holds),
        }
    }

    fn is_full(&self, turn: &Turn, pods: &Pods) -> bool {
        container_of(pods, turn).is_none_or(|(_, container)| {
            let missing =
                |r: &Resource| r.of(container.demand) > 0 && self.given.iter().all(|(given, _)| given != r);
            !Resource::ALL.iter().any(missing)
        })
    }

    /// Whether a pod's container has a resource, should the open one be its.
    fn has(&self, pod: &PodOnNode, usage: &Usage, (at, resource): Step) -> bool {
        let open = || {
            let turn = Turn {
                pod: pod.uid.clone(),
                at,
            };
            self.whose.contains(&turn) && self.given.iter().any(|(given, _)| *given == resource)
        };
        usage.has(pod, &pod.containers[at].name, resource) || open()
    }

    /// The pod's next container, if `call` can be for that.
    fn turn_of(&self, pod: &PodOnNode, usage: &Usage, call: &Seen<'_>) -> Option<Turn> {
        let at = next_container(pod, |step| self.has(pod, usage, step))?;
        let asked = call.resource.of(pod.containers[at].demand);
        let fits = asked > 0 && asked == call.size && !self.has(pod, usage, (at, call.resource));
        fits.then(|| Turn {
            pod: pod.uid.clone(),
            at,
        })
    }
}

/// One resource of one container, by the container's place.
type Step = (usize, Resource);

/// The container whose turn is next. Those before the latest that has something have had theirs.
fn next_container(pod: &PodOnNode, has: impl Fn(Step) -> bool) -> Option<usize> {
    let latest = steps_of(pod)
        .filter(|step| has(*step))
        .map(|(at, _)| at)
        .last()
        .unwrap_or(0);
    steps_of(pod)
        .find(|step| step.0 >= latest && !has(*step))
        .map(|(at, _)| at)
}

/// Whether a pod has all it asks for.
pub(super) fn is_complete(pod: &PodOnNode, usage: &Usage) -> bool {
    next_container(pod, |(at, resource)| {
        usage.has(pod, &pod.containers[at].name, resource)
    })
    .is_none()
}

/// The pods that the kubelet has shown to have all they ask for.
pub(super) fn complete(pods: &Pods, usage: &Usage) -> Vec<PodUid> {
    let is_shown =
        |pod: &PodOnNode, (at, resource): Step| usage.shows_for(pod, &pod.containers[at].name, resource);
    let is_complete = |pod: &&&PodOnNode| next_container(pod, |step| is_shown(pod, step)).is_none();
    let expected = pods.expected();
    expected
        .iter()
        .filter(is_complete)
        .map(|pod| pod.uid.clone())
        .collect()
}

/// All steps of a pod.
fn steps_of(pod: &PodOnNode) -> impl Iterator<Item = Step> {
    pod.containers.iter().enumerate().flat_map(|(at, container)| {
        let demand = container.demand;
        Resource::ALL
            .into_iter()
            .filter(move |r| r.of(demand) > 0)
            .map(move |r| (at, r))
    })
}

fn is_init(pods: &Pods, turn: &Turn) -> bool {
    container_of(pods, turn).is_some_and(|(_, container)| container.kind == ContainerKind::Init)
}

fn container_of<'a>(pods: &'a Pods, turn: &Turn) -> Option<(&'a PodOnNode, &'a ContainerAsk)> {
    let pod = pods.get(&turn.pod)?;
    Some((pod, pod.containers.get(turn.at)?))
}

/// Of pods that ask for exactly the same, only the first.
fn first_of_each_kind(pods: Vec<&PodOnNode>) -> Vec<&PodOnNode> {
    let alike = |a: &PodOnNode, b: &PodOnNode| {
        let demands = |pod: &PodOnNode| {
            pod.containers
                .iter()
                .map(|c| (c.kind, c.demand))
                .collect::<Vec<_>>()
        };
        a.gpu == b.gpu && demands(a) == demands(b)
    };
    pods.into_iter()
        .fold(Vec::new(), |mut kinds: Vec<&PodOnNode>, pod| {
            if !kinds.iter().any(|kind| alike(kind, pod)) {
                kinds.push(pod);
            }
            kinds
        })
}
