//! Options, and how the program takes them.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use stun_types::attribute::Realm;
use stun_types::message::Message;
use turn_types::attribute::RequestedTransport;
use turn_types::message::ALLOCATE;

use crate::common::namespaces::{Ended, text};
use crate::common::person::Person;
use crate::server::{PROGRAM, free_port, run, socket};

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
