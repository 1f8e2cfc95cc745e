//! Which pod a call of the kubelet is for, and which GPU it gets.
//!
//! The kubelet asks resource by resource, in an order of its own, and names no pod. What it does keep to: pods are
//! admitted one at a time, containers in order, and per resource it asks for a preference, then allocates. So each
//! call is held against the pods that are bound to this node:
//!
//! ```text
//!  preferred(nvenc, 13) ─► whose turn can this be?  ─► candidates ─► one GPU with room for all they ask for
//!  allocate(nvenc, ids)                                   │
//!  preferred(mps, 20)   ─► … narrows the candidates ◄─────┘  the same GPU
//!  allocate(mps, ids)   ─► grant
//!  podresources         ─► what really became of it; replaces what was guessed
//! ```
//!
//! Where earlier calls could have been two pods', podresources is asked before the next one is answered.
//!
//! All that one pod asks for is on one GPU, or the call is refused. A refusal fails the pod for good and its
//! controller makes another at once, so it is the last resort: a pod goes to another GPU than the annotation says
//! rather than nowhere.

mod occupancy;
mod pods;
mod tracker;
mod usage;

#[cfg(test)]
mod dice;
#[cfg(test)]
mod kubelet_model;
#[cfg(test)]
mod simple_model;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use penstock_core::device::{DeviceId, Resource};
use penstock_core::ids::{GpuUuid, PodUid};
use penstock_core::packing::{Candidate, Resources, best_fit};

use crate::pods::PodOnNode;
pub(crate) use occupancy::{Occupancy, Slice};
use pods::Pods;
use tracker::{Reading, Seen, Tracker};
use usage::Usage;

/// A GPU as it is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GpuOffer {
    /// Its name.
    pub(crate) uuid: GpuUuid,
    /// All that is offered of it.
    pub(crate) capacity: Resources,
    /// How many containers with `mps` it takes.
    pub(crate) mps_clients: u32,
    /// Why a resource of it is not to be used now.
    pub(crate) unhealthy: BTreeMap<Resource, String>,
}

/// What a container holds, as the kubelet's podresources API says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    /// The pod's namespace.
    pub(crate) namespace: String,
    /// The pod's name.
    pub(crate) pod: String,
    /// The container's name.
    pub(crate) container: String,
    /// Of which resource.
    pub(crate) resource: Resource,
    /// The devices.
    pub(crate) ids: Vec<DeviceId>,
}

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome<T> {
    /// The answer.
    Done(T),
    /// The pod that it is for is not known yet: ask again when pods change, or at that instant.
    Wait(Instant),
    /// Earlier calls can be read in several ways: tell what podresources says ([`Assigner::set_held`], or
    /// [`Assigner::unlisted`] where it says nothing), and ask again.
    List,
    /// No, with the reason and what to do, for the pod's status.
    Refuse(String),
}

/// Whom devices were given to, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The GPU that all of the pod is on.
    pub(crate) gpu: GpuUuid,
    /// The pod, as `namespace/name`; `None` while several could be meant.
    pub(crate) pod: Option<String>,
    /// The container's whole demand; while several could be meant, what this call gives.
    pub(crate) container: Resources,
    /// Whether any container of the pod asks for encoder units.
    pub(crate) pod_has_nvenc: bool,
}

/// How long a call waits for the pod that it is for to show up. The kubelet's first call was seen 11 ms after the
/// binding; a watch is rarely much later, and every other pod of the node waits meanwhile.
pub(crate) const WAIT_FOR_POD: Duration = Duration::from_millis(1500);

/// Decides, and remembers what it has decided until podresources shows it.
#[derive(Debug, Default)]
pub(crate) struct Assigner {
    gpus: BTreeMap<GpuUuid, GpuOffer>,
    pods: Pods,
    usage: Usage,
    tracker: Tracker,
    /// The call that waits for its pod, and until when.
    waiting: Option<(Resource, u32, Instant)>,
    /// Whether podresources was wanted for the call that is to be answered now, and was asked.
    list: List,
    /// Whether the kubelet was restarted since its last call.
    restarted: bool,
    /// Whether pods are watched, so that a call for one that is not known has something to wait for.
    watching: bool,
    /// Where a pod that is not known was put last.
    stranger: Option<(GpuUuid, Instant)>,
}

