//! Where few files may be open, against the real program.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use common::namespaces::{Ended, after};
use common::person::Person;

#[test]
fn connections_of_strangers_leave_the_relays_files_alone() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 160 && exec \"$0\" \"$@\""]);
    command.arg(env!("CARGO_BIN_EXE_penstock-turn"));
    let fixed = [
        ["--listen", "127.0.0.1:0"],
        ["--metrics-listen", "127.0.0.1:0"],
        ["--user", "demo:demo"],
    ];
    command.args(fixed.as_flattened()).stderr(Stdio::piped());
    let mut server = Ended(command.spawn().unwrap());
    let mut lines = BufReader::new(server.0.stderr.take().unwrap()).lines();
    let said = lines
        .find(|line| line.as_ref().unwrap().contains("listening on udp "))
        .unwrap()
        .unwrap();
    std::thread::spawn(move || lines.count());

    // Each shard listens on UDP and TCP, and has an epoll instance and an eventfd; 64 are kept for the rest.
    let shards = std::thread::available_parallelism().unwrap().get();
    let files = 160 - 64 - 4 * shards;
    let (relays, connections) = (files - files / 4, files / 4);
    let room = format!("room for {relays} allocations with {relays} relays, and {connections} connections");
    assert!(said.contains(&room), "{room}: {said}");

    let address = after(&said, "listening on udp ");
    let strangers: Vec<_> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut people: Vec<_> = (0..relays).map(|_| Person::new(address)).collect();
    for person in &mut people {
        person.allocate();
    }
    drop(strangers);
}
