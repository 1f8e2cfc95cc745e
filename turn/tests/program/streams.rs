//! What is particular to clients over TCP and TLS.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use stun_types::message::BINDING;
use turn_types::attribute::RequestedTransport;
use turn_types::message::{ALLOCATE, REFRESH};

use crate::common::person::read_stream;
use crate::common::{Answer, Client};
use crate::server::{Server, begin_handshake};

#[test]
fn a_stream_is_cut_into_messages_wherever_it_breaks() {
    let server = Server::start(&[]);
    let mut stream = TcpStream::connect(server.tcp).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut client = Client::new(1, "demo", "demo");
    let udp = RequestedTransport::new(17);
    let _ = client.read(&ask_stream(&mut stream, &client.clone().bare(ALLOCATE, &[&udp])));
    let request = client.signed(ALLOCATE, &[&udp]);
    for byte in &request[..request.len() - 1] {
        stream.write_all(&[*byte]).unwrap();
    }
    let answer = ask_stream(&mut stream, &request[request.len() - 1..]);
    assert_eq!(client.read(&answer), Answer::Success);
    let two = [client.bare(BINDING, &[]), client.signed(REFRESH, &[])].concat();
    stream.write_all(&two).unwrap();
    assert_eq!(client.read(&read_stream(&mut stream)), Answer::Success);
    assert_eq!(client.read(&read_stream(&mut stream)), Answer::Success);
    assert!(server.get("/metrics").contains("penstock_turn_allocations 1\n"));
    assert!(server.get("/metrics").contains("penstock_turn_connections 1\n"));
    drop(stream);
    server.until("penstock_turn_allocations 0\n");
    server.until("penstock_turn_connections 0\n");
    server.until("penstock_turn_connections_ended_total{reason=\"client\"} 1\n");
}

#[test]
fn what_is_no_message_ends_a_stream() {
    let server = Server::start(&[]);
    for address in [server.tcp, server.tls] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(&[0xFF; 100]).unwrap();
        // TLS says goodbye with an alert.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() < 20);
    }
    server.until("penstock_turn_connections_ended_total{reason=\"malformed\"} 1\n");
    server.until("penstock_turn_connections_ended_total{reason=\"tls\"} 1\n");
}

/// The library would keep 64 KiB of it.
#[test]
fn a_handshake_that_is_longer_than_any_client_needs_ends() {
    let server = Server::start(&[]);
    let mut stream = begin_handshake(server.tls, 12 << 10);
    server.until("penstock_turn_connections 1\n");
    // The record's rest, and the beginning of another.
    let mut more = vec![0; 8 << 10];
    more[(4 << 10) + 5..][..5].copy_from_slice(&[0x16, 3, 1, 0x40, 0]);
    stream.write_all(&more).unwrap();
    server.until("penstock_turn_connections_ended_total{reason=\"tls\"} 1\n");
    let mut alert = Vec::new();
    let _ = stream.read_to_end(&mut alert);
    assert!(alert.len() < 20);
}

fn ask_stream(stream: &mut TcpStream, request: &[u8]) -> Vec<u8> {
    stream.write_all(request).unwrap();
    read_stream(stream)
}
