//! The load: bursts of datagrams both ways over many flows, with the moment of sending in each.

use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use penstock_turn::shell::datagrams::{self, Inbox, Message};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

/// Datagrams in a burst: a video frame of 14 kB, such as 60 a second at 7 Mbit/s.
pub(crate) const BURST: usize = 12;
/// Bytes of payload in each.
pub(crate) const PAYLOAD: usize = 1200;
/// Datagrams relayed a second, both ways together: what keeps one core of coturn half busy.
pub(crate) const RATE: f64 = 150_000.0;

/// How the load sends and receives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// It sends bursts in one piece (UDP_SEGMENT), so that the server's UDP_GRO gets them in one piece. On loopback the
    /// kernel merges nothing by itself.
    pub(crate) sends_merged: bool,
    /// It receives in one piece (UDP_GRO) what the server sent in one. If not, the kernel cuts it up on the server's CPU,
    /// which in a network is done by the network card, or not at all.
    pub(crate) receives_merged: bool,
    /// Send and Data indications in place of ChannelData.
    pub(crate) indications: bool,
}

/// A client and its peer, with a relay between.
pub(crate) struct Flow {
    /// Connected to the server.
    pub(crate) client: UdpSocket,
    /// Connected to the relay.
    pub(crate) peer: UdpSocket,
    /// What comes before a payload that the client sends.
    pub(crate) head: Vec<u8>,
}

/// What one turn came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) sent: usize,
    pub(crate) received: usize,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) cpu_s: f64,
}

impl Outcome {
    /// Each number's median.
    pub(crate) fn median(outcomes: &[Self]) -> Self {
        let median = |of: fn(&Self) -> f64| {
            let mut values: Vec<f64> = outcomes.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Self {
            sent: median(|outcome| outcome.sent as f64) as usize,
            received: median(|outcome| outcome.received as f64) as usize,
            p50_us: median(|outcome| outcome.p50_us),
            p99_us: median(|outcome| outcome.p99_us),
            cpu_s: median(|outcome| outcome.cpu_s),
        }
    }

    /// Datagrams relayed in one second of the server's CPU time.
    pub(crate) fn per_cpu_s(&self) -> f64 {
        self.received as f64 / self.cpu_s
    }

    /// The part that was lost.
    pub(crate) fn loss(&self) -> f64 {
        1.0 - self.received as f64 / self.sent as f64
    }
}

/// Sends at [`RATE`] for `length`, and receives what comes.
pub(crate) fn run(flows: &[Flow], kind: Kind, length: Duration, seed: u64) -> anyhow::Result<Outcome> {
    let mut receiver = Receiver::new(flows)?;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut sent = 0;
    let mut due = 0.0;
    let mut burst = 0;
    while due < length.as_secs_f64() {
        while receiver.began.elapsed().as_secs_f64() < due {
            receiver.receive(Duration::ZERO)?;
        }
        let to_peer = rng.random_bool(0.5);
        sent += send(
            flows,
            rng.random_range(0..flows.len()),
            to_peer,
            kind,
            receiver.now_ns(),
        )?;
        burst += 1;
        // Streams know nothing of each other, so their frames come as a Poisson process does.
        due += -(1.0 - rng.random::<f64>()).ln() * BURST as f64 / RATE;
        if burst % 4 == 0 {
            receiver.receive(Duration::ZERO)?;
        }
    }
    let last = Instant::now();
    while receiver.latencies_ns.len() < sent && last.elapsed() < LAST_WAIT {
        receiver.receive(Duration::from_millis(1))?;
    }
    let mut latencies = receiver.latencies_ns;
    latencies.sort_unstable();
    let percentile = |part: f64| {
        let at = (latencies.len() as f64 * part) as usize;
        latencies.get(at).map_or(f64::NAN, |ns| f64::from(*ns) / 1000.0)
    };
    Ok(Outcome {
        sent,
        received: latencies.len(),
        p50_us: percentile(0.5),
        p99_us: percentile(0.99),
        cpu_s: 0.0,
    })
}

fn send(flows: &[Flow], index: usize, to_peer: bool, kind: Kind, now_ns: u64) -> anyhow::Result<usize> {
    let flow = &flows[index];
    let (socket, head) = if to_peer {
        (&flow.client, &flow.head[..])
    } else {
        (&flow.peer, &[][..])
    };
    let length = head.len() + PAYLOAD;
    let mut bytes = [0; BURST * MAX_DATAGRAM];
    for datagram in bytes[..BURST * length].chunks_mut(length) {
        let (start, payload) = datagram.split_at_mut(head.len());
        start.copy_from_slice(head);
        payload[..8].copy_from_slice(&now_ns.to_be_bytes());
        payload[8..12].copy_from_slice(&(index as u32).to_be_bytes());
        payload[12] = to_peer.into();
        payload[13..PAYLOAD_MARK.len() + 13].copy_from_slice(PAYLOAD_MARK);
    }
    let to: SocketAddr = socket.peer_addr()?;
    let whole = [IoSlice::new(&bytes[..BURST * length])];
    if kind.sends_merged {
        let message = Message {
            to,
            parts: &whole,
            segment: Some(length as u16),
        };
        return Ok(datagrams::send(socket, &[message])? * BURST);
    }
    let parts: [IoSlice<'_>; BURST] = std::array::from_fn(|at| IoSlice::new(&bytes[at * length..][..length]));
    let messages: [Message<'_>; BURST] = std::array::from_fn(|at| Message {
        to,
        parts: &parts[at..=at],
        segment: None,
    });
    Ok(datagrams::send(socket, &messages)?)
}

struct Receiver<'a> {
    flows: &'a [Flow],
    epoll: rustix::fd::OwnedFd,
    events: Vec<epoll::Event>,
    inbox: Inbox,
    latencies_ns: Vec<u32>,
    began: Instant,
}

