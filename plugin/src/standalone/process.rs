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
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use penstock_core::names::{ENV_GPU, ENV_NVENC_UNITS, ENV_SLICE, ENV_VRAM_BYTES};
use penstock_shell::children::{self, guard};
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::agent::{Launch, Run};
use crate::attend;

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
        let stderr = child.stderr.take();
        let ended = async {
            tokio::select! {
                status = ended(&mut child, &stop, self.grace) => status,
                never = announce(&self.http, address, run, &answered) => match never {},
            }
        };
        let how = attend::until_ended(stderr, ended).await;
        Ended { run, how }
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

const ASK_EVERY: Duration = Duration::from_millis(100);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const MAX_PORTS_TRIED: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_another_slice_was_given_is_not_given_again() {
        let first = free_address(&BTreeSet::new()).unwrap();
        let second = free_address(&BTreeSet::from([first])).unwrap();
        assert_ne!(first, second);
        assert!(first.ip().is_loopback());
    }
}
