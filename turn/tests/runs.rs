//! A run is decided as its datagrams are, one by one.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use common::{Answer, Client, World, peer, peer_v6};
use penstock_turn::core::FiveTuple;
use penstock_turn::core::RelayId;
use penstock_turn::core::runs::{Receiver, Run};
use penstock_turn::core::server::Forward;
use penstock_turn::core::shared::{Limits, Quota};
use proptest::prelude::*;

/// Where a datagram goes, and its bytes.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    Peer(RelayId, std::net::SocketAddr, Vec<u8>),
    Client(FiveTuple, Vec<u8>),
}

/// A client with channels to two peers, a permission for a third, and a channel whose permission is over.
struct Stage {
    world: World,
    client: Client,
    relay: RelayId,
}

impl Stage {
    fn new(limits: Limits) -> Self {
        let mut world = World::with(|config| {
            config.shared = penstock_turn::core::shared::Shared::new("50000-50099".parse().unwrap(), limits)
        });
        let mut client = Client::ann(1000);
        let (relay, _) = client.allocated(&mut world);
        assert_eq!(client.bind(&mut world, OVER, peer(4)), Answer::Success);
        world.wait(299);
        for n in 1..=2 {
            let bound = client.bind(&mut world, 0x4000 + u16::from(n), peer(n));
            assert_eq!(bound, Answer::Success);
        }
        assert_eq!(client.permit(&mut world, peer(3)), Answer::Success);
        world.wait(2);
        Self { world, client, relay }
    }

    fn singly_from_client(&mut self, bytes: &[u8], every: usize) -> Vec<Option<Left>> {
        let (now, from) = (self.world.now(), self.client.at);
        let each = bytes.chunks(every);
        each.map(|datagram| left(&self.world.server.client_input(now, from, datagram)))
            .collect()
    }

    fn singly_from_peer(
        &mut self,
        peer: std::net::SocketAddr,
        bytes: &[u8],
        every: usize,
    ) -> Vec<Option<Left>> {
        let (now, relay) = (self.world.now(), self.relay);
        let each = bytes.chunks(every);
        each.map(|datagram| left(&self.world.server.peer_input(now, relay, peer, datagram)))
            .collect()
    }
}

fn left(forward: &Forward<'_>) -> Option<Left> {
    match forward {
        Forward::Nothing => None,
        Forward::ToPeer { relay, peer, payload } => Some(Left::Peer(*relay, *peer, payload.to_vec())),
        Forward::ToClient {
            to,
            envelope,
            payload,
        } => {
            let bytes = [envelope.head(), payload, envelope.padding()].concat();
            Some(Left::Client(*to, bytes))
        }
    }
}

/// What a run comes to; what it says of itself must hold.
fn of_run(run: &Run<'_>) -> Vec<Option<Left>> {
    let datagrams: Vec<_> = run
        .datagrams()
        .map(|(head, payload)| [head.unwrap_or_default(), payload].concat())
        .collect();
    let lengths: Vec<_> = datagrams.iter().map(Vec::len).collect();
    let (last, others) = lengths.split_last().unwrap();
    assert!(others.iter().all(|length| *length == run.each_len()));
    assert!((1..=run.each_len()).contains(last));
    assert_eq!(run.count(), datagrams.len());
    assert_eq!(run.total_len(), lengths.iter().sum::<usize>());
    let payload = run.datagrams().map(|(_, payload)| payload.len());
    assert_eq!(run.payload_len(), payload.sum::<usize>());
    let receiver = |bytes| match run.to {
        Receiver::Peer { relay, peer } => Left::Peer(relay, peer, bytes),
        Receiver::Client(to) => Left::Client(to, bytes),
    };
    datagrams.into_iter().map(receiver).map(Some).collect()
}

