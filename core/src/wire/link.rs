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
//!      │ goodbye {forGood}, close ─────────►  │  the player is gone; just a close: it was lost
//!      │ ◄───────────── draining {secondsLeft} │  the streamer ends soon
//!      │ ◄───────── disconnectPlayer {reason}  │  the streamer ends it
//! ```
//!
//! A player who is gone, but not for good, keeps its seat for a while. It comes back with a claim that carries the
//! [`ReturnToken`] of its seat, over whichever matchmaker, and either takes up the peer connection that it still has
//! (`live`), or begins a new one.

use serde::{Deserialize, Serialize};

use super::returning::ReturnToken;
use super::signalling::{Answer, EndKind, IceCandidate, LayerPreference, Offer, Ping};
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
    /// The player has gone of its own accord. The link closes.
    Goodbye(Goodbye),
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
    /// The streamer was told to end, and will when this time is over.
    Draining(Draining),
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
    /// The seat that the player has here already; absent where it asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<Back>,
    /// Whether the page knows how to come back. A seat is kept for nobody else.
    #[serde(default)]
    pub may_return: bool,
}

/// A player comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Back {
    /// Of its seat.
    pub token: ReturnToken,
    /// Whether the page still has its peer connection, and only lost its signalling.
    pub live: bool,
}

/// The player has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Goodbye {
    /// Whether it said that it won't come back. Otherwise its page was closed or is being loaded again: nobody can
    /// tell which.
    pub for_good: bool,
}

/// The streamer ends soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Draining {
    /// The time that its players have left, in seconds.
    pub seconds_left: u64,
}

/// What a player may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Sees and steers. Most streamers have one.
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
    /// The session that goes on: the one that the claim began, or that it joined.
    pub session_id: SessionId,
    /// With what the player may come back to its seat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub return_token: Option<ReturnToken>,
    /// Whether the page's peer connection goes on. Then there will be no offer.
    #[serde(default)]
    pub resumed: bool,
    /// Whether the session takes viewers.
    #[serde(default)]
    pub shared: bool,
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
    /// It has as many players as it takes, or gave its place to one who had waited longer.
    Busy,
    /// It ends soon.
    Draining,
    /// A viewer asked for a session that is not on this streamer, or a player came back to a seat that is not there
    /// any more.
    NoSuchSession,
    /// Its session is for its player alone.
    Exclusive,
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
    /// What the player may expect.
    #[serde(default)]
    pub kind: EndKind,
}
