//! Which pod a call of the kubelet is for, and which GPU it gets.
//!
//! The kubelet asks resource by resource, in an order of its own, and names no pod. What it does keep to: pods are
//! admitted one at a time, containers in order, and per resource it asks for a preference, then allocates. So each
//! call is held against the pods that are bound to this node:
//!
//! ```text
//!  preferred(nvenc, 13) ─► whose turn can this be?  ─► one GPU with room for all that they ask for
//!  allocate(nvenc, ids) ─► grant                           │
//!  preferred(mps, 20)   ─► the same container's  ◄─────────┘  the same GPU
//!  allocate(mps, ids)   ─► grant
//!  what the kubelet lists and has stored ─► what really became of it; replaces what was guessed
//! ```
//!
//! Where earlier calls could have been two pods', or seem to have come to nothing, and after a restart of either side, the
//! kubelet is asked what it knows before the next one is answered. Its podresources API has all but the devices of init
//! containers that end; its checkpoint has those too, of containers that it is through with.
//!
//! All that one pod asks for is on one GPU, or the call is refused. A refusal fails the pod for good and its
//! controller makes another at once, so it is the last resort: a pod goes to another GPU than the annotation says
//! rather than nowhere.

mod choose;
mod devices;
mod occupancy;
mod pods;
mod turns;
mod usage;

#[cfg(test)]
mod dice;
#[cfg(test)]
mod kubelet_model;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use penstock_core::device::Resource;
use penstock_core::ids::{GpuUuid, PodUid};
use penstock_core::packing::Resources;

use crate::pods::PodOnNode;
use choose::{Call, Choosing, Need, Wish};
pub(crate) use devices::Devices;
pub(crate) use occupancy::{Occupancy, Slice};
use pods::Pods;
use turns::{Seen, Turn, Turns, UnderWay};
use usage::{Taken, Usage};

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
    pub(crate) ids: Devices,
}

