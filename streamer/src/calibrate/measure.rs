//! Encodes as fast as it goes, and counts.

use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;

use super::encoders::Encoder;

/// The size that figures are told for.
pub(super) const WIDTH: u32 = 1920;
pub(super) const HEIGHT: u32 = 1080;

/// 1080p frames per second that `pipelines` encoders manage together, over `seconds`.
pub(super) fn frames_per_second(
    encoder: &Encoder,
    pipelines: usize,
    seconds: Duration,
) -> anyhow::Result<f64> {
    let pictures = pictures(encoder.format)?;
    let pipelines: Vec<_> = (0..pipelines)
        .map(|_| launch(encoder, &pictures))
        .collect::<Result<_, _>>()?;
    let measured = run(&pipelines, seconds);
    for pipeline in &pipelines {
        // Its measure is taken; a pipeline that will not stop does no harm to that.
        let _ = pipeline.set_state(gst::State::Null);
    }
    measured
}

fn run(pipelines: &[gst::Pipeline], seconds: Duration) -> anyhow::Result<f64> {
    for pipeline in pipelines {
        // Where a driver limits sessions, those beyond fail; what the others manage is what counts.
        let _ = pipeline.set_state(gst::State::Playing);
    }
    // The first frames wait for buffers, and for clocks that rise.
    std::thread::sleep(seconds / 4);
    let (start, before) = (Instant::now(), all_encoded(pipelines)?);
    std::thread::sleep(seconds);
    let frames = all_encoded(pipelines)? - before;
    let elapsed = start.elapsed().as_secs_f64();
    if frames == 0 {
        match pipelines.iter().find_map(failure) {
            Some(failure) => bail!("the encoder failed: {failure}"),
            None => bail!("no frame was encoded within {seconds:?}: choose a longer --seconds"),
        }
    }
    Ok(frames as f64 / elapsed)
}

/// Pictures that are made beforehand, so that their making costs no time. Snow would be harder to encode than any
/// application, a still picture easier; a moving pattern is in between.
fn pictures(format: &str) -> anyhow::Result<Vec<gst::Sample>> {
    let text = format!(
        "videotestsrc pattern=smpte horizontal-speed=4 num-buffers={PICTURES} \
         ! video/x-raw,format={format},width={WIDTH},height={HEIGHT},framerate=30/1 \
         ! appsink name=sink sync=false max-buffers={PICTURES}"
    );
    let pipeline = parse(&text)?;
    let sink = app::<gst_app::AppSink>(&pipeline, "sink")?;
    pipeline
        .set_state(gst::State::Playing)
        .context("making pictures to encode")?;
    let mut pictures = Vec::new();
    while let Ok(picture) = sink.pull_sample() {
        pictures.push(picture);
    }
    pipeline
        .set_state(gst::State::Null)
        .context("making pictures to encode")?;
    if pictures.is_empty() {
        bail!("no picture to encode could be made");
    }
    Ok(pictures)
}

/// A pipeline that encodes `pictures` over and over. They come from ordinary memory, as a streamer's do.
fn launch(encoder: &Encoder, pictures: &[gst::Sample]) -> anyhow::Result<gst::Pipeline> {
    let text = format!(
        "appsrc name=source format=time max-buffers=2 max-bytes=0 ! {} ! fakesink name=sink sync=false",
        encoder.pipeline
    );
    let pipeline = parse(&text)?;
    let source = app::<gst_app::AppSrc>(&pipeline, "source")?;
    source.set_caps(pictures.first().and_then(|picture| picture.caps_owned()).as_ref());
    let pictures = pictures.to_vec();
    let mut number = 0;
    let feed = move |source: &gst_app::AppSrc, _: u32| {
        let picture = pictures.get(number % pictures.len());
        let Some(mut buffer) = picture.and_then(|picture| picture.buffer_owned()) else {
            return;
        };
        // The picture's memory is shared, its time its own.
        let time = gst::ClockTime::SECOND * number as u64 / 30;
        buffer.make_mut().set_pts(time);
        number += 1;
        // Fails once the pipeline is being stopped.
        let _ = source.push_buffer(buffer);
    };
    source.set_callbacks(gst_app::AppSrcCallbacks::builder().need_data(feed).build());
    Ok(pipeline)
}

fn parse(text: &str) -> anyhow::Result<gst::Pipeline> {
    gst::parse::launch(text)
        .with_context(|| format!("building the pipeline {text}: is a GStreamer plugin missing?"))?
        .downcast()
        .map_err(|_| anyhow!("the pipeline {text} is a single element"))
}

fn app<T: IsA<gst::Element>>(pipeline: &gst::Pipeline, name: &str) -> anyhow::Result<T> {
    pipeline
        .by_name(name)
        .and_then(|element| element.downcast().ok())
        .with_context(|| format!("the pipeline has no {name}"))
}

/// Frames that reached the sinks so far.
fn all_encoded(pipelines: &[gst::Pipeline]) -> anyhow::Result<u64> {
    pipelines.iter().map(encoded).sum()
}

fn encoded(pipeline: &gst::Pipeline) -> anyhow::Result<u64> {
    let sink = pipeline.by_name("sink").context("the pipeline has no sink")?;
    let stats: gst::Structure = sink.property("stats");
    stats.get("rendered").context("the sink does not count")
}

fn failure(pipeline: &gst::Pipeline) -> Option<String> {
    let message = pipeline.bus()?.pop_filtered(&[gst::MessageType::Error])?;
    match message.view() {
        gst::MessageView::Error(error) => Some(error.error().to_string()),
        _ => None,
    }
}

const PICTURES: usize = 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoder_that_fails_says_why() {
        crate::media::init().unwrap();
        let broken = Encoder {
            element: "identity",
            codec: "none",
            preset: "none".to_owned(),
            format: "I420",
            pipeline: "identity error-after=1".to_owned(),
        };
        let error = frames_per_second(&broken, 1, Duration::from_millis(200)).unwrap_err();
        assert!(error.to_string().contains("failed"), "{error:#}");
    }
}
