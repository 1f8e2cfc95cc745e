//! Stories of single calls.

use penstock_core::device::DeviceId;
use penstock_core::pod_demand::ContainerKind;

use super::*;
use crate::pods::ContainerAsk;

#[test]
fn both_resources_of_a_pod_are_on_one_gpu_in_either_order() {
    for order in [[Resource::Nvenc, Resource::Mps], [Resource::Mps, Resource::Nvenc]] {
        let mut node = Node::with_gpus(2, full());
        node.pod(pod("a", &[(3, 10, 0)]));
        let gpus = order.map(|resource| node.ask(resource, amount(resource, 3, 10)).unwrap());
        assert_eq!(gpus[0], gpus[1]);
    }
}

#[test]
fn the_annotated_gpu_is_used() {
    let mut node = Node::with_gpus(4, full());
    let wished = gpu(2);
    node.pod(PodOnNode {
        gpu: Some(wished.clone()),
        ..pod("a", &[(13, 20, 0)])
    });
    assert_eq!(node.ask(Resource::Mps, 20), Ok(wished.clone()));
    assert_eq!(node.ask(Resource::Nvenc, 13), Ok(wished));
}

#[test]
fn a_gpu_that_can_not_be_honoured_is_left_for_one_that_has_room() {
    let mut node = Node::with_gpus(2, full());
    node.pod(pod("big", &[(120, 0, 0)]));
    let taken = node.ask(Resource::Nvenc, 120).unwrap();
    node.pod(PodOnNode {
        gpu: Some(taken.clone()),
        ..pod("a", &[(13, 0, 0)])
    });
    assert_ne!(node.ask(Resource::Nvenc, 13), Ok(taken));
}

#[test]
fn a_refusal_names_the_gpus_what_is_free_and_what_to_do() {
    let mut node = Node::with_gpus(2, full());
    node.pod(pod("one", &[(120, 0, 0)]));
    node.ask(Resource::Nvenc, 120).unwrap();
    node.pod(pod("two", &[(120, 0, 0)]));
    node.ask(Resource::Nvenc, 120).unwrap();
    node.pod(pod("three", &[(13, 0, 0)]));
    let why = node.ask(Resource::Nvenc, 13).unwrap_err();
    for part in [
        "games/three",
        "13 encoder units",
        "GPU-0 has 4 encoder units",
        "GPU-1 has 4",
        "penstock scheduler",
    ] {
        assert!(why.contains(part), "{part} in: {why}");
    }
}

#[test]
fn a_pod_goes_where_its_later_resources_have_room_too() {
    let mut node = Node::with_gpus(2, full());
    // GPU 0 is the fuller one, but has no SMs left.
    node.pod(PodOnNode {
        gpu: Some(gpu(0)),
        ..pod("sms", &[(1, 95, 0)])
    });
    node.ask(Resource::Nvenc, 1).unwrap();
    node.ask(Resource::Mps, 95).unwrap();
    node.pod(pod("a", &[(13, 20, 0)]));
    assert_eq!(node.ask(Resource::Nvenc, 13), Ok(gpu(1)));
    assert_eq!(node.ask(Resource::Mps, 20), Ok(gpu(1)));
}

#[test]
fn while_two_pods_could_be_meant_the_first_gets_the_fullest_gpu_all_the_same() {
    let mut node = Node::with_gpus(2, full());
    node.pod(pod("sms", &[(1, 95, 0)]));
    node.ask(Resource::Nvenc, 1).unwrap();
    node.ask(Resource::Mps, 95).unwrap();
    node.pod(pod("plain", &[(3, 0, 0)]));
    node.pod(pod("all-sms", &[(3, 100, 0)]));
    assert_eq!(node.ask(Resource::Nvenc, 3), Ok(gpu(0)));
    node.shows(vec![
        held("sms", Resource::Nvenc, 0..1),
        held("sms", Resource::Mps, 0..95),
        held("plain", Resource::Nvenc, 1..4),
    ]);
    assert_eq!(node.ask(Resource::Nvenc, 3), Ok(gpu(1)));
    assert_eq!(node.ask(Resource::Mps, 100), Ok(gpu(1)));
}

