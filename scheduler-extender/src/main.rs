//! The scheduler extender: packs sessions by encoder load, each onto one GPU, and says why not.
//!
//! ```text
//!  index      what is known of the cluster, and the questions to it
//!  serve      answers a kube-scheduler from it
//!    wire       the scheduler's bodies          owner    the index's one task
//!    objects    what the API server says        watches  tells the index of it
//!    binder     sends Bindings
//!  simulate   replays traces through the same index
//! ```

mod args;
mod binder;
mod index;
mod metrics;
mod objects;
mod owner;
mod serve;
mod simulate;
mod watches;
mod wire;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use penstock_shell::logging::LogArgs;

/// Packs sessions by encoder load, each onto one GPU.
#[derive(Debug, Parser)]
#[command(name = "penstock-scheduler-extender", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    logs: LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(args::ServeArgs),
    Simulate(simulate::SimulateArgs),
    GenerateSessions(simulate::GenerateArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.logs.init();
    let done = match cli.command {
        Command::Serve(args) => serve(&args),
        Command::Simulate(args) => simulate::simulate(&args),
        Command::GenerateSessions(args) => simulate::generate(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn serve(args: &args::ServeArgs) -> anyhow::Result<()> {
    let stop = penstock_shell::shutdown::token().context("preparing to be told to end")?;
    serve::serve(args, stop).await
}
