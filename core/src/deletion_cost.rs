//! What a pod with a streamer costs to delete, and when that is written on it.
//!
//! ```text
//!  players  ──► Band ──► wanted annotations ──┐ differ?   raise: at once      ┐ at most so many
//!  what is on the pod ── ours, or not? ───────┴─────────► lower: after 10 s   ├ writes in any second ──► Write
//!                                                         remove: not ours now┘
//! ```
//!
//! The order of the bands is what counts: when a ReplicaSet shrinks, Kubernetes deletes cheap pods first. A pod that got
//! a player while its cost is still low would go before an idle one that is still dear, so raises go before everything
//! else, and always find half of all writes unspent.
//!
//! What is on the pods is all the state there is: a third annotation says which of the other two we have set, and to
//! what. Whatever somebody else has set, or changed since, is left alone.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::ids::PodUid;
use crate::names::{ANNOTATION_DELETION_COST, ANNOTATION_SAFE_TO_EVICT, ANNOTATION_SET};

/// How long a pod keeps its cost after it needs none that high: somebody else may come, and writes are dear.
pub const LOWERED_AFTER: Duration = Duration::from_secs(10);
/// How long a pod that is not ours any more is remembered, for its annotations to be removed.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(60);

/// Who is on a streamer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Who steer.
    pub players: u32,
    /// Who only watch.
    pub viewers: u32,
}

/// How dear a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Band {
    /// Nobody is there.
    Idle,
    /// Viewers, but no player.
    Watched,
    /// One player.
    OnePlayer,
    /// Two or three.
    FewPlayers,
    /// Four or more.
    ManyPlayers,
}

impl Band {
    /// The band of a pod with that many.
    pub fn of(counts: Counts) -> Self {
        match (counts.players, counts.viewers) {
            (0, 0) => Self::Idle,
            (0, _) => Self::Watched,
            (1, _) => Self::OnePlayer,
            (2..=3, _) => Self::FewPlayers,
            (4.., _) => Self::ManyPlayers,
        }
    }

    /// The value of `controller.kubernetes.io/pod-deletion-cost`. A pod without any counts as 0.
    pub fn cost(self) -> i32 {
        match self {
            Self::Idle => 0,
            Self::Watched => 10,
            Self::OnePlayer => 100,
            Self::FewPlayers => 200,
            Self::ManyPlayers => 300,
        }
    }

    /// The value of `cluster-autoscaler.kubernetes.io/safe-to-evict`.
    pub fn safe_to_evict(self) -> bool {
        self <= Self::Watched
    }
}

/// The annotations of a pod that are about its deletion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    /// `controller.kubernetes.io/pod-deletion-cost`.
    pub cost: Option<String>,
    /// `cluster-autoscaler.kubernetes.io/safe-to-evict`.
    pub safe_to_evict: Option<String>,
    /// Ours: what we have set of the two, as `pod-deletion-cost=100,safe-to-evict=false`.
    pub set: Option<String>,
}

impl Annotations {
    /// Whether the cost is ours to set: it is as we left it, or absent.
    fn cost_is_ours(&self) -> bool {
        self.cost.is_none() || self.cost.as_deref() == self.left(COST)
    }

    fn safe_to_evict_is_ours(&self) -> bool {
        self.safe_to_evict.is_none() || self.safe_to_evict.as_deref() == self.left(SAFE)
    }

    /// What we have set the annotation of that short name to.
    fn left(&self, name: &str) -> Option<&str> {
        let parts = self.set.as_deref().unwrap_or_default().split(',');
        parts
            .filter_map(|part| part.split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
    }

    /// These, with ours set for `band`; or with ours gone, where there is none.
    fn with(&self, band: Option<Band>) -> Self {
        let cost = band.map(|band| band.cost().to_string());
        let safe = band.map(|band| band.safe_to_evict().to_string());
        let mut set = Vec::new();
        let mut one = |name: &str, ours: bool, there: &Option<String>, wanted: Option<String>| {
            if !ours {
                return there.clone();
            }
            set.extend(wanted.iter().map(|value| format!("{name}={value}")));
            wanted
        };
        let cost = one(COST, self.cost_is_ours(), &self.cost, cost);
        let safe_to_evict = one(SAFE, self.safe_to_evict_is_ours(), &self.safe_to_evict, safe);
        Self {
            cost,
            safe_to_evict,
            set: (!set.is_empty()).then(|| set.join(",")),
        }
    }

    /// What Kubernetes makes of it: 0 where there is none.
    fn cost_in_effect(&self) -> i32 {
        self.cost
            .as_deref()
            .and_then(|cost| cost.parse().ok())
            .unwrap_or(0)
    }

    /// Whether `other` protects more.
    fn is_raised_by(&self, other: &Self) -> bool {
        let kept = |of: &Self| of.safe_to_evict.as_deref() == Some("false");
        other.cost_in_effect() > self.cost_in_effect() || (kept(other) && !kept(self))
    }

    /// What has to be set, or to go where it is none, to come from these to `other`.
    fn changes_to(&self, other: &Self) -> BTreeMap<&'static str, Option<String>> {
        let all = [
            (ANNOTATION_DELETION_COST, &self.cost, &other.cost),
            (
                ANNOTATION_SAFE_TO_EVICT,
                &self.safe_to_evict,
                &other.safe_to_evict,
            ),
            (ANNOTATION_SET, &self.set, &other.set),
        ];
        all.into_iter()
            .filter(|(_, from, to)| from != to)
            .map(|(name, _, to)| (name, to.clone()))
            .collect()
    }
}

