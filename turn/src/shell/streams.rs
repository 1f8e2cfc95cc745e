//! Clients over TCP and TLS. Each shard accepts its own, so an allocation lives where its connection was accepted.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use rustls::ServerConfig;

use super::connection::{Connection, Sent};
use super::token::Token;
use crate::core::counters::{Count, Counters, Direction, Drop, End};
use crate::core::server::Forward;
use crate::core::shared::Shared;
use crate::core::{FiveTuple, Source, Transport};

/// Where clients come in by streams.
#[derive(Debug)]
pub(super) struct StreamListener {
    /// Its address.
    pub(super) local: SocketAddr,
    /// What its clients see, where TLS is spoken: so there is no listener for TLS that could speak anything else.
    tls: Option<Arc<ServerConfig>>,
    socket: TcpListener,
}

impl StreamListener {
    /// Listens on `address`, for TLS where `tls` is given; port 0 lets the system choose.
    ///
    /// # Errors
    /// Where the address can't be bound.
    pub(super) fn bind(address: SocketAddr, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        Self::bound(address, tls, false)
    }

    /// Another one at the same address; the kernel gives each new connection to one of them.
    ///
    /// # Errors
    /// Where the address can't be bound.
    pub(super) fn beside(&self) -> io::Result<Self> {
        Self::bound(self.local, self.tls.clone(), true)
    }

    fn bound(address: SocketAddr, tls: Option<Arc<ServerConfig>>, beside_others: bool) -> io::Result<Self> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        // A server that starts again need not wait for old connections to be forgotten.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        if beside_others {
            sockopt::set_socket_reuseport(&socket, true)?;
        }
        rustix::net::bind(&socket, &address)?;
        // For the first one only now, so that another server at this address would have been noticed.
        sockopt::set_socket_reuseport(&socket, true)?;
        rustix::net::listen(&socket, BACKLOG)?;
        let socket = TcpListener::from(socket);
        let local = socket.local_addr()?;
        Ok(Self { local, tls, socket })
    }
}

/// How much the connections of one shard may take of the memory, beside what each may anyhow.
#[derive(Debug, Clone, Copy)]
struct Most {
    /// Handshakes at a time.
    handshakes: usize,
    /// Bytes that wait to be sent, or for the rest of a message.
    kept: usize,
}

impl Most {
    /// One shard's part of what there may be.
    fn of_one_of(shards: usize) -> Self {
        Self {
            handshakes: (MAX_HANDSHAKES / shards).max(MIN_HANDSHAKES),
            kept: MAX_KEPT / shards,
        }
    }
}

/// All stream connections of a shard.
#[derive(Debug)]
pub(super) struct Streams {
    listeners: Vec<StreamListener>,
    shared: Shared,
    epoll: OwnedFd,
    most: Most,
    connections: Vec<Option<Connection>>,
    free: Vec<u32>,
    by_client: HashMap<FiveTuple, u32>,
    /// Whose handshakes were begun, the oldest first. Some are long over.
    handshakes: VecDeque<FiveTuple>,
    /// What connections keep beyond what each may anyhow, in bytes.
    kept: usize,
    /// What is to be ended as soon as nobody is at work with it.
    ending: Vec<(u32, End)>,
    next_sweep: Option<Instant>,
    /// Whether no connections are accepted until then.
    paused: bool,
}

impl Streams {
    /// Watches `listeners` by `epoll`, as one of so many shards.
    ///
    /// # Errors
    /// Where epoll refuses.
    pub(super) fn new(
        listeners: Vec<StreamListener>,
        shared: Shared,
        epoll: OwnedFd,
        shards: usize,
    ) -> io::Result<Self> {
        for (index, listener) in (0..).zip(&listeners) {
            let data = epoll::EventData::new_u64(Token::StreamListener(index).pack());
            epoll::add(&epoll, &listener.socket, data, epoll::EventFlags::IN)?;
        }
        Ok(Self {
            listeners,
            shared,
            epoll,
            most: Most::of_one_of(shards),
            connections: Vec::new(),
            free: Vec::new(),
            by_client: HashMap::new(),
            handshakes: VecDeque::new(),
            kept: 0,
            ending: Vec::new(),
            next_sweep: None,
            paused: false,
        })
    }

