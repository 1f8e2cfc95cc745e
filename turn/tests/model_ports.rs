//! The core against a second model: relays of both families, reserved ports and nonces, to the second.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::net::SocketAddr;

use common::{Answer, Client, LIMITS, World, config};
use penstock_turn::core::family::{ByFamily, Family};
use penstock_turn::core::shared::{Limits, Quota, Shared};
use proptest::prelude::*;
use stun_types::attribute::{Attribute as _, AttributeStaticType as _, AttributeWrite};
use stun_types::message::{Message, Method};
use turn_types::attribute::{
    AdditionalAddressFamily, EvenPort, Lifetime, RequestedAddressFamily, RequestedTransport,
    ReservationToken, XorRelayedAddress,
};
use turn_types::message::{ALLOCATE, REFRESH};

#[derive(Debug, Clone, Copy)]
enum Step {
    Wait(u64),
    Allocate(usize, Kind),
    Refresh(usize, Option<Family>, u32),
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    One(Family),
    Both,
    EvenPair,
    /// One of the tokens that were given so far.
    Token(usize),
}

const CLIENTS: usize = 3;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let family = || prop_oneof![Just(Family::V4), Just(Family::V6)];
    let kind = prop_oneof![
        family().prop_map(Kind::One),
        Just(Kind::Both),
        Just(Kind::EvenPair),
        (0_usize..4).prop_map(Kind::Token),
    ];
    // Times around the lifetimes, so that the very second is hit often.
    let wait = prop_oneof![
        Just(1_u64),
        Just(29),
        Just(30),
        Just(599),
        Just(600),
        Just(3600),
        1_u64..700
    ];
    let lifetime = prop_oneof![Just(0_u32), Just(600), Just(900), Just(3600)];
    let step = prop_oneof![
        3 => wait.prop_map(Step::Wait),
        5 => (0..CLIENTS, kind).prop_map(|(c, kind)| Step::Allocate(c, kind)),
        3 => (0..CLIENTS, proptest::option::of(family()), lifetime).prop_map(|(c, f, s)| Step::Refresh(c, f, s)),
    ];
    proptest::collection::vec(step, 1..60)
}

/// What one client should have: all times in seconds since the beginning.
#[derive(Default)]
struct Model {
    relays: ByFamily<Option<u64>>,
    nonce_since: Option<u64>,
}

struct Reserved {
    token: u64,
    port: u16,
    user: String,
    /// None once it was used.
    ends: Option<u64>,
}

struct Run {
    world: World,
    clients: Vec<Client>,
    models: Vec<Model>,
    reserved: Vec<Reserved>,
}

impl Run {
    fn new() -> Self {
        let user = Quota {
            allocations: usize::MAX,
            ..LIMITS.user
        };
        let limits = Limits {
            total: usize::MAX,
            user,
            fixed_user: user,
            ..LIMITS
        };
        let world = World::with(|made| {
            *made = config(limits);
            made.shared = Shared::new("50000-50999".parse().unwrap(), limits);
        });
        Self {
            world,
            clients: vec![
                Client::ann(1000),
                Client::ann(1001),
                Client::new(1002, "bob", "pw"),
            ],
            models: (0..CLIENTS).map(|_| Model::default()).collect(),
            reserved: Vec::new(),
        }
    }

    fn now(&self) -> u64 {
        self.world.elapsed.as_secs()
    }

    fn step(&mut self, step: Step) {
        self.expire();
        match step {
            Step::Wait(seconds) => self.world.wait_and_tick(seconds),
            Step::Allocate(c, kind) => self.allocate(c, kind),
            Step::Refresh(c, family, seconds) => self.refresh(c, family, seconds),
        }
    }

    fn expire(&mut self) {
        let now = self.now();
        for model in &mut self.models {
            for family in Family::ALL {
                model.relays[family] = model.relays[family].filter(|ends| now < *ends);
            }
        }
        for reserved in &mut self.reserved {
            reserved.ends = reserved.ends.filter(|ends| now < *ends);
        }
    }

    /// Asks once, or twice where the model says that the nonce is over.
    fn ask(&mut self, c: usize, method: Method, attributes: &[&dyn AttributeWrite]) -> (Answer, Vec<u8>) {
        let now = self.now();
        let is_stale = self.models[c].nonce_since.is_none_or(|since| since + 3600 <= now);
        let mut ask = || {
            let client = &mut self.clients[c];
            let request = client.signed(method, attributes);
            let bytes = self.world.ask(client.at, &request).unwrap();
            (client.read(&bytes), bytes)
        };
        if is_stale {
            assert_eq!(ask().0, Answer::Error(438));
            self.models[c].nonce_since = Some(now);
        }
        ask()
    }

