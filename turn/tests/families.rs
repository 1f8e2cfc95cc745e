//! Relays of both address families, even ports and reserved ones (RFC 8656, section 7), with a held clock.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::net::SocketAddr;

use common::{Answer, Client, EXTERNAL, EXTERNAL_V6, LIMITS, Passed, World, config, peer, peer_v6};
use penstock_turn::core::counters::{Count, Direction, Drop};
use penstock_turn::core::family::{ByFamily, Family};
use penstock_turn::core::shared::{Limits, Quota};
use stun_types::AddressFamily;
use stun_types::attribute::{Attribute as _, AttributeStaticType as _, AttributeWrite, RawAttribute};
use stun_types::message::Message;
use turn_types::attribute::{
    AdditionalAddressFamily, AddressErrorCode, EvenPort, Lifetime, RequestedAddressFamily,
    RequestedTransport, ReservationToken, XorRelayedAddress,
};
use turn_types::message::{ALLOCATE, REFRESH};

#[test]
fn an_ipv6_relay_is_had_for_the_asking() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let got = allocate(&mut world, &mut client, &[&requested(AddressFamily::IPV6)]).unwrap();
    assert_eq!(got.relayed.len(), 1);
    assert_eq!(got.relayed[0].ip(), EXTERNAL_V6);
    let relay = world.only_relay();
    assert_eq!(relay.family(), Family::V6);
    assert_eq!(client.permit(&mut world, peer(1)), Answer::Error(443));
    assert_eq!(client.permit(&mut world, peer_v6(1)), Answer::Success);
    assert_eq!(
        client.send(&mut world, peer_v6(1), b"up"),
        Passed::ToPeer(relay, peer_v6(1), b"up".to_vec())
    );
    assert!(matches!(
        world.peer_sends(relay, peer_v6(1), b"down"),
        Passed::ToClient(..)
    ));
    assert_eq!(client.bind(&mut world, 0x4000, peer_v6(2)), Answer::Success);
    assert_eq!(
        client.send_on(&mut world, 0x4000, b"up"),
        Passed::ToPeer(relay, peer_v6(2), b"up".to_vec())
    );
}

#[test]
fn a_family_that_is_not_served_is_refused() {
    let mut world = World::with(|config| config.relay_ips.v6 = None);
    let mut client = Client::ann(1000);
    let v6 = requested(AddressFamily::IPV6);
    assert_eq!(allocate(&mut world, &mut client, &[&v6]), Err(440));
    let mut world = World::with(|config| config.relay_ips.v4 = None);
    assert_eq!(
        allocate(&mut world, &mut client, &[]),
        Err(440),
        "IPv4 unless told"
    );
    assert!(allocate(&mut world, &mut client, &[&v6]).is_ok());
}

#[test]
fn a_dual_allocation_has_a_relay_of_each_family() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let got = allocate(&mut world, &mut client, &[&additional(AddressFamily::IPV6)]).unwrap();
    let ips: Vec<_> = got.relayed.iter().map(SocketAddr::ip).collect();
    assert_eq!((ips, got.lacks), (vec![EXTERNAL, EXTERNAL_V6], None));
    assert_eq!(world.server.allocation_count(), 1);
    assert_eq!((world.open.len(), world.ports_taken()), (2, 2));
    for peer in [peer(1), peer_v6(1)] {
        assert_eq!(client.permit(&mut world, peer), Answer::Success);
        let Passed::ToPeer(relay, to, _) = client.send(&mut world, peer, b"up") else {
            panic!("permitted")
        };
        assert_eq!((relay.family(), to), (Family::of_socket(peer), peer));
        assert!(matches!(
            world.peer_sends(relay, peer, b"down"),
            Passed::ToClient(..)
        ));
    }
    assert_eq!(client.refresh(&mut world, 0), Answer::Success);
    assert_eq!((world.open.len(), world.ports_taken()), (0, 0));
}

#[test]
fn a_dual_allocation_makes_do_with_one_family_and_says_so() {
    for (lacking, there) in [
        (AddressFamily::IPV6, EXTERNAL),
        (AddressFamily::IPV4, EXTERNAL_V6),
    ] {
        let mut world = World::with(|config| config.relay_ips[lacking.into()] = None);
        let mut client = Client::ann(1000);
        let got = allocate(&mut world, &mut client, &[&additional(AddressFamily::IPV6)]).unwrap();
        assert_eq!(got.lacks, Some((lacking, 440)));
        assert_eq!(
            got.relayed.iter().map(SocketAddr::ip).collect::<Vec<_>>(),
            [there]
        );
    }
    let mut world = World::with(|config| config.relay_ips = ByFamily::default());
    let got = allocate(
        &mut world,
        &mut Client::ann(1000),
        &[&additional(AddressFamily::IPV6)],
    );
    assert_eq!(got, Err(440));
}

#[test]
fn a_dual_allocation_whose_second_port_can_not_be_had_says_so() {
    let mut world = World::new();
    world.busy_v6 = true;
    let mut client = Client::ann(1000);
    let got = allocate(&mut world, &mut client, &[&additional(AddressFamily::IPV6)]).unwrap();
    assert_eq!(got.lacks, Some((AddressFamily::IPV6, 508)));
    assert_eq!((world.open.len(), world.ports_taken()), (1, 1));
}

