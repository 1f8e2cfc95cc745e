//! The real program over loopback, against coturn's tools (Debian package `coturn`) and by hand.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the tests have sockets and clocks of their own"
)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::namespaces::{Ended, after, get, text};
use common::person::{Person, read_stream};
use common::{Answer, Client};
use penstock_core::wire::turn::TurnStatus;
use rustix::process::{Pid, Signal, kill_process};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use stun_types::AddressFamily;
use stun_types::attribute::Realm;
use stun_types::message::{BINDING, Message};
use turn_types::attribute::{AdditionalAddressFamily, Data, Lifetime, RequestedTransport};
use turn_types::message::{ALLOCATE, REFRESH};

#[test]
fn channels_lose_nothing() {
    Relayed::loses_nothing(&["-u", "demo", "-w", "demo", "-c"]);
}

#[test]
fn send_indications_lose_nothing() {
    Relayed::loses_nothing(&["-u", "demo", "-w", "demo", "-s", "-c"]);
}

#[test]
fn credentials_of_the_shared_secret_are_taken_as_coturn_takes_them() {
    Relayed::loses_nothing(&["-u", "player-7", "-W", "north", "-c"]);
}

#[test]
fn a_reserved_port_serves_rtcp() {
    // Without -c each client asks for an even port and its neighbour, and sends RTCP through that one.
    Relayed::loses_nothing(&["-u", "demo", "-w", "demo"]);
}

/// By hand: Debian's coturn asks for two families with an attribute number from before RFC 8656.
#[test]
fn a_dual_allocation_has_two_sockets() {
    let server = Server::start(&[]);
    let mut person = Person::new(server.address);
    let both = AdditionalAddressFamily::new(AddressFamily::IPV6);
    assert_eq!(
        person.ask(ALLOCATE, &[&RequestedTransport::new(17), &both]),
        Answer::Success
    );
    for ip in ["127.0.0.1", "::1"] {
        let peer = UdpSocket::bind((ip, 0)).unwrap();
        let peer_at = peer.local_addr().unwrap();
        assert_eq!(person.permit(peer_at), Answer::Success);
        person.send(peer_at, b"up");
        let mut buffer = [0; 2048];
        let (length, relay) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], relay.ip()), (&b"up"[..], peer_at.ip()));
        peer.send_to(b"down", relay).unwrap();
        let down = person.receive();
        let message = Message::from_bytes(&down).unwrap();
        assert_eq!(message.attribute::<Data<'_>>().unwrap().data(), b"down");
    }
}

#[test]
fn clients_and_peers_over_ipv6() {
    Relayed::loses_nothing_at("::1", &["-u", "demo", "-w", "demo", "-c", "-x"]);
}

#[test]
fn clients_over_tcp() {
    Relayed::loses_nothing(&["-u", "demo", "-w", "demo", "-c", "-t"]);
    Relayed::loses_nothing(&["-u", "player-7", "-W", "north", "-c", "-t", "-s"]);
    Relayed::loses_nothing_at("::1", &["-u", "demo", "-w", "demo", "-c", "-x", "-t"]);
}

#[test]
fn clients_over_tls() {
    Relayed::loses_nothing(&["-u", "demo", "-w", "demo", "-c", "-t", "-S"]);
    Relayed::loses_nothing(&["-u", "player-7", "-W", "north", "-c", "-t", "-S", "-s"]);
}

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

