//! All allocations: found by client, by relay, or by what ends next; bounded overall and per user.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use ahash::RandomState;
use rand::{Rng, RngExt as _};

use super::allocation::Allocation;
use super::{FiveTuple, RelayId};

/// How many allocations there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub total: usize,
    /// Of one user, by [`User::who`](super::auth::User::who).
    pub per_user: usize,
}

/// Why there is no room for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// The server is full.
    Server,
    /// The user has as many as one may have.
    User,
}

/// The table.
#[derive(Debug)]
pub struct Table {
    limits: Limits,
    slots: Vec<Option<Entry>>,
    free: Vec<RelayId>,
    /// Looked up for every packet: a quick hash, keyed so that nobody can make clients collide.
    by_client: HashMap<FiveTuple, RelayId, RandomState>,
    by_user: HashMap<Arc<str>, usize>,
    ends: BTreeSet<(Instant, RelayId)>,
    /// The first of `ends`, at hand since every packet asks for it.
    next_end: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    allocation: Allocation,
    ends: Instant,
}

impl Table {
    /// An empty one.
    pub fn new(limits: Limits, rng: &mut impl Rng) -> Self {
        let [a, b, c, d] = rng.random();
        Self {
            limits,
            slots: Vec::new(),
            free: Vec::new(),
            by_client: HashMap::with_hasher(RandomState::with_seeds(a, b, c, d)),
            by_user: HashMap::new(),
            ends: BTreeSet::new(),
            next_end: None,
        }
    }

    /// How many allocations there are.
    pub fn len(&self) -> usize {
        self.by_client.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_client.is_empty()
    }

    /// Whether there is room for another of `who`.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn room_for(&self, who: &str) -> Result<(), NoRoom> {
        if self.len() >= self.limits.total {
            return Err(NoRoom::Server);
        }
        if self
            .by_user
            .get(who)
            .is_some_and(|count| *count >= self.limits.per_user)
        {
            return Err(NoRoom::User);
        }
        Ok(())
    }

    /// Adds an allocation that lives until `ends`. Its client must have none; see [`Self::of_client`].
    pub fn insert(&mut self, allocation: Allocation, ends: Instant) -> RelayId {
        let relay = self.free.pop().unwrap_or_else(|| self.new_slot());
        self.by_client.insert(allocation.client, relay);
        *self.by_user.entry(allocation.user.who.clone()).or_default() += 1;
        self.ends.insert((ends, relay));
        self.find_next_end();
        self.slots[relay.0 as usize] = Some(Entry { allocation, ends });
        relay
    }

    /// Takes an allocation out.
    pub fn remove(&mut self, relay: RelayId) -> Option<Allocation> {
        let Entry { allocation, ends } = self.slots.get_mut(relay.0 as usize)?.take()?;
        self.free.push(relay);
        self.by_client.remove(&allocation.client);
        self.ends.remove(&(ends, relay));
        self.find_next_end();
        if let Some(count) = self.by_user.get_mut(&allocation.user.who) {
            *count -= 1;
            if *count == 0 {
                self.by_user.remove(&allocation.user.who);
            }
        }
        Some(allocation)
    }

    /// The allocation behind a relay.
    pub fn get(&self, relay: RelayId) -> Option<&Allocation> {
        Some(&self.slots.get(relay.0 as usize)?.as_ref()?.allocation)
    }

    /// The allocation behind a relay.
    pub fn get_mut(&mut self, relay: RelayId) -> Option<&mut Allocation> {
        Some(&mut self.slots.get_mut(relay.0 as usize)?.as_mut()?.allocation)
    }

    /// A client's allocation.
    pub fn of_client(&self, client: &FiveTuple) -> Option<(RelayId, &Allocation)> {
        let relay = *self.by_client.get(client)?;
        Some((relay, self.get(relay)?))
    }

    /// Lets an allocation live until `ends`.
    pub fn set_end(&mut self, relay: RelayId, ends: Instant) {
        if let Some(Some(entry)) = self.slots.get_mut(relay.0 as usize) {
            self.ends.remove(&(entry.ends, relay));
            self.ends.insert((ends, relay));
            entry.ends = ends;
        }
        self.find_next_end();
    }

    /// When the next one ends.
    pub fn next_end(&self) -> Option<Instant> {
        self.next_end
    }

    /// One that is over at `now`.
    #[inline]
    pub fn over(&self, now: Instant) -> Option<RelayId> {
        if self.next_end? > now {
            return None;
        }
        self.ends.first().map(|(_, relay)| *relay)
    }

    fn find_next_end(&mut self) {
        self.next_end = self.ends.first().map(|(ends, _)| *ends);
    }

    fn new_slot(&mut self) -> RelayId {
        self.slots.push(None);
        // There are never more slots than relay ports, so 32 bits are plenty.
        RelayId((self.slots.len() - 1) as u32)
    }
}
