//! Whether a GPU is healthy, and why not: decisions over XIDs and probes, with time as an argument.
//!
//! ```text
//!                    answers again: all is forgotten
//!          ┌──────────────────────────────────────────────┐
//!          ▼                                              │
//!       healthy ──── gone ─────────────────────────────► lost
//!        │  ▲ ▲                                           ▲
//!  error │  │ │ quiet for a while (most errors)           │
//!        ▼  │ │ a reset was seen (errors that need one)   │
//!       faulty ──────── gone ─────────────────────────────┘
//! ```
//!
//! A GPU that is there but can't be asked is unhealthy until it can, and remembers its errors meanwhile.
//!
//! A reset is seen where the driver asked for one and no longer does, where the count of uncorrectable errors
//! since the last reset falls, or where the GPU was gone and is back. The encoder has a state of its own: its
//! errors leave the rest of the GPU healthy.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use penstock_core::ids::GpuUuid;
use serde::Serialize;

use super::inventory::{Gpu, Inventory, Kind};
use super::xid::{self, Cure, Impact};

/// What is wrong with a GPU, in words; healthy where nothing is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Verdict {
    /// Nothing of the GPU can be used.
    pub(crate) gpu: Option<String>,
    /// Its encoder can't be used, the rest can.
    pub(crate) encoder: Option<String>,
}

/// An XID as it came in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct XidEvent {
    /// The physical GPU.
    pub(crate) gpu: GpuUuid,
    /// NVIDIA's number.
    pub(crate) xid: u64,
    /// The MIG GPU instance, where only that is concerned.
    pub(crate) gpu_instance: Option<u32>,
}

/// What a look at a GPU found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Probe {
    /// It is gone, or won't work before a reset. Should it answer again, then as if new.
    Lost(String),
    /// It could not be asked, for a reason that may pass. That it answers again forgives nothing.
    Silent(String),
    /// It answers.
    Answers(Vitals),
}

/// What a GPU says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Vitals {
    /// Uncorrectable memory errors since its last reset.
    pub(crate) uncorrectable: Option<u64>,
    /// What the driver wants done to recover the GPU; `None` where it can't tell.
    pub(crate) recovery: Option<Recovery>,
}

/// `nvmlDeviceGpuRecoveryAction_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// Nothing is wanted.
    Nothing,
    /// A reset of the GPU.
    Reset,
    /// A reboot of the node.
    Reboot,
    /// An end of all peer-to-peer traffic, then a reset.
    DrainPeers,
    /// No new work, then a reset.
    DrainAndReset,
    /// Something that this version does not know.
    Other(u32),
}

/// The health of all GPUs.
#[derive(Debug, Clone)]
pub(crate) struct Board {
    quiet: Duration,
    gpus: BTreeMap<GpuUuid, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    physical: GpuUuid,
    gpu_instance: Option<u32>,
    health: Health,
}

impl Board {
    /// No GPUs yet. Errors that pass do so after `quiet`.
    pub(crate) fn new(quiet: Duration) -> Self {
        Self {
            quiet,
            gpus: BTreeMap::new(),
        }
    }

    /// Takes in the GPUs that there are. One that is known keeps its state; one that is gone is lost, but for
    /// a MIG instance whose GPU is there: that was taken apart on purpose, and is forgotten.
    pub(crate) fn found(&mut self, inventory: &Inventory) {
        for gpu in inventory.usable() {
            let entry = || Entry::new(gpu);
            self.gpus.entry(gpu.uuid.clone()).or_insert_with(entry);
        }
        let listed = |uuid: &GpuUuid| inventory.usable().any(|gpu| gpu.uuid == *uuid);
        let there = |uuid: &GpuUuid| inventory.physical().any(|gpu| gpu.uuid == *uuid);
        self.gpus
            .retain(|uuid, entry| listed(uuid) || !there(&entry.physical));
        // One that can't be asked may be any of those that are missing.
        let missing = match inventory.unreadable.first() {
            None => Absence::gone("the driver does not list it"),
            Some(gpu) => Absence::silent(format!(
                "it is missing, and GPU {} can't be asked: {}",
                gpu.index, gpu.why
            )),
        };
        for (_, entry) in self.gpus.iter_mut().filter(|(uuid, _)| !listed(uuid)) {
            entry.health.absent(missing.clone());
        }
    }

