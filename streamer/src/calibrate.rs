//! Measures how much this machine can encode.

use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use gstreamer as gst;
use gstreamer::prelude::*;
use serde::Serialize;

use crate::config::CalibrateArgs;
use crate::media;

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Calibration {
    /// GStreamer's name of the encoder.
    pub encoder: &'static str,
    /// Throughput with every core at it, in millions of pixels per second.
    pub megapixels_per_second: f64,
}

const WIDTH: u32 = 1280;
const HEIGHT: u32 = 720;

/// Encodes 720p as fast as it goes, in as many pipelines as there are cores, for `args.seconds`.
///
/// # Errors
/// Where an encoder can't be started or encodes nothing.
pub fn calibrate(args: &CalibrateArgs) -> anyhow::Result<Calibration> {
    media::init()?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let pipelines: Vec<_> = (0..cores).map(|_| launch(args)).collect::<Result<_, _>>()?;
    let start = Instant::now();
    for pipeline in &pipelines {
        pipeline
            .set_state(gst::State::Playing)
            .context("starting an encoder")?;
    }
    std::thread::sleep(Duration::from_secs(args.seconds));
    let frames: u64 = pipelines.iter().map(encoded).sum::<anyhow::Result<u64>>()?;
    let seconds = start.elapsed().as_secs_f64();
    for pipeline in &pipelines {
        // The process ends soon; a pipeline that will not stop does no harm.
        let _ = pipeline.set_state(gst::State::Null);
    }
    if frames == 0 {
        bail!(
            "no frame was encoded within {} s: choose a longer --seconds",
            args.seconds
        );
    }
    let pixels = frames as f64 * f64::from(WIDTH * HEIGHT);
    Ok(Calibration {
        encoder: "x264enc",
        megapixels_per_second: (pixels / seconds / 1e5).round() / 10.0,
    })
}

/// One thread an encoder: with a pipeline for each core, more would only get into each other's way. Snow would be
/// harder to encode than any application, a still picture easier; a moving pattern is in between.
fn launch(args: &CalibrateArgs) -> anyhow::Result<gst::Pipeline> {
    let encoder = media::encoder(args.preset, 4000).replacen("x264enc", "x264enc threads=1", 1);
    let text = format!(
        "videotestsrc pattern=smpte horizontal-speed=4 \
         ! video/x-raw,format=I420,width={WIDTH},height={HEIGHT},framerate=30/1 \
         ! {encoder} ! fakesink name=sink sync=false"
    );
    gst::parse::launch(&text)
        .with_context(|| format!("building the pipeline {text}: is a GStreamer plugin missing?"))?
        .downcast()
        .map_err(|_| anyhow!("the pipeline {text} is a single element"))
}

/// Buffers that reached the sink so far.
fn encoded(pipeline: &gst::Pipeline) -> anyhow::Result<u64> {
    let sink = pipeline.by_name("sink").context("the pipeline has no sink")?;
    let stats: gst::Structure = sink.property("stats");
    stats.get("rendered").context("the sink does not count")
}
