//! Who may use the server: the long-term credential mechanism of RFC 8489, section 9.2, over static users and over
//! shared secrets (`penstock_core::turn_rest`).
//!
//! ```text
//!  no MESSAGE-INTEGRITY ───────────► 401, with realm and nonce
//!  MESSAGE-INTEGRITY-SHA256 alone ─► 420
//!  a part missing ─────────────────► 400
//!  nonce over, or of another client► 438, with a new one
//!  too many failures so far ───────► nothing
//!  no such user, or wrong password ► 401
//!  all well ───────────────────────► the user, and the key that signs our answer
//! ```
//!
//! Failures are limited for the sake of passwords that can be guessed, and of the CPU time that checking takes, which no
//! request needs that has nothing to be checked: so whoever comes without credentials is challenged however often others
//! behind the same NAT have failed. What such a client sends next is checked unless a [`Guesser`] of its kind has failed
//! too often. Then it gets no answer, rather than a 401, at which it would give up: it sends its request again, over UDP
//! seven times in half a minute, and one with the right password costs nothing, so it gets through as soon as it comes
//! before the next wrong one.
//!
//! A user name's time counts when an allocation is made. Refreshing one that lives goes on after that, as with coturn:
//! a player's session is not cut because it began an hour ago.
//!
//! Answers carry no PASSWORD-ALGORITHMS, so clients use MESSAGE-INTEGRITY with an MD5 key, the one every browser has
//! (RFC 8489, section 9.2.5). One that sends MESSAGE-INTEGRITY-SHA256 all the same is told that we don't know it; beside
//! MESSAGE-INTEGRITY it is passed over, as those do that are older than it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use penstock_core::turn_rest;
use stun_types::attribute::{
    AttributeStaticType as _, MessageIntegrity, MessageIntegritySha256, Nonce, Realm, Username,
};
use stun_types::message::{IntegrityAlgorithm, IntegrityKey, LongTermKeyCredentials, Message};

use super::counters::AuthFailure;
use super::nonce::Nonces;
use super::{Now, Source};

/// Who there is.
#[derive(Clone, Default)]
pub struct Users {
    /// Secrets that user names with an expiry are made from. The first that fits counts, so one can be rotated.
    pub secrets: Vec<Vec<u8>>,
    /// Users that never end, with their passwords. One that is called `name@10.0.3.9` reaches that peer only.
    pub fixed: HashMap<String, String>,
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.fixed.keys().collect();
        f.debug_struct("Users")
            .field("fixed", &names)
            .finish_non_exhaustive()
    }
}

/// An authenticated user.
#[derive(Debug, Clone)]
pub struct User {
    /// The whole user name.
    pub name: Arc<str>,
    /// What quotas count by: the name without expiry and peer.
    pub who: Arc<str>,
    /// The only peers that may be reached, if the name says so.
    pub only_peers: Option<Arc<[IpAddr]>>,
    /// When the name's time is over.
    pub expiry_unix: Option<Duration>,
    /// Signs the answers.
    pub key: IntegrityKey,
}

/// Why a request is not authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthError {
    /// 401: it did not try.
    NoCredentials,
    /// 420: it tried with MESSAGE-INTEGRITY-SHA256 alone.
    UnknownIntegrity,
    /// No answer: too many of its kind have failed.
    TooOften,
    /// 400, 401 or 438, by the reason.
    Failed(AuthFailure),
}

/// Whose failures to authenticate count together: a source's, with one of [`SHARES`] shares of all user names.
///
/// By source alone, one wrong password a second would keep everybody behind its NAT from a relay. By the very name, there
/// would be no limit: user names of a shared secret can be made up without end, each has to be checked, and together they
/// would push what is known of others out of the [`Throttle`](super::throttle::Throttle). So a wrong password stands in
/// the way of its own user, and of few others of the same source, and a source is checked for [`SHARES`] times the rate at
/// most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Guesser {
    source: Source,
    share: u8,
}

impl Guesser {
    /// Who tries `name` from `source`.
    pub fn new(source: Source, name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let share = (hasher.finish() % SHARES) as u8;
        Self { source, share }
    }
}

/// How many shares user names have.
pub const SHARES: u64 = 64;

