//! What goes into the lobby, what comes out of it, and what it remembers.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use penstock_core::ids::{ApplicationName, PlayerId, SessionId, StreamerId};
use penstock_core::units::StreamSize;
use penstock_core::wire::link::{Back, Claim, FromStreamer, ToStreamer};
use penstock_core::wire::returning::ReturnToken;
use penstock_core::wire::signalling::{FromPlayer, ToPlayer};
use penstock_core::wire::status::{StreamerState, StreamerStatus};
use serde::{Deserialize, Serialize};

/// One WebSocket of ours to a streamer. Never used twice, so that what an old link still says is told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What a page came for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// To play: the first streamer that is free and fits.
    Play(Wish),
    /// To watch the session of this name. Text, since it comes from a URL.
    Watch(String),
}

/// Whether a page knows how to come back to its session, and whether it does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Return {
    /// A stock page: its place is free once it leaves.
    #[default]
    Never,
    /// It may come back later, with the token that it will be given.
    Later,
    /// It is back. `live`: it has its peer connection still, and only lost its signalling.
    Now {
        /// The right to its seat.
        token: ReturnToken,
        /// Whether its peer connection goes on.
        live: bool,
    },
}

/// How a page left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parting {
    /// It did what ends its session.
    ForGood,
    /// It closed its socket: its window is closed, or it is being loaded again.
    Closed,
    /// Its socket broke, or we end.
    Lost,
}

/// What a player asks of a streamer. Where nothing is asked for, any will do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Wish {
    /// It streams this application.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application: Option<ApplicationName>,
    /// It encodes exactly this size and rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamSize>,
    /// It is this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streamer_id: Option<StreamerId>,
}

impl Wish {
    /// Whether a streamer is what was asked for; whether it is free is another question.
    pub fn fits(&self, status: &StreamerStatus) -> bool {
        #[cfg(test)]
        FITS_ASKED.with(|asked| asked.set(asked.get() + 1));
        let application = self.application.as_ref();
        let streamer = self.streamer_id.as_ref();
        application.is_none_or(|wanted| status.application.as_ref() == Some(wanted))
            && self.stream.is_none_or(|wanted| status.stream == wanted)
            && streamer.is_none_or(|wanted| status.streamer_id == *wanted)
    }

    /// Whether one streamer could be what both ask for.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        fn may_agree<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> bool {
            one.is_none() || other.is_none() || one == other
        }
        may_agree(self.application.as_ref(), other.application.as_ref())
            && may_agree(self.stream.as_ref(), other.stream.as_ref())
            && may_agree(self.streamer_id.as_ref(), other.streamer_id.as_ref())
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A page connected, and has its `config`.
    Joined {
        /// Who: random, given out by us.
        player: PlayerId,
        /// The session that it begins if it plays: random, and a capability to watch.
        session: SessionId,
        /// What for.
        want: Want,
        /// Whether it comes back.
        back: Return,
    },
    /// A page sent a message.
    Said {
        /// Who.
        player: PlayerId,
        /// What.
        message: FromPlayer,
    },
    /// A page's socket is closed.
    Left {
        /// Whose.
        player: PlayerId,
        /// How.
        parting: Parting,
    },
    /// A streamer said how it stands.
    Status {
        /// Where it listens.
        address: SocketAddr,
        /// How it stands.
        status: StreamerStatus,
    },
    /// A streamer's states can't be heard, or it is gone.
    StreamerLost {
        /// Where it listened.
        address: SocketAddr,
    },
    /// A streamer sent a message.
    LinkSaid {
        /// Over which link.
        link: LinkId,
        /// What.
        message: FromStreamer,
    },
    /// A link ended, or never came about.
    LinkClosed {
        /// Which.
        link: LinkId,
    },
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Send a message to a page.
    Send {
        /// To whom.
        player: PlayerId,
        /// What.
        message: ToPlayer,
    },
    /// Send a page its `config` anew, for the streamer that it is about to get.
    Configure {
        /// Whose.
        player: PlayerId,
        /// The streamer's media addresses, the only peers that its TURN credentials are good for; where there are none, they
        /// are good for nothing.
        peers: Vec<IpAddr>,
    },
    /// Close a page's socket.
    Close {
        /// Whose.
        player: PlayerId,
        /// The WebSocket close code.
        code: u16,
        /// Why, for people; 123 bytes at most.
        reason: String,
    },
    /// Open a link to a streamer, and send the claim over it.
    Dial {
        /// The new link.
        link: LinkId,
        /// Where to.
        address: SocketAddr,
        /// The first message.
        claim: Claim,
    },
    /// Send a message to a streamer.
    Tell {
        /// Over which link.
        link: LinkId,
        /// What.
        message: ToStreamer,
    },
    /// Close a link. Nothing more need be said of it.
    HangUp {
        /// Which.
        link: LinkId,
    },
    /// Count what became of a claim.
    Count(Outcome),
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The streamer said yes, after the player waited so long for a free one; `None` for viewers and for those who come
    /// back.
    Claimed(Option<Duration>),
    /// The streamer said no.
    Refused,
    /// The streamer said nothing.
    Failed,
}

