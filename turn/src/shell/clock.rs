//! The only place that reads the clocks.

use std::time::{Duration, Instant, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use crate::core::Now;

/// Both clocks, now.
#[allow(clippy::disallowed_methods, reason = "the one place that reads them")]
pub(super) fn read() -> Now {
    Now {
        instant: Instant::now(),
        // A clock before 1970 counts as 1970: every time-limited credential is then good, and none is refused early.
        unix: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    }
}

/// CLOCK_MONOTONIC, which programs in the kernel read too.
pub(super) fn monotonic() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

/// The CPU time that this machine takes to put this thread to sleep and wake it up, measured by some short naps.
pub fn wake_up_cost() -> Duration {
    let mut costs: [Duration; NAPS] = std::array::from_fn(|_| nap(NAP));
    costs.sort_unstable();
    costs[NAPS / 2]
}

/// Sleeps for so long, and says what CPU time that took.
pub fn nap(length: Duration) -> Duration {
    let before = cpu_time();
    std::thread::sleep(length);
    cpu_time().saturating_sub(before)
}

/// What this thread has had of it.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

const NAPS: usize = 15;
const NAP: Duration = Duration::from_micros(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waking_up_costs_something_and_less_than_a_nap() {
        let cost = wake_up_cost();
        assert!((Duration::from_nanos(100)..NAP).contains(&cost), "{cost:?}");
    }
}
