//! Follows the GPUs of this node: NVML's reports and the MPS daemons' pipes in, offers out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use penstock_core::ids::GpuUuid;
use penstock_core::units::EncoderUnits;
use prometheus::IntCounterVec;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::assign::GpuOffer;
use crate::cdi::Wanted;
use crate::mps::{self, Health, Layout};
use crate::nvml::inventory::{Gpu, Kind};
use crate::nvml::measures::Measures;
use crate::nvml::watch::{Pace, Report, start};
use crate::offers::{Known, encoders, engine, offered, offers, session_limit};
use crate::settings::{OptedIn, Settings};

/// What is known of each GPU beside its offer.
pub(crate) type Described = watch::Receiver<Arc<BTreeMap<GpuUuid, Description>>>;

/// What the GPUs were doing at the last measurement; one that can't be measured is left out.
pub(crate) type Measuring = watch::Receiver<Arc<Vec<Measures>>>;

/// What is known of a GPU beside its offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    /// What NVML calls its model.
    pub(crate) model: String,
    /// What its encoders have in all, before any headroom.
    pub(crate) encoders: EncoderUnits,
    /// What one of its engines has, and so its largest single stream, where that is known.
    pub(crate) engine: Option<EncoderUnits>,
    /// Encoder sessions that its driver allows at one time, where it caps them.
    pub(crate) session_limit: Option<u32>,
    /// How it is named to those who put it into containers; a CPU is not.
    pub(crate) wanted: Option<Wanted>,
}

/// What is followed, for those who use it.
pub(crate) struct Followed {
    /// What is offered; none before it is known.
    pub(crate) offers: watch::Receiver<Option<Vec<GpuOffer>>>,
    /// What else is known.
    pub(crate) described: Described,
    /// What the GPUs are doing, at the last measurement.
    pub(crate) measured: Measuring,
}

/// The GPUs of this node.
pub(crate) struct Gpus {
    reports: mpsc::Receiver<Report>,
    known: Known,
    opted_in: OptedIn,
    settings: Settings,
    layout: Layout,
    daemons: watch::Sender<BTreeMap<GpuUuid, Health>>,
    offers: watch::Sender<Option<Vec<GpuOffer>>>,
    described: watch::Sender<Arc<BTreeMap<GpuUuid, Description>>>,
    measured: watch::Sender<Arc<Vec<Measures>>>,
    xids: IntCounterVec,
}

impl Gpus {
    /// Begins to follow them, and counts the driver's errors.
    pub(crate) fn follow(
        library: Option<PathBuf>,
        opted_in: OptedIn,
        settings: Settings,
        layout: Layout,
        xids: IntCounterVec,
    ) -> anyhow::Result<(Self, Followed)> {
        let reports = start(library, Pace::default()).context("starting the thread that talks to NVML")?;
        let (offers, offered) = watch::channel(None);
        let (described, seen_described) = watch::channel(Arc::default());
        let (measured, seen_measured) = watch::channel(Arc::default());
        let (daemons, _) = watch::channel(BTreeMap::new());
        let gpus = Self {
            reports,
            known: Known::default(),
            opted_in,
            settings,
            layout,
            daemons,
            offers,
            described,
            measured,
            xids,
        };
        let followed = Followed {
            offers: offered,
            described: seen_described,
            measured: seen_measured,
        };
        Ok((gpus, followed))
    }

    /// Follows them until NVML's thread ends; with `ends_when_stale`, which is for a container, also until only a new one
    /// can have a library that works.
    ///
    /// # Errors
    /// That NVML is stale.
    pub(crate) async fn run(mut self, ends_when_stale: bool) -> anyhow::Result<()> {
        let mut seen = self.daemons.subscribe();
        let mut watching: Option<JoinHandle<()>> = None;
        let mut found = false;
        loop {
            tokio::select! {
                report = self.reports.recv() => match report {
                    None => return Ok(()),
                    Some(Report::Found(inventory)) => {
                        found = true;
                        self.known.found(inventory);
                        if let Some(old) = watching.replace(self.watch_daemons()) {
                            old.abort();
                        }
                    }
                    Some(Report::Health(health)) => self.known.health = health,
                    Some(Report::Unavailable(why)) => {
                        tracing::warn!(why, "no GPU can be seen");
                        // What was measured before says nothing about now.
                        self.measured.send_replace(Arc::default());
                    }
                    Some(Report::Stale(_)) if !ends_when_stale => continue,
                    Some(Report::Stale(why)) => anyhow::bail!(
                        "ending, since NVIDIA's management library is of no use any more ({why}): after an upgrade of the driver \
                         only a new container has the new library"
                    ),
                    Some(Report::Xid(event)) => {
                        let labels = [event.gpu.as_str(), &event.xid.to_string()];
                        self.xids.with_label_values(&labels).inc();
                        tracing::warn!(gpu = %event.gpu, xid = event.xid, "the driver reported an error");
                    }
                    Some(Report::Measured(measures)) => {
                        self.measured.send_replace(Arc::new(measures));
                        continue;
                    }
                },
                Ok(()) = seen.changed() => self.known.daemons = seen.borrow_and_update().clone(),
            }
            if found {
                self.publish();
            }
        }
    }

