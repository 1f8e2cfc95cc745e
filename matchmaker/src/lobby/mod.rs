//! The lobby: who waits, who plays where, and which streamer is asked next. One synchronous struct, owned by one
//! task; time is an argument. Inputs go in, [`Command`]s come out, and nothing else happens.
//!
//! ```text
//!            joined                    claimed                 list, subscribe
//!  (page) ──────────► Waiting ─ Dial ─► Claiming ──────────► Matched ─────────► playing
//!                        ▲                 │ refused, failed    │ streamer gone
//!                        └─────────────────┴────────────────────┘   the place in the order is kept
//!                        ▲ listStreamers
//!                      Idle ◄─ unsubscribe; a viewer whose session is not there
//! ```
//!
//! A page that comes back with the token of its seat waits for that streamer alone, for a moment; then it queues as
//! everyone.
//!
//! Invariants, which the property test checks: a player holds one link at most; a streamer has no more claims of
//! players of ours, in flight or granted, than it takes players; whoever waited longer is placed first.

mod pages;
#[cfg(test)]
mod properties;
mod streamers;
#[cfg(test)]
mod tests;
mod turnover;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::{Duration, Instant};

use penstock_core::ids::{PlayerId, SeatName};
use penstock_core::wire::link::{Claim, Role};
use penstock_core::wire::signalling::{Failure, Notice, ToPlayer};
use penstock_core::wire::status::{StreamerState, StreamerStatus};

use turnover::Turnover;
pub use types::{
    Command, Input, LinkId, Outcome, Parting, QueueView, Return, StreamerView, View, Want, Wish,
};
use types::{Order, Place, Player, Streamer};

/// How long a viewer waits for a session that no streamer has yet: after a restart of ours the streamers' states
/// come in one by one.
pub const VIEWER_GRACE: Duration = Duration::from_secs(3);
/// How long the streamer of a player who comes back is looked for. Just after a start of ours the streamers are heard
/// of one by one, and the first free one is not the one that has the seat.
pub const RETURN_WAIT: Duration = Duration::from_secs(2);
/// How long a streamer may take to answer a claim.
pub const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);
/// A page that was given its list and does not subscribe gets its offer all the same: stock pages that look for a
/// streamer by another name would wait for ever, and the streamer with them.
pub const UNASKED_OFFER_AFTER: Duration = Duration::from_secs(2);
/// How long a streamer that said no is left alone, unless it says something new of itself.
pub const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// How often those who wait hear of their places, at most.
pub const POSITIONS_EVERY: Duration = Duration::from_millis(200);
/// How many at the front of the queue hear of their places so often.
pub const NEAR_THE_FRONT: usize = 50;
/// How often all others do. To them one place more or less means little; and when somebody joins or leaves a long queue,
/// a message to everyone in it would cost more than everything else.
pub const POSITIONS_OF_ALL_EVERY: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub struct Lobby {
    players: BTreeMap<PlayerId, Player>,
    /// Those in [`Place::Waiting`] or [`Place::Claiming`] who want to play, longest waiting first.
    queue: BTreeMap<Order, PlayerId>,
    streamers: BTreeMap<SocketAddr, Streamer>,
    /// Which players have a claim on a streamer, in flight or granted. Kept apart from `streamers`, since a link may
    /// outlive the stream of states.
    holders: BTreeMap<SocketAddr, BTreeSet<PlayerId>>,
    links: BTreeMap<LinkId, PlayerId>,
    last_order: Order,
    last_link: u64,
    positions_told: Option<Instant>,
    /// Those in the queue who were told of no place yet.
    newcomers: Vec<PlayerId>,
    /// Of those far from the front, whose turn to be told of their places it was last.
    told_up_to: Order,
    /// Those who wait for one streamer and no other, when they wait: viewers, and players on the way back. Others who
    /// have stopped to be such may be among them for a moment.
    apart: BTreeSet<PlayerId>,
    turnover: Turnover,
    out: Vec<Command>,
}

impl Lobby {
    /// Takes in what happened, and gives what to do about it, in order.
    pub fn handle(&mut self, now: Instant, input: Input) -> Vec<Command> {
        self.turnover.pass(now, !self.queue.is_empty());
        match input {
            Input::Joined {
                player,
                session,
                want,
                back,
            } => self.joined(now, player, session, want, back),
            Input::Said { player, message } => self.said(now, &player, message),
            Input::Left { player, parting } => self.left(&player, parting),
            Input::Status { address, status } => self.status(address, status),
            Input::StreamerLost { address } => {
                self.streamers.remove(&address);
            }
            Input::LinkSaid { link, message } => self.link_said(now, link, message),
            Input::LinkClosed { link } => self.link_closed(now, link),
            Input::Tick => self.overdue(now),
        }
        self.place_waiting(now);
        self.tell_positions(now);
        std::mem::take(&mut self.out)
    }

