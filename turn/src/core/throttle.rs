//! How often something may happen for one source, or whatever else it is counted by, in a table whose size never changes.
//!
//! Sources can be made up, so the table is a cache: each source may stand in one of [`WAYS`] places, and a new one takes
//! the place of the one that has been quiet for longest. A flood of invented sources thus makes the limit weaker for
//! those that it pushes out, and locks nobody out.
//!
//! All shards share one table, since a source chooses its shard by its port. Each set of places has a lock of its own, held
//! for a look at [`WAYS`] places, so that shards hardly meet but over one and the same source.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// The table; a clone is another handle to the same.
#[derive(Debug, Clone)]
pub struct Throttle<K = Source>(Arc<Table<K>>);

#[derive(Debug)]
struct Table<K> {
    rate: Rate,
    seed: u64,
    sets: Box<[Mutex<Set<K>>]>,
}

/// Where each source of one hash may stand.
type Set<K> = [Option<Place<K>>; WAYS];

#[derive(Debug, Clone, Copy)]
struct Place<K> {
    source: K,
    /// When nothing of the burst is used up any more.
    full_at: Instant,
}

impl<K: Copy + Eq + Hash> Throttle<K> {
    /// An empty table. `seed` is secret, so that nobody can choose sources that push out a certain other one.
    pub fn new(rate: Rate, seed: u64) -> Self {
        let size = if rate.per_second == 0 { 0 } else { SETS };
        let sets = (0..size).map(|_| Mutex::default()).collect();
        Self(Arc::new(Table { rate, seed, sets }))
    }

    /// Whether it may happen once more now. Changes nothing.
    pub fn allows(&self, now: Instant, source: K) -> bool {
        let Some(set) = self.0.set_of(source) else {
            return true;
        };
        self.0.has_room(now, full_at(&set, now, source))
    }

    /// Counts that it happens; false where it may not.
    pub fn take(&self, now: Instant, source: K) -> bool {
        let Some(mut set) = self.0.set_of(source) else {
            return true;
        };
        let full_at = full_at(&set, now, source);
        if !self.0.has_room(now, full_at) {
            return false;
        }
        *place_for(&mut set, source) = Some(Place {
            source,
            full_at: full_at + self.0.rate.cost(),
        });
        true
    }
}

impl Rate {
    fn cost(self) -> Duration {
        Duration::from_secs(1) / self.per_second
    }
}

impl<K: Copy + Eq + Hash> Table<K> {
    /// `None` where there is no limit. No code under the lock stops half-way, so what a panicked shard left is whole.
    fn set_of(&self, source: K) -> Option<MutexGuard<'_, Set<K>>> {
        let mut hasher = DefaultHasher::new();
        self.seed.hash(&mut hasher);
        source.hash(&mut hasher);
        let set = self.sets.get(hasher.finish() as usize % SETS)?;
        Some(set.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn has_room(&self, now: Instant, full_at: Instant) -> bool {
        let used = full_at.saturating_duration_since(now);
        used + self.rate.cost() <= Duration::from_secs(1) * self.rate.burst / self.rate.per_second
    }
}

/// When a source's burst is whole again; it is now for one that is not known.
fn full_at<K: Copy + Eq>(set: &Set<K>, now: Instant, source: K) -> Instant {
    let known = set.iter().flatten().find(|place| place.source == source);
    known.map_or(now, |place| place.full_at.max(now))
}

/// The source's own place, else a free one, else that of the source which has been quiet for longest.
fn place_for<K: Copy + Eq>(set: &mut Set<K>, source: K) -> &mut Option<Place<K>> {
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
        let (throttle, now) = setup();
        let passed = (0..30).filter(|_| throttle.take(now, source(1))).count();
        assert_eq!(passed, 20);
        assert!(throttle.take(now, source(2)), "another source has its own");
        assert!(!throttle.allows(now + Duration::from_millis(99), source(1)));
        assert!(throttle.take(now + Duration::from_millis(100), source(1)));
        assert!(!throttle.take(now + Duration::from_millis(100), source(1)));
    }

    #[test]
    fn a_flood_of_sources_neither_grows_the_table_nor_locks_a_new_one_out() {
        let (throttle, now) = setup();
        let counted = allocation_counter::measure(|| {
            for n in 0..100_000_u32 {
                throttle.take(now, Source::of(std::net::Ipv4Addr::from(n).into()));
            }
        });
        assert_eq!(counted.count_total, 0);
        assert!(throttle.take(now, source(250)));
    }

    #[test]
    fn shards_share_one_table() {
        let (throttle, now) = setup();
        let passed = |throttle: Throttle| (0..15).filter(|_| throttle.take(now, source(1))).count();
        let shards = [throttle.clone(), throttle]
            .map(|throttle| std::thread::scope(|scope| scope.spawn(|| passed(throttle)).join().unwrap()));
        assert_eq!(shards, [15, 5]);
    }

    #[test]
    fn no_rate_is_no_limit() {
        let rate = Rate {
            per_second: 0,
            burst: 0,
        };
        let throttle = Throttle::new(rate, 7);
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
