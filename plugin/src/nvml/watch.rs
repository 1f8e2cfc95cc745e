//! A thread that owns NVML: it waits for the driver, finds the GPUs, listens for XIDs, probes and measures,
//! and reports all that as plain data.
//!
//! ```text
//!  open ──► inventory ──► ┌─ wait for an event, 0.5 s at most ─► Xid ┐
//!   ▲ every 10 s          │  every 5 s: probe all ───────────► Health│ until nobody reads the reports,
//!   │ while there is none │  every 5 s: measure all ───────► Measured│ or NVML must be opened again
//!   └─────────────────────└──────────────────────────────────────────┘
//! ```
//!
//! NVML is opened again while a GPU is lost (a session that began before a GPU was reset never sees it well
//! again), when waiting for events fails, and when the GPUs have changed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{io, thread};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use penstock_core::ids::GpuUuid;
use serde::Serialize;
use tokio::sync::mpsc;

use super::health::{Board, Verdict, XidEvent};
use super::inventory::{Inventory, Unreadable};
use super::measures::{Measures, Sampler};
use super::probe::probe;
use super::raw::{DeviceKey, Event, EventSet};
use super::{OpenError, Waiting, in_full, open};

/// What the thread reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Report {
    /// There is no NVML, for this reason. Health has it as the reason of every GPU that was found.
    Unavailable(String),
    /// NVML has not opened for [`Pace::stale`], for this reason, and trying again won't help: its library is of another
    /// release than the driver, or it had been open before. In a container the library is the one that was there when the
    /// container was made.
    Stale(String),
    /// The GPUs that there are: the first time, and when they have changed.
    Found(Inventory),
    /// An XID, whatever it means; health is reported by itself.
    Xid(XidEvent),
    /// What is wrong with each GPU that was ever found: the first time, and when it has changed.
    Health(BTreeMap<GpuUuid, Verdict>),
    /// What each usable GPU is doing; one that can't be measured is left out.
    Measured(Vec<Measures>),
}

/// How often what is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// From one look at a GPU's health to the next.
    pub(crate) probe: Duration,
    /// From one measurement to the next.
    pub(crate) measure: Duration,
    /// From one attempt to open NVML to the next, while there is none or a GPU is lost.
    pub(crate) reopen: Duration,
    /// For how long NVML must have been of no use to count as stale.
    pub(crate) stale: Duration,
    /// From one look for GPUs that came or went to the next.
    pub(crate) rediscover: Duration,
    /// For how long nothing bad must be seen before an error that passes is forgotten.
    pub(crate) quiet: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            probe: Duration::from_secs(5),
            measure: Duration::from_secs(5),
            reopen: super::RETRY_EVERY,
            stale: Duration::from_secs(300),
            rediscover: Duration::from_secs(60),
            quiet: Duration::from_secs(60),
        }
    }
}

/// Starts the thread. It ends, within a second or so, after the receiver was dropped.
///
/// # Errors
/// Where no thread can be started.
pub(crate) fn start(library: Option<PathBuf>, pace: Pace) -> io::Result<mpsc::Receiver<Report>> {
    let (reports, receiver) = mpsc::channel(MOST_UNREAD);
    let mut watch = Watch {
        pace,
        reports,
        board: Board::new(pace.quiet),
        sampler: Sampler::default(),
        inventory: None,
        verdicts: None,
    };
    let run = move || {
        // The only end is that nobody reads any more.
        let Err(Unread) = watch.run(library);
    };
    thread::Builder::new().name("nvml".into()).spawn(run)?;
    Ok(receiver)
}

/// Nobody reads the reports any more.
struct Unread;

/// When what is done next.
struct Due {
    probe: Instant,
    measure: Instant,
    reopen: Instant,
    rediscover: Instant,
}

impl Due {
    fn now(pace: Pace) -> Self {
        let now = Instant::now();
        Self {
            probe: now,
            measure: now,
            reopen: now + pace.reopen,
            rediscover: now + pace.rediscover,
        }
    }
}

struct Watch {
    pace: Pace,
    reports: mpsc::Sender<Report>,
    board: Board,
    sampler: Sampler,
    /// The GPUs reported last.
    inventory: Option<Inventory>,
    /// The health reported last.
    verdicts: Option<BTreeMap<GpuUuid, Verdict>>,
}

