//! What all shards share: relay ports, quotas, reserved ports. It is asked when an allocation, a permission or a
//! connection begins or ends, and never for a packet, so one lock over all of it does.
//!
//! ```text
//!  Allocate ──► admit: a place for the user and the source ──► take_port ──► … ──► give_back, release
//!                                  EVEN-PORT ──► take_pair: the port, and its neighbour under a token for 30 s
//!                          RESERVATION-TOKEN ──► redeem: that neighbour, with the place that it holds
//! ```

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng;

use super::bucket::Bucket;
use super::family::{ByFamily, Family};
use super::ports::{Parity, PortPool, PortRange};
use super::{PERMISSION_LIFETIME, Source};

/// How long a reserved port is kept (RFC 8656, section 7.2: at least 30 seconds).
pub const RESERVATION_LIFETIME: Duration = Duration::from_secs(30);

/// How much there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Allocations, and ports reserved for one, in all.
    pub total: usize,
    /// For one user, by [`User::who`](super::auth::User::who).
    pub user: Quota,
    /// For one source.
    pub source: Quota,
    /// Stream connections, in all.
    pub connections: usize,
    /// Stream connections of one source.
    pub connections_per_source: usize,
}

/// How much one user, or one source, may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Allocations, and ports reserved for one.
    pub allocations: usize,
    /// Different peers with a permission.
    pub peers: usize,
    /// Bytes of payload per second, both ways together.
    pub bytes_per_second: Option<NonZeroU64>,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            allocations: usize::MAX,
            peers: usize::MAX,
            bytes_per_second: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            total: usize::MAX,
            user: Quota::default(),
            source: Quota::default(),
            connections: usize::MAX,
            connections_per_source: usize::MAX,
        }
    }
}

/// Why there is no room for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// The server is full.
    Server,
    /// The user, or the source, has as much as one may have.
    Quota,
}

/// Who holds an allocation, or a reserved port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The user.
    pub who: Arc<str>,
    /// Where the user is.
    pub source: Source,
}

/// What an allocation's packets draw from.
#[derive(Debug, Clone, Default)]
pub struct Buckets([Option<Arc<Bucket>>; 2]);

impl Buckets {
    /// Whether anything is drawn at all.
    pub fn is_unlimited(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// Whether `bytes` more may pass.
    #[inline]
    pub fn take(&self, now: Instant, bytes: usize) -> bool {
        self.0.iter().flatten().all(|bucket| bucket.take(now, bytes))
    }
}

/// What shards share; a clone is another handle to the same.
#[derive(Debug, Clone)]
pub struct Shared(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    limits: Limits,
    ports: ByFamily<PortPool>,
    held: usize,
    connected: usize,
    users: HashMap<Arc<str>, Account>,
    sources: HashMap<Source, Account>,
    connections: HashMap<Source, usize>,
    reservations: HashMap<u64, Reservation>,
}

/// What one user, or one source, has. It goes when nothing is held any more.
#[derive(Debug, Default)]
struct Account {
    held: usize,
    peers: Vec<(IpAddr, Instant)>,
    bucket: Option<Arc<Bucket>>,
}

#[derive(Debug)]
struct Reservation {
    holder: Holder,
    family: Family,
    port: u16,
    ends: Instant,
}

impl Shared {
    /// Nothing held, all of `ports` free in both families.
    pub fn new(ports: PortRange, limits: Limits) -> Self {
        let ports = ByFamily {
            v4: PortPool::new(ports),
            v6: PortPool::new(ports),
        };
        Self(Arc::new(Mutex::new(State {
            limits,
            ports,
            held: 0,
            connected: 0,
            users: HashMap::new(),
            sources: HashMap::new(),
            connections: HashMap::new(),
            reservations: HashMap::new(),
        })))
    }

    /// Takes a place for one more allocation of `holder`.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn admit(&self, now: Instant, holder: &Holder) -> Result<Buckets, NoRoom> {
        let mut state = self.state();
        state.expire(now);
        state.hold(holder)?;
        Ok(state.buckets(now, holder))
    }

    /// Gives the place back.
    pub fn release(&self, holder: &Holder) {
        self.state().release(holder);
    }