#[test]
fn sighup_reads_secrets_certificates_and_rules_again() {
    let folder = tempfile::tempdir().unwrap();
    let secrets = folder.path().join("secrets");
    std::fs::write(&secrets, "south\n").unwrap();
    // It asks again and again with a secret that is not taken yet.
    let often = ["--auth-failure-rate", "0"];
    let server = Server::start(&[&["--auth-secret-file", secrets.to_str().unwrap()], &often[..]].concat());
    let with = |secret: &[u8]| {
        let mut person = Person::new(server.address);
        let name = "4102444800:p".to_owned();
        person.client.password = penstock_core::turn_rest::password(secret, &name);
        person.client.name = name;
        person.ask(ALLOCATE, &[&RequestedTransport::new(17)])
    };
    assert_eq!(with(b"south"), Answer::Success);
    assert_eq!(with(b"west"), Answer::Error(401));
    let seen = server.certificate();
    assert_eq!(server.certificate(), seen);
    std::fs::write(&secrets, "south\nwest\n").unwrap();
    server.pki.make();
    server.signal(Signal::HUP);
    let end = now() + Duration::from_secs(10);
    while with(b"west") != Answer::Success {
        assert!(now() < end, "the new secret is not taken");
    }
    assert_eq!(with(b"south"), Answer::Success, "both are valid");
    // Another shard may have taken this connection, and read its news a moment later.
    while server.certificate() == seen {
        assert!(now() < end, "the new certificate is not taken");
    }
    std::fs::write(&secrets, "").unwrap();
    server.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(with(b"west"), Answer::Success, "a broken file changes nothing");
    assert!(server.said("nothing has changed"));
}

#[test]
fn a_wrong_password_gets_no_relay() {
    let Some(lost) = Relayed::run("127.0.0.1", &["-u", "demo", "-w", "wrong", "-c"]) else {
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
        "bound to 127.0.0.1, ::1",
        "public addresses and 127.0.0.0/8, ::1/128",
    ] {
        assert!(server.announcement.contains(part), "{}", server.announcement);
    }
    assert!(server.get("/healthz").contains("200 OK"));
    assert!(server.get("/readyz").contains("200 OK"));
    assert!(server.get("/metrics").contains("penstock_turn_allocations 0\n"));
}

