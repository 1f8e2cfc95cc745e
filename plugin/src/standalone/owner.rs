//! The one task that owns the agent's state, and carries out what it decides.
//!
//! ```text
//!   GPUs ─────────────┐
//!   requests ─────────┤             ┌──► processes started, told to end
//!   processes' ends ──┼──► Agent ───┼──► what they left behind swept
//!   time ─────────────┘             └──► slices and GPUs published, requests answered
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use penstock_core::ids::SliceId;
use penstock_core::wire::agent::{GpuStatus, SliceSpec, SliceStatus};
use penstock_shell::children;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::agent::{Agent, Command, Launch, Process, Refused, Run};
use super::metrics::Metrics;
use super::offered::Offered;
use super::process::{Ended, Streamer};

/// What the API asks of the owner.
#[derive(Debug)]
pub(super) enum Request {
    /// Start a slice; answered once its process is started.
    Start(SliceSpec, oneshot::Sender<Result<SliceStatus, Refused>>),
    /// End a slice; answered once all of it is gone.
    End(SliceId, oneshot::Sender<Result<(), Refused>>),
}

/// Where others see the state, and ask for changes.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    /// Asks the owner.
    pub(super) requests: mpsc::Sender<Request>,
    /// All slices.
    pub(super) slices: watch::Receiver<Vec<SliceStatus>>,
    /// All GPUs.
    pub(super) gpus: watch::Receiver<Vec<GpuStatus>>,
}

/// The owner.
pub(super) struct Owner {
    agent: Agent,
    offered: Offered,
    streamer: Streamer,
    metrics: Metrics,
    requests: mpsc::Receiver<Request>,
    slices: watch::Sender<Vec<SliceStatus>>,
    gpus: watch::Sender<Vec<GpuStatus>>,
    /// Who waits for a slice to be gone.
    leaving: Vec<(SliceId, oneshot::Sender<Result<(), Refused>>)>,
    running: BTreeMap<Run, Running>,
    attended: JoinSet<Ended>,
    answers: (mpsc::Sender<Run>, mpsc::Receiver<Run>),
    cleaning: Cleaning,
}

/// A process that is not known to be gone.
struct Running {
    slice: SliceId,
    process: Process,
    stop: CancellationToken,
}

/// When the next look at processes that nobody started here is due.
#[derive(Debug, Clone, Copy)]
enum Cleaning {
    /// Reap those that ended by themselves.
    Reap { at: Instant },
    /// Kill them all, until a pass finds none.
    Sweep { at: Instant, passes_left: u32 },
}

/// What happened.
enum Event {
    Asked(Request),
    Offered,
    Answered(Run),
    Ended(Result<Ended, JoinError>),
    Time,
    ToldToEnd,
}

impl Owner {
    /// The owner of `agent`, which follows what is `offered`, and the handle that others have of it.
    pub(super) fn new(
        agent: Agent,
        offered: Offered,
        streamer: Streamer,
        metrics: Metrics,
    ) -> (Self, Handle) {
        let (asking, requests) = mpsc::channel(64);
        let (slices, seen_slices) = watch::channel(agent.slices());
        let (gpus, seen_gpus) = watch::channel(agent.gpus());
        let owner = Self {
            agent,
            offered,
            streamer,
            metrics,
            requests,
            slices,
            gpus,
            leaving: Vec::new(),
            running: BTreeMap::new(),
            attended: JoinSet::new(),
            answers: mpsc::channel(64),
            cleaning: Cleaning::reap_later(),
        };
        let handle = Handle {
            requests: asking,
            slices: seen_slices,
            gpus: seen_gpus,
        };
        (owner, handle)
    }

