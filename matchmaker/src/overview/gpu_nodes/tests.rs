//! Against a stand-in API server, by the role in the manifests and nothing beyond.

use std::path::Path;
use std::time::Duration;

use fake_kube::FakeKube;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;

#[tokio::test]
async fn nodes_come_change_and_go() {
    let kube = cluster();
    node(&kube, "a", 50);
    let reader = Reader::start(&kube);
    reader
        .until("a is known", |heard| units(heard) == [("a", 50)])
        .await;
    node(&kube, "b", 60);
    reader
        .until("b is known", |heard| units(heard) == [("a", 50), ("b", 60)])
        .await;
    kube.edit("gpunodes", None, "a", |node| {
        node["spec"]["gpus"][0]["capacity"]["nvenc"] = json!(40);
    });
    kube.delete("gpunodes", None, "b");
    reader
        .until("both changed", |heard| units(heard) == [("a", 40)])
        .await;
    assert!(kube.requests().iter().all(|request| request.code != 403));
}

#[tokio::test]
async fn what_was_known_is_kept_while_no_api_server_answers() {
    let mut kube = cluster();
    node(&kube, "a", 50);
    let reader = Reader::start(&kube);
    reader
        .until("a is known", |heard| units(heard) == [("a", 50)])
        .await;
    kube.stop();
    reader.until("it is old", Heard::is_silent).await;
    assert_eq!(units(&reader.places.nodes.borrow()), [("a", 50)]);
    kube.resume();
    reader.until("it is fresh", |heard| !heard.is_silent()).await;
}

#[tokio::test]
async fn every_verb_of_the_role_is_needed() {
    let verbs = verbs(&cluster());
    assert_eq!(verbs.len(), 2);
    for verb in verbs {
        let kube = cluster();
        node(&kube, "a", 50);
        kube.edit("clusterroles", None, ROLE, |role| {
            let verbs = role["rules"][0]["verbs"].as_array_mut().unwrap();
            verbs.retain(|other| *other != verb);
        });
        let reader = Reader::start(&kube);
        kube.until("it is refused", |kube| {
            kube.requests().iter().any(|request| request.code == 403)
        })
        .await;
        reader.until("it is said", Heard::is_silent).await;
    }
}

struct Reader {
    places: Places,
    task: JoinHandle<()>,
}

impl Reader {
    fn start(kube: &FakeKube) -> Self {
        let places = Places::new(false, true);
        let client = kube.client("penstock", ROLE);
        let task = tokio::spawn(follow(client, places.clone()));
        Self { places, task }
    }

    async fn until(&self, what: &str, so: impl Fn(&Heard<Nodes>) -> bool) {
        let mut nodes = self.places.nodes.subscribe();
        let wait = nodes.wait_for(|heard| so(heard));
        let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(waited.is_ok(), "waited in vain until {what}");
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn cluster() -> FakeKube {
    let kube = FakeKube::start();
    kube.namespace("penstock");
    let manifests = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests"));
    kube.apply_manifests(&manifests.join("crd/gpunodes.yaml"));
    kube.apply_manifests(&manifests.join("base/matchmaker/rbac.yaml"));
    kube
}

fn node(kube: &FakeKube, name: &str, units: u32) {
    let gpu = json!({ "uuid": "GPU-0", "model": "NVIDIA L4", "capacity": { "nvenc": units } });
    kube.create(json!({
        "apiVersion": "penstock.dev/v1alpha1", "kind": "GpuNode", "metadata": { "name": name },
        "spec": { "summary": { "gpus": 1, "pods": 0 }, "gpus": [gpu] },
    }));
}

fn units(heard: &Heard<Nodes>) -> Vec<(&str, u32)> {
    let nodes = heard.last().into_iter().flatten();
    nodes
        .map(|(name, node)| (name.as_str(), node.gpus[0].capacity.nvenc.0))
        .collect()
}

fn verbs(kube: &FakeKube) -> Vec<Value> {
    let role = kube.get("clusterroles", None, ROLE).unwrap();
    assert_eq!(role["rules"].as_array().unwrap().len(), 1);
    role["rules"][0]["verbs"].as_array().unwrap().clone()
}

const ROLE: &str = "penstock-matchmaker";
