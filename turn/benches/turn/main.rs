//! What a relayed packet costs, beside coturn and beside a bare forwarder on the same traffic.
//!
//! ```text
//!   core 1: load                      core 0: one of
//!   ┌─────────┐  ChannelData, bursts  ┌─────────────────┐
//!   │ clients │◄─────────────────────►│ penstock-turn   │
//!   │         │                       │ coturn          │
//!   │ peers   │◄─────────────────────►│ bare forwarder  │
//!   └─────────┘  what was inside      └─────────────────┘
//! ```
//!
//! All three run throughout; in each turn one has the load, the others sleep. Bursts of [`BURST`] datagrams, as video
//! frames come, at random moments (the same for all), half of them each way, at a rate that all sustain. Cost is the
//! on-CPU time of the server's threads by the kernel's own count. On loopback that includes handing the packets to
//! their receivers, which in a network is the work of others, and leaves out taking them in, which the load does. The
//! forwarder waits for packets as penstock-turn does ([`Gathering`](penstock_turn::shell::gathering::Gathering)), so it
//! says what the protocol costs, and nothing of that choice. `none` is the same traffic with nothing between client and
//! peer.
//!
//! Then the same behind a network card each (see [`card`]), whose driver's work is counted with the server's. There
//! `xdp` is penstock-turn with channels relayed by the driver.
//!
//! The last line is `RESULT …`; what stands in it is said where it is printed.

#![expect(
    clippy::disallowed_methods,
    reason = "the benchmark is all shell: it measures real time, over sockets of its own"
)]

mod card;
mod client;
mod forwarder;
mod load;
mod network;
mod servers;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use load::{BURST, Flow, Kind, Outcome, PAYLOAD, RATE};
use penstock_turn::shell::sockets;
use servers::{COTURN, FORWARDER, NONE, OURS, Server, Servers, XDP};

/// So often each has the load; the median counts.
const TURNS: usize = 7;
const TURN: Duration = Duration::from_millis(600);
/// How many allocations memory is measured with.
const IDLE: usize = 10_000;

/// One kind of traffic.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    flows: usize,
    traffic: Traffic,
}

/// Where it comes from.
#[derive(Debug, Clone, Copy)]
enum Traffic {
    /// Sockets, over loopback.
    Sockets(Kind),
    /// A network card. With checksums the kernel merges a burst into one piece, else it can't.
    Card { has_sums: bool },
}

const CASES: [Case; 12] = [
    case("1 GSO", 1, MERGED),
    case("1 plain", 1, PLAIN),
    case("50 GSO", 50, MERGED),
    case("50 plain", 50, PLAIN),
    case(
        "50 plain, received plain",
        50,
        Kind {
            receives_merged: false,
            ..PLAIN
        },
    ),
    case(
        "50 plain, Send/Data",
        50,
        Kind {
            indications: true,
            ..PLAIN
        },
    ),
    case("1000 GSO", 1000, MERGED),
    case("1000 plain", 1000, PLAIN),
    card("50 card GRO", 50, true),
    card("50 card", 50, false),
    card("1000 card GRO", 1000, true),
    card("1000 card", 1000, false),
];
const MERGED: Kind = Kind {
    sends_merged: true,
    ..PLAIN
};
const PLAIN: Kind = Kind {
    sends_merged: false,
    receives_merged: true,
    indications: false,
};

const fn case(name: &'static str, flows: usize, kind: Kind) -> Case {
    let traffic = Traffic::Sockets(kind);
    Case { name, flows, traffic }
}

const fn card(name: &'static str, flows: usize, has_sums: bool) -> Case {
    let traffic = Traffic::Card { has_sums };
    Case { name, flows, traffic }
}

fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("forwarder") {
        let ip = std::env::args().nth(2).context("no address")?;
        return forwarder::run(ip.parse()?);
    }
    let only = std::env::args().nth(1).filter(|only| !only.starts_with('-'));
    servers::pin(std::process::id(), servers::LOAD_CORE)?;
    sockets::raise_open_files(0);
    let _awake = stay_awake()?;
    let mut servers = Servers::start()?;
    println!(
        "{BURST} datagrams of {PAYLOAD} bytes at a time, {RATE} a second; medians of {TURNS} turns of {TURN:?}\n\n\
         {:26}{:>10}{:>15}{:>9}{:>10}{:>9}{:>9}",
        "allocations", "server", "packets/CPU-s", "CPU", "loss", "p50 µs", "p99 µs"
    );
    let mut measured = BTreeMap::new();
    for case in CASES {
        if only.as_ref().is_none_or(|only| case.name.contains(only.as_str())) {
            measured.insert(case.name, measure(&mut servers, case)?);
        }
    }
    if only.as_deref().is_none_or(|only| only == "idle") {
        idle(&servers)?;
    }
    if only.is_none() {
        result(&measured);
    }
    Ok(())
}

/// Keeps the cores from sleeping while it is held, as cyclictest does: what waking one takes, in a virtual machine more
/// than a packet does, is no server's work.
fn stay_awake() -> anyhow::Result<File> {
    let file = "/dev/cpu_dma_latency";
    let mut latency = File::options().write(true).open(file).context(file)?;
    latency.write_all(&0_i32.to_ne_bytes())?;
    Ok(latency)
}