    /// Runs until `told_to_end`, and then until every slice is gone.
    ///
    /// # Errors
    /// Where the task that attends a process panics, which is a bug.
    pub(super) async fn run(mut self, told_to_end: CancellationToken) -> anyhow::Result<()> {
        let mut ending = false;
        self.carry_out();
        while !self.agent.is_over() {
            let next_time = self.next_time();
            let event = tokio::select! {
                Some(request) = self.requests.recv() => Event::Asked(request),
                Some(run) = self.answers.1.recv() => Event::Answered(run),
                () = self.offered.changed() => Event::Offered,
                Some(ended) = self.attended.join_next() => Event::Ended(ended),
                () = told_to_end.cancelled(), if !ending => Event::ToldToEnd,
                () = sleep_until(next_time.into()) => Event::Time,
            };
            ending |= matches!(event, Event::ToldToEnd);
            self.handle(event)?;
            self.carry_out();
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> anyhow::Result<()> {
        let now = Instant::now();
        match event {
            Event::Asked(request) => self.asked(request),
            Event::Answered(run) => self.agent.answered(now, run),
            Event::Offered => self.agent.set_offers(self.offered.now()),
            Event::Ended(ended) => self.ended(now, ended.context("attending a streamer")?),
            Event::ToldToEnd => self.agent.end_all(),
            Event::Time => {
                self.agent.tick(now);
                self.clean(now);
            }
        }
        Ok(())
    }

    fn asked(&mut self, request: Request) {
        match request {
            Request::Start(spec, answer) => {
                let started = self.agent.start(spec);
                self.carry_out();
                let status = started.and_then(|id| {
                    let gone = || Refused::Unknown(id.to_string());
                    self.agent.slice(&id).ok_or_else(gone)
                });
                // Whoever asked may have hung up; the slice is there all the same.
                let _ = answer.send(status);
            }
            Request::End(id, answer) => match self.agent.end(&id) {
                Ok(()) => self.leaving.push((id, answer)),
                Err(refused) => drop(answer.send(Err(refused))),
            },
        }
    }

    fn ended(&mut self, now: Instant, Ended { run, how }: Ended) {
        if let Some(Running { slice, process, .. }) = self.running.remove(&run) {
            tracing::info!(%slice, pid = process.pid, "streamer ended: {how}");
        }
        self.agent.exited(now, run, how);
    }

    /// Carries out all that the agent has decided, and publishes what came of it.
    fn carry_out(&mut self) {
        while let Some(command) = self.agent.next_command() {
            match command {
                Command::Spawn(launch) => self.spawn(&launch),
                Command::Stop(run) => self.stop(run),
                Command::Sweep => self.cleaning = Cleaning::sweep_now(),
                Command::Gone(id) => self.gone(&id),
            }
        }
        publish(&self.slices, self.agent.slices());
        publish(&self.gpus, self.agent.gpus());
        self.metrics.show(&self.slices.borrow(), &self.gpus.borrow());
    }

    fn spawn(&mut self, launch: &Launch) {
        if launch.again {
            self.metrics.restarts.inc();
        }
        let taken: BTreeSet<SocketAddr> = self.running.values().map(|r| r.process.address).collect();
        let outcome = match self.streamer.start(launch, &taken) {
            Ok((child, address)) => Ok(self.attend(launch, child, address)),
            Err(error) => {
                let program = self.streamer.program.display();
                let why = format!("{program} could not be started: {error}");
                tracing::error!(slice = %launch.slice, "{why}");
                Err(why)
            }
        };
        self.agent.spawned(Instant::now(), launch.run, outcome);
    }

    fn attend(&mut self, launch: &Launch, child: tokio::process::Child, address: SocketAddr) -> Process {
        // A child that nobody has waited for has an ID.
        let pid = child.id().unwrap_or_default();
        tracing::info!(slice = %launch.slice, pid, %address, "streamer started");
        let stop = CancellationToken::new();
        let streamer = self.streamer.clone();
        let answers = self.answers.0.clone();
        self.attended
            .spawn(streamer.attend(launch.run, child, address, stop.clone(), answers));
        let process = Process { pid, address };
        let slice = launch.slice.clone();
        self.running.insert(launch.run, Running { slice, process, stop });
        process
    }

    fn stop(&self, run: Run) {
        if let Some(running) = self.running.get(&run) {
            running.stop.cancel();
        }
    }

    fn gone(&mut self, id: &SliceId) {
        tracing::info!(slice = %id, "slice ended");
        // Whoever hears this sees a list without the slice: on our one thread, nobody reads before we publish.
        for (_, answer) in self.leaving.extract_if(.., |(leaving, _)| leaving == id) {
            let _ = answer.send(Ok(()));
        }
    }

    fn next_time(&self) -> Instant {
        let cleaning = self.cleaning.due();
        self.agent.next_tick().map_or(cleaning, |tick| tick.min(cleaning))
    }

    /// Each look names anew which processes are ours, and ends before another one is started: that is what
    /// keeps a sweep after one slice's end from touching another slice's beginning.
    fn clean(&mut self, now: Instant) {
        if now < self.cleaning.due() {
            return;
        }
        let ours = self.running.values().map(|r| r.process.pid).collect();
        self.cleaning = match self.cleaning {
            Cleaning::Reap { .. } => {
                children::reap_adopted(&ours);
                Cleaning::reap_later()
            }
            Cleaning::Sweep { passes_left, .. } => self.sweep(now, &ours, passes_left),
        };
    }

    fn sweep(&mut self, now: Instant, ours: &BTreeSet<u32>, passes_left: u32) -> Cleaning {
        let found = children::sweep_once(ours);
        if !found.is_empty() && passes_left > 0 {
            tracing::info!(pids = ?found, "killed what a streamer left behind");
            return Cleaning::Sweep {
                at: now + SWEEP_EVERY,
                passes_left: passes_left - 1,
            };
        }
        if !found.is_empty() {
            tracing::warn!(pids = ?found, "processes that a streamer left behind can't be killed");
        }
        self.agent.swept();
        Cleaning::reap_later()
    }
}

impl Cleaning {
    fn reap_later() -> Self {
        Self::Reap {
            at: Instant::now() + REAP_EVERY,
        }
    }

    fn sweep_now() -> Self {
        Self::Sweep {
            at: Instant::now(),
            passes_left: SWEEPS,
        }
    }

    fn due(self) -> Instant {
        match self {
            Self::Reap { at } | Self::Sweep { at, .. } => at,
        }
    }
}

/// Publishes a value where it differs from the last one, so that nobody is woken for nothing.
fn publish<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|published| {
        let differs = *published != value;
        if differs {
            *published = value;
        }
        differs
    });
}

const REAP_EVERY: Duration = Duration::from_secs(5);
const SWEEP_EVERY: Duration = Duration::from_millis(20);
/// Two seconds' worth: what a SIGKILL does not end by then waits for the kernel (a dead disk, say), not for us.
const SWEEPS: u32 = 100;