#[test]
fn a_call_is_the_next_pods_where_the_first_fits_nowhere() {
    let mut node = Node::with_gpus(1, full());
    // The kubelet fails this one by itself: the node has not as many encoder units.
    node.pod(pod("too-big", &[(125, 10, 0)]));
    node.pod(pod("fits", &[(0, 10, 0)]));
    assert_eq!(node.ask(Resource::Mps, 10), Ok(gpu(0)));
}

#[test]
fn a_call_that_may_be_the_next_pods_does_not_let_the_first_exceed_the_mps_clients() {
    let mut node = Node::with_gpus(1, full());
    node.set_clients(1);
    node.pod(pod("two-clients", &[(0, 10, 0), (0, 10, 0)]));
    node.pod(pod("one-client", &[(0, 10, 0)]));
    assert!(node.ask(Resource::Mps, 10).is_err());
    // The kubelet has failed the first one.
    node.end("two-clients");
    assert_eq!(node.ask(Resource::Mps, 10), Ok(gpu(0)));
}

#[test]
fn a_call_is_not_taken_for_a_pod_that_the_kubelet_has_passed() {
    let mut node = Node::with_gpus(2, full());
    for name in ["over", "between"] {
        node.pod(pod(name, &[(3, 0, 0)]));
        node.ask(Resource::Nvenc, 3).unwrap();
    }
    // The first has ended, of which nobody has told yet: the kubelet shows nothing of it any more.
    node.now += Duration::from_secs(6);
    node.shows(vec![held("between", Resource::Nvenc, 3..6)]);
    node.pod(pod("next", &[(3, 100, 64), (121, 0, 0)]));
    assert_eq!(node.ask(Resource::Nvenc, 3), Ok(gpu(1)));
}

#[test]
fn a_call_for_a_pod_that_is_not_known_yet_waits_for_it() {
    let mut node = Node::with_gpus(1, full());
    let available = node.available(Resource::Nvenc);
    let now = node.now;
    let list = node
        .assigner
        .preferred(now, Resource::Nvenc, &available, &Devices::default(), 3);
    assert_eq!(
        list,
        Outcome::List,
        "it may be one that earlier calls were taken to be for"
    );
    node.assigner.set_held(now, Vec::new(), None);
    let wait = node
        .assigner
        .preferred(now, Resource::Nvenc, &available, &Devices::default(), 3);
    assert_eq!(wait, Outcome::Wait(now + WAIT_FOR_POD));
    node.pod(pod("late", &[(3, 0, 0)]));
    assert_eq!(node.ask(Resource::Nvenc, 3), Ok(gpu(0)));
}

#[test]
fn a_pod_that_never_shows_up_is_packed_all_the_same() {
    let mut node = Node::with_gpus(2, full());
    let available = node.available(Resource::Nvenc);
    node.assigner.unlisted();
    node.assigner
        .preferred(node.now, Resource::Nvenc, &available, &Devices::default(), 3);
    node.now += WAIT_FOR_POD;
    let first = node.ask(Resource::Nvenc, 3).unwrap();
    node.now += Duration::from_millis(5);
    assert_eq!(
        node.ask(Resource::Mps, 10),
        Ok(first),
        "what follows at once is the same pod's"
    );
}

#[test]
fn devices_of_several_gpus_are_refused() {
    let mut node = Node::with_gpus(2, full());
    node.pod(pod("a", &[(2, 0, 0)]));
    let ids = [0, 1].map(|i| DeviceId::new(gpu(i), 0)).into_iter().collect();
    let Outcome::Refuse(why) = node.assigner.allocate(node.now, Resource::Nvenc, &ids) else {
        panic!()
    };
    assert!(why.contains("several GPUs (GPU-0, GPU-1)"), "{why}");
}

#[test]
fn every_answer_for_one_pod_says_alike_whether_it_has_encoder_units() {
    let mut node = Node::with_gpus(1, full());
    node.pod(pod("a", &[(0, 10, 0), (3, 0, 0)]));
    assert!(node.grant(Resource::Mps, 10).pod_has_nvenc);
    assert!(node.grant(Resource::Nvenc, 3).pod_has_nvenc);
    node.pod(pod("b", &[(0, 10, 2)]));
    let grant = node.grant(Resource::Mps, 10);
    assert!(!grant.pod_has_nvenc);
    assert_eq!(
        (grant.pod.as_deref(), grant.container),
        (Some("games/b"), demand(0, 10, 2))
    );
}

