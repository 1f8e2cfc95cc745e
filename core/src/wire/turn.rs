//! What a TURN server says of itself: `GET /status` where its metrics are.

use serde::{Deserialize, Serialize};

/// A TURN server as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TurnStatus {
    /// What clients are told, as in RFC 7065: `turn:198.51.100.7:3478?transport=udp`; one for each external address and
    /// transport.
    pub urls: Vec<String>,
    /// Whether it takes no new clients.
    pub draining: bool,
    /// Allocations alive.
    pub allocations: u64,
    /// How many there may be.
    pub max_allocations: u64,
    /// Bytes of payload that it relays in a second, both ways together.
    pub bytes_per_second: u64,
}
