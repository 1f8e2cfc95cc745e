//! Capture and encoding: one GStreamer pipeline, however many watch.
//!
//! ```text
//!  videotestsrc / ximagesrc ─► queue (newest frame only) ─► convert ─► x264enc ─► appsink ─► access units
//!  audiotestsrc ─► opusenc ─► appsink ─► audio frames
//! ```
//!
//! Frames are dropped before the encoder, never after it. Each access unit is cut into RTP payloads once, and
//! handed out by a broadcast channel of [`BACKLOG`] frames: a peer that falls behind further learns that it has
//! missed some, and waits for the next keyframe. While nobody watches, the pipeline is paused.
//!
//! A source whose X server hangs blocks whoever changes the pipeline's state, so a thread of its own does that; and
//! [`Media::stalled`] notices that no pictures come any more, of which nothing else tells.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as blocking;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use gstreamer_video as gst_video;
use prometheus::IntCounter;
use rtc::rtp::codec::h264::H264Payloader;
use rtc::rtp::packetizer::Payloader as _;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use penstock_core::units::StreamSize;

use crate::config::{Preset, Source, StreamArgs};
use crate::metrics::Metrics;

/// Frames that a peer may lag behind before it skips to the next keyframe.
pub const BACKLOG: usize = 4;

/// RTP payload bytes a packet: with headers, extensions, SRTP's tag and a relay's header it stays under 1,280, the
/// least that every IPv6 path carries (RFC 8200, section 5).
const PAYLOAD_BYTES: usize = 1150;

/// One encoded picture, cut for RTP.
#[derive(Debug)]
pub struct AccessUnit {
    /// RTP payloads (RFC 6184), in order; the last one gets the marker bit.
    pub payloads: Vec<Bytes>,
    /// Whether a decoder can begin here.
    pub keyframe: bool,
    /// 90 kHz.
    pub timestamp: u32,
    /// When it left the encoder.
    pub encoded: Instant,
}

/// One Opus packet.
#[derive(Debug)]
pub struct AudioFrame {
    /// The RTP payload (RFC 7587).
    pub payload: Bytes,
    /// 48 kHz.
    pub timestamp: u32,
}

/// A running pipeline.
pub(crate) struct Media {
    states: blocking::Sender<StateChange>,
    playing: AtomicBool,
    pictures: IntCounter,
    video: broadcast::Sender<Arc<AccessUnit>>,
    audio: broadcast::Sender<Arc<AudioFrame>>,
    encoder: gst::Element,
    max_kbps: u32,
    has_audio: bool,
    /// Whether a picture has come out of the encoder.
    pub(crate) first_picture: watch::Receiver<bool>,
}

/// A state that the pipeline is to have, and who is told once it does.
type StateChange = (gst::State, oneshot::Sender<()>);

/// Why a pipeline ended by itself.
pub(crate) type Failure = String;

impl Media {
    /// Builds the pipeline for `args` over the X display `display`, and lets it run.
    pub(crate) fn start(
        args: &StreamArgs,
        display: Option<&str>,
        metrics: &Metrics,
    ) -> anyhow::Result<(Self, mpsc::UnboundedReceiver<Failure>)> {
        let text = describe(args, display);
        let pipeline = gst::parse::launch(&text)
            .with_context(|| format!("building the pipeline {text}: is a GStreamer plugin missing?"))?
            .downcast::<gst::Pipeline>()
            .map_err(|_| anyhow!("the pipeline {text} is a single element"))?;
        let (video, _) = broadcast::channel(BACKLOG);
        let (audio, _) = broadcast::channel(4 * BACKLOG);
        let (ready, first_picture) = watch::channel(false);
        take_video(&sink(&pipeline, "video")?, video.clone(), ready, metrics.clone());
        let audio_sink = pipeline.by_name("audio");
        if audio_sink.is_some() {
            take_audio(&sink(&pipeline, "audio")?, audio.clone());
        }
        if args.source == Source::Test {
            paint_frame_counter(&pipeline, args.stream)?;
        }
        count_copies(&pipeline, metrics)?;
        let (failed, failures) = mpsc::unbounded_channel();
        watch_bus(&pipeline, failed.clone())?;
        let media = Self {
            playing: AtomicBool::new(false),
            pictures: metrics.frames.clone(),
            encoder: element(&pipeline, "encoder")?,
            has_audio: audio_sink.is_some(),
            max_kbps: args.bitrate_kbps(),
            states: change_states(pipeline, failed)?,
            video,
            audio,
            first_picture,
        };
        media.set_playing(true)?;
        Ok((media, failures))
    }

