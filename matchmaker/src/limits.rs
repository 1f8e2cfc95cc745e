//! What one page may do to us.

use std::time::{Duration, Instant};

/// How many messages a page may send at once. A stock page sends some ten, then a ping every 30 s.
pub const BURST: u32 = 120;
/// How many more it may send each second.
pub const PER_SECOND: u32 = 20;
/// How many of its messages may be wrong before it is sent away: some pages send things that we don't know well,
/// but nothing that goes on and on.
pub const BAD_MESSAGES: u32 = 10;

/// A page's allowance: a bucket that fills with time, and a count of its mistakes.
#[derive(Debug)]
pub struct Allowance {
    left: f64,
    since: Instant,
    bad: u32,
}

impl Allowance {
    /// A full bucket.
    pub fn new(now: Instant) -> Self {
        Self {
            left: f64::from(BURST),
            since: now,
            bad: 0,
        }
    }

    /// Whether another message may be taken.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed: Duration = now.saturating_duration_since(self.since);
        self.since = now;
        self.left = (self.left + passed.as_secs_f64() * f64::from(PER_SECOND)).min(f64::from(BURST));
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }

    /// Counts a message that was wrong. Whether that may go on.
    pub fn forgive(&mut self) -> bool {
        self.bad += 1;
        self.bad < BAD_MESSAGES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_taken_then_a_steady_flow() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let taken = (0..1000).filter(|_| allowance.take(start)).count();
        assert_eq!(taken, BURST as usize);
        let later = start + Duration::from_secs(1);
        let taken = (0..1000).filter(|_| allowance.take(later)).count();
        assert_eq!(taken, PER_SECOND as usize);
    }

    #[test]
    fn the_tenth_mistake_is_the_last() {
        let mut allowance = Allowance::new(Instant::now());
        let forgiven = (0..20).filter(|_| allowance.forgive()).count();
        assert_eq!(forgiven, BAD_MESSAGES as usize - 1);
    }
}
