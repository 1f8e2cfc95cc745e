//! When to start which daemon. No I/O, no clock: what happens comes in with the time that it happens at.
//!
//! ```text
//!   GPU found ─► Down until … ── due ──► Up ── ended ──► Down until …, longer each time
//!                                         │ its GPU is gone, or end_all
//!                                         ▼
//!                                      still Up ── ended ──► gone
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use penstock_core::ids::GpuUuid;

use crate::backoff;

/// All daemons. Owned and updated by one task.
#[derive(Debug, Default)]
pub(super) struct Supervisor {
    daemons: BTreeMap<GpuUuid, Daemon>,
    ending: bool,
}

#[derive(Debug)]
struct Daemon {
    state: State,
    /// Ends in a row, each after too short a time.
    failures: u32,
    /// Its GPU is gone: it was told to end, and is not started again.
    leaving: bool,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Down { until: Instant },
    Up { since: Instant },
}

impl Supervisor {
    /// Takes in the GPUs that there are: those that are new get a daemon. Gives those that are gone and whose daemons
    /// the caller is to end. A GPU that comes back while its daemon ends gets another one after that.
    pub(super) fn set_gpus(&mut self, now: Instant, gpus: &BTreeSet<GpuUuid>) -> Vec<GpuUuid> {
        if self.ending {
            return Vec::new();
        }
        for gpu in gpus {
            let daemon = self.daemons.entry(gpu.clone()).or_insert(Daemon {
                state: State::Down { until: now },
                failures: 0,
                leaving: false,
            });
            daemon.leaving = false;
        }
        self.daemons
            .retain(|gpu, daemon| gpus.contains(gpu) || daemon.is_up());
        let is_gone = |(gpu, daemon): &(&GpuUuid, &mut Daemon)| !gpus.contains(*gpu) && !daemon.leaving;
        let gone = self.daemons.iter_mut().filter(is_gone);
        gone.map(|(gpu, daemon)| {
            daemon.leaving = true;
            gpu.clone()
        })
        .collect()
    }

    /// Whether a GPU has, or is to have, a daemon.
    pub(super) fn serves(&self, gpu: &GpuUuid) -> bool {
        self.daemons.contains_key(gpu)
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
        match self.daemons.get_mut(gpu) {
            Some(daemon) if !self.ending && !daemon.leaving => daemon.ended(now),
            _ => drop(self.daemons.remove(gpu)),
        }
    }

    /// No daemon is started any more; those that are up are to be ended by the caller.
    pub(super) fn end_all(&mut self) {
        self.ending = true;
        self.daemons.retain(|_, daemon| daemon.is_up());
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
    fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

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
        let mut supervisor = supervisor(&["GPU-a", "GPU-b"], now);
        assert_eq!(supervisor.due(now), [gpu("GPU-a"), gpu("GPU-b")]);
        assert_eq!(supervisor.due(now), []);
        assert_eq!(supervisor.next_due(), None);
    }

    #[test]
    fn a_daemon_that_keeps_dying_waits_longer_each_time_and_no_other_waits_with_it() {
        let mut now = Instant::now();
        let mut supervisor = supervisor(&["GPU-a", "GPU-b"], now);
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
        let mut supervisor = supervisor(&["GPU-a"], now);
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
        let mut supervisor = supervisor(&["GPU-a", "GPU-b"], now);
        supervisor.due(now);
        supervisor.ended(now, &gpu("GPU-a"));
        supervisor.end_all();
        assert!(!supervisor.is_over());
        supervisor.ended(now, &gpu("GPU-b"));
        assert!(supervisor.is_over());
        assert_eq!(supervisor.due(now + Duration::from_secs(60)), []);
    }

    #[test]
    fn gpus_come_and_go_and_no_other_daemon_is_touched() {
        let now = Instant::now();
        let mut supervisor = supervisor(&["GPU-a", "GPU-b"], now);
        supervisor.due(now);
        assert_eq!(
            supervisor.set_gpus(now, &set(&["GPU-b", "GPU-c"])),
            [gpu("GPU-a")]
        );
        assert_eq!(
            supervisor.set_gpus(now, &set(&["GPU-b", "GPU-c"])),
            [],
            "told once"
        );
        assert_eq!(supervisor.due(now), [gpu("GPU-c")]);
        supervisor.ended(now, &gpu("GPU-a"));
        assert!(!supervisor.serves(&gpu("GPU-a")));
        assert_eq!(supervisor.next_due(), None, "it is not started again");
        // One that only waits for its start is forgotten at once.
        supervisor.ended(now, &gpu("GPU-c"));
        assert_eq!(supervisor.set_gpus(now, &set(&["GPU-b"])), []);
        assert!(!supervisor.serves(&gpu("GPU-c")));
    }

    #[test]
    fn a_gpu_that_comes_back_while_its_daemon_ends_gets_another_one() {
        let now = Instant::now();
        let mut supervisor = supervisor(&["GPU-a"], now);
        supervisor.due(now);
        assert_eq!(supervisor.set_gpus(now, &set(&[])), [gpu("GPU-a")]);
        assert_eq!(supervisor.set_gpus(now, &set(&["GPU-a"])), []);
        supervisor.ended(now, &gpu("GPU-a"));
        let next = supervisor.next_due().unwrap();
        assert_eq!(supervisor.due(next), [gpu("GPU-a")]);
    }

    fn supervisor(gpus: &[&str], now: Instant) -> Supervisor {
        let mut supervisor = Supervisor::default();
        assert_eq!(supervisor.set_gpus(now, &set(gpus)), []);
        supervisor
    }

    fn set(gpus: &[&str]) -> BTreeSet<GpuUuid> {
        gpus.iter().copied().map(gpu).collect()
    }

    fn gpu(name: &str) -> GpuUuid {
        GpuUuid::new(name).unwrap()
    }
}
