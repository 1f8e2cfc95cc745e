//! The software "GPU" of a machine that has none: x264 on its CPU, under `CPU-<machine id>`, or `CPU-<node>` in a
//! cluster: in a container neither the machine's ID nor its host name is to be had.
//!
//! ```text
//!   --units N, or the configuration's software.nvenc ────────┐
//!   penstock-streamer calibrate ──► megapixels per second ───┴──► encoder units
//!                                   less --headroom
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context as _, bail};
use penstock_core::ids::{GpuUuid, NodeName};
use penstock_core::packing::Resources;
use penstock_core::units::EncoderUnits;
use penstock_shell::children::{self, guard};
use rustix::process::Signal;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use super::agent::Offer;
use crate::attend::in_words;

/// What `penstock-streamer calibrate` prints.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Calibration {
    /// GStreamer's name of the encoder.
    encoder: String,
    /// What the whole machine encodes at most.
    megapixels_per_second: f64,
}

/// The software GPU with `units`, of the cluster's node if it is one. It has no SMs and no video memory, and so offers
/// none.
///
/// # Errors
/// Where the machine has no usable name.
pub(super) fn offer(units: EncoderUnits, node: Option<&NodeName>) -> anyhow::Result<Offer> {
    let cores = available_parallelism().map_or(1, usize::from);
    let plural = if cores == 1 { "" } else { "s" };
    Ok(Offer {
        uuid: uuid(node)?,
        model: format!("software (x264, {cores} core{plural})"),
        capacity: Resources {
            nvenc: units,
            ..Resources::NONE
        },
        engine: None,
        mps_clients: 0,
        unhealthy: BTreeMap::new(),
    })
}

/// Has `streamer` measure how much this machine encodes.
///
/// # Errors
/// Where it can't be started, fails, says something else, or takes too long; each names `--units` as the way
/// round.
pub(super) async fn measure(streamer: &Path) -> anyhow::Result<Calibration> {
    let told = format!("`{} calibrate`", streamer.display());
    let doing = || format!("measuring the encoder with {told} (--units N sets the capacity by hand)");
    let mut command = Command::new(streamer);
    command
        .arg("calibrate")
        .args(CALIBRATE)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = guard(&mut command, Signal::TERM).spawn().with_context(doing)?;
    let measured = tokio::time::timeout(MEASURE_WITHIN, said(&mut child)).await;
    children::end(&mut child, END_WITHIN).await.with_context(doing)?;
    let said = measured
        .with_context(|| format!("it did not end within {} s", MEASURE_WITHIN.as_secs()))
        .and_then(|said| said)
        .with_context(doing)?;
    parse(&said).with_context(doing)
}

/// The units that a measurement yields, less `headroom` percent for capture, the application and sending.
///
/// # Errors
/// Where that is no whole unit.
pub(super) fn units(measured: &Calibration, headroom: u8) -> anyhow::Result<EncoderUnits> {
    let Calibration {
        encoder,
        megapixels_per_second,
    } = measured;
    let share = f64::from(100 - headroom.min(100)) / 100.0;
    // The cast takes what is negative or no number for 0, and what is too large for the largest number.
    let units = EncoderUnits::from_pixel_rate((megapixels_per_second * 1e6 * share) as u64);
    if units.0 == 0 {
        bail!(
            "{encoder} manages {megapixels_per_second} megapixels per second on this machine, which less \
             {headroom} % headroom is not one encoder unit (10 megapixels per second): lower --headroom, or set \
             the capacity by hand with --units N"
        );
    }
    tracing::info!(encoder, megapixels_per_second, headroom, "measured {units}");
    Ok(units)
}

/// All that the child says, once it has ended well.
async fn said(child: &mut Child) -> anyhow::Result<String> {
    let mut text = String::new();
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = stdout.take(MAX_SAID_BYTES);
        let read = stdout.read_to_string(&mut text).await;
        read.context("reading what it prints")?;
    }
    let status = child.wait().await.context("waiting for it")?;
    if !status.success() {
        bail!("it {}", in_words(status, None));
    }
    Ok(text)
}

