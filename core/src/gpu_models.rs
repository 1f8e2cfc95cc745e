//! What the video encoders of GPUs can do, by model.
//!
//! Frames per second at 1080p of one NVENC engine, low-latency CBR, from the application note of NVIDIA's Video Codec
//! SDK 13.0 ("NVENC performance"); engines per GPU from NVIDIA's video encode and decode support matrix. The
//! reference, in whose units capacity is counted, is H.264 with preset P3.

use crate::units::EncoderUnits;

/// A GPU architecture, as far as its encoder differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// Such as T4.
    Turing,
    /// Such as A10, A16 and A40.
    Ampere,
    /// Such as L4, L40 and L40S.
    Ada,
    /// Such as RTX PRO 6000 Blackwell.
    Blackwell,
}

/// A codec that NVENC encodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// H.264, the reference.
    H264,
    /// HEVC.
    Hevc,
}

/// An encoder preset, faster to better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Fastest.
    P1,
    /// The reference.
    P3,
    /// Better picture.
    P5,
}

/// What is known of a GPU model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    /// What NVML's name contains, without the maker.
    pub name: &'static str,
    /// Its architecture; `None` where it has no encoder.
    pub generation: Option<Generation>,
    /// NVENC engines of one GPU.
    pub engines: u32,
}

/// The encoder sessions that a driver of release `driver` (`580.95.05`) allows at one time on a GPU that NVML calls
/// `gpu`; `None` where it allows any number.
///
/// Only GeForce GPUs are capped, whatever their model. The cap is the whole system's: two GeForce GPUs have no more
/// sessions than one. It was 3, became 5 with release 530 and 8 with 550, and is 12 with newer ones, of which the
/// first is not known to us: so 8 is what holds from 550 on, and an administrator may know better. Where the release
/// can't be read, 3 holds on all.
pub fn session_limit(gpu: &str, driver: &str) -> Option<u32> {
    if !gpu.split(' ').any(|word| word == "GeForce") {
        return None;
    }
    let release = driver.split('.').next().and_then(|release| release.parse().ok());
    Some(match release {
        Some(550_u32..) => 8,
        Some(530..) => 5,
        _ => 3,
    })
}

impl Model {
    /// The model that NVML calls `name`; `None` where it is not known.
    ///
    /// Names are compared word by word, so that `NVIDIA A10` is not taken for an `A100`, nor a `NVIDIA L40S` for an
    /// `L40`.
    pub fn find(name: &str) -> Option<&'static Model> {
        let words: Vec<&str> = name.split([' ', '-']).filter(|word| !word.is_empty()).collect();
        let named = |model: &&Model| {
            let wanted: Vec<&str> = model.name.split(' ').collect();
            words.windows(wanted.len()).any(|part| part == wanted)
        };
        // The longest name that fits is the most exact.
        MODELS.iter().filter(named).max_by_key(|model| model.name.len())
    }

    /// The encoder units of the whole GPU at a video clock of up to `max_video_clock_mhz`; 0 where it has no encoder.
    pub fn encoder_units(&self, max_video_clock_mhz: Option<u32>) -> EncoderUnits {
        EncoderUnits::from_pixel_rate(u64::from(self.engines) * self.engine_pixel_rate(max_video_clock_mhz))
    }

    /// The encoder units of one engine: the largest single stream.
    pub fn engine_units(&self, max_video_clock_mhz: Option<u32>) -> EncoderUnits {
        EncoderUnits::from_pixel_rate(self.engine_pixel_rate(max_video_clock_mhz))
    }

    fn engine_pixel_rate(&self, max_video_clock_mhz: Option<u32>) -> u64 {
        let Some(generation) = self.generation else {
            return 0;
        };
        let reference = u64::from(generation.fps_1080p(Codec::H264, Preset::P3)) * 1920 * 1080;
        match (max_video_clock_mhz, generation.reference_clock_mhz()) {
            (Some(clock), Some(reference_clock)) => reference * u64::from(clock) / u64::from(reference_clock),
            _ => reference,
        }
    }
}

impl Generation {
    /// Frames per second at 1080p of one engine.
    pub fn fps_1080p(self, codec: Codec, preset: Preset) -> u32 {
        let column = match self {
            Self::Turing => 0,
            Self::Ampere => 1,
            Self::Ada => 2,
            Self::Blackwell => 3,
        };
        let row = match (codec, preset) {
            (Codec::H264, Preset::P1) => [855, 868, 910, 977],
            (Codec::H264, Preset::P3) => [600, 613, 652, 718],
            (Codec::H264, Preset::P5) => [271, 273, 291, 323],
            (Codec::Hevc, Preset::P1) => [932, 943, 1055, 1134],
            (Codec::Hevc, Preset::P3) => [463, 467, 494, 529],
            (Codec::Hevc, Preset::P5) => [305, 307, 343, 506],
        };
        row[column]
    }

