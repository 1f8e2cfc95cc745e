//! Golden scripts: a cluster, what happens to it, and each decision with its reason, in text that is read in a diff.
//!
//! `tests/golden/NAME.txt` has lines that begin with a command, and below each command what came of it, indented. The
//! test runs the commands anew and compares. `REWRITE_GOLDEN=1 cargo test` writes what came of them instead.
//!
//! ```text
//!   gpu NODE GPU nvenc=124 mps=100 vram=64 clients=48 limit=8 load=90 ill=REASON
//!   pod NAME nvenc=13 mps=20 vram=4 priority=1 cost=5 app=LABEL
//!   budget NAME app=LABEL allowed=0
//!   filter POD          prioritize POD          bind POD NODE          preempt POD
//!   shown NODE          its GpuNode shows all that was bound there
//!   failed POD          its binding failed
//!   gone POD            it was deleted
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use penstock_core::gpu_node::{
    Allocation, Capacity, Gpu, GpuNodeSpec, Health, LoadBand, Measured, ResourceHealth,
};
use penstock_core::ids::{GpuUuid, NodeName, PodUid};
use penstock_core::packing::Resources;
use penstock_core::pod_demand::ContainerKind;
use penstock_core::units::{EncoderUnits, SmPercent, VramBlocks};

use super::pod::{Requirement, Selector};
use super::preempt::Victims;
use super::{Amounts, Budget, Index, Pod, Settings, Verdict};

#[test]
fn decisions_are_those_of_the_golden_scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let rewrite = std::env::vars().any(|(name, _)| name == "REWRITE_GOLDEN");
    let mut scripts = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().path();
        let script = std::fs::read_to_string(&file).unwrap();
        let played = play(&script);
        if rewrite {
            std::fs::write(&file, played).unwrap();
        } else {
            assert_eq!(
                script,
                played,
                "{} says otherwise; REWRITE_GOLDEN=1 writes it anew",
                file.display()
            );
        }
        scripts += 1;
    }
    assert!(scripts > 0, "no golden script was found");
}

/// The script's commands, each with what came of it.
fn play(script: &str) -> String {
    let mut cluster = Cluster {
        index: Index::new(Settings::default()),
        specs: BTreeMap::new(),
        pods: BTreeMap::new(),
    };
    let mut out = String::new();
    for line in script.lines().filter(|line| !line.starts_with("    ")) {
        writeln!(out, "{line}").unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        if !line.is_empty() && !line.starts_with('#') {
            cluster
                .run(&words)
                .iter()
                .for_each(|said| writeln!(out, "    {said}").unwrap());
        }
    }
    out
}

struct Cluster {
    index: Index,
    specs: BTreeMap<NodeName, GpuNodeSpec>,
    /// Each pod, with where it was put.
    pods: BTreeMap<String, (Pod, Option<(NodeName, GpuUuid)>)>,
}

impl Cluster {
    fn run(&mut self, words: &[&str]) -> Vec<String> {
        match words {
            ["gpu", node, gpu, facts @ ..] => self.gpu(&name(node), gpu, &Facts(facts)),
            ["pod", pod, facts @ ..] => self.pod(pod, &Facts(facts)),
            ["budget", of, facts @ ..] => self.index.apply_budget(budget(of, &Facts(facts))),
            ["filter", pod] => return self.filter(&self.pods[*pod].0),
            ["prioritize", pod] => return self.prioritize(&self.pods[*pod].0),
            ["bind", pod, node] => return vec![self.bind(pod, &name(node))],
            ["preempt", pod] => return self.preempt(&self.pods[*pod].0),
            ["shown", node] => self.shown(&name(node)),
            ["failed", pod] => self.index.forget(&self.pods[*pod].0.uid),
            ["gone", pod] => {
                let (pod, _) = self.pods.remove(*pod).unwrap();
                self.index.delete_pod(&pod.uid);
            }
            other => panic!("not a command: {other:?}"),
        }
        Vec::new()
    }

    fn gpu(&mut self, node: &NodeName, gpu: &str, facts: &Facts<'_>) {
        let ill = facts
            .text("ill")
            .map(|reason| ResourceHealth::unhealthy(reason.replace('_', " ")));
        let spec = self.specs.entry(node.clone()).or_default();
        spec.gpus.retain(|known| known.uuid.as_str() != gpu);
        spec.gpus.push(Gpu {
            uuid: GpuUuid::new(gpu).unwrap(),
            model: String::new(),
            capacity: Capacity {
                nvenc: EncoderUnits(facts.number("nvenc")),
                mps: SmPercent(facts.number("mps")),
                vram: VramBlocks(facts.number("vram")),
                mps_clients: facts.number("clients"),
            },
            allocated: Vec::new(),
            measured: Measured {
                encoder_load_percent: facts.text("load").map(|load| LoadBand::of(load.parse().unwrap())),
                encoder_sessions: facts.text("sessions").map(|open| open.parse().unwrap()),
            },
            encoder_engine_units: None,
            encoder_session_limit: facts.text("limit").map(|limit| limit.parse().unwrap()),
            health: Health {
                nvenc: ill,
                ..Health::default()
            },
        });
        self.index.apply_gpu_node(node, &self.specs[node]);
    }

