//! What a streamer costs beside the bare encoder, and how soon a player sees the first picture.
//!
//! CPU: one streamer with one viewer in Chromium, and `gst-launch-1.0` with the very same pipeline into a fakesink,
//! in turns over one X display with a moving picture. User and system time of the process, all threads.
//!
//! First frame: from the start of a page's load, in a browser started anew with a fresh profile, to its first
//! decoded frame; the median of 20, with the moments on the way there. The browser is given time to start first: for a
//! second it loads pages of its own.
//!
//! The last line is `RESULT cpu_ratio=… first_frame_ms=…`. With an argument, `cpu` or `first-frame`, only that is
//! measured.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use penstock_core::wire::status::StreamerState;
use penstock_tests::browser::{Browser, Page};
use penstock_tests::eventually;
use penstock_tests::programs::{Program, binary, free_tcp, free_udp, ready};
use penstock_tests::stage::{RelayOver, TEST_SOURCE, plays, start_matchmaker, start_turn, status};
use rustix::process::Signal;
use tokio::process::Command;

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
    // cargo passes `--bench` as well.
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let (cpu, first_frame) = match only.as_deref() {
        None => (true, true),
        Some("cpu") => (true, false),
        Some("first-frame") => (false, true),
        Some(other) => bail!("{other}: there are `cpu` and `first-frame`"),
    };
    let mut result = "RESULT".to_owned();
    if cpu {
        write!(result, " cpu_ratio={:.3}", cpu_ratio().await?)?;
    }
    if first_frame {
        write!(result, " first_frame_ms={:.0}", first_frame_ms().await?)?;
    }
    println!("{result}");
    Ok(())
}

async fn cpu_ratio() -> anyhow::Result<f64> {
    let folder = tempfile::tempdir()?;
    let (_picture, display) = moving_picture(folder.path()).await?;
    let mut ratios = Vec::new();
    for turn in 1..=TURNS {
        let ours = streamer_cpu(&display).await?;
        let bare = encoder_cpu(&display).await?;
        println!("turn {turn}: streamer {ours:.3} CPU-s, gst-launch {bare:.3} CPU-s in {MEASURE:?}");
        ratios.push(ours / bare);
    }
    Ok(median(&mut ratios))
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

/// A streamer with its matchmaker and TURN server, and no agent.
struct Line {
    streamer: Program,
    _matchmaker: Program,
    _turn: Program,
    streamer_at: SocketAddr,
    web: SocketAddr,
}

impl Line {
    async fn start(source: &[&str]) -> anyhow::Result<Self> {
        let (streamer_at, web, turn_metrics, relay) = (free_tcp()?, free_tcp()?, free_tcp()?, free_udp()?);
        let over = RelayOver::Udp;
        // Over UDP it reads nothing there.
        let turn = start_turn(relay, over, Path::new("/"), turn_metrics)?;
        let listen = streamer_at.to_string();
        // A browser that is killed would have its place kept for the next one to wait for.
        let own = ["--listen", &listen, "--return-grace", "0"];
        let streamer = Program::start("penstock-streamer", &[source, &own[..]].concat())?;
        ready(&format!("http://{streamer_at}/readyz")).await?;
        let matchmaker = start_matchmaker(web, ["--streamer", &listen], &over.url(relay))?;
        ready(&format!("http://{web}/readyz")).await?;
        Ok(Self {
            streamer,
            _matchmaker: matchmaker,
            _turn: turn,
            streamer_at,
            web,
        })
    }

    /// Waits until the streamer can take a player, and the matchmaker has heard of it.
    async fn free(&self) -> anyhow::Result<()> {
        eventually("a free streamer", Duration::from_secs(20), async || {
            let free = status(self.streamer_at).await?.state == StreamerState::Free;
            Ok(free.then_some(()))
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(())
    }

    /// Opens the page in `browser`.
    async fn page(&self, browser: &mut Browser) -> anyhow::Result<Page> {
        self.free().await?;
        browser.open(&format!("http://{}/", self.web)).await
    }
}

async fn streamer_cpu(display: &str) -> anyhow::Result<f64> {
    let line = Line::start(&["--source", "x11", "--display", display, "--media-ip", "127.0.0.1"]).await?;
    let mut browser = Browser::start().await?;
    let mut page = line.page(&mut browser).await?;
    plays(&mut page).await?;
    measure(line.streamer.child.id().context("the streamer has ended")?).await
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

/// An X display with a moving picture on it. It is of a streamer that nobody watches, and which so is idle.
async fn moving_picture(folder: &Path) -> anyhow::Result<(Program, String)> {
    let said = folder.join("display");
    let app = format!(
        "echo $DISPLAY >'{}'; exec gst-launch-1.0 -q videotestsrc pattern=smpte horizontal-speed=4 is-live=true \
         ! video/x-raw,width=1280,height=720,framerate=30/1 ! videoconvert ! ximagesink",
        said.display()
    );
    let listen = free_tcp()?.to_string();
    let server = Program::start(
        "penstock-streamer",
        &["--source", "x11", "--app", &app, "--listen", &listen],
    )?;
    ready(&format!("http://{listen}/readyz")).await?;
    let display = eventually("the picture's display", Duration::from_secs(10), async || {
        let display = std::fs::read_to_string(&said).unwrap_or_default();
        Ok(display.ends_with('\n').then(|| display.trim().to_owned()))
    })
    .await?;
    Ok((server, display))
}

/// The median of all page loads.
/// The median of all page loads.
async fn first_frame_ms() -> anyhow::Result<f64> {
    let line = Line::start(&TEST_SOURCE).await?;
    let mut loads: [Vec<f64>; MOMENTS.len()] = Default::default();
    for load in 1..=PAGE_LOADS {
        let mut browser = Browser::start().await?;
        tokio::time::sleep(SETTLE).await;
        let mut page = line.page(&mut browser).await?;
        let moments = moments(&mut page).await?;
        println!("page load {load}: {}", told(moments));
        for (all, ms) in loads.iter_mut().zip(moments) {
            all.push(ms);
        }
    }
    let medians = loads.map(|mut ms| median(&mut ms));
    println!("medians: {}", told(medians));
    Ok(medians[MOMENTS.len() - 1])
}

/// What the page notes on its way to the first frame, in this order.
const MOMENTS: [&str; 6] = ["connect", "open", "offer", "answer", "connected", "firstFrame"];

/// When they were, in milliseconds since the page began to load.
async fn moments(page: &mut Page) -> anyhow::Result<[f64; MOMENTS.len()]> {
    page.until("penstock.times.firstFrame", Duration::from_secs(20))
        .await?;
    let times = page.eval("penstock.times").await?;
    let mut moments = [0.0; MOMENTS.len()];
    for (ms, what) in moments.iter_mut().zip(MOMENTS) {
        *ms = times[what]
            .as_f64()
            .with_context(|| format!("the page has no time for {what}"))?;
    }
    Ok(moments)
}

fn told(moments: [f64; MOMENTS.len()]) -> String {
    let each = MOMENTS
        .iter()
        .zip(moments)
        .map(|(what, ms)| format!("{what} {ms:.0}"));
    each.collect::<Vec<_>>().join(", ") + " ms"
}
