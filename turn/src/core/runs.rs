//! Runs: datagrams of one sender that came in one piece and go the same way, so that one decision does for all of them.
//!
//! ```text
//!  of a client     │head payload│head payload│head pay│     each without its head, to the peer
//!  of a peer       │payload     │payload     │pay│          a head before each, to the client
//! ```
//!
//! What is none, or may differ from one datagram to the next (a limit of bandwidth), is decided one by one as ever; see
//! [`Server::client_input`] and [`Server::peer_input`], which come to the same.

use std::net::SocketAddr;
use std::time::Instant;

use rand::CryptoRng;

use super::family::Family;
use super::server::Server;
use super::wire::{CHANNEL_HEADER_LEN, ChannelNumber, channel_head, channel_head_of};
use super::{FiveTuple, RelayId, Transport};

/// Datagrams that go the same way. Of those that came, each but the last is equally long, and the last not longer; none of
/// those that leave is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run<'a> {
    /// Where to.
    pub to: Receiver,
    bytes: &'a [u8],
    every: usize,
    heads: Heads,
}

/// Who gets a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    /// A peer, from a relay's socket.
    Peer {
        /// The relay.
        relay: RelayId,
        /// The peer.
        peer: SocketAddr,
    },
    /// A client over UDP.
    Client(FiveTuple),
}

/// The heads of ChannelData.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heads {
    /// Each that came begins with one, which stays behind.
    Come,
    /// Each that leaves begins with one; the last's has another length.
    Leave {
        each: [u8; CHANNEL_HEADER_LEN],
        last: [u8; CHANNEL_HEADER_LEN],
    },
}

impl<'a> Run<'a> {
    /// ChannelData of one channel, `every` bytes each but the last, on its way to a peer. `None` where `bytes` are not that
    /// and nothing else: one datagram, several channels, padding, no payload.
    pub fn to_peer(relay: RelayId, peer: SocketAddr, bytes: &'a [u8], every: usize) -> Option<Self> {
        let (channel, length) = channel_head(bytes)?;
        if bytes.len() <= every || length == 0 || length + CHANNEL_HEADER_LEN != every {
            return None;
        }
        let head = &bytes[..CHANNEL_HEADER_LEN];
        let (full, last) = bytes.split_at(bytes.len() - bytes.len() % every);
        let payload = last.len().saturating_sub(CHANNEL_HEADER_LEN);
        let is_last_alike = last.is_empty() || payload > 0 && channel_head(last) == Some((channel, payload));
        let are_alike = is_last_alike && full.chunks_exact(every).all(|chunk| chunk.starts_with(head));
        are_alike.then_some(Self {
            to: Receiver::Peer { relay, peer },
            bytes,
            every,
            heads: Heads::Come,
        })
    }

    /// What a peer sent, `every` bytes each but the last, on its way to a client. `None` for one datagram.
    pub fn to_client(to: FiveTuple, channel: ChannelNumber, bytes: &'a [u8], every: usize) -> Option<Self> {
        if every == 0 || bytes.len() <= every {
            return None;
        }
        Some(Self {
            to: Receiver::Client(to),
            bytes,
            every,
            heads: Heads::Leave {
                each: channel_head_of(channel, u16::try_from(every).ok()?),
                last: channel_head_of(channel, u16::try_from(bytes.len() % every).ok()?),
            },
        })
    }

    /// How many datagrams.
    pub fn count(&self) -> usize {
        self.bytes.len().div_ceil(self.every)
    }

    /// The bytes of payload in all of them.
    pub fn payload_len(&self) -> usize {
        match self.heads {
            Heads::Come => self.bytes.len() - self.count() * CHANNEL_HEADER_LEN,
            Heads::Leave { .. } => self.bytes.len(),
        }
    }

    /// The length of each datagram that leaves but the last.
    pub fn each_len(&self) -> usize {
        match self.heads {
            Heads::Come => self.every - CHANNEL_HEADER_LEN,
            Heads::Leave { .. } => self.every + CHANNEL_HEADER_LEN,
        }
    }

    /// The length of all that leave.
    pub fn total_len(&self) -> usize {
        match self.heads {
            Heads::Come => self.payload_len(),
            Heads::Leave { .. } => self.bytes.len() + self.count() * CHANNEL_HEADER_LEN,
        }
    }

    /// Each datagram that leaves: its head, if it has one, and its payload.
    pub fn datagrams(&self) -> impl Iterator<Item = (Option<&[u8]>, &[u8])> {
        self.bytes.chunks(self.every).map(|chunk| match &self.heads {
            Heads::Come => (None, &chunk[CHANNEL_HEADER_LEN..]),
            Heads::Leave { each, .. } if chunk.len() == self.every => (Some(&each[..]), chunk),
            Heads::Leave { last, .. } => (Some(&last[..]), chunk),
        })
    }
}

impl<R: CryptoRng> Server<R> {
    /// The run that a client's datagrams are, `every` bytes each but the last. Nothing is counted.
    pub fn client_run<'a>(
        &self,
        now: Instant,
        from: FiveTuple,
        bytes: &'a [u8],
        every: usize,
    ) -> Option<Run<'a>> {
        let (channel, _) = channel_head(bytes)?;
        let (id, allocation) = self.table.of_client(&from)?;
        let peer = allocation.peer_of(now, channel)?;
        let family = Family::of_socket(peer);
        let is_free = allocation.relays[family].is_some()
            && allocation.is_permitted(now, peer.ip())
            && allocation.buckets.is_unlimited();
        Run::to_peer(RelayId::new(id, family), peer, bytes, every).filter(|_| is_free)
    }

    /// The run that a peer's datagrams are, `every` bytes each but the last. Nothing is counted.
    pub fn peer_run<'a>(
        &self,
        now: Instant,
        relay: RelayId,
        peer: SocketAddr,
        bytes: &'a [u8],
        every: usize,
    ) -> Option<Run<'a>> {
        let allocation = self.table.get(relay.allocation())?;
        let channel = allocation.channel_to(now, peer)?;
        let is_free = allocation.client.transport == Transport::Udp
            && allocation.is_permitted(now, peer.ip())
            && allocation.buckets.is_unlimited();
        Run::to_client(allocation.client, channel, bytes, every).filter(|_| is_free)
    }
}