    fn pod(&mut self, called: &str, facts: &Facts<'_>) {
        let asks = Resources {
            nvenc: EncoderUnits(facts.number("nvenc")),
            mps: SmPercent(facts.number("mps")),
            vram: VramBlocks(facts.number("vram")),
        };
        let pod = Pod {
            uid: PodUid::new(called).unwrap(),
            namespace: "games".to_owned(),
            name: called.to_owned(),
            node: None,
            gpu: None,
            containers: vec![(ContainerKind::App, asks)],
            priority: facts.number("priority") as i32,
            deletion_cost: facts.number("cost") as i32,
            labels: facts
                .text("app")
                .map(|app| ("app".to_owned(), app.to_owned()))
                .into_iter()
                .collect(),
            terminal: false,
            deleting: facts.number("deleting") > 0,
        };
        self.index.apply_pod(pod.clone());
        self.pods.insert(called.to_owned(), (pod, None));
    }

    fn names(&self) -> Vec<NodeName> {
        self.specs.keys().cloned().chain([name("unknown")]).collect()
    }

    fn filter(&self, pod: &Pod) -> Vec<String> {
        let names = self.names();
        let said = |verdict: &Verdict| match verdict {
            Verdict::Fits => "fits".to_owned(),
            Verdict::Refused(reason) => format!("refused: {reason}"),
            Verdict::Unresolvable(reason) => format!("unresolvable: {reason}"),
        };
        let verdicts = self.index.filter(pod, &names);
        names
            .iter()
            .zip(&verdicts)
            .map(|(name, verdict)| format!("{name} {}", said(verdict)))
            .collect()
    }

    fn prioritize(&self, pod: &Pod) -> Vec<String> {
        let names = self.names();
        let scores = self.index.prioritize(pod, &names);
        names
            .iter()
            .zip(scores)
            .map(|(name, score)| format!("{name} {score}"))
            .collect()
    }

    fn bind(&mut self, pod: &str, node: &NodeName) -> String {
        let (known, at) = self.pods.get_mut(pod).unwrap();
        match self.index.choose_gpu(&known.uid, node) {
            Ok(gpu) => {
                *at = Some((node.clone(), gpu.clone()));
                format!("on {gpu}")
            }
            Err(refusal) => format!("not bound: {refusal}"),
        }
    }

    fn shown(&mut self, node: &NodeName) {
        for gpu in &mut self.specs.get_mut(node).unwrap().gpus {
            let here = self
                .pods
                .values()
                .filter(|(_, at)| at.as_ref().is_some_and(|at| at.1 == gpu.uuid));
            gpu.allocated = here.map(|(pod, _)| allocation(pod)).collect();
        }
        for (pod, at) in self.pods.values_mut() {
            if let Some((on, gpu)) = at.as_ref().filter(|at| at.0 == *node) {
                (pod.node, pod.gpu) = (Some(on.clone()), Some(gpu.clone()));
                self.index.apply_pod(pod.clone());
            }
        }
        self.index.apply_gpu_node(node, &self.specs[node]);
    }

    fn preempt(&self, pod: &Pod) -> Vec<String> {
        let nothing = |node: &NodeName| Victims {
            node: node.clone(),
            pods: Vec::new(),
            budget_violations: 0,
        };
        let proposed: Vec<_> = self.specs.keys().map(nothing).collect();
        let answer = self.index.preempt(pod, &proposed);
        let said = |victims: &Victims| {
            let pods: Vec<_> = victims.pods.iter().map(PodUid::as_str).collect();
            format!(
                "{}: {} would go, {} against budgets",
                victims.node,
                pods.join(", "),
                victims.budget_violations
            )
        };
        answer.iter().map(said).collect()
    }
}

fn allocation(pod: &Pod) -> Allocation {
    let Amounts([nvenc, mps, vram, mps_clients]) = Amounts::of_pod(pod.demand());
    Allocation {
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        pod_uid: pod.uid.clone(),
        nvenc: EncoderUnits(nvenc),
        mps: SmPercent(mps),
        vram: VramBlocks(vram),
        mps_clients,
    }
}

fn budget(called: &str, facts: &Facts<'_>) -> Budget {
    let values: BTreeSet<_> = facts.text("app").map(str::to_owned).into_iter().collect();
    Budget {
        namespace: "games".to_owned(),
        name: called.to_owned(),
        selector: Selector(vec![Requirement::In("app".to_owned(), values)]),
        disruptions_allowed: facts.number("allowed") as i32,
        disrupted: BTreeSet::new(),
    }
}

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

/// `key=value` of one line.
struct Facts<'a>(&'a [&'a str]);

impl Facts<'_> {
    fn text(&self, key: &str) -> Option<&str> {
        self.0.iter().find_map(|fact| {
            fact.split_once('=')
                .filter(|(name, _)| *name == key)
                .map(|(_, value)| value)
        })
    }

    /// 0 where nothing is said.
    fn number(&self, key: &str) -> u32 {
        self.text(key).map_or(0, |value| value.parse().unwrap())
    }
}
