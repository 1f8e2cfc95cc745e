//! What clients see of the core, told as short stories with a held clock.

mod common;

use std::net::SocketAddr;

use common::{Answer, Client, EXTERNAL, Passed, World, peer};
use penstock_turn::core::counters::{AuthFailure, Count, Direction, Drop};
use stun_types::attribute::{
    AttributeStaticType as _, ErrorCode, MessageIntegrity, Nonce, Software, UnknownAttributes,
    XorMappedAddress,
};
use stun_types::message::{BINDING, Message};
use turn_types::attribute::{DontFragment, Lifetime, RequestedTransport};
use turn_types::message::{ALLOCATE, CONNECT, CREATE_PERMISSION, DATA, REFRESH};

#[test]
fn a_binding_request_says_where_the_client_is() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let request = client.bare(BINDING, &[]);
    let bytes = world.ask(client.at, &request).unwrap();
    let answer = Message::from_bytes(&bytes).unwrap();
    let mapped = answer.attribute::<XorMappedAddress>().unwrap();
    assert_eq!(mapped.addr(answer.transaction_id()), client.at.remote);
}

#[test]
fn a_first_allocate_is_challenged_and_the_second_succeeds() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let request = client.bare(ALLOCATE, &[&RequestedTransport::new(17)]);
    let bytes = world.ask(client.at, &request).unwrap();
    assert_eq!(client.read(&bytes), Answer::Error(401));
    let challenge = Message::from_bytes(&bytes).unwrap();
    assert!(challenge.has_attribute(Nonce::TYPE) && !challenge.has_attribute(Software::TYPE));
    assert_eq!(client.allocate(&mut world), Answer::Success);
    assert_eq!(world.server.allocation_count(), 1);
}

#[test]
fn a_client_is_told_the_external_address_and_relays_bind_the_internal_one() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let (relay, told) = client.allocated(&mut world);
    assert_eq!(told.ip(), EXTERNAL);
    assert_eq!(
        world.open[&relay],
        SocketAddr::new("10.0.0.5".parse().unwrap(), told.port())
    );
}

#[test]
fn an_allocate_that_is_sent_again_gets_the_very_same_success() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let _ = client.allocate(&mut world);
    let _ = client.refresh(&mut world, 0);
    let request = client.signed(ALLOCATE, &[&RequestedTransport::new(17), &Lifetime::new(900)]);
    let first = world.ask(client.at, &request);
    world.wait(5);
    assert_eq!(world.ask(client.at, &request), first);
    assert_eq!(world.server.allocation_count(), 1);
    assert_eq!(
        client.allocate(&mut world),
        Answer::Error(437),
        "another transaction"
    );
}

#[test]
fn wrong_credentials_are_refused_and_counted() {
    let mut world = World::new();
    for (name, password, failure) in [
        ("ann", "wrong", AuthFailure::WrongPassword),
        ("nobody", "pw", AuthFailure::UnknownUser),
        ("1893456900:eve", "wrong", AuthFailure::WrongPassword),
    ] {
        let mut client = Client::new(1000, name, password);
        assert_eq!(client.allocate(&mut world), Answer::Error(401));
        assert!(
            world.server.counters().get(Count::AuthFailures(failure)) > 0,
            "{name}"
        );
    }
    assert_eq!(world.server.allocation_count(), 0);
}

#[test]
fn credentials_end_to_the_second_and_what_was_made_with_them_goes_on() {
    let mut world = World::new();
    let (mut early, mut late) = (
        Client::with_secret(1000, "p", 60),
        Client::with_secret(1001, "p", 60),
    );
    world.wait(59);
    assert_eq!(early.allocate(&mut world), Answer::Success);
    world.wait(1);
    assert_eq!(late.allocate(&mut world), Answer::Error(401));
    assert_eq!(early.refresh(&mut world, 600), Answer::Success);
}

#[test]
fn credentials_for_one_peer_open_that_peer_only() {
    let mut world = World::new();
    let mut client = Client::with_secret(1000, "p@10.42.0.1", 60);
    assert_eq!(client.allocate(&mut world), Answer::Success);
    assert_eq!(client.permit(&mut world, peer(1)), Answer::Success);
    assert_eq!(client.permit(&mut world, peer(2)), Answer::Error(403));
    assert_eq!(client.bind(&mut world, 0x4000, peer(2)), Answer::Error(403));
}

#[test]
fn credentials_for_two_peers_open_these_only() {
    let mut world = World::new();
    let mut client = Client::with_secret(1000, "p@10.42.0.1,10.42.0.3", 60);
    assert_eq!(client.allocate(&mut world), Answer::Success);
    for (n, answer) in [
        (1, Answer::Success),
        (2, Answer::Error(403)),
        (3, Answer::Success),
    ] {
        assert_eq!(client.permit(&mut world, peer(n)), answer);
    }
}

