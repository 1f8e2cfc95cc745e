//! What the desk hears, and what it tells pages.

use penstock_core::ids::{PlayerId, SessionId};
use penstock_core::wire::signalling::ToPlayer;
use tokio::sync::{mpsc, oneshot};

use crate::lobby::{Input, Return, View, Want};

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
}

/// What a page's task does next.
#[derive(Debug)]
pub enum ToPage {
    /// Send this.
    Message(ToPlayer),
    /// Close the socket, and end.
    Close {
        /// The WebSocket close code.
        code: u16,
        /// Why, for people.
        reason: String,
    },
}
