//! The index against a model that counts everything anew for each question.
//!
//! The model keeps plain lists of what it was told: GpuNodes, pods, promises. It decides alone what is free.

use std::collections::BTreeMap;

use penstock_core::gpu_node::{
    Allocation, Capacity, Gpu, GpuNodeSpec, Health, LoadBand, Measured, ResourceHealth,
};
use penstock_core::ids::{GpuUuid, NodeName, PodUid};
use penstock_core::packing::Resources;
use penstock_core::pod_demand::ContainerKind;
use penstock_core::units::{EncoderUnits, SmPercent, VramBlocks};
use proptest::prelude::*;

use super::bind::BindRefusal;
use super::preempt::Victims;
use super::{Amounts, Index, Pod, Settings, Verdict};

#[derive(Debug, Clone)]
enum Step {
    /// A pod comes, asking for nvenc, mps, vram, with a priority.
    Arrive([u32; 3], i32),
    /// The scheduler wants the n-th pod somewhere: filter, prioritize, choose.
    Schedule(usize),
    /// The API server shows the n-th pod where it was promised.
    ShowBinding(usize),
    /// The binding failed.
    Fail(usize),
    /// A GpuNode shows the pods that are bound to it, or some of their resources only.
    ShowNode(usize, [bool; 3]),
    /// A pod ends; or is gone.
    End(usize),
    Delete(usize),
    /// A GPU's encoder falls ill or well; its load changes.
    Ail(usize, usize, bool),
    Load(usize, usize, u8),
    /// A GPU leaves its GpuNode with all that was shown on it, or is back.
    List(usize, usize, bool),
}

const NODES: usize = 3;
const GPUS: usize = 2;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let amounts = || prop_oneof![Just(0), 1..40u32];
    let step = prop_oneof![
        6 => ([amounts(), amounts(), amounts()], 0..3).prop_map(|(asks, priority)| Step::Arrive(asks, priority)),
        8 => any::<usize>().prop_map(Step::Schedule),
        3 => any::<usize>().prop_map(Step::ShowBinding),
        1 => any::<usize>().prop_map(Step::Fail),
        4 => (0..NODES, any::<[bool; 3]>()).prop_map(|(node, which)| Step::ShowNode(node, which)),
        1 => any::<usize>().prop_map(Step::End),
        2 => any::<usize>().prop_map(Step::Delete),
        1 => (0..NODES, 0..GPUS, any::<bool>()).prop_map(|(node, gpu, ill)| Step::Ail(node, gpu, ill)),
        1 => (0..NODES, 0..GPUS, 0..100u8).prop_map(|(node, gpu, load)| Step::Load(node, gpu, load)),
        1 => (0..NODES, 0..GPUS, any::<bool>()).prop_map(|(node, gpu, listed)| Step::List(node, gpu, listed)),
    ];
    proptest::collection::vec(step, 1..70)
}

#[derive(Debug)]
struct Model {
    index: Index,
    /// With the GPUs that are gone.
    specs: Vec<GpuNodeSpec>,
    gone: [[bool; GPUS]; NODES],
    /// Each pod, with the place it was promised or is bound to.
    pods: BTreeMap<PodUid, (Pod, Option<(usize, usize)>)>,
    born: usize,
}

impl Model {
    fn new(limit: Option<u32>) -> Self {
        let gpu = |node: usize, gpu: usize| Gpu {
            uuid: uuid(node, gpu),
            model: String::new(),
            capacity: Capacity {
                nvenc: EncoderUnits(60),
                mps: SmPercent(50),
                vram: VramBlocks(64),
                mps_clients: 3,
            },
            encoder_engine_units: None,
            allocated: Vec::new(),
            measured: Measured::default(),
            encoder_session_limit: limit.filter(|_| node == 0),
            health: Health::default(),
        };
        let spec = |node| GpuNodeSpec {
            gpus: (0..GPUS).map(|g| gpu(node, g)).collect(),
            ..GpuNodeSpec::default()
        };
        let mut index = Index::new(Settings::default());
        let specs: Vec<_> = (0..NODES).map(spec).collect();
        specs
            .iter()
            .enumerate()
            .for_each(|(node, spec)| index.apply_gpu_node(&name(node), spec));
        Self {
            index,
            specs,
            gone: Default::default(),
            pods: BTreeMap::new(),
            born: 0,
        }
    }

    /// The GPUs that a GpuNode lists.
    fn listed(&self, node: usize) -> impl Iterator<Item = &Gpu> {
        let gpus = self.specs[node].gpus.iter().zip(self.gone[node]);
        gpus.filter(|(_, gone)| !gone).map(|(gpu, _)| gpu)
    }

