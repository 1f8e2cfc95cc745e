//! The agent as its users meet it: the real program over its socket, with a stand-in for the streamer.

#![allow(clippy::unwrap_used)] // Here a panic is a failed test.

mod common;

use std::time::{Duration, Instant};

use common::{Agent, Place, eventually, eventually_async};
use fake_nvml::{Event, Gpu, Stage, State};
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
async fn streamers_that_outlive_a_killed_agent_are_ended_by_the_next_one_and_nobody_elses() {
    let other = Agent::start(&["--units", "10", "--slices", "1"]).await;
    other.running("slice-1").await;
    let others = other.place.streamers();
    let deaf = [
        "--units", "10", "--grace", "1", "--slices", "2", "--", "--deaf", "--leave",
    ];
    let agent = Agent::start(&deaf).await;
    agent.running("slice-1").await;
    agent.running("slice-2").await;
    let place = agent.killed().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(place.streamers().len(), 4, "they ignore the kernel's SIGTERM");
    let agent = Agent::start_in(place, &["--units", "10"]).await;
    assert_eq!(agent.place.streamers(), Vec::<i32>::new());
    assert_eq!(agent.get("/v1/slices").await, json!([]));
    assert_eq!(other.place.streamers(), others);
}

#[tokio::test]
async fn slices_are_packed_over_the_gpus_that_nvml_shows() {
    let (agent, _nvml) = on_two_gpus(&["--slices", "1", "--slice-units", "60"]).await;
    let gpus = agent.get("/v1/gpus").await;
    let offered = |gpu: usize| (gpus[gpu]["uuid"].clone(), gpus[gpu]["capacity"]["nvenc"].clone());
    // Two engines of 99 units: an L4's video clock is below the one that the table's figures were taken at.
    assert_eq!(offered(0), (json!("GPU-a"), json!(198)));
    assert_eq!(offered(1), (json!("GPU-b"), json!(198)));
    assert_eq!(gpus[0]["model"], "NVIDIA L4");
    assert_eq!(gpus[0]["capacity"]["vram"], 89);

    let (_, second) = agent.post(json!({"demand": {"nvenc": 130, "vram": 8}})).await;
    assert_eq!(second["gpu"], "GPU-a", "the fuller one first: {second}");
    let slice = agent.running("slice-2").await;
    let env = &agent.said_by_streamer(&slice).await["env"];
    assert_eq!(env["CUDA_VISIBLE_DEVICES"], "GPU-a");
    assert_eq!(env["PENSTOCK_NVENC_UNITS"], "130");
    assert_eq!(env["PENSTOCK_NVENC_STREAM_UNITS"], "99");
    assert_eq!(env["PENSTOCK_VRAM_BYTES"], "2147483648");
    assert_eq!(env.get("CUDA_MPS_PIPE_DIRECTORY"), None);

    let (_, third) = agent.post(json!({"demand": {"nvenc": 100}})).await;
    assert_eq!(third["gpu"], "GPU-b");
    // 8 are free on the first and 98 on the second.
    let (status, problem) = agent.post(json!({"demand": {"nvenc": 106}})).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let error = problem["error"].as_str().unwrap();
    assert!(
        error.contains("GPU-a has 8 encoder units") && error.contains("GPU-b has 98 encoder units"),
        "{error}"
    );
    agent.ends_and_leaves_nothing(Signal::TERM).await;
}

