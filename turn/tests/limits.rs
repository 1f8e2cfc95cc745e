//! What one user or one source may have and do, and what reloading and draining change, with a held clock.

mod common;

use std::num::NonZeroU64;

use common::{Answer, Client, LIMITS, Passed, SECRET, World, config, peer, peer_v6, rules, throttle};
use penstock_core::turn_rest;
use penstock_turn::core::Transport;
use penstock_turn::core::allocation::MAX_PEERS;
use penstock_turn::core::counters::{Count, Direction, Drop};
use penstock_turn::core::family::Family;
use penstock_turn::core::peers::PeerPolicy;
use penstock_turn::core::shared::{Limits, Quota};
use stun_types::attribute::{AlternateServer, AttributeWrite};
use stun_types::message::{BINDING, Message};
use turn_types::attribute::{AdditionalAddressFamily, EvenPort, RequestedTransport, ReservationToken};
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
    // 1000 with its headers.
    let payload = [7; 972];
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
    assert_eq!(elsewhere(1003).allocate(&mut world), Answer::Success);
    assert_eq!(ann.bind(&mut world, 0x4000, peer(1)), Answer::Success);
    assert_eq!(bob.permit(&mut world, peer(2)), Answer::Error(508));
    assert_eq!(bob.bind(&mut world, 0x4000, peer(1)), Answer::Success);
    assert_ne!(ann.send_on(&mut world, 0x4000, &[7; 1000]), Passed::Nothing);
    assert_eq!(bob.send_on(&mut world, 0x4000, &[7; 1000]), Passed::Nothing);
}

#[test]
fn who_allocates_again_finds_the_bandwidth_that_was_left() {
    let limited = Quota {
        bytes_per_second: NonZeroU64::new(1000),
        ..LIMITS.user
    };
    for limits in [
        of_users(limited),
        Limits {
            source: limited,
            ..LIMITS
        },
    ] {
        let mut world = World::with(|made| *made = config(limits));
        let mut client = Client::ann(1000);
        let mut passed = 0;
        for _ in 0..5 {
            let _ = client.allocated(&mut world);
            assert_eq!(client.bind(&mut world, 0x4000, peer(1)), Answer::Success);
            let left = client.send_on(&mut world, 0x4000, &[7; 900]);
            passed += usize::from(left != Passed::Nothing);
            assert_eq!(client.refresh(&mut world, 0), Answer::Success);
        }
        assert_eq!(passed, 1);
        world.wait(1);
        let _ = client.allocated(&mut world);
        assert_eq!(client.bind(&mut world, 0x4000, peer(1)), Answer::Success);
        assert_ne!(client.send_on(&mut world, 0x4000, &[7; 900]), Passed::Nothing);
    }
}

#[test]
fn who_redeems_the_last_thing_it_holds_finds_the_bandwidth_that_was_left() {
    let mut world = with_user(Quota {
        bytes_per_second: NonZeroU64::new(1000),
        ..LIMITS.user
    });
    let mut client = Client::ann(1000);
    let udp = RequestedTransport::new(17);
    let _ = client.refresh(&mut world, 0);
    let (answer, bytes) = client.ask_raw(&mut world, ALLOCATE, &[&udp, &EvenPort::new(true)]);
    assert_eq!(answer, Answer::Success);
    let message = Message::from_bytes(&bytes).unwrap();
    let token = message.attribute::<ReservationToken>().unwrap();
    assert_eq!(client.bind(&mut world, 0x4000, peer(1)), Answer::Success);
    assert_ne!(client.send_on(&mut world, 0x4000, &[7; 900]), Passed::Nothing);
    assert_eq!(client.refresh(&mut world, 0), Answer::Success);
    assert_eq!(client.ask(&mut world, ALLOCATE, &[&udp, &token]), Answer::Success);
    assert_eq!(client.bind(&mut world, 0x4000, peer(1)), Answer::Success);
    assert_eq!(client.send_on(&mut world, 0x4000, &[7; 900]), Passed::Nothing);
}

