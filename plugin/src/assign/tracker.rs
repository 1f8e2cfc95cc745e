//! Which pods the kubelet's last calls were for: all readings of them that still make sense.
//!
//! ```text
//!  bound: a {nvenc 13}, b {nvenc 13, vram 8}
//!  call nvenc 13   ─► a | b
//!  call vram 8     ─►     b b      (a came first and is complete: vram 8 could be nobody else's than b's either way)
//!                     a b
//! ```
//!
//! The kubelet finishes one pod before it begins the next, so a reading in which a pod was left half done falls away
//! as soon as another one holds. Pods that ask for exactly the same are one to us. podresources tells in the end, and
//! what it shows needs no reading any more.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use penstock_core::device::{DeviceId, Resource};
use penstock_core::ids::{GpuUuid, PodUid};
use penstock_core::pod_demand::ContainerKind;

use super::Held;
use super::pods::Pods;
use super::usage::Usage;
use crate::pods::PodOnNode;

/// One resource of one container, by the container's place.
type Step = (usize, Resource);

/// One reading: for each call, the pod and what of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reading(Vec<(PodUid, Step)>);

/// The calls that podresources has not shown yet, and how they may be read. There is always at least one reading.
#[derive(Debug)]
pub(super) struct Tracker {
    given: Vec<(Resource, Vec<DeviceId>)>,
    readings: Vec<Reading>,
    last: Option<Instant>,
    /// Which of the calls podresources did not show when it was asked for a later one.
    undone: Vec<bool>,
    /// A pod, by namespace and name, that has devices of these calls by podresources.
    shown: Option<(String, String)>,
}

/// More readings than this are not kept, the least likely ones going first; it takes a dozen pods in one second that
/// differ and are alike in part.
const MOST_READINGS: usize = 256;
/// More calls than this are not kept open: the likeliest reading is then taken for true.
const MOST_CALLS: usize = 48;
/// A pod left half done for this long has been given up: the kubelet makes a pod's calls within milliseconds, but for
/// what other plugins take in between.
const GIVEN_UP: Duration = Duration::from_secs(10);

impl Default for Tracker {
    fn default() -> Self {
        Self {
            given: Vec::new(),
            readings: vec![Reading(Vec::new())],
            last: None,
            undone: Vec::new(),
            shown: None,
        }
    }
}

impl Tracker {
    /// All readings of one more call, likeliest first; none where no pod of this node fits.
    pub(super) fn read(&self, now: Instant, pods: &Pods, usage: &Usage, call: &Seen<'_>) -> Vec<Reading> {
        let patient = self.last.is_none_or(|last| now.duration_since(last) < GIVEN_UP);
        let goes_on = |reading: &Reading| self.extend(reading, pods, usage, call, true);
        let begins = |reading: &Reading| self.extend(reading, pods, usage, call, false);
        let mut readings: Vec<_> = if patient {
            self.readings.iter().flat_map(goes_on).collect()
        } else {
            Vec::new()
        };
        if readings.is_empty() {
            // A pod was left half done, whichever it was.
            readings = self.readings.iter().flat_map(begins).collect();
        }
        readings.dedup();
        readings.truncate(MOST_READINGS);
        readings
    }

    /// Notes that a call was granted, and how it may be read.
    pub(super) fn grant(
        &mut self,
        now: Instant,
        readings: Vec<Reading>,
        resource: Resource,
        ids: &[DeviceId],
    ) {
        self.readings = readings;
        self.given.push((resource, ids.to_vec()));
        self.undone = vec![false; self.given.len()];
        self.shown = None;
        self.last = Some(now);
    }

    /// Whether the calls so far can be read in several ways.
    pub(super) fn is_ambiguous(&self) -> bool {
        self.readings.len() > 1
    }

    /// The pod of the last call, where there is no doubt about it and it has all it asks for.
    pub(super) fn completed(&self, pods: &Pods, usage: &Usage) -> Option<PodUid> {
        let [only] = self.readings.as_slice() else {
            return None;
        };
        let uid = only.last()?.0;
        self.half_done(only, pods, usage).is_none().then(|| uid.clone())
    }

