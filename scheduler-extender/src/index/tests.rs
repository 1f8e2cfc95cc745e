//! Stories that no golden script tells: what is seen late, in part, or again.

use std::collections::{BTreeMap, BTreeSet};

use penstock_core::gpu_node::{
    Allocation, Capacity, Condition, ConditionStatus, Gpu, GpuNodeSpec, Health, LoadBand, Measured,
    REGISTERED,
};
use penstock_core::ids::{GpuUuid, NodeName, PodUid};
use penstock_core::packing::Resources;
use penstock_core::pod_demand::ContainerKind::{App, Init, Sidecar};
use penstock_core::units::{EncoderUnits, SmPercent, VramBlocks};

use super::pod::{Requirement, Selector};
use super::preempt::Victims;
use super::{BindRefusal, Budget, Index, Pod, Settings, Verdict};

#[test]
fn a_pod_counts_with_all_it_will_take_while_the_kubelet_is_at_it() {
    let mut index = one_node(50);
    index.apply_pod(bound(pod("a", 13), "GPU-0"));
    let mut spec = node_of(50);
    spec.gpus[0].allocated = vec![held("a", 3)];
    index.apply_gpu_node(&node(), &spec);
    assert_eq!(free(&index), 37);
}

#[test]
fn what_a_gpunode_shows_counts_until_it_shows_it_no_more() {
    let mut index = one_node(50);
    let mut spec = node_of(50);
    spec.gpus[0].allocated = vec![held("a", 13)];
    index.apply_gpu_node(&node(), &spec);
    index.apply_pod(bound(pod("a", 13), "GPU-0"));
    index.delete_pod(&uid("a"));
    assert_eq!(free(&index), 37);
    index.apply_gpu_node(&node(), &node_of(50));
    assert_eq!(free(&index), 50);
}

#[test]
fn a_promise_outlives_news_of_a_pod_that_is_older_than_it() {
    let mut index = one_node(50);
    index.apply_pod(pod("a", 13));
    index.choose_gpu(&uid("a"), &node()).unwrap();
    index.apply_pod(pod("a", 13));
    assert_eq!(free(&index), 37);
    index.delete_pod(&uid("a"));
    assert_eq!(free(&index), 50);
}

#[test]
fn a_pod_on_a_gpu_that_nobody_knows_counts_on_each() {
    let mut index = one_node(50);
    let mut stranger = pod("a", 13);
    stranger.node = Some(node());
    index.apply_pod(stranger);
    assert_eq!(free(&index), 37);
}

#[test]
fn pods_of_a_gpu_that_is_gone_take_nothing_of_the_others_and_are_waited_for_by_nobody() {
    let mut index = Index::new(Settings::default());
    let old: Vec<_> = (0..10).map(|i| format!("old{i}")).collect();
    let mut spec = two_gpus(30);
    spec.gpus[1].allocated = old.iter().map(|name| held(name, 3)).collect();
    index.apply_gpu_node(&node(), &spec);
    for name in &old {
        index.apply_pod(bound(pod(name, 3), "GPU-1"));
    }
    index.apply_gpu_node(&node(), &node_of(30));
    assert_eq!(free(&index), 30);
    index.apply_pod(pod("new", 3));
    let gpu = index.choose_gpu(&uid("new"), &node()).unwrap();
    assert_eq!(gpu.as_str(), "GPU-0");
    // It is back, and its pods with it.
    index.apply_gpu_node(&node(), &two_gpus(30));
    let free: Vec<_> = index
        .rooms(&node())
        .iter()
        .map(|room| room.free.encoder())
        .collect();
    assert_eq!(free, [27, 0]);
}

#[test]
fn a_pod_is_shown_once_all_that_it_asks_for_is_however_its_clients_are_counted() {
    let mut index = Index::new(Settings::default());
    let mut spec = two_gpus(30);
    for gpu in &mut spec.gpus {
        (gpu.capacity.mps, gpu.capacity.mps_clients) = (SmPercent(100), 48);
    }
    let with_mps = |name: &str| {
        let mut pod = pod(name, 3);
        pod.containers[0].1.mps = SmPercent(60);
        pod
    };
    index.apply_gpu_node(&node(), &spec);
    index.apply_pod(bound(with_mps("a"), "GPU-0"));
    index.apply_pod(with_mps("b"));
    assert!(
        index.choose_gpu(&uid("b"), &node()).is_err(),
        "it could be confused with the first"
    );
    spec.gpus[0].allocated = vec![Allocation {
        mps: SmPercent(60),
        ..held("a", 3)
    }];
    index.apply_gpu_node(&node(), &spec);
    assert_eq!(index.choose_gpu(&uid("b"), &node()).unwrap().as_str(), "GPU-1");
}

