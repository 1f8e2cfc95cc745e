//! `penstock-plugin mps` as its users meet it: the real program, with a stand-in for NVIDIA's control program.

#![allow(clippy::unwrap_used)] // Here a panic is a failed test.
#![allow(dead_code)] // Of the common part, this file takes only some.

mod common;

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use common::eventually;
use fake_nvml::{Gpu, Stage, State};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};

const A: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000000";
const B: &str = "MIG-bbbbbbbb-0000-0000-0000-000000000000";
const GPUS: [&str; 4] = ["--gpu", A, "--gpu", B];

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
async fn all_gpus_are_those_that_the_driver_lists() {
    let driver = tempfile::tempdir().unwrap();
    let gpu = Gpu {
        uuid: A.into(),
        ..Gpu::default()
    };
    let stage = Stage::set(
        driver.path(),
        &State {
            gpus: vec![gpu],
            ..State::default()
        },
    )
    .unwrap();
    let library = stage.library().to_str().unwrap();
    let mut supervisor = Supervisor::start_for(&["--gpu=all"], &[("PENSTOCK_NVML_LIBRARY", library)]);
    supervisor.lives(A, None).await;
    assert!(!supervisor.pipes(B).exists());
    supervisor.end().await;
    assert_eq!(supervisor.processes(A), Vec::<i32>::new());
}

#[tokio::test]
async fn bad_arguments_are_refused_with_advice() {
    let said = async |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-plugin"));
        let output = command.arg("mps").args(args).output().await.unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let error = said(&["--gpu", "0"]).await;
    assert!(error.contains("nvidia-smi -L"), "{error}");
    let error = said(&[]).await;
    assert!(error.contains("--gpu <UUID|all>"), "{error}");
    // The GPU is made up, so this fails with NVIDIA's driver and without.
    let root = tempfile::tempdir().unwrap();
    let root = root.path().to_str().unwrap();
    let error = said(&["--gpu", A, "--exclusive-process", "--root", root]).await;
    assert!(error.contains("leave --exclusive-process out"), "{error}");
    let error = said(&["--gpu", A, "--root", "/proc/nowhere"]).await;
    assert!(error.contains("--root chooses another place"), "{error}");
}

struct Supervisor {
    place: tempfile::TempDir,
    process: Child,
}

impl Supervisor {
    fn start(environment: &[(&str, &str)]) -> Self {
        Self::start_for(&GPUS, environment)
    }

    fn start_for(gpus: &[&str], environment: &[(&str, &str)]) -> Self {
        let place = tempfile::tempdir().unwrap();
        let original = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mps_control.py");
        for name in ["nvidia-cuda-mps-control", "nvidia-cuda-mps-server"] {
            symlink(original, place.path().join(name)).unwrap();
        }
        let process = spawn(place.path(), gpus, environment);
        Self { place, process }
    }

    fn start_again(&mut self, environment: &[(&str, &str)]) {
        self.process = spawn(self.place.path(), &GPUS, environment);
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
            assert_eq!(std::fs::read_dir(self.pipes(gpu)).unwrap().count(), 0);
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

fn spawn(place: &Path, gpus: &[&str], environment: &[(&str, &str)]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_penstock-plugin"))
        .arg("mps")
        .args(gpus)
        .arg("--root")
        .arg(place.join("mps"))
        .arg("--control-program")
        .arg(place.join("nvidia-cuda-mps-control"))
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}
