//! The one task that owns the daemons, and carries out what the supervisor decides.
//!
//! ```text
//!   NVML's reports ──► which GPUs are served ──┐
//!   daemons' ends ─────────────────────────────┼──► Supervisor ──► daemons started, and told to end
//!   time ──────────────────────────────────────┘
//! ```
//!
//! That NVML is away for a while, or a GPU can't be asked, ends no daemon: its clients would end with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Context as _, bail};
use penstock_core::ids::GpuUuid;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::compute_mode::Exclusive;
use super::daemon::Program;
use super::layout::Layout;
use super::metrics::{Metrics, Served};
use super::supervisor::Supervisor;
use crate::nvml::inventory::Inventory;
use crate::nvml::watch::Report;
use crate::settings::{OptedIn, Settings};

/// Which GPUs get daemons.
#[derive(Debug)]
pub(super) struct Choice {
    /// Those that may be used.
    pub(super) opted_in: OptedIn,
    /// What an administrator offers of them.
    pub(super) settings: Settings,
}

/// How daemons are run.
pub(super) struct Running {
    /// Starts and ends one.
    pub(super) program: Program,
    /// Where they have their files.
    pub(super) layout: Layout,
    /// Refuses their GPUs to others, where that is wanted.
    pub(super) exclusive: Option<Exclusive>,
    /// Counts their starts.
    pub(super) metrics: Metrics,
}

/// The daemons.
pub(super) struct Fleet {
    supervisor: Supervisor,
    running: Running,
    choice: Choice,
    reports: mpsc::Receiver<Report>,
    served: watch::Sender<Served>,
    attended: JoinSet<(GpuUuid, String)>,
    /// Of the daemons that run.
    stops: BTreeMap<GpuUuid, CancellationToken>,
    stop: CancellationToken,
}

/// What happened.
enum Event {
    Reported(Option<Report>),
    Ended(Result<(GpuUuid, String), JoinError>),
    Time,
    ToldToEnd,
}

impl Choice {
    /// The GPUs to serve now, after `before`. One that is missing while some GPU can't be asked may be that one.
    fn among(&self, inventory: &Inventory, before: &BTreeSet<GpuUuid>) -> BTreeSet<GpuUuid> {
        let usable = inventory.usable().filter(|gpu| self.opted_in.has(gpu));
        let listed = usable.filter(|gpu| self.settings.has_mps(gpu));
        let mut gpus: BTreeSet<_> = listed.map(|gpu| gpu.uuid.clone()).collect();
        if !inventory.unreadable.is_empty() {
            gpus.extend(before.iter().cloned());
        }
        gpus
    }
}

impl Fleet {
    /// One daemon for each GPU of `choice` that NVML reports.
    pub(super) fn new(
        running: Running,
        choice: Choice,
        reports: mpsc::Receiver<Report>,
    ) -> (Self, watch::Receiver<Served>) {
        let (served, seen) = watch::channel(Served::default());
        let fleet = Self {
            supervisor: Supervisor::default(),
            running,
            choice,
            reports,
            served,
            attended: JoinSet::new(),
            stops: BTreeMap::new(),
            stop: CancellationToken::new(),
        };
        (fleet, seen)
    }

    /// Runs until `told_to_end`, and then until every daemon is gone.
    ///
    /// # Errors
    /// Where the task that attends a daemon panics or NVML's thread ends, which are bugs.
    pub(super) async fn run(mut self, told_to_end: CancellationToken) -> anyhow::Result<()> {
        while !self.supervisor.is_over() {
            self.start_what_is_due();
            let ending = self.stop.is_cancelled();
            let event = tokio::select! {
                Some(ended) = self.attended.join_next() => Event::Ended(ended),
                () = told_to_end.cancelled(), if !ending => Event::ToldToEnd,
                report = self.reports.recv(), if !ending => Event::Reported(report),
                () = until(self.supervisor.next_due()) => Event::Time,
            };
            self.handle(event)?;
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Reported(None) => bail!("the thread that talks to NVML ended by itself"),
            Event::Reported(Some(report)) => self.reported(report),
            Event::Ended(ended) => {
                let (gpu, how) = ended.context("attending an MPS daemon")?;
                self.ended(&gpu, &how);
            }
            Event::ToldToEnd => {
                self.stop.cancel();
                self.supervisor.end_all();
            }
            Event::Time => {}
        }
        Ok(())
    }

    fn reported(&mut self, report: Report) {
        match report {
            Report::Found(inventory) => self.found(&inventory),
            Report::Unavailable(why) => self.served.send_modify(|served| served.unavailable = Some(why)),
            Report::Xid(_) | Report::Health(_) | Report::Measured(_) | Report::Stale(_) => {}
        }
    }

