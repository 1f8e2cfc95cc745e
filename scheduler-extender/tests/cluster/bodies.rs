//! Bodies as a kube-scheduler sends them, and bodies that nobody should send.

use std::path::Path;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{Extender, cluster, gpu_node};

#[tokio::test]
async fn bodies_in_the_schedulers_shape_are_answered_in_its_keys() {
    understands(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bodies"))).await;
}

/// Those that were taken from a real scheduler, where they are at hand.
#[tokio::test]
async fn bodies_of_a_real_scheduler_are_answered_in_its_keys() {
    match std::env::var_os("PENSTOCK_KUBERNETES_FIXTURES") {
        Some(directory) => understands(Path::new(&directory)).await,
        None => eprintln!(
            "SKIPPED: PENSTOCK_KUBERNETES_FIXTURES names no directory with bodies of a real scheduler"
        ),
    }
}

async fn understands(directory: &Path) {
    let body = |verb: &str| -> Value {
        let file = directory.join(format!("extender-{verb}.json"));
        serde_json::from_slice(
            &std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())),
        )
        .unwrap()
    };
    let kube = cluster();
    let filter = body("filter");
    let nodes: Vec<_> = filter["NodeNames"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    nodes
        .iter()
        .for_each(|node| drop(kube.create(gpu_node(node, 1, &[]))));
    let extender = Extender::ready(&kube).await;

    let none = json!({});
    let all = json!({
        "Nodes": null, "NodeNames": nodes, "FailedNodes": none, "FailedAndUnresolvableNodes": none, "Error": "",
    });
    assert_eq!(extender.ask("filter", &filter).await, all);
    let scores = extender.ask("prioritize", &body("prioritize")).await;
    assert_eq!(
        scores,
        json!([{ "Host": nodes[0], "Score": 10 }, { "Host": nodes[1], "Score": 9 }])
    );
    let bind = body("bind");
    let unknown = extender.ask("bind", &bind).await;
    let expected = format!(
        "pod {} is not known: it was deleted, or the API server has not told of it yet",
        bind["PodUID"].as_str().unwrap()
    );
    assert_eq!(unknown, json!({ "Error": expected }));
    // None of its victims is known here, so all of them may be needed for other reasons.
    let preempt = body("preempt");
    let victims = extender.ask("preempt", &preempt).await;
    assert_eq!(
        victims,
        json!({ "NodeNameToMetaVictims": preempt["NodeNameToMetaVictims"] })
    );
}

#[tokio::test]
async fn a_body_that_is_none_is_refused_with_the_reason_and_the_extender_lives() {
    let kube = cluster();
    kube.create(gpu_node("node-1", 1, &[]));
    let extender = Extender::ready(&kube).await;
    let pod = json!({ "metadata": { "uid": "u" }, "spec": { "containers": [
        { "name": "c", "resources": { "limits": { "penstock.dev/nvenc": "13" } } },
    ] } });
    let cases = bad_bodies(&pod);
    let count = cases.iter().filter(|(verb, ..)| *verb == "filter").count();
    for (verb, body, status, reason) in cases {
        let shown: String = body.chars().take(60).collect();
        let (got, text) = extender.post(verb, body).await;
        assert_eq!(
            got,
            StatusCode::from_u16(status).unwrap(),
            "{verb} {shown}: {text}"
        );
        assert!(text.starts_with(reason), "{verb} {shown}: {text}");
    }
    let counted = extender
        .metric("penstock_extender_bad_requests_total{verb=\"filter\"}")
        .await;
    assert_eq!(counted, Some(count as f64));
    assert_eq!(
        extender.filter(&pod, &["node-1"]).await["NodeNames"],
        json!(["node-1"])
    );
}

/// Verb, body, and what is answered: a status, and a text that begins so.
fn bad_bodies(pod: &Value) -> Vec<(&'static str, String, u16, &'static str)> {
    let mut half = pod.clone();
    half["spec"]["containers"][0]["resources"]["limits"]["penstock.dev/nvenc"] = json!("1500m");
    let args = |pod: &Value, names: Value| json!({ "Pod": pod, "NodeNames": names }).to_string();
    vec![
        ("filter", String::new(), 400, NO_END),
        ("filter", "{\"Pod\": ".to_owned(), 400, NO_END),
        (
            "filter",
            "\u{0}".to_owned(),
            400,
            "the body is no JSON: expected value",
        ),
        ("prioritize", "[]".to_owned(), 422, SHAPE),
        ("prioritize", "null".to_owned(), 422, SHAPE),
        ("filter", args(&Value::Null, json!([])), 422, SHAPE),
        ("filter", args(pod, json!([7])), 422, SHAPE),
        ("filter", args(pod, json!(["no name"])), 422, SHAPE),
        ("filter", args(pod, Value::Null), 422, "NodeNames is null: "),
        (
            "filter",
            args(&half, json!(["node-1"])),
            422,
            "pod /: penstock.dev/nvenc of container c is no whole number",
        ),
        (
            "bind",
            "{}".to_owned(),
            422,
            "the body is not what a scheduler sends: missing field `PodName`",
        ),
        ("preempt", "7".to_owned(), 422, SHAPE),
        (
            "filter",
            " ".repeat((8 << 20) + 1),
            413,
            "the body is longer than 8388608 bytes",
        ),
        // Deep nesting must not overflow the stack.
        (
            "filter",
            format!("{{\"Pod\":{{\"metadata\":{}", "[".repeat(1 << 20)),
            422,
            "",
        ),
    ]
}

const NO_END: &str = "the body is no JSON: EOF";
const SHAPE: &str = "the body is not what a scheduler sends: ";
