//! The matchmaker's WebSocket to a streamer, `GET /session`: one for each player, and open for as long as the
//! player's claim lives.
//!
//! ```text
//!  matchmaker                              streamer
//!      │ claim {player, session, waited} ──►  │  the streamer alone decides
//!      │ ◄── claimed {streamerId}   or refused {reason}, then close
//!      │ playerConnected ──────────────────►  │  the page has subscribed
//!      │ ◄────────────── offer, iceCandidate  │
//!      │ answer, iceCandidate, layerPreference ►
//!      │ close ────────────────────────────►  │  the player is gone
//!      │ ◄─────── disconnectPlayer {reason}   │  the streamer ends it
//! ```

use serde::{Deserialize, Serialize};

use super::signalling::{Answer, IceCandidate, LayerPreference, Offer, Ping};
use crate::ids::{PlayerId, SessionId, StreamerId};

/// Matchmaker to streamer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum ToStreamer {
    /// Always the first message, and never again.
    Claim(Claim),
    /// The page is ready for an offer.
    PlayerConnected(PlayerConnected),
    /// The page's answer.
    Answer(Answer),
    /// One of the page's addresses.
    IceCandidate(IceCandidate),
    /// Sent by stock pages after every offer; means nothing without an SFU.
    LayerPreference(LayerPreference),
    /// Answered with [`FromStreamer::Pong`].
    Ping(Ping),
}

/// Streamer to matchmaker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum FromStreamer {
    /// Yes.
    Claimed(Claimed),
    /// No; the socket closes.
    Refused(Refused),
    /// The streamer's offer for the page.
    Offer(Offer),
    /// One of the streamer's addresses.
    IceCandidate(IceCandidate),
    /// The streamer ends this player; the socket closes.
    DisconnectPlayer(DisconnectPlayer),
    /// The answer to a ping.
    Pong(Ping),
}

/// A player asks for a streamer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Who.
    pub player_id: PlayerId,
    /// For a player: the session to begin. For a viewer: the session to watch.
    pub session_id: SessionId,
    /// To steer, or to watch.
    pub role: Role,
    /// How long the player has waited, in milliseconds: a streamer that becomes free takes the oldest bid.
    pub waited_ms: u64,
}

/// What a player may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Sees and steers. A streamer has one.
    Player,
    /// Sees.
    Viewer,
}

/// The streamer's yes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claimed {
    /// The name for the page's `streamerList`.
    pub streamer_id: StreamerId,
}

/// The streamer's no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why.
    pub reason: RefusedReason,
}

/// Why a claim was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RefusedReason {
    /// It shows no picture yet.
    Starting,
    /// It has a player, or gave its place to one who had waited longer.
    Busy,
    /// It ends soon.
    Draining,
    /// A viewer asked for a session that is not on this streamer.
    NoSuchSession,
    /// It has as many viewers as it takes.
    TooManyViewers,
}

/// The page has subscribed: make an offer. The fields are the Pixel Streaming protocol's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlayerConnected {
    /// Who.
    pub player_id: PlayerId,
    /// Always true: our pages have one.
    pub data_channel: bool,
    /// Always false: there is no SFU.
    pub sfu: bool,
}

/// The streamer ends a player.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DisconnectPlayer {
    /// Who.
    pub player_id: PlayerId,
    /// Why, for the page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
