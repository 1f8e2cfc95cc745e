//! A streamer's processes: its X server may hang, and its application may leave many orphans.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// A streamer of a small X display, killed when dropped.
struct Streamer {
    process: Child,
    address: SocketAddr,
    log: tempfile::NamedTempFile,
}

impl Streamer {
    fn start(args: &[&str]) -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = tempfile::NamedTempFile::new()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-streamer"));
        command
            .args([
                "--source",
                "x11",
                "--stream",
                "320x240@30",
                "--media-ip",
                "127.0.0.1",
            ])
            .args(["--listen", &address.to_string()])
            .args(args)
            .stdin(Stdio::null())
            .stderr(log.reopen()?)
            .process_group(0);
        let process = command.spawn()?;
        let streamer = Self {
            process,
            address,
            log,
        };
        eventually("it is ready", 30, || {
            Ok(streamer.is_ready().unwrap_or(false).then_some(()))
        })?;
        Ok(streamer)
    }

    fn is_ready(&self) -> anyhow::Result<bool> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    }

    fn end(&self) -> anyhow::Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.process.id())?).context("a pid")?;
        Ok(kill_process(pid, Signal::TERM)?)
    }

    /// Its children: command, state and process ID.
    fn children(&self) -> anyhow::Result<Vec<(String, String, i32)>> {
        let own = self.process.id().to_string();
        let child = |stat: String| {
            let (pid, rest) = stat.split_once(" (")?;
            let (name, after) = rest.rsplit_once(") ")?;
            let mut fields = after.split(' ');
            let (state, parent) = (fields.next()?, fields.next()?);
            (parent == own).then_some((name.to_owned(), state.to_owned(), pid.parse().ok()?))
        };
        let processes = std::fs::read_dir("/proc")?.flatten();
        let stats = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
        Ok(stats.filter_map(child).collect())
    }

    fn stop_x_server(&self) -> anyhow::Result<()> {
        let found = self.children()?.into_iter().find(|(name, ..)| name == "Xvfb");
        let pid = Pid::from_raw(found.context("it has no X server")?.2).context("a pid")?;
        Ok(kill_process(pid, Signal::STOP)?)
    }

    fn zombies(&self) -> anyhow::Result<usize> {
        Ok(self
            .children()?
            .iter()
            .filter(|(_, state, _)| state == "Z")
            .count())
    }

    fn ends_within(&mut self, seconds: u64) -> anyhow::Result<ExitStatus> {
        eventually("it ends", seconds, || Ok(self.process.try_wait()?))
    }

    fn log(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.log.path())?)
    }
}

impl Drop for Streamer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        eprint!("{}", self.log().unwrap_or_default());
    }
}

fn eventually<T>(
    what: &str,
    seconds: u64,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let until = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        ensure!(Instant::now() < until, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_streamer_whose_x_server_hangs_ends_when_told_to() -> anyhow::Result<()> {
    let mut streamer = Streamer::start(&["--app", "sleep 1000"])?;
    streamer.stop_x_server()?;
    streamer.end()?;
    streamer.ends_within(8)?;
    Ok(())
}

#[test]
fn a_streamer_whose_x_server_hangs_ends_with_an_error_though_nobody_plays() -> anyhow::Result<()> {
    let mut streamer = Streamer::start(&["--app", "sleep 1000"])?;
    streamer.stop_x_server()?;
    assert!(!streamer.ends_within(25)?.success());
    assert!(streamer.log()?.contains("answers no more"));
    Ok(())
}

const LEAVES_ORPHANS: &str = "while sleep 0.1; do (setsid sleep 0.05 &); done";

#[test]
fn orphans_are_reaped_while_the_application_runs() -> anyhow::Result<()> {
    let streamer = Streamer::start(&["--app", LEAVES_ORPHANS])?;
    std::thread::sleep(Duration::from_secs(5));
    let zombies = streamer.zombies()?;
    assert!(zombies < 12, "{zombies} zombies of about 50 orphans");
    Ok(())
}

#[test]
fn orphans_are_reaped_over_the_display_of_another_too() -> anyhow::Result<()> {
    let display = format!(":{}", 20_000 + std::process::id() % 10_000);
    let _other = Streamer::start(&["--serve-display", &display])?;
    let streamer = Streamer::start(&["--display", &display, "--app", LEAVES_ORPHANS])?;
    std::thread::sleep(Duration::from_secs(5));
    let zombies = streamer.zombies()?;
    assert!(zombies < 12, "{zombies} zombies of about 50 orphans");
    Ok(())
}

#[test]
fn an_application_that_ends_keeps_its_exit_status() -> anyhow::Result<()> {
    let streamer = Streamer::start(&["--app", "(setsid sleep 0.01 &); sleep 0.6; exit 3"])?;
    eventually("it ended thrice", 15, || {
        let ended = streamer.log()?.matches("exit status: 3").count();
        Ok((ended >= 3).then_some(()))
    })
}