    fn found(&mut self, inventory: &Inventory) {
        let gpus = self.choice.among(inventory, &self.served.borrow().gpus);
        if gpus.is_empty() {
            tracing::warn!("none of the GPUs that NVML shows is to have an MPS daemon (--gpus opts them in)");
        }
        for gpu in self.supervisor.set_gpus(Instant::now(), &gpus) {
            tracing::info!(%gpu, "the GPU is gone: its MPS daemon is told to end");
            if let Some(stop) = self.stops.get(&gpu) {
                stop.cancel();
            }
        }
        self.served.send_replace(Served {
            gpus,
            unavailable: None,
        });
    }

    fn ended(&mut self, gpu: &GpuUuid, how: &str) {
        let told = self.stops.remove(gpu).is_some_and(|stop| stop.is_cancelled());
        match told {
            true => tracing::info!(%gpu, "MPS daemon ended: {how}"),
            false => tracing::error!(%gpu, "MPS daemon ended: {how}"),
        }
        self.supervisor.ended(Instant::now(), gpu);
        if !self.supervisor.serves(gpu) {
            self.running.metrics.forget(gpu);
            if let Some(exclusive) = &mut self.running.exclusive {
                exclusive.release(gpu);
            }
        }
    }

    fn start_what_is_due(&mut self) {
        for gpu in self.supervisor.due(Instant::now()) {
            if let Err(error) = self.start(&gpu) {
                tracing::error!(%gpu, "the MPS daemon was not started: {error:#}");
                self.supervisor.ended(Instant::now(), &gpu);
            }
        }
    }

    fn start(&mut self, gpu: &GpuUuid) -> anyhow::Result<()> {
        let Running {
            program,
            layout,
            exclusive,
            metrics,
        } = &mut self.running;
        layout.make(gpu)?;
        if let Some(exclusive) = exclusive {
            exclusive.set(gpu)?;
        }
        metrics.started(gpu);
        let stop = self.stop.child_token();
        let daemon = program.clone().run(layout.clone(), gpu.clone(), stop.clone());
        self.attended.spawn(daemon);
        self.stops.insert(gpu.clone(), stop);
        Ok(())
    }
}

/// Waits until `due`, or for ever.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvml::inventory::{Compute, Gpu, Kind, Unreadable};

    #[test]
    fn a_gpu_that_may_only_be_silent_keeps_its_daemon_and_one_that_is_gone_does_not() {
        let choice = all();
        let before = gpus(&["GPU-a", "GPU-b"]);
        let mut inventory = inventory(&["GPU-a"]);
        assert_eq!(choice.among(&inventory, &before), gpus(&["GPU-a"]));
        inventory.unreadable.push(Unreadable {
            index: 1,
            why: "it fell off the bus".to_owned(),
        });
        assert_eq!(choice.among(&inventory, &before), before);
    }

    #[test]
    fn only_gpus_that_were_opted_in_and_run_cuda_have_daemons() {
        let mut inventory = inventory(&["GPU-a", "GPU-b", "GPU-c"]);
        inventory.gpus[1].compute_mode = Some(Compute::Prohibited);
        let none = BTreeSet::new();
        assert_eq!(all().among(&inventory, &none), gpus(&["GPU-a", "GPU-c"]));
        let only = Choice {
            opted_in: "GPU-b,GPU-c".parse().unwrap(),
            ..all()
        };
        assert_eq!(only.among(&inventory, &none), gpus(&["GPU-c"]));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "gpus: { GPU-c: { mps: 0 } }").unwrap();
        let without = Choice {
            settings: Settings::of(Some(file.path())).unwrap(),
            ..all()
        };
        assert_eq!(without.among(&inventory, &none), gpus(&["GPU-a"]));
    }

    fn all() -> Choice {
        Choice {
            opted_in: OptedIn::All,
            settings: Settings::default(),
        }
    }

    fn inventory(uuids: &[&str]) -> Inventory {
        let gpu = |uuid: &&str| Gpu {
            uuid: uuid.parse().unwrap(),
            index: 0,
            minor: None,
            model: "NVIDIA L4".to_owned(),
            memory_bytes: None,
            max_video_clock_mhz: None,
            compute_mode: None,
            kind: Kind::Whole,
        };
        Inventory {
            gpus: uuids.iter().map(gpu).collect(),
            ..Inventory::default()
        }
    }

    fn gpus(uuids: &[&str]) -> BTreeSet<GpuUuid> {
        uuids.iter().map(|uuid| uuid.parse().unwrap()).collect()
    }
}
