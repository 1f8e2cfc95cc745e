//! `penstock-streamer`: see `--help`.

use std::process::ExitCode;

use clap::Parser as _;
use penstock_streamer::config::{Cli, Command, StreamArgs};
use penstock_streamer::{calibrate, media, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.log.init();
    let outcome = match cli.command {
        Some(Command::Calibrate(args)) => calibrate::calibrate(&args),
        None => stream(cli.stream),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("penstock-streamer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn stream(args: StreamArgs) -> anyhow::Result<()> {
    if let Err(error) = args.check() {
        eprintln!("penstock-streamer: {error}");
        // As clap ends on options that it refuses.
        std::process::exit(2);
    }
    if args.print_pipeline {
        println!("{}", media::describe(&args, args.display.as_deref()));
        return Ok(());
    }
    // One thread: children are tied to the thread that started them, and media has threads of its own.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run(args))
}
