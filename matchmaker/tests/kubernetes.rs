//! What the matchmaker does with Kubernetes, on the stand-in or on a real one (`make test-cluster`). Its pods are run by
//! nobody: what they say of themselves is written by the stories, and their streamers are on this machine.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is their verdict")]

mod support;

use std::net::SocketAddr;
use std::path::Path;

use fake_kube::story::{Cluster, from, story};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use penstock_core::names::{ANNOTATION_DELETION_COST, ANNOTATION_SET, LABEL_STREAMER};
use serde_json::{Value, json};
use support::{KUBECONFIG, Matchmaker, StandIn, until};

#[tokio::test]
async fn pods_are_found_and_marked_until_they_are_not_ours_any_more() {
    story(async |cluster| {
        let streamers = [StandIn::start("one").await, StandIn::start("two").await];
        let pods = cluster.api::<Pod>();
        run_pod(&pods, "one", streamers[0].address).await;
        let door = matchmaker(&cluster, "penstock-matchmaker").await;
        until("the first is found", async || found(&door).await == ["one"]).await;
        run_pod(&pods, "two", streamers[1].address).await;
        until("so is the second", async || found(&door).await == ["one", "two"]).await;
        until("both are idle", async || costs(&pods).await == ["0", "0"]).await;

        let player = door.playing().await;
        until("one is dear", async || {
            let mut costs = costs(&pods).await;
            costs.sort();
            costs == ["0", "100"]
        })
        .await;
        player.leave().await;
        until("both are idle again", async || costs(&pods).await == ["0", "0"]).await;

        let other = Patch::Merge(json!({ "metadata": { "labels": { LABEL_STREAMER: null } } }));
        pods.patch("one", &PatchParams::default(), &other).await.unwrap();
        until("only the second is ours", async || found(&door).await == ["two"]).await;
        until("the first has nothing of us", async || {
            costs(&pods).await == ["none", "0"] && annotation(&pods, "one", ANNOTATION_SET).await.is_none()
        })
        .await;
        pods.delete("two", &DeleteParams::default().grace_period(0))
            .await
            .unwrap();
        until("there is none", async || found(&door).await.is_empty()).await;
    })
    .await;
}

#[tokio::test]
async fn one_of_several_holds_the_lease_and_gives_it_back() {
    story(async |cluster| {
        let streamer = StandIn::start("one").await;
        let pods = cluster.api::<Pod>();
        run_pod(&pods, "one", streamer.address).await;
        let leases = cluster.api::<Lease>();
        let holder = async || {
            let lease = leases.get_opt("penstock-matchmaker").await.unwrap();
            lease?.spec?.holder_identity
        };
        let mut first = matchmaker(&cluster, "first").await;
        until("the first holds it", async || holder().await.is_some()).await;
        let held = holder().await;
        let mut second = matchmaker(&cluster, "second").await;
        until("the second knows the pod", async || {
            found(&second).await == ["one"]
        })
        .await;
        until("the pod is idle", async || costs(&pods).await == ["0"]).await;
        assert_eq!(holder().await, held, "a second matchmaker does not take it");

        first.terminate();
        assert!(first.ended().await.success());
        until("the second holds it", async || {
            let now = holder().await;
            now.is_some() && now != held
        })
        .await;
        let _player = second.playing().await;
        until("it writes", async || costs(&pods).await == ["100"]).await;
        second.terminate();
        assert!(second.ended().await.success());
        assert_eq!(holder().await, None, "it was given back");
    })
    .await;
}

/// One with an account of its own, which may do what the role in the manifests says.
async fn matchmaker(cluster: &Cluster, account: &str) -> Matchmaker {
    let manifest = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../manifests/base/matchmaker/rbac.yaml"
    );
    let objects = fake_kube::objects(Path::new(manifest)).unwrap();
    let role = objects.iter().find(|object| object["kind"] == "Role").unwrap();
    let files = tempfile::tempdir().unwrap();
    let kubeconfig = files.path().join(KUBECONFIG);
    cluster
        .account_file(account, role["rules"].clone(), &kubeconfig)
        .await;
    Matchmaker::in_namespace(files, &cluster.namespace, &[]).await
}

/// A pod that no scheduler takes, and that says that it runs.
async fn run_pod(pods: &Api<Pod>, name: &str, address: SocketAddr) {
    let port = json!({ "name": "signalling", "containerPort": address.port() });
    let pod = json!({
        "metadata": { "name": name, "labels": { LABEL_STREAMER: "true" } },
        "spec": {
            "schedulerName": "nobody",
            "containers": [{ "name": "streamer", "image": "busybox:1", "ports": [port] }],
        },
    });
    pods.create(&PostParams::default(), &from(pod)).await.unwrap();
    let ip = address.ip();
    let status = json!({ "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] });
    let runs = Patch::Merge(json!({ "status": status }));
    pods.patch_status(name, &PatchParams::default(), &runs)
        .await
        .unwrap();
}

/// The streamers that it knows, by name.
async fn found(door: &Matchmaker) -> Vec<String> {
    let status = door.status().await;
    let streamers = status["streamers"].as_array().unwrap().iter();
    let name = |streamer: &Value| streamer["streamerId"].as_str().unwrap().to_owned();
    let mut names: Vec<_> = streamers.map(name).collect();
    names.sort();
    names
}

/// What it costs to delete each pod, in the order of their names.
async fn costs(pods: &Api<Pod>) -> Vec<String> {
    let list = pods.list(&kube::api::ListParams::default()).await.unwrap();
    let cost = |pod: Pod| pod.metadata.annotations?.remove(ANNOTATION_DELETION_COST);
    let costs = list.items.into_iter().map(cost);
    costs
        .map(|cost| cost.unwrap_or_else(|| "none".to_owned()))
        .collect()
}

async fn annotation(pods: &Api<Pod>, pod: &str, name: &str) -> Option<String> {
    pods.get(pod).await.unwrap().metadata.annotations?.remove(name)
}
