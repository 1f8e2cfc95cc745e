//! When to start which daemon. No I/O, no clock: what happens comes in with the time that it happens at.
//!
//! ```text
//!   Down until … ── due ──► Up ── ended ──► Down until …, longer each time
//!                            │ end_all
//!                            ▼
//!                         still Up ── ended ──► gone
//! ```

use std::collections::BTreeMap;
use std::time::Instant;

use penstock_core::ids::GpuUuid;

use crate::backoff;

/// All daemons. Owned and updated by one task.
#[derive(Debug)]
pub(super) struct Supervisor {
    daemons: BTreeMap<GpuUuid, Daemon>,
    ending: bool,
}

#[derive(Debug)]
struct Daemon {
    state: State,
    /// Ends in a row, each after too short a time.
    failures: u32,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Down { until: Instant },
    Up { since: Instant },
}

impl Supervisor {
    /// One daemon for each GPU, all to be started now.
    pub(super) fn new(gpus: impl IntoIterator<Item = GpuUuid>, now: Instant) -> Self {
        let daemon = || Daemon {
            state: State::Down { until: now },
            failures: 0,
        };
        Self {
            daemons: gpus.into_iter().map(|gpu| (gpu, daemon())).collect(),
            ending: false,
        }
    }

    /// The GPUs whose daemons are to be started now; they count as started.
    pub(super) fn due(&mut self, now: Instant) -> Vec<GpuUuid> {
        let waited = |state: State| matches!(state, State::Down { until } if until <= now);
        self.daemons
            .iter_mut()
            .filter(|(_, daemon)| waited(daemon.state))
            .map(|(gpu, daemon)| {
                daemon.state = State::Up { since: now };
                gpu.clone()
            })
            .collect()
    }

    /// A daemon ended, or could not be started.
    pub(super) fn ended(&mut self, now: Instant, gpu: &GpuUuid) {
        if self.ending {
            self.daemons.remove(gpu);
        } else if let Some(daemon) = self.daemons.get_mut(gpu) {
            daemon.ended(now);
        }
    }

    /// No daemon is started any more; those that are up are to be ended by the caller.
    pub(super) fn end_all(&mut self) {
        self.ending = true;
        self.daemons
            .retain(|_, daemon| matches!(daemon.state, State::Up { .. }));
    }

    /// When [`Supervisor::due`] has something next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let until = |daemon: &Daemon| match daemon.state {
            State::Down { until } => Some(until),
            State::Up { .. } => None,
        };
        self.daemons.values().filter_map(until).min()
    }

    /// Whether all was ended, and nothing is left.
    pub(super) fn is_over(&self) -> bool {
        self.ending && self.daemons.is_empty()
    }
}

impl Daemon {
    fn ended(&mut self, now: Instant) {
        let was_well = match self.state {
            State::Up { since } => now.saturating_duration_since(since) >= backoff::WELL_AFTER,
            State::Down { .. } => false,
        };
        self.failures = if was_well {
            1
        } else {
            self.failures.saturating_add(1)
        };
        self.state = State::Down {
            until: now + backoff::delay(self.failures),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_gpu_gets_a_daemon_at_once_and_only_one() {
        let now = Instant::now();
        let mut supervisor = Supervisor::new([gpu("GPU-a"), gpu("GPU-b")], now);
        assert_eq!(supervisor.due(now), [gpu("GPU-a"), gpu("GPU-b")]);
        assert_eq!(supervisor.due(now), []);
        assert_eq!(supervisor.next_due(), None);
    }

    #[test]
    fn a_daemon_that_keeps_dying_waits_longer_each_time_and_no_other_waits_with_it() {
        let mut now = Instant::now();
        let mut supervisor = Supervisor::new([gpu("GPU-a"), gpu("GPU-b")], now);
        let mut waits = Vec::new();
        for _ in 0..4 {
            supervisor.due(now);
            supervisor.ended(now, &gpu("GPU-a"));
            let next = supervisor.next_due().unwrap();
            waits.push((next - now).as_millis());
            now = next;
        }
        assert_eq!(waits, [500, 1000, 2000, 4000]);
        assert_eq!(supervisor.due(now), [gpu("GPU-a")]);
    }

    #[test]
    fn a_daemon_that_was_well_for_long_starts_again_soon() {
        let now = Instant::now();
        let mut supervisor = Supervisor::new([gpu("GPU-a")], now);
        supervisor.due(now);
        supervisor.ended(now, &gpu("GPU-a"));
        let again = now + Duration::from_secs(1);
        supervisor.due(again);
        let much_later = again + Duration::from_secs(3600);
        supervisor.ended(much_later, &gpu("GPU-a"));
        assert_eq!(supervisor.next_due(), Some(much_later + backoff::delay(1)));
    }

    #[test]
    fn nothing_starts_again_once_all_are_to_end() {
        let now = Instant::now();
        let mut supervisor = Supervisor::new([gpu("GPU-a"), gpu("GPU-b")], now);
        supervisor.due(now);
        supervisor.ended(now, &gpu("GPU-a"));
        supervisor.end_all();
        assert!(!supervisor.is_over());
        supervisor.ended(now, &gpu("GPU-b"));
        assert!(supervisor.is_over());
        assert_eq!(supervisor.due(now + Duration::from_secs(60)), []);
    }

    fn gpu(name: &str) -> GpuUuid {
        GpuUuid::new(name).unwrap()
    }
}
