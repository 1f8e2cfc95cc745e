//! Nonces that need no memory: each says when it ends, and is signed over that and over the client's address.
//!
//! ```text
//!  base64url( end: seconds since the server began, 32 bit │ first 12 bytes of HMAC-SHA1(key, end ‖ client) )
//! ```
//!
//! So nobody can make one up, hand one on to another address, or fill our memory by asking for them
//! (RFC 8489, section 9.2; CVE-2025-69217 is what happens with guessable ones).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;

/// How long a nonce lasts.
pub const NONCE_LIFETIME: Duration = Duration::from_secs(3600);

/// Makes and checks nonces. Shards that share key and beginning take each other's.
#[derive(Clone)]
pub struct Nonces {
    key: [u8; 32],
    began: Instant,
}

impl std::fmt::Debug for Nonces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nonces").finish_non_exhaustive()
    }
}

impl Nonces {
    /// Nonces under `key`, for a server that began at `began`.
    pub fn new(key: [u8; 32], began: Instant) -> Self {
        Self { key, began }
    }

    /// A nonce for `client`, good until [`NONCE_LIFETIME`] from `now`.
    pub fn issue(&self, now: Instant, client: SocketAddr) -> String {
        let end = (self.seconds(now) + NONCE_LIFETIME.as_secs() as u32).to_be_bytes();
        let tag = self.mac(end, client).finalize().into_bytes();
        let mut bytes = [0; NONCE_LEN];
        bytes[..END_LEN].copy_from_slice(&end);
        bytes[END_LEN..].copy_from_slice(&tag[..TAG_LEN]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Whether `nonce` is ours, for this client, and not over.
    pub fn accepts(&self, now: Instant, client: SocketAddr, nonce: &str) -> bool {
        let mut bytes = [0; NONCE_LEN];
        if URL_SAFE_NO_PAD.decode_slice(nonce, &mut bytes) != Ok(NONCE_LEN) {
            return false;
        }
        let end = [bytes[0], bytes[1], bytes[2], bytes[3]];
        let genuine = self
            .mac(end, client)
            .verify_truncated_left(&bytes[END_LEN..])
            .is_ok();
        genuine && self.seconds(now) < u32::from_be_bytes(end)
    }

    /// Seconds since the beginning. 32 bits last for 136 years.
    fn seconds(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.began).as_secs() as u32
    }

    fn mac(&self, end: [u8; END_LEN], client: SocketAddr) -> Hmac<Sha1> {
        // HMAC takes keys of every length (RFC 2104, section 2), so this can't fail.
        let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(&self.key) else {
            unreachable!("HMAC takes any key")
        };
        mac.update(&end);
        mac.update(&client.port().to_be_bytes());
        match client.ip() {
            IpAddr::V4(ip) => mac.update(&ip.octets()),
            IpAddr::V6(ip) => mac.update(&ip.octets()),
        }
        mac
    }
}

const END_LEN: usize = 4;
const TAG_LEN: usize = 12;
const NONCE_LEN: usize = END_LEN + TAG_LEN;

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "any instant serves as the beginning of a held clock"
)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_lasts_to_the_second() {
        let (nonces, began, client) = setup();
        let nonce = nonces.issue(began, client);
        let end = began + NONCE_LIFETIME;
        assert!(nonces.accepts(end - Duration::from_millis(1), client, &nonce));
        assert!(!nonces.accepts(end, client, &nonce));
    }

    #[test]
    fn a_nonce_is_for_one_address_and_port() {
        let (nonces, began, client) = setup();
        let nonce = nonces.issue(began, client);
        for other in ["192.0.2.1:1001", "192.0.2.2:1000", "[::ffff:192.0.2.1]:1000"] {
            assert!(!nonces.accepts(began, other.parse().unwrap(), &nonce));
        }
    }

    #[test]
    fn a_nonce_that_was_altered_or_made_up_is_refused() {
        let (nonces, began, client) = setup();
        let nonce = nonces.issue(began, client);
        let later = format!("_{}", &nonce[1..]);
        let of_another_key = Nonces::new([8; 32], began).issue(began, client);
        for bad in ["", "AAAAAAAAAAAAAAAAAAAAAA", &nonce[1..], &later, &of_another_key] {
            assert!(!nonces.accepts(began, client, bad), "{bad}");
        }
    }

    #[test]
    fn a_shard_takes_another_shards_nonce() {
        let (nonces, began, client) = setup();
        assert!(
            nonces
                .clone()
                .accepts(began, client, &nonces.issue(began, client))
        );
    }

    fn setup() -> (Nonces, Instant, SocketAddr) {
        let began = Instant::now();
        (
            Nonces::new([7; 32], began),
            began,
            "192.0.2.1:1000".parse().unwrap(),
        )
    }
}