/// How far it is with the list of podresources that a call needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum List {
    #[default]
    NotAsked,
    Asked,
    /// The kubelet has told, or can't be asked. What it had stored when it made this call is in its answer.
    Told,
}

/// Calls of a pod that is not known follow each other within this time.
const ONE_STRANGER: Duration = Duration::from_secs(1);

impl Assigner {
    /// One that will be told of pods.
    pub(crate) fn watching() -> Self {
        Self {
            watching: true,
            ..Self::default()
        }
    }

    /// The GPUs there are; ones that are not in the list are no longer.
    pub(crate) fn set_gpus(&mut self, gpus: Vec<GpuOffer>) {
        self.gpus = gpus.into_iter().map(|gpu| (gpu.uuid.clone(), gpu)).collect();
    }

    /// All pods of this node.
    pub(crate) fn set_pods(&mut self, pods: Vec<PodOnNode>) {
        for gone in self.pods.replace(pods) {
            self.usage.forget(&gone);
            self.tracker.forget(&gone);
        }
        self.tracker.forget_ended(&self.pods);
    }

    /// A pod that is new or has changed.
    pub(crate) fn apply_pod(&mut self, pod: PodOnNode) {
        self.pods.apply(pod);
        self.tracker.forget_ended(&self.pods);
    }

    /// A pod that is gone.
    pub(crate) fn delete_pod(&mut self, uid: &PodUid) {
        if let Some(gone) = self.pods.delete(uid) {
            self.usage.forget(&gone);
            self.tracker.forget(&gone);
            self.tracker.forget_ended(&self.pods);
        }
    }

    /// All that is held on this node, as podresources says. It replaces what was guessed, but for what was given so
    /// lately that the list may be older.
    pub(crate) fn set_held(&mut self, now: Instant, held: &[Held]) {
        self.tracker.check(&self.pods, held, self.list == List::Asked);
        self.usage
            .replace(now, held, self.list == List::Asked, &self.pods);
        for uid in tracker::complete(&self.pods, &self.usage) {
            self.pods.complete(uid);
        }
        if self.list == List::Asked {
            self.list = List::Told;
        }
    }

    /// The kubelet was restarted. It may ask again for what it had not stored, and is asked first what it knows.
    pub(crate) fn kubelet_restarted(&mut self) {
        self.restarted = true;
        self.list = List::NotAsked;
    }

    /// podresources was asked and gave no answer: earlier calls are then read as well as it goes without.
    pub(crate) fn unlisted(&mut self) {
        self.list = List::Told;
    }

    /// Which `size` of `available` the kubelet should take, `must_include` among them. Never fewer: the kubelet would
    /// fill up a short list at random.
    pub(crate) fn preferred(
        &mut self,
        now: Instant,
        resource: Resource,
        available: &[DeviceId],
        must_include: &[DeviceId],
        size: usize,
    ) -> Outcome<Vec<DeviceId>> {
        let seen = Seen {
            resource,
            size: u32::try_from(size).unwrap_or(u32::MAX),
            ids: must_include,
        };
        let call = Call {
            resource,
            available,
            must_include,
            size,
        };
        if (self.restarted || self.tracker.is_ambiguous()) && self.list != List::Told {
            return self.ask_for_list();
        }
        if std::mem::take(&mut self.restarted) {
            self.forget_undone(&seen);
        }
        loop {
            let readings = self.tracker.read(now, &self.pods, &self.usage, &seen);
            let unknown = self.watching && (readings.is_empty() || self.tracker.meant_unknown(&self.pods))
                || self.gpus.is_empty();
            let chosen = self.choose(now, &readings, &call);
            if let Ok(gpu) = &chosen
                && !unknown
            {
                return Outcome::Done(pick(gpu, &call));
            }
            if self.may_be_wrong() {
                return self.ask_for_list();
            }
            if self.forget_undone(&seen)
                || (readings.is_empty() && self.tracker.read_again(now, &self.pods, &self.usage))
            {
                continue;
            }
            if unknown && let Some(until) = self.wait(now, &seen) {
                return Outcome::Wait(until);
            }
            if unknown && self.pods.expect_anything() {
                continue;
            }
            return match chosen {
                Ok(gpu) => Outcome::Done(pick(&gpu, &call)),
                Err(why) => self.refuse(&readings, why),
            };
        }
    }