#[test]
fn a_packet_costs_its_headers_too() {
    for (address, headers) in [(peer(1), 28), (peer_v6(1), 48)] {
        let mut world = with_user(Quota {
            bytes_per_second: NonZeroU64::new(10 * headers),
            ..LIMITS.user
        });
        let mut client = Client::ann(1000);
        let family = AdditionalAddressFamily::new(Family::V6.into());
        let both: [&dyn AttributeWrite; 2] = [&RequestedTransport::new(17), &family];
        let _ = client.refresh(&mut world, 0);
        assert_eq!(client.ask(&mut world, ALLOCATE, &both), Answer::Success);
        let relay = *world
            .open
            .iter()
            .find(|(_, bind)| bind.is_ipv4() == address.is_ipv4())
            .unwrap()
            .0;
        assert_eq!(client.bind(&mut world, 0x4000, address), Answer::Success);
        let up = (0..5).filter(|_| client.send_on(&mut world, 0x4000, b"") != Passed::Nothing);
        assert_eq!(up.count(), 5);
        let down = (0..200).filter(|_| world.peer_sends(relay, address, b"") != Passed::Nothing);
        assert_eq!(down.count(), 5, "200 empty ones of {address}");
        assert_eq!(client.send_on(&mut world, 0x4000, b""), Passed::Nothing);
    }
}

#[test]
fn what_the_source_may_not_send_is_not_drawn_from_the_user() {
    let rate = |bytes| Quota {
        bytes_per_second: NonZeroU64::new(bytes),
        ..LIMITS.user
    };
    let limits = Limits {
        source: rate(1000),
        ..of_users(rate(2000))
    };
    let mut world = World::with(|made| *made = config(limits));
    let (mut here, mut there) = (Client::ann(1000), elsewhere(1001));
    for client in [&mut here, &mut there] {
        let _ = client.allocated(&mut world);
        assert_eq!(client.bind(&mut world, 0x4000, peer(1)), Answer::Success);
    }
    let passed = (0..20).filter(|_| here.send_on(&mut world, 0x4000, &[7; 472]) != Passed::Nothing);
    assert_eq!(passed.count(), 2);
    let passed = (0..20).filter(|_| there.send_on(&mut world, 0x4000, &[7; 472]) != Passed::Nothing);
    assert_eq!(passed.count(), 2, "the user has half of its own left");
}

#[test]
fn a_peer_that_was_refused_does_not_count() {
    let mut world = with_user(Quota {
        peers: 2,
        ..LIMITS.user
    });
    let mut client = Client::ann(1000);
    assert_eq!(client.allocate(&mut world), Answer::Success);
    assert_eq!(client.bind(&mut world, 0x4000, peer(1)), Answer::Success);
    assert_eq!(client.bind(&mut world, 0x4000, peer(2)), Answer::Error(400));
    assert_eq!(client.permit(&mut world, peer(3)), Answer::Success);
    assert_eq!(client.permit(&mut world, peer(2)), Answer::Error(508));
}

#[test]
fn a_peer_beyond_what_one_allocation_may_have_does_not_count() {
    let mut world = with_user(Quota {
        peers: MAX_PEERS + 1,
        ..LIMITS.user
    });
    let (mut full, mut other) = (Client::ann(1000), Client::ann(1001));
    assert_eq!(full.allocate(&mut world), Answer::Success);
    assert_eq!(other.allocate(&mut world), Answer::Success);
    for n in 0..MAX_PEERS as u8 {
        assert_eq!(full.permit(&mut world, peer(n)), Answer::Success);
    }
    assert_eq!(full.permit(&mut world, peer(100)), Answer::Error(508));
    assert_eq!(full.bind(&mut world, 0x4000, peer(101)), Answer::Error(508));
    assert_eq!(other.permit(&mut world, peer(102)), Answer::Success);
}

