//! Whole shards, over loopback.

use std::collections::HashMap;
use std::net::UdpSocket;

use prometheus::Registry;
use rand::SeedableRng as _;
use stun_types::attribute::{AttributeWrite, Nonce, Realm, Username};
use stun_types::message::{
    IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageIntegrityCredentials, MessageWrite as _,
    MessageWriteExt as _, MessageWriteVec, Method,
};
use turn_types::attribute::{ChannelNumber, RequestedTransport, XorPeerAddress};
use turn_types::message::{ALLOCATE, CHANNEL_BIND};

use super::*;
use crate::core::auth::Users;
use crate::core::family::ByFamily;
use crate::core::nonce::Nonces;
use crate::core::peers::PeerPolicy;
use crate::core::server::Config;
use crate::core::server::Rules;
use crate::core::shared::{Limits, Shared};
use crate::core::throttle::{Rate, Throttle};

#[test]
fn a_packet_through_the_sockets_allocates_nothing() {
    for listen in ["127.0.0.1:0", "0.0.0.0:0"] {
        allocates_nothing(with_channel_at(listen));
    }
}

fn allocates_nothing((mut shard, client, peer): (Shard, UdpSocket, UdpSocket)) {
    let mut events = Vec::with_capacity(EVENTS_PER_WAIT);
    let mut inbox = Inbox::new(MESSAGES_PER_READ);
    let mut buffer = [0; 2048];
    let channel_data = [&[0x40, 0x00, 0x04, 0x00][..], &[1; 1024]].concat();
    let counted = allocation_counter::measure(|| {
        for _ in 0..100 {
            client.send(&channel_data).unwrap();
            shard.turn(&mut events, &mut inbox).unwrap();
            let (length, relay) = peer.recv_from(&mut buffer).unwrap();
            peer.send_to(&buffer[..length], relay).unwrap();
            shard.turn(&mut events, &mut inbox).unwrap();
            let length = client.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..length], channel_data);
        }
    });
    assert_eq!(counted.count_total, 0);
}