    /// What need not be kept open any more: all, where there is one reading and its pod is complete.
    pub(super) fn settled(&mut self, pods: &Pods, usage: &Usage) -> Vec<Held> {
        let sure = match self.readings.as_slice() {
            [only] => self.half_done(only, pods, usage).is_none(),
            _ => self.given.len() >= MOST_CALLS,
        };
        if !sure {
            return Vec::new();
        }
        let held = self.as_held(pods);
        *self = Self {
            last: self.last,
            ..Self::default()
        };
        held
    }

    /// Whether podresources has shown that a pod was meant which is not known.
    pub(super) fn meant_unknown(&self, pods: &Pods) -> bool {
        let unknown = |(namespace, name): &(String, String)| pods.by_name(namespace, name).is_none();
        self.shown.as_ref().is_some_and(unknown)
    }

    /// A pod is gone, and nothing of it need be waited for.
    pub(super) fn forget(&mut self, pod: &PodOnNode) {
        let is_it =
            |(namespace, name): &mut (String, String)| *namespace == pod.namespace && *name == pod.name;
        self.shown.take_if(is_it);
    }

    /// Drops the calls that by every reading were for pods that have ended: their devices are free again.
    pub(super) fn forget_ended(&mut self, pods: &Pods) {
        let ended = |(uid, _): &(PodUid, Step)| pods.get(uid).is_none_or(|pod| pod.terminal);
        let keep: Vec<bool> = (0..self.given.len())
            .map(|i| self.readings.iter().any(|r| !ended(&r.0[i])))
            .collect();
        self.keep(&keep);
    }

    /// Drops the calls that podresources does not show; else one of an init container, of which it shows none, that
    /// `call` repeats. Gives whether there was any.
    pub(super) fn forget_undone(&mut self, pods: &Pods, call: &Seen<'_>) -> bool {
        let mut keep: Vec<bool> = self.undone.iter().map(|undone| !undone).collect();
        if !keep.contains(&false)
            && let Some(again) = self.repeated(pods, call)
        {
            keep[again] = false;
        }
        self.keep(&keep);
        keep.contains(&false)
    }

    /// Reads all open calls anew, by the pods that are known now; gives whether they are read otherwise.
    pub(super) fn read_again(&mut self, now: Instant, pods: &Pods, usage: &Usage) -> bool {
        let mut again = Self {
            last: self.last,
            ..Self::default()
        };
        for (resource, ids) in &self.given {
            let size = u32::try_from(ids.len()).unwrap_or(u32::MAX);
            let call = Seen {
                resource: *resource,
                size,
                ids,
            };
            let readings = again.read(now, pods, usage, &call);
            if readings.is_empty() {
                return false;
            }
            again.grant(now, readings, *resource, ids);
        }
        let otherwise = again.readings != self.readings;
        self.readings = again.readings;
        otherwise
    }

    /// Which of the calls for the last container, should that be an init container, `call` is over again.
    fn repeated(&self, pods: &Pods, call: &Seen<'_>) -> Option<usize> {
        let steps = &self.readings.first()?.0;
        let (uid, (last, _)) = steps.last()?;
        let pod = pods.get(uid)?;
        let container = pod
            .containers
            .get(*last)
            .filter(|c| c.kind == ContainerKind::Init)?;
        let is_it = |(other, step): &(PodUid, Step)| other == uid && *step == (*last, call.resource);
        let asked = call.resource.of(container.demand);
        steps.iter().position(is_it).filter(|_| asked == call.size)
    }

    fn keep(&mut self, keep: &[bool]) {
        retain(&mut self.given, keep);
        retain(&mut self.undone, keep);
        for reading in &mut self.readings {
            retain(&mut reading.0, keep);
        }
        self.readings.dedup();
    }

