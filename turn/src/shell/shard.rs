//! One shard: a loop over epoll that feeds the core and does what it says.
//!
//! ```text
//!  epoll ─┬─ listener ─► client_input ─┐
//!         ├─ relay ────► peer_input ───┼─► Forward: send at once      commands: answer, open, close
//!         ├─ eventfd ──► drain         │
//!         └─ timeout ──► handle_timeout┘
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::fd::{AsFd, OwnedFd};

use super::clock;
use super::datagrams::Inbox;
use super::gathering::Gathering;
use super::metrics::Meter;
use super::outbox::{Outbox, Segmentation};
use super::sockets::{Listener, Sockets, open_failure, route_to, udp};
use crate::core::server::{Command, OpenFailure, Server};
use crate::core::{FiveTuple, Now, RelayId, Transport};

/// How another thread tells a shard to drain.
#[derive(Debug)]
pub(super) struct Control {
    draining: AtomicBool,
    wake: OwnedFd,
}

impl Control {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            draining: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Tells it.
    pub(super) fn drain(&self) -> io::Result<()> {
        self.draining.store(true, Ordering::Release);
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// Whether it was told.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}

/// What an epoll event is about, packed into its 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Wake,
    Listener(u32),
    Relay(RelayId),
}

impl Token {
    fn pack(self) -> u64 {
        match self {
            Self::Wake => 0,
            Self::Listener(index) => (1 << 32) | u64::from(index),
            Self::Relay(RelayId(relay)) => (2 << 32) | u64::from(relay),
        }
    }

    fn unpack(bits: u64) -> Self {
        let low = bits as u32;
        match bits >> 32 {
            1 => Self::Listener(low),
            2 => Self::Relay(RelayId(low)),
            _ => Self::Wake,
        }
    }
}

/// A server with its sockets.
#[derive(Debug)]
pub(super) struct Shard {
    server: Server<StdRng>,
    sockets: Sockets,
    external_ip: Option<IpAddr>,
    grace: Duration,
    meter: Meter,
    control: Arc<Control>,
    epoll: OwnedFd,
    segmentation: Segmentation,
    /// When the grace period is over, once draining.
    deadline: Option<Instant>,
}

impl Shard {
    pub(super) fn new(
        server: Server<StdRng>,
        listeners: Vec<Listener>,
        external_ip: Option<IpAddr>,
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
            external_ip,
            grace,
            meter,
            control,
            epoll,
            segmentation: Segmentation::default(),
            deadline: None,
        })
    }

    pub(super) fn listen_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.sockets.listeners.iter().map(|listener| listener.local)
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
        for event in events.drain(..) {
            match Token::unpack(event.data.u64()) {
                Token::Wake => self.wake(now.instant),
                Token::Listener(listener) => self.read_listener(listener, now, inbox),
                Token::Relay(relay) => self.read_relay(relay, now, inbox),
            }
        }
        self.server.handle_timeout(now.instant);
        self.do_commands();
        self.meter
            .publish(self.server.counters(), self.server.allocation_count());
        Ok((now.instant, arrivals))
    }

    fn wait(&self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        let next = self.server.next_timeout().into_iter().chain(self.deadline).min();
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
                if outbox.is_full() {
                    self.flush(&mut outbox);
                }
                if self.server.has_commands() {
                    // Before a relay is closed, or its number another's.
                    self.flush(&mut outbox);
                    self.do_commands();
                }
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
                outbox.push(self.server.peer_input(now, relay, message.from, datagram));
                if outbox.is_full() {
                    self.flush(&mut outbox);
                }
            }
        }
        self.flush(&mut outbox);
    }

    fn flush(&mut self, outbox: &mut Outbox<'_>) {
        outbox.flush(&self.sockets, &mut self.segmentation, self.server.counters_mut());
    }

    #[inline]
    fn do_commands(&mut self) {
        while let Some(command) = self.server.poll_command() {
            self.do_command(command);
        }
    }

    fn do_command(&mut self, command: Command) {
        match command {
            Command::ToClient { to, bytes } => {
                if let Err(error) = self.sockets.answer(&to, &bytes) {
                    tracing::debug!(client = %to.remote, %error, "an answer was not sent");
                }
            }
            Command::OpenRelay { relay, bind, client } => {
                let opened = self.open(relay, bind, &client);
                self.server.relay_opened(relay, opened);
            }
            Command::CloseRelay { relay } => {
                tracing::debug!(relay = relay.0, "allocation ended");
                self.sockets.remove(relay);
            }
        }
    }

    fn open(&mut self, relay: RelayId, bind: SocketAddr, client: &FiveTuple) -> Result<IpAddr, OpenFailure> {
        let open = || {
            let advertised = self.advertised(client)?;
            let socket = udp(bind)?;
            watch(&self.epoll, &socket, Token::Relay(relay))?;
            Ok((advertised, socket))
        };
        let (advertised, socket) = open().map_err(|error: io::Error| {
            tracing::debug!(%bind, %error, "a relay was not opened");
            open_failure(&error)
        })?;
        self.sockets.insert(relay, socket);
        tracing::debug!(relay = relay.0, client = %client.remote, %bind, %advertised, "allocation made");
        Ok(advertised)
    }

    /// What a client is told as its relay's address.
    fn advertised(&self, client: &FiveTuple) -> io::Result<IpAddr> {
        match self.external_ip {
            Some(ip) => Ok(ip),
            None if client.local.ip().is_unspecified() => route_to(client.remote),
            None => Ok(client.local.ip()),
        }
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
/// How many messages are read from a socket at once, each one datagram or several merged ones.
const MESSAGES_PER_READ: usize = 64;
const TIMER_SLACK_NS: u64 = 5_000;

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
    use crate::core::nonce::Nonces;
    use crate::core::peers::PeerPolicy;
    use crate::core::server::Config;
    use crate::core::table::Limits;

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
            users: Users {
                secrets: vec![],
                fixed: HashMap::from([("u".to_owned(), "p".to_owned())]),
            },
            peers: PeerPolicy::new(vec!["127.0.0.0/8".parse().unwrap()], [], true),
            relay_ip: "127.0.0.1".parse().unwrap(),
            ports: "20000-60000".parse().unwrap(),
            limits: Limits {
                total: 1,
                per_user: 1,
            },
        };
        let nonces = Nonces::new([7; 32], clock::read().instant);
        let server = Server::new(config, nonces, StdRng::seed_from_u64(7));
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let meter = Meter::new(&Registry::new()).unwrap();
        let control = Arc::new(Control::new().unwrap());
        Shard::new(server, vec![listener], None, Duration::ZERO, meter, control).unwrap()
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
        let mut buffer = [0; 2048];
        let length = client.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }
}
