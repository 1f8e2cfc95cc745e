//! Against coturn's tools.

use std::net::UdpSocket;

use stun_types::AddressFamily;
use stun_types::message::Message;
use turn_types::attribute::{AdditionalAddressFamily, Data, RequestedTransport};
use turn_types::message::ALLOCATE;

use crate::common::Answer;
use crate::common::namespaces::{Ended, text};
use crate::common::person::Person;
use crate::server::{LOOPBACK, Server, free_port, quiet, run};

#[test]
fn channels_lose_nothing() {
    Relayed::loses_nothing(&["-u", "demo", "-w", "demo", "-c"]);
}

#[test]
fn send_indications_lose_nothing() {
    Relayed::loses_nothing(&["-u", "demo", "-w", "demo", "-s", "-c"]);
}

#[test]
fn credentials_of_the_shared_secret_are_taken_as_coturn_takes_them() {
    Relayed::loses_nothing(&["-u", "player-7", "-W", "north", "-c"]);
}

#[test]
fn a_reserved_port_serves_rtcp() {
    // Without -c each client asks for an even port and its neighbour, and sends RTCP through that one.
    Relayed::loses_nothing(&["-u", "demo", "-w", "demo"]);
}

/// By hand: Debian's coturn asks for two families with an attribute number from before RFC 8656.
#[test]
fn a_dual_allocation_has_two_sockets() {
    let server = Server::start(&[]);
    let mut person = Person::new(server.address);
    let both = AdditionalAddressFamily::new(AddressFamily::IPV6);
    assert_eq!(
        person.ask(ALLOCATE, &[&RequestedTransport::new(17), &both]),
        Answer::Success
    );
    for ip in ["127.0.0.1", "::1"] {
        let peer = UdpSocket::bind((ip, 0)).unwrap();
        let peer_at = peer.local_addr().unwrap();
        assert_eq!(person.permit(peer_at), Answer::Success);
        person.send(peer_at, b"up");
        let mut buffer = [0; 2048];
        let (length, relay) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], relay.ip()), (&b"up"[..], peer_at.ip()));
        peer.send_to(b"down", relay).unwrap();
        let down = person.receive();
        let message = Message::from_bytes(&down).unwrap();
        assert_eq!(message.attribute::<Data<'_>>().unwrap().data(), b"down");
    }
}

#[test]
fn clients_and_peers_over_ipv6() {
    Relayed::loses_nothing_at("::1", &["-u", "demo", "-w", "demo", "-c", "-x"]);
    Relayed::loses_nothing_at("::1", &["-u", "demo", "-w", "demo", "-s", "-c", "-x"]);
}

#[test]
fn clients_over_tcp() {
    Relayed::loses_nothing(&["-u", "demo", "-w", "demo", "-c", "-t"]);
    Relayed::loses_nothing(&["-u", "player-7", "-W", "north", "-c", "-t", "-s"]);
    Relayed::loses_nothing_at("::1", &["-u", "demo", "-w", "demo", "-c", "-x", "-t"]);
}

#[test]
fn clients_over_tls() {
    Relayed::loses_nothing(&["-u", "demo", "-w", "demo", "-c", "-t", "-S"]);
    Relayed::loses_nothing(&["-u", "player-7", "-W", "north", "-c", "-t", "-S", "-s"]);
}

#[test]
fn clients_over_tls_and_ipv6() {
    Relayed::loses_nothing_at("::1", &["-u", "demo", "-w", "demo", "-c", "-x", "-t", "-S"]);
    Relayed::loses_nothing_at("::1", &["-u", "demo", "-w", "demo", "-c", "-x", "-t", "-S", "-s"]);
}

#[test]
fn a_server_that_listens_everywhere() {
    Relayed::loses_nothing_of(EVERYWHERE, "127.0.0.1", &["-u", "demo", "-w", "demo", "-c"]);
    Relayed::loses_nothing_of(EVERYWHERE, "::1", &["-u", "demo", "-w", "demo", "-c", "-x"]);
}

#[test]
fn a_server_that_listens_everywhere_for_streams() {
    Relayed::loses_nothing_of(EVERYWHERE, "127.0.0.1", &["-u", "demo", "-w", "demo", "-c", "-t"]);
    let over_tls = ["-u", "demo", "-w", "demo", "-c", "-x", "-t", "-S"];
    Relayed::loses_nothing_of(EVERYWHERE, "::1", &over_tls);
}

