//! What the API server tells: pods of all namespaces, GpuNodes and PodDisruptionBudgets, each by a watch of its own.
//!
//! ```text
//!   API server ──list, watch──► penstock_shell::watches ──► read ──► change ──► the index's owner
//! ```
//!
//! Objects of a new list are applied as they come; what is not in it is deleted at its end. So nothing is missed
//! however a watch ended, and nothing that is still there is ever forgotten in between.

use std::collections::HashSet;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt as _};
use penstock_core::gpu_node::GpuNodeSpec;
use penstock_core::ids::{NodeName, PodUid};
use penstock_shell::api_errors;
use penstock_shell::gpu_node::GpuNode;
use penstock_shell::watches::{self, Resume, TRIED_AGAIN};
use serde::de::DeserializeOwned;

use crate::index::{Budget, Index, Pod};
use crate::objects::{self, PodObject, Unreadable};
use crate::owner::{Ending, Owner};

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watched {
    /// Pods, of all namespaces.
    Pods,
    /// GpuNodes.
    GpuNodes,
    /// PodDisruptionBudgets, of all namespaces.
    Budgets,
}

impl Watched {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Pods, Self::GpuNodes, Self::Budgets];

    /// As the API server calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::GpuNodes => "gpunodes",
            Self::Budgets => "poddisruptionbudgets",
        }
    }
}

/// A kind of object that the index is told of.
pub(crate) trait Told:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static
{
    /// Which it is.
    const WATCHED: Watched;

    /// What it is known by. Objects of one key are one object.
    fn key(&self) -> Option<Key>;

    /// What the index is told of it, where it matters.
    ///
    /// # Errors
    /// Where something in it can't be read.
    fn read(&self) -> Result<Option<Thing>, Unreadable>;
}

/// Something that the index is told of.
#[derive(Debug, Clone)]
pub(crate) enum Thing {
    Pod(Pod),
    GpuNode(NodeName, GpuNodeSpec),
    Budget(Budget),
}

/// What it is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Pod(PodUid),
    GpuNode(NodeName),
    Budget { namespace: String, name: String },
}

impl Told for PodObject {
    const WATCHED: Watched = Watched::Pods;

    fn key(&self) -> Option<Key> {
        Some(Key::Pod(self.meta().uid.as_deref()?.parse().ok()?))
    }

    fn read(&self) -> Result<Option<Thing>, Unreadable> {
        Ok(PodObject::read(self)?.map(Thing::Pod))
    }
}

impl Told for GpuNode {
    const WATCHED: Watched = Watched::GpuNodes;

    fn key(&self) -> Option<Key> {
        self.node().map(Key::GpuNode)
    }

    fn read(&self) -> Result<Option<Thing>, Unreadable> {
        Ok(self.node().map(|name| Thing::GpuNode(name, self.spec.0.clone())))
    }
}

impl Told for PodDisruptionBudget {
    const WATCHED: Watched = Watched::Budgets;

    fn key(&self) -> Option<Key> {
        Some(Key::Budget {
            namespace: self.namespace().unwrap_or_default(),
            name: self.name_any(),
        })
    }

    fn read(&self) -> Result<Option<Thing>, Unreadable> {
        Ok(objects::budget(self)?.map(Thing::Budget))
    }
}

fn apply(index: &mut Index, thing: Thing) {
    match thing {
        Thing::Pod(pod) => index.apply_pod(pod),
        Thing::GpuNode(name, spec) => index.apply_gpu_node(&name, &spec),
        Thing::Budget(budget) => index.apply_budget(budget),
    }
}

fn delete(index: &mut Index, key: &Key) {
    match key {
        Key::Pod(uid) => index.delete_pod(uid),
        Key::GpuNode(name) => index.delete_gpu_node(name),
        Key::Budget { namespace, name } => index.delete_budget(namespace, name),
    }
}

/// Tells `owner` of all objects of a kind, and of each change to them, until the program ends.
pub(crate) async fn watch<K: Told>(client: Client, owner: Owner, news: Arc<News>) -> Ending {
    let mut watch = Watch {
        owner,
        news,
        known: HashSet::new(),
        unlisted: None,
    };
    let (api, config) = (Api::<K>::all(client), watcher::Config::default());
    let mut events = pin!(watches::events(api, config, Resume::WhereItEnded));
    // They never end.
    while let Some(next) = events.next().await {
        match next {
            Ok(event) => {
                if let Err(ending) = watch.well(event).await {
                    return ending;
                }
            }
            Err(error) => watch.ill::<K>(&error),
        }
    }
    Ending
}

struct Watch {
    owner: Owner,
    news: Arc<News>,
    /// What the index was told of.
    known: HashSet<Key>,
    /// While a list comes in: what was known before and was not in it so far.
    unlisted: Option<HashSet<Key>>,
}

impl Watch {
    async fn well<K: Told>(&mut self, event: watcher::Event<K>) -> Result<(), Ending> {
        match event {
            // It says nothing yet: the list is asked for only now.
            watcher::Event::Init => {
                self.unlisted = Some(self.known.clone());
                return Ok(());
            }
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => self.apply(&object).await?,
            watcher::Event::Delete(object) => {
                if let Some(key) = object.key() {
                    self.delete(key).await?;
                }
            }
            watcher::Event::InitDone => self.listed::<K>().await?,
        }
        if self.news.works(K::WATCHED, Instant::now()) {
            tracing::info!("watching {}", K::WATCHED.name());
        }
        Ok(())
    }

