//! The agent as its users meet it: the real program over its socket, with a stand-in for the streamer.

#![allow(clippy::unwrap_used)] // Here a panic is a failed test.

mod common;

use std::time::{Duration, Instant};

use common::{Agent, Place, eventually};
use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::{Value, json};

#[tokio::test]
async fn slices_are_listed_started_and_ended() {
    let agent = Agent::start(&["--units", "10"]).await;
    let gpus = agent.get("/v1/gpus").await;
    assert_eq!(gpus[0]["free"], json!({"nvenc": 10, "mps": 0, "vram": 0}));
    assert!(gpus[0]["uuid"].as_str().unwrap().starts_with("CPU-"));

    let (status, slice) = agent
        .post(json!({"demand": {"nvenc": 7}, "streamerArgs": ["--source", "test"]}))
        .await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(
        (&slice["id"], &slice["state"]),
        (&json!("slice-1"), &json!("starting"))
    );
    let slice = agent.running("slice-1").await;
    let said = agent.said_by_streamer(&slice).await;
    assert_eq!(said["env"]["PENSTOCK_NVENC_UNITS"], "7");
    assert_eq!(said["env"]["PENSTOCK_SLICE"], "slice-1");
    assert_eq!(said["env"]["PENSTOCK_GPU"], gpus[0]["uuid"]);
    assert_eq!(said["env"].get("PENSTOCK_VRAM_BYTES"), None);
    assert_eq!(
        said["args"],
        json!(["--listen", slice["address"], "--source", "test"])
    );
    assert_eq!(agent.get("/v1/gpus").await[0]["free"]["nvenc"], 3);
    assert_eq!(agent.get("/v1/slices/slice-1").await, slice);

    assert_eq!(agent.delete("slice-1").await, StatusCode::NO_CONTENT);
    assert_eq!(agent.place.streamers(), Vec::<i32>::new());
    assert_eq!(agent.get("/v1/slices").await, json!([]));
    assert_eq!(agent.get("/v1/gpus").await[0]["free"]["nvenc"], 10);
}

