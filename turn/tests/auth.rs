//! Who may use the server and whom they reach, by their names; what limits guessing; and what of this stands in answers.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use common::{Answer, BEGAN_UNIX, Client, REALM, SECRET, World, peer, peer_v6, throttle};
use penstock_core::turn_rest;
use penstock_turn::core::Source;
use penstock_turn::core::auth::{Guesser, SHARES};
use penstock_turn::core::counters::{Count, Direction, Drop};
use stun_types::AddressFamily;
use stun_types::attribute::{
    AttributeStaticType as _, ErrorCode, Fingerprint, MessageIntegrity, MessageIntegritySha256, Nonce, Realm,
    Software, UnknownAttributes, Username,
};
use stun_types::message::{
    BINDING, IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageIntegrityCredentials,
    MessageWrite as _, MessageWriteExt as _, MessageWriteVec, Method,
};
use turn_types::attribute::{Lifetime, RequestedAddressFamily, RequestedTransport};
use turn_types::message::{ALLOCATE, REFRESH};

#[test]
fn credentials_are_taken_wherever_their_time_stands() {
    let later = BEGAN_UNIX.as_secs() + 60;
    for name in [
        format!("{later}:p"),
        format!("p:{later}"),
        format!("{later}"),
        format!("{later}:@alice:example.org"),
        format!("{later}:alice@example.org"),
    ] {
        let mut world = World::new();
        let mut client = of_secret(&name);
        assert_eq!(client.allocate(&mut world), Answer::Success, "{name}");
        assert_eq!(client.permit(&mut world, peer(1)), Answer::Success, "{name}");
        assert_eq!(client.permit(&mut world, peer(2)), Answer::Success, "{name}");
        let over = name.replace(&later.to_string(), &BEGAN_UNIX.as_secs().to_string());
        assert_eq!(
            of_secret(&over).allocate(&mut World::new()),
            Answer::Error(401),
            "{over}"
        );
    }
}

#[test]
fn a_peer_that_is_written_wrong_opens_nothing() {
    for peer in ["10.42.0", "10.42.0.1:4000", "10.42.0.1,", "fd42::1::2", ""] {
        let mut client = Client::with_secret(1000, &format!("p@{peer}"), 60);
        assert_eq!(client.allocate(&mut World::new()), Answer::Error(401), "{peer}");
    }
}

#[test]
fn credentials_for_a_peer_over_ipv6_open_that_peer_only() {
    for who in ["p@fd42::1", "p@10.42.0.1,fd42::1"] {
        let (mut world, mut client) = (World::new(), Client::with_secret(1000, who, 60));
        let v6 = RequestedAddressFamily::new(AddressFamily::IPV6);
        let answer = client.ask(&mut world, ALLOCATE, &[&RequestedTransport::new(17), &v6]);
        assert_eq!(answer, Answer::Success);
        assert_eq!(client.permit(&mut world, peer_v6(1)), Answer::Success);
        assert_eq!(client.permit(&mut world, peer_v6(2)), Answer::Error(403));
        assert_eq!(client.bind(&mut world, 0x4000, peer_v6(2)), Answer::Error(403));
    }
}

#[test]
fn a_user_that_never_ends_is_bound_to_its_peer_too() {
    let mut world = with_users(&["bot@10.42.0.1", "ann@example.org", "bot@10.42"]);
    let mut bot = Client::new(1000, "bot@10.42.0.1", "pw");
    assert_eq!(bot.allocate(&mut world), Answer::Success);
    assert_eq!(bot.permit(&mut world, peer(1)), Answer::Success);
    assert_eq!(bot.permit(&mut world, peer(2)), Answer::Error(403));
    let mut ann = Client::new(1001, "ann@example.org", "pw");
    assert_eq!(ann.allocate(&mut world), Answer::Success);
    assert_eq!(ann.permit(&mut world, peer(2)), Answer::Success);
    let mut half = Client::new(1002, "bot@10.42", "pw");
    assert_eq!(half.allocate(&mut world), Answer::Error(401));
}

