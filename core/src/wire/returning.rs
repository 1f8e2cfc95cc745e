//! What a player comes back to its seat with.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{BadId, SeatName};

/// The right to take one seat on one streamer again: `<name of the seat>.<secret>`. The name says which streamer has
/// the seat, so that any matchmaker finds it; the secret is known to the streamer and the page only. A session's name
/// would not do, since links for viewers carry it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReturnToken {
    seat: SeatName,
    secret: SeatName,
}

impl ReturnToken {
    /// A token for a seat. Whoever makes it chooses two random texts without a dot in them.
    ///
    /// # Errors
    /// Where one of them could not be part of a token.
    pub fn new(seat: &str, secret: &str) -> Result<Self, BadId> {
        format!("{seat}.{secret}").try_into()
    }

    /// The seat that it is for.
    pub fn seat(&self) -> &SeatName {
        &self.seat
    }

    /// The token as text, for its owner only.
    pub fn expose(&self) -> String {
        format!("{}.{}", self.seat, self.secret)
    }
}

/// The secret is compared in a time that does not say where it differs.
impl PartialEq for ReturnToken {
    fn eq(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.secret.as_str().as_bytes(), other.secret.as_str().as_bytes());
        let differing = ours.iter().zip(theirs).fold(0, |all, (a, b)| all | (a ^ b));
        self.seat == other.seat && ours.len() == theirs.len() && differing == 0
    }
}

impl Eq for ReturnToken {}

/// Logs must not let their readers into a session.
impl fmt::Debug for ReturnToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReturnToken({}.…)", self.seat)
    }
}

impl TryFrom<String> for ReturnToken {
    type Error = BadId;
    fn try_from(text: String) -> Result<Self, BadId> {
        let (seat, secret) = text.split_once('.').unwrap_or((&text, ""));
        Ok(Self {
            seat: SeatName::new(seat)?,
            secret: SeatName::new(secret)?,
        })
    }
}

impl From<ReturnToken> for String {
    fn from(token: ReturnToken) -> Self {
        token.expose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_its_seat_and_its_secret() {
        let token = ReturnToken::new("seat", "secret").unwrap();
        assert_eq!(token, ReturnToken::try_from("seat.secret".to_owned()).unwrap());
        for other in ["seat.secreT", "seaT.secret", "seat.secrets", "seat.secre"] {
            assert_ne!(token, ReturnToken::try_from(other.to_owned()).unwrap(), "{other}");
        }
        for bad in ["", "seat", ".secret", "seat.", "s t.secret"] {
            assert!(ReturnToken::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_log_shows_the_secret() {
        let token = ReturnToken::new("seat", "hidden").unwrap();
        assert!(!format!("{token:?}").contains("hidden"));
    }
}