    /// Takes in an XID, for the GPU or the MIG instances that it concerns.
    pub(crate) fn xid(&mut self, now: Instant, event: &XidEvent) {
        for entry in self.gpus.values_mut().filter(|entry| entry.is_hit_by(event)) {
            entry.health.xid(now, event.xid);
        }
    }

    /// Takes in a look at a GPU; one that is not known is left out.
    pub(crate) fn probe(&mut self, now: Instant, gpu: &GpuUuid, probe: Probe) {
        if let Some(entry) = self.gpus.get_mut(gpu) {
            entry.health.probe(now, self.quiet, probe);
        }
    }

    /// Takes in that no GPU can be asked.
    pub(crate) fn all_silent(&mut self, why: &str) {
        for entry in self.gpus.values_mut() {
            entry.health.absent(Absence::silent(why));
        }
    }

    /// What is wrong with each GPU.
    pub(crate) fn verdicts(&self) -> BTreeMap<GpuUuid, Verdict> {
        let each = self.gpus.iter();
        each.map(|(uuid, entry)| (uuid.clone(), entry.health.verdict()))
            .collect()
    }

    /// Whether some GPU does not answer.
    pub(crate) fn any_absent(&self) -> bool {
        self.gpus.values().any(|entry| entry.health.absent.is_some())
    }
}

impl Entry {
    fn new(gpu: &Gpu) -> Self {
        let gpu_instance = match &gpu.kind {
            Kind::Mig(mig) => mig.gpu_instance,
            Kind::Whole | Kind::Divided => None,
        };
        Self {
            physical: gpu.physical().clone(),
            gpu_instance,
            health: Health::default(),
        }
    }

    /// An event that names an instance spares the others; one that names none hits all of the GPU.
    fn is_hit_by(&self, event: &XidEvent) -> bool {
        let spared = match (self.gpu_instance, event.gpu_instance) {
            (Some(own), Some(hit)) => own != hit,
            _ => false,
        };
        self.physical == event.gpu && !spared
    }
}

/// One GPU.
#[derive(Debug, Clone, Default)]
struct Health {
    absent: Option<Absence>,
    fault: Option<Fault>,
    encoder: Option<Fault>,
    /// What the driver wants done.
    wanted: Option<&'static str>,
    uncorrectable: Option<u64>,
}

/// Why a GPU does not answer.
#[derive(Debug, Clone)]
struct Absence {
    why: String,
    /// It was seen gone, so that what comes back is as good as new.
    gone: bool,
}

impl Absence {
    fn gone(why: impl Into<String>) -> Self {
        let why = why.into();
        Self { why, gone: true }
    }

    fn silent(why: impl Into<String>) -> Self {
        let why = why.into();
        Self { why, gone: false }
    }
}

#[derive(Debug, Clone)]
struct Fault {
    why: String,
    cure: Cure,
    last: Instant,
}

impl Health {
    fn xid(&mut self, now: Instant, xid: u64) {
        let what = xid::describe(xid);
        let fault = |cure, advice| Fault {
            why: format!("XID {xid}: {what}{advice}"),
            cure,
            last: now,
        };
        match xid::impact(xid) {
            Impact::Application | Impact::Notice => {}
            Impact::Encoder => Fault::add(&mut self.encoder, fault(Cure::Quiet, "")),
            Impact::Device(Cure::Quiet) => Fault::add(&mut self.fault, fault(Cure::Quiet, "")),
            Impact::Device(Cure::Reset) => Fault::add(&mut self.fault, fault(Cure::Reset, RESET_ADVICE)),
        }
    }

    /// Once gone, it stays so until it answers, whatever else is in the way.
    fn absent(&mut self, absence: Absence) {
        let was_gone = self.absent.take().is_some_and(|before| before.gone);
        let gone = absence.gone || was_gone;
        self.absent = Some(Absence { gone, ..absence });
    }

