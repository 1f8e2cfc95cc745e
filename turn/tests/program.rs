//! The real program over loopback, against coturn's tools (Debian package `coturn`) and by hand.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Answer, Client};
use rustix::process::{Pid, Signal, kill_process};
use stun_types::attribute::AttributeWrite;
use turn_types::attribute::{Lifetime, RequestedTransport};
use turn_types::message::{ALLOCATE, REFRESH};

#[test]
fn channels_lose_nothing() {
    let Some(lost) = Relayed::run(&["-u", "demo", "-w", "demo"]) else {
        return;
    };
    lost.assert_none();
}

#[test]
fn send_indications_lose_nothing() {
    let Some(lost) = Relayed::run(&["-u", "demo", "-w", "demo", "-s"]) else {
        return;
    };
    lost.assert_none();
}

#[test]
fn credentials_of_the_shared_secret_are_taken_as_coturn_takes_them() {
    let Some(lost) = Relayed::run(&["-u", "player-7", "-W", "north"]) else {
        return;
    };
    lost.assert_none();
}

#[test]
fn a_wrong_password_gets_no_relay() {
    let Some(lost) = Relayed::run(&["-u", "demo", "-w", "wrong"]) else {
        return;
    };
    assert!(
        lost.output.contains("Cannot complete Allocation"),
        "{}",
        lost.output
    );
    assert!(
        lost.metrics
            .contains("penstock_turn_relayed_packets_total{direction=\"to_peer\"} 0\n")
    );
}

#[test]
fn a_stun_client_learns_its_address() {
    if !is_installed("turnutils_stunclient") {
        return;
    }
    let server = Server::start(&[]);
    let port = server.address.port().to_string();
    let said = text(&run("turnutils_stunclient", &["-p", &port, "127.0.0.1"]));
    assert!(said.contains("UDP reflexive addr: 127.0.0.1:"), "{said}");
}

#[test]
fn the_program_says_what_it_tells_clients_and_whom_they_reach() {
    let server = Server::start(&["--external-ip", "198.51.100.7"]);
    for part in [
        "told relays at 198.51.100.7",
        "bound to 127.0.0.1",
        "public addresses and 127.0.0.0/8",
    ] {
        assert!(server.announcement.contains(part), "{}", server.announcement);
    }
    assert!(server.get("/healthz").contains("200 OK"));
    assert!(server.get("/readyz").contains("200 OK"));
    assert!(server.get("/metrics").contains("penstock_turn_allocations 0\n"));
}

