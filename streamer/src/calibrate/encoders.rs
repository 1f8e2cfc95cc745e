//! The encoders and presets that GStreamer has here.

use gstreamer as gst;
use gstreamer::prelude::*;

use crate::config::Preset;
use crate::media;

/// One encoder with one preset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Encoder {
    /// GStreamer's name of the element.
    pub(super) element: &'static str,
    /// The codec's usual name.
    pub(super) codec: &'static str,
    /// GStreamer's name of the preset.
    pub(super) preset: String,
    /// The format of raw pictures that it takes without a conversion.
    pub(super) format: &'static str,
    /// The part of a pipeline that encodes.
    pub(super) pipeline: String,
}

/// x264 with the presets that a streamer offers, set up as a streamer has it.
pub(super) fn software() -> Vec<Encoder> {
    if gst::ElementFactory::find("x264enc").is_none() {
        return Vec::new();
    }
    [Preset::Ultrafast, Preset::Superfast, Preset::Veryfast]
        .into_iter()
        .map(|preset| Encoder {
            element: "x264enc",
            codec: "H.264",
            preset: preset.name().to_owned(),
            format: "I420",
            pipeline: media::encoder(preset, KBPS).replacen("x264enc", "x264enc threads=1", 1),
        })
        .collect()
}

/// NVENC with each codec that the GPU has. GStreamer has these elements only where the driver and a GPU with an encoder
/// are there.
pub(super) fn nvenc() -> Vec<Encoder> {
    NVENC
        .iter()
        .filter_map(|(codec, elements)| {
            let there: Vec<_> = elements.iter().filter_map(|name| made(name)).collect();
            // Of two for one codec, the one with today's presets.
            let with_presets = there
                .iter()
                .find(|(_, element)| has_choice(element, "preset", "p3"));
            let (name, element) = with_presets.or(there.first())?;
            Some(of_element(codec, name, element))
        })
        .flatten()
        .collect()
}

const NVENC: [(&str, &[&str]); 3] = [
    ("H.264", &["nvh264enc", "nvcudah264enc"]),
    ("HEVC", &["nvh265enc", "nvcudah265enc"]),
    ("AV1", &["nvav1enc", "nvcudaav1enc"]),
];

/// Today's presets from fast to good; and those before them, for low latency.
const PRESETS: [&[&str]; 2] = [
    &["p1", "p3", "p5"],
    &["low-latency-hp", "low-latency", "low-latency-hq"],
];

/// The presets whose H.264 throughput is the capacity, the first that there is: what one encoder unit refers to, and
/// what stands nearest to it.
pub(super) const REFERENCE: [&str; 3] = ["superfast", "p3", "low-latency"];

fn made(name: &'static str) -> Option<(&'static str, gst::Element)> {
    let element = gst::ElementFactory::find(name)?.create().build().ok()?;
    Some((name, element))
}

fn of_element(codec: &'static str, name: &'static str, element: &gst::Element) -> Vec<Encoder> {
    let there = |presets: &&[&str]| presets.iter().any(|p| has_choice(element, "preset", p));
    let presets = PRESETS.into_iter().find(there).unwrap_or_default();
    let settings = settings(element);
    presets
        .iter()
        .filter(|preset| has_choice(element, "preset", preset))
        .map(|preset| Encoder {
            element: name,
            codec,
            preset: (*preset).to_owned(),
            format: "NV12",
            pipeline: format!("{name} name=encoder preset={preset}{settings}"),
        })
        .collect()
}

/// Low latency and a constant bitrate, in the words that this version of the element knows.
fn settings(element: &gst::Element) -> String {
    let mut text = String::new();
    let wishes = [("rc-mode", "cbr"), ("tune", "ultra-low-latency")];
    for (property, choice) in wishes {
        if has_choice(element, property, choice) {
            text += &format!(" {property}={choice}");
        }
    }
    let kbps = KBPS.to_string();
    let values = [
        ("bitrate", kbps.as_str()),
        ("gop-size", "-1"),
        ("zerolatency", "true"),
        ("bframes", "0"),
        ("b-frames", "0"),
    ];
    for (property, value) in values {
        if element.has_property(property) {
            text += &format!(" {property}={value}");
        }
    }
    text
}

/// Whether a property of `element` may be set to `choice`.
fn has_choice(element: &gst::Element, property: &str, choice: &str) -> bool {
    element
        .find_property(property)
        .and_then(|found| gst::glib::EnumClass::with_type(found.value_type()))
        .is_some_and(|choices| choices.value_by_nick(choice).is_some())
}

/// What a streamer takes for 1080p30 by itself.
const KBPS: u32 = 9331;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_is_set_up_with_what_it_knows() {
        media::init().unwrap();
        let (_, element) = made("x264enc").unwrap();
        assert!(has_choice(&element, "speed-preset", "superfast"));
        assert!(!has_choice(&element, "speed-preset", "p3"));
        assert!(!has_choice(&element, "preset", "p3"));
        // x264enc knows some of the words that NVENC's elements do.
        assert_eq!(settings(&element), " bitrate=9331 bframes=0");
    }

    #[test]
    fn software_has_the_presets_of_a_streamer() {
        media::init().unwrap();
        let presets: Vec<_> = software().into_iter().map(|encoder| encoder.preset).collect();
        assert_eq!(presets, ["ultrafast", "superfast", "veryfast"]);
    }
}
