//! The data path allocates no memory.

mod common;

use common::{Answer, Client, World, peer};
use penstock_turn::core::server::Forward;

#[test]
fn a_packet_through_the_core_allocates_nothing() {
    let (mut world, mut client) = (World::new(), Client::ann(1000));
    let (relay, _) = client.allocated(&mut world);
    assert_eq!(client.bind(&mut world, 0x4000, peer(1)), Answer::Success);
    assert_eq!(client.permit(&mut world, peer(2)), Answer::Success);
    let channel_data = [&[0x40, 0x00, 0x04, 0x00][..], &[1; 1024]].concat();
    let now = world.now();
    let server = &mut world.server;
    let counted = allocation_counter::measure(|| {
        for _ in 0..1000 {
            let up = server.client_input(now, client.at, &channel_data);
            assert!(matches!(up, Forward::ToPeer { .. }));
            let on_channel = server.peer_input(now, relay, peer(1), &channel_data);
            assert!(matches!(on_channel, Forward::ToClient { .. }));
            let as_indication = server.peer_input(now, relay, peer(2), &channel_data);
            assert!(matches!(as_indication, Forward::ToClient { .. }));
            let dropped = server.peer_input(now, relay, peer(3), &channel_data);
            assert_eq!(dropped, Forward::Nothing);
        }
    });
    assert_eq!(counted.count_total, 0);
}