#[test]
fn one_family_of_two_is_refreshed_and_ended_alone() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    allocate(&mut world, &mut client, &[&additional(AddressFamily::IPV6)]).unwrap();
    assert_eq!(client.bind(&mut world, 0x4000, peer(1)), Answer::Success);
    assert_eq!(client.bind(&mut world, 0x4001, peer_v6(1)), Answer::Success);
    let v4_longer: [&dyn AttributeWrite; 2] = [&Lifetime::new(1200), &requested(AddressFamily::IPV4)];
    assert_eq!(client.ask(&mut world, REFRESH, &v4_longer), Answer::Success);
    world.wait_and_tick(599);
    assert_eq!(world.open.len(), 2);
    world.wait_and_tick(1);
    assert_eq!((world.open.len(), world.ports_taken()), (1, 1), "IPv6 is over");
    assert_eq!(client.send_on(&mut world, 0x4001, b"x"), Passed::Nothing);
    assert_eq!(client.permit(&mut world, peer_v6(1)), Answer::Error(443));
    let end_v6: [&dyn AttributeWrite; 2] = [&Lifetime::new(0), &requested(AddressFamily::IPV6)];
    assert_eq!(client.ask(&mut world, REFRESH, &end_v6), Answer::Error(443));
    assert_eq!(client.permit(&mut world, peer(1)), Answer::Success);
    world.wait_and_tick(600);
    assert_eq!((world.open.len(), world.server.allocation_count()), (0, 0));
}

#[test]
fn what_is_closed_of_two_takes_its_peers_along() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    allocate(&mut world, &mut client, &[&additional(AddressFamily::IPV6)]).unwrap();
    assert_eq!(client.bind(&mut world, 0x4000, peer(1)), Answer::Success);
    assert_eq!(client.bind(&mut world, 0x4001, peer_v6(1)), Answer::Success);
    let end_v4: [&dyn AttributeWrite; 2] = [&Lifetime::new(0), &requested(AddressFamily::IPV4)];
    assert_eq!(client.ask(&mut world, REFRESH, &end_v4), Answer::Success);
    assert_eq!(client.send_on(&mut world, 0x4000, b"x"), Passed::Nothing);
    assert!(matches!(
        client.send_on(&mut world, 0x4001, b"x"),
        Passed::ToPeer(..)
    ));
}

#[test]
fn a_packet_for_a_peer_of_the_other_family_goes_nowhere() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let _ = client.allocated(&mut world);
    assert_eq!(client.send(&mut world, peer_v6(1), b"x"), Passed::Nothing);
    let dropped = Count::Dropped(Direction::ToPeer, Drop::WrongFamily);
    assert_eq!(world.server.counters().get(dropped), 1);
}

#[test]
fn denied_peers_are_denied_in_every_disguise_over_ipv6() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    allocate(&mut world, &mut client, &[&requested(AddressFamily::IPV6)]).unwrap();
    for (ip, code) in [
        ("::1", 403),
        ("::", 403),
        ("fe80::1", 403),
        ("fd00::5", 403),
        ("2a00:9::9", 403),
        ("64:ff9b::10.0.0.5", 403),
        ("64:ff9b::127.0.0.1", 403),
        ("2002:7f00:1::1", 403),
        ("2002:a00:5::1", 403),
        ("::127.0.0.1", 403),
        ("::ffff:127.0.0.1", 443),
        ("::ffff:8.8.8.8", 443),
    ] {
        let denied = SocketAddr::new(ip.parse().unwrap(), 80);
        assert_eq!(client.permit(&mut world, denied), Answer::Error(code), "{ip}");
        assert_eq!(
            client.bind(&mut world, 0x4000, denied),
            Answer::Error(code),
            "{ip}"
        );
        assert_eq!(client.send(&mut world, denied, b"x"), Passed::Nothing, "{ip}");
    }
    let public = "[2606:4700::1]:80".parse().unwrap();
    assert_eq!(client.permit(&mut world, public), Answer::Success);
}

#[test]
fn an_even_port_with_its_neighbour_under_a_token() {
    let (mut world, mut rtp) = (World::new(), Client::ann(1000));
    let got = allocate(&mut world, &mut rtp, &[&EvenPort::new(true)]).unwrap();
    let (port, token) = (got.relayed[0].port(), got.token.unwrap());
    assert!(port.is_multiple_of(2));
    assert_eq!(world.ports_taken(), 2);
    let token = ReservationToken::new(token);
    assert_eq!(
        allocate(&mut world, &mut Client::new(1001, "bob", "pw"), &[&token]),
        Err(508),
        "another user's"
    );
    world.wait(29);
    let mut rtcp = Client::ann(1002);
    let got = allocate(&mut world, &mut rtcp, &[&token]).unwrap();
    assert_eq!(got.relayed[0].port(), port + 1);
    assert_eq!(
        allocate(&mut world, &mut Client::ann(1003), &[&token]),
        Err(508),
        "used up"
    );
    assert_eq!(rtp.refresh(&mut world, 0), Answer::Success);
    assert_eq!(rtcp.refresh(&mut world, 0), Answer::Success);
    assert_eq!((world.open.len(), world.ports_taken()), (0, 0));
}

