//! The recording rules in the manifests, as Prometheus' own tool computes them.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is their verdict")]

use std::path::Path;
use std::process::Command;

use penstock_core::metrics::{
    MATCHMAKER_CAPACITY, MATCHMAKER_DEMAND, MATCHMAKER_PLAYERS, MATCHMAKER_QUEUE, MATCHMAKER_STREAMERS,
};
use serde_json::{Value, json};

#[test]
fn the_rules_are_what_prometheus_takes() {
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("rules.yaml"), rules().to_string()).unwrap();
    let said = promtool(files.path(), &["check", "rules", "rules.yaml"]);
    assert!(said.contains("4 rules found"), "{said}");
}

#[test]
fn queues_add_up_and_streamers_count_once() {
    let one = replica(
        "a",
        &[(MATCHMAKER_QUEUE.name, 2), (MATCHMAKER_PLAYERS.name, 5)],
        3,
        10,
    );
    // It has just started, and has heard of half of the streamers.
    let other = replica(
        "b",
        &[(MATCHMAKER_QUEUE.name, 4), (MATCHMAKER_PLAYERS.name, 4)],
        1,
        5,
    );
    expect(
        &[one, other].concat(),
        &[
            ("player_stream_pool_ratio", 0.9),
            ("stream_player_connections", 9.0),
            ("pixelstream_player_queue_count", 6.0),
            ("pixelstream_available_count", 7.0),
        ],
    );
}

#[test]
fn without_streamers_the_ratio_is_a_number() {
    let idle = replica(
        "a",
        &[(MATCHMAKER_QUEUE.name, 0), (MATCHMAKER_PLAYERS.name, 0)],
        0,
        0,
    );
    expect(&idle, &[("player_stream_pool_ratio", 0.0)]);
    let crowd = replica(
        "a",
        &[(MATCHMAKER_QUEUE.name, 3), (MATCHMAKER_PLAYERS.name, 3)],
        0,
        0,
    );
    expect(&crowd, &[("player_stream_pool_ratio", 3.0)]);
}

/// The series of one replica that knows so many streamers.
fn replica(pod: &str, own: &[(&str, u32)], taken: u32, streamers: u32) -> Vec<Value> {
    let free = format!("{}{{state=\"free\"", MATCHMAKER_STREAMERS.name);
    let busy = format!("{}{{state=\"busy\"", MATCHMAKER_STREAMERS.name);
    let labels = format!("namespace=\"games\",job=\"games/door\",pod=\"{pod}\"}}");
    let plain = own
        .iter()
        .copied()
        .chain([
            (MATCHMAKER_DEMAND.name, taken),
            (MATCHMAKER_CAPACITY.name, streamers),
        ])
        .map(|(name, value)| (format!("{name}{{{labels}"), value));
    let states = [(free, streamers - taken), (busy, taken)];
    let states = states.map(|(name, value)| (format!("{name},{labels}"), value));
    plain
        .chain(states)
        .map(|(series, value)| json!({ "series": series, "values": format!("{value}x5") }))
        .collect()
}

/// What the rules record of these series.
fn expect(series: &[Value], recorded: &[(&str, f64)]) {
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("rules.yaml"), rules().to_string()).unwrap();
    let sample = |name: &str, value: f64| {
        let labels = format!("{name}{{namespace=\"games\",job=\"games/door\"}}");
        json!({ "expr": name, "eval_time": "2m", "exp_samples": [{ "labels": labels, "value": value }] })
    };
    let tests: Vec<_> = recorded
        .iter()
        .map(|(name, value)| sample(name, *value))
        .collect();
    let test = json!({
        "rule_files": ["rules.yaml"], "evaluation_interval": "30s",
        "tests": [{ "interval": "30s", "input_series": series, "promql_expr_test": tests }],
    });
    std::fs::write(files.path().join("test.yaml"), test.to_string()).unwrap();
    promtool(files.path(), &["test", "rules", "test.yaml"]);
}

/// The manifest's groups, as a file of rules. JSON is YAML.
fn rules() -> Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../manifests/base/matchmaker/rules.yaml"
    );
    let text = std::fs::read_to_string(path).unwrap();
    let manifest: Value = serde_yaml_ng::from_str(&text).unwrap();
    assert_eq!(manifest["kind"], "PrometheusRule");
    json!({ "groups": manifest["spec"]["groups"] })
}

/// Prometheus' tool, from Debian's package prometheus.
fn promtool(files: &Path, args: &[&str]) -> String {
    let output = Command::new("promtool").args(args).current_dir(files).output();
    let output = output.expect("promtool is missing: run scripts/setup");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{said}");
    said
}
