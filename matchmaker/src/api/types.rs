//! What the API takes and gives, as JSON; `openapi.json` describes it to others.

use penstock_core::ids::{ApplicationName, SessionId, StreamerId};
use penstock_core::units::{EncoderUnits, StreamSize};
use penstock_core::wire::signalling::IceServer;
use penstock_core::wire::status::{StreamerState, StreamerStatus};
use serde::{Deserialize, Serialize};

use crate::lobby::Wish;
use crate::problem::Refusal;

/// A session that goes on somewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Its name; whoever knows it may watch, if they may watch at all.
    pub id: SessionId,
    /// The streamer that it is on.
    pub streamer_id: StreamerId,
    /// What is streamed, where the operator named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application: Option<ApplicationName>,
    /// The size and rate, such as `1280x720@30`.
    pub stream: String,
    /// What that takes of an encoder.
    pub encoder_units: EncoderUnits,
    /// Players: 0 or 1.
    pub players: u32,
    /// Viewers.
    pub viewers: u32,
    /// Whether its streamer ends when the session does.
    pub draining: bool,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionList {
    /// In no order that means anything.
    pub sessions: Vec<Session>,
}

/// What somebody is to play.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NewSession {
    application: Option<String>,
    stream: Option<String>,
    streamer_id: Option<String>,
}

/// A link that admits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Invitation {
    /// To be opened in a browser.
    pub join_url: String,
    /// Until when, in seconds of Unix time.
    pub expires_at: u64,
}

/// What an `RTCPeerConnection` takes for its `iceServers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IceServers {
    /// The servers, with credentials where they need some.
    pub ice_servers: Vec<IceServer>,
    /// Until when the credentials are good, in seconds of Unix time; absent where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
}

impl Session {
    /// The session on a streamer that says this of itself, if there is one.
    pub fn of(status: &StreamerStatus) -> Option<Self> {
        Some(Self {
            id: status.session_id.clone()?,
            streamer_id: status.streamer_id.clone(),
            application: status.application.clone(),
            stream: status.stream.to_string(),
            encoder_units: status.units,
            players: status.players,
            viewers: status.viewers,
            draining: status.state == StreamerState::Draining,
        })
    }
}

impl NewSession {
    /// The same as the lobby takes it.
    ///
    /// # Errors
    /// 400 with what is wrong.
    pub fn wish(&self) -> Result<Wish, Refusal> {
        wish(
            self.application.as_deref(),
            self.stream.as_deref(),
            self.streamer_id.as_deref(),
        )
    }
}

/// Reads what is asked of a streamer, from JSON or from a URL.
///
/// # Errors
/// 400 with what is wrong.
pub fn wish(
    application: Option<&str>,
    stream: Option<&str>,
    streamer_id: Option<&str>,
) -> Result<Wish, Refusal> {
    fn read<T: std::str::FromStr<Err: std::fmt::Display>>(text: Option<&str>) -> Result<Option<T>, Refusal> {
        let read = text.map(str::parse).transpose();
        read.map_err(|error| Refusal::bad_request(format!("reading what to play: {error}")))
    }
    let stream: Option<StreamSize> = read(stream)?;
    Ok(Wish {
        application: read(application)?,
        stream,
        streamer_id: read(streamer_id)?,
    })
}
