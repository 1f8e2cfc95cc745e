//! The stand-alone agent's decisions: which slices there are, and what becomes of their processes. No I/O, no
//! clock: what happens comes in with the time that it happens at, and what to do comes out as [`Command`]s.
//!
//! ```text
//!   start ──► Starting ── answered ──► Running
//!                ▲  └──── exited ───┐     │ exited
//!      tick, the │                  ▼     ▼
//!   wait is over └──────────────── BackingOff
//!
//!   end, from any of these ──► Stopping ── exited ──► Stopping, swept ──► gone, its units are free again
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use penstock_core::device::Resource;
use penstock_core::ids::{BadId, GpuUuid, SliceId};
use penstock_core::packing::{Ledger, Refusal, Resources};
use penstock_core::units::EncoderUnits;
use penstock_core::wire::agent::{GpuStatus, SliceSpec, SliceState, SliceStatus};

use crate::backoff;

/// All slices, with the ledger of what they hold. Owned and updated by one task.
#[derive(Debug)]
pub(super) struct Agent {
    ledger: Ledger,
    offers: BTreeMap<GpuUuid, Offer>,
    slices: BTreeMap<SliceId, Slice>,
    runs: u64,
    ending: bool,
    commands: VecDeque<Command>,
}

/// One GPU, or what stands in for one, as it is offered.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    /// Its name.
    pub(crate) uuid: GpuUuid,
    /// What it is, for people.
    pub(crate) model: String,
    /// All that slices may take of it.
    pub(crate) capacity: Resources,
    /// What one of its encoder engines has, where that is known.
    pub(crate) engine: Option<EncoderUnits>,
    /// How many slices with SMs it takes.
    pub(crate) mps_clients: usize,
    /// Why a resource of it is not to be used now.
    pub(crate) unhealthy: BTreeMap<Resource, String>,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// Start a process, and say what came of it with [`Agent::spawned`].
    Spawn(Launch),
    /// Tell a process to end, and say [`Agent::exited`] when it has.
    Stop(Run),
    /// Kill what ended processes left behind, and say [`Agent::swept`] once none of it is left.
    Sweep,
    /// Tell those who wait for this slice's end that it and all its processes are gone.
    Gone(SliceId),
}

/// A process to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Launch {
    /// The name that later events know this process by.
    pub(super) run: Run,
    /// The slice that it is for.
    pub(super) slice: SliceId,
    /// The GPU that the slice is on.
    pub(super) gpu: GpuUuid,
    /// What the slice holds of it.
    pub(super) demand: Resources,
    /// What one encoder engine of that GPU has, where it is known.
    pub(super) engine: Option<EncoderUnits>,
    /// The streamer's own arguments.
    pub(super) args: Vec<String>,
    /// Whether the slice had a process before.
    pub(super) again: bool,
}

/// One start of one slice's process. No two starts share a number, so that a late word about a process that is
/// gone is never taken for one about its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Run(u64);