#[test]
fn a_wrong_password_gets_no_relay() {
    let Some(lost) = Relayed::run(LOOPBACK, "127.0.0.1", &["-u", "demo", "-w", "wrong", "-c"]) else {
        return;
    };
    assert!(
        lost.output.contains("Cannot complete Allocation"),
        "{}",
        lost.output
    );
    assert!(
        lost.metrics
            .contains("penstock_turn_relayed_packets_total{direction=\"to_peer\"} 0\n")
    );
}

#[test]
fn a_stun_client_learns_its_address() {
    if !is_installed("turnutils_stunclient") {
        return;
    }
    let server = Server::start(&[]);
    for (ip, server, told) in [
        ("127.0.0.1", server.address, "127.0.0.1:"),
        ("::1", server.address_v6, "::1:"),
    ] {
        let said = text(&run(
            "turnutils_stunclient",
            &["-p", &server.port().to_string(), ip],
        ));
        assert!(said.contains(&format!("UDP reflexive addr: {told}")), "{said}");
    }
}

/// What `turnutils_uclient` said of 4 clients with 100 packets each, and what the server counted.
struct Relayed {
    output: String,
    metrics: String,
}

impl Relayed {
    fn loses_nothing(options: &[&str]) {
        Self::loses_nothing_at("127.0.0.1", options);
    }

    fn loses_nothing_at(ip: &str, options: &[&str]) {
        Self::loses_nothing_of(LOOPBACK, ip, options);
    }

    /// Three tries: on a machine that is short of time, datagrams are lost in the buffers of those who send and receive.
    fn loses_nothing_of(listen: &str, ip: &str, options: &[&str]) {
        for _ in 0..2 {
            match Self::run(listen, ip, options) {
                None => return,
                Some(run) if run.lost_nothing() => return,
                Some(_) => {}
            }
        }
        if let Some(run) = Self::run(listen, ip, options) {
            run.assert_none();
        }
    }

    /// With the peer and the server at `ip`, of those where it listens. `None` where the tools are not installed.
    fn run(listen: &str, ip: &str, options: &[&str]) -> Option<Self> {
        if !is_installed("turnutils_uclient") || !is_installed("turnutils_peer") {
            return None;
        }
        let server = Server::at(listen, &RELAYS_ON_LOOPBACK);
        let peer_port = free_port().to_string();
        let peer = ["-L", ip, "-p", &peer_port];
        let _peer = Ended(quiet("turnutils_peer", &peer).spawn().unwrap());
        let address = match (options.contains(&"-S"), options.contains(&"-t"), ip) {
            (true, _, "::1") => server.tls_v6,
            (true, ..) => server.tls,
            (false, true, "::1") => server.tcp_v6,
            (false, true, _) => server.tcp,
            (false, false, "::1") => server.address_v6,
            (false, false, _) => server.address,
        };
        let port = address.port().to_string();
        let load = ["-m", "4", "-n", "100", "-z", "5", "-l", "1000"];
        let where_to = ["-p", &port, "-e", ip, "-r", &peer_port, ip];
        let output = run("turnutils_uclient", &[options, &load, &where_to].concat());
        Some(Self {
            output: text(&output),
            metrics: server.get("/metrics"),
        })
    }

    fn lost_nothing(&self) -> bool {
        self.output.contains("Total lost packets 0 ")
    }

    fn assert_none(&self) {
        assert!(
            self.metrics.contains("penstock_turn_handling_seconds_count "),
            "{}",
            self.metrics
        );
        assert!(self.lost_nothing(), "{}", self.output);
        for direction in ["to_peer", "to_client"] {
            let line = format!("penstock_turn_relayed_packets_total{{direction=\"{direction}\"}} ");
            let count = self
                .metrics
                .lines()
                .find_map(|metric| metric.strip_prefix(&line))
                .unwrap();
            assert!(count.parse::<u64>().unwrap() >= 400, "{direction}: {count}");
        }
    }
}

/// Where it isn't, says so; in CI that is an error.
fn is_installed(tool: &str) -> bool {
    let found = quiet("which", &[tool]).status().unwrap().success();
    if !found {
        assert!(
            std::env::var("CI").is_err(),
            "{tool} is missing: install Debian's package coturn"
        );
        eprintln!("SKIPPED: {tool} is missing; install Debian's package coturn to run this test");
    }
    found
}

const EVERYWHERE: &str = "0.0.0.0:0,[::]:0";
/// Which the peers' addresses need, wherever it listens.
const RELAYS_ON_LOOPBACK: [&str; 2] = ["--relay-ip", "127.0.0.1,::1"];
