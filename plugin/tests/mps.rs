//! `penstock-plugin mps` as its users meet it: the real program, with stand-ins for NVML and for NVIDIA's control
//! program.

#![allow(clippy::unwrap_used)] // Here a panic is a failed test.
#![allow(dead_code)] // Of the common part, this file takes only some.

mod common;

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use common::{eventually, eventually_async};
use fake_nvml::{Gpu, MigDevice, Process, Stage, State};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};

const A: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000000";
const B: &str = "MIG-bbbbbbbb-0000-0000-0000-000000000000";

#[tokio::test]
async fn each_gpu_has_a_daemon_of_its_own_and_all_end_together() {
    let supervisor = Supervisor::start(&[("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "1")]);
    let (a, b) = (supervisor.lives(A, None).await, supervisor.lives(B, None).await);
    assert_ne!(a, b);
    let told = supervisor.told(A);
    assert_eq!(told["args"], serde_json::json!(["-f", "-multiuser-server"]));
    let env = &told["env"];
    assert_eq!(env["CUDA_VISIBLE_DEVICES"], A);
    assert_eq!(
        env["CUDA_MPS_PIPE_DIRECTORY"],
        supervisor.pipes(A).to_str().unwrap()
    );
    assert_eq!(
        env.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"),
        None,
        "it would limit every client"
    );
    supervisor.ends_and_leaves_nothing().await;
}

#[tokio::test]
async fn a_killed_daemon_is_started_again_without_its_server_and_no_other_is_touched() {
    let supervisor = Supervisor::start(&[]);
    let (a, b) = (supervisor.lives(A, None).await, supervisor.lives(B, None).await);
    assert_eq!(supervisor.processes(A).len(), 2, "the daemon and its server");
    let before = supervisor.processes(A);
    kill_process(a, Signal::KILL).unwrap();
    let again = supervisor.lives(A, Some(a)).await;
    assert_ne!(again, a);
    let after = supervisor.processes(A);
    assert!(
        before.iter().all(|pid| !after.contains(pid)),
        "{before:?} {after:?}"
    );
    assert_eq!(supervisor.lives(B, None).await, b);
    supervisor.ends_and_leaves_nothing().await;
}

#[tokio::test]
async fn a_daemon_that_does_not_listen_is_killed_after_the_grace() {
    let supervisor = Supervisor::start(&[("STAND_IN_DEAF", "1"), ("PENSTOCK_MPS_GRACE", "1")]);
    supervisor.lives(A, None).await;
    supervisor.lives(B, None).await;
    supervisor.ends_and_leaves_nothing().await;
}

#[tokio::test]
async fn a_daemon_that_can_not_start_is_told_of_and_tried_again() {
    let mut supervisor = Supervisor::start(&[("STAND_IN_DIES", "1")]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    supervisor.end().await;
    let said = supervisor.said().await;
    let lines: Vec<_> = said
        .lines()
        .filter(|line| line.contains("MPS daemon ended: exited with status 1: error: no CUDA-capable device"))
        .collect();
    assert!(lines.len() >= 4, "two GPUs, each tried more than once: {said}");
}

#[tokio::test]
async fn what_a_killed_supervisor_left_is_gone_before_the_next_one_starts_a_daemon() {
    let mut supervisor = Supervisor::start(&[("STAND_IN_DEAF", "1"), ("PENSTOCK_MPS_GRACE", "1")]);
    let a = supervisor.lives(A, None).await;
    supervisor.lives(B, None).await;
    supervisor.process.start_kill().unwrap();
    supervisor.process.wait().await.unwrap();
    // These daemons ignore the kernel's SIGTERM, too.
    assert!(!supervisor.processes(A).is_empty());
    supervisor.start_again(&[]);
    assert_ne!(supervisor.lives(A, Some(a)).await, a);
    supervisor.lives(B, None).await;
    supervisor.ends_and_leaves_nothing().await;
}

#[tokio::test]
async fn daemons_come_and_go_with_their_gpus_but_not_with_the_driver() {
    let mut state = machine();
    let divided = state.gpus.pop().unwrap();
    let supervisor = Supervisor::start_with(&state, &[]);
    let a = supervisor.lives(A, None).await;
    assert_eq!(supervisor.processes(B), Vec::<i32>::new());
    state.gpus.push(divided);
    supervisor.nvml.change(&state).unwrap();
    let b = supervisor.lives(B, None).await;

    // NVML goes away, with a GPU that is lost so that it is opened again; then it is back, and the GPU is still lost.
    state.init_error = 9;
    state.gpus[1].lost = true;
    supervisor.nvml.change(&state).unwrap();
    tokio::time::sleep(Duration::from_secs(8)).await;
    state.init_error = 0;
    supervisor.nvml.change(&state).unwrap();
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(supervisor.lives(A, None).await, a);
    assert_eq!(supervisor.lives(B, None).await, b, "its clients would have died");

    // The instance is taken apart.
    state.gpus[1].lost = false;
    state.gpus[1].mig_devices.clear();
    supervisor.nvml.change(&state).unwrap();
    eventually("the daemon of the instance ends", || {
        supervisor.processes(B).is_empty().then_some(())
    })
    .await;
    assert_eq!(supervisor.lives(A, None).await, a);
    supervisor.ends_and_leaves_nothing().await;
}

#[tokio::test]
async fn a_driver_that_is_not_there_yet_is_waited_for() {
    let missing = State {
        init_error: 9,
        ..machine()
    };
    let mut supervisor = Supervisor::start_with(&missing, &[]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    supervisor.nvml.change(&machine()).unwrap();
    supervisor.lives(A, None).await;
    supervisor.end().await;
    let said = supervisor.said().await;
    assert!(said.contains("no GPU can be offered yet, still asking"), "{said}");
    assert!(said.contains("modprobe nvidia"), "{said}");
}

#[tokio::test]
async fn operators_see_daemons_restarts_and_clients() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap().to_string();
    drop(port);
    let mut state = machine();
    let client = |pid, mps| Process {
        pid,
        mps,
        compute: true,
        ..Process::default()
    };
    state.gpus[0].processes = Some(vec![client(1, true), client(2, true), client(3, false)]);
    let supervisor = Supervisor::start_with(&state, &[("PENSTOCK_MPS_METRICS_LISTEN", &address)]);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let get = async |path: &str| {
        let response = http.get(format!("http://{address}{path}")).send().await.ok()?;
        Some((response.status().as_u16(), response.text().await.ok()?))
    };
    let shows = async |line: &str| {
        eventually_async(line, async || {
            let (_, metrics) = get("/metrics").await?;
            metrics.lines().any(|l| l == line).then_some(())
        })
        .await;
    };
    let a = supervisor.lives(A, None).await;
    supervisor.lives(B, None).await;
    eventually_async("it is ready", async || {
        (get("/readyz").await?.0 == 200).then_some(())
    })
    .await;
    assert_eq!(get("/healthz").await.unwrap().0, 200);
    shows(&format!("penstock_mps_daemon_up{{gpu=\"{A}\"}} 1")).await;
    shows(&format!("penstock_mps_clients{{gpu=\"{A}\"}} 2")).await;
    shows(&format!("penstock_mps_daemon_restarts_total{{gpu=\"{A}\"}} 0")).await;
    kill_process(a, Signal::KILL).unwrap();
    eventually_async("it is not ready", async || {
        let (status, why) = get("/readyz").await?;
        (status == 503 && why.contains(A)).then_some(())
    })
    .await;
    shows(&format!("penstock_mps_daemon_restarts_total{{gpu=\"{A}\"}} 1")).await;
    shows(&format!("penstock_mps_daemon_restarts_total{{gpu=\"{B}\"}} 0")).await;
    supervisor.ends_and_leaves_nothing().await;
}

#[tokio::test]
async fn a_gpu_that_can_not_be_made_exclusive_gets_no_daemon_and_advice() {
    // The stand-in can't set a compute mode.
    let mut supervisor = Supervisor::start(&[("PENSTOCK_MPS_EXCLUSIVE_PROCESS", "true")]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(supervisor.processes(A), Vec::<i32>::new());
    supervisor.end().await;
    let said = supervisor.said().await;
    assert!(said.contains("leave --exclusive-process out"), "{said}");
}

#[tokio::test]
async fn bad_arguments_are_refused_with_advice() {
    let said = async |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-plugin"));
        let output = command.arg("mps").args(args).output().await.unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let error = said(&["--gpus", "GPU 0"]).await;
    assert!(error.contains("`penstock-plugin gpus` lists them"), "{error}");
    let error = said(&[]).await;
    assert!(error.contains("--gpus all"), "{error}");
    let error = said(&["--gpus", "all", "--root", "/proc/nowhere"]).await;
    assert!(error.contains("--root chooses another place"), "{error}");
    let missing = ["--gpus", "all", "--fail-fast", "--nvml-library", "/nowhere.so"];
    let error = said(&missing).await;
    assert!(error.contains("install the NVIDIA driver"), "{error}");
}

/// A whole GPU, and one in one MIG instance.
fn machine() -> State {
    let whole = Gpu {
        uuid: A.into(),
        ..Gpu::default()
    };
    let divided = Gpu {
        uuid: "GPU-bbbbbbbb-0000-0000-0000-000000000000".into(),
        mig: Some(true),
        mig_devices: vec![MigDevice {
            uuid: B.into(),
            name: "NVIDIA A30 MIG 1g.6gb".into(),
            memory_total: 6 << 30,
            ..MigDevice::default()
        }],
        ..Gpu::default()
    };
    State {
        gpus: vec![whole, divided],
        ..State::default()
    }
}

struct Supervisor {
    place: tempfile::TempDir,
    nvml: Stage,
    process: Child,
}

impl Supervisor {
    fn start(environment: &[(&str, &str)]) -> Self {
        Self::start_with(&machine(), environment)
    }

    fn start_with(machine: &State, environment: &[(&str, &str)]) -> Self {
        let place = tempfile::tempdir().unwrap();
        let original = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mps_control.py");
        for name in ["nvidia-cuda-mps-control", "nvidia-cuda-mps-server"] {
            symlink(original, place.path().join(name)).unwrap();
        }
        let nvml = Stage::set(place.path(), machine).unwrap();
        let process = spawn(place.path(), &nvml, environment);
        Self { place, nvml, process }
    }

    fn start_again(&mut self, environment: &[(&str, &str)]) {
        self.process = spawn(self.place.path(), &self.nvml, environment);
    }

    fn pipes(&self, gpu: &str) -> PathBuf {
        self.place.path().join("mps").join(gpu).join("pipe")
    }

    fn told(&self, gpu: &str) -> Value {
        let path = self.place.path().join("mps").join(gpu).join("log/started.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// The daemon of `gpu`, once it listens and is not `before`.
    async fn lives(&self, gpu: &str, before: Option<Pid>) -> Pid {
        let pipes = self.pipes(gpu);
        eventually("a daemon listens", || {
            // A socket of the wrong type is told so only where somebody listens.
            let error = UnixStream::connect(pipes.join("control")).err()?;
            (error.raw_os_error() == Some(rustix::io::Errno::PROTOTYPE.raw_os_error())).then_some(())?;
            let text = std::fs::read_to_string(pipes.join("nvidia-cuda-mps-control.pid")).ok()?;
            let pid = Pid::from_raw(text.trim().parse().ok()?)?;
            (Some(pid) != before).then_some(pid)
        })
        .await
    }

    /// The processes with `gpu`'s pipe directory in their environment.
    fn processes(&self, gpu: &str) -> Vec<i32> {
        let wanted = format!("CUDA_MPS_PIPE_DIRECTORY={}", self.pipes(gpu).display()).into_bytes();
        let is_wanted = |pid: &i32| {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|entry| entry == wanted)
        };
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .filter(is_wanted)
            .collect()
    }

    async fn end(&mut self) {
        let pid = i32::try_from(self.process.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(60), self.process.wait()).await;
        assert!(ended.unwrap().unwrap().success());
    }

    async fn said(&mut self) -> String {
        let mut text = String::new();
        let mut stderr = self.process.stderr.take().unwrap();
        tokio::io::AsyncReadExt::read_to_string(&mut stderr, &mut text)
            .await
            .unwrap();
        text
    }

    async fn ends_and_leaves_nothing(mut self) {
        self.end().await;
        for gpu in [A, B] {
            assert_eq!(self.processes(gpu), Vec::<i32>::new());
            if let Ok(left) = std::fs::read_dir(self.pipes(gpu)) {
                assert_eq!(left.count(), 0);
            }
        }
    }
}

impl Drop for Supervisor {
    /// A test that failed leaves no daemon that ignores signals behind, either.
    fn drop(&mut self) {
        for pid in [A, B].iter().flat_map(|gpu| self.processes(gpu)) {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
    }
}

fn spawn(place: &Path, nvml: &Stage, environment: &[(&str, &str)]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_penstock-plugin"))
        .args(["mps", "--gpus", "all", "--root"])
        .arg(place.join("mps"))
        .arg("--control-program")
        .arg(place.join("nvidia-cuda-mps-control"))
        .env("PENSTOCK_NVML_LIBRARY", nvml.library())
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}