impl<'a> Receiver<'a> {
    fn new(flows: &'a [Flow]) -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (index, flow) in (0..).zip(flows) {
            let watch = |socket, token| {
                epoll::add(
                    &epoll,
                    socket,
                    epoll::EventData::new_u64(token),
                    epoll::EventFlags::IN,
                )
            };
            watch(&flow.client, index << 1)?;
            watch(&flow.peer, index << 1 | 1)?;
        }
        Ok(Self {
            flows,
            epoll,
            events: Vec::with_capacity(256),
            inbox: Inbox::new(64),
            latencies_ns: Vec::with_capacity(1 << 20),
            began: Instant::now(),
        })
    }

    fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn receive(&mut self, wait: Duration) -> anyhow::Result<()> {
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: wait.as_nanos() as _,
        };
        epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout))?;
        for event in self.events.drain(..) {
            let token = event.data.u64();
            let (index, at_peer) = (token >> 1, token & 1 == 1);
            let flow = &self.flows[index as usize];
            let socket = if at_peer { &flow.peer } else { &flow.client };
            if self.inbox.receive(socket).is_err() {
                continue;
            }
            let now_ns = self.began.elapsed().as_nanos() as u64;
            for datagram in self.inbox.messages().flat_map(datagrams::Received::datagrams) {
                // What is left of an earlier turn has another beginning, and so a moment to come.
                if let Some(sent_ns) = sent_at(datagram, index as u32, at_peer)
                    && let Some(latency) = now_ns.checked_sub(sent_ns)
                {
                    self.latencies_ns.push(latency as u32);
                }
            }
        }
        Ok(())
    }
}

/// When a datagram was sent, if it is the right one in the right place. Servers differ in what they put around it.
fn sent_at(datagram: &[u8], index: u32, at_peer: bool) -> Option<u64> {
    let starts = (0..=datagram.len().checked_sub(PAYLOAD)?).step_by(4);
    let payload = starts
        .map(|start| &datagram[start..][..PAYLOAD])
        .find(|payload| payload[13..].starts_with(PAYLOAD_MARK))?;
    let right = payload[8..12] == index.to_be_bytes() && payload[12] == u8::from(at_peer);
    right.then(|| u64::from_be_bytes(payload[..8].try_into().unwrap_or_default()))
}

const PAYLOAD_MARK: &[u8] = b"penstock bench";
const MAX_DATAGRAM: usize = PAYLOAD + 64;
/// How long after the last burst a datagram counts as lost.
const LAST_WAIT: Duration = Duration::from_millis(200);
