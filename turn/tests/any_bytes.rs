//! Whatever comes in, the server neither panics nor answers more than once.

mod common;

use common::{Client, World, peer};
use penstock_turn::core::wire::{classify, length_in_stream};
use proptest::prelude::*;
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

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