/// ChannelData of some channels, now and then with a wrong head.
fn pieces() -> impl Strategy<Value = (Vec<u8>, usize)> {
    let channel = prop_oneof![20 => Just(0x4001_u16), 3 => Just(0x4002), 1 => Just(OVER), 1 => any::<u16>()];
    let odd = prop_oneof![20 => Just(0_i32), 1 => -5_i32..6];
    let datagram = (channel, odd, any::<u8>());
    (
        prop::collection::vec(datagram, 1..20),
        0_usize..40,
        0_usize..44,
        any::<bool>(),
    )
        .prop_map(|(datagrams, length, last, steady)| {
            let every = length + 4;
            let mut bytes = Vec::new();
            let first = datagrams[0];
            for (number, odd, byte) in datagrams {
                let (number, odd) = if steady { (first.0, 0) } else { (number, odd) };
                bytes.extend(number.to_be_bytes());
                bytes.extend((length as i32 + odd).clamp(0, 0xFFFF).to_be_bytes()[2..].iter());
                bytes.extend(std::iter::repeat_n(byte, length));
            }
            // A shorter last one, whose head says so.
            let last = last.min(every - 1);
            if last > 4 {
                bytes.extend(first.0.to_be_bytes());
                bytes.extend(((last - 4) as u16).to_be_bytes());
                bytes.extend(std::iter::repeat_n(9, last - 4));
            }
            (bytes, every)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_clients_run_is_decided_as_its_datagrams_are((bytes, every) in pieces()) {
        let mut stage = Stage::new(Limits::default());
        let now = stage.world.now().instant;
        let singly = stage.singly_from_client(&bytes, every);
        let run = stage.world.server.client_run(now, stage.client.at, &bytes, every);
        if let Some(run) = run {
            prop_assert_eq!(of_run(&run), singly);
        } else {
            let sizes = || bytes.chunks(every).map(<[u8]>::len);
            let heads: std::collections::BTreeSet<_> = bytes.chunks(every).map(|chunk| &chunk[..2]).collect();
            let goes_whole = singly.len() > 1 && heads.len() == 1 && singly.iter().zip(sizes()).all(|(left, size)| {
                matches!(left, Some(Left::Peer(_, _, payload)) if payload.len() + 4 == size && size > 4)
            });
            prop_assert!(!goes_whole, "a run is not seen");
        }
    }

    #[test]
    fn a_peers_run_is_decided_as_its_datagrams_are(
        n in 1_u8..6,
        count in 1_usize..20,
        every in 1_usize..1400,
        last in 0_usize..1400,
    ) {
        let mut stage = Stage::new(Limits::default());
        let now = stage.world.now().instant;
        let bytes: Vec<u8> = (0..count * every + last % every).map(|at| at as u8).collect();
        let singly = stage.singly_from_peer(peer(n), &bytes, every);
        let run = stage.world.server.peer_run(now, stage.relay, peer(n), &bytes, every);
        prop_assert_eq!(run.is_some(), n <= 2 && bytes.len() > every);
        if let Some(run) = run {
            prop_assert_eq!(of_run(&run), singly);
        }
    }
}

#[test]
fn what_may_differ_from_one_datagram_to_the_next_is_no_run() {
    let limited = Limits {
        fixed_user: Quota {
            bytes_per_second: std::num::NonZeroU64::new(1000),
            ..Quota::default()
        },
        ..Limits::default()
    };
    let datagrams = [0x40, 0x01, 0, 1, 7].repeat(3);
    let runs = |stage: &Stage, from| {
        let now = stage.world.now().instant;
        let up = stage.world.server.client_run(now, from, &datagrams, 5).is_some();
        let down = stage
            .world
            .server
            .peer_run(now, stage.relay, peer(1), &datagrams, 5)
            .is_some();
        (up, down)
    };
    let stage = Stage::new(Limits::default());
    assert_eq!(runs(&stage, stage.client.at), (true, true));
    let other = FiveTuple {
        remote: peer_v6(1),
        ..stage.client.at
    };
    assert!(!runs(&stage, other).0, "another client's");
    let stage = Stage::new(limited);
    assert_eq!(runs(&stage, stage.client.at), (false, false), "of a limited user");
}

#[test]
fn a_run_through_the_core_allocates_nothing() {
    let stage = Stage::new(Limits::default());
    let datagrams = [&[0x40, 0x01, 0x04, 0x00][..], &[1; 1024]].concat().repeat(12);
    let now = stage.world.now().instant;
    let (server, from) = (&stage.world.server, stage.client.at);
    let counted = allocation_counter::measure(|| {
        let up = server.client_run(now, from, &datagrams, 1028).unwrap();
        let down = server
            .peer_run(now, stage.relay, peer(1), &datagrams, 1028)
            .unwrap();
        assert_eq!((up.datagrams().count(), down.datagrams().count()), (12, 12));
    });
    assert_eq!(counted.count_total, 0);
}

/// Its permission is over.
const OVER: u16 = 0x4009;