fn parse(said: &str) -> anyhow::Result<Calibration> {
    let line = said.lines().rfind(|line| !line.trim().is_empty());
    let line = line.context("it printed nothing")?;
    serde_json::from_str(line).with_context(|| {
        let start: String = line.chars().take(200).collect();
        format!("it printed {start:?}, not {{\"encoder\":…,\"megapixelsPerSecond\":…}}")
    })
}

fn uuid(node: Option<&NodeName>) -> anyhow::Result<GpuUuid> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let named = match node {
        Some(node) => uuid_of("", node.as_str()),
        None => uuid_of(&read("/etc/machine-id"), &read("/proc/sys/kernel/hostname")),
    };
    named.context("naming this machine's software encoder")
}

/// `CPU-<machine id>`, or `CPU-<host name>` on a machine that has no ID (yet).
fn uuid_of(machine_id: &str, host_name: &str) -> anyhow::Result<GpuUuid> {
    let is_id = |text: &str| text.len() == 32 && text.chars().all(|c| c.is_ascii_hexdigit());
    let name = match machine_id.trim() {
        id if is_id(id) => id.to_owned(),
        _ => host_name.trim().chars().filter_map(allowed).take(50).collect(),
    };
    let name = if name.is_empty() { "local" } else { &name };
    Ok(GpuUuid::new(format!("CPU-{name}"))?)
}

fn allowed(c: char) -> Option<char> {
    (c.is_ascii_alphanumeric() || "-_.".contains(c)).then_some(c)
}

/// x264 with the preset that streamers have.
const CALIBRATE: [&str; 3] = ["--json", "--encoder=x264enc", "--preset=superfast"];
const MEASURE_WITHIN: Duration = Duration::from_secs(20);
const END_WITHIN: Duration = Duration::from_secs(2);
const MAX_SAID_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headroom_is_taken_off_the_measurement() {
        assert_eq!(units(&manages(241.3), 50).unwrap(), EncoderUnits(12));
        assert_eq!(units(&manages(241.3), 0).unwrap(), EncoderUnits(24));
    }

    #[test]
    fn less_than_one_unit_is_an_error_that_names_the_ways_round() {
        for nothing in [19.9, 0.0, -5.0, f64::NAN] {
            let error = units(&manages(nothing), 50).unwrap_err().to_string();
            assert!(
                error.contains("--headroom") && error.contains("--units"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_measurement_is_the_last_line_printed() {
        let said = "warming up\n{\"encoder\":\"x264enc\",\"megapixelsPerSecond\":241.3}\n\n";
        assert_eq!(parse(said).unwrap(), manages(241.3));
        for bad in ["", "\n", "fast enough", "{\"encoder\":\"x264enc\"}"] {
            assert!(parse(bad).unwrap_err().to_string().contains("it printed"));
        }
    }

    #[test]
    fn a_machine_without_id_goes_by_its_host_name() {
        let name = |id: &str, host: &str| uuid_of(id, host).unwrap().to_string();
        let id = "3d1219c7c4c5404aaa1f6d2a48adfda4";
        assert_eq!(name(&format!("{id}\n"), "host"), format!("CPU-{id}"));
        assert_eq!(name("uninitialized\n", "games-7.lan\n"), "CPU-games-7.lan");
        assert_eq!(name("", "bad name/é\n"), "CPU-badname");
        assert_eq!(name("", ""), "CPU-local");
        assert_eq!(name("", &"x".repeat(200)).len(), 54);
    }

    #[test]
    fn a_node_of_a_cluster_goes_by_its_name() {
        let node = "node-7.example".parse().unwrap();
        assert_eq!(uuid(Some(&node)).unwrap().as_str(), "CPU-node-7.example");
    }

    fn manages(megapixels_per_second: f64) -> Calibration {
        Calibration {
            encoder: "x264enc".to_owned(),
            megapixels_per_second,
        }
    }
}