#[test]
fn guessing_a_password_ends_soon() {
    let mut world = with_failures(3);
    let mut guesser = Client::new(1001, "ann", "wrong");
    let answers = [(); 6].map(|()| guesser.allocate(&mut world));
    assert_eq!(answers[..3], [(); 3].map(|()| Answer::Error(401)));
    assert_eq!(answers[3..], [(); 3].map(|()| Answer::None));
    guesser.password = "pw".to_owned();
    assert_eq!(
        guesser.allocate(&mut world),
        Answer::None,
        "nor is a right one told"
    );
    let dropped = Count::Dropped(Direction::ToPeer, Drop::AuthLimit);
    assert_eq!(world.server.counters().get(dropped), 4);
    world.wait(1);
    assert_eq!(guesser.allocate(&mut world), Answer::Success);
}

#[test]
fn who_guesses_stands_in_the_way_of_no_other_user_behind_the_same_nat() {
    let mut world = with_failures(3);
    let mut ann = Client::ann(1000);
    assert_eq!(ann.allocate(&mut world), Answer::Success);
    let mut guesser = Client::new(1001, "ann", "wrong");
    let _ = [(); 4].map(|()| guesser.allocate(&mut world));
    assert_eq!(guesser.allocate(&mut world), Answer::None);

    let mut new = Client::new(1002, "bob", "pw");
    let challenge = new.bare(ALLOCATE, &[&RequestedTransport::new(17)]);
    let challenge = world.ask(new.at, &challenge).unwrap();
    assert_eq!(new.read(&challenge), Answer::Error(401));
    assert_eq!(new.allocate(&mut world), Answer::Success);
    let mut same_user = Client::ann(1003);
    let challenge = same_user.bare(ALLOCATE, &[&RequestedTransport::new(17)]);
    assert!(
        world.ask(same_user.at, &challenge).is_some(),
        "challenged, as all are"
    );
    assert_eq!(
        ann.refresh(&mut world, 600),
        Answer::Success,
        "it has an allocation"
    );
    let mut elsewhere = Client::ann(1004);
    elsewhere.at.remote.set_ip("198.51.100.8".parse().unwrap());
    assert_eq!(elsewhere.allocate(&mut world), Answer::Success);
}

#[test]
fn who_has_an_allocation_may_not_guess_at_others_from_there() {
    let mut world = with_failures(3);
    let mut bob = Client::new(1000, "bob", "pw");
    assert_eq!(bob.allocate(&mut world), Answer::Success);
    let mut guesser = Client::new(1000, "ann", "wrong");
    let answered = (0..20).filter(|_| guesser.refresh(&mut world, 600) != Answer::None);
    assert_eq!(answered.count(), 3);
    assert_eq!(bob.refresh(&mut world, 600), Answer::Success);
}

#[test]
fn made_up_names_are_checked_so_often_all_together() {
    let mut world = with_failures(3);
    let mut client = Client::new(1000, "", "wrong");
    let checked = (0..5000).filter(|n| {
        client.name = format!("1893456900:{n}");
        client.allocate(&mut world) != Answer::None
    });
    assert_eq!(checked.count() as u64, 3 * SHARES);
}

#[test]
fn names_have_shares_of_a_source_each() {
    let at = |ip: &str| Source::of(ip.parse().unwrap());
    let here = at("192.0.2.1");
    assert_eq!(Guesser::new(here, "ann"), Guesser::new(here, "ann"));
    assert_ne!(Guesser::new(here, "ann"), Guesser::new(here, "bob"));
    assert_ne!(Guesser::new(here, "ann"), Guesser::new(at("192.0.2.2"), "ann"));
}

#[test]
fn an_answer_has_a_fingerprint_if_the_request_had_one() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    assert_eq!(client.allocate(&mut world), Answer::Success);
    for method in [BINDING, ALLOCATE, REFRESH] {
        for signed in [true, false] {
            for fingerprint in [true, false] {
                let integrity = signed.then_some(IntegrityAlgorithm::Sha1);
                let request = request(&mut client, method, integrity.as_slice(), fingerprint);
                let bytes = world.ask(client.at, &request).unwrap();
                let answer = Message::from_bytes(&bytes).unwrap();
                assert_eq!(answer.has_attribute(Fingerprint::TYPE), fingerprint, "{method:?}");
            }
        }
    }
}

