//! What a scheduler sees of it.

use std::time::{Duration, Instant};

use fake_kube::Fault;
use serde_json::{Value, json};

use crate::support::{Extender, PATIENCE, cluster, described, eventually, gpu_node, nvenc, pod};

const NODES: &[&str] = &["node-1", "node-2"];

#[tokio::test]
async fn a_pod_goes_to_the_fuller_node_and_carries_its_gpu() {
    let kube = cluster();
    let other = pod(&kube, "other", nvenc(50));
    kube.create(gpu_node("node-1", 2, &[]));
    kube.create(gpu_node("node-2", 1, &[(0, &other, 50)]));
    kube.create(gpu_node("node-3", 1, &[(0, &other, 120)]));
    let quake = pod(
        &kube,
        "quake",
        json!({ "penstock.dev/nvenc": "13", "penstock.dev/mps": "20" }),
    );
    let extender = Extender::ready(&kube).await;

    let nodes = ["node-1", "node-2", "node-3", "node-4"];
    let passed = extender.filter(&quake, &nodes).await;
    assert_eq!(passed["NodeNames"], json!(["node-1", "node-2"]));
    assert_eq!(
        passed["FailedNodes"],
        json!({ "node-3": "GPU-node-3-0: 4 of 124 encoder units free, 13 asked" })
    );
    let unknown = json!({ "node-4": "no GPU is known here: is penstock-plugin running on it?" });
    assert_eq!(passed["FailedAndUnresolvableNodes"], unknown);

    let scores = extender
        .ask("prioritize", &json!({ "Pod": quake, "NodeNames": NODES }))
        .await;
    assert_eq!(
        scores,
        json!([{ "Host": "node-1", "Score": 9 }, { "Host": "node-2", "Score": 10 }])
    );

    assert_eq!(extender.bind(&quake, "node-2").await, "");
    let bound = kube.get("pods", Some("games"), "quake").unwrap();
    assert_eq!(bound["spec"]["nodeName"], "node-2");
    assert_eq!(
        bound["metadata"]["annotations"]["penstock.dev/gpu"],
        "GPU-node-2-0"
    );
    let sent = kube.requests_to("create", "binding");
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].content["metadata"]["uid"], quake["metadata"]["uid"]);
    look_at_metrics(&extender).await;
}

/// After one filter of four nodes, one prioritize and one bind.
async fn look_at_metrics(extender: &Extender) {
    let packed = "packed{resource=\"nvenc\"}";
    let metric = async |name: &str| extender.metric(&format!("penstock_extender_{name}")).await;
    eventually("the metrics show the pod", async || {
        metric(packed).await == Some(183.0)
    })
    .await;
    let expected = [
        ("decisions_total{reason=\"nvenc\",verb=\"filter\"}", 1.0),
        ("decisions_total{reason=\"no_gpus\",verb=\"filter\"}", 1.0),
        ("decisions_total{reason=\"fits\",verb=\"filter\"}", 2.0),
        ("decisions_total{reason=\"bound\",verb=\"bind\"}", 1.0),
        ("request_seconds_count{verb=\"prioritize\"}", 1.0),
        ("free{resource=\"nvenc\"}", 4.0 * 124.0 - 183.0),
        ("knowledge_age_seconds{resource=\"pods\"}", 0.0),
    ];
    for (name, value) in expected {
        assert_eq!(metric(name).await, Some(value), "{name}");
    }
    let fragmentation = metric("fragmentation_ratio").await.unwrap();
    assert!(fragmentation > 0.0 && fragmentation < 1.0, "{fragmentation}");
}

#[tokio::test]
async fn a_pod_of_others_passes_untouched_even_before_anything_is_known() {
    let kube = cluster();
    kube.fail(Fault::refuse(500).on("list", "pods"));
    let extender = Extender::start(&kube);
    eventually("it serves", async || extender.look("/healthz").await.0 == 200).await;
    let web = described("web", json!({ "cpu": "1" }));
    assert_eq!(extender.filter(&web, NODES).await["NodeNames"], json!(NODES));
    let scores = extender
        .ask("prioritize", &json!({ "Pod": web, "NodeNames": NODES }))
        .await;
    assert_eq!(
        scores,
        json!([{ "Host": "node-1", "Score": 0 }, { "Host": "node-2", "Score": 0 }])
    );
    let victims = json!({ "node-1": { "Pods": [{ "UID": "u" }], "NumPDBViolations": 1 } });
    let answer = extender
        .ask(
            "preempt",
            &json!({ "Pod": web, "NodeNameToMetaVictims": victims }),
        )
        .await;
    assert_eq!(answer, json!({ "NodeNameToMetaVictims": victims }));
}

