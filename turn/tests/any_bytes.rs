//! Whatever comes in, the server neither panics nor answers more than once; and what the fuzz targets check.
#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "what is shared with the fuzz targets fails its test by panics, and its clock is held from any instant"
)]

mod common;
#[path = "../fuzz/conversation.rs"]
mod conversation;
#[path = "../fuzz/framing.rs"]
mod framing;

use common::{Client, World, peer};
use penstock_turn::core::wire::{classify, length_in_stream};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use turn_types::attribute::RequestedTransport;
use turn_types::message::ALLOCATE;

/// Arbitrary bytes, and bytes that pass for STUN's header.
fn datagrams() -> impl Strategy<Value = Vec<u8>> {
    let any_bytes = proptest::collection::vec(any::<u8>(), 0..200);
    let like_stun =
        (0_u16..0x0200, proptest::collection::vec(any::<u32>(), 0..40)).prop_map(|(kind, words)| {
            let mut bytes = kind.to_be_bytes().to_vec();
            bytes.extend((words.len() as u16 * 4).to_be_bytes());
            bytes.extend([0x21, 0x12, 0xA4, 0x42]);
            bytes.extend([7; 12]);
            bytes.extend(words.iter().flat_map(|word| word.to_be_bytes()));
            bytes
        });
    prop_oneof![any_bytes, like_stun]
}

/// Bytes that can be a stream: messages of which most are whole.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let data = (
        0x3F00_u16..0x8100,
        proptest::collection::vec(any::<u8>(), 0..40),
        0_usize..4,
    );
    let channel_data = data.prop_map(|(channel, payload, padding)| {
        let length = payload.len() as u16;
        [
            &channel.to_be_bytes()[..],
            &length.to_be_bytes(),
            &payload,
            &[0; 3][..padding.min(3)],
        ]
        .concat()
    });
    let send = (0_u8..2, proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(cut, data)| {
        let mut bytes = Client::ann(1).indication(peer(1), &data);
        bytes.truncate(bytes.len() - usize::from(cut));
        bytes
    });
    let parts = proptest::collection::vec(prop_oneof![channel_data, send, datagrams()], 0..8);
    (any::<u8>(), parts).prop_map(|(seed, parts)| [&[seed][..], &parts.concat()].concat())
}

/// What nobody says is no test of what must not be: most kinds of steps come about.
#[test]
fn conversations_get_somewhere() {
    let mut rng = StdRng::seed_from_u64(7);
    let mut all = conversation::Happened::default();
    for _ in 0..200 {
        let mut bytes = [0; 1000];
        rng.fill_bytes(&mut bytes);
        let happened = conversation::hold(&bytes);
        all.to_peers += happened.to_peers;
        all.to_clients += happened.to_clients;
        all.dropped += happened.dropped;
        all.successes += happened.successes;
        all.refusals += happened.refusals;
    }
    println!("{all:?}");
    assert!(all.to_peers > 200 && all.to_clients > 200, "{all:?}");
    assert!(
        all.dropped > 200 && all.successes > 1000 && all.refusals > 200,
        "{all:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_conversation_can_be_held(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = conversation::hold(&bytes);
    }

    #[test]
    fn any_stream_is_cut_into_the_same_messages(bytes in streams()) {
        framing::check(&bytes);
    }

    #[test]
    fn any_bytes_are_taken(bytes in datagrams()) {
        let _ = classify(&bytes);
        // A stream goes on after every message, so each has a length of its own.
        prop_assert!(!matches!(length_in_stream(&bytes), Ok(Some(0..4))));
        let (mut world, mut client) = (World::new(), Client::ann(1000));
        let (relay, _) = client.allocated(&mut world);
        let _ = client.bind(&mut world, 0x4000, peer(1));
        let now = world.now();
        let _ = world.server.client_input(now, client.at, &bytes);
        prop_assert!(world.do_commands().len() <= 1);
        let _ = world.peer_sends(relay, peer(1), &bytes);
        let _ = world.peer_sends(relay, peer(2), &bytes);
    }

    #[test]
    fn a_request_with_bytes_changed_is_taken(at in 0_usize..120, value in any::<u8>(), cut in 0_usize..120) {
        let (mut world, mut client) = (World::new(), Client::ann(1000));
        let _ = client.allocated(&mut world);
        let mut bytes = client.signed(ALLOCATE, &[&RequestedTransport::new(17)]);
        let length = bytes.len();
        bytes[at % length] = value;
        let kept = if cut < 20 { length - cut } else { length };
        let now = world.now();
        let _ = world.server.client_input(now, client.at, &bytes[..kept]);
        prop_assert!(world.do_commands().len() <= 1);
    }
}