#[tokio::test]
async fn a_slice_with_sms_gets_the_pipes_of_its_gpus_daemon_and_none_where_there_is_no_daemon() {
    let (agent, _nvml) = on_two_gpus(&[]).await;
    let pipes = agent.place.path().join("mps/GPU-b/pipe");
    std::fs::create_dir_all(&pipes).unwrap();
    let _daemon = std::os::unix::net::UnixListener::bind(pipes.join("control")).unwrap();
    eventually_async("the daemon is seen", async || {
        let gpus = agent.get("/v1/gpus").await;
        gpus[1]["unhealthy"].get("mps").is_none().then_some(())
    })
    .await;
    let wanted = json!({"demand": {"nvenc": 10, "mps": 30, "vram": 4}});
    let (_, slice) = agent.post(wanted.clone()).await;
    assert_eq!(slice["gpu"], "GPU-b");
    let slice = agent.running("slice-1").await;
    let env = &agent.said_by_streamer(&slice).await["env"];
    assert_eq!(env["CUDA_MPS_PIPE_DIRECTORY"], pipes.to_str().unwrap());
    assert_eq!(env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"], "30");
    assert_eq!(env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"], "0=1024M");
    let (_, problem) = agent.post(json!({"demand": {"nvenc": 10, "mps": 80}})).await;
    let error = problem["error"].as_str().unwrap();
    assert!(
        error.contains("GPU-a can't be used now: no MPS daemon runs for it"),
        "{error}"
    );
}

#[tokio::test]
async fn a_gpu_that_falls_ill_takes_no_new_slice_until_it_is_well() {
    let (agent, (nvml, mut state)) = on_two_gpus(&["--slices", "1", "--slice-units", "60"]).await;
    assert_eq!(agent.running("slice-1").await["gpu"], "GPU-a");
    // An error of the encoder, which passes after a quiet minute; and a GPU that is lost.
    state.events.push(Event {
        gpu: "GPU-a".into(),
        xid: Some(47),
        gpu_instance: None,
    });
    nvml.change(&state).unwrap();
    let ill = agent
        .slice_when("slice-1", |slice| slice["unhealthy"].is_string())
        .await;
    assert!(ill["unhealthy"].as_str().unwrap().contains("XID 47"), "{ill}");
    assert_eq!(ill["state"], "running", "its stream is left alone");
    let (_, slice) = agent.post(json!({"demand": {"nvenc": 10}})).await;
    assert_eq!(slice["gpu"], "GPU-b", "though GPU-a is the fuller one");
    let metrics = agent.text("/metrics").await;
    assert!(
        metrics.contains("penstock_agent_healthy{gpu=\"GPU-a\",resource=\"nvenc\"} 0"),
        "{metrics}"
    );
    state.gpus[1].lost = true;
    nvml.change(&state).unwrap();
    let ill = agent
        .slice_when("slice-2", |slice| slice["unhealthy"].is_string())
        .await;
    assert!(
        ill["unhealthy"].as_str().unwrap().contains("fell off the bus"),
        "{ill}"
    );
    let (status, problem) = agent.post(json!({"demand": {"nvenc": 10}})).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let error = problem["error"].as_str().unwrap();
    assert!(
        error.contains("XID 47") && error.contains("fell off the bus"),
        "{error}"
    );
    let (_, table) = agent.place.run(&["slices"]).await;
    assert!(
        table.contains("GPU UNHEALTHY") && table.contains("XID 47"),
        "{table}"
    );
    state.gpus[1].lost = false;
    nvml.change(&state).unwrap();
    agent
        .slice_when("slice-2", |slice| slice.get("unhealthy").is_none())
        .await;
    let (_, slice) = agent.post(json!({"demand": {"nvenc": 10}})).await;
    assert_eq!(slice["gpu"], "GPU-b");
}

#[tokio::test]
async fn gpus_without_a_known_encoder_leave_the_machine_to_its_cpu_unless_they_are_opted_in() {
    let mut place = Place::new();
    let nvml = Stage::set(place.path(), &h200()).unwrap();
    place.set("PENSTOCK_NVML_LIBRARY", nvml.library().to_str().unwrap());
    let mut agent = Agent::start_in(place, &["--headroom", "70"]).await;
    let gpus = agent.get("/v1/gpus").await;
    assert!(gpus[0]["uuid"].as_str().unwrap().starts_with("CPU-"), "{gpus}");
    let said = agent.said_until("offering this machine's CPU").await;
    assert!(said.contains("of NVIDIA H200 no encoder is known"), "{said}");
    let place = agent.ends_and_leaves_nothing(Signal::TERM).await;
    let agent = Agent::start_in(place, &["--gpus", "all"]).await;
    let gpus = agent.get("/v1/gpus").await;
    assert_eq!(gpus[0]["uuid"], "GPU-h");
    assert_eq!(gpus[0]["capacity"], json!({"nvenc": 0, "mps": 100, "vram": 564}));
}

#[tokio::test]
async fn named_gpus_are_waited_for_unless_it_is_to_fail_fast() {
    let mut place = Place::new();
    let missing = State {
        init_error: 9,
        ..two_gpus()
    };
    let nvml = Stage::set(place.path(), &missing).unwrap();
    place.set("PENSTOCK_NVML_LIBRARY", nvml.library().to_str().unwrap());
    let (status, said) = place.run(&["standalone", "--gpus", "all", "--fail-fast"]).await;
    assert!(!status.success() && said.contains("modprobe nvidia"), "{said}");
    let (status, said) = place.run(&["standalone", "--gpus", "all", "--units", "3"]).await;
    assert!(
        !status.success() && said.contains("cannot be used with"),
        "{said}"
    );
    let arrives = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        nvml.change(&two_gpus()).unwrap();
    };
    let (agent, ()) = tokio::join!(Agent::start_in(place, &["--gpus", "GPU-b"]), arrives);
    let gpus = agent.get("/v1/gpus").await;
    assert_eq!(
        (gpus.as_array().unwrap().len(), &gpus[0]["uuid"]),
        (1, &json!("GPU-b"))
    );
}

/// An agent on a machine with two L4, and what changes them.
async fn on_two_gpus(args: &[&str]) -> (Agent, (Stage, State)) {
    let mut place = Place::new();
    let state = two_gpus();
    let nvml = Stage::set(place.path(), &state).unwrap();
    place.set("PENSTOCK_NVML_LIBRARY", nvml.library().to_str().unwrap());
    let root = place.path().join("mps");
    place.set("PENSTOCK_MPS_ROOT", root.to_str().unwrap());
    (Agent::start_in(place, args).await, (nvml, state))
}

fn two_gpus() -> State {
    let gpu = |uuid: &str| Gpu {
        uuid: uuid.into(),
        ..Gpu::default()
    };
    State {
        gpus: vec![gpu("GPU-a"), gpu("GPU-b")],
        ..State::default()
    }
}

fn h200() -> State {
    let gpu = Gpu {
        uuid: "GPU-h".into(),
        name: "NVIDIA H200".into(),
        memory_total: 141 << 30,
        ..Gpu::default()
    };
    State {
        gpus: vec![gpu],
        ..State::default()
    }
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
