//! A server with a held clock, and clients that speak to it. Stands in for the shell.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test uses a part of it"
)]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "any instant serves as the beginning of a held clock"
)]

pub mod namespaces;
pub mod person;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use penstock_core::turn_rest;
use penstock_turn::core::auth::Users;
use penstock_turn::core::family::ByFamily;
use penstock_turn::core::nonce::Nonces;
use penstock_turn::core::peers::PeerPolicy;
use penstock_turn::core::server::{Command, Config, Forward, OpenFailure, Rules, Server};
use penstock_turn::core::shared::{Limits, Quota, Shared};
use penstock_turn::core::throttle::{Rate, Throttle};
use penstock_turn::core::{FiveTuple, Now, RelayId, Transport};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use stun_types::attribute::{AttributeWrite, ErrorCode, Nonce, Realm, Username};
use stun_types::message::{
    BINDING, IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageIntegrityCredentials,
    MessageWrite as _, MessageWriteExt as _, MessageWriteVec, Method, TransactionId,
};
use turn_types::attribute::{
    ChannelNumber, Data, Lifetime, RequestedTransport, XorPeerAddress, XorRelayedAddress,
};
use turn_types::message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, REFRESH, SEND};

pub const SECRET: &[u8] = b"north";
pub const REALM: &str = "penstock";
/// When the held clock begins, in Unix time.
pub const BEGAN_UNIX: Duration = Duration::from_secs(1_893_456_000);
pub const EXTERNAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(9, 9, 9, 9));
pub const EXTERNAL_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0x2a00, 9, 0, 0, 0, 0, 0, 9));
pub const USER: Quota = Quota {
    allocations: 4,
    peers: usize::MAX,
    bytes_per_second: None,
};
pub const LIMITS: Limits = Limits {
    total: 8,
    ports: usize::MAX,
    user: USER,
    fixed_user: USER,
    source: Quota {
        allocations: usize::MAX,
        peers: usize::MAX,
        bytes_per_second: None,
    },
    connections: usize::MAX,
    connections_per_source: usize::MAX,
};

