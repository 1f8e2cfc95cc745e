//! The ICE servers that a page is told of.

use std::time::Duration;

use penstock_core::ids::PlayerId;
use penstock_core::turn_rest;
use penstock_core::wire::signalling::{Config, IceServer, PROTOCOL_VERSION, PeerConnectionOptions};

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
    /// Their URLs.
    pub urls: Vec<String>,
    /// The secret.
    pub secret: Vec<u8>,
    /// How long credentials last.
    pub lifetime: Duration,
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn")
            .field("urls", &self.urls)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

impl Ice {
    /// The first message to a page, with TURN credentials made for `player`.
    pub fn config(&self, player: &PlayerId, now_unix: Duration) -> Config {
        let stun = (!self.stun.is_empty()).then(|| IceServer {
            urls: self.stun.clone(),
            username: None,
            credential: None,
        });
        let turn = self.turn.as_ref().map(|turn| {
            let made = turn_rest::issue(&turn.secret, player, None, now_unix, turn.lifetime);
            IceServer {
                urls: turn.urls.clone(),
                username: Some(made.username),
                credential: Some(made.password),
            }
        });
        Config {
            peer_connection_options: PeerConnectionOptions {
                ice_servers: stun.into_iter().chain(turn).collect(),
            },
            protocol_version: Some(PROTOCOL_VERSION.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_player_gets_credentials_of_its_own() {
        let ice = Ice {
            stun: vec!["stun:h:1".into()],
            turn: Some(Turn {
                urls: vec!["turn:h:1".into()],
                secret: b"s".to_vec(),
                lifetime: Duration::from_secs(60),
            }),
        };
        let config = ice.config(&PlayerId::new("ann").unwrap(), Duration::from_secs(1000));
        let servers = config.peer_connection_options.ice_servers;
        assert_eq!(servers.len(), 2);
        assert_eq!(servers[1].username.as_deref(), Some("1060:ann"));
        let password = turn_rest::password(b"s", "1060:ann");
        assert_eq!(servers[1].credential, Some(password));
        assert!(!format!("{ice:?}").contains("secret"));
    }
}
