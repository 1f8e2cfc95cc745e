//! The command line and environment.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use penstock_core::ids::{ApplicationName, StreamerId};
use penstock_core::units::{EncoderUnits, StreamSize};
use penstock_shell::logging::LogArgs;

use crate::session::Limits;

/// Captures, encodes and sends one application to a browser
#[derive(Debug, Parser)]
#[command(
    name = "penstock-streamer",
    version,
    about,
    args_conflicts_with_subcommands = true
)]
#[command(after_help = "Examples:
  penstock-streamer --source test
      A test picture and a tone, to see that the path works.
  penstock-streamer --source x11 --app 'xterm -fullscreen' --stream 1280x720@30
      An X server of its own with an application on it.
  penstock-streamer --source x11 --display :0
      A display that is there.
  penstock-streamer --source x11 --serve-display :0
      An X server of its own, for an application that runs in another container of the pod.

A browser never talks to a streamer directly: point penstock-matchmaker at it (--streamer ADDRESS).")]
pub struct Cli {
    /// What to do instead of streaming
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to stream
    #[command(flatten)]
    pub stream: StreamArgs,
    /// Logging
    #[command(flatten)]
    pub log: LogArgs,
}

/// What to do instead of streaming.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure how much this machine encodes, by encoder and preset, and write it for penstock-plugin
    Calibrate(CalibrateArgs),
}

/// Options of `calibrate`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  penstock-streamer calibrate
      A table of what GStreamer has here: x264, and NVENC on each GPU.
  penstock-streamer calibrate --write /etc/penstock/plugin.yaml
      The same, and the capacity goes into the configuration of penstock-plugin.
  penstock-streamer calibrate --gpu GPU-8dcd… --write -
      One GPU; the configuration goes to standard output.

Nothing else should run meanwhile.")]
pub struct CalibrateArgs {
    /// Seconds to measure each preset for
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
    /// Measure only this encoder, by GStreamer's name, such as x264enc; may be given several times
    #[arg(long, value_name = "NAME")]
    pub encoder: Vec<String>,
    /// Measure only this preset, by GStreamer's name, such as superfast or p3; may be given several times
    #[arg(long, value_name = "NAME")]
    pub preset: Vec<String>,
    /// Measure only this GPU, by its UUID (`nvidia-smi -L` tells), and not the CPU; may be given several times
    #[arg(long, value_name = "UUID")]
    pub gpu: Vec<String>,
    /// Write the capacity into this file, the configuration of penstock-plugin; `-` is standard output. What else the
    /// file has stays, but for comments
    #[arg(long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// Percent of what was measured to keep off what is written [default: 50 of the CPU, which captures and runs
    /// applications too; of GPUs the file's headroomPercent, or 0]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=99))]
    pub headroom: Option<u32>,
    /// Print the measurements as JSON, a line each, instead of a table
    #[arg(long, conflicts_with = "write")]
    pub json: bool,
    /// The only GPU that this process sees
    #[arg(long, hide = true, conflicts_with = "gpu")]
    pub visible_gpu: Option<String>,
}

