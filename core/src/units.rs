//! Quantities: encoder units, SM percent, video memory, and the size of a stream.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Encoder throughput, in units of 10 megapixels per second of H.264 at the reference preset (P3, low-latency
/// CBR). 1080p60 is 13 units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EncoderUnits(pub u32);

/// Percent of one GPU's streaming multiprocessors, 0 to 100.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SmPercent(pub u32);

/// Video memory in blocks of 256 MiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VramBlocks(pub u32);

/// Pixels per second that one encoder unit stands for.
pub const PIXELS_PER_SECOND_PER_UNIT: u64 = 10_000_000;

/// Bytes of one block of video memory.
pub const VRAM_BLOCK_BYTES: u64 = 256 << 20;

impl EncoderUnits {
    /// The units that a throughput yields: whole ones only, since a part of one serves nobody.
    pub fn from_pixel_rate(pixels_per_second: u64) -> Self {
        Self(u32::try_from(pixels_per_second / PIXELS_PER_SECOND_PER_UNIT).unwrap_or(u32::MAX))
    }
}

impl VramBlocks {
    /// The same in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0) * VRAM_BLOCK_BYTES
    }
}

impl fmt::Display for EncoderUnits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} encoder unit{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

impl fmt::Display for SmPercent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} % of the SMs", self.0)
    }
}

impl fmt::Display for VramBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB of video memory", u64::from(self.0) * 256)
    }
}

/// Width, height and frame rate of a stream. Even sides from 16 to 8192 pixels, 1 to 240 frames per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawStreamSize")]
pub struct StreamSize {
    width: u32,
    height: u32,
    fps: u32,
}

#[derive(Deserialize)]
struct RawStreamSize {
    width: u32,
    height: u32,
    fps: u32,
}

impl TryFrom<RawStreamSize> for StreamSize {
    type Error = BadStreamSize;
    fn try_from(raw: RawStreamSize) -> Result<Self, BadStreamSize> {
        Self::new(raw.width, raw.height, raw.fps)
    }
}

/// Why a text or three numbers are no [`StreamSize`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadStreamSize {
    /// Not of the form `1280x720@30`, nor a known short name.
    #[error("{0:?} is not a stream size: write it as 1280x720@30, or 720p30")]
    Form(String),
    /// A side is odd, too small or too large.
    #[error("a stream of {0}x{1} pixels can't be encoded: both sides must be even and from 16 to 8192")]
    Sides(u32, u32),
    /// The frame rate is out of range.
    #[error("{0} frames per second is out of range: 1 to 240")]
    Rate(u32),
}

impl StreamSize {
    /// Checks sides and rate.
    ///
    /// # Errors
    /// [`BadStreamSize`] for odd sides, sides outside 16 to 8192 pixels, or rates outside 1 to 240.
    pub fn new(width: u32, height: u32, fps: u32) -> Result<Self, BadStreamSize> {
        let side = |s: u32| s.is_multiple_of(2) && (16..=8192).contains(&s);
        if !side(width) || !side(height) {
            return Err(BadStreamSize::Sides(width, height));
        }
        if !(1..=240).contains(&fps) {
            return Err(BadStreamSize::Rate(fps));
        }
        Ok(Self { width, height, fps })
    }

    /// Pixels across.
    pub fn width(self) -> u32 {
        self.width
    }

    /// Pixels down.
    pub fn height(self) -> u32 {
        self.height
    }

    /// Frames per second.
    pub fn fps(self) -> u32 {
        self.fps
    }

    /// Pixels per second.
    pub fn pixel_rate(self) -> u64 {
        u64::from(self.width) * u64::from(self.height) * u64::from(self.fps)
    }

    /// What the stream takes of an encoder, rounded up.
    pub fn units(self) -> EncoderUnits {
        // 8192 x 8192 x 240 / 10^7 is 1611, so the cast holds for every value of the type.
        EncoderUnits(self.pixel_rate().div_ceil(PIXELS_PER_SECOND_PER_UNIT) as u32)
    }

    /// The usual sizes that fit into `units`, largest first.
    pub fn fitting(units: EncoderUnits) -> Vec<StreamSize> {
        let mut sizes: Vec<_> = USUAL
            .iter()
            .map(|&(_, width, height, fps)| StreamSize { width, height, fps })
            .filter(|s| s.units() <= units)
            .collect();
        sizes.sort_by_key(|s| std::cmp::Reverse(s.pixel_rate()));
        sizes
    }
}

impl fmt::Display for StreamSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}@{}", self.width, self.height, self.fps)
    }
}

impl FromStr for StreamSize {
    type Err = BadStreamSize;

    fn from_str(text: &str) -> Result<Self, BadStreamSize> {
        if let Some(&(_, width, height, fps)) = USUAL.iter().find(|(name, ..)| *name == text) {
            return Self::new(width, height, fps);
        }
        let parts = || {
            let (sides, fps) = text.split_once('@')?;
            let (width, height) = sides.split_once('x')?;
            Some((width.parse().ok()?, height.parse().ok()?, fps.parse().ok()?))
        };
        let (width, height, fps) = parts().ok_or_else(|| BadStreamSize::Form(text.to_owned()))?;
        Self::new(width, height, fps)
    }
}

/// Sizes that have a name, and that are offered where another does not fit.
const USUAL: [(&str, u32, u32, u32); 9] = [
    ("360p30", 640, 360, 30),
    ("540p30", 960, 540, 30),
    ("720p30", 1280, 720, 30),
    ("720p60", 1280, 720, 60),
    ("1080p30", 1920, 1080, 30),
    ("1080p60", 1920, 1080, 60),
    ("1440p60", 2560, 1440, 60),
    ("2160p30", 3840, 2160, 30),
    ("2160p60", 3840, 2160, 60),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_sizes_cost_what_the_design_says() {
        let cost = |text: &str| text.parse::<StreamSize>().unwrap().units().0;
        assert_eq!(
            ["720p30", "1080p30", "1080p60", "1440p60", "2160p60"].map(cost),
            [3, 7, 13, 23, 50]
        );
    }

    #[test]
    fn a_size_reads_as_it_prints() {
        let size: StreamSize = "1280x720@30".parse().unwrap();
        assert_eq!(size, "720p30".parse().unwrap());
        assert_eq!(size.to_string(), "1280x720@30");
    }

    #[test]
    fn a_bad_size_says_what_is_wrong() {
        let error = |text: &str| text.parse::<StreamSize>().unwrap_err().to_string();
        assert!(error("big").contains("write it as 1280x720@30"));
        assert!(error("1281x720@30").contains("even"));
        assert!(error("1280x720@0").contains("1 to 240"));
        assert!(error("1280x720@99999999999").contains("write it as"));
        assert!(serde_json::from_str::<StreamSize>(r#"{"width":0,"height":0,"fps":0}"#).is_err());
    }

    #[test]
    fn what_fits_is_named_largest_first() {
        let names: Vec<_> = StreamSize::fitting(EncoderUnits(6))
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(names, ["1280x720@60", "1280x720@30", "960x540@30", "640x360@30"]);
        assert!(StreamSize::fitting(EncoderUnits(0)).is_empty());
    }
}