    fn watch_daemons(&self) -> JoinHandle<()> {
        let gpus = offered(&self.known, &self.opted_in)
            .map(|gpu| gpu.uuid.clone())
            .collect();
        tokio::spawn(mps::follow(
            self.layout.clone(),
            gpus,
            LOOK_AT_DAEMONS,
            self.daemons.clone(),
        ))
    }

    fn publish(&self) {
        let offers = offers(&self.known, &self.opted_in, &self.settings);
        let described = offered(&self.known, &self.opted_in)
            .map(|gpu| (gpu.uuid.clone(), self.description(gpu)))
            .collect();
        self.described.send_replace(Arc::new(described));
        let changed = |old: &mut Option<Vec<GpuOffer>>| {
            log_changes(old.as_deref().unwrap_or_default(), &offers);
            let changed = old.as_ref() != Some(&offers);
            *old = Some(offers);
            changed
        };
        self.offers.send_if_modified(changed);
    }

    fn description(&self, gpu: &Gpu) -> Description {
        Description {
            model: gpu.model.clone(),
            encoders: encoders(gpu, &self.settings),
            engine: engine(gpu, &self.settings),
            session_limit: session_limit(&self.known.inventory, gpu, &self.settings),
            wanted: Some(wanted(gpu)),
        }
    }
}

/// What CDI may know a GPU by. A MIG instance's device file is its GPU's.
pub(crate) fn wanted(gpu: &Gpu) -> Wanted {
    let mig = match &gpu.kind {
        Kind::Mig(mig) => Some((gpu.index, mig.index)),
        Kind::Whole | Kind::Divided => None,
    };
    Wanted {
        uuid: gpu.uuid.clone(),
        minor: gpu.minor,
        mig,
    }
}

fn log_changes(old: &[GpuOffer], new: &[GpuOffer]) {
    for offer in new {
        let before = old.iter().find(|before| before.uuid == offer.uuid);
        if before.is_none_or(|before| before.capacity != offer.capacity) {
            tracing::info!(gpu = %offer.uuid, "offering {}", offer.capacity);
        }
        for (resource, why) in &offer.unhealthy {
            if before.is_none_or(|before| !before.unhealthy.contains_key(resource)) {
                tracing::warn!(gpu = %offer.uuid, resource = resource.name(), why, "not to be used now");
            }
        }
    }
}

/// A daemon that has died is seen within this time.
const LOOK_AT_DAEMONS: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use prometheus::Opts;

    use super::*;

    #[tokio::test]
    async fn a_library_that_will_never_work_again_ends_a_container_and_no_other_process() {
        let told = |ends_when_stale| async move {
            let (report, reports) = mpsc::channel(1);
            let gpus = Gpus {
                reports,
                known: Known::default(),
                opted_in: OptedIn::All,
                settings: Settings::default(),
                layout: Layout::new("/nowhere"),
                daemons: watch::channel(BTreeMap::new()).0,
                offers: watch::channel(None).0,
                described: watch::channel(Arc::default()).0,
                measured: watch::channel(Arc::default()).0,
                xids: IntCounterVec::new(Opts::new("xids", "xids"), &["gpu", "xid"]).unwrap(),
            };
            report
                .send(Report::Stale("of another release".to_owned()))
                .await
                .unwrap();
            drop(report);
            gpus.run(ends_when_stale).await
        };
        assert!(told(false).await.is_ok());
        let said = told(true).await.unwrap_err().to_string();
        assert!(
            said.contains("of another release") && said.contains("new container"),
            "{said}"
        );
    }
}
