//! One streamer process, from its start to its end.
//!
//! ```text
//!  start ──► attend ─┬─ /healthz answers 200 ──► told once to the owner
//!                    ├─ standard error ────────► ours, and its last lines kept
//!                    └─ ends, or is told to ───► Ended, in words
//! ```

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::pending;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use penstock_core::names::{ENV_GPU, ENV_NVENC_UNITS, ENV_SLICE, ENV_VRAM_BYTES};
use penstock_shell::children::{self, guard};
use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::agent::{Launch, Run};
use super::last_words::LastWords;

/// How streamers are started, asked and ended.
#[derive(Debug, Clone)]
pub(super) struct Streamer {
    /// The program.
    pub(super) program: PathBuf,
    /// From SIGTERM to SIGKILL.
    pub(super) grace: Duration,
    /// Asks after their health.
    pub(super) http: reqwest::Client,
}

/// A process that is gone.
#[derive(Debug)]
pub(super) struct Ended {
    /// Which one.
    pub(super) run: Run,
    /// How it ended.
    pub(super) how: String,
}

impl Streamer {
    /// Starts the process of a slice, to listen on a port that none of `taken` has.
    ///
    /// # Errors
    /// Where there is no free port, or the program can't be started.
    pub(super) fn start(
        &self,
        launch: &Launch,
        taken: &BTreeSet<SocketAddr>,
    ) -> io::Result<(Child, SocketAddr)> {
        let address = free_address(taken)?;
        let mut command = Command::new(&self.program);
        command
            .arg("--listen")
            .arg(address.to_string())
            .args(&launch.args)
            .env(ENV_NVENC_UNITS, launch.demand.nvenc.0.to_string())
            .env(ENV_GPU, launch.gpu.as_str())
            .env(ENV_SLICE, launch.slice.as_str())
            .env_remove(ENV_VRAM_BYTES)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        if launch.demand.vram.0 > 0 {
            command.env(ENV_VRAM_BYTES, launch.demand.vram.bytes().to_string());
        }
        // Should we be killed, SIGTERM lets the streamer end its own children before itself.
        let child = guard(&mut command, Signal::TERM).spawn()?;
        Ok((child, address))
    }

    /// Stays with a process until it is gone: by itself, or because `stop` says so.
    pub(super) async fn attend(
        self,
        run: Run,
        mut child: Child,
        address: SocketAddr,
        stop: CancellationToken,
        answered: mpsc::Sender<Run>,
    ) -> Ended {
        let mut stderr = Stderr {
            pipe: child.stderr.take(),
            words: LastWords::default(),
        };
        let status = tokio::select! {
            status = ended(&mut child, &stop, self.grace) => status,
            never = stderr.pass_on_and_stay() => match never {},
            never = announce(&self.http, address, run, &answered) => match never {},
        };
        // What it said last may still be in the pipe. A process that it left behind may hold that open, and is
        // swept only after this.
        let _ = tokio::time::timeout(DRAIN, stderr.pass_on()).await;
        stderr.finish();
        let how = status.map_or_else(
            |error| format!("waiting for it failed: {error}"),
            |status| in_words(status, stderr.words.why()),
        );
        Ended { run, how }
    }
}

/// How a process ended, in words.
pub(super) fn in_words(status: ExitStatus, why: Option<&str>) -> String {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => return format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    };
    match why {
        Some(why) => format!("{how}: {why}"),
        None => how,
    }
}

/// A loopback address that is free now. Another program may take its port before the streamer does; the streamer
/// then ends with an error, and its next start gets another one.
fn free_address(taken: &BTreeSet<SocketAddr>) -> io::Result<SocketAddr> {
    for _ in 0..MAX_PORTS_TRIED {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        if !taken.contains(&address) {
            return Ok(address);
        }
    }
    Err(io::Error::other("no free port was found on 127.0.0.1"))
}

async fn ended(child: &mut Child, stop: &CancellationToken, grace: Duration) -> io::Result<ExitStatus> {
    tokio::select! {
        status = child.wait() => return status,
        () = stop.cancelled() => {}
    }
    children::end(child, grace).await?;
    child.wait().await
}

/// Says once that the process answers.
async fn announce(
    http: &reqwest::Client,
    address: SocketAddr,
    run: Run,
    answered: &mpsc::Sender<Run>,
) -> Infallible {
    let url = format!("http://{address}/healthz");
    loop {
        let response = http.get(&url).timeout(ANSWER_WITHIN).send().await;
        if response.is_ok_and(|r| r.status() == reqwest::StatusCode::OK) {
            break;
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    // The owner outlives every process, so it is there to hear this.
    let _ = answered.send(run).await;
    pending().await
}

struct Stderr {
    pipe: Option<ChildStderr>,
    words: LastWords,
}

impl Stderr {
    async fn pass_on_and_stay(&mut self) -> Infallible {
        self.pass_on().await;
        pending().await
    }

    /// Passes lines on until the pipe is closed.
    async fn pass_on(&mut self) {
        let mut buffer = [0; 4096];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut buffer).await {
                Ok(read) if read > 0 => to_our_stderr(&self.words.push(&buffer[..read])),
                _ => self.pipe = None,
            }
        }
    }

    fn finish(&mut self) {
        to_our_stderr(&self.words.finish());
    }
}

fn to_our_stderr(lines: &[u8]) {
    // Nobody may be reading any more; the streamers go on all the same.
    let _ = io::stderr().lock().write_all(lines);
}

const ASK_EVERY: Duration = Duration::from_millis(100);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const DRAIN: Duration = Duration::from_millis(50);
const MAX_PORTS_TRIED: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_in_words() {
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        assert_eq!(
            in_words(exited(3), Some("no display")),
            "exited with status 3: no display"
        );
        assert_eq!(in_words(exited(0), None), "exited with status 0");
        assert_eq!(
            in_words(ExitStatus::from_raw(9), Some("all is well")),
            "killed by signal 9"
        );
    }

    #[test]
    fn a_port_that_another_slice_was_given_is_not_given_again() {
        let first = free_address(&BTreeSet::new()).unwrap();
        let second = free_address(&BTreeSet::from([first])).unwrap();
        assert_ne!(first, second);
        assert!(first.ip().is_loopback());
    }
}
