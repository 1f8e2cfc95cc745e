//! The plugin before a stand-in kubelet, with GPUs and pods that a test decides on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_core::device::Resource;
use penstock_core::packing::Resources;
use penstock_core::units::{EncoderUnits, SmPercent, VramBlocks};
use prometheus::Registry;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use penstock_core::ids::PodUid;
use penstock_core::pod_demand::ContainerKind;

use super::metrics::Metrics;
use super::{Plugin, Seams, View};
use crate::assign::{GpuOffer, Slice};
use crate::pods::{ContainerAsk, PodEvent, PodOnNode};

#[path = "../../tests/kubelet/mod.rs"]
mod stand_in;

use stand_in::{Event, Kubelet, PodSpec, until};

#[tokio::test]
async fn three_resources_are_registered_and_their_devices_listed() {
    let node = Node::start(two_gpus()).await;
    assert_eq!(node.allocatable(), [20, 200, 8]);
    assert!(*node.view.registered.borrow());
    node.end().await;
}

#[tokio::test]
async fn two_resources_come_from_one_gpu_in_whichever_order() {
    let node = Node::start(two_gpus()).await;
    let mut orders = BTreeSet::new();
    for nth in 0..20 {
        let pod = PodSpec::new(&format!("games/{nth}")).container("app", &[(NVENC, 3), (MPS, 20)]);
        let given = node.admit(&pod).await.unwrap();
        assert_eq!((given.len(), node.kubelet.in_use(NVENC)), (2, 3));
        let gpus: BTreeSet<_> = given
            .iter()
            .map(|given| &given.response.envs["PENSTOCK_GPU"])
            .collect();
        assert_eq!(gpus.len(), 1);
        orders.insert(given[0].resource.clone());
        node.remove(&format!("games/{nth}")).await;
    }
    assert_eq!(orders.len(), 2, "only one order was tried");
    node.end().await;
}

#[tokio::test]
async fn an_init_containers_devices_are_handed_on() {
    let node = Node::start(two_gpus()).await;
    let pod = PodSpec::new("games/a")
        .container("app", &[(NVENC, 7)])
        .init("warm-up", &[(NVENC, 4)])
        .sidecar("log", &[(NVENC, 1)]);
    let given = node.admit(&pod).await.unwrap();
    let containers: Vec<_> = given.iter().map(|given| &*given.container).collect();
    assert_eq!(containers, ["warm-up", "log", "app"]);
    let (first, app) = (&given[0].ids, &given[2].ids);
    assert_eq!(app.iter().filter(|id| first.contains(id)).count(), 3);
    assert_eq!(node.kubelet.in_use(NVENC), 8);
    node.end().await;
}

#[tokio::test]
async fn a_refusal_is_what_the_pods_status_says() {
    let node = Node::start(two_gpus()).await;
    let pod = PodSpec::new("games/a").container("app", &[(NVENC, 15)]);
    let message = node.admit(&pod).await.unwrap_err();
    assert!(message.contains("code = FailedPrecondition"), "{message}");
    assert!(
        message.contains("no GPU of this node has room for all of games/a, which asks for 15 encoder units"),
        "{message}"
    );
    assert_eq!(node.kubelet.in_use(NVENC), 0);
    node.admit(&PodSpec::new("games/b").container("app", &[(NVENC, 10)]))
        .await
        .unwrap();
    node.end().await;
}

#[tokio::test]
async fn a_gpu_that_falls_ill_is_not_handed_out_until_it_is_well() {
    let node = Node::start(two_gpus()).await;
    node.gpus.send_modify(|gpus| {
        gpus.as_mut().unwrap()[0]
            .unhealthy
            .insert(Resource::Mps, "its MPS daemon is dead".to_owned());
    });
    node.kubelet.until_allocatable(MPS, 100).await;
    assert_eq!(node.allocatable(), [20, 100, 8]);
    node.gpus
        .send_modify(|gpus| gpus.as_mut().unwrap()[0].unhealthy.clear());
    node.kubelet.until_allocatable(MPS, 200).await;
    node.end().await;
}

#[tokio::test]
async fn a_restarted_kubelet_knows_us_within_a_second_and_running_pods_count() {
    let node = Node::start(two_gpus()).await;
    let pod = PodSpec::new("games/a").container("app", &[(NVENC, 10)]);
    node.admit(&pod).await.unwrap();
    let mut took = Vec::new();
    for _ in 0..3 {
        node.kubelet.restart();
        let restarted = Instant::now();
        assert_eq!(node.allocatable(), [0, 0, 0]);
        node.until_listed().await;
        took.push(restarted.elapsed());
    }
    // Other programs on the machine may delay us once.
    assert!(took.iter().min() < Some(&Duration::from_secs(1)), "{took:?}");
    let other = PodSpec::new("games/b").container("app", &[(NVENC, 10)]);
    let given = node.admit(&other).await.unwrap();
    assert_eq!((given[0].ids.len(), node.kubelet.in_use(NVENC)), (10, 20));
    node.end().await;
}

