//! Admitting a pod: init containers in their order, then the others; per container one resource after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tonic::Status;

use super::Shared;
use super::books::Event;
use super::chance::Chance;
use super::device_plugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, PreferredAllocationRequest,
};

/// A pod to admit.
#[derive(Debug, Clone)]
pub(crate) struct PodSpec {
    name: String,
    uid: String,
    containers: Vec<Container>,
}

#[derive(Debug, Clone)]
struct Container {
    name: String,
    kind: Kind,
    ask: Vec<(String, usize)>,
}

/// In the order of admission: sidecars are init containers that stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Init,
    Sidecar,
    App,
}

/// What a container was given of one resource.
#[derive(Debug, Clone)]
pub(crate) struct Allocated {
    pub(crate) container: String,
    pub(crate) resource: String,
    pub(crate) ids: Vec<String>,
    pub(crate) response: ContainerAllocateResponse,
}

impl PodSpec {
    /// A pod (`namespace/name`) without containers.
    pub(crate) fn new(name: &str) -> Self {
        assert!(name.contains('/'), "{name} has no namespace");
        Self {
            name: name.to_owned(),
            uid: name.replace('/', "-"),
            containers: Vec::new(),
        }
    }

    /// With this UID, rather than one made of its name.
    #[allow(dead_code, reason = "for tests with an API server")]
    pub(crate) fn uid(self, uid: &str) -> Self {
        Self {
            uid: uid.to_owned(),
            ..self
        }
    }

    /// `namespace/name`.
    #[allow(dead_code, reason = "for tests that tell the plugin of pods")]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Each container's name, whether it is an init container or a sidecar, and what it asks for.
    #[allow(dead_code, reason = "for tests that tell the plugin of pods")]
    pub(crate) fn asks(&self) -> impl Iterator<Item = (&str, [bool; 2], &[(String, usize)])> {
        self.containers
            .iter()
            .map(|c| (&*c.name, [c.kind == Kind::Init, c.kind == Kind::Sidecar], &*c.ask))
    }

    /// With one more container, after the init containers.
    pub(crate) fn container(self, name: &str, ask: &[(&str, usize)]) -> Self {
        self.with(Kind::App, name, ask)
    }

    /// With one more init container, which ends before the next starts.
    pub(crate) fn init(self, name: &str, ask: &[(&str, usize)]) -> Self {
        self.with(Kind::Init, name, ask)
    }

    /// With one more init container that goes on beside the others.
    pub(crate) fn sidecar(self, name: &str, ask: &[(&str, usize)]) -> Self {
        self.with(Kind::Sidecar, name, ask)
    }

    fn with(mut self, kind: Kind, name: &str, ask: &[(&str, usize)]) -> Self {
        let ask = ask
            .iter()
            .map(|(resource, count)| ((*resource).to_owned(), *count));
        self.containers.push(Container {
            name: name.to_owned(),
            kind,
            ask: ask.collect(),
        });
        self
    }

    fn in_order(&self) -> impl Iterator<Item = &Container> {
        let is_app = |container: &&Container| container.kind == Kind::App;
        let first = self.containers.iter().filter(move |c| !is_app(c));
        first.chain(self.containers.iter().filter(is_app))
    }
}

/// Per resource, devices of init containers that have ended by the time a later container runs.
type Reusable = BTreeMap<String, BTreeSet<String>>;

impl Shared {
    pub(super) async fn admit(&self, pod: &PodSpec, chance: &mut Chance) -> Result<Vec<Allocated>, String> {
        let mut reusable = Reusable::new();
        let mut given = Vec::new();
        for container in pod.in_order() {
            let mut ask = container.ask.clone();
            chance.shuffle(&mut ask);
            for (resource, count) in ask {
                let outcome = self
                    .allocate(&container.name, &resource, count, &reusable, chance)
                    .await;
                let allocated = outcome.map_err(|why| self.fail(pod, &why))?;
                let ids = allocated.ids.iter().map(String::as_str);
                self.books().hand_out(
                    (&pod.name, &pod.uid),
                    (&container.name, container.kind == Kind::Init),
                    &resource,
                    ids,
                );
                hand_on(&mut reusable, container.kind, &allocated);
                given.push(allocated);
            }
            self.write_checkpoint();
        }
        Ok(given)
    }

    /// The pod has failed for good, and holds nothing.
    fn fail(&self, pod: &PodSpec, why: &str) -> String {
        self.books().remove(&pod.name);
        format!("Allocate failed due to {why}, which is unexpected")
    }

