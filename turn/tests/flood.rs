//! A flood of nonsense beside a relayed stream, against the real program.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the test has sockets and a clock of its own"
)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Answer, Client};
use stun_types::message::{BINDING, Method};
use turn_types::attribute::{ChannelNumber, RequestedTransport, XorPeerAddress};
use turn_types::message::{ALLOCATE, CHANNEL_BIND};

/// Malformed packets, requests without and with wrong credentials, ChannelData of strangers, from 4,000 addresses.
#[test]
fn a_hundred_thousand_bad_packets_leave_relayed_traffic_untouched_and_memory_flat() {
    let server = Server::start();
    let (pair, pace) = (Pair::relayed(server.address), Pair::relayed(server.address));
    flood(&server, &pace, 20_000);
    server.until_received(20_000);
    let before = server.memory_kib();

    let ended = Arc::new(AtomicBool::new(false));
    let traffic = std::thread::spawn({
        let ended = ended.clone();
        move || pair.ping_pong(&ended)
    });
    flood(&server, &pace, 100_000);
    server.until_received(120_000);
    ended.store(true, Ordering::Relaxed);
    let (sent, lost, worst) = traffic.join().unwrap();
    let after = server.memory_kib();
    println!(
        "{sent} relayed both ways, {lost} lost, {worst:?} the longest; {before} KiB before, {after} after"
    );
    assert!(sent > 20, "{sent}");
    assert_eq!(lost, 0, "of {sent}");
    assert!(after <= before + 1024, "{before} KiB before, {after} KiB after");
    let metrics = server.metrics();
    for reason in ["malformed", "no_allocation", "answer_limit"] {
        assert!(dropped(&metrics, reason) > 1000, "{reason}: {metrics}");
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

struct Server {
    child: Child,
    address: SocketAddr,
    metrics: SocketAddr,
}

impl Server {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-turn"));
        let fixed = [
            ["--listen", "127.0.0.1:0"],
            ["--metrics-listen", "127.0.0.1:0"],
            ["--user", "demo:demo"],
            ["--allow-peer", "127.0.0.1"],
            // Most of the flood's addresses get no more than this, so that the limit is seen at work.
            ["--unproven-rate", "1"],
        ];
        command.args(fixed.as_flattened()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = lines
            .find(|line| line.as_ref().unwrap().contains("listening on udp "))
            .unwrap()
            .unwrap();
        std::thread::spawn(move || lines.count());
        let after = |mark: &str| {
            let (_, rest) = said.split_once(mark).unwrap();
            rest[..rest.find([';', '/']).unwrap()].parse().unwrap()
        };
        Self {
            address: after("listening on udp "),
            metrics: after("metrics on http://"),
            child,
        }
    }

    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Waits until it has seen nearly so many packets of clients: some fall off the socket's buffer on a slow machine.
    fn until_received(&self, packets: usize) {
        let end = Instant::now() + Duration::from_secs(30);
        let count = || {
            let metrics = self.metrics();
            number(&metrics, "penstock_turn_received_packets_total{side=\"client\"} ")
        };
        while count() < packets * 95 / 100 {
            assert!(Instant::now() < end, "{} of {packets}", count());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Resident memory.
    fn memory_kib(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        number(&status.replace(['\t', ' '], " ").replace("  ", " "), "VmRSS:")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn dropped(metrics: &str, reason: &str) -> usize {
    let name = format!("penstock_turn_dropped_packets_total{{direction=\"to_peer\",reason=\"{reason}\"}} ");
    number(metrics, &name)
}

/// The number behind `name` at the beginning of a line.
fn number(text: &str, name: &str) -> usize {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let digits: String = rest
        .trim_start()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().unwrap()
}