    /// What a stream of another codec or preset takes, from what it takes at the reference. Rounded up.
    pub fn units_at(self, reference: EncoderUnits, codec: Codec, preset: Preset) -> EncoderUnits {
        let (at, than) = (
            self.fps_1080p(codec, preset),
            self.fps_1080p(Codec::H264, Preset::P3),
        );
        let units = (u64::from(reference.0) * u64::from(than)).div_ceil(u64::from(at));
        EncoderUnits(u32::try_from(units).unwrap_or(u32::MAX))
    }

    /// The video clock that the figures were taken at; unknown for Blackwell, whose figures are not scaled.
    fn reference_clock_mhz(self) -> Option<u32> {
        match self {
            Self::Turing | Self::Ampere => Some(1950),
            Self::Ada => Some(2415),
            Self::Blackwell => None,
        }
    }
}

const fn model(name: &'static str, generation: Generation, engines: u32) -> Model {
    Model {
        name,
        generation: Some(generation),
        engines,
    }
}

const fn without_encoder(name: &'static str) -> Model {
    Model {
        name,
        generation: None,
        engines: 0,
    }
}

const MODELS: &[Model] = &[
    model("T4", Generation::Turing, 1),
    model("A10", Generation::Ampere, 1),
    model("A10G", Generation::Ampere, 1),
    model("A16", Generation::Ampere, 1),
    model("A40", Generation::Ampere, 1),
    model("L4", Generation::Ada, 2),
    model("L40", Generation::Ada, 3),
    model("L40S", Generation::Ada, 3),
    model("RTX PRO 6000 Blackwell", Generation::Blackwell, 4),
    model("RTX 3090", Generation::Ampere, 1),
    model("RTX 4090", Generation::Ada, 2),
    without_encoder("A30"),
    without_encoder("A100"),
    without_encoder("H100"),
    without_encoder("H200"),
    without_encoder("B100"),
    without_encoder("B200"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nvmls_names_find_their_model_and_no_other() {
        let found = |name: &str| Model::find(name).map(|model| model.name);
        assert_eq!(found("Tesla T4"), Some("T4"));
        assert_eq!(found("NVIDIA A10"), Some("A10"));
        assert_eq!(found("NVIDIA A10G"), Some("A10G"));
        assert_eq!(found("NVIDIA A100-SXM4-80GB"), Some("A100"));
        assert_eq!(found("NVIDIA L40S"), Some("L40S"));
        assert_eq!(found("NVIDIA L4"), Some("L4"));
        assert_eq!(found("NVIDIA H200"), Some("H200"));
        assert_eq!(found("NVIDIA GeForce RTX 4090"), Some("RTX 4090"));
        assert_eq!(
            found("NVIDIA RTX PRO 6000 Blackwell Server Edition"),
            Some("RTX PRO 6000 Blackwell")
        );
        assert_eq!(found("NVIDIA GeForce GTX 1080"), None);
        assert_eq!(found(""), None);
    }

    #[test]
    fn capacity_is_engines_times_rate_scaled_by_the_clock() {
        let units = |name: &str, clock| Model::find(name).unwrap().encoder_units(clock).0;
        // 600 frames of 2,073,600 pixels are 124.4 units.
        assert_eq!(units("Tesla T4", Some(1950)), 124);
        assert_eq!(units("Tesla T4", None), 124);
        assert_eq!(units("Tesla T4", Some(975)), 62);
        assert_eq!(units("NVIDIA L4", Some(2415)), 270);
        assert_eq!(units("NVIDIA L40S", Some(2415)), 405);
        assert_eq!(units("NVIDIA RTX PRO 6000 Blackwell", Some(1)), 595);
        assert_eq!(units("NVIDIA H200", Some(1980)), 0);
        assert_eq!(Model::find("NVIDIA L4").unwrap().engine_units(None).0, 135);
    }

    #[test]
    fn only_geforce_drivers_cap_sessions_and_later_ones_less() {
        let geforce = |driver: &str| session_limit("NVIDIA GeForce RTX 4090", driver);
        assert_eq!(
            ["525.60.13", "530.41.03", "545.23", "550.67", "580.95.05", "?"].map(geforce),
            [3, 5, 5, 8, 8, 3].map(Some)
        );
        assert_eq!(session_limit("NVIDIA GeForce GTX 1650", "550.67"), Some(8));
        assert_eq!(session_limit("NVIDIA L4", "550.67"), None);
    }

    #[test]
    fn better_presets_cost_more_units() {
        let at = |codec, preset| Generation::Turing.units_at(EncoderUnits(13), codec, preset).0;
        assert_eq!(at(Codec::H264, Preset::P3), 13);
        assert_eq!(at(Codec::H264, Preset::P5), 29);
        assert_eq!(at(Codec::H264, Preset::P1), 10);
    }
}
