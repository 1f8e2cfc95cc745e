//! The server: all state, and every decision. See the module above for the picture.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use rand::CryptoRng;
use stun_types::attribute::{AttributeWrite, ErrorCode, XorMappedAddress};
use turn_types::attribute::{AddressErrorCode, Lifetime, ReservationToken, XorRelayedAddress};

use super::allocation::{Allocation, OpenChannel, Ports, State};
use super::answer::Refusal;
use super::auth::{Authenticator, Guesser, Users};
use super::counters::{Counters, Direction, Drop, Method, Side};
use super::family::{ByFamily, Family};
use super::nonce::Nonces;
use super::peers::PeerPolicy;
use super::shared::Shared;
use super::table::Table;
use super::throttle::Throttle;
use super::wire::{ChannelNumber, Envelope, Inbound, SendIndication, classify};
use super::{AllocationId, FiveTuple, Now, RelayId, Transport, answer};

/// What a server is made from.
#[derive(Debug, Clone)]
pub struct Config {
    /// The realm of all users.
    pub realm: String,
    /// Who may use it, and whom they may reach.
    pub rules: Rules,
    /// What relay sockets are bound to; a family without one is not served.
    pub relay_ips: ByFamily<Option<IpAddr>>,
    /// Ports and quotas. A clone of it is the same for several servers.
    pub shared: Shared,
    /// Where clients are sent while this server drains.
    pub alternates: ByFamily<Option<SocketAddr>>,
    /// How often a source gets an answer without having authenticated. A clone of it counts for several servers together.
    pub unproven_answers: Throttle,
    /// How often a source may fail to authenticate for one user ([`Guesser`]); likewise.
    pub auth_failures: Throttle<Guesser>,
}

/// What may change while the server runs.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Who may use it.
    pub users: Users,
    /// Whom they may reach.
    pub peers: PeerPolicy,
}

/// Something for the shell to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Send `bytes` to a client.
    ToClient {
        /// Which.
        to: FiveTuple,
        /// What.
        bytes: Vec<u8>,
    },
    /// Open a UDP socket for a relay, bind it to `bind`, and say how that went: [`Server::relay_opened`].
    OpenRelay {
        /// The relay.
        relay: RelayId,
        /// Its socket's address.
        bind: SocketAddr,
        /// For whom.
        client: FiveTuple,
    },
    /// Close a relay's socket.
    CloseRelay {
        /// The relay.
        relay: RelayId,
    },
}

/// A payload to pass on.
#[derive(Debug, PartialEq, Eq)]
pub enum Forward<'a> {
    /// Nothing.
    Nothing,
    /// From a relay's socket to a peer.
    ToPeer {
        /// The relay.
        relay: RelayId,
        /// The peer.
        peer: SocketAddr,
        /// All of the datagram.
        payload: &'a [u8],
    },
    /// To a client: head, payload and padding as one datagram, or one after another in a stream.
    ToClient {
        /// The client.
        to: FiveTuple,
        /// What goes around the payload.
        envelope: Envelope,
        /// What the peer sent.
        payload: &'a [u8],
    },
}

/// Why a relay's socket could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenFailure {
    /// Another process has the port; another one may do.
    PortTaken,
    /// No other port would do either.
    Other,
}

/// A TURN server without sockets and clock.
#[derive(Debug)]
pub struct Server<R> {
    pub(super) auth: Authenticator,
    pub(super) policy: PeerPolicy,
    pub(super) relay_ips: ByFamily<Option<IpAddr>>,
    pub(super) shared: Shared,
    pub(super) table: Table,
    pub(super) commands: VecDeque<Command>,
    pub(super) counters: Counters,
    pub(super) alternates: ByFamily<Option<SocketAddr>>,
    pub(super) draining: bool,
    pub(super) unproven_answers: Throttle,
    pub(super) auth_failures: Throttle<Guesser>,
    pub(super) rng: R,
}

impl<R: CryptoRng> Server<R> {
    /// A server with no allocations.
    pub fn new(config: Config, nonces: Nonces, mut rng: R) -> Self {
        Self {
            auth: Authenticator::new(config.rules.users, config.realm, nonces),
            policy: config.rules.peers,
            relay_ips: config.relay_ips,
            shared: config.shared,
            table: Table::new(&mut rng),
            commands: VecDeque::new(),
            counters: Counters::default(),
            alternates: config.alternates,
            draining: false,
            unproven_answers: config.unproven_answers,
            auth_failures: config.auth_failures,
            rng,
        }
    }