    /// Takes a free port.
    pub fn take_port(&self, now: Instant, family: Family, parity: Parity, rng: &mut impl Rng) -> Option<u16> {
        let mut state = self.state();
        state.expire(now);
        state.ports[family].take(parity, rng)
    }

    /// Takes a free even port, and reserves the next one for `holder`: the port and the reservation's token.
    ///
    /// # Errors
    /// [`NoRoom`]: there is no such pair, or the second port would be one more than `holder` may have.
    pub fn take_pair(
        &self,
        now: Instant,
        family: Family,
        holder: &Holder,
        rng: &mut impl Rng,
    ) -> Result<(u16, u64), NoRoom> {
        let mut state = self.state();
        state.expire(now);
        state.hold(holder)?;
        let Some(port) = state.ports[family].take(Parity::EvenPair, rng) else {
            state.release(holder);
            return Err(NoRoom::Server);
        };
        let token = rng.next_u64();
        let reservation = Reservation {
            holder: holder.clone(),
            family,
            port: port + 1,
            ends: now + RESERVATION_LIFETIME,
        };
        if let Some(old) = state.reservations.insert(token, reservation) {
            state.end(&old);
        }
        Ok((port, token))
    }

    /// Gives a reserved port away, for its holder only. Its place goes along with it: to be released as any other.
    pub fn redeem(&self, now: Instant, token: u64, holder: &Holder) -> Option<(Family, u16, Buckets)> {
        let mut state = self.state();
        state.expire(now);
        if state.reservations.get(&token)?.holder.who != holder.who {
            return None;
        }
        let reservation = state.reservations.remove(&token)?;
        // The holder may have moved; the place moves along.
        state.release(&reservation.holder);
        state.hold_anyhow(holder);
        let buckets = state.buckets(now, holder);
        Some((reservation.family, reservation.port, buckets))
    }

    /// Takes a reserved port back before its time, if it is still reserved.
    pub fn cancel(&self, token: u64) {
        let mut state = self.state();
        if let Some(reservation) = state.reservations.remove(&token) {
            state.end(&reservation);
        }
    }

    /// Gives a port back.
    pub fn give_back(&self, family: Family, port: u16) {
        self.state().ports[family].give_back(port);
    }

    /// Notes that `holder` has permissions for `peers` from now on.
    ///
    /// # Errors
    /// [`NoRoom`]; then nothing is noted.
    pub fn permit(&self, now: Instant, holder: &Holder, peers: &[IpAddr]) -> Result<(), NoRoom> {
        let mut state = self.state();
        let limits = state.limits;
        let fits = |account: Option<&mut Account>, most| {
            account.is_none_or(|account| account.has_room_for(now, peers, most))
        };
        if !fits(state.users.get_mut(&holder.who), limits.user.peers)
            || !fits(state.sources.get_mut(&holder.source), limits.source.peers)
        {
            return Err(NoRoom::Quota);
        }
        if limits.user.peers != usize::MAX
            && let Some(account) = state.users.get_mut(&holder.who)
        {
            account.note(now, peers);
        }
        if limits.source.peers != usize::MAX
            && let Some(account) = state.sources.get_mut(&holder.source)
        {
            account.note(now, peers);
        }
        Ok(())
    }

    /// Takes a place for one more stream connection; false where there are as many as there may be.
    pub fn connect(&self, source: Source) -> bool {
        let mut state = self.state();
        let limits = state.limits;
        let of_source = state.connections.get(&source).copied().unwrap_or(0);
        let room = state.connected < limits.connections && of_source < limits.connections_per_source;
        if room {
            state.connected += 1;
            state.connections.insert(source, of_source + 1);
        }
        room
    }

    /// Gives a connection's place back.
    pub fn disconnect(&self, source: Source) {
        let mut state = self.state();
        state.connected -= 1;
        less(&mut state.connections, &source, |count| {
            *count = count.saturating_sub(1);
            *count == 0
        });
    }

    /// How many ports are taken or reserved, of both families.
    pub fn ports_taken(&self, now: Instant) -> usize {
        let mut state = self.state();
        state.expire(now);
        state.ports.iter().map(|(_, ports)| ports.taken_count()).sum()
    }

