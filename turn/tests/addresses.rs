//! The real program on a machine with several addresses and networks, in network namespaces of its own:
//!
//! ```text
//!  world (clients and peers)       server
//!  eth0 10.1.0.1, fd01::1 ──────── eth0 10.1.0.5, 10.1.0.6, fd01::5, fd01::6; its default route
//!  eth1 10.2.0.1, fd02::1 ──────── eth1 10.2.0.5, fd02::5
//! ```
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(clippy::disallowed_methods, reason = "the tests have sockets of their own")]

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use common::Answer;
use common::namespaces::{Namespaces, Program};
use common::person::{Person, channel_data, send_burst};
use stun_types::AddressFamily;
use stun_types::attribute::AttributeWrite;
use stun_types::message::Message;
use turn_types::attribute::{RequestedAddressFamily, RequestedTransport, XorRelayedAddress};
use turn_types::message::{ALLOCATE, REFRESH};

#[test]
fn each_address_answers_and_relays_for_itself_where_clients_come_in_everywhere() {
    let Some(net) = Net::build() else { return };
    let server = net.serve(&[]);
    for part in [
        "udp 0.0.0.0:3478, [::]:3478;",
        "told relays at the IPv4 address that each reached (this node's is 10.1.0.5), the IPv6 address that each \
         reached (this node's is fd0",
    ] {
        assert!(server.announced.contains(part), "{}", server.announced);
    }
    for ip in ALL {
        let mut call = Call::new(&net, ip);
        assert_eq!(call.relay.ip(), ip.parse::<IpAddr>().unwrap(), "told where it is");
        call.both_ways();
        call.bursts();
    }
}

#[test]
fn the_nodes_address_is_where_its_packets_to_the_internet_leave_from() {
    let Some(net) = Net::build() else { return };
    for (route, node) in [
        (
            &["route", "replace", "default", "via", "10.2.0.1"][..],
            "10.2.0.5",
        ),
        (&["route", "delete", "default"], "10.1.0.5"),
    ] {
        net.0.ip_in("server", route);
        let server = net.serve(&[]);
        let announced = format!("the IPv4 address that each reached (this node's is {node})");
        assert!(server.announced.contains(&announced), "{}", server.announced);
        // An IPv4 relay for an IPv6 client.
        let told = net.client("fd01::5").allocate();
        assert_eq!(told.ip(), node.parse::<IpAddr>().unwrap());
    }
}

#[test]
fn an_address_that_the_machine_gets_later_answers_for_itself() {
    let Some(net) = Net::build() else { return };
    let _server = net.serve(&[]);
    net.add("server", "10.2.0.9/24", "eth1");
    let mut call = Call::new(&net, "10.2.0.9");
    assert_eq!(call.relay.ip(), "10.2.0.9".parse::<IpAddr>().unwrap());
    call.both_ways();
}

#[test]
fn one_socket_of_a_client_has_an_allocation_at_each_address() {
    let Some(net) = Net::build() else { return };
    let _server = net.serve(&[]);
    let mut call = Call::new(&net, "10.1.0.5");
    call.client.udp().connect("10.1.0.6:3478").unwrap();
    let other = call.client.allocate();
    assert_ne!(other, call.relay);
    assert_eq!(other.ip(), "10.1.0.6".parse::<IpAddr>().unwrap());
    call.client.udp().connect("10.1.0.5:3478").unwrap();
    call.both_ways();
}

#[test]
fn where_addresses_are_named_clients_are_told_the_one_that_they_reached() {
    let Some(net) = Net::build() else { return };
    let listen = "10.1.0.5:3478,10.2.0.5:3478,[fd01::5]:3478,[fd02::5]:3478";
    let server = net.serve(&["--listen", listen]);
    let all = "10.1.0.5, 10.2.0.5, fd01::5, fd02::5";
    for part in [format!("told relays at {all}, ports"), format!("bound to {all};")] {
        assert!(server.announced.contains(&part), "{}", server.announced);
    }
    for ip in ["10.1.0.5", "10.2.0.5", "fd01::5", "fd02::5"] {
        let mut call = Call::new(&net, ip);
        assert_eq!(call.relay.ip(), ip.parse::<IpAddr>().unwrap());
        call.both_ways();
    }
}

#[test]
fn what_others_can_not_reach_is_not_told() {
    let Some(net) = Net::build() else { return };
    let _server = net.serve(&[]);
    // As by a program on the same machine that speaks TLS in the server's place.
    let server = "127.0.0.1:3478".parse().unwrap();
    let client = net.0.within("server", || Person::new(server));
    let mut call = Call::with_client(&net, client, false, "10.1.0.1");
    assert_eq!(call.relay.ip(), "10.1.0.5".parse::<IpAddr>().unwrap());
    call.both_ways();
    // An IPv4 relay for an IPv6 client.
    let client = net
        .0
        .within("world", || Person::new("[fd01::5]:3478".parse().unwrap()));
    let mut call = Call::with_client(&net, client, false, "10.2.0.1");
    assert_eq!(call.relay.ip(), "10.1.0.5".parse::<IpAddr>().unwrap());
    call.both_ways();
}

