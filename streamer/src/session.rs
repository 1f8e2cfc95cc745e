//! Who may be on this streamer. The streamer alone knows whether it is free, so this is where a claim is decided.
//!
//! ```text
//!            ready          claim            leaves for good
//!  starting ───────► free ─────────► busy ───────────────────────► free, collecting bids for 50 ms
//!                     │          lost │ ▲ comes back                        ▲
//!                     │               ▼ │                     grace is over │
//!                     │              away ──────────────────────────────────┘
//!                     └───── drain ────┴──► draining: nobody new; over when the players have left
//! ```
//!
//! Several matchmakers may want a streamer at the moment it becomes free. For [`BID_WINDOW`] it collects their
//! claims, then takes the player who has waited longest; so the order of a queue holds over all replicas.
//!
//! A seat (`seats.rs`) outlives the link that it was claimed over: a player who is [lost](Gone) may come back to it for
//! a while, with its [`ReturnToken`], over any matchmaker. Others are refused meanwhile, and viewers stay.

mod seats;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use penstock_core::ids::{SeatName, SessionId};
use penstock_core::wire::link::{Claim, RefusedReason, Role};
use penstock_core::wire::returning::ReturnToken;
use penstock_core::wire::signalling::EndKind;
use penstock_core::wire::status::StreamerState;

use seats::Seats;

/// How long a streamer that has become free collects claims before it takes one.
pub const BID_WINDOW: Duration = Duration::from_millis(50);
/// How long a seat is kept, at most, for a player whose page was closed, or is being loaded again: from outside both
/// look alike. Loading takes a second or two; and most who close a page are gone, while others wait for the place.
pub const RELOAD_GRACE: Duration = Duration::from_secs(5);

/// One connection of a matchmaker; each carries one player.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// What follows for a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The claim is granted, and this is the way back.
    Grant(LinkId, ReturnToken),
    /// The claim is refused.
    Refuse(LinkId, RefusedReason),
    /// The claim is that of a player who is here already, over another link: that one goes on with the new socket.
    HandOver {
        /// The new link, which ends with that.
        from: LinkId,
        /// The link that goes on.
        to: LinkId,
    },
    /// A granted link has to end, for this reason in words.
    End(LinkId, EndKind, &'static str),
}

/// How a player is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It said so, or did what ends a session.
    ForGood,
    /// Its page was closed, or is being loaded again.
    Closed,
    /// Nobody knows: a network failed, or a matchmaker.
    Lost,
}

/// How many a streamer takes, and how long it waits for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many steer: at least one.
    pub players: u32,
    /// How many watch; `None` where the session is for its players alone.
    pub viewers: Option<u32>,
    /// How long a seat is kept for one who was lost.
    pub return_grace: Duration,
}

/// All that is known of who is here.
#[derive(Debug)]
pub struct Session {
    ready: bool,
    draining: bool,
    limits: Limits,
    seats: Seats,
    bids: Vec<Bid>,
    bids_until: Option<Instant>,
}

#[derive(Debug)]
struct Bid {
    link: LinkId,
    claim: Claim,
    token: ReturnToken,
}

