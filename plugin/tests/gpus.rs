//! `penstock-plugin gpus` as its users meet it, on a machine whose GPUs exist only in a file.

#![allow(clippy::unwrap_used)] // Here a panic is a failed test.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};

use fake_nvml::{EncoderSession, Event, Gpu, MigDevice, Stage, State};
use serde_json::{Value, json};

#[test]
fn gpus_are_listed() {
    let output = Machine::new(&mixed()).run(&["gpus"]);
    let expected = "\
GPU  UUID   MODEL               MEMORY     MIG       VIDEO CLOCK  ENCODERS
0    GPU-a  NVIDIA L4           23034 MiB  off       1770 MHz     -
1    GPU-m  NVIDIA A30          24576 MiB  on        -            -
1    MIG-1  NVIDIA A30 1g.6gb   6144 MiB   instance  -            0
1    MIG-2  NVIDIA A30 2g.12gb  12288 MiB  instance  -            -
GPU 2 can't be asked: device fell off the bus or has otherwise become inacessible
driver 580.95.05, CUDA 13.0
";
    assert_eq!(said(&output), expected);
    assert!(output.status.success());
}

#[test]
fn gpus_are_listed_as_json() {
    let output = Machine::new(&mixed()).run(&["gpus", "--json"]);
    let inventory: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(inventory["cudaVersion"], json!({"major": 13, "minor": 0}));
    assert_eq!(inventory["gpus"][0]["maxVideoClockMhz"], 1770);
    assert_eq!(inventory["gpus"][1]["maxVideoClockMhz"], Value::Null);
    let expected = json!({
        "is": "mig", "parent": "GPU-m", "index": 1, "profile": "2g.12gb", "gpuInstance": 2, "computeInstance": 0, "encoders": null,
    });
    assert_eq!(inventory["gpus"][3]["kind"], expected);
    assert_eq!(inventory["unreadable"][0]["index"], 2);
}

#[test]
fn a_machine_without_a_driver_is_told_what_to_do() {
    let machine = Machine::new(&State {
        init_error: 9,
        ..State::default()
    });
    let output = machine.run(&["gpus"]);
    assert!(!output.status.success());
    assert!(said(&output).contains("modprobe nvidia"), "{}", said(&output));
    let output = machine.run(&["gpus", "--nvml-library", "/nowhere.so"]);
    assert!(!output.status.success());
    assert!(
        said(&output).contains("/nowhere.so (install the NVIDIA driver"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_watch_goes_on_and_prints_a_line_for_each_report() {
    let mut state = State {
        gpus: vec![Gpu {
            uuid: "GPU-a".into(),
            ..Gpu::default()
        }],
        ..State::default()
    };
    // AV1, by a process that there is.
    let session = EncoderSession {
        pid: std::process::id(),
        codec: 2,
        ..EncoderSession::default()
    };
    state.gpus[0].encoder_sessions = Some(vec![session]);
    let machine = Machine::new(&state);
    let mut watch = machine
        .command(&["gpus", "--watch"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["found"]["gpus"][0]["uuid"], "GPU-a");
    assert_eq!(next()["health"]["GPU-a"], json!({"gpu": null, "encoder": null}));
    let measured = next();
    assert_eq!(measured["measured"][0]["sessions"][0]["codec"], "av1");
    assert!(measured["pods"].is_object(), "{measured}");
    state.events.push(Event {
        gpu: "GPU-a".into(),
        xid: Some(119),
        gpu_instance: None,
    });
    machine.stage.change(&state).unwrap();
    let xid = loop {
        let line = next();
        if line.get("xid").is_some() {
            break line;
        }
    };
    assert_eq!(
        xid["xid"],
        json!({"gpu": "GPU-a", "xid": 119, "gpuInstance": null})
    );
    let health = next();
    assert!(
        health["health"]["GPU-a"]["gpu"].as_str().unwrap().contains("GSP"),
        "{health}"
    );
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn the_stand_in_reads_the_state_that_the_environment_names() {
    let machine = Machine::new(&State::default());
    let elsewhere = machine.directory.path().join("elsewhere.json");
    std::fs::write(&elsewhere, r#"{"driver_version": "1.2.3"}"#).unwrap();
    let output = machine
        .command(&["gpus"])
        .env("FAKE_NVML_STATE", elsewhere)
        .output()
        .unwrap();
    assert_eq!(said(&output), "no GPU\ndriver 1.2.3, CUDA 13.0\n");
}

#[test]
fn cuda_that_gives_no_context_is_an_error_in_words_and_no_panic() {
    let machine = Machine::new(&State::default());
    // No GPU is visible, so this fails with CUDA and without.
    let output = machine
        .command(&["cuda-probe"])
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = said(&output);
    assert!(
        said.starts_with("error: opening a CUDA context (libcuda.so.1"),
        "{said}"
    );
    assert!(!said.contains("panicked") && said.lines().count() == 1, "{said}");
}

#[test]
fn the_doctor_tells_of_each_gpu_and_of_cuda_on_it() {
    let machine = Machine::new(&mixed());
    let root = machine.directory.path().join("mps");
    let output = machine.run(&["doctor", "--mps-root", root.to_str().unwrap()]);
    let said = said(&output);
    for line in [
        "ok       driver       NVIDIA 580.95.05, CUDA 13.0",
        "PROBLEM  GPU          GPU 2 can't be asked: ",
        "warning  CUDA         GPU-a: opening a CUDA context (libcuda.so.1",
        "warning  CUDA         MIG-2: opening a CUDA context (libcuda.so.1",
    ] {
        assert!(said.contains(line), "{line} is not in:\n{said}");
    }
}

struct Machine {
    directory: tempfile::TempDir,
    stage: Stage,
}

impl Machine {
    fn new(state: &State) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let stage = Stage::set(directory.path(), state).unwrap();
        Self { directory, stage }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-plugin"));
        command
            .args(args)
            .env("PENSTOCK_NVML_LIBRARY", self.stage.library())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
}

fn said(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    said.into_owned()
}

/// A whole GPU, one in two MIG instances, and one that is lost.
fn mixed() -> State {
    let instance = |uuid: &str, profile: &str, gpu_instance, memory_gib: u64, encoders| MigDevice {
        uuid: uuid.into(),
        name: format!("NVIDIA A30 MIG {profile}"),
        gpu_instance,
        memory_total: memory_gib << 30,
        encoders,
        ..MigDevice::default()
    };
    let whole = Gpu {
        uuid: "GPU-a".into(),
        ..Gpu::default()
    };
    let divided = Gpu {
        uuid: "GPU-m".into(),
        name: "NVIDIA A30".into(),
        memory_total: 24 << 30,
        max_video_clock: None,
        mig: Some(true),
        mig_devices: vec![
            instance("MIG-1", "1g.6gb", 1, 6, Some(0)),
            instance("MIG-2", "2g.12gb", 2, 12, None),
        ],
        ..Gpu::default()
    };
    let lost = Gpu {
        uuid: "GPU-l".into(),
        lost: true,
        ..Gpu::default()
    };
    State {
        gpus: vec![whole, divided, lost],
        ..State::default()
    }
}