#[test]
fn a_relay_address_of_its_own_is_told_wherever_the_client_came_in() {
    let Some(net) = Net::build() else { return };
    // Nothing leads from the external address of another interface to the relay's.
    let options = ["--relay-ip", "10.1.0.6", "--external-ip", "198.51.100.7/10.2.0.5"];
    let server = net.serve(&options);
    assert!(
        server
            .announced
            .contains("told relays at 10.1.0.6, the IPv6 address"),
        "{}",
        server.announced
    );
    for ip in ["10.1.0.5", "10.2.0.5"] {
        let mut call = Call::new(&net, ip);
        assert_eq!(call.relay.ip(), "10.1.0.6".parse::<IpAddr>().unwrap());
        call.both_ways();
    }
}

#[test]
fn streams_too_are_relayed_where_they_came_in() {
    let Some(net) = Net::build() else { return };
    let _server = net.serve(&[]);
    for ip in ["10.1.0.6", "10.2.0.5"] {
        let server = SocketAddr::new(ip.parse().unwrap(), 3478);
        let client = net.0.within("world", || Person::over_tcp(server));
        let mut call = Call::with_client(&net, client, false, "10.2.0.1");
        assert_eq!(call.relay.ip(), server.ip());
        call.both_ways();
    }
}

#[test]
fn an_address_that_the_machine_gets_later_is_out_of_reach() {
    let Some(net) = Net::build() else { return };
    let _server = net.serve(&["--allow-peer", "10.42.0.0/16"]);
    let mut client = net.client("10.1.0.5");
    client.allocate();
    let vxlan = "10.42.0.1:8472".parse().unwrap();
    assert_eq!(client.permit(vxlan), Answer::Success);
    assert_eq!(client.bind(CHANNEL, vxlan), Answer::Success);
    net.add("server", "10.42.0.1/24", "lo");
    until(|| client.permit(vxlan) == Answer::Error(403));
    let socket = net.socket("server", vxlan);
    client.send_on(CHANNEL, b"onto the pod network");
    client.send(vxlan, b"onto the pod network");
    nothing_comes(&socket);
    assert_eq!(client.bind(CHANNEL, vxlan), Answer::Error(403));
    let pod = "10.42.0.2:8472".parse().unwrap();
    assert_eq!(
        client.bind(CHANNEL + 1, pod),
        Answer::Success,
        "its pods stay in reach"
    );
    // What is no longer this machine's is a peer as any.
    net.0
        .ip_in("server", &["address", "del", "10.42.0.1/24", "dev", "lo"]);
    until(|| client.permit(vxlan) == Answer::Success);
}

#[test]
fn an_interface_that_nothing_is_said_about_is_told_as_it_is() {
    let Some(net) = Net::build() else { return };
    let mapped = ["--external-ip", "198.51.100.7/10.1.0.5"];
    let named = ["--listen", "10.1.0.5:3478,10.2.0.5:3478"];
    for (options, announced) in [
        (&named[..], "198.51.100.7 (for 10.1.0.5), 10.2.0.5, ports"),
        (
            &[],
            "198.51.100.7 (for 10.1.0.5), else the IPv4 address that each reached",
        ),
    ] {
        let server = net.serve(&[&mapped, options].concat());
        let announced = format!("told relays at {announced}");
        assert!(server.announced.contains(&announced), "{}", server.announced);
        let mut call = Call::new(&net, "10.2.0.5");
        assert_eq!(call.relay.ip(), "10.2.0.5".parse::<IpAddr>().unwrap());
        call.both_ways();
        let told = net.client("10.1.0.5").allocate();
        assert_eq!(told.ip(), "198.51.100.7".parse::<IpAddr>().unwrap());
    }
}

struct Net(Namespaces);

impl Net {
    fn build() -> Option<Self> {
        let net = Self(Namespaces::build(&["server", "world"], &[])?);
        for (device, server, world) in [
            ("eth0", "10.1.0.5/24", "10.1.0.1/24"),
            ("eth1", "10.2.0.5/24", "10.2.0.1/24"),
        ] {
            net.0
                .connect(("server", device, server), ("world", device, world));
        }
        for (at, address, device) in [
            ("server", "10.1.0.6/24", "eth0"),
            ("server", "fd01::5/64", "eth0"),
            ("server", "fd01::6/64", "eth0"),
            ("server", "fd02::5/64", "eth1"),
            ("world", "fd01::1/64", "eth0"),
            ("world", "fd02::1/64", "eth1"),
        ] {
            net.add(at, address, device);
        }
        net.0
            .ip_in("server", &["route", "add", "default", "via", "10.1.0.1"]);
        Some(net)
    }