/// The lobby as others may see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct View {
    /// The streamers that say how they stand.
    pub streamers: Vec<StreamerView>,
    /// How many wait.
    pub waiting: usize,
    /// How many pages are connected: playing, watching or waiting.
    pub players: usize,
}

/// How the queue stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueView {
    /// How many wait to play.
    pub waiting: usize,
    /// How long the one has waited who waits longest; absent where nobody does.
    pub longest_wait: Option<Duration>,
    /// How long somebody who comes now may expect to wait, in rounded seconds; absent while that is not known.
    pub expected_wait_seconds: Option<u64>,
}

/// A streamer as others may see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamerView {
    /// Its name.
    pub streamer_id: StreamerId,
    /// Whether it takes a player.
    pub state: StreamerState,
    /// Players on it, those who are away too.
    pub players: u32,
    /// How many players it takes in all.
    #[serde(skip)]
    pub max_players: u32,
    /// How many of them are away, and may come back.
    pub away: u32,
    /// Viewers on it.
    pub viewers: u32,
}

/// A place in the order of arrival. It is kept while a player plays, so one whose streamer dies comes first again.
pub(super) type Order = u64;

#[derive(Debug)]
pub(super) struct Player {
    pub(super) want: Want,
    pub(super) session: SessionId,
    pub(super) order: Order,
    pub(super) in_order_since: Instant,
    /// Since when it is without a streamer. One that lost its streamer keeps its place in the order, but did not wait
    /// while it played.
    pub(super) waits_since: Instant,
    pub(super) place: Place,
    /// What it was told last of its place.
    pub(super) told: Option<Told>,
    /// Whether it knows how to come back.
    pub(super) may_return: bool,
    /// The seat that it comes back to.
    pub(super) back: Option<Returning>,
    /// Whether the page asked for a list on this socket.
    pub(super) asked: bool,
    /// The name of the streamer that the page subscribed to last.
    pub(super) subscribed_to: Option<StreamerId>,
}

/// What one who waits is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) position: u32,
    pub(super) waiting: u32,
    pub(super) expected_wait_seconds: Option<u64>,
    pub(super) nothing_fits: bool,
}

/// A player on the way back to its seat.
#[derive(Debug)]
pub(super) struct Returning {
    pub(super) back: Back,
    /// Until when its streamer is looked for.
    pub(super) until: Instant,
}

impl Player {
    pub(super) fn watches(&self) -> Option<&str> {
        match &self.want {
            Want::Play(_) => None,
            Want::Watch(session) => Some(session),
        }
    }

    /// Whether it waits for whatever fits, and not for one streamer alone.
    pub(super) fn waits_in_line(&self) -> bool {
        self.place.is_waiting() && self.back.is_none() && self.watches().is_none()
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Idle,
    Waiting {
        since: Instant,
    },
    Claiming {
        link: LinkId,
        address: SocketAddr,
        /// Its media addresses, as it said them. Its states may not be heard any more when it says yes.
        peers: Vec<IpAddr>,
        since: Instant,
    },
    Matched {
        link: LinkId,
        address: SocketAddr,
        streamer: StreamerId,
        since: Instant,
        subscribed: bool,
        offered: bool,
    },
}

impl Place {
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self, Self::Waiting { .. })
    }

    pub(super) fn is_claiming(&self) -> bool {
        matches!(self, Self::Claiming { .. })
    }

    pub(super) fn link(&self) -> Option<(LinkId, SocketAddr)> {
        match self {
            Self::Idle | Self::Waiting { .. } => None,
            Self::Claiming { link, address, .. } | Self::Matched { link, address, .. } => {
                Some((*link, *address))
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Streamer {
    pub(super) status: StreamerStatus,
    /// It said no to a claim although it had said it was free.
    pub(super) paused_until: Option<Instant>,
}

impl Streamer {
    pub(super) fn is_paused(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
thread_local! {
    static FITS_ASKED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// How often this thread has asked whether a streamer fits a wish: the measure of the work of matching.
#[cfg(test)]
pub(super) fn fits_asked() -> u64 {
    FITS_ASKED.get()
}