/// A process that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    /// Its number.
    pub(super) pid: u32,
    /// Where it was told to listen.
    pub(super) address: SocketAddr,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// The ledger has no place for it.
    #[error(transparent)]
    Ledger(#[from] Refusal),
    /// There is no such slice.
    #[error("there is no slice named {0:?}: GET /v1/slices lists those that there are")]
    Unknown(String),
    /// An argument can't be given to a process.
    #[error("streamer argument {0:?} contains a NUL character, which no process can be given: leave it out")]
    Argument(String),
    /// The agent's own name for a slice is none. A bug, but not one to end all other streams for.
    #[error("naming a slice: {0}")]
    Name(#[from] BadId),
    /// The agent ends.
    #[error("the agent is ending and starts nothing: try again once it is back")]
    Ending,
}

impl Agent {
    /// An agent without slices.
    pub(super) fn new(offers: Vec<Offer>) -> Self {
        let mut agent = Self {
            offers: BTreeMap::new(),
            ledger: Ledger::default(),
            slices: BTreeMap::new(),
            runs: 0,
            ending: false,
            commands: VecDeque::new(),
        };
        agent.set_offers(offers);
        agent
    }

    /// Takes in what is offered now. Slices stay where they are, whatever becomes of their GPU.
    pub(super) fn set_offers(&mut self, offers: Vec<Offer>) {
        self.ledger
            .set_gpus(offers.iter().map(|o| (o.uuid.clone(), o.capacity)));
        self.offers = offers.into_iter().map(|o| (o.uuid.clone(), o)).collect();
    }

    /// Places a slice and starts its process.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    pub(super) fn start(&mut self, spec: SliceSpec) -> Result<SliceId, Refused> {
        if self.ending {
            return Err(Refused::Ending);
        }
        if let Some(arg) = spec.streamer_args.iter().find(|arg| arg.contains('\0')) {
            return Err(Refused::Argument(arg.clone()));
        }
        let id = spec.id.map_or_else(|| self.unused_name(), Ok)?;
        let (offers, slices) = (&self.offers, &self.slices);
        let why_not = |gpu: &GpuUuid| why_not(offers, slices, gpu, spec.demand);
        let gpu = self.ledger.place_where(id.clone(), spec.demand, why_not)?;
        let mut slice = Slice::new(gpu, spec.demand, spec.streamer_args);
        let engine = engine_of(&self.offers, &slice.gpu);
        self.commands.push_back(slice.launch(&id, Run(self.runs), engine));
        self.runs += 1;
        self.slices.insert(id.clone(), slice);
        Ok(id)
    }

    /// Ends a slice; [`Command::Gone`] says when it is done. One that ends already is left to it.
    ///
    /// # Errors
    /// [`Refused::Unknown`].
    pub(super) fn end(&mut self, id: &SliceId) -> Result<(), Refused> {
        let unknown = || Refused::Unknown(id.to_string());
        let slice = self.slices.get_mut(id).ok_or_else(unknown)?;
        self.commands.extend(slice.end());
        Ok(())
    }

    /// Ends every slice, and takes no new one.
    pub(super) fn end_all(&mut self) {
        self.ending = true;
        self.commands
            .extend(self.slices.values_mut().filter_map(Slice::end));
    }

    /// What came of [`Command::Spawn`]: a process, or why there is none.
    pub(super) fn spawned(&mut self, now: Instant, run: Run, outcome: Result<Process, String>) {
        match outcome {
            Ok(started) => {
                if let Some(process) = self.slice_of(run).and_then(Slice::process_mut) {
                    *process = Some(started);
                }
            }
            Err(why) => self.exited(now, run, why),
        }
    }

    /// A process answers for the first time.
    pub(super) fn answered(&mut self, now: Instant, run: Run) {
        if let Some(Phase::Up { answers_since, .. }) = self.slice_of(run).map(|slice| &mut slice.phase) {
            answers_since.get_or_insert(now);
        }
    }

    /// A process ended; `how`, in words. What it may have left behind is swept.
    pub(super) fn exited(&mut self, now: Instant, run: Run, how: String) {
        if let Some(slice) = self.slice_of(run) {
            slice.exited(now, how);
            self.commands.push_back(Command::Sweep);
        }
    }

    /// What ended processes left behind is gone: slices that waited for that leave.
    pub(super) fn swept(&mut self) {
        let leaving = |slice: &mut Slice| matches!(slice.phase, Phase::Leaving);
        for (id, _) in self.slices.extract_if(.., |_, slice| leaving(slice)) {
            self.ledger.free(&id);
            self.commands.push_back(Command::Gone(id));
        }
    }

    /// Starts the processes whose wait is over.
    pub(super) fn tick(&mut self, now: Instant) {
        for (id, slice) in &mut self.slices {
            if slice.starts_again_at().is_some_and(|at| at <= now) {
                slice.restarts = slice.restarts.saturating_add(1);
                let engine = engine_of(&self.offers, &slice.gpu);
                self.commands.push_back(slice.launch(id, Run(self.runs), engine));
                self.runs += 1;
            }
        }
    }

    /// When [`Agent::tick`] has something to do next.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        self.slices.values().filter_map(Slice::starts_again_at).min()
    }

    /// The next thing to do; ask until there is none.
    pub(super) fn next_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Whether all was ended, and nothing is left.
    pub(super) fn is_over(&self) -> bool {
        self.ending && self.slices.is_empty()
    }

    /// One slice as it stands.
    pub(super) fn slice(&self, id: &SliceId) -> Option<SliceStatus> {
        Some(self.status(id, self.slices.get(id)?))
    }

    /// Every slice as it stands, by name.
    pub(super) fn slices(&self) -> Vec<SliceStatus> {
        let status = |(id, slice)| self.status(id, slice);
        self.slices.iter().map(status).collect()
    }

    /// Every GPU with what is free on it.
    pub(super) fn gpus(&self) -> Vec<GpuStatus> {
        let status = |gpu: penstock_core::packing::Candidate<'_>| {
            let offer = self.offers.get(gpu.gpu);
            let unhealthy = |resource: Resource| {
                let why = match offer {
                    Some(offer) => offer.unhealthy.get(&resource)?,
                    None => GONE,
                };
                Some((resource.short_name().to_owned(), why.to_owned()))
            };
            GpuStatus {
                uuid: gpu.gpu.clone(),
                model: offer.map(|offer| offer.model.clone()).unwrap_or_default(),
                capacity: gpu.capacity,
                free: gpu.free,
                unhealthy: Resource::ALL.into_iter().filter_map(unhealthy).collect(),
            }
        };
        self.ledger.candidates().map(status).collect()
    }

    fn status(&self, id: &SliceId, slice: &Slice) -> SliceStatus {
        SliceStatus {
            unhealthy: illness(&self.offers, &slice.gpu, slice.demand),
            ..slice.status(id)
        }
    }

    /// The first of `slice-1`, `slice-2`, … that no slice has.
    fn unused_name(&self) -> Result<SliceId, BadId> {
        let name = |n: u64| format!("slice-{n}");
        let taken = |n: u64| self.slices.keys().any(|id| id.as_str() == name(n));
        // There are fewer slices than numbers, so one is always found.
        SliceId::new(name((1..).find(|n| !taken(*n)).unwrap_or_default()))
    }

    fn slice_of(&mut self, run: Run) -> Option<&mut Slice> {
        self.slices.values_mut().find(|slice| slice.run() == Some(run))
    }
}