/// What each server came to in one case, by its name.
type Medians = BTreeMap<&'static str, Outcome>;

fn measure(servers: &mut Servers, case: Case) -> anyhow::Result<Medians> {
    let (servers, kind) = match case.traffic {
        Traffic::Sockets(kind) => (&mut servers.on_loopback, kind),
        Traffic::Card { .. } => (&mut servers.behind_cards, PLAIN),
    };
    let mut all: Vec<(&mut Server, Vec<Flow>, Vec<Outcome>)> = Vec::new();
    for server in servers {
        let opened = server.flows(case.flows, kind);
        let flows = opened.with_context(|| format!("{} on {}", case.name, server.name))?;
        all.push((server, flows, Vec::new()));
    }
    for turn in 0..TURNS {
        for (server, flows, outcomes) in &mut all {
            let before = server.cpu_s()?;
            let mut outcome = match case.traffic {
                Traffic::Sockets(kind) => load::run(flows, kind, TURN, turn as u64)?,
                Traffic::Card { has_sums } => {
                    let network = server.network.as_mut().context("no network")?;
                    network.carry(flows, has_sums, TURN)?
                }
            };
            outcome.cpu_s = server.cpu_s()? - before;
            outcomes.push(outcome);
        }
    }
    let mut medians = Medians::new();
    for (server, flows, outcomes) in all {
        let closed = server.close(flows);
        closed.with_context(|| format!("closing {} on {}", case.name, server.name))?;
        medians.insert(server.name, Outcome::median(&outcomes));
        show(case, server.name, &medians[server.name]);
    }
    Ok(medians)
}

fn show(case: Case, server: &str, outcome: &Outcome) {
    let or_none = |is_known: bool, number: String| if is_known { number } else { "-".to_owned() };
    let is_server = server != NONE;
    let per_cpu_s = or_none(is_server, format!("{:.0}", outcome.per_cpu_s()));
    let percent = or_none(
        is_server,
        format!("{:.1}%", 100.0 * outcome.cpu_s / TURN.as_secs_f64()),
    );
    let p50_us = or_none(outcome.p50_us > 0.0, format!("{:.0}", outcome.p50_us));
    let p99_us = or_none(outcome.p99_us > 0.0, format!("{:.0}", outcome.p99_us));
    println!(
        "{:26}{server:>10}{per_cpu_s:>15}{percent:>9}{:>9.3}%{p50_us:>9}{p99_us:>9}",
        case.name,
        100.0 * outcome.loss(),
    );
}

/// Memory for allocations with a channel that nothing goes over: the program's own, by its resident pages. What the
/// kernel holds for their sockets is the same for all.
fn idle(servers: &Servers) -> anyhow::Result<()> {
    for server in servers.on_loopback.iter().filter(|server| server.is_turn()) {
        let before = server.memory_bytes()?;
        let clients = server
            .idle(IDLE)
            .with_context(|| format!("{IDLE} on {}", server.name))?;
        let grown = server.memory_bytes()?.saturating_sub(before);
        println!(
            "{IDLE} idle allocations: {} grew by {} bytes each",
            server.name,
            grown / IDLE as u64
        );
        drop(clients);
    }
    Ok(())
}

/// The line that goals are set for: packets per CPU-second relative to coturn's, with bursts in one piece and datagram
/// by datagram, at 50 and at 1000 allocations; the lowest part of the bare forwarder's of all cases with ChannelData;
/// and what the relay adds to the 99th percentile of the way from client to peer, at 50 allocations, datagram by
/// datagram. Then packets per CPU-second behind a card relative to coturn's: by sockets, and by its driver.
fn result(measured: &BTreeMap<&str, Medians>) {
    let ratio = |case: &str, one: &str, other: &str| {
        measured[case][one].per_cpu_s() / measured[case][other].per_cpu_s()
    };
    let of_limit = CASES
        .iter()
        .filter(|case| !matches!(case.traffic, Traffic::Sockets(kind) if kind.indications))
        .map(|case| ratio(case.name, OURS, FORWARDER))
        .fold(f64::INFINITY, f64::min);
    let plain = &measured["50 plain"];
    println!(
        "RESULT gso_vs_coturn={:.2} plain_vs_coturn={:.2} plain_1000_vs_coturn={:.2} of_limit={of_limit:.2} \
         p99_added_us={:.0} card_gro_vs_coturn={:.2} card_plain_vs_coturn={:.2} xdp_gro_vs_coturn={:.2} \
         xdp_plain_vs_coturn={:.2} xdp_plain_1000_vs_coturn={:.2}",
        ratio("50 GSO", OURS, COTURN),
        ratio("50 plain", OURS, COTURN),
        ratio("1000 plain", OURS, COTURN),
        plain[OURS].p99_us - plain[NONE].p99_us,
        ratio("50 card GRO", OURS, COTURN),
        ratio("50 card", OURS, COTURN),
        ratio("50 card GRO", XDP, COTURN),
        ratio("50 card", XDP, COTURN),
        ratio("1000 card", XDP, COTURN),
    );
}