#[test]
fn a_nonce_is_void_at_another_address_and_after_an_hour() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    assert_eq!(client.allocate(&mut world), Answer::Success);
    let mut moved = client.clone();
    moved.at.remote.set_port(1001);
    let request = moved.signed(REFRESH, &[]);
    assert_eq!(
        moved.read(&world.ask(moved.at, &request).unwrap()),
        Answer::Error(438)
    );
    world.wait(3600);
    let request = client.signed(REFRESH, &[]);
    assert_eq!(
        client.read(&world.ask(client.at, &request).unwrap()),
        Answer::Error(438)
    );
}

#[test]
fn another_user_can_not_touch_an_allocation() {
    let (mut world, mut ann) = (World::new(), Client::ann(1000));
    assert_eq!(ann.allocate(&mut world), Answer::Success);
    let mut bob = Client::new(1000, "bob", "pw");
    assert_eq!(bob.refresh(&mut world, 0), Answer::Error(441));
    assert_eq!(bob.permit(&mut world, peer(1)), Answer::Error(441));
    assert_eq!(world.server.allocation_count(), 1);
}

#[test]
fn requests_without_an_allocation_are_a_mismatch() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    assert_eq!(client.refresh(&mut world, 600), Answer::Error(437));
    assert_eq!(client.permit(&mut world, peer(1)), Answer::Error(437));
    assert_eq!(client.bind(&mut world, 0x4000, peer(1)), Answer::Error(437));
}

#[test]
fn what_an_allocate_asks_for_and_we_lack_is_said() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let udp = RequestedTransport::new(17);
    assert_eq!(client.ask(&mut world, ALLOCATE, &[]), Answer::Error(400));
    assert_eq!(
        client.ask(&mut world, ALLOCATE, &[&RequestedTransport::new(6)]),
        Answer::Error(442)
    );
    let request = client.signed(ALLOCATE, &[&udp, &DontFragment::new()]);
    let bytes = world.ask(client.at, &request).unwrap();
    let answer = Message::from_bytes(&bytes).unwrap();
    assert_eq!(answer.attribute::<ErrorCode>().unwrap().code(), 420);
    assert!(
        answer
            .attribute::<UnknownAttributes>()
            .unwrap()
            .has_attribute(DontFragment::TYPE)
    );
    assert!(answer.has_attribute(MessageIntegrity::TYPE));
    assert_eq!(world.ports_taken(), 0);
}

#[test]
fn an_allocation_lives_between_ten_minutes_and_an_hour() {
    for (asked, lives) in [(1, 600), (599, 600), (601, 601), (3600, 3600), (u32::MAX, 3600)] {
        let (mut world, mut client) = (World::new(), Client::ann(1000));
        assert_eq!(client.allocate(&mut world), Answer::Success);
        assert_eq!(client.refresh(&mut world, asked), Answer::Success);
        world.wait_and_tick(lives - 1);
        assert_eq!(world.open.len(), 1, "{asked}");
        world.wait_and_tick(1);
        assert_eq!((world.open.len(), world.ports_taken()), (0, 0), "{asked}");
    }
}

#[test]
fn a_refresh_to_zero_ends_an_allocation() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    assert_eq!(client.allocate(&mut world), Answer::Success);
    assert_eq!(client.refresh(&mut world, 0), Answer::Success);
    assert_eq!((world.open.len(), world.ports_taken()), (0, 0));
    assert_eq!(client.allocate(&mut world), Answer::Success);
}

#[test]
fn packets_go_both_ways_with_a_permission_and_none_without() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let (relay, _) = client.allocated(&mut world);
    assert_eq!(client.send(&mut world, peer(1), b"up"), Passed::Nothing);
    assert_eq!(world.peer_sends(relay, peer(1), b"down"), Passed::Nothing);
    assert_eq!(
        world
            .server
            .counters()
            .get(Count::Dropped(Direction::ToPeer, Drop::NoPermission)),
        1
    );
    assert_eq!(client.permit(&mut world, peer(1)), Answer::Success);
    assert_eq!(
        client.send(&mut world, peer(1), b"up"),
        Passed::ToPeer(relay, peer(1), b"up".to_vec())
    );
    let Passed::ToClient(to, bytes) = world.peer_sends(relay, peer(1), b"down") else {
        panic!("not passed on")
    };
    assert_eq!(to, client.at);
    assert!(Message::from_bytes(&bytes).unwrap().has_method(DATA));
}