    /// Takes one message of a client: a datagram, or what was cut out of its stream.
    pub fn client_input<'a>(&mut self, now: Now, from: FiveTuple, bytes: &'a [u8]) -> Forward<'a> {
        self.handle_timeout(now.instant);
        self.counters.received(Side::Client, bytes.len());
        let forward = match classify(bytes) {
            Some(Inbound::ChannelData(channel, data)) => {
                self.channel_to_peer(now.instant, from, channel, data)
            }
            Some(Inbound::Send(indication)) => self.send_to_peer(now.instant, from, indication),
            Some(Inbound::Stun(message)) => {
                self.stun_input(now, from, message);
                Ok(Forward::Nothing)
            }
            None => Err(Drop::Malformed),
        };
        self.or_drop(Direction::ToPeer, forward)
    }

    /// Takes a datagram that a peer sent to a relay.
    pub fn peer_input<'a>(
        &mut self,
        now: Now,
        relay: RelayId,
        peer: SocketAddr,
        bytes: &'a [u8],
    ) -> Forward<'a> {
        self.handle_timeout(now.instant);
        self.counters.received(Side::Peer, bytes.len());
        let forward = self.peer_to_client(now.instant, relay, peer, bytes);
        self.or_drop(Direction::ToClient, forward)
    }

    /// Says how [`Command::OpenRelay`] went: with the address that the client is to be told, or why not.
    pub fn relay_opened(&mut self, now: Now, relay: RelayId, result: Result<IpAddr, OpenFailure>) {
        match result {
            Ok(advertised) => self.relay_is_open(relay, advertised),
            Err(failure) => self.relay_is_not_open(now.instant, relay, failure),
        }
    }

    /// Says that a stream's connection is gone; its allocation ends with it (RFC 8656, section 3.1).
    pub fn client_gone(&mut self, client: &FiveTuple) {
        if let Some((id, _)) = self.table.of_client(client) {
            self.close(id);
        }
    }

    /// Whether a client has an allocation.
    pub fn has_allocation(&self, client: &FiveTuple) -> bool {
        self.table.of_client(client).is_some()
    }

    /// The relays of a client with their channels, as far as a packet through one is asked nothing but whether it is in
    /// time: of an allocation with a limit of bandwidth, there is none.
    pub fn unlimited_channels(&self, now: Instant, client: &FiveTuple) -> Vec<(RelayId, Vec<OpenChannel>)> {
        let Some((id, allocation)) = self.table.of_client(client) else {
            return Vec::new();
        };
        if !allocation.buckets.is_unlimited() {
            return Vec::new();
        }
        let relays = allocation.relays.present();
        relays
            .map(|(family, _)| (RelayId::new(id, family), allocation.open_channels(now, family)))
            .collect()
    }

    /// Ends what is over. Calling it too often does no harm.
    #[inline]
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(relay) = self.table.over(now) {
            self.close_relay(relay);
        }
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.table.next_end()
    }

    /// The next thing to do. Ask again until there is none, after every call that took input.
    #[inline]
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Whether there is something to do.
    #[inline]
    pub fn has_commands(&self) -> bool {
        !self.commands.is_empty()
    }

    /// From now on, no new allocations. Those that live go on.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// From now on, other rules. Allocations stay, but reach no peer that the new rules deny, and are refreshed with
    /// credentials of the new users only.
    pub fn reload(&mut self, rules: Rules) {
        self.auth.set_users(rules.users);
        self.policy = rules.peers;
        for allocation in self.table.iter_mut() {
            allocation.keep_peers(|peer| self.policy.check(peer).is_ok());
        }
    }

    /// How many allocations there are.
    pub fn allocation_count(&self) -> usize {
        self.table.len()
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// For the shell to add what became of a [`Forward`].
    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// RFC 8656, section 12.6.
    fn channel_to_peer<'a>(
        &self,
        now: Instant,
        from: FiveTuple,
        channel: ChannelNumber,
        payload: &'a [u8],
    ) -> Result<Forward<'a>, Drop> {
        let (id, allocation) = self.table.of_client(&from).ok_or(Drop::NoAllocation)?;
        let peer = allocation.peer_of(now, channel).ok_or(Drop::NoChannel)?;
        to_permitted_peer(now, id, allocation, peer, payload)
    }

    /// RFC 8656, section 11.2.
    fn send_to_peer<'a>(
        &self,
        now: Instant,
        from: FiveTuple,
        indication: SendIndication<'a>,
    ) -> Result<Forward<'a>, Drop> {
        let (id, allocation) = self.table.of_client(&from).ok_or(Drop::NoAllocation)?;
        to_permitted_peer(now, id, allocation, indication.peer, indication.data)
    }

    /// RFC 8656, sections 11.3 and 12.7.
    fn peer_to_client<'a>(
        &mut self,
        now: Instant,
        relay: RelayId,
        peer: SocketAddr,
        payload: &'a [u8],
    ) -> Result<Forward<'a>, Drop> {
        let allocation = self.table.get(relay.allocation()).ok_or(Drop::NoAllocation)?;
        if !allocation.is_permitted(now, peer.ip()) {
            return Err(Drop::NoPermission);
        }
        let length = u16::try_from(payload.len()).map_err(|_| Drop::TooLong)?;
        let to = allocation.client;
        let envelope = match allocation.channel_to(now, peer) {
            Some(channel) => Envelope::channel_data(channel, length, to.transport == Transport::Stream),
            None => {
                let mut transaction = [0; 12];
                self.rng.fill_bytes(&mut transaction);
                Envelope::data_indication(peer, length, transaction).ok_or(Drop::TooLong)?
            }
        };
        // Last, so that what is dropped for another reason costs nothing.
        if !allocation.draw(now, relay.family(), payload.len()) {
            return Err(Drop::OverRate);
        }
        Ok(Forward::ToClient {
            to,
            envelope,
            payload,
        })
    }

    fn or_drop<'a>(&mut self, direction: Direction, forward: Result<Forward<'a>, Drop>) -> Forward<'a> {
        forward.unwrap_or_else(|reason| {
            self.counters.dropped(direction, reason);
            Forward::Nothing
        })
    }

    fn relay_is_open(&mut self, id: RelayId, advertised: IpAddr) {
        let Some(relay) = self.table.relay_mut(id) else {
            // It ended while its socket was opened; CloseRelay is under way.
            return;
        };
        relay.state = State::Open {
            relayed: SocketAddr::new(advertised, relay.bind.port()),
        };
        self.answer_when_open(id.allocation());
    }

    /// Tries another port, or leaves this family out. Without any relay the allocation has come to nothing.
    fn relay_is_not_open(&mut self, now: Instant, id: RelayId, failure: OpenFailure) {
        if failure == OpenFailure::PortTaken && self.try_another_port(now, id) {
            return;
        }
        let Some(relay) = self.table.remove_relay(id) else {
            return;
        };
        self.shared.give_back(id.family(), relay.bind.port());
        let Some(allocation) = self.table.get_mut(id.allocation()) else {
            return;
        };
        if let Some(token) = allocation.token.take() {
            self.shared.cancel(token);
        }
        if allocation.relays.present().next().is_some() {
            allocation.lacks = Some((id.family(), Refusal::InsufficientCapacity));
            self.answer_when_open(id.allocation());
        } else if let Some(allocation) = self.table.remove(id.allocation()) {
            self.shared.release(&allocation.holder());
            self.answer_full(&allocation);
        }
    }

    fn try_another_port(&mut self, now: Instant, id: RelayId) -> bool {
        let Some(allocation) = self.table.get_mut(id.allocation()) else {
            return false;
        };
        let holder = allocation.holder();
        let Some(relay) = &mut allocation.relays[id.family()] else {
            return false;
        };
        let (Ports::Of(parity), State::Opening { tries_left: 1.. }) = (relay.ports, relay.state) else {
            return false;
        };
        let taken = match allocation.token.take() {
            None => self
                .shared
                .take_port(now, id.family(), parity, &mut self.rng)
                .map(|port| (port, None)),
            Some(token) => {
                self.shared.cancel(token);
                let pair = self.shared.take_pair(now, id.family(), &holder, &mut self.rng);
                pair.ok().map(|(port, token)| (port, Some(token)))
            }
        };
        let Some((port, token)) = taken else {
            return false;
        };
        // The old port is given back only now, so that it isn't drawn again.
        let old_port = relay.bind.port();
        relay.bind.set_port(port);
        if let State::Opening { tries_left } = &mut relay.state {
            *tries_left -= 1;
        }
        let bind = relay.bind;
        allocation.token = token;
        let client = allocation.client;
        self.shared.give_back(id.family(), old_port);
        self.commands.push_back(Command::OpenRelay {
            relay: id,
            bind,
            client,
        });
        true
    }

    /// Answers the Allocate request when all relays' sockets are there.
    fn answer_when_open(&mut self, id: AllocationId) {
        let Some(allocation) = self.table.get(id).filter(|allocation| !allocation.is_opening()) else {
            return;
        };
        let (to, bytes) = (allocation.client, allocated(allocation));
        self.answer_success(to, Method::Allocate, bytes);
    }

    /// Ends an allocation.
    pub(super) fn close(&mut self, id: AllocationId) {
        if let Some(allocation) = self.table.remove(id) {
            for (family, relay) in allocation.relays.present() {
                self.shared.give_back(family, relay.bind.port());
                let relay = RelayId::new(id, family);
                self.commands.push_back(Command::CloseRelay { relay });
            }
            self.shared.release(&allocation.holder());
        }
    }

    /// Ends one relay of an allocation, and with the last one the allocation.
    pub(super) fn close_relay(&mut self, id: RelayId) {
        let Some(allocation) = self.table.get_mut(id.allocation()) else {
            return;
        };
        if allocation.relays.present().count() < 2 {
            return self.close(id.allocation());
        }
        allocation.keep_peers(|peer| Family::of(peer) != id.family());
        if let Some(relay) = self.table.remove_relay(id) {
            self.shared.give_back(id.family(), relay.bind.port());
            self.commands.push_back(Command::CloseRelay { relay: id });
        }
    }
}

