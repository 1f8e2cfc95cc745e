//! What the maps hold, as the program reads it: the structs of `relay.bpf.c`, byte by byte.

use std::net::SocketAddrV4;
use std::time::Duration;

use super::Way;

/// `struct to_peer_key`.
pub(super) type ToPeerKey = [u8; 16];
/// `struct to_client_key`.
pub(super) type ToClientKey = [u8; 12];
/// `struct to_peer`, and `struct to_client`.
pub(super) type Value = [u8; 24];

pub(super) fn to_peer_key(way: &Way) -> ToPeerKey {
    let mut bytes = [0; 16];
    write_two(&mut bytes, way.client, way.server);
    bytes[12..14].copy_from_slice(&way.channel.to_be_bytes());
    bytes
}

pub(super) fn to_peer(way: &Way, until: Duration) -> Value {
    let mut bytes = until_bytes(until);
    write_two(&mut bytes[8..], way.relay, way.peer);
    bytes
}

pub(super) fn to_client_key(way: &Way) -> ToClientKey {
    let mut bytes = [0; 12];
    write_two(&mut bytes, way.peer, way.relay);
    bytes
}

pub(super) fn to_client(way: &Way, until: Duration) -> Value {
    let mut bytes = until_bytes(until);
    write_two(&mut bytes[8..], way.server, way.client);
    bytes[20..22].copy_from_slice(&way.channel.to_be_bytes());
    bytes
}

/// A clock reading that does not fit counts as over.
fn until_bytes(until: Duration) -> Value {
    let mut bytes = [0; 24];
    let until = u64::try_from(until.as_nanos()).unwrap_or(0);
    bytes[..8].copy_from_slice(&until.to_ne_bytes());
    bytes
}

/// Both addresses, then both ports, all as in packets.
fn write_two(bytes: &mut [u8], one: SocketAddrV4, other: SocketAddrV4) {
    bytes[..4].copy_from_slice(&one.ip().octets());
    bytes[4..8].copy_from_slice(&other.ip().octets());
    bytes[8..10].copy_from_slice(&one.port().to_be_bytes());
    bytes[10..12].copy_from_slice(&other.port().to_be_bytes());
}