    fn tell(&mut self, node: usize) {
        let listed = self.listed(node).cloned().collect();
        let spec = GpuNodeSpec::new(listed, Vec::new());
        self.index.apply_gpu_node(&name(node), &spec);
    }

    /// What is free of a GPU, from the lists alone.
    fn free(&self, node: usize, gpu: usize) -> Amounts {
        let here = &self.specs[node].gpus[gpu];
        let live = |uid: &PodUid| {
            self.pods
                .get(uid)
                .filter(|(pod, at)| at.is_some_and(|at| at.0 == node) && !pod.terminal)
        };
        let shown = here.allocated.iter().map(|held| {
            let claim = live(&held.pod_uid).map_or(Amounts::NONE, |(pod, _)| demand(pod));
            Amounts::of_allocation(held).most(claim)
        });
        let unseen = |uid: &PodUid| {
            self.listed(node)
                .all(|gpu| gpu.allocated.iter().all(|a| a.pod_uid != *uid))
        };
        let promised = self
            .pods
            .iter()
            .filter(|(uid, (_, at))| *at == Some((node, gpu)) && live(uid).is_some() && unseen(uid));
        let taken = shown
            .chain(promised.map(|(_, (pod, _))| demand(pod)))
            .fold(Amounts::NONE, Amounts::plus);
        Amounts::of_gpu(here.capacity).less(taken)
    }

    /// Whether a GPU could take a pod now.
    fn takes(&self, node: usize, gpu: usize, pod: &Pod) -> bool {
        let here = &self.specs[node].gpus[gpu];
        let [asks_encoder, ..] = demand(pod).0.map(|amount| amount > 0);
        let ill = asks_encoder && !here.health.problems().is_empty();
        let busy = here
            .measured
            .encoder_load_percent
            .is_some_and(|load| load.percent() >= 90);
        let capped = asks_encoder
            && here
                .encoder_session_limit
                .is_some_and(|limit| self.streams(node) >= limit);
        self.free(node, gpu).holds(demand(pod)) && !ill && !busy && !capped && !self.gone[node][gpu]
    }

    /// Pods with encoder units on a node, shown or promised.
    fn streams(&self, node: usize) -> u32 {
        let shown = self.listed(node).flat_map(|gpu| &gpu.allocated);
        let held = |uid: &PodUid| {
            self.pods.get(uid).is_some_and(|(pod, at)| {
                let there = at.is_some_and(|at| at.0 == node && !self.gone[node][at.1]);
                !pod.terminal && there && demand(pod).encoder() > 0
            })
        };
        let mut streaming: Vec<_> = shown.filter(|a| a.nvenc.0 > 0).map(|a| &a.pod_uid).collect();
        streaming.extend(self.pods.keys().filter(|uid| held(uid)));
        streaming.sort();
        streaming.dedup();
        streaming.len() as u32
    }

