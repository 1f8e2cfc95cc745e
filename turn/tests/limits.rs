//! What one user or one source may have and do, and what reloading and draining change, with a held clock.

mod common;

use std::num::NonZeroU64;

use common::{Answer, Client, LIMITS, Passed, SECRET, World, config, peer, rules};
use penstock_core::turn_rest;
use penstock_turn::core::Transport;
use penstock_turn::core::counters::{Count, Direction, Drop};
use penstock_turn::core::peers::PeerPolicy;
use penstock_turn::core::shared::{Limits, Quota};
use penstock_turn::core::throttle::Rate;
use stun_types::attribute::AlternateServer;
use stun_types::message::{BINDING, Message};
use turn_types::attribute::RequestedTransport;
use turn_types::message::ALLOCATE;

#[test]
fn a_user_has_so_many_bytes_a_second_over_all_allocations_and_both_ways() {
    let mut world = with_user(Quota {
        bytes_per_second: NonZeroU64::new(10_000),
        ..LIMITS.user
    });
    let (mut one, mut two) = (Client::ann(1000), Client::ann(1001));
    let (relay, _) = one.allocated(&mut world);
    let _ = two.allocated(&mut world);
    assert_eq!(one.bind(&mut world, 0x4000, peer(1)), Answer::Success);
    assert_eq!(two.bind(&mut world, 0x4000, peer(1)), Answer::Success);
    let payload = [7; 1000];
    for _ in 0..4 {
        assert_ne!(one.send_on(&mut world, 0x4000, &payload), Passed::Nothing);
        assert_ne!(two.send_on(&mut world, 0x4000, &payload), Passed::Nothing);
    }
    for _ in 0..2 {
        assert_ne!(world.peer_sends(relay, peer(1), &payload), Passed::Nothing);
    }
    assert_eq!(one.send_on(&mut world, 0x4000, &payload), Passed::Nothing);
    assert_eq!(world.peer_sends(relay, peer(1), &payload), Passed::Nothing);
    for direction in [Direction::ToPeer, Direction::ToClient] {
        let dropped = Count::Dropped(direction, Drop::OverRate);
        assert_eq!(world.server.counters().get(dropped), 1);
    }
    let mut bob = Client::new(1002, "bob", "pw");
    let _ = bob.allocated(&mut world);
    assert_eq!(bob.bind(&mut world, 0x4000, peer(1)), Answer::Success);
    assert_ne!(
        bob.send_on(&mut world, 0x4000, &payload),
        Passed::Nothing,
        "another user"
    );
    world.wait(1);
    assert_ne!(one.send_on(&mut world, 0x4000, &payload), Passed::Nothing);
}

#[test]
fn a_source_has_quotas_whoever_asks_from_there() {
    let source = Quota {
        allocations: 2,
        peers: 1,
        bytes_per_second: NonZeroU64::new(1000),
    };
    let mut world = World::with(|made| *made = config(Limits { source, ..LIMITS }));
    let (mut ann, mut bob) = (Client::ann(1000), Client::new(1001, "bob", "pw"));
    assert_eq!(ann.allocate(&mut world), Answer::Success);
    assert_eq!(bob.allocate(&mut world), Answer::Success);
    assert_eq!(Client::ann(1002).allocate(&mut world), Answer::Error(486));
    let mut elsewhere = Client::ann(1003);
    elsewhere.at.remote.set_ip("198.51.100.8".parse().unwrap());
    assert_eq!(elsewhere.allocate(&mut world), Answer::Success);
    assert_eq!(ann.bind(&mut world, 0x4000, peer(1)), Answer::Success);
    assert_eq!(bob.permit(&mut world, peer(2)), Answer::Error(508));
    assert_eq!(bob.bind(&mut world, 0x4000, peer(1)), Answer::Success);
    assert_ne!(ann.send_on(&mut world, 0x4000, &[7; 1000]), Passed::Nothing);
    assert_eq!(bob.send_on(&mut world, 0x4000, &[7; 1000]), Passed::Nothing);
}

#[test]
fn only_channels_that_no_rate_limits_need_not_be_asked_for_each_packet() {
    let limited = Quota {
        bytes_per_second: NonZeroU64::new(10_000),
        ..LIMITS.user
    };
    for (limits, channels) in [
        (LIMITS, 1),
        (
            Limits {
                user: limited,
                ..LIMITS
            },
            0,
        ),
        (
            Limits {
                source: limited,
                ..LIMITS
            },
            0,
        ),
    ] {
        let mut world = World::with(|made| *made = config(limits));
        let mut client = Client::ann(1000);
        let now = world.now().instant;
        assert_eq!(world.server.unlimited_channels(now, &client.at), []);
        let _ = client.allocated(&mut world);
        assert_eq!(client.bind(&mut world, 0x4000, peer(1)), Answer::Success);
        let known = world.server.unlimited_channels(now, &client.at);
        assert_eq!(known.iter().map(|(_, open)| open.len()).sum::<usize>(), channels);
    }
}

#[test]
fn a_user_reaches_so_many_peers_at_once() {
    let mut world = with_user(Quota {
        peers: 2,
        ..LIMITS.user
    });
    let (mut one, mut two) = (Client::ann(1000), Client::ann(1001));
    assert_eq!(one.allocate(&mut world), Answer::Success);
    assert_eq!(two.allocate(&mut world), Answer::Success);
    assert_eq!(one.permit(&mut world, peer(1)), Answer::Success);
    assert_eq!(two.bind(&mut world, 0x4000, peer(2)), Answer::Success);
    assert_eq!(two.permit(&mut world, peer(3)), Answer::Error(508));
    assert_eq!(one.bind(&mut world, 0x4000, peer(3)), Answer::Error(508));
    assert_eq!(two.permit(&mut world, peer(1)), Answer::Success, "known already");
    world.wait(299);
    assert_eq!(one.permit(&mut world, peer(3)), Answer::Error(508));
    world.wait(1);
    assert_eq!(one.permit(&mut world, peer(3)), Answer::Success);
}