    /// No code under the lock stops half-way, so what a panicked shard left is whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn hold(&mut self, holder: &Holder) -> Result<(), NoRoom> {
        if self.held >= self.limits.total {
            return Err(NoRoom::Server);
        }
        let user = self.users.get(&holder.who).map_or(0, |account| account.held);
        let source = self.sources.get(&holder.source).map_or(0, |account| account.held);
        if user >= self.limits.user.allocations || source >= self.limits.source.allocations {
            return Err(NoRoom::Quota);
        }
        self.hold_anyhow(holder);
        Ok(())
    }

    fn hold_anyhow(&mut self, holder: &Holder) {
        self.held += 1;
        self.users.entry(holder.who.clone()).or_default().held += 1;
        self.sources.entry(holder.source).or_default().held += 1;
    }

    fn release(&mut self, holder: &Holder) {
        self.held -= 1;
        less(&mut self.users, &holder.who, Account::let_go);
        less(&mut self.sources, &holder.source, Account::let_go);
    }

    fn buckets(&mut self, now: Instant, holder: &Holder) -> Buckets {
        let of = |account: Option<&mut Account>, rate: Option<NonZeroU64>| {
            let new = || Arc::new(Bucket::new(rate?, now)).into();
            let account = account?;
            account.bucket = account.bucket.take().or_else(new);
            account.bucket.clone()
        };
        Buckets([
            of(self.users.get_mut(&holder.who), self.limits.user.bytes_per_second),
            of(
                self.sources.get_mut(&holder.source),
                self.limits.source.bytes_per_second,
            ),
        ])
    }

    fn expire(&mut self, now: Instant) {
        let over: Vec<_> = self
            .reservations
            .extract_if(|_, reservation| reservation.ends <= now)
            .collect();
        over.iter().for_each(|(_, reservation)| self.end(reservation));
    }

    fn end(&mut self, reservation: &Reservation) {
        self.ports[reservation.family].give_back(reservation.port);
        self.release(&reservation.holder);
    }
}

impl Account {
    fn let_go(&mut self) -> bool {
        self.held = self.held.saturating_sub(1);
        self.held == 0
    }

    fn has_room_for(&mut self, now: Instant, peers: &[IpAddr], most: usize) -> bool {
        self.peers.retain(|(_, ends)| now < *ends);
        let new = peers
            .iter()
            .enumerate()
            .filter(|(at, peer)| !self.knows(**peer) && !peers[..*at].contains(peer));
        self.peers.len() + new.count() <= most
    }

    fn knows(&self, peer: IpAddr) -> bool {
        self.peers.iter().any(|(known, _)| *known == peer)
    }

    fn note(&mut self, now: Instant, peers: &[IpAddr]) {
        let new_end = now + PERMISSION_LIFETIME;
        for peer in peers {
            match self.peers.iter_mut().find(|(known, _)| known == peer) {
                Some((_, ends)) => *ends = new_end,
                None => self.peers.push((*peer, new_end)),
            }
        }
    }
}