#[test]
fn mps_clients_are_counted_against_the_limit() {
    let mut node = Node::with_gpus(1, full());
    node.set_clients(2);
    for name in ["a", "b"] {
        node.pod(pod(name, &[(0, 1, 0)]));
        node.ask(Resource::Mps, 1).unwrap();
    }
    node.pod(pod("c", &[(0, 1, 0)]));
    assert!(node.ask(Resource::Mps, 1).is_err());
}

#[test]
fn a_pod_of_the_same_name_begins_anew() {
    let mut node = Node::with_gpus(1, full());
    node.pod(pod("game-0", &[(100, 0, 0)]));
    node.ask(Resource::Nvenc, 100).unwrap();
    node.assigner.delete_pod(&PodUid::new("uid-game-0").unwrap());
    node.taken.clear();
    node.pod(PodOnNode {
        uid: PodUid::new("another").unwrap(),
        ..pod("game-0", &[(100, 0, 0)])
    });
    assert_eq!(
        node.grant(Resource::Nvenc, 100).pod.as_deref(),
        Some("games/game-0")
    );
}

#[test]
fn what_podresources_shows_replaces_what_was_guessed() {
    let mut node = Node::with_gpus(1, full());
    node.pod(pod("a", &[(3, 0, 0)]));
    node.ask(Resource::Nvenc, 3).unwrap();
    node.assigner.set_held(node.now, Vec::new(), None);
    assert_eq!(
        node.assigner.occupancy().slices.len(),
        1,
        "the list may be older than the grant"
    );
    node.assigner
        .set_held(node.now + Duration::from_secs(6), Vec::new(), None);
    assert_eq!(
        node.assigner.occupancy().slices.len(),
        0,
        "the kubelet gave it back"
    );
}

#[test]
fn what_init_containers_hold_is_known_from_the_checkpoint() {
    let mut node = Node::with_gpus(2, full());
    let mut two = pod("two", &[(7, 0, 0), (9, 10, 0)]);
    two.containers[0].kind = ContainerKind::Init;
    two.gpu = Some(gpu(1));
    node.pod(two);
    let first = node.ask(Resource::Nvenc, 7).unwrap();
    // The plugin is killed, and begins anew; podresources shows no init container. The annotation is of no help, since
    // the kubelet asks for what is not the pod's first any more.
    let mut anew = Assigner::watching();
    anew.set_gpus(node.gpus.clone());
    std::mem::swap(&mut node.assigner, &mut anew);
    let mut two = pod("two", &[(7, 0, 0), (9, 10, 0)]);
    two.containers[0].kind = ContainerKind::Init;
    node.pod(two.clone());
    let stored = Stored {
        pod: two.uid,
        container: "c0".to_owned(),
        resource: Resource::Nvenc,
        ids: (0..7).map(|n| DeviceId::new(first.clone(), n)).collect(),
    };
    node.assigner.set_held(node.now, Vec::new(), Some(vec![stored]));
    assert_eq!(node.ask(Resource::Mps, 10), Ok(first));
}

#[test]
fn what_the_kubelet_has_to_give_again_is_not_counted_any_more() {
    let mut node = Node::with_gpus(1, full());
    node.pod(pod("big", &[(124, 0, 64)]));
    node.ask(Resource::Nvenc, 124).unwrap();
    node.ask(Resource::Vram, 64).unwrap();
    node.shows(vec![
        held("big", Resource::Nvenc, 0..124),
        held("big", Resource::Vram, 0..64),
    ]);
    // It has ended; the API server has not told yet, and podresources was not asked since.
    node.taken.clear();
    node.pod(pod("next", &[(124, 0, 64)]));
    assert_eq!(node.ask(Resource::Nvenc, 124), Ok(gpu(0)));
    assert_eq!(node.ask(Resource::Vram, 64), Ok(gpu(0)));
}