/// Why a slice like that can't be put on a GPU, whatever is free of it.
fn why_not(
    offers: &BTreeMap<GpuUuid, Offer>,
    slices: &BTreeMap<SliceId, Slice>,
    gpu: &GpuUuid,
    demand: Resources,
) -> Option<String> {
    let illness = illness(offers, gpu, demand);
    if illness.is_some() || demand.mps.0 == 0 {
        return illness;
    }
    let most = offers.get(gpu)?.mps_clients;
    let is_client = |slice: &&Slice| slice.gpu == *gpu && slice.demand.mps.0 > 0;
    let full = slices.values().filter(is_client).count() >= most;
    full.then(|| format!("its MPS daemon takes {most} clients, and has them"))
}

/// What is wrong with a GPU, of that which a demand is for.
fn illness(offers: &BTreeMap<GpuUuid, Offer>, gpu: &GpuUuid, demand: Resources) -> Option<String> {
    let Some(offer) = offers.get(gpu) else {
        return Some(GONE.to_owned());
    };
    let wanted = Resource::ALL.into_iter().filter(|r| r.of(demand) > 0);
    wanted
        .filter_map(|resource| offer.unhealthy.get(&resource))
        .next()
        .cloned()
}

fn engine_of(offers: &BTreeMap<GpuUuid, Offer>, gpu: &GpuUuid) -> Option<EncoderUnits> {
    offers.get(gpu).and_then(|offer| offer.engine)
}