/// What a container was given, as the kubelet's checkpoint says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The pod.
    pub(crate) pod: PodUid,
    /// The container's name.
    pub(crate) container: String,
    /// Of which resource.
    pub(crate) resource: Resource,
    /// The devices.
    pub(crate) ids: Devices,
}

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome<T> {
    /// The answer.
    Done(T),
    /// The pod that it is for is not known yet: ask again when pods change, or at that instant.
    Wait(Instant),
    /// Earlier calls can be read in several ways: tell what the kubelet knows ([`Assigner::set_held`], or
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

/// How long a call waits for the pod that it is for to show up, or before it is refused for one to have ended. The
/// kubelet's first call was seen 11 ms after the binding; a watch is rarely much later, and every other pod of the node
/// waits meanwhile.
pub(crate) const WAIT_FOR_POD: Duration = Duration::from_millis(1500);

/// Decides, and remembers what it has decided until podresources shows it.
#[derive(Debug, Default)]
pub(crate) struct Assigner {
    gpus: BTreeMap<GpuUuid, GpuOffer>,
    pods: Pods,
    usage: Usage,
    under_way: UnderWay,
    /// What was preferred last: the kubelet then allocates just that.
    preferred: Option<Preferred>,
    /// The call that waits for its pod, and until when.
    waiting: Option<(Resource, u32, Instant)>,
    /// Whether it was wanted what the kubelet knows, for the call that is to be answered now.
    list: List,
    /// Whether the kubelet was restarted since its last call, or this program was.
    restarted: bool,
    /// Whether pods are watched, so that a call for one that is not known has something to wait for.
    watching: bool,
    /// Where a pod that is not known was put last.
    stranger: Option<(GpuUuid, Instant)>,
}

/// An answer that the kubelet has not come back to yet.
#[derive(Debug)]
struct Preferred {
    resource: Resource,
    ids: Devices,
    turns: Turns,
}

/// How far it is with what a call needs to know of the kubelet.
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
            restarted: true,
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
            self.forget(&gone);
        }
        self.pods_changed();
    }

    /// A pod that is new or has changed.
    pub(crate) fn apply_pod(&mut self, pod: PodOnNode) {
        if pod.terminal {
            self.note_end(&pod.uid);
        }
        self.pods.apply(pod);
        self.pods_changed();
    }

    /// A pod that is gone.
    pub(crate) fn delete_pod(&mut self, uid: &PodUid) {
        self.note_end(uid);
        if let Some(gone) = self.pods.delete(uid) {
            self.forget(&gone);
        }
        self.pods_changed();
    }

    fn note_end(&mut self, uid: &PodUid) {
        let news = self.pods.get(uid).filter(|pod| !pod.terminal);
        if news.is_some_and(|pod| !turns::is_complete(pod, &self.usage)) {
            self.pods.ended_early(uid);
        }
    }

    fn forget(&mut self, gone: &PodOnNode) {
        self.usage.forget(gone);
    }

    fn pods_changed(&mut self) {
        // Whom it was for is to be found out anew: that pod may be gone, or another have come that it fits as well.
        self.preferred = None;
        self.under_way.forget_ended(&self.pods);
        self.usage.resolve(&self.pods);
    }

    /// All that is held on this node: what podresources lists, and what the kubelet has stored, where that can be read. It
    /// replaces what was guessed, but for what was given so lately that the list may be older.
    pub(crate) fn set_held(&mut self, now: Instant, listed: Vec<Held>, stored: Option<Vec<Stored>>) {
        let certain = self.list == List::Asked;
        self.usage.replace(
            now,
            (listed, stored),
            certain,
            certain && self.restarted,
            &self.pods,
        );
        self.under_way.check(&self.pods, &self.usage, now, certain);
        for uid in turns::complete(&self.pods, &self.usage) {
            self.pods.complete(uid);
        }
        if certain {
            self.list = List::Told;
        }
    }

    /// The kubelet was restarted. It asks again for what it had not stored, and is asked first what it knows.
    pub(crate) fn kubelet_restarted(&mut self) {
        self.restarted = true;
        self.list = List::NotAsked;
        self.preferred = None;
        self.under_way = UnderWay::default();
        self.pods.order_by_creation();
    }

    /// The kubelet was asked and gave no answer: earlier calls are then read as well as it goes without.
    pub(crate) fn unlisted(&mut self) {
        self.list = List::Told;
    }

    /// Which `size` of `available` the kubelet should take, `must_include` among them. Never fewer: the kubelet would
    /// fill up a short list at random.
    pub(crate) fn preferred(
        &mut self,
        now: Instant,
        resource: Resource,
        available: &Devices,
        must_include: &Devices,
        size: usize,
    ) -> Outcome<Devices> {
        let call = Call {
            resource,
            available,
            must_include,
            size,
        };
        self.under_way.undo(resource, available);
        loop {
            let turns = match self.turns(now, &seen(&call), |_, _| true) {
                Outcome::Done(turns) => turns,
                Outcome::Wait(until) => return Outcome::Wait(until),
                Outcome::List => return self.ask_for_list(),
                Outcome::Refuse(why) => return Outcome::Refuse(why),
            };
            let Chosen { ids, is_good } = self.choose(now, &turns.of, &call);
            // What the kubelet knows may show that the call is another's, or that there is room.
            if !is_good && self.may_be_wrong() {
                return self.ask_for_list();
            }
            if !is_good && must_include.is_empty() && self.take_back(resource, available, &turns) {
                continue;
            }
            return match ids {
                Some(ids) => self.prefer(resource, ids, turns),
                None => self.wait_or_refuse(now, &turns, call),
            };
        }
    }

    fn prefer(&mut self, resource: Resource, ids: Devices, turns: Turns) -> Outcome<Devices> {
        self.preferred = Some(Preferred {
            resource,
            ids: ids.clone(),
            turns,
        });
        Outcome::Done(ids)
    }

    fn wait_or_refuse<T>(&mut self, now: Instant, turns: &Turns, call: Call<'_>) -> Outcome<T> {
        if let Some(until) = self.wait(now, &seen(&call)) {
            return Outcome::Wait(until);
        }
        let pod = self.describe(&turns.of);
        let meant = self.meant(&turns.of).first().map(|(pod, _)| Wish::of(pod));
        let wish = meant.unwrap_or_else(|| Wish::of_call(&call));
        let why = self.choosing(call).refusal(&pod, &wish);
        self.refuse(turns, why)
    }

    /// Takes back what pods had that have ended: the kubelet has it to give. Gives whether there was any.
    fn take_back(&mut self, resource: Resource, ids: &Devices, turns: &Turns) -> bool {
        let whose: Vec<_> = turns
            .of
            .iter()
            .filter_map(|turn| self.pods.get(&turn.pod))
            .collect();
        self.usage.take_back(&self.pods, resource, ids, &whose)
    }

    /// Takes note of devices that the kubelet gives out, and says to whom.
    pub(crate) fn allocate(&mut self, now: Instant, resource: Resource, ids: &Devices) -> Outcome<Grant> {
        let gpu = match ids.gpus().collect::<Vec<_>>().as_slice() {
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
        let as_preferred = self
            .preferred
            .take()
            .filter(|preferred| preferred.resource == resource && preferred.ids == *ids);
        let turns = match as_preferred {
            Some(preferred) => preferred.turns,
            None => match self.turns(now, &seen, |assigner, turn| {
                assigner.gpu_of(turn).is_none_or(|held| held == gpu)
            }) {
                Outcome::Done(turns) => turns,
                Outcome::Wait(until) => return Outcome::Wait(until),
                Outcome::List => return self.ask_for_list(),
                Outcome::Refuse(why) => return Outcome::Refuse(why),
            },
        };
        let hands_on = |turn: &Turn| {
            self.pods
                .get(&turn.pod)
                .is_some_and(|pod| self.usage.holds_any(pod, resource, ids))
        };
        if !turns.of.is_empty() && !turns.of.iter().any(hands_on) {
            self.take_back(resource, ids, &turns);
        }
        let on_gpu = |turn: &Turn| self.gpu_of(turn).is_none_or(|held| held == gpu);
        if !turns.of.is_empty() && !turns.of.iter().any(on_gpu) {
            let why = self.torn(&turns.of, &gpu, resource);
            return self.refuse(&turns, why);
        }
        let mut turns = turns;
        turns
            .of
            .retain(|turn| self.gpu_of(turn).is_none_or(|held| held == gpu));
        self.waiting = None;
        self.list = List::NotAsked;
        if turns.of.is_empty() {
            return Outcome::Done(self.grant_stranger(now, gpu, &seen));
        }
        if let Some(likeliest) = turns.of.first() {
            self.pods.reached(&likeliest.pod);
        }
        let grant = self.grant(&turns.of, gpu, &seen);
        let finished = self.under_way.grant(now, &self.pods, turns, resource, ids);
        self.usage.give(now, finished);
        Outcome::Done(grant)
    }

    /// Whose turn a call may be. None are found for the call of a pod that is not known, once it was waited for.
    fn turns(
        &mut self,
        now: Instant,
        seen: &Seen<'_>,
        fits: impl Fn(&Self, &Turn) -> bool,
    ) -> Outcome<Turns> {
        if (self.restarted || self.under_way.is_doubtful()) && self.list != List::Told {
            return Outcome::List;
        }
        self.restarted = false;
        loop {
            let turns = self.under_way.turns(now, &self.pods, &self.usage, seen);
            let fit = turns.of.is_empty() || turns.of.iter().any(|turn| fits(self, turn));
            let unknown =
                self.watching && (turns.of.is_empty() || self.is_at_a_stranger()) || self.gpus.is_empty();
            let sure = !unknown && fit && !turns.passes_over;
            if !sure && self.may_be_wrong() {
                return Outcome::List;
            }
            if turns.passes_over && !turns.of.is_empty() && self.under_way.read_again(&turns) {
                continue;
            }
            if unknown && let Some(until) = self.wait(now, seen) {
                return Outcome::Wait(until);
            }
            if turns.passes_over && self.under_way.abandon() || unknown && self.pods.forget_refused() {
                continue;
            }
            return Outcome::Done(turns);
        }
    }

    /// Whether the kubelet has shown that the last call was for a pod which is not known.
    fn is_at_a_stranger(&self) -> bool {
        let last = self.under_way.last();
        last.is_some_and(|(resource, id)| {
            let id = Devices::from_iter([id.clone()]);
            self.usage.is_a_strangers(resource, &id, &self.pods)
        })
    }

    fn gpu_of(&self, turn: &Turn) -> Option<GpuUuid> {
        self.under_way.gpu_of(turn, &self.pods, &self.usage)
    }

    /// Says no, and that the kubelet will ask nothing more for the pod that it was most likely for.
    fn refuse<T>(&mut self, turns: &Turns, why: String) -> Outcome<T> {
        if let Some(turn) = turns.of.first() {
            self.pods.refused(turn.pod.clone());
        }
        self.under_way.abandon();
        self.waiting = None;
        self.list = List::NotAsked;
        Outcome::Refuse(why)
    }

    fn ask_for_list<T>(&mut self) -> Outcome<T> {
        self.list = List::Asked;
        Outcome::List
    }

    /// Whether what is known of earlier calls may be wrong, and the kubelet was not asked yet. They were undone where
    /// their pod has failed since, and where the kubelet was restarted before it had stored them.
    fn may_be_wrong(&self) -> bool {
        self.watching && self.list != List::Told
    }

    /// Until when a call waits that fits no pod, or no GPU has room for; `None` where it has waited long enough, or follows
    /// on one that has.
    fn wait(&mut self, now: Instant, seen: &Seen<'_>) -> Option<Instant> {
        if !self.watching && !self.gpus.is_empty() {
            return None;
        }
        let follows = self.stranger_of(now).is_some();
        let begun = self
            .waiting
            .filter(|(resource, size, _)| (*resource, *size) == (seen.resource, seen.size));
        let until = begun.map_or(now + WAIT_FOR_POD, |(.., until)| until);
        self.waiting = Some((seen.resource, seen.size, until));
        (!follows && now < until).then_some(until)
    }

    /// The GPU of the pod that is not known and is being admitted now.
    fn stranger_of(&self, now: Instant) -> Option<&GpuUuid> {
        let (gpu, last) = self.stranger.as_ref()?;
        (now.duration_since(*last) < ONE_STRANGER).then_some(gpu)
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
            ids: seen.ids.clone(),
        };
        self.usage.give(now, vec![held]);
        Grant {
            gpu,
            pod: None,
            container: seen.resource.amount(seen.size),
            pod_has_nvenc: true,
        }
    }

    fn grant(&self, turns: &[Turn], gpu: GpuUuid, seen: &Seen<'_>) -> Grant {
        let meant: Vec<_> = self.meant(turns);
        let demands: Vec<_> = meant.iter().map(|(pod, at)| pod.containers[*at].demand).collect();
        let agreed = demands
            .first()
            .filter(|first| demands.iter().all(|demand| demand == *first));
        let one = meant
            .first()
            .filter(|(first, _)| meant.iter().all(|(pod, _)| pod.uid == first.uid));
        Grant {
            gpu,
            pod: one.map(|(pod, _)| pod.full_name()),
            container: agreed.copied().unwrap_or(seen.resource.amount(seen.size)),
            pod_has_nvenc: meant.iter().any(|(pod, _)| pod.demand().resources.nvenc.0 > 0),
        }
    }

    /// The pods, and the places of their containers.
    fn meant(&self, turns: &[Turn]) -> Vec<(&PodOnNode, usize)> {
        turns
            .iter()
            .filter_map(|turn| Some((self.pods.get(&turn.pod)?, turn.at)))
            .collect()
    }

    /// What a call should be given, and whether that is good.
    fn choose(&self, now: Instant, turns: &[Turn], call: &Call<'_>) -> Chosen {
        let needs = self.needs(turns, call);
        let choosing = self.choosing(*call);
        let followed = match turns {
            [] => self.stranger_of(now).and_then(|gpu| choosing.on(gpu)),
            _ => None,
        };
        let gpu = match call.must_include.gpus().next() {
            Some(gpu) => choosing.on(gpu),
            None => followed.or_else(|| choosing.choose(&needs)),
        };
        let likeliest = needs.first();
        Chosen {
            is_good: gpu
                .as_ref()
                .is_some_and(|gpu| likeliest.is_none_or(|need| choosing.suits(gpu, need))),
            ids: gpu.map(|gpu| choosing.pick(&gpu)),
        }
    }

    fn choosing<'a>(&'a self, call: Call<'a>) -> Choosing<'a> {
        Choosing::new(call, &self.gpus, self.taken())
    }

    /// What those need whose turn it may be, likeliest first.
    fn needs(&self, turns: &[Turn], call: &Call<'_>) -> Vec<Need> {
        let need = |turn: &Turn| match self.gpu_of(turn) {
            Some(gpu) => Some(Need::Gpu(gpu)),
            None => self.pods.get(&turn.pod).map(|pod| Need::Room(Wish::of(pod))),
        };
        let mut needs: Vec<_> = turns.iter().filter_map(need).collect();
        needs.dedup();
        if needs.is_empty() {
            needs.push(Need::Room(Wish::of_call(call)));
        }
        needs
    }

    /// What is taken of each GPU that anything is taken of.
    fn taken(&self) -> BTreeMap<GpuUuid, Taken> {
        let open = self.under_way.as_held(&self.pods);
        usage::taken(&self.pods, self.usage.counted(&self.pods).chain(&open))
    }

    #[cfg(test)]
    fn free(&self, gpu: &GpuOffer) -> Resources {
        choose::free(gpu, &self.taken())
    }

    fn torn(&self, turns: &[Turn], gpu: &GpuUuid, resource: Resource) -> String {
        let pod = self.describe(turns);
        let held = turns.iter().find_map(|turn| self.gpu_of(turn));
        let held = held.map_or_else(|| "another GPU".to_owned(), |gpu| gpu.to_string());
        format!(
            "{pod} holds devices of {held}, and the kubelet gave it {} of {gpu}: all of a pod is on one GPU. Delete the \
             pod so that it is placed anew",
            resource.name()
        )
    }

    fn describe(&self, turns: &[Turn]) -> String {
        let names: BTreeSet<_> = self
            .meant(turns)
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

/// What a call should be given.
struct Chosen {
    /// The devices; none where there is no GPU for it.
    ids: Option<Devices>,
    /// Whether they suit the pod that the call is most likely for.
    is_good: bool,
}

fn seen<'a>(call: &Call<'a>) -> Seen<'a> {
    Seen {
        resource: call.resource,
        size: call.amount(),
        ids: call.must_include,
    }
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
