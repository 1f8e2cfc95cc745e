//! The limit: forwards datagrams between clients and peers with the system calls that penstock-turn uses, and does
//! nothing else. No protocol: a client says `open IP:PORT` once, and is told its relay's address.

use std::collections::HashMap;
use std::io::{IoSlice, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::time::Instant;

use anyhow::Context as _;
use penstock_turn::shell::clock;
use penstock_turn::shell::datagrams::{self, Inbox, Message};
use penstock_turn::shell::gathering::{Gathering, Round};
use penstock_turn::shell::sockets;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::fd::OwnedFd;

struct Relay {
    socket: UdpSocket,
    client: SocketAddr,
    peer: SocketAddr,
}

/// Runs on an address until it is killed.
pub(crate) fn run(ip: IpAddr) -> anyhow::Result<()> {
    sockets::raise_open_files(0);
    let listener = sockets::udp(SocketAddr::new(ip, 0))?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    watch(&epoll, &listener, LISTENER)?;
    let mut relays: Vec<Relay> = Vec::new();
    let mut by_client: HashMap<SocketAddr, usize> = HashMap::new();
    let mut inbox = Inbox::new(64);
    let mut events: Vec<epoll::Event> = Vec::with_capacity(256);
    rustix::thread::set_current_timer_slack(NonZeroU64::new(5000))?;
    let mut gathering = Gathering::new(Instant::now(), clock::wake_up_cost());
    loop {
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let (began, arrivals) = (Instant::now(), events.len());
        let mut is_more = false;
        for event in events.drain(..) {
            let token = event.data.u64();
            if token != LISTENER {
                let relay = &relays[token as usize];
                if inbox.receive(&relay.socket).is_ok() {
                    is_more |= inbox.is_full();
                    forward(&inbox, |_| Some((&listener, relay.client)));
                }
                continue;
            }
            if inbox.receive(&listener).is_err() {
                continue;
            }
            is_more |= inbox.is_full();
            forward(&inbox, |from| {
                let relay = &relays[*by_client.get(&from)?];
                Some((&relay.socket, relay.peer))
            });
            for message in inbox.messages() {
                let Some(peer) = message.bytes.strip_prefix(b"open ") else {
                    continue;
                };
                let peer = std::str::from_utf8(peer)?.parse().context("a peer's address")?;
                let socket = sockets::udp(SocketAddr::new(ip, 0))?;
                listener.send_to(socket.local_addr()?.to_string().as_bytes(), message.from)?;
                watch(&epoll, &socket, relays.len() as u64)?;
                by_client.insert(message.from, relays.len());
                relays.push(Relay {
                    socket,
                    client: message.from,
                    peer,
                });
            }
        }
        let round = Round {
            began,
            ended: Instant::now(),
            arrivals,
            is_more,
        };
        if let Some(pause) = gathering.pause(round) {
            gathering.paused(clock::nap(pause));
        }
    }
}

fn watch(epoll: &OwnedFd, socket: &UdpSocket, token: u64) -> rustix::io::Result<()> {
    epoll::add(
        epoll,
        socket,
        epoll::EventData::new_u64(token),
        epoll::EventFlags::IN,
    )
}

/// Runs of equal datagrams from one sender go out as one message.
fn forward<'r>(inbox: &Inbox, route: impl Fn(SocketAddr) -> Option<(&'r UdpSocket, SocketAddr)>) {
    let mut parts = [IoSlice::new(&[]); 64];
    let mut messages = inbox.messages().peekable();
    while let Some(first) = messages.next() {
        parts[0] = IoSlice::new(first.bytes);
        let (mut count, mut bytes) = (1, first.bytes.len());
        while count < parts.len()
            && let Some(next) = messages.next_if(|next| {
                next.from == first.from
                    && next.segment == first.segment
                    && bytes % first.segment.max(1) == 0
                    && bytes + next.bytes.len() <= 65_000
            })
        {
            parts[count] = IoSlice::new(next.bytes);
            count += 1;
            bytes += next.bytes.len();
        }
        let Some((socket, to)) = route(first.from) else {
            continue;
        };
        let segment = (bytes > first.segment).then_some(first.segment as u16);
        let message = Message {
            to,
            parts: &parts[..count],
            segment,
        };
        // A full buffer is loss, which the load counts.
        let _ = datagrams::send(socket, &[message]);
    }
}

const LISTENER: u64 = u64::MAX;
