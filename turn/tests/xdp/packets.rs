//! Packets of our own making, whole and damaged.

use std::net::SocketAddrV4;

use penstock_turn::core::counters::Direction;
use penstock_turn::shell::xdp::Way;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rustix::net::{SendFlags, sendto};

use crate::common::person::channel_data;
use crate::net::{CHANNEL, SERVER, random_by};

/// Sends packets with headers of our own. Only their length and the header's checksum are the kernel's.
pub(crate) struct Raw(pub(crate) rustix::fd::OwnedFd);

impl Raw {
    pub(crate) fn send(&self, packet: &[u8]) {
        assert!(self.send_to(packet, SERVER));
    }

    /// Whether the kernel did.
    pub(crate) fn send_to(&self, packet: &[u8], to: SocketAddrV4) -> bool {
        let to = SocketAddrV4::new(*to.ip(), 0);
        sendto(&self.0, packet, SendFlags::empty(), &to).is_ok()
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Checksum {
    Right,
    Wrong,
    None,
}

/// A packet from its IPv4 header on.
pub(crate) fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8], checksum: Checksum) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend((20 + length).to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    for number in [from.port(), to.port(), length, 0] {
        packet.extend(number.to_be_bytes());
    }
    packet.extend(payload);
    let sum = match checksum {
        Checksum::Right => checksum_of(&packet),
        Checksum::Wrong => checksum_of(&packet) ^ 0x0100,
        Checksum::None => 0,
    };
    packet[26..28].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// RFC 768, of a packet whose header says how long it is; 0 where the sum is right already.
pub(crate) fn checksum_of(packet: &[u8]) -> u16 {
    !sum(&[pseudo_header(packet), packet[20..].to_vec()].concat())
}

/// Whether it is the sum of the pseudo-header, as where a network card is to make it.
pub(crate) fn is_unfinished(packet: &[u8]) -> bool {
    packet[26..28] == sum(&pseudo_header(packet)).to_be_bytes()
}

pub(crate) fn pseudo_header(packet: &[u8]) -> Vec<u8> {
    [&packet[12..20], &[0, 17], &packet[24..26]].concat()
}

pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| [word[0], *word.get(1).unwrap_or(&0)]);
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(word))).sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// A packet of the way's client or peer, more or less.
pub(crate) fn damaged(rng: &mut StdRng, way: &Way) -> Vec<u8> {
    let length = rng.random_range(0..40);
    let mut payload = random_by(rng, length);
    let to_peer = rng.random();
    if to_peer {
        payload = channel_data(CHANNEL, &payload);
        payload.extend(&[0; 5][..rng.random_range(0..=5)]);
    }
    let (from, to) = if to_peer {
        (way.client, way.server)
    } else {
        (way.peer, way.relay)
    };
    let checksum = [Checksum::Right, Checksum::None][rng.random_range(0..2)];
    let mut packet = udp(from, to, &payload, checksum);
    match rng.random_range(0..7) {
        // As it should be.
        0 | 1 => {}
        // A bit is wrong; of the version and the addresses of hosts the kernel would make other packets.
        2 => {
            let at = loop {
                let at = rng.random_range(1..packet.len().min(34));
                if !(12..20).contains(&at) {
                    break at;
                }
            };
            packet[at] ^= 1 << rng.random_range(0..8);
        }
        3 => packet.truncate(rng.random_range(21..=packet.len())),
        4 => packet.extend(&[1; 8][..rng.random_range(1..=8)]),
        // An option: one that does nothing, or one that looks like what should come after it.
        5 => {
            packet[0] = 0x46;
            packet.splice(20..20, [1, 1, 1, 0]);
        }
        _ => packet[0] = 0x47,
    }
    packet
}

/// The payload of a packet that is to be relayed, and whether its receiver will take it.
pub(crate) fn relayed(packet: &[u8], way: &Way) -> Option<(Direction, Vec<u8>, bool)> {
    let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let is_udp = packet[0] == 0x45 && packet[9] == 17 && word(6)? & !0x4000 == 0;
    let length = usize::from(word(24)?);
    if !is_udp || 20 + length != packet.len() || length < 12 || is_unfinished(packet) {
        return None;
    }
    let at = |ip: usize, port: usize| {
        let ip: [u8; 4] = packet[ip..ip + 4].try_into().unwrap();
        Some(SocketAddrV4::new(ip.into(), word(port)?))
    };
    let (from, to) = (at(12, 20)?, at(16, 22)?);
    let is_whole = word(26)? == 0 || checksum_of(packet) == 0;
    let payload = &packet[28..];
    if (from, to) == (way.peer, way.relay) {
        return Some((Direction::ToClient, payload.to_vec(), is_whole));
    }
    let inside = usize::from(word(30)?);
    let (data, padding) = payload[4..].split_at_checked(inside)?;
    let is_channel_data =
        word(28)? == way.channel && padding.len() < 4 && padding.iter().all(|byte| *byte == 0);
    let is_ours = is_channel_data && (from, to) == (way.client, way.server);
    is_ours.then(|| (Direction::ToPeer, data.to_vec(), is_whole))
}
