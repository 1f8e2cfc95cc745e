//! A server at a held clock, two clients that have allocated, peers, and strangers; and what holds whatever they say: for the
//! fuzz target of this name, and for `cargo test`.
//!
//! ```text
//!  bytes ─► one step after another ─► Server ─► what it passes on, answers, opens and closes
//!                     └─────────────► what each client was granted, noted by ourselves ─► may it?
//! ```

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

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
use stun_types::attribute::{AttributeType, Nonce, RawAttribute, Realm, Username};
use stun_types::message::{
    IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageClass, MessageIntegrityCredentials,
    MessageType, MessageWrite as _, MessageWriteExt as _, MessageWriteVec, Method, TransactionId,
};
use turn_types::attribute::{ChannelNumber, Data, Lifetime, RequestedTransport, XorPeerAddress};
use turn_types::message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, REFRESH, SEND};

/// How much of it came about.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Happened {
    /// Payloads passed on to peers.
    pub(crate) to_peers: usize,
    /// Payloads passed on to clients.
    pub(crate) to_clients: usize,
    /// Payloads that went nowhere.
    pub(crate) dropped: usize,
    /// Requests that succeeded.
    pub(crate) successes: usize,
    /// Requests that were refused, otherwise than by a challenge.
    pub(crate) refusals: usize,
}

/// Takes `bytes` for what everybody does.
///
/// # Panics
/// Where the server does what it must not.
pub(crate) fn hold(bytes: &[u8]) -> Happened {
    let mut world = World::new();
    for client in 0..world.clients.len() {
        world.request(client, ALLOCATE, &Attributes::Allocate);
        world.request(client, CHANNEL_BIND, &Attributes::Bind(0x4000, peer(0)));
        world.request(client, CREATE_PERMISSION, &Attributes::Permit(peer(1)));
        // Only what is a fault from here on is of interest.
        assert!(world.clients[client].permitted.contains_key(&peer(1).ip()));
    }
    let mut script = Script(bytes);
    for _ in 0..MOST_STEPS {
        if script.0.is_empty() {
            break;
        }
        world.step(&mut script);
        world.check();
    }
    world.end();
    world.happened
}

/// What is left of the bytes.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn some(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte() % 64).min(self.0.len());
        let (some, rest) = self.0.split_at(length);
        self.0 = rest;
        some
    }

    fn one_of(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count
    }
}

/// What a request asks for.
enum Attributes<'a> {
    Allocate,
    Bind(u16, SocketAddr),
    Permit(SocketAddr),
    Lifetime(u32),
    /// Whatever it is, with kinds that the server knows.
    Raw(&'a [u8]),
}

struct World {
    server: Server<StdRng>,
    shared: Shared,
    began: Instant,
    elapsed: Duration,
    clients: Vec<Client>,
    /// Open relays, and whose they are.
    relays: BTreeMap<RelayId, (SocketAddr, FiveTuple)>,
    next_transaction: u128,
    happened: Happened,
}

struct Client {
    at: FiveTuple,
    name: &'static str,
    nonce: String,
    /// Until when its allocation may reach a peer.
    permitted: BTreeMap<IpAddr, Duration>,
}

impl World {
    fn new() -> Self {
        let quota = Quota {
            peers: MOST_PEERS,
            ..Quota::default()
        };
        let limits = Limits {
            total: MOST_ALLOCATIONS,
            user: quota,
            fixed_user: quota,
            ..Limits::default()
        };
        let no_limit = Rate {
            per_second: 0,
            burst: 0,
        };
        let shared = Shared::new("50000-50009".parse().expect("a range of ports"), limits);
        let config = Config {
            realm: REALM.to_owned(),
            rules: rules(&ALLOWED),
            relay_ips: ByFamily::first_of([LOCAL, "fd00::5"].map(|ip| ip.parse().expect("an address"))),
            shared: shared.clone(),
            alternates: ByFamily::default(),
            unproven_answers: Throttle::new(no_limit, 7),
            auth_failures: Throttle::new(no_limit, 7),
        };
        let began = Instant::now();
        let client = |(name, transport, port)| Client {
            at: FiveTuple {
                transport,
                local: SocketAddr::new(LOCAL.parse().expect("an address"), 3478),
                remote: ([198, 51, 100, 7], port).into(),
            },
            name,
            nonce: String::new(),
            permitted: BTreeMap::new(),
        };
        let clients = [("ann", Transport::Udp, 1001), ("bob", Transport::Stream, 1002)];
        Self {
            server: Server::new(config, Nonces::new([7; 32], began), StdRng::seed_from_u64(7)),
            shared,
            began,
            elapsed: Duration::ZERO,
            clients: clients.map(client).into(),
            relays: BTreeMap::new(),
            next_transaction: 0,
            happened: Happened::default(),
        }
    }

