//! Channels that network drivers relay: the real program and a kernel's own XDP, between namespaces.
//!
//! ```text
//!  world 10.9.0.1, fd09::1 (client and peer) ── veth ── server 10.9.0.2, fd09::2
//! ```
//!
//! On veth a driver has packets to relay only where they come with finished checksums, and what it sends back is taken in
//! only where the other end has a program too; so the world's end is made that way.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the tests have sockets, clocks and random numbers of their own"
)]

mod common;

use std::io::IoSlice;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::num::NonZeroU32;
use std::time::Duration;

use aya::programs::ProgramType;
use common::Answer;
use common::namespaces::{Namespaces, Program, number, refused};
use common::person::{Person, channel_data};
use penstock_turn::core::counters::Direction;
use penstock_turn::shell::datagrams;
use penstock_turn::shell::xdp::{Count, Mode, Way, Xdp};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto,
    socket_with,
};
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

#[test]
fn from_one_interface_to_another() {
    let Some(net) = Net::build() else { return };
    for (interfaces, by_driver) in [("eth0,eth1", 3), ("eth0", 0), ("eth1", 0)] {
        let server = net.serve(&["--xdp", interfaces]);
        let mut call = Call::with_peer(&net, "far", "10.10.0.1");
        for length in [4, 333, 1468] {
            call.both_ways(length);
        }
        let metrics = server.until(TO_CLIENT, 1 + 3);
        std::thread::sleep(if by_driver == 0 { PUBLISHED } else { Duration::ZERO });
        let metrics = if by_driver == 0 { server.metrics() } else { metrics };
        assert_eq!(number(&metrics, XDP_TO_PEER), by_driver, "{interfaces}");
        assert_eq!(number(&metrics, XDP_TO_CLIENT), by_driver, "{interfaces}");
    }
}

/// What a driver takes in, it hands to drivers only.
#[test]
fn from_a_driver_to_the_kernel_and_back() {
    let Some(net) = Net::build() else { return };
    net.bridge("eth1", "br1", &["10.10.0.2/24"]);
    let server = net.serve(&["--xdp", "eth0,br1"]);
    let mut call = Call::with_peer(&net, "far", "10.10.0.1");
    for length in [4, 333, 1468] {
        call.both_ways(length);
    }
    let metrics = server.until(XDP_TO_CLIENT, 3);
    assert_eq!(number(&metrics, XDP_TO_PEER), 0);
}

/// As in a container: the other end of its interface wakes up for nothing that a driver sends.
#[test]
fn where_the_driver_can_not_send_the_kernel_does_it() {
    let Some(mut net) = Net::build() else { return };
    net.1.clear();
    net.0.exec("world", "ethtool", &["-K", "eth0", "gro", "off"]);
    let server = net.serve(&["--xdp", "eth0"]);
    assert_eq!(server.said("the driver of eth0 can not relay"), 1);
    let mut call = Call::new(&net);
    for length in [4, 333, 1468] {
        call.both_ways(length);
    }
    let metrics = server.until(TO_CLIENT, 3);
    assert_eq!(number(&metrics, XDP_TO_PEER), 3);
    assert_eq!(number(&metrics, XDP_TO_CLIENT), 3);
}

