//! A stand-in for a cluster, with the role of the manifests.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use fake_kube::FakeKube;
use penstock_core::names::{ANNOTATION_DELETION_COST, LABEL_STREAMER};
use serde_json::{Value, json};

use super::PATIENCE;

pub(crate) fn cluster() -> FakeKube {
    let kube = FakeKube::start();
    kube.namespace("penstock");
    let manifests = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../manifests/base/matchmaker/rbac.yaml"
    );
    kube.apply_manifests(Path::new(manifests));
    kube.create(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" } }));
    kube
}

pub(crate) fn run_pod(kube: &FakeKube, name: &str, address: SocketAddr) {
    let port = json!({ "name": "signalling", "containerPort": address.port() });
    kube.create(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "penstock", "name": name, "labels": { LABEL_STREAMER: "true" } },
        "spec": { "nodeName": "node-1", "containers": [{ "name": "streamer", "image": "x", "ports": [port] }] },
        "status": { "phase": "Running", "podIP": address.ip() },
    }));
}

pub(crate) fn costs(kube: &FakeKube) -> Vec<String> {
    let cost = |pod: &Value| {
        let cost = &pod["metadata"]["annotations"][ANNOTATION_DELETION_COST];
        cost.as_str().unwrap_or("none").to_owned()
    };
    kube.list("pods").iter().map(cost).collect()
}

pub(crate) async fn until(what: &str, so: impl AsyncFn() -> bool) {
    let wait = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(2 * PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("waited in vain until {what}"));
}