fn to_permitted_peer<'a>(
    now: Instant,
    id: AllocationId,
    allocation: &Allocation,
    peer: SocketAddr,
    payload: &'a [u8],
) -> Result<Forward<'a>, Drop> {
    let family = Family::of_socket(peer);
    if allocation.relays[family].is_none() {
        return Err(Drop::WrongFamily);
    }
    if !allocation.is_permitted(now, peer.ip()) {
        return Err(Drop::NoPermission);
    }
    if !allocation.draw(now, family, payload.len()) {
        return Err(Drop::OverRate);
    }
    let relay = RelayId::new(id, family);
    Ok(Forward::ToPeer { relay, peer, payload })
}

/// The answer to the Allocate request that made `allocation` (RFC 8656, section 7.3). Nothing in it changes, so a
/// request that is sent again gets the same one.
pub(super) fn allocated(allocation: &Allocation) -> Vec<u8> {
    let asked = allocation.asked;
    let relayed: Vec<_> = allocation
        .relayed()
        .map(|address| XorRelayedAddress::new(address, asked.transaction))
        .collect();
    let mapped = XorMappedAddress::new(allocation.client.remote, asked.transaction);
    let lifetime = Lifetime::new(allocation.granted.as_secs() as u32);
    let token = allocation.token.map(ReservationToken::new);
    let lacks = allocation.lacks.as_ref().and_then(|(family, refusal)| {
        let error = ErrorCode::builder(refusal.code()).build().ok()?;
        Some(AddressErrorCode::new((*family).into(), error))
    });
    let mut attributes: Vec<&dyn AttributeWrite> = Vec::with_capacity(6);
    attributes.extend(relayed.iter().map(|address| address as &dyn AttributeWrite));
    attributes.push(&mapped);
    attributes.push(&lifetime);
    attributes.extend(token.iter().map(|token| token as &dyn AttributeWrite));
    attributes.extend(lacks.iter().map(|lacks| lacks as &dyn AttributeWrite));
    answer::success(asked, Some(&allocation.user.key), &attributes)
}
