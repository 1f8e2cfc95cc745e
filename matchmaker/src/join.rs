//! Join links: whoever has one gets in without another sign of who they are, to what the link says and nothing else,
//! until it expires. They are signed, not kept: every replica with the same key knows them.
//!
//! ```text
//!  POST /sessions ──► https://play.example/?join=<payload>.<HMAC> ──► page ──► /signalling?join=…
//! ```
//!
//! A browser that opened a link in time may open it again later ([`Opened`], a cookie): a player who loses the network
//! after an hour of play would otherwise stand before a closed door.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use penstock_core::ids::SessionId;
use serde::{Deserialize, Serialize};

use crate::lobby::{Want, Wish};
use crate::signed::{BadText, Purpose, SigningKey};

/// How long a browser that opened a link in time may come back.
pub const OPENED_FOR: Duration = Duration::from_secs(12 * 3600);

/// What a link says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its name, unlike all others'.
    pub id: String,
    /// What it admits to.
    pub admits: Admits,
}

/// What a link admits to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "camelCase")]
pub enum Admits {
    /// To play, on a streamer like this.
    Player(Wish),
    /// To watch this session.
    Viewer {
        /// Its name.
        session: SessionId,
    },
}

/// The cookie's content: the link that was opened.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// [`Link::id`].
    pub id: String,
}

impl Admits {
    /// The same as the lobby takes it.
    pub fn want(&self) -> Want {
        match self {
            Self::Player(wish) => Want::Play(wish.clone()),
            Self::Viewer { session } => Want::Watch(session.to_string()),
        }
    }
}

impl Link {
    /// A new link.
    pub fn new(admits: Admits) -> Self {
        let id = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 9]>());
        Self { id, admits }
    }

    /// The text for the `join` parameter of a URL.
    pub fn sign(&self, key: &SigningKey, expires_unix: Duration) -> String {
        key.seal(Purpose::JoinLink, self, expires_unix)
    }

    /// Reads that text.
    ///
    /// # Errors
    /// [`BadText`] where the link is not ours, or has expired.
    pub fn read(key: &SigningKey, text: &str, now_unix: Duration) -> Result<Self, BadText> {
        key.open(Purpose::JoinLink, text, now_unix)
    }

    /// Reads that text however old it is, for a browser with these cookies, one of which must say that it opened this
    /// very link in time.
    ///
    /// # Errors
    /// [`BadText`] where the link is not ours, or has expired for this browser too.
    pub fn read_again<'a>(
        key: &SigningKey,
        text: &str,
        opened: impl IntoIterator<Item = &'a str>,
        now_unix: Duration,
    ) -> Result<Self, BadText> {
        let link: Self = key.open_expired(Purpose::JoinLink, text)?;
        let names_it = |cookie| {
            let opened: Result<Opened, _> = key.open(Purpose::OpenedLink, cookie, now_unix);
            opened.is_ok_and(|opened| opened.id == link.id)
        };
        match opened.into_iter().any(names_it) {
            true => Ok(link),
            false => Err(BadText::Expired),
        }
    }

    /// The content of the cookie for a browser that opened this link.
    pub fn opened(&self, key: &SigningKey, now_unix: Duration) -> String {
        let id = self.id.clone();
        key.seal(Purpose::OpenedLink, &Opened { id }, now_unix + OPENED_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_link_says_what_it_was_made_for() {
        let key = SigningKey::random();
        let wish = Wish {
            application: Some("chess".parse().unwrap()),
            stream: Some("720p30".parse().unwrap()),
            streamer_id: None,
        };
        let session = SessionId::new("abc").unwrap();
        for admits in [Admits::Player(wish), Admits::Viewer { session }] {
            let link = Link::new(admits);
            let text = link.sign(&key, START + HOUR);
            assert_eq!(Link::read(&key, &text, START), Ok(link));
            assert!(text.len() < 300, "{text}");
        }
    }

    #[test]
    fn an_expired_link_is_good_for_the_browser_that_opened_it_in_time_and_no_other() {
        let key = SigningKey::random();
        let links = [(); 2].map(|()| Link::new(Admits::Player(Wish::default())));
        let text = links[0].sign(&key, START);
        let late = START + HOUR;
        assert_eq!(Link::read(&key, &text, late), Err(BadText::Expired));
        let again = |cookies: &[&str], now| Link::read_again(&key, &text, cookies.iter().copied(), now);
        let [own, other] = links.each_ref().map(|link| link.opened(&key, START));
        for none in [&[][..], &[other.as_str()], &[text.as_str()], &["x"]] {
            assert_eq!(again(none, late), Err(BadText::Expired));
        }
        assert_eq!(again(&[&other, &own], late), Ok(links[0].clone()));
        assert_eq!(again(&[&own], START + OPENED_FOR), Err(BadText::Expired));
        let forged = Link::read_again(&SigningKey::random(), &text, [own.as_str()], START);
        assert_eq!(forged, Err(BadText::Forged));
    }
}
