//! How often something may happen for one source, or whatever else it is counted by, in a table whose size never changes.
//!
//! Sources can be made up, so the table is a cache: each source may stand in one of [`WAYS`] places, and a new one takes
//! the place of the one that has been quiet for longest. A flood of invented sources thus makes the limit weaker for
//! those that it pushes out, and locks nobody out.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::time::{Duration, Instant};

use super::Source;

/// How often: `burst` times at once, then `per_second`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How often a second; 0 means without limit.
    pub per_second: u32,
    /// How often at once.
    pub burst: u32,
}

/// The table.
#[derive(Debug)]
pub struct Throttle<K = Source> {
    rate: Rate,
    seed: u64,
    places: Vec<Option<Place<K>>>,
}

#[derive(Debug, Clone, Copy)]
struct Place<K> {
    source: K,
    /// When nothing of the burst is used up any more.
    full_at: Instant,
}

impl<K: Copy + Eq + Hash> Throttle<K> {
    /// An empty table. `seed` is secret, so that nobody can choose sources that push out a certain other one.
    pub fn new(rate: Rate, seed: u64) -> Self {
        let size = if rate.per_second == 0 { 0 } else { SETS * WAYS };
        Self {
            rate,
            seed,
            places: vec![None; size],
        }
    }

    /// Whether it may happen once more now. Changes nothing.
    pub fn allows(&self, now: Instant, source: K) -> bool {
        let known = self
            .set_of(source)
            .iter()
            .flatten()
            .find(|place| place.source == source);
        known.is_none_or(|place| self.has_room(now, place.full_at))
    }

    /// Counts that it happens; false where it may not.
    pub fn take(&mut self, now: Instant, source: K) -> bool {
        let cost = match self.rate.per_second {
            0 => return true,
            rate => Duration::from_secs(1) / rate,
        };
        if !self.allows(now, source) {
            return false;
        }
        let place = self.place_for(source);
        let full_at = place
            .filter(|place| place.source == source)
            .map_or(now, |place| place.full_at.max(now));
        *place = Some(Place {
            source,
            full_at: full_at + cost,
        });
        true
    }

    fn has_room(&self, now: Instant, full_at: Instant) -> bool {
        let used = full_at.saturating_duration_since(now);
        used + Duration::from_secs(1) / self.rate.per_second
            <= Duration::from_secs(1) * self.rate.burst / self.rate.per_second
    }

    /// The source's own place, else a free one, else that of the source which has been quiet for longest.
    fn place_for(&mut self, source: K) -> &mut Option<Place<K>> {
        let range = self.range_of(source);
        let set = &mut self.places[range];
        let own = set
            .iter()
            .position(|place| place.is_some_and(|place| place.source == source));
        let index = own.unwrap_or_else(|| {
            let quiet = set
                .iter()
                .enumerate()
                .min_by_key(|(_, place)| place.map(|place| place.full_at));
            quiet.map_or(0, |(index, _)| index)
        });
        &mut set[index]
    }

    fn set_of(&self, source: K) -> &[Option<Place<K>>] {
        &self.places[self.range_of(source)]
    }

    fn range_of(&self, source: K) -> std::ops::Range<usize> {
        if self.places.is_empty() {
            return 0..0;
        }
        let mut hasher = DefaultHasher::new();
        self.seed.hash(&mut hasher);
        source.hash(&mut hasher);
        let set = hasher.finish() as usize % SETS;
        set * WAYS..(set + 1) * WAYS
    }
}

const SETS: usize = 512;
/// Places that a source may stand in.
pub const WAYS: usize = 8;

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "any instant serves as the beginning of a held clock"
)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_at_a_time() {
        let (mut throttle, now) = setup();
        let passed = (0..30).filter(|_| throttle.take(now, source(1))).count();
        assert_eq!(passed, 20);
        assert!(throttle.take(now, source(2)), "another source has its own");
        assert!(!throttle.allows(now + Duration::from_millis(99), source(1)));
        assert!(throttle.take(now + Duration::from_millis(100), source(1)));
        assert!(!throttle.take(now + Duration::from_millis(100), source(1)));
    }

    #[test]
    fn a_flood_of_sources_neither_grows_the_table_nor_locks_a_new_one_out() {
        let (mut throttle, now) = setup();
        let places = throttle.places.capacity();
        for n in 0..100_000_u32 {
            throttle.take(now, Source::of(std::net::Ipv4Addr::from(n).into()));
        }
        assert_eq!(throttle.places.capacity(), places);
        assert!(throttle.take(now, source(250)));
    }

    #[test]
    fn no_rate_is_no_limit() {
        let rate = Rate {
            per_second: 0,
            burst: 0,
        };
        let mut throttle = Throttle::new(rate, 7);
        let now = Instant::now();
        assert!((0..1000).all(|_| throttle.take(now, source(1)) && throttle.allows(now, source(1))));
    }

    fn setup() -> (Throttle, Instant) {
        let rate = Rate {
            per_second: 10,
            burst: 20,
        };
        (Throttle::new(rate, 7), Instant::now())
    }

    fn source(n: u8) -> Source {
        Source::of([203, 0, 113, n].into())
    }
}