    /// The addresses where TCP is spoken, or TLS.
    pub(super) fn listen_addresses(&self, tls: bool) -> impl Iterator<Item = SocketAddr> {
        self.listeners
            .iter()
            .filter(move |listener| listener.tls.is_some() == tls)
            .map(|listener| listener.local)
    }

    /// How many connections there are.
    pub(super) fn len(&self) -> usize {
        self.by_client.len()
    }

    /// New connections over TLS see this certificate.
    pub(super) fn set_tls(&mut self, tls: &Arc<ServerConfig>) {
        for seen in self
            .listeners
            .iter_mut()
            .filter_map(|listener| listener.tls.as_mut())
        {
            seen.clone_from(tls);
        }
    }

    /// Takes new connections in, some at a time.
    pub(super) fn accept(&mut self, listener: u32, now: Instant, counters: &mut Counters) {
        for _ in 0..ACCEPTED_AT_ONCE {
            let listener = &self.listeners[listener as usize];
            let (socket, remote) = match listener.socket.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.pause(now, &error),
            };
            let client = FiveTuple {
                transport: Transport::Stream,
                local: socket.local_addr().unwrap_or(listener.local),
                remote,
            };
            let tls = listener.tls.clone();
            let source = Source::of(remote.ip());
            if !self.shared.connect(source) {
                counters.add(Count::ConnectionsEnded(End::Limit), 1);
                continue;
            }
            if let Err(error) = self.take_in(client, socket, tls, now) {
                tracing::debug!(client = %remote, %error, "a connection was not taken in");
                self.shared.disconnect(source);
            }
        }
    }

    /// There are no more files, most likely: the next sweep tries again, rather than epoll at once and for ever.
    fn pause(&mut self, now: Instant, error: &io::Error) {
        tracing::debug!(%error, "no connections are accepted for a second");
        self.watch_listeners(epoll::EventFlags::empty());
        self.paused = true;
        self.next_sweep.get_or_insert(now + SWEEP_EVERY);
    }

    fn watch_listeners(&self, flags: epoll::EventFlags) {
        for (index, listener) in (0..).zip(&self.listeners) {
            let data = epoll::EventData::new_u64(Token::StreamListener(index).pack());
            // What is watched already can always be watched for less or more.
            let _ = epoll::modify(&self.epoll, &listener.socket, data, flags);
        }
    }

    fn take_in(
        &mut self,
        client: FiveTuple,
        socket: TcpStream,
        tls: Option<Arc<ServerConfig>>,
        now: Instant,
    ) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        // A long queue in the kernel is delay that nobody sees.
        sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES)?;
        let connection = Connection::new(client, socket, tls, now).map_err(io::Error::other)?;
        if connection.is_handshaking() {
            self.note_handshake(client);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            // There are never more than files.
            (self.connections.len() - 1) as u32
        });
        let data = epoll::EventData::new_u64(Token::Stream(slot).pack());
        if let Err(error) = epoll::add(&self.epoll, &connection.socket, data, epoll::EventFlags::IN) {
            self.free.push(slot);
            return Err(error.into());
        }
        self.connections[slot as usize] = Some(connection);
        self.by_client.insert(client, slot);
        self.next_sweep.get_or_insert(now + SWEEP_EVERY);
        Ok(())
    }

    /// Where there are too many handshakes, the oldest end: a client that is really there needs some round trips only, and
    /// who holds many open keeps nobody else out. Half of the places are made free at once, so that looking for those that
    /// are over costs next to nothing for each.
    fn note_handshake(&mut self, client: FiveTuple) {
        if self.handshakes.len() >= self.most.handshakes {
            let (connections, by_client) = (&self.connections, &self.by_client);
            let slot = |client: &FiveTuple| by_client.get(client).copied();
            let connection = |slot: u32| connections[slot as usize].as_ref();
            let is_on = |client: &FiveTuple| {
                slot(client)
                    .and_then(connection)
                    .is_some_and(Connection::is_handshaking)
            };
            self.handshakes.retain(is_on);
            let surplus = self.handshakes.len().saturating_sub(self.most.handshakes / 2);
            let over = self.handshakes.drain(..surplus);
            self.ending
                .extend(over.filter_map(|client| Some((slot(&client)?, End::Limit))));
        }
        self.handshakes.push_back(client);
    }

    /// Reads from a connection into `plain`: its client, unless nothing is to be done. What is not used of `plain` is to
    /// be given to [`Self::keep`].
    pub(super) fn read(
        &mut self,
        slot: u32,
        now: Instant,
        buffer: &mut [u8],
        plain: &mut Vec<u8>,
    ) -> Option<FiveTuple> {
        let connection = self.connections.get_mut(slot as usize)?.as_mut()?;
        let client = connection.client;
        if let Err(why) = connection.read(now, buffer, plain) {
            self.ending.push((slot, why));
        }
        self.after(slot);
        Some(client)
    }

    /// Keeps the beginning of a message, if the client has shown who it is, or it is a short one.
    pub(super) fn keep(&mut self, slot: u32, begun: &[u8], has_allocation: bool) {
        let most = if has_allocation {
            MAX_BEGUN
        } else {
            MAX_BEGUN_BY_STRANGERS
        };
        if begun.len() > most {
            self.ending.push((slot, End::Malformed));
        } else if let Some(Some(connection)) = self.connections.get_mut(slot as usize) {
            if !connection.keep(begun, self.most.kept.saturating_sub(self.kept)) {
                self.ending.push((slot, End::Limit));
            }
            self.count_kept(slot);
        }
    }

    /// Ends a connection that carries something else.
    pub(super) fn malformed(&mut self, slot: u32) {
        self.ending.push((slot, End::Malformed));
    }

    /// Sends what is for a client over a stream, and counts what became of it; false for anything else.
    #[inline]
    pub(super) fn pass_on(&mut self, now: Instant, forward: &Forward<'_>, counters: &mut Counters) -> bool {
        let Forward::ToClient {
            to,
            envelope,
            payload,
        } = forward
        else {
            return false;
        };
        if to.transport != Transport::Stream {
            return false;
        }
        match self.send(now, to, [envelope.head(), payload, envelope.padding()]) {
            Some(Sent::Sent) => counters.relayed(Direction::ToClient, payload.len()),
            Some(Sent::Full) => counters.dropped(Direction::ToClient, Drop::SendBufferFull),
            None => counters.dropped(Direction::ToClient, Drop::SendFailed),
        }
        true
    }

    /// Sends an answer.
    pub(super) fn answer(&mut self, now: Instant, to: &FiveTuple, bytes: &[u8]) {
        // A client that takes nothing asks again, or is ended for it.
        let _ = self.send(now, to, [bytes, &[], &[]]);
    }

    /// Sends on what was pending.
    pub(super) fn has_room(&mut self, slot: u32, now: Instant) {
        if let Some(Some(connection)) = self.connections.get_mut(slot as usize)
            && connection.flush(now).is_err()
        {
            self.ending.push((slot, End::Client));
        }
        self.after(slot);
    }

    /// When [`Self::sweep`] is due.
    pub(super) fn next_sweep(&self) -> Option<Instant> {
        self.next_sweep
    }

    /// Looks once a second for connections that are of no use any more.
    pub(super) fn sweep(&mut self, now: Instant, has_allocation: impl Fn(&FiveTuple) -> bool) {
        if self.next_sweep.is_none_or(|due| now < due) {
            return;
        }
        if std::mem::take(&mut self.paused) {
            self.watch_listeners(epoll::EventFlags::IN);
        }
        for (slot, connection) in (0..).zip(&mut self.connections) {
            let Some(connection) = connection else { continue };
            connection.without_allocation = match connection.without_allocation {
                _ if has_allocation(&connection.client) => None,
                None => Some(now),
                since => since,
            };
            if let Some(why) = connection.is_over(now) {
                self.ending.push((slot, why));
            }
        }
        self.next_sweep = (!self.by_client.is_empty()).then(|| now + SWEEP_EVERY);
    }

    /// One connection that is over, closed: whose allocation, if any, ends too.
    pub(super) fn ended(&mut self, counters: &mut Counters) -> Option<FiveTuple> {
        while let Some((slot, why)) = self.ending.pop() {
            // It may have been named twice.
            let Some(connection) = self.connections.get_mut(slot as usize).and_then(Option::take) else {
                continue;
            };
            self.kept -= connection.counted;
            self.free.push(slot);
            self.by_client.remove(&connection.client);
            self.shared.disconnect(Source::of(connection.client.remote.ip()));
            counters.add(Count::ConnectionsEnded(why), 1);
            tracing::debug!(client = %connection.client.remote, why = why.label(), "connection ended");
            return Some(connection.client);
        }
        None
    }

    fn send(&mut self, now: Instant, to: &FiveTuple, parts: [&[u8]; 3]) -> Option<Sent> {
        let slot = *self.by_client.get(to)?;
        let room = self.most.kept.saturating_sub(self.kept);
        let connection = self.connections.get_mut(slot as usize)?.as_mut()?;
        let sent = connection.send(now, parts, room);
        if sent.is_err() {
            self.ending.push((slot, End::Client));
        }
        self.after(slot);
        sent.ok()
    }

    /// What is to be done after all that may have changed what a connection keeps.
    fn after(&mut self, slot: u32) {
        self.count_kept(slot);
        self.wait_for_room(slot);
    }

    fn count_kept(&mut self, slot: u32) {
        if let Some(Some(connection)) = self.connections.get_mut(slot as usize) {
            let keeps = connection.keeps();
            self.kept = self.kept - connection.counted + keeps;
            connection.counted = keeps;
        }
    }

    /// Lets epoll say when the socket has room, if something waits for that.
    fn wait_for_room(&mut self, slot: u32) {
        let Some(Some(connection)) = self.connections.get_mut(slot as usize) else {
            return;
        };
        let waits = connection.has_pending();
        if waits == connection.waits_for_room {
            return;
        }
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, waits);
        let data = epoll::EventData::new_u64(Token::Stream(slot).pack());
        match epoll::modify(&self.epoll, &connection.socket, data, flags) {
            Ok(()) => connection.waits_for_room = waits,
            Err(_) => self.ending.push((slot, End::Client)),
        }
    }
}

