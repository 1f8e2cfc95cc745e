//! What a streamer says of itself: `GET /status` once, `GET /events` as server-sent events (the whole
//! [`StreamerStatus`] at once, then on every change). `DELETE /session/{id}` ends that session for its player and all who
//! watch: 204, or 404 with a `Problem` where it is not there.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{ApplicationName, SeatName, SessionId, StreamerId};
use crate::units::{EncoderUnits, StreamSize};

/// A streamer as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamerStatus {
    /// Its name.
    pub streamer_id: StreamerId,
    /// Whether it can take a player.
    pub state: StreamerState,
    /// What it streams, where its operator named that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application: Option<ApplicationName>,
    /// The session on it; absent while it is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// Players, who steer; those who are away, too.
    pub players: u32,
    /// How many of the players are away: they were lost, or closed their page, and their seats are kept for a while.
    #[serde(default)]
    pub away: u32,
    /// How many players it takes.
    #[serde(default = "one")]
    pub max_players: u32,
    /// Viewers, who only watch; those who are away, too.
    pub viewers: u32,
    /// The seats to which a player or viewer may come back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seats: Vec<SeatName>,
    /// What it encodes.
    pub stream: StreamSize,
    /// What that takes of its slice.
    pub units: EncoderUnits,
    /// Where its media comes from and goes to: what ICE candidates name, and what TURN credentials are bound to.
    #[serde(default)]
    pub media_addresses: Vec<IpAddr>,
}

/// Whether a streamer can take a player.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StreamerState {
    /// The source shows no picture yet (or none again: its application is being restarted).
    Starting,
    /// It takes a player. It may have some already, where it takes several.
    Free,
    /// It has as many players as it takes.
    Busy,
    /// It ends once its players leave, and takes no new one.
    Draining,
}

fn one() -> u32 {
    1
}