impl Watch {
    fn run(&mut self, library: Option<PathBuf>) -> Result<std::convert::Infallible, Unread> {
        let mut waiting = Waiting::default();
        let mut hopeless_since = None;
        loop {
            match open(library.as_deref()) {
                Ok(nvml) => {
                    waiting = Waiting::default();
                    hopeless_since = None;
                    self.session(&nvml)?;
                }
                Err(error) => {
                    self.all_silent(&in_full(&error))?;
                    if let Some(why) = waiting.say(&error) {
                        self.report(Report::Unavailable(why))?;
                    }
                    let is_hopeless = matches!(error, OpenError::Mismatch { .. }) || self.inventory.is_some();
                    if is_hopeless && self.is_stale(*hopeless_since.get_or_insert_with(Instant::now)) {
                        hopeless_since = None;
                        self.report(Report::Stale(in_full(&error)))?;
                    }
                    self.rest(self.pace.reopen)?;
                }
            }
        }
    }

    fn is_stale(&self, since: Instant) -> bool {
        since.elapsed() >= self.pace.stale
    }

    /// Works with an open NVML until it must be opened again.
    fn session(&mut self, nvml: &Nvml) -> Result<(), Unread> {
        let inventory = match Inventory::read(nvml) {
            Ok(inventory) => inventory,
            Err(error) => {
                let why = in_full(&error);
                tracing::warn!("{why}");
                self.all_silent(&why)?;
                return self.rest(self.pace.reopen);
            }
        };
        self.found(&inventory)?;
        let events = Events::of(nvml, &inventory);
        self.rounds(nvml, &inventory, &events)
    }

    fn found(&mut self, inventory: &Inventory) -> Result<(), Unread> {
        self.board.found(inventory);
        if self.inventory.as_ref() == Some(inventory) {
            return Ok(());
        }
        for Unreadable { index, why } in &inventory.unreadable {
            tracing::warn!("GPU {index} can't be offered: {why}");
        }
        self.inventory = Some(inventory.clone());
        self.report(Report::Found(inventory.clone()))
    }

    fn rounds(&mut self, nvml: &Nvml, inventory: &Inventory, events: &Events<'_>) -> Result<(), Unread> {
        let mut due = Due::now(self.pace);
        loop {
            let now = Instant::now();
            if now >= due.probe {
                due.probe = now + self.pace.probe;
                self.probe_all(nvml, inventory)?;
            }
            if now >= due.measure {
                due.measure = now + self.pace.measure;
                self.measure_all(nvml, inventory)?;
            }
            if self.must_reopen(nvml, inventory, &mut due) {
                return Ok(());
            }
            match events.wait(due.probe.min(due.measure).saturating_duration_since(now)) {
                Ok(Some(event)) => {
                    self.heard(event)?;
                    // What the error has left behind may be worse than the error.
                    due.probe = due.probe.min(Instant::now() + SOON);
                }
                Ok(None) => {}
                Err(error) => return self.broken(&error, nvml, inventory),
            }
            self.is_read()?;
        }
    }

    fn probe_all(&mut self, nvml: &Nvml, inventory: &Inventory) -> Result<(), Unread> {
        for gpu in inventory.usable() {
            let probe = probe(nvml, gpu);
            self.board.probe(Instant::now(), &gpu.uuid, probe);
        }
        self.tell_health()
    }

    fn measure_all(&mut self, nvml: &Nvml, inventory: &Inventory) -> Result<(), Unread> {
        let gpus = inventory.usable().map(|gpu| &gpu.uuid);
        let measures = gpus.filter_map(|gpu| self.sampler.measure(nvml, gpu).ok());
        let measures = measures.collect();
        self.report(Report::Measured(measures))
    }

    fn heard(&mut self, event: Option<XidEvent>) -> Result<(), Unread> {
        let Some(event) = event else {
            return Ok(());
        };
        let XidEvent { gpu, xid, .. } = &event;
        tracing::warn!("GPU {gpu} reported XID {xid}: {}", super::xid::describe(*xid));
        self.board.xid(Instant::now(), &event);
        self.report(Report::Xid(event))?;
        self.tell_health()
    }

