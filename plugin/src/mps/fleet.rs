//! The one task that owns the daemons, and carries out what the supervisor decides.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Context as _;
use penstock_core::ids::GpuUuid;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::daemon::Program;
use super::layout::Layout;
use super::supervisor::Supervisor;

/// The daemons.
pub(super) struct Fleet {
    supervisor: Supervisor,
    program: Program,
    layout: Layout,
    attended: JoinSet<(GpuUuid, String)>,
    stop: CancellationToken,
}

/// What happened.
enum Event {
    Ended(Result<(GpuUuid, String), JoinError>),
    Time,
    ToldToEnd,
}

impl Fleet {
    /// One daemon for each of `gpus`.
    pub(super) fn new(program: Program, layout: Layout, gpus: BTreeSet<GpuUuid>) -> Self {
        Self {
            supervisor: Supervisor::new(gpus, Instant::now()),
            program,
            layout,
            attended: JoinSet::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Runs until `told_to_end`, and then until every daemon is gone.
    ///
    /// # Errors
    /// Where the task that attends a daemon panics, which is a bug.
    pub(super) async fn run(mut self, told_to_end: CancellationToken) -> anyhow::Result<()> {
        while !self.supervisor.is_over() {
            self.start_what_is_due();
            let ending = self.stop.is_cancelled();
            let event = tokio::select! {
                Some(ended) = self.attended.join_next() => Event::Ended(ended),
                () = told_to_end.cancelled(), if !ending => Event::ToldToEnd,
                () = until(self.supervisor.next_due()) => Event::Time,
            };
            self.handle(event)?;
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Ended(ended) => {
                let (gpu, how) = ended.context("attending an MPS daemon")?;
                match self.stop.is_cancelled() {
                    true => tracing::info!(%gpu, "MPS daemon ended: {how}"),
                    false => tracing::error!(%gpu, "MPS daemon ended: {how}"),
                }
                self.supervisor.ended(Instant::now(), &gpu);
            }
            Event::ToldToEnd => {
                self.stop.cancel();
                self.supervisor.end_all();
            }
            Event::Time => {}
        }
        Ok(())
    }

    fn start_what_is_due(&mut self) {
        for gpu in self.supervisor.due(Instant::now()) {
            let daemon = self.program.clone();
            self.attended
                .spawn(daemon.run(self.layout.clone(), gpu, self.stop.clone()));
        }
    }
}

/// Waits until `due`, or for ever.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