impl Session {
    /// A streamer that shows nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            ready: false,
            draining: false,
            limits,
            seats: Seats::default(),
            bids: Vec::new(),
            bids_until: None,
        }
    }

    /// The source shows a picture, or none any more. Who is here stays.
    pub fn set_ready(&mut self, ready: bool) -> Vec<Decision> {
        self.ready = ready;
        if ready {
            Vec::new()
        } else {
            self.refuse_bids(RefusedReason::Starting)
        }
    }

    /// Takes nobody new from now on.
    pub fn drain(&mut self) -> Vec<Decision> {
        self.draining = true;
        self.refuse_bids(RefusedReason::Draining)
    }

    /// Sends everyone elsewhere: the streamer ends now.
    pub fn evict(&mut self) -> Vec<Decision> {
        self.seats.end_all(EndKind::Moves, "The streamer ends.")
    }

    /// Ends the session of this name: its players and all who watch. `None` where it is not here.
    pub fn end(&mut self, now: Instant, session: &SessionId) -> Option<Vec<Decision>> {
        if self.session_id() != Some(session) {
            return None;
        }
        self.bids_until = Some(now + BID_WINDOW);
        let over = self
            .seats
            .end_all(EndKind::Stopped, "An operator ended the session.");
        Some(over)
    }

    /// Whether it drains, and nobody is left.
    pub fn is_drained(&self) -> bool {
        self.draining && self.seats.session().is_none()
    }

    /// A claim has come in on `link`; where it is granted a new seat, `token` is the way back to that.
    pub fn claim(&mut self, now: Instant, link: LinkId, claim: Claim, token: ReturnToken) -> Vec<Decision> {
        if let Some(back) = &claim.back {
            return self.seats.come_back(link, claim.role, back);
        }
        if let Some(reason) = self.refusal(&claim) {
            return vec![Decision::Refuse(link, reason)];
        }
        let bid = Bid { link, claim, token };
        if bid.claim.role == Role::Player && self.collects_bids(now) {
            self.bids.push(bid);
            return Vec::new();
        }
        vec![self.grant(bid)]
    }

    /// The player of a link can't be reached over it any more, though the link may still have its peer connection;
    /// or the link has ended.
    pub fn gone(&mut self, now: Instant, link: LinkId, how: Gone, ended: bool) -> Vec<Decision> {
        self.bids.retain(|bid| bid.link != link);
        let grace = match how {
            Gone::ForGood => Duration::ZERO,
            Gone::Closed => RELOAD_GRACE.min(self.limits.return_grace),
            Gone::Lost => self.limits.return_grace,
        };
        self.seats.leave(now, link, grace, ended);
        self.free_seats(now)
    }

    /// When [`Self::timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let bids = self.bids_until.filter(|_| !self.bids.is_empty());
        self.seats.next_over().into_iter().chain(bids).min()
    }

    /// Frees the seats of those who did not come back; then takes the bids of the players who have waited longest,
    /// the earlier bid where two waited alike.
    pub fn timeout(&mut self, now: Instant) -> Vec<Decision> {
        let mut decisions = self.free_seats(now);
        if self.bids_until.is_none_or(|until| now < until) {
            return decisions;
        }
        self.bids_until = None;
        while self.players() < self.limits.players
            && let Some(oldest) = (0..self.bids.len())
                .rev()
                .max_by_key(|&i| self.bids[i].claim.waited_ms)
        {
            let bid = self.bids.remove(oldest);
            decisions.push(self.grant(bid));
        }
        decisions.extend(self.refuse_bids(RefusedReason::Busy));
        decisions
    }

    /// Whether it can take a player.
    pub fn state(&self) -> StreamerState {
        match (self.draining, self.is_full(), self.ready, self.session_id()) {
            (true, ..) => StreamerState::Draining,
            (false, true, ..) => StreamerState::Busy,
            (false, false, true, _) => StreamerState::Free,
            (false, false, false, None) => StreamerState::Starting,
            (false, false, false, Some(_)) => StreamerState::Busy,
        }
    }

    /// The session that goes on.
    pub fn session_id(&self) -> Option<&SessionId> {
        self.seats.session()
    }

    /// Players here, those who are away too.
    pub fn players(&self) -> u32 {
        self.seats.count(Role::Player)
    }

    /// Players who are away.
    pub fn away(&self) -> u32 {
        self.seats.players_away()
    }

    /// Viewers here, those who are away too.
    pub fn viewers(&self) -> u32 {
        self.seats.count(Role::Viewer)
    }

    /// The seats that someone may come back to.
    pub fn seat_names(&self) -> Vec<SeatName> {
        self.seats.names()
    }

    fn free_seats(&mut self, now: Instant) -> Vec<Decision> {
        let players = self.players();
        let decisions = self.seats.free(now);
        if self.players() < players {
            self.bids_until = Some(now + BID_WINDOW);
        }
        decisions
    }

    fn is_full(&self) -> bool {
        self.players() >= self.limits.players
    }

    fn collects_bids(&self, now: Instant) -> bool {
        // Bids whose time is up but that were not decided yet go before a newcomer.
        !self.bids.is_empty() || self.bids_until.is_some_and(|until| now < until)
    }

    fn refusal(&self, claim: &Claim) -> Option<RefusedReason> {
        if self.draining {
            return Some(RefusedReason::Draining);
        }
        match (claim.role, self.limits.viewers) {
            (Role::Viewer, _) if self.session_id() != Some(&claim.session_id) => {
                Some(RefusedReason::NoSuchSession)
            }
            (Role::Viewer, None) => Some(RefusedReason::Exclusive),
            (Role::Viewer, Some(most)) if self.viewers() >= most => Some(RefusedReason::TooManyViewers),
            (Role::Viewer, Some(_)) => None,
            (Role::Player, _) if self.is_full() => Some(RefusedReason::Busy),
            (Role::Player, _) if !self.ready => Some(RefusedReason::Starting),
            (Role::Player, _) => None,
        }
    }

    fn grant(&mut self, bid: Bid) -> Decision {
        self.seats.seat(bid.link, bid.claim, bid.token.clone());
        Decision::Grant(bid.link, bid.token)
    }

    fn refuse_bids(&mut self, reason: RefusedReason) -> Vec<Decision> {
        self.bids
            .drain(..)
            .map(|bid| Decision::Refuse(bid.link, reason))
            .collect()
    }
}