/// What the worlds are made from: relays of both families on ten ports.
pub fn config(limits: Limits) -> Config {
    Config {
        realm: REALM.to_owned(),
        rules: rules(&[SECRET]),
        relay_ips: ByFamily::first_of(["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()]),
        shared: Shared::new("50000-50009".parse().unwrap(), limits),
        alternates: ByFamily::default(),
        unproven_answers: throttle(0, 0),
        auth_failures: throttle(0, 0),
    }
}

/// A limit; none where `per_second` is 0.
pub fn throttle<K: Copy + Eq + Hash>(per_second: u32, burst: u32) -> Throttle<K> {
    Throttle::new(Rate { per_second, burst }, 7)
}

/// Two users and some secrets; peers in 10.42.0.0/16 and fd42::/16, and public ones.
pub fn rules(secrets: &[&[u8]]) -> Rules {
    let allowed = ["10.42.0.0/16", "fd42::/16"].map(|net| net.parse().unwrap());
    Rules {
        users: Users {
            secrets: secrets.iter().map(|secret| secret.to_vec()).collect(),
            fixed: HashMap::from([
                ("ann".to_owned(), "pw".to_owned()),
                ("bob".to_owned(), "pw".to_owned()),
            ]),
        },
        peers: PeerPolicy::new(allowed.to_vec(), [EXTERNAL, EXTERNAL_V6], false),
    }
}

/// The server, its clock, and the relays it has open.
pub struct World {
    pub server: Server<StdRng>,
    pub began: Instant,
    pub elapsed: Duration,
    pub open: BTreeMap<RelayId, SocketAddr>,
    /// What the server's clones share.
    pub shared: Shared,
    /// Ports that another process has.
    pub busy: BTreeSet<u16>,
    /// Whether all ports of IPv6 are another process's.
    pub busy_v6: bool,
}

/// What became of a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passed {
    Nothing,
    ToPeer(RelayId, SocketAddr, Vec<u8>),
    ToClient(FiveTuple, Vec<u8>),
}

impl World {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(LIMITS);
        change(&mut config);
        let began = Instant::now();
        Self {
            shared: config.shared.clone(),
            server: Server::new(config, Nonces::new([7; 32], began), StdRng::seed_from_u64(7)),
            began,
            elapsed: Duration::ZERO,
            open: BTreeMap::new(),
            busy: BTreeSet::new(),
            busy_v6: false,
        }
    }

    pub fn now(&self) -> Now {
        Now {
            instant: self.began + self.elapsed,
            unix: BEGAN_UNIX + self.elapsed,
        }
    }

    /// Lets time pass.
    pub fn wait(&mut self, seconds: u64) {
        self.elapsed += Duration::from_secs(seconds);
    }

    /// Lets time pass, and the server notice.
    pub fn wait_and_tick(&mut self, seconds: u64) {
        self.wait(seconds);
        self.server.handle_timeout(self.now().instant);
        assert!(self.do_commands().is_empty());
    }

    /// A client's message; gives the answers to it.
    pub fn ask(&mut self, from: FiveTuple, bytes: &[u8]) -> Option<Vec<u8>> {
        let forward = self.server.client_input(self.now(), from, bytes);
        assert_eq!(forward, Forward::Nothing);
        let mut answers = self.do_commands();
        assert!(answers.len() <= 1, "one answer at most");
        let (to, bytes) = answers.pop()?;
        assert_eq!(to, from);
        Some(bytes)
    }

    /// A client's payload.
    pub fn client_sends(&mut self, from: FiveTuple, bytes: &[u8]) -> Passed {
        let passed = owned(self.server.client_input(self.now(), from, bytes));
        assert!(self.do_commands().is_empty());
        passed
    }

    /// A peer's datagram.
    pub fn peer_sends(&mut self, relay: RelayId, peer: SocketAddr, bytes: &[u8]) -> Passed {
        let passed = owned(self.server.peer_input(self.now(), relay, peer, bytes));
        assert!(self.do_commands().is_empty());
        passed
    }

    /// Does as the shell does.
    pub fn do_commands(&mut self) -> Vec<(FiveTuple, Vec<u8>)> {
        let mut answers = Vec::new();
        while let Some(command) = self.server.poll_command() {
            match command {
                Command::ToClient { to, bytes } => answers.push((to, bytes)),
                Command::OpenRelay { relay, bind, .. } if self.is_busy(bind) => {
                    let now = self.now();
                    self.server.relay_opened(now, relay, Err(OpenFailure::PortTaken));
                }
                Command::OpenRelay { relay, bind, .. } => {
                    assert_eq!(self.open.insert(relay, bind), None, "a relay is opened once");
                    let told = if bind.is_ipv4() { EXTERNAL } else { EXTERNAL_V6 };
                    let now = self.now();
                    self.server.relay_opened(now, relay, Ok(told));
                }
                Command::CloseRelay { relay } => {
                    assert!(self.open.remove(&relay).is_some(), "only what is open is closed");
                }
            }
        }
        answers
    }

    fn is_busy(&self, bind: SocketAddr) -> bool {
        self.busy.contains(&bind.port()) || (self.busy_v6 && bind.is_ipv6())
    }

    /// How many relay ports are taken or reserved.
    pub fn ports_taken(&self) -> usize {
        self.shared.ports_taken(self.now().instant)
    }

    pub fn only_relay(&self) -> RelayId {
        assert_eq!(self.open.len(), 1);
        *self.open.first_key_value().unwrap().0
    }
}

fn owned(forward: Forward<'_>) -> Passed {
    match forward {
        Forward::Nothing => Passed::Nothing,
        Forward::ToPeer { relay, peer, payload } => Passed::ToPeer(relay, peer, payload.to_vec()),
        Forward::ToClient {
            to,
            envelope,
            payload,
        } => Passed::ToClient(to, [envelope.head(), payload, envelope.padding()].concat()),
    }
}

/// A client with its credentials.
#[derive(Clone)]
pub struct Client {
    pub at: FiveTuple,
    pub name: String,
    pub password: String,
    pub nonce: String,
    next_transaction: u128,
}

/// An answer, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    None,
    Success,
    Error(u16),
}

