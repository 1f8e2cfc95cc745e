//! Streams that come and go: our own trace, how one is made, and how it is replayed.
//!
//! A session that finds no place is lost: its player does not wait. At regular times what is served is held against the
//! most that could be, by [`bound`](super::bound), of all sessions that would be on then.
//!
//! With more load than there is room, that bound serves those who take least for their encoder units. Our scheduler
//! refuses nobody who fits, so it is held against what could be served without such a choice, too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::ProgressBar;
use penstock_core::gpu_models::Model;
use penstock_core::gpu_node::Capacity;
use penstock_core::units::{SmPercent, StreamSize, VramBlocks};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

use super::bound::{self, Demand, Supply};
use super::cluster::{Cluster, Host, Job};
use super::scheduler::{Outcome, Scheduler};

/// Nodes of one kind.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Pool {
    pool: String,
    nodes: usize,
    /// Of each node.
    gpus: usize,
    model: String,
    /// Of each GPU.
    memory_gib: u32,
}

/// One session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Session {
    /// Seconds since the beginning.
    arrival: u64,
    /// Seconds.
    duration: u64,
    /// Such as `1080p60`.
    size: String,
    /// Percent of the SMs.
    mps: u32,
    /// Blocks of 256 MiB.
    vram: u32,
}

/// Write a trace of sessions, as CSV: they arrive at random, last at random, and are of a fixed mix of sizes
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// What chance begins with: the same seed gives the same trace
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// How long sessions arrive, in minutes
    #[arg(long, default_value_t = 120)]
    minutes: u64,
    /// How many are on at one time, on average
    #[arg(long)]
    concurrent: u64,
    /// How long a session lasts, on average, in minutes
    #[arg(long, default_value_t = 30)]
    mean_minutes: u64,
    /// Where to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Sizes, each with its share in percent.
const MIX: [(&str, u32); 5] = [
    ("720p30", 30),
    ("1080p30", 25),
    ("1080p60", 30),
    ("1440p60", 10),
    ("2160p60", 5),
];
/// Applications differ in what they compute and hold, whatever the size of their picture.
const MPS: [u32; 4] = [2, 4, 6, 10];
const VRAM: [u32; 4] = [2, 3, 5, 8];

/// A kubelet takes no more pods, by default.
const PODS_PER_NODE: u32 = 110;
/// Clients of one MPS daemon.
const MPS_CLIENTS: u32 = 48;

/// Writes a trace.
///
/// # Errors
/// A file that can't be written.
pub(crate) fn generate(args: &GenerateArgs) -> anyhow::Result<()> {
    let doing = || format!("writing {}", args.out.display());
    let mut writer = csv::Writer::from_path(&args.out).with_context(doing)?;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(args.seed);
    let mean = args.mean_minutes as f64 * 60.0;
    let gap = mean / args.concurrent as f64;
    // So many are on when the trace begins. How long a session has been on says nothing about how long it will be.
    for _ in 0..args.concurrent {
        writer.serialize(draw(&mut rng, 0.0, mean)).with_context(doing)?;
    }
    let mut at = 0.0;
    while at < args.minutes as f64 * 60.0 {
        writer.serialize(draw(&mut rng, at, mean)).with_context(doing)?;
        at += exponential(&mut rng, gap);
    }
    writer.flush().with_context(doing)
}

fn draw(rng: &mut Xoshiro256PlusPlus, at: f64, mean_seconds: f64) -> Session {
    let mut share = rng.random_range(0..MIX.iter().map(|(_, share)| share).sum());
    let size = MIX.iter().find(|(_, of)| {
        let found = share < *of;
        share = share.saturating_sub(*of);
        found
    });
    Session {
        arrival: at as u64,
        duration: exponential(rng, mean_seconds) as u64,
        size: size.map_or(MIX[0].0, |(name, _)| name).to_owned(),
        mps: MPS[rng.random_range(0..MPS.len())],
        vram: VRAM[rng.random_range(0..VRAM.len())],
    }
}

/// The time to the next of events that come independently of each other.
fn exponential(rng: &mut Xoshiro256PlusPlus, mean: f64) -> f64 {
    let chance: f64 = rng.random();
    -mean * (1.0 - chance).ln()
}

/// Reads the nodes.
///
/// # Errors
/// A file that can't be read, or a model that is not known.
pub(crate) fn read_pools(file: &Path) -> anyhow::Result<Vec<Pool>> {
    let pools: Vec<Pool> = read_csv(file, "pool,nodes,gpus,model,memory_gib")?;
    match pools.iter().find(|pool| Model::find(&pool.model).is_none()) {
        Some(pool) => bail!(
            "pool {} of {} has GPUs of an unknown model: {}",
            pool.pool,
            file.display(),
            pool.model
        ),
        None => Ok(pools),
    }
}

/// Reads a trace.
///
/// # Errors
/// A file that can't be read, or a size that is none.
pub(crate) fn read(file: &Path) -> anyhow::Result<Vec<Session>> {
    let mut sessions: Vec<Session> = read_csv(file, "arrival,duration,size,mps,vram")?;
    for session in &sessions {
        session
            .size
            .parse::<StreamSize>()
            .with_context(|| format!("reading {}", file.display()))?;
    }
    sessions.sort_by_key(|session| session.arrival);
    Ok(sessions)
}

fn read_csv<T: for<'de> Deserialize<'de>>(file: &Path, columns: &str) -> anyhow::Result<Vec<T>> {
    let mut reader = csv::Reader::from_path(file).with_context(|| format!("reading {}", file.display()))?;
    let rows = reader.deserialize().collect::<Result<_, _>>();
    rows.with_context(|| format!("reading {}: its columns should be {columns}", file.display()))
}

