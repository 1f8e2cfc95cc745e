//! SIGTERM.

use std::net::UdpSocket;
use std::time::Duration;

use rustix::process::Signal;
use turn_types::attribute::{Lifetime, RequestedTransport};
use turn_types::message::{ALLOCATE, REFRESH};

use crate::common::Answer;
use crate::common::person::{Person, channel_data};
use crate::server::{Server, now, socket};

#[test]
fn a_server_without_allocations_ends_at_once() {
    let mut server = Server::start(&["--grace", "60"]);
    let began = now();
    server.signal(Signal::TERM);
    assert!(server.wait().success());
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_server_that_drains_relays_on_until_its_grace_is_over() {
    let mut server = Server::start(&["--grace", "2"]);
    let mut person = Person::new(server.address);
    let udp = RequestedTransport::new(17);
    assert_eq!(person.ask(ALLOCATE, &[&udp]), Answer::Success);
    let began = now();
    server.signal(Signal::TERM);
    while server.get("/readyz").contains("200 OK") {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(server.get("/readyz").contains("503"));
    assert!(server.status().draining);
    assert_eq!(person.ask(REFRESH, &[&Lifetime::new(600)]), Answer::Success);
    assert!(server.wait().success());
    assert!((1900..10_000).contains(&began.elapsed().as_millis()));
}

#[test]
fn a_server_that_drains_names_another_to_new_clients() {
    let mut server = Server::start(&["--grace", "30", "--alternate-server", "203.0.113.9:3478"]);
    let udp = RequestedTransport::new(17);
    let (mut early, mut late) = (Person::new(server.address), Person::new(server.address));
    assert_eq!(early.ask(ALLOCATE, &[&udp]), Answer::Success);
    server.signal(Signal::TERM);
    while server.get("/readyz").contains("200 OK") {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(late.ask(ALLOCATE, &[&udp]), Answer::Error(300));
    let began = now();
    assert_eq!(early.ask(REFRESH, &[&Lifetime::new(0)]), Answer::Success);
    assert!(server.wait().success());
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "it ends with the last allocation"
    );
}

#[test]
fn clients_over_tcp_and_tls_are_relayed_while_the_server_drains() {
    let mut server = Server::start(&["--grace", "60"]);
    let peer = socket();
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut clients = [Person::over_tcp(server.tcp), server.person_over_tls()];
    let relays = clients.each_mut().map(|client| {
        let relay = client.allocate();
        assert_eq!(client.bind(CHANNEL, peer.local_addr().unwrap()), Answer::Success);
        relay
    });
    server.signal(Signal::TERM);
    while server.get("/readyz").contains("200 OK") {
        std::thread::sleep(Duration::from_millis(10));
    }
    // New clients may connect, and get no more than an answer.
    for mut late in [Person::over_tcp(server.tcp), server.person_over_tls()] {
        let asked = late.ask(ALLOCATE, &[&RequestedTransport::new(17)]);
        assert_eq!(asked, Answer::Error(508));
    }
    for (client, relay) in clients.iter_mut().zip(relays) {
        both_ways(client, &peer, relay);
        assert_eq!(client.refresh(600), Answer::Success);
        both_ways(client, &peer, relay);
    }
    // It ends with the last of them: over TLS by a request, over TCP as the connection does.
    let [over_tcp, mut over_tls] = clients;
    assert_eq!(over_tls.refresh(0), Answer::Success);
    assert!(server.is_running());
    let began = now();
    drop(over_tcp);
    assert!(server.wait().success());
    assert!(began.elapsed() < Duration::from_secs(10));
}

fn both_ways(client: &mut Person, peer: &UdpSocket, relay: std::net::SocketAddr) {
    let mut buffer = [0; 2048];
    client.send_on(CHANNEL, b"up, up..");
    let (length, from) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from), (&b"up, up.."[..], relay));
    peer.send_to(b"and down", relay).unwrap();
    assert_eq!(client.receive(), channel_data(CHANNEL, b"and down"));
}

const CHANNEL: u16 = 0x4001;
