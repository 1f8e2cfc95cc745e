//! Whatever happens in whatever order, the lobby's promises hold. The streamers here are a model of the real ones:
//! each grants one claim at a time, and says no to all others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use penstock_core::ids::{PlayerId, SessionId, StreamerId};
use penstock_core::wire::link::{Claimed, FromStreamer, Refused, RefusedReason};
use penstock_core::wire::returning::ReturnToken;
use penstock_core::wire::status::StreamerState;
use proptest::prelude::*;

use super::tests::{address, id, status};
use super::*;

proptest! {
    #[test]
    fn promises_hold_whatever_happens(steps in prop::collection::vec(step(), 1..150)) {
        let mut world = World::default();
        for step in steps {
            world.apply(step);
            world.check();
        }
        world.settle();
    }
}

#[derive(Debug, Clone)]
enum Step {
    Join,
    Leave(usize),
    /// A player is lost. Its streamer, if it has one, keeps its seat.
    Vanish(usize),
    /// One who was lost comes back, whether its seat is still kept or not.
    Return(usize),
    /// A seat is kept no longer.
    GiveUp(u16),
    /// A streamer appears, or says how it stands.
    Speak(u16),
    Lose(u16),
    /// A link in flight is answered as its streamer decides.
    Answer(usize),
    /// A link breaks.
    Break(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Join),
        2 => (0..20_usize).prop_map(Step::Leave),
        2 => (0..20_usize).prop_map(Step::Vanish),
        2 => (0..4_usize).prop_map(Step::Return),
        1 => (0..4_u16).prop_map(Step::GiveUp),
        4 => (0..4_u16).prop_map(Step::Speak),
        1 => (0..4_u16).prop_map(Step::Lose),
        6 => (0..8_usize).prop_map(Step::Answer),
        1 => (0..8_usize).prop_map(Step::Break),
        2 => (1..6000_u64).prop_map(Step::Wait),
    ]
}

struct World {
    lobby: Lobby,
    now: Instant,
    /// Everyone present, in the order of arrival.
    players: Vec<PlayerId>,
    joined: usize,
    links: BTreeMap<LinkId, Link>,
    /// What each streamer itself granted.
    granted: BTreeMap<SocketAddr, Grant>,
    /// Seats whose players were lost.
    lost: Vec<String>,
    seats: usize,
}

/// A streamer's player: over which link, unless it is away, and the name of its seat.
struct Grant {
    link: Option<LinkId>,
    seat: String,
}

struct Link {
    player: PlayerId,
    back: Option<String>,
    address: SocketAddr,
    answered: bool,
}

impl Default for World {
    fn default() -> Self {
        Self {
            lobby: Lobby::default(),
            now: Instant::now(),
            players: Vec::new(),
            joined: 0,
            links: BTreeMap::new(),
            granted: BTreeMap::new(),
            lost: Vec::new(),
            seats: 0,
        }
    }
}

