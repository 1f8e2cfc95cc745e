//! Where the tests happen, and who calls whom there.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use aya::programs::ProgramType;
use penstock_turn::shell::xdp::{Mode, Way, Xdp};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use rustix::time::{ClockId, clock_gettime};
use stun_types::message::Message;
use turn_types::attribute::{Data, XorPeerAddress};

use crate::common::Answer;
use crate::common::namespaces::{Namespaces, Program};
use crate::common::person::{Person, channel_data};
use crate::packets::{Checksum, Raw, is_unfinished, udp};

/// The namespaces `world`, `server` and `far`, which is behind the server's `eth1`; and the programs at the other ends.
pub(crate) struct Net(pub(crate) Namespaces, pub(crate) Vec<Xdp>);

impl Net {
    /// `None` where that is not permitted, by the kernel itself or by whoever runs the test.
    pub(crate) fn build() -> Option<Self> {
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
    pub(crate) fn attach(&self, at: &str) -> Xdp {
        let attach = || Xdp::attach(&["eth0".to_owned()]).unwrap();
        let xdp = self.0.within(at, attach);
        assert_eq!(xdp.interfaces()["eth0"], Mode::Native);
        xdp
    }

    /// Puts a bridge in the place of one of the server's interfaces.
    pub(crate) fn bridge(&self, interface: &str, bridge: &str, addresses: &[&str]) {
        let ip = |args: &[&str]| self.0.ip_in("server", args);
        ip(&["address", "flush", "dev", interface]);
        ip(&["link", "add", bridge, "type", "bridge"]);
        ip(&["link", "set", interface, "master", bridge]);
        for address in addresses {
            ip(&["address", "add", address, "dev", bridge, "nodad"]);
        }
        ip(&["link", "set", bridge, "up"]);
    }

    pub(crate) fn serve(&self, options: &[&str]) -> Program<'_> {
        Program::start(&self.0, "server", &[&OPTIONS[..], options].concat())
    }

    pub(crate) fn link(&self, interface: &str) -> String {
        self.0.ip_in("server", &["link", "show", interface])
    }

    pub(crate) fn world_socket(&self) -> UdpSocket {
        self.socket("world", "10.9.0.1:0".parse().unwrap())
    }

    pub(crate) fn socket(&self, at: &str, address: SocketAddr) -> UdpSocket {
        let socket = self.0.within(at, || UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }

    pub(crate) fn raw(&self) -> Raw {
        let (family, kind) = (AddressFamily::INET, SocketType::RAW);
        let open = || socket_with(family, kind, SocketFlags::CLOEXEC, Some(ipproto::RAW)).unwrap();
        Raw(self.0.within("world", open))
    }
}

/// A client with a channel to a peer, of a server that runs.
pub(crate) struct Call {
    pub(crate) client: Person,
    pub(crate) peer: UdpSocket,
    pub(crate) peer_at: SocketAddr,
    pub(crate) relay: SocketAddr,
}

impl Call {
    pub(crate) fn new(net: &Net) -> Self {
        Self::with_peer(net, "world", "10.9.0.1")
    }

