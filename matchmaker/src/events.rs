//! What the desk hears, and what it tells pages.

use std::net::SocketAddr;

use penstock_core::ids::{PlayerId, SessionId};
use penstock_core::wire::signalling::ToPlayer;
use penstock_core::wire::status::StreamerStatus;
use tokio::sync::{mpsc, oneshot};

use crate::lobby::{Input, QueueView, Return, View, Want, Wish};

/// What reaches the desk.
#[derive(Debug)]
pub enum Event {
    /// A page connected.
    Joined {
        /// Who.
        player: PlayerId,
        /// The session that it begins if it plays.
        session: SessionId,
        /// What for.
        want: Want,
        /// Whether it comes back.
        back: Return,
        /// Where its messages go.
        page: mpsc::Sender<ToPage>,
    },
    /// Anything else that the lobby takes.
    Input(Input),
    /// Someone looks in.
    Look(oneshot::Sender<View>),
    /// The API or the overview asks who is where.
    Survey(oneshot::Sender<Survey>),
}

/// How streamers and queue stand, for the API and the overview. It names addresses, so it is not shown as it is.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// Where each streamer listens, and what it says.
    pub streamers: Vec<(SocketAddr, StreamerStatus)>,
    /// What those who wait ask for, longest waiting first.
    pub waiting: Vec<Wish>,
    /// How the queue stands.
    pub queue: QueueView,
}

/// What a page's task does next.
#[derive(Debug)]
pub enum ToPage {
    /// Send this. Boxed, since every page's channel has room for many from its begin.
    Message(Box<ToPlayer>),
    /// Close the socket, and end.
    Close {
        /// The WebSocket close code.
        code: u16,
        /// Why, for people.
        reason: String,
    },
}

/// How many messages may wait for one page, or for one streamer's link.
pub const OUTBOX: usize = 64;