    /// A session sees neither the return of a GPU nor, on all drivers, a new one.
    fn must_reopen(&self, nvml: &Nvml, inventory: &Inventory, due: &mut Due) -> bool {
        let now = Instant::now();
        if now >= due.reopen && (self.board.any_absent() || !inventory.unreadable.is_empty()) {
            return true;
        }
        if now < due.rediscover {
            return false;
        }
        due.rediscover = now + self.pace.rediscover;
        Inventory::read(nvml).map_or(true, |found| found != *inventory)
    }

    /// A set of events that fails once fails for good; which GPU is to blame, a probe tells.
    fn broken(&mut self, error: &NvmlError, nvml: &Nvml, inventory: &Inventory) -> Result<(), Unread> {
        tracing::warn!("waiting for NVML's events failed, so it is opened again: {error}");
        self.probe_all(nvml, inventory)?;
        self.rest(SOON)
    }

    fn all_silent(&mut self, why: &str) -> Result<(), Unread> {
        self.board.all_silent(why);
        self.tell_health()
    }

    /// Reports the health where it has changed.
    fn tell_health(&mut self) -> Result<(), Unread> {
        let verdicts = self.board.verdicts();
        if verdicts.is_empty() || self.verdicts.as_ref() == Some(&verdicts) {
            return Ok(());
        }
        self.verdicts = Some(verdicts.clone());
        self.report(Report::Health(verdicts))
    }

    /// Blocks while the reader is behind.
    fn report(&self, report: Report) -> Result<(), Unread> {
        self.reports.blocking_send(report).map_err(|_| Unread)
    }

    fn rest(&self, time: Duration) -> Result<(), Unread> {
        let end = Instant::now() + time;
        loop {
            self.is_read()?;
            match end.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return Ok(()),
                left => thread::sleep(left.min(LONGEST_WAIT)),
            }
        }
    }

    fn is_read(&self) -> Result<(), Unread> {
        if self.reports.is_closed() {
            Err(Unread)
        } else {
            Ok(())
        }
    }
}

/// The GPUs that tell of events, and who is who.
struct Events<'nvml> {
    /// `None` where no GPU tells of any.
    set: Option<EventSet<'nvml>>,
    names: BTreeMap<DeviceKey, GpuUuid>,
}

impl<'nvml> Events<'nvml> {
    fn of(nvml: &'nvml Nvml, inventory: &Inventory) -> Self {
        let set = EventSet::new(nvml).inspect_err(|error| tracing::warn!("XIDs can't be heard: {error}"));
        let mut events = Self {
            set: set.ok(),
            names: BTreeMap::new(),
        };
        for gpu in inventory.physical() {
            if let Err(error) = events.add(nvml, &gpu.uuid) {
                tracing::warn!("GPU {} tells of no XIDs, and is only probed: {error}", gpu.uuid);
            }
        }
        // Waiting on an empty set would return at once.
        events.set.take_if(|_| events.names.is_empty());
        events
    }

    fn add(&mut self, nvml: &Nvml, gpu: &GpuUuid) -> Result<(), NvmlError> {
        let device = nvml.device_by_uuid(gpu.as_str())?;
        if let Some(set) = &self.set {
            set.add(&device)?;
            self.names.insert(DeviceKey::of(&device), gpu.clone());
        }
        Ok(())
    }

    /// Waits for an event. The inner `None` is one that only calls for a probe.
    fn wait(&self, at_most: Duration) -> Result<Option<Option<XidEvent>>, NvmlError> {
        let at_most = at_most.min(LONGEST_WAIT);
        let Some(set) = &self.set else {
            thread::sleep(at_most);
            return Ok(None);
        };
        // At most half a second, so the cast holds; at least a millisecond, so that this is no busy loop.
        let event = set.wait(at_most.as_millis().max(1) as u32)?;
        Ok(event.map(|event| self.named(event)))
    }

    fn named(&self, event: Event) -> Option<XidEvent> {
        Some(XidEvent {
            gpu: self.names.get(&event.device)?.clone(),
            xid: event.xid?,
            gpu_instance: event.gpu_instance,
        })
    }
}

const LONGEST_WAIT: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_millis(500);
const MOST_UNREAD: usize = 64;