#[test]
fn a_source_gets_so_many_answers_without_authenticating() {
    let mut world = World::with(|config| {
        config.unproven_answers = Rate {
            per_second: 2,
            burst: 5,
        };
    });
    let mut client = Client::ann(1000);
    let answered = |world: &mut World, client: &mut Client| {
        let request = client.bare(ALLOCATE, &[&RequestedTransport::new(17)]);
        world.ask(client.at, &request).is_some()
    };
    assert_eq!((0..20).filter(|_| answered(&mut world, &mut client)).count(), 5);
    let dropped = Count::Dropped(Direction::ToPeer, Drop::AnswerLimit);
    assert_eq!(world.server.counters().get(dropped), 15);
    let mut other_port = Client::ann(2000);
    assert!(!answered(&mut world, &mut other_port), "one source");
    let binding = client.bare(BINDING, &[]);
    assert_eq!(world.ask(client.at, &binding), None, "Binding too");
    let mut elsewhere = Client::ann(1000);
    elsewhere.at.remote.set_ip("198.51.100.8".parse().unwrap());
    assert!(answered(&mut world, &mut elsewhere));
    world.wait(1);
    assert_eq!((0..20).filter(|_| answered(&mut world, &mut client)).count(), 2);
}

#[test]
fn two_secrets_are_valid_at_once_and_the_old_one_no_longer_when_it_is_taken_out() {
    let mut world = World::new();
    world.server.reload(rules(&[b"south", SECRET]));
    let (mut old, mut new) = (
        Client::with_secret(1000, "p", 3600),
        Client::with_secret(1001, "p", 3600),
    );
    new.password = turn_rest::password(b"south", &new.name);
    assert_eq!(old.allocate(&mut world), Answer::Success);
    assert_eq!(new.allocate(&mut world), Answer::Success);
    world.server.reload(rules(&[b"south"]));
    assert_eq!(old.refresh(&mut world, 600), Answer::Error(401));
    assert_eq!(new.refresh(&mut world, 600), Answer::Success);
    assert_eq!(
        Client::with_secret(1002, "p", 3600).allocate(&mut world),
        Answer::Error(401)
    );
}

#[test]
fn what_new_rules_deny_is_out_of_reach_at_once() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let (relay, _) = client.allocated(&mut world);
    assert_eq!(client.bind(&mut world, 0x4000, peer(1)), Answer::Success);
    let mut stricter = rules(&[SECRET]);
    stricter.peers = PeerPolicy::new(vec!["10.42.0.2/32".parse().unwrap()], [], false);
    world.server.reload(stricter);
    assert_eq!(client.send_on(&mut world, 0x4000, b"x"), Passed::Nothing);
    assert_eq!(world.peer_sends(relay, peer(1), b"x"), Passed::Nothing);
    assert_eq!(client.permit(&mut world, peer(1)), Answer::Error(403));
    assert_eq!(client.permit(&mut world, peer(2)), Answer::Success);
}

#[test]
fn a_server_that_drains_names_another() {
    let alternate = "203.0.113.9:3478".parse().unwrap();
    let mut world = World::with(|config| config.alternates.v4 = Some(alternate));
    let mut client = Client::ann(1000);
    assert_eq!(client.allocate(&mut world), Answer::Success);
    world.server.drain();
    let mut late = Client::ann(1001);
    let udp = RequestedTransport::new(17);
    let (answer, bytes) = late.ask_raw(&mut world, ALLOCATE, &[&udp]);
    assert_eq!(answer, Answer::Error(300));
    let message = Message::from_bytes(&bytes).unwrap();
    assert_eq!(
        message.attribute::<AlternateServer>().unwrap().server(),
        alternate
    );
    assert_eq!(client.refresh(&mut world, 600), Answer::Success);
    let mut over_v6 = Client::ann(1002);
    over_v6.at.remote = "[2001:db8::7]:1002".parse().unwrap();
    assert_eq!(
        over_v6.allocate(&mut world),
        Answer::Error(508),
        "none of that family"
    );
}

#[test]
fn an_allocation_ends_with_its_connection() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    client.at.transport = Transport::Stream;
    let _ = client.allocated(&mut world);
    assert!(world.server.has_allocation(&client.at));
    world.server.client_gone(&client.at);
    let _ = world.do_commands();
    assert_eq!((world.open.len(), world.ports_taken()), (0, 0));
    assert!(!world.server.has_allocation(&client.at));
}

#[test]
fn a_flood_of_made_up_sources_costs_no_memory() {
    let mut world = World::with(|config| {
        config.unproven_answers = Rate {
            per_second: 100,
            burst: 2000,
        };
    });
    let mut client = Client::ann(1000);
    let request = client.bare(ALLOCATE, &[&RequestedTransport::new(17)]);
    let flood = |world: &mut World, first: u32| {
        for n in first..first + 20_000 {
            client.at.remote.set_ip(std::net::Ipv4Addr::from(n).into());
            let _ = world.ask(client.at, &request);
            let _ = world.client_sends(client.at, &[0x40, 0, 0, 1, 7]);
        }
    };
    let mut flood = flood;
    flood(&mut world, 1 << 24);
    let counted = allocation_counter::measure(|| flood(&mut world, 2 << 24));
    assert_eq!(counted.bytes_current, 0, "nothing is kept");
}

fn with_user(user: Quota) -> World {
    World::with(|made| *made = config(Limits { user, ..LIMITS }))
}
