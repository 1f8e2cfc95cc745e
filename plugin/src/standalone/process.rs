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
use std::time::{Duration, Instant};

use penstock_shell::children::{self, guard};
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::agent::{Launch, Run};
use crate::answer::{self, Grant};
use crate::attend;
use crate::cdi::Injection;
use crate::mps::Layout;

/// How streamers are started, asked and ended.
#[derive(Debug, Clone)]
pub(super) struct Streamer {
    /// The program.
    pub(super) program: PathBuf,
    /// The agent's socket: what a streamer and all that it starts are known by, even when the agent is gone.
    pub(super) socket: PathBuf,
    /// Where the MPS daemons' pipes are.
    pub(super) mps: Layout,
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
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        for variable in answer::VARIABLES {
            command.env_remove(variable);
        }
        command
            .envs(answer::environment(&Grant {
                gpu: &launch.gpu,
                demand: launch.demand,
                engine: launch.engine,
                pod_encodes: launch.demand.nvenc.0 > 0,
                slice: Some(&launch.slice),
                injection: &Injection::Environment,
                mps: &self.mps,
            }))
            .env(ENV_AGENT, &self.socket);
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

impl Streamer {
    /// Ends what an agent of this socket that was killed has left: streamers that did not heed the kernel's SIGTERM, and
    /// what they started. None is adopted: how its slice was asked for died with the agent. Only whoever holds the
    /// socket's lock may call this.
    ///
    /// # Errors
    /// Where one can't be killed.
    pub(super) async fn end_left_behind(&self) -> anyhow::Result<()> {
        let left = || children::with_variable(ENV_AGENT, self.socket.as_os_str());
        let found = left();
        if found.is_empty() {
            return Ok(());
        }
        tracing::warn!(pids = ?found, "ending what an agent that was killed has left");
        let started = Instant::now();
        let mut signal = Signal::TERM;
        loop {
            let found = left();
            let waited = started.elapsed();
            if found.is_empty() {
                return Ok(());
            }
            if waited > self.grace + KILLED_WITHIN {
                anyhow::bail!(
                    "processes {found:?}, which an agent that was killed has left, can't be killed"
                );
            }
            if waited > self.grace {
                signal = Signal::KILL;
            }
            children::signal_all(&found, signal);
            tokio::time::sleep(LOOK_EVERY).await;
            children::reap(&found);
        }
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

/// Names the agent's socket to streamers and all that they start.
const ENV_AGENT: &str = "PENSTOCK_AGENT";
const KILLED_WITHIN: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(50);
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