#[test]
fn what_can_not_be_is_a_clear_error() {
    let Some(net) = Net::build() else { return };
    let said = |by: &[&str], interface| {
        let said = refused(&net.0, "server", by, &["--xdp", interface]);
        assert!(!said.contains("panicked"), "{said}");
        said
    };
    for nowhere in ["eth7", "all"] {
        let said = said(&[], nowhere);
        assert!(
            said.contains(&format!(
                "--xdp {nowhere}: there is no such interface here: `ip link`"
            )),
            "{said}"
        );
    }
    // `BPF` alone loads nothing, `NET_ADMIN` alone neither.
    for left in ["-all", "-all,+bpf", "-all,+net_admin"] {
        let said = said(&["setpriv", &format!("--bounding-set={left}")], "eth0");
        assert!(
            said.contains("it takes the capabilities BPF and NET_ADMIN"),
            "{said}"
        );
    }
    let forwarding = |on| {
        let setting = format!("net.ipv4.conf.eth0.forwarding={on}");
        net.0.exec("server", "sysctl", &["-qw", &setting]);
    };
    forwarding(0);
    let not_forwarding = said(&[], "eth0");
    assert!(
        not_forwarding.contains(
            "--xdp eth0: packets are not forwarded there: set `sysctl -w net.ipv4.conf.eth0.forwarding=1`"
        ),
        "{not_forwarding}"
    );
    forwarding(1);
    let _first = net.attach("server");
    let taken = said(&[], "eth0");
    assert!(
        taken.contains("--xdp eth0: another XDP program is there already"),
        "{taken}"
    );
}

#[test]
fn two_capabilities_are_enough_and_any_address_will_do() {
    let Some(net) = Net::build() else { return };
    let by = ["setpriv", "--bounding-set=-all,+bpf,+net_admin"];
    // Where it listens at all addresses, it finds out which one a client has reached.
    let options = ["--listen=0.0.0.0:3478", "--allow-peer=10.9.0.1", "--xdp=eth0"];
    let server = Program::start_by(&net.0, "server", &by, &options);
    Call::new(&net).both_ways(100);
    let metrics = server.until(TO_CLIENT, 1);
    assert_eq!(
        (number(&metrics, XDP_TO_PEER), number(&metrics, XDP_TO_CLIENT)),
        (1, 1)
    );
    assert!(net.link("eth0").contains("prog/xdp"), "{}", net.link("eth0"));
    // It is killed.
    drop(server);
    wait_until(|| !net.link("eth0").contains("xdp"));
}

#[test]
fn what_there_is_no_room_for_goes_by_user_space() {
    let Some(net) = Net::build() else { return };
    let direct = Direct::new(&net);
    let ways = (1..).map(|n: u32| Way {
        client: SocketAddrV4::new(n.into(), 1),
        peer: SocketAddrV4::new(n.into(), 2),
        ..direct.way
    });
    let fit: Vec<_> = ways
        .take_while(|way| direct.xdp.put(way, FAR_AWAY).is_ok())
        .collect();
    assert_eq!(fit.len(), 65_536);
    assert!(direct.xdp.put(&direct.way, FAR_AWAY).is_err());
    let data = channel_data(CHANNEL, b"payload");
    direct.client.send(&data).unwrap();
    assert_eq!(received(&direct.server).0, data);
    direct.xdp.put(&fit[7], FAR_AWAY).unwrap();
    direct.xdp.remove(&fit[7]);
    direct.xdp.put(&direct.way, FAR_AWAY).unwrap();
    direct.client.send(&data).unwrap();
    assert_eq!(received(&direct.peer).0, b"payload");
}

