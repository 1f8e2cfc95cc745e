//! `penstock-matchmaker`: the front door for players.

use clap::Parser as _;
use penstock_matchmaker::args::Args;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    args.logs.init();
    let stop = penstock_shell::shutdown::token()?;
    penstock_matchmaker::run(args, stop).await
}
