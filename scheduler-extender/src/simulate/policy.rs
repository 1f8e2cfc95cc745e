//! Which of the machines that have room takes a job: ours, and those that it is measured against.
//!
//! Best fit, random and FGD are those of "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation
//! Gradient Descent" (USENIX ATC 2023), which knows CPU and GPUs of a machine. Its published FGD score is a whole number
//! from 0 to 100, and among equals the first machine is taken; so do these, since with a finer score, or with a draw among
//! equals, FGD packs 2 to 5 % less.

use std::collections::BTreeMap;

use rand::RngExt as _;
use rand::rngs::Xoshiro256PlusPlus;

use super::cluster::{Cluster, Job};
use crate::index::{Pod, Room};

/// How a machine and its GPU are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Policy {
    /// The extender's own
    Ours,
    /// Fragmentation Gradient Descent
    Fgd,
    /// The machine with the least CPU and GPU left over, and its fullest GPU
    Bestfit,
    /// Any machine, any of its GPUs
    Random,
}

impl Policy {
    /// All, in the order in which they are compared.
    pub(crate) const ALL: [Self; 4] = [Self::Ours, Self::Fgd, Self::Bestfit, Self::Random];

    /// As it is printed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Fgd => "fgd",
            Self::Bestfit => "bestfit",
            Self::Random => "random",
        }
    }
}

/// A policy with what it has learned.
#[derive(Debug)]
pub(crate) struct Chooser {
    policy: Policy,
    rng: Xoshiro256PlusPlus,
    /// Demands with their shares of all jobs: FGD is told beforehand.
    typical: Vec<(Job, f64)>,
    cpu_per_gpu: CpuPerGpu,
}

/// How much CPU a GPU's worth of jobs takes, learned from those that have come.
#[derive(Debug, Default)]
struct CpuPerGpu {
    cpu_milli: u64,
    gpu_units: u64,
}

/// A machine and the GPUs of it that a job gets.
pub(crate) type Choice = (usize, Vec<usize>);

/// A machine's score for a job, less is better, and the GPU for a job that takes a part of one.
type Scored = ((i64, u64), Option<usize>);

impl Chooser {
    /// A policy that draws from `rng`, if it draws at all. `jobs` are those that FGD is to learn from.
    pub(crate) fn new(policy: Policy, rng: Xoshiro256PlusPlus, jobs: &[Job]) -> Self {
        Self {
            policy,
            rng,
            typical: typical(jobs),
            cpu_per_gpu: CpuPerGpu::default(),
        }
    }

    /// A machine out of `candidates` for a job.
    pub(crate) fn choose(
        &mut self,
        cluster: &Cluster,
        job: &Job,
        pod: &Pod,
        candidates: &[usize],
    ) -> Option<Choice> {
        self.cpu_per_gpu.learn(job);
        let fitting = candidates
            .iter()
            .copied()
            .filter(|machine| cluster.fits(*machine, job, pod));
        let (machine, gpu) = if self.policy == Policy::Random {
            let fitting: Vec<_> = fitting.collect();
            let machine = *self.pick(&fitting)?;
            let gpus: Vec<_> = takers(cluster.rooms(machine), job).collect();
            (machine, self.pick(&gpus).copied())
        } else {
            let scored = fitting.map(|machine| (self.score(cluster, job, pod, machine), machine));
            let ((_, gpu), machine) = scored.min_by_key(|((score, _), _)| *score)?;
            (machine, gpu)
        };
        Some((machine, gpus(cluster, job, machine, gpu)))
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        (!from.is_empty()).then(|| &from[self.rng.random_range(0..from.len())])
    }

    fn score(&self, cluster: &Cluster, job: &Job, pod: &Pod, machine: usize) -> Scored {
        match self.policy {
            Policy::Ours => self.ours(cluster, job, pod, machine),
            Policy::Fgd => self.fgd(cluster, job, machine),
            _ => best_fit(cluster, job, machine),
        }
    }

    /// The index' own judgement of the GPU, and CPU that GPUs would lack, which is the trace's affair.
    fn ours(&self, cluster: &Cluster, job: &Job, pod: &Pod, machine: usize) -> Scored {
        let (fit, gpu) = match job.gpus {
            1 => cluster.index.fit(pod, &cluster.machines[machine].name).unzip(),
            _ => (None, None),
        };
        let (cost, left_over) = fit.map_or((0, 0), |fit| (fit.cost, fit.left_over));
        let cpu = cluster.machines[machine].host.cpu_milli;
        let gpus = gpus_free(cluster.rooms(machine));
        let stranded = self
            .cpu_per_gpu
            .stranded(cpu - job.cpu_milli, gpus - job.gpus_worth(cluster, machine))
            - self.cpu_per_gpu.stranded(cpu, gpus);
        ((cost + (stranded * 1e6).round() as i64, left_over), gpu)
    }

    fn fgd(&self, cluster: &Cluster, job: &Job, machine: usize) -> Scored {
        let rooms = cluster.rooms(machine);
        let free: Vec<u32> = rooms.iter().map(milli).collect();
        let cpu = cluster.machines[machine].host.cpu_milli;
        let before = self.fragmentation(cpu, &free);
        let score = |after: f64| -(100.0 / (1.0 + (after - before).exp())).floor() as i64;
        let left = cpu - job.cpu_milli;
        if job.gpus != 1 || job.of_each[0] == WHOLE {
            let mut after = free.clone();
            let idle = after
                .iter_mut()
                .filter(|free| **free == WHOLE)
                .take(job.gpus as usize);
            idle.for_each(|free| *free = 0);
            let idle = cluster.idle(machine).next().filter(|_| job.gpus == 1);
            return ((score(self.fragmentation(left, &after)), 0), idle);
        }
        let on = |gpu: usize| {
            let mut after = free.clone();
            after[gpu] -= share(&rooms[gpu], job);
            score(self.fragmentation(left, &after))
        };
        let best = takers(rooms, job).map(|gpu| (on(gpu), gpu)).min();
        best.map_or(((0, 0), None), |(score, gpu)| ((score, 0), Some(gpu)))
    }