    pub(crate) fn with_peer(net: &Net, at: &str, ip: &str) -> Self {
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
    pub(crate) fn both_ways(&mut self, length: usize) {
        let payload = self.finished_payload(length);
        self.client.send_on(CHANNEL, &payload);
        assert_eq!(self.at_peer(), payload);
        self.peer.send_to(&payload, self.relay).unwrap();
        assert_eq!(self.at_client(), channel_data(CHANNEL, &payload));
    }

    /// One with which no packet's checksum looks as if it were still to be made.
    pub(crate) fn finished_payload(&self, length: usize) -> Vec<u8> {
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
    pub(crate) fn over(&self, client: &mut Person) {
        let relay = client.allocate();
        assert_eq!(client.bind(CHANNEL, self.peer_at), Answer::Success);
        client.send_on(CHANNEL, b"a payload...");
        assert_eq!(received(&self.peer), (b"a payload...".to_vec(), relay));
        self.peer.send_to(b"and another.", relay).unwrap();
        assert_eq!(client.receive(), channel_data(CHANNEL, b"and another."));
    }

    pub(crate) fn at_peer(&self) -> Vec<u8> {
        let (payload, from) = received(&self.peer);
        assert_eq!(from, self.relay);
        payload
    }

    pub(crate) fn at_client(&mut self) -> Vec<u8> {
        self.client.receive()
    }

    pub(crate) fn data_indication(&mut self) -> (Vec<u8>, SocketAddr) {
        let bytes = self.client.receive();
        let message = Message::from_bytes(&bytes).unwrap();
        let data = message.attribute::<Data<'_>>().unwrap().data().to_vec();
        let peer = message.attribute::<XorPeerAddress>().unwrap();
        (data, peer.addr(message.transaction_id()))
    }

    pub(crate) fn nothing_comes_through(&mut self) {
        for _ in 0..3 {
            self.client.send_on(CHANNEL, b"payload");
            self.peer.send_to(b"payload", self.relay).unwrap();
        }
        nothing_comes(&self.peer);
        nothing_comes(self.client.udp());
    }
}

/// The program without a server: what it does not relay comes to sockets that stand in for the server's.
pub(crate) struct Direct {
    pub(crate) xdp: Xdp,
    pub(crate) way: Way,
    pub(crate) client: UdpSocket,
    pub(crate) peer: UdpSocket,
    pub(crate) server: UdpSocket,
    pub(crate) relay: UdpSocket,
}

impl Direct {
    pub(crate) fn new(net: &Net) -> Self {
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
    pub(crate) fn without_xdp(self) -> (UdpSocket, UdpSocket) {
        (self.client, self.server)
    }
}

pub(crate) fn received(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..length].to_vec(), from)
}

pub(crate) fn nothing_comes(socket: &UdpSocket) {
    let before = socket.read_timeout().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut buffer = [0; 2048];
    // An error may be that nobody listens there any more.
    if let Ok(length) = socket.recv(&mut buffer) {
        panic!("there came {:?}", &buffer[..length]);
    }
    socket.set_read_timeout(before).unwrap();
}

pub(crate) fn wait_until(is: impl Fn() -> bool) {
    let end = monotonic() + Duration::from_secs(10);
    while !is() {
        assert!(monotonic() < end);
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn random(length: usize) -> Vec<u8> {
    random_by(&mut StdRng::seed_from_u64(length as u64), length)
}

pub(crate) fn random_by(rng: &mut StdRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rng.fill_bytes(&mut bytes);
    bytes
}

pub(crate) fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(address) => panic!("{address}"),
    }
}

pub(crate) fn monotonic() -> Duration {
    clock_gettime(ClockId::Monotonic).try_into().unwrap()
}

pub(crate) const SERVER: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(10, 9, 0, 2), 3478);
pub(crate) const OPTIONS: [&str; 4] = [
    "--listen=10.9.0.2:3478",
    "--listen=[fd09::2]:3478",
    "--allow-peer=10.9.0.1",
    "--allow-peer=10.10.0.1",
];
pub(crate) const CHANNEL: u16 = 0x4001;
pub(crate) const ETH_P_ALL: u16 = 3;
/// No test takes as long.
pub(crate) const FAR_AWAY: Duration = Duration::from_secs(1 << 32);
/// By then the metrics have what drivers counted.
pub(crate) const PUBLISHED: Duration = Duration::from_millis(1100);
pub(crate) const TO_PEER: &str = "penstock_turn_relayed_packets_total{direction=\"to_peer\"}";
pub(crate) const TO_CLIENT: &str = "penstock_turn_relayed_packets_total{direction=\"to_client\"}";
pub(crate) const XDP_TO_PEER: &str = "penstock_turn_xdp_packets_total{direction=\"to_peer\"}";
pub(crate) const XDP_TO_CLIENT: &str = "penstock_turn_xdp_packets_total{direction=\"to_client\"}";
