//! Pods as an API server gives them, and a watch against a stand-in for it.

use std::time::Duration;

use fake_kube::{FakeKube, Fault};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::gpunode::tests::cluster::{client, cluster};

#[test]
fn a_pod_is_read_in_kubernetes_order() {
    let Read { pod, faults } = read(&parse(&full_pod()));
    let expected = PodOnNode {
        uid: PodUid::new("8a1c").unwrap(),
        namespace: "games".to_owned(),
        name: "quake-0".to_owned(),
        created: 1_767_225_600,
        gpu: Some(GpuUuid::new("GPU-0").unwrap()),
        terminal: false,
        deleting: false,
        containers: vec![
            ask("shaders", ContainerKind::Init, [0, 50, 0]),
            ask("streamer", ContainerKind::Sidecar, [13, 0, 0]),
            ask("migrate", ContainerKind::Init, [0, 0, 0]),
            ask("game", ContainerKind::App, [0, 20, 8]),
        ],
    };
    assert_eq!(faults, []);
    assert_eq!(pod.as_ref(), Some(&expected));
    assert_eq!(
        expected.demand().resources,
        ask("", ContainerKind::App, [13, 50, 8]).demand
    );
}

#[test]
fn a_pod_that_asks_for_nothing_of_ours_is_not_passed_on() {
    for limits in [
        json!({}),
        json!({ "cpu": "2", "nvidia.com/gpu": "1" }),
        json!({ RESOURCE_NVENC: "0" }),
    ] {
        assert_eq!(read(&parse(&pod("a", limits))), Read::default());
    }
}

#[test]
fn a_request_alone_counts_too() {
    let mut pod = pod("a", json!({}));
    pod["spec"]["containers"][0]["resources"] = json!({ "requests": { RESOURCE_MPS: "20" } });
    let read = read(&parse(&pod)).pod.unwrap();
    assert_eq!(read.containers[0].demand.mps, SmPercent(20));
}

#[test]
fn what_is_no_number_is_ignored_and_said() {
    let limits = json!({ RESOURCE_NVENC: "1.5", RESOURCE_MPS: "20" });
    let Read { pod, faults } = read(&parse(&pod("a", limits)));
    assert_eq!(
        pod.unwrap().containers[0].demand,
        ask("", ContainerKind::App, [0, 20, 0]).demand
    );
    assert_eq!(
        faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "pod games/a: penstock.dev/nvenc: 1.5 of container game: it is no whole number of units; it is ignored"
        ]
    );
}

#[test]
fn an_annotation_that_is_no_gpu_is_ignored_and_said() {
    let mut pod = pod("a", json!({ RESOURCE_MPS: "20" }));
    pod["metadata"]["annotations"] = json!({ ANNOTATION_GPU: "not a GPU" });
    let Read { pod, faults } = read(&parse(&pod));
    assert_eq!(pod.unwrap().gpu, None);
    assert!(
        faults[0].to_string().contains("annotation penstock.dev/gpu"),
        "{faults:?}"
    );
}

#[test]
fn a_pod_without_a_uid_is_ignored_and_said() {
    let mut pod = pod("a", json!({ RESOURCE_MPS: "20" }));
    pod["metadata"]["uid"] = Value::Null;
    let Read { pod, faults } = read(&parse(&pod));
    assert_eq!((pod, faults.len()), (None, 1));
}

#[test]
fn an_end_is_seen() {
    let mut pod = pod("a", json!({ RESOURCE_MPS: "20" }));
    for (phase, terminal) in [
        ("Pending", false),
        ("Running", false),
        ("Succeeded", true),
        ("Failed", true),
    ] {
        pod["status"] = json!({ "phase": phase });
        assert_eq!(read(&parse(&pod)).pod.unwrap().terminal, terminal, "{phase}");
    }
    pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert!(read(&parse(&pod)).pod.unwrap().deleting);
}

#[tokio::test]
async fn all_pods_come_first_and_then_each_change() {
    let kube = cluster();
    let a = kube.create(asking("a"));
    kube.create(pod("other", json!({})));
    kube.create(on("node-2", asking("elsewhere")));
    let mut watcher = Watcher::start(&kube);
    assert_eq!(watcher.next().await, PodEvent::All(vec![seen(&a)]));
    let asked = &kube.requests_to("list", "pods")[0];
    assert_eq!(asked.query["fieldSelector"], "spec.nodeName=node-1");
    assert_eq!(asked.user, "system:serviceaccount:penstock:penstock-plugin");

    kube.create(pod("another", json!({})));
    kube.create(on("node-2", asking("elsewhere-too")));
    let b = kube.create(asking("b"));
    assert_eq!(watcher.next().await, PodEvent::Changed(seen(&b)));
    kube.delete("pods", Some("games"), "a");
    let PodEvent::Changed(ending) = watcher.next().await else {
        panic!("it has time to end")
    };
    assert!(ending.deleting && ending.uid == seen(&a).uid);
    kube.finish("games", "a");
    assert_eq!(watcher.next().await, PodEvent::Gone(ending.uid));
}