#[test]
fn a_server_without_allocations_ends_at_once() {
    let mut server = Server::start(&["--grace", "60"]);
    let began = now();
    server.signal(Signal::TERM);
    assert!(server.child.wait().unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_server_that_drains_relays_on_until_its_grace_is_over() {
    let mut server = Server::start(&["--grace", "2"]);
    let socket = socket();
    socket.connect(server.address).unwrap();
    let mut client = Client::new(1, "demo", "demo");
    let udp = RequestedTransport::new(17);
    let mut ask = |method, attributes: &[&dyn AttributeWrite]| {
        socket.send(&client.signed(method, attributes)).unwrap();
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer).unwrap();
        client.read(&buffer[..length])
    };
    assert_eq!(ask(ALLOCATE, &[&udp]), Answer::Error(438));
    assert_eq!(ask(ALLOCATE, &[&udp]), Answer::Success);
    let began = now();
    server.signal(Signal::TERM);
    while server.get("/readyz").contains("200 OK") {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(server.get("/readyz").contains("503"));
    assert_eq!(ask(REFRESH, &[&Lifetime::new(600)]), Answer::Success);
    assert!(server.child.wait().unwrap().success());
    assert!((1900..10_000).contains(&began.elapsed().as_millis()));
}

#[test]
fn a_port_that_is_taken_is_a_clear_error() {
    let taken = socket();
    let address = taken.local_addr().unwrap().to_string();
    let said = run(
        PROGRAM,
        &[
            "--user",
            "a:b",
            "--metrics-listen",
            "127.0.0.1:0",
            "--listen",
            &address,
        ],
    );
    assert_eq!(said.status.code(), Some(1));
    let said = text(&said);
    assert!(
        said.contains(&address) && said.contains("another program has that port"),
        "{said}"
    );
    assert!(!said.contains("panicked"));
}

#[test]
fn options_that_can_not_be_used_are_a_clear_error() {
    let cases: [(&[&str], &str); 4] = [
        (&[], "nobody could use this server"),
        (
            &["--user", "a:b", "--listen", "192.0.2.1:3478"],
            "no such address",
        ),
        (&["--user", "a:b", "--relay-ports", "5-1"], "49152-65535"),
        (&["--user", "a:b", "--allow-peer", "everyone"], "10.42.0.0/16"),
    ];
    for (options, part) in cases {
        let said = run(PROGRAM, &[options, &["--metrics-listen", "127.0.0.1:0"]].concat());
        assert!(!said.status.success());
        let said = text(&said);
        assert!(
            said.contains(part) && !said.contains("panicked"),
            "{options:?}: {said}"
        );
    }
}

/// What `turnutils_uclient` said of 4 clients with 100 packets each, and what the server counted.
struct Relayed {
    output: String,
    metrics: String,
}

impl Relayed {
    /// `None` where the tools are not installed.
    fn run(options: &[&str]) -> Option<Self> {
        if !is_installed("turnutils_uclient") || !is_installed("turnutils_peer") {
            return None;
        }
        let server = Server::start(&[]);
        let peer_port = free_port().to_string();
        let peer = ["-L", "127.0.0.1", "-p", &peer_port];
        let _peer = Ended(quiet("turnutils_peer", &peer).spawn().unwrap());
        let port = server.address.port().to_string();
        let load = ["-m", "4", "-n", "100", "-z", "5", "-l", "1000", "-c"];
        let where_to = ["-p", &port, "-e", "127.0.0.1", "-r", &peer_port, "127.0.0.1"];
        let output = run("turnutils_uclient", &[options, &load, &where_to].concat());
        Some(Self {
            output: text(&output),
            metrics: server.get("/metrics"),
        })
    }

    fn assert_none(&self) {
        assert!(
            self.output.contains("tot_send_msgs=400, tot_recv_msgs=400"),
            "{}",
            self.output
        );
        assert!(self.output.contains("Total lost packets 0 "), "{}", self.output);
        for direction in ["to_peer", "to_client"] {
            let line = format!("penstock_turn_relayed_packets_total{{direction=\"{direction}\"}} ");
            let count = self
                .metrics
                .lines()
                .find_map(|metric| metric.strip_prefix(&line))
                .unwrap();
            assert!(count.parse::<u64>().unwrap() >= 400, "{direction}: {count}");
        }
    }
}

/// A running server; ends with the test.
struct Server {
    child: Child,
    address: SocketAddr,
    metrics: SocketAddr,
    announcement: String,
}

impl Server {
    fn start(options: &[&str]) -> Self {
        let fixed = [
            ["--listen", "127.0.0.1:0"],
            ["--metrics-listen", "127.0.0.1:0"],
            ["--user", "demo:demo"],
            ["--auth-secret", "north"],
            ["--allow-peer", "127.0.0.0/8"],
            ["--log-format", "json"],
        ];
        let mut command = Command::new(PROGRAM);
        command.args(fixed.as_flattened()).args(options);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let announcement = lines.find(|line| line.as_ref().unwrap().contains("listening on udp "));
        let announcement = announcement.unwrap().unwrap();
        // What comes after is read and left, so that the server never waits for a full pipe.
        std::thread::spawn(move || lines.count());
        Self {
            child,
            address: after(&announcement, "listening on udp "),
            metrics: after(&announcement, "metrics on http://"),
            announcement,
        }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A helper that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The address that stands behind `mark`.
fn after(line: &str, mark: &str) -> SocketAddr {
    let (_, rest) = line.split_once(mark).unwrap();
    let end = rest.find([';', '/', '"']).unwrap();
    rest[..end].parse().unwrap()
}

fn quiet(program: &str, options: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Runs a program to its end, a minute at most.
fn run(program: &str, options: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.arg("60").arg(program).args(options).stdin(Stdio::null());
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// Where it isn't, says so; in CI that is an error.
#[allow(
    clippy::disallowed_methods,
    reason = "CI is how the test's surroundings say what they are"
)]
fn is_installed(tool: &str) -> bool {
    let found = quiet("which", &[tool]).status().unwrap().success();
    if !found {
        assert!(
            std::env::var("CI").is_err(),
            "{tool} is missing: install Debian's package coturn"
        );
        eprintln!("SKIPPED: {tool} is missing; install Debian's package coturn to run this test");
    }
    found
}

fn free_port() -> u16 {
    socket().local_addr().unwrap().port()
}

#[allow(clippy::disallowed_methods, reason = "the test takes a port of its own")]
fn socket() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").unwrap()
}

#[allow(clippy::disallowed_methods, reason = "the test measures real time")]
fn now() -> Instant {
    Instant::now()
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_penstock-turn");
