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

use std::net::{IpAddr, Ipv4Addr};
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
    pub fn first_config(&self, player: &PlayerId) -> Config {
        let turn = self.turn.iter().filter_map(|turn| turn.before_match(player));
        config(self.stun().chain(turn).collect())
    }

    /// What a page is told once it has a streamer: as the first, and TURN servers with credentials for `player` that
    /// reach `peers` only, the streamer's addresses. Where there are none they reach nothing.
    pub fn config(&self, player: &PlayerId, peers: &[IpAddr], now_unix: Duration) -> Config {
        config(self.with_turn(|turn| turn.for_player(player, peers, now_unix)))
    }

    /// The same servers with credentials for `who` that reach all that the TURN servers allow: for operators.
    pub fn servers_to_anywhere(&self, who: &PlayerId, now_unix: Duration) -> Vec<IceServer> {
        self.with_turn(|turn| turn_rest::issue(&turn.secret, who, &[], now_unix, turn.lifetime))
    }

    /// The least loaded of the TURN servers first.
    fn with_turn(&self, made: impl Fn(&Turn) -> Credentials) -> Vec<IceServer> {
        let turn = self.turn.iter().flat_map(|turn| turn.chosen(&made(turn)));
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
    /// For no peers they are void, since to a TURN server none named would be all.
    fn for_player(&self, player: &PlayerId, peers: &[IpAddr], now_unix: Duration) -> Credentials {
        match peers {
            [] => self.void(player),
            _ => turn_rest::issue(&self.secret, player, peers, now_unix, self.lifetime),
        }
    }

    fn chosen(&self, made: &Credentials) -> Vec<IceServer> {
        let chosen = self.servers.choose(SERVERS_FOR_A_PAGE);
        let with = |urls| with_credentials(urls, made);
        chosen.into_iter().chain(self.fixed()).map(with).collect()
    }

    fn before_match(&self, player: &PlayerId) -> Option<IceServer> {
        let any = self.fixed().or_else(|| self.servers.any());
        any.map(|urls| with_credentials(urls, &self.void(player)))
    }

    /// Credentials that are over, by every clock, and name a peer that leads nowhere: a TURN server whose clock is behind
    /// would take those that end now, and go on with what was made with them.
    fn void(&self, player: &PlayerId) -> Credentials {
        let nowhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
        turn_rest::issue(&self.secret, player, &nowhere, LONG_OVER, Duration::ZERO)
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
/// A second after the beginning of Unix time: 0 might be taken for no end.
const LONG_OVER: Duration = Duration::from_secs(1);

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
        let ann = PlayerId::new("ann").unwrap();
        let config = ice.config(&ann, peers, Duration::from_secs(1000));
        config.peer_connection_options.ice_servers
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
        let config = ice().first_config(&ann);
        let servers = config.peer_connection_options.ice_servers;
        assert_eq!(servers[0].urls, ["stun:h:1"]);
        assert_eq!(servers[1].urls, ["turn:h:1"]);
        assert_eq!(servers[1].username.as_deref(), Some("1:ann@0.0.0.0"));
    }

    #[test]
    fn a_streamer_of_no_known_address_is_not_reached_by_reaching_all() {
        let servers = for_ann(&ice(), &[]);
        assert_eq!(servers[1].username.as_deref(), Some("1:ann@0.0.0.0"));
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
