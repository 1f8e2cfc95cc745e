//! SIGTERM while drivers relay.

use std::time::Duration;

use rustix::process::Signal;
use turn_types::attribute::RequestedTransport;
use turn_types::message::ALLOCATE;

use crate::common::Answer;
use crate::common::namespaces::{Program, number};
use crate::common::person::{Person, channel_data};
use crate::net::{
    CHANNEL, Call, Net, SERVER, XDP_TO_CLIENT, XDP_TO_PEER, monotonic, nothing_comes, wait_until,
};

#[test]
fn channels_live_on_until_the_last_allocation_ends() {
    let Some(net) = Net::build() else { return };
    let mut server = net.serve(&["--xdp", "eth0", "--grace", "60"]);
    let mut call = draining_call(&net, &server);
    let mut late = net.0.within("world", || Person::new(SERVER.into()));
    let asked = late.ask(ALLOCATE, &[&RequestedTransport::new(17)]);
    assert_eq!(asked, Answer::Error(508));
    assert_eq!(call.client.refresh(600), Answer::Success);
    call.both_ways(200);
    relayed_by_driver(&server, 3);
    let began = monotonic();
    assert_eq!(call.client.refresh(0), Answer::Success);
    assert!(server.ends_well());
    assert!(monotonic() - began < Duration::from_secs(10));
    nothing_is_relayed(&call);
    assert!(!net.link("eth0").contains("xdp"), "{}", net.link("eth0"));
}

#[test]
fn channels_end_with_the_grace_period() {
    let Some(net) = Net::build() else { return };
    let mut server = net.serve(&["--xdp", "eth0", "--grace", "3"]);
    let began = monotonic();
    let call = draining_call(&net, &server);
    relayed_by_driver(&server, 2);
    assert!(server.ends_well());
    assert!((3..20).contains(&(monotonic() - began).as_secs()));
    nothing_is_relayed(&call);
    assert!(!net.link("eth0").contains("xdp"), "{}", net.link("eth0"));
}

/// One that was there before, with a payload that was relayed after.
fn draining_call(net: &Net, server: &Program<'_>) -> Call {
    let mut call = Call::new(net);
    call.both_ways(100);
    server.signal(Signal::TERM);
    wait_until(|| server.said("draining: no new allocations") > 0);
    call.both_ways(100);
    call
}

fn relayed_by_driver(server: &Program<'_>, packets: u64) {
    let metrics = server.until(XDP_TO_CLIENT, packets);
    assert_eq!(number(&metrics, XDP_TO_PEER), packets);
}

fn nothing_is_relayed(call: &Call) {
    for _ in 0..3 {
        // The server's kernel may say that nobody is there.
        let _ = call.client.udp().send(&channel_data(CHANNEL, b"payload"));
        let _ = call.peer.send_to(b"payload", call.relay);
    }
    nothing_comes(&call.peer);
    nothing_comes(call.client.udp());
}