/// Authenticates requests.
#[derive(Debug)]
pub struct Authenticator {
    users: Users,
    realm: String,
    nonces: Nonces,
}

impl Authenticator {
    /// Over `users` in `realm`.
    pub fn new(users: Users, realm: String, nonces: Nonces) -> Self {
        Self { users, realm, nonces }
    }

    /// From now on, other users.
    pub fn set_users(&mut self, users: Users) {
        self.users = users;
    }

    /// The realm.
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// A nonce for `client`.
    pub fn nonce(&self, now: Now, client: SocketAddr) -> String {
        self.nonces.issue(now.instant, client)
    }

    /// The user that `message` says it is from, in answer to a challenge of ours to `client`.
    ///
    /// # Errors
    /// Where it says nothing of the kind.
    pub fn claimed(&self, now: Now, client: SocketAddr, message: &Message<'_>) -> Result<String, AuthError> {
        if !message.has_attribute(MessageIntegrity::TYPE) {
            return Err(match message.has_attribute(MessageIntegritySha256::TYPE) {
                true => AuthError::UnknownIntegrity,
                false => AuthError::NoCredentials,
            });
        }
        let incomplete = |_| AuthError::Failed(AuthFailure::Incomplete);
        let name = message.attribute::<Username>().map_err(incomplete)?;
        let realm = message.attribute::<Realm>().map_err(incomplete)?;
        let nonce = message.attribute::<Nonce>().map_err(incomplete)?;
        if !self.nonces.accepts(now.instant, client, nonce.nonce()) {
            return Err(AuthError::Failed(AuthFailure::StaleNonce));
        }
        if realm.realm() != self.realm {
            return Err(AuthError::Failed(AuthFailure::UnknownUser));
        }
        Ok(name.username().to_owned())
    }

    /// The user `name`, if `message` is from it.
    ///
    /// # Errors
    /// There is no such user, or the password is another.
    pub fn user(&self, name: &str, message: &Message<'_>) -> Result<User, AuthFailure> {
        if let Some(password) = self.users.fixed.get(name) {
            let (who, peers) = turn_rest::split_peers(name).ok_or(AuthFailure::UnknownUser)?;
            let key = self.key_that_fits(name, [password.clone()], message)?;
            return Ok(User {
                name: name.into(),
                who: who.into(),
                only_peers: peers.map(Into::into),
                expiry_unix: None,
                key,
            });
        }
        let parsed = turn_rest::parse(name).ok_or(AuthFailure::UnknownUser)?;
        if self.users.secrets.is_empty() {
            return Err(AuthFailure::UnknownUser);
        }
        let passwords = self
            .users
            .secrets
            .iter()
            .map(|secret| turn_rest::password(secret, name));
        let key = self.key_that_fits(name, passwords, message)?;
        Ok(User {
            name: name.into(),
            who: parsed.who.into(),
            only_peers: parsed.peers.map(Into::into),
            expiry_unix: Some(Duration::from_secs(parsed.expiry_unix_s)),
            key,
        })
    }

    fn key_that_fits(
        &self,
        name: &str,
        passwords: impl IntoIterator<Item = String>,
        message: &Message<'_>,
    ) -> Result<IntegrityKey, AuthFailure> {
        passwords
            .into_iter()
            .map(|password| {
                LongTermKeyCredentials::new(name.to_owned(), password, self.realm.clone())
                    .make_key(IntegrityAlgorithm::Sha1)
            })
            .find(|key| message.validate_integrity_with_key(key).is_ok())
            .ok_or(AuthFailure::WrongPassword)
    }
}

impl User {
    /// Whether the name's time is over.
    pub fn is_expired(&self, now: Now) -> bool {
        self.expiry_unix.is_some_and(|expiry| now.unix >= expiry)
    }
}

#[cfg(test)]
mod tests {
    use stun_types::message::MessageIntegrityCredentials;

    use super::*;