#[test]
fn only_channels_that_no_rate_limits_need_not_be_asked_for_each_packet() {
    let limited = Quota {
        bytes_per_second: NonZeroU64::new(10_000),
        ..LIMITS.user
    };
    for (limits, channels) in [
        (LIMITS, 1),
        (of_users(limited), 0),
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
fn what_is_refused_holds_nothing() {
    let udp = RequestedTransport::new(17);
    let pair = EvenPort::new(true);
    let both = AdditionalAddressFamily::new(Family::V6.into());
    let unknown = ReservationToken::new(12_345);
    let one = of_users(Quota {
        allocations: 1,
        ..LIMITS.user
    });
    let total = Limits { total: 1, ..LIMITS };
    let ports = Limits { ports: 1, ..LIMITS };
    let all = 50_000..50_010;
    // The limits, the ports of other processes, whether all of IPv6 are theirs, what is asked for, the answer, what is
    // held then.
    type Case<'a> = (
        Limits,
        std::ops::Range<u16>,
        bool,
        Vec<&'a dyn AttributeWrite>,
        Answer,
        (usize, usize),
    );
    let cases: [Case<'_>; 9] = [
        (one, 0..0, false, vec![&pair], Answer::Error(486), (0, 0)),
        (total, 0..0, false, vec![&pair], Answer::Error(508), (0, 0)),
        (ports, 0..0, false, vec![&pair], Answer::Error(508), (0, 0)),
        (LIMITS, all.clone(), false, vec![], Answer::Error(508), (0, 0)),
        (
            LIMITS,
            all.clone(),
            false,
            vec![&pair],
            Answer::Error(508),
            (0, 0),
        ),
        (LIMITS, all, true, vec![&both], Answer::Error(508), (0, 0)),
        (LIMITS, 0..0, false, vec![&unknown], Answer::Error(508), (0, 0)),
        // Half of what was asked for.
        (LIMITS, 0..0, true, vec![&both], Answer::Success, (1, 1)),
        (ports, 0..0, false, vec![&both], Answer::Success, (1, 1)),
    ];
    for (number, (limits, busy, busy_v6, more, expected, kept)) in cases.into_iter().enumerate() {
        let mut world = World::with(|made| *made = config(limits));
        world.busy.extend(busy);
        world.busy_v6 = busy_v6;
        let mut client = Client::ann(1000);
        let _ = client.refresh(&mut world, 0);
        let attributes = [&[&udp as &dyn AttributeWrite][..], &more].concat();
        let held = |world: &World| (world.shared.held(world.now().instant), world.ports_taken());
        assert_eq!(
            client.ask(&mut world, ALLOCATE, &attributes),
            expected,
            "{number}"
        );
        assert_eq!(held(&world), kept, "{number}");
        let _ = client.refresh(&mut world, 0);
        assert_eq!(held(&world), (0, 0), "{number}");
    }
}

#[test]
fn a_user_who_stands_for_everybody_has_limits_of_its_own() {
    let mut world = World::with(|made| {
        *made = config(Limits {
            user: Quota {
                allocations: 1,
                ..LIMITS.user
            },
            fixed_user: Quota::default(),
            ..LIMITS
        });
    });
    for port in 1000..1005 {
        assert_eq!(Client::ann(port).allocate(&mut world), Answer::Success);
    }
    // Of the same name, and not the same user.
    let mut expiring = [2000, 2001].map(|port| Client::with_secret(port, "ann", 3600));
    assert_eq!(expiring[0].allocate(&mut world), Answer::Success);
    assert_eq!(expiring[1].allocate(&mut world), Answer::Error(486));
}

#[test]
fn a_source_gets_so_many_answers_without_authenticating() {
    let mut world = World::with(|config| {
        config.unproven_answers = throttle(2, 5);
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
    assert!(answered(&mut world, &mut elsewhere(1000)));
    world.wait(1);
    assert_eq!((0..20).filter(|_| answered(&mut world, &mut client)).count(), 2);
}

#[test]
fn all_shards_count_for_a_source_together() {
    let mut made = config(LIMITS);
    made.unproven_answers = throttle(1, 8);
    made.auth_failures = throttle(1, 3);
    let mut shards = [(); 2].map(|()| World::with(|config| *config = made.clone()));
    let mut guesser = Client::new(1000, "ann", "wrong");
    for shard in [0, 1, 0] {
        assert_eq!(guesser.allocate(&mut shards[shard]), Answer::Error(401));
    }
    let request = Client::ann(1001).bare(BINDING, &[]);
    let (mut answered, from) = (0, elsewhere(1001).at);
    for world in &mut shards {
        let right = Client::ann(1002).allocate(world);
        assert_eq!(right, Answer::None, "guessed too often");
        answered += (0..10).filter(|_| world.ask(from, &request).is_some()).count();
    }
    assert_eq!(answered, 8);
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
        config.unproven_answers = throttle(100, 2000);
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
    World::with(|made| *made = config(of_users(user)))
}

/// From another address.
fn elsewhere(port: u16) -> Client {
    let mut client = Client::ann(port);
    client.at.remote.set_ip([198, 51, 100, 8].into());
    client
}

/// For all users alike.
fn of_users(user: Quota) -> Limits {
    Limits {
        user,
        fixed_user: user,
        ..LIMITS
    }
}