#[test]
fn a_refusal_waits_for_news_of_pods_that_have_ended() {
    let mut node = Node::with_gpus(1, full());
    node.pod(pod("big", &[(124, 10, 0)]));
    node.ask(Resource::Nvenc, 124).unwrap();
    node.ask(Resource::Mps, 10).unwrap();
    node.pod(pod("next", &[(13, 20, 0)]));
    node.taken.retain(|(resource, _)| *resource == Resource::Nvenc);
    let available = node.available(Resource::Mps);
    node.assigner.unlisted();
    let ask = |node: &mut Node| {
        node.assigner
            .preferred(node.now, Resource::Mps, &available, &Devices::default(), 20)
    };
    assert!(matches!(ask(&mut node), Outcome::Wait(_)));
    node.assigner.delete_pod(&PodUid::new("uid-big").unwrap());
    assert!(matches!(ask(&mut node), Outcome::Done(ids) if ids.len() == 20));
}

#[test]
fn what_an_init_container_leaves_is_its_own_pods_whatever_others_hold_of_that_number() {
    let mut node = Node::with_gpus(1, full());
    node.pod(pod("a", &[(0, 4, 0), (3, 0, 0)]));
    node.ask(Resource::Mps, 4).unwrap();
    let numbered = |count| (0..count).map(|n| DeviceId::new(gpu(0), n)).collect::<Devices>();
    // The kubelet has given a up half done, and goes on with b.
    node.shows(vec![held("a", Resource::Mps, 0..4)]);
    let mut b = pod("b", &[(2, 0, 0), (3, 0, 0)]);
    b.containers[0].kind = ContainerKind::Init;
    node.pod(b);
    assert_eq!(node.grant(Resource::Nvenc, 2).pod.as_deref(), Some("games/b"));
    let left = numbered(2);
    let available = node
        .available(Resource::Nvenc)
        .iter()
        .chain(left.iter())
        .collect();
    let Outcome::Done(ids) = node
        .assigner
        .preferred(node.now, Resource::Nvenc, &available, &left, 3)
    else {
        panic!()
    };
    let Outcome::Done(grant) = node.assigner.allocate(node.now, Resource::Nvenc, &ids) else {
        panic!()
    };
    assert_eq!(grant.pod.as_deref(), Some("games/b"));
}

#[test]
fn what_an_init_container_was_given_is_not_shown_to_be_the_next_ones() {
    let mut node = Node::with_gpus(2, full());
    let mut a = pod("a", &[(0, 2, 1), (0, 2, 1)]);
    a.containers[0].kind = ContainerKind::Init;
    node.pod(a);
    node.ask(Resource::Mps, 2).unwrap();
    node.ask(Resource::Vram, 1).unwrap();
    // The kubelet hands on one resource, then the other; it is asked in between what it knows.
    for (resource, count) in [(Resource::Mps, 2), (Resource::Vram, 1)] {
        let left = (0..count).map(|n| DeviceId::new(gpu(0), n)).collect();
        let handed_on = node.assigner.allocate(node.now, resource, &left);
        assert!(matches!(handed_on, Outcome::Done(_)));
        node.shows(vec![
            held("a", Resource::Mps, 0..2),
            held("a", Resource::Vram, 0..1),
        ]);
    }
    node.pod(pod("b", &[(1, 2, 0)]));
    assert_eq!(node.grant(Resource::Mps, 2).pod.as_deref(), Some("games/b"));
}

#[test]
fn a_pod_that_is_gone_is_not_given_what_was_preferred_for_it() {
    let mut node = Node::with_gpus(2, full());
    node.pod(pod("a", &[(0, 1, 0)]));
    node.assigner.unlisted();
    let available = node.available(Resource::Mps);
    let Outcome::Done(ids) =
        node.assigner
            .preferred(node.now, Resource::Mps, &available, &Devices::default(), 1)
    else {
        panic!()
    };
    // It was b's call all along: a was not admitted, and of b the API server tells late.
    node.pod(PodOnNode {
        gpu: Some(gpu(1)),
        ..pod("b", &[(1, 1, 0)])
    });
    node.assigner.delete_pod(&PodUid::new("uid-a").unwrap());
    let Outcome::Done(grant) = node.assigner.allocate(node.now, Resource::Mps, &ids) else {
        panic!()
    };
    assert_eq!(grant.pod.as_deref(), Some("games/b"));
    assert_eq!(node.ask(Resource::Nvenc, 1), Ok(gpu(0)), "it is split");
}

