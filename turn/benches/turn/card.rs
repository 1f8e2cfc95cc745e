//! The load as a network card brings it. Sockets can't: what they send over loopback or a virtual pair comes to the
//! other side in the sender's CPU time, or has to be copied for a program in the driver. Here the kernel makes the packets
//! (`BPF_PROG_TEST_RUN` with live frames) in the memory that drivers use, and gives them to one end of the pair, a
//! burst at a time:
//!
//! ```text
//!   core 1                            core 0
//!   generate ── frames ──► [world] ── [card] ── its thread ── XDP program
//!   count    ◄── packets ─ [world] ── [card] ◄─┬─ the same ─────┘   │ or sockets, and the
//!                                              └────────────────────┴── server's threads
//! ```
//!
//! The card's end polls in a thread of its own (threaded NAPI), whose CPU time is counted with the server's: all from
//! the moment that a frame is in memory to the moment that it is given to the other side. What a card's driver does
//! with its descriptors is not in it.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::{SchedClassifier, TcAttachType, TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType};
use rustix::time::{ClockId, clock_gettime};

use crate::load::{BURST, Flow, Outcome, PAYLOAD, RATE};
use crate::network::{MAC_OF_SERVER, MAC_OF_WORLD};

/// The world's end of a network.
pub(crate) struct Card {
    ebpf: Ebpf,
    load: Array<MapData, Load>,
    flows: Array<MapData, [u8; FLOW_LEN]>,
    interface: u32,
}

/// `struct load`, in words.
type Load = [u64; 7];

impl Card {
    /// To be called in the world.
    pub(crate) fn attach(interface: &str) -> anyhow::Result<Self> {
        let mut ebpf = Ebpf::load(&compiled()?)?;
        let generate: &mut Xdp = ebpf.program_mut("generate").context("no program")?.try_into()?;
        generate.load()?;
        let count: &mut SchedClassifier = ebpf.program_mut("count").context("no program")?.try_into()?;
        count.load()?;
        count.attach(interface, TcAttachType::Ingress)?;
        let mut pauses: Array<_, u64> = ebpf.take_map("PAUSE").context("no map")?.try_into()?;
        for index in 0..PAUSES {
            // Streams know nothing of each other, so their frames come as a Poisson process does.
            let part = (f64::from(index) + 0.5) / f64::from(PAUSES);
            let pause_s = -part.ln() * BURST as f64 / RATE;
            pauses.set(index, (pause_s * 1e9) as u64, 0)?;
        }
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        Ok(Self {
            load: ebpf.take_map("LOAD").context("no map")?.try_into()?,
            flows: ebpf.take_map("FLOW").context("no map")?.try_into()?,
            interface: name_to_index(socket, interface)?,
            ebpf,
        })
    }

    /// Sends at [`RATE`] for `length`, and counts what comes. To be called in the world.
    pub(crate) fn run(
        &mut self,
        flows: &[Flow],
        has_sums: bool,
        length: Duration,
    ) -> anyhow::Result<Outcome> {
        let frame = [&[0; HEADERS + HEAD][..], &[0; PAYLOAD]].concat();
        let mut payload = [0; PAYLOAD];
        payload[..8].copy_from_slice(&MARK.to_ne_bytes());
        for (index, flow) in (0..).zip(flows) {
            let (client, server) = (flow.client.local_addr()?, flow.client.peer_addr()?);
            let (peer, relay) = (flow.peer.local_addr()?, flow.peer.peer_addr()?);
            let from_client = packet(client, server, &flow.head, &payload, has_sums)?;
            self.flows.set(2 * index, from_client, 0)?;
            let from_peer = packet(peer, relay, &[], &payload, has_sums)?;
            self.flows.set(2 * index + 1, from_peer, 0)?;
        }
        let now: Duration = clock_gettime(ClockId::Monotonic).try_into()?;
        let two = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let count = 2 * flows.len() as u32;
        let load = [
            now.as_nanos() as u64,
            0,
            0,
            0,
            two(self.interface, count),
            two(BURST as u32, 0),
            0,
        ];
        self.load.set(0, load, 0)?;
        let generate: &mut Xdp = self
            .ebpf
            .program_mut("generate")
            .context("no program")?
            .try_into()?;
        generate.test_run(TestRunOptions {
            data_in: Some(&frame),
            repeat: (RATE * length.as_secs_f64()) as u32,
            attrs: TestRunAttrs::new().xdp_live_frames(BURST as u32),
            ..TestRunOptions::default()
        })?;
        std::thread::sleep(LAST_WAIT);
        let [_, sent, to_client, to_peer, ..] = self.load.get(&0, 0)?;
        Ok(Outcome {
            sent: sent as usize,
            received: (to_client + to_peer) as usize,
            ..Outcome::default()
        })
    }
}

/// A `struct flow`: how a packet with this payload begins. Without a checksum nobody has to look at the payload, as where
/// a card has verified it already.
fn packet(
    from: SocketAddr,
    to: SocketAddr,
    head: &[u8],
    payload: &[u8],
    has_sum: bool,
) -> anyhow::Result<[u8; FLOW_LEN]> {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else {
        anyhow::bail!("IPv6");
    };
    let udp_length = (8 + head.len() + payload.len()) as u16;
    let mut bytes = Vec::with_capacity(FLOW_LEN);
    bytes.extend(MAC_OF_SERVER);
    bytes.extend(MAC_OF_WORLD);
    bytes.extend([0x08, 0x00, 0x45, 0]);
    bytes.extend((20 + udp_length).to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    bytes.extend(from.ip().octets());
    bytes.extend(to.ip().octets());
    let sum = !sum_of(&[&bytes[14..34]]);
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes.extend(udp_length.to_be_bytes());
    bytes.extend([0, 0]);
    if has_sum {
        let pseudo = [&[0, 17][..], &udp_length.to_be_bytes()].concat();
        let sum = !sum_of(&[&bytes[26..42], &pseudo, head, payload]);
        bytes[40..42].copy_from_slice(&sum.to_be_bytes());
    }
    bytes.extend(head);
    bytes.resize(FLOW_LEN, 0);
    bytes[HEADERS + HEAD] = u8::from(!head.is_empty());
    bytes.try_into().ok().context("a head that is none")
}

/// Of parts with even lengths (RFC 1071).
fn sum_of(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

fn compiled() -> anyhow::Result<Vec<u8>> {
    let out = std::env::temp_dir().join(format!("pstb{}.bpf.o", std::process::id()));
    let mut clang = Command::new("clang");
    clang.args(["-O2", "-g", "-Wall", "-Werror", "-target", "bpf"]);
    clang.arg(format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH));
    clang.args(["-c", SOURCE, "-o"]).arg(&out);
    let done = clang.status().context("starting clang: run scripts/setup")?;
    ensure!(done.success(), "clang could not compile {SOURCE}: {done}");
    let object = std::fs::read(&out);
    let _ = std::fs::remove_file(&out);
    Ok(object?)
}

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/turn/card.bpf.c");
/// As in `card.bpf.c`.
const HEADERS: usize = 14 + 20 + 8;
const HEAD: usize = 4;
const FLOW_LEN: usize = HEADERS + HEAD + 2;
const PAUSES: u32 = 4096;
/// A payload begins with it, in the machine's order.
const MARK: u64 = 0x6472_6163_7473_6e80;
const LAST_WAIT: Duration = Duration::from_millis(50);
