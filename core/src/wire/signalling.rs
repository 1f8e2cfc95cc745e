//! The Pixel Streaming signalling protocol between a page and us: JSON text frames over a WebSocket, version
//! 1.3.0, as Epic's stock front end speaks it. The server speaks first.
//!
//! ```text
//!  page                          server
//!    │  ◄───────────────── config   │
//!    │  listStreamers ───────────►  │   … held back while the player is queued …
//!    │  ◄─────────── streamerList   │
//!    │  subscribe ───────────────►  │
//!    │  ◄── offer, iceCandidate …   │
//!    │  layerPreference, answer, iceCandidate … ►
//! ```

use serde::{Deserialize, Serialize};

use super::returning::ReturnToken;
use crate::ids::{PlayerId, StreamerId};

/// The protocol version that we speak.
pub const PROTOCOL_VERSION: &str = "1.3.0";

/// The longest signalling message taken, in bytes. Answers of stock pages are about 5 kB.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// Page to server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum FromPlayer {
    /// Asks for `streamerList`.
    ListStreamers,
    /// Asks to be connected.
    Subscribe(Subscribe),
    /// Takes that back.
    Unsubscribe,
    /// The answer to an offer.
    Answer(Answer),
    /// One of the page's addresses.
    IceCandidate(IceCandidate),
    /// Sent after every offer; means nothing without an SFU.
    LayerPreference(LayerPreference),
    /// Answered with [`ToPlayer::Pong`].
    Ping(Ping),
    /// The answer to a ping of ours.
    Pong(Ping),
    /// A message of a kind that we don't know. Stock servers pass over these, and so do we.
    #[serde(other)]
    Unknown,
}

impl FromPlayer {
    /// Reads one frame.
    ///
    /// # Errors
    /// [`BadMessage`] where the frame is too long, is not JSON, or has fields of the wrong type.
    pub fn parse(frame: &str) -> Result<Self, BadMessage> {
        parse(frame)
    }
}

/// Reads one frame of any link that speaks JSON with a `type`.
///
/// # Errors
/// [`BadMessage`] where the frame is too long, is not JSON, or has fields of the wrong type.
pub fn parse<'a, T: Deserialize<'a>>(frame: &'a str) -> Result<T, BadMessage> {
    if frame.len() > MAX_MESSAGE_BYTES {
        return Err(BadMessage::TooLong(frame.len()));
    }
    serde_json::from_str(frame).map_err(|error| BadMessage::Form(error.to_string()))
}

/// Why a frame was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// Longer than [`MAX_MESSAGE_BYTES`].
    #[error("a signalling message of {0} bytes is too long: at most {MAX_MESSAGE_BYTES} are taken")]
    TooLong(usize),
    /// Not JSON, or a field is missing or of the wrong type.
    #[error("a signalling message could not be read: {0}")]
    Form(String),
}

/// Server to page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum ToPlayer {
    /// Always the first message.
    Config(Config),
    /// The streamers that the page may subscribe to: one, once the player has a claim.
    StreamerList(StreamerList),
    /// The streamer that the page is subscribed to has another name now. Sent before the second `streamerList` on one
    /// socket: a stock page otherwise waits for the first one's name to come back.
    StreamerIdChanged(StreamerIdChanged),
    /// No.
    SubscribeFailed(Failure),
    /// The streamer's offer.
    Offer(Offer),
    /// One of the streamer's addresses.
    IceCandidate(IceCandidate),
    /// The answer to a ping.
    Pong(Ping),
    /// Ours: how the player's waiting goes. Stock pages pass over it.
    Matchmaker(Notice),
    /// Ours: the last message was wrong, and how. Stock pages pass over it.
    Error(Failure),
}

/// How to reach a streamer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// The `RTCConfiguration`, as far as it is given.
    pub peer_connection_options: PeerConnectionOptions,
    /// [`PROTOCOL_VERSION`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<String>,
}

/// The part of an `RTCConfiguration` that the server chooses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerConnectionOptions {
    /// STUN and TURN servers.
    pub ice_servers: Vec<IceServer>,
}

/// A STUN or TURN server as a browser takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IceServer {
    /// Such as `turn:198.51.100.7:3478?transport=udp`. Always a list: the stock page throws on a bare string.
    pub urls: Vec<String>,
    /// For TURN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// For TURN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
}

/// The streamers to choose from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamerList {
    /// Their names.
    pub ids: Vec<StreamerId>,
}

/// A streamer's new name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamerIdChanged {
    /// The name from now on.
    #[serde(rename = "newID")]
    pub new_id: StreamerId,
}

/// The page's choice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subscribe {
    /// One of `streamerList`. Text, since any page may send anything.
    pub streamer_id: String,
}

/// Why something was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For people.
    pub message: String,
}

/// The streamer's offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// Whose.
    pub player_id: PlayerId,
    /// The session description.
    pub sdp: String,
}

/// The page's answer. Between programs of ours it carries the player.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Whose; the page leaves it out, and what it says is never believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub player_id: Option<String>,
    /// The session description.
    pub sdp: String,
    /// The lowest bitrate that the player wants, bits per second; 0 for no wish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_bitrate_bps: Option<f64>,
    /// The highest, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bitrate_bps: Option<f64>,
}

/// One address of one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IceCandidate {
    /// Whose; the page leaves it out, and what it says is never believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub player_id: Option<String>,
    /// An `RTCIceCandidateInit`.
    pub candidate: CandidateInit,
}

