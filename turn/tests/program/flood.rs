//! Floods beside a relayed stream.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use stun_types::message::{BINDING, Method};
use turn_types::attribute::{ChannelNumber, RequestedTransport, XorPeerAddress};
use turn_types::message::{ALLOCATE, CHANNEL_BIND};

use crate::common::person::Person;
use crate::common::{Answer, Client};
use crate::memory::open_more_files;
use crate::server::{Server, begin_handshake, connect};

/// Malformed packets, requests without and with wrong credentials, ChannelData of strangers, from 4,000 addresses.
#[test]
fn a_hundred_thousand_bad_packets_leave_relayed_traffic_untouched_and_memory_flat() {
    // Most of the flood's addresses get no more than this, so that the limit is seen at work.
    let server = Server::start(&["--unproven-rate", "1"]);
    let (pair, pace) = (Pair::relayed(server.address), Pair::relayed(server.address));
    flood(&server, &pace, 20_000);
    until_received(&server, 20_000);
    let before = server.memory_kib();

    let traffic = Traffic::start(pair);
    flood(&server, &pace, 100_000);
    until_received(&server, 120_000);
    traffic.lost_nothing();
    let after = server.memory_kib();
    println!("{before} KiB before, {after} after");
    assert!(after <= before + 1024, "{before} KiB before, {after} KiB after");
    for reason in ["malformed", "no_allocation", "answer_limit"] {
        let dropped =
            format!("penstock_turn_dropped_packets_total{{direction=\"to_peer\",reason=\"{reason}\"}}");
        assert!(server.metric(&dropped) > 1000, "{reason}");
    }
    assert_eq!(server.lines_said(), 0, "not a line for what anybody may send");
}

/// Connections that say a part of a message, or of a handshake, and no more.
#[test]
fn thousands_of_half_made_connections_leave_relayed_traffic_untouched_and_memory_bounded() {
    open_more_files();
    let server = Server::start(&["--source-connections", "100000"]);
    let traffic = [(); 2].map(|()| Traffic::start(Pair::relayed(server.address)));
    // The first is what the server needs once, such as the tables of its kernel and of its allocator.
    let mut held = half_made(&server, 200);
    let before = server.memory_kib();
    held.extend(half_made(&server, 2000));
    // Each beyond the limit has made an older one end. The others' time is not over yet.
    let ended = server.metric("penstock_turn_connections_ended_total{reason=\"limit\"}");
    assert!((2200 - 1024..2200).contains(&ended), "{ended}");
    let after = server.memory_kib();
    let each = (after - before) as f64 / f64::from(MAX_HANDSHAKES + 2000);
    println!("{before} KiB before, {after} after: {each:.1} KiB each");
    assert!(after - before < u64::from(MAX_HANDSHAKES * 40 + 2000 * 8));
    // Who is really there still gets in, by either way.
    for mut person in [server.person_over_tls(), Person::over_tcp(server.tcp)] {
        person.allocate();
    }
    std::thread::sleep(Duration::from_secs(1));
    traffic.into_iter().for_each(Traffic::lost_nothing);
    assert_eq!(server.lines_said(), 0, "not a line for what anybody may send");
    drop(held);
    server.until("penstock_turn_connections 0\n");
}

/// So many over TCP, and as many over TLS.
fn half_made(server: &Server, count: usize) -> Vec<TcpStream> {
    let pair = |_| {
        let mut tcp = connect(server.tcp);
        // The beginning of a request with 2,000 bytes.
        let begun = [&[0, 1, 7, 0xD0, 0x21, 0x12, 0xA4, 0x42][..], &[7; 1000]].concat();
        tcp.write_all(&begun).unwrap();
        [tcp, begin_handshake(server.tls, 15 << 10)]
    };
    (0..count).flat_map(pair).collect()
}

/// A pair at it, until told to end.
struct Traffic {
    ended: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(usize, usize, Duration)>,
}

impl Traffic {
    fn start(pair: Pair) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let thread = std::thread::spawn(move || pair.ping_pong(&until));
        Self { ended, thread }
    }

    fn lost_nothing(self) {
        self.ended.store(true, Ordering::Relaxed);
        let (sent, lost, worst) = self.thread.join().unwrap();
        println!("{sent} relayed both ways, {lost} lost, {worst:?} the longest");
        assert!(sent > 20, "{sent}");
        assert_eq!(lost, 0, "of {sent}");
    }
}

