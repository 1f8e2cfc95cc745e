use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::lobby::QueueView;

#[test]
fn a_pods_slice_shows_the_streamer_in_it() {
    let mut known = nothing();
    known.nodes = Heard::Now([("gpu-1".parse().unwrap(), l4(&[("b", 13), ("a", 3)]))].into());
    known.pods = Heard::Now(
        [
            ("uid-a".parse().unwrap(), at(1)),
            ("uid-x".parse().unwrap(), at(9)),
        ]
        .into(),
    );
    known.survey.streamers = vec![
        (at(1), status("one", "busy", 1)),
        (at(3), status("stray", "free", 0)),
        // The same address as a port of another pod's.
        (at(2), status("another", "free", 0)),
    ];
    let shown = serde_json::to_value(overview(&known)).unwrap();
    let gpu = &shown["nodes"][0]["gpus"][0];
    assert_eq!(
        gpu["slices"],
        json!([
            {
                "name": "a", "units": 3, "state": "playing",
                "streamer": {
                    "id": "one", "application": "chess", "stream": "1280x720@30", "units": 3, "players": 1,
                    "maxPlayers": 1, "away": 0, "viewers": 2,
                },
            },
            { "name": "b", "units": 13, "state": "reserved" },
        ])
    );
    assert_eq!(
        (&gpu["encoderUnits"], &gpu["reservedUnits"]),
        (&json!(50), &json!(16))
    );
    assert_eq!(gpu["encoderLoad"], json!({ "fromPercent": 40, "toPercent": 49 }));
    assert_eq!(gpu["encoderSessions"], 2);
    let names = shown["elsewhere"]
        .as_array()
        .unwrap()
        .iter()
        .map(|slice| &slice["name"]);
    assert_eq!(names.collect::<Vec<_>>(), ["another", "stray"]);
    assert_eq!(
        shown["totals"],
        json!({
            "gpus": 1, "encoderUnits": 50, "reservedUnits": 16, "streamers": 3, "free": 2, "players": 1, "away": 0,
            "viewers": 6,
        })
    );
}

#[test]
fn what_is_not_known_is_absent() {
    let shown = serde_json::to_value(overview(&nothing())).unwrap();
    assert_eq!(
        shown,
        json!({
            "totals": { "gpus": 0, "reservedUnits": 0, "streamers": 0, "free": 0, "players": 0, "away": 0, "viewers": 0 },
            "queue": { "waiting": 0 }, "nodes": [], "elsewhere": [], "silent": [],
        })
    );
    let mut known = nothing();
    known.slices = Heard::Once(vec![slice("running", 3)]);
    known.nodes = Heard::NotYet;
    let shown = serde_json::to_value(overview(&known)).unwrap();
    assert_eq!(shown["silent"], json!(["agent", "gpuNodes"]));
    let expected = json!({
        "gpus": [{
            "uuid": "CPU-0", "reservedUnits": 3, "problems": [],
            "slices": [{ "name": "s", "units": 3, "smPercent": 25, "vramMib": 512, "state": "reserved" }],
        }],
        "problems": [],
    });
    assert_eq!(
        shown["nodes"][0], expected,
        "an agent that has not told of its GPUs"
    );
    assert_eq!(shown["totals"]["encoderUnits"], Value::Null);
}

#[test]
fn the_agents_slices_are_on_its_gpus() {
    let mut known = nothing();
    known.gpus = vec![
        serde_json::from_value(json!({
            "uuid": "CPU-0", "model": "x264", "capacity": { "nvenc": 12 }, "free": { "nvenc": 6 },
            "unhealthy": { "mps": "its daemon does not answer" },
        }))
        .unwrap(),
    ];
    known.survey.streamers = vec![(at(7), status("one", "free", 0))];
    for (process, expected) in [
        ("starting", "starting"),
        ("running", "free"),
        ("backing-off", "reserved"),
        ("stopping", "draining"),
    ] {
        known.slices = Heard::Now(vec![slice(process, 3)]);
        let shown = serde_json::to_value(overview(&known)).unwrap();
        let gpu = &shown["nodes"][0]["gpus"][0];
        assert_eq!(gpu["slices"][0]["state"], expected, "{process}");
        assert_eq!(
            (&gpu["model"], &gpu["encoderUnits"]),
            (&json!("x264"), &json!(12))
        );
        assert_eq!(gpu["problems"], json!(["mps: its daemon does not answer"]));
        assert_eq!(shown["elsewhere"], json!([]));
        let note = gpu["slices"][0]["note"].as_str();
        assert_eq!(note.is_some(), process == "backing-off", "{note:?}");
    }
}

