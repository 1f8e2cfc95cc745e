//! When to pause before looking for packets again. Going to sleep and being woken can cost as much as relaying a burst (20
//! microseconds were measured in a nested virtual machine), so a busy server gathers bursts, as a network card gathers
//! interrupts.
//!
//! ```text
//!  wake-ups in the last window:   cost little ──► wait for the next packet; it is relayed at once
//!                                 cost much ────► pause, then take all that came meanwhile
//! ```
//!
//! The pause is as long as it takes for waking up to be a small part of the work, so it is shorter where waking up is
//! cheap, and where there is much to do.

use std::time::{Duration, Instant};

/// Decides from the rounds of the last [`WINDOW`].
#[derive(Debug)]
pub struct Gathering {
    /// The CPU time that it takes to go to sleep and be woken, of late.
    wake_up: Duration,
    since: Instant,
    arrivals: u32,
    work: Duration,
    pause: Option<Duration>,
}

/// What a server did between two times of waiting.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// When there was something to do.
    pub began: Instant,
    /// When it was done.
    pub ended: Instant,
    /// How many sockets had something.
    pub arrivals: usize,
    /// Whether one of them has more.
    pub is_more: bool,
}

impl Gathering {
    /// Of a server on which nothing has come in yet, on a machine where a wake-up takes so much CPU time.
    pub fn new(now: Instant, wake_up: Duration) -> Self {
        Self {
            wake_up,
            since: now,
            arrivals: 0,
            work: Duration::ZERO,
            pause: None,
        }
    }

    /// Takes note of a round, and says how long to pause after it. A round that took long needs no pause: enough has
    /// come meanwhile. Neither does one that left something.
    pub fn pause(&mut self, round: Round) -> Option<Duration> {
        let took = round.ended.saturating_duration_since(round.began);
        self.arrivals = self.arrivals.saturating_add(round.arrivals as u32);
        self.work += took;
        let elapsed = round.ended.saturating_duration_since(self.since);
        if elapsed >= WINDOW {
            self.pause = self.decide(elapsed);
            (self.since, self.arrivals, self.work) = (round.ended, 0, Duration::ZERO);
        }
        self.pause.filter(|_| !round.is_more)?.checked_sub(took)
    }

    /// Takes note of the CPU time that a pause took. A core that others keep awake meanwhile is quick to come back to.
    pub fn paused(&mut self, cost: Duration) {
        self.wake_up = (self.wake_up * (OF_LATE - 1) + cost) / OF_LATE;
    }

    fn decide(&self, elapsed: Duration) -> Option<Duration> {
        let wake_up = self.wake_up.as_secs_f64();
        let of_all = f64::from(self.arrivals) * wake_up / elapsed.as_secs_f64();
        let enough = if self.pause.is_some() { TO_GO_ON } else { TO_BEGIN };
        let busy = self.work.as_secs_f64() / elapsed.as_secs_f64();
        let pause = wake_up / (busy * OF_WORK);
        (of_all >= enough).then(|| Duration::from_secs_f64(pause.min(LONGEST.as_secs_f64())))
    }
}

/// The latency that is given for it, at most. A video frame takes 16 milliseconds to come round again, and
/// sockets' buffers have to hold what comes meanwhile.
pub const LONGEST: Duration = Duration::from_millis(1);
const WINDOW: Duration = Duration::from_millis(10);
/// How many pauses the cost of waking up is an average of.
const OF_LATE: u32 = 64;
/// The part of a CPU that waking up for each arrival has to take before pauses are made.
const TO_BEGIN: f64 = 0.05;
/// And to go on with them: less, since several packets at one socket are one arrival after a pause.
const TO_GO_ON: f64 = 0.015;
/// What waking up may cost beside the work itself.
const OF_WORK: f64 = 0.08;

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "any instant serves as the beginning of a held clock"
)]
mod tests {
    use super::*;

    const WAKE_UP: Duration = Duration::from_micros(10);

    #[test]
    fn a_server_with_few_packets_never_pauses() {
        let mut world = World::new(WAKE_UP);
        for _ in 0..100 {
            assert_eq!(
                world.round(Duration::from_millis(1), Duration::from_micros(5)),
                None
            );
        }
    }

    #[test]
    fn a_busy_server_pauses_and_one_with_little_to_do_stops_pausing() {
        let mut world = World::new(WAKE_UP);
        // A tenth of the CPU goes to waking up, and 5 % to work.
        assert_eq!(
            world.rounds(101, 100, 5),
            Some(LONGEST - Duration::from_micros(5))
        );
        // Fewer rounds than there were, and still worth it.
        assert!(world.rounds(20, 600, 20).is_some());
        assert_eq!(world.rounds(20, 1000, 20), None);
    }

    #[test]
    fn pauses_are_shorter_where_there_is_more_to_do_and_where_waking_up_is_cheap() {
        let mut world = World::new(WAKE_UP);
        // 40 % of the CPU works: 10 µs are 8 % of that in 312 µs, from the round's beginning on.
        let two_fifths = world.rounds(201, 50, 20).unwrap();
        assert!((290..=294).contains(&two_fifths.as_micros()), "{two_fifths:?}");
        let mut world = World::new(WAKE_UP / 4);
        let cheap = world.rounds(1001, 10, 4).unwrap();
        assert!((73..=75).contains(&cheap.as_micros()), "{cheap:?}");
    }

    #[test]
    fn pauses_follow_what_waking_up_costs_now() {
        let mut world = World::new(WAKE_UP);
        let before = world.rounds(201, 50, 20).unwrap();
        for _ in 0..5 * OF_LATE {
            world.gathering.paused(WAKE_UP / 2);
        }
        let after = world.rounds(201, 50, 20).unwrap();
        assert!(
            (135..=140).contains(&after.as_micros()),
            "{before:?}, then {after:?}"
        );
    }

    #[test]
    fn a_round_that_took_long_or_left_something_is_followed_by_no_pause() {
        let mut world = World::new(WAKE_UP);
        assert!(world.rounds(101, 100, 5).is_some());
        let mut round = world.next(Duration::from_micros(100), Duration::from_micros(5));
        round.is_more = true;
        assert_eq!(world.gathering.pause(round), None);
        assert_eq!(world.round(Duration::from_micros(100), 2 * LONGEST), None);
        assert!(
            world
                .round(Duration::from_micros(100), Duration::from_micros(5))
                .is_some()
        );
    }

    struct World {
        now: Instant,
        gathering: Gathering,
    }

    impl World {
        fn new(wake_up: Duration) -> Self {
            let now = Instant::now();
            Self {
                now,
                gathering: Gathering::new(now, wake_up),
            }
        }

        /// A round for one arrival that begins so long after the one before, and takes so long.
        fn next(&mut self, after: Duration, took: Duration) -> Round {
            self.now += after;
            Round {
                began: self.now,
                ended: self.now + took,
                arrivals: 1,
                is_more: false,
            }
        }

        fn round(&mut self, after: Duration, took: Duration) -> Option<Duration> {
            let round = self.next(after, took);
            self.gathering.pause(round)
        }

        /// So many rounds, and what the last came to.
        fn rounds(&mut self, count: u32, every_us: u64, took_us: u64) -> Option<Duration> {
            let (every, took) = (Duration::from_micros(every_us), Duration::from_micros(took_us));
            (0..count).map(|_| self.round(every, took)).last().flatten()
        }
    }
}
