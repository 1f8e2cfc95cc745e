//! What was measured, for people and for programs.

use std::fmt::Write as _;

use penstock_core::units::EncoderUnits;
use serde::{Deserialize, Serialize};

use super::encoders::{Encoder, REFERENCE};
use super::measure::{HEIGHT, WIDTH};

/// One encoder with one preset. As JSON it is what `calibrate --json` prints, a line each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Measurement {
    /// The GPU's UUID; absent for the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gpu: Option<String>,
    /// GStreamer's name of the encoder.
    pub(super) encoder: String,
    /// The codec's usual name.
    pub(super) codec: String,
    /// GStreamer's name of the preset.
    pub(super) preset: String,
    /// Frames of 1920x1080 pixels per second, of all streams together.
    pub(super) fps_1080p: f64,
    /// The same in millions of pixels.
    pub(super) megapixels_per_second: f64,
}

impl Measurement {
    pub(super) fn new(encoder: &Encoder, gpu: Option<&str>, frames_per_second: f64) -> Self {
        let megapixels = frames_per_second * f64::from(WIDTH * HEIGHT) / 1e6;
        let tenths = |value: f64| (value * 10.0).round() / 10.0;
        Self {
            gpu: gpu.map(str::to_owned),
            encoder: encoder.element.to_owned(),
            codec: encoder.codec.to_owned(),
            preset: encoder.preset.clone(),
            fps_1080p: tenths(frames_per_second),
            megapixels_per_second: tenths(megapixels),
        }
    }

    /// What this yields with `headroom` percent kept off.
    pub(super) fn units(&self, headroom: u32) -> EncoderUnits {
        let share = f64::from(100 - headroom.min(100)) / 100.0;
        // The cast takes what is no number for 0, and what is too large for the largest number.
        EncoderUnits::from_pixel_rate((self.megapixels_per_second * 1e6 * share) as u64)
    }

    fn same_gpu(&self, other: &Self) -> bool {
        self.gpu == other.gpu
    }
}

/// For each GPU, and the CPU, the measurement that its capacity is counted by.
pub(super) fn references(measured: &[Measurement]) -> Vec<&Measurement> {
    let mut found: Vec<&Measurement> = Vec::new();
    for preset in REFERENCE {
        for measurement in measured {
            let fits = measurement.codec == "H.264" && measurement.preset == preset;
            if fits && !found.iter().any(|other| other.same_gpu(measurement)) {
                found.push(measurement);
            }
        }
    }
    found
}

/// A line each: throughput, encoder units, and what one frame costs beside the reference.
pub(super) fn table(measured: &[Measurement]) -> String {
    let references = references(measured);
    let mut text = format!(
        "{:<42} {:<14} {:<6} {:<15} {:>9} {:>6} {:>6}\n",
        "ON", "ENCODER", "CODEC", "PRESET", "1080p fps", "units", "cost"
    );
    for measurement in measured {
        let reference = references.iter().find(|r| r.same_gpu(measurement));
        let cost = reference.map_or("?".to_owned(), |reference| {
            let cost = reference.fps_1080p / measurement.fps_1080p;
            format!("{cost:.2}")
        });
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{:<42} {:<14} {:<6} {:<15} {:>9.1} {:>6} {:>6}",
            measurement.gpu.as_deref().unwrap_or("CPU"),
            measurement.encoder,
            measurement.codec,
            measurement.preset,
            measurement.fps_1080p,
            measurement.units(0).0,
            cost
        );
    }
    text.push_str(
        "\nA unit is 10 megapixels per second. Cost is what a frame takes beside one of the reference, H.264 with\n\
         preset p3 (x264: superfast), in whose units capacity is counted.\n",
    );
    text
}

#[cfg(test)]
pub(super) fn example(gpu: Option<&str>, codec: &str, preset: &str, fps_1080p: f64) -> Measurement {
    Measurement {
        gpu: gpu.map(str::to_owned),
        encoder: "x".to_owned(),
        codec: codec.to_owned(),
        preset: preset.to_owned(),
        fps_1080p,
        megapixels_per_second: fps_1080p * 2.0736,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_counted_by_h264_at_the_reference_preset() {
        let measured = [
            example(None, "H.264", "ultrafast", 200.0),
            example(None, "H.264", "superfast", 150.0),
            example(Some("GPU-1"), "H.264", "p1", 910.0),
            example(Some("GPU-1"), "HEVC", "p3", 494.0),
            example(Some("GPU-1"), "H.264", "p3", 652.0),
            example(Some("GPU-2"), "H.264", "low-latency", 600.0),
        ];
        let fps: Vec<_> = references(&measured).iter().map(|m| m.fps_1080p).collect();
        assert_eq!(fps, [150.0, 652.0, 600.0]);
        assert_eq!(measured[4].units(0), EncoderUnits(135));
        assert_eq!(measured[4].units(50), EncoderUnits(67));
        assert_eq!(measured[1].units(50), EncoderUnits(15));
    }

    #[test]
    fn the_table_tells_what_a_preset_costs() {
        let table = table(&[
            example(Some("GPU-1"), "H.264", "p3", 600.0),
            example(Some("GPU-1"), "H.264", "p5", 300.0),
            example(Some("GPU-2"), "HEVC", "p5", 300.0),
        ]);
        let lines: Vec<Vec<_>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[1], ["GPU-1", "x", "H.264", "p3", "600.0", "124", "1.00"]);
        assert_eq!(lines[2], ["GPU-1", "x", "H.264", "p5", "300.0", "62", "2.00"]);
        assert_eq!(lines[3][6], "?", "without a reference no cost is known");
    }
}
