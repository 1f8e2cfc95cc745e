//! The node agent: offers slices of GPUs.
//!
//! ```text
//!  kubelet       `device-plugin`: a node of Kubernetes: GPUs as devices of its kubelet
//!  assign        which GPU a container's devices come from
//!  standalone    a machine without Kubernetes: the ledger of slices, and one streamer process per slice
//!  client        `slices` and `slice …`: talk to that agent
//! ```

mod assign;
mod client;
mod kubelet;
mod standalone;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use penstock_shell::logging::LogArgs;

/// Offers slices of this machine's GPUs, and keeps a streamer running in each.
#[derive(Debug, Parser)]
#[command(name = "penstock-plugin", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    DevicePlugin(kubelet::Args),
    Standalone(Box<standalone::Args>),
    Slices(client::ListArgs),
    Slice(client::SliceArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.log.init();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One thread for everything: streamers are tied to the life of the thread that started them.
fn run(command: Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the asynchronous runtime")?;
    runtime.block_on(async {
        match command {
            Command::DevicePlugin(args) => kubelet::run(args).await,
            Command::Standalone(args) => standalone::run(*args).await,
            Command::Slices(args) => client::list(args).await,
            Command::Slice(args) => client::slice(args).await,
        }
    })
}
