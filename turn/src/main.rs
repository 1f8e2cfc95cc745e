//! penstock-turn: the TURN server's program. See the library beside it.

use std::process::ExitCode;

use clap::Parser as _;
use penstock_turn::options::Options;
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
    let options = Options::parse();
    options.init_logging();
    let read_again = || {
        let options = Options::try_parse().map_err(|error| error.to_string())?;
        options
            .settings()
            .map_err(|error| format!("{:#}", anyhow::Error::new(error)))
    };
    shell::run(options.settings()?, read_again).await?;
    Ok(())
}