#[test]
fn what_the_kubelet_stores_of_a_pod_that_has_ended_is_not_taken_for_its_heirs() {
    let mut node = Node::with_gpus(2, full());
    let init = |name: &str, demand| {
        let mut pod = pod(name, &[demand]);
        pod.containers[0].kind = ContainerKind::Init;
        pod
    };
    let first = init("first", (0, 2, 0));
    node.pod(first.clone());
    node.ask(Resource::Mps, 2).unwrap();
    node.pod(pod("other", &[(3, 0, 0)]));
    node.ask(Resource::Nvenc, 3).unwrap();
    // The first has ended, which nobody has told of yet, and the kubelet has not written since.
    node.taken.retain(|(resource, _)| *resource == Resource::Nvenc);
    node.pod(init("heir", (1, 2, 0)));
    assert_eq!(node.ask(Resource::Mps, 2), Ok(gpu(0)));
    let elsewhere = (0..9).map(|n| DeviceId::new(gpu(1), n)).collect();
    let ask = |node: &mut Node| {
        node.assigner
            .preferred(node.now, Resource::Nvenc, &elsewhere, &Devices::default(), 1)
    };
    assert_eq!(ask(&mut node), Outcome::List, "the heir's GPU has none left");
    let stored = Stored {
        pod: first.uid,
        container: "c0".to_owned(),
        resource: Resource::Mps,
        ids: (0..2).map(|n| DeviceId::new(gpu(0), n)).collect(),
    };
    node.assigner.set_held(node.now, Vec::new(), Some(vec![stored]));
    assert!(matches!(ask(&mut node), Outcome::Wait(_)), "it would be split");
}

#[test]
fn what_a_failed_pod_was_given_is_not_the_next_ones() {
    let mut node = Node::with_gpus(2, demand(1, 4, 4));
    for name in ["old", "other"] {
        node.pod(pod(name, &[(1, u32::from(name == "old"), 0)]));
    }
    let old = node.ask(Resource::Nvenc, 1).unwrap();
    assert_eq!(node.ask(Resource::Mps, 1), Ok(old.clone()));
    assert_ne!(node.ask(Resource::Nvenc, 1), Ok(old.clone()));
    // No GPU has room for x, so this call is taken for y's; then the kubelet finds that x can't get its encoder unit.
    node.pod(pod("x", &[(1, 2, 0)]));
    node.pod(pod("y", &[(0, 2, 1)]));
    let before = node.taken.clone();
    let guessed = node.ask(Resource::Mps, 2).unwrap();
    node.taken = before;
    node.end("x");
    assert_eq!(node.ask(Resource::Vram, 1), Ok(guessed.clone()));
    // Now the other GPU is the fuller one, which a pod that has nothing would go to.
    assert_eq!(guessed, old);
    node.end("old");
    node.taken
        .retain(|(resource, id)| *resource == Resource::Vram || *id.gpu() != old);
    assert_eq!(node.ask(Resource::Mps, 2), Ok(guessed), "y is split");
}

/// A node whose kubelet takes what is preferred.
struct Node {
    assigner: Assigner,
    now: Instant,
    taken: BTreeSet<(Resource, DeviceId)>,
    gpus: Vec<GpuOffer>,
}

impl Node {
    fn with_gpus(count: usize, capacity: Resources) -> Self {
        let offer = |i| GpuOffer {
            uuid: gpu(i),
            capacity,
            mps_clients: 48,
            unhealthy: BTreeMap::new(),
        };
        let gpus: Vec<_> = (0..count).map(offer).collect();
        let mut assigner = Assigner::watching();
        assigner.set_gpus(gpus.clone());
        Self {
            assigner,
            now: Instant::now(),
            taken: BTreeSet::new(),
            gpus,
        }
    }

    fn set_clients(&mut self, clients: u32) {
        self.gpus.iter_mut().for_each(|gpu| gpu.mps_clients = clients);
        self.assigner.set_gpus(self.gpus.clone());
    }

    fn pod(&mut self, pod: PodOnNode) {
        self.assigner.apply_pod(pod);
    }

    /// The kubelet lists this, and no more.
    fn shows(&mut self, held: Vec<Held>) {
        self.assigner.set_held(self.now, held, None);
    }

    fn end(&mut self, pod: &str) {
        self.assigner
            .delete_pod(&PodUid::new(format!("uid-{pod}")).unwrap());
    }

