//! Whether CUDA works, and what a CUDA program sees under a slice's limits.
//!
//! ```text
//!   doctor ── starts, with a slice's environment ──► penstock-plugin cuda-probe ── opens a context ──► Seen, as JSON
//! ```
//!
//! CUDA reads the limits once, when it is first used, and a driver in trouble may hang or kill whoever asks it: so each
//! question has a process of its own.

use std::panic::catch_unwind;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUdevice_attribute;
use penstock_core::ids::GpuUuid;
use penstock_core::packing::Resources;
use penstock_shell::children::guard;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::answer::{self, Grant};
use crate::cdi::Injection;
use crate::last_words::LastWords;
use crate::mps::Layout;

/// What a CUDA program sees of its GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Seen {
    /// Streaming multiprocessors.
    pub(crate) sms: i32,
    /// Bytes of memory in all.
    pub(crate) memory_bytes: u64,
    /// Bytes of memory that are free.
    pub(crate) free_bytes: u64,
}

/// Open a CUDA context on the first GPU that CUDA shows, and print what it sees as JSON
///
/// CUDA_VISIBLE_DEVICES chooses the GPU, and CUDA_MPS_PIPE_DIRECTORY, CUDA_MPS_ACTIVE_THREAD_PERCENTAGE and
/// CUDA_MPS_PINNED_DEVICE_MEM_LIMIT set the limits.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds to keep the context open, after printing
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    hold: u64,
}

/// Prints what is seen.
///
/// # Errors
/// Where there is no CUDA, or it gives no context.
pub(crate) fn probe(args: &Args) -> anyhow::Result<()> {
    // Where the library or a function of it is missing, cudarc panics. That becomes an error below.
    std::panic::set_hook(Box::new(|_| {}));
    let opened = catch_unwind(|| {
        let context = CudaContext::new(0)?;
        let (free, total) = context.mem_get_info()?;
        let seen = Seen {
            sms: context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory_bytes: total as u64,
            free_bytes: free as u64,
        };
        anyhow::Ok((context, seen))
    });
    let doing = "opening a CUDA context (libcuda.so.1 comes with NVIDIA's driver; in a container, \
                 NVIDIA_DRIVER_CAPABILITIES has to name compute)";
    let opened = opened.unwrap_or_else(|panic| Err(anyhow!(words(&*panic))));
    let (_context, seen) = opened.context(doing)?;
    println!("{}", serde_json::to_string(&seen)?);
    std::thread::sleep(Duration::from_secs(args.hold));
    Ok(())
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    // Of the names that were tried in vain, the reader needs none.
    let text = text.unwrap_or("cudarc gave up");
    text.split(" - searched").next().unwrap_or(text).to_owned()
}

/// What a CUDA program sees of a GPU as a slice of `demand`, whose MPS daemon's pipes are below `mps`.
///
/// # Errors
/// Why it sees nothing, in words.
pub(crate) async fn seen(gpu: &GpuUuid, demand: Resources, mps: &Path) -> Result<Seen, String> {
    ask(gpu, demand, mps).await.map_err(|error| format!("{error:#}"))
}

async fn ask(gpu: &GpuUuid, demand: Resources, mps: &Path) -> anyhow::Result<Seen> {
    let own = std::env::current_exe().context("finding this program, to start it again")?;
    let mut command = Command::new(own);
    command
        .arg("cuda-probe")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for variable in answer::VARIABLES {
        command.env_remove(variable);
    }
    command.envs(answer::environment(&Grant {
        gpu,
        demand,
        engine: None,
        pod_encodes: false,
        slice: None,
        injection: &Injection::Environment,
        mps: &Layout::new(mps),
    }));
    let child = guard(&mut command, Signal::KILL)
        .spawn()
        .context("starting a CUDA program")?;
    let Ok(output) = tokio::time::timeout(ANSWERS_WITHIN, child.wait_with_output()).await else {
        // Dropped, the child is killed.
        bail!(
            "a CUDA program got no answer from the driver within {} s",
            ANSWERS_WITHIN.as_secs()
        );
    };
    let output = output.context("waiting for a CUDA program")?;
    if !output.status.success() {
        let mut said = LastWords::default();
        said.push(&output.stderr);
        said.finish();
        let why = said.why().map(|why| why.trim_start_matches("error: ").to_owned());
        bail!(why.unwrap_or_else(|| format!("a CUDA program ended with {}", output.status)));
    }
    serde_json::from_slice(&output.stdout).context("reading what a CUDA program printed")
}

/// A GPU that sleeps, or a first MPS client, takes a few seconds.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