    /// Has capture and encoding run or pause. A state that the pipeline does not take is among its failures.
    pub(crate) fn set_playing(&self, playing: bool) -> anyhow::Result<()> {
        let state = if playing {
            gst::State::Playing
        } else {
            gst::State::Paused
        };
        self.playing.store(playing, Ordering::Relaxed);
        self.change_state(state)?;
        Ok(())
    }

    /// Ends capture and encoding for good; waits for that, but not for long.
    pub(crate) async fn stop(&self) {
        self.playing.store(false, Ordering::Relaxed);
        let stopped = async { anyhow::Ok(self.change_state(gst::State::Null)?.await?) };
        match tokio::time::timeout(STOPS_WITHIN, stopped).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the pipeline did not stop"),
            Err(_) => tracing::warn!("the pipeline did not stop in {STOPS_WITHIN:?}, and is left as it is"),
        }
    }

    fn change_state(&self, state: gst::State) -> anyhow::Result<oneshot::Receiver<()>> {
        let (done, is_done) = oneshot::channel();
        self.states
            .send((state, done))
            .ok()
            .with_context(|| format!("setting the pipeline to {state:?}: its thread has ended"))?;
        Ok(is_done)
    }

    /// Waits until the pipeline should run, and has given no picture for [`QUIET_SECONDS`]. Says so.
    pub(crate) async fn stalled(&self) -> Failure {
        let mut quiet = Quiet::default();
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if quiet.second(self.playing.load(Ordering::Relaxed), self.pictures.get()) {
                return format!(
                    "no picture has come for {QUIET_SECONDS} s, as where the X server hangs: look at the process of Xvfb"
                );
            }
        }
    }

    /// The pictures from now on.
    pub(crate) fn video(&self) -> broadcast::Receiver<Arc<AccessUnit>> {
        self.video.subscribe()
    }

    /// The sound from now on; `None` where the source has none.
    pub(crate) fn audio(&self) -> Option<broadcast::Receiver<Arc<AudioFrame>>> {
        self.has_audio.then(|| self.audio.subscribe())
    }

    /// Makes the next picture a keyframe.
    pub(crate) fn force_keyframe(&self) {
        let event = gst_video::UpstreamForceKeyUnitEvent::builder()
            .all_headers(true)
            .build();
        if !self.encoder.send_event(event) {
            tracing::warn!("the encoder took no keyframe request");
        }
    }

    /// Sets the video bitrate, up to the configured one.
    pub(crate) fn set_bitrate_kbps(&self, kbps: u32) {
        self.encoder
            .set_property("bitrate", kbps.clamp(100.min(self.max_kbps), self.max_kbps));
    }

    /// The highest video bitrate.
    pub(crate) fn max_kbps(&self) -> u32 {
        self.max_kbps
    }
}

/// How long no picture may come, or no answer of the X server, in seconds.
const QUIET_SECONDS: u32 = 10;
/// How long its end may take.
const STOPS_WITHIN: Duration = Duration::from_secs(2);

/// For how many seconds none of what should come has come: pictures, or answers. It counts looks, a second apart, not time: where this process itself was
/// stopped for a while, no source is to blame.
#[derive(Default)]
pub(crate) struct Quiet {
    seconds: u32,
    count: u64,
}

impl Quiet {
    /// A second has passed, and so many have come by now. `true` where none came for too long.
    pub(crate) fn second(&mut self, running: bool, count: u64) -> bool {
        let moves = count != std::mem::replace(&mut self.count, count) || !running;
        self.seconds = if moves { 0 } else { self.seconds + 1 };
        self.seconds >= QUIET_SECONDS
    }
}

