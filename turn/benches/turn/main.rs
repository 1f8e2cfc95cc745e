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
//! their receivers, which in a network is the work of others; it is the same for all.
//!
//! The last line is `RESULT …`; what stands in it is said where it is printed.

mod client;
mod forwarder;
mod load;
mod servers;

use std::time::Duration;

use anyhow::Context as _;
use load::{Flow, Kind, Outcome};
use servers::Servers;

const TURN: Duration = Duration::from_millis(500);
fn turns() -> usize {
    std::env::var("TURNS")
        .ok()
        .and_then(|turns| turns.parse().ok())
        .unwrap_or(5)
}

/// One kind of traffic.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    flows: usize,
    kind: Kind,
}

const CASES: [Case; 7] = [
    case("1, GSO", 1, true, false),
    case("1, plain", 1, false, false),
    case("50, GSO", 50, true, false),
    case("50, plain", 50, false, false),
    case("1000, GSO", 1000, true, false),
    case("1000, plain", 1000, false, false),
    case("50, plain, Send", 50, false, true),
];

const fn case(name: &'static str, flows: usize, merged: bool, indications: bool) -> Case {
    Case {
        name,
        flows,
        kind: Kind { merged, indications },
    }
}

fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("forwarder") {
        return forwarder::run();
    }
    let only = std::env::args().nth(1).filter(|only| !only.starts_with('-'));
    servers::pin(std::process::id(), servers::LOAD_CORE)?;
    penstock_turn::shell::sockets::raise_open_files(0);
    let servers = Servers::start()?;
    println!(
        "{:16} {:>12} {:>14} {:>10} {:>9} {:>9}",
        "allocations", "server", "packets/CPU-s", "loss", "p50 µs", "p99 µs"
    );
    for case in CASES {
        if only.as_ref().is_none_or(|only| case.name.contains(only.as_str())) {
            measure(&servers, case)?;
        }
    }
    Ok(())
}

fn measure(servers: &Servers, case: Case) -> anyhow::Result<()> {
    let mut flows: Vec<Vec<Flow>> = Vec::new();
    for server in servers.all() {
        flows.push(
            server
                .flows(case.flows, case.kind)
                .with_context(|| format!("{} on {}", case.name, server.name))?,
        );
    }
    let mut outcomes: Vec<Vec<Outcome>> = servers.all().iter().map(|_| Vec::new()).collect();
    for turn in 0..turns() {
        for (index, server) in servers.all().iter().enumerate() {
            let before = server.cpu_s()?;
            let mut outcome = load::run(&flows[index], case.kind, TURN, turn as u64)?;
            outcome.cpu_s = server.cpu_s()? - before;
            outcomes[index].push(outcome);
        }
    }
    for (server, outcomes) in servers.all().iter().zip(&outcomes) {
        let median = |of: fn(&Outcome) -> f64| {
            let mut values: Vec<f64> = outcomes.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        println!(
            "{:16} {:>12} {:>14.0} {:>9.4}% {:>9.0} {:>9.0}   {:.0} pps {:.1}% cpu",
            case.name,
            server.name,
            median(|outcome| outcome.received as f64 / outcome.cpu_s),
            median(|outcome| 100.0 * (outcome.sent as f64 - outcome.received as f64) / outcome.sent as f64),
            median(|outcome| outcome.p50_us),
            median(|outcome| outcome.p99_us),
            median(|outcome| outcome.received as f64) / TURN.as_secs_f64(),
            median(|outcome| outcome.cpu_s) / TURN.as_secs_f64() * 100.0,
        );
    }
    for (server, flows) in servers.all().iter().zip(flows) {
        server
            .close(flows)
            .with_context(|| format!("closing {} on {}", case.name, server.name))?;
    }
    Ok(())
}
