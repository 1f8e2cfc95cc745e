//! Channels that network drivers relay: the real program and a kernel's own XDP, between namespaces.
//!
//! ```text
//!  world 10.9.0.1, fd09::1 (client and peer) ── veth ── server 10.9.0.2, fd09::2
//! ```
//!
//! On veth a driver has packets to relay only where they come with finished checksums, and what it sends back is taken in
//! only where the other end takes packets in as cards do; so the world's end is made that way, with a program of its own.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the tests have sockets, clocks and random numbers of their own"
)]

#[path = "../common/mod.rs"]
mod common;
mod drain;
mod interfaces;
mod net;
mod packets;

use std::num::NonZeroU32;
use std::time::Duration;

use common::Answer;
use common::namespaces::{Program, number};
use common::person::{Person, channel_data};
use penstock_turn::core::counters::Direction;
use penstock_turn::shell::xdp::Count;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};
use rustix::process::Signal;

use net::{
    CHANNEL, Call, Direct, ETH_P_ALL, FAR_AWAY, Net, PUBLISHED, SERVER, TO_CLIENT, TO_PEER, XDP_TO_CLIENT,
    XDP_TO_PEER, monotonic, nothing_comes, random, received, v4, wait_until,
};
use packets::{Checksum, damaged, relayed, udp};

