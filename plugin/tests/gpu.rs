//! What can only be seen with an NVIDIA GPU: `make test-gpu` runs these. All take the first GPU that NVML shows.

#![allow(clippy::unwrap_used)] // Here a panic is a failed test.
#![allow(dead_code)] // Of the common part, this file takes only some.

mod common;

use std::process::{Child, Command, Output, Stdio};

use common::eventually_async;
use serde_json::Value;

#[test]
#[ignore = "it needs an NVIDIA GPU: make test-gpu"]
fn gpu_nvml_lists_it_with_model_and_memory() {
    let inventory = inventory();
    let gpu = &usable(&inventory)[0];
    assert!(
        gpu["memoryBytes"].as_u64().is_some_and(|bytes| bytes > 1 << 30),
        "{gpu}"
    );
    assert!(gpu["model"].as_str().unwrap().len() > 2, "{gpu}");
    let major = inventory["cudaVersion"]["major"].as_u64();
    assert!(major.is_some_and(|major| major >= 11), "{inventory}");
}

#[test]
#[ignore = "it needs an NVIDIA GPU: make test-gpu"]
fn gpu_cuda_sees_it_whole_without_limits() {
    let uuid = first();
    let seen = probe(&[("CUDA_VISIBLE_DEVICES", &uuid)]);
    assert!(seen["sms"].as_u64().is_some_and(|sms| sms > 1), "{seen}");
    assert!(
        seen["memoryBytes"].as_u64().is_some_and(|bytes| bytes > 1 << 30),
        "{seen}"
    );
}

#[tokio::test]
#[ignore = "it needs an NVIDIA GPU: make test-gpu"]
async fn gpu_two_slices_of_one_daemon_see_the_sms_that_are_theirs_at_the_same_time() {
    let daemons = Daemons::start().await;
    let uuid = first();
    let pipes = daemons.root().join(&uuid).join("pipe");
    let slice = |percent: &'static str| {
        vec![
            ("CUDA_VISIBLE_DEVICES", uuid.clone()),
            ("CUDA_MPS_PIPE_DIRECTORY", pipes.to_str().unwrap().to_owned()),
            ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", percent.to_owned()),
        ]
    };
    let all = sms(&answer(hold(&slice("100"), 0)));
    let (small, large) = (hold(&slice("30"), 3), hold(&slice("70"), 3));
    let (small, large) = (sms(&answer(small)), sms(&answer(large)));
    // MPS rounds to what the hardware can be cut into.
    for (percent, sees) in [(30.0, small), (70.0, large)] {
        let wanted = all * percent / 100.0;
        assert!(
            (sees - wanted).abs() <= (all * 0.05).max(2.0),
            "{percent} % of {all} SMs are {wanted}, and it sees {sees}"
        );
    }
    assert!(small + large <= all + 2.0, "{small} and {large} of {all}");
}

#[tokio::test]
#[ignore = "it needs an NVIDIA GPU: make test-gpu"]
async fn gpu_the_doctor_sees_limits_that_hold() {
    let daemons = Daemons::start().await;
    let uuid = first();
    let root = daemons.root();
    let said = said(&run(&["doctor", "--mps-root", root.to_str().unwrap()]));
    let lines = |subject: &str| {
        let of_gpu = |line: &&str| line.contains(subject) && line.contains(&uuid);
        said.lines().filter(of_gpu).collect::<Vec<_>>()
    };
    assert!(said.contains("ok       driver       NVIDIA "), "{said}");
    assert!(
        lines(" MPS  ").iter().any(|line| line.starts_with("ok ")),
        "{said}"
    );
    let cuda = lines(" CUDA  ");
    assert!(
        cuda.len() == 1 && cuda[0].starts_with("ok ") && cuda[0].contains("with 50 % of the SMs"),
        "{said}"
    );
}

/// `penstock-plugin mps` over all GPUs.
struct Daemons {
    place: tempfile::TempDir,
    process: Child,
}

impl Daemons {
    async fn start() -> Self {
        let place = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = port.local_addr().unwrap().to_string();
        drop(port);
        let process = command(&["mps", "--gpus", "all", "--metrics-listen", &address, "--root"])
            .arg(place.path().join("mps"))
            .spawn()
            .unwrap();
        let daemons = Self { place, process };
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        eventually_async("every daemon's pipe answers", async || {
            let response = http.get(format!("http://{address}/readyz")).send().await.ok()?;
            response.status().is_success().then_some(())
        })
        .await;
        daemons
    }

    fn root(&self) -> std::path::PathBuf {
        self.place.path().join("mps")
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        let pid = i32::try_from(self.process.id()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}

fn first() -> String {
    usable(&inventory())[0]["uuid"].as_str().unwrap().to_owned()
}

fn usable(inventory: &Value) -> Vec<Value> {
    let gpus = inventory["gpus"].as_array().unwrap();
    gpus.iter()
        .filter(|gpu| gpu["kind"]["is"] != "divided")
        .cloned()
        .collect()
}

fn inventory() -> Value {
    serde_json::from_slice(&run(&["gpus", "--json"]).stdout).unwrap()
}

fn sms(seen: &Value) -> f64 {
    seen["sms"].as_f64().unwrap()
}

fn probe(environment: &[(&str, &str)]) -> Value {
    let environment: Vec<_> = environment.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
    answer(hold(&environment, 0))
}

/// A CUDA program that keeps its context for so many seconds.
fn hold(environment: &[(&str, String)], seconds: u32) -> Child {
    command(&["cuda-probe", "--hold", &seconds.to_string()])
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn answer(program: Child) -> Value {
    let output = program.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-plugin"));
    command.args(args).stdin(Stdio::null());
    command
}

fn said(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    said.into_owned()
}