    fn nth(&self, n: usize) -> Option<PodUid> {
        (!self.pods.is_empty())
            .then(|| self.pods.keys().nth(n % self.pods.len()).cloned())
            .flatten()
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Arrive(asks, priority) => self.arrive(*asks, *priority),
            Step::Schedule(n) => return self.nth(*n).map_or(Ok(()), |uid| self.schedule(&uid)),
            Step::ShowBinding(n) => self.change(*n, |pod, at| {
                pod.node = at.map(|(node, _)| name(node)).or(pod.node.take());
                pod.gpu = at.map(|(node, gpu)| uuid(node, gpu)).or(pod.gpu.take());
            }),
            Step::End(n) => self.change(*n, |pod, _| pod.terminal = pod.node.is_some()),
            Step::Fail(n) => {
                if let Some(uid) = self.nth(*n) {
                    self.index.forget(&uid);
                    self.pods
                        .entry(uid)
                        .and_modify(|(pod, at)| *at = at.filter(|_| pod.node.is_some()));
                }
            }
            Step::Delete(n) => {
                if let Some(uid) = self.nth(*n) {
                    self.index.delete_pod(&uid);
                    self.pods.remove(&uid);
                }
            }
            Step::ShowNode(node, which) => self.show(*node, *which),
            Step::Ail(node, gpu, ill) => {
                let health = if *ill {
                    ResourceHealth::unhealthy("XID 47")
                } else {
                    ResourceHealth::HEALTHY
                };
                self.specs[*node].gpus[*gpu].health.nvenc = Some(health);
                self.tell(*node);
            }
            Step::Load(node, gpu, load) => {
                self.specs[*node].gpus[*gpu].measured.encoder_load_percent = Some(LoadBand::of(*load));
                self.tell(*node);
            }
            Step::List(node, gpu, listed) => {
                self.gone[*node][*gpu] = !listed;
                self.tell(*node);
            }
        }
        Ok(())
    }

    fn arrive(&mut self, [nvenc, mps, vram]: [u32; 3], priority: i32) {
        let uid = PodUid::new(format!("uid-{}", self.born)).unwrap();
        let asks = Resources {
            nvenc: EncoderUnits(nvenc),
            mps: SmPercent(mps),
            vram: VramBlocks(vram),
        };
        let pod = Pod {
            uid: uid.clone(),
            namespace: "games".to_owned(),
            name: format!("pod-{}", self.born),
            node: None,
            gpu: None,
            containers: vec![(ContainerKind::App, asks)],
            priority,
            deletion_cost: 0,
            labels: BTreeMap::new(),
            terminal: false,
            deleting: false,
        };
        self.born += 1;
        self.index.apply_pod(pod.clone());
        self.pods.insert(uid, (pod, None));
    }

    fn change(&mut self, n: usize, change: impl FnOnce(&mut Pod, Option<(usize, usize)>)) {
        if let Some(uid) = self.nth(n)
            && let Some((pod, at)) = self.pods.get_mut(&uid)
        {
            change(pod, *at);
            self.index.apply_pod(pod.clone());
        }
    }

    /// The kubelet has allocated some resources of the pods that are bound here.
    fn show(&mut self, node: usize, [nvenc, mps, vram]: [bool; 3]) {
        for gpu in 0..GPUS {
            let here = self
                .pods
                .values()
                .filter(|(pod, at)| *at == Some((node, gpu)) && pod.node.is_some() && !pod.terminal);
            let part = |pod: &Pod| {
                let Amounts([n, m, v, c]) = demand(pod);
                Allocation {
                    namespace: pod.namespace.clone(),
                    pod: pod.name.clone(),
                    pod_uid: pod.uid.clone(),
                    nvenc: EncoderUnits(if nvenc { n } else { 0 }),
                    mps: SmPercent(if mps { m } else { 0 }),
                    vram: VramBlocks(if vram { v } else { 0 }),
                    mps_clients: if mps { c } else { 0 },
                }
            };
            self.specs[node].gpus[gpu].allocated = here.map(|(pod, _)| part(pod)).collect();
        }
        self.tell(node);
    }

    /// Filter is right about every node; what is chosen fits; what waits has a reason to.
    fn schedule(&mut self, uid: &PodUid) -> Result<(), TestCaseError> {
        let (pod, at) = self.pods[uid].clone();
        let names: Vec<_> = (0..NODES).map(name).collect();
        let fitting: Vec<bool> = (0..NODES)
            .map(|node| (0..GPUS).any(|gpu| self.takes(node, gpu, &pod)) || demand(&pod) == Amounts::NONE)
            .collect();
        if at.is_none() {
            let verdicts = self.index.filter(&pod, &names);
            let passed: Vec<bool> = verdicts.iter().map(|verdict| *verdict == Verdict::Fits).collect();
            prop_assert_eq!(&passed, &fitting, "{:?}", verdicts);
        }
        let scores = self.index.prioritize(&pod, &names);
        prop_assert!(
            scores
                .iter()
                .zip(&fitting)
                .all(|(score, fits)| *score == 0 || *fits || at.is_some())
        );
        let best = (0..NODES).max_by_key(|node| scores[*node]).unwrap_or(0);
        match self.index.choose_gpu(uid, &name(best)) {
            Ok(gpu) => {
                let gpu = (0..GPUS).find(|g| uuid(best, *g) == gpu).unwrap();
                prop_assert!(at.is_none(), "bound twice");
                prop_assert!(
                    self.takes(best, gpu, &pod),
                    "{:?} does not fit on {best}/{gpu}",
                    pod
                );
                prop_assert!(
                    self.confusing(best, &pod).iter().all(|other| *other == gpu),
                    "kubelet would be confused"
                );
                self.pods.insert(uid.clone(), (pod, Some((best, gpu))));
            }
            Err(BindRefusal::Placed { .. }) => prop_assert!(at.is_some()),
            Err(BindRefusal::Wait { .. }) => prop_assert!(!self.confusing(best, &pod).is_empty()),
            Err(refusal) => prop_assert!(!fitting[best] || demand(&pod) == Amounts::NONE, "{refusal}"),
        }
        Ok(())
    }

    /// Where pods in flight are that a pod could be confused with.
    fn confusing(&self, node: usize, pod: &Pod) -> Vec<usize> {
        let shown = |uid: &PodUid| {
            let held = self
                .listed(node)
                .flat_map(|gpu| &gpu.allocated)
                .filter(|a| a.pod_uid == *uid);
            held.map(Amounts::of_allocation)
                .fold(Amounts::NONE, Amounts::plus)
        };
        let others = self
            .pods
            .values()
            .filter(|(other, _)| other.uid != pod.uid && !other.terminal);
        let in_flight = others.filter(|(other, _)| !shown(&other.uid).holds(demand(other)));
        let same = |other: &Pod| {
            let (a, b) = (pod.containers[0].1, other.containers[0].1);
            (a.nvenc == b.nvenc && a.nvenc.0 > 0)
                || (a.mps == b.mps && a.mps.0 > 0)
                || (a.vram == b.vram && a.vram.0 > 0)
        };
        in_flight
            .filter(|(other, _)| same(other))
            .filter_map(|(_, at)| *at)
            .filter(|at| at.0 == node && !self.gone[node][at.1])
            .map(|at| at.1)
            .collect()
    }

    /// Whoever is named as victim is of lower priority and on one GPU, and that GPU then has room; and whenever all
    /// lower ones of some GPU would make room, some are named.
    fn preempt(&self, pod: &Pod, node: usize) -> Result<(), TestCaseError> {
        let proposal = Victims {
            node: name(node),
            pods: Vec::new(),
            budget_violations: 0,
        };
        let answer = self.index.preempt(pod, &[proposal]);
        let freed = |gpu: usize, going: &dyn Fn(&Pod) -> bool| {
            let mut without = Model {
                index: Index::default(),
                specs: self.specs.clone(),
                gone: self.gone,
                pods: self.pods.clone(),
                born: 0,
            };
            let on = |pod: &Pod, at: &Option<(usize, usize)>| *at == Some((node, gpu)) && going(pod);
            let gone: Vec<_> = without
                .pods
                .iter()
                .filter(|(_, (pod, at))| on(pod, at))
                .map(|(uid, _)| uid.clone())
                .collect();
            without.pods.retain(|uid, _| !gone.contains(uid));
            without.specs[node].gpus[gpu]
                .allocated
                .retain(|held| !gone.contains(&held.pod_uid));
            without.takes(node, gpu, pod)
        };
        let lower = |other: &Pod| other.priority < pod.priority && !other.terminal;
        let fits = (0..GPUS).any(|gpu| self.takes(node, gpu, pod));
        let helps = (0..GPUS).any(|gpu| freed(gpu, &lower));
        if let [victims] = &answer[..] {
            let on: Vec<_> = victims
                .pods
                .iter()
                .map(|uid| self.pods[uid].1.map(|at| at.1))
                .collect();
            prop_assert!(
                on.iter().all(|gpu| gpu.is_some() && *gpu == on[0]),
                "victims on several GPUs"
            );
            prop_assert!(victims.pods.iter().all(|uid| lower(&self.pods[uid].0)));
            prop_assert!(
                freed(on[0].unwrap(), &|other| victims.pods.contains(&other.uid)),
                "it would not help"
            );
            // None of them could stay.
            for spared in &victims.pods {
                let others = |other: &Pod| victims.pods.contains(&other.uid) && other.uid != *spared;
                prop_assert!(
                    !freed(on[0].unwrap(), &others),
                    "{spared} would have to go for nothing"
                );
            }
        } else {
            prop_assert!(fits || !helps, "nobody was named although it would help");
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_fits_is_placed_and_what_does_not_is_refused(steps in steps(), limit in proptest::option::of(1..4u32)) {
        let mut model = Model::new(limit);
        for step in &steps {
            model.step(step)?;
            for node in 0..NODES {
                let listed: Vec<_> = (0..GPUS).filter(|gpu| !model.gone[node][*gpu]).collect();
                let rooms = model.index.rooms(&name(node));
                prop_assert_eq!(rooms.len(), listed.len());
                for (gpu, room) in listed.into_iter().zip(rooms) {
                    prop_assert_eq!(room.free, model.free(node, gpu), "node {} GPU {} after {:?}", node, gpu, step);
                }
            }
        }
        model.arrive([30, 20, 0], 2);
        let pod = model.pods.values().map(|(pod, _)| pod.clone()).max_by_key(|pod| pod.uid.as_str()[4..].parse::<usize>().ok());
        (0..NODES).try_for_each(|node| model.preempt(pod.as_ref().unwrap(), node))?;
    }
}

fn demand(pod: &Pod) -> Amounts {
    Amounts::of_pod(pod.demand())
}

fn name(node: usize) -> NodeName {
    NodeName::new(format!("node-{node}")).unwrap()
}

fn uuid(node: usize, gpu: usize) -> GpuUuid {
    GpuUuid::new(format!("GPU-{node}-{gpu}")).unwrap()
}
