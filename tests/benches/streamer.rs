//! What a streamer costs beside the bare encoder, and how soon a player sees the first picture.
//!
//! CPU: one streamer with one viewer in Chromium, and `gst-launch-1.0` with the very same pipeline into a fakesink,
//! in turns over one X display with a moving picture. User and system time of the process, all threads.
//!
//! First frame: from the start of a page's load, in a browser started anew with a fresh profile, to its first
//! decoded frame; the median of 20.
//!
//! The last line is `RESULT cpu_ratio=… first_frame_ms=…`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use penstock_tests::browser::Browser;
use penstock_tests::programs::{Program, binary, free_tcp, ready};
use penstock_tests::stage::{Stage, TEST_SOURCE, plays};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

const TURNS: usize = 5;
const MEASURE: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(2);
const PAGE_LOADS: usize = 20;

fn main() -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(bench())
}

async fn bench() -> anyhow::Result<()> {
    let (_server, display) = x_server().await?;
    let _picture = moving_picture(&display)?;
    let mut ratios = Vec::new();
    for turn in 1..=TURNS {
        let ours = streamer_cpu(&display).await?;
        let bare = encoder_cpu(&display).await?;
        println!("turn {turn}: streamer {ours:.3} CPU-s, gst-launch {bare:.3} CPU-s in {MEASURE:?}");
        ratios.push(ours / bare);
    }
    let mut loads = Vec::new();
    for load in 1..=PAGE_LOADS {
        let first_frame = first_frame_ms().await?;
        println!("page load {load}: first frame after {first_frame:.0} ms");
        loads.push(first_frame);
    }
    println!(
        "RESULT cpu_ratio={:.3} first_frame_ms={:.0}",
        median(&mut ratios),
        median(&mut loads)
    );
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    }
}

async fn streamer_cpu(display: &str) -> anyhow::Result<f64> {
    let (listen, web) = (free_tcp()?.to_string(), free_tcp()?.to_string());
    let streamer = Program::start(
        "penstock-streamer",
        &[
            "--source",
            "x11",
            "--display",
            display,
            "--listen",
            &listen,
            "--media-ip",
            "127.0.0.1",
        ],
    )?;
    ready(&format!("http://{listen}/readyz")).await?;
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../player/dist");
    let page = page.to_string_lossy();
    let matchmaker = ["--listen", &web, "--streamer", &listen, "--page", &page];
    let _matchmaker = Program::start("penstock-matchmaker", &matchmaker)?;
    ready(&format!("http://{web}/readyz")).await?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&format!("http://{web}/")).await?;
    plays(&mut page).await?;
    measure(streamer.child.id().context("the streamer has ended")?).await
}

async fn encoder_cpu(display: &str) -> anyhow::Result<f64> {
    let printed = Command::new(binary("penstock-streamer")?)
        .args(["--source", "x11", "--display", display, "--print-pipeline"])
        .output()
        .await?;
    let pipeline = String::from_utf8(printed.stdout)?
        .replace("appsink", "fakesink")
        .replace("max-buffers=4", "");
    let mut command = Command::new("gst-launch-1.0");
    command
        .arg("-q")
        .args(pipeline.split_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let encoder = penstock_shell::children::guard(&mut command, Signal::KILL).spawn()?;
    measure(encoder.id().context("gst-launch has ended")?).await
}

/// CPU seconds of a process over [`MEASURE`], once it has settled.
async fn measure(pid: u32) -> anyhow::Result<f64> {
    tokio::time::sleep(SETTLE).await;
    let before = cpu_seconds(pid)?;
    tokio::time::sleep(MEASURE).await;
    Ok(cpu_seconds(pid)? - before)
}

/// User and system time from `/proc/<pid>/stat`, fields 14 and 15, in ticks (proc(5)).
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
    let (_, fields) = stat.rsplit_once(')').context("a stat line without a name")?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3).and_then(|ticks| ticks.parse::<f64>().ok());
    let (user, system) = (
        ticks(14).context("no user time")?,
        ticks(15).context("no system time")?,
    );
    Ok((user + system) / rustix::param::clock_ticks_per_second() as f64)
}

async fn x_server() -> anyhow::Result<(Child, String)> {
    let mut command = Command::new("Xvfb");
    command.args([
        "-displayfd",
        "1",
        "-screen",
        "0",
        "1280x720x24",
        "-nolisten",
        "tcp",
        "-noreset",
    ]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut server = penstock_shell::children::guard(&mut command, Signal::KILL).spawn()?;
    let mut lines = BufReader::new(server.stdout.take().context("Xvfb has no output")?).lines();
    match lines.next_line().await? {
        Some(number) => Ok((server, format!(":{number}"))),
        None => bail!("Xvfb ended at once"),
    }
}

fn moving_picture(display: &str) -> anyhow::Result<Child> {
    let pipeline = "videotestsrc pattern=smpte horizontal-speed=4 is-live=true \
                    ! video/x-raw,width=1280,height=720,framerate=30/1 ! videoconvert ! ximagesink";
    let mut command = Command::new("gst-launch-1.0");
    command
        .arg("-q")
        .args(pipeline.split_whitespace())
        .arg(format!("display={display}"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(penstock_shell::children::guard(&mut command, Signal::KILL).spawn()?)
}

async fn first_frame_ms() -> anyhow::Result<f64> {
    let stage = Stage::start(1, &TEST_SOURCE).await?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("")).await?;
    let first = page
        .until("penstock.times.firstFrame", Duration::from_secs(20))
        .await?;
    first.as_f64().context("the first frame has no time")
}