    fn available(&self, resource: Resource) -> Devices {
        let of = |gpu: &GpuOffer| {
            (0..resource.of(gpu.capacity))
                .map(|n| DeviceId::new(gpu.uuid.clone(), n))
                .collect::<Vec<_>>()
        };
        self.gpus
            .iter()
            .flat_map(of)
            .filter(|id| !self.taken.contains(&(resource, id.clone())))
            .collect()
    }

    fn ask(&mut self, resource: Resource, size: u32) -> Result<GpuUuid, String> {
        self.try_grant(resource, size).map(|grant| grant.gpu)
    }

    fn grant(&mut self, resource: Resource, size: u32) -> Grant {
        self.try_grant(resource, size).unwrap()
    }

    fn try_grant(&mut self, resource: Resource, size: u32) -> Result<Grant, String> {
        let available = self.available(resource);
        // Here podresources never answers.
        self.assigner.unlisted();
        let ids = loop {
            match self
                .assigner
                .preferred(self.now, resource, &available, &Devices::default(), size as usize)
            {
                Outcome::Done(ids) => break ids,
                // Before it refuses it waits for news of pods that have ended.
                Outcome::Wait(until) => self.now = until,
                Outcome::List => panic!("all is known here"),
                Outcome::Refuse(why) => return Err(why),
            }
        };
        assert_eq!(ids.len(), size as usize);
        self.taken.extend(ids.iter().map(|id| (resource, id)));
        match self.assigner.allocate(self.now, resource, &ids) {
            Outcome::Done(grant) => Ok(grant),
            Outcome::Wait(_) | Outcome::List => panic!("all is known here"),
            Outcome::Refuse(why) => Err(why),
        }
    }
}

fn full() -> Resources {
    demand(124, 100, 64)
}

fn amount(resource: Resource, nvenc: u32, mps: u32) -> u32 {
    resource.of(demand(nvenc, mps, 0))
}

pub(super) fn demand(nvenc: u32, mps: u32, vram: u32) -> Resources {
    [
        Resource::Nvenc.amount(nvenc),
        Resource::Mps.amount(mps),
        Resource::Vram.amount(vram),
    ]
    .into_iter()
    .fold(Resources::NONE, |sum, part| sum.checked_add(part).unwrap())
}

pub(super) fn gpu(i: usize) -> GpuUuid {
    GpuUuid::new(format!("GPU-{i}")).unwrap()
}

/// Devices of GPU 0 that a pod's first container has.
fn held(pod: &str, resource: Resource, numbers: std::ops::Range<u32>) -> Held {
    Held {
        namespace: "games".to_owned(),
        pod: pod.to_owned(),
        container: "c0".to_owned(),
        resource,
        ids: numbers.map(|n| DeviceId::new(gpu(0), n)).collect(),
    }
}

/// A pod of application containers with these demands.
fn pod(name: &str, containers: &[(u32, u32, u32)]) -> PodOnNode {
    let container = |(i, (nvenc, mps, vram)): (usize, &(u32, u32, u32))| ContainerAsk {
        name: format!("c{i}"),
        kind: ContainerKind::App,
        demand: demand(*nvenc, *mps, *vram),
    };
    PodOnNode {
        uid: PodUid::new(format!("uid-{name}")).unwrap(),
        namespace: "games".to_owned(),
        name: name.to_owned(),
        created: 0,
        gpu: None,
        terminal: false,
        deleting: false,
        containers: containers.iter().enumerate().map(container).collect(),
    }
}

#[test]
fn a_pod_is_not_refused_for_what_a_failed_one_like_it_was_given() {
    let mut node = Node::with_gpus(1, demand(39, 0, 0));
    let mut big = pod("big", &[(13, 0, 0), (39, 0, 0)]);
    big.containers[0].kind = ContainerKind::Init;
    node.pod(PodOnNode {
        containers: vec![
            ContainerAsk {
                kind: ContainerKind::Sidecar,
                ..big.containers[0].clone()
            },
            big.containers[1].clone(),
        ],
        ..big.clone()
    });
    node.pod(pod("small", &[(13, 0, 0)]));
    node.ask(Resource::Nvenc, 13).unwrap();
    assert!(node.ask(Resource::Nvenc, 39).is_err());
    node.assigner.delete_pod(&PodUid::new("uid-big").unwrap());
    node.taken.clear();
    assert_eq!(node.ask(Resource::Nvenc, 13), Ok(gpu(0)));
}
