//! A cluster as its administrator has set it up for the agent, with the manifests of this repository.

use std::path::Path;

use fake_kube::FakeKube;
use kube::Client;
use serde_json::json;

/// A cluster with a node `node-1` and the namespace `games`.
pub(crate) fn cluster() -> FakeKube {
    let kube = FakeKube::start();
    apply_manifests(&kube);
    add_node(&kube);
    kube.namespace("games");
    kube
}

/// Applies what the agent needs, as far as it is not there.
pub(crate) fn apply_manifests(kube: &FakeKube) {
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/base/plugin");
    kube.apply_manifests(Path::new(manifests));
}

pub(crate) fn add_node(kube: &FakeKube) {
    kube.create(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" } }));
}

/// What the agent has: it may do what its role says, and no more.
pub(crate) fn client(kube: &FakeKube) -> Client {
    kube.client("penstock", "penstock-plugin")
}