    async fn allocate(
        &self,
        container: &str,
        resource: &str,
        count: usize,
        reusable: &Reusable,
        chance: &mut Chance,
    ) -> Result<Allocated, String> {
        let reusable = reusable.get(resource).cloned().unwrap_or_default();
        let mut ids = self.choose(resource, count, reusable, chance).await?;
        chance.shuffle(&mut ids);
        let mut client = self.books().plugin(resource)?;
        self.books().note(Event::Allocate {
            resource: resource.to_owned(),
            ids: ids.clone(),
        });
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest {
                device_ids: ids.clone(),
            }],
        };
        let asked = Instant::now();
        let answer = client
            .allocate(request)
            .await
            .map_err(|status| in_words(&status))?;
        let took = asked.elapsed();
        self.books().took.allocate.push(took);
        let mut responses = answer.into_inner().container_responses;
        assert_eq!(responses.len(), 1, "one container was asked for");
        Ok(Allocated {
            container: container.to_owned(),
            resource: resource.to_owned(),
            ids,
            response: responses.remove(0),
        })
    }

    /// The devices for a container: first those that an init container leaves, then those that the plugin prefers,
    /// then any.
    async fn choose(
        &self,
        resource: &str,
        count: usize,
        reusable: BTreeSet<String>,
        chance: &mut Chance,
    ) -> Result<Vec<String>, String> {
        let mut chosen = shuffled(reusable, chance);
        chosen.truncate(count);
        if chosen.len() == count {
            return Ok(chosen);
        }
        let available = self.available(resource, count - chosen.len(), &chosen)?;
        let preferred = self
            .preferred(resource, count, &available, &chosen, chance)
            .await?;
        let wanted = preferred
            .into_iter()
            .filter(|id| available.contains(id))
            .collect();
        take(&mut chosen, count, shuffled(wanted, chance));
        take(&mut chosen, count, shuffled(available, chance));
        Ok(chosen)
    }

    fn available(
        &self,
        resource: &str,
        needed: usize,
        chosen: &[String],
    ) -> Result<BTreeSet<String>, String> {
        let books = self.books();
        books.plugin(resource)?;
        let mut available: BTreeSet<_> = &books.healthy(resource) - &books.in_use(resource);
        available.retain(|id| !chosen.contains(id));
        let there = available.len();
        if there < needed {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {needed}, Available: {there}"
            ));
        }
        Ok(available)
    }

    async fn preferred(
        &self,
        resource: &str,
        count: usize,
        available: &BTreeSet<String>,
        chosen: &[String],
        chance: &mut Chance,
    ) -> Result<Vec<String>, String> {
        let mut client = self.books().plugin(resource)?;
        self.books().note(Event::Preferred {
            resource: resource.to_owned(),
            size: count,
        });
        let all = available.iter().chain(chosen).cloned().collect();
        let request = PreferredAllocationRequest {
            container_requests: vec![ContainerPreferredAllocationRequest {
                available_device_ids: shuffled(all, chance),
                must_include_device_ids: chosen.to_vec(),
                allocation_size: i32::try_from(count).unwrap(),
            }],
        };
        let asked = Instant::now();
        let answer = client.get_preferred_allocation(request).await;
        let took = asked.elapsed();
        self.books().took.preferred.push(took);
        let answer = answer.map_err(|status| {
            format!(
                "device plugin GetPreferredAllocation rpc failed with err: {}",
                in_words(&status)
            )
        })?;
        let responses = answer.into_inner().container_responses;
        Ok(responses
            .into_iter()
            .flat_map(|response| response.device_ids)
            .collect())
    }
}

/// An init container's devices are free for later ones; what a container that stays was given is not.
fn hand_on(reusable: &mut Reusable, kind: Kind, allocated: &Allocated) {
    let devices = reusable.entry(allocated.resource.clone()).or_default();
    match kind {
        Kind::Init => devices.extend(allocated.ids.iter().cloned()),
        Kind::Sidecar | Kind::App => devices.retain(|id| !allocated.ids.contains(id)),
    }
}

fn take(chosen: &mut Vec<String>, count: usize, from: Vec<String>) {
    for id in from {
        if chosen.len() < count && !chosen.contains(&id) {
            chosen.push(id);
        }
    }
}

fn shuffled(ids: BTreeSet<String>, chance: &mut Chance) -> Vec<String> {
    let mut ids: Vec<_> = ids.into_iter().collect();
    chance.shuffle(&mut ids);
    ids
}

/// As Go's gRPC prints a status.
fn in_words(status: &Status) -> String {
    format!(
        "rpc error: code = {:?} desc = {}",
        status.code(),
        status.message()
    )
}
