//! One MPS control daemon, from its start to its end.
//!
//! ```text
//!  start ── what an earlier one left is killed and removed ──► -f, our child
//!  attend ─┬─ ends by itself ──────────────────────────────► how, in words
//!          └─ told to: `quit` to its pipe, then SIGTERM, then SIGKILL
//! ```
//!
//! It runs in the foreground as our child, so that its end is known at once, and no daemon outlives us.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use penstock_core::ids::GpuUuid;
use penstock_shell::children::{self, guard};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::layout::{FILES, Layout};
use crate::attend;

/// How daemons are started and ended.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// `nvidia-cuda-mps-control`.
    pub(super) path: PathBuf,
    /// Whether clients of all Linux users share one server, which then runs as root. Otherwise a client waits
    /// until those of other users are gone.
    pub(super) multi_user: bool,
    /// From `quit` to SIGTERM, and from that to SIGKILL.
    pub(super) grace: Duration,
}

impl Program {
    /// Runs the daemon of `gpu` until it is gone, by itself or because `stop` says so; tells how it ended.
    pub(super) async fn run(
        self,
        layout: Layout,
        gpu: GpuUuid,
        stop: CancellationToken,
    ) -> (GpuUuid, String) {
        let how = match self.start(&layout, &gpu).await {
            Ok(child) => self.attend(&layout, &gpu, child, stop).await,
            Err(error) => format!(
                "{} could not be started: {error} (it comes with NVIDIA's driver; --control-program names another place)",
                self.path.display()
            ),
        };
        (gpu, how)
    }

    /// Starts the daemon, after clearing away what an earlier one left.
    async fn start(&self, layout: &Layout, gpu: &GpuUuid) -> io::Result<Child> {
        clear(&layout.pipe_dir(gpu)).await?;
        let mut command = self.command(layout, gpu);
        command.arg("-f");
        if self.multi_user {
            command.arg("-multiuser-server");
        }
        command
            .env("CUDA_VISIBLE_DEVICES", gpu.as_str())
            .stdin(Stdio::null())
            .stdout(Stdio::from(io::stderr()))
            .stderr(Stdio::piped());
        let child = guard(&mut command, Signal::TERM).spawn()?;
        tracing::info!(%gpu, pid = child.id(), "MPS daemon started");
        Ok(child)
    }

    async fn attend(
        &self,
        layout: &Layout,
        gpu: &GpuUuid,
        mut child: Child,
        stop: CancellationToken,
    ) -> String {
        let stderr = child.stderr.take();
        let ended = async {
            tokio::select! {
                status = child.wait() => return status,
                () = stop.cancelled() => {}
            }
            self.end(layout, gpu, &mut child).await
        };
        let how = attend::until_ended(stderr, ended).await;
        // A server whose control daemon is gone takes no client and keeps the GPU's memory.
        if let Err(error) = clear(&layout.pipe_dir(gpu)).await {
            tracing::warn!(%gpu, "clearing away what the MPS daemon left: {error}");
        }
        how
    }

    async fn end(&self, layout: &Layout, gpu: &GpuUuid, child: &mut Child) -> io::Result<ExitStatus> {
        let quit = async {
            self.tell(layout, gpu, "quit\n").await?;
            child.wait().await
        };
        match tokio::time::timeout(self.grace, quit).await {
            Ok(Ok(status)) => return Ok(status),
            Ok(Err(error)) => tracing::warn!(%gpu, "telling the MPS daemon to quit: {error}"),
            Err(_) => tracing::warn!(%gpu, "the MPS daemon did not quit in {:?}", self.grace),
        }
        children::end(child, self.grace).await?;
        child.wait().await
    }

    /// Gives a command to the daemon. The protocol on its pipe is the control program's own secret, so a second
    /// run of that program speaks it.
    async fn tell(&self, layout: &Layout, gpu: &GpuUuid, words: &str) -> io::Result<()> {
        let mut command = self.command(layout, gpu);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        let mut teller = guard(&mut command, Signal::KILL).spawn()?;
        if let Some(mut stdin) = teller.stdin.take() {
            stdin.write_all(words.as_bytes()).await?;
        }
        let status = teller.wait().await?;
        if !status.success() {
            return Err(io::Error::other(format!(
                "the control program ended with {status}"
            )));
        }
        Ok(())
    }

    /// The program with the environment of one daemon. Limits of clients are the clients' own: one set here
    /// would hold for all of them.
    fn command(&self, layout: &Layout, gpu: &GpuUuid) -> Command {
        let mut command = Command::new(&self.path);
        command
            .env(ENV_PIPE_DIRECTORY, layout.pipe_dir(gpu))
            .env("CUDA_MPS_LOG_DIRECTORY", layout.log_dir(gpu))
            .env_remove("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")
            .env_remove("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT")
            .env_remove("CUDA_MPS_CLIENT_PRIORITY");
        command
    }
}

/// Kills daemons and servers that were started for this pipe directory, waits until they are gone, and removes
/// their files.
async fn clear(pipe_dir: &Path) -> io::Result<()> {
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        let left = started_for(pipe_dir);
        if left.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("processes {left:?} can't be killed")));
        }
        tracing::info!(pids = ?left, "killing MPS processes that were left behind");
        // Where we are process 1 of a container, they are ours by now.
        children::signal_all(&left, Signal::KILL);
        tokio::time::sleep(LOOK_EVERY).await;
        children::reap(&left);
    }
    for file in FILES {
        match std::fs::remove_file(pipe_dir.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The MPS processes with this pipe directory in their environment. No client is among them: none has an MPS
/// program's name.
fn started_for(pipe_dir: &Path) -> Vec<u32> {
    let mut pids = children::with_variable(ENV_PIPE_DIRECTORY, pipe_dir.as_os_str());
    pids.retain(|pid| is_mps_program(*pid));
    pids
}

/// Whether a process is an MPS daemon or server, by the name that it was started under (the second word, where
/// the first is an interpreter's).
fn is_mps_program(pid: u32) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    line.split(|byte| *byte == 0).take(2).any(|word| {
        let name = Path::new(OsStr::from_bytes(word)).file_name();
        name.is_some_and(|name| name.as_bytes().starts_with(b"nvidia-cuda-mps-"))
    })
}

const ENV_PIPE_DIRECTORY: &str = "CUDA_MPS_PIPE_DIRECTORY";
/// What SIGKILL does not end by then waits for the kernel (for a hung GPU, say).
const GONE_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);
