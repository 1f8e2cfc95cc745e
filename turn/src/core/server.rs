//! The server: all state, and every decision. See the module above for the picture.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use rand::CryptoRng;

use super::allocation::{Allocation, State};
use super::auth::{Authenticator, Users};
use super::counters::{Counters, Drop, Method, Side};
use super::nonce::Nonces;
use super::peers::PeerPolicy;
use super::ports::{PortPool, PortRange};
use super::table::{Limits, Table};
use super::wire::{ChannelNumber, Envelope, Inbound, SendIndication, classify};
use super::{FiveTuple, Now, RelayId, Transport, answer};

/// What a server is made from.
#[derive(Debug, Clone)]
pub struct Config {
    /// The realm of all users.
    pub realm: String,
    /// Who may use it.
    pub users: Users,
    /// Whom they may reach.
    pub peers: PeerPolicy,
    /// What relay sockets are bound to.
    pub relay_ip: IpAddr,
    /// Their ports.
    pub ports: PortRange,
    /// How many there may be.
    pub limits: Limits,
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
    pub(super) relay_ip: IpAddr,
    pub(super) ports: PortPool,
    pub(super) table: Table,
    pub(super) commands: VecDeque<Command>,
    pub(super) counters: Counters,
    pub(super) draining: bool,
    pub(super) rng: R,
}

impl<R: CryptoRng> Server<R> {
    /// A server with no allocations.
    pub fn new(config: Config, nonces: Nonces, mut rng: R) -> Self {
        Self {
            auth: Authenticator::new(config.users, config.realm, nonces),
            policy: config.peers,
            relay_ip: config.relay_ip,
            ports: PortPool::new(config.ports),
            table: Table::new(config.limits, &mut rng),
            commands: VecDeque::new(),
            counters: Counters::default(),
            draining: false,
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
        self.or_drop(forward)
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
        self.or_drop(forward)
    }

    /// Says how [`Command::OpenRelay`] went: with the address that the client is to be told, or why not.
    pub fn relay_opened(&mut self, relay: RelayId, result: Result<IpAddr, OpenFailure>) {
        match result {
            Ok(advertised) => self.relay_is_open(relay, advertised),
            Err(failure) => self.relay_is_not_open(relay, failure),
        }
    }

    /// Ends what is over. Calling it too often does no harm.
    #[inline]
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(relay) = self.table.over(now) {
            self.close(relay);
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

    /// How many allocations there are.
    pub fn allocation_count(&self) -> usize {
        self.table.len()
    }

    /// How many relay ports are taken.
    pub fn ports_taken(&self) -> usize {
        self.ports.taken_count()
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
        let (relay, allocation) = self.table.of_client(&from).ok_or(Drop::NoAllocation)?;
        let peer = allocation.peer_of(now, channel).ok_or(Drop::NoChannel)?;
        to_permitted_peer(now, relay, allocation, peer, payload)
    }

    /// RFC 8656, section 11.2.
    fn send_to_peer<'a>(
        &self,
        now: Instant,
        from: FiveTuple,
        indication: SendIndication<'a>,
    ) -> Result<Forward<'a>, Drop> {
        let (relay, allocation) = self.table.of_client(&from).ok_or(Drop::NoAllocation)?;
        if indication.peer.is_ipv4() != allocation.bind.is_ipv4() {
            return Err(Drop::WrongFamily);
        }
        to_permitted_peer(now, relay, allocation, indication.peer, indication.data)
    }

    /// RFC 8656, sections 11.3 and 12.7.
    fn peer_to_client<'a>(
        &mut self,
        now: Instant,
        relay: RelayId,
        peer: SocketAddr,
        payload: &'a [u8],
    ) -> Result<Forward<'a>, Drop> {
        let allocation = self.table.get(relay).ok_or(Drop::NoAllocation)?;
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
        Ok(Forward::ToClient {
            to,
            envelope,
            payload,
        })
    }

    fn or_drop<'a>(&mut self, forward: Result<Forward<'a>, Drop>) -> Forward<'a> {
        forward.unwrap_or_else(|reason| {
            self.counters.dropped(reason);
            Forward::Nothing
        })
    }

    fn relay_is_open(&mut self, relay: RelayId, advertised: IpAddr) {
        let Some(allocation) = self.table.get_mut(relay) else {
            // It ended while its socket was opened; CloseRelay is under way.
            return;
        };
        let relayed = SocketAddr::new(advertised, allocation.bind.port());
        allocation.state = State::Open { relayed };
        let bytes = allocated(allocation, relayed);
        let to = allocation.client;
        self.answer_success(to, Method::Allocate, bytes);
    }

    fn relay_is_not_open(&mut self, relay: RelayId, failure: OpenFailure) {
        let Some(allocation) = self.table.get_mut(relay) else {
            return;
        };
        let old_port = allocation.bind.port();
        if let (OpenFailure::PortTaken, State::Opening { tries_left: 1.. }) = (failure, allocation.state)
            && let Some(port) = self.ports.take(allocation.parity, &mut self.rng)
        {
            // The old port is given back only now, so that it isn't drawn again.
            self.ports.give_back(old_port);
            self.try_port(relay, port);
            return;
        }
        let Some(allocation) = self.table.remove(relay) else {
            return;
        };
        self.ports.give_back(old_port);
        let (client, asked) = (allocation.client, allocation.asked);
        self.answer_full(client, asked, &allocation.user.key);
    }

    fn try_port(&mut self, relay: RelayId, port: u16) {
        if let Some(allocation) = self.table.get_mut(relay)
            && let State::Opening { tries_left } = &mut allocation.state
        {
            *tries_left -= 1;
            allocation.bind.set_port(port);
            let (bind, client) = (allocation.bind, allocation.client);
            self.commands
                .push_back(Command::OpenRelay { relay, bind, client });
        }
    }

    /// Ends an allocation.
    pub(super) fn close(&mut self, relay: RelayId) {
        if let Some(allocation) = self.table.remove(relay) {
            self.ports.give_back(allocation.bind.port());
            self.commands.push_back(Command::CloseRelay { relay });
        }
    }
}

/// The success response of an open allocation. Nothing in it changes, so a retransmitted request gets the same one.
pub(super) fn allocated(allocation: &Allocation, relayed: SocketAddr) -> Vec<u8> {
    answer::allocated(
        allocation.asked,
        &allocation.user.key,
        allocation.client.remote,
        relayed,
        allocation.granted.as_secs() as u32,
    )
}

fn to_permitted_peer<'a>(
    now: Instant,
    relay: RelayId,
    allocation: &Allocation,
    peer: SocketAddr,
    payload: &'a [u8],
) -> Result<Forward<'a>, Drop> {
    if !allocation.is_permitted(now, peer.ip()) {
        return Err(Drop::NoPermission);
    }
    Ok(Forward::ToPeer { relay, peer, payload })
}
