//! Time-limited TURN credentials made from a shared secret: the "TURN REST" scheme that coturn calls
//! `use-auth-secret` (draft-uberti-behave-turn-rest-00), so either server takes the other's.
//!
//! ```text
//!  user name   1893456000:player-7            expiry (Unix seconds) : who
//!              1893456000:player-7@10.0.3.9   the same, for that one peer only (ours; opaque to coturn)
//!              …@10.0.3.9,fd00::9             for these peers only: one streamer's, of both families
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
    /// The only peers that may be reached with them.
    pub peers: Option<Vec<IpAddr>>,
}

/// Makes credentials for `player` that end at `now_unix + lifetime`, bound to `peers` if there are any: to the first
/// four, since a user name has its limits.
pub fn issue(
    secret: &[u8],
    player: &PlayerId,
    peers: &[IpAddr],
    now_unix: Duration,
    lifetime: Duration,
) -> Credentials {
    let expiry = (now_unix + lifetime).as_secs();
    let peers: Vec<_> = peers.iter().take(MAX_PEERS).map(ToString::to_string).collect();
    let username = match peers.is_empty() {
        true => format!("{expiry}:{player}"),
        false => format!("{expiry}:{player}@{}", peers.join(",")),
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
            peers: None,
        }),
        Some((who, peers)) => {
            let peers: Result<Vec<_>, _> = peers.split(',').map(str::parse).collect();
            Some(UserName {
                expiry_unix_s,
                who,
                peers: Some(peers.ok()?),
            })
        }
    }
}

const MAX_PEERS: usize = 4;

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
            &[],
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
        let peers: [IpAddr; 2] = ["10.0.3.9", "fd00::9"].map(|ip| ip.parse().unwrap());
        let made = issue(
            b"s",
            &player(),
            &peers,
            Duration::from_secs(10),
            Duration::from_secs(5),
        );
        assert_eq!(
            parse(&made.username),
            Some(UserName {
                expiry_unix_s: 15,
                who: "demo",
                peers: Some(peers.to_vec())
            })
        );
    }

    #[test]
    fn a_name_of_another_form_is_none() {
        for name in [
            "",
            "demo",
            "soon:demo",
            "12:demo@nowhere",
            "12:demo@",
            "12:demo@10.0.3.9,",
            "-1:demo",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    const KNOWN: &str = "sukrYkuAoZpAacN9wOWS8TSfn/0=";
}
