//! The ICE servers that a page is told of.
//!
//! ```text
//!  a page connects ──► config with STUN only: nobody needs a relay to wait
//!  it is matched ────► config with TURN, in credentials that reach this one streamer only; then the list
//! ```
//!
//! A stock page makes a new peer connection of each `config` (seen in `tests/tests/relay.rs`), so the second is what
//! counts.

use std::net::IpAddr;
use std::time::Duration;

use penstock_core::ids::PlayerId;
use penstock_core::turn_rest;
use penstock_core::wire::signalling::{Config, IceServer, PROTOCOL_VERSION, PeerConnectionOptions};

use crate::turn_servers::TurnServers;

/// The ICE servers.
#[derive(Debug, Clone)]
pub struct Ice {
    /// STUN URLs.
    pub stun: Vec<String>,
    /// TURN servers, if there are any.
    pub turn: Option<Turn>,
}

/// TURN servers that share a secret with us.
#[derive(Clone)]
pub struct Turn {
    /// The URLs of those that are always there.
    pub urls: Vec<String>,
    /// Those that come and go.
    pub servers: TurnServers,
    /// The secret.
    pub secret: Vec<u8>,
    /// How long credentials last.
    pub lifetime: Duration,
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn")
            .field("urls", &self.urls)
            .field("servers", &self.servers)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

impl Ice {
    /// The first message to a page, before it has a streamer.
    pub fn first_config(&self) -> Config {
        config(self.stun().collect())
    }

    /// What a page is told once it has a streamer: as the first, and TURN servers with credentials for `player` that
    /// reach `peers` only, the streamer's addresses; or whatever the TURN servers allow, where there are none.
    pub fn config(&self, player: &PlayerId, peers: &[IpAddr], now_unix: Duration) -> Config {
        config(self.servers(player, peers, now_unix))
    }

    /// The servers in that, the least loaded of the TURN servers first.
    pub fn servers(&self, player: &PlayerId, peers: &[IpAddr], now_unix: Duration) -> Vec<IceServer> {
        let turn = self.turn.iter().flat_map(|turn| turn.for_player(player, peers, now_unix));
        self.stun().chain(turn).collect()
    }

    fn stun(&self) -> impl Iterator<Item = IceServer> {
        let stun = (!self.stun.is_empty()).then(|| IceServer {
            urls: self.stun.clone(),
            username: None,
            credential: None,
        });
        stun.into_iter()
    }
}

impl Turn {
    fn for_player(&self, player: &PlayerId, peers: &[IpAddr], now_unix: Duration) -> Vec<IceServer> {
        let made = turn_rest::issue(&self.secret, player, peers, now_unix, self.lifetime);
        let fixed = (!self.urls.is_empty()).then(|| self.urls.clone());
        let servers = self.servers.choose(SERVERS_FOR_A_PAGE).into_iter().chain(fixed);
        let server = |urls| IceServer {
            urls,
            username: Some(made.username.clone()),
            credential: Some(made.password.clone()),
        };
        servers.map(server).collect()
    }
}

fn config(ice_servers: Vec<IceServer>) -> Config {
    Config {
        peer_connection_options: PeerConnectionOptions { ice_servers },
        protocol_version: Some(PROTOCOL_VERSION.to_owned()),
    }
}

/// A second one for when the first does not answer; with more, a page takes longer to ask all.
const SERVERS_FOR_A_PAGE: usize = 2;

#[cfg(test)]
mod tests {
    use penstock_core::wire::turn::TurnStatus;

    use super::*;

    fn ice() -> Ice {
        Ice {
            stun: vec!["stun:h:1".into()],
            turn: Some(Turn {
                urls: vec!["turn:h:1".into()],
                servers: TurnServers::default(),
                secret: b"s".to_vec(),
                lifetime: Duration::from_secs(60),
            }),
        }
    }

    fn for_ann(ice: &Ice, peers: &[IpAddr]) -> Vec<IceServer> {
        ice.servers(&PlayerId::new("ann").unwrap(), peers, Duration::from_secs(1000))
    }

    #[test]
    fn each_player_gets_credentials_of_its_own_for_one_streamer() {
        let ice = ice();
        let peers: [IpAddr; 2] = ["10.0.0.9", "fd00::9"].map(|ip| ip.parse().unwrap());
        let servers = for_ann(&ice, &peers);
        assert_eq!(servers.len(), 2);
        let name = "1060:ann@10.0.0.9,fd00::9";
        assert_eq!(servers[1].username.as_deref(), Some(name));
        assert_eq!(servers[1].credential, Some(turn_rest::password(b"s", name)));
        assert!(!format!("{ice:?}").contains("secret"));
    }

    #[test]
    fn before_there_is_a_streamer_there_is_no_relay() {
        let servers = ice().first_config().peer_connection_options.ice_servers;
        assert_eq!(servers.len(), 1);
        assert_eq!(servers[0].urls, ["stun:h:1"]);
    }

    #[test]
    fn servers_that_come_and_go_stand_before_those_that_stay() {
        let ice = ice();
        let status = |n: u64| TurnStatus {
            urls: vec![format!("turn:198.51.100.{n}:3478?transport=udp")],
            draining: false,
            allocations: 10 - n,
            max_allocations: 100,
            bytes_per_second: 0,
        };
        for n in 1..=3 {
            let servers = &ice.turn.as_ref().unwrap().servers;
            servers.answered(&format!("turn-{n}").parse().unwrap(), status(n));
        }
        let urls: Vec<_> = for_ann(&ice, &[]).into_iter().map(|server| server.urls).collect();
        assert_eq!(
            urls.concat(),
            [
                "stun:h:1",
                "turn:198.51.100.3:3478?transport=udp",
                "turn:198.51.100.2:3478?transport=udp",
                "turn:h:1"
            ]
        );
    }
}
