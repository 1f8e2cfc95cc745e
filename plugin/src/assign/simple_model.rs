//! The same with less in it: no change of health, nothing in the midst of a pod, init containers listed by podresources.

use proptest::prelude::*;

use super::dice::Dice;
use super::tests::{demand, gpu};
use penstock_core::pod_demand::ContainerKind;

use super::*;
use crate::pods::ContainerAsk;

/// What the kubelet knows: which devices are in use by which container.
struct Kubelet {
    gpus: Vec<GpuOffer>,
    /// By pod and container: the devices of each resource.
    given: BTreeMap<(String, String), BTreeMap<Resource, Vec<DeviceId>>>,
    dice: Dice,
}

impl Kubelet {
    fn in_use(&self, resource: Resource) -> BTreeSet<DeviceId> {
        self.given
            .values()
            .filter_map(|by| by.get(&resource))
            .flatten()
            .cloned()
            .collect()
    }

    fn free(&self, resource: Resource) -> Vec<DeviceId> {
        let used = self.in_use(resource);
        let all = self
            .gpus
            .iter()
            .flat_map(|gpu| (0..resource.of(gpu.capacity)).map(|n| DeviceId::new(gpu.uuid.clone(), n)));
        all.filter(|id| !used.contains(id)).collect()
    }

    /// Whether some GPU alone has room for all of a pod.
    fn has_room(&self, pod: &PodOnNode) -> bool {
        let demand = pod.demand().resources;
        self.gpus.iter().any(|gpu| {
            Resource::ALL.into_iter().all(|r| {
                let free = self.free(r).iter().filter(|id| *id.gpu() == gpu.uuid).count();
                free >= r.of(demand) as usize
            })
        })
    }

    /// Admits a pod: its containers in order, the resources of each in a random one.
    fn admit(&mut self, assigner: &mut Assigner, now: Instant, pod: &PodOnNode) -> Result<(), String> {
        let mut reusable: BTreeMap<Resource, Vec<DeviceId>> = BTreeMap::new();
        for container in &pod.containers {
            let mut resources: Vec<_> = Resource::ALL
                .into_iter()
                .filter(|r| r.of(container.demand) > 0)
                .collect();
            self.dice.shuffle(&mut resources);
            for resource in resources {
                let size = resource.of(container.demand) as usize;
                let ids = self.devices(assigner, now, resource, size, reusable.get(&resource))?;
                self.answered(assigner, now, |assigner| assigner.allocate(now, resource, &ids))?;
                let key = (pod.name.clone(), container.name.clone());
                self.given.entry(key).or_default().insert(resource, ids.clone());
                let left = reusable.entry(resource).or_default();
                match container.kind {
                    ContainerKind::Init => left.extend(
                        ids.into_iter()
                            .filter(|id| !left.contains(id))
                            .collect::<Vec<_>>(),
                    ),
                    _ => left.retain(|id| !ids.contains(id)),
                }
            }
        }
        Ok(())
    }

    /// Devices for one container: those that an init container left first, then what the plugin prefers.
    fn devices(
        &mut self,
        assigner: &mut Assigner,
        now: Instant,
        resource: Resource,
        size: usize,
        reusable: Option<&Vec<DeviceId>>,
    ) -> Result<Vec<DeviceId>, String> {
        let mut left = reusable.cloned().unwrap_or_default();
        self.dice.shuffle(&mut left);
        left.truncate(size);
        if left.len() == size {
            return Ok(left);
        }
        let mut available = self.free(resource);
        if available.len() < size - left.len() {
            return Err("the node's total is too small".to_owned());
        }
        available.extend(left.iter().cloned());
        self.dice.shuffle(&mut available);
        let ids = self.answered(assigner, now, |assigner| {
            assigner.preferred(now, resource, &available, &left, size)
        })?;
        assert_eq!(ids.len(), size, "a short list would be filled up at random");
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), size);
        assert!(ids.iter().all(|id| available.contains(id)));
        Ok(ids)
    }

    /// Asks, and tells what podresources says where that is wanted.
    fn answered<T>(
        &self,
        assigner: &mut Assigner,
        now: Instant,
        mut ask: impl FnMut(&mut Assigner) -> Outcome<T>,
    ) -> Result<T, String> {
        let mut outcome = ask(assigner);
        if matches!(outcome, Outcome::List) {
            assigner.set_held(now, &self.podresources(), None);
            outcome = ask(assigner);
        }
        match outcome {
            Outcome::Done(answer) => Ok(answer),
            Outcome::Wait(_) => Err("waits".to_owned()),
            Outcome::List => Err("asks twice".to_owned()),
            Outcome::Refuse(why) => Err(why),
        }
    }

    fn podresources(&self) -> Vec<Held> {
        let held = |((pod, container), by): (&(String, String), &BTreeMap<Resource, Vec<DeviceId>>)| {
            let (pod, container) = (pod.clone(), container.clone());
            by.iter()
                .map(move |(resource, ids)| Held {
                    namespace: "games".to_owned(),
                    pod: pod.clone(),
                    container: container.clone(),
                    resource: *resource,
                    ids: ids.clone(),
                })
                .collect::<Vec<_>>()
        };
        self.given.iter().flat_map(held).collect()
    }

    fn remove(&mut self, pod: &str) {
        self.given.retain(|(name, _), _| name != pod);
    }

    fn gpus_of(&self, pod: &str) -> BTreeSet<GpuUuid> {
        let of_pod = self.given.iter().filter(|((name, _), _)| name == pod);
        of_pod
            .flat_map(|(_, by)| by.values().flatten())
            .map(|id| id.gpu().clone())
            .collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Several pods are bound at once; the kubelet admits them one after the other, in this or the other order.
    Bind {
        pods: Vec<Vec<ContainerAsk>>,
        reversed: bool,
    },
    /// A pod ends, of those that there are.
    End(usize),
    /// The plugin forgets all and reads it anew.
    RestartPlugin,
    /// The plugin reads podresources.
    List,
}