    /// What there is to see from outside. It names no address and no session.
    pub fn view(&self) -> View {
        let streamers = self.streamers.values().map(|streamer| StreamerView {
            streamer_id: streamer.status.streamer_id.clone(),
            state: streamer.status.state,
            players: streamer.status.players,
            away: streamer.status.away,
            viewers: streamer.status.viewers,
        });
        View {
            streamers: streamers.collect(),
            waiting: self.queue.len(),
            players: self.players.len(),
        }
    }

    /// How the queue stands.
    pub fn queue(&self, now: Instant) -> QueueView {
        let waiting = self.queue.values().filter_map(|id| self.players.get(id));
        let longest = waiting
            .map(|player| now.saturating_duration_since(player.waits_since))
            .max();
        let next = u32::try_from(self.queue.len())
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        let expected = self
            .turnover
            .expected_wait(next)
            .filter(|_| !self.queue.is_empty());
        QueueView {
            waiting: self.queue.len(),
            longest_wait: longest,
            expected_wait_seconds: expected.map(in_round_seconds),
        }
    }

    /// All streamers that say how they stand, with what they say.
    pub fn streamers(&self) -> impl Iterator<Item = (SocketAddr, &StreamerStatus)> {
        self.streamers
            .iter()
            .map(|(address, streamer)| (*address, &streamer.status))
    }

    /// What those who wait to play ask for, longest waiting first.
    pub fn wishes(&self) -> impl Iterator<Item = &Wish> {
        self.queue
            .values()
            .filter_map(|id| match &self.players.get(id)?.want {
                Want::Play(wish) => Some(wish),
                Want::Watch(_) => None,
            })
    }

    /// Gives those who wait what is free and fits, longest waiting first. Whoever asks for something that is not free
    /// holds up nobody who asks for something else.
    fn place_waiting(&mut self, now: Instant) {
        self.place_returning(now);
        let mut free = self.free_places(now);
        let mut matches = Vec::new();
        for id in self.queue.values() {
            if free.is_empty() {
                break;
            }
            let waits = |player: &&Player| player.place.is_waiting() && player.back.is_none();
            let Some(player) = self.players.get(id).filter(waits) else {
                continue;
            };
            let fits = |address: &SocketAddr| {
                let streamer = self.streamers.get(address);
                streamer.is_some_and(|streamer| player.accepts(&streamer.status))
            };
            if let Some(first) = free.iter().position(fits) {
                matches.push((id.clone(), free.remove(first)));
            }
        }
        for (player, address) in matches {
            self.dial(now, &player, address);
        }
        self.place_viewers(now);
    }

    /// Whoever has a seat goes there, and waits for nobody.
    fn place_returning(&mut self, now: Instant) {
        for id in &self.apart {
            let over = |player: &&mut Player| {
                let back = player.back.as_ref();
                player.place.is_waiting() && back.is_some_and(|back| now >= back.until)
            };
            if let Some(player) = self.players.get_mut(id).filter(over) {
                player.back = None;
            }
        }
        let seat = |player: &Player| player.back.as_ref().map(|back| back.back.token.seat().clone());
        let placed: Vec<_> = self
            .apart_who_wait()
            .filter_map(|(id, player)| Some((id.clone(), self.streamer_with(now, &seat(player)?)?)))
            .collect();
        for (player, address) in placed {
            self.dial(now, &player, address);
        }
    }

    fn apart_who_wait(&self) -> impl Iterator<Item = (&PlayerId, &Player)> {
        let known = self.apart.iter();
        let known = known.filter_map(|id| Some((id, self.players.get(id)?)));
        known.filter(|(_, player)| player.place.is_waiting())
    }

    fn streamer_with(&self, now: Instant, seat: &SeatName) -> Option<SocketAddr> {
        let has = |streamer: &Streamer| !streamer.is_paused(now) && streamer.status.seats.contains(seat);
        let found = self.streamers.iter().find(|(_, streamer)| has(streamer));
        found.map(|(address, _)| *address)
    }