/// A bridge has no XDP of its own. What comes in bursts may come merged there, since the kernel merges what it knows is
/// for our sockets before it asks the program.
#[test]
fn where_the_driver_has_no_xdp_the_kernel_does_it() {
    let Some(net) = Net::build() else { return };
    net.bridge("eth0", "br0", &["10.9.0.2/24", "fd09::2/64"]);
    let server = net.serve(&["--xdp", "br0"]);
    assert_eq!(server.said("the driver of br0 can not relay"), 1);
    let mut call = Call::new(&net);
    for length in [4, 5, 333, 1468] {
        call.both_ways(length);
    }
    let metrics = server.until(TO_CLIENT, 4);
    assert_eq!(
        (number(&metrics, XDP_TO_PEER), number(&metrics, XDP_TO_CLIENT)),
        (4, 4)
    );
    let mut rng = StdRng::seed_from_u64(7);
    for size in [4, 60, 200] {
        let payloads: Vec<_> = (0..6).map(|_| random_by(&mut rng, size)).collect();
        send_burst(&call.peer, call.relay, &payloads);
        for payload in &payloads {
            assert_eq!(call.at_client(), channel_data(CHANNEL, payload), "6 of {size}");
        }
        let data: Vec<_> = payloads
            .iter()
            .map(|payload| channel_data(CHANNEL, payload))
            .collect();
        send_burst(call.client.udp(), SERVER.into(), &data);
        for payload in &payloads {
            assert_eq!(&call.at_peer(), payload, "6 of {size}");
        }
    }
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

/// The namespaces `world`, `server` and `far`, which is behind the server's `eth1`; and the programs at the other ends.
struct Net(Namespaces, Vec<Xdp>);

impl Net {
    /// `None` where that is not permitted, by the kernel itself or by whoever runs the test.
    fn build() -> Option<Self> {
        let spaces = Namespaces::build(&["server", "world", "far"], &["ethtool", "setpriv"])?;
        if !matches!(aya::sys::is_program_supported(ProgramType::Xdp), Ok(true)) {
            // Not an error in CI, whose kernel it may be.
            eprintln!("SKIPPED: this kernel takes no XDP programs, or a sandbox keeps them from it");
            return None;
        }
        spaces.connect(
            ("server", "eth0", "10.9.0.2/24"),
            ("world", "eth0", "10.9.0.1/24"),
        );
        spaces.connect(
            ("server", "eth1", "10.10.0.2/24"),
            ("far", "eth0", "10.10.0.1/24"),
        );
        for (at, address) in [("server", "fd09::2/64"), ("world", "fd09::1/64")] {
            spaces.ip_in(at, &["address", "add", address, "dev", "eth0", "nodad"]);
        }
        spaces.ip_in("far", &["route", "add", "10.9.0.0/24", "via", "10.10.0.2"]);
        for at in ["server", "world", "far"] {
            spaces.exec(at, "sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
        }
        let mut net = Self(spaces, Vec::new());
        for (at, interface) in [("world", "eth0"), ("far", "eth1")] {
            net.0.exec(at, "ethtool", &["-K", "eth0", "tx", "off"]);
            // Else this driver could not send to it.
            net.0.exec("server", "ethtool", &["-K", interface, "gro", "on"]);
            let end = net.attach(at);
            net.1.push(end);
        }
        Some(net)
    }

    /// A program that knows no channels.
    fn attach(&self, at: &str) -> Xdp {
        let attach = || Xdp::attach(&["eth0".to_owned()]).unwrap();
        let xdp = self.0.within(at, attach);
        assert_eq!(xdp.interfaces()["eth0"], Mode::Native);
        xdp
    }

    /// Puts a bridge in the place of one of the server's interfaces.
    fn bridge(&self, interface: &str, bridge: &str, addresses: &[&str]) {
        let ip = |args: &[&str]| self.0.ip_in("server", args);
        ip(&["address", "flush", "dev", interface]);
        ip(&["link", "add", bridge, "type", "bridge"]);
        ip(&["link", "set", interface, "master", bridge]);
        for address in addresses {
            ip(&["address", "add", address, "dev", bridge, "nodad"]);
        }
        ip(&["link", "set", bridge, "up"]);
    }

    fn serve(&self, options: &[&str]) -> Program<'_> {
        Program::start(&self.0, "server", &[&OPTIONS[..], options].concat())
    }

    fn link(&self, interface: &str) -> String {
        self.0.ip_in("server", &["link", "show", interface])
    }

    fn world_socket(&self) -> UdpSocket {
        self.socket("world", "10.9.0.1:0".parse().unwrap())
    }

    fn socket(&self, at: &str, address: SocketAddr) -> UdpSocket {
        let socket = self.0.within(at, || UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }

    fn raw(&self) -> Raw {
        let (family, kind) = (AddressFamily::INET, SocketType::RAW);
        let open = || socket_with(family, kind, SocketFlags::CLOEXEC, Some(ipproto::RAW)).unwrap();
        Raw(self.0.within("world", open))
    }
}

/// A client with a channel to a peer, of a server that runs.
struct Call {
    client: Person,
    peer: UdpSocket,
    peer_at: SocketAddr,
    relay: SocketAddr,
}

impl Call {
    fn new(net: &Net) -> Self {
        Self::with_peer(net, "world", "10.9.0.1")
    }

    fn with_peer(net: &Net, at: &str, ip: &str) -> Self {
        let peer = net.socket(at, format!("{ip}:0").parse().unwrap());
        let mut client = net.0.within("world", || Person::new(SERVER.into()));
        let relay = client.allocate();
        let peer_at = peer.local_addr().unwrap();
        assert_eq!(client.bind(CHANNEL, peer_at), Answer::Success);
        // So that the server knows who has that address; until then packets go by user space, which asks.
        if at == "far" {
            peer.send_to(b"", relay).unwrap();
            assert_eq!(client.receive(), channel_data(CHANNEL, b""));
        }
        Self {
            client,
            peer,
            peer_at,
            relay,
        }
    }

    /// A payload of some length there and back.
    fn both_ways(&mut self, length: usize) {
        let payload = self.finished_payload(length);
        self.client.send_on(CHANNEL, &payload);
        assert_eq!(self.at_peer(), payload);
        self.peer.send_to(&payload, self.relay).unwrap();
        assert_eq!(self.at_client(), channel_data(CHANNEL, &payload));
    }

    /// One with which no packet's checksum looks as if it were still to be made.
    fn finished_payload(&self, length: usize) -> Vec<u8> {
        let client = v4(self.client.udp().local_addr().unwrap());
        let (peer, relay) = (v4(self.peer_at), v4(self.relay));
        let is_finished = |payload: &Vec<u8>| {
            let to_server = udp(client, SERVER, &channel_data(CHANNEL, payload), Checksum::Right);
            let to_relay = udp(peer, relay, payload, Checksum::Right);
            !is_unfinished(&to_server) && !is_unfinished(&to_relay)
        };
        let mut rng = StdRng::seed_from_u64(length as u64);
        let mut payloads = std::iter::repeat_with(|| random_by(&mut rng, length));
        payloads.find(is_finished).unwrap()
    }

    /// For another client, with the same peer.
    fn over(&self, client: &mut Person) {
        let relay = client.allocate();
        assert_eq!(client.bind(CHANNEL, self.peer_at), Answer::Success);
        client.send_on(CHANNEL, b"a payload...");
        assert_eq!(received(&self.peer), (b"a payload...".to_vec(), relay));
        self.peer.send_to(b"and another.", relay).unwrap();
        assert_eq!(client.receive(), channel_data(CHANNEL, b"and another."));
    }

    fn at_peer(&self) -> Vec<u8> {
        let (payload, from) = received(&self.peer);
        assert_eq!(from, self.relay);
        payload
    }

    fn at_client(&mut self) -> Vec<u8> {
        self.client.receive()
    }

    fn data_indication(&mut self) -> (Vec<u8>, SocketAddr) {
        let bytes = self.client.receive();
        let message = Message::from_bytes(&bytes).unwrap();
        let data = message.attribute::<Data<'_>>().unwrap().data().to_vec();
        let peer = message.attribute::<XorPeerAddress>().unwrap();
        (data, peer.addr(message.transaction_id()))
    }

    fn nothing_comes_through(&mut self) {
        for _ in 0..3 {
            self.client.send_on(CHANNEL, b"payload");
            self.peer.send_to(b"payload", self.relay).unwrap();
        }
        nothing_comes(&self.peer);
        nothing_comes(self.client.udp());
    }
}

/// The program without a server: what it does not relay comes to sockets that stand in for the server's.
struct Direct {
    xdp: Xdp,
    way: Way,
    client: UdpSocket,
    peer: UdpSocket,
    server: UdpSocket,
    relay: UdpSocket,
}

impl Direct {
    fn new(net: &Net) -> Self {
        let xdp = net.attach("server");
        let (client, peer) = (net.world_socket(), net.world_socket());
        let server = net.socket("server", SERVER.into());
        let relay = net.socket("server", "10.9.0.2:0".parse().unwrap());
        client.connect(SERVER).unwrap();
        let at = |socket: &UdpSocket| v4(socket.local_addr().unwrap());
        let way = Way {
            client: at(&client),
            server: SERVER,
            channel: CHANNEL,
            relay: at(&relay),
            peer: at(&peer),
        };
        // The server's kernel learns who has the world's address.
        server.send_to(b"hello", way.client).unwrap();
        assert_eq!(received(&client).0, b"hello");
        Self {
            xdp,
            way,
            client,
            peer,
            server,
            relay,
        }
    }

    /// The client, and the server.
    fn without_xdp(self) -> (UdpSocket, UdpSocket) {
        (self.client, self.server)
    }
}

/// Sends packets with headers of our own. Only their length and the header's checksum are the kernel's.
struct Raw(rustix::fd::OwnedFd);

impl Raw {
    fn send(&self, packet: &[u8]) {
        assert!(self.send_to(packet, SERVER));
    }

    /// Whether the kernel did.
    fn send_to(&self, packet: &[u8], to: SocketAddrV4) -> bool {
        let to = SocketAddrV4::new(*to.ip(), 0);
        sendto(&self.0, packet, SendFlags::empty(), &to).is_ok()
    }
}

#[derive(Clone, Copy)]
enum Checksum {
    Right,
    Wrong,
    None,
}

/// A packet from its IPv4 header on.
fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8], checksum: Checksum) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend((20 + length).to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    for number in [from.port(), to.port(), length, 0] {
        packet.extend(number.to_be_bytes());
    }
    packet.extend(payload);
    let sum = match checksum {
        Checksum::Right => checksum_of(&packet),
        Checksum::Wrong => checksum_of(&packet) ^ 0x0100,
        Checksum::None => 0,
    };
    packet[26..28].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// RFC 768, of a packet whose header says how long it is; 0 where the sum is right already.
fn checksum_of(packet: &[u8]) -> u16 {
    !sum(&[pseudo_header(packet), packet[20..].to_vec()].concat())
}

/// Whether it is the sum of the pseudo-header, as where a network card is to make it.
fn is_unfinished(packet: &[u8]) -> bool {
    packet[26..28] == sum(&pseudo_header(packet)).to_be_bytes()
}

fn pseudo_header(packet: &[u8]) -> Vec<u8> {
    [&packet[12..20], &[0, 17], &packet[24..26]].concat()
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| [word[0], *word.get(1).unwrap_or(&0)]);
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(word))).sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// A packet of the way's client or peer, more or less.
fn damaged(rng: &mut StdRng, way: &Way) -> Vec<u8> {
    let length = rng.random_range(0..40);
    let mut payload = random_by(rng, length);
    let to_peer = rng.random();
    if to_peer {
        payload = channel_data(CHANNEL, &payload);
        payload.extend(&[0; 5][..rng.random_range(0..=5)]);
    }
    let (from, to) = if to_peer {
        (way.client, way.server)
    } else {
        (way.peer, way.relay)
    };
    let checksum = [Checksum::Right, Checksum::None][rng.random_range(0..2)];
    let mut packet = udp(from, to, &payload, checksum);
    match rng.random_range(0..7) {
        // As it should be.
        0 | 1 => {}
        // A bit is wrong; of the version and the addresses of hosts the kernel would make other packets.
        2 => {
            let at = loop {
                let at = rng.random_range(1..packet.len().min(34));
                if !(12..20).contains(&at) {
                    break at;
                }
            };
            packet[at] ^= 1 << rng.random_range(0..8);
        }
        3 => packet.truncate(rng.random_range(21..=packet.len())),
        4 => packet.extend(&[1; 8][..rng.random_range(1..=8)]),
        // An option: one that does nothing, or one that looks like what should come after it.
        5 => {
            packet[0] = 0x46;
            packet.splice(20..20, [1, 1, 1, 0]);
        }
        _ => packet[0] = 0x47,
    }
    packet
}

