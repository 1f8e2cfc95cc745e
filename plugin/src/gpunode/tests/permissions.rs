//! That the role in the manifests is what the agent needs, and nothing beyond.

use std::time::{Duration, Instant};

use fake_kube::FakeKube;
use penstock_core::ids::{NodeName, PodUid};
use penstock_core::units::EncoderUnits;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::super::overuse::QUIET;
use super::super::{Overuse, OveruseReporter, PodRef, publish};
use super::cluster::{client, cluster};
use super::support::{taken, uuid};
use crate::pods;

#[tokio::test]
async fn the_role_is_enough() {
    let kube = cluster();
    let _agent = everything(&kube);
    let is_done = |kube: &FakeKube| {
        kube.list("gpunodes").len() == 1
            && kube.requests_to("patch", "events").len() == 1
            && !kube.requests_to("watch", "pods").is_empty()
    };
    kube.until("all is done", is_done).await;
    assert_eq!(refused(&kube), 0);
}

#[tokio::test]
async fn without_any_verb_of_the_role_something_is_refused() {
    let granted = verbs(&cluster());
    assert_eq!(granted.len(), 7, "{granted:?}");
    for (rule, verb) in granted {
        let kube = cluster();
        let what = format!(
            "a role without {verb} on {}",
            kube.get("clusterroles", None, ROLE).unwrap()["rules"][rule]["resources"]
        );
        kube.edit("clusterroles", None, ROLE, |role| {
            let verbs = role["rules"][rule]["verbs"].as_array_mut().unwrap();
            verbs.retain(|other| *other != *verb);
            // A rule without verbs is none.
            if verbs.is_empty() {
                role["rules"].as_array_mut().unwrap().remove(rule);
            }
        });
        let _agent = everything(&kube);
        kube.until(&format!("something is refused to {what}"), |kube| {
            refused(kube) > 0
        })
        .await;
    }
}

/// Does all that the agent ever asks of an API server, until dropped.
fn everything(kube: &FakeKube) -> JoinSet<()> {
    let node = NodeName::new("node-1").unwrap();
    let mut tasks = JoinSet::new();
    let (events, mut seen) = mpsc::channel(16);
    let (watcher, of) = (client(kube), node.clone());
    tasks.spawn(async move { pods::watch(watcher, &of, events).await });
    tasks.spawn(async move { while seen.recv().await.is_some() {} });
    let (states, state) = watch::channel(taken(1));
    let publishing = publish(client(kube), node.clone(), state);
    tasks.spawn(async move {
        let _open = states;
        publishing.await;
    });
    let mut reporter = OveruseReporter::new(client(kube), &node);
    tasks.spawn(async move {
        let now = Instant::now();
        for at in [now, now + QUIET] {
            let _ = reporter.report(at, &pod(), &overuse()).await;
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
    });
    tasks
}

/// Each verb of each rule of the role.
fn verbs(kube: &FakeKube) -> Vec<(usize, String)> {
    let role = kube.get("clusterroles", None, ROLE).unwrap();
    let text = |verb: &Value| verb.as_str().unwrap().to_owned();
    let of_rule = |(index, rule): (usize, &Value)| {
        assert_eq!(
            rule["resources"].as_array().unwrap().len(),
            1,
            "one resource each, so that each verb counts"
        );
        assert_ne!(rule["resources"][0], json!("*"));
        rule["verbs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|verb| (index, text(verb)))
            .collect::<Vec<_>>()
    };
    role["rules"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .flat_map(of_rule)
        .collect()
}

fn refused(kube: &FakeKube) -> usize {
    kube.requests()
        .iter()
        .filter(|request| request.code == 403)
        .count()
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

const ROLE: &str = "penstock-plugin";
