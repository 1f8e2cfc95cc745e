//! Pods as an API server gives them, and a watch against a stand-in for it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::gpunode::tests::api::ApiServer;

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

#[test]
fn quantities_are_whole_numbers() {
    let good = [
        ("0", 0),
        ("13", 13),
        ("1k", 1000),
        ("2Ki", 2048),
        ("1e3", 1000),
        ("4294967295", u32::MAX),
    ];
    for (text, number) in good {
        assert_eq!(whole_number(text), Some(number), "{text}");
    }
    for text in [
        "",
        "k",
        "-1",
        "+1",
        "1.5",
        "500m",
        "13 ",
        "1e",
        "1e-3",
        "4294967296",
        "5000M",
        "1x",
        "1e99",
    ] {
        assert_eq!(whole_number(text), None, "{text}");
    }
}

#[tokio::test]
async fn all_pods_come_first_and_then_each_change() {
    let api = ApiServer::start();
    api.cluster().change("ADDED", asking("a"));
    api.cluster().change("ADDED", pod("other", json!({})));
    let mut watcher = Watcher::start(&api);
    assert_eq!(watcher.next().await, all(&["a"]));
    assert_eq!(api.cluster().lists, ["spec.nodeName=node-1"]);

    api.cluster().change("ADDED", pod("another", json!({})));
    api.cluster().change("ADDED", asking("b"));
    assert_eq!(watcher.next().await, PodEvent::Changed(seen("b")));
    api.cluster().change("DELETED", asking("a"));
    assert_eq!(watcher.next().await, PodEvent::Gone(seen("a").uid));
}

#[tokio::test]
async fn a_watch_that_ends_goes_on_without_a_gap() {
    let api = ApiServer::start();
    let mut watcher = Watcher::start(&api);
    assert_eq!(watcher.next().await, all(&[]));
    api.cluster().change("ADDED", asking("a"));
    assert_eq!(watcher.next().await, PodEvent::Changed(seen("a")));
    {
        let mut cluster = api.cluster();
        cluster.cut();
        cluster.change("ADDED", asking("b"));
        cluster.change("DELETED", asking("b"));
    }
    assert_eq!(watcher.next().await, PodEvent::Changed(seen("b")));
    assert_eq!(watcher.next().await, PodEvent::Gone(seen("b").uid));
    assert_eq!(api.cluster().lists.len(), 1);
}

#[tokio::test]
async fn a_watch_that_is_too_old_begins_anew() {
    for at_once in [false, true] {
        let api = ApiServer::start();
        api.cluster().too_old_at_once = at_once;
        api.cluster().change("ADDED", asking("a"));
        let mut watcher = Watcher::start(&api);
        assert_eq!(watcher.next().await, all(&["a"]));
        {
            let mut cluster = api.cluster();
            cluster.cut();
            cluster.change("DELETED", asking("a"));
            cluster.change("ADDED", asking("b"));
            cluster.forget();
        }
        assert_eq!(watcher.next().await, all(&["b"]), "at once: {at_once}");
        api.cluster().change("ADDED", asking("c"));
        assert_eq!(watcher.next().await, PodEvent::Changed(seen("c")));
    }
}

#[tokio::test]
async fn an_api_server_may_be_away() {
    let mut api = ApiServer::start();
    api.go_away();
    let mut watcher = Watcher::start(&api);
    tokio::time::sleep(Duration::from_millis(300)).await;
    api.cluster().change("ADDED", asking("a"));
    api.come_back();
    assert_eq!(watcher.next().await, all(&["a"]));
    api.go_away();
    api.cluster().change("DELETED", asking("a"));
    api.come_back();
    assert_eq!(watcher.next().await, PodEvent::Gone(seen("a").uid));
}

#[tokio::test]
async fn a_watch_ends_when_nobody_listens() {
    let api = ApiServer::start();
    let Watcher { events, task } = Watcher::start(&api);
    drop(events);
    task.await.unwrap();
}

struct Watcher {
    events: mpsc::Receiver<PodEvent>,
    task: JoinHandle<()>,
}

impl Watcher {
    fn start(api: &ApiServer) -> Self {
        let (sender, events) = mpsc::channel(16);
        let client = api.client();
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

fn all(names: &[&str]) -> PodEvent {
    PodEvent::All(names.iter().map(|name| seen(name)).collect())
}

fn seen(name: &str) -> PodOnNode {
    read(&parse(&asking(name))).pod.unwrap()
}

fn asking(name: &str) -> Value {
    pod(name, json!({ RESOURCE_NVENC: "13" }))
}

fn pod(name: &str, limits: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "namespace": "games", "name": name, "uid": format!("uid-{name}") },
        "spec": { "containers": [{ "name": "game", "resources": { "limits": limits } }] },
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
