//! Texts that only we can have written: `<payload>.<HMAC-SHA256>`, both base64url, the payload JSON. The HMAC is over
//! what the text is for as well, so that one kind never passes for another.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// What a text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A link that admits whoever has it.
    JoinLink,
    /// A browser's cookie that says who has signed in.
    Login,
    /// A browser's cookie that says that it opened a join link in time.
    OpenedLink,
}

impl Purpose {
    fn tag(self) -> &'static [u8] {
        match self {
            Self::JoinLink => b"penstock join link\0",
            Self::Login => b"penstock login\0",
            Self::OpenedLink => b"penstock opened link\0",
        }
    }
}

/// What replicas share to know each other's texts.
#[derive(Clone)]
pub struct SigningKey(Vec<u8>);

/// The shortest key taken, in bytes: as long as what the HMAC gives (RFC 2104, section 3).
pub const MIN_KEY_BYTES: usize = 32;

/// The longest text that is looked at, in bytes.
pub const MAX_TEXT_BYTES: usize = 2048;

/// Why a text is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadText {
    /// Not ours, or meant for something else.
    #[error("it was not signed here")]
    Forged,
    /// It was ours, until then.
    #[error("it has expired")]
    Expired,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    /// Unix time in seconds.
    #[serde(rename = "exp")]
    expires: u64,
    #[serde(rename = "is")]
    payload: T,
}

impl SigningKey {
    /// A key of at least [`MIN_KEY_BYTES`]; `None` where it is shorter.
    pub fn new(key: Vec<u8>) -> Option<Self> {
        (key.len() >= MIN_KEY_BYTES).then_some(Self(key))
    }

    /// A key that no other process has.
    pub fn random() -> Self {
        Self(rand::random::<[u8; MIN_KEY_BYTES]>().to_vec())
    }

    /// Signs `payload` until `expires`, in Unix time.
    pub fn seal<T: Serialize>(&self, purpose: Purpose, payload: &T, expires: Duration) -> String {
        let expires = expires.as_secs();
        // What is signed are structs of texts and numbers, which are always JSON.
        let json = serde_json::to_vec(&Envelope { expires, payload }).unwrap_or_default();
        let payload = URL_SAFE_NO_PAD.encode(json);
        let code = self.code(purpose, &payload).finalize().into_bytes();
        format!("{payload}.{}", URL_SAFE_NO_PAD.encode(code))
    }

    /// Reads a text of ours.
    ///
    /// # Errors
    /// [`BadText`] where it is not, or is no longer good at `now_unix`.
    pub fn open<T: DeserializeOwned>(
        &self,
        purpose: Purpose,
        text: &str,
        now_unix: Duration,
    ) -> Result<T, BadText> {
        let envelope: Envelope<T> = self.read(purpose, text)?;
        if now_unix.as_secs() >= envelope.expires {
            return Err(BadText::Expired);
        }
        Ok(envelope.payload)
    }

    /// Reads a text of ours, however old it is.
    ///
    /// # Errors
    /// [`BadText::Forged`] where it is not ours.
    pub fn open_expired<T: DeserializeOwned>(&self, purpose: Purpose, text: &str) -> Result<T, BadText> {
        Ok(self.read::<T>(purpose, text)?.payload)
    }

    fn read<T: DeserializeOwned>(&self, purpose: Purpose, text: &str) -> Result<Envelope<T>, BadText> {
        let signed = || {
            let (payload, code) = text.split_once('.').filter(|_| text.len() <= MAX_TEXT_BYTES)?;
            let code = URL_SAFE_NO_PAD.decode(code).ok()?;
            // Compares in constant time.
            self.code(purpose, payload).verify_slice(&code).ok()?;
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
        };
        signed().ok_or(BadText::Forged)
    }

    fn code(&self, purpose: Purpose, payload: &str) -> Hmac<Sha256> {
        // HMAC takes keys of every length (RFC 2104, section 2), so this can't fail.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else {
            unreachable!("HMAC takes any key")
        };
        mac.update(purpose.tag());
        mac.update(payload.as_bytes());
        mac
    }

    /// A short name for `secret`: unlike for every other, and of no use in finding it.
    pub fn stamp(&self, secret: &str) -> String {
        let code = self.code(Purpose::Login, secret).finalize().into_bytes();
        URL_SAFE_NO_PAD.encode(&code[..12])
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEN: Duration = Duration::from_secs(1000);

    #[test]
    fn a_text_is_good_until_its_time_and_for_its_purpose_only() {
        let key = SigningKey::random();
        let text = key.seal(Purpose::JoinLink, &"ann", THEN);
        let open = |purpose, now| key.open::<String>(purpose, &text, Duration::from_secs(now));
        assert_eq!(open(Purpose::JoinLink, 999), Ok("ann".to_owned()));
        assert_eq!(open(Purpose::JoinLink, 1000), Err(BadText::Expired));
        assert_eq!(open(Purpose::Login, 999), Err(BadText::Forged));
        let late = key.open_expired::<String>(Purpose::JoinLink, &text);
        assert_eq!(late, Ok("ann".to_owned()));
    }

    #[test]
    fn every_changed_character_is_found_out() {
        let key = SigningKey::random();
        let text = key.seal(Purpose::Login, &7, THEN);
        for at in 0..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            let other = String::from_utf8(other).unwrap();
            let opened = key.open::<u32>(Purpose::Login, &other, Duration::ZERO);
            assert_eq!(opened, Err(BadText::Forged), "{at}");
        }
        for bad in ["", ".", "a.b", &text[1..], &format!("{text}=")] {
            assert_eq!(key.open_expired::<u32>(Purpose::Login, bad), Err(BadText::Forged));
        }
    }

    #[test]
    fn another_key_is_another_house() {
        let text = SigningKey::random().seal(Purpose::Login, &7, THEN);
        let other = SigningKey::random();
        assert_eq!(
            other.open::<u32>(Purpose::Login, &text, Duration::ZERO),
            Err(BadText::Forged)
        );
        assert!(SigningKey::new(vec![0; 31]).is_none());
        assert!(!format!("{:?}", SigningKey::new(b"x".repeat(32))).contains('x'));
    }
}