    /// Takes note of devices that the kubelet gives out, and says to whom.
    pub(crate) fn allocate(&mut self, now: Instant, resource: Resource, ids: &[DeviceId]) -> Outcome<Grant> {
        let gpus: BTreeSet<_> = ids.iter().map(DeviceId::gpu).collect();
        let gpu = match gpus.into_iter().collect::<Vec<_>>().as_slice() {
            [gpu] => (*gpu).clone(),
            several => return Outcome::Refuse(scattered(resource, several)),
        };
        if !self.gpus.contains_key(&gpu) {
            return Outcome::Refuse(format!(
                "{gpu} is not offered any more: see the health in this node's GpuNode"
            ));
        }
        let seen = Seen {
            resource,
            size: u32::try_from(ids.len()).unwrap_or(u32::MAX),
            ids,
        };
        if (self.restarted || self.tracker.is_ambiguous()) && self.list != List::Told {
            return self.ask_for_list();
        }
        if std::mem::take(&mut self.restarted) {
            self.forget_undone(&seen);
        }
        let possible = loop {
            let readings = self.tracker.read(now, &self.pods, &self.usage, &seen);
            let on_gpu = |reading: &&Reading| {
                self.tracker
                    .gpu_of(reading, &self.pods, &self.usage)
                    .is_none_or(|held| held == gpu)
            };
            let possible: Vec<_> = readings.iter().filter(on_gpu).cloned().collect();
            let unknown = self.watching && self.tracker.meant_unknown(&self.pods);
            if !possible.is_empty() && !unknown {
                break possible;
            }
            if self.may_be_wrong() {
                return self.ask_for_list();
            }
            if self.forget_undone(&seen)
                || (readings.is_empty() && self.tracker.read_again(now, &self.pods, &self.usage))
            {
                continue;
            }
            if (unknown || readings.is_empty())
                && let Some(until) = self.wait(now, &seen)
            {
                return Outcome::Wait(until);
            }
            if !possible.is_empty() {
                break possible;
            }
            if readings.is_empty() && self.pods.expect_anything() {
                continue;
            }
            return match readings.is_empty() {
                true => Outcome::Done(self.grant_stranger(now, gpu, &seen)),
                false => self.refuse(&readings, self.torn(&readings, &gpu, resource)),
            };
        };
        let grant = self.grant(&possible, gpu, &seen);
        self.waiting = None;
        self.list = List::NotAsked;
        self.tracker.grant(now, possible, resource, ids);
        if let Some(uid) = self.tracker.completed(&self.pods, &self.usage) {
            self.pods.complete(uid);
        }
        let settled = self.tracker.settled(&self.pods, &self.usage);
        self.usage.give(now, settled);
        Outcome::Done(grant)
    }

    /// Says no, and that the kubelet will ask nothing more for the pod that it was most likely for.
    fn refuse<T>(&mut self, readings: &[Reading], why: String) -> Outcome<T> {
        if let Some((uid, _)) = readings.first().and_then(Reading::last) {
            self.pods.refused(uid.clone());
        }
        Outcome::Refuse(why)
    }

    fn ask_for_list<T>(&mut self) -> Outcome<T> {
        self.list = List::Asked;
        Outcome::List
    }

    /// Whether what is known of earlier calls may be wrong, and podresources was not asked yet. They were undone where
    /// their pod has failed since, and where the kubelet was restarted before it had stored them.
    fn may_be_wrong(&self) -> bool {
        self.watching && self.list != List::Told
    }

    /// Forgets what was given and podresources does not show; gives whether there was any.
    fn forget_undone(&mut self, call: &Seen<'_>) -> bool {
        self.list == List::Told
            && (self.usage.forget_undone(&self.pods) || self.tracker.forget_undone(&self.pods, call))
    }

    /// Until when a call that fits no pod waits for one, or one without any GPU for GPUs; `None` where it has waited long enough, or follows on one
    /// that has.
    fn wait(&mut self, now: Instant, seen: &Seen<'_>) -> Option<Instant> {
        if !self.watching && !self.gpus.is_empty() {
            return None;
        }
        let follows = self
            .stranger
            .as_ref()
            .is_some_and(|(_, last)| now.duration_since(*last) < ONE_STRANGER);
        let begun = self
            .waiting
            .filter(|(resource, size, _)| (*resource, *size) == (seen.resource, seen.size));
        let until = begun.map_or(now + WAIT_FOR_POD, |(.., until)| until);
        self.waiting = Some((seen.resource, seen.size, until));
        (!follows && now < until).then_some(until)
    }

