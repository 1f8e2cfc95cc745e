//! The ICE servers that a page is told of.
//!
//! ```text
//!  a page connects ──► config with void credentials: nobody needs a relay to wait
//!  it is matched ────► config with credentials that reach this one streamer only; then the list
//! ```
//!
//! A stock page makes a new peer connection of each `config`, which does nothing until there is an offer
//! (`tests/tests/relay.rs` plays so), so the second is what counts. It needs TURN servers in the first too: with
//! `ForceTURN` it hangs up where there are none.

use std::net::IpAddr;
use std::time::Duration;

use penstock_core::ids::PlayerId;
use penstock_core::turn_rest::{self, Credentials};
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
    /// The first message to a page, before it has a streamer: with TURN servers, but credentials whose time is over.
    pub fn first_config(&self, player: &PlayerId, now_unix: Duration) -> Config {
        let turn = self
            .turn
            .iter()
            .flat_map(|turn| turn.before_match(player, now_unix));
        config(self.stun().chain(turn).collect())
    }

    /// What a page is told once it has a streamer: as the first, and TURN servers with credentials for `player` that
    /// reach `peers` only, the streamer's addresses; or whatever the TURN servers allow, where there are none.
    pub fn config(&self, player: &PlayerId, peers: &[IpAddr], now_unix: Duration) -> Config {
        config(self.servers(player, peers, now_unix))
    }

    /// The servers in that, the least loaded of the TURN servers first.
    pub fn servers(&self, player: &PlayerId, peers: &[IpAddr], now_unix: Duration) -> Vec<IceServer> {
        let turn = self
            .turn
            .iter()
            .flat_map(|turn| turn.for_player(player, peers, now_unix));
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
        let chosen = self.servers.choose(SERVERS_FOR_A_PAGE);
        let with = |urls| with_credentials(urls, &made);
        chosen.into_iter().chain(self.fixed()).map(with).collect()
    }

    fn before_match(&self, player: &PlayerId, now_unix: Duration) -> Option<IceServer> {
        let over = turn_rest::issue(&self.secret, player, &[], now_unix, Duration::ZERO);
        let any = self.fixed().or_else(|| self.servers.any());
        any.map(|urls| with_credentials(urls, &over))
    }

    fn fixed(&self) -> Option<Vec<String>> {
        (!self.urls.is_empty()).then(|| self.urls.clone())
    }
}

fn with_credentials(urls: Vec<String>, made: &Credentials) -> IceServer {
    IceServer {
        urls,
        username: Some(made.username.clone()),
        credential: Some(made.password.clone()),
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
    fn before_there_is_a_streamer_credentials_are_void() {
        let ann = PlayerId::new("ann").unwrap();
        let config = ice().first_config(&ann, Duration::from_secs(1000));
        let servers = config.peer_connection_options.ice_servers;
        assert_eq!(servers[0].urls, ["stun:h:1"]);
        assert_eq!(servers[1].urls, ["turn:h:1"]);
        assert_eq!(servers[1].username.as_deref(), Some("1000:ann"), "over at once");
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
