//! All allocations of a shard: found by client, by relay, or by what ends next.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use ahash::RandomState;
use rand::{Rng, RngExt as _};

use super::allocation::{Allocation, Relay};
use super::{AllocationId, FiveTuple, RelayId};

/// The table.
#[derive(Debug)]
pub struct Table {
    slots: Vec<Option<Allocation>>,
    free: Vec<AllocationId>,
    /// Looked up for every packet: a quick hash, keyed so that nobody can make clients collide.
    by_client: HashMap<FiveTuple, AllocationId, RandomState>,
    ends: BTreeSet<(Instant, RelayId)>,
    /// The first of `ends`, at hand since every packet asks for it.
    next_end: Option<Instant>,
}

impl Table {
    /// An empty one.
    pub fn new(rng: &mut impl Rng) -> Self {
        let [a, b, c, d] = rng.random();
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_client: HashMap::with_hasher(RandomState::with_seeds(a, b, c, d)),
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

    /// Adds an allocation with its relays. Its client must have none; see [`Self::of_client`].
    pub fn insert(&mut self, allocation: Allocation) -> AllocationId {
        let id = self.free.pop().unwrap_or_else(|| self.new_slot());
        self.by_client.insert(allocation.client, id);
        for (family, relay) in allocation.relays.present() {
            self.ends.insert((relay.ends, RelayId::new(id, family)));
        }
        self.find_next_end();
        self.slots[id.0 as usize] = Some(allocation);
        id
    }

    /// Takes an allocation out.
    pub fn remove(&mut self, id: AllocationId) -> Option<Allocation> {
        let allocation = self.slots.get_mut(id.0 as usize)?.take()?;
        self.free.push(id);
        self.by_client.remove(&allocation.client);
        for (family, relay) in allocation.relays.present() {
            self.ends.remove(&(relay.ends, RelayId::new(id, family)));
        }
        self.find_next_end();
        Some(allocation)
    }

    /// Takes one relay out of its allocation, which stays.
    pub fn remove_relay(&mut self, id: RelayId) -> Option<Relay> {
        let relay = self.get_mut(id.allocation())?.relays[id.family()].take()?;
        self.ends.remove(&(relay.ends, id));
        self.find_next_end();
        Some(relay)
    }

    /// An allocation.
    #[inline]
    pub fn get(&self, id: AllocationId) -> Option<&Allocation> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    /// An allocation.
    pub fn get_mut(&mut self, id: AllocationId) -> Option<&mut Allocation> {
        self.slots.get_mut(id.0 as usize)?.as_mut()
    }

    /// A relay.
    pub fn relay_mut(&mut self, id: RelayId) -> Option<&mut Relay> {
        self.get_mut(id.allocation())?.relays[id.family()].as_mut()
    }

    /// Every allocation.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Allocation> {
        self.slots.iter_mut().flatten()
    }

    /// A client's allocation.
    #[inline]
    pub fn of_client(&self, client: &FiveTuple) -> Option<(AllocationId, &Allocation)> {
        let id = *self.by_client.get(client)?;
        Some((id, self.get(id)?))
    }

    /// Lets a relay live until `ends`.
    pub fn set_end(&mut self, id: RelayId, ends: Instant) {
        if let Some(relay) = self.relay_mut(id) {
            let old = std::mem::replace(&mut relay.ends, ends);
            self.ends.remove(&(old, id));
            self.ends.insert((ends, id));
        }
        self.find_next_end();
    }

    /// When the next relay ends.
    pub fn next_end(&self) -> Option<Instant> {
        self.next_end
    }

    /// A relay that is over at `now`.
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

    fn new_slot(&mut self) -> AllocationId {
        self.slots.push(None);
        // There are never more slots than relay ports, so 31 bits are plenty.
        AllocationId((self.slots.len() - 1) as u32)
    }
}