#[test]
fn a_reserved_port_is_free_after_thirty_seconds() {
    let (mut world, mut rtp) = (World::new(), Client::ann(1000));
    let got = allocate(&mut world, &mut rtp, &[&EvenPort::new(true)]).unwrap();
    world.wait(30);
    assert_eq!(world.ports_taken(), 1);
    let token = ReservationToken::new(got.token.unwrap());
    assert_eq!(allocate(&mut world, &mut Client::ann(1001), &[&token]), Err(508));
}

#[test]
fn a_reserved_port_that_another_process_has_is_said() {
    let (mut world, mut rtp) = (World::new(), Client::ann(1000));
    let got = allocate(&mut world, &mut rtp, &[&EvenPort::new(true)]).unwrap();
    world.busy.insert(got.relayed[0].port() + 1);
    let token = ReservationToken::new(got.token.unwrap());
    assert_eq!(allocate(&mut world, &mut Client::ann(1001), &[&token]), Err(508));
    assert_eq!((world.open.len(), world.ports_taken()), (1, 1));
}

#[test]
fn a_pair_whose_port_is_taken_is_looked_for_elsewhere() {
    let mut world = World::new();
    world.busy = (50_000..=50_006).collect();
    let mut client = Client::ann(1000);
    let got = (0..50).find_map(|_| allocate(&mut world, &mut client, &[&EvenPort::new(true)]).ok());
    let got = got.unwrap();
    assert_eq!(got.relayed[0].port(), 50_008);
    assert_eq!(world.ports_taken(), 2);
}

#[test]
fn a_port_is_reserved_within_the_quota() {
    let user = Quota {
        allocations: 2,
        ..LIMITS.user
    };
    let mut world = World::with(|made| {
        *made = config(Limits {
            user,
            fixed_user: user,
            ..LIMITS
        })
    });
    allocate(&mut world, &mut Client::ann(1000), &[&EvenPort::new(true)]).unwrap();
    assert_eq!(allocate(&mut world, &mut Client::ann(1001), &[]), Err(486));
    world.wait(30);
    assert_eq!(
        allocate(&mut world, &mut Client::ann(1001), &[&EvenPort::new(true)]),
        Err(486)
    );
    assert!(allocate(&mut world, &mut Client::ann(1001), &[]).is_ok());
}

#[test]
fn attributes_that_do_not_go_together_are_a_bad_request() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let (v4, v6) = (AddressFamily::IPV4, AddressFamily::IPV6);
    let token = ReservationToken::new(7);
    let cases: [&[&dyn AttributeWrite]; 6] = [
        &[&RawAttribute::new(AdditionalAddressFamily::TYPE, &[1, 0, 0, 0])],
        &[&additional(v6), &requested(v4)],
        &[&additional(v6), &EvenPort::new(true)],
        &[&token, &EvenPort::new(false)],
        &[&token, &requested(v6)],
        &[&token, &additional(v6)],
    ];
    for case in cases {
        assert_eq!(allocate(&mut world, &mut client, case), Err(400), "{case:?}");
    }
    assert_eq!((world.ports_taken(), world.server.allocation_count()), (0, 0));
}

#[derive(Debug, PartialEq, Eq)]
struct Got {
    relayed: Vec<SocketAddr>,
    token: Option<u64>,
    lacks: Option<(AddressFamily, u16)>,
}

/// The success, or the error's code.
fn allocate(world: &mut World, client: &mut Client, also: &[&dyn AttributeWrite]) -> Result<Got, u16> {
    let udp = RequestedTransport::new(17);
    let attributes: Vec<&dyn AttributeWrite> =
        std::iter::once(&udp as _).chain(also.iter().copied()).collect();
    let (answer, bytes) = client.ask_raw(world, ALLOCATE, &attributes);
    if let Answer::Error(code) = answer {
        return Err(code);
    }
    let message = Message::from_bytes(&bytes).unwrap();
    let transaction = message.transaction_id();
    let relayed = message
        .iter_attributes()
        .filter(|(_, raw)| raw.get_type() == XorRelayedAddress::TYPE)
        .map(|(_, raw)| XorRelayedAddress::try_from(&raw).unwrap().addr(transaction))
        .collect();
    let lacks = message.attribute::<AddressErrorCode>().ok();
    Ok(Got {
        relayed,
        token: message
            .attribute::<ReservationToken>()
            .ok()
            .map(|token| token.token()),
        lacks: lacks.map(|lacks| (lacks.family(), lacks.error().code())),
    })
}

fn requested(family: AddressFamily) -> RequestedAddressFamily {
    RequestedAddressFamily::new(family)
}

fn additional(family: AddressFamily) -> AdditionalAddressFamily {
    AdditionalAddressFamily::new(family)
}