impl Client {
    pub fn new(port: u16, name: &str, password: &str) -> Self {
        Self {
            at: FiveTuple {
                transport: Transport::Udp,
                local: "10.0.0.5:3478".parse().unwrap(),
                remote: ([198, 51, 100, 7], port).into(),
            },
            name: name.to_owned(),
            password: password.to_owned(),
            nonce: String::new(),
            next_transaction: u128::from(port) << 32,
        }
    }

    pub fn ann(port: u16) -> Self {
        Self::new(port, "ann", "pw")
    }

    /// With credentials of the shared secret that end `lifetime_s` after the clock's beginning.
    pub fn with_secret(port: u16, who: &str, lifetime_s: u64) -> Self {
        let name = format!("{}:{who}", BEGAN_UNIX.as_secs() + lifetime_s);
        let password = turn_rest::password(SECRET, &name);
        Self::new(port, &name, &password)
    }

    pub fn transaction(&mut self) -> TransactionId {
        self.next_transaction += 1;
        self.next_transaction.into()
    }

    /// Without credentials.
    pub fn bare(&mut self, method: Method, attributes: &[&dyn AttributeWrite]) -> Vec<u8> {
        let transaction = self.transaction();
        begin(method, transaction, attributes).finish()
    }

    pub fn signed(&mut self, method: Method, attributes: &[&dyn AttributeWrite]) -> Vec<u8> {
        let transaction = self.transaction();
        self.signed_in(transaction, method, attributes)
    }

    pub fn signed_in(
        &self,
        transaction: TransactionId,
        method: Method,
        attributes: &[&dyn AttributeWrite],
    ) -> Vec<u8> {
        let mut message = begin(method, transaction, attributes);
        message
            .add_attribute(&Username::new(&self.name).unwrap())
            .unwrap();
        message.add_attribute(&Realm::new(REALM).unwrap()).unwrap();
        message.add_attribute(&Nonce::new(&self.nonce).unwrap()).unwrap();
        message
            .add_message_integrity(&self.key(), IntegrityAlgorithm::Sha1)
            .unwrap();
        message.add_fingerprint().unwrap();
        message.finish()
    }

    fn key(&self) -> MessageIntegrityCredentials {
        LongTermKeyCredentials::new(self.name.clone(), self.password.clone(), REALM.to_owned()).into()
    }

    /// Sends a request as clients do: with the nonce it has, and once more with a new one if told so.
    pub fn ask(&mut self, world: &mut World, method: Method, attributes: &[&dyn AttributeWrite]) -> Answer {
        for _ in 0..2 {
            let request = self.signed(method, attributes);
            let Some(bytes) = world.ask(self.at, &request) else {
                return Answer::None;
            };
            match self.read(&bytes) {
                Answer::Error(438) => {}
                answer => return answer,
            }
        }
        Answer::Error(438)
    }

    /// As [`Self::ask`], with the answer's bytes.
    pub fn ask_raw(
        &mut self,
        world: &mut World,
        method: Method,
        attributes: &[&dyn AttributeWrite],
    ) -> (Answer, Vec<u8>) {
        let mut last = (Answer::None, Vec::new());
        for _ in 0..2 {
            let request = self.signed(method, attributes);
            let bytes = world.ask(self.at, &request).unwrap();
            last = (self.read(&bytes), bytes);
            if last.0 != Answer::Error(438) {
                break;
            }
        }
        last
    }

    /// Takes an answer apart, and keeps the nonce of a challenge. Every other answer must be signed, but for Binding's,
    /// since whoever it is for has authenticated.
    pub fn read(&mut self, bytes: &[u8]) -> Answer {
        let message = Message::from_bytes(bytes).unwrap();
        if let Ok(nonce) = message.attribute::<Nonce>() {
            self.nonce = nonce.nonce().to_owned();
            assert_eq!(message.attribute::<Realm>().unwrap().realm(), REALM);
            let code = message.attribute::<ErrorCode>().unwrap().code();
            assert!(matches!(code, 401 | 438), "a challenge with {code}");
        } else if message.method() != BINDING {
            message.validate_integrity(&self.key()).unwrap();
        }
        match message.attribute::<ErrorCode>() {
            Ok(error) => Answer::Error(error.code()),
            Err(_) => Answer::Success,
        }
    }

