//! `penstock-streamer calibrate`: measures how much this machine encodes, by encoding.
//!
//! ```text
//!  gpus      which NVIDIA GPUs there are       ─┐
//!  encoders  which encoders and presets        ─┼─► measure ─► table, JSON, and the plugin's configuration
//!            GStreamer has for each            ─┘   (encodes)   (report, settings)
//! ```
//!
//! CUDA shows a process its GPUs in an order of its own, so each GPU is measured by a process that sees only that one.

mod encoders;
mod gpus;
mod measure;
mod report;
mod settings;

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::config::CalibrateArgs;
use crate::media;
use encoders::Encoder;
use report::Measurement;

/// Measures, and says and writes what was found.
///
/// # Errors
/// Where an encoder that was asked for is not there or fails, or the file can't be written.
pub fn calibrate(args: &CalibrateArgs) -> anyhow::Result<()> {
    let mut measured = Vec::new();
    if args.visible_gpu.is_some() {
        // The process that started us has the rest.
        measured.extend(of_gpu(args)?);
    } else {
        if args.gpu.is_empty() {
            measured.extend(of_cpu(args)?);
        }
        for gpu in gpus::chosen(&args.gpu) {
            measured.extend(by_child(args, &gpu)?);
        }
        if measured.is_empty() {
            bail!("GStreamer has none of the encoders asked for: leave --encoder out to see which there are");
        }
    }
    tell(args, &measured)
}

/// Tables and files are for people, JSON for programs.
fn tell(args: &CalibrateArgs, measured: &[Measurement]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let printing = "writing to standard output";
    let to_stdout = args
        .write
        .as_deref()
        .is_some_and(|path| path.as_os_str() == settings::STDOUT);
    if args.json {
        for measurement in measured {
            writeln!(out, "{}", serde_json::to_string(measurement)?).context(printing)?;
        }
    } else if to_stdout {
        eprint!("{}", report::table(measured));
    } else {
        write!(out, "{}", report::table(measured)).context(printing)?;
    }
    match &args.write {
        None => Ok(()),
        Some(_) if to_stdout => {
            let yaml = settings::merged("", measured, args.headroom)?;
            write!(out, "{yaml}").context(printing)
        }
        Some(file) => settings::write(file, measured, args.headroom),
    }
}

fn of_cpu(args: &CalibrateArgs) -> anyhow::Result<Vec<Measurement>> {
    media::init()?;
    // One thread an encoder: with a pipeline for each core, more would only get into each other's way.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    all(args, &encoders::software(), cores, None)
}

fn of_gpu(args: &CalibrateArgs) -> anyhow::Result<Vec<Measurement>> {
    media::init()?;
    all(
        args,
        &encoders::nvenc(),
        NVENC_SESSIONS,
        args.visible_gpu.as_deref(),
    )
}

/// Measures each of `encoders` that was asked for.
fn all(
    args: &CalibrateArgs,
    encoders: &[Encoder],
    pipelines: usize,
    gpu: Option<&str>,
) -> anyhow::Result<Vec<Measurement>> {
    let wanted = |asked: &[String], name: &str| asked.is_empty() || asked.iter().any(|a| a == name);
    encoders
        .iter()
        .filter(|encoder| wanted(&args.encoder, encoder.element) && wanted(&args.preset, &encoder.preset))
        .map(|encoder| {
            let Encoder { element, preset, .. } = encoder;
            let on = gpu.unwrap_or("the CPU");
            eprintln!(
                "Measuring {element}, preset {preset}, on {on}: {} s",
                args.seconds
            );
            let seconds = Duration::from_secs(args.seconds);
            let frames = measure::frames_per_second(encoder, pipelines, seconds)
                .with_context(|| format!("measuring {element} with preset {preset} on {on}"))?;
            Ok(Measurement::new(encoder, gpu, frames))
        })
        .collect()
}

/// Has a process that sees only `gpu` measure it.
fn by_child(args: &CalibrateArgs, gpu: &str) -> anyhow::Result<Vec<Measurement>> {
    let doing = || format!("measuring the encoders of {gpu} in a process of its own");
    let program = std::env::current_exe().with_context(doing)?;
    let mut command = Command::new(program);
    command.args(["calibrate", "--json", "--visible-gpu", gpu]);
    command.arg(format!("--seconds={}", args.seconds));
    command.args(args.encoder.iter().map(|name| format!("--encoder={name}")));
    command.args(args.preset.iter().map(|name| format!("--preset={name}")));
    command.env("CUDA_VISIBLE_DEVICES", gpu);
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().with_context(doing)?;
    if !output.status.success() {
        bail!("{}: it ended with {}", doing(), output.status);
    }
    let said = String::from_utf8(output.stdout).with_context(doing)?;
    let measured: Vec<Measurement> = said
        .lines()
        .map(|line| serde_json::from_str(line).with_context(doing))
        .collect::<Result<_, _>>()?;
    if measured.is_empty() && args.encoder.is_empty() {
        eprintln!(
            "{gpu}: GStreamer has no NVENC element for it. Either its plugin nvcodec is not installed, or the GPU \
             has no encoder, or this container was not given the driver capability `video`"
        );
    }
    Ok(measured)
}

/// Enough to keep four engines busy, two streams each, and as many as GeForce drivers allow at the least.
const NVENC_SESSIONS: usize = 8;
