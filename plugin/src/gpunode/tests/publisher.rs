//! The whole publisher, and the Events, against a stand-in for the API server.

use std::time::{Duration, Instant};

use fake_kube::{FakeKube, Fault, Request};
use penstock_core::gpu_node::ConditionStatus;
use penstock_core::ids::{NodeName, PodUid};
use penstock_core::units::EncoderUnits;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::super::{NodeState, Observed, Overuse, OveruseReporter, PodRef, publish};
use super::cluster::{add_node, apply_manifests, client, cluster};
use super::support::{loaded, taken, uuid};

#[tokio::test]
async fn the_first_write_says_all_and_is_owned_by_the_node() {
    let kube = cluster();
    let mut state = loaded(13, 47);
    state.conditions.push(no_pipes());
    let _agent = Agent::start(&kube, state);
    kube.until("it is written", |kube| applied(kube).len() == 1).await;
    let request = &applied(&kube)[0];
    assert_eq!(request.user, "system:serviceaccount:penstock:penstock-plugin");
    assert_eq!(request.query["fieldManager"], "penstock-plugin");
    assert_eq!(request.query["force"], "true");
    let written = kube.get("gpunodes", None, "node-1").unwrap();
    let owner = &written["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["uid"]),
        (&json!("Node"), &node_uid(&kube))
    );
    assert_eq!(written["spec"]["summary"]["encoder"], "227/240");
    assert_eq!(written["spec"]["gpus"][0]["measured"]["encoderLoadPercent"], 40);
    let conditions = &written["spec"]["conditions"];
    assert_eq!(conditions[0]["type"], "Healthy");
    assert_eq!(
        (&conditions[1]["type"], &conditions[1]["status"]),
        (&json!("MpsReady"), &json!("False"))
    );
    // The definition knows every field: what was sent is what is kept.
    assert_eq!(written["spec"]["summary"], request.content["spec"]["summary"]);
    assert_eq!(
        written["spec"]["gpus"][0]["allocated"],
        request.content["spec"]["gpus"][0]["allocated"]
    );
}

#[tokio::test]
async fn a_slice_is_there_within_a_second_and_trembling_load_is_not_written() {
    let kube = cluster();
    let agent = Agent::start(&kube, loaded(1, 40));
    kube.until("it is written", |kube| applied(kube).len() == 1).await;
    for percent in 38..43 {
        agent.states.send_replace(loaded(1, percent));
    }
    let changed = Instant::now();
    agent.states.send_replace(loaded(2, 41));
    kube.until("the slice is there", |kube| newest(kube) == 2).await;
    kube.until("it is answered", |kube| applied(kube).len() == 2)
        .await;
    let took = applied(&kube)[1].at - changed;
    // A busy machine may add to the second.
    assert!(took < Duration::from_millis(1500), "{took:?}");
}