    /// An address for each place that is free, those of the fullest streamer first: what several share should be full
    /// before the next begins.
    fn free_places(&self, now: Instant) -> Vec<SocketAddr> {
        let mut free: Vec<_> = self
            .streamers
            .iter()
            .filter(|(_, streamer)| streamer.status.state == StreamerState::Free && !streamer.is_paused(now))
            .map(|(address, streamer)| (self.taken(address, streamer), *address, streamer))
            .collect();
        free.sort_by_key(|(taken, address, _)| (std::cmp::Reverse(*taken), *address));
        free.into_iter()
            .flat_map(|(taken, address, streamer)| (taken..streamer.status.max_players).map(move |_| address))
            .collect()
    }

    /// How many places of a streamer are taken, as far as is known: those that it said, and those that players of ours
    /// ask for. It may not have said yet what it granted.
    fn taken(&self, address: &SocketAddr, streamer: &Streamer) -> u32 {
        let held = self.holders.get(address).into_iter().flatten();
        let count = |players: usize| u32::try_from(players).unwrap_or(u32::MAX);
        let asks = held.clone().filter(|id| {
            let player = self.players.get(*id);
            player.is_some_and(|player| player.place.is_claiming() && player.back.is_none())
        });
        let said = streamer.status.players.saturating_add(count(asks.count()));
        said.max(count(held.count()))
    }

    fn place_viewers(&mut self, now: Instant) {
        let placed: Vec<_> = self
            .apart_who_wait()
            .filter(|(_, player)| player.back.is_none())
            .filter_map(|(id, player)| Some((id.clone(), self.streamer_of(now, player.watches()?)?)))
            .collect();
        for (player, address) in placed {
            self.dial(now, &player, address);
        }
    }

    fn streamer_of(&self, now: Instant, session: &str) -> Option<SocketAddr> {
        let has = |streamer: &Streamer| {
            let id = streamer.status.session_id.as_ref();
            !streamer.is_paused(now) && id.is_some_and(|id| id.as_str() == session)
        };
        let found = self.streamers.iter().find(|(_, streamer)| has(streamer));
        found.map(|(address, _)| *address)
    }

    fn dial(&mut self, now: Instant, id: &PlayerId, address: SocketAddr) {
        self.last_link += 1;
        let link = LinkId(self.last_link);
        let known = self.streamers.get(&address).map(|streamer| &streamer.status);
        let watched = known.and_then(|status| status.session_id.clone());
        let peers = known.map_or_else(Vec::new, |status| status.media_addresses.clone());
        let Some(player) = self.players.get_mut(id) else {
            return;
        };
        let role = match player.want {
            Want::Play(_) => Role::Player,
            Want::Watch(_) => Role::Viewer,
        };
        // A player begins a session of its own; one that comes back, or joins others, is told whose it is.
        let session_id = watched
            .filter(|_| role == Role::Viewer)
            .unwrap_or_else(|| player.session.clone());
        let waited = now.saturating_duration_since(player.in_order_since);
        if role == Role::Player {
            self.holders.entry(address).or_default().insert(id.clone());
        }
        player.place = Place::Claiming {
            link,
            address,
            peers,
            since: now,
        };
        self.links.insert(link, id.clone());
        let claim = Claim {
            player_id: id.clone(),
            session_id,
            role,
            waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            back: player.back.as_ref().map(|back| back.back.clone()),
            may_return: player.may_return,
        };
        self.out.push(Command::Dial { link, address, claim });
    }

    /// Ends a player's link, if there is one, and frees what it held. The place is the caller's to set.
    fn release(&mut self, id: &PlayerId) {
        let Some(player) = self.players.get(id) else {
            return;
        };
        let Some((link, address)) = player.place.link() else {
            return;
        };
        self.links.remove(&link);
        self.let_go(id, address);
        self.out.push(Command::HangUp { link });
    }

    fn let_go(&mut self, id: &PlayerId, address: SocketAddr) {
        if let Some(held) = self.holders.get_mut(&address) {
            held.remove(id);
            if held.is_empty() {
                self.holders.remove(&address);
            }
        }
    }

    /// Puts a player back where its order says, with a claim to the next free streamer.
    fn requeue(&mut self, now: Instant, id: &PlayerId) {
        let Some(player) = self.players.get_mut(id) else {
            return;
        };
        player.place = Place::Waiting { since: now };
        player.told = None;
        if player.watches().is_none() {
            self.queue.insert(player.order, id.clone());
            self.newcomers.push(id.clone());
        }
    }

