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

use super::auth::User;
use super::bucket::Bucket;
use super::family::{ByFamily, Family};
use super::ports::{Parity, PortPool, PortRange};
use super::{FiveTuple, PERMISSION_LIFETIME, Source};

/// How long a reserved port is kept (RFC 8656, section 7.2: at least 30 seconds).
pub const RESERVATION_LIFETIME: Duration = Duration::from_secs(30);

/// How much there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Allocations, and ports reserved for one, in all.
    pub total: usize,
    /// Relay ports of both families together: each is a socket, and an allocation may have two.
    pub ports: usize,
    /// For one user whose credentials expire.
    pub user: Quota,
    /// For one user who never expires, whom many people may be.
    pub fixed_user: Quota,
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
    /// Bytes per second between relays and peers, both ways together: payload, UDP header and IP header.
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
            ports: usize::MAX,
            user: Quota::default(),
            fixed_user: Quota::default(),
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

impl Limits {
    fn of_user(&self, who: &Who) -> Quota {
        if who.expires { self.user } else { self.fixed_user }
    }
}

/// A user, as far as quotas go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Who {
    /// [`User::who`].
    pub name: Arc<str>,
    /// Whether the credentials expire. One of each kind and the same name are two users.
    pub expires: bool,
}

/// Who holds an allocation, or a reserved port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The user.
    pub who: Who,
    /// Where the user is.
    pub source: Source,
}

impl Holder {
    /// That user, at that client's address.
    pub fn of(user: &User, client: &FiveTuple) -> Self {
        Self {
            who: Who {
                name: user.who.clone(),
                expires: user.expiry_unix.is_some(),
            },
            source: Source::of(client.remote.ip()),
        }
    }
}

/// What an allocation's packets draw from.
#[derive(Debug, Clone, Default)]
pub struct Buckets([Option<Arc<Bucket>>; 2]);