#[tokio::test]
async fn old_streams_end_before_a_new_registration() {
    let node = Node::start(two_gpus()).await;
    let before = node.kubelet.events().len();
    node.kubelet.replace_socket();
    until("all three are registered again", || {
        registrations(&node.kubelet) == 6
    })
    .await;
    node.until_listed().await;
    // A late end of an old stream would have marked all devices unhealthy.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.allocatable(), [20, 200, 8]);
    let events = node.kubelet.events().split_off(before);
    let ended = |happened: &stand_in::Happened| matches!(happened.event, Event::StreamEnded(_));
    assert!(events[..3].iter().all(ended), "{events:?}");
    node.end().await;
}

#[tokio::test]
async fn sockets_that_somebody_removed_are_made_again() {
    let node = Node::start(two_gpus()).await;
    let socket = node.directory.path().join("device-plugins/penstock-mps.sock");
    std::fs::remove_file(&socket).unwrap();
    until("the socket is back", || socket.exists()).await;
    until("all three are registered again", || {
        registrations(&node.kubelet) == 6
    })
    .await;
    node.until_listed().await;
    node.end().await;
}

#[tokio::test]
async fn a_kubelet_that_comes_late_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::stopped(directory.path(), 1);
    let node = Node::with(directory, kubelet, two_gpus());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!*node.view.registered.borrow());
    node.kubelet.begin();
    node.until_listed().await;
    node.end().await;
}

#[tokio::test]
async fn a_killed_kubelet_is_waited_for_and_the_sockets_go_at_the_end() {
    let node = Node::start(two_gpus()).await;
    node.kubelet.stop();
    // Its socket is there still, and refuses.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    node.kubelet.begin();
    node.until_listed().await;
    let directory = node.directory.path().join("device-plugins");
    node.told_to_end.cancel();
    let sockets = || std::fs::read_dir(&directory).unwrap().count();
    until("only kubelet.sock is left", || sockets() == 1).await;
    until("the streams have ended", || node.allocatable() == [0, 0, 0]).await;
    node.end().await;
}

#[tokio::test]
async fn what_others_hold_is_seen_soon_and_a_foreign_gpu_is_ours_no_more() {
    let node = Node::start(two_gpus()).await;
    let pod = PodSpec::new("games/a").container("app", &[(VRAM, 2)]);
    node.admit(&pod).await.unwrap();
    node.kubelet
        .handed_out_by_another("ml/train", "nvidia.com/gpu", &[GPU_A]);
    // Seen by itself in ten seconds, and soon after the next allocation.
    let pod = PodSpec::new("games/b").container("app", &[(VRAM, 1)]);
    node.admit(&pod).await.unwrap();
    let admitted = Instant::now();
    node.kubelet.until_allocatable(NVENC, 10).await;
    let took = admitted.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    node.kubelet.remove("ml/train");
    node.remove("games/b").await;
    node.admit(&pod).await.unwrap();
    node.kubelet.until_allocatable(NVENC, 20).await;
    node.end().await;
}

#[tokio::test]
async fn a_node_with_eight_large_gpus_fits_through_every_interface() {
    let large = |nth: u32| GpuOffer {
        capacity: Resources {
            nvenc: EncoderUnits(310),
            mps: SmPercent(100),
            vram: VramBlocks(564),
        },
        ..gpu(&GPU_A.replacen("aaaaaaaa", &format!("{nth:08}"), 1))
    };
    let directory = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::start(directory.path(), 5);
    let node = Node::with(directory, kubelet, (0..8).map(large).collect());
    node.kubelet.until_allocatable(NVENC, 8 * 310).await;
    node.kubelet.until_allocatable(VRAM, 8 * 564).await;
    let pod = |nth| PodSpec::new(&format!("games/{nth}")).container("app", &[(NVENC, 310), (VRAM, 564)]);
    for nth in 0..8 {
        node.admit(&pod(nth)).await.unwrap();
    }
    // Another plugin knows it from the kubelet alone.
    let node = node.restarted().await;
    let pods = (0..8).map(|nth| as_told(&pod(nth))).collect();
    node.pods.send(PodEvent::All(pods)).await.unwrap();
    let held = || {
        node.slices()
            .iter()
            .map(|slice| slice.amounts.vram.0)
            .sum::<u32>()
    };
    until("all that pods hold is seen", || held() == 8 * 564).await;
    assert!(node.slices().iter().all(|slice| slice.amounts.nvenc.0 == 310));
    node.end().await;
}

