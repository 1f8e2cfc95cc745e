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

use penstock_core::device::{DeviceId, Resource};
use penstock_core::ids::{GpuUuid, PodUid};
use penstock_core::packing::{Candidate, Resources, best_fit};

use crate::pods::PodOnNode;
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
    pub(crate) ids: Vec<DeviceId>,
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
    pub(crate) ids: Vec<DeviceId>,
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
    ids: BTreeSet<DeviceId>,
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
        self.under_way.forget_ended(&self.pods);
        self.usage.resolve(&self.pods);
    }

    /// All that is held on this node: what podresources lists, and what the kubelet has stored, where that can be read. It
    /// replaces what was guessed, but for what was given so lately that the list may be older.
    pub(crate) fn set_held(&mut self, now: Instant, listed: &[Held], stored: Option<&[Stored]>) {
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
        available: &[DeviceId],
        must_include: &[DeviceId],
        size: usize,
    ) -> Outcome<Vec<DeviceId>> {
        let mut call = Call {
            resource,
            available,
            must_include,
            size,
            there: BTreeMap::new(),
            taken: BTreeMap::new(),
        };
        let turns = match self.turns(now, &call.seen(), |_, _| true) {
            Outcome::Done(turns) => turns,
            Outcome::Wait(until) => return Outcome::Wait(until),
            Outcome::List => return self.ask_for_list(),
            Outcome::Refuse(why) => return Outcome::Refuse(why),
        };
        call.count();
        call.taken = self.taken();
        let chosen = self.choose(now, &turns.of, &call);
        let is_good = chosen
            .as_ref()
            .is_ok_and(|gpu| self.suits_likeliest(gpu, &turns.of, &call));
        // What the kubelet knows may show that the call is another's, or that there is room.
        if !is_good && self.may_be_wrong() {
            return self.ask_for_list();
        }
        if !is_good && must_include.is_empty() && self.take_back(resource, available, &turns) {
            return self.preferred(now, resource, available, must_include, size);
        }
        let gpu = match chosen {
            Ok(gpu) => gpu,
            Err(why) => {
                return match self.wait(now, &call.seen()) {
                    Some(until) => Outcome::Wait(until),
                    None => self.refuse(&turns, why),
                };
            }
        };
        let ids = pick(&gpu, &call);
        self.preferred = Some(Preferred {
            resource,
            ids: ids.iter().cloned().collect(),
            turns,
        });
        Outcome::Done(ids)
    }

    /// Takes back what pods had that have ended: the kubelet has it to give. Gives whether there was any.
    fn take_back(&mut self, resource: Resource, ids: &[DeviceId], turns: &Turns) -> bool {
        let whose: Vec<_> = turns
            .of
            .iter()
            .filter_map(|turn| self.pods.get(&turn.pod))
            .collect();
        self.usage.take_back(&self.pods, resource, ids, &whose)
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
        let as_preferred = self.preferred.take().filter(|preferred| {
            preferred.resource == resource
                && preferred.ids.len() == ids.len()
                && ids.iter().all(|id| preferred.ids.contains(id))
        });
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
                .is_some_and(|pod| self.usage.holds_any(pod, ids))
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
            self.usage
                .is_a_strangers(resource, std::slice::from_ref(id), &self.pods)
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

    /// The GPU for a call: one that suits all whose turn it may be, else one for the likeliest.
    fn choose(&self, now: Instant, turns: &[Turn], call: &Call<'_>) -> Result<GpuUuid, String> {
        if let Some(gpu) = call.must_include.first().map(DeviceId::gpu) {
            return match call.on(gpu) >= call.size {
                true => Ok(gpu.clone()),
                false => Err(self.refusal(turns, call)),
            };
        }
        let follows = self
            .stranger
            .as_ref()
            .filter(|(_, last)| now.duration_since(*last) < ONE_STRANGER);
        if turns.is_empty()
            && let Some((gpu, _)) = follows.filter(|(gpu, _)| call.on(gpu) >= call.size)
        {
            return Ok(gpu.clone());
        }
        let needs = self.needs(turns, call);
        // Should it be that pod's, it would be split anywhere else.
        if let Some(first @ Need::Gpu(gpu)) = needs.first()
            && !self.suits(gpu, first, call)
        {
            return Err(self.refusal(turns, call));
        }
        let suits_all = |gpu: &&GpuUuid| needs.iter().all(|need| self.suits(gpu, need, call));
        let chosen = needs.iter().filter_map(|need| self.place(need, &needs, call));
        let of_all = self.gpus.keys().filter(suits_all).cloned();
        let mut likely: Vec<_> = chosen.collect();
        likely.extend(of_all);
        let found = likely.iter().find(|gpu| suits_all(gpu)).or(likely.first());
        found.cloned().ok_or_else(|| self.refusal(turns, call))
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
            let size = u32::try_from(call.size).unwrap_or(u32::MAX);
            needs.push(Need::Room(Wish {
                gpu: None,
                demand: call.resource.amount(size),
                mps: u32::from(call.resource == Resource::Mps),
            }));
        }
        needs
    }

    fn suits_likeliest(&self, gpu: &GpuUuid, turns: &[Turn], call: &Call<'_>) -> bool {
        let needs = self.needs(turns, call);
        needs.first().is_none_or(|need| self.suits(gpu, need, call))
    }

    fn suits(&self, gpu: &GpuUuid, need: &Need, call: &Call<'_>) -> bool {
        match need {
            Need::Gpu(held) => held == gpu && call.on(gpu) >= call.size,
            Need::Room(wish) => self.gpus.get(gpu).is_some_and(|gpu| self.fits(gpu, wish, call)),
        }
    }

    /// The GPU that is needed, or that a wish names, where it has room; else the fullest that has, of those that suit
    /// `all` if there are such.
    fn place(&self, need: &Need, all: &[Need], call: &Call<'_>) -> Option<GpuUuid> {
        let wish = match need {
            Need::Gpu(gpu) => return Some(gpu.clone()).filter(|gpu| call.on(gpu) >= call.size),
            Need::Room(wish) => wish,
        };
        let fitting: Vec<_> = self
            .gpus
            .values()
            .filter(|gpu| self.fits(gpu, wish, call))
            .collect();
        let named = wish
            .gpu
            .as_ref()
            .filter(|wished| fitting.iter().any(|gpu| gpu.uuid == **wished));
        if let Some(named) = named {
            return Some(named.clone());
        }
        let for_all = |gpu: &&&GpuOffer| all.iter().all(|need| self.suits(&gpu.uuid, need, call));
        let best = |fitting: &[&GpuOffer]| {
            best_fit(wish.demand, fitting.iter().map(|gpu| self.candidate(gpu, call))).cloned()
        };
        let some: Vec<_> = fitting.iter().filter(for_all).copied().collect();
        best(&some).or_else(|| best(&fitting))
    }

    /// Whether all of a wish has room on `gpu`, by what is known here and by what the kubelet says is available.
    fn fits(&self, gpu: &GpuOffer, wish: &Wish, call: &Call<'_>) -> bool {
        let healthy = Resource::ALL
            .iter()
            .all(|r| r.of(wish.demand) == 0 || !gpu.unhealthy.contains_key(r));
        let taken = call.taken.get(&gpu.uuid).map_or(0, |taken| taken.mps_clients);
        let clients = wish.mps == 0 || taken + wish.mps <= gpu.mps_clients;
        let free = free(gpu, &call.taken);
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
        let known = free(gpu, &call.taken);
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

    /// What is taken of each GPU that anything is taken of.
    fn taken(&self) -> BTreeMap<GpuUuid, Taken> {
        let open = self.under_way.as_held(&self.pods);
        usage::taken(&self.pods, self.usage.counted(&self.pods).chain(&open))
    }

    #[cfg(test)]
    fn free(&self, gpu: &GpuOffer) -> Resources {
        free(gpu, &self.taken())
    }

    /// Names each GPU, what is free there, and what to do.
    fn refusal(&self, turns: &[Turn], call: &Call<'_>) -> String {
        let pod = self.describe(turns);
        let meant = self.meant(turns).first().map(|(pod, _)| Wish::of(pod));
        let size = u32::try_from(call.size).unwrap_or(u32::MAX);
        let demand = meant
            .as_ref()
            .map_or(call.resource.amount(size), |wish| wish.demand);
        let wished = meant
            .and_then(|wish| wish.gpu)
            .map(|gpu| format!(" (it was meant for {gpu})"));
        let gpus: Vec<_> = self.gpus.values().map(|gpu| state_of(gpu, &call.taken)).collect();
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

/// What one whose turn it may be needs.
#[derive(Debug, PartialEq, Eq)]
enum Need {
    /// The GPU that the pod is on.
    Gpu(GpuUuid),
    /// Room for all of a pod that has nothing yet.
    Room(Wish),
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
        let demand = pod.demand();
        Self {
            gpu: pod.gpu.clone(),
            demand: demand.resources,
            mps: demand.mps_containers,
        }
    }
}

/// A call for a preference.
struct Call<'a> {
    resource: Resource,
    available: &'a [DeviceId],
    must_include: &'a [DeviceId],
    size: usize,
    /// How many devices of each GPU the kubelet has for it.
    there: BTreeMap<&'a GpuUuid, usize>,
    /// What is taken of each GPU, by what is known here.
    taken: BTreeMap<GpuUuid, Taken>,
}