/// A write to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// To which pod.
    pub pod: PodUid,
    /// The annotations to set, or to remove where there is no value: a JSON merge patch of them.
    pub annotations: BTreeMap<&'static str, Option<String>>,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Written,
    /// There is no such pod any more.
    Gone,
    /// It may work another time.
    Failed,
}

/// All pods, and what there is to write. One task owns it.
#[derive(Debug)]
pub struct Costs {
    pods: BTreeMap<PodUid, Pod>,
    /// The writes of the last second, the oldest first, and whether each was a raise.
    recent: VecDeque<(Instant, bool)>,
    per_second: usize,
}

#[derive(Debug)]
struct Pod {
    found: Annotations,
    /// None while nobody knows.
    counts: Option<Counts>,
    /// Since when the annotations differ from what is wanted, always in this direction.
    differs: Option<(Need, Instant)>,
    /// What a write on its way will make of it.
    writing: Option<Annotations>,
    /// What the last write has replaced, and when: an older state may still be told.
    replaced: Option<(Annotations, Instant)>,
    failures: u32,
    not_before: Option<Instant>,
    /// Since when it is not ours any more.
    leaving: Option<Instant>,
}

/// Why to write, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    /// There is a player, and the pod does not show it.
    Raise,
    Remove,
    Lower,
    /// An idle pod that never was written on. It counts as idle all the same.
    Mark,
}

impl Costs {
    /// No pods, and at most `per_second` writes in any second; at least one.
    pub fn new(per_second: u32) -> Self {
        Self {
            pods: BTreeMap::new(),
            recent: VecDeque::new(),
            per_second: usize::try_from(per_second).unwrap_or(usize::MAX).max(1),
        }
    }

    /// A pod of ours has these annotations.
    pub fn found(&mut self, now: Instant, uid: &PodUid, found: Annotations) {
        let pod = self.pods.entry(uid.clone()).or_insert_with(Pod::new);
        let old_news = pod
            .replaced
            .as_ref()
            .is_some_and(|(before, at)| *before == found && now < *at + OLD_NEWS_FOR);
        if !old_news {
            pod.found = found;
        }
        pod.leaving = None;
        pod.weigh(now);
    }