    /// A pod that is not known gets what the kubelet gave it; `video` does it no harm, to lack it would.
    fn grant_stranger(&mut self, now: Instant, gpu: GpuUuid, seen: &Seen<'_>) -> Grant {
        self.stranger = Some((gpu.clone(), now));
        self.waiting = None;
        let held = Held {
            namespace: String::new(),
            pod: String::new(),
            container: String::new(),
            resource: seen.resource,
            ids: seen.ids.to_vec(),
        };
        self.usage.give(now, vec![held]);
        Grant {
            gpu,
            pod: None,
            container: seen.resource.amount(seen.size),
            pod_has_nvenc: true,
        }
    }

    fn grant(&self, readings: &[Reading], gpu: GpuUuid, seen: &Seen<'_>) -> Grant {
        let known: Vec<_> = self.meant(readings);
        let demands: Vec<_> = known.iter().map(|(pod, at)| pod.containers[*at].demand).collect();
        let agreed = demands
            .first()
            .filter(|first| demands.iter().all(|demand| demand == *first));
        let one = known
            .first()
            .filter(|(first, _)| known.iter().all(|(pod, _)| pod.uid == first.uid));
        Grant {
            gpu,
            pod: one.map(|(pod, _)| pod.full_name()),
            container: agreed.copied().unwrap_or(seen.resource.amount(seen.size)),
            pod_has_nvenc: known.iter().any(|(pod, _)| pod.demand().resources.nvenc.0 > 0),
        }
    }

    /// The pods, and the places of their containers, that the last call of each reading is for.
    fn meant(&self, readings: &[Reading]) -> Vec<(&PodOnNode, usize)> {
        let last = |reading: &Reading| reading.last().map(|(uid, at)| (uid.clone(), at));
        readings
            .iter()
            .filter_map(last)
            .filter_map(|(uid, at)| Some((self.pods.get(&uid)?, at)))
            .collect()
    }

    /// The GPU for a call: the one that the pod is on, else one that has room for all it asks for.
    fn choose(&self, now: Instant, readings: &[Reading], call: &Call<'_>) -> Result<GpuUuid, String> {
        if let Some(gpu) = call.must_include.first().map(DeviceId::gpu) {
            return if call.on(gpu) >= call.size {
                Ok(gpu.clone())
            } else {
                Err(self.refusal(readings, call))
            };
        }
        let fixed = |reading: &Reading| self.tracker.gpu_of(reading, &self.pods, &self.usage);
        let begun: Vec<_> = readings
            .iter()
            .filter_map(fixed)
            .filter(|gpu| call.on(gpu) >= call.size)
            .collect();
        let wishes = self.wishes(readings, call);
        if let Some(gpu) = self.begun(&begun, &wishes, call) {
            return Ok(gpu);
        }
        if !readings.is_empty() && readings.iter().all(|reading| fixed(reading).is_some()) {
            return Err(self.refusal(readings, call));
        }
        let follows = self
            .stranger
            .as_ref()
            .filter(|(_, last)| now.duration_since(*last) < ONE_STRANGER);
        if readings.is_empty()
            && let Some((gpu, _)) = follows.filter(|(gpu, _)| call.on(gpu) >= call.size)
        {
            return Ok(gpu.clone());
        }
        let chosen = wishes.iter().find_map(|wish| self.place(wish, call));
        chosen.ok_or_else(|| self.refusal(readings, call))
    }

    /// Of the GPUs that some reading's pod is on already, the first that would suit the other readings too.
    fn begun(&self, begun: &[GpuUuid], wishes: &[Wish], call: &Call<'_>) -> Option<GpuUuid> {
        let suits = |gpu: &&GpuUuid| {
            self.gpus
                .get(*gpu)
                .is_some_and(|gpu| wishes.iter().all(|wish| self.fits(gpu, wish, call)))
        };
        begun.iter().find(suits).or_else(|| begun.first()).cloned()
    }

    /// The GPU that a wish names, where it has room; else the fullest that has.
    fn place(&self, wish: &Wish, call: &Call<'_>) -> Option<GpuUuid> {
        let fitting: Vec<_> = self
            .gpus
            .values()
            .filter(|gpu| self.fits(gpu, wish, call))
            .collect();
        let annotated = wish
            .gpu
            .as_ref()
            .filter(|wished| fitting.iter().any(|gpu| gpu.uuid == **wished));
        annotated
            .or_else(|| best_fit(wish.demand, fitting.iter().map(|gpu| self.candidate(gpu, call))))
            .cloned()
    }

