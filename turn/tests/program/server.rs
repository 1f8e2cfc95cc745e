//! A running server.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use penstock_core::wire::turn::TurnStatus;
use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Pid, Signal, kill_process};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConnection, StreamOwned};

use crate::common::namespaces::{Ended, after, get, number};
use crate::common::person::{Person, Socket};

/// A running server; ends with the test.
pub(crate) struct Server {
    child: Ended,
    pub(crate) address: SocketAddr,
    pub(crate) address_v6: SocketAddr,
    pub(crate) tcp: SocketAddr,
    pub(crate) tcp_v6: SocketAddr,
    pub(crate) tls: SocketAddr,
    pub(crate) tls_v6: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) announcement: String,
    pub(crate) pki: Pki,
    said: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// On loopback.
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::at(LOOPBACK, options)
    }

    /// With an IPv4 address and an IPv6 one to listen at.
    pub(crate) fn at(listen: &str, options: &[&str]) -> Self {
        let pki = Pki::new();
        let (certificate, key) = (pki.path("cert.pem").to_owned(), pki.path("key.pem").to_owned());
        let fixed = [
            ["--listen", listen],
            ["--listen-tls", listen],
            ["--tls-cert", &certificate],
            ["--tls-key", &key],
            ["--user", "demo:demo"],
            ["--auth-secret", "north"],
            ["--allow-peer", "127.0.0.0/8,::1"],
        ];
        Self::with(pki, &[fixed.as_flattened(), options].concat())
    }

    /// With these options alone.
    pub(crate) fn with(pki: Pki, options: &[&str]) -> Self {
        let fixed = ["--metrics-listen", "127.0.0.1:0", "--log-format", "json"];
        let mut started = (0..5).map(|_| {
            let mut command = Command::new(PROGRAM);
            command.args(fixed).args(options);
            let mut child = Ended(command.stderr(Stdio::piped()).spawn().unwrap());
            let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
            let mut said = Vec::new();
            while let Some(Ok(line)) = lines.next() {
                if line.contains("listening on udp ") {
                    return Some((child, lines, line));
                }
                said.push(line);
            }
            // The system has chosen a port for UDP which is taken for TCP.
            assert!(
                said.concat().contains("another program has that port"),
                "{said:?}"
            );
            None
        });
        let (child, lines, announcement) = started.find_map(|started| started).unwrap();
        // What comes after is read at once, so that the server never waits for a full pipe.
        let said = Arc::new(Mutex::new(Vec::new()));
        let all = said.clone();
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .for_each(|line| all.lock().unwrap().push(line));
        });
        let (udp, streams) = announcement.split_once("; tcp ").unwrap();
        let (tcp, tls) = streams.split_once("; tls ").unwrap_or((streams, streams));
        let first = |list: &str| after(&format!("; {list};"), "; ");
        let v6 = |list: &str| match list.contains(", [") {
            true => after(&format!("{list};"), ", ["),
            false => first(list),
        };
        Self {
            child,
            address: after(&announcement, "listening on udp "),
            address_v6: v6(udp),
            tcp: first(tcp),
            tcp_v6: v6(tcp),
            tls: first(tls),
            tls_v6: v6(tls.split_once(';').map_or(tls, |(list, _)| list)),
            metrics: after(&announcement, "metrics on http://"),
            announcement,
            pki,
            said,
        }
    }

    /// Waits until the metrics say so.
    pub(crate) fn until(&self, metric: &str) {
        self.until_within(Duration::from_secs(10), metric);
    }

    pub(crate) fn until_within(&self, time: Duration, metric: &str) {
        let end = now() + time;
        while !self.get("/metrics").contains(metric) {
            assert!(now() < end, "{metric}: {}", self.get("/metrics"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it has logged that.
    pub(crate) fn said(&self, part: &str) -> bool {
        self.said.lock().unwrap().iter().any(|line| line.contains(part))
    }

    /// Waits until it has logged that.
    pub(crate) fn until_said(&self, part: &str) {
        let end = now() + Duration::from_secs(10);
        while !self.said(part) {
            assert!(now() < end, "{part}: {:?}", self.said.lock().unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// How many lines it has logged since it listens.
    pub(crate) fn lines_said(&self) -> usize {
        self.said.lock().unwrap().len()
    }

    /// The certificate that it shows.
    pub(crate) fn certificate(&self) -> Vec<u8> {
        let (mut tls, seen) = self.tls_connection();
        tls.conn.complete_io(&mut tls.sock).unwrap();
        seen.lock().unwrap().clone()
    }

    pub(crate) fn person_over_tls(&self) -> Person {
        Person::over(Socket::Tls(Box::new(self.tls_connection().0)))
    }

    pub(crate) fn tls_connection(&self) -> (StreamOwned<ClientConnection, TcpStream>, Arc<Mutex<Vec<u8>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Seen(seen.clone())))
            .with_no_client_auth();
        let tls = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let stream = TcpStream::connect(self.tls).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (StreamOwned::new(tls, stream), seen)
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.0.wait().unwrap()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.0.try_wait().unwrap().is_none()
    }

    /// A metric's number.
    pub(crate) fn metric(&self, metric: &str) -> u64 {
        number(&self.get("/metrics"), metric)
    }

    /// Resident memory.
    pub(crate) fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.0.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> String {
        get(self.metrics, path)
    }

    pub(crate) fn status(&self) -> TurnStatus {
        let answer = self.get("/status");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child.0), signal).unwrap();
    }
}

/// A self-made certificate with its key, in files.
pub(crate) struct Pki {
    folder: tempfile::TempDir,
    paths: [(&'static str, String); 2],
}

impl Pki {
    pub(crate) fn new() -> Self {
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
    pub(crate) fn make(&self) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(self.folder.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(
            self.folder.path().join("key.pem"),
            made.signing_key.serialize_pem(),
        )
        .unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> &str {
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

/// A connection that says the first so many bytes of a handshake that would be as long as one may be.
pub(crate) fn begin_handshake(server: SocketAddr, bytes: usize) -> TcpStream {
    // A record that holds a ClientHello of 64 KiB, as far as it fits (RFC 8446, sections 4 and 5.1).
    let mut begun = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0xFF, 0xFF, 3, 3];
    begun.resize(bytes, 0);
    let mut stream = connect(server);
    stream.write_all(&begun).unwrap();
    stream
}

/// One that leaves nothing behind, so that thousands don't take the ports of other tests for a minute.
pub(crate) fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

pub(crate) fn quiet(program: &str, options: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Runs a program to its end, a minute at most.
pub(crate) fn run(program: &str, options: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.arg("60").arg(program).args(options).stdin(Stdio::null());
    command.output().unwrap()
}

pub(crate) fn free_port() -> u16 {
    socket().local_addr().unwrap().port()
}

pub(crate) fn socket() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").unwrap()
}

pub(crate) fn now() -> Instant {
    Instant::now()
}

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_penstock-turn");
/// Where it listens, unless it is said.
pub(crate) const LOOPBACK: &str = "127.0.0.1:0,[::1]:0";
