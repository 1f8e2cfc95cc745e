//! Arbitrary datagrams of a client and of a peer, into a fresh server.
#![no_main]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use penstock_turn::core::auth::Users;
use penstock_turn::core::nonce::Nonces;
use penstock_turn::core::peers::PeerPolicy;
use penstock_turn::core::family::ByFamily;
use penstock_turn::core::server::{Config, Rules, Server};
use penstock_turn::core::shared::{Limits, Shared};
use penstock_turn::core::throttle::{Rate, Throttle};
use penstock_turn::core::wire::length_in_stream;
use penstock_turn::core::{FiveTuple, Now, RelayId, Transport};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

fuzz_target!(|bytes: &[u8]| {
    let now = Now {
        instant: Instant::now(),
        unix: Duration::from_secs(1_893_456_000),
    };
    let address: SocketAddr = ([198, 51, 100, 7], 1000).into();
    let no_limit = Rate {
        per_second: 0,
        burst: 0,
    };
    let limits = Limits {
        total: 8,
        ..Limits::default()
    };
    let config = Config {
        realm: "penstock".to_owned(),
        rules: Rules {
            users: Users {
                secrets: vec![b"north".to_vec()],
                fixed: HashMap::new(),
            },
            peers: PeerPolicy::default(),
        },
        relay_ips: ByFamily::first_of([address.ip()]),
        shared: Shared::new("50000-50009".parse().expect("a range of ports"), limits),
        alternates: ByFamily::default(),
        unproven_answers: Throttle::new(no_limit, 7),
        auth_failures: Throttle::new(no_limit, 7),
    };
    let mut server = Server::new(config, Nonces::new([7; 32], now.instant), StdRng::seed_from_u64(7));
    let from = FiveTuple {
        transport: Transport::Udp,
        local: address,
        remote: address,
    };
    let _ = server.client_input(now, from, bytes);
    assert!(!matches!(length_in_stream(bytes), Ok(Some(0..4))));
    let _ = server.peer_input(now, RelayId(0), address, bytes);
    while server.poll_command().is_some() {}
});