    /// How much of the free parts of GPUs the typical job can't use, in GPUs.
    fn fragmentation(&self, cpu_milli: u64, free: &[u32]) -> f64 {
        let all: u32 = free.iter().sum();
        let unusable = |job: &Job| {
            let enough = |free: &&u32| **free >= job.of_each[0];
            let fits = job.gpus > 0
                && cpu_milli >= job.cpu_milli
                && free.iter().filter(enough).count() >= job.gpus as usize;
            if fits {
                free.iter().filter(|free| !enough(free)).sum()
            } else {
                all
            }
        };
        let sum: f64 = self
            .typical
            .iter()
            .map(|(job, share)| share * f64::from(unusable(job)))
            .sum();
        sum / f64::from(WHOLE)
    }
}

/// Least CPU and GPU left over, as whole hundredths of the largest machine.
fn best_fit(cluster: &Cluster, job: &Job, machine: usize) -> Scored {
    let cpu = (cluster.machines[machine].host.cpu_milli - job.cpu_milli) as f64 / LARGEST_CPU_MILLI;
    let rooms = cluster.rooms(machine);
    let free = rooms.iter().map(|room| f64::from(milli(room))).sum::<f64>() / f64::from(WHOLE);
    let left = (free - job.gpus_worth(cluster, machine)) / LARGEST_GPUS;
    let score = ((1.0 - (cpu + left) / 2.0) * 100.0).floor() as i64;
    let fullest = takers(rooms, job).min_by_key(|gpu| (milli(&rooms[*gpu]), *gpu));
    ((-score, 0), fullest)
}

/// The GPUs that could take a job's part.
fn takers(rooms: &[Room], job: &Job) -> impl Iterator<Item = usize> {
    let amounts = job.amounts();
    rooms
        .iter()
        .enumerate()
        .filter(move |(_, room)| room.takes(amounts))
        .map(|(gpu, _)| gpu)
}

fn gpus(cluster: &Cluster, job: &Job, machine: usize, gpu: Option<usize>) -> Vec<usize> {
    match job.gpus {
        0 => Vec::new(),
        1 => gpu.into_iter().collect(),
        several => cluster.idle(machine).take(several as usize).collect(),
    }
}

/// What is free of a GPU, in thousandths: of what it has least of.
fn milli(room: &Room) -> u32 {
    let parts = room
        .free
        .0
        .into_iter()
        .zip(room.capacity.0)
        .filter(|(_, all)| *all > 0);
    parts
        .map(|(free, all)| (u64::from(free) * u64::from(WHOLE) / u64::from(all)) as u32)
        .min()
        .unwrap_or(0)
}

/// What a job takes of a GPU, in thousandths: of what it takes most of.
fn share(room: &Room, job: &Job) -> u32 {
    let after = Room {
        free: room.free.less(job.amounts()),
        ..*room
    };
    milli(room) - milli(&after)
}

fn gpus_free(rooms: &[Room]) -> f64 {
    rooms.iter().map(|room| f64::from(milli(room))).sum::<f64>() / f64::from(WHOLE)
}

/// The most frequent demands that together are 95 % of all jobs, with their shares. Memory is not looked at.
fn typical(jobs: &[Job]) -> Vec<(Job, f64)> {
    let mut counts: BTreeMap<Job, u32> = BTreeMap::new();
    for job in jobs {
        *counts
            .entry(Job {
                memory_mib: 0,
                ..*job
            })
            .or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|&(job, count)| (std::cmp::Reverse(count), job));
    let enough = 0.95 * jobs.len() as f64;
    let mut sum = 0.0;
    counts.retain(|(_, count)| {
        let keep = sum < enough;
        sum += if keep { f64::from(*count) } else { 0.0 };
        keep
    });
    counts
        .into_iter()
        .map(|(job, count)| (job, f64::from(count) / sum))
        .collect()
}

impl CpuPerGpu {
    fn learn(&mut self, job: &Job) {
        if job.gpus > 0 {
            self.cpu_milli += job.cpu_milli;
            self.gpu_units += job.units();
        }
    }

    /// How many of `gpus` would lack CPU if they were taken by the average job.
    fn stranded(&self, cpu_milli: u64, gpus: f64) -> f64 {
        if self.cpu_milli == 0 {
            return 0.0;
        }
        let fed = cpu_milli as f64 / self.cpu_milli as f64 * self.gpu_units as f64 / f64::from(WHOLE);
        (gpus - fed).max(0.0)
    }
}

impl Job {
    /// How many GPUs' worth it takes on a machine.
    fn gpus_worth(&self, cluster: &Cluster, machine: usize) -> f64 {
        let room = cluster.rooms(machine).first();
        let one = room.map_or(0, |room| {
            share(
                &Room {
                    free: room.capacity,
                    ..*room
                },
                self,
            )
        });
        f64::from(self.gpus) * f64::from(one) / f64::from(WHOLE)
    }
}

/// Thousandths of a GPU.
const WHOLE: u32 = 1000;

/// The largest machine that best fit counts with, as published.
const LARGEST_CPU_MILLI: f64 = 128_000.0;
const LARGEST_GPUS: f64 = 8.0;