/// Options of streaming.
#[derive(Debug, Clone, Args)]
pub struct StreamArgs {
    /// Where to listen for the matchmaker and for metrics
    #[arg(
        long,
        env = "PENSTOCK_STREAMER_LISTEN",
        default_value = "127.0.0.1:9000",
        value_name = "ADDRESS"
    )]
    pub listen: SocketAddr,
    /// What to stream
    #[arg(long, value_enum, default_value_t = Source::Test)]
    pub source: Source,
    /// The application to start, as a shell command (source x11)
    #[arg(long, value_name = "COMMAND")]
    pub app: Option<String>,
    /// What players ask for who want this application and no other; letters, digits and -_.:
    #[arg(long, env = "PENSTOCK_APPLICATION", value_name = "NAME")]
    pub app_name: Option<ApplicationName>,
    /// Attach to this X display instead of starting an X server (source x11)
    #[arg(long, value_name = "DISPLAY")]
    pub display: Option<String>,
    /// Start the X server as this display, such as :0, and not as the next one that is free: for an application that
    /// runs elsewhere and shares /tmp/.X11-unix. It must run as the same user (source x11)
    #[arg(long, value_name = "DISPLAY", conflicts_with = "display")]
    pub serve_display: Option<DisplayNumber>,
    /// Capture the X pointer into the picture. The page shows its own pointer already
    #[arg(long)]
    pub show_pointer: bool,
    /// Size and rate of the stream, such as 1280x720@30 or 720p30
    #[arg(long, env = "PENSTOCK_STREAM", default_value = "720p30", value_name = "SIZE")]
    pub stream: StreamSize,
    /// Highest video bitrate in kbit/s [default: by the size of the stream; 720p30 has 4147]
    #[arg(long, value_name = "KBIT/S", value_parser = clap::value_parser!(u32).range(100..=200_000))]
    pub bitrate: Option<u32>,
    /// x264's speed preset: faster ones take less CPU and give a worse picture
    #[arg(long, value_enum, default_value_t = Preset::Superfast)]
    pub preset: Preset,
    /// Encoder units of the slice; a larger stream is refused [default: no limit]
    #[arg(long, env = penstock_core::names::ENV_NVENC_UNITS, value_name = "UNITS")]
    pub units: Option<u32>,
    /// Encoder units of one of the slice's encoder engines: a stream runs on one of them, so that a larger one is
    /// refused however large the slice is [default: no limit]
    #[arg(long, env = penstock_core::names::ENV_NVENC_STREAM_UNITS, value_name = "UNITS")]
    pub stream_units: Option<u32>,
    /// This streamer's name, which pages see
    #[arg(long, env = penstock_core::names::ENV_SLICE, default_value = "streamer", value_name = "NAME")]
    pub name: StreamerId,
    /// Address that media is sent from, as ICE candidates name it [default: the one that has the default route]
    #[arg(long, env = "PENSTOCK_MEDIA_IP", value_name = "IP")]
    pub media_ip: Vec<IpAddr>,
    /// Who may take part in a session
    #[arg(long, env = "PENSTOCK_MODE", value_enum, default_value_t = Mode::Exclusive)]
    pub mode: Mode,
    /// How many players steer together. Whoever comes while there is room joins the session that goes on
    #[arg(long, env = "PENSTOCK_MAX_PLAYERS", default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub max_players: u32,
    /// How many viewers a shared session takes beside its players [default: 8]
    #[arg(long, env = "PENSTOCK_MAX_VIEWERS", value_name = "N")]
    pub max_viewers: Option<u32>,
    /// Seconds that a place is kept for a player whose connection was lost; 0 for not at all. One whose page was closed,
    /// or is being loaded again, has 5 s of them at most. Nobody else gets the place meanwhile
    #[arg(long, env = "PENSTOCK_RETURN_GRACE", default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub return_grace: u64,
    /// Seconds that a player may go on playing once this process is told to end
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub grace: u64,
    /// Print the encoding pipeline as gst-launch-1.0 takes it, and end
    #[arg(long)]
    pub print_pipeline: bool,
}

/// A local X display, such as `:0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DisplayNumber(u16);

impl fmt::Display for DisplayNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ":{}", self.0)
    }
}

impl FromStr for DisplayNumber {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_prefix(':').and_then(|number| number.parse().ok());
        number.map(Self).ok_or("write a colon and a number, such as :0")
    }
}

/// What to stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// A moving pattern with a frame counter, and a tone
    Test,
    /// An X display
    X11,
}

/// Who may take part in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Its players only
    Exclusive,
    /// Its players, and viewers who have the link
    Shared,
}

/// x264's speed presets that keep up with a live stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// Least CPU
    Ultrafast,
    /// A little more
    Superfast,
    /// Better picture
    Veryfast,
}

impl Preset {
    /// As x264enc spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ultrafast => "ultrafast",
            Self::Superfast => "superfast",
            Self::Veryfast => "veryfast",
        }
    }
}

/// Viewers that a shared session takes unless told otherwise.
const MAX_VIEWERS: u32 = 8;

/// Why the options can't be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOptions {
    /// The stream does not fit into the slice.
    #[error(
        "a stream of {stream} takes {} and this slice has {units}: {}",
        .stream.units(), advice(*.units, *.stream)
    )]
    TooLarge {
        /// What was asked for.
        stream: StreamSize,
        /// What there is.
        units: EncoderUnits,
    },
    /// The stream fits into the slice, but into none of its encoder engines.
    #[error(
        "a stream of {stream} takes {}, and an encoder engine of this GPU has {units} for one stream: {}",
        .stream.units(), sizes(*.units).unwrap_or_else(|| "no usual size fits".to_owned())
    )]
    TooLargeForOneEngine {
        /// What was asked for.
        stream: StreamSize,
        /// What one engine has.
        units: EncoderUnits,
    },
    /// `--source x11` has neither an application nor a display.
    #[error(
        "--source x11 needs something to show: give --app COMMAND to start, --display :N to attach to, or \
         --serve-display :N for an application that comes by itself"
    )]
    NothingToShow,
    /// `--app` or a display without `--source x11`.
    #[error("{0} means something for --source x11 only: add that, or leave {0} out")]
    OnlyX11(&'static str),
    /// A number of viewers without `--mode shared`.
    #[error("--max-viewers means something for --mode shared only: add that, or leave --max-viewers out")]
    NoViewers,
}

fn advice(units: EncoderUnits, stream: StreamSize) -> String {
    let ask = format!(
        "ask for {}: {} or more",
        penstock_core::names::RESOURCE_NVENC,
        stream.units().0
    );
    match sizes(units) {
        None => format!("no usual size fits, so {ask}"),
        Some(sizes) => format!("{sizes}, or {ask}"),
    }
}