#[test]
fn a_node_whose_kubelet_does_not_know_the_plugin_takes_nothing_until_it_does() {
    let mut index = one_node(30);
    index.apply_pod(bound(pod("old", 30), "GPU-0"));
    index.apply_pod(pod("new", 3));
    let says = |status| GpuNodeSpec {
        conditions: vec![Condition {
            about: REGISTERED.to_owned(),
            status,
            reason: String::new(),
            message: String::new(),
            last_transition_time: String::new(),
        }],
        ..two_gpus(30)
    };
    index.apply_gpu_node(&node(), &says(ConditionStatus::False));
    let [Verdict::Unresolvable(reason)] = &index.filter(&pod("new", 3), &[node()])[..] else {
        panic!("it fits on a node without plugin");
    };
    assert!(reason.to_string().contains("kubelet"), "{reason}");
    assert_eq!(index.prioritize(&pod("new", 3), &[node()]), [0]);
    let refusal = index.choose_gpu(&uid("new"), &node()).unwrap_err();
    assert!(
        matches!(&refusal, BindRefusal::NoRoom { reason, .. } if reason.contains("kubelet")),
        "{refusal}"
    );
    let proposal = Victims {
        node: node(),
        pods: Vec::new(),
        budget_violations: 0,
    };
    let vip = Pod {
        priority: 1,
        ..pod("vip", 30)
    };
    assert_eq!(index.preempt(&vip, std::slice::from_ref(&proposal)), []);
    // What can't be told is no reason.
    for status in [ConditionStatus::Unknown, ConditionStatus::True] {
        index.apply_gpu_node(&node(), &says(status));
        assert_eq!(index.filter(&pod("new", 3), &[node()]), [Verdict::Fits]);
    }
    assert_eq!(index.choose_gpu(&uid("new"), &node()).unwrap().as_str(), "GPU-1");
}

#[test]
fn a_pod_that_asks_for_nothing_is_told_what_is_in_the_way_where_nobody_is() {
    let mut spec = node_of(30);
    spec.gpus[0].measured.encoder_load_percent = Some(LoadBand::of(95));
    let mut index = Index::new(Settings::default());
    index.apply_gpu_node(&node(), &spec);
    index.apply_pod(pod("a", 0));
    let refusal = index.choose_gpu(&uid("a"), &node()).unwrap_err();
    assert!(
        refusal
            .to_string()
            .contains("its encoder is measured at 90 % load"),
        "{refusal}"
    );
}

#[test]
fn a_node_whose_gpunode_is_gone_takes_nothing() {
    let mut index = one_node(50);
    index.delete_gpu_node(&node());
    assert!(matches!(
        index.filter(&pod("a", 1), &[node()])[..],
        [Verdict::Unresolvable(_)]
    ));
    index.apply_gpu_node(&node(), &node_of(50));
    assert_eq!(index.filter(&pod("a", 1), &[node()]), [Verdict::Fits]);
}

#[test]
fn init_containers_and_sidecars_count_as_kubernetes_counts_them() {
    let index = one_node(50);
    let mut starting = pod("a", 13);
    starting.containers = vec![(Sidecar, asks(10)), (Init, asks(41)), (App, asks(13))];
    assert!(matches!(
        index.filter(&starting, &[node()])[..],
        [Verdict::Unresolvable(_)]
    ));
    starting.containers[1] = (Init, asks(40));
    assert_eq!(index.filter(&starting, &[node()]), [Verdict::Fits]);
}

#[test]
fn a_restart_knows_the_same_again() {
    let mut before = one_node(50);
    before.apply_pod(pod("a", 13));
    before.apply_pod(pod("b", 7));
    let gpu = before.choose_gpu(&uid("a"), &node()).unwrap();
    let mut after = Index::new(Settings::default());
    after.apply_pod(pod("b", 7));
    after.apply_pod(bound(pod("a", 13), gpu.as_str()));
    after.apply_gpu_node(&node(), &node_of(50));
    assert_eq!(after.rooms(&node()), before.rooms(&node()));
    assert_eq!(
        after.fit(&pod("b", 7), &node()),
        before.fit(&pod("b", 7), &node())
    );
}

#[test]
fn a_reason_is_short_whatever_a_plugin_says() {
    let mut spec = node_of(50);
    spec.gpus[0].health.nvenc = Some(penstock_core::gpu_node::ResourceHealth::unhealthy(
        "x".repeat(5000),
    ));
    let mut index = Index::new(Settings::default());
    index.apply_gpu_node(&node(), &spec);
    let [Verdict::Unresolvable(reason)] = &index.filter(&pod("a", 1), &[node()])[..] else {
        panic!("it fits on a GPU that is ill");
    };
    assert!(reason.to_string().len() < 300);
}

#[test]
fn a_budget_counts_the_pods_that_its_selector_selects() {
    let labels = BTreeMap::from([("app".to_owned(), "shop".to_owned())]);
    let values = |of: &str| BTreeSet::from([of.to_owned()]);
    let table = [
        (vec![], true),
        (vec![Requirement::In("app".to_owned(), values("shop"))], true),
        (vec![Requirement::In("app".to_owned(), values("desk"))], false),
        (vec![Requirement::NotIn("app".to_owned(), values("shop"))], false),
        (vec![Requirement::NotIn("tier".to_owned(), values("shop"))], true),
        (vec![Requirement::Exists("app".to_owned())], true),
        (
            vec![
                Requirement::Exists("app".to_owned()),
                Requirement::Exists("tier".to_owned()),
            ],
            false,
        ),
        (vec![Requirement::Absent("tier".to_owned())], true),
        (vec![Requirement::Absent("app".to_owned())], false),
    ];
    for (requirements, covered) in table {
        let pod = Pod {
            labels: labels.clone(),
            ..pod("a", 1)
        };
        let budget = Budget {
            selector: Selector(requirements),
            ..budget()
        };
        assert_eq!(budget.covers(&pod), covered, "{budget:?}");
    }
    let elsewhere = Budget {
        namespace: "desks".to_owned(),
        ..budget()
    };
    let disrupted = Budget {
        disrupted: values("a"),
        ..budget()
    };
    assert!(!elsewhere.covers(&pod("a", 1)) && !disrupted.covers(&pod("a", 1)));
}

