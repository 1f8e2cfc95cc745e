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
mod queue;
mod streamers;
#[cfg(test)]
mod tests;
mod turnover;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use penstock_core::ids::PlayerId;
use penstock_core::wire::link::{Claim, Role};
use penstock_core::wire::signalling::{Failure, Notice, ToPlayer};
use penstock_core::wire::status::{StreamerState, StreamerStatus};

use queue::{Queue, Standing};
use turnover::Turnover;
pub use types::{
    Command, Input, LinkId, Outcome, Parting, QueueView, Return, StreamerView, View, Want, Wish,
};
use types::{Order, Place, Player, Streamer, Told};

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
/// How long somebody has waited before they hear that no streamer here is what they ask for: just after a start of ours
/// the streamers are heard of one by one.
pub const NOTHING_FITS_AFTER: Duration = Duration::from_secs(3);
/// How often those who wait hear of their places, at most.
pub const POSITIONS_EVERY: Duration = Duration::from_millis(200);
/// How many at the front of the queue hear of their places so often; where several things are asked for, those in front
/// for each.
pub const NEAR_THE_FRONT: usize = 50;
/// How often all others do. To them one place more or less means little; and when somebody joins or leaves a long queue,
/// a message to everyone in it would cost more than everything else.
pub const POSITIONS_OF_ALL_EVERY: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub struct Lobby {
    players: BTreeMap<PlayerId, Player>,
    /// Those in [`Place::Waiting`] or [`Place::Claiming`] who want to play, longest waiting first.
    queue: Queue,
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
    /// Whether anything has changed that a match may come of for whoever waits: a streamer, or what is held of it. Time
    /// alone ends pauses and searches, so every tick counts as a change.
    changed: bool,
    /// Those who have begun to wait since the last matching, for whom one may come of what has not changed.
    fresh: Vec<PlayerId>,
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
            Input::Left { player, parting } => self.left(now, &player, parting),
            Input::Status { address, status } => self.status(address, status),
            Input::StreamerLost { address } => {
                self.streamers.remove(&address);
            }
            Input::LinkSaid { link, message } => self.link_said(now, link, message),
            Input::LinkClosed { link } => self.link_closed(now, link),
            Input::Tick => {
                self.changed = true;
                self.queue.pass(now);
                self.overdue(now);
            }
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
            max_players: streamer.status.max_players,
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
        let waiting = self.queue.players().filter_map(|id| self.players.get(id));
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
            .players()
            .filter_map(|id| match &self.players.get(id)?.want {
                Want::Play(wish) => Some(wish),
                Want::Watch(_) => None,
            })
    }

    /// Gives those who wait what is free and fits, longest waiting first. Whoever asks for something that is not free
    /// holds up nobody who asks for something else. Most messages change nothing that matters here, and cost nothing.
    fn place_waiting(&mut self, now: Instant) {
        let (changed, fresh) = (std::mem::take(&mut self.changed), std::mem::take(&mut self.fresh));
        let apart: Vec<_> = match changed {
            true => self.apart.iter().cloned().collect(),
            false => fresh
                .iter()
                .filter(|id| self.apart.contains(*id))
                .cloned()
                .collect(),
        };
        self.place_returning(now, &apart);
        let queues = |id: &PlayerId| self.players.get(id).is_some_and(Player::waits_in_line);
        if changed || fresh.iter().any(queues) {
            for (player, address) in self.matches(now) {
                self.dial(now, &player, address);
            }
        }
        self.place_viewers(now, &apart);
    }

    /// Who in the queue gets which streamer. Of each line only the first is looked at, and once nothing that is free
    /// fits a line's wish, nobody else in it.
    fn matches(&self, now: Instant) -> Vec<(PlayerId, SocketAddr)> {
        let (mut free, mut matches) = (self.free_places(now), Vec::new());
        if free.is_empty() {
            return matches;
        }
        let waits = |(_, id): &(Order, &PlayerId)| self.players.get(*id).is_some_and(Player::waits_in_line);
        let mut firsts = BTreeMap::new();
        for line in self.queue.lines() {
            let mut rest = line.players().filter(waits);
            if let Some((order, id)) = rest.next() {
                firsts.insert(order, (id, &line.wish, rest));
            }
        }
        while let Some((_, (id, wish, mut rest))) = firsts.pop_first() {
            let fits = |(_, streamer): &(u32, (SocketAddr, &Streamer))| wish.fits(&streamer.1.status);
            let Some(first) = free.iter().position(fits) else {
                continue;
            };
            let (left, (address, _)) = &mut free[first];
            matches.push((id.clone(), *address));
            *left -= 1;
            if *left == 0 {
                free.remove(first);
            }
            if let Some((order, id)) = rest.next() {
                firsts.insert(order, (id, wish, rest));
            }
        }
        matches
    }

    /// Whoever has a seat goes there, and waits for nobody.
    fn place_returning(&mut self, now: Instant, apart: &[PlayerId]) {
        for id in apart {
            let over = |player: &&mut Player| {
                let back = player.back.as_ref();
                player.place.is_waiting() && back.is_some_and(|back| now >= back.until)
            };
            if let Some(player) = self.players.get_mut(id).filter(over) {
                player.back = None;
            }
        }
        let seats: BTreeMap<_, _> = self
            .unpaused(now)
            .flat_map(|(address, streamer)| streamer.status.seats.iter().map(move |seat| (seat, address)))
            .collect();
        let placed: Vec<_> = self
            .who_wait(apart)
            .filter_map(|(id, player)| {
                let seat = player.back.as_ref()?.back.token.seat();
                Some((id.clone(), *seats.get(seat)?))
            })
            .collect();
        for (player, address) in placed {
            self.dial(now, &player, address);
        }
    }

    fn who_wait<'a>(&'a self, ids: &'a [PlayerId]) -> impl Iterator<Item = (&'a PlayerId, &'a Player)> {
        let known = ids.iter().filter_map(|id| Some((id, self.players.get(id)?)));
        known.filter(|(_, player)| player.place.is_waiting())
    }

    fn unpaused(&self, now: Instant) -> impl Iterator<Item = (SocketAddr, &Streamer)> {
        let streamers = self
            .streamers
            .iter()
            .map(|(address, streamer)| (*address, streamer));
        streamers.filter(move |(_, streamer)| !streamer.is_paused(now))
    }

    /// How many places each streamer has free, the fullest streamer first: what several share should be full before the
    /// next begins.
    fn free_places(&self, now: Instant) -> Vec<(u32, (SocketAddr, &Streamer))> {
        let mut free: Vec<_> = self
            .unpaused(now)
            .filter(|(_, streamer)| streamer.status.state == StreamerState::Free)
            .map(|(address, streamer)| (self.taken(&address, streamer), (address, streamer)))
            .filter(|(taken, (_, streamer))| *taken < streamer.status.max_players)
            .collect();
        free.sort_by_key(|(taken, (address, _))| (std::cmp::Reverse(*taken), *address));
        for (count, (_, streamer)) in &mut free {
            *count = streamer.status.max_players - *count;
        }
        free
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

    fn place_viewers(&mut self, now: Instant, apart: &[PlayerId]) {
        let sessions: BTreeMap<_, _> = self
            .unpaused(now)
            .filter_map(|(address, streamer)| Some((streamer.status.session_id.as_ref()?.as_str(), address)))
            .collect();
        let placed: Vec<_> = self
            .who_wait(apart)
            .filter(|(_, player)| player.back.is_none())
            .filter_map(|(id, player)| Some((id.clone(), *sessions.get(player.watches()?)?)))
            .collect();
        for (player, address) in placed {
            self.dial(now, &player, address);
        }
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
        self.changed = true;
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
        self.fresh.push(id.clone());
        if let Want::Play(wish) = &player.want {
            self.queue.insert(now, player.order, id.clone(), wish);
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
        for id in std::mem::take(&mut self.newcomers) {
            let order = self.players.get(&id).map(|player| player.order);
            if let Some(standing) = order.and_then(|order| self.queue.standing(order)) {
                self.tell_position(now, &id, standing);
            }
        }
        if self
            .positions_told
            .is_some_and(|told| now < told + POSITIONS_EVERY)
        {
            return;
        }
        self.positions_told = Some(now);
        let turns = POSITIONS_OF_ALL_EVERY.as_millis() / POSITIONS_EVERY.as_millis();
        let turns = usize::try_from(turns).unwrap_or(1);
        let (told, up_to) = self.queue.turn(self.told_up_to, NEAR_THE_FRONT, turns);
        self.told_up_to = up_to;
        for (id, standing) in told {
            self.tell_position(now, &id, standing);
        }
    }

    fn tell_position(&mut self, now: Instant, id: &PlayerId, standing: Standing) {
        let Some(player) = self.players.get(id).filter(|player| player.waits_in_line()) else {
            return;
        };
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (position, waiting) = (number(standing.position), number(standing.waiting));
        let waits_for = now.saturating_duration_since(player.waits_since);
        let told = Told {
            position,
            waiting,
            expected_wait_seconds: self
                .queue
                .expected_wait(now, standing.line, position)
                .map(in_round_seconds),
            nothing_fits: waits_for >= NOTHING_FITS_AFTER && !self.something_fits(&player.want),
        };
        let Some(player) = self
            .players
            .get_mut(id)
            .filter(|player| player.told != Some(told))
        else {
            return;
        };
        player.told = Some(told);
        let message = ToPlayer::Matchmaker(Notice::Queued {
            position,
            waiting,
            expected_wait_seconds: told.expected_wait_seconds,
            nothing_fits: told.nothing_fits,
        });
        self.send(id, message);
    }

    /// Whether there is a streamer like this, free or not.
    fn something_fits(&self, want: &Want) -> bool {
        let Want::Play(wish) = want else { return true };
        self.streamers
            .values()
            .any(|streamer| wish.fits(&streamer.status))
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
