//! Whatever happens in whatever order, the lobby's promises hold. The streamers here are a model of the real ones:
//! each grants one claim at a time, and says no to all others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use penstock_core::ids::{PlayerId, SessionId, StreamerId};
use penstock_core::wire::link::{Claimed, FromStreamer, Refused, RefusedReason};
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
    granted: BTreeMap<SocketAddr, LinkId>,
}

struct Link {
    player: PlayerId,
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
        }
    }
}

impl World {
    fn apply(&mut self, step: Step) {
        match step {
            Step::Join => self.join(),
            Step::Leave(n) if n < self.players.len() => {
                let player = self.players.remove(n);
                self.input(Input::Left { player });
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

    fn join(&mut self) {
        self.joined += 1;
        let player = id(&format!("p{}", self.joined));
        self.players.push(player.clone());
        let session = SessionId::new(format!("of-{player}")).unwrap();
        self.input(Input::Joined {
            player,
            session,
            want: Want::Play(Wish::default()),
        });
    }

    fn speak(&mut self, n: u16) {
        let state = match self.granted.contains_key(&address(n)) {
            true => StreamerState::Busy,
            false => StreamerState::Free,
        };
        self.input(Input::Status {
            address: address(n),
            status: status(n, state, None),
        });
    }

    fn answer(&mut self, n: usize) {
        let waiting = self.links.iter_mut().filter(|(_, link)| !link.answered).nth(n);
        let Some((&link, known)) = waiting else { return };
        known.answered = true;
        let address = known.address;
        let holder = *self.granted.entry(address).or_insert(link);
        let message = if holder == link {
            let streamer_id = StreamerId::new("s").unwrap();
            FromStreamer::Claimed(Claimed { streamer_id })
        } else {
            let reason = RefusedReason::Busy;
            FromStreamer::Refused(Refused { reason })
        };
        self.input(Input::LinkSaid { link, message });
    }

    fn input(&mut self, input: Input) {
        for command in self.lobby.handle(self.now, input) {
            match command {
                Command::Dial { link, address, claim } => self.dialled(link, address, claim.player_id),
                Command::HangUp { link } => self.drop_link(link),
                _ => {}
            }
        }
    }

    /// The promise of fairness: nobody who waits came before the one that is placed.
    fn dialled(&mut self, link: LinkId, address: SocketAddr, player: PlayerId) {
        let arrival = |id: &PlayerId| id.as_str()[1..].parse::<usize>().unwrap();
        let placed: BTreeSet<_> = self.links.values().map(|link| &link.player).collect();
        for other in self.players.iter().filter(|other| !placed.contains(other)) {
            assert!(
                arrival(other) >= arrival(&player),
                "{player} was placed before {other}"
            );
        }
        let fresh = self.links.insert(
            link,
            Link {
                player,
                address,
                answered: false,
            },
        );
        assert!(fresh.is_none(), "a link's name was used twice");
    }

    fn drop_link(&mut self, link: LinkId) {
        if let Some(known) = self.links.remove(&link)
            && self.granted.get(&known.address) == Some(&link)
        {
            self.granted.remove(&known.address);
        }
    }

    fn check(&self) {
        let players: Vec<_> = self.links.values().map(|link| link.player.clone()).collect();
        let unlike: BTreeSet<_> = players.iter().collect();
        assert_eq!(unlike.len(), players.len(), "a player has two streamers");
        let addresses: BTreeSet<_> = self.links.values().map(|link| link.address).collect();
        assert_eq!(
            addresses.len(),
            players.len(),
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
        for _ in 0..20 {
            (0..4).for_each(|n| self.speak(n));
            while self.links.values().any(|link| !link.answered) {
                self.answer(0);
            }
            self.check();
        }
        assert_eq!(self.granted.len(), self.players.len().min(4));
    }
}
