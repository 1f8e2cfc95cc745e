//! One shard: a loop over epoll that feeds the core and does what it says.
//!
//! ```text
//!  epoll ─┬─ listener ─► client_input ─┐
//!         ├─ relay ────► peer_input ───┼─► Forward: send at once      commands: answer, open, close
//!         ├─ stream ───► client_input ─┤
//!         ├─ eventfd ──► drain         │
//!         └─ timeout ──► handle_timeout┘
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::fd::{AsFd, OwnedFd};
use rustls::ServerConfig;

use super::clock;
use super::datagrams::Inbox;
use super::gathering::Gathering;
use super::metrics::Meter;
use super::outbox::{Outbox, Segmentation};
use super::sockets::{Listener, Sockets, open_failure, route_to, udp};
use super::streams::{StreamListener, Streams, first_message};
use crate::addresses::Addresses;
use crate::core::server::{Command, OpenFailure, Rules, Server};
use crate::core::shared::Shared;
use crate::core::wire::NotOurs;
use crate::core::{FiveTuple, Now, RelayId, Transport};

/// How another thread tells a shard to drain, or to go by other rules; and how shards know of each other.
#[derive(Debug)]
pub(super) struct Control {
    /// How many shards have allocations, of all.
    busy_shards: Arc<AtomicUsize>,
    /// Whether this one is among them.
    is_busy: AtomicBool,
    draining: AtomicBool,
    news: Mutex<Option<News>>,
    wake: OwnedFd,
}

/// What a shard is to go by from now on.
#[derive(Debug, Clone)]
pub(super) struct News {
    /// Who may use the server, and whom they may reach.
    pub(super) rules: Rules,
    /// What clients over TLS see.
    pub(super) tls: Option<Arc<ServerConfig>>,
}

impl Control {
    /// One for each of `shards`.
    pub(super) fn of_shards(shards: usize) -> io::Result<Vec<Arc<Self>>> {
        let busy_shards = Arc::new(AtomicUsize::new(0));
        (0..shards)
            .map(|_| Self::new(busy_shards.clone()).map(Arc::new))
            .collect()
    }