fn sizes(units: EncoderUnits) -> Option<String> {
    let fitting: Vec<_> = StreamSize::fitting(units)
        .iter()
        .map(ToString::to_string)
        .collect();
    (!fitting.is_empty()).then(|| format!("choose one of {}", fitting.join(", ")))
}

impl StreamArgs {
    /// Checks what clap can't see option by option.
    ///
    /// # Errors
    /// [`BadOptions`].
    pub fn check(&self) -> Result<(), BadOptions> {
        if let Some(units) = self.units.map(EncoderUnits)
            && self.stream.units() > units
        {
            return Err(BadOptions::TooLarge {
                stream: self.stream,
                units,
            });
        }
        if let Some(units) = self.stream_units.map(EncoderUnits)
            && self.stream.units() > units
        {
            return Err(BadOptions::TooLargeForOneEngine {
                stream: self.stream,
                units,
            });
        }
        // None at all is what an exclusive session has.
        if self.mode == Mode::Exclusive && self.max_viewers.is_some_and(|viewers| viewers > 0) {
            return Err(BadOptions::NoViewers);
        }
        let about_x11 = [
            ("--app", self.app.is_some()),
            ("--display", self.display.is_some()),
            ("--serve-display", self.serve_display.is_some()),
        ];
        let given = about_x11.iter().find(|(_, given)| *given);
        match (self.source, given) {
            (Source::X11, None) => Err(BadOptions::NothingToShow),
            (Source::Test, Some((option, _))) => Err(BadOptions::OnlyX11(option)),
            _ => Ok(()),
        }
    }

    /// How many a session takes, and how long it waits for them.
    pub fn limits(&self) -> Limits {
        Limits {
            players: self.max_players,
            viewers: (self.mode == Mode::Shared).then_some(self.max_viewers.unwrap_or(MAX_VIEWERS)),
            return_grace: Duration::from_secs(self.return_grace),
        }
    }

    /// The highest video bitrate in kbit/s: as given, or 0.15 bits a pixel.
    pub fn bitrate_kbps(&self) -> u32 {
        let by_size = (self.stream.pixel_rate() * 15 / 100_000).clamp(100, 200_000);
        self.bitrate.unwrap_or(by_size as u32)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_stream_over_the_slice_is_refused_with_the_sizes_that_fit() {
        let error = check(&["--stream", "1080p60", "--units", "6"])
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "a stream of 1920x1080@60 takes 13 encoder units and this slice has 6 encoder units: choose one of \
             1280x720@60, 1280x720@30, 960x540@30, 640x360@30, or ask for penstock.dev/nvenc: 13 or more"
        );
        assert_eq!(check(&["--stream", "720p30", "--units", "3"]), Ok(()));
        assert!(
            check(&["--stream", "720p30", "--units", "0"])
                .unwrap_err()
                .to_string()
                .contains("no usual size")
        );
    }

    #[test]
    fn a_stream_over_one_engine_is_refused_however_large_the_slice_is() {
        let error = check(&["--stream", "2160p60", "--units", "100", "--stream-units", "24"])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(
                "a stream of 3840x2160@60 takes 50 encoder units, and an encoder engine of this GPU"
            ),
            "{error}"
        );
        assert!(
            error.contains("choose one of 2560x1440@60, 1920x1080@60"),
            "{error}"
        );
        assert_eq!(
            check(&["--stream", "1440p60", "--units", "100", "--stream-units", "24"]),
            Ok(())
        );
    }

    #[test]
    fn options_that_contradict_each_other_are_named() {
        assert_eq!(check(&["--source", "x11"]), Err(BadOptions::NothingToShow));
        assert_eq!(check(&["--app", "xterm"]), Err(BadOptions::OnlyX11("--app")));
        assert_eq!(check(&["--max-viewers", "3"]), Err(BadOptions::NoViewers));
        assert_eq!(check(&["--max-viewers", "3", "--mode", "shared"]), Ok(()));
        assert_eq!(check(&["--max-viewers", "0"]), Ok(()));
        let serves = ["--serve-display", ":7"];
        assert_eq!(check(&serves), Err(BadOptions::OnlyX11("--serve-display")));
        assert_eq!(check(&["--source", "x11", "--serve-display", ":7"]), Ok(()));
    }

    #[test]
    fn a_display_is_written_with_a_colon() {
        assert_eq!(
            ":7".parse().map(|display: DisplayNumber| display.to_string()),
            Ok(":7".to_owned())
        );
        for bad in ["7", ":", ":7.0", "host:7", ":-1", ":70000"] {
            assert!(bad.parse::<DisplayNumber>().is_err(), "{bad}");
        }
    }

    fn check(args: &[&str]) -> Result<(), BadOptions> {
        let args = std::iter::once("penstock-streamer").chain(args.iter().copied());
        Cli::try_parse_from(args).unwrap().stream.check()
    }
}
