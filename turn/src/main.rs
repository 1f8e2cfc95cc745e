//! penstock-turn: the TURN server's program. See the library beside it.

use clap::Parser as _;
use penstock_turn::options::Options;
use penstock_turn::shell;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    options.init_logging();
    shell::run(options.settings()?).await?;
    Ok(())
}