    pub fn allocate(&mut self, world: &mut World) -> Answer {
        self.ask(world, ALLOCATE, &[&RequestedTransport::new(17)])
    }

    /// Allocates, and gives the relay with the address that the client was told.
    pub fn allocated(&mut self, world: &mut World) -> (RelayId, SocketAddr) {
        let known: Vec<_> = world.open.keys().copied().collect();
        let _ = self.ask(world, REFRESH, &[]);
        let transaction = self.transaction();
        let request = self.signed_in(transaction, ALLOCATE, &[&RequestedTransport::new(17)]);
        let bytes = world.ask(self.at, &request).unwrap();
        assert_eq!(self.read(&bytes), Answer::Success);
        let message = Message::from_bytes(&bytes).unwrap();
        let told = message
            .attribute::<XorRelayedAddress>()
            .unwrap()
            .addr(transaction);
        let relay = world.open.keys().find(|relay| !known.contains(relay)).unwrap();
        (*relay, told)
    }

    pub fn refresh(&mut self, world: &mut World, lifetime_s: u32) -> Answer {
        self.ask(world, REFRESH, &[&Lifetime::new(lifetime_s)])
    }

    pub fn permit(&mut self, world: &mut World, peer: SocketAddr) -> Answer {
        for _ in 0..2 {
            let transaction = self.transaction();
            let request = self.signed_in(
                transaction,
                CREATE_PERMISSION,
                &[&XorPeerAddress::new(peer, transaction)],
            );
            let bytes = world.ask(self.at, &request).unwrap();
            match self.read(&bytes) {
                Answer::Error(438) => {}
                answer => return answer,
            }
        }
        Answer::Error(438)
    }

    pub fn bind(&mut self, world: &mut World, channel: u16, peer: SocketAddr) -> Answer {
        for _ in 0..2 {
            let transaction = self.transaction();
            let peer = XorPeerAddress::new(peer, transaction);
            let request = self.signed_in(transaction, CHANNEL_BIND, &[&ChannelNumber::new(channel), &peer]);
            let bytes = world.ask(self.at, &request).unwrap();
            match self.read(&bytes) {
                Answer::Error(438) => {}
                answer => return answer,
            }
        }
        Answer::Error(438)
    }

    pub fn send(&self, world: &mut World, peer: SocketAddr, data: &[u8]) -> Passed {
        world.client_sends(self.at, &self.indication(peer, data))
    }

    /// A Send indication.
    pub fn indication(&self, peer: SocketAddr, data: &[u8]) -> Vec<u8> {
        let transaction = TransactionId::from(5_u128);
        let mut message = Message::builder_indication(SEND, MessageWriteVec::new());
        message.mut_data()[8..20].copy_from_slice(&u128::from(transaction).to_be_bytes()[4..]);
        message
            .add_attribute(&XorPeerAddress::new(peer, transaction))
            .unwrap();
        message.add_attribute(&Data::new(data)).unwrap();
        message.finish()
    }

    pub fn send_on(&self, world: &mut World, channel: u16, data: &[u8]) -> Passed {
        let length = u16::try_from(data.len()).unwrap();
        let bytes = [&channel.to_be_bytes()[..], &length.to_be_bytes(), data].concat();
        world.client_sends(self.at, &bytes)
    }
}

fn begin(method: Method, transaction: TransactionId, attributes: &[&dyn AttributeWrite]) -> MessageWriteVec {
    let kind = stun_types::message::MessageType::from_class_method(
        stun_types::message::MessageClass::Request,
        method,
    );
    let mut message = Message::builder(kind, transaction, MessageWriteVec::new());
    for attribute in attributes {
        message.add_attribute(*attribute).unwrap();
    }
    message
}

pub fn peer_v6(n: u8) -> SocketAddr {
    let ip = std::net::Ipv6Addr::new(0xfd42, 0, 0, 0, 0, 0, 0, n.into());
    (ip, 4000).into()
}

pub fn peer(n: u8) -> SocketAddr {
    ([10, 42, 0, n], 4000).into()
}
