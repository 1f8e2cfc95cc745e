//! A token bucket that several shards may draw from at once, without a lock.
//!
//! It is kept as the time at which it will be full again (the generic cell rate algorithm of ITU-T I.371): one number,
//! which a packet moves forward by what it costs.
//!
//! ```text
//!   now          full again        now + 1 s
//!    ├───── spent ────┤───── left ─────┤
//! ```

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A bucket that holds what flows in within one second.
#[derive(Debug)]
pub struct Bucket {
    bytes_per_second: NonZeroU64,
    began: Instant,
    full_at_ns: AtomicU64,
}

impl Bucket {
    /// A full one, at `now`.
    pub fn new(bytes_per_second: NonZeroU64, now: Instant) -> Self {
        Self {
            bytes_per_second,
            began: now,
            full_at_ns: AtomicU64::new(0),
        }
    }

    /// Takes `bytes` out, if they are in it. What is larger than the bucket is let through when it is full.
    #[inline]
    pub fn take(&self, now: Instant, bytes: usize) -> bool {
        let now = self.since_began_ns(now);
        let cost = self.cost_ns(bytes);
        // Relaxed: only the number itself is shared.
        let spent = |full_at: u64| {
            let spent = full_at.saturating_sub(now);
            (spent == 0 || spent + cost <= SECOND_NS).then_some(now + spent + cost)
        };
        self.full_at_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spent)
            .is_ok()
    }

    /// Puts `bytes` back that were taken out.
    pub fn put_back(&self, bytes: usize) {
        // What was taken has moved the number forward by as much, so it is not less.
        self.full_at_ns.fetch_sub(self.cost_ns(bytes), Ordering::Relaxed);
    }

    /// Whether nothing is missing.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at_ns.load(Ordering::Relaxed) <= self.since_began_ns(now)
    }

    fn since_began_ns(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_nanos() as u64
    }

    fn cost_ns(&self, bytes: usize) -> u64 {
        bytes as u64 * SECOND_NS / self.bytes_per_second
    }
}

const SECOND_NS: u64 = 1_000_000_000;

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "any instant serves as the beginning of a held clock"
)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_second_of_bytes_goes_at_once_and_then_as_they_flow_in() {
        let (bucket, now) = setup(10_000);
        let taken = (0..20).filter(|_| bucket.take(now, 1000)).count();
        assert_eq!(taken, 10);
        let later = now + Duration::from_millis(99);
        assert!(!bucket.take(later, 1000));
        assert!(bucket.take(now + Duration::from_millis(100), 1000));
        assert!(!bucket.take(now + Duration::from_millis(100), 1000));
    }

    #[test]
    fn over_a_minute_no_more_than_the_rate_gets_through() {
        let (bucket, now) = setup(50_000);
        let passed = (0..60_000_u64)
            .filter(|ms| bucket.take(now + Duration::from_millis(*ms), 1200))
            .count();
        let most = 50_000 * 61 / 1200;
        assert!((most - 60..=most).contains(&passed), "{passed}");
    }

    #[test]
    fn a_packet_larger_than_the_bucket_passes_when_it_is_full() {
        let (bucket, now) = setup(100);
        assert!(bucket.take(now, 1200));
        assert!(!bucket.take(now + Duration::from_millis(11_999), 1200));
        assert!(bucket.take(now + Duration::from_secs(12), 1200));
    }

    #[test]
    fn what_is_put_back_was_never_taken() {
        let (bucket, now) = setup(1000);
        assert!(bucket.is_full(now) && bucket.take(now, 600) && !bucket.is_full(now));
        assert!(bucket.take(now, 400) && !bucket.take(now, 1));
        bucket.put_back(400);
        assert!(bucket.take(now, 400) && !bucket.take(now, 1));
        bucket.put_back(400);
        bucket.put_back(600);
        assert!(bucket.is_full(now));
        assert!(bucket.take(now, 5000), "larger than the bucket");
        bucket.put_back(5000);
        assert!(bucket.is_full(now));
    }

    #[test]
    fn it_is_full_again_when_what_was_spent_has_flowed_in() {
        let (bucket, now) = setup(1000);
        assert!(bucket.take(now, 500));
        assert!(!bucket.is_full(now + Duration::from_millis(499)));
        assert!(bucket.is_full(now + Duration::from_millis(500)));
    }

    fn setup(bytes_per_second: u64) -> (Bucket, Instant) {
        let now = Instant::now();
        (Bucket::new(NonZeroU64::new(bytes_per_second).unwrap(), now), now)
    }
}