    /// Drops the readings that podresources contradicts, and all of them once it has shown every call.
    /// Where the list is `certain` to have all calls, those that it does not show were undone.
    pub(super) fn check(&mut self, pods: &Pods, listed: &[Held], certain: bool) {
        let shown = |call: &(Resource, Vec<DeviceId>)| {
            listed
                .iter()
                .find(|held| held.resource == call.0 && call.1.iter().all(|id| held.ids.contains(id)))
        };
        let calls: Vec<_> = self.given.iter().map(shown).collect();
        let last = calls.iter().rev().find_map(|held| *held);
        let last = last.map(|held| (held.namespace.clone(), held.pod.clone()));
        if calls.iter().all(Option::is_some) {
            *self = Self {
                last: self.last,
                shown: last.or(self.shown.take()),
                ..Self::default()
            };
            return;
        }
        self.shown = last;
        let is_listed = |i: usize| self.readings.iter().all(|reading| !is_init(pods, &reading.0[i]));
        // One that had all it asked for and is not listed at all has ended.
        let has_ended = |(uid, _): &(PodUid, Step)| {
            pods.get(uid).is_some_and(|pod| {
                pods.is_complete(pod) && !listed.iter().any(|held| pod.is(&held.namespace, &held.pod))
            })
        };
        let ended = |i: usize| self.readings.iter().all(|reading| has_ended(&reading.0[i]));
        let undone =
            |(i, held): (usize, &Option<&Held>)| certain && held.is_none() && (is_listed(i) || ended(i));
        self.undone = calls.iter().enumerate().map(undone).collect();
        let agrees = |reading: &Reading| {
            reading
                .0
                .iter()
                .zip(&calls)
                .all(|(step, held)| held.is_none_or(|held| is_same(pods, step, held)))
        };
        if self.readings.iter().any(agrees) {
            self.readings.retain(agrees);
        }
    }

    /// What was given, as podresources will show it if the likeliest reading is true.
    pub(super) fn as_held(&self, pods: &Pods) -> Vec<Held> {
        let Some(likeliest) = self.readings.first() else {
            return Vec::new();
        };
        let held = |((uid, (at, resource)), (_, ids)): (&(PodUid, Step), &(Resource, Vec<DeviceId>))| {
            let pod = pods.get(uid).filter(|pod| !pods.has_ended(pod))?;
            Some(Held {
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                container: pod.containers.get(*at)?.name.clone(),
                resource: *resource,
                ids: ids.clone(),
            })
        };
        likeliest.0.iter().zip(&self.given).filter_map(held).collect()
    }

    /// The GPU that the pod of a reading's last call has devices of, by that reading.
    pub(super) fn gpu_of(&self, reading: &Reading, pods: &Pods, usage: &Usage) -> Option<GpuUuid> {
        let (uid, _) = reading.0.last()?;
        let by_call = reading
            .0
            .iter()
            .zip(&self.given)
            .find(|((other, _), _)| other == uid);
        let given = by_call.and_then(|(_, (_, ids))| Some(ids.first()?.gpu().clone()));
        given.or_else(|| usage.gpu_of(pods.get(uid)?))
    }

    /// The readings of `call` that build on `reading`: by the pod that it left half done, where `finish` is set and
    /// there is one; else by any whose turn it may be.
    fn extend(
        &self,
        reading: &Reading,
        pods: &Pods,
        usage: &Usage,
        call: &Seen<'_>,
        finish: bool,
    ) -> Vec<Reading> {
        let turn = |pod: &PodOnNode| next_step(pod, &self.done(reading, pod, usage), call);
        let with = |pod: &PodOnNode, step| {
            let mut longer = reading.clone();
            longer.0.push((pod.uid.clone(), step));
            longer
        };
        if finish && let Some(pod) = self.half_done(reading, pods, usage) {
            return turn(pod).map(|step| with(pod, step)).into_iter().collect();
        }
        let alive = pods.alive();
        let open = |pod: &&&PodOnNode| turn(pod).is_some();
        let holder = alive
            .iter()
            .filter(open)
            .find(|pod| usage.holds_any(pod, call.ids));
        let begun = alive
            .iter()
            .filter(open)
            .filter(|pod| finish && usage.gpu_of(pod).is_some());
        let mut whose: Vec<_> = match holder {
            Some(holder) => vec![*holder],
            None => begun.copied().collect(),
        };
        if whose.is_empty() {
            whose = first_of_each_kind(alive.iter().filter(open).copied());
        }
        whose
            .into_iter()
            .filter_map(|pod| turn(pod).map(|step| with(pod, step)))
            .collect()
    }

