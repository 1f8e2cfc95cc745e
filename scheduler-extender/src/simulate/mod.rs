//! Replays a trace through the extender's own index, and says what was packed, what failed and what is wasted.
//!
//! ```text
//!   openb      the public trace of fractional GPU requests
//!   sessions   our own: streams of several sizes that come and go; `bound` is the most that could be served
//!   cluster    the index, with what only a trace knows;  policy: who is compared;  sampling: which nodes are looked at
//!   scheduler  takes one job after the other;  replay: runs for each policy and seed;  plot: the picture
//! ```

mod bound;
mod cluster;
mod openb;
mod plot;
mod policy;
mod replay;
mod sampling;
mod scheduler;
mod sessions;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use policy::Policy;
use replay::Trace;
use sampling::Sampling;
use scheduler::Outcome;
pub(crate) use sessions::{GenerateArgs, generate};

/// Replay a trace and print what each policy packs
#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// The machines, as CSV. openb: as published; sessions: pool,nodes,gpus,model,memory_gib
    #[arg(long, value_name = "FILE")]
    nodes: PathBuf,
    /// What comes, as CSV. openb: as published; sessions: as written by `generate-sessions`
    #[arg(long, value_name = "FILE")]
    pods: PathBuf,
    /// What the two files are
    #[arg(long, value_enum)]
    format: Format,
    /// Who packs; may be given several times. All, if not given
    #[arg(long, value_enum)]
    policy: Vec<Policy>,
    /// What chance begins with: the same seed gives the same result
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// How many seeds to replay with, from --seed on
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// openb: jobs come until they ask for this much of all GPUs, in percent
    #[arg(long, default_value_t = 130, value_name = "PERCENT")]
    demand: u64,
    /// How many of the nodes the scheduler looks at for each pod
    #[arg(long, value_enum, default_value_t = Sampling::All)]
    nodes_to_score: Sampling,
    /// Draw what is allocated as pods arrive, to this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The public trace `openb_…`
    Openb,
    /// Our own, of streams
    Sessions,
}

/// Runs it.
///
/// # Errors
/// Files that can't be read or written, or that are of another form.
pub(crate) fn simulate(args: &SimulateArgs) -> anyhow::Result<()> {
    let trace = match args.format {
        Format::Openb => Trace::Openb {
            nodes: openb::read_nodes(&args.nodes)?,
            jobs: openb::read_jobs(&args.pods)?,
            demand_percent: args.demand,
        },
        Format::Sessions => Trace::Sessions {
            pools: sessions::read_pools(&args.nodes)?,
            sessions: sessions::read(&args.pods)?,
        },
    };
    let policies = if args.policy.is_empty() {
        Policy::ALL.to_vec()
    } else {
        args.policy.clone()
    };
    let seeds: Vec<u64> = (args.seed..args.seed.saturating_add(args.seeds)).collect();
    let outcomes = replay::all(&trace, &policies, &seeds, args.nodes_to_score)?;
    for (policy, outcomes) in policies.iter().zip(&outcomes) {
        report(*policy, outcomes);
    }
    if let Some(file) = &args.plot {
        let curves = policies
            .iter()
            .zip(&outcomes)
            .filter_map(|(policy, of)| Some((policy.name(), &of.first()?.curve)));
        plot::draw(file, &curves.collect::<Vec<_>>())
            .with_context(|| format!("drawing {}", file.display()))?;
        println!("drawn to {}", file.display());
    }
    Ok(())
}

fn report(policy: Policy, outcomes: &[Outcome]) {
    let over = |of: fn(&Outcome) -> f64| outcomes.iter().map(of).sum::<f64>() / outcomes.len() as f64;
    let packed: Vec<_> = outcomes.iter().map(|outcome| outcome.packed_percent).collect();
    let least = packed.iter().copied().fold(f64::INFINITY, f64::min);
    let most = packed.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let of = |part: fn(&Outcome) -> Option<f64>, words: &str| {
        let sum = outcomes.iter().map(part).sum::<Option<f64>>();
        sum.map(|sum| format!("   {:6.2} % {words}", sum / outcomes.len() as f64))
            .unwrap_or_default()
    };
    println!(
        "{:<8} packed {:6.2} % ({least:.2} to {most:.2} in {} runs)   failed {:6.2} % of pods   wasted {:5.2} %{}{}",
        policy.name(),
        over(|o| o.packed_percent),
        outcomes.len(),
        over(|o| o.failed_percent),
        over(|o| o.wasted_percent),
        of(|o| o.of_bound_percent, "of the bound"),
        of(|o| o.of_bound_without_choice_percent, "of it without choice"),
    );
}