fn containers() -> impl Strategy<Value = Vec<ContainerAsk>> {
    let kind = prop_oneof![
        1 => Just(ContainerKind::Init), 1 => Just(ContainerKind::Sidecar), 4 => Just(ContainerKind::App)
    ];
    // Few amounts, so that pods are often alike in part.
    let amounts = (0..3u32, 0..3u32, 0..2u32).prop_map(|(n, m, v)| demand(n * 13, m * 20, v * 8));
    let one = (kind, amounts);
    proptest::collection::vec(one, 1..4).prop_map(|mut asks| {
        asks.sort_by_key(|(kind, _)| *kind == ContainerKind::App);
        asks.into_iter()
            .enumerate()
            .map(|(i, (kind, demand))| ContainerAsk {
                name: format!("c{i}"),
                kind,
                demand,
            })
            .collect()
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (proptest::collection::vec(containers(), 1..4), any::<bool>())
            .prop_map(|(pods, reversed)| Step::Bind { pods, reversed }),
        3 => (0..20usize).prop_map(Step::End),
        1 => Just(Step::RestartPlugin),
        2 => Just(Step::List),
    ];
    proptest::collection::vec(step, 1..14)
}

proptest! {


    /// Whatever comes in whatever order: all of a pod is on one GPU. And where the kubelet admits pods in the order of
    /// their binding, none is refused that some GPU has room for.
    #[test]
    fn all_of_a_pod_is_on_one_gpu(steps in steps(), seed: u64) {
        let offer = |i| GpuOffer {
            uuid: gpu(i), capacity: demand(60, 100, 32), mps_clients: 48, unhealthy: BTreeMap::new(),
        };
        let gpus: Vec<_> = (0..3).map(offer).collect();
        let mut kubelet = Kubelet { gpus: gpus.clone(), given: BTreeMap::new(), dice: Dice(seed) };
        let mut assigner = Assigner::default();
        assigner.set_gpus(gpus.clone());
        let mut now = Instant::now();
        let mut alive: Vec<PodOnNode> = Vec::new();
        let mut count = 0;
        for step in steps {
            now += Duration::from_secs(20);
            match step {
                Step::Bind { pods, reversed } => {
                    let mut bound = Vec::new();
                    for containers in pods {
                        count += 1;
                        let pod = pod(count, containers);
                        if pod.containers.iter().any(|c| c.demand != Resources::NONE) {
                            assigner.apply_pod(pod.clone());
                            bound.push(pod);
                        }
                    }
                    if reversed {
                        bound.reverse();
                    }
                    for pod in bound {
                        let room = kubelet.has_room(&pod);
                        match kubelet.admit(&mut assigner, now, &pod) {
                            Ok(()) => {
                                prop_assert_eq!(kubelet.gpus_of(&pod.name).len(), 1);
                                alive.push(pod);
                            }
                            Err(why) => {
                                prop_assert!(!room || reversed, "{} was refused: {why}", pod.name);
                                kubelet.remove(&pod.name);
                                assigner.apply_pod(PodOnNode { terminal: true, ..pod.clone() });
                                assigner.delete_pod(&pod.uid);
                            }
                        }
                        now += Duration::from_millis(5);
                    }
                }
                Step::End(which) if !alive.is_empty() => {
                    let pod = alive.remove(which % alive.len());
                    kubelet.remove(&pod.name);
                    assigner.delete_pod(&pod.uid);
                }
                Step::End(_) => {}
                Step::RestartPlugin => {
                    assigner = Assigner::default();
                    assigner.set_gpus(gpus.clone());
                    assigner.set_pods(alive.clone());
                    assigner.set_held(now, &kubelet.podresources(), None);
                }
                Step::List => assigner.set_held(now, &kubelet.podresources(), None),
            }
        }
    }
}

fn pod(number: u32, containers: Vec<ContainerAsk>) -> PodOnNode {
    PodOnNode {
        uid: PodUid::new(format!("uid-{number}")).unwrap(),
        namespace: "games".to_owned(),
        name: format!("pod-{number}"),
        created: i64::from(number),
        gpu: None,
        terminal: false,
        deleting: false,
        containers,
    }
}