impl<'a> Call<'a> {
    fn seen(&self) -> Seen<'a> {
        Seen {
            resource: self.resource,
            size: u32::try_from(self.size).unwrap_or(u32::MAX),
            ids: self.must_include,
        }
    }

    fn count(&mut self) {
        let handed_on = self.must_include.iter().filter(|id| !self.available.contains(id));
        for id in self.available.iter().chain(handed_on) {
            *self.there.entry(id.gpu()).or_default() += 1;
        }
    }

    /// How many devices of `gpu` the kubelet has for this call.
    fn on(&self, gpu: &GpuUuid) -> usize {
        self.there.get(gpu).copied().unwrap_or(0)
    }
}

/// What is free of a GPU.
fn free(gpu: &GpuOffer, taken: &BTreeMap<GpuUuid, Taken>) -> Resources {
    let taken = taken
        .get(&gpu.uuid)
        .map_or(Resources::NONE, |taken| taken.amounts);
    Resource::ALL.into_iter().fold(Resources::NONE, |free, resource| {
        let left = resource.of(gpu.capacity).saturating_sub(resource.of(taken));
        free.checked_add(resource.amount(left)).unwrap_or(free)
    })
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

fn state_of(gpu: &GpuOffer, taken: &BTreeMap<GpuUuid, Taken>) -> String {
    let why: BTreeSet<_> = gpu.unhealthy.values().map(String::as_str).collect();
    let unhealthy = if why.is_empty() {
        String::new()
    } else {
        format!(" (not used: {})", why.into_iter().collect::<Vec<_>>().join(", "))
    };
    format!("{} has {} free{unhealthy}", gpu.uuid, free(gpu, taken))
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
