//! The TURN server without its sockets: bytes, addresses and clock readings go in, commands come out.
//!
//! ```text
//!            client_input(now, five-tuple, bytes) ┌────────┐ Forward: this payload to that peer or client
//!  clients ──────────────────────────────────────►│        │──────────────────────────────────────────►
//!            peer_input(now, relay, peer, bytes)  │ Server │ poll_command(): answer, open relay, close relay
//!  peers   ──────────────────────────────────────►│        │──────────────────────────────────────────►
//!            relay_opened(now, relay, result)     │        │ next_timeout(): when handle_timeout is due
//!  sockets ──────────────────────────────────────►└────────┘──────────────────────────────────────────►
//! ```
//!
//! There are two ways out because there are two kinds of work. Media is a [`Forward`](server::Forward): a
//! borrowed slice of what came in and at most 48 bytes in front of it, so nothing is copied or allocated per packet.
//! All else is rare, and is a queue of owned [`Command`](server::Command)s.
//!
//! ```text
//!  server       the state of all allocations; media in both directions; expiry
//!  requests     Refresh, CreatePermission, ChannelBind, and what all requests share (an `impl Server`)
//!  allocate     Allocate (an `impl Server`)
//!  runs         datagrams that came in one piece, decided once for all of them (an `impl Server`)
//!  allocation   one allocation: relays, permissions, channels
//!  table        all allocations of a shard, found by client or by relay
//!  shared       what shards share: ports, quotas, reserved ports
//!  bucket       bytes per second
//!  throttle     how often something may happen for one source
//!  auth         who may: users, shared secrets, the long-term credential mechanism
//!  nonce        stateless nonces
//!  answer       responses, written with the STUN library
//!  wire         ChannelData, Send and Data: parsed and written in place; messages cut out of streams
//!  family       IPv4 and IPv6
//!  peers        which peers may be reached
//!  ports        relay ports, drawn at random
//!  counters     what is counted
//! ```
//!
//! Nothing here reads a clock, opens a socket or draws from a global generator; `clippy.toml` beside the manifest
//! holds that.

mod allocate;
pub mod allocation;
pub mod answer;
pub mod auth;
pub mod bucket;
pub mod counters;
pub mod family;
pub mod nonce;
pub mod peers;
pub mod ports;
mod requests;
pub mod runs;
pub mod server;
pub mod shared;
pub mod table;
pub mod throttle;
pub mod wire;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use family::Family;

/// One reading of the clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// What lifetimes are measured by.
    pub instant: Instant,
    /// Time since 1970, for credentials that carry their expiry.
    pub unix: Duration,
}

/// How a client's bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// One datagram is one message.
    Udp,
    /// A byte stream, TCP or TLS: messages are cut out of it, and padded to four bytes (RFC 8656, section 12.5).
    Stream,
}

/// What tells one client from another, and what an allocation belongs to (RFC 8656, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FiveTuple {
    /// How the bytes travel.
    pub transport: Transport,
    /// Our side: the address that the client sends to, one of several where the listener is at all of them.
    pub local: SocketAddr,
    /// The client's side, as we see it.
    pub remote: SocketAddr,
}

/// An allocation. A small number, free for reuse when the allocation has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocationId(pub u32);

/// A relay: one socket of an allocation, which has one in each address family at most. A small number, free for reuse
/// after `CloseRelay`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayId(pub u32);

impl RelayId {
    /// The relay of an allocation in a family.
    pub fn new(allocation: AllocationId, family: Family) -> Self {
        Self((allocation.0 << 1) | family as u32)
    }

    /// Its allocation.
    pub fn allocation(self) -> AllocationId {
        AllocationId(self.0 >> 1)
    }

    /// Its family.
    pub fn family(self) -> Family {
        Family::ALL[(self.0 & 1) as usize]
    }
}

/// Where packets come from, as far as limits go: an IPv4 address, or an IPv6 network of 64 bits, since that is what one
/// household or machine is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source(IpAddr);

impl Source {
    /// An address's.
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self(ip),
            IpAddr::V6(v6) => Self(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into()),
        }
    }
}

/// How long a permission lasts (RFC 8656, section 9).
pub const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_knows_its_allocation_and_its_family() {
        for family in Family::ALL {
            let relay = RelayId::new(AllocationId(7), family);
            assert_eq!((relay.allocation(), relay.family()), (AllocationId(7), family));
        }
    }

    #[test]
    fn a_source_is_an_address_or_a_network() {
        let of = |ip: &str| Source::of(ip.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
