//! The API: what other programs do with sessions. `openapi.json` describes all of it, and is served.
//!
//! Sessions are what the streamers say they have, so every matchmaker knows those of all others, and one that is ended
//! is ended at its streamer, whichever matchmaker its player came by.

mod promises;
pub mod routes;
pub mod types;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use self::promises::Promises;

/// What the API needs and nobody else does.
#[derive(Debug, Clone)]
pub struct Api {
    promises: Arc<Mutex<Promises>>,
    streamers: reqwest::Client,
    link_ttl: Duration,
}

impl Api {
    /// With join links that admit for `link_ttl`.
    ///
    /// # Errors
    /// Where no HTTP client can be made.
    pub fn new(link_ttl: Duration) -> Result<Self, reqwest::Error> {
        let streamers = reqwest::Client::builder().timeout(STREAMER_WITHIN).no_proxy();
        Ok(Self {
            promises: Arc::default(),
            streamers: streamers.build()?,
            link_ttl,
        })
    }

    /// The player with the link of this name has come.
    pub fn arrived(&self, link: &str) {
        self.with_promises(|promises| promises.keep(link));
    }

    fn with_promises<T>(&self, what: impl FnOnce(&mut Promises) -> T) -> T {
        // A promise that a panic left behind ends with its link.
        what(&mut self.promises.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How long a streamer may take to end a session.
const STREAMER_WITHIN: Duration = Duration::from_secs(5);
