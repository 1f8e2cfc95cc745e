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
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::{AsFd, OwnedFd};

use super::clock;
use super::control::Control;
use super::datagrams::Inbox;
use super::gathering::{Gathering, Round};
use super::metrics::Meter;
use super::outbox::{Outbox, Segmentation};
use super::sockets::{Listener, Sockets, open_failure, udp};
use super::streams::{StreamListener, Streams};
use super::token::Token;
use super::xdp::{Channels, Ends, Xdp};
use crate::addresses::Addresses;
use crate::core::counters::Side;
use crate::core::runs::Run;
use crate::core::server::{Command, OpenFailure, Server};
use crate::core::shared::Shared;
use crate::core::wire::{NotOurs, first_message};
use crate::core::{FiveTuple, Now, RelayId, Transport};

/// Where clients come in by streams.
#[derive(Debug)]
pub(super) struct StreamSetup {
    /// The listeners.
    pub(super) listeners: Vec<StreamListener>,
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
    /// What the network driver relays, where it does.
    channels: Option<Channels>,
    /// What is read from a stream.
    buffer: Vec<u8>,
    /// What a stream's client said.
    plain: Vec<u8>,
    rounds: u64,
    /// Whether a socket had more than was read in this round.
    is_more: bool,
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
            streams: Streams::new(
                streams.listeners,
                streams.shared,
                epoll.try_clone()?,
                control.shards,
            )?,
            addresses,
            grace,
            meter,
            control,
            epoll,
            segmentation: Segmentation::default(),
            channels: None,
            buffer: vec![0; STREAM_BYTES],
            plain: Vec::new(),
            rounds: 0,
            is_more: false,
            deadline: None,
        })
    }

    /// Tells network drivers of its channels.
    pub(super) fn with_xdp(mut self, xdp: Option<Arc<Xdp>>) -> Self {
        self.channels = xdp.map(Channels::new);
        self
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
        // The kernel may round a sleep up by so much; by default it is as much as our shortest pauses.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(TIMER_SLACK_NS))?;
        let mut gathering = Gathering::new(clock::read().instant, clock::wake_up_cost());
        while !self.is_done(clock::read().instant) {
            let round = self.turn(&mut events, &mut inbox)?;
            if let Some(pause) = gathering.pause(round) {
                gathering.paused(clock::nap(pause));
            }
        }
        tracing::info!(allocations = self.server.allocation_count(), "drained");
        Ok(())
    }

    /// One round: waits, and does all that has come up.
    fn turn(&mut self, events: &mut Vec<epoll::Event>, inbox: &mut Inbox) -> io::Result<Round> {
        self.wait(events)?;
        let arrivals = events.len();
        let now = clock::read();
        self.is_more = false;
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
        let ended = clock::read().instant;
        if is_sample {
            self.meter.took(ended.saturating_duration_since(now.instant));
        }
        self.meter
            .publish(self.server.counters(), self.server.allocation_count());
        Ok(Round {
            began: now.instant,
            ended,
            arrivals,
            is_more: self.is_more,
        })
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
        self.deadline
            .is_some_and(|deadline| now >= deadline || self.control.busy_shards() == 0)
    }

    fn wake(&mut self, now: Instant) {
        // The number read says only that it was woken.
        let _ = rustix::io::read(&self.control.wake, &mut [0_u8; 8]);
        if let Some(news) = self.control.take_news() {
            self.server.reload(news.rules);
            if let Some(tls) = &news.tls {
                self.streams.set_tls(tls);
            }
            let clients = self
                .channels
                .iter()
                .flat_map(Channels::clients)
                .collect::<Vec<_>>();
            for client in clients {
                self.update_channels(now, &client);
            }
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
        if !received(inbox.receive(&listener.socket)) {
            return;
        }
        self.is_more |= inbox.is_full();
        let mut outbox = Outbox::default();
        for message in inbox.messages() {
            // Whoever asks all at once is not answered.
            let Some(local) = self.sockets.listeners[index as usize].reached(&message) else {
                continue;
            };
            let from = FiveTuple {
                transport: Transport::Udp,
                local,
                remote: message.from,
            };
            if message.is_merged() {
                self.server.handle_timeout(now.instant);
                let (bytes, every) = (message.bytes, message.segment);
                let run = self.server.client_run(now.instant, from, bytes, every);
                if self.pass_run_on(&mut outbox, Side::Client, bytes, run) {
                    self.after_input(&mut outbox, now);
                    continue;
                }
            }
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
        self.is_more |= inbox.is_full();
        let mut outbox = Outbox::default();
        for message in inbox.messages() {
            if message.is_merged() {
                self.server.handle_timeout(now.instant);
                let (bytes, every) = (message.bytes, message.segment);
                let run = self
                    .server
                    .peer_run(now.instant, relay, message.from, bytes, every);
                if self.pass_run_on(&mut outbox, Side::Peer, bytes, run) {
                    if outbox.is_full() {
                        self.flush(&mut outbox);
                    }
                    continue;
                }
            }
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

    /// Takes in what came in one piece, where it goes in one piece, too.
    fn pass_run_on<'a>(
        &mut self,
        outbox: &mut Outbox<'a>,
        side: Side,
        bytes: &[u8],
        run: Option<Run<'a>>,
    ) -> bool {
        let passed = run.filter(|run| outbox.push_run(*run));
        if let Some(run) = passed {
            let counters = self.server.counters_mut();
            counters.received_many(side, run.count(), bytes.len());
        }
        passed.is_some()
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
                // What was asked may have changed its channels.
                self.update_channels(now.instant, &to);
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
                if let Some(channels) = &mut self.channels {
                    channels.remove(relay);
                }
                self.sockets.remove(relay);
            }
        }
    }

    /// Tells the network driver of a client's channels, where it relays.
    fn update_channels(&mut self, now: Instant, client: &FiveTuple) {
        let Some(channels) = &mut self.channels else {
            return;
        };
        for (relay, open) in self.server.unlimited_channels(now, client) {
            let ends = || {
                let socket = self.sockets.relay(relay).ok_or(io::ErrorKind::NotFound)?;
                let relay = socket.local_addr()?;
                Ok(Ends {
                    client: *client,
                    server: client.local,
                    relay,
                })
            };
            match ends() {
                Ok(ends) => channels.update(relay, ends, &open),
                Err(error) => {
                    let error: io::Error = error;
                    tracing::debug!(relay = relay.0, %error, "channels stay in user space");
                    // Else what was told before would hold on.
                    channels.remove(relay);
                }
            }
        }
    }

    fn open(&mut self, relay: RelayId, bind: SocketAddr, client: &FiveTuple) -> Result<IpAddr, OpenFailure> {
        let ip = self.addresses.bind(client.local.ip(), bind.ip());
        let bind = SocketAddr::new(ip, bind.port());
        let advertised = self.addresses.told(ip);
        let open = || {
            let socket = udp(bind)?;
            watch(&self.epoll, &socket, Token::Relay(relay))?;
            Ok(socket)
        };
        let socket = open().map_err(|error: io::Error| {
            tracing::debug!(%bind, %error, "a relay was not opened");
            open_failure(&error)
        })?;
        self.sockets.insert(relay, socket);
        tracing::debug!(relay = relay.0, client = %client.remote, %bind, %advertised, "allocation made");
        Ok(advertised)
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
mod tests;
