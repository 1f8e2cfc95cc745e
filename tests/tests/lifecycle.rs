//! What the programs do at their edges: refusals, and what is left when they end.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use penstock_tests::programs::{Program, binary, free_tcp, free_udp, ready};
use penstock_tests::{eventually, stage::Stage};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a_stream_over_the_slices_units_is_refused_with_the_sizes_that_fit() -> anyhow::Result<()> {
    let refused = Command::new(binary("penstock-streamer")?)
        .args(["--source", "test", "--stream", "1920x1080@60"])
        .env("PENSTOCK_NVENC_UNITS", "3")
        .output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(
        said.contains("takes 13 encoder units and this slice has 3"),
        "{said}"
    );
    assert!(said.contains("1280x720@30"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_streamer_on_a_taken_port_says_so() -> anyhow::Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let refused = Command::new(binary("penstock-streamer")?)
        .args(["--listen", &address])
        .output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains(&address) && said.contains("--listen"), "{said}");
    Ok(())
}

/// A container may begin with a limit that a few hundred players reach.
#[tokio::test]
async fn programs_that_have_many_connections_open_as_many_files_as_they_may() -> anyhow::Result<()> {
    let (web, relay, metrics) = (
        free_tcp()?.to_string(),
        free_udp()?.to_string(),
        free_tcp()?.to_string(),
    );
    let streamer = free_tcp()?.to_string();
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("index.html"), "")?;
    let page = folder.path().to_string_lossy();
    let matchmaker = ["--listen", &web, "--streamer", &streamer, "--page", &page];
    let turn = ["--listen", &relay, "--metrics-listen", &metrics, "--user", "a:b"];
    for (name, args) in [("penstock-matchmaker", &matchmaker[..]), ("penstock-turn", &turn)] {
        let mut command = tokio::process::Command::new("sh");
        command
            .args(["-c", "ulimit -Sn 256; exec \"$0\" \"$@\""])
            .arg(binary(name)?)
            .args(args);
        let program = Program::run(name, command)?;
        let limits = format!("/proc/{}/limits", program.child.id().unwrap_or_default());
        eventually(
            &format!("{name} raises its limit"),
            Duration::from_secs(10),
            async || {
                let limits = std::fs::read_to_string(&limits)?;
                let line = limits
                    .lines()
                    .find_map(|line| line.strip_prefix("Max open files"));
                let words: Vec<_> = line.unwrap_or_default().split_whitespace().collect();
                Ok((words.len() == 3 && words[0] == words[1] && words[0] != "256").then_some(()))
            },
        )
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn other_users_may_not_use_the_display() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can be another user");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let says = folder.path().join("display");
    let app = format!("echo $DISPLAY > {}; exec sleep 1000", says.display());
    let listen = free_tcp()?.to_string();
    let args = ["--source", "x11", "--app", &app, "--listen", &listen];
    let _streamer = Program::start("penstock-streamer", &args)?;
    let display = eventually("the display", Duration::from_secs(10), async || {
        let display = std::fs::read_to_string(&says).unwrap_or_default();
        Ok(display.strip_suffix('\n').map(str::to_owned))
    })
    .await?;
    assert_eq!(connects(&display, 0)?, "1", "our own user may");
    assert_eq!(connects(&display, NOBODY)?, "0");
    Ok(())
}

const NOBODY: u32 = 65534;

/// What an X server answers first to `user` without a secret: 1 for yes, 0 for no.
fn connects(display: &str, user: u32) -> anyhow::Result<String> {
    let script = "import socket, sys\n\
                  s = socket.socket(socket.AF_UNIX)\n\
                  s.connect('/tmp/.X11-unix/X' + sys.argv[1][1:])\n\
                  s.sendall(b'l\\0' + bytes([11, 0]) + bytes(8))\n\
                  print(s.recv(1)[0])";
    let output = Command::new("python3")
        .args(["-c", script, display])
        .uid(user)
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[tokio::test]
async fn an_application_that_ends_is_started_again() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (log, listen) = (folder.path().join("runs"), free_tcp()?.to_string());
    let app = format!("echo run >> {}; sleep 0.2", log.display());
    let _streamer = Program::start(
        "penstock-streamer",
        &["--source", "x11", "--app", &app, "--listen", &listen],
    )?;
    ready(&format!("http://{listen}/readyz")).await?;
    eventually("three runs", Duration::from_secs(15), async || {
        let runs = std::fs::read_to_string(&log).unwrap_or_default().lines().count();
        Ok((runs >= 3).then_some(()))
    })
    .await
}

/// The application leaves a process behind that has cut every tie to its parent.
#[tokio::test]
async fn nothing_is_left_when_the_agent_is_killed() -> anyhow::Result<()> {
    let marker = format!("1{:07}", std::process::id());
    let app = format!("setsid setsid sleep {marker} & exec sleep {marker}");
    let stage = Stage::start(1, &["--source", "x11", "--app", &app]).await?;
    eventually("the application", Duration::from_secs(10), async || {
        Ok((running(&marker)? >= 2 && running("Xvfb")? >= 1).then_some(()))
    })
    .await?;
    let slice = stage.slices().await?.remove(0);
    let agent = stage.pids()[1];
    kill_process(Pid::from_raw(agent as i32).expect("a pid"), Signal::KILL)?;
    eventually("nothing is left", Duration::from_secs(10), async || {
        let streamer = slice
            .pid
            .is_some_and(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists());
        Ok((running(&marker)? == 0 && !streamer).then_some(()))
    })
    .await
}

/// Processes whose command line contains `text`.
fn running(text: &str) -> anyhow::Result<usize> {
    let mut count = 0;
    for process in std::fs::read_dir("/proc")? {
        let command = std::fs::read(process?.path().join("cmdline")).unwrap_or_default();
        let own = command.windows(6).any(|part| part == b"nextes");
        count += usize::from(!own && String::from_utf8_lossy(&command).contains(text));
    }
    Ok(count)
}