    fn ill<K: Told>(&self, error: &watcher::Error) {
        let (what, why) = (K::WATCHED.name(), api_errors::of_watch(error));
        if self.news.fails(K::WATCHED, Instant::now()) {
            tracing::warn!(
                "watching {what}: {why}; it is tried again, {TRIED_AGAIN} (the extender needs the verbs list and watch on \
                 {what})"
            );
        } else {
            tracing::debug!("still trying to watch {what}: {why}");
        }
    }

    async fn apply<K: Told>(&mut self, object: &K) -> Result<(), Ending> {
        let Some(key) = object.key() else {
            return Ok(());
        };
        if let Some(unlisted) = &mut self.unlisted {
            unlisted.remove(&key);
        }
        match object.read() {
            Ok(Some(thing)) => {
                self.known.insert(key);
                self.owner.tell(move |index| apply(index, thing)).await
            }
            Ok(None) => self.delete(key).await,
            Err(unreadable) => {
                tracing::warn!("{unreadable}; it is not counted");
                self.delete(key).await
            }
        }
    }

    async fn delete(&mut self, key: Key) -> Result<(), Ending> {
        if self.known.remove(&key) {
            self.owner.tell(move |index| delete(index, &key)).await?;
        }
        Ok(())
    }

    async fn listed<K: Told>(&mut self) -> Result<(), Ending> {
        for key in self.unlisted.take().unwrap_or_default() {
            self.delete(key).await?;
        }
        // Through the same queue as all that was listed: whoever sees it ready can ask about all of that.
        let news = self.news.clone();
        self.owner
            .tell(move |_| {
                news.kinds[K::WATCHED as usize]
                    .listed
                    .store(true, Ordering::Release)
            })
            .await
    }
}

/// How fresh it is what the watches have told.
#[derive(Debug)]
pub(crate) struct News {
    start: Instant,
    kinds: [Kind; Watched::ALL.len()],
}

/// Times are in milliseconds since the start.
#[derive(Debug, Default)]
struct Kind {
    listed: AtomicBool,
    in_trouble: AtomicBool,
    worked_at: AtomicU64,
    failed_at: AtomicU64,
}

impl News {
    /// None so far.
    pub(crate) fn new(start: Instant) -> Self {
        Self {
            start,
            kinds: Default::default(),
        }
    }

    /// What is not filled yet; empty when all is.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let missing = |of: &Watched| !self.kinds[*of as usize].listed.load(Ordering::Acquire);
        Watched::ALL
            .into_iter()
            .filter(missing)
            .map(Watched::name)
            .collect()
    }

    /// For how long a watch has failed; 0 while it works. A watch that works again says so only when something happens
    /// or with its next failure left out, so this goes back to 0 within [`TRIED_AGAIN_WITHIN`].
    pub(crate) fn age(&self, of: Watched, now: Instant) -> Duration {
        let kind = &self.kinds[of as usize];
        let [worked, failed] =
            [&kind.worked_at, &kind.failed_at].map(|at| Duration::from_millis(at.load(Ordering::Relaxed)));
        let now = now.saturating_duration_since(self.start);
        let fails = failed > worked && now.saturating_sub(failed) < TRIED_AGAIN_WITHIN;
        let unlisted = !kind.listed.load(Ordering::Relaxed);
        if fails || unlisted {
            now.saturating_sub(worked)
        } else {
            Duration::ZERO
        }
    }

    /// A watch has brought something. Gives whether that is news.
    fn works(&self, of: Watched, now: Instant) -> bool {
        let kind = &self.kinds[of as usize];
        let first = kind.worked_at.swap(self.since_start(now), Ordering::Relaxed) == 0;
        kind.in_trouble.swap(false, Ordering::Relaxed) || first
    }

    /// A watch has failed. Gives whether that is news.
    fn fails(&self, of: Watched, now: Instant) -> bool {
        let kind = &self.kinds[of as usize];
        kind.failed_at.store(self.since_start(now), Ordering::Relaxed);
        !kind.in_trouble.swap(true, Ordering::Relaxed)
    }

    fn since_start(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.start).as_millis();
        // At least 1: 0 stands for never.
        u64::try_from(since).unwrap_or(u64::MAX).max(1)
    }
}

/// A failing watch is tried [`TRIED_AGAIN`], and a try that gets no answer takes 30 s until it counts as failed.
const TRIED_AGAIN_WITHIN: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_ages_while_a_watch_fails() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let age = |news: &News, seconds| news.age(Watched::Pods, at(seconds)).as_secs();
        let news = News::new(start);
        assert_eq!(age(&news, 7), 7, "nothing is known yet");
        assert!(news.works(Watched::Pods, at(10)));
        news.kinds[0].listed.store(true, Ordering::Release);
        assert_eq!(age(&news, 500), 0, "nothing happens, and that is well");
        assert!(news.fails(Watched::Pods, at(500)));
        assert!(!news.fails(Watched::Pods, at(530)));
        assert_eq!(age(&news, 540), 530);
        assert_eq!(age(&news, 651), 0, "it was tried again, and did not fail");
        assert!(news.works(Watched::Pods, at(652)));
        assert_eq!(age(&news, 653), 0);
    }

    #[test]
    fn what_is_missing_has_its_name() {
        let news = News::new(Instant::now());
        assert_eq!(news.missing(), ["pods", "gpunodes", "poddisruptionbudgets"]);
        news.kinds[Watched::GpuNodes as usize]
            .listed
            .store(true, Ordering::Release);
        assert_eq!(news.missing(), ["pods", "poddisruptionbudgets"]);
    }
}