#[test]
fn a_channel_carries_packets_with_four_bytes_in_front() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let (relay, _) = client.allocated(&mut world);
    assert_eq!(client.bind(&mut world, 0x4001, peer(1)), Answer::Success);
    assert_eq!(
        client.send_on(&mut world, 0x4001, b"up"),
        Passed::ToPeer(relay, peer(1), b"up".to_vec())
    );
    let down = Passed::ToClient(client.at, b"\x40\x01\x00\x04down".to_vec());
    assert_eq!(world.peer_sends(relay, peer(1), b"down"), down);
    let mut other_port = peer(1);
    other_port.set_port(9);
    let Passed::ToClient(_, bytes) = world.peer_sends(relay, other_port, b"down") else {
        panic!("the permission is for every port")
    };
    assert!(Message::from_bytes(&bytes).is_ok(), "but the channel is not");
}

#[test]
fn a_channel_out_of_range_or_taken_is_refused() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let _ = client.allocated(&mut world);
    assert_eq!(client.bind(&mut world, 0x3FFF, peer(1)), Answer::Error(400));
    assert_eq!(client.bind(&mut world, 0x8000, peer(1)), Answer::Error(400));
    assert_eq!(client.bind(&mut world, 0x4000, peer(1)), Answer::Success);
    assert_eq!(client.bind(&mut world, 0x4000, peer(2)), Answer::Error(400));
    assert_eq!(client.bind(&mut world, 0x4001, peer(1)), Answer::Error(400));
}

#[test]
fn a_channel_may_have_a_number_of_rfc_5766() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let (relay, _) = client.allocated(&mut world);
    for (number, n) in [(0x4FFF, 1), (0x5000, 2), (0x7FFF, 3)] {
        assert_eq!(client.bind(&mut world, number, peer(n)), Answer::Success);
        let passed = Passed::ToPeer(relay, peer(n), b"up".to_vec());
        assert_eq!(client.send_on(&mut world, number, b"up"), passed);
    }
}

#[test]
fn a_denied_peer_is_never_reached() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let _ = client.allocated(&mut world);
    for denied in [
        "127.0.0.1:80",
        "0.0.0.0:80",
        "169.254.169.254:80",
        "10.0.0.5:80",
        "9.9.9.9:50001",
    ] {
        let denied = denied.parse().unwrap();
        assert_eq!(client.permit(&mut world, denied), Answer::Error(403), "{denied}");
        assert_eq!(
            client.bind(&mut world, 0x4000, denied),
            Answer::Error(403),
            "{denied}"
        );
        assert_eq!(client.send(&mut world, denied, b"x"), Passed::Nothing);
    }
    let mapped = "[::ffff:127.0.0.1]:80".parse().unwrap();
    assert_eq!(client.permit(&mut world, mapped), Answer::Error(443));
    assert_eq!(client.ask(&mut world, CREATE_PERMISSION, &[]), Answer::Error(400));
}

#[test]
fn quotas_hold_per_user_and_in_all() {
    let mut world = World::new();
    for port in 0..4 {
        assert_eq!(
            Client::with_secret(1000 + port, "p", 60).allocate(&mut world),
            Answer::Success
        );
    }
    let again = Client::with_secret(1100, "p", 90).allocate(&mut world);
    assert_eq!(again, Answer::Error(486), "a new expiry is the same user");
    for port in 0..4 {
        assert_eq!(Client::ann(2000 + port).allocate(&mut world), Answer::Success);
    }
    assert_eq!(
        Client::new(3000, "bob", "pw").allocate(&mut world),
        Answer::Error(508)
    );
    assert_eq!(world.ports_taken(), 8);
}

#[test]
fn a_port_that_another_process_has_is_passed_over() {
    let mut world = World::new();
    world.busy = (50_000..=50_008).collect();
    let mut client = Client::ann(1000);
    // Ten tries out of ten ports may still miss the one that is free; what is tried must come back either way.
    let answers: Vec<_> = (0..20).map(|_| client.allocate(&mut world)).collect();
    let first = answers
        .iter()
        .position(|answer| *answer == Answer::Success)
        .unwrap();
    assert!(
        answers[..first]
            .iter()
            .all(|answer| *answer == Answer::Error(508))
    );
    assert_eq!(world.ports_taken(), 1);
    assert_eq!(world.open.values().next().unwrap().port(), 50_009);
}

#[test]
fn a_server_that_drains_keeps_what_it_has_and_takes_nothing_new() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let _ = client.allocated(&mut world);
    world.server.drain();
    assert_eq!(Client::ann(1001).allocate(&mut world), Answer::Error(508));
    assert_eq!(client.refresh(&mut world, 600), Answer::Success);
    assert_eq!(client.permit(&mut world, peer(1)), Answer::Success);
}

#[test]
fn unknown_methods_and_stray_answers_get_no_answer() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let request = client.signed(CONNECT, &[]);
    assert_eq!(world.ask(client.at, &request), None);
    let mut response = client.bare(BINDING, &[]);
    response[0] = 1;
    response[1] = 1;
    assert_eq!(world.ask(client.at, &response), None);
}