#[tokio::test]
async fn who_holds_what_is_told_once_it_is_known_and_within_a_second() {
    let node = Node::start(two_gpus()).await;
    // The pods have not been listed, so all might be taken.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(node.view.occupied.borrow().is_none());
    // Nor is it known which GPUs there are.
    let gpus = node.gpus.send_replace(None);
    node.pods.send(PodEvent::All(Vec::new())).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(node.view.occupied.borrow().is_none());
    node.gpus.send_replace(gpus);
    node.until_listed().await;
    until("that nothing is held", || node.view.occupied.borrow().is_some()).await;
    let pod = PodSpec::new("games/a").container("app", &[(NVENC, 3), (MPS, 20)]);
    node.admit(&pod).await.unwrap();
    let admitted = Instant::now();
    until("the slice", || !node.slices().is_empty()).await;
    until("all of it", || node.slices()[0].amounts.mps.0 == 20).await;
    assert!(
        admitted.elapsed() < Duration::from_secs(1),
        "{:?}",
        admitted.elapsed()
    );
    let slice = node.slices().remove(0);
    assert_eq!((slice.namespace.as_str(), slice.pod.as_str()), ("games", "a"));
    assert_eq!(slice.uid, Some(uid_of("games/a")));
    assert_eq!((slice.amounts.nvenc.0, slice.mps_clients), (3, 1));
    node.remove("games/a").await;
    until("that it is gone", || node.slices().is_empty()).await;
    node.end().await;
}

#[tokio::test]
async fn what_a_kubelet_asked_before_its_restart_is_dropped() {
    let node = Node::start(two_gpus()).await;
    let gpus = node.lose_gpus();
    let pod = PodSpec::new("games/a").container("app", &[(NVENC, 3)]);
    let restart = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        node.kubelet.restart();
    };
    let (admitted, ()) = tokio::join!(node.admit(&pod), restart);
    assert!(admitted.is_err());
    node.gpus.send_replace(gpus);
    node.until_listed().await;
    let given = node.admit(&pod).await.unwrap();
    assert_eq!((given.len(), node.kubelet.in_use(NVENC)), (1, 3));
    node.end().await;
}

#[tokio::test]
async fn a_call_waits_until_there_is_an_answer_and_the_kubelet_with_it() {
    let node = Node::start(two_gpus()).await;
    let gpus = node.lose_gpus();
    let back = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.gpus.send_replace(gpus);
    };
    let pod = PodSpec::new("games/a").container("app", &[(NVENC, 3)]);
    let asked = Instant::now();
    let (admitted, ()) = tokio::join!(node.admit(&pod), back);
    admitted.unwrap();
    assert!(asked.elapsed() >= Duration::from_millis(300));
    node.end().await;
}

#[tokio::test]
async fn a_call_that_waits_is_answered_before_the_end() {
    let node = Node::start(two_gpus()).await;
    let gpus = node.lose_gpus();
    let told = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        node.told_to_end.cancel();
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.gpus.send_replace(gpus);
    };
    let pod = PodSpec::new("games/a").container("app", &[(NVENC, 3)]);
    let (admitted, ()) = tokio::join!(node.admit(&pod), told);
    admitted.unwrap();
    node.end().await;
}

#[tokio::test]
async fn a_call_without_an_answer_does_not_hold_up_the_end_for_long() {
    let node = Node::start(two_gpus()).await;
    node.lose_gpus();
    let pod = PodSpec::new("games/a").container("app", &[(NVENC, 3)]);
    let told = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        node.told_to_end.cancel();
    };
    let (admitted, ()) = tokio::join!(node.admit(&pod), told);
    let message = admitted.unwrap_err();
    assert!(
        message.contains("Unavailable") || message.contains("this node offers no GPU"),
        "{message}"
    );
    node.end().await;
}