    fn overdue(&mut self, now: Instant) {
        self.apart.retain(|id| {
            let player = self.players.get(id);
            player.is_some_and(|player| player.back.is_some() || player.watches().is_some())
        });
        // Nobody else waits for something that has to come in time.
        let ids: BTreeSet<_> = self.apart.iter().chain(self.links.values()).cloned().collect();
        for id in ids {
            let Some(player) = self.players.get(&id) else {
                continue;
            };
            match player.place {
                Place::Waiting { since }
                    if player.watches().is_some() && player.back.is_none() && now >= since + VIEWER_GRACE =>
                {
                    self.no_such_session(&id);
                }
                Place::Claiming { link, since, .. } if now >= since + CLAIM_TIMEOUT => {
                    self.out.push(Command::HangUp { link });
                    self.link_closed(now, link);
                }
                Place::Matched {
                    subscribed: false,
                    since,
                    ..
                } if now >= since + UNASKED_OFFER_AFTER => {
                    self.connect(&id);
                }
                _ => {}
            }
        }
    }

    fn no_such_session(&mut self, id: &PlayerId) {
        let message = "There is no such session (any more). Ask for a new link.";
        self.fail_viewer(id, message);
    }

    fn fail_viewer(&mut self, id: &PlayerId, message: &str) {
        self.release(id);
        if let Some(player) = self.players.get_mut(id) {
            player.place = Place::Idle;
        }
        self.send(
            id,
            ToPlayer::SubscribeFailed(Failure {
                message: message.to_owned(),
            }),
        );
    }

    /// Tells those who wait of their places: a newcomer at once, those near the front a few times a second, and the
    /// others in turns. So a long queue takes no more time at any moment than a short one.
    fn tell_positions(&mut self, now: Instant) {
        let mut unsettled = std::mem::take(&mut self.newcomers);
        unsettled.retain(|id| match self.players.get(id) {
            Some(player) if player.place.is_waiting() && player.back.is_some() => true,
            Some(player) if self.queue.contains_key(&player.order) => {
                // Most are the last.
                let behind = self.queue.range(player.order..).skip(1).count();
                let position = self.queue.len() - behind;
                self.tell_position(id, position);
                false
            }
            _ => false,
        });
        self.newcomers = unsettled;
        if self
            .positions_told
            .is_some_and(|told| now < told + POSITIONS_EVERY)
        {
            return;
        }
        self.positions_told = Some(now);
        let near = self.queue.values().take(NEAR_THE_FRONT).cloned().zip(1..);
        let mut told: Vec<_> = near.collect();
        told.extend(self.next_far());
        for (id, position) in told {
            self.tell_position(&id, position);
        }
    }

    /// Whose turn it is of those further back, and their places.
    fn next_far(&mut self) -> Vec<(PlayerId, usize)> {
        let turns = POSITIONS_OF_ALL_EVERY.as_millis() / POSITIONS_EVERY.as_millis();
        let share = self
            .queue
            .len()
            .div_ceil(usize::try_from(turns).unwrap_or(1).max(1));
        let before = self.queue.range(..=self.told_up_to).count();
        let rest = self.queue.range((Excluded(self.told_up_to), Unbounded));
        let turn: Vec<_> = rest
            .take(share)
            .zip(before + 1..)
            .map(|((order, id), position)| (*order, id.clone(), position))
            .collect();
        let last = turn.last().filter(|_| turn.len() == share);
        self.told_up_to = last.map_or(0, |(order, ..)| *order);
        turn.into_iter().map(|(_, id, position)| (id, position)).collect()
    }

    fn tell_position(&mut self, id: &PlayerId, position: usize) {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (position, waiting) = (number(position), number(self.queue.len()));
        let expected_wait_seconds = self.turnover.expected_wait(position).map(in_round_seconds);
        let new = Some((position, waiting, expected_wait_seconds));
        let waits = |player: &&mut Player| player.place.is_waiting() && player.back.is_none();
        let Some(player) = self.players.get_mut(id).filter(waits) else {
            return;
        };
        if player.told == new {
            return;
        }
        player.told = new;
        let message = ToPlayer::Matchmaker(Notice::Queued {
            position,
            waiting,
            expected_wait_seconds,
        });
        self.send(id, message);
    }

    fn send(&mut self, player: &PlayerId, message: ToPlayer) {
        let player = player.clone();
        self.out.push(Command::Send { player, message });
    }
}

/// Rounded up: to 10 s up to a minute, then to minutes. Nothing finer is known, and every step is told to those who
/// wait.
fn in_round_seconds(wait: Duration) -> u64 {
    let seconds = wait.as_secs() + 1;
    let step = if seconds > 60 { 60 } else { 10 };
    seconds.div_ceil(step) * step
}
