//! A scheduler that takes one job after the other, and what comes of a run of it.

use super::cluster::{Cluster, Job};
use super::policy::Chooser;
use super::sampling::{RoundRobin, Sampling};

/// What came of one run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// How much of all encoder units (GPUs, in a trace without encoders) was allocated: at the end, or on average.
    pub(crate) packed_percent: f64,
    /// Pods that found no place.
    pub(crate) failed_percent: f64,
    /// How much of all units was free although pods that would have taken it found no place.
    pub(crate) wasted_percent: f64,
    /// What was packed, as a part of the most that could have been.
    pub(crate) of_bound_percent: Option<f64>,
    /// The same, of what could have been packed with no demand preferred to another.
    pub(crate) of_bound_without_choice_percent: Option<f64>,
    /// What had come and what was allocated, in percent of all units.
    pub(crate) curve: Vec<(f64, f64)>,
}

/// A scheduler with its extender.
#[derive(Debug)]
pub(crate) struct Scheduler {
    chooser: Chooser,
    turns: RoundRobin,
    sampling: Sampling,
}

impl Scheduler {
    /// One that has seen no pod yet.
    pub(crate) fn new(chooser: Chooser, sampling: Sampling) -> Self {
        Self {
            chooser,
            turns: RoundRobin::default(),
            sampling,
        }
    }

    /// Finds a place for a job and puts it there; says whether it did.
    ///
    /// # Errors
    /// None that input could cause.
    pub(crate) fn schedule(&mut self, cluster: &mut Cluster, number: u64, job: &Job) -> anyhow::Result<bool> {
        let pod = Cluster::pod(job, number)?;
        if job.gpus == 1 {
            // The index hears of a pod before it is placed, and of those that never are.
            cluster.index.apply_pod(pod.clone());
        }
        let nodes = cluster.machines.len();
        let sample = self
            .turns
            .take(self.sampling, nodes, |machine| cluster.passes(machine, job));
        let Some((machine, gpus)) = self.chooser.choose(cluster, job, &pod, &sample) else {
            return Ok(false);
        };
        cluster.start(number, job, &pod, machine, &gpus)?;
        Ok(true)
    }
}