/// Makes one thing less, and takes it out where nothing is left of it.
fn less<K: Eq + Hash, V>(map: &mut HashMap<K, V>, key: &K, make_less: impl FnOnce(&mut V) -> bool) {
    if map.get_mut(key).is_some_and(make_less) {
        map.remove(key);
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "any instant serves as the beginning of a held clock"
)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn a_reserved_port_is_its_holders_for_thirty_seconds() {
        let (shared, now, mut rng) = setup(Limits::default());
        let (port, token) = shared
            .take_pair(now, Family::V4, &holder("a", 1), &mut rng)
            .unwrap();
        assert_eq!(shared.redeem(now, token, &holder("b", 1)).map(|got| got.1), None);
        let late = now + RESERVATION_LIFETIME;
        let early = late - Duration::from_millis(1);
        assert_eq!(shared.ports_taken(early), 2);
        let got = shared.redeem(early, token, &holder("a", 2)).unwrap();
        assert_eq!((got.0, got.1), (Family::V4, port + 1));
        assert!(
            shared.redeem(early, token, &holder("a", 2)).is_none(),
            "only once"
        );
        let (_, token) = shared
            .take_pair(now, Family::V4, &holder("a", 1), &mut rng)
            .unwrap();
        assert!(shared.redeem(late, token, &holder("a", 1)).is_none());
        assert_eq!(shared.ports_taken(late), 3);
    }

    #[test]
    fn a_reserved_port_counts_as_an_allocation() {
        let user = Quota {
            allocations: 2,
            ..Quota::default()
        };
        let (shared, now, mut rng) = setup(Limits {
            user,
            ..Limits::default()
        });
        let ann = holder("a", 1);
        shared.admit(now, &ann).unwrap();
        shared.take_pair(now, Family::V4, &ann, &mut rng).unwrap();
        assert_eq!(shared.admit(now, &ann).map(drop), Err(NoRoom::Quota));
        let refused = shared.take_pair(now, Family::V4, &ann, &mut rng);
        assert_eq!(refused, Err(NoRoom::Quota));
        assert!(shared.admit(now + RESERVATION_LIFETIME, &ann).is_ok());
    }

    #[test]
    fn a_source_has_a_quota_whoever_its_users_are() {
        let source = Quota {
            allocations: 2,
            ..Quota::default()
        };
        let (shared, now, _) = setup(Limits {
            source,
            ..Limits::default()
        });
        let (ann, bob, cid) = (holder("a", 1), holder("b", 1), holder("c", 2));
        shared.admit(now, &ann).unwrap();
        shared.admit(now, &bob).unwrap();
        assert_eq!(shared.admit(now, &bob).map(drop), Err(NoRoom::Quota));
        assert!(shared.admit(now, &cid).is_ok());
        shared.release(&ann);
        assert!(shared.admit(now, &bob).is_ok());
    }

    #[test]
    fn a_user_has_so_many_peers_at_once() {
        let user = Quota {
            peers: 2,
            ..Quota::default()
        };
        let (shared, now, _) = setup(Limits {
            user,
            ..Limits::default()
        });
        let ann = holder("a", 1);
        shared.admit(now, &ann).unwrap();
        assert_eq!(shared.permit(now, &ann, &[ip(1), ip(2), ip(1)]), Ok(()));
        assert_eq!(shared.permit(now, &ann, &[ip(3)]), Err(NoRoom::Quota));
        assert_eq!(shared.permit(now, &ann, &[ip(2)]), Ok(()));
        assert_eq!(
            shared.permit(now + PERMISSION_LIFETIME, &ann, &[ip(3), ip(4)]),
            Ok(())
        );
    }

    #[test]
    fn what_is_let_go_leaves_nothing_behind() {
        let (shared, now, mut rng) = setup(Limits::default());
        for n in 0..100 {
            let (holder, source) = (holder(&n.to_string(), n), Source::of(ip(n)));
            shared.admit(now, &holder).unwrap();
            shared.permit(now, &holder, &[ip(1)]).unwrap();
            assert!(shared.connect(source));
            let (port, token) = shared.take_pair(now, Family::V6, &holder, &mut rng).unwrap();
            shared.cancel(token);
            shared.give_back(Family::V6, port);
            shared.disconnect(source);
            shared.release(&holder);
        }
        let state = shared.state();
        assert_eq!((state.held, state.users.len(), state.sources.len()), (0, 0, 0));
        assert_eq!((state.connections.len(), state.reservations.len()), (0, 0));
    }

    #[test]
    fn connections_of_a_source_are_counted() {
        let (shared, _, _) = setup(Limits {
            connections_per_source: 2,
            ..Limits::default()
        });
        let source = Source::of(ip(1));
        assert!(shared.connect(source) && shared.connect(source));
        assert!(!shared.connect(source));
        shared.disconnect(source);
        assert!(shared.connect(source));
    }

    #[test]
    fn connections_are_counted_in_all() {
        let (shared, _, _) = setup(Limits {
            connections: 2,
            ..Limits::default()
        });
        assert!(shared.connect(Source::of(ip(1))) && shared.connect(Source::of(ip(2))));
        assert!(!shared.connect(Source::of(ip(3))));
        shared.disconnect(Source::of(ip(1)));
        assert!(shared.connect(Source::of(ip(3))));
    }

    fn setup(limits: Limits) -> (Shared, Instant, StdRng) {
        let ports = "50000-50009".parse().unwrap();
        (
            Shared::new(ports, limits),
            Instant::now(),
            StdRng::seed_from_u64(7),
        )
    }

    fn holder(who: &str, source: u8) -> Holder {
        Holder {
            who: who.into(),
            source: Source::of(ip(source)),
        }
    }

    fn ip(n: u8) -> IpAddr {
        [203, 0, 113, n].into()
    }
}