/// An `RTCIceCandidateInit` (W3C WebRTC, section 4.8.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CandidateInit {
    /// `candidate:…`; empty at the end of candidates.
    pub candidate: String,
    /// The media description that it is for.
    #[serde(default)]
    pub sdp_mid: Option<String>,
    /// The same by number.
    #[serde(default)]
    pub sdp_m_line_index: Option<u16>,
    /// The ICE generation that it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username_fragment: Option<String>,
}

/// Which layers an SFU should send. Without one it means nothing, but every stock page sends it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerPreference {
    /// Resolution layer.
    #[serde(default)]
    pub spatial_layer: f64,
    /// Frame-rate layer.
    #[serde(default)]
    pub temporal_layer: f64,
    /// Whose; the page sends an empty text.
    #[serde(default)]
    pub player_id: Option<String>,
}

/// A ping or its pong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ping {
    /// The sender's time in milliseconds, given back as it came.
    pub time: serde_json::Number,
}

/// How a player's waiting goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "camelCase")]
pub enum Notice {
    /// Waiting.
    Queued {
        /// The player's place, from 1, among those who may get what it asks for.
        position: u32,
        /// How many those are.
        waiting: u32,
        /// How long it may take, in seconds, as places became free lately; absent while that is not known.
        #[serde(
            rename = "expectedWaitSeconds",
            default,
            skip_serializing_if = "Option::is_none"
        )]
        expected_wait_seconds: Option<u64>,
        /// Whether no streamer there is what it asks for, free or not. One may still come.
        #[serde(rename = "nothingFits", default, skip_serializing_if = "std::ops::Not::not")]
        nothing_fits: bool,
    },
    /// Done waiting.
    Matched {
        /// With whom.
        #[serde(rename = "streamerId")]
        streamer_id: StreamerId,
        /// The session's name: what a link for viewers carries.
        #[serde(rename = "sessionId")]
        session_id: crate::ids::SessionId,
        /// With what the page comes back to this session: `?return=…` on its next socket. For nobody else.
        #[serde(rename = "returnToken", default, skip_serializing_if = "Option::is_none")]
        return_token: Option<ReturnToken>,
        /// Whether the page goes on with the peer connection that it has.
        #[serde(default)]
        resumed: bool,
        /// Whether others may watch, with a link that carries the session's name.
        #[serde(default)]
        shared: bool,
    },
    /// The streamer ends soon.
    Draining {
        /// The time that is left, in seconds.
        #[serde(rename = "secondsLeft")]
        seconds_left: u64,
    },
    /// The session is over, on this socket at least.
    Ended {
        /// For people.
        reason: String,
        /// What comes now.
        #[serde(default)]
        kind: EndKind,
    },
}

/// What comes after the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EndKind {
    /// Nothing: the socket closes. The page may connect again.
    #[default]
    Over,
    /// Another session, over this very socket: the player waits at the front of the queue.
    Moves,
    /// Nothing: the session goes on elsewhere, in another window of the same player.
    Replaced,
    /// Nothing: an operator ended it. The page connects again only when its player says so.
    Stopped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stock_pages_frames_are_understood() {
        let preference = r#"{"type":"layerPreference","spatialLayer":0,"temporalLayer":0,"playerId":""}"#;
        assert!(matches!(
            FromPlayer::parse(preference),
            Ok(FromPlayer::LayerPreference(_))
        ));
        let candidate = r#"{"type":"iceCandidate","candidate":{"candidate":"candidate:1 1 udp 1 a.local 9 typ host","sdpMid":"0","sdpMLineIndex":0,"usernameFragment":"DoyF"}}"#;
        assert!(matches!(
            FromPlayer::parse(candidate),
            Ok(FromPlayer::IceCandidate(_))
        ));
        let list = FromPlayer::parse(r#"{"type":"listStreamers"}"#);
        assert_eq!(list, Ok(FromPlayer::ListStreamers));
    }

    #[test]
    fn unknown_kinds_pass_and_wrong_ones_are_named() {
        assert_eq!(
            FromPlayer::parse(r#"{"type":"dance","with":1}"#),
            Ok(FromPlayer::Unknown)
        );
        for bad in [
            "",
            "{",
            "[]",
            "1",
            r#"{"type":7}"#,
            r#"{"type":"answer","sdp":7}"#,
            r#"{"type":"subscribe"}"#,
        ] {
            assert!(
                matches!(FromPlayer::parse(bad), Err(BadMessage::Form(_))),
                "{bad}"
            );
        }
        let long = format!(r#"{{"type":"answer","sdp":"{}"}}"#, "x".repeat(MAX_MESSAGE_BYTES));
        assert!(matches!(FromPlayer::parse(&long), Err(BadMessage::TooLong(_))));
    }

    #[test]
    fn what_a_page_gets_has_the_protocols_keys() {
        let config = ToPlayer::Config(Config {
            peer_connection_options: PeerConnectionOptions {
                ice_servers: vec![IceServer {
                    urls: vec!["stun:h:1".into()],
                    username: None,
                    credential: None,
                }],
            },
            protocol_version: Some(PROTOCOL_VERSION.into()),
        });
        assert_eq!(
            serde_json::to_string(&config).unwrap(),
            r#"{"type":"config","peerConnectionOptions":{"iceServers":[{"urls":["stun:h:1"]}]},"protocolVersion":"1.3.0"}"#
        );
        let queued = ToPlayer::Matchmaker(Notice::Queued {
            position: 1,
            waiting: 2,
            expected_wait_seconds: None,
            nothing_fits: false,
        });
        assert_eq!(
            serde_json::to_string(&queued).unwrap(),
            r#"{"type":"matchmaker","status":"queued","position":1,"waiting":2}"#
        );
    }
}