impl Buckets {
    /// Whether anything is drawn at all.
    pub fn is_unlimited(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// Whether `bytes` more may pass. Where one of both refuses, the other has lost nothing (but for a moment, which another
    /// shard may see).
    #[inline]
    pub fn take(&self, now: Instant, bytes: usize) -> bool {
        let [user, source] = &self.0;
        let takes =
            |bucket: &Option<Arc<Bucket>>| bucket.as_ref().is_none_or(|bucket| bucket.take(now, bytes));
        if !takes(user) {
            return false;
        }
        let passes = takes(source);
        if !passes && let Some(user) = user {
            user.put_back(bytes);
        }
        passes
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
    users: Accounts<Who>,
    sources: Accounts<Source>,
    /// When buckets that are full again are forgotten.
    sweep_at: Option<Instant>,
    connections: HashMap<Source, usize>,
    reservations: HashMap<u64, Reservation>,
}

/// What users have, or what sources have.
#[derive(Debug)]
struct Accounts<K> {
    open: HashMap<K, Account>,
    /// The buckets of those who hold nothing any more, until they are full again: who comes back finds what was left.
    spent: HashMap<K, Arc<Bucket>>,
}

/// What one user, or one source, has. It goes when nothing is held any more, all but its bucket.
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
            users: Accounts::default(),
            sources: Accounts::default(),
            sweep_at: None,
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
        if state.ports_taken() >= state.limits.ports {
            return None;
        }
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
        if state.ports_taken() + 2 > state.limits.ports {
            return Err(NoRoom::Server);
        }
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
        state.hold_anyhow(holder);
        state.release(&reservation.holder);
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
        let of_user = limits.of_user(&holder.who).peers;
        if !state.users.has_room_for(now, &holder.who, peers, of_user)
            || !state
                .sources
                .has_room_for(now, &holder.source, peers, limits.source.peers)
        {
            return Err(NoRoom::Quota);
        }
        state.users.note(now, &holder.who, peers, of_user);
        state
            .sources
            .note(now, &holder.source, peers, limits.source.peers);
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
        if let Some(count) = state.connections.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                state.connections.remove(&source);
            }
        }
    }

    /// How many ports are taken or reserved, of both families.
    pub fn ports_taken(&self, now: Instant) -> usize {
        let mut state = self.state();
        state.expire(now);
        state.ports_taken()
    }

    /// How many allocations, and ports reserved for one, there are.
    pub fn held(&self, now: Instant) -> usize {
        let mut state = self.state();
        state.expire(now);
        state.held
    }

    /// How many peers count for a user.
    pub fn peers_of(&self, now: Instant, who: &Who) -> usize {
        let state = self.state();
        let known = state
            .users
            .open
            .get(who)
            .map_or(&[][..], |account| &account.peers);
        known.iter().filter(|(_, ends)| now < *ends).count()
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
        let (user, source) = (self.users.held(&holder.who), self.sources.held(&holder.source));
        if user >= self.limits.of_user(&holder.who).allocations || source >= self.limits.source.allocations {
            return Err(NoRoom::Quota);
        }
        self.hold_anyhow(holder);
        Ok(())
    }

    fn hold_anyhow(&mut self, holder: &Holder) {
        self.held += 1;
        self.users.hold(&holder.who);
        self.sources.hold(&holder.source);
    }

    fn release(&mut self, holder: &Holder) {
        self.held -= 1;
        self.users.let_go(&holder.who);
        self.sources.let_go(&holder.source);
    }

    fn buckets(&mut self, now: Instant, holder: &Holder) -> Buckets {
        let user = self.limits.of_user(&holder.who).bytes_per_second;
        let source = self.limits.source.bytes_per_second;
        Buckets([
            self.users.bucket(now, &holder.who, user),
            self.sources.bucket(now, &holder.source, source),
        ])
    }

    fn ports_taken(&self) -> usize {
        self.ports.iter().map(|(_, ports)| ports.taken_count()).sum()
    }

    fn expire(&mut self, now: Instant) {
        let over: Vec<_> = self
            .reservations
            .extract_if(|_, reservation| reservation.ends <= now)
            .collect();
        over.iter().for_each(|(_, reservation)| self.end(reservation));
        if self.sweep_at.is_none_or(|at| at <= now) {
            self.users.forget_full(now);
            self.sources.forget_full(now);
            self.sweep_at = Some(now + SWEEP_INTERVAL);
        }
    }

    fn end(&mut self, reservation: &Reservation) {
        self.ports[reservation.family].give_back(reservation.port);
        self.release(&reservation.holder);
    }
}

impl<K> Default for Accounts<K> {
    fn default() -> Self {
        Self {
            open: HashMap::new(),
            spent: HashMap::new(),
        }
    }
}

impl<K: Clone + Eq + Hash> Accounts<K> {
    fn held(&self, key: &K) -> usize {
        self.open.get(key).map_or(0, |account| account.held)
    }

    fn hold(&mut self, key: &K) {
        self.open.entry(key.clone()).or_default().held += 1;
    }

    fn let_go(&mut self, key: &K) {
        let Some(account) = self.open.get_mut(key) else {
            return;
        };
        account.held = account.held.saturating_sub(1);
        if account.held > 0 {
            return;
        }
        let bucket = account.bucket.take();
        self.open.remove(key);
        if let Some(bucket) = bucket {
            self.spent.insert(key.clone(), bucket);
        }
    }

    /// What one who holds something draws from, if there is a rate.
    fn bucket(&mut self, now: Instant, key: &K, rate: Option<NonZeroU64>) -> Option<Arc<Bucket>> {
        let (rate, account) = (rate?, self.open.get_mut(key)?);
        let known = account.bucket.take().or_else(|| self.spent.remove(key));
        account.bucket = known.or_else(|| Some(Arc::new(Bucket::new(rate, now))));
        account.bucket.clone()
    }

    fn has_room_for(&mut self, now: Instant, key: &K, peers: &[IpAddr], most: usize) -> bool {
        let account = self.open.get_mut(key);
        account.is_none_or(|account| account.has_room_for(now, peers, most))
    }

    /// Where there is no limit, nothing need be known.
    fn note(&mut self, now: Instant, key: &K, peers: &[IpAddr], most: usize) {
        if most != usize::MAX
            && let Some(account) = self.open.get_mut(key)
        {
            account.note(now, peers);
        }
    }