#[tokio::test]
async fn it_is_ready_once_all_is_listed_and_answers_nothing_before() {
    let kube = cluster();
    kube.create(gpu_node("node-1", 1, &[]));
    kube.fail(Fault::refuse(500).on("list", "gpunodes"));
    let extender = Extender::start(&kube);
    let told = "not ready: the API server has not told of gpunodes yet\n";
    eventually("the others are listed", async || {
        extender.look("/readyz").await == (503, told.to_owned())
    })
    .await;
    let ours = described("quake", nvenc(13));
    let (status, why) = extender
        .post(
            "filter",
            json!({ "Pod": with_uid(&ours), "NodeNames": NODES }).to_string(),
        )
        .await;
    assert_eq!(
        (status.as_u16(), &*why),
        (503, "the API server has not told of gpunodes yet: ask again\n")
    );
    let age = "penstock_extender_knowledge_age_seconds{resource=\"gpunodes\"}";
    eventually("its age grows", async || extender.metric(age).await > Some(1.0)).await;
    kube.heal();
    extender.until_ready().await;
    assert_eq!(
        extender.filter(&with_uid(&ours), &["node-1"]).await["NodeNames"],
        json!(["node-1"])
    );
    eventually("it knows", async || extender.metric(age).await == Some(0.0)).await;
}

#[tokio::test]
async fn a_restart_rebuilds_what_was_bound_and_what_was_promised() {
    let kube = cluster();
    kube.create(gpu_node("node-1", 1, &[]));
    let quake = pod(&kube, "quake", nvenc(100));
    let doom = pod(&kube, "doom", nvenc(30));
    let extender = Extender::ready(&kube).await;
    assert_eq!(extender.bind(&quake, "node-1").await, "");
    let full = json!({ "node-1": "GPU-node-1-0: 24 of 124 encoder units free, 30 asked" });
    assert_eq!(extender.filter(&doom, &["node-1"]).await["FailedNodes"], full);
    drop(extender);
    // No GpuNode has shown it yet.
    let again = Extender::ready(&kube).await;
    assert_eq!(again.filter(&doom, &["node-1"]).await["FailedNodes"], full);
    assert_eq!(
        again.bind(&quake, "node-1").await,
        "pod games/quake was put on node node-1 already"
    );
}

#[tokio::test]
async fn what_happens_while_no_watch_is_open_is_not_missed() {
    let mut kube = cluster();
    kube.create(gpu_node("node-1", 1, &[]));
    let quake = pod(&kube, "quake", nvenc(100));
    let doom = pod(&kube, "doom", nvenc(30));
    let extender = Extender::ready(&kube).await;
    assert_eq!(extender.bind(&quake, "node-1").await, "");
    let fits = async |extender: &Extender| {
        extender.filter(&doom, &["node-1"]).await["NodeNames"] == json!(["node-1"])
    };
    assert!(!fits(&extender).await);

    // A watch that just ends.
    kube.unseen(|kube| kube.finish("games", "quake"));
    eventually("its end is seen", async || fits(&extender).await).await;

    // One that can't be taken up where it ended: the list has no such pod any more.
    let quake = pod(&kube, "quake", nvenc(100));
    eventually("it is bound", async || {
        extender.bind(&quake, "node-1").await.is_empty()
    })
    .await;
    assert!(!fits(&extender).await);
    kube.unseen(|kube| {
        kube.finish("games", "quake");
        kube.compact();
    });
    eventually("its end is seen", async || fits(&extender).await).await;

    // And an API server that was away.
    kube.stop();
    kube.put(gpu_node("node-1", 1, &[(0, &quake, 100)]));
    kube.resume();
    eventually("the GpuNode is seen", async || !fits(&extender).await).await;
    kube.delete("gpunodes", None, "node-1");
    let gone = "no GPU is known here: is penstock-plugin running on it?";
    eventually("it is gone", async || {
        extender.filter(&doom, &["node-1"]).await["FailedAndUnresolvableNodes"]["node-1"] == gone
    })
    .await;
}

#[tokio::test]
async fn a_no_of_the_api_server_is_an_error_and_frees_the_place() {
    let kube = cluster();
    kube.create(gpu_node("node-1", 1, &[]));
    let quake = pod(&kube, "quake", nvenc(100));
    let extender = Extender::ready(&kube).await;
    for (code, kind) in [
        (409, "conflict"),
        (403, "api_error"),
        (429, "api_error"),
        (404, "gone"),
    ] {
        kube.fail(Fault::refuse(code).on("create", "pods").times(1));
        let error = extender.bind(&quake, "node-1").await;
        kube.heal();
        assert!(
            error.starts_with("binding pod games/quake") && error.contains(&code.to_string()),
            "{error}"
        );
        let series = format!("penstock_extender_decisions_total{{reason=\"{kind}\",verb=\"bind\"}}");
        assert!(extender.metric(&series).await >= Some(1.0), "{series}");
    }
    // The place is free again, and the pod can be bound.
    assert_eq!(extender.bind(&quake, "node-1").await, "");
}

#[tokio::test]
async fn a_pod_that_was_bound_or_replaced_behind_its_back_is_not_bound_again() {
    let kube = cluster();
    kube.create(gpu_node("node-1", 1, &[]));
    let quake = pod(&kube, "quake", nvenc(13));
    let extender = Extender::ready(&kube).await;
    // Its successor has the same name.
    kube.unseen(|kube| {
        kube.finish("games", "quake");
        pod(kube, "quake", nvenc(13));
    });
    let error = extender.bind(&quake, "node-1").await;
    assert!(error.contains("409") || error.contains("is not known"), "{error}");
    let successor = kube.get("pods", Some("games"), "quake").unwrap();
    assert_eq!(successor["spec"]["nodeName"], Value::Null);
    assert_eq!(extender.bind(&successor, "node-1").await, "");
    let error = extender.bind(&successor, "node-1").await;
    assert_eq!(error, "pod games/quake was put on node node-1 already");
    assert_eq!(
        kube.requests_to("create", "binding")
            .iter()
            .filter(|request| request.code == 201)
            .count(),
        1
    );
}