#[tokio::test]
async fn an_api_server_that_was_away_gets_the_newest() {
    let mut kube = cluster();
    let agent = Agent::start(&kube, taken(1));
    kube.until("it is written", |kube| applied(kube).len() == 1).await;
    kube.stop();
    for units in 2..=4 {
        agent.states.send_replace(taken(units));
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    kube.resume();
    kube.until("the newest is there", |kube| newest(kube) == 4).await;
    kube.until("it is answered", |kube| applied(kube).len() == 2)
        .await;
}

#[tokio::test]
async fn an_agent_may_be_there_before_the_definition_and_the_node() {
    let kube = cluster();
    kube.delete("customresourcedefinitions", None, "gpunodes.penstock.dev");
    let _agent = Agent::start(&kube, taken(1));
    kube.until("it was tried twice", |kube| attempts(kube) == 2).await;
    kube.delete("nodes", None, "node-1");
    apply_manifests(&kube);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(kube.list("gpunodes"), [Value::Null; 0], "nobody owns it yet");
    add_node(&kube);
    kube.until("it is written", |kube| kube.list("gpunodes").len() == 1)
        .await;
    let written = kube.get("gpunodes", None, "node-1").unwrap();
    assert_eq!(written["metadata"]["ownerReferences"][0]["uid"], node_uid(&kube));
}

#[tokio::test]
async fn a_conflict_is_tried_again() {
    let kube = cluster();
    kube.fail(Fault::refuse(409).on("patch", "gpunodes"));
    let agent = Agent::start(&kube, taken(1));
    kube.until("it was tried", |kube| attempts(kube) == 1).await;
    agent.states.send_replace(taken(2));
    kube.heal();
    kube.until("the newest is there", |kube| newest(kube) == 2).await;
    kube.until("it is answered", |kube| applied(kube).len() == 1)
        .await;
}

#[tokio::test]
async fn the_task_ends_with_the_agent() {
    let kube = cluster();
    let Agent { states, task } = Agent::start(&kube, taken(1));
    drop(states);
    task.await.unwrap();
}

#[tokio::test]
async fn too_much_encoding_is_said_once() {
    let kube = cluster();
    let mut reporter = OveruseReporter::new(client(&kube), &node());
    let now = Instant::now();
    assert!(reporter.report(now, &pod(), &overuse()).await.unwrap());
    let later = now + Duration::from_secs(599);
    assert!(!reporter.report(later, &pod(), &overuse()).await.unwrap());
    let events = kube.list("events");
    let [event] = &events[..] else {
        panic!("{events:?}")
    };
    // As `kubectl describe pod` reads it: of the core group.
    assert_eq!(event["involvedObject"]["name"], "quake-0");
    assert_eq!(event["involvedObject"]["uid"], "8a1c");
    assert_eq!(event["metadata"]["namespace"], "games");
    assert_eq!(event["reportingInstance"], "node-1");
    assert_eq!(event["type"], "Warning");
    let note = event["message"].as_str().unwrap();
    assert!(
        note.contains("uses 20 encoder units of GPU-0, and its slice has 13"),
        "{note}"
    );
    let much_later = now + Duration::from_secs(600);
    assert!(reporter.report(much_later, &pod(), &overuse()).await.unwrap());
}

#[tokio::test]
async fn an_event_that_was_refused_is_tried_again_later() {
    let kube = cluster();
    kube.delete("clusterrolebindings", None, "penstock-plugin");
    let mut reporter = OveruseReporter::new(client(&kube), &node());
    let now = Instant::now();
    let error = reporter
        .report(now, &pod(), &overuse())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("games/quake-0") && error.contains("403"),
        "{error}"
    );
    apply_manifests(&kube);
    let soon = now + Duration::from_secs(59);
    assert!(!reporter.report(soon, &pod(), &overuse()).await.unwrap());
    let later = now + Duration::from_secs(60);
    assert!(reporter.report(later, &pod(), &overuse()).await.unwrap());
}

struct Agent {
    states: watch::Sender<NodeState>,
    task: JoinHandle<()>,
}

impl Agent {
    fn start(kube: &FakeKube, state: NodeState) -> Self {
        let (states, seen) = watch::channel(state);
        let task = tokio::spawn(publish(client(kube), node(), seen));
        Self { states, task }
    }
}

/// How often it was tried.
fn attempts(kube: &FakeKube) -> usize {
    kube.requests_to("patch", "gpunodes").len()
}

/// The applies that were taken.
fn applied(kube: &FakeKube) -> Vec<Request> {
    let mut requests = kube.requests_to("patch", "gpunodes");
    requests.retain(|request| request.code == 200);
    requests
}

/// The units that are said to be taken.
fn newest(kube: &FakeKube) -> u64 {
    let written = kube.get("gpunodes", None, "node-1").unwrap_or_default();
    written["spec"]["gpus"][0]["allocated"][0]["nvenc"]
        .as_u64()
        .unwrap_or(0)
}

fn node_uid(kube: &FakeKube) -> Value {
    kube.get("nodes", None, "node-1").unwrap()["metadata"]["uid"].clone()
}

fn no_pipes() -> Observed {
    Observed {
        about: "MpsReady".to_owned(),
        status: ConditionStatus::False,
        reason: "NoPipe".to_owned(),
        message: "no MPS daemon answers".to_owned(),
    }
}

fn node() -> NodeName {
    NodeName::new("node-1").unwrap()
}

fn pod() -> PodRef {
    PodRef {
        namespace: "games".to_owned(),
        name: "quake-0".to_owned(),
        uid: PodUid::new("8a1c").unwrap(),
    }
}

fn overuse() -> Overuse {
    Overuse {
        gpu: uuid(0),
        used: EncoderUnits(20),
        slice: EncoderUnits(13),
    }
}