#[test]
fn each_client_is_served_by_one_of_several_shards_and_all_shards_serve() {
    let shards = shards(3, "127.0.0.1:0");
    let server = shards[0].listen_addresses().next().unwrap();
    let controls: Vec<_> = shards.iter().map(|shard| shard.control.clone()).collect();
    let run = |shard: Shard| std::thread::spawn(|| shard.run().unwrap());
    let threads: Vec<_> = shards.into_iter().map(run).collect();
    let ask = |client: &UdpSocket, request: &[u8]| {
        client.send(request).unwrap();
        received_by(client)
    };
    let pairs: Vec<_> = (0..40).map(|_| bind_channel(server, ask)).collect();
    for (number, (client, peer)) in (0_u8..).zip(&pairs) {
        let payload = [number; 1000];
        let channel_data = [&[0x40, 0x00, 0x03, 0xE8][..], &payload].concat();
        client.send(&channel_data).unwrap();
        let mut buffer = [0; 2048];
        let (length, relay) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..length], payload);
        peer.send_to(&payload, relay).unwrap();
        assert_eq!(received_by(client), channel_data);
    }
    // That one of three stays without any of 40 clients happens once in millions of runs.
    assert_eq!(controls[0].busy_shards(), 3);
    controls.iter().for_each(|control| control.drain().unwrap());
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn an_address_that_another_server_has_is_not_shared_with_it() {
    let one = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    one.beside().unwrap();
    let error = Listener::bind(one.local).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn a_round_that_left_something_says_so() {
    let (mut shard, client, _peer) = with_channel();
    for _ in 0..=MESSAGES_PER_READ {
        client.send(b"\x40\x00\x00\x04four").unwrap();
    }
    let (mut events, mut inbox) = (Vec::with_capacity(1), Inbox::new(MESSAGES_PER_READ));
    assert!(shard.turn(&mut events, &mut inbox).unwrap().is_more);
    assert!(!shard.turn(&mut events, &mut inbox).unwrap().is_more);
}

/// A shard, a client with channel 0x4000 on it, and the peer behind that channel.
fn with_channel() -> (Shard, UdpSocket, UdpSocket) {
    with_channel_at("127.0.0.1:0")
}

fn with_channel_at(listen: &str) -> (Shard, UdpSocket, UdpSocket) {
    let mut shard = shards(1, listen).remove(0);
    let mut address = shard.listen_addresses().next().unwrap();
    address.set_ip([127, 0, 0, 1].into());
    let (client, peer) = bind_channel(address, |client, request| ask(&mut shard, client, request));
    (shard, client, peer)
}

/// A client with channel 0x4000 on it, and the peer behind that channel.
fn bind_channel(
    server: SocketAddr,
    mut ask: impl FnMut(&UdpSocket, &[u8]) -> Vec<u8>,
) -> (UdpSocket, UdpSocket) {
    let [client, peer] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    for socket in [&client, &peer] {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    client.connect(server).unwrap();
    let challenge = ask(&client, &request(ALLOCATE, "none", &[]));
    let nonce = Message::from_bytes(&challenge)
        .unwrap()
        .attribute::<Nonce>()
        .unwrap()
        .nonce()
        .to_owned();
    let udp = RequestedTransport::new(17);
    ask(&client, &request(ALLOCATE, &nonce, &[&udp]));
    let number = ChannelNumber::new(0x4000);
    let address = XorPeerAddress::new(peer.local_addr().unwrap(), 1_u128.into());
    let bound = ask(&client, &request(CHANNEL_BIND, &nonce, &[&number, &address]));
    assert!(
        Message::from_bytes(&bound)
            .unwrap()
            .has_class(stun_types::message::MessageClass::Success)
    );
    (client, peer)
}

/// Shards at one address.
fn shards(count: usize, listen: &str) -> Vec<Shard> {
    let config = Config {
        realm: "r".to_owned(),
        rules: Rules {
            users: Users {
                secrets: vec![],
                fixed: HashMap::from([("u".to_owned(), "p".to_owned())]),
            },
            peers: PeerPolicy::new(vec!["127.0.0.0/8".parse().unwrap()], [], true),
        },
        relay_ips: ByFamily::first_of(["127.0.0.1".parse().unwrap()]),
        shared: Shared::new("20000-60000".parse().unwrap(), Limits::default()),
        alternates: ByFamily::default(),
        unproven_answers: Throttle::new(NO_LIMIT, 7),
        auth_failures: Throttle::new(NO_LIMIT, 7),
    };
    let nonces = Nonces::new([7; 32], clock::read().instant);
    let first = Listener::bind(listen.parse().unwrap()).unwrap();
    let mut listeners: Vec<_> = (1..count).map(|_| first.beside().unwrap()).collect();
    listeners.push(first);
    let meter = Meter::new(&Registry::new()).unwrap();
    let controls = Control::of_shards(count).unwrap();
    let shard = |(listener, control)| {
        let streams = StreamSetup {
            listeners: vec![],
            shared: config.shared.clone(),
        };
        let server = Server::new(config.clone(), nonces.clone(), StdRng::seed_from_u64(7));
        let (grace, meter) = (Duration::ZERO, meter.clone());
        Shard::new(
            server,
            vec![listener],
            streams,
            Addresses::default(),
            grace,
            meter,
            control,
        )
        .unwrap()
    };
    listeners.into_iter().zip(controls).map(shard).collect()
}

fn request(method: Method, nonce: &str, attributes: &[&dyn AttributeWrite]) -> Vec<u8> {
    let kind = stun_types::message::MessageType::from_class_method(
        stun_types::message::MessageClass::Request,
        method,
    );
    let mut message = Message::builder(kind, 1_u128.into(), MessageWriteVec::new());
    attributes
        .iter()
        .for_each(|attribute| message.add_attribute(*attribute).unwrap());
    message.add_attribute(&Username::new("u").unwrap()).unwrap();
    message.add_attribute(&Realm::new("r").unwrap()).unwrap();
    message.add_attribute(&Nonce::new(nonce).unwrap()).unwrap();
    let key: MessageIntegrityCredentials =
        LongTermKeyCredentials::new("u".to_owned(), "p".to_owned(), "r".to_owned()).into();
    message
        .add_message_integrity(&key, IntegrityAlgorithm::Sha1)
        .unwrap();
    message.finish()
}

fn ask(shard: &mut Shard, client: &UdpSocket, request: &[u8]) -> Vec<u8> {
    client.send(request).unwrap();
    shard
        .turn(&mut Vec::with_capacity(1), &mut Inbox::new(1))
        .unwrap();
    received_by(client)
}

fn received_by(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).unwrap();
    buffer[..length].to_vec()
}

const NO_LIMIT: Rate = Rate {
    per_second: 0,
    burst: 0,
};
