//! `penstock-plugin gpus`: what NVML says of this machine's GPUs, once or as it changes.

use std::io::Write as _;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::inventory::{Gpu, Inventory, Kind};
use super::measures::Measures;
use super::pods::PodFinder;
use super::watch::{self, Pace, Report};
use super::{NvmlArgs, RETRY_EVERY, open, wait_for};

/// List this machine's GPUs and MIG instances as NVIDIA's driver reports them.
///
/// What the driver can't tell is shown as `-` (null in JSON), never as 0.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    nvml: NvmlArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Wait for the driver where there is none yet
    #[arg(long)]
    wait: bool,
    /// Go on, and print health, errors (XIDs), load, encoder sessions and whose they are, one JSON object a
    /// line
    #[arg(long, conflicts_with_all = ["json", "wait"])]
    watch: bool,
}

/// Prints what there is.
///
/// # Errors
/// Where there is no NVML and nobody wants to wait for it.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let library = args.nvml.nvml_library;
    if args.watch {
        let reports = watch::start(library, Pace::default()).context("starting a thread for NVML")?;
        return follow(reports).await;
    }
    let nvml = match args.wait {
        true => wait_for(library.as_deref(), RETRY_EVERY).await,
        false => open(library.as_deref())?,
    };
    let inventory = Inventory::read(&nvml)?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&inventory)?),
        false => print!("{}", table(&inventory)),
    }
    Ok(())
}

async fn follow(mut reports: tokio::sync::mpsc::Receiver<Report>) -> anyhow::Result<()> {
    let mut pods = PodFinder::default();
    while let Some(report) = reports.recv().await {
        // Whoever reads may have had enough.
        writeln!(std::io::stdout(), "{}", line(&report, &mut pods)?).context("printing what NVML reports")?;
    }
    anyhow::bail!("the thread for NVML ended (that is a bug: its last words are above)")
}

/// One report as JSON; measures say also whose the processes are.
fn line(report: &Report, pods: &mut PodFinder) -> serde_json::Result<Value> {
    let mut line = serde_json::to_value(report)?;
    if let Report::Measured(measures) = report {
        line["pods"] = owners(measures, pods);
    }
    Ok(line)
}

/// The pods of all processes that use a GPU, by process ID.
fn owners(measures: &[Measures], pods: &mut PodFinder) -> Value {
    let pids = measures.iter().flat_map(|gpu| {
        let sessions = gpu.sessions.iter().flatten().map(|session| session.pid);
        gpu.processes.keys().copied().chain(sessions)
    });
    pids.filter_map(|pid| Some((pid.to_string(), json!(pods.pod_of(pid)?.as_str()))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn table(inventory: &Inventory) -> String {
    let header = HEADER.map(str::to_owned);
    let rows: Vec<_> = std::iter::once(header)
        .chain(inventory.gpus.iter().map(row))
        .collect();
    let mut text = rows.iter().map(|row| columns(row, &rows)).collect::<String>();
    if inventory.gpus.is_empty() {
        text = "no GPU\n".to_owned();
    }
    for unreadable in &inventory.unreadable {
        text += &format!("GPU {} can't be asked: {}\n", unreadable.index, unreadable.why);
    }
    let driver = or_dash(inventory.driver_version.as_ref());
    text + &format!(
        "driver {driver}, CUDA {}\n",
        or_dash(inventory.cuda_version.as_ref())
    )
}

fn row(gpu: &Gpu) -> [String; HEADER.len()] {
    let (model, mig, encoders) = match &gpu.kind {
        Kind::Whole => (gpu.model.clone(), "off", None),
        Kind::Divided => (gpu.model.clone(), "on", None),
        Kind::Mig(mig) => (
            format!("{} {}", gpu.model, or_dash(mig.profile.as_ref())),
            "instance",
            mig.encoders,
        ),
    };
    let memory = gpu.memory_bytes.map(|bytes| format!("{} MiB", bytes >> 20));
    let clock = gpu.max_video_clock_mhz.map(|mhz| format!("{mhz} MHz"));
    [
        gpu.index.to_string(),
        gpu.uuid.to_string(),
        model,
        or_dash(memory.as_ref()),
        mig.to_owned(),
        or_dash(clock.as_ref()),
        or_dash(encoders.as_ref()),
    ]
}

fn columns(row: &[String; HEADER.len()], all: &[[String; HEADER.len()]]) -> String {
    let cells = row.iter().enumerate().map(|(column, cell)| {
        let width = all
            .iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0);
        format!("{cell:width$}")
    });
    let line = cells.collect::<Vec<_>>().join("  ");
    format!("{}\n", line.trim_end())
}

fn or_dash<T: std::fmt::Display>(value: Option<&T>) -> String {
    value.map_or_else(|| "-".to_owned(), T::to_string)
}

/// NVML tells the number of encoder engines of a MIG instance only.
const HEADER: [&str; 7] = ["GPU", "UUID", "MODEL", "MEMORY", "MIG", "VIDEO CLOCK", "ENCODERS"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvml::inventory::Unreadable;

    #[test]
    fn a_machine_without_gpus_says_so() {
        let inventory = Inventory {
            driver_version: None,
            cuda_version: Some(13_010.into()),
            gpus: Vec::new(),
            unreadable: vec![Unreadable {
                index: 3,
                why: "no permission".into(),
            }],
        };
        let expected = "no GPU\nGPU 3 can't be asked: no permission\ndriver -, CUDA 13.1\n";
        assert_eq!(table(&inventory), expected);
    }
}
