//! The same names and passwords at Debian's `turnserver` (package `coturn`) and at ours: what one takes, the other does.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the test has sockets and a clock of its own"
)]

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::namespaces::{Ended, skip};
use common::person::Person;
use common::{Answer, Client, REALM, SECRET};
use penstock_core::turn_rest;
use stun_types::message::BINDING;
use tempfile::TempDir;
use turn_types::attribute::RequestedTransport;
use turn_types::message::ALLOCATE;

#[test]
fn credentials_of_one_secret_serve_at_coturn_and_here() {
    let Some(coturn) = coturn() else { return };
    let ours = ours();
    // Coturn compares the low 32 bits as numbers with a sign, so a time in the far future would be in its past.
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let later = (unix + 3600).to_string();
    let names = [
        (later.clone(), Answer::Success),
        (format!("{later}:p"), Answer::Success),
        (format!("p:{later}"), Answer::Success),
        (format!(":{later}"), Answer::Success),
        (format!("{later}:"), Answer::Success),
        (format!("{later}:12"), Answer::Success),
        (format!("p:{later}:q"), Answer::Success),
        (format!("{later}.5"), Answer::Success),
        (format!("{later}:@alice:example.org"), Answer::Success),
        (format!("{later}:alice@example.org"), Answer::Success),
        (format!("alice@example.org:{later}"), Answer::Success),
        (format!("{later}:p@127.0.0.1"), Answer::Success),
        (format!("p:{later}@127.0.0.1"), Answer::Success),
        ("12".to_owned(), Answer::Error(401)),
        (format!("12:{later}"), Answer::Error(401)),
        ("p:12".to_owned(), Answer::Error(401)),
        ("p".to_owned(), Answer::Error(401)),
        (format!("p:q:{later}"), Answer::Error(401)),
        (format!("-{later}"), Answer::Error(401)),
    ];
    for (name, expected) in names {
        let at = |server: SocketAddr| allocate(server, &name, turn_rest::password(SECRET, &name));
        assert_eq!(
            (at(coturn.address), at(ours.address)),
            (expected.clone(), expected),
            "{name}"
        );
    }
    let wrong = turn_rest::password(b"south", &later);
    for server in [coturn.address, ours.address] {
        assert_eq!(allocate(server, &later, wrong.clone()), Answer::Error(401));
    }
}

fn allocate(server: SocketAddr, name: &str, password: String) -> Answer {
    let mut person = Person::new(server);
    (person.client.name, person.client.password) = (name.to_owned(), password);
    person.ask(ALLOCATE, &[&RequestedTransport::new(17)])
}

/// `None` where it is not installed; in CI that is an error.
fn coturn() -> Option<Server> {
    let mut which = Command::new("which");
    if !which
        .arg("turnserver")
        .stdout(Stdio::null())
        .status()
        .unwrap()
        .success()
    {
        return skip("turnserver is missing: install Debian's package coturn");
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let port = free_port();
    let mut command = Command::new("turnserver");
    // No configuration, data base or file of the machine's own.
    command.args([
        "-n",
        "--no-tls",
        "--no-dtls",
        "--no-tcp",
        "--no-cli",
        "--no-rfc5780",
    ]);
    command.args([
        "--userdb",
        &at("db"),
        "--pidfile",
        &at("pid"),
        "--log-file",
        &at("log"),
    ]);
    command.args([
        "--listening-ip",
        "127.0.0.1",
        "--listening-port",
        &port.to_string(),
    ]);
    command.args([
        "--use-auth-secret",
        "--static-auth-secret",
        "north",
        "--realm",
        REALM,
    ]);
    Some(Server::start(command, port, Some(folder)))
}

fn ours() -> Server {
    let port = free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-turn"));
    command.args([
        "--listen",
        &format!("127.0.0.1:{port}"),
        "--metrics-listen",
        "127.0.0.1:0",
    ]);
    command.args(["--auth-secret", "north", "--realm", REALM, "--no-tcp"]);
    Server::start(command, port, None)
}

/// Ends with the test.
struct Server {
    address: SocketAddr,
    _process: Ended,
    _folder: Option<TempDir>,
}

impl Server {
    /// Waits until it answers.
    fn start(mut command: Command, port: u16, folder: Option<TempDir>) -> Self {
        let process = Ended(
            command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let end = Instant::now() + Duration::from_secs(20);
        let binding = Client::new(1, "", "").bare(BINDING, &[]);
        let answers = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(address).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            socket.send(&binding).is_ok() && socket.recv(&mut [0; 256]).is_ok()
        };
        while !answers() {
            assert!(Instant::now() < end, "{command:?} does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self {
            address,
            _process: process,
            _folder: folder,
        }
    }
}

fn free_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}