/// The payload of a packet that is to be relayed, and whether its receiver will take it.
fn relayed(packet: &[u8], way: &Way) -> Option<(Direction, Vec<u8>, bool)> {
    let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let is_udp = packet[0] == 0x45 && packet[9] == 17 && word(6)? & !0x4000 == 0;
    let length = usize::from(word(24)?);
    if !is_udp || 20 + length != packet.len() || length < 12 || is_unfinished(packet) {
        return None;
    }
    let at = |ip: usize, port: usize| {
        let ip: [u8; 4] = packet[ip..ip + 4].try_into().unwrap();
        Some(SocketAddrV4::new(ip.into(), word(port)?))
    };
    let (from, to) = (at(12, 20)?, at(16, 22)?);
    let is_whole = word(26)? == 0 || checksum_of(packet) == 0;
    let payload = &packet[28..];
    if (from, to) == (way.peer, way.relay) {
        return Some((Direction::ToClient, payload.to_vec(), is_whole));
    }
    let inside = usize::from(word(30)?);
    let (data, padding) = payload[4..].split_at_checked(inside)?;
    let is_channel_data =
        word(28)? == way.channel && padding.len() < 4 && padding.iter().all(|byte| *byte == 0);
    let is_ours = is_channel_data && (from, to) == (way.client, way.server);
    is_ours.then(|| (Direction::ToPeer, data.to_vec(), is_whole))
}