    /// RFC 5769, section 2.4: a request with long-term authentication.
    #[test]
    fn the_request_of_rfc_5769_is_by_its_user() {
        let message = Message::from_bytes(&RFC_5769_LONG_TERM).unwrap();
        let name = message.attribute::<Username>().unwrap();
        assert_eq!(
            name.username(),
            "\u{30DE}\u{30C8}\u{30EA}\u{30C3}\u{30AF}\u{30B9}"
        );
        assert_eq!(message.attribute::<Realm>().unwrap().realm(), "example.org");
        for (password, fits) in [("TheMatrIX", true), ("TheMatrix", false)] {
            let credentials = LongTermKeyCredentials::new(
                name.username().to_owned(),
                password.to_owned(),
                "example.org".to_owned(),
            );
            let key = credentials.make_key(IntegrityAlgorithm::Sha1);
            assert_eq!(message.validate_integrity_with_key(&key).is_ok(), fits);
        }
    }

    /// RFC 5769, section 2.1: a request with short-term authentication.
    #[test]
    fn the_short_term_request_of_rfc_5769_is_by_its_user() {
        let message = Message::from_bytes(&RFC_5769_REQUEST).unwrap();
        assert_eq!(message.attribute::<Username>().unwrap().username(), "evtj:h6vY");
        let software = message.attribute::<stun_types::attribute::Software>().unwrap();
        assert_eq!(software.software(), "STUN test client");
        for (password, fits) in [
            ("VOkJxbRl1RmTxUk/WvJxBt", true),
            ("VOkJxbRl1RmTxUk/WvJxBT", false),
        ] {
            let credentials = stun_types::message::ShortTermCredentials::new(password.to_owned());
            assert_eq!(message.validate_integrity(&credentials.into()).is_ok(), fits);
        }
        for at in [24, 46, 60, 90] {
            let mut altered = RFC_5769_REQUEST;
            altered[at] ^= 1;
            assert!(Message::from_bytes(&altered).is_err(), "FINGERPRINT, byte {at}");
        }
    }

    /// RFC 5769, sections 2.2 and 2.3: responses, here for what we use of them: the fingerprint, the integrity and
    /// XOR-MAPPED-ADDRESS.
    #[test]
    fn the_responses_of_rfc_5769_say_where_the_client_is() {
        use stun_types::attribute::XorMappedAddress;
        use stun_types::message::ShortTermCredentials;

        let credentials: MessageIntegrityCredentials =
            ShortTermCredentials::new("VOkJxbRl1RmTxUk/WvJxBt".to_owned()).into();
        let cases: [(&[u8], &str); 2] = [
            (&RFC_5769_RESPONSE_V4, "192.0.2.1:32853"),
            (
                &RFC_5769_RESPONSE_V6,
                "[2001:db8:1234:5678:11:2233:4455:6677]:32853",
            ),
        ];
        for (bytes, address) in cases {
            let message = Message::from_bytes(bytes).unwrap();
            assert!(message.validate_integrity(&credentials).is_ok());
            let mapped = message.attribute::<XorMappedAddress>().unwrap();
            assert_eq!(mapped.addr(message.transaction_id()), address.parse().unwrap());
            let mut altered = bytes.to_vec();
            altered[30] ^= 1;
            assert!(Message::from_bytes(&altered).is_err(), "FINGERPRINT");
        }
    }

    const RFC_5769_LONG_TERM: [u8; 116] = [
        0x00, 0x01, 0x00, 0x60, 0x21, 0x12, 0xa4, 0x42, 0x78, 0xad, 0x34, 0x33, 0xc6, 0xad, 0x72, 0xc0, 0x29,
        0xda, 0x41, 0x2e, 0x00, 0x06, 0x00, 0x12, 0xe3, 0x83, 0x9e, 0xe3, 0x83, 0x88, 0xe3, 0x83, 0xaa, 0xe3,
        0x83, 0x83, 0xe3, 0x82, 0xaf, 0xe3, 0x82, 0xb9, 0x00, 0x00, 0x00, 0x15, 0x00, 0x1c, 0x66, 0x2f, 0x2f,
        0x34, 0x39, 0x39, 0x6b, 0x39, 0x35, 0x34, 0x64, 0x36, 0x4f, 0x4c, 0x33, 0x34, 0x6f, 0x4c, 0x39, 0x46,
        0x53, 0x54, 0x76, 0x79, 0x36, 0x34, 0x73, 0x41, 0x00, 0x14, 0x00, 0x0b, 0x65, 0x78, 0x61, 0x6d, 0x70,
        0x6c, 0x65, 0x2e, 0x6f, 0x72, 0x67, 0x00, 0x00, 0x08, 0x00, 0x14, 0xf6, 0x70, 0x24, 0x65, 0x6d, 0xd6,
        0x4a, 0x3e, 0x02, 0xb8, 0xe0, 0x71, 0x2e, 0x85, 0xc9, 0xa2, 0x8c, 0xa8, 0x96, 0x66,
    ];