impl World {
    fn apply(&mut self, step: Step) {
        match step {
            Step::Join => self.join(Return::Later),
            Step::Vanish(n) if n < self.players.len() => self.vanish(n),
            Step::Vanish(_) => {}
            Step::Return(n) if n < self.lost.len() => {
                let seat = self.lost.remove(n);
                let (token, live) = (token(&seat), true);
                self.join(Return::Now { token, live });
            }
            Step::Return(_) => {}
            Step::GiveUp(n) => {
                if self
                    .granted
                    .get(&address(n))
                    .is_some_and(|grant| grant.link.is_none())
                {
                    self.granted.remove(&address(n));
                }
            }
            Step::Leave(n) if n < self.players.len() => {
                let player = self.players.remove(n);
                let parting = Parting::Lost;
                self.input(Input::Left { player, parting });
            }
            Step::Speak(n) => self.speak(n),
            Step::Lose(n) => self.input(Input::StreamerLost { address: address(n) }),
            Step::Answer(n) => self.answer(n),
            Step::Break(n) => {
                if let Some(link) = self.links.keys().nth(n).copied() {
                    self.drop_link(link);
                    self.input(Input::LinkClosed { link });
                }
            }
            Step::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                self.input(Input::Tick);
            }
            Step::Leave(_) => {}
        }
    }

    /// The streamer keeps the seat: the link ends without a goodbye.
    fn vanish(&mut self, n: usize) {
        let player = self.players.remove(n);
        let link = self.links.iter().find(|(_, link)| link.player == player);
        let link = link.map(|(link, known)| (*link, known.address));
        if let Some((link, address)) = link
            && let Some(grant) = self
                .granted
                .get_mut(&address)
                .filter(|grant| grant.link == Some(link))
        {
            grant.link = None;
            self.lost.push(grant.seat.clone());
        }
        let parting = Parting::Lost;
        self.input(Input::Left { player, parting });
    }

    fn join(&mut self, back: Return) {
        self.joined += 1;
        let player = id(&format!("p{}", self.joined));
        self.players.push(player.clone());
        let session = SessionId::new(format!("of-{player}")).unwrap();
        self.input(Input::Joined {
            player,
            session,
            want: Want::Play(Wish::default()),
            back,
        });
    }

    fn speak(&mut self, n: u16) {
        let state = match self.granted.contains_key(&address(n)) {
            true => StreamerState::Busy,
            false => StreamerState::Free,
        };
        let mut status = status(n, state, None);
        if let Some(grant) = self.granted.get(&address(n)) {
            (status.players, status.seats) = (1, vec![token(&grant.seat).seat().clone()]);
        }
        self.input(Input::Status {
            address: address(n),
            status,
        });
    }

    fn answer(&mut self, n: usize) {
        let waiting = self.links.iter_mut().filter(|(_, link)| !link.answered).nth(n);
        let Some((&link, known)) = waiting else { return };
        known.answered = true;
        let (address, back) = (known.address, known.back.clone());
        let message = match (self.granted.get_mut(&address), back) {
            (None, None) => {
                self.seats += 1;
                let (link, seat) = (Some(link), format!("seat{}", self.seats));
                self.granted.insert(address, Grant { link, seat });
                Ok(false)
            }
            (Some(grant), Some(back)) if grant.seat == back => {
                assert_eq!(
                    grant.link.replace(link),
                    None,
                    "nobody sits on a seat that is kept"
                );
                Ok(true)
            }
            (_, Some(_)) => Err(RefusedReason::NoSuchSession),
            (Some(_), None) => Err(RefusedReason::Busy),
        };
        let message = match message {
            Ok(resumed) => FromStreamer::Claimed(Claimed {
                streamer_id: StreamerId::new("s").unwrap(),
                session_id: SessionId::new("show").unwrap(),
                return_token: None,
                resumed,
                shared: false,
            }),
            Err(reason) => FromStreamer::Refused(Refused { reason }),
        };
        self.input(Input::LinkSaid { link, message });
    }

    fn input(&mut self, input: Input) {
        for command in self.lobby.handle(self.now, input) {
            match command {
                Command::Dial { link, address, claim } => self.dialled(link, address, claim),
                Command::HangUp { link } => self.drop_link(link),
                _ => {}
            }
        }
    }

    /// The promise of fairness: nobody who waits came before the one that is placed, but for those who look for their
    /// seats; and nobody stands in the way of one who has a seat.
    fn dialled(&mut self, link: LinkId, address: SocketAddr, claim: Claim) {
        let player = claim.player_id;
        let back = claim.back.map(|back| back.token.seat().to_string());
        let arrival = |id: &PlayerId| id.as_str()[1..].parse::<usize>().unwrap();
        let placed: BTreeSet<_> = self.links.values().map(|link| &link.player).collect();
        let looks = |other: &PlayerId| {
            self.lobby
                .players
                .get(other)
                .is_some_and(|other| other.back.is_some())
        };
        let waits = |other: &&PlayerId| !placed.contains(other) && !looks(other);
        for other in self.players.iter().filter(waits) {
            assert!(
                back.is_some() || arrival(other) >= arrival(&player),
                "{player} was placed before {other}"
            );
        }
        let fresh = self.links.insert(
            link,
            Link {
                player,
                back,
                address,
                answered: false,
            },
        );
        assert!(fresh.is_none(), "a link's name was used twice");
    }

    fn drop_link(&mut self, link: LinkId) {
        if let Some(known) = self.links.remove(&link)
            && let Some(grant) = self.granted.get(&known.address)
            && grant.link == Some(link)
        {
            self.granted.remove(&known.address);
        }
    }

    fn check(&self) {
        let players: Vec<_> = self.links.values().map(|link| link.player.clone()).collect();
        let unlike: BTreeSet<_> = players.iter().collect();
        assert_eq!(unlike.len(), players.len(), "a player has two streamers");
        // One who comes back asks for a seat of its own, whoever else asks for one there.
        let asks: Vec<_> = self
            .links
            .values()
            .filter(|link| link.back.is_none())
            .map(|link| link.address)
            .collect();
        let addresses: BTreeSet<_> = asks.iter().collect();
        assert_eq!(
            addresses.len(),
            asks.len(),
            "a streamer was claimed twice at once"
        );
        assert!(
            players.iter().all(|player| self.players.contains(player)),
            "one who left has a link"
        );
        assert_eq!(self.lobby.view().players, self.players.len());
        let playing = self.links.values().filter(|link| link.answered).count();
        assert_eq!(self.lobby.view().waiting, self.players.len() - playing);
    }

    /// Left alone with streamers that work, the lobby wastes none: all play, or all streamers have a player.
    fn settle(&mut self) {
        self.granted.retain(|_, grant| grant.link.is_some());
        for _ in 0..20 {
            self.now += Duration::from_millis(200);
            (0..4).for_each(|n| self.speak(n));
            while self.links.values().any(|link| !link.answered) {
                self.answer(0);
            }
            self.check();
        }
        assert_eq!(self.granted.len(), self.players.len().min(4));
    }
}

fn token(seat: &str) -> ReturnToken {
    ReturnToken::new(seat, "secret").unwrap()
}