    fn new(busy_shards: Arc<AtomicUsize>) -> io::Result<Self> {
        Ok(Self {
            busy_shards,
            is_busy: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            news: Mutex::new(None),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Tells it.
    pub(super) fn drain(&self) -> io::Result<()> {
        self.draining.store(true, Ordering::Release);
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// Tells it news.
    pub(super) fn reload(&self, news: News) -> io::Result<()> {
        *self.news.lock().unwrap_or_else(PoisonError::into_inner) = Some(news);
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    fn take_news(&self) -> Option<News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Says whether this shard has allocations. Only the shard itself says so.
    fn set_busy(&self, busy: bool) {
        if self.is_busy.load(Ordering::Relaxed) != busy {
            self.is_busy.store(busy, Ordering::Relaxed);
            if busy {
                self.busy_shards.fetch_add(1, Ordering::Relaxed);
            } else {
                self.busy_shards.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether it was told.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}

/// What an epoll event is about, packed into its 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Wake,
    Listener(u32),
    Relay(RelayId),
    StreamListener(u32),
    Stream(u32),
}

impl Token {
    pub(super) fn pack(self) -> u64 {
        match self {
            Self::Wake => 0,
            Self::Listener(index) => (1 << 32) | u64::from(index),
            Self::Relay(RelayId(relay)) => (2 << 32) | u64::from(relay),
            Self::StreamListener(index) => (3 << 32) | u64::from(index),
            Self::Stream(slot) => (4 << 32) | u64::from(slot),
        }
    }

    fn unpack(bits: u64) -> Self {
        let low = bits as u32;
        match bits >> 32 {
            1 => Self::Listener(low),
            2 => Self::Relay(RelayId(low)),
            3 => Self::StreamListener(low),
            4 => Self::Stream(low),
            _ => Self::Wake,
        }
    }
}

/// Where clients come in by streams.
#[derive(Debug)]
pub(super) struct StreamSetup {
    /// The listeners.
    pub(super) listeners: Vec<StreamListener>,
    /// What TLS listeners show.
    pub(super) tls: Option<Arc<ServerConfig>>,
    /// Who counts connections.
    pub(super) shared: Shared,
}

/// A server with its sockets.
#[derive(Debug)]
pub(super) struct Shard {
    server: Server<StdRng>,
    sockets: Sockets,
    streams: Streams,
    addresses: Addresses,
    grace: Duration,
    meter: Meter,
    control: Arc<Control>,
    epoll: OwnedFd,
    segmentation: Segmentation,
    /// What is read from a stream.
    buffer: Vec<u8>,
    /// What a stream's client said.
    plain: Vec<u8>,
    rounds: u64,
    /// When the grace period is over, once draining.
    deadline: Option<Instant>,
}

impl Shard {
    pub(super) fn new(
        server: Server<StdRng>,
        listeners: Vec<Listener>,
        streams: StreamSetup,
        addresses: Addresses,
        grace: Duration,
        meter: Meter,
        control: Arc<Control>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        watch(&epoll, &control.wake, Token::Wake)?;
        for (index, listener) in (0..).zip(&listeners) {
            watch(&epoll, &listener.socket, Token::Listener(index))?;
        }
        Ok(Self {
            server,
            sockets: Sockets::new(listeners),
            streams: Streams::new(streams.listeners, streams.tls, streams.shared, epoll.try_clone()?)?,
            addresses,
            grace,
            meter,
            control,
            epoll,
            segmentation: Segmentation::default(),
            buffer: vec![0; STREAM_BYTES],
            plain: Vec::new(),
            rounds: 0,
            deadline: None,
        })
    }

    pub(super) fn listen_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.sockets.listeners.iter().map(|listener| listener.local)
    }

    /// The addresses where TCP is spoken, or TLS.
    pub(super) fn stream_addresses(&self, tls: bool) -> impl Iterator<Item = SocketAddr> {
        self.streams.listen_addresses(tls)
    }

    /// Serves until it has drained.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_PER_WAIT);
        let mut inbox = Inbox::new(MESSAGES_PER_READ);
        let mut gathering = Gathering::new(clock::read().instant);
        // The kernel may round a sleep up by so much; by default it is a tenth of our pause.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(TIMER_SLACK_NS))?;
        while !self.is_done(clock::read().instant) {
            let (began, arrivals) = self.turn(&mut events, &mut inbox)?;
            if let Some(pause) = gathering.pause(began, clock::read().instant, arrivals) {
                std::thread::sleep(pause);
            }
        }
        tracing::info!(allocations = self.server.allocation_count(), "drained");
        Ok(())
    }

    /// One round: waits, and does all that has come up. Gives when something had, and at how many sockets.
    fn turn(&mut self, events: &mut Vec<epoll::Event>, inbox: &mut Inbox) -> io::Result<(Instant, usize)> {
        self.wait(events)?;
        let arrivals = events.len();
        let now = clock::read();
        self.rounds = self.rounds.wrapping_add(u64::from(!events.is_empty()));
        let is_sample = !events.is_empty() && self.rounds.is_multiple_of(ROUNDS_PER_SAMPLE);
        for event in events.drain(..) {
            match Token::unpack(event.data.u64()) {
                Token::Wake => self.wake(now.instant),
                Token::Listener(listener) => self.read_listener(listener, now, inbox),
                Token::Relay(relay) => self.read_relay(relay, now, inbox),
                Token::StreamListener(listener) => {
                    self.streams
                        .accept(listener, now.instant, self.server.counters_mut());
                }
                Token::Stream(slot) => self.read_stream(slot, now),
            }
        }
        self.server.handle_timeout(now.instant);
        self.streams
            .sweep(now.instant, |client| self.server.has_allocation(client));
        self.do_commands(now);
        self.end_streams(now);
        self.control.set_busy(self.server.allocation_count() > 0);
        self.meter.publish_connections(self.streams.len());
        if is_sample {
            self.meter
                .took(clock::read().instant.saturating_duration_since(now.instant));
        }
        self.meter
            .publish(self.server.counters(), self.server.allocation_count());
        Ok((now.instant, arrivals))
    }

    fn wait(&self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        let timeouts = [
            self.server.next_timeout(),
            self.deadline,
            self.streams.next_sweep(),
        ];
        let now = clock::read().instant;
        // While draining, another shard may become the last one.
        let look = self.deadline.map(|_| now + DRAINED_LOOK);
        let next = timeouts.into_iter().flatten().chain(look).min();
        let timeout = next.map(|next| until(next, now));
        match epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// All shards end together: if one closed its listeners earlier, the kernel would give its part of the clients, and
    /// some of the others', to shards that don't know them.
    fn is_done(&self, now: Instant) -> bool {
        let nobody_busy = || self.control.busy_shards.load(Ordering::Relaxed) == 0;
        self.deadline
            .is_some_and(|deadline| now >= deadline || nobody_busy())
    }

    fn wake(&mut self, now: Instant) {
        // The number read says only that it was woken.
        let _ = rustix::io::read(&self.control.wake, &mut [0_u8; 8]);
        if let Some(news) = self.control.take_news() {
            self.server.reload(news.rules);
            self.streams.set_tls(news.tls);
        }
        if self.control.is_draining() && self.deadline.is_none() {
            self.server.drain();
            self.deadline = Some(now + self.grace);
            let (allocations, grace_s) = (self.server.allocation_count(), self.grace.as_secs());
            tracing::info!(allocations, grace_s, "draining: no new allocations");
        }
    }

    /// Reads once: what is left is there in the next round, so that one busy client doesn't starve the others.
    fn read_listener(&mut self, index: u32, now: Now, inbox: &mut Inbox) {
        let listener = &self.sockets.listeners[index as usize];
        let local = listener.local;
        if !received(inbox.receive(&listener.socket)) {
            return;
        }
        let mut outbox = Outbox::default();
        for message in inbox.messages() {
            let from = FiveTuple {
                transport: Transport::Udp,
                local,
                remote: message.from,
            };
            for datagram in message.datagrams() {
                outbox.push(self.server.client_input(now, from, datagram));
                self.after_input(&mut outbox, now);
            }
        }
        self.flush(&mut outbox);
    }

    fn read_relay(&mut self, relay: RelayId, now: Now, inbox: &mut Inbox) {
        // It may have been closed by an event before this one.
        let Some(socket) = self.sockets.relay(relay) else {
            return;
        };
        if !received(inbox.receive(socket)) {
            return;
        }
        let mut outbox = Outbox::default();
        for message in inbox.messages() {
            for datagram in message.datagrams() {
                let forward = self.server.peer_input(now, relay, message.from, datagram);
                let counters = self.server.counters_mut();
                if !self.streams.pass_on(now.instant, &forward, counters) {
                    outbox.push(forward);
                }
                if outbox.is_full() {
                    self.flush(&mut outbox);
                }
            }
        }
        self.flush(&mut outbox);
    }

    /// Makes room, and does what is to be done: what is on its way goes first, before a relay is closed or its number
    /// another's.
    #[inline]
    fn after_input(&mut self, outbox: &mut Outbox<'_>, now: Now) {
        if outbox.is_full() || self.server.has_commands() {
            self.flush(outbox);
            self.do_commands(now);
        }
    }

    fn flush(&mut self, outbox: &mut Outbox<'_>) {
        outbox.flush(&self.sockets, &mut self.segmentation, self.server.counters_mut());
    }

    /// Sends on what waited for room, reads once, and does what the client says.
    fn read_stream(&mut self, slot: u32, now: Now) {
        self.streams.has_room(slot, now.instant);
        let mut plain = std::mem::take(&mut self.plain);
        let read = self.streams.read(slot, now.instant, &mut self.buffer, &mut plain);
        if let Some(from) = read {
            self.hear(slot, from, &plain, now);
        }
        plain.clear();
        self.plain = plain;
    }

    fn hear(&mut self, slot: u32, from: FiveTuple, mut bytes: &[u8], now: Now) {
        let mut outbox = Outbox::default();
        loop {
            match first_message(bytes) {
                Ok(Some((message, rest))) => {
                    outbox.push(self.server.client_input(now, from, message));
                    self.after_input(&mut outbox, now);
                    bytes = rest;
                }
                Ok(None) => {
                    self.flush(&mut outbox);
                    let has_allocation = self.server.has_allocation(&from);
                    return self.streams.keep(slot, bytes, has_allocation);
                }
                Err(NotOurs) => {
                    self.flush(&mut outbox);
                    return self.streams.malformed(slot);
                }
            }
        }
    }

    /// With a stream's connection its allocation ends.
    fn end_streams(&mut self, now: Now) {
        while let Some(client) = self.streams.ended(self.server.counters_mut()) {
            self.server.client_gone(&client);
        }
        self.do_commands(now);
    }

    #[inline]
    fn do_commands(&mut self, now: Now) {
        while let Some(command) = self.server.poll_command() {
            self.do_command(now, command);
        }
    }

    fn do_command(&mut self, now: Now, command: Command) {
        match command {
            Command::ToClient { to, bytes } if to.transport == Transport::Stream => {
                self.streams.answer(now.instant, &to, &bytes);
            }
            Command::ToClient { to, bytes } => {
                if let Err(error) = self.sockets.answer(&to, &bytes) {
                    tracing::debug!(client = %to.remote, %error, "an answer was not sent");
                }
            }
            Command::OpenRelay { relay, bind, client } => {
                let opened = self.open(relay, bind, &client);
                self.server.relay_opened(now, relay, opened);
            }
            Command::CloseRelay { relay } => {
                tracing::debug!(relay = relay.0, "allocation ended");
                self.sockets.remove(relay);
            }
        }
    }

    fn open(&mut self, relay: RelayId, bind: SocketAddr, client: &FiveTuple) -> Result<IpAddr, OpenFailure> {
        let open = || {
            let reached = reached_by(client)?;
            let bind = SocketAddr::new(self.addresses.bind(reached, bind.ip()), bind.port());
            let socket = udp(bind)?;
            watch(&self.epoll, &socket, Token::Relay(relay))?;
            Ok((self.addresses.told(reached, bind.ip()), socket))
        };
        let (advertised, socket) = open().map_err(|error: io::Error| {
            tracing::debug!(%bind, %error, "a relay was not opened");
            open_failure(&error)
        })?;
        self.sockets.insert(relay, socket);
        tracing::debug!(relay = relay.0, client = %client.remote, %bind, %advertised, "allocation made");
        Ok(advertised)
    }
}

/// The address of ours that a client sends to.
fn reached_by(client: &FiveTuple) -> io::Result<IpAddr> {
    match client.local.ip() {
        ip if ip.is_unspecified() => route_to(client.remote),
        ip => Ok(ip),
    }
}

/// Whether there is something. An error of an earlier datagram (ICMP) ends this socket's round, no more: epoll says so
/// if there is something left to read.
fn received(result: io::Result<usize>) -> bool {
    result.is_ok()
}

fn watch(epoll: &OwnedFd, socket: impl AsFd, token: Token) -> io::Result<()> {
    epoll::add(
        epoll,
        socket,
        epoll::EventData::new_u64(token.pack()),
        epoll::EventFlags::IN,
    )?;
    Ok(())
}

/// A millisecond more than there is, since the kernel may round down and the loop would then spin.
fn until(next: Instant, now: Instant) -> Timespec {
    let left = next.saturating_duration_since(now) + Duration::from_millis(1);
    Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: i64::from(left.subsec_nanos()),
    }
}

const EVENTS_PER_WAIT: usize = 256;
/// How soon a draining shard sees that all others are done.
const DRAINED_LOOK: Duration = Duration::from_millis(50);
/// How many messages are read from a socket at once, each one datagram or several merged ones.
const MESSAGES_PER_READ: usize = 64;
const TIMER_SLACK_NS: u64 = 5_000;
const ROUNDS_PER_SAMPLE: u64 = 64;
/// What is read from a stream at once.
const STREAM_BYTES: usize = 65_536;

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the test has sockets of its own")]
mod tests {
    use std::collections::HashMap;
    use std::net::UdpSocket;

    use prometheus::Registry;
    use rand::SeedableRng as _;
    use stun_types::attribute::{AttributeWrite, Nonce, Realm, Username};
    use stun_types::message::{
        IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageIntegrityCredentials, MessageWrite as _,
        MessageWriteExt as _, MessageWriteVec, Method,
    };
    use turn_types::attribute::{ChannelNumber, RequestedTransport, XorPeerAddress};
    use turn_types::message::{ALLOCATE, CHANNEL_BIND};

    use super::*;
    use crate::core::auth::Users;
    use crate::core::family::ByFamily;
    use crate::core::nonce::Nonces;
    use crate::core::peers::PeerPolicy;
    use crate::core::server::Config;
    use crate::core::shared::{Limits, Shared};
    use crate::core::throttle::Rate;

    #[test]
    fn a_packet_through_the_sockets_allocates_nothing() {
        let (mut shard, client, peer) = with_channel();
        let mut events = Vec::with_capacity(EVENTS_PER_WAIT);
        let mut inbox = Inbox::new(MESSAGES_PER_READ);
        let mut buffer = [0; 2048];
        let channel_data = [&[0x40, 0x00, 0x04, 0x00][..], &[1; 1024]].concat();
        let counted = allocation_counter::measure(|| {
            for _ in 0..100 {
                client.send(&channel_data).unwrap();
                shard.turn(&mut events, &mut inbox).unwrap();
                let (length, relay) = peer.recv_from(&mut buffer).unwrap();
                peer.send_to(&buffer[..length], relay).unwrap();
                shard.turn(&mut events, &mut inbox).unwrap();
                let length = client.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..length], channel_data);
            }
        });
        assert_eq!(counted.count_total, 0);
    }

    #[test]
    fn each_client_is_served_by_one_of_several_shards_and_all_shards_serve() {
        let shards = shards(3);
        let server = shards[0].listen_addresses().next().unwrap();
        let controls: Vec<_> = shards.iter().map(|shard| shard.control.clone()).collect();
        let run = |shard: Shard| std::thread::spawn(|| shard.run().unwrap());
        let threads: Vec<_> = shards.into_iter().map(run).collect();
        let ask = |client: &UdpSocket, request: &[u8]| {
            client.send(request).unwrap();
            received_by(client)
        };
        let pairs: Vec<_> = (0..40).map(|_| bind_channel(server, ask)).collect();
        for (number, (client, peer)) in (0_u8..).zip(&pairs) {
            let payload = [number; 1000];
            let channel_data = [&[0x40, 0x00, 0x03, 0xE8][..], &payload].concat();
            client.send(&channel_data).unwrap();
            let mut buffer = [0; 2048];
            let (length, relay) = peer.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..length], payload);
            peer.send_to(&payload, relay).unwrap();
            assert_eq!(received_by(client), channel_data);
        }
        // That one of three stays without any of 40 clients happens once in millions of runs.
        assert_eq!(controls[0].busy_shards.load(Ordering::Relaxed), 3);
        controls.iter().for_each(|control| control.drain().unwrap());
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn an_address_that_another_server_has_is_not_shared_with_it() {
        let one = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        one.beside().unwrap();
        let error = Listener::bind(one.local).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_token_comes_out_as_it_went_in() {
        for token in [Token::Wake, Token::Listener(3), Token::Relay(RelayId(u32::MAX))] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }

    /// A shard, a client with channel 0x4000 on it, and the peer behind that channel.
    fn with_channel() -> (Shard, UdpSocket, UdpSocket) {
        let mut shard = shards(1).remove(0);
        let address = shard.listen_addresses().next().unwrap();
        let (client, peer) = bind_channel(address, |client, request| ask(&mut shard, client, request));
        (shard, client, peer)
    }

    /// A client with channel 0x4000 on it, and the peer behind that channel.
    fn bind_channel(
        server: SocketAddr,
        mut ask: impl FnMut(&UdpSocket, &[u8]) -> Vec<u8>,
    ) -> (UdpSocket, UdpSocket) {
        let [client, peer] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        for socket in [&client, &peer] {
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        }
        client.connect(server).unwrap();
        let challenge = ask(&client, &request(ALLOCATE, "none", &[]));
        let nonce = Message::from_bytes(&challenge)
            .unwrap()
            .attribute::<Nonce>()
            .unwrap()
            .nonce()
            .to_owned();
        let udp = RequestedTransport::new(17);
        ask(&client, &request(ALLOCATE, &nonce, &[&udp]));
        let number = ChannelNumber::new(0x4000);
        let address = XorPeerAddress::new(peer.local_addr().unwrap(), 1_u128.into());
        let bound = ask(&client, &request(CHANNEL_BIND, &nonce, &[&number, &address]));
        assert!(
            Message::from_bytes(&bound)
                .unwrap()
                .has_class(stun_types::message::MessageClass::Success)
        );
        (client, peer)
    }

    /// Shards at one address.
    fn shards(count: usize) -> Vec<Shard> {
        let config = Config {
            realm: "r".to_owned(),
            rules: Rules {
                users: Users {
                    secrets: vec![],
                    fixed: HashMap::from([("u".to_owned(), "p".to_owned())]),
                },
                peers: PeerPolicy::new(vec!["127.0.0.0/8".parse().unwrap()], [], true),
            },
            relay_ips: ByFamily::first_of(["127.0.0.1".parse().unwrap()]),
            shared: Shared::new("20000-60000".parse().unwrap(), Limits::default()),
            alternates: ByFamily::default(),
            unproven_answers: NO_LIMIT,
            auth_failures: NO_LIMIT,
        };
        let nonces = Nonces::new([7; 32], clock::read().instant);
        let first = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut listeners: Vec<_> = (1..count).map(|_| first.beside().unwrap()).collect();
        listeners.push(first);
        let meter = Meter::new(&Registry::new()).unwrap();
        let controls = Control::of_shards(count).unwrap();
        let shard = |(listener, control)| {
            let streams = StreamSetup {
                listeners: vec![],
                tls: None,
                shared: config.shared.clone(),
            };
            let server = Server::new(config.clone(), nonces.clone(), StdRng::seed_from_u64(7));
            let (grace, meter) = (Duration::ZERO, meter.clone());
            Shard::new(
                server,
                vec![listener],
                streams,
                Addresses::default(),
                grace,
                meter,
                control,
            )
            .unwrap()
        };
        listeners.into_iter().zip(controls).map(shard).collect()
    }

    fn request(method: Method, nonce: &str, attributes: &[&dyn AttributeWrite]) -> Vec<u8> {
        let kind = stun_types::message::MessageType::from_class_method(
            stun_types::message::MessageClass::Request,
            method,
        );
        let mut message = Message::builder(kind, 1_u128.into(), MessageWriteVec::new());
        attributes
            .iter()
            .for_each(|attribute| message.add_attribute(*attribute).unwrap());
        message.add_attribute(&Username::new("u").unwrap()).unwrap();
        message.add_attribute(&Realm::new("r").unwrap()).unwrap();
        message.add_attribute(&Nonce::new(nonce).unwrap()).unwrap();
        let key: MessageIntegrityCredentials =
            LongTermKeyCredentials::new("u".to_owned(), "p".to_owned(), "r".to_owned()).into();
        message
            .add_message_integrity(&key, IntegrityAlgorithm::Sha1)
            .unwrap();
        message.finish()
    }

    fn ask(shard: &mut Shard, client: &UdpSocket, request: &[u8]) -> Vec<u8> {
        client.send(request).unwrap();
        shard
            .turn(&mut Vec::with_capacity(1), &mut Inbox::new(1))
            .unwrap();
        received_by(client)
    }

    fn received_by(socket: &UdpSocket) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }

    const NO_LIMIT: Rate = Rate {
        per_second: 0,
        burst: 0,
    };
}
