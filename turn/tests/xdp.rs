//! Channels that network drivers relay: the real program and a kernel's own XDP, between namespaces.
//!
//! ```text
//!  world 10.9.0.1, fd09::1 (client and peer) ── veth ── server 10.9.0.2, fd09::2
//! ```
//!
//! On veth a driver has packets to relay only where they come with finished checksums, and they arrive only where the other
//! end has a program too; so the world's end is made that way.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the tests have sockets, clocks and random numbers of their own"
)]

mod common;

use std::io::IoSlice;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use aya::programs::ProgramType;
use common::Answer;
use common::namespaces::{Namespaces, Program, number, refused, skip};
use common::person::{Person, channel_data};
use penstock_turn::core::counters::Direction;
use penstock_turn::shell::datagrams;
use penstock_turn::shell::xdp::{Count, Mode, Way, Xdp};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use stun_types::message::Message;
use turn_types::attribute::{Data, XorPeerAddress};

#[test]
fn payloads_of_every_length_arrive_unchanged_and_are_counted() {
    let Some(net) = Net::build() else { return };
    let server = net.serve(&["--xdp", "eth0"]);
    let mut call = Call::new(&net);
    let lengths: Vec<usize> = (4..=1468).step_by(7).chain(1460..=1468).collect();
    for length in &lengths {
        call.both_ways(&random(*length));
    }
    let (packets, bytes) = (lengths.len() as u64, lengths.iter().sum::<usize>() as u64);
    let metrics = server.until(TO_CLIENT, packets);
    for (metric, expected) in [
        (XDP_TO_PEER, packets),
        (XDP_TO_CLIENT, packets),
        (TO_PEER, packets),
        (TO_CLIENT, packets),
        ("penstock_turn_relayed_bytes_total{direction=\"to_peer\"}", bytes),
        ("penstock_turn_relayed_bytes_total{direction=\"to_client\"}", bytes),
        ("penstock_turn_received_packets_total{side=\"peer\"}", packets),
        ("penstock_turn_received_bytes_total{side=\"peer\"}", bytes),
        (
            "penstock_turn_received_packets_total{side=\"client\"}",
            packets + call.client.requests,
        ),
    ] {
        assert_eq!(number(&metrics, metric), expected, "{metric}");
    }
}

#[test]
fn padding_of_zeros_and_senders_without_checksums_are_no_matter_for_user_space() {
    let Some(net) = Net::build() else { return };
    let server = net.serve(&["--xdp", "eth0"]);
    let mut call = Call::new(&net);
    let raw = net.raw();
    let client = v4(call.client.udp().local_addr().unwrap());
    for length in 5..=8_usize {
        let payload = random(length);
        let data = channel_data(CHANNEL, &payload);
        for padding in 1..=3 {
            let zeros = [&data[..], &[0; 3][..padding]].concat();
            call.client.put(&zeros);
            assert_eq!(call.at_peer(), payload);
            // Only the last of them is not zero.
            let mut others = zeros.clone();
            *others.last_mut().unwrap() = 1;
            call.client.put(&others);
            assert_eq!(call.at_peer(), payload);
        }
        raw.send(&udp(client, SERVER, &data, Checksum::None));
        assert_eq!(call.at_peer(), payload);
        raw.send(&udp(v4(call.peer_at), v4(call.relay), &payload, Checksum::None));
        assert_eq!(call.at_client(), data);
    }
    let metrics = server.until(TO_PEER, 4 * 7);
    assert_eq!(number(&metrics, XDP_TO_PEER), 4 * 4);
    assert_eq!(number(&metrics, XDP_TO_CLIENT), 4);
}

#[test]
fn what_is_damaged_on_its_way_in_is_known_to_be_at_its_end() {
    let Some(net) = Net::build() else { return };
    let server = net.serve(&["--xdp", "eth0"]);
    let mut call = Call::new(&net);
    let raw = net.raw();
    let client = v4(call.client.udp().local_addr().unwrap());
    let payload = random(100);
    raw.send(&udp(
        client,
        SERVER,
        &channel_data(CHANNEL, &payload),
        Checksum::Wrong,
    ));
    raw.send(&udp(
        v4(call.peer_at),
        v4(call.relay),
        &payload,
        Checksum::Wrong,
    ));
    // They arrive before these, if at all.
    call.both_ways(b"after");
    let metrics = server.until(TO_CLIENT, 2);
    assert_eq!(number(&metrics, XDP_TO_PEER), 2);
    assert_eq!(number(&metrics, XDP_TO_CLIENT), 2);
    let counted = net
        .0
        .exec("world", "grep", &["-h", "^Udp:", "/proc/net/snmp"]);
    let errors = counted.lines().nth(1).unwrap().split(' ').nth(7).unwrap();
    assert_eq!(errors, "2", "InCsumErrors: {counted}");
}

/// As of a neighbour on the same machine, whose kernel leaves checksums to a network card that there isn't.
#[test]
fn checksums_that_are_still_to_be_made_are_made() {
    let Some(net) = Net::build() else { return };
    net.0.exec("world", "ethtool", &["-K", "eth0", "tx", "on"]);
    let server = net.serve(&["--xdp", "eth0"]);
    let mut call = Call::new(&net);
    for length in [4, 5, 100, 1000] {
        call.both_ways(&random(length));
    }
    let metrics = server.until(TO_CLIENT, 4);
    assert_eq!(number(&metrics, XDP_TO_PEER), 0);
    assert_eq!(number(&metrics, XDP_TO_CLIENT), 0);
}

#[test]
fn what_drivers_do_not_relay_goes_by_user_space() {
    let Some(net) = Net::build() else { return };
    let server = net.serve(&["--xdp", "eth0"]);
    let mut call = Call::new(&net);
    // So that it is known to be on.
    call.both_ways(b"by the driver");
    let metrics = server.until(TO_CLIENT, 1);
    assert_eq!((number(&metrics, XDP_TO_PEER), number(&metrics, XDP_TO_CLIENT)), (1, 1));

    call.client.send(call.peer_at, b"by an indication");
    assert_eq!(call.at_peer(), b"by an indication");
    let other = net.world_socket();
    let other_at = other.local_addr().unwrap();
    call.client.send(other_at, b"to another port");
    assert_eq!(received(&other), (b"to another port".to_vec(), call.relay));
    other.send_to(b"from another port", call.relay).unwrap();
    assert_eq!(call.data_indication(), (b"from another port".to_vec(), other_at));
    for payload in [&b""[..], b"1", b"22", b"333"] {
        call.peer.send_to(payload, call.relay).unwrap();
        assert_eq!(call.at_client(), channel_data(CHANNEL, payload));
    }
    // In fragments; and what is in fragments only with the channel's head.
    for length in [4000, 1469, 1472] {
        call.both_ways(&random(length));
    }

    let mut over_tcp = net.0.within("world", || Person::over_tcp(SERVER.into()));
    call.over(&mut over_tcp);
    let mut over_v6 = net
        .0
        .within("world", || Person::new("[fd09::2]:3478".parse().unwrap()));
    call.over(&mut over_v6);

    let metrics = server.metrics();
    assert!(number(&metrics, TO_CLIENT) > 8, "{metrics}");
    let metrics = server.until(TO_CLIENT, number(&metrics, TO_CLIENT) + 1 - 1);
    assert_eq!((number(&metrics, XDP_TO_PEER), number(&metrics, XDP_TO_CLIENT)), (1, 1));
}
