//! Which interfaces take part, and how; and what keeps them from it.

use std::net::SocketAddrV4;
use std::time::Duration;

use penstock_turn::shell::xdp::Way;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::common::namespaces::{Program, number, refused};
use crate::common::person::channel_data;
use crate::common::person::send_burst;
use crate::net::{
    CHANNEL, Call, Direct, FAR_AWAY, Net, PUBLISHED, SERVER, TO_CLIENT, XDP_TO_CLIENT, XDP_TO_PEER,
    random_by, received, wait_until,
};

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

#[test]
fn a_driver_sends_back_where_the_other_end_has_no_program() {
    let Some(mut net) = Net::build() else { return };
    net.1.clear();
    net.0.exec("world", "ethtool", &["-K", "eth0", "gro", "on"]);
    let server = net.serve(&["--xdp", "eth0"]);
    assert_eq!(server.said("the driver of eth0 relays channels itself"), 1);
    let mut call = Call::new(&net);
    for length in [4, 333, 1468] {
        call.both_ways(length);
    }
    let metrics = server.until(XDP_TO_CLIENT, 3);
    assert_eq!(number(&metrics, XDP_TO_PEER), 3);
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
