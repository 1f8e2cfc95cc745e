//! The whole publisher, and the Events, against a stand-in for the API server.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use penstock_core::gpu_node::ConditionStatus;
use penstock_core::ids::{NodeName, PodUid};
use penstock_core::units::EncoderUnits;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::super::{NodeState, Observed, Overuse, OveruseReporter, PodRef, publish};
use super::api::{ApiServer, Cluster};
use super::support::{loaded, taken, uuid};

#[tokio::test]
async fn the_first_write_says_all_and_is_owned_by_the_node() {
    let api = ApiServer::start();
    let mut state = loaded(13, 47);
    state.conditions.push(no_pipes());
    let _agent = Agent::start(&api, state);
    api.until("it is written", |c| c.applied.len() == 1).await;
    let (_, query, content) = api.cluster().applied[0].clone();
    assert_eq!(query["fieldManager"], "penstock-plugin");
    assert_eq!(query["force"], "true");
    assert_eq!(content["kind"], "GpuNode");
    assert_eq!(content["metadata"]["name"], "node-1");
    let owner = &content["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["uid"]),
        (&json!("Node"), &json!("node-uid-1"))
    );
    assert_eq!(content["spec"]["summary"]["encoder"], "227/240");
    assert_eq!(content["spec"]["gpus"][0]["measured"]["encoderLoadPercent"], 40);
    let conditions = &content["spec"]["conditions"];
    assert_eq!(conditions[0]["type"], "Healthy");
    assert_eq!(
        (&conditions[1]["type"], &conditions[1]["status"]),
        (&json!("MpsReady"), &json!("False"))
    );
}

#[tokio::test]
async fn a_slice_is_there_within_a_second_and_trembling_load_is_not_written() {
    let api = ApiServer::start();
    let agent = Agent::start(&api, loaded(1, 40));
    api.until("it is written", |c| c.applied.len() == 1).await;
    for percent in 38..43 {
        agent.states.send_replace(loaded(1, percent));
    }
    let changed = Instant::now();
    agent.states.send_replace(loaded(2, 41));
    api.until("the slice is there", |c| newest(c) == 2).await;
    assert_eq!(api.cluster().applied.len(), 2);
    let took = api.cluster().applied[1].0 - changed;
    // A busy machine may add to the second.
    assert!(took < Duration::from_millis(1500), "{took:?}");
}

#[tokio::test]
async fn an_api_server_that_was_away_gets_the_newest() {
    let mut api = ApiServer::start();
    let agent = Agent::start(&api, taken(1));
    api.until("it is written", |c| c.applied.len() == 1).await;
    api.go_away();
    for units in 2..=4 {
        agent.states.send_replace(taken(units));
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    api.come_back();
    api.until("the newest is there", |c| newest(c) == 4).await;
    assert_eq!(api.cluster().applied.len(), 2);
}

#[tokio::test]
async fn an_agent_may_be_there_before_the_definition_and_the_node() {
    let api = ApiServer::start();
    api.cluster().refuse = Some(StatusCode::NOT_FOUND);
    let _agent = Agent::start(&api, taken(1));
    api.until("it was tried twice", |c| c.attempts == 2).await;
    api.cluster().refuse = None;
    api.cluster().node_uid = None;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(api.cluster().applied.is_empty(), "nobody owns it yet");
    api.cluster().node_uid = Some("node-uid-2".to_owned());
    api.until("it is written", |c| c.applied.len() == 1).await;
    let content = api.cluster().applied[0].2.clone();
    assert_eq!(content["metadata"]["ownerReferences"][0]["uid"], "node-uid-2");
}

#[tokio::test]
async fn a_conflict_is_tried_again() {
    let api = ApiServer::start();
    api.cluster().refuse = Some(StatusCode::CONFLICT);
    let agent = Agent::start(&api, taken(1));
    api.until("it was tried", |c| c.attempts == 1).await;
    agent.states.send_replace(taken(2));
    api.cluster().refuse = None;
    api.until("the newest is there", |c| newest(c) == 2).await;
    assert_eq!(api.cluster().applied.len(), 1);
}

#[tokio::test]
async fn the_task_ends_with_the_agent() {
    let api = ApiServer::start();
    let Agent { states, task } = Agent::start(&api, taken(1));
    drop(states);
    task.await.unwrap();
}

#[tokio::test]
async fn too_much_encoding_is_said_once() {
    let api = ApiServer::start();
    let mut reporter = OveruseReporter::new(api.client(), &node());
    let now = Instant::now();
    assert!(reporter.report(now, &pod(), &overuse()).await.unwrap());
    let later = now + Duration::from_secs(599);
    assert!(!reporter.report(later, &pod(), &overuse()).await.unwrap());
    let cluster = api.cluster();
    let [event] = &cluster.events[..] else {
        panic!("{:?}", cluster.events)
    };
    assert_eq!(event["regarding"]["name"], "quake-0");
    assert_eq!(event["regarding"]["uid"], "8a1c");
    assert_eq!(event["reportingInstance"], "node-1");
    assert_eq!(event["type"], "Warning");
    let note = event["note"].as_str().unwrap();
    assert!(
        note.contains("uses 20 encoder units of GPU-0, and its slice has 13"),
        "{note}"
    );
}

#[tokio::test]
async fn an_event_that_was_refused_is_tried_again_later() {
    let api = ApiServer::start();
    api.cluster().refuse = Some(StatusCode::FORBIDDEN);
    let mut reporter = OveruseReporter::new(api.client(), &node());
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
    api.cluster().refuse = None;
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
    fn start(api: &ApiServer, state: NodeState) -> Self {
        let (states, seen) = watch::channel(state);
        let task = tokio::spawn(publish(api.client(), node(), seen));
        Self { states, task }
    }
}

/// The units that the last write says are taken.
fn newest(cluster: &Cluster) -> u64 {
    let units = |content: &Value| content["spec"]["gpus"][0]["allocated"][0]["nvenc"].as_u64();
    cluster
        .applied
        .last()
        .and_then(|(_, _, content)| units(content))
        .unwrap_or(0)
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
