//! What holds for every stream of bytes, however it is cut: for the fuzz target of this name, and for `cargo test`.

use penstock_turn::core::wire::{Inbound, NotOurs, classify, first_message, length_in_stream};
use stun_types::message::Message;
use turn_types::attribute::{Data, XorPeerAddress};

/// The first byte says into pieces of which lengths the others are cut.
pub(crate) fn check(bytes: &[u8]) {
    let Some((seed, stream)) = bytes.split_first() else {
        return;
    };
    let (whole, end) = messages(stream);
    let mut rest = stream;
    for message in &whole {
        assert_eq!(
            length_in_stream(message),
            Ok(Some(message.len())),
            "it says how long it is"
        );
        assert!((4..=20 + 65_536).contains(&message.len()));
        let (first, after) = rest.split_at(message.len());
        assert_eq!(first, *message, "nothing between one and the next");
        rest = after;
        read(message);
    }
    read(stream);

    // As it comes in pieces: what is begun is kept until the rest of it comes.
    let (mut begun, mut cut, mut ended) = (Vec::new(), Vec::new(), Ok(()));
    let mut pieces = stream;
    for n in 0_usize.. {
        let length = (usize::from(*seed).wrapping_mul(n + 7) % 61 + 1).min(pieces.len());
        let (piece, after) = pieces.split_at(length);
        pieces = after;
        begun.extend_from_slice(piece);
        let (found, end) = messages(&begun);
        let taken: usize = found.iter().map(|message| message.len()).sum();
        cut.extend(found.into_iter().map(<[u8]>::to_vec));
        begun.drain(..taken);
        ended = end;
        if ended.is_err() || pieces.is_empty() {
            break;
        }
    }
    assert!(cut.iter().eq(whole.iter()), "the same messages however it is cut");
    assert_eq!(ended, end, "and the same end");
}

/// All messages of a stream, and whether it ends with something else.
fn messages(mut bytes: &[u8]) -> (Vec<&[u8]>, Result<(), NotOurs>) {
    let mut messages = Vec::new();
    loop {
        match first_message(bytes) {
            Ok(Some((message, rest))) => {
                messages.push(message);
                bytes = rest;
            }
            Ok(None) => return (messages, Ok(())),
            Err(NotOurs) => return (messages, Err(NotOurs)),
        }
    }
}

/// What is read in place is what the library reads.
fn read(message: &[u8]) {
    let library = Message::from_bytes(message);
    match classify(message) {
        Some(Inbound::ChannelData(channel, data)) => {
            assert!((0x4000..=0x7FFF).contains(&channel.get()));
            assert_eq!(data, &message[4..4 + data.len()]);
            let length = u16::from_be_bytes([message[2], message[3]]);
            assert_eq!(data.len(), usize::from(length));
        }
        Some(Inbound::Send(indication)) => {
            let Ok(library) = library else { return };
            let data = library.attribute::<Data<'_>>();
            assert!(data.is_ok_and(|data| data.data() == indication.data));
            let peer = library.attribute::<XorPeerAddress>();
            assert!(peer.is_ok_and(|peer| peer.addr(library.transaction_id()) == indication.peer));
        }
        Some(Inbound::Stun(same)) => assert_eq!(same, message),
        None => {}
    }
}