/// Waits until it has seen nearly so many packets of clients: some fall off the socket's buffer on a slow machine.
fn until_received(server: &Server, packets: u64) {
    let end = Instant::now() + Duration::from_secs(30);
    let count = || server.metric("penstock_turn_received_packets_total{side=\"client\"}");
    while count() < packets * 95 / 100 {
        assert!(Instant::now() < end, "{} of {packets}", count());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Sends so many packets, a hundred at a time: then a question waits for its answer, so that it is the server that copes
/// with them, and not the socket's buffer that throws them away.
fn flood(server: &Server, pace: &Pair, packets: usize) {
    let mut stranger = Client::new(1, "demo", "wrong");
    let udp = RequestedTransport::new(17);
    let no_credentials = stranger.bare(ALLOCATE, &[&udp]);
    let wrong = stranger.signed(ALLOCATE, &[&udp]);
    let kinds: [&[u8]; 6] = [
        &[0xFF; 200],
        &[0, 1, 0, 7, 1],
        &[0x40, 0, 0, 4, 1, 2, 3, 4],
        &no_credentials,
        &wrong,
        &no_credentials[..19],
    ];
    let from = |n: usize| {
        let ip = Ipv4Addr::new(127, 7, (n >> 8) as u8, n as u8);
        UdpSocket::bind((ip, 0)).unwrap()
    };
    let mut sockets: Vec<_> = (0..20).map(from).collect();
    for n in 0..packets {
        let at = n % sockets.len();
        let _ = sockets[at].send_to(kinds[n % kinds.len()], server.address);
        if n % 25 == 0 {
            sockets[at] = from(n / 25 % 4000);
        }
        if n % 100 == 0 {
            pace.ask_where_it_is();
        }
    }
}

/// A client with a channel to a peer.
struct Pair {
    client: UdpSocket,
    peer: UdpSocket,
}

impl Pair {
    fn relayed(server: SocketAddr) -> Self {
        let [client, peer] = [(); 2].map(|()| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket
        });
        client.connect(server).unwrap();
        let mut person = Client::new(2, "demo", "demo");
        let mut ask = |method: Method, with: &dyn Fn(&mut Client) -> Vec<u8>| {
            for _ in 0..2 {
                client.send(&with(&mut person)).unwrap();
                let mut buffer = [0; 2048];
                let length = client.recv(&mut buffer).unwrap();
                match person.read(&buffer[..length]) {
                    Answer::Success => return,
                    answer => assert_eq!(answer, Answer::Error(438), "{method:?}"),
                }
            }
            panic!("{method:?}")
        };
        ask(ALLOCATE, &|person| {
            person.signed(ALLOCATE, &[&RequestedTransport::new(17)])
        });
        let at = peer.local_addr().unwrap();
        ask(CHANNEL_BIND, &|person| {
            let transaction = person.transaction();
            let (number, peer) = (ChannelNumber::new(0x4000), XorPeerAddress::new(at, transaction));
            person.signed_in(transaction, CHANNEL_BIND, &[&number, &peer])
        });
        Self { client, peer }
    }

    fn ask_where_it_is(&self) {
        let request = Client::new(3, "", "").bare(BINDING, &[]);
        self.client.send(&request).unwrap();
        self.client.recv(&mut [0; 2048]).unwrap();
    }

    /// One packet after another there and back, until told to end: how many, how many lost, and the longest there and
    /// back.
    fn ping_pong(&self, ended: &AtomicBool) -> (usize, usize, Duration) {
        let (mut sent, mut lost, mut worst) = (0, 0, Duration::ZERO);
        let mut buffer = [0; 2048];
        while !ended.load(Ordering::Relaxed) {
            let packet = [&[0x40, 0, 0x04, 0][..], &[sent as u8; 1024]].concat();
            let began = Instant::now();
            self.client.send(&packet).unwrap();
            sent += 1;
            let there = self.peer.recv_from(&mut buffer);
            let back = there.and_then(|(length, relay)| {
                self.peer.send_to(&buffer[..length], relay)?;
                self.client.recv(&mut buffer)
            });
            match back {
                Ok(length) => assert_eq!(buffer[..length], packet),
                Err(_) => lost += 1,
            }
            worst = worst.max(began.elapsed());
            std::thread::sleep(Duration::from_micros(500));
        }
        (sent, lost, worst)
    }
}

/// As the server has it, for all its shards.
const MAX_HANDSHAKES: u32 = 1024;