    /// The pod of the last call, if by this reading it still lacks something.
    fn half_done<'a>(&self, reading: &Reading, pods: &'a Pods, usage: &Usage) -> Option<&'a PodOnNode> {
        let (uid, _) = reading.0.last()?;
        let pod = pods.get(uid).filter(|pod| !pods.is_over(pod))?;
        let done = self.done(reading, pod, usage);
        steps_of(pod).any(|step| !done.contains(&step)).then_some(pod)
    }

    /// What a pod has, by podresources and by this reading. Containers have their turn one after the other, so those
    /// before the latest that has something have all they ask for.
    fn done(&self, reading: &Reading, pod: &PodOnNode, usage: &Usage) -> BTreeSet<Step> {
        let listed = steps_of(pod).filter(|(at, r)| usage.has(pod, &pod.containers[*at].name, *r));
        let read = reading
            .0
            .iter()
            .filter(|(uid, _)| *uid == pod.uid)
            .map(|(_, step)| *step);
        let mut done: BTreeSet<_> = listed.chain(read).collect();
        let latest = done.last().map_or(0, |(at, _)| *at);
        done.extend(steps_of(pod).filter(|(at, _)| *at < latest));
        done
    }
}

impl Reading {
    /// The pod of the last call, and the place of the container.
    pub(super) fn last(&self) -> Option<(&PodUid, usize)> {
        self.0.last().map(|(uid, (at, _))| (uid, *at))
    }
}

/// A call as it is seen.
#[derive(Debug)]
pub(super) struct Seen<'a> {
    pub(super) resource: Resource,
    pub(super) size: u32,
    /// Devices that the pod is known to have or get.
    pub(super) ids: &'a [DeviceId],
}

/// The pods that have all they ask for, by podresources: it shows none of init containers, but when a later one has had
/// its turn, they have had theirs. The kubelet forgets none of that as long as they run.
pub(super) fn complete(pods: &Pods, usage: &Usage) -> Vec<PodUid> {
    let is_shown =
        |pod: &PodOnNode, (at, resource): Step| usage.shows(pod, &pod.containers[at].name, resource);
    let has_all = |pod: &&&PodOnNode| {
        let last = steps_of(pod).last().map(|(at, _)| at);
        let of_last = steps_of(pod).filter(|(at, _)| Some(*at) == last);
        last.is_some() && { of_last }.all(|step| is_shown(pod, step))
    };
    let alive = pods.alive();
    alive.iter().filter(has_all).map(|pod| pod.uid.clone()).collect()
}

fn is_init(pods: &Pods, (uid, (at, _)): &(PodUid, Step)) -> bool {
    let container = pods.get(uid).and_then(|pod| pod.containers.get(*at));
    container.is_some_and(|container| container.kind == ContainerKind::Init)
}

fn retain<T>(items: &mut Vec<T>, keep: &[bool]) {
    let mut kept = keep.iter();
    items.retain(|_| kept.next().copied().unwrap_or(true));
}

/// Whether a step is what podresources shows.
fn is_same(pods: &Pods, (uid, (at, _)): &(PodUid, Step), held: &Held) -> bool {
    pods.get(uid).is_none_or(|pod| {
        // What an init container had is shown as the container's that it was handed on to.
        let container = pod
            .containers
            .get(*at)
            .is_some_and(|c| c.name == held.container || c.kind == ContainerKind::Init);
        pod.namespace == held.namespace && pod.name == held.pod && container
    })
}

/// Of pods that ask for exactly the same, only the first.
fn first_of_each_kind<'a>(pods: impl Iterator<Item = &'a PodOnNode>) -> Vec<&'a PodOnNode> {
    let alike = |a: &PodOnNode, b: &PodOnNode| {
        let demands = |pod: &PodOnNode| {
            pod.containers
                .iter()
                .map(|c| (c.kind, c.demand))
                .collect::<Vec<_>>()
        };
        a.gpu == b.gpu && demands(a) == demands(b)
    };
    pods.fold(Vec::new(), |mut kinds, pod| {
        if !kinds.iter().any(|kind| alike(kind, pod)) {
            kinds.push(pod);
        }
        kinds
    })
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

/// The step of the pod's next container that a call can be.
fn next_step(pod: &PodOnNode, done: &BTreeSet<Step>, call: &Seen<'_>) -> Option<Step> {
    let (next, _) = steps_of(pod).find(|step| !done.contains(step))?;
    let step = (next, call.resource);
    let asked = call.resource.of(pod.containers[next].demand);
    (asked == call.size && asked > 0 && !done.contains(&step)).then_some(step)
}