#[test]
fn status_says_what_clients_are_told_and_how_much_there_is_to_do() {
    let server = Server::start(&["--external-ip", "198.51.100.7", "--max-allocations", "9"]);
    let mut person = Person::new(server.address);
    assert_eq!(
        person.ask(ALLOCATE, &[&RequestedTransport::new(17)]),
        Answer::Success
    );
    server.until("penstock_turn_allocations 1\n");
    let status = server.status();
    let (udp, tls) = (server.address.port(), server.tls.port());
    let (udp_v6, tcp) = (server.address_v6, server.tcp.port());
    for url in [
        format!("turn:198.51.100.7:{udp}?transport=udp"),
        format!("turn:{udp_v6}?transport=udp"),
        format!("turn:198.51.100.7:{tcp}?transport=tcp"),
        format!("turns:198.51.100.7:{tls}?transport=tcp"),
    ] {
        assert!(status.urls.contains(&url), "{url}: {status:?}");
    }
    assert_eq!(status.urls.len(), 5, "{status:?}");
    assert!(!status.draining);
    assert_eq!((status.allocations, status.max_allocations), (1, 9));
    // What is relayed shows, and then that nothing is any more.
    let peer = socket();
    assert_eq!(person.permit(peer.local_addr().unwrap()), Answer::Success);
    let end = now() + Duration::from_secs(20);
    while server.status().bytes_per_second == 0 {
        assert!(now() < end, "{:?}", server.status());
        person.send(peer.local_addr().unwrap(), &[0; 1000]);
        std::thread::sleep(Duration::from_millis(5));
    }
    while server.status().bytes_per_second > 0 {
        assert!(now() < end, "{:?}", server.status());
        std::thread::sleep(Duration::from_millis(50));
    }
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
    let mut person = Person::new(server.address);
    let udp = RequestedTransport::new(17);
    assert_eq!(person.ask(ALLOCATE, &[&udp]), Answer::Success);
    let began = now();
    server.signal(Signal::TERM);
    while server.get("/readyz").contains("200 OK") {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(server.get("/readyz").contains("503"));
    assert!(server.status().draining);
    assert_eq!(person.ask(REFRESH, &[&Lifetime::new(600)]), Answer::Success);
    assert!(server.child.wait().unwrap().success());
    assert!((1900..10_000).contains(&began.elapsed().as_millis()));
}

#[test]
fn a_server_that_drains_names_another_to_new_clients() {
    let mut server = Server::start(&["--grace", "30", "--alternate-server", "203.0.113.9:3478"]);
    let udp = RequestedTransport::new(17);
    let (mut early, mut late) = (Person::new(server.address), Person::new(server.address));
    assert_eq!(early.ask(ALLOCATE, &[&udp]), Answer::Success);
    server.signal(Signal::TERM);
    while server.get("/readyz").contains("200 OK") {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(late.ask(ALLOCATE, &[&udp]), Answer::Error(300));
    let began = now();
    assert_eq!(early.ask(REFRESH, &[&Lifetime::new(0)]), Answer::Success);
    assert!(server.child.wait().unwrap().success());
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "it ends with the last allocation"
    );
}

#[test]
fn a_deployment_moves_over_with_its_variables_and_options_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("turn.yaml");
    let text = "realm: of the file\nexternal-ip: 192.0.2.99\nallow-peer: [10.42.0.0/16, 10.43.0.0/16]\n";
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(PROGRAM);
    let port = free_port().to_string();
    command
        .args([
            "--config",
            file.to_str().unwrap(),
            "--metrics-listen",
            "127.0.0.1:0",
        ])
        .env("INTERNAL_IP", "127.0.0.1")
        .env("EXTERNAL_IP", "198.51.100.7")
        .env("TURN_PORT", &port)
        .env("MIN_PORT", "50000")
        .env("MAX_PORT", "50100")
        .env("REALM", "of the container")
        .env("TURN_USER", "demo")
        .env("TURN_PASS", "demo")
        .env("PENSTOCK_TURN_REALM", "ours");
    let mut child = Ended(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
    let said = lines
        .find(|line| line.as_ref().unwrap().contains("listening"))
        .unwrap()
        .unwrap();
    for part in [
        &format!("udp 0.0.0.0:{port};"),
        "told relays at 198.51.100.7, ports 50000-50100",
        "bound to 127.0.0.1;",
        "public addresses and 10.42.0.0/16, 10.43.0.0/16",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let mut person = Person::new(format!("127.0.0.1:{port}").parse().unwrap());
    let request = person.client.bare(ALLOCATE, &[&RequestedTransport::new(17)]);
    person.put(&request);
    let bytes = person.receive();
    let challenge = Message::from_bytes(&bytes).unwrap();
    let realm = challenge.attribute::<Realm>().unwrap();
    assert_eq!(realm.realm(), "ours", "our own variable goes before the others");
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
    fn loses_nothing(options: &[&str]) {
        Self::loses_nothing_at("127.0.0.1", options);
    }

    /// Three tries: on a machine that is short of time, datagrams are lost in the buffers of those who send and receive.
    fn loses_nothing_at(ip: &str, options: &[&str]) {
        for _ in 0..2 {
            match Self::run(ip, options) {
                None => return,
                Some(run) if run.lost_nothing() => return,
                Some(_) => {}
            }
        }
        if let Some(run) = Self::run(ip, options) {
            run.assert_none();
        }
    }

    /// With the peer and the server at `ip`. `None` where the tools are not installed.
    fn run(ip: &str, options: &[&str]) -> Option<Self> {
        if !is_installed("turnutils_uclient") || !is_installed("turnutils_peer") {
            return None;
        }
        let server = Server::start(&[]);
        let address = if ip == "::1" {
            server.address_v6
        } else {
            server.address
        };
        let peer_port = free_port().to_string();
        let peer = ["-L", ip, "-p", &peer_port];
        let _peer = Ended(quiet("turnutils_peer", &peer).spawn().unwrap());
        let port = match (options.contains(&"-S"), options.contains(&"-t")) {
            (true, _) => server.tls.port().to_string(),
            (false, true) if ip == "::1" => server.tcp_v6.port().to_string(),
            (false, true) => server.tcp.port().to_string(),
            (false, false) => address.port().to_string(),
        };
        let load = ["-m", "4", "-n", "100", "-z", "5", "-l", "1000"];
        let where_to = ["-p", &port, "-e", ip, "-r", &peer_port, ip];
        let output = run("turnutils_uclient", &[options, &load, &where_to].concat());
        Some(Self {
            output: text(&output),
            metrics: server.get("/metrics"),
        })
    }

    fn lost_nothing(&self) -> bool {
        self.output.contains("Total lost packets 0 ")
    }

    fn assert_none(&self) {
        assert!(
            self.metrics.contains("penstock_turn_handling_seconds_count "),
            "{}",
            self.metrics
        );
        assert!(self.lost_nothing(), "{}", self.output);
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
    address_v6: SocketAddr,
    tcp: SocketAddr,
    tcp_v6: SocketAddr,
    tls: SocketAddr,
    metrics: SocketAddr,
    announcement: String,
    pki: Pki,
    said: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(options: &[&str]) -> Self {
        let pki = Pki::new();
        let fixed = [
            ["--listen", "127.0.0.1:0,[::1]:0"],
            ["--listen-tls", "127.0.0.1:0"],
            ["--tls-cert", pki.path("cert.pem")],
            ["--tls-key", pki.path("key.pem")],
            ["--metrics-listen", "127.0.0.1:0"],
            ["--user", "demo:demo"],
            ["--auth-secret", "north"],
            ["--allow-peer", "127.0.0.0/8,::1"],
            ["--log-format", "json"],
        ];
        let mut command = Command::new(PROGRAM);
        command.args(fixed.as_flattened()).args(options);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let announcement = lines.find(|line| line.as_ref().unwrap().contains("listening on udp "));
        let announcement = announcement.unwrap().unwrap();
        // What comes after is read at once, so that the server never waits for a full pipe.
        let said = Arc::new(Mutex::new(Vec::new()));
        let all = said.clone();
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .for_each(|line| all.lock().unwrap().push(line));
        });
        let (udp, streams) = announcement.split_once("; tcp ").unwrap();
        let (udp, streams) = (udp.to_owned(), streams.to_owned());
        Self {
            child,
            address: after(&announcement, "listening on udp "),
            address_v6: after(&format!("{udp};"), ", ["),
            tcp: after(&format!("; tcp {streams}"), "; tcp "),
            tcp_v6: after(&streams, ", ["),
            tls: after(&announcement, "; tls "),
            metrics: after(&announcement, "metrics on http://"),
            announcement,
            pki,
            said,
        }
    }

    /// Waits until the metrics say so.
    fn until(&self, metric: &str) {
        let end = now() + Duration::from_secs(10);
        while !self.get("/metrics").contains(metric) {
            assert!(now() < end, "{metric}: {}", self.get("/metrics"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it has logged that.
    fn said(&self, part: &str) -> bool {
        self.said.lock().unwrap().iter().any(|line| line.contains(part))
    }

    /// The certificate that it shows.
    fn certificate(&self) -> Vec<u8> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Seen(seen.clone())))
            .with_no_client_auth();
        let name = "localhost".try_into().unwrap();
        let mut tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = TcpStream::connect(self.tls).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut stream).unwrap();
        }
        seen.lock().unwrap().clone()
    }

    fn get(&self, path: &str) -> String {
        get(self.metrics, path)
    }

    fn status(&self) -> TurnStatus {
        let answer = self.get("/status");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
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

/// A self-made certificate with its key, in files.
struct Pki {
    folder: tempfile::TempDir,
    paths: [(&'static str, String); 2],
}

impl Pki {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| {
            let path = folder.path().join(name);
            (name, path.to_str().unwrap().to_owned())
        };
        let pki = Self {
            paths: [path("cert.pem"), path("key.pem")],
            folder,
        };
        pki.make();
        pki
    }

    /// Makes a new one.
    fn make(&self) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(self.folder.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(
            self.folder.path().join("key.pem"),
            made.signing_key.serialize_pem(),
        )
        .unwrap();
    }

    fn path(&self, name: &str) -> &str {
        &self.paths.iter().find(|(known, _)| *known == name).unwrap().1
    }
}

/// Takes every certificate, and keeps it.
#[derive(Debug)]
struct Seen(Arc<Mutex<Vec<u8>>>);

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap() = end_entity.to_vec();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn ask_stream(stream: &mut TcpStream, request: &[u8]) -> Vec<u8> {
    stream.write_all(request).unwrap();
    read_stream(stream)
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

/// Where it isn't, says so; in CI that is an error.
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

fn socket() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").unwrap()
}

fn now() -> Instant {
    Instant::now()
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_penstock-turn");
