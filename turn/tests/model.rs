//! The core against a model that a reader can check at a glance: three maps of when things end.

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use common::{Answer, Client, LIMITS, Passed, USER, World, config, peer};
use penstock_turn::core::RelayId;
use penstock_turn::core::shared::{Limits, Quota, Who};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Allocate(usize),
    Refresh(usize, u32),
    Permit(usize, u8),
    Bind(usize, u16, u8),
    Send(usize, u8),
    SendOn(usize, u16),
    FromPeer(usize, u8),
}

const CLIENTS: usize = 2;
const CHANNELS: std::ops::Range<u16> = 0x4000..0x4002;
/// Peers 0 to 3 are allowed, those above are denied.
const PEERS: u8 = 6;
/// How many of them the user of all clients may have at once.
const USER_PEERS: usize = 3;

fn address(n: u8) -> SocketAddr {
    if n < 4 {
        peer(n)
    } else {
        ([192, 168, 0, n], 4000).into()
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let client = || 0..CLIENTS;
    let peer = || 0..PEERS;
    let channel = || CHANNELS;
    // Times around the lifetimes, so that the very second is hit often.
    let wait = prop_oneof![
        Just(1_u64),
        Just(299),
        Just(300),
        Just(599),
        Just(600),
        1_u64..700
    ];
    let lifetime = prop_oneof![Just(0_u32), Just(600), Just(900), Just(3600)];
    let step = prop_oneof![
        3 => wait.prop_map(Step::Wait),
        3 => client().prop_map(Step::Allocate),
        2 => (client(), lifetime).prop_map(|(c, s)| Step::Refresh(c, s)),
        3 => (client(), peer()).prop_map(|(c, p)| Step::Permit(c, p)),
        3 => (client(), channel(), peer()).prop_map(|(c, n, p)| Step::Bind(c, n, p)),
        3 => (client(), peer()).prop_map(|(c, p)| Step::Send(c, p)),
        3 => (client(), channel()).prop_map(|(c, n)| Step::SendOn(c, n)),
        3 => (client(), peer()).prop_map(|(c, p)| Step::FromPeer(c, p)),
    ];
    proptest::collection::vec(step, 1..80)
}

/// What one client should have: all times in seconds since the beginning.
#[derive(Default)]
struct Model {
    relay: Option<RelayId>,
    ends: u64,
    permissions: BTreeMap<u8, u64>,
    channels: BTreeMap<u16, (u8, u64)>,
}

impl Model {
    fn expire(&mut self, now: u64) {
        if self.ends <= now {
            *self = Self::default();
        }
        self.permissions.retain(|_, ends| now < *ends);
        self.channels.retain(|_, (_, ends)| now < *ends);
    }

    fn may_bind(&self, channel: u16, peer: u8) -> bool {
        self.channels
            .iter()
            .all(|(number, (bound, _))| (*number == channel) == (*bound == peer))
    }
}

struct Run {
    world: World,
    clients: Vec<Client>,
    models: Vec<Model>,
    /// The peers that count for the user, and until when; none where nothing is allocated.
    counted: BTreeMap<u8, u64>,
}

impl Run {
    fn new() -> Self {
        let user = Quota {
            peers: USER_PEERS,
            ..USER
        };
        let limits = Limits {
            user,
            fixed_user: user,
            ..LIMITS
        };
        Self {
            world: World::with(|made| *made = config(limits)),
            counted: BTreeMap::new(),
            clients: (0..CLIENTS).map(|n| Client::ann(1000 + n as u16)).collect(),
            models: (0..CLIENTS).map(|_| Model::default()).collect(),
        }
    }

    fn step(&mut self, step: &Step) {
        let now = self.world.elapsed.as_secs();
        self.expire(now);
        match *step {
            Step::Wait(seconds) => self.world.wait(seconds),
            Step::Allocate(c) => self.allocate(c, now),
            Step::Refresh(c, seconds) => self.refresh(c, seconds, now),
            Step::Permit(c, p) => self.permit(c, p, now),
            Step::Bind(c, number, p) => self.bind(c, number, p, now),
            Step::Send(c, p) => {
                let passed = self.clients[c].send(&mut self.world, address(p), b"x");
                assert_eq!(passed, self.expected_to_peer(c, Some(p)));
            }
            Step::SendOn(c, number) => {
                let passed = self.clients[c].send_on(&mut self.world, number, b"x");
                let bound = self.models[c].channels.get(&number).map(|(peer, _)| *peer);
                assert_eq!(passed, self.expected_to_peer(c, bound));
            }
            Step::FromPeer(c, p) => self.peer_sends(c, p),
        }
    }

    fn expire(&mut self, now: u64) {
        self.models.iter_mut().for_each(|model| model.expire(now));
        let is_any_alive = self.models.iter().any(|model| model.relay.is_some());
        self.counted.retain(|_, ends| is_any_alive && now < *ends);
    }

    /// Whether one more peer fits; only then it counts.
    fn counts(&mut self, p: u8, now: u64) -> bool {
        let fits = self.counted.contains_key(&p) || self.counted.len() < USER_PEERS;
        if fits {
            self.counted.insert(p, now + 300);
        }
        fits
    }

    fn allocate(&mut self, c: usize, now: u64) {
        let known: Vec<_> = self.world.open.keys().copied().collect();
        let answer = self.clients[c].allocate(&mut self.world);
        let model = &mut self.models[c];
        if model.relay.is_some() {
            return assert_eq!(answer, Answer::Error(437));
        }
        assert_eq!(answer, Answer::Success);
        let opened = self.world.open.keys().find(|relay| !known.contains(relay));
        *model = Model {
            relay: opened.copied(),
            ends: now + 600,
            ..Model::default()
        };
    }

    fn refresh(&mut self, c: usize, seconds: u32, now: u64) {
        let answer = self.clients[c].refresh(&mut self.world, seconds);
        let model = &mut self.models[c];
        if model.relay.is_none() {
            return assert_eq!(answer, Answer::Error(437));
        }
        assert_eq!(answer, Answer::Success);
        model.ends = now + u64::from(seconds);
        model.expire(now);
    }

    fn permit(&mut self, c: usize, p: u8, now: u64) {
        let answer = self.clients[c].permit(&mut self.world, address(p));
        let expected = match (self.models[c].relay, p < 4) {
            (None, _) => Answer::Error(437),
            (Some(_), false) => Answer::Error(403),
            (Some(_), true) if !self.counts(p, now) => Answer::Error(508),
            (Some(_), true) => {
                self.models[c].permissions.insert(p, now + 300);
                Answer::Success
            }
        };
        assert_eq!(answer, expected);
    }

    fn bind(&mut self, c: usize, number: u16, p: u8, now: u64) {
        let answer = self.clients[c].bind(&mut self.world, number, address(p));
        let expected = match (self.models[c].relay, p < 4) {
            (None, _) => Answer::Error(437),
            (Some(_), false) => Answer::Error(403),
            (Some(_), true) if !self.models[c].may_bind(number, p) => Answer::Error(400),
            (Some(_), true) if !self.counts(p, now) => Answer::Error(508),
            (Some(_), true) => {
                let model = &mut self.models[c];
                model.permissions.insert(p, now + 300);
                model.channels.insert(number, (p, now + 600));
                Answer::Success
            }
        };
        assert_eq!(answer, expected);
    }

    fn expected_to_peer(&self, c: usize, peer: Option<u8>) -> Passed {
        let model = &self.models[c];
        match (model.relay, peer) {
            (Some(relay), Some(peer)) if model.permissions.contains_key(&peer) => {
                Passed::ToPeer(relay, address(peer), b"x".to_vec())
            }
            _ => Passed::Nothing,
        }
    }

    fn peer_sends(&mut self, c: usize, p: u8) {
        let Some(relay) = self.models[c].relay else { return };
        let passed = self.world.peer_sends(relay, address(p), b"x");
        if !self.models[c].permissions.contains_key(&p) {
            return assert_eq!(passed, Passed::Nothing);
        }
        let Passed::ToClient(to, bytes) = passed else {
            panic!("permitted, but not passed on")
        };
        assert_eq!(to, self.clients[c].at);
        let channel = self.models[c].channels.iter().find(|(_, (bound, _))| *bound == p);
        match channel {
            Some((number, _)) => assert_eq!(bytes, [&number.to_be_bytes()[..], b"\0\x01x"].concat()),
            None => assert_eq!(bytes[..2], [0x00, 0x17], "a Data indication"),
        }
    }

    /// What a network driver is told passes just what the server itself does at this time, and until the very second.
    fn check_channels(&mut self, c: usize, now: u64) {
        let (at, instant) = (self.clients[c].at, self.world.now().instant);
        let model = &self.models[c];
        let until = |peer: &u8, ends: &u64| Some(*ends.min(model.permissions.get(peer)?).min(&model.ends));
        let expected: BTreeMap<_, _> = model
            .channels
            .iter()
            .filter_map(|(number, (peer, ends))| Some((*number, (address(*peer), until(peer, ends)?))))
            .collect();
        let told = self.world.server.unlimited_channels(instant, &at);
        let Some(relay) = model.relay else {
            return assert_eq!(told, []);
        };
        assert_eq!(told.iter().map(|(relay, _)| *relay).collect::<Vec<_>>(), [relay]);
        let began = self.world.began;
        let told: BTreeMap<_, _> = told
            .iter()
            .flat_map(|(_, open)| open)
            .map(|open| (open.number.get(), (open.peer, (open.until - began).as_secs())))
            .collect();
        assert_eq!(told, expected);
        for number in CHANNELS {
            let passed = self.clients[c].send_on(&mut self.world, number, b"x");
            let expected = told.get(&number).map_or(Passed::Nothing, |(peer, until)| {
                assert!(now < *until);
                Passed::ToPeer(relay, *peer, b"x".to_vec())
            });
            assert_eq!(passed, expected);
            if let Some((peer, _)) = told.get(&number) {
                let passed = self.world.peer_sends(relay, *peer, b"x");
                let bytes = [&number.to_be_bytes()[..], b"\0\x01x"].concat();
                assert_eq!(passed, Passed::ToClient(at, bytes));
            }
        }
    }

    /// After every step: no allocation, port, socket or counted peer more or less than the model has.
    fn check(&mut self) {
        let now = self.world.elapsed.as_secs();
        self.expire(now);
        self.world.wait_and_tick(0);
        let ann = Who {
            name: "ann".into(),
            expires: false,
        };
        let (shared, instant) = (&self.world.shared, self.world.now().instant);
        assert_eq!(shared.peers_of(instant, &ann), self.counted.len());
        let alive = self.models.iter().filter(|model| model.relay.is_some()).count();
        assert_eq!(self.world.server.allocation_count(), alive);
        assert_eq!(self.world.ports_taken(), alive);
        assert_eq!(shared.held(instant), alive);
        assert_eq!(self.world.open.len(), alive);
        let next = self
            .models
            .iter()
            .filter(|model| model.relay.is_some())
            .map(|model| model.ends)
            .min();
        let timeout = self
            .world
            .server
            .next_timeout()
            .map(|at| (at - self.world.began).as_secs());
        assert_eq!(timeout, next);
        for c in 0..CLIENTS {
            self.check_channels(c, now);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_server_does_as_the_model(steps in steps()) {
        let mut run = Run::new();
        // One allocation that outlives its channels, so that their end is seen too.
        let begin = [Step::Allocate(0), Step::Refresh(0, 3600)];
        for step in begin.iter().chain(&steps) {
            run.step(step);
            run.check();
        }
    }
}
