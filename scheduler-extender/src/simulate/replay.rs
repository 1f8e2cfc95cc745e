//! Runs of a trace: for each policy and seed one, on two threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng as _;
use rand::rngs::Xoshiro256PlusPlus;

use super::cluster::{Cluster, Job};
use super::openb::{self, GPU_UNITS};
use super::policy::{Chooser, Policy};
use super::sampling::Sampling;
use super::scheduler::{Outcome, Scheduler};
use super::sessions::{self, Pool, Session};

/// What is replayed.
#[derive(Debug)]
pub(crate) enum Trace {
    /// See [`openb`].
    Openb {
        nodes: Vec<openb::Node>,
        jobs: Vec<Job>,
        demand_percent: u64,
    },
    /// See [`sessions`].
    Sessions {
        pools: Vec<Pool>,
        sessions: Vec<Session>,
    },
}

/// Runs each policy with each seed; in the order of the policies, then of the seeds.
///
/// # Errors
/// What a run says.
pub(crate) fn all(
    trace: &Trace,
    policies: &[Policy],
    seeds: &[u64],
    sampling: Sampling,
) -> anyhow::Result<Vec<Vec<Outcome>>> {
    let runs: Vec<_> = policies
        .iter()
        .flat_map(|policy| seeds.iter().map(move |seed| (*policy, *seed)))
        .collect();
    let progress = progress(runs.len());
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(vec![None; runs.len()]);
    let work = || -> anyhow::Result<()> {
        while let Some((policy, seed)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let run = runs
                .iter()
                .position(|run| run == &(*policy, *seed))
                .unwrap_or_default();
            let outcome = once(trace, *policy, *seed, sampling, &progress)?;
            let mut outcomes = outcomes
                .lock()
                .map_err(|_| anyhow!("another run of the simulation failed"))?;
            outcomes[run] = Some(outcome);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| anyhow!("a run of the simulation failed"))?
        })
    })?;
    progress.finish_and_clear();
    let outcomes: Vec<_> = outcomes
        .into_inner()
        .map_err(|_| anyhow!("a run failed"))?
        .into_iter()
        .flatten()
        .collect();
    Ok(outcomes.chunks(seeds.len().max(1)).map(<[_]>::to_vec).collect())
}

const THREADS: usize = 2;

/// Thousandths of runs. It shows on a terminal only.
fn progress(runs: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {percent} %, {eta} left")
        .unwrap_or(ProgressStyle::default_bar());
    ProgressBar::new(runs as u64 * 1000).with_style(style)
}

fn once(
    trace: &Trace,
    policy: Policy,
    seed: u64,
    sampling: Sampling,
    progress: &ProgressBar,
) -> anyhow::Result<Outcome> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    match trace {
        Trace::Openb {
            nodes,
            jobs,
            demand_percent,
        } => {
            let cluster = openb::cluster(nodes, &mut rng)?;
            let arrivals = openb::arrivals(jobs, cluster.units().1, *demand_percent, &mut rng);
            let scheduler = Scheduler::new(Chooser::new(policy, rng, jobs), sampling);
            fill(cluster, scheduler, &arrivals, progress)
        }
        Trace::Sessions { pools, sessions } => {
            let jobs: Vec<_> = sessions.iter().map(Session::job).collect();
            let scheduler = Scheduler::new(Chooser::new(policy, rng, &jobs), sampling);
            sessions::run(pools, sessions, scheduler, progress)
        }
    }
}

/// Nothing ends: what is allocated only grows.
fn fill(
    mut cluster: Cluster,
    mut scheduler: Scheduler,
    arrivals: &[Job],
    progress: &ProgressBar,
) -> anyhow::Result<Outcome> {
    let all = cluster.units().1 as f64;
    let mut outcome = Outcome::default();
    let (mut asked, mut packed, mut failed) = (0, 0, 0_u64);
    let step = (arrivals.len() / 1000).max(1);
    for (number, job) in arrivals.iter().enumerate() {
        asked += job.units();
        if scheduler.schedule(&mut cluster, number as u64, job)? {
            packed += job.units();
        } else {
            failed += 1;
        }
        if number % step == 0 {
            progress.inc(1);
            outcome
                .curve
                .push((100.0 * asked as f64 / all, 100.0 * packed as f64 / all));
        }
    }
    debug_assert_eq!(packed, cluster.units().0, "in units of 1/{GPU_UNITS} GPU");
    outcome.packed_percent = 100.0 * packed as f64 / all;
    outcome.failed_percent = 100.0 * failed as f64 / arrivals.len().max(1) as f64;
    outcome.wasted_percent = 100.0 * (all.min(asked as f64) - packed as f64) / all;
    Ok(outcome)
}
