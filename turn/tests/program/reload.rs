//! SIGHUP.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::process::Signal;
use stun_types::message::BINDING;
use turn_types::attribute::RequestedTransport;
use turn_types::message::ALLOCATE;

use crate::common::person::{Person, channel_data};
use crate::common::{Answer, Client};
use crate::server::{Pki, Server, now};

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

/// The certificate is taken out of the file, and where TLS is spoken with it.
#[test]
fn a_listener_for_tls_never_speaks_anything_else() {
    let pki = Pki::new();
    let file = Config::new(&format!(
        "user: demo:demo\nlisten-tls: 127.0.0.1:0\ntls-cert: {}\ntls-key: {}\n",
        pki.path("cert.pem"),
        pki.path("key.pem")
    ));
    let server = Server::with(pki, &["--listen", "127.0.0.1:0,[::1]:0", "--config", &file.0]);
    let seen = server.certificate();
    file.write("user: [demo:demo, ann:pw]\n");
    server.signal(Signal::HUP);
    server.until_said("SIGHUP: nothing has changed: there is no certificate any more");
    // Whichever shard takes the connection.
    for _ in 0..8 {
        assert_eq!(server.certificate(), seen);
        let mut stream = TcpStream::connect(server.tls).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(&Client::ann(1).bare(BINDING, &[])).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 20, "TLS's alert and no more: {answer:?}");
    }
    let mut ann = Person::new(server.address);
    ann.client = Client::ann(1);
    let udp = RequestedTransport::new(17);
    assert_eq!(
        ann.ask(ALLOCATE, &[&udp]),
        Answer::Error(401),
        "nothing else has changed"
    );
}

#[test]
fn a_peer_that_new_rules_deny_is_out_of_reach_for_living_allocations_too() {
    let file = Config::new("user: demo:demo\nallow-peer: [127.0.0.1, 127.0.0.2]\n");
    let server = Server::with(
        Pki::new(),
        &["--listen", "127.0.0.1:0,[::1]:0", "--config", &file.0],
    );
    let [kept, denied, permitted] = ["127.0.0.1", "127.0.0.2", "127.0.0.2"].map(peer);
    let mut person = Person::new(server.address);
    let relay = person.allocate();
    for (channel, peer) in [(0x4001, &kept), (0x4002, &denied)] {
        assert_eq!(person.bind(channel, at(peer)), Answer::Success);
    }
    let up = |person: &mut Person| {
        person.send_on(0x4002, b"by a channel");
        person.send(at(&permitted), b"by a permission");
        person.send_on(0x4001, b"to the last one");
        // What goes before is there before.
        let last = received(&kept);
        assert_eq!(last.as_deref(), Some(&b"to the last one"[..]));
        [&denied, &permitted].map(|peer| {
            peer.set_nonblocking(true).unwrap();
            received(peer)
        })
    };
    let all = ["by a channel", "by a permission"].map(|text| Some(text.as_bytes().to_vec()));
    assert_eq!(up(&mut person), all);

    file.write("user: demo:demo\nallow-peer: 127.0.0.1\n");
    server.signal(Signal::HUP);
    server.until_said("were read again");
    let end = now() + Duration::from_secs(10);
    // The shard hears of it a moment later.
    while up(&mut person) != [None, None] {
        assert!(now() < end, "the new rules are not taken");
    }
    for peer in [&denied, &permitted, &kept] {
        peer.send_to(b"down", relay).unwrap();
    }
    assert_eq!(person.receive(), channel_data(0x4001, b"down"), "no one else's");
    assert_eq!(person.permit(at(&denied)), Answer::Error(403));
    assert_eq!(person.bind(0x4002, at(&denied)), Answer::Error(403));

    // What was permitted before does not come back with the rule.
    file.write("user: demo:demo\nallow-peer: [127.0.0.1, 127.0.0.2]\n");
    server.signal(Signal::HUP);
    while person.permit(at(&denied)) != Answer::Success {
        assert!(now() < end, "the new rules are not taken");
    }
    assert_eq!(up(&mut person), [None, all[1].clone()], "its channel is gone");
}

#[test]
fn a_user_who_is_gone_is_relayed_on_and_refreshes_nothing() {
    let file = Config::new("user: [demo:demo, ann:pw]\nallow-peer: 127.0.0.1\n");
    let server = Server::with(
        Pki::new(),
        &["--listen", "127.0.0.1:0,[::1]:0", "--config", &file.0],
    );
    let mut ann = Person::new(server.address);
    ann.client = Client::ann(1);
    let (mut gone, peer) = (Person::new(server.address), peer("127.0.0.1"));
    let (relay, _) = (gone.allocate(), ann.allocate());
    assert_eq!(gone.bind(0x4001, at(&peer)), Answer::Success);

    file.write("user: ann:pw\nallow-peer: 127.0.0.1\n");
    server.signal(Signal::HUP);
    let end = now() + Duration::from_secs(10);
    while gone.refresh(600) != Answer::Error(401) {
        assert!(now() < end, "the new users are not taken");
    }
    assert_eq!(gone.bind(0x4002, at(&peer)), Answer::Error(401));
    assert_eq!(ann.refresh(600), Answer::Success);
    let again = Person::new(server.address).ask(ALLOCATE, &[&RequestedTransport::new(17)]);
    assert_eq!(again, Answer::Error(401));
    // What there is goes on until its lifetime ends.
    gone.send_on(0x4001, b"up");
    assert_eq!(received(&peer).as_deref(), Some(&b"up"[..]));
    peer.send_to(b"down", relay).unwrap();
    assert_eq!(gone.receive(), channel_data(0x4001, b"down"));
}

/// A file for `--config`; gone with the test.
struct Config(String, tempfile::TempPath);

impl Config {
    fn new(text: &str) -> Self {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let config = Self(path.to_str().unwrap().to_owned(), path);
        config.write(text);
        config
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.1, text).unwrap();
    }
}

fn peer(ip: &str) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

fn at(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().unwrap()
}

fn received(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).ok()?;
    Some(buffer[..length].to_vec())
}