    /// What pods that have nothing yet ask for, likeliest first. Where they differ, one wish for the most of each
    /// comes before, so that the GPU suits whichever it turns out to be.
    fn wishes(&self, readings: &[Reading], call: &Call<'_>) -> Vec<Wish> {
        let new = |reading: &&Reading| self.tracker.gpu_of(reading, &self.pods, &self.usage).is_none();
        let new: Vec<_> = readings.iter().filter(new).cloned().collect();
        let mut wishes: Vec<_> = self
            .meant(&new)
            .into_iter()
            .map(|(pod, _)| Wish::of(pod))
            .collect();
        wishes.dedup();
        if wishes.len() > 1 {
            wishes.insert(0, Wish::most_of(&wishes));
        }
        if readings.is_empty() {
            let size = u32::try_from(call.size).unwrap_or(u32::MAX);
            let mps = u32::from(call.resource == Resource::Mps);
            wishes.push(Wish {
                gpu: None,
                demand: call.resource.amount(size),
                mps,
            });
        }
        wishes
    }

    /// Whether all of a wish has room on `gpu`, by what is known here and by what the kubelet says is available.
    fn fits(&self, gpu: &GpuOffer, wish: &Wish, call: &Call<'_>) -> bool {
        let healthy = Resource::ALL
            .iter()
            .all(|r| r.of(wish.demand) == 0 || !gpu.unhealthy.contains_key(r));
        let clients = wish.mps == 0 || self.mps_clients(gpu) + wish.mps <= gpu.mps_clients;
        let free = self.free(gpu);
        // Of the resource asked for the kubelet knows best.
        let room = Resource::ALL
            .iter()
            .all(|r| *r == call.resource || r.of(wish.demand) <= r.of(free));
        healthy
            && clients
            && room
            && call.on(&gpu.uuid) >= call.size.max(call.resource.of(wish.demand) as usize)
    }

    /// A GPU as packing sees it. Of the resource asked for the kubelet knows best what is free.
    fn candidate<'a>(&self, gpu: &'a GpuOffer, call: &Call<'_>) -> Candidate<'a> {
        let known = self.free(gpu);
        let asked = call
            .resource
            .amount(u32::try_from(call.on(&gpu.uuid)).unwrap_or(u32::MAX));
        let others = known
            .checked_sub(call.resource.amount(call.resource.of(known)))
            .unwrap_or(Resources::NONE);
        Candidate {
            gpu: &gpu.uuid,
            capacity: gpu.capacity,
            free: others.checked_add(asked).unwrap_or(known),
        }
    }

    fn mps_clients(&self, gpu: &GpuOffer) -> u32 {
        let open = self.tracker.as_held(&self.pods);
        usage::mps_clients(&self.pods, &gpu.uuid, self.usage.counted(&self.pods).chain(&open))
    }

    fn free(&self, gpu: &GpuOffer) -> Resources {
        let open = self.tracker.as_held(&self.pods);
        let taken = usage::taken(&self.pods, &gpu.uuid, self.usage.counted(&self.pods).chain(&open));
        Resource::ALL.into_iter().fold(Resources::NONE, |free, resource| {
            let left = resource.of(gpu.capacity).saturating_sub(resource.of(taken));
            free.checked_add(resource.amount(left)).unwrap_or(free)
        })
    }

    /// Names each GPU, what is free there, and what to do.
    fn refusal(&self, readings: &[Reading], call: &Call<'_>) -> String {
        let pod = self.describe(readings);
        let meant = self.meant(readings).first().map(|(pod, _)| Wish::of(pod));
        let size = u32::try_from(call.size).unwrap_or(u32::MAX);
        let demand = meant
            .as_ref()
            .map_or(call.resource.amount(size), |wish| wish.demand);
        let wished = meant
            .and_then(|wish| wish.gpu)
            .map(|gpu| format!(" (it was meant for {gpu})"));
        let gpus: Vec<_> = self.gpus.values().map(|gpu| self.state_of(gpu)).collect();
        let gpus = if gpus.is_empty() {
            "this node offers no GPU".to_owned()
        } else {
            gpus.join("; ")
        };
        format!(
            "no GPU of this node has room for all of {pod}, which asks for {demand}{}: {gpus}. End a pod there, or let \
             the penstock scheduler place it: it counts by GPU, the default scheduler by node",
            wished.unwrap_or_default()
        )
    }

