//! Our binaries as children of a test.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use penstock_shell::children;
use rustix::process::Signal;
use tokio::process::{Child, Command};

use crate::eventually;

/// A running program, killed when dropped.
pub struct Program {
    name: &'static str,
    /// The process.
    pub child: Child,
}

impl Program {
    /// Starts one of our binaries, built beside this test, with `args`. Its output goes to the test's own.
    ///
    /// # Errors
    /// Where it was not built or can't be started.
    pub fn start(name: &'static str, args: &[&str]) -> anyhow::Result<Self> {
        Self::start_with(name, args, &[])
    }

    /// As [`Self::start`], with these variables in its environment.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(
        name: &'static str,
        args: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(binary(name)?);
        command.args(args).envs(environment.iter().copied());
        Self::run(name, command)
    }

    /// The same, as `command` has it.
    ///
    /// # Errors
    /// Where it can't be started.
    pub fn run(name: &'static str, mut command: Command) -> anyhow::Result<Self> {
        command.stdin(Stdio::null());
        let child = children::guard(&mut command, Signal::TERM)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name, child })
    }

    /// Ends it as an operator does, and says how it ended.
    ///
    /// # Errors
    /// Where it does not end within 15 s.
    pub async fn end(mut self) -> anyhow::Result<std::process::ExitStatus> {
        children::signal_group(&self.child, Signal::TERM);
        tokio::time::timeout(Duration::from_secs(15), self.child.wait())
            .await
            .with_context(|| format!("waiting for {} to end", self.name))?
            .with_context(|| format!("waiting for {}", self.name))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Gives it a chance to end its own children; the guard's kill follows.
        children::signal_group(&self.child, Signal::TERM);
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The path of a binary of ours.
///
/// # Errors
/// Where it was not built.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test
        .parent()
        .and_then(|deps| deps.parent())
        .context("the test has no target folder")?;
    let path = folder.join(name);
    if !path.exists() {
        bail!(
            "{} is not there: run 'cargo build --workspace' first",
            path.display()
        );
    }
    Ok(path)
}

/// A loopback address with a free TCP port.
///
/// # Errors
/// Where there is none.
pub fn free_tcp() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A loopback address with a free UDP port.
///
/// # Errors
/// Where there is none.
pub fn free_udp() -> anyhow::Result<SocketAddr> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?)
}

/// Waits until `url` answers 200.
///
/// # Errors
/// Where it does not within 20 s.
pub async fn ready(url: &str) -> anyhow::Result<()> {
    eventually(url, Duration::from_secs(20), async || {
        let answer = reqwest::get(url).await;
        Ok(answer
            .is_ok_and(|answer| answer.status().is_success())
            .then_some(()))
    })
    .await
}

/// The value of a metric without labels at `address`.
///
/// # Errors
/// Where the endpoint does not answer or lacks it.
pub async fn metric(address: SocketAddr, name: &str) -> anyhow::Result<f64> {
    let text = reqwest::get(format!("http://{address}/metrics"))
        .await?
        .text()
        .await?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.with_context(|| format!("no metric {name} at {address}"))?
        .parse()
        .context("a metric's value")
}
