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
//!  requests     Allocate, Refresh, CreatePermission, ChannelBind (an `impl Server`)
//!  allocation   one allocation: permissions, channels
//!  table        all allocations, found by client or by relay; ports; quotas
//!  auth         who may: users, shared secrets, the long-term credential mechanism
//!  nonce        stateless nonces
//!  answer       responses, written with the STUN library
//!  wire         ChannelData, Send and Data: parsed and written in place
//!  peers        which peers may be reached
//!  ports        relay ports, drawn at random
//!  counters     what is counted
//! ```
//!
//! Nothing here reads a clock, opens a socket or draws from a global generator; `clippy.toml` beside the manifest
//! holds that.

pub mod allocation;
pub mod answer;
pub mod auth;
pub mod counters;
pub mod nonce;
pub mod peers;
pub mod ports;
mod requests;
pub mod server;
pub mod table;
pub mod wire;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

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
    /// Our side: the listener's address.
    pub local: SocketAddr,
    /// The client's side, as we see it.
    pub remote: SocketAddr,
}

/// A relay: the socket of one allocation. A small number, free for reuse after `CloseRelay`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayId(pub u32);
