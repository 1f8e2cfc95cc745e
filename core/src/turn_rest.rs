//! Time-limited TURN credentials made from a shared secret: the "TURN REST" scheme that coturn calls
//! `use-auth-secret` (draft-uberti-behave-turn-rest-00), so either server takes the other's.
//!
//! ```text
//!  user name   1893456000:player-7            expiry (Unix seconds) : who
//!              player-7:1893456000            the same
//!              1893456000                     for nobody by name; each such name counts for itself
//!              1893456000:player-7@10.0.3.9   for that one peer only (ours; opaque to coturn)
//!              …@10.0.3.9,fd00::9             for these peers only: one streamer's, of both families
//!              1893456000:ann@example.org     what follows the @ are no addresses, so it belongs to who
//!  password    base64(HMAC-SHA1(secret, user name))
//! ```
//!
//! Where the expiry stands is told as coturn 4.6 does: before the first `:` if there are digits only, else behind it, else
//! at the beginning of the whole name; what follows its digits there is passed over. Debian's `turnserver` is asked
//! beside us in `turn/tests/coturn.rs`.

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
    /// `expiry:who` or `expiry:who@peers`.
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

/// Reads a user name. `None` where it is not of this scheme, or seems to name peers and doesn't ([`split_peers`]).
pub fn parse(username: &str) -> Option<UserName<'_>> {
    let (expiry, who, of_who) = match username.split_once(':') {
        Some((expiry, who)) if is_number(expiry) => (expiry, who, who),
        Some((who, expiry)) if expiry.contains('@') => (expiry, who, expiry),
        Some((who, expiry)) => (expiry, who, who),
        None => (username, username, username),
    };
    let digits = expiry.find(|c: char| !c.is_ascii_digit()).unwrap_or(expiry.len());
    let expiry_unix_s = expiry[..digits].parse().ok()?;
    let (before, peers) = split_peers(of_who)?;
    // Behind an expiry that comes last there is nothing of who.
    let who = if of_who == who { before } else { who };
    Some(UserName {
        expiry_unix_s,
        who,
        peers,
    })
}

/// A name without the peers that it is bound to, and these: what follows its last `@`, where all of that is IP addresses
/// with commas between them. Other names have none: `ann@example.org`. `None` where there should be addresses, by the
/// look of it, and are not (`ann@10.0.3`, `ann@10.0.3.9:3478`, `ann@`), so that a typing error never opens more peers.
pub fn split_peers(name: &str) -> Option<(&str, Option<Vec<IpAddr>>)> {
    let Some((before, after)) = name.rsplit_once('@') else {
        return Some((name, None));
    };
    let peers: Result<Vec<IpAddr>, _> = after.split(',').map(str::parse).collect();
    match peers {
        Ok(peers) => Some((before, Some(peers))),
        Err(_) if after.split(',').any(looks_like_an_address) => None,
        Err(_) => Some((name, None)),
    }
}

/// Whether it is an address, or was meant to be one: what is left when names are taken out. A name has a letter that no
/// address has, or letters and no colon, or letters behind its last dot. A Matrix user such as `@ada:10.0.3.9` is taken
/// for one too, and refused.
fn looks_like_an_address(text: &str) -> bool {
    // A zone (fe80::1%eth0) is a name of its own.
    let text = text.split('%').next().unwrap_or_default();
    let is_of_a_name = |c: char| c.is_alphabetic() && !c.is_ascii_hexdigit();
    let has_letters = |text: &str| text.contains(char::is_alphabetic);
    let ends_as_a_name = text.rsplit_once('.').is_some_and(|(_, last)| has_letters(last));
    !(text.contains(is_of_a_name) || (has_letters(text) && !text.contains(':')) || ends_as_a_name)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
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
    fn a_name_says_its_time_wherever_coturn_looks_for_it() {
        for (name, who) in [
            ("12:demo", "demo"),
            ("demo:12", "demo"),
            ("12", "12"),
            (":12", ""),
            ("12:", ""),
            ("12:34", "34"),
            ("12:@alice:example.org", "@alice:example.org"),
            ("12:alice@example.org", "alice@example.org"),
            ("alice@example.org:12", "alice@example.org"),
            ("12:ada@cafe", "ada@cafe"),
            ("12:@ada:cafe.de", "@ada:cafe.de"),
            ("12:ada@10.0.3.9.example.org", "ada@10.0.3.9.example.org"),
            ("12:ada@büro", "ada@büro"),
            ("demo:12.5", "demo"),
            ("demo:12:x", "demo"),
            ("12x", "12x"),
        ] {
            let expected = UserName {
                expiry_unix_s: 12,
                who,
                peers: None,
            };
            assert_eq!(parse(name), Some(expected), "{name}");
        }
    }

    #[test]
    fn peers_are_read_wherever_the_time_stands() {
        for (name, who, peers) in [
            ("12:demo@10.0.3.9", "demo", "10.0.3.9"),
            ("demo@10.0.3.9:12", "demo", "10.0.3.9"),
            ("demo:12@10.0.3.9", "demo", "10.0.3.9"),
            ("demo:12@fd00::9", "demo", "fd00::9"),
            ("12@10.0.3.9", "12", "10.0.3.9"),
            ("12:ann@example.org@fd00::9", "ann@example.org", "fd00::9"),
            ("12:@10.0.3.9", "", "10.0.3.9"),
        ] {
            let expected = UserName {
                expiry_unix_s: 12,
                who,
                peers: Some(vec![peers.parse().unwrap()]),
            };
            assert_eq!(parse(name), Some(expected), "{name}");
        }
    }

    #[test]
    fn a_name_without_a_time_is_none() {
        for name in [
            "",
            ":",
            "demo",
            "soon:demo",
            "-1:demo",
            "demo@fd00::9:12",
            "12@fd00::9",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
        assert_eq!(parse("99999999999999999999:demo"), None, "no such time");
    }

    #[test]
    fn what_looks_like_an_address_and_is_none_opens_nothing() {
        for peers in [
            "",
            "10.0.3",
            "10.0.3.256",
            "10.0.3.9.",
            "10.0.3.9,",
            ",10.0.3.9",
            "10.0.3.9, 10.0.3.8",
            "10.0.3.9;10.0.3.8",
            "10.0.3.9,streamer-7",
            "streamer-7,fd00::9",
            "10.0.3.0/24",
            "10.0.3.9:3478",
            "fd00::9::1",
            "fd00:9",
            "[fd00::9]",
            "[fd00::9]:3478",
            "fd00::/8",
            "fe80::1%eth0",
            "123",
        ] {
            for name in [format!("12:demo@{peers}"), format!("demo:12@{peers}")] {
                assert_eq!(parse(&name), None, "{name}");
            }
        }
        assert_eq!(parse("demo@10.0.3:12"), None);
    }

    const KNOWN: &str = "sukrYkuAoZpAacN9wOWS8TSfn/0=";
}