impl Session {
    /// What it asks for.
    pub(crate) fn job(&self) -> Job {
        // Sizes were read when the trace was.
        let units = self.size.parse::<StreamSize>().map_or(0, |size| size.units().0);
        Job {
            cpu_milli: 0,
            memory_mib: 0,
            gpus: 1,
            of_each: [units, self.mps, self.vram],
        }
    }

    fn is_on(&self, at: u64) -> bool {
        (self.arrival..self.arrival + self.duration).contains(&at)
    }
}

impl Pool {
    fn capacity(&self) -> Capacity {
        Capacity {
            nvenc: Model::find(&self.model)
                .map(|model| model.encoder_units(None))
                .unwrap_or_default(),
            mps: SmPercent(100),
            vram: VramBlocks(self.memory_gib * 4),
            mps_clients: MPS_CLIENTS,
        }
    }

    fn supply(&self) -> Supply {
        let capacity = self.capacity();
        Supply {
            gpus: self.nodes * self.gpus,
            of_each: [
                capacity.nvenc.0,
                capacity.mps.0,
                capacity.vram.0,
                capacity.mps_clients,
            ],
            pods: self.nodes as u64 * u64::from(PODS_PER_NODE),
        }
    }
}

/// Nodes of all pools in turn, so that where the scheduler begins favours none.
fn cluster(pools: &[Pool]) -> anyhow::Result<Cluster> {
    let host = Host {
        cpu_milli: 0,
        memory_mib: 0,
        pods: PODS_PER_NODE,
    };
    let most = pools.iter().map(|pool| pool.nodes).max().unwrap_or(0);
    let nth = |i: usize| {
        pools
            .iter()
            .filter(move |pool| i < pool.nodes)
            .map(move |pool| (i, pool))
    };
    let machines = (0..most).flat_map(nth);
    Ok(Cluster::new(machines.map(|(i, pool)| {
        (format!("{}-{i}", pool.pool), host, pool.gpus, pool.capacity())
    }))?)
}

/// Replays a trace.
///
/// # Errors
/// A bound that can't be computed.
pub(crate) fn run(
    pools: &[Pool],
    sessions: &[Session],
    mut scheduler: Scheduler,
    progress: &ProgressBar,
) -> anyhow::Result<Outcome> {
    let mut cluster = cluster(pools)?;
    let all = cluster.units().1 as f64;
    let supply: Vec<_> = pools.iter().map(Pool::supply).collect();
    let mut ends = BTreeSet::new();
    let mut outcome = Outcome::default();
    let (mut failed, mut bounds, mut alike, mut served) = (0_u64, 0.0, 0.0, 0.0);
    let mut samples = sample_times(sessions).into_iter().peekable();
    let step = (sessions.len() / 1000).max(1);
    for (number, session) in sessions.iter().enumerate() {
        while let Some(at) = samples.next_if(|at| *at < session.arrival) {
            end_until(&mut cluster, &mut ends, at);
            let on: Vec<_> = sessions
                .iter()
                .filter(|session| session.is_on(at))
                .map(Session::job)
                .collect();
            let demands = demands(&on);
            bounds += bound::most_units(&demands, &supply)?;
            alike += bound::most_units_without_choice(&demands, &supply)?;
            let now = cluster.units().0 as f64;
            served += now;
            let offered: u64 = on.iter().map(Job::units).sum();
            outcome
                .curve
                .push((100.0 * offered as f64 / all, 100.0 * now / all));
        }
        end_until(&mut cluster, &mut ends, session.arrival);
        if scheduler.schedule(&mut cluster, number as u64, &session.job())? {
            ends.insert((session.arrival + session.duration, number as u64));
        } else {
            cluster.drop_pending(number as u64)?;
            failed += 1;
        }
        if number % step == 0 {
            progress.inc(1);
        }
    }
    let samples = outcome.curve.len().max(1) as f64;
    outcome.packed_percent = 100.0 * served / samples / all;
    outcome.failed_percent = 100.0 * failed as f64 / sessions.len().max(1) as f64;
    outcome.wasted_percent = 100.0 * (bounds - served) / samples / all;
    outcome.of_bound_percent = (bounds > 0.0).then(|| 100.0 * served / bounds);
    outcome.of_bound_without_choice_percent = (alike > 0.0).then(|| 100.0 * served / alike);
    Ok(outcome)
}

/// Sessions, by the second in which they end.
type Ends = BTreeSet<(u64, u64)>;

fn end_until(cluster: &mut Cluster, ends: &mut Ends, now: u64) {
    while let Some((at, number)) = ends.first().copied().filter(|(at, _)| *at <= now) {
        ends.remove(&(at, number));
        cluster.end(number);
    }
}

/// The second half of the time that sessions arrive in: as many end as come by then.
fn sample_times(sessions: &[Session]) -> Vec<u64> {
    let end = sessions.last().map_or(0, |session| session.arrival);
    (0..SAMPLES).map(|i| end / 2 + end / 2 * i / SAMPLES).collect()
}

const SAMPLES: u64 = 60;

fn demands(jobs: &[Job]) -> Vec<Demand> {
    let mut counts = BTreeMap::new();
    for job in jobs {
        *counts.entry(job.amounts().0).or_insert(0) += 1;
    }
    counts
        .into_iter()
        .map(|(of_each, pods)| Demand { of_each, pods })
        .collect()
}
