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
//! their receivers, which in a network is the work of others. The forwarder waits for packets as penstock-turn does
//! ([`Gathering`](penstock_turn::shell::gathering::Gathering)), so it says what the protocol costs, and nothing of
//! that choice. `none` is the same traffic with nothing between client and peer. `xdp` is penstock-turn with channels
//! relayed by the network driver, over a [`network`] of its own; its cost is that of its threads and its program.
//!
//! The last line is `RESULT …`; what stands in it is said where it is printed.

#![expect(
    clippy::disallowed_methods,
    reason = "the benchmark is all shell: it measures real time, over sockets of its own"
)]

mod client;
mod forwarder;
mod load;
mod network;
mod servers;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use load::{BURST, Flow, Kind, Outcome, PAYLOAD, RATE};
use penstock_turn::shell::sockets;
use servers::{COTURN, DIRECT, FORWARDER, NONE, OURS, Servers, XDP};

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
    kind: Kind,
}

const CASES: [Case; 8] = [
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
    Case { name, flows, kind }
}

fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("forwarder") {
        return forwarder::run();
    }
    let only = std::env::args().nth(1).filter(|only| !only.starts_with('-'));
    servers::pin(std::process::id(), servers::LOAD_CORE)?;
    sockets::raise_open_files(0);
    let servers = Servers::start()?;
    println!(
        "{BURST} datagrams of {PAYLOAD} bytes at a time, {RATE} a second; medians of {TURNS} turns of {TURN:?}\n\n\
         {:26}{:>10}{:>15}{:>9}{:>10}{:>9}{:>9}",
        "allocations", "server", "packets/CPU-s", "CPU", "loss", "p50 µs", "p99 µs"
    );
    let mut measured = BTreeMap::new();
    for case in CASES {
        if only.as_ref().is_none_or(|only| case.name.contains(only.as_str())) {
            measured.insert(case.name, measure(&servers, case)?);
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

/// What each server came to in one case, in their order.
type Medians = Vec<Outcome>;

fn measure(servers: &Servers, case: Case) -> anyhow::Result<Medians> {
    let mut flows: Vec<Vec<Flow>> = Vec::new();
    for server in servers.all() {
        let opened = server.flows(case.flows, case.kind);
        flows.push(opened.with_context(|| format!("{} on {}", case.name, server.name))?);
    }
    let mut outcomes: Vec<Vec<Outcome>> = servers.all().iter().map(|_| Vec::new()).collect();
    for turn in 0..TURNS {
        for (index, server) in servers.all().iter().enumerate() {
            let before = server.cpu_s()?;
            let mut outcome = load::run(&flows[index], case.kind, TURN, turn as u64)?;
            outcome.cpu_s = server.cpu_s()? - before;
            outcomes[index].push(outcome);
        }
    }
    for (server, flows) in servers.all().iter().zip(flows) {
        let closed = server.close(flows);
        closed.with_context(|| format!("closing {} on {}", case.name, server.name))?;
    }
    let medians: Medians = outcomes
        .iter()
        .map(|outcomes| Outcome::median(outcomes))
        .collect();
    for (server, outcome) in servers.all().iter().zip(&medians) {
        let (per_cpu_s, percent) = match server.name {
            NONE => ("-".to_owned(), "-".to_owned()),
            _ => {
                let percent = 100.0 * outcome.cpu_s / TURN.as_secs_f64();
                (format!("{:.0}", outcome.per_cpu_s()), format!("{percent:.1}%"))
            }
        };
        println!(
            "{:26}{:>10}{per_cpu_s:>15}{percent:>9}{:>9.3}%{:>9.0}{:>9.0}",
            case.name,
            server.name,
            100.0 * outcome.loss(),
            outcome.p50_us,
            outcome.p99_us,
        );
    }
    Ok(medians)
}

/// Memory for allocations with a channel that nothing goes over: the program's own, by its resident pages. What the
/// kernel holds for their sockets is the same for all.
fn idle(servers: &Servers) -> anyhow::Result<()> {
    for server in servers.all().iter().filter(|server| server.is_turn()) {
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
/// datagram. Then packets per CPU-second of the program in the network driver, relative to coturn's: without the driver's
/// own work, which a network card needs for coturn too.
fn result(measured: &BTreeMap<&str, Medians>) {
    let vs_coturn = |case: &str| measured[case][OURS].per_cpu_s() / measured[case][COTURN].per_cpu_s();
    let of_limit = CASES
        .iter()
        .filter(|case| !case.kind.indications)
        .map(|case| measured[case.name][OURS].per_cpu_s() / measured[case.name][FORWARDER].per_cpu_s())
        .fold(f64::INFINITY, f64::min);
    let plain = &measured["50 plain"];
    let xdp = |case: &str| measured[case][XDP].per_cpu_s() / measured[case][COTURN].per_cpu_s();
    println!(
        "RESULT gso_vs_coturn={:.2} plain_vs_coturn={:.2} plain_1000_vs_coturn={:.2} of_limit={of_limit:.2} \
         p99_added_us={:.0} xdp_gso_vs_coturn={:.2} xdp_plain_vs_coturn={:.2} xdp_plain_1000_vs_coturn={:.2}",
        vs_coturn("50 GSO"),
        vs_coturn("50 plain"),
        vs_coturn("1000 plain"),
        plain[OURS].p99_us - plain[DIRECT].p99_us,
        xdp("50 GSO"),
        xdp("50 plain"),
        xdp("1000 plain"),
    );
}
