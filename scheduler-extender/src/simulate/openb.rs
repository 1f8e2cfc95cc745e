//! The public trace of fractional GPU requests, `openb_…` in <https://github.com/alibaba/clusterdata> (2023), and how
//! it is replayed: as in "Beware of Fragmentation" (USENIX ATC 2023), jobs are drawn from the trace, with replacement,
//! until what they ask for is so and so much of the cluster's GPUs. None ends, and one that does not fit is dropped.

use std::path::Path;

use anyhow::{Context as _, ensure};
use penstock_core::gpu_node::Capacity;
use penstock_core::units::EncoderUnits;
use rand::RngExt as _;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom as _;
use serde::Deserialize;

use super::cluster::{Cluster, Host, Job};

/// Units of one GPU: the trace counts thousandths.
pub(crate) const GPU_UNITS: u32 = 1000;

/// A machine of the trace.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Node {
    sn: String,
    cpu_milli: u64,
    memory_mib: u64,
    gpu: usize,
}

#[derive(Debug, Deserialize)]
struct Row {
    cpu_milli: u64,
    memory_mib: u64,
    num_gpu: u32,
    gpu_milli: u32,
    #[serde(default)]
    gpu_spec: String,
}

/// Reads the machines.
///
/// # Errors
/// A file that can't be read, or a row of another form.
pub(crate) fn read_nodes(file: &Path) -> anyhow::Result<Vec<Node>> {
    read(file)
}

/// Reads the jobs.
///
/// # Errors
/// As [`read_nodes`]; also a job that names models of GPUs, which the workload that results are published for does not.
pub(crate) fn read_jobs(file: &Path) -> anyhow::Result<Vec<Job>> {
    let rows: Vec<Row> = read(file)?;
    let jobs = rows.iter().enumerate().map(|(i, row)| {
        ensure!(
            row.gpu_spec.is_empty(),
            "row {} of {} asks for the GPU model {:?}: use the pods of the default workload, which ask for none",
            i + 1,
            file.display(),
            row.gpu_spec
        );
        Ok(Job {
            cpu_milli: row.cpu_milli,
            memory_mib: row.memory_mib,
            gpus: row.num_gpu,
            of_each: [row.gpu_milli, 0, 0],
        })
    });
    jobs.collect()
}

fn read<T: for<'de> Deserialize<'de>>(file: &Path) -> anyhow::Result<Vec<T>> {
    let mut reader = csv::Reader::from_path(file).with_context(|| format!("reading {}", file.display()))?;
    let rows = reader.deserialize().collect::<Result<_, _>>();
    rows.with_context(|| format!("reading {}: is it a file of the openb trace?", file.display()))
}

/// The machines, idle, in an order drawn from `rng`: which of several equal ones is first is chance.
///
/// # Errors
/// A name that no node can have.
pub(crate) fn cluster(nodes: &[Node], rng: &mut Xoshiro256PlusPlus) -> anyhow::Result<Cluster> {
    let mut nodes = nodes.to_vec();
    nodes.shuffle(rng);
    let capacity = Capacity {
        nvenc: EncoderUnits(GPU_UNITS),
        ..Capacity::default()
    };
    let machines = nodes.into_iter().map(|node| {
        let host = Host {
            cpu_milli: node.cpu_milli,
            memory_mib: node.memory_mib,
            pods: u32::MAX,
        };
        (node.sn, host, node.gpu, capacity)
    });
    Ok(Cluster::new(machines)?)
}

/// Jobs drawn until they ask for `percent` of all GPUs.
pub(crate) fn arrivals(jobs: &[Job], gpu_units: u64, percent: u64, rng: &mut Xoshiro256PlusPlus) -> Vec<Job> {
    let mut drawn = Vec::new();
    let mut asked = 0;
    while !jobs.is_empty() && asked < gpu_units * percent / 100 {
        let job = jobs[rng.random_range(0..jobs.len())];
        asked += job.units();
        drawn.push(job);
    }
    drawn
}