    fn state_of(&self, gpu: &GpuOffer) -> String {
        let why: BTreeSet<_> = gpu.unhealthy.values().map(String::as_str).collect();
        let unhealthy = if why.is_empty() {
            String::new()
        } else {
            format!(" (not used: {})", why.into_iter().collect::<Vec<_>>().join(", "))
        };
        format!("{} has {} free{unhealthy}", gpu.uuid, self.free(gpu))
    }

    fn torn(&self, readings: &[Reading], gpu: &GpuUuid, resource: Resource) -> String {
        let pod = self.describe(readings);
        let held = readings
            .iter()
            .find_map(|reading| self.tracker.gpu_of(reading, &self.pods, &self.usage));
        let held = held.map_or_else(|| "another GPU".to_owned(), |gpu| gpu.to_string());
        format!(
            "{pod} holds devices of {held}, and the kubelet gave it {} of {gpu}: all of a pod is on one GPU. Delete the \
             pod so that it is placed anew",
            resource.name()
        )
    }

    fn describe(&self, readings: &[Reading]) -> String {
        let names: BTreeSet<_> = self
            .meant(readings)
            .into_iter()
            .map(|(pod, _)| pod.full_name())
            .collect();
        let mut names = names.into_iter();
        match (names.next(), names.count()) {
            (None, _) => "a pod that this plugin has not heard of".to_owned(),
            (Some(pod), 0) => pod,
            (Some(pod), others) => format!("{pod} (or one of {others} others that wait)"),
        }
    }
}

/// What a pod asks for in all.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    gpu: Option<GpuUuid>,
    demand: Resources,
    mps: u32,
}

impl Wish {
    fn of(pod: &PodOnNode) -> Self {
        {
            let demand = pod.demand();
            Self {
                gpu: pod.gpu.clone(),
                demand: demand.resources,
                mps: demand.mps_containers,
            }
        }
    }

    /// The most of each resource; on the GPU that all are meant for, if there is one.
    fn most_of(wishes: &[Self]) -> Self {
        let most = |resource: Resource| {
            wishes
                .iter()
                .map(|wish| resource.of(wish.demand))
                .max()
                .unwrap_or(0)
        };
        let demand = Resource::ALL.into_iter().fold(Resources::NONE, |sum, r| {
            sum.checked_add(r.amount(most(r))).unwrap_or(sum)
        });
        let gpu = wishes.first().and_then(|first| first.gpu.clone());
        let same = wishes.iter().all(|wish| wish.gpu == gpu);
        Self {
            gpu: gpu.filter(|_| same),
            demand,
            mps: wishes.iter().map(|wish| wish.mps).max().unwrap_or(0),
        }
    }
}

/// A call for a preference.
struct Call<'a> {
    resource: Resource,
    available: &'a [DeviceId],
    must_include: &'a [DeviceId],
    size: usize,
}

impl Call<'_> {
    /// How many devices of `gpu` the kubelet has for this call.
    fn on(&self, gpu: &GpuUuid) -> usize {
        let all: BTreeSet<_> = self
            .available
            .iter()
            .chain(self.must_include)
            .filter(|id| id.gpu() == gpu)
            .collect();
        all.len()
    }
}

/// What must be included, then the lowest numbers.
fn pick(gpu: &GpuUuid, call: &Call<'_>) -> Vec<DeviceId> {
    let mut ids: Vec<_> = call.must_include.to_vec();
    let rest: BTreeSet<_> = call
        .available
        .iter()
        .filter(|id| id.gpu() == gpu && !ids.contains(id))
        .collect();
    let missing = call.size.saturating_sub(ids.len());
    ids.extend(rest.into_iter().take(missing).cloned());
    ids
}

fn scattered(resource: Resource, gpus: &[&GpuUuid]) -> String {
    let gpus: Vec<_> = gpus.iter().map(|gpu| gpu.as_str()).collect();
    format!(
        "the kubelet gave {} of several GPUs ({}) to one container: all of a pod is on one GPU. Delete the pod so that \
         it is placed anew",
        resource.name(),
        gpus.join(", ")
    )
}