#[tokio::test]
async fn a_killed_streamer_is_started_again_and_what_it_left_is_swept() {
    let agent = Agent::start(&[
        "--units",
        "10",
        "--slices",
        "2",
        "--slice-units",
        "3",
        "--",
        "--leave",
    ])
    .await;
    let first = agent.running("slice-1").await;
    let other = agent.running("slice-2").await;
    eventually("each streamer has started its own process", || {
        (agent.place.lingering().len() == 2).then_some(())
    })
    .await;
    let killed = Instant::now();
    common::kill(&first["pid"], Signal::KILL);
    let again = loop {
        let slice = agent.get("/v1/slices/slice-1").await;
        if slice["restarts"] == 1 {
            break slice;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(
        killed.elapsed() < Duration::from_secs(5),
        "{:?}",
        killed.elapsed()
    );
    assert_eq!(again["lastExit"], "killed by signal 9");
    let again = agent.running("slice-1").await;
    assert_ne!(again["pid"], first["pid"]);
    assert_eq!(
        agent.get("/v1/slices/slice-2").await,
        other,
        "the other slice was touched"
    );
    eventually("two streamers have one process each", || {
        (agent.place.lingering().len() == 2).then_some(())
    })
    .await;
    agent.ends_and_leaves_nothing(Signal::TERM).await;
}

#[tokio::test]
async fn nothing_is_left_when_the_agent_is_told_to_end() {
    let agent = Agent::start(&["--units", "10", "--slices", "2", "--", "--leave"]).await;
    agent.running("slice-1").await;
    agent.running("slice-2").await;
    let socket = agent.place.socket();
    agent.ends_and_leaves_nothing(Signal::TERM).await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn nothing_is_left_when_the_agent_is_killed() {
    let agent = Agent::start(&["--units", "10", "--slices", "2", "--", "--leave"]).await;
    agent.running("slice-1").await;
    agent.running("slice-2").await;
    agent.ends_and_leaves_nothing(Signal::KILL).await;
}

#[tokio::test]
async fn streamers_that_ignore_sigterm_are_killed_after_the_grace() {
    let agent = Agent::start(&[
        "--units", "10", "--grace", "1", "--slices", "2", "--", "--deaf", "--leave",
    ])
    .await;
    agent.running("slice-1").await;
    agent.running("slice-2").await;
    agent.ends_and_leaves_nothing(Signal::INT).await;
}

#[tokio::test]
async fn a_dead_agents_socket_is_taken_over() {
    let agent = Agent::start(&["--units", "10"]).await;
    let place = agent.ends_and_leaves_nothing(Signal::KILL).await;
    assert!(place.socket().exists());
    let agent = Agent::start_in(place, &["--units", "4"]).await;
    assert_eq!(agent.get("/v1/gpus").await[0]["capacity"]["nvenc"], 4);
}

#[tokio::test]
async fn a_second_agent_on_the_same_socket_is_told_so() {
    let agent = Agent::start(&["--units", "10"]).await;
    let (status, said) = agent.place.run(&["standalone", "--units", "5"]).await;
    assert!(!status.success());
    assert!(
        said.contains("already: end it, or choose another --socket"),
        "{said}"
    );
    assert_eq!(agent.get("/v1/gpus").await[0]["capacity"]["nvenc"], 10);
}

#[tokio::test]
async fn a_streamer_that_refuses_its_slice_says_why() {
    let agent = Agent::start(&["--units", "10"]).await;
    agent
        .post(json!({"demand": {"nvenc": 3}, "streamerArgs": ["--fail"]}))
        .await;
    let why = "exited with status 2: error: 1080p60 takes 13 encoder units, the slice has 3";
    let slice = agent
        .slice_when("slice-1", |slice| {
            slice["lastExit"] == why && slice["state"] == "backing-off"
        })
        .await;
    assert_eq!(slice.get("address"), None);
    let (_, table) = agent.place.run(&["slices"]).await;
    assert!(table.contains("backing off") && table.contains(why), "{table}");
    assert_eq!(agent.delete("slice-1").await, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_in_words() {
    let agent = Agent::start(&["--units", "10"]).await;
    let unknown = json!({"demand": {"nvenc": 3}, "streamer_args": []});
    let refusals: [(String, StatusCode, &str); 8] = [
        ("{\"demand\":".to_owned(), StatusCode::BAD_REQUEST, "not JSON"),
        (
            unknown.to_string(),
            StatusCode::UNPROCESSABLE_ENTITY,
            "streamer_args",
        ),
        (
            json!({"id": "a b", "demand": {}}).to_string(),
            StatusCode::UNPROCESSABLE_ENTITY,
            "slice name",
        ),
        (
            json!({"demand": {}}).to_string(),
            StatusCode::UNPROCESSABLE_ENTITY,
            "asks for nothing",
        ),
        (
            json!({"demand": {"nvenc": 11}}).to_string(),
            StatusCode::CONFLICT,
            "10 encoder units free",
        ),
        (
            json!({"demand": {"nvenc": 1, "mps": 5}}).to_string(),
            StatusCode::CONFLICT,
            "5 % of the SMs",
        ),
        (
            json!({"demand": {"nvenc": 1, "vram": 1}}).to_string(),
            StatusCode::CONFLICT,
            "video memory",
        ),
        ("x".repeat(100_000), StatusCode::PAYLOAD_TOO_LARGE, "65536 bytes"),
    ];
    for (body, expected, why) in refusals {
        let (status, problem) = agent.post_text(body).await;
        let error = problem["error"].as_str().unwrap();
        assert_eq!(status, expected, "{error}");
        assert!(error.contains(why), "{error}");
    }
    agent.post(json!({"id": "a", "demand": {"nvenc": 1}})).await;
    let (status, problem) = agent.post(json!({"id": "a", "demand": {"nvenc": 1}})).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(problem["error"].as_str().unwrap().contains("exists already"));
    assert_eq!(agent.delete("nobody").await, StatusCode::NOT_FOUND);
    for path in ["/v1/slices/nobody", "/v1/slices/a%20b", "/v2"] {
        let problem = agent.get(path).await;
        assert!(problem["error"].is_string(), "{path}: {problem}");
    }
    assert_eq!(agent.get("/v1/gpus").await[0]["free"]["nvenc"], 9);
}

#[tokio::test]
async fn events_tell_every_change() {
    let agent = Agent::start(&["--units", "10"]).await;
    let mut events = agent.events().await;
    assert_eq!(events.next().await, json!([]));
    agent.post(json!({"id": "a", "demand": {"nvenc": 3}})).await;
    let running = |event: &Value| event[0]["state"] == "running" && event[0]["address"].is_string();
    events.until(running).await;
    agent.delete("a").await;
    events.until(|event| *event == json!([])).await;
}

#[tokio::test]
async fn start_up_slices_that_do_not_fit_start_nothing() {
    let place = Place::new();
    let args = [
        "standalone",
        "--units",
        "10",
        "--slices",
        "2",
        "--slice-units",
        "7",
    ];
    let (status, said) = place.run(&args).await;
    assert!(!status.success());
    for part in ["slice 2 of 2", "3 encoder units free", "--slice-units", "--units"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    assert_eq!(place.streamers(), Vec::<i32>::new());
}

#[tokio::test]
async fn capacity_is_measured_unless_it_is_told() {
    let agent = Agent::start(&["--headroom", "70"]).await;
    assert_eq!(agent.get("/v1/gpus").await[0]["capacity"]["nvenc"], 7);

    let mut place = Place::new();
    place.set("STAND_IN_CALIBRATES", "badly");
    let (status, said) = place.run(&["standalone"]).await;
    assert!(!status.success());
    assert!(
        said.contains("--units N") && said.contains("exited with status 1"),
        "{said}"
    );

    let (status, said) = place
        .run(&["standalone", "--streamer", "/nowhere/streamer"])
        .await;
    assert!(!status.success());
    assert!(
        said.contains("no streamer program at /nowhere/streamer"),
        "{said}"
    );
}

#[tokio::test]
async fn capacity_in_the_configuration_is_neither_measured_nor_reduced() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugin.yaml");
    std::fs::write(&file, "headroomPercent: 10\nsoftware: { nvenc: 9 }\n").unwrap();
    let file = file.to_str().unwrap();
    let agent = Agent::start(&["--config", file]).await;
    assert_eq!(agent.get("/v1/gpus").await[0]["capacity"]["nvenc"], 9);
    let told = Agent::start(&["--config", file, "--units", "4"]).await;
    assert_eq!(told.get("/v1/gpus").await[0]["capacity"]["nvenc"], 4);
}

#[tokio::test]
async fn the_command_line_starts_lists_and_ends_slices() {
    let agent = Agent::start(&["--units", "10"]).await;
    let start = [
        "slice", "start", "--id", "game", "--units", "3", "--", "--source", "test",
    ];
    let (status, table) = agent.place.run(&start).await;
    assert!(status.success() && table.contains("game"), "{table}");
    agent.running("game").await;
    let (_, table) = agent.place.run(&["slices"]).await;
    assert!(table.contains("SLICE") && table.contains("running"), "{table}");
    let (status, said) = agent.place.run(&["slice", "end", "game"]).await;
    assert!(status.success(), "{said}");
    assert_eq!(agent.place.streamers(), Vec::<i32>::new());
    let (status, said) = agent.place.run(&["slice", "end", "game"]).await;
    assert!(
        !status.success() && said.contains("no slice named \"game\""),
        "{said}"
    );
}

#[tokio::test]
async fn operators_see_slices_and_units() {
    let agent = Agent::start(&["--units", "10", "--slices", "1", "--slice-units", "3"]).await;
    agent.running("slice-1").await;
    let metrics = agent.text("/metrics").await;
    assert!(
        metrics.contains("penstock_agent_slices{state=\"running\"} 1"),
        "{metrics}"
    );
    let free = metrics
        .lines()
        .find(|l| l.starts_with("penstock_agent_free") && l.contains("nvenc"));
    assert!(free.is_some_and(|line| line.ends_with(" 7")), "{metrics}");
    assert_eq!(agent.text("/healthz").await, "ok\n");
    assert_eq!(agent.text("/readyz").await, "ok\n");
}

#[tokio::test]
async fn metrics_are_on_tcp_where_asked_for_and_slices_are_not() {
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let address = address.to_string();
    let _agent = Agent::start(&["--units", "10", "--metrics-listen", &address]).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let get = async |path| {
        client
            .get(format!("http://{address}{path}"))
            .send()
            .await
            .unwrap()
    };
    assert!(
        get("/metrics")
            .await
            .text()
            .await
            .unwrap()
            .contains("penstock_agent_capacity")
    );
    assert_eq!(get("/readyz").await.status(), StatusCode::OK);
    assert_eq!(get("/v1/slices").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_agent_whose_log_nobody_reads_any_more_ends_all_the_same() {
    let mut agent = Agent::start(&["--units", "10", "--slices", "1", "--", "--leave"]).await;
    agent.running("slice-1").await;
    agent.stop_reading_its_log();
    agent.ends_and_leaves_nothing(Signal::TERM).await;
}