#[test]
fn violations_are_counted_anew_and_pods_of_others_stay_proposed() {
    let mut index = one_node(26);
    index.apply_pod(bound(pod("a", 13), "GPU-0"));
    index.apply_pod(bound(pod("b", 13), "GPU-0"));
    index.apply_budget(Budget {
        disruptions_allowed: 1,
        ..budget()
    });
    let vip = Pod {
        priority: 1,
        ..pod("vip", 26)
    };
    let proposal = Victims {
        node: node(),
        pods: vec![uid("a"), uid("web")],
        budget_violations: 0,
    };
    let answer = index.preempt(&vip, std::slice::from_ref(&proposal));
    let [victims] = &answer[..] else {
        panic!("{answer:?}")
    };
    assert_eq!(
        BTreeSet::from_iter(&victims.pods),
        BTreeSet::from([&uid("a"), &uid("b"), &uid("web")])
    );
    assert_eq!(victims.budget_violations, 1);
    index.delete_budget("games", "all");
    assert_eq!(index.preempt(&vip, &[proposal])[0].budget_violations, 0);
}

#[test]
fn who_is_ending_anyway_is_not_named() {
    let mut index = one_node(26);
    index.apply_pod(Pod {
        deleting: true,
        ..bound(pod("a", 13), "GPU-0")
    });
    index.apply_pod(bound(pod("b", 13), "GPU-0"));
    let proposal = Victims {
        node: node(),
        pods: Vec::new(),
        budget_violations: 0,
    };
    let large = index.preempt(
        &Pod {
            priority: 1,
            ..pod("vip", 26)
        },
        std::slice::from_ref(&proposal),
    );
    assert_eq!(large[0].pods, [uid("b")]);
    assert_eq!(
        index.preempt(
            &Pod {
                priority: 1,
                ..pod("vip", 13)
            },
            &[proposal]
        ),
        []
    );
}

fn one_node(units: u32) -> Index {
    let mut index = Index::new(Settings::default());
    index.apply_gpu_node(&node(), &node_of(units));
    index
}

fn node_of(units: u32) -> GpuNodeSpec {
    let gpu = Gpu {
        uuid: GpuUuid::new("GPU-0").unwrap(),
        model: String::new(),
        capacity: Capacity {
            nvenc: EncoderUnits(units),
            ..Capacity::default()
        },
        allocated: Vec::new(),
        measured: Measured::default(),
        encoder_engine_units: None,
        encoder_session_limit: None,
        health: Health::default(),
    };
    GpuNodeSpec {
        gpus: vec![gpu],
        ..GpuNodeSpec::default()
    }
}

fn two_gpus(units: u32) -> GpuNodeSpec {
    let mut spec = node_of(units);
    spec.gpus.push(Gpu {
        uuid: GpuUuid::new("GPU-1").unwrap(),
        ..spec.gpus[0].clone()
    });
    spec
}

fn pod(name: &str, units: u32) -> Pod {
    Pod {
        uid: uid(name),
        namespace: "games".to_owned(),
        name: name.to_owned(),
        node: None,
        gpu: None,
        containers: vec![(App, asks(units))],
        priority: 0,
        deletion_cost: 0,
        labels: BTreeMap::new(),
        terminal: false,
        deleting: false,
    }
}

fn bound(pod: Pod, gpu: &str) -> Pod {
    Pod {
        node: Some(node()),
        gpu: Some(GpuUuid::new(gpu).unwrap()),
        ..pod
    }
}

fn budget() -> Budget {
    Budget {
        namespace: "games".to_owned(),
        name: "all".to_owned(),
        selector: Selector::default(),
        disruptions_allowed: 0,
        disrupted: BTreeSet::new(),
    }
}

fn held(pod: &str, units: u32) -> Allocation {
    Allocation {
        namespace: "games".to_owned(),
        pod: pod.to_owned(),
        pod_uid: uid(pod),
        nvenc: EncoderUnits(units),
        mps: SmPercent(0),
        vram: VramBlocks(0),
        mps_clients: 0,
    }
}

fn asks(units: u32) -> Resources {
    Resources {
        nvenc: EncoderUnits(units),
        ..Resources::NONE
    }
}

fn free(index: &Index) -> u32 {
    index.rooms(&node())[0].free.encoder()
}

fn uid(name: &str) -> PodUid {
    PodUid::new(name).unwrap()
}

fn node() -> NodeName {
    NodeName::new("node").unwrap()
}