    /// So many are on a pod of ours; none, where nobody knows. What is not known changes nothing.
    pub fn count(&mut self, now: Instant, uid: &PodUid, counts: Option<Counts>) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.counts = counts;
            pod.weigh(now);
        }
    }

    /// A pod is not ours any more. What we have written on it is removed if it is still there.
    pub fn leave(&mut self, now: Instant, uid: &PodUid, still_there: bool) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        pod.leaving = Some(now);
        pod.weigh(now);
        if !still_there || (pod.differs.is_none() && pod.writing.is_none()) {
            self.pods.remove(uid);
        }
    }

    /// Whether there is anything left to do about a pod, or may be.
    pub fn remembers(&self, uid: &PodUid) -> bool {
        self.pods.contains_key(uid)
    }

    /// When [`Self::next`] has something to give, unless something happens before.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let due = |pod: &Pod| pod.ready_at().map(|(need, at)| at.max(self.room_at(now, need)));
        self.pods.values().filter_map(due).min()
    }

    /// The most urgent write, if it may be made now. What became of it has to be told by [`Self::done`].
    pub fn next(&mut self, now: Instant) -> Option<Write> {
        self.forget(now);
        let ready = |(uid, pod): (&PodUid, &Pod)| {
            let (need, at) = pod.ready_at()?;
            let since = pod.differs.map(|(_, since)| since);
            (at <= now && self.room_at(now, need) <= now).then(|| (need, since, uid.clone()))
        };
        let (need, _, uid) = self.pods.iter().filter_map(ready).min()?;
        let pod = self.pods.get_mut(&uid)?;
        let wanted = pod.wanted()?;
        let annotations = pod.found.changes_to(&wanted);
        pod.writing = Some(wanted);
        self.recent.push_back((now, need == Need::Raise));
        Some(Write {
            pod: uid,
            annotations,
        })
    }

    /// A write that [`Self::next`] gave has come to an end.
    pub fn done(&mut self, now: Instant, uid: &PodUid, outcome: Outcome) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        let writing = pod.writing.take();
        match (outcome, writing) {
            (Outcome::Gone, _) => {
                self.pods.remove(uid);
                return;
            }
            (Outcome::Written, Some(written)) => {
                let before = std::mem::replace(&mut pod.found, written);
                pod.replaced = Some((before, now));
                (pod.failures, pod.not_before) = (0, None);
            }
            (Outcome::Written, None) => {}
            (Outcome::Failed, _) => {
                pod.not_before = Some(now + pause(pod.failures));
                pod.failures += 1;
            }
        }
        pod.weigh(now);
        if pod.leaving.is_some() && pod.differs.is_none() {
            self.pods.remove(uid);
        }
    }

    /// From when on there is room for such a write. Raises may take all writes of a second, the others half of them.
    fn room_at(&self, now: Instant, need: Need) -> Instant {
        let after = |at: Option<&(Instant, bool)>| at.map_or(now, |(at, _)| *at + SECOND);
        let nth_last = |n: usize| self.recent.len().checked_sub(n);
        let any = after(nth_last(self.per_second).and_then(|index| self.recent.get(index)));
        if need == Need::Raise {
            return any;
        }
        let mut lazy = self.recent.iter().rev().filter(|(_, raise)| !raise);
        any.max(after(lazy.nth((self.per_second / 2).max(1) - 1)))
    }

    fn forget(&mut self, now: Instant) {
        while self.recent.front().is_some_and(|(at, _)| *at + SECOND <= now) {
            self.recent.pop_front();
        }
        self.pods
            .retain(|_, pod| pod.leaving.is_none_or(|since| now < since + REMEMBERED_FOR));
    }
}

impl Pod {
    fn new() -> Self {
        Self {
            found: Annotations::default(),
            counts: None,
            differs: None,
            writing: None,
            replaced: None,
            failures: 0,
            not_before: None,
            leaving: None,
        }
    }

    /// What should be on it; none while that is not known.
    fn wanted(&self) -> Option<Annotations> {
        if self.leaving.is_some() {
            return Some(self.found.with(None));
        }
        self.counts.map(|counts| self.found.with(Some(Band::of(counts))))
    }

    /// Notes since when which way it differs.
    fn weigh(&mut self, now: Instant) {
        let need = self
            .wanted()
            .filter(|wanted| *wanted != self.found)
            .map(|wanted| {
                if self.leaving.is_some() {
                    Need::Remove
                } else if self.found.is_raised_by(&wanted) {
                    Need::Raise
                } else if self.found.set.is_none() {
                    Need::Mark
                } else {
                    Need::Lower
                }
            });
        self.differs = need.map(|need| match self.differs {
            Some((old, since)) if old == need => (need, since),
            _ => (need, now),
        });
    }

    /// When its next write may be made, as far as it itself is concerned.
    fn ready_at(&self) -> Option<(Need, Instant)> {
        let (need, since) = self.differs.filter(|_| self.writing.is_none())?;
        let at = match need {
            Need::Lower => since + LOWERED_AFTER,
            Need::Raise | Need::Remove | Need::Mark => since,
        };
        Some((need, self.not_before.map_or(at, |not_before| at.max(not_before))))
    }
}

/// How long to wait after a write has failed: a quarter of a second, then twice as long each time, up to half a minute.
fn pause(failures: u32) -> Duration {
    Duration::from_millis(250)
        .saturating_mul(2_u32.saturating_pow(failures))
        .min(Duration::from_secs(30))
}

const COST: &str = "pod-deletion-cost";
const SAFE: &str = "safe-to-evict";
const SECOND: Duration = Duration::from_secs(1);
/// How long after a write a watch may still tell of what was before.
const OLD_NEWS_FOR: Duration = Duration::from_secs(5);
