//! When to pause before looking for packets again. On a busy server going to sleep and being woken costs more than a
//! burst of packets does, so bursts are gathered, as a network card gathers interrupts.
//!
//! ```text
//!  arrivals in the last window:   few ──► wait for the next one; it is relayed at once
//!                                 many ─► pause for PAUSE, then take all that came meanwhile
//! ```

use std::time::{Duration, Instant};

/// Decides from what came in the last [`WINDOW`].
#[derive(Debug)]
pub struct Gathering {
    since: Instant,
    arrivals: u32,
    is_busy: bool,
}

impl Gathering {
    /// Of a server on which nothing has come in yet.
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            arrivals: 0,
            is_busy: false,
        }
    }

    /// Takes note that a round, which `began` when `arrivals` sockets had something, is over `now`, and says how long
    /// to pause. A round that took long needs no pause: enough has come meanwhile.
    pub fn pause(&mut self, began: Instant, now: Instant, arrivals: usize) -> Option<Duration> {
        self.arrivals = self.arrivals.saturating_add(arrivals as u32);
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= WINDOW {
            let per_pause = f64::from(self.arrivals) * PAUSE.as_secs_f64() / elapsed.as_secs_f64();
            let enough = if self.is_busy {
                TO_STAY_BUSY
            } else {
                TO_BECOME_BUSY
            };
            self.is_busy = per_pause >= enough;
            (self.since, self.arrivals) = (now, 0);
        }
        let left = PAUSE.checked_sub(now.saturating_duration_since(began))?;
        self.is_busy.then_some(left)
    }
}

/// The latency that is given for it, at most: so often are packets looked for on a busy server. A video frame takes 16 milliseconds to come round again.
pub const PAUSE: Duration = Duration::from_micros(500);
const WINDOW: Duration = Duration::from_millis(4);
/// So many arrivals in a pause make it worth while: each would have been a wake-up of its own.
const TO_BECOME_BUSY: f64 = 3.0;
/// Fewer, since several packets at one socket are one arrival after a pause.
const TO_STAY_BUSY: f64 = 1.2;

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "any instant serves as the beginning of a held clock"
)]
mod tests {
    use super::*;

    #[test]
    fn a_server_with_few_packets_never_pauses() {
        let (mut gathering, began) = setup();
        for ms in 0..100 {
            assert_eq!(pause(&mut gathering, began + Duration::from_millis(ms), 1), None);
        }
    }

    #[test]
    fn a_busy_server_pauses_and_an_idle_one_stops_pausing() {
        let (mut gathering, began) = setup();
        let at = |us| began + Duration::from_micros(us);
        for us in (0..8000).step_by(100) {
            pause(&mut gathering, at(us), 1);
        }
        assert_eq!(pause(&mut gathering, at(8100), 1), Some(PAUSE));
        // After each pause two sockets have something: fewer wake-ups than there were, and still worth it.
        for us in (8500..20_000).step_by(500) {
            assert_eq!(pause(&mut gathering, at(us), 2), Some(PAUSE));
        }
        for us in (20_000..28_000).step_by(2000) {
            pause(&mut gathering, at(us), 1);
        }
        assert_eq!(pause(&mut gathering, at(30_000), 1), None);
    }

    #[test]
    fn a_long_round_is_followed_by_a_short_pause_or_none() {
        let (mut gathering, began) = setup();
        assert_eq!(gathering.pause(began, began + WINDOW, 1000), None);
        let (next, took) = (began + WINDOW, Duration::from_micros(200));
        assert_eq!(gathering.pause(next, next + took, 10), Some(PAUSE - took));
        assert_eq!(gathering.pause(next, next + 2 * PAUSE, 10), None);
    }

    fn setup() -> (Gathering, Instant) {
        let now = Instant::now();
        (Gathering::new(now), now)
    }

    fn pause(gathering: &mut Gathering, at: Instant, arrivals: usize) -> Option<Duration> {
        gathering.pause(at, at, arrivals)
    }
}
