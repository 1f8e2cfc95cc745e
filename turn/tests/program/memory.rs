//! What clients by streams take of the server's memory, each.

use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::common::Answer;
use crate::common::person::{Person, Socket};
use crate::server::{Server, begin_handshake, now, socket};

#[test]
fn a_half_made_handshake_takes_no_more_than_40_kib() {
    open_more_files();
    let server = Server::start(&["--source-connections", "1000"]);
    let begin = |count: usize| -> Vec<_> {
        let begin = |_| begin_handshake(server.tls, 15 << 10);
        (0..count).map(begin).collect()
    };
    let mut held = begin(20);
    server.until("penstock_turn_connections 20\n");
    let before = server.memory_kib();
    held.extend(begin(400));
    server.until("penstock_turn_connections 420\n");
    std::thread::sleep(Duration::from_millis(200));
    let each = (server.memory_kib() - before) as f64 / 400.0;
    println!("{each:.1} KiB each");
    assert!((15.0..40.0).contains(&each), "{each:.1} KiB each");
    // Their time is short.
    server.until_within(Duration::from_secs(20), "penstock_turn_connections 0\n");
    server.until("penstock_turn_connections_ended_total{reason=\"idle\"} 420\n");
}

/// The worst that one can do without taking anything: a record, and a message, that don't end.
#[test]
fn a_connection_over_tls_takes_no_more_than_50_kib() {
    let server = Server::start(&["--user-quota", "1000"]);
    let begin = |count: usize| -> Vec<_> {
        let begin = |_| {
            let mut person = server.person_over_tls();
            person.allocate();
            person.put(&[&[0x40, 1, 0xFF, 0xFF][..], &[7; 2000]].concat());
            let Socket::Tls(tls) = &mut person.socket else {
                panic!("it speaks TLS");
            };
            // Of application data, as long as a record may be (RFC 8446, section 5.1).
            let record = [&[0x17, 3, 3, 0x41, 0][..], &[7; 16_000]].concat();
            tls.sock.write_all(&record).unwrap();
            person
        };
        (0..count).map(begin).collect()
    };
    let mut held = begin(20);
    let before = server.memory_kib();
    held.extend(begin(200));
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(server.metric("penstock_turn_connections"), 220);
    let each = (server.memory_kib() - before) as f64 / 200.0;
    println!("{each:.1} KiB each");
    assert!((18.0..50.0).contains(&each), "{each:.1} KiB each");
}

/// Over TCP and TLS, with a peer that sends more than they take, which is nothing.
#[test]
fn a_client_that_reads_nothing_takes_no_more_than_320_kib() {
    let server = Server::start(&["--user-quota", "100"]);
    let peer = socket();
    let slow = |n: u32| {
        let mut person = match n % 2 {
            0 => Person::over_tcp(server.tcp),
            _ => server.person_over_tls(),
        };
        let relay = person.allocate();
        assert_eq!(person.bind(0x4001, peer.local_addr().unwrap()), Answer::Success);
        (person, relay)
    };
    let (slow, relays): (Vec<_>, Vec<_>) = (0..SLOW).map(slow).unzip();
    let before = server.memory_kib();
    fill(&server, &peer, &relays);
    let each = (server.memory_kib() - before) as f64 / f64::from(SLOW);
    println!("{each:.1} KiB each");
    assert!((128.0..320.0).contains(&each), "{each:.1} KiB each");
    // It ends them for it, and what was kept for them is free again.
    server.until_within(Duration::from_secs(20), "penstock_turn_connections 0\n");
    let rest = (server.memory_kib() - before) as f64 / f64::from(SLOW);
    assert!(rest < each / 2.0, "{rest:.1} KiB each");
    drop(slow);
}

/// Sends to all until what is kept for each is as long as it may be, so that more is dropped.
fn fill(server: &Server, peer: &UdpSocket, relays: &[SocketAddr]) {
    let full = "penstock_turn_dropped_packets_total{direction=\"to_client\",reason=\"send_buffer_full\"}";
    let end = now() + Duration::from_secs(60);
    while server.metric(full) < 200 * u64::from(SLOW) {
        assert!(now() < end, "{}", server.metric(full));
        for _ in 0..50 {
            for relay in relays {
                peer.send_to(&[7; 1200], relay).unwrap();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// As many as may be.
pub(crate) fn open_more_files() {
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

const SLOW: u32 = 40;