/// A node with our plugin on it.
struct Node {
    directory: TempDir,
    kubelet: Kubelet,
    gpus: watch::Sender<Option<Vec<GpuOffer>>>,
    pods: mpsc::Sender<PodEvent>,
    view: View,
    told_to_end: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Node {
    async fn start(gpus: Vec<GpuOffer>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kubelet = Kubelet::start(directory.path(), 7);
        let node = Self::with(directory, kubelet, gpus);
        node.until_listed().await;
        node
    }

    fn with(directory: TempDir, kubelet: Kubelet, gpus: Vec<GpuOffer>) -> Self {
        let (gpus, seen_gpus) = watch::channel(Some(gpus));
        let (pods, seen_pods) = mpsc::channel(8);
        let seams = Seams {
            pods: Some(seen_pods),
            gpus: seen_gpus,
            answers: super::container_answer::answers(
                crate::cdi::Inject::Env,
                watch::channel(Arc::default()).1,
                crate::mps::Layout::new("/run/mps"),
            ),
            metrics: Metrics::new(&Registry::new()).unwrap(),
        };
        let (plugin, view) = Plugin::new(directory.path(), seams);
        let told_to_end = CancellationToken::new();
        let running = tokio::spawn(plugin.run(told_to_end.clone()));
        Self {
            directory,
            kubelet,
            gpus,
            pods,
            view,
            told_to_end,
            running,
        }
    }

    /// Another plugin in its place, on the same kubelet.
    async fn restarted(self) -> Self {
        self.told_to_end.cancel();
        self.running.await.unwrap().unwrap();
        assert_eq!(self.kubelet.faults(), Ok(()));
        let gpus = self.gpus.borrow().clone().unwrap();
        Self::with(self.directory, self.kubelet, gpus)
    }

    fn slices(&self) -> Vec<Slice> {
        let occupied = self.view.occupied.borrow().clone();
        occupied.map(|told| told.slices.clone()).unwrap_or_default()
    }

    /// Has the API server tell of a pod, and the kubelet admit it.
    async fn admit(&self, pod: &PodSpec) -> Result<Vec<stand_in::Allocated>, String> {
        self.pods.send(PodEvent::Changed(as_told(pod))).await.unwrap();
        self.kubelet.admit(pod).await
    }

    async fn remove(&self, pod: &str) {
        self.kubelet.remove(pod);
        self.pods.send(PodEvent::Gone(uid_of(pod))).await.unwrap();
    }

    fn allocatable(&self) -> [usize; 3] {
        [NVENC, MPS, VRAM].map(|resource| self.kubelet.allocatable(resource))
    }

    async fn until_listed(&self) {
        until("all devices are listed", || self.allocatable() == [20, 200, 8]).await;
        until("we know that we are registered", || {
            *self.view.registered.borrow()
        })
        .await;
    }

    /// Our GPUs are gone, as far as we can tell, before the kubelet hears of it: its next call has to wait.
    fn lose_gpus(&self) -> Option<Vec<GpuOffer>> {
        self.gpus.send_replace(Some(Vec::new()))
    }

    async fn end(self) {
        self.told_to_end.cancel();
        let ended = tokio::time::timeout(stand_in::PATIENCE, self.running);
        ended.await.unwrap().unwrap().unwrap();
        assert_eq!(self.kubelet.faults(), Ok(()));
    }
}

fn two_gpus() -> Vec<GpuOffer> {
    [GPU_A, GPU_B].map(gpu).to_vec()
}

fn gpu(uuid: &str) -> GpuOffer {
    GpuOffer {
        uuid: uuid.parse().unwrap(),
        capacity: Resources {
            nvenc: EncoderUnits(10),
            mps: SmPercent(100),
            vram: VramBlocks(4),
        },
        mps_clients: 48,
        unhealthy: BTreeMap::new(),
    }
}

/// The pod as the API server would tell of it.
fn as_told(spec: &PodSpec) -> PodOnNode {
    let container = |(name, [init, sidecar], ask): (&str, [bool; 2], &[(String, usize)])| ContainerAsk {
        name: name.to_owned(),
        kind: match (init, sidecar) {
            (true, _) => ContainerKind::Init,
            (_, true) => ContainerKind::Sidecar,
            _ => ContainerKind::App,
        },
        demand: ask.iter().fold(Resources::NONE, |sum, (name, count)| {
            let resource = Resource::from_name(name).unwrap();
            sum.checked_add(resource.amount(*count as u32)).unwrap()
        }),
    };
    let mut containers: Vec<_> = spec.asks().map(container).collect();
    containers.sort_by_key(|container| container.kind == ContainerKind::App);
    let (namespace, name) = spec.name().split_once('/').unwrap();
    PodOnNode {
        uid: uid_of(spec.name()),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        created: 0,
        gpu: None,
        terminal: false,
        deleting: false,
        containers,
    }
}

fn uid_of(pod: &str) -> PodUid {
    PodUid::new(pod.replace('/', "-")).unwrap()
}

fn registrations(kubelet: &Kubelet) -> usize {
    let events = kubelet.events();
    let registered = |happened: &&stand_in::Happened| matches!(happened.event, Event::Registered(_));
    events.iter().filter(registered).count()
}

const NVENC: &str = "penstock.dev/nvenc";
const MPS: &str = "penstock.dev/mps";
const VRAM: &str = "penstock.dev/vram";
const GPU_A: &str = "GPU-aaaaaaaa-483b-b48f-d7e5-75fb19a52b76";
const GPU_B: &str = "GPU-bbbbbbbb-483b-b48f-d7e5-75fb19a52b76";