    fn forget_full(&mut self, now: Instant) {
        self.spent.retain(|_, bucket| !bucket.is_full(now));
    }
}

impl Account {
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

/// How often full buckets are looked for: all that are kept are looked at, which is too much to do for each request.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

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
        assert_eq!(state.held, 0);
        assert_eq!((state.users.open.len(), state.sources.open.len()), (0, 0));
        assert_eq!((state.connections.len(), state.reservations.len()), (0, 0));
    }

    #[test]
    fn a_bucket_is_kept_until_it_is_full_again() {
        let rate = Quota {
            bytes_per_second: NonZeroU64::new(1000),
            ..Quota::default()
        };
        let (shared, now, _) = setup(Limits {
            user: rate,
            source: rate,
            ..Limits::default()
        });
        let kept = |shared: &Shared| {
            let state = shared.state();
            (state.users.spent.len(), state.sources.spent.len())
        };
        let (second, spent) = (now + Duration::from_secs(1), holder("a", 1));
        for n in 0..100 {
            let one = holder(&n.to_string(), n);
            assert!(shared.admit(now, &one).unwrap().take(now, 500));
            shared.release(&one);
        }
        assert_eq!(kept(&shared), (100, 100));
        assert!(shared.admit(second, &spent).unwrap().take(second, 1000));
        assert_eq!(kept(&shared), (0, 0), "the others' are full");
        shared.release(&spent);
        let later = second + Duration::from_millis(500);
        let buckets = shared.admit(later, &spent).unwrap();
        assert!(!buckets.take(later, 501) && buckets.take(later, 500));
        assert_eq!(kept(&shared), (0, 0), "it is drawn from again");
    }

    #[test]
    fn a_fixed_user_has_limits_of_its_own() {
        let of = |allocations, peers| Quota {
            allocations,
            peers,
            ..Quota::default()
        };
        let (shared, now, _) = setup(Limits {
            user: of(1, 1),
            fixed_user: of(2, 2),
            ..Limits::default()
        });
        let (player, mut everybody) = (holder("a", 1), holder("a", 1));
        everybody.who.expires = false;
        shared.admit(now, &player).unwrap();
        assert_eq!(shared.admit(now, &player).map(drop), Err(NoRoom::Quota));
        assert!((0..2).all(|_| shared.admit(now, &everybody).is_ok()));
        assert_eq!(shared.admit(now, &everybody).map(drop), Err(NoRoom::Quota));
        assert_eq!(shared.permit(now, &player, &[ip(1), ip(2)]), Err(NoRoom::Quota));
        assert_eq!(shared.permit(now, &everybody, &[ip(1), ip(2)]), Ok(()));
        assert_eq!(shared.permit(now, &everybody, &[ip(3)]), Err(NoRoom::Quota));
        let known = [&player, &everybody].map(|holder| shared.peers_of(now, &holder.who));
        assert_eq!(known, [0, 2]);
    }

    #[test]
    fn ports_of_both_families_are_counted_together() {
        let (shared, now, mut rng) = setup(Limits {
            ports: 3,
            ..Limits::default()
        });
        let ann = holder("a", 1);
        shared.take_pair(now, Family::V4, &ann, &mut rng).unwrap();
        let refused = shared.take_pair(now, Family::V6, &ann, &mut rng);
        assert_eq!((refused, shared.held(now)), (Err(NoRoom::Server), 1));
        let port = shared.take_port(now, Family::V6, Parity::Any, &mut rng).unwrap();
        assert_eq!(shared.take_port(now, Family::V4, Parity::Any, &mut rng), None);
        shared.give_back(Family::V6, port);
        assert!(shared.take_port(now, Family::V4, Parity::Any, &mut rng).is_some());
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
            who: Who {
                name: who.into(),
                expires: true,
            },
            source: Source::of(ip(source)),
        }
    }

    fn ip(n: u8) -> IpAddr {
        [203, 0, 113, n].into()
    }
}