    fn probe(&mut self, now: Instant, quiet: Duration, probe: Probe) {
        match probe {
            Probe::Lost(why) => self.absent(Absence::gone(why)),
            Probe::Silent(why) => self.absent(Absence::silent(why)),
            Probe::Answers(vitals) => self.answers(now, quiet, &vitals),
        }
    }

    fn answers(&mut self, now: Instant, quiet: Duration, vitals: &Vitals) {
        let wanted = vitals.recovery.and_then(Recovery::in_words);
        let fewer_errors = vitals.uncorrectable < self.uncorrectable && vitals.uncorrectable.is_some();
        let done = self.wanted.is_some() && vitals.recovery.is_some() && wanted.is_none();
        let was_gone = self.absent.take().is_some_and(|absence| absence.gone);
        if was_gone || fewer_errors || done {
            (self.fault, self.encoder) = (None, None);
        } else {
            self.compare(now, vitals.uncorrectable);
        }
        self.wanted = wanted;
        self.uncorrectable = vitals.uncorrectable.or(self.uncorrectable);
        Fault::pass(&mut self.fault, now, quiet);
        Fault::pass(&mut self.encoder, now, quiet);
    }

    /// More uncorrectable errors than at the last look are a fault. Those of before the first look are
    /// history: what they call for, the driver says.
    fn compare(&mut self, now: Instant, uncorrectable: Option<u64>) {
        let new = match (self.uncorrectable, uncorrectable) {
            (Some(before), Some(after)) => after.saturating_sub(before),
            _ => 0,
        };
        if new > 0 {
            let fault = Fault {
                why: format!(
                    "{new} new uncorrectable memory error{}",
                    if new == 1 { "" } else { "s" }
                ),
                cure: Cure::Quiet,
                last: now,
            };
            Fault::add(&mut self.fault, fault);
        }
    }

    fn verdict(&self) -> Verdict {
        let absence = self.absent.as_ref();
        let absent = absence.map(|absence| format!("it does not answer: {}", absence.why));
        let fault = || self.fault.as_ref().map(|fault| fault.why.clone());
        let wanted = || self.wanted.map(|wanted| format!("the driver asks for {wanted}"));
        Verdict {
            gpu: absent.or_else(fault).or_else(wanted),
            encoder: self.encoder.as_ref().map(|fault| fault.why.clone()),
        }
    }
}

impl Fault {
    /// A fault that passes does not hide one that needs a reset.
    fn add(standing: &mut Option<Self>, new: Self) {
        if standing.as_ref().is_none_or(|old| old.cure <= new.cure) {
            *standing = Some(new);
        }
    }

    /// Forgets a fault that passes, once it was quiet for long enough.
    fn pass(standing: &mut Option<Self>, now: Instant, quiet: Duration) {
        standing
            .take_if(|fault| fault.cure == Cure::Quiet && now.saturating_duration_since(fault.last) >= quiet);
    }
}

impl Recovery {
    /// From NVML's number.
    pub(crate) fn from_nvml(action: u32) -> Self {
        match action {
            0 => Self::Nothing,
            1 => Self::Reset,
            2 => Self::Reboot,
            3 => Self::DrainPeers,
            4 => Self::DrainAndReset,
            other => Self::Other(other),
        }
    }

    fn in_words(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Reset => Some(
                "a reset of the GPU (`nvidia-smi --gpu-reset`, with nothing running on it, so without the node's label app.pixel/gpu)",
            ),
            Self::Reboot => Some("a reboot of the node"),
            Self::DrainPeers => Some("an end of peer-to-peer traffic, then a reset of the GPU"),
            Self::DrainAndReset => Some("no new work, then a reset of the GPU"),
            Self::Other(_) => Some("a recovery that this version does not know (`nvidia-smi -q` names it)"),
        }
    }
}

/// A reset needs that nobody has the GPU open, and plugin and MPS daemon do.
const RESET_ADVICE: &str = " (reset the GPU, or reboot the node: drain it and take its label app.pixel/gpu off first, since the \
    agent and MPS keep the GPU open)";

#[cfg(test)]
mod tests;