/// The thread that changes the pipeline's state, and may be held up by that.
fn change_states(
    pipeline: gst::Pipeline,
    failed: mpsc::UnboundedSender<Failure>,
) -> std::io::Result<blocking::Sender<StateChange>> {
    let (changes, wanted) = blocking::channel::<StateChange>();
    let change = move || {
        for (state, done) in wanted {
            if let Err(error) = pipeline.set_state(state) {
                // What an element said of it came before.
                let _ = failed.send(format!("setting it to {state:?}: {error}"));
            }
            // Who asked may not wait.
            let _ = done.send(());
        }
    };
    thread::Builder::new().name("pipeline".to_owned()).spawn(change)?;
    Ok(changes)
}

/// The pipeline as gst-launch-1.0 takes it, but for its sinks' names.
pub fn describe(args: &StreamArgs, display: Option<&str>) -> String {
    let (width, height, fps) = (args.stream.width(), args.stream.height(), args.stream.fps());
    let newest = "queue max-size-buffers=1 max-size-bytes=0 max-size-time=0 leaky=downstream";
    let sink = "sync=false max-buffers=4";
    let mut text = match args.source {
        Source::Test => format!(
            "videotestsrc name=source is-live=true pattern=smpte horizontal-speed=2 \
             ! video/x-raw,format=I420,width={width},height={height},framerate={fps}/1 \
             ! timeoverlay valignment=bottom font-desc=\"Sans, 24\" ! {newest}"
        ),
        Source::X11 => format!(
            "ximagesrc name=source display-name={} use-damage=false show-pointer={} \
             ! video/x-raw,framerate={fps}/1 ! {newest} ! videoscale ! videoconvert \
             ! video/x-raw,format=I420,width={width},height={height}",
            display.unwrap_or(":0"),
            args.show_pointer
        ),
    };
    // Writing to a String does not fail.
    let _ = write!(
        text,
        " ! {} ! appsink name=video {sink}",
        encoder(args.preset, args.bitrate_kbps())
    );
    if args.source == Source::Test {
        let _ = write!(
            text,
            " audiotestsrc is-live=true wave=sine freq=440 volume=0.2 samplesperbuffer=480 \
             ! audio/x-raw,rate=48000,channels=2 \
             ! opusenc frame-size=10 inband-fec=true packet-loss-percentage=5 audio-type=restricted-lowdelay \
             ! appsink name=audio {sink}"
        );
    }
    text
}

/// The encoder with all that makes it fit for a live stream: no B-frames, no look-ahead, keyframes only when asked
/// for, and a rate that holds over a fifth of a second.
pub(crate) fn encoder(preset: Preset, kbps: u32) -> String {
    format!(
        "x264enc name=encoder tune=zerolatency speed-preset={} bitrate={kbps} vbv-buf-capacity=200 \
         key-int-max={X264_KEYINT_INFINITE} bframes=0 \
         ! video/x-h264,profile=constrained-baseline,stream-format=byte-stream,alignment=au",
        preset.name()
    )
}

/// `X264_KEYINT_MAX_INFINITE` of x264.h.
const X264_KEYINT_INFINITE: u32 = 1 << 30;

/// Initialises GStreamer.
pub(crate) fn init() -> anyhow::Result<()> {
    gst::init().context("starting GStreamer")
}

fn element(pipeline: &gst::Pipeline, name: &str) -> anyhow::Result<gst::Element> {
    pipeline
        .by_name(name)
        .with_context(|| format!("the pipeline has no element named {name}"))
}

fn sink(pipeline: &gst::Pipeline, name: &str) -> anyhow::Result<gst_app::AppSink> {
    element(pipeline, name)?
        .downcast()
        .map_err(|_| anyhow!("{name} is no appsink"))
}

fn take_video(
    sink: &gst_app::AppSink,
    out: broadcast::Sender<Arc<AccessUnit>>,
    ready: watch::Sender<bool>,
    metrics: Metrics,
) {
    let mut payloader = H264Payloader::default();
    let callbacks = gst_app::AppSinkCallbacks::builder().new_sample(move |sink| {
        let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        let unit = access_unit(&mut payloader, &sample).ok_or(gst::FlowError::Error)?;
        metrics.frames.inc();
        metrics.keyframes.inc_by(u64::from(unit.keyframe));
        metrics
            .encoded_bytes
            .inc_by(unit.payloads.iter().map(|p| p.len() as u64).sum());
        // Nobody may be watching.
        let _ = out.send(Arc::new(unit));
        ready.send_if_modified(|ready| !std::mem::replace(ready, true));
        Ok(gst::FlowSuccess::Ok)
    });
    sink.set_callbacks(callbacks.build());
}

