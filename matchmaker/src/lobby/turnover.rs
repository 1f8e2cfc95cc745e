//! How fast places have become free lately: what the expected wait is guessed from.
//!
//! Only the time in which somebody waited counts. While nobody does, how many are placed says how many came, not how
//! many places there were.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far back is looked.
pub(super) const WINDOW: Duration = Duration::from_secs(600);
/// Fewer placed players say nothing about the next.
pub(super) const AT_LEAST: u32 = 3;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Turnover {
    /// One for each [`SLOT`] in which anything was seen, the oldest first.
    slots: VecDeque<Slot>,
    last: Option<Instant>,
}

#[derive(Debug)]
struct Slot {
    since: Instant,
    waited: Duration,
    placed: u32,
}

impl Turnover {
    /// Time has passed, in which somebody waited or nobody did.
    pub(super) fn pass(&mut self, now: Instant, somebody_waited: bool) {
        let before = self.last.replace(now).unwrap_or(now);
        while self
            .slots
            .front()
            .is_some_and(|slot| now.saturating_duration_since(slot.since) > WINDOW)
        {
            self.slots.pop_front();
        }
        if somebody_waited {
            self.slot(now).waited += now.saturating_duration_since(before);
        }
    }

    /// One who waited got a place.
    pub(super) fn placed(&mut self, now: Instant) {
        self.slot(now).placed += 1;
    }

    /// How long the player at `position`, from 1, may expect to wait; `None` where too little was seen.
    pub(super) fn expected_wait(&self, position: u32) -> Option<Duration> {
        let placed: u32 = self.slots.iter().map(|slot| slot.placed).sum();
        let waited: Duration = self.slots.iter().map(|slot| slot.waited).sum();
        (placed >= AT_LEAST).then(|| waited.saturating_mul(position) / placed)
    }

    /// Whether somebody was placed lately.
    pub(super) fn placed_lately(&self) -> bool {
        self.slots.iter().any(|slot| slot.placed > 0)
    }

    fn slot(&mut self, now: Instant) -> &mut Slot {
        let fits = |slot: &Slot| now.saturating_duration_since(slot.since) < SLOT;
        if !self.slots.back().is_some_and(fits) {
            let (waited, placed) = (Duration::ZERO, 0);
            self.slots.push_back(Slot {
                since: now,
                waited,
                placed,
            });
        }
        let last = self.slots.len() - 1;
        &mut self.slots[last]
    }
}

const SLOT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_every_minute_means_three_minutes_for_the_third() {
        let (mut turnover, mut now) = (Turnover::default(), Instant::now());
        for minute in 0..4 {
            let expected = (minute >= 3).then_some(Duration::from_secs(180));
            assert_eq!(turnover.expected_wait(3), expected, "after {minute} minutes");
            turnover.pass(now, true);
            now += Duration::from_secs(60);
            turnover.pass(now, true);
            turnover.placed(now);
        }
    }

    #[test]
    fn time_in_which_nobody_waits_is_left_out() {
        let (mut turnover, mut now) = (Turnover::default(), Instant::now());
        turnover.pass(now, false);
        for _ in 0..3 {
            now += Duration::from_secs(50);
            turnover.pass(now, false);
            now += Duration::from_secs(10);
            turnover.pass(now, true);
            turnover.placed(now);
        }
        assert_eq!(turnover.expected_wait(1), Some(Duration::from_secs(10)));
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let (mut turnover, mut now) = (Turnover::default(), Instant::now());
        turnover.pass(now, true);
        for _ in 0..9 {
            now += Duration::from_secs(1);
            turnover.pass(now, true);
            turnover.placed(now);
        }
        assert_eq!(turnover.expected_wait(1), Some(Duration::from_secs(1)));
        now += WINDOW + SLOT;
        turnover.pass(now, false);
        assert_eq!(turnover.expected_wait(1), None);
    }
}