#[test]
fn answers_to_who_has_authenticated_say_what_we_are() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let says = |bytes: &[u8]| Message::from_bytes(bytes).unwrap().has_attribute(Software::TYPE);
    let (challenge, bytes) = {
        let request = client.bare(ALLOCATE, &[&RequestedTransport::new(17)]);
        let bytes = world.ask(client.at, &request).unwrap();
        (client.read(&bytes), bytes)
    };
    assert_eq!((challenge, says(&bytes)), (Answer::Error(401), false));
    for (method, answer) in [
        (ALLOCATE, Answer::Success),
        (ALLOCATE, Answer::Error(437)),
        (REFRESH, Answer::Success),
    ] {
        let told = client.ask_raw(&mut world, method, &[&RequestedTransport::new(17)]);
        assert_eq!((told.0, says(&told.1)), (answer, true), "{method:?}");
    }
    let binding = client.bare(BINDING, &[]);
    assert!(!says(&world.ask(client.at, &binding).unwrap()));
}

#[test]
fn message_integrity_sha256_is_not_known_and_passed_over_beside_the_other() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let _ = client.refresh(&mut world, 600);
    for method in [ALLOCATE, BINDING] {
        let request = request(&mut client, method, &[IntegrityAlgorithm::Sha256], true);
        let bytes = world.ask(client.at, &request).unwrap();
        let answer = Message::from_bytes(&bytes).unwrap();
        assert_eq!(answer.attribute::<ErrorCode>().unwrap().code(), 420);
        let unknown = answer.attribute::<UnknownAttributes>().unwrap();
        assert!(unknown.has_attribute(MessageIntegritySha256::TYPE));
        assert!(!answer.has_attribute(MessageIntegrity::TYPE));
    }
    let both = [IntegrityAlgorithm::Sha1, IntegrityAlgorithm::Sha256];
    let request = request(&mut client, ALLOCATE, &both, true);
    let bytes = world.ask(client.at, &request).unwrap();
    assert_eq!(client.read(&bytes), Answer::Success);
}

#[test]
fn unknown_integrity_is_answered_no_more_often_than_none() {
    let mut world = World::with(|config| {
        config.unproven_answers = throttle(1, 2);
    });
    let mut client = Client::ann(1000);
    let answered = (0..5).filter(|_| {
        let request = request(&mut client, ALLOCATE, &[IntegrityAlgorithm::Sha256], true);
        world.ask(client.at, &request).is_some()
    });
    assert_eq!(answered.count(), 2);
}

/// An Allocate, Refresh or Binding request with these attributes of integrity, the way clients write them.
fn request(
    client: &mut Client,
    method: Method,
    integrity: &[IntegrityAlgorithm],
    fingerprint: bool,
) -> Vec<u8> {
    let udp = RequestedTransport::new(17);
    let bytes = match method {
        ALLOCATE => client.bare(method, &[&udp]),
        REFRESH => client.bare(method, &[&Lifetime::new(600)]),
        _ => client.bare(method, &[]),
    };
    let bare = Message::from_bytes(&bytes).unwrap();
    let mut message = Message::builder(bare.get_type(), bare.transaction_id(), MessageWriteVec::new());
    for (_, attribute) in bare.iter_attributes() {
        message.add_attribute(&attribute).unwrap();
    }
    if !integrity.is_empty() {
        message
            .add_attribute(&Username::new(&client.name).unwrap())
            .unwrap();
        message.add_attribute(&Realm::new(REALM).unwrap()).unwrap();
        message
            .add_attribute(&Nonce::new(&client.nonce).unwrap())
            .unwrap();
    }
    let key: MessageIntegrityCredentials =
        LongTermKeyCredentials::new(client.name.clone(), client.password.clone(), REALM.to_owned()).into();
    for algorithm in integrity {
        message.add_message_integrity(&key, *algorithm).unwrap();
    }
    if fingerprint {
        message.add_fingerprint().unwrap();
    }
    message.finish()
}

fn of_secret(name: &str) -> Client {
    Client::new(1000, name, &turn_rest::password(SECRET, name))
}

fn with_users(names: &[&str]) -> World {
    World::with(|config| {
        let users = names.iter().map(|name| ((*name).to_owned(), "pw".to_owned()));
        config.rules.users.fixed.extend(users);
    })
}

/// A world where so many failures may come at once, and one a second.
fn with_failures(burst: u32) -> World {
    World::with(|config| config.auth_failures = throttle(1, burst))
}
