//! A streamer's processes: its X server may hang, and its application may leave many orphans.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A streamer of a small X display, killed when dropped.
struct Streamer {
    process: Child,
    address: SocketAddr,
    log: tempfile::NamedTempFile,
}

impl Streamer {
    fn start(args: &[&str]) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = tempfile::NamedTempFile::new().unwrap();
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
            .stderr(log.reopen().unwrap())
            .process_group(0);
        let process = command.spawn().unwrap();
        let streamer = Self {
            process,
            address,
            log,
        };
        eventually(30, || streamer.is_ready()).expect("it was never ready");
        streamer
    }

    fn is_ready(&self) -> bool {
        let ask = || {
            let mut stream = TcpStream::connect(self.address)?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            std::io::Result::Ok(answer)
        };
        ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.process.id() as i32).unwrap(), signal).unwrap();
    }

    /// Its children: command, state and process ID.
    fn children(&self) -> Vec<(String, String, u32)> {
        let mut children = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
                continue;
            };
            let (Some((pid, rest)), Some((_, after))) = (stat.split_once(" ("), stat.rsplit_once(") "))
            else {
                continue;
            };
            let fields: Vec<_> = after.split(' ').collect();
            if fields[1] == self.process.id().to_string() {
                let name = rest.split(')').next().unwrap().to_owned();
                children.push((name, fields[0].to_owned(), pid.parse().unwrap()));
            }
        }
        children
    }

    fn x_server(&self) -> Pid {
        let found = self.children().into_iter().find(|(name, ..)| name == "Xvfb");
        Pid::from_raw(found.expect("it has no X server").2 as i32).unwrap()
    }

    fn zombies(&self) -> usize {
        self.children()
            .iter()
            .filter(|(_, state, _)| state == "Z")
            .count()
    }

    fn ends_within(&mut self, seconds: u64) -> Option<ExitStatus> {
        eventually(seconds, || self.process.try_wait().unwrap().is_some())?;
        self.process.try_wait().unwrap()
    }

    fn log(&self) -> String {
        let mut text = String::new();
        File::open(self.log.path())
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }
}

impl Drop for Streamer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        eprint!("{}", self.log());
    }
}

fn eventually(seconds: u64, mut what: impl FnMut() -> bool) -> Option<()> {
    let until = Instant::now() + Duration::from_secs(seconds);
    while !what() {
        if Instant::now() > until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Some(())
}

#[test]
fn a_streamer_whose_x_server_hangs_ends_when_told_to() {
    let mut streamer = Streamer::start(&["--app", "sleep 1000"]);
    kill_process(streamer.x_server(), Signal::STOP).unwrap();
    streamer.signal(Signal::TERM);
    assert!(streamer.ends_within(8).is_some());
}

#[test]
fn a_streamer_whose_x_server_hangs_ends_with_an_error_though_nobody_plays() {
    let mut streamer = Streamer::start(&["--app", "sleep 1000"]);
    kill_process(streamer.x_server(), Signal::STOP).unwrap();
    let status = streamer.ends_within(25).expect("it goes on");
    assert!(!status.success());
    assert!(streamer.log().contains("answers no more"));
}

const LEAVES_ORPHANS: &str = "while sleep 0.1; do (setsid sleep 0.05 &); done";

#[test]
fn orphans_are_reaped_while_the_application_runs() {
    let streamer = Streamer::start(&["--app", LEAVES_ORPHANS]);
    std::thread::sleep(Duration::from_secs(5));
    let zombies = streamer.zombies();
    assert!(zombies < 12, "{zombies} zombies of about 50 orphans");
}

#[test]
fn orphans_are_reaped_over_the_display_of_another_too() {
    let other = Streamer::start(&["--serve-display", ":4471"]);
    let streamer = Streamer::start(&["--display", ":4471", "--app", LEAVES_ORPHANS]);
    std::thread::sleep(Duration::from_secs(5));
    let zombies = streamer.zombies();
    assert!(zombies < 12, "{zombies} zombies of about 50 orphans");
    drop(streamer);
    drop(other);
}

#[test]
fn an_application_that_ends_keeps_its_exit_status() {
    let streamer = Streamer::start(&["--app", "(setsid sleep 0.01 &); sleep 0.6; exit 3"]);
    eventually(15, || streamer.log().matches("exit status: 3").count() >= 3).expect("it ended thrice");
}