#[test]
fn a_streamer_of_several_plays_as_soon_as_one_does() {
    for (text, players, expected) in [
        ("starting", 0, State::Starting),
        ("free", 0, State::Free),
        ("free", 1, State::Playing),
        ("busy", 1, State::Playing),
        ("draining", 1, State::Draining),
    ] {
        assert_eq!(state(&status("s", text, players)), expected);
    }
}

#[test]
fn a_condition_that_does_not_hold_is_a_problem() {
    let mut spec = l4(&[]);
    for status in ["True", "False", "Unknown"] {
        let condition = json!({
            "type": "Healthy", "status": status, "reason": "Xid", "message": "XID 47", "lastTransitionTime": "",
        });
        spec.conditions.push(serde_json::from_value(condition).unwrap());
    }
    let mut known = nothing();
    known.nodes = Heard::Now([("n".parse().unwrap(), spec)].into());
    assert_eq!(overview(&known).nodes[0].problems, ["Not Healthy: XID 47"]);
}

#[test]
fn neither_sessions_nor_seats_nor_addresses_are_named() {
    let mut known = nothing();
    known.nodes = Heard::Now([("n".parse().unwrap(), l4(&[("a", 3)]))].into());
    known.pods = Heard::Now([("uid-a".parse().unwrap(), at(1))].into());
    known.survey.streamers = vec![
        (at(1), status("one", "busy", 1)),
        (at(2), status("two", "busy", 1)),
    ];
    known.turn = Some(vec![TurnStatus {
        urls: vec!["turn:198.51.100.7:3478".to_owned()],
        draining: false,
        allocations: 3,
        max_allocations: 10,
        bytes_per_second: 1000,
    }]);
    let text = serde_json::to_string(&overview(&known)).unwrap();
    assert!(
        text.contains(r#""turnServers":[{"draining":false,"allocations":3,"#),
        "{text}"
    );
    for secret in ["secret-session", "secret-seat", "10.0.0", "198.51", "192.0.2"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

#[test]
fn the_queue_is_told_in_seconds() {
    let mut known = nothing();
    known.survey.queue = QueueView {
        waiting: 2,
        longest_wait: Some(Duration::from_millis(61_900)),
        expected_wait_seconds: Some(120),
    };
    let shown = serde_json::to_value(overview(&known).queue).unwrap();
    assert_eq!(
        shown,
        json!({ "waiting": 2, "longestWaitSeconds": 61, "expectedWaitSeconds": 120 })
    );
}

fn nothing() -> Known {
    Known {
        survey: Survey::default(),
        slices: Heard::NotAsked,
        gpus: Vec::new(),
        pods: Heard::NotAsked,
        nodes: Heard::NotAsked,
        turn: None,
    }
}

fn at(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 9000))
}

fn status(id: &str, state: &str, players: u32) -> StreamerStatus {
    serde_json::from_value(json!({
        "streamerId": id, "state": state, "application": "chess", "sessionId": "secret-session", "players": players,
        "viewers": 2, "seats": ["secret-seat"], "units": 3, "mediaAddresses": ["192.0.2.1"],
        "stream": { "width": 1280, "height": 720, "fps": 30 },
    }))
    .unwrap()
}

fn slice(state: &str, units: u32) -> SliceStatus {
    serde_json::from_value(json!({
        "id": "s", "gpu": "CPU-0", "demand": { "nvenc": units, "mps": 25, "vram": 2 }, "state": state, "restarts": 0,
        "address": at(7),
    }))
    .unwrap()
}

fn l4(pods: &[(&str, u32)]) -> GpuNodeSpec {
    let held = pods.iter().map(|(pod, units)| {
        json!({ "namespace": "games", "pod": pod, "podUid": format!("uid-{pod}"), "nvenc": units })
    });
    let gpu = json!({
        "uuid": "GPU-0", "model": "NVIDIA L4", "capacity": { "nvenc": 50 },
        "allocated": held.collect::<Vec<_>>(),
        "measured": { "encoderLoadPercent": 40, "encoderSessions": 2 },
    });
    GpuNodeSpec::new(vec![serde_json::from_value(gpu).unwrap()], Vec::new())
}
