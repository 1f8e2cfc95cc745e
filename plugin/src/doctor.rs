//! `penstock-plugin doctor`: whether a node has all that Penstock needs.
//!
//! ```text
//!   facts ── gather: NVML, CUDA, files, /proc ──► Facts ── checks ──► [ok | warning | problem, what to do] ──► printed
//! ```

mod checks;
mod facts;

use std::fmt;
use std::path::PathBuf;

use anyhow::bail;

use crate::cdi::Inject;
use crate::mps::{DEFAULT_ROOT, ENV_ROOT};
use crate::nvml::NvmlArgs;

/// Check whether this node has all that Penstock needs, and say what to do where it has not.
///
/// Run it where the plugin runs: in its pod, with the same volumes. Ends with status 1 where there is a problem;
/// a warning is something that works, but not as well or not for everyone.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave out what only GPUs need: this node offers software slices
    #[arg(long, env = "PENSTOCK_SOFTWARE_SLICES")]
    software_slices: bool,
    /// How GPUs get into containers, as the plugin is told
    #[arg(long, env = "PENSTOCK_INJECT", value_enum, default_value_t = Inject::DEFAULT)]
    inject: Inject,
    /// Directory of the MPS daemons' pipes
    #[arg(long, env = ENV_ROOT, default_value = DEFAULT_ROOT, value_name = "PATH")]
    mps_root: PathBuf,
    /// Where the node's file system is mounted, to read its container engine's configuration
    #[arg(long, default_value = "/", value_name = "PATH")]
    host: PathBuf,
    #[command(flatten)]
    nvml: NvmlArgs,
}

/// Checks, and prints what was found.
///
/// # Errors
/// Where there is a problem.
pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    let inject = (!args.software_slices).then_some(args.inject);
    let facts = facts::gather(
        args.nvml.nvml_library.as_deref(),
        &args.mps_root,
        &args.host,
        inject,
    )
    .await;
    let findings = checks::all(&facts);
    print!("{}", Report(&findings));
    match findings.iter().filter(|f| f.grade == Grade::Problem).count() {
        0 => Ok(()),
        1 => bail!("1 problem was found: see above"),
        count => bail!("{count} problems were found: see above"),
    }
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    grade: Grade,
    /// What was looked at.
    subject: &'static str,
    /// What was found.
    found: String,
    /// What to do, where something is to be done.
    advice: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grade {
    Ok,
    Warning,
    Problem,
}

impl Finding {
    fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Self {
            grade: Grade::Ok,
            subject,
            found: found.into(),
            advice: None,
        }
    }

    fn warning(subject: &'static str, found: impl Into<String>, advice: &'static str) -> Self {
        Self {
            grade: Grade::Warning,
            advice: Some(advice),
            ..Self::ok(subject, found)
        }
    }

    fn problem(subject: &'static str, found: impl Into<String>, advice: &'static str) -> Self {
        Self {
            grade: Grade::Problem,
            ..Self::warning(subject, found, advice)
        }
    }
}

struct Report<'a>(&'a [Finding]);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in self.0 {
            let grade = match finding.grade {
                Grade::Ok => "ok",
                Grade::Warning => "warning",
                Grade::Problem => "PROBLEM",
            };
            writeln!(f, "{grade:<8} {:<12} {}", finding.subject, finding.found)?;
            if let Some(advice) = finding.advice {
                writeln!(f, "{:<21} -> {advice}", "")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