#[tokio::test]
async fn a_watch_that_ends_goes_on_without_a_gap() {
    let kube = cluster();
    let mut watcher = Watcher::start(&kube);
    assert_eq!(watcher.next().await, PodEvent::All(Vec::new()));
    let a = kube.create(asking("a"));
    assert_eq!(watcher.next().await, PodEvent::Changed(seen(&a)));
    let b = kube.unseen(|kube| {
        let b = kube.create(asking("b"));
        kube.finish("games", "b");
        b
    });
    assert_eq!(watcher.next().await, PodEvent::Changed(seen(&b)));
    assert_eq!(watcher.next().await, PodEvent::Gone(seen(&b).uid));
    assert_eq!(kube.requests_to("list", "pods").len(), 1);
}

/// As an event of the watch, and as an answer to the request for one.
#[tokio::test]
async fn a_watch_that_is_too_old_begins_anew() {
    for at_once in [false, true] {
        let kube = cluster();
        let a = kube.create(asking("a"));
        let mut watcher = Watcher::start(&kube);
        assert_eq!(watcher.next().await, PodEvent::All(vec![seen(&a)]));
        let b = kube.unseen(|kube| {
            kube.finish("games", "a");
            let b = kube.create(asking("b"));
            match at_once {
                true => kube.fail(Fault::refuse(410).on("watch", "pods").times(1)),
                false => kube.compact(),
            }
            b
        });
        assert_eq!(
            watcher.next().await,
            PodEvent::All(vec![seen(&b)]),
            "at once: {at_once}"
        );
        let c = kube.create(asking("c"));
        assert_eq!(watcher.next().await, PodEvent::Changed(seen(&c)));
    }
}

#[tokio::test]
async fn an_api_server_may_be_away() {
    let mut kube = cluster();
    kube.stop();
    let mut watcher = Watcher::start(&kube);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let a = kube.create(asking("a"));
    kube.resume();
    assert_eq!(watcher.next().await, PodEvent::All(vec![seen(&a)]));
    kube.stop();
    kube.finish("games", "a");
    kube.resume();
    assert_eq!(watcher.next().await, PodEvent::Gone(seen(&a).uid));
}

#[tokio::test]
async fn a_watch_ends_when_nobody_listens() {
    let kube = cluster();
    let Watcher { events, task } = Watcher::start(&kube);
    drop(events);
    task.await.unwrap();
}

struct Watcher {
    events: mpsc::Receiver<PodEvent>,
    task: JoinHandle<()>,
}

impl Watcher {
    fn start(kube: &FakeKube) -> Self {
        let (sender, events) = mpsc::channel(16);
        let client = client(kube);
        let task = tokio::spawn(async move {
            let node = NodeName::new("node-1").unwrap();
            watch(client, &node, sender).await;
        });
        Self { events, task }
    }

    async fn next(&mut self) -> PodEvent {
        let next = tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await;
        next.unwrap().unwrap()
    }
}

fn seen(pod: &Value) -> PodOnNode {
    read(&parse(pod)).pod.unwrap()
}

fn asking(name: &str) -> Value {
    pod(name, json!({ RESOURCE_NVENC: "13" }))
}

fn on(node: &str, mut pod: Value) -> Value {
    pod["spec"]["nodeName"] = json!(node);
    pod
}

fn pod(name: &str, limits: Value) -> Value {
    let container = json!({ "name": "game", "image": "quake:1", "resources": { "limits": limits } });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "namespace": "games", "name": name, "uid": format!("uid-{name}") },
        "spec": { "nodeName": "node-1", "containers": [container] },
    })
}

fn full_pod() -> Value {
    let limits = |limits: Value| json!({ "limits": limits });
    json!({
        "metadata": {
            "namespace": "games",
            "name": "quake-0",
            "uid": "8a1c",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": { ANNOTATION_GPU: "GPU-0" },
        },
        "spec": {
            "initContainers": [
                { "name": "shaders", "resources": limits(json!({ RESOURCE_MPS: "50" })) },
                {
                    "name": "streamer",
                    "restartPolicy": "Always",
                    "resources": limits(json!({ RESOURCE_NVENC: "13" })),
                },
                { "name": "migrate" },
            ],
            "containers": [
                { "name": "game", "resources": limits(json!({ RESOURCE_MPS: "20", RESOURCE_VRAM: "8" })) },
            ],
        },
        "status": { "phase": "Running" },
    })
}

fn ask(name: &str, kind: ContainerKind, [nvenc, mps, vram]: [u32; 3]) -> ContainerAsk {
    ContainerAsk {
        name: name.to_owned(),
        kind,
        demand: Resources {
            nvenc: EncoderUnits(nvenc),
            mps: SmPercent(mps),
            vram: VramBlocks(vram),
        },
    }
}

fn parse(pod: &Value) -> Pod {
    serde_json::from_value(pod.clone()).unwrap()
}