    fn add(&self, at: &str, address: &str, device: &str) {
        self.0
            .ip_in(at, &["address", "add", address, "dev", device, "nodad"]);
    }

    fn serve(&self, options: &[&str]) -> Program<'_> {
        let allowed = ["--allow-peer=10.1.0.1,10.2.0.1,fd01::1,fd02::1"];
        Program::start(&self.0, "server", &[&allowed[..], options].concat())
    }

    /// A client of the server's address `ip`, that hears only what comes from there.
    fn client(&self, ip: &str) -> Person {
        let server = SocketAddr::new(ip.parse().unwrap(), 3478);
        self.0.within("world", || Person::new(server))
    }

    fn socket(&self, at: &str, address: SocketAddr) -> UdpSocket {
        let socket = self.0.within(at, || UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }
}

/// A client with a channel to a peer.
struct Call {
    client: Person,
    peer: UdpSocket,
    relay: SocketAddr,
}

impl Call {
    /// Of the server's address `ip`, with a peer of that family in its other network.
    fn new(net: &Net, ip: &str) -> Self {
        let is_v6 = ip.contains(':');
        let peer = match (is_v6, ip.contains("10.1.") || ip.contains("fd01")) {
            (false, true) => "10.2.0.1",
            (false, false) => "10.1.0.1",
            (true, true) => "fd02::1",
            (true, false) => "fd01::1",
        };
        Self::with_client(net, net.client(ip), is_v6, peer)
    }

    fn with_client(net: &Net, mut client: Person, is_v6: bool, peer: &str) -> Self {
        let relay = if is_v6 {
            allocate_v6(&mut client)
        } else {
            client.allocate()
        };
        let peer = net.socket("world", SocketAddr::new(peer.parse().unwrap(), 0));
        assert_eq!(client.bind(CHANNEL, peer.local_addr().unwrap()), Answer::Success);
        Self { client, peer, relay }
    }

    fn both_ways(&mut self) {
        self.client.send_on(CHANNEL, b"question");
        assert_eq!(self.at_peer(), b"question");
        self.peer.send_to(b"response", self.relay).unwrap();
        assert_eq!(self.client.receive(), channel_data(CHANNEL, b"response"));
    }

    /// In one piece, for kernels to merge and cut.
    fn bursts(&mut self) {
        let payloads: Vec<_> = (0..12_u8).map(|n| vec![n; 1000]).collect();
        let framed: Vec<_> = payloads.iter().map(|one| channel_data(CHANNEL, one)).collect();
        let server = self.client.udp().peer_addr().unwrap();
        send_burst(self.client.udp(), server, &framed);
        payloads.iter().for_each(|one| assert_eq!(self.at_peer(), *one));
        send_burst(&self.peer, self.relay, &payloads);
        framed
            .iter()
            .for_each(|one| assert_eq!(self.client.receive(), *one));
    }

    fn at_peer(&self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let (length, from) = self.peer.recv_from(&mut buffer).unwrap();
        assert_eq!(from, self.relay, "it comes from what the client was told");
        buffer[..length].to_vec()
    }
}

fn allocate_v6(person: &mut Person) -> SocketAddr {
    // Brings a nonce.
    let _ = person.ask(REFRESH, &[]);
    let transaction = person.client.transaction();
    let (udp, family) = (
        RequestedTransport::new(17),
        RequestedAddressFamily::new(AddressFamily::IPV6),
    );
    let attributes: [&dyn AttributeWrite; 2] = [&udp, &family];
    let request = person.client.signed_in(transaction, ALLOCATE, &attributes);
    person.put(&request);
    let bytes = person.receive();
    assert_eq!(person.client.read(&bytes), Answer::Success);
    let message = Message::from_bytes(&bytes).unwrap();
    let relayed = message.attribute::<XorRelayedAddress>().unwrap();
    relayed.addr(transaction)
}

fn nothing_comes(socket: &UdpSocket) {
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut buffer = [0; 2048];
    if let Ok(length) = socket.recv(&mut buffer) {
        panic!("there came {:?}", &buffer[..length]);
    }
}

fn until(mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < end, "nothing has changed");
        std::thread::sleep(Duration::from_millis(50));
    }
}

const ALL: [&str; 6] = [
    "10.1.0.5", "10.1.0.6", "10.2.0.5", "fd01::5", "fd01::6", "fd02::5",
];
const CHANNEL: u16 = 0x4000;