const GONE: &str = "the driver does not list it any more";

#[derive(Debug)]
struct Slice {
    gpu: GpuUuid,
    demand: Resources,
    args: Vec<String>,
    phase: Phase,
    restarts: u32,
    /// Ends in a row, each after too short a time.
    failures: u32,
    last_exit: Option<String>,
}

#[derive(Debug)]
enum Phase {
    /// It has a process (none yet while the command to start it is being carried out).
    Up {
        run: Run,
        process: Option<Process>,
        answers_since: Option<Instant>,
    },
    /// Its process ended by itself.
    BackingOff { until: Instant },
    /// Its process was told to end.
    Stopping { run: Run, process: Option<Process> },
    /// Its process is gone; what that left behind may not be.
    Leaving,
}

impl Slice {
    /// A slice whose process is yet to be launched.
    fn new(gpu: GpuUuid, demand: Resources, args: Vec<String>) -> Self {
        Self {
            gpu,
            demand,
            args,
            phase: Phase::Leaving,
            restarts: 0,
            failures: 0,
            last_exit: None,
        }
    }

    fn launch(&mut self, id: &SliceId, run: Run, engine: Option<EncoderUnits>) -> Command {
        self.phase = Phase::Up {
            run,
            process: None,
            answers_since: None,
        };
        Command::Spawn(Launch {
            run,
            slice: id.clone(),
            gpu: self.gpu.clone(),
            demand: self.demand,
            engine,
            args: self.args.clone(),
            again: self.restarts > 0,
        })
    }

    fn end(&mut self) -> Option<Command> {
        match self.phase {
            Phase::Up { run, process, .. } => {
                self.phase = Phase::Stopping { run, process };
                Some(Command::Stop(run))
            }
            Phase::BackingOff { .. } => {
                self.phase = Phase::Leaving;
                Some(Command::Sweep)
            }
            Phase::Stopping { .. } | Phase::Leaving => None,
        }
    }

    fn exited(&mut self, now: Instant, how: String) {
        self.last_exit = Some(how);
        let Phase::Up { answers_since, .. } = self.phase else {
            self.phase = Phase::Leaving;
            return;
        };
        let was_well =
            answers_since.is_some_and(|since| now.saturating_duration_since(since) >= backoff::WELL_AFTER);
        self.failures = if was_well {
            1
        } else {
            self.failures.saturating_add(1)
        };
        self.phase = Phase::BackingOff {
            until: now + backoff::delay(self.failures),
        };
    }

    fn run(&self) -> Option<Run> {
        match self.phase {
            Phase::Up { run, .. } | Phase::Stopping { run, .. } => Some(run),
            Phase::BackingOff { .. } | Phase::Leaving => None,
        }
    }

    fn process_mut(&mut self) -> Option<&mut Option<Process>> {
        match &mut self.phase {
            Phase::Up { process, .. } | Phase::Stopping { process, .. } => Some(process),
            Phase::BackingOff { .. } | Phase::Leaving => None,
        }
    }

    fn starts_again_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::BackingOff { until } => Some(until),
            _ => None,
        }
    }

    fn status(&self, id: &SliceId) -> SliceStatus {
        let (state, process) = match self.phase {
            Phase::Up {
                process,
                answers_since: None,
                ..
            } => (SliceState::Starting, process),
            Phase::Up { process, .. } => (SliceState::Running, process),
            Phase::BackingOff { .. } => (SliceState::BackingOff, None),
            Phase::Stopping { process, .. } => (SliceState::Stopping, process),
            Phase::Leaving => (SliceState::Stopping, None),
        };
        SliceStatus {
            id: id.clone(),
            gpu: self.gpu.clone(),
            demand: self.demand,
            state,
            address: process.map(|p| p.address),
            pid: process.map(|p| p.pid),
            restarts: self.restarts,
            last_exit: self.last_exit.clone(),
            unhealthy: None,
        }
    }
}

#[cfg(test)]
mod tests;
