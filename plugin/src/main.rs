//! The node agent: offers slices of GPUs.
//!
//! ```text
//!  kubelet       `device-plugin`: a node of Kubernetes: GPUs as devices of its kubelet
//!  standalone    a machine without Kubernetes: the ledger of slices, and one streamer process per slice
//!  client        `slices` and `slice …`: talk to that agent
//!  assign        which pod a call of the kubelet is for, and which GPU it gets
//!  gpunode       what this node says about its GPUs in the cluster; `crd` prints the definition of that
//!  pods          the pods of this node that ask for our resources
//!  nvml          GPUs through NVIDIA's driver: what there is, health, load; `gpus`
//!  load          what pods use of GPUs, and who uses more than its slice
//!  mps           keeps an MPS control daemon running for each GPU, and sees whether one lives
//!  gpus          follows the GPUs: NVML's reports and the daemons' pipes in, offers out
//!  offers        what of each GPU is offered, and what of it is not to be used now
//!  answer, cdi   what a container is told when devices are allocated to it, and how it gets its GPU
//!  cuda          what a CUDA program sees under a slice's limits
//!  doctor        whether a node has all that this needs
//! ```

mod answer;
mod assign;
mod attend;
mod backoff;
mod cdi;
mod client;
mod cuda;
mod doctor;
mod gpunode;
mod gpus;
mod kubelet;
mod last_words;
mod load;
mod mps;
mod nvml;
mod offers;
mod pods;
mod settings;
mod standalone;

use std::io::Write as _;
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
    /// Print the definition of the custom resource GpuNode, for `kubectl apply -f -`
    Crd,
    Gpus(nvml::GpusArgs),
    Mps(mps::Args),
    Doctor(doctor::Args),
    #[command(hide = true)]
    CudaProbe(cuda::Args),
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
            Command::Crd => print_crd(),
            Command::Gpus(args) => nvml::gpus(args).await,
            Command::Mps(args) => mps::run(args).await,
            Command::Doctor(args) => doctor::run(&args).await,
            Command::CudaProbe(args) => cuda::probe(&args),
        }
    })
}

fn print_crd() -> anyhow::Result<()> {
    let yaml = gpunode::crd_yaml()?;
    std::io::stdout()
        .write_all(yaml.as_bytes())
        .context("writing to standard output")
}
