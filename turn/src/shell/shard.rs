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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::fd::{AsFd, OwnedFd};
use rustls::ServerConfig;

use super::clock;
use super::metrics::Meter;
use super::sockets::{Listener, Sockets, open_failure, route_to, udp};
use super::streams::{StreamListener, Streams, first_message};
use crate::addresses::Addresses;
use crate::core::server::{Command, OpenFailure, Rules, Server};
use crate::core::shared::Shared;
use crate::core::wire::NotOurs;
use crate::core::{FiveTuple, Now, RelayId, Transport};

/// How another thread tells a shard to drain, or to go by other rules.
#[derive(Debug)]
pub(super) struct Control {
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
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
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
            buffer: vec![0; MAX_DATAGRAM],
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
        while !self.is_done(clock::read().instant) {
            self.turn(&mut events)?;
        }
        tracing::info!(allocations = self.server.allocation_count(), "drained");
        Ok(())
    }

    /// One round: waits, and does all that has come up.
    fn turn(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        self.wait(events)?;
        let now = clock::read();
        self.rounds = self.rounds.wrapping_add(u64::from(!events.is_empty()));
        let is_sample = !events.is_empty() && self.rounds.is_multiple_of(ROUNDS_PER_SAMPLE);
        for event in events.drain(..) {
            match Token::unpack(event.data.u64()) {
                Token::Wake => self.wake(now.instant),
                Token::Listener(listener) => self.read_listener(listener, now),
                Token::Relay(relay) => self.read_relay(relay, now),
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
        self.meter.publish_connections(self.streams.len());
        if is_sample {
            self.meter
                .took(clock::read().instant.saturating_duration_since(now.instant));
        }
        self.meter
            .publish(self.server.counters(), self.server.allocation_count());
        Ok(())
    }

    fn wait(&self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        let timeouts = [
            self.server.next_timeout(),
            self.deadline,
            self.streams.next_sweep(),
        ];
        let next = timeouts.into_iter().flatten().min();
        let timeout = next.map(|next| until(next, clock::read().instant));
        match epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn is_done(&self, now: Instant) -> bool {
        self.deadline
            .is_some_and(|deadline| now >= deadline || self.server.allocation_count() == 0)
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

    /// Reads at most [`PACKETS_PER_SOCKET`], so that one busy client doesn't starve the others.
    fn read_listener(&mut self, index: u32, now: Now) {
        for _ in 0..PACKETS_PER_SOCKET {
            let listener = &self.sockets.listeners[index as usize];
            let Some((length, remote)) = received(listener.socket.recv_from(&mut self.buffer)) else {
                return;
            };
            let from = FiveTuple {
                transport: Transport::Udp,
                local: listener.local,
                remote,
            };
            let forward = self.server.client_input(now, from, &self.buffer[..length]);
            self.sockets.pass_on(&forward, self.server.counters_mut());
            self.do_commands(now);
        }
    }

    fn read_relay(&mut self, relay: RelayId, now: Now) {
        for _ in 0..PACKETS_PER_SOCKET {
            // It may have been closed by an event before this one.
            let Some(socket) = self.sockets.relay(relay) else {
                return;
            };
            let Some((length, peer)) = received(socket.recv_from(&mut self.buffer)) else {
                return;
            };
            let forward = self.server.peer_input(now, relay, peer, &self.buffer[..length]);
            let counters = self.server.counters_mut();
            if !self.streams.pass_on(now.instant, &forward, counters) {
                self.sockets.pass_on(&forward, counters);
            }
        }
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
        loop {
            match first_message(bytes) {
                Ok(Some((message, rest))) => {
                    let forward = self.server.client_input(now, from, message);
                    self.sockets.pass_on(&forward, self.server.counters_mut());
                    self.do_commands(now);
                    bytes = rest;
                }
                Ok(None) => {
                    let has_allocation = self.server.has_allocation(&from);
                    return self.streams.keep(slot, bytes, has_allocation);
                }
                Err(NotOurs) => return self.streams.malformed(slot),
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

/// A datagram and its sender; `None` where there is none now. An error of an earlier datagram (ICMP) ends this
/// socket's round, no more: epoll says so if there is something left to read.
fn received(result: io::Result<(usize, SocketAddr)>) -> Option<(usize, SocketAddr)> {
    result.ok()
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
const ROUNDS_PER_SAMPLE: u64 = 64;
const PACKETS_PER_SOCKET: usize = 64;
/// More than UDP can carry, so that nothing is cut off.
const MAX_DATAGRAM: usize = 65_536;

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
        let mut buffer = [0; 2048];
        let channel_data = [&[0x40, 0x00, 0x04, 0x00][..], &[1; 1024]].concat();
        let counted = allocation_counter::measure(|| {
            for _ in 0..100 {
                client.send(&channel_data).unwrap();
                shard.turn(&mut events).unwrap();
                let (length, relay) = peer.recv_from(&mut buffer).unwrap();
                peer.send_to(&buffer[..length], relay).unwrap();
                shard.turn(&mut events).unwrap();
                let length = client.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..length], channel_data);
            }
        });
        assert_eq!(counted.count_total, 0);
    }

    #[test]
    fn a_token_comes_out_as_it_went_in() {
        for token in [Token::Wake, Token::Listener(3), Token::Relay(RelayId(u32::MAX))] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }

    /// A shard, a client with channel 0x4000 on it, and the peer behind that channel.
    fn with_channel() -> (Shard, UdpSocket, UdpSocket) {
        let mut shard = shard();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(shard.listen_addresses().next().unwrap()).unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let challenge = ask(&mut shard, &client, &request(ALLOCATE, "none", &[]));
        let nonce = Message::from_bytes(&challenge)
            .unwrap()
            .attribute::<Nonce>()
            .unwrap()
            .nonce()
            .to_owned();
        let udp = RequestedTransport::new(17);
        ask(&mut shard, &client, &request(ALLOCATE, &nonce, &[&udp]));
        let number = ChannelNumber::new(0x4000);
        let address = XorPeerAddress::new(peer.local_addr().unwrap(), 1_u128.into());
        let bound = ask(
            &mut shard,
            &client,
            &request(CHANNEL_BIND, &nonce, &[&number, &address]),
        );
        assert!(
            Message::from_bytes(&bound)
                .unwrap()
                .has_class(stun_types::message::MessageClass::Success)
        );
        (shard, client, peer)
    }

    fn shard() -> Shard {
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
        let streams = StreamSetup {
            listeners: vec![],
            tls: None,
            shared: config.shared.clone(),
        };
        let nonces = Nonces::new([7; 32], clock::read().instant);
        let server = Server::new(config, nonces, StdRng::seed_from_u64(7));
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let meter = Meter::new(&Registry::new()).unwrap();
        let control = Arc::new(Control::new().unwrap());
        Shard::new(
            server,
            vec![listener],
            streams,
            Addresses::default(),
            Duration::ZERO,
            meter,
            control,
        )
        .unwrap()
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
        shard.turn(&mut Vec::with_capacity(1)).unwrap();
        let mut buffer = [0; 2048];
        let length = client.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }

    const NO_LIMIT: Rate = Rate {
        per_second: 0,
        burst: 0,
    };
}
