//! What operators and the matchmaker are told.

use std::time::Duration;

use turn_types::attribute::RequestedTransport;
use turn_types::message::ALLOCATE;

use crate::common::Answer;
use crate::common::person::Person;
use crate::server::{Server, now, socket};

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
    let (udp_v6, tcp, tls_v6) = (server.address_v6, server.tcp.port(), server.tls_v6);
    for url in [
        format!("turn:198.51.100.7:{udp}?transport=udp"),
        format!("turn:{udp_v6}?transport=udp"),
        format!("turn:198.51.100.7:{tcp}?transport=tcp"),
        format!("turns:198.51.100.7:{tls}?transport=tcp"),
        format!("turns:{tls_v6}?transport=tcp"),
    ] {
        assert!(status.urls.contains(&url), "{url}: {status:?}");
    }
    assert_eq!(status.urls.len(), 6, "{status:?}");
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