    fn now(&self) -> Now {
        Now {
            instant: self.began + self.elapsed,
            unix: BEGAN_UNIX + self.elapsed,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let (what, who) = (script.byte(), script.one_of(self.clients.len()));
        match what % 16 {
            0 | 1 => self.client_says(self.clients[who].at, script.some()),
            2 => {
                let (peer, data) = (peer(script.byte()), script.some());
                let indication = self.indication(peer, data);
                self.client_says(self.clients[who].at, &indication);
            }
            3 => {
                let channel = (0x4000 + u16::from(script.byte() % 4)).to_be_bytes();
                let data = script.some();
                let length = (data.len() as u16).to_be_bytes();
                self.client_says(self.clients[who].at, &[&channel, &length, data].concat());
            }
            4 | 5 => {
                let known: Vec<_> = self.relays.keys().copied().collect();
                let relay = match known.len() {
                    0 => RelayId(script.byte().into()),
                    count => known[script.one_of(count)],
                };
                self.peer_says(relay, peer(script.byte()), script.some());
            }
            // A stranger, or somebody at a client's address by another transport.
            6 => {
                let mut at = self.clients[who].at;
                match script.one_of(3) {
                    0 => at.remote.set_port(2000),
                    1 => at.local.set_port(2000),
                    _ if at.transport == Transport::Udp => at.transport = Transport::Stream,
                    _ => at.transport = Transport::Udp,
                }
                self.client_says(at, script.some());
            }
            7 => self.wait(Duration::from_secs(match script.byte() {
                seconds @ 0..240 => seconds.into(),
                longer => u64::from(longer) * 4,
            })),
            8 => self.request(who, CREATE_PERMISSION, &Attributes::Permit(peer(script.byte()))),
            9 => {
                let channel = 0x4000 + u16::from(script.byte() % 4);
                self.request(who, CHANNEL_BIND, &Attributes::Bind(channel, peer(script.byte())));
            }
            10 => self.request(who, REFRESH, &Attributes::Lifetime(u32::from(script.byte()) * 8)),
            11 => self.request(who, ALLOCATE, &Attributes::Allocate),
            12 | 13 => {
                let method = [ALLOCATE, REFRESH, CREATE_PERMISSION, CHANNEL_BIND][script.one_of(4)];
                self.request(who, method, &Attributes::Raw(script.some()));
            }
            14 if script.one_of(4) == 0 => self.reload(script.one_of(ALLOWED.len() + 1)),
            14 => self.reload(ALLOWED.len()),
            _ => match script.one_of(16) {
                0 => self.server.drain(),
                5.. => {}
                _ => {
                    let client = &mut self.clients[who];
                    client.permitted.clear();
                    self.server.client_gone(&client.at);
                    assert_eq!(self.do_commands(None), None);
                }
            },
        }
    }

    /// Somebody says something without a signature: it is passed on, or answered at most once, and grants nothing.
    fn client_says(&mut self, from: FiveTuple, bytes: &[u8]) {
        let now = self.now();
        let permitted = |ip: IpAddr| {
            self.clients
                .iter()
                .any(|client| client.at == from && client.may_reach(ip, self.elapsed))
        };
        match self.server.client_input(now, from, bytes) {
            Forward::Nothing => self.happened.dropped += 1,
            Forward::ToPeer { relay, peer, payload } => {
                let (bound, client) = self.relays[&relay];
                assert_eq!(client, from, "by a relay of its own");
                assert_eq!(bound.is_ipv4(), peer.is_ipv4(), "of the peer's family");
                assert!(
                    permitted(peer.ip()),
                    "nothing to {peer}, for which there is no permission"
                );
                assert!(payload.is_empty() || bytes.windows(payload.len()).any(|part| part == payload));
                self.happened.to_peers += 1;
            }
            Forward::ToClient { .. } => panic!("a client is no peer"),
        }
        let answer = self.do_commands(Some(from));
        assert!(
            answer.is_none_or(|answer| answer.len() < MOST_ANSWER),
            "short answers"
        );
    }

    fn peer_says(&mut self, relay: RelayId, from: SocketAddr, bytes: &[u8]) {
        let now = self.now();
        match self.server.peer_input(now, relay, from, bytes) {
            Forward::Nothing => self.happened.dropped += 1,
            Forward::ToPeer { .. } => panic!("a peer is no client"),
            Forward::ToClient {
                to,
                envelope,
                payload,
            } => {
                let (_, client) = self.relays[&relay];
                assert_eq!((to, payload), (client, bytes), "all of it, to the relay's client");
                let client = self.clients.iter().find(|client| client.at == to);
                assert!(
                    client.is_some_and(|client| client.may_reach(from.ip(), self.elapsed)),
                    "nothing from {from}, for which there is no permission"
                );
                let length = envelope.head().len() + payload.len() + envelope.padding().len();
                assert!(to.transport == Transport::Udp || length.is_multiple_of(4));
                self.happened.to_clients += 1;
            }
        }
        assert_eq!(self.do_commands(None), None, "peers get no answers");
    }

    /// A client's own request; and what it was granted is noted.
    fn request(&mut self, who: usize, method: Method, attributes: &Attributes<'_>) {
        for _ in 0..2 {
            let bytes = self.signed(who, method, attributes);
            let from = self.clients[who].at;
            let had = self.server.has_allocation(&from);
            let forward = self.server.client_input(self.now(), from, &bytes);
            assert_eq!(forward, Forward::Nothing);
            let Some(answer) = self.do_commands(Some(from)) else {
                return;
            };
            let answer = Message::from_bytes(&answer).expect("an answer is a message");
            if let Ok(nonce) = answer.attribute::<Nonce>() {
                self.clients[who].nonce = nonce.nonce().to_owned();
                continue;
            }
            if answer.class() != MessageClass::Success {
                self.happened.refusals += 1;
                return;
            }
            self.happened.successes += 1;
            let until = self.elapsed + Duration::from_secs(300);
            let client = &mut self.clients[who];
            if !had {
                assert_eq!(method, ALLOCATE, "the others are about an allocation");
                client.permitted.clear();
            }
            if [CREATE_PERMISSION, CHANNEL_BIND].contains(&method) {
                let asked = Message::from_bytes(&bytes).expect("we wrote it");
                let transaction = asked.transaction_id();
                for (_, raw) in asked.iter_attributes() {
                    if let Ok(peer) = XorPeerAddress::try_from(&raw) {
                        client.permitted.insert(peer.addr(transaction).ip(), until);
                    }
                }
            }
            return;
        }
    }

    fn reload(&mut self, allowed: usize) {
        let rules = rules(&ALLOWED[..allowed]);
        for client in &mut self.clients {
            client
                .permitted
                .retain(|peer, _| rules.peers.check(*peer).is_ok());
        }
        self.server.reload(rules);
        assert_eq!(self.do_commands(None), None);
    }

    fn wait(&mut self, time: Duration) {
        self.elapsed += time;
        self.server.handle_timeout(self.now().instant);
        assert_eq!(self.do_commands(None), None);
    }

    /// Does as the shell does; gives the answer, if there is one: to `asker`, and only one.
    fn do_commands(&mut self, asker: Option<FiveTuple>) -> Option<Vec<u8>> {
        let mut answer = None;
        while let Some(command) = self.server.poll_command() {
            match command {
                Command::ToClient { to, bytes } => {
                    assert_eq!(Some(to), asker, "who has asked is answered");
                    assert!(answer.replace(bytes).is_none(), "once");
                }
                // Another program has some of the ports.
                Command::OpenRelay { relay, bind, .. } if bind.port() % 5 == 3 => {
                    let now = self.now();
                    self.server.relay_opened(now, relay, Err(OpenFailure::PortTaken));
                }
                Command::OpenRelay { relay, bind, client } => {
                    let known = self.relays.insert(relay, (bind, client));
                    assert!(known.is_none(), "a relay is opened once");
                    let now = self.now();
                    self.server.relay_opened(now, relay, Ok(bind.ip()));
                }
                Command::CloseRelay { relay } => {
                    assert!(
                        self.relays.remove(&relay).is_some(),
                        "only what is open is closed"
                    );
                }
            }
        }
        answer
    }

    /// What the server keeps is bounded.
    fn check(&self) {
        assert!(self.server.allocation_count() <= MOST_ALLOCATIONS);
        assert!(self.relays.len() <= 2 * self.server.allocation_count());
        let ports = self.shared.ports_taken(self.now().instant);
        assert!(
            (self.relays.len()..=2 * MOST_ALLOCATIONS).contains(&ports),
            "{ports}"
        );
        for client in &self.clients {
            let channels = self.server.unlimited_channels(self.now().instant, &client.at);
            for channel in channels.into_iter().flat_map(|(_, channels)| channels) {
                assert!(client.may_reach(channel.peer.ip(), self.elapsed));
            }
            let reach = client.permitted.values().filter(|until| self.elapsed < **until);
            assert!(reach.count() <= MOST_PEERS, "as many as a user may have");
        }
    }

    /// After the longest lifetime nothing is left.
    fn end(&mut self) {
        self.wait(Duration::from_secs(3600 + 30));
        assert_eq!((self.server.allocation_count(), self.relays.len()), (0, 0));
        assert_eq!(self.shared.ports_taken(self.now().instant), 0);
        assert_eq!(self.server.next_timeout(), None);
    }

    fn transaction(&mut self) -> TransactionId {
        self.next_transaction += 1;
        self.next_transaction.into()
    }

    fn indication(&mut self, peer: SocketAddr, data: &[u8]) -> Vec<u8> {
        let transaction = self.transaction();
        let kind = MessageType::from_class_method(MessageClass::Indication, SEND);
        let mut message = Message::builder(kind, transaction, MessageWriteVec::new());
        let peer = XorPeerAddress::new(peer, transaction);
        message.add_attribute(&peer).expect("there is room");
        message.add_attribute(&Data::new(data)).expect("there is room");
        message.finish()
    }

    fn signed(&mut self, who: usize, method: Method, attributes: &Attributes<'_>) -> Vec<u8> {
        let transaction = self.transaction();
        let kind = MessageType::from_class_method(MessageClass::Request, method);
        let mut message = Message::builder(kind, transaction, MessageWriteVec::new());
        let added = match attributes {
            Attributes::Allocate => message.add_attribute(&RequestedTransport::new(17)),
            Attributes::Bind(channel, peer) => {
                let peer = XorPeerAddress::new(*peer, transaction);
                let number = message.add_attribute(&ChannelNumber::new(*channel));
                number.and_then(|()| message.add_attribute(&peer))
            }
            Attributes::Permit(peer) => message.add_attribute(&XorPeerAddress::new(*peer, transaction)),
            Attributes::Lifetime(seconds) => message.add_attribute(&Lifetime::new(*seconds)),
            Attributes::Raw(bytes) => {
                let mut script = Script(bytes);
                let mut added = Ok(());
                while added.is_ok() && !script.0.is_empty() {
                    let kind = AttributeType::new(KINDS[script.one_of(KINDS.len())]);
                    added = message.add_attribute(&RawAttribute::new(kind, script.some()));
                }
                added
            }
        };
        // The library writes none twice; then the request is without the rest.
        let _ = added;
        let Client { name, nonce, .. } = &self.clients[who];
        let credentials = LongTermKeyCredentials::new((*name).to_owned(), "pw".to_owned(), REALM.to_owned());
        let signed = (|| {
            message.add_attribute(&Username::new(name).ok()?).ok()?;
            message.add_attribute(&Realm::new(REALM).ok()?).ok()?;
            message.add_attribute(&Nonce::new(nonce).ok()?).ok()?;
            let key = MessageIntegrityCredentials::from(credentials);
            message.add_message_integrity(&key, IntegrityAlgorithm::Sha1).ok()
        })();
        assert!(signed.is_some() || matches!(attributes, Attributes::Raw(_)));
        message.finish()
    }
}

impl Client {
    fn may_reach(&self, peer: IpAddr, elapsed: Duration) -> bool {
        self.permitted.get(&peer).is_some_and(|until| elapsed < *until)
    }
}

fn rules(allowed: &[&str]) -> Rules {
    let fixed = ["ann", "bob"].map(|name| (name.to_owned(), "pw".to_owned()));
    let allowed = allowed.iter().map(|net| net.parse().expect("a network"));
    Rules {
        users: Users {
            secrets: vec![b"north".to_vec()],
            fixed: HashMap::from(fixed),
        },
        peers: PeerPolicy::new(allowed.collect(), [], true),
    }
}

/// Some are allowed by all rules but the strictest, one by none, one is IPv6's; on two ports each.
fn peer(n: u8) -> SocketAddr {
    let port = 4000 + u16::from(n / 8 % 2);
    match n % 8 {
        n @ 0..4 => ([10, 42, 0, n], port).into(),
        n @ 4..6 => ([10, 43, 0, n], port).into(),
        6 => ([10, 99, 0, 6], port).into(),
        n => SocketAddr::new(IpAddr::from([0xfd42, 0, 0, 0, 0, 0, 0, u16::from(n)]), port),
    }
}

const REALM: &str = "penstock";
const LOCAL: &str = "10.0.0.5";
/// In Unix time.
const BEGAN_UNIX: Duration = Duration::from_secs(1_893_456_000);
const ALLOWED: [&str; 3] = ["10.42.0.0/16", "10.43.0.0/16", "fd42::/16"];
const MOST_STEPS: usize = 400;
const MOST_ALLOCATIONS: usize = 4;
const MOST_PEERS: usize = 4;
/// In bytes: a challenge with a realm and a nonce is far shorter.
const MOST_ANSWER: usize = 300;
/// What requests are made of: CHANNEL-NUMBER, LIFETIME, XOR-PEER-ADDRESS, DATA, REQUESTED-ADDRESS-FAMILY, EVEN-PORT,
/// REQUESTED-TRANSPORT, DONT-FRAGMENT, RESERVATION-TOKEN, ADDITIONAL-ADDRESS-FAMILY; and two that nobody knows.
const KINDS: [u16; 12] = [
    0x000C, 0x000D, 0x0012, 0x0013, 0x0017, 0x0018, 0x0019, 0x001A, 0x0022, 0x8000, 0x0077, 0x8077,
];