fn take_audio(sink: &gst_app::AppSink, out: broadcast::Sender<Arc<AudioFrame>>) {
    let callbacks = gst_app::AppSinkCallbacks::builder().new_sample(move |sink| {
        let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        let (payload, running) = bytes_of(&sample).ok_or(gst::FlowError::Error)?;
        let _ = out.send(Arc::new(AudioFrame {
            payload,
            timestamp: ticks(running, 48_000),
        }));
        Ok(gst::FlowSuccess::Ok)
    });
    sink.set_callbacks(callbacks.build());
}

fn access_unit(payloader: &mut H264Payloader, sample: &gst::Sample) -> Option<AccessUnit> {
    let keyframe = !sample.buffer()?.flags().contains(gst::BufferFlags::DELTA_UNIT);
    let (data, running) = bytes_of(sample)?;
    let payloads = payloader.payload(PAYLOAD_BYTES, &data).ok()?;
    Some(AccessUnit {
        payloads,
        keyframe,
        timestamp: ticks(running, 90_000),
        encoded: Instant::now(),
    })
}

/// A sample's bytes, not copied, and its running time.
fn bytes_of(sample: &gst::Sample) -> Option<(Bytes, gst::ClockTime)> {
    let buffer = sample.buffer_owned()?;
    // x264enc shifts its time stamps by 1,000 hours; the segment takes that back.
    let running = sample
        .segment()?
        .downcast_ref::<gst::ClockTime>()?
        .to_running_time(buffer.pts()?)?;
    let mapped = buffer.into_mapped_buffer_readable().ok()?;
    Some((Bytes::from_owner(mapped), running))
}

/// RTP time: wraps after 2^32 ticks, as it should (RFC 3550, section 5.1).
fn ticks(time: gst::ClockTime, rate: u64) -> u32 {
    let ticks = u128::from(time.nseconds()) * u128::from(rate) / 1_000_000_000;
    ticks as u32
}

/// Paints the frame's number into the picture's top as 16 black or white cells, most significant bit first, so that
/// a program can read from the picture which frame it sees.
fn paint_frame_counter(pipeline: &gst::Pipeline, size: StreamSize) -> anyhow::Result<()> {
    let pad = element(pipeline, "source")?
        .static_pad("src")
        .context("the source has no pad")?;
    let mut frame: u16 = 0;
    let frame = std::sync::Mutex::new(move || {
        frame = frame.wrapping_add(1);
        frame
    });
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let (Some(buffer), Ok(mut next)) = (info.buffer_mut(), frame.lock())
            && let Ok(mut picture) = buffer.make_mut().map_writable()
        {
            paint(picture.as_mut_slice(), size, next());
        }
        gst::PadProbeReturn::Ok
    });
    Ok(())
}

/// Paints the 16 cells into the luma plane of an I420 picture.
fn paint(luma: &mut [u8], size: StreamSize, number: u16) {
    // GStreamer pads the rows of I420 to 4 bytes.
    let stride = (size.width() as usize).next_multiple_of(4);
    let cell = size.width() as usize / 16;
    for row in luma.chunks_mut(stride).take(size.height() as usize / 16) {
        for bit in 0..16 {
            let level = if number & (0x8000 >> bit) == 0 { 16 } else { 235 };
            if let Some(cells) = row.get_mut(bit * cell..(bit + 1) * cell) {
                cells.fill(level);
            }
        }
    }
}