    fn allocate(&mut self, c: usize, kind: Kind) {
        let udp = RequestedTransport::new(17);
        let (v6, both) = (
            RequestedAddressFamily::new(Family::V6.into()),
            AdditionalAddressFamily::new(Family::V6.into()),
        );
        let chosen = match kind {
            Kind::Token(n) if !self.reserved.is_empty() => Some(n % self.reserved.len()),
            _ => None,
        };
        let token = ReservationToken::new(chosen.map_or(12_345, |at| self.reserved[at].token));
        let pair = EvenPort::new(true);
        let more: Option<&dyn AttributeWrite> = match kind {
            Kind::One(Family::V4) => None,
            Kind::One(Family::V6) => Some(&v6),
            Kind::Both => Some(&both),
            Kind::EvenPair => Some(&pair),
            Kind::Token(_) => Some(&token),
        };
        let attributes: Vec<_> = std::iter::once(&udp as &dyn AttributeWrite).chain(more).collect();
        let (answer, bytes) = self.ask(c, ALLOCATE, &attributes);
        let until = Some(self.now() + 600);
        if self.models[c].relays.present().next().is_some() {
            return assert_eq!(answer, Answer::Error(437));
        }
        let mut port = None;
        let relays = match kind {
            Kind::One(Family::V4) | Kind::EvenPair => ByFamily { v4: until, v6: None },
            Kind::One(Family::V6) => ByFamily { v4: None, v6: until },
            Kind::Both => ByFamily { v4: until, v6: until },
            Kind::Token(_) => {
                let user = &self.clients[c].name;
                let reserved = chosen.map(|at| &mut self.reserved[at]);
                let Some(reserved) =
                    reserved.filter(|reserved| reserved.ends.is_some() && reserved.user == *user)
                else {
                    return assert_eq!(answer, Answer::Error(508));
                };
                reserved.ends = None;
                port = Some(reserved.port);
                ByFamily { v4: until, v6: None }
            }
        };
        assert_eq!(answer, Answer::Success);
        let got = relayed(&bytes);
        assert_eq!(got.len(), relays.present().count());
        assert!(
            port.is_none_or(|port| got[0].port() == port),
            "the port that was reserved"
        );
        self.models[c].relays = relays;
        if let Kind::EvenPair = kind {
            let message = Message::from_bytes(&bytes).unwrap();
            assert!(got[0].port().is_multiple_of(2));
            self.reserved.push(Reserved {
                token: message.attribute::<ReservationToken>().unwrap().token(),
                port: got[0].port() + 1,
                user: self.clients[c].name.clone(),
                ends: Some(self.now() + 30),
            });
        }
    }

    fn refresh(&mut self, c: usize, family: Option<Family>, seconds: u32) {
        let lifetime = Lifetime::new(seconds);
        let requested = family.map(|family| RequestedAddressFamily::new(family.into()));
        let attributes: Vec<&dyn AttributeWrite> = std::iter::once(&lifetime as &dyn AttributeWrite)
            .chain(requested.iter().map(|family| family as _))
            .collect();
        let (answer, _) = self.ask(c, REFRESH, &attributes);
        let now = self.now();
        let relays = &mut self.models[c].relays;
        if relays.present().next().is_none() {
            return assert_eq!(answer, Answer::Error(437));
        }
        if family.is_some_and(|family| relays[family].is_none()) {
            return assert_eq!(answer, Answer::Error(443));
        }
        assert_eq!(answer, Answer::Success);
        for one in Family::ALL {
            if family.is_none_or(|family| family == one) && relays[one].is_some() {
                relays[one] = (seconds > 0).then_some(now + u64::from(seconds));
            }
        }
    }

    /// After every step: no relay, port or reservation more or less than the model has.
    fn check(&mut self) {
        self.expire();
        self.world.wait_and_tick(0);
        let relays: Vec<u64> = self
            .models
            .iter()
            .flat_map(|model| model.relays.present().map(|(_, ends)| *ends).collect::<Vec<_>>())
            .collect();
        let reserved = self
            .reserved
            .iter()
            .filter(|reserved| reserved.ends.is_some())
            .count();
        assert_eq!(self.world.open.len(), relays.len());
        assert_eq!(self.world.ports_taken(), relays.len() + reserved);
        let alive = self
            .models
            .iter()
            .filter(|model| model.relays.present().next().is_some());
        let held = self.world.shared.held(self.world.now().instant);
        assert_eq!(held, alive.count() + reserved);
        let next = self.world.server.next_timeout();
        let next = next.map(|at| (at - self.world.began).as_secs());
        assert_eq!(next, relays.iter().min().copied());
    }
}

fn relayed(bytes: &[u8]) -> Vec<SocketAddr> {
    let message = Message::from_bytes(bytes).unwrap();
    let transaction = message.transaction_id();
    message
        .iter_attributes()
        .filter(|(_, raw)| raw.get_type() == XorRelayedAddress::TYPE)
        .map(|(_, raw)| XorRelayedAddress::try_from(&raw).unwrap().addr(transaction))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn relays_reserved_ports_and_nonces_are_as_in_the_model(steps in steps()) {
        let mut run = Run::new();
        for step in steps {
            run.step(step);
            run.check();
        }
    }
}
