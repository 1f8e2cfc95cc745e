//! penstock-turn: the TURN server's program. See the library beside it.

use std::process::ExitCode;

use penstock_turn::config_file::{self, LoadError};
use penstock_turn::options::Settings;
use penstock_turn::shell;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes on one line, and no backtrace: what went wrong is outside the program.
            eprintln!("penstock-turn: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> anyhow::Result<()> {
    let options = match config_file::load(std::env::args_os()) {
        // Says it as clap does, --help and --version too.
        Err(LoadError::Flags(error)) => error.exit(),
        options => options?,
    };
    options.init_logging();
    shell::run(options.settings()?, read_again).await?;
    Ok(())
}

/// The settings as they would be at a start now.
fn read_again() -> Result<Settings, String> {
    let load = || anyhow::Ok(config_file::load(std::env::args_os())?.settings()?);
    load().map_err(|error| format!("{error:#}"))
}