/// Counts raw bytes that are written between capture and encoder: what the source fills, and what a conversion
/// writes again.
fn count_copies(pipeline: &gst::Pipeline, metrics: &Metrics) -> anyhow::Result<()> {
    let source = element(pipeline, "source")?.static_pad("src");
    let encoder = element(pipeline, "encoder")?.static_pad("sink");
    for pad in [source, encoder].into_iter().flatten() {
        let copied = metrics.copied_bytes.clone();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            copied.inc_by(info.buffer().map_or(0, |buffer| buffer.size() as u64));
            gst::PadProbeReturn::Ok
        });
    }
    Ok(())
}

/// Hands on errors and ends of the pipeline; it posts nothing else that matters here.
fn watch_bus(pipeline: &gst::Pipeline, failed: mpsc::UnboundedSender<Failure>) -> anyhow::Result<()> {
    let bus = pipeline.bus().context("the pipeline has no bus")?;
    bus.set_sync_handler(move |_, message| {
        let failure = match message.view() {
            gst::MessageView::Error(error) => {
                let from = error.src().map(|src| src.name().to_string()).unwrap_or_default();
                Some(format!("{from}: {}", error.error()))
            }
            gst::MessageView::Eos(_) => Some("the source ended".to_owned()),
            _ => None,
        };
        if let Some(failure) = failure {
            // Only fails once the process is ending.
            let _ = failed.send(failure);
        }
        gst::BusSyncReply::Drop
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_counter_is_sixteen_cells_across_the_top() {
        let size: StreamSize = "64x32@30".parse().unwrap();
        let mut picture = vec![100; 64 * 32 * 3 / 2];
        paint(&mut picture, size, 0b1000_0000_0000_0101);
        let read: Vec<bool> = (0..16).map(|cell| picture[cell * 4 + 2] > 128).collect();
        let bits = (0..16).map(|bit| 0b1000_0000_0000_0101u16 & (0x8000 >> bit) != 0);
        assert!(bits.eq(read));
        assert_eq!(picture[64 * 2], 100);
    }

    #[test]
    fn only_a_pipeline_that_should_run_is_quiet_for_too_long() {
        let mut quiet = Quiet::default();
        let mut seconds = |n: u32, playing, pictures| (0..n).any(|_| quiet.second(playing, pictures));
        assert!(!seconds(1, true, 7));
        assert!(!seconds(QUIET_SECONDS - 1, true, 7));
        assert!(!seconds(1, true, 8));
        assert!(!seconds(3 * QUIET_SECONDS, false, 8));
        assert!(!seconds(QUIET_SECONDS - 1, true, 8));
        assert!(seconds(1, true, 8));
    }

    #[tokio::test]
    async fn an_x_server_that_hangs_is_noticed_and_holds_up_nothing() {
        use clap::Parser as _;
        let cli = crate::config::Cli::parse_from([
            "penstock-streamer",
            "--source",
            "x11",
            "--stream",
            "320x240@30",
        ]);
        let args = cli.stream;
        init().unwrap();
        let display = crate::display::Display::open(&args).await.unwrap();
        let (media, _failures) = Media::start(&args, Some(&display.name), &Metrics::new().unwrap()).unwrap();
        media.first_picture.clone().wait_for(|seen| *seen).await.unwrap();
        let server = rustix::process::Pid::from_raw(display.server_pid().unwrap() as i32).unwrap();
        rustix::process::kill_process(server, rustix::process::Signal::STOP).unwrap();
        let patience = Duration::from_secs(QUIET_SECONDS.into()) * 2;
        let said = tokio::time::timeout(patience, media.stalled()).await.unwrap();
        assert!(said.contains("no picture"), "{said}");
        let before = Instant::now();
        media.set_playing(false).unwrap();
        media.stop().await;
        assert!(before.elapsed() < STOPS_WITHIN * 2);
        // Xlib would end this process were its server to go; so it goes on, and the pipeline ends.
        rustix::process::kill_process(server, rustix::process::Signal::CONT).unwrap();
        media.stop().await;
        display.close().await;
    }

    #[test]
    fn rtp_time_wraps() {
        assert_eq!(ticks(gst::ClockTime::from_seconds(1), 90_000), 90_000);
        let wrap = (1u64 << 32) / 90_000 + 1;
        assert_eq!(
            u64::from(ticks(gst::ClockTime::from_seconds(wrap), 90_000)),
            wrap * 90_000 - (1 << 32)
        );
    }
}
