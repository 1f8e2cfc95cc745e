//! Who sits where in the session that goes on, and for how long a seat is kept for one who is away.

use std::time::{Duration, Instant};

use penstock_core::ids::{SeatName, SessionId};
use penstock_core::wire::link::{Back, Claim, RefusedReason, Role};
use penstock_core::wire::returning::ReturnToken;
use penstock_core::wire::signalling::EndKind;

use super::{Decision, LinkId};

/// The seats of one session; without a player there is none.
#[derive(Debug, Default)]
pub(super) struct Seats {
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    session: SessionId,
    seats: Vec<Seat>,
}

#[derive(Debug)]
struct Seat {
    role: Role,
    token: ReturnToken,
    /// Who sits here; nobody once a player that is away has no connection of any kind left.
    link: Option<LinkId>,
    may_return: bool,
    away_until: Option<Instant>,
}

impl Seats {
    /// The session that goes on.
    pub(super) fn session(&self) -> Option<&SessionId> {
        self.current.as_ref().map(|current| &current.session)
    }

    /// How many sit in this role, those who are away too.
    pub(super) fn count(&self, role: Role) -> u32 {
        self.all().map(|seat| u32::from(seat.role == role)).sum()
    }

    /// Players who are away.
    pub(super) fn players_away(&self) -> u32 {
        let players = self.all().filter(|seat| seat.role == Role::Player);
        players.map(|seat| u32::from(seat.away_until.is_some())).sum()
    }

    /// Those that someone may come back to.
    pub(super) fn names(&self) -> Vec<SeatName> {
        let kept = self.all().filter(|seat| seat.may_return);
        kept.map(|seat| seat.token.seat().clone()).collect()
    }

    /// When [`Self::free`] has something to do.
    pub(super) fn next_over(&self) -> Option<Instant> {
        self.all().filter_map(|seat| seat.away_until).min()
    }

    /// Gives `link` a seat, with `token` as the way back to it; the first one's session begins.
    pub(super) fn seat(&mut self, link: LinkId, claim: Claim, token: ReturnToken) {
        let current = self.current.get_or_insert_with(|| Current {
            session: claim.session_id,
            seats: Vec::new(),
        });
        current.seats.push(Seat {
            role: claim.role,
            token,
            link: Some(link),
            may_return: claim.may_return,
            away_until: None,
        });
    }

    /// A claim of one who says to sit here already.
    pub(super) fn come_back(&mut self, link: LinkId, role: Role, back: &Back) -> Vec<Decision> {
        let seats = self.current.iter_mut().flat_map(|current| &mut current.seats);
        let seat = seats
            .filter(|seat| seat.may_return && seat.role == role)
            .find(|seat| seat.token == back.token);
        let Some(seat) = seat else {
            return vec![Decision::Refuse(link, RefusedReason::NoSuchSession)];
        };
        seat.away_until = None;
        if let (Some(to), true) = (seat.link, back.live) {
            return vec![Decision::HandOver { from: link, to }];
        }
        let before = seat.link.replace(link);
        let replaced = before.map(|before| {
            let reason = "The session goes on in another window.";
            Decision::End(before, EndKind::Replaced, reason)
        });
        let granted = Decision::Grant(link, seat.token.clone());
        replaced.into_iter().chain([granted]).collect()
    }

    /// Whoever sits there over `link` is away, and is waited for during `grace` if it may come back; `ended` says that
    /// the link is no more.
    pub(super) fn leave(&mut self, now: Instant, link: LinkId, grace: Duration, ended: bool) {
        let mut seats = self.current.iter_mut().flat_map(|current| &mut current.seats);
        let Some(seat) = seats.find(|seat| seat.link == Some(link)) else {
            return;
        };
        if ended {
            seat.link = None;
        }
        let keeps = seat.may_return && !grace.is_zero();
        let until = if keeps { now + grace } else { now };
        // Whoever is away already is not given more time by what breaks next.
        seat.away_until = Some(seat.away_until.map_or(until, |before| before.min(until)));
    }

    /// Takes away the seats whose time is over; without a player there is no session, and its viewers go.
    pub(super) fn free(&mut self, now: Instant) -> Vec<Decision> {
        let Some(current) = &mut self.current else {
            return Vec::new();
        };
        let over = |seat: &mut Seat| seat.away_until.is_some_and(|until| until <= now);
        let gone = current.seats.extract_if(.., over);
        let mut decisions: Vec<_> = gone
            .filter_map(|seat| seat.end(EndKind::Over, "The player did not come back."))
            .collect();
        if current.seats.iter().all(|seat| seat.role == Role::Viewer) {
            decisions.extend(self.end_all(EndKind::Over, "The player has left."));
        }
        decisions
    }

    /// Ends the session for all who sit here.
    pub(super) fn end_all(&mut self, kind: EndKind, reason: &'static str) -> Vec<Decision> {
        let seats = self.current.take().map(|current| current.seats);
        seats
            .into_iter()
            .flatten()
            .filter_map(|seat| seat.end(kind, reason))
            .collect()
    }

    fn all(&self) -> impl Iterator<Item = &Seat> {
        self.current.iter().flat_map(|current| &current.seats)
    }
}

impl Seat {
    fn end(&self, kind: EndKind, reason: &'static str) -> Option<Decision> {
        Some(Decision::End(self.link?, kind, reason))
    }
}
