//! Time-limited TURN credentials made from a shared secret: the "TURN REST" scheme that coturn calls
//! `use-auth-secret` (draft-uberti-behave-turn-rest-00), so either server takes the other's.
//!
//! ```text
//!  user name   1893456000:player-7            expiry (Unix seconds) : who
//!              1893456000:player-7@10.0.3.9   the same, for that one peer only (ours; opaque to coturn)
//!  password    base64(HMAC-SHA1(secret, user name))
//! ```

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;

use crate::ids::PlayerId;

/// A user name and the password that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `expiry:who` or `expiry:who@peer`.
    pub username: String,
    /// Base64 of the HMAC.
    pub password: String,
}

/// What a well-formed user name says. That it is genuine shows only in the message integrity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserName<'a> {
    /// Unix time in seconds from which on the credentials are void.
    pub expiry_unix_s: u64,
    /// Whom they were made for: what quotas count by.
    pub who: &'a str,
    /// The only peer that may be reached with them.
    pub peer: Option<IpAddr>,
}

/// Makes credentials for `player` that end at `now_unix + lifetime`, bound to `peer` if there is one.
pub fn issue(
    secret: &[u8],
    player: &PlayerId,
    peer: Option<IpAddr>,
    now_unix: Duration,
    lifetime: Duration,
) -> Credentials {
    let expiry = (now_unix + lifetime).as_secs();
    let username = match peer {
        None => format!("{expiry}:{player}"),
        Some(peer) => format!("{expiry}:{player}@{peer}"),
    };
    let password = password(secret, &username);
    Credentials { username, password }
}

/// The password that belongs to `username` under `secret`.
pub fn password(secret: &[u8], username: &str) -> String {
    // HMAC takes keys of every length (RFC 2104, section 2), so this can't fail.
    let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(secret) else {
        unreachable!("HMAC takes any key")
    };
    mac.update(username.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

/// Reads a user name. `None` where it is not of this scheme.
pub fn parse(username: &str) -> Option<UserName<'_>> {
    let (expiry, rest) = username.split_once(':')?;
    let expiry_unix_s = expiry.parse().ok()?;
    match rest.rsplit_once('@') {
        None => Some(UserName {
            expiry_unix_s,
            who: rest,
            peer: None,
        }),
        Some((who, peer)) => Some(UserName {
            expiry_unix_s,
            who,
            peer: Some(peer.parse().ok()?),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn player() -> PlayerId {
        PlayerId::new("demo").unwrap()
    }

    #[test]
    fn the_password_is_what_openssl_makes_of_it() {
        // printf 1893456000:demo | openssl dgst -sha1 -hmac north -binary | base64
        assert_eq!(password(b"north", "1893456000:demo"), KNOWN);
        let made = issue(
            b"north",
            &player(),
            None,
            Duration::from_secs(1_893_452_400),
            Duration::from_secs(3600),
        );
        assert_eq!(
            (made.username.as_str(), made.password.as_str()),
            ("1893456000:demo", KNOWN)
        );
    }

    #[test]
    fn a_user_name_says_when_who_and_where_to() {
        let peer: IpAddr = "10.0.3.9".parse().unwrap();
        let made = issue(
            b"s",
            &player(),
            Some(peer),
            Duration::from_secs(10),
            Duration::from_secs(5),
        );
        assert_eq!(
            parse(&made.username),
            Some(UserName {
                expiry_unix_s: 15,
                who: "demo",
                peer: Some(peer)
            })
        );
    }

    #[test]
    fn a_name_of_another_form_is_none() {
        for name in ["", "demo", "soon:demo", "12:demo@nowhere", "-1:demo"] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    const KNOWN: &str = "sukrYkuAoZpAacN9wOWS8TSfn/0=";
}