const BACKLOG: i32 = 1024;
const ACCEPTED_AT_ONCE: usize = 64;
const SEND_BUFFER_BYTES: usize = 256 << 10;
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How many handshakes may be under way at a time, in all: at 40 KiB each at most, a twenty-fifth of what the DaemonSet
/// may have.
const MAX_HANDSHAKES: usize = 1024;
/// However many shards there are.
const MIN_HANDSHAKES: usize = 16;
/// What all connections may keep, beside what each may anyhow.
const MAX_KEPT: usize = 128 << 20;
/// The longest message, padded.
const MAX_BEGUN: usize = 20 + 65_536;
/// Requests are far shorter; who has no allocation sends nothing else.
const MAX_BEGUN_BY_STRANGERS: usize = 2048;

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "any instant serves as the beginning of a held clock"
)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;
    use crate::core::shared::Limits;
    use crate::core::wire::{ChannelNumber, Envelope};
    use crate::shell::connection::{HANDSHAKE, STALLED, WITHOUT_ALLOCATION};

    #[test]
    fn a_connection_without_an_allocation_is_ended_after_a_while_whatever_it_says() {
        let (mut streams, now, mut client) = connected(Limits::default());
        let late = now + WITHOUT_ALLOCATION;
        client.write_all(&[0, 1, 0, 0, 0x21]).unwrap();
        let _ = streams.read(0, late - SWEEP_EVERY, &mut [0; 64], &mut Vec::new());
        streams.sweep(late - Duration::from_millis(1), |_| false);
        assert_eq!(end_all(&mut streams), []);
        streams.sweep(late + SWEEP_EVERY, |_| false);
        assert_eq!(end_all(&mut streams), [End::Idle]);
        assert_eq!(
            (streams.len(), streams.next_sweep()),
            (0, Some(late + SWEEP_EVERY * 2))
        );
        assert_eq!(client.read(&mut [0; 8]).unwrap_or(0), 0, "closed");
    }

    #[test]
    fn a_connection_with_an_allocation_stays_and_gets_time_after_it() {
        let (mut streams, now, _client) = connected(Limits::default());
        let much_later = now + WITHOUT_ALLOCATION * 10;
        streams.sweep(much_later, |_| true);
        streams.sweep(much_later + SWEEP_EVERY, |_| false);
        let since = much_later + SWEEP_EVERY;
        streams.sweep(since + WITHOUT_ALLOCATION - Duration::from_millis(1), |_| false);
        assert_eq!(end_all(&mut streams), []);
        streams.sweep(since + WITHOUT_ALLOCATION + SWEEP_EVERY, |_| false);
        assert_eq!(end_all(&mut streams), [End::Idle]);
    }

    #[test]
    fn a_client_that_takes_nothing_loses_packets_and_is_ended() {
        let (mut streams, now, mut client) = connected(Limits::default());
        let to = *streams.by_client.keys().next().unwrap();
        let (payload, mut counters) = ([7; 1200], Counters::default());
        let full = Count::Dropped(Direction::ToClient, Drop::SendBufferFull);
        let mut sent = 0;
        while counters.get(full) == 0 {
            let forward = to_client(to, &payload);
            assert!(streams.pass_on(now, &forward, &mut counters));
            sent += 1;
            assert!(sent < 100_000, "what is kept is bounded");
        }
        streams.sweep(now + SWEEP_EVERY, |_| true);
        assert_eq!(end_all(&mut streams), []);
        // It takes a little, so it gets as much time again.
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        while client.read(&mut vec![0; 1 << 20]).is_ok() {
            streams.has_room(0, now + STALLED / 2);
        }
        assert!(!streams.connections[0].as_ref().unwrap().has_pending());
        counters = Counters::default();
        while counters.get(full) == 0 {
            streams.pass_on(now + STALLED, &to_client(to, &payload), &mut counters);
        }
        streams.sweep(now + STALLED * 2, |_| true);
        assert_eq!(end_all(&mut streams), [End::Slow]);
    }

    #[test]
    fn what_was_pending_arrives_whole_and_in_order() {
        let (mut streams, now, mut client) = connected(Limits::default());
        let to = *streams.by_client.keys().next().unwrap();
        let mut counters = Counters::default();
        let full = Count::Dropped(Direction::ToClient, Drop::SendBufferFull);
        let mut expected = Vec::new();
        for n in 0_u32.. {
            let payload = n.to_be_bytes().repeat(250);
            streams.pass_on(now, &to_client(to, &payload), &mut counters);
            if counters.get(full) > 0 {
                break;
            }
            expected.extend(Envelope::channel_data(channel(), 1000, true).head());
            expected.extend(payload);
        }
        client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let (mut got, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        while let Ok(length @ 1..) = client.read(&mut buffer) {
            got.extend_from_slice(&buffer[..length]);
            streams.has_room(0, now);
        }
        assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
    }

    #[test]
    fn a_stranger_can_not_begin_a_long_message() {
        let (mut streams, _, _client) = connected(Limits::default());
        streams.keep(0, &[0; MAX_BEGUN_BY_STRANGERS], false);
        assert_eq!(end_all(&mut streams), []);
        streams.keep(0, &[0; MAX_BEGUN_BY_STRANGERS + 1], true);
        assert_eq!(end_all(&mut streams), []);
        streams.keep(0, &[0; MAX_BEGUN_BY_STRANGERS + 1], false);
        assert_eq!(end_all(&mut streams), [End::Malformed]);
    }

    #[test]
    fn a_handshake_is_to_be_made_soon() {
        let (mut streams, now) = listening(Some(tls()), Limits::default());
        let _client = connect(&mut streams, now);
        streams.sweep(now + HANDSHAKE - Duration::from_millis(1), |_| false);
        assert_eq!(end_all(&mut streams), []);
        streams.sweep(now + HANDSHAKE + SWEEP_EVERY, |_| false);
        assert_eq!(end_all(&mut streams), [End::Idle]);
    }

    #[test]
    fn the_oldest_handshakes_make_room_for_new_ones() {
        let (mut streams, now) = listening(Some(tls()), Limits::default());
        streams.most.handshakes = 4;
        let clients: Vec<_> = (0..4).map(|_| connect(&mut streams, now)).collect();
        assert_eq!(end_all(&mut streams), []);
        let _last = connect(&mut streams, now);
        assert_eq!(end_all(&mut streams), [End::Limit]);
        let is_there = |client: &TcpStream| {
            let remote = client.local_addr().unwrap();
            streams.by_client.keys().any(|known| known.remote == remote)
        };
        let there: Vec<_> = clients.iter().map(is_there).collect();
        assert_eq!(there, [false, false, true, true]);
    }

    #[test]
    fn handshakes_that_are_over_need_no_room() {
        let (mut streams, now) = listening(Some(tls()), Limits::default());
        streams.most.handshakes = 4;
        for _ in 0..20 {
            drop(connect(&mut streams, now));
            let slot = *streams.by_client.values().next().unwrap();
            let _ = streams.read(slot, now, &mut [0; 64], &mut Vec::new());
            assert_eq!(end_all(&mut streams), [End::Client]);
        }
        assert!(streams.handshakes.len() <= 4);
    }

    #[test]
    fn what_is_kept_for_all_connections_is_bounded_and_each_has_some_of_its_own() {
        let (mut streams, now) = listening(None, Limits::default());
        streams.most.kept = 1 << 20;
        let clients: Vec<_> = (0..12).map(|_| connect(&mut streams, now)).collect();
        let mut counters = Counters::default();
        let full = Count::Dropped(Direction::ToClient, Drop::SendBufferFull);
        for client in &clients {
            let to = five_tuple(&streams, client);
            let before = counters.get(full);
            while counters.get(full) < before + 10 {
                streams.pass_on(now, &to_client(to, &[7; 1200]), &mut counters);
            }
        }
        let pending = |streams: &Streams| {
            let connections = streams.connections.iter().flatten();
            connections.map(Connection::keeps).collect::<Vec<_>>()
        };
        let keeps = pending(&streams);
        assert_eq!(keeps.iter().sum::<usize>(), streams.kept);
        // Half of one is what a queue may grow beyond it, for its first message.
        assert!(streams.kept <= (1 << 20) + (128 << 10), "{keeps:?}");
        assert!(keeps[0] > 200 << 10 && keeps[11] < 16 << 10, "{keeps:?}");
        assert!(streams.connections.iter().flatten().all(Connection::has_pending));
        // What one has taken is free for another.
        let mut first = &clients[0];
        first.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let slot = streams.by_client[&five_tuple(&streams, first)];
        while first.read(&mut vec![0; 1 << 20]).is_ok() {
            streams.has_room(slot, now);
        }
        let last = five_tuple(&streams, &clients[11]);
        for _ in 0..100 {
            streams.pass_on(now, &to_client(last, &[7; 1200]), &mut counters);
        }
        let keeps = pending(&streams);
        assert!(keeps[0] == 0 && keeps[11] > 64 << 10, "{keeps:?}");
        drop(clients);
        for slot in 0..12 {
            let _ = streams.read(slot, now, &mut [0; 64], &mut Vec::new());
        }
        end_all(&mut streams);
        assert_eq!((streams.len(), streams.kept), (0, 0));
    }

    #[test]
    fn the_beginning_of_a_long_message_takes_room_as_long_as_it_is_kept() {
        let (mut streams, now, _client) = connected(Limits::default());
        streams.keep(0, &[0; MAX_BEGUN], true);
        assert!(streams.kept > 60 << 10);
        let _ = streams.read(0, now, &mut [0; 64], &mut Vec::new());
        assert_eq!(streams.kept, 0);
        streams.most.kept = 0;
        streams.keep(0, &[0; MAX_BEGUN_BY_STRANGERS], true);
        assert_eq!((streams.kept, end_all(&mut streams)), (0, vec![]));
        let _ = streams.read(0, now, &mut [0; 64], &mut Vec::new());
        streams.keep(0, &[0; MAX_BEGUN], true);
        assert_eq!(end_all(&mut streams), [End::Limit]);
    }

    #[test]
    fn a_listener_that_can_not_accept_rests_for_a_second() {
        let (mut streams, now, _client) = connected(Limits::default());
        let _waiting = TcpStream::connect(streams.listeners[0].local).unwrap();
        assert!(has_event(&streams));
        streams.pause(now, &io::Error::other("no more files"));
        assert!(!has_event(&streams));
        streams.sweep(now + SWEEP_EVERY, |_| true);
        assert!(has_event(&streams));
    }

    fn has_event(streams: &Streams) -> bool {
        let mut events = Vec::with_capacity(8);
        let no_time = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let buffer = rustix::buffer::spare_capacity(&mut events);
        epoll::wait(&streams.epoll, buffer, Some(&no_time)).unwrap() > 0
    }

    #[test]
    fn a_source_has_so_many_connections() {
        let limits = Limits {
            connections_per_source: 1,
            ..Limits::default()
        };
        let (mut streams, now, first) = connected(limits);
        let address = streams.listeners[0].local;
        let mut counters = Counters::default();
        let mut second = TcpStream::connect(address).unwrap();
        streams.accept(0, now, &mut counters);
        assert_eq!(counters.get(Count::ConnectionsEnded(End::Limit)), 1);
        assert_eq!(second.read(&mut [0; 8]).unwrap_or(0), 0, "closed");
        drop(first);
        let _ = streams.read(0, now, &mut [0; 64], &mut Vec::new());
        assert_eq!(end_all(&mut streams), [End::Client]);
        let _third = TcpStream::connect(address).unwrap();
        streams.accept(0, now, &mut counters);
        assert_eq!(streams.len(), 1);
    }

    fn connected(limits: Limits) -> (Streams, Instant, TcpStream) {
        let (mut streams, now) = listening(None, limits);
        let client = connect(&mut streams, now);
        assert_eq!(streams.len(), 1);
        (streams, now, client)
    }

    fn listening(tls: Option<Arc<ServerConfig>>, limits: Limits) -> (Streams, Instant) {
        let listener = StreamListener::bind("127.0.0.1:0".parse().unwrap(), tls).unwrap();
        let shared = Shared::new("50000-50009".parse().unwrap(), limits);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let streams = Streams::new(vec![listener], shared, epoll, 1).unwrap();
        (streams, Instant::now())
    }

    fn connect(streams: &mut Streams, now: Instant) -> TcpStream {
        let client = TcpStream::connect(streams.listeners[0].local).unwrap();
        streams.accept(0, now, &mut Counters::default());
        client
    }

    fn five_tuple(streams: &Streams, client: &TcpStream) -> FiveTuple {
        let remote = client.local_addr().unwrap();
        *streams
            .by_client
            .keys()
            .find(|known| known.remote == remote)
            .unwrap()
    }

    fn tls() -> Arc<ServerConfig> {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into());
        Arc::new(config.unwrap())
    }

    fn end_all(streams: &mut Streams) -> Vec<End> {
        let mut counters = Counters::default();
        while streams.ended(&mut counters).is_some() {}
        End::ALL
            .into_iter()
            .filter(|why| counters.get(Count::ConnectionsEnded(*why)) > 0)
            .collect()
    }

    fn to_client(to: FiveTuple, payload: &[u8]) -> Forward<'_> {
        Forward::ToClient {
            to,
            envelope: Envelope::channel_data(channel(), payload.len() as u16, true),
            payload,
        }
    }

    fn channel() -> ChannelNumber {
        ChannelNumber::new(0x4000).unwrap()
    }
}