/// All at once, for the kernel to cut.
fn send_burst(from: &UdpSocket, to: SocketAddr, payloads: &[Vec<u8>]) {
    let parts: Vec<_> = payloads.iter().map(|payload| IoSlice::new(payload)).collect();
    let message = datagrams::Message {
        to,
        parts: &parts,
        segment: Some(u16::try_from(payloads[0].len()).unwrap()),
    };
    assert_eq!(datagrams::send(from, &[message]).unwrap(), 1);
}

fn received(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..length].to_vec(), from)
}

fn nothing_comes(socket: &UdpSocket) {
    let before = socket.read_timeout().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut buffer = [0; 2048];
    // An error may be that nobody listens there any more.
    if let Ok(length) = socket.recv(&mut buffer) {
        panic!("there came {:?}", &buffer[..length]);
    }
    socket.set_read_timeout(before).unwrap();
}

fn wait_until(is: impl Fn() -> bool) {
    let end = monotonic() + Duration::from_secs(10);
    while !is() {
        assert!(monotonic() < end);
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn random(length: usize) -> Vec<u8> {
    random_by(&mut StdRng::seed_from_u64(length as u64), length)
}

fn random_by(rng: &mut StdRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(address) => panic!("{address}"),
    }
}

fn monotonic() -> Duration {
    clock_gettime(ClockId::Monotonic).try_into().unwrap()
}

const SERVER: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(10, 9, 0, 2), 3478);
const OPTIONS: [&str; 4] = [
    "--listen=10.9.0.2:3478",
    "--listen=[fd09::2]:3478",
    "--allow-peer=10.9.0.1",
    "--allow-peer=10.10.0.1",
];
const CHANNEL: u16 = 0x4001;
const ETH_P_ALL: u16 = 3;
/// No test takes as long.
const FAR_AWAY: Duration = Duration::from_secs(1 << 32);
/// By then the metrics have what drivers counted.
const PUBLISHED: Duration = Duration::from_millis(1100);
const TO_PEER: &str = "penstock_turn_relayed_packets_total{direction=\"to_peer\"}";
const TO_CLIENT: &str = "penstock_turn_relayed_packets_total{direction=\"to_client\"}";
const XDP_TO_PEER: &str = "penstock_turn_xdp_packets_total{direction=\"to_peer\"}";
const XDP_TO_CLIENT: &str = "penstock_turn_xdp_packets_total{direction=\"to_client\"}";