#[tokio::test]
async fn a_binding_without_answer_is_sent_again_until_there_is_one() {
    let kube = cluster();
    kube.create(gpu_node("node-1", 1, &[]));
    let quake = pod(&kube, "quake", nvenc(100));
    let extender = Extender::ready(&kube).await;
    kube.fail(Fault::refuse(503).on("create", "pods").times(2));
    assert_eq!(extender.bind(&quake, "node-1").await, "");
    kube.heal();
    let codes: Vec<_> = kube
        .requests_to("create", "binding")
        .iter()
        .map(|request| request.code)
        .collect();
    assert_eq!(codes, [503, 503, 201]);
    assert_eq!(
        kube.get("pods", Some("games"), "quake").unwrap()["spec"]["nodeName"],
        "node-1"
    );
}

#[tokio::test]
async fn a_pod_that_the_kubelet_could_confuse_waits_for_the_one_before() {
    let kube = cluster();
    kube.create(gpu_node("node-1", 2, &[]));
    // They ask for the same, and one GPU has not room for both.
    let first = pod(&kube, "first", nvenc(70));
    let second = pod(&kube, "second", nvenc(70));
    let extender = Extender::ready(&kube).await;
    assert_eq!(extender.bind(&first, "node-1").await, "");
    let since = Instant::now();
    let error = extender.bind(&second, "node-1").await;
    assert!(
        error.contains("node node-1 is still taking in games/first"),
        "{error}"
    );
    assert!(since.elapsed() >= Duration::from_secs(2), "{:?}", since.elapsed());

    // While it waits, the GpuNode shows the first: then it goes through at once.
    let shown = gpu_node("node-1", 2, &[(0, &first, 70)]);
    let show = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        kube.put(shown);
    };
    let (error, ()) = tokio::join!(extender.bind(&second, "node-1"), show);
    assert_eq!(error, "");
    let gpu = |name: &str| {
        kube.get("pods", Some("games"), name).unwrap()["metadata"]["annotations"]["penstock.dev/gpu"].clone()
    };
    assert_eq!([gpu("first"), gpu("second")], ["GPU-node-1-0", "GPU-node-1-1"]);
    assert!(since.elapsed() < PATIENCE);
}

#[tokio::test]
async fn victims_are_of_one_gpu_and_budgets_are_counted() {
    let kube = cluster();
    let low = |name: &str| {
        let mut pod = described(name, nvenc(60));
        pod["spec"]["nodeName"] = json!("node-1");
        pod["metadata"]["labels"] = json!({ "app": "quake" });
        pod["metadata"]["annotations"] =
            json!({ "controller.kubernetes.io/pod-deletion-cost": if name == "busy" { "100" } else { "0" } });
        kube.create(pod)
    };
    let (idle, busy) = (low("idle"), low("busy"));
    kube.create(gpu_node("node-1", 1, &[(0, &idle, 60), (0, &busy, 60)]));
    kube.create(json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": "keep", "namespace": "games" },
        "spec": { "selector": { "matchLabels": { "app": "quake" } } },
        "status": { "disruptionsAllowed": 0, "currentHealthy": 2, "desiredHealthy": 2, "expectedPods": 2 },
    }));
    let mut vip = described("vip", nvenc(50));
    vip["spec"]["priority"] = json!(1000);
    let vip = kube.create(vip);
    let extender = Extender::ready(&kube).await;
    let both = json!([{ "UID": idle["metadata"]["uid"] }, { "UID": busy["metadata"]["uid"] }]);
    let proposed = json!({ "node-1": { "Pods": both, "NumPDBViolations": 0 }, "node-2": { "Pods": both, "NumPDBViolations": 0 } });
    let answer = extender
        .ask(
            "preempt",
            &json!({ "Pod": vip, "NodeNameToVictims": null, "NodeNameToMetaVictims": proposed }),
        )
        .await;
    let expected =
        json!({ "node-1": { "Pods": [{ "UID": idle["metadata"]["uid"] }], "NumPDBViolations": 1 } });
    assert_eq!(answer, json!({ "NodeNameToMetaVictims": expected }));
    assert_eq!(
        extender
            .metric("penstock_extender_decisions_total{reason=\"no_help\",verb=\"preempt\"}")
            .await,
        Some(1.0)
    );
}

#[tokio::test]
async fn it_ends_well_when_told_to() {
    let kube = cluster();
    let mut extender = Extender::ready(&kube).await;
    let status = extender.end();
    assert!(status.success(), "{status}");
}

fn with_uid(pod: &Value) -> Value {
    let mut pod = pod.clone();
    pod["metadata"]["uid"] = json!("u");
    pod
}
