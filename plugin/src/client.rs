//! `penstock-plugin slices` and `slice …`: a person's way to the stand-alone agent's API.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use penstock_core::ids::SliceId;
use penstock_core::packing::Resources;
use penstock_core::units::{EncoderUnits, SmPercent, VramBlocks};
use penstock_core::wire::agent::{Problem, SliceSpec, SliceState, SliceStatus};
use reqwest::{Method, Response};
use serde::Serialize;

use crate::standalone::{DEFAULT_SOCKET, ENV_SOCKET};

/// List the slices of the stand-alone agent on this machine.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    agent: AgentArgs,
}

/// Start or end a slice of the stand-alone agent on this machine.
#[derive(Debug, clap::Args)]
pub(crate) struct SliceArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Start a slice, with a streamer in it
    Start {
        #[command(flatten)]
        agent: AgentArgs,
        /// Its name [default: the first of slice-1, slice-2, … that is free]
        #[arg(long)]
        id: Option<SliceId>,
        /// Encoder units that it takes: 720p30 is 3, 1080p30 7, 1080p60 13
        #[arg(long)]
        units: NonZeroU32,
        /// Percent of the SMs that CUDA programs in it have
        #[arg(long, value_name = "PERCENT", default_value = "0")]
        mps: u32,
        /// Video memory that it has, in blocks of 256 MiB
        #[arg(long, value_name = "BLOCKS", default_value = "0")]
        vram: u32,
        /// What it streams: penstock-streamer's own arguments
        #[arg(last = true, value_name = "STREAMER ARGUMENTS")]
        streamer_args: Vec<String>,
    },
    /// End a slice: its streamer and all that this started
    End {
        #[command(flatten)]
        agent: AgentArgs,
        /// Its name
        id: SliceId,
    },
}

#[derive(Debug, clap::Args)]
struct AgentArgs {
    /// Unix socket of the agent
    #[arg(long, env = ENV_SOCKET, default_value = DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
}

/// Prints a table of all slices.
///
/// # Errors
/// Where no agent answers.
pub(crate) async fn list(args: ListArgs) -> anyhow::Result<()> {
    let response = ask(&args.agent.socket, Method::GET, "/v1/slices", None::<&()>).await?;
    let slices: Vec<SliceStatus> = response.json().await.context("reading the list of slices")?;
    print!("{}", table(&slices));
    Ok(())
}

/// Starts or ends a slice.
///
/// # Errors
/// Where no agent answers, or it refuses.
pub(crate) async fn slice(args: SliceArgs) -> anyhow::Result<()> {
    match args.action {
        Action::Start {
            agent,
            id,
            units,
            mps,
            vram,
            streamer_args,
        } => {
            let demand = Resources {
                nvenc: EncoderUnits(units.get()),
                mps: SmPercent(mps),
                vram: VramBlocks(vram),
            };
            let spec = SliceSpec {
                id,
                demand,
                streamer_args,
            };
            let response = ask(&agent.socket, Method::POST, "/v1/slices", Some(&spec)).await?;
            let slice: SliceStatus = response.json().await.context("reading the started slice")?;
            print!("{}", table(&[slice]));
        }
        Action::End { agent, id } => {
            ask(
                &agent.socket,
                Method::DELETE,
                &format!("/v1/slices/{id}"),
                None::<&()>,
            )
            .await?;
        }
    }
    Ok(())
}

/// The agent's answer, or what it says is wrong.
async fn ask(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> anyhow::Result<Response> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .unix_socket(socket)
        .build()
        .context("preparing to ask the agent")?;
    let mut request = client.request(method, format!("http://agent{path}"));
    if let Some(body) = body {
        request = request.json(body);
    }
    let response = request.send().await.with_context(|| {
        let socket = socket.display();
        format!(
            "asking the agent on {socket} (is `penstock-plugin standalone` running, and with this --socket?)"
        )
    })?;
    if !response.status().is_success() {
        let status = response.status();
        let problem = response.json::<Problem>().await;
        bail!(problem.map_or_else(|_| format!("the agent answered {status}"), |p| p.error));
    }
    Ok(response)
}

/// One line per slice, in columns as wide as their widest cell.
fn table(slices: &[SliceStatus]) -> String {
    let rows: Vec<[String; COLUMNS]> = std::iter::once(HEADINGS.map(str::to_owned))
        .chain(slices.iter().map(row))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| width(column).unwrap_or(0));
    rows.iter().map(|row| line(row, &widths)).collect()
}

fn line(row: &[String; COLUMNS], widths: &[usize; COLUMNS]) -> String {
    let padded = row
        .iter()
        .zip(widths)
        .map(|(cell, width)| format!("{cell:width$}"));
    let line = padded.collect::<Vec<_>>().join("  ");
    format!("{}\n", line.trim_end())
}

fn row(slice: &SliceStatus) -> [String; COLUMNS] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        slice.id.to_string(),
        slice.gpu.to_string(),
        slice.demand.nvenc.0.to_string(),
        in_a_word(slice.state).to_owned(),
        or_dash(slice.address.map(|address| address.to_string())),
        or_dash(slice.pid.map(|pid| pid.to_string())),
        slice.restarts.to_string(),
        or_dash(slice.last_exit.clone()),
        or_dash(slice.unhealthy.clone()),
    ]
}

fn in_a_word(state: SliceState) -> &'static str {
    match state {
        SliceState::Starting => "starting",
        SliceState::Running => "running",
        SliceState::BackingOff => "backing off",
        SliceState::Stopping => "stopping",
    }
}

const COLUMNS: usize = 9;
const HEADINGS: [&str; COLUMNS] = [
    "SLICE",
    "GPU",
    "UNITS",
    "STATE",
    "ADDRESS",
    "PID",
    "RESTARTS",
    "LAST EXIT",
    "GPU UNHEALTHY",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lines_up() {
        let running = serde_json::json!({
            "id": "slice-1", "gpu": "CPU-x", "demand": {"nvenc": 13}, "state": "running",
            "address": "127.0.0.1:4000", "pid": 77, "restarts": 0,
        });
        let failing = serde_json::json!({
            "id": "b", "gpu": "CPU-x", "demand": {"nvenc": 3}, "state": "backing-off", "restarts": 4,
            "lastExit": "killed by signal 9", "unhealthy": "XID 47",
        });
        let slices = [running, failing].map(|slice| serde_json::from_value(slice).unwrap());
        let expected = "\
SLICE    GPU    UNITS  STATE        ADDRESS         PID  RESTARTS  LAST EXIT           GPU UNHEALTHY
slice-1  CPU-x  13     running      127.0.0.1:4000  77   0         -                   -
b        CPU-x  3      backing off  -               -    4         killed by signal 9  XID 47
";
        assert_eq!(table(&slices), expected);
    }
}