#[test]
fn payloads_of_every_length_arrive_unchanged_and_are_counted() {
    let Some(net) = Net::build() else { return };
    let server = net.serve(&["--xdp", "eth0"]);
    let mut call = Call::new(&net);
    let lengths: Vec<usize> = (4..=1468).step_by(7).chain(1460..=1468).collect();
    for length in &lengths {
        call.both_ways(*length);
    }
    let (packets, bytes) = (lengths.len() as u64, lengths.iter().sum::<usize>() as u64);
    let metrics = server.until(TO_CLIENT, packets);
    for (metric, expected) in [
        (XDP_TO_PEER, packets),
        (XDP_TO_CLIENT, packets),
        (TO_PEER, packets),
        (TO_CLIENT, packets),
        ("penstock_turn_relayed_bytes_total{direction=\"to_peer\"}", bytes),
        (
            "penstock_turn_relayed_bytes_total{direction=\"to_client\"}",
            bytes,
        ),
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

/// Not every card pads what is too short for Ethernet.
#[test]
fn short_payloads_leave_in_frames_of_the_usual_length() {
    let Some(net) = Net::build() else { return };
    let _server = net.serve(&["--xdp", "eth0"]);
    let mut call = Call::new(&net);
    let all = Protocol::from_raw(NonZeroU32::new(u32::from(ETH_P_ALL.to_be())).unwrap());
    let (family, kind) = (AddressFamily::PACKET, SocketType::RAW);
    let open = || socket_with(family, kind, SocketFlags::CLOEXEC, Some(all)).unwrap();
    let frames = net.0.within("world", open);
    for length in 0..20 {
        let payload = call.finished_payload(length);
        call.client.send_on(CHANNEL, &payload);
        assert_eq!(call.at_peer(), payload);
        let mut frame = [0; 2048];
        let arrived = loop {
            let (arrived, _) = recv(&frames, &mut frame, RecvFlags::DONTWAIT).unwrap();
            if frame[26..30] == [10, 9, 0, 2] && frame[36..38] == call.peer_at.port().to_be_bytes() {
                break arrived;
            }
        };
        assert_eq!(arrived, 60.max(42 + length));
        assert!(frame[42 + length..arrived].iter().all(|byte| *byte == 0));
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
    raw.send(&udp(v4(call.peer_at), v4(call.relay), &payload, Checksum::Wrong));
    // They arrive before these, if at all.
    call.both_ways(100);
    let metrics = server.until(TO_CLIENT, 2);
    assert_eq!(number(&metrics, XDP_TO_PEER), 2);
    assert_eq!(number(&metrics, XDP_TO_CLIENT), 2);
    let counted = net.0.exec("world", "grep", &["-h", "^Udp:", "/proc/net/snmp"]);
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
        call.both_ways(length);
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
    call.both_ways(100);
    let metrics = server.until(TO_CLIENT, 1);
    assert_eq!(
        (number(&metrics, XDP_TO_PEER), number(&metrics, XDP_TO_CLIENT)),
        (1, 1)
    );

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
        call.both_ways(length);
    }

    let mut over_tcp = net.0.within("world", || Person::over_tcp(SERVER.into()));
    call.over(&mut over_tcp);
    let mut over_v6 = net
        .0
        .within("world", || Person::new("[fd09::2]:3478".parse().unwrap()));
    call.over(&mut over_v6);

    call.both_ways(100);
    let metrics = server.until(XDP_TO_CLIENT, 2);
    assert_eq!(number(&metrics, XDP_TO_PEER), 2);
    assert_eq!(number(&metrics, XDP_TO_CLIENT), 2);
    let by_user_space = 1 + 4 + 3 + 2;
    assert_eq!(number(&metrics, TO_CLIENT), 2 + by_user_space);
}

#[test]
fn whose_bandwidth_is_limited_is_relayed_by_user_space() {
    let Some(net) = Net::build() else { return };
    let server = net.serve(&["--xdp", "eth0", "--user-bandwidth", "1000000"]);
    let mut call = Call::new(&net);
    call.both_ways(100);
    server.until(TO_CLIENT, 1);
    std::thread::sleep(PUBLISHED);
    let metrics = server.metrics();
    assert_eq!(
        (number(&metrics, XDP_TO_PEER), number(&metrics, XDP_TO_CLIENT)),
        (0, 0)
    );
}

#[test]
fn with_the_allocation_its_channels_end() {
    let Some(net) = Net::build() else { return };
    let server = net.serve(&["--xdp", "eth0", "--xdp", "eth0"]);
    assert_eq!(server.said("the driver of eth0 relays"), 1);
    let mut call = Call::new(&net);
    call.both_ways(100);
    assert_eq!(call.client.refresh(0), Answer::Success);
    call.nothing_comes_through();
    call.relay = call.client.allocate();
    call.nothing_comes_through();
    assert_eq!(call.client.bind(CHANNEL, call.peer_at), Answer::Success);
    call.both_ways(100);
    let metrics = server.until(XDP_TO_CLIENT, 2);
    assert_eq!(
        (number(&metrics, XDP_TO_PEER), number(&metrics, XDP_TO_CLIENT)),
        (2, 2)
    );
}

#[test]
fn peers_that_new_rules_deny_are_out_of_reach() {
    let Some(net) = Net::build() else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    std::fs::write(path, "allow-peer: [10.9.0.1]").unwrap();
    let options = ["--listen", "10.9.0.2:3478", "--xdp", "eth0", "--config", path];
    let server = Program::start(&net.0, "server", &options);
    let mut call = Call::new(&net);
    call.both_ways(100);
    server.signal(Signal::HUP);
    wait_until(|| server.said("read again") == 1);
    call.both_ways(100);
    std::fs::write(path, "allow-peer: [10.9.0.7]").unwrap();
    server.signal(Signal::HUP);
    // The shards are told after that, each when it wakes up.
    wait_until(|| server.said("read again") == 2);
    std::thread::sleep(Duration::from_millis(100));
    call.nothing_comes_through();
    std::thread::sleep(PUBLISHED);
    let metrics = server.metrics();
    assert_eq!(
        (number(&metrics, XDP_TO_PEER), number(&metrics, XDP_TO_CLIENT)),
        (2, 2)
    );
}

#[test]
fn the_server_has_several_addresses() {
    let Some(net) = Net::build() else { return };
    net.0
        .ip_in("server", &["address", "add", "10.9.0.3/24", "dev", "eth0"]);
    let everywhere = ["--listen=0.0.0.0:3478", "--allow-peer=10.9.0.1"];
    let options = [&everywhere[..], &["--xdp", "eth0"]].concat();
    let server = Program::start(&net.0, "server", &options);
    let call = Call::new(&net);
    for (number, ip) in (1..).zip(["10.9.0.2", "10.9.0.3"]) {
        let at = format!("{ip}:3478").parse().unwrap();
        let mut client = net.0.within("world", || Person::new(at));
        call.over(&mut client);
        let metrics = server.until(XDP_TO_CLIENT, number);
        assert_eq!(common::namespaces::number(&metrics, XDP_TO_PEER), number, "{ip}");
    }
}

#[test]
fn a_peer_whose_address_becomes_the_servers_own_is_out_of_reach() {
    let Some(net) = Net::build() else { return };
    net.0
        .ip_in("world", &["address", "add", "10.9.0.7/24", "dev", "eth0"]);
    let server = net.serve(&["--xdp", "eth0", "--allow-peer", "10.9.0.0/24"]);
    let mut call = Call::with_peer(&net, "world", "10.9.0.7");
    // The first goes by user space, which asks who has that address.
    call.both_ways(100);
    call.both_ways(100);
    net.0
        .ip_in("server", &["address", "add", "10.9.0.7/32", "dev", "lo"]);
    let end = monotonic() + Duration::from_secs(10);
    while call.client.permit(call.peer_at) == Answer::Success {
        assert!(monotonic() < end);
        std::thread::sleep(Duration::from_millis(50));
    }
    // Else the driver would still take what comes from there to the client.
    call.nothing_comes_through();
    std::thread::sleep(PUBLISHED);
    let metrics = server.metrics();
    assert_eq!(
        (number(&metrics, XDP_TO_PEER), number(&metrics, XDP_TO_CLIENT)),
        (1, 2)
    );
}

#[test]
fn a_channel_ends_by_the_clock_and_the_program_with_its_owner() {
    let Some(net) = Net::build() else { return };
    let direct = Direct::new(&net);
    let end = monotonic() + Duration::from_millis(300);
    direct.xdp.put(&direct.way, end).unwrap();
    let data = channel_data(CHANNEL, b"payload");
    let mut relayed = 0;
    while monotonic() + Duration::from_millis(50) < end {
        direct.client.send(&data).unwrap();
        assert_eq!(
            received(&direct.peer),
            (b"payload".to_vec(), direct.way.relay.into())
        );
        direct.peer.send_to(b"payload", direct.way.relay).unwrap();
        assert_eq!(received(&direct.client).0, data);
        relayed += 1;
    }
    assert!(relayed > 0);
    std::thread::sleep(end.saturating_sub(monotonic()));
    let goes_by_user_space = |direct: &Direct| {
        direct.client.send(&data).unwrap();
        assert_eq!(received(&direct.server).0, data);
        direct.peer.send_to(b"payload", direct.way.relay).unwrap();
        assert_eq!(received(&direct.relay).0, b"payload");
    };
    goes_by_user_space(&direct);
    for direction in Direction::ALL {
        let bytes = 7 * relayed;
        assert_eq!(
            direct.xdp.count(direction),
            Count {
                packets: relayed,
                bytes
            }
        );
    }

    // Told anew, and told not to.
    direct.xdp.put(&direct.way, FAR_AWAY).unwrap();
    direct.client.send(&data).unwrap();
    assert_eq!(received(&direct.peer).0, b"payload");
    direct.xdp.remove(&direct.way);
    goes_by_user_space(&direct);

    direct.xdp.put(&direct.way, FAR_AWAY).unwrap();
    assert!(net.link("eth0").contains("prog/xdp"), "{}", net.link("eth0"));
    let direct = direct.without_xdp();
    wait_until(|| !net.link("eth0").contains("xdp"));
    direct.0.send(&data).unwrap();
    assert_eq!(received(&direct.1).0, data);
}

/// What our reading of the RFCs says of a packet, and what the program does with it.
#[test]
fn nothing_but_what_is_whole_is_relayed() {
    let Some(net) = Net::build() else { return };
    let direct = Direct::new(&net);
    direct.xdp.put(&direct.way, FAR_AWAY).unwrap();
    let raw = net.raw();
    let rng = &mut StdRng::seed_from_u64(7);
    let mut expected = [Count::default(); 2];
    for _ in 0..6000 {
        let packet = damaged(rng, &direct.way);
        let to = if packet[16..20] == direct.way.relay.ip().octets() {
            direct.way.relay
        } else {
            SERVER
        };
        if !raw.send_to(&packet, to) {
            continue;
        }
        match relayed(&packet, &direct.way) {
            None => {}
            Some((direction, payload, is_whole)) => {
                let count = &mut expected[direction as usize];
                count.packets += 1;
                count.bytes += payload.len() as u64;
                if is_whole {
                    let (at, arrives) = match direction {
                        Direction::ToPeer => (&direct.peer, payload),
                        Direction::ToClient => (&direct.client, channel_data(CHANNEL, &payload)),
                    };
                    assert_eq!(received(at).0, arrives, "{packet:02x?}");
                }
            }
        }
    }
    for (direction, expected) in [Direction::ToPeer, Direction::ToClient].into_iter().zip(expected) {
        assert!(expected.packets > 500, "{expected:?}");
        assert_eq!(direct.xdp.count(direction), expected);
    }
    for socket in [&direct.peer, &direct.client] {
        nothing_comes(socket);
    }
}
