//! The scheduler extender: packs sessions by encoder load, each onto one GPU, and says why not.
//!
//! ```text
//!  index      what is known of the cluster, and the questions to it
//!  simulate   replays traces through the same index
//! ```

#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "bind, preempt and deletion are asked by the HTTP server, which is still to come"
    )
)]
mod index;
mod simulate;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Packs sessions by encoder load, each onto one GPU.
#[derive(Debug, Parser)]
#[command(name = "penstock-scheduler-extender", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Simulate(simulate::SimulateArgs),
    GenerateSessions(simulate::GenerateArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
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