    const RFC_5769_REQUEST: [u8; 108] = [
        0x00, 0x01, 0x00, 0x58, 0x21, 0x12, 0xa4, 0x42, 0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa,
        0x87, 0xdf, 0xae, 0x80, 0x22, 0x00, 0x10, 0x53, 0x54, 0x55, 0x4e, 0x20, 0x74, 0x65, 0x73, 0x74, 0x20,
        0x63, 0x6c, 0x69, 0x65, 0x6e, 0x74, 0x00, 0x24, 0x00, 0x04, 0x6e, 0x00, 0x01, 0xff, 0x80, 0x29, 0x00,
        0x08, 0x93, 0x2f, 0xf9, 0xb1, 0x51, 0x26, 0x3b, 0x36, 0x00, 0x06, 0x00, 0x09, 0x65, 0x76, 0x74, 0x6a,
        0x3a, 0x68, 0x36, 0x76, 0x59, 0x20, 0x20, 0x20, 0x00, 0x08, 0x00, 0x14, 0x9a, 0xea, 0xa7, 0x0c, 0xbf,
        0xd8, 0xcb, 0x56, 0x78, 0x1e, 0xf2, 0xb5, 0xb2, 0xd3, 0xf2, 0x49, 0xc1, 0xb5, 0x71, 0xa2, 0x80, 0x28,
        0x00, 0x04, 0xe5, 0x7a, 0x3b, 0xcf,
    ];

    const RFC_5769_RESPONSE_V4: [u8; 80] = [
        0x01, 0x01, 0x00, 0x3c, 0x21, 0x12, 0xa4, 0x42, 0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa,
        0x87, 0xdf, 0xae, 0x80, 0x22, 0x00, 0x0b, 0x74, 0x65, 0x73, 0x74, 0x20, 0x76, 0x65, 0x63, 0x74, 0x6f,
        0x72, 0x20, 0x00, 0x20, 0x00, 0x08, 0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43, 0x00, 0x08, 0x00,
        0x14, 0x2b, 0x91, 0xf5, 0x99, 0xfd, 0x9e, 0x90, 0xc3, 0x8c, 0x74, 0x89, 0xf9, 0x2a, 0xf9, 0xba, 0x53,
        0xf0, 0x6b, 0xe7, 0xd7, 0x80, 0x28, 0x00, 0x04, 0xc0, 0x7d, 0x4c, 0x96,
    ];

    const RFC_5769_RESPONSE_V6: [u8; 92] = [
        0x01, 0x01, 0x00, 0x48, 0x21, 0x12, 0xa4, 0x42, 0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa,
        0x87, 0xdf, 0xae, 0x80, 0x22, 0x00, 0x0b, 0x74, 0x65, 0x73, 0x74, 0x20, 0x76, 0x65, 0x63, 0x74, 0x6f,
        0x72, 0x20, 0x00, 0x20, 0x00, 0x14, 0x00, 0x02, 0xa1, 0x47, 0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1,
        0x79, 0xbc, 0x25, 0xf4, 0xb5, 0xbe, 0xd2, 0xb9, 0xd9, 0x00, 0x08, 0x00, 0x14, 0xa3, 0x82, 0x95, 0x4e,
        0x4b, 0xe6, 0x7b, 0xf1, 0x17, 0x84, 0xc9, 0x7c, 0x82, 0x92, 0xc2, 0x75, 0xbf, 0xe3, 0xed, 0x41, 0x80,
        0x28, 0x00, 0x04, 0xc8, 0xfb, 0x0b, 0x4c,
    ];
}
