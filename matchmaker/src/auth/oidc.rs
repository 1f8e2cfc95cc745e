//! An OpenID provider's public keys: found by its discovery document (OpenID Connect Discovery 1.0, section 4), fetched
//! by one task, and kept while the provider is away.
//!
//! ```text
//!  at start       again and again, a little later each time, until they are there; meanwhile nobody can sign in
//!  every 10 min   so that a key that was taken back ends
//!  unknown key    at once, but not more often than every 10 s: whoever sends tokens chooses what they name
//!  no answer      the last good keys stay
//! ```

use std::io;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jsonwebtoken::jwk::JwkSet;
use reqwest::Url;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::jwt::{Accepted, KeySet, Rejected, Rules, verify};

/// Checks tokens of one issuer.
#[derive(Debug, Clone)]
pub struct Provider {
    rules: Rules,
    keys: watch::Receiver<Option<KeySet>>,
    wanted: mpsc::Sender<oneshot::Sender<()>>,
}

/// Fetches the keys. Its [`KeyKeeper::run`] has to run for the provider to have any.
#[derive(Debug)]
pub struct KeyKeeper {
    client: Client,
    issuer: String,
    keys: watch::Sender<Option<KeySet>>,
    wanted: mpsc::Receiver<oneshot::Sender<()>>,
    fetched: Option<Instant>,
    failures: u32,
}

/// Why a token gets nobody in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    /// The token.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The provider.
    #[error("the identity provider could not be reached yet, so that nobody can sign in; try again soon")]
    NoKeys,
}

impl Provider {
    /// A provider for `rules.issuer`, and its task.
    ///
    /// # Errors
    /// Where this machine has no list of certificate authorities.
    pub fn new(rules: Rules) -> io::Result<(Self, KeyKeeper)> {
        let (keys_to, keys) = watch::channel(None);
        let (wanted, asked) = mpsc::channel(MOST_WAITING);
        let keeper = KeyKeeper {
            client: client()?,
            issuer: rules.issuer.clone(),
            keys: keys_to,
            wanted: asked,
            fetched: None,
            failures: 0,
        };
        Ok((Self { rules, keys, wanted }, keeper))
    }

    /// Whether there are keys.
    pub fn is_ready(&self) -> bool {
        self.keys.borrow().is_some()
    }

    /// Whom `token` names.
    ///
    /// # Errors
    /// [`NotAccepted`] says why it gets nobody in.
    pub async fn check(&self, token: &str) -> Result<Accepted, NotAccepted> {
        match self.check_now(token) {
            Err(NotAccepted::Rejected(Rejected::UnknownKey)) => {
                self.ask_again().await;
                self.check_now(token)
            }
            checked => checked,
        }
    }

    fn check_now(&self, token: &str) -> Result<Accepted, NotAccepted> {
        // A clone of a few keys, so that checking a signature keeps nobody from changing them.
        let keys = self.keys.borrow().clone().ok_or(NotAccepted::NoKeys)?;
        Ok(verify(token, &keys, &self.rules)?)
    }

    /// Waits until the keys are as new as they may be.
    async fn ask_again(&self) {
        let (answer, answered) = oneshot::channel();
        // Where too many wait already, this one does without.
        if self.wanted.try_send(answer).is_ok() {
            let _ = answered.await;
        }
    }
}

impl KeyKeeper {
    /// Works for ever.
    pub async fn run(mut self) {
        loop {
            let due = self.due();
            let waiting = tokio::select! {
                () = sleep_until(due) => Vec::new(),
                Some(first) = self.wanted.recv() => self.all_waiting(first),
            };
            if self.may_fetch(Instant::now()) {
                self.fetch().await;
            }
            for answer in waiting {
                // Who asked may have gone.
                let _ = answer.send(());
            }
        }
    }

    fn all_waiting(&mut self, first: oneshot::Sender<()>) -> Vec<oneshot::Sender<()>> {
        let mut waiting = vec![first];
        while let Ok(next) = self.wanted.try_recv() {
            waiting.push(next);
        }
        waiting
    }

    fn due(&self) -> Instant {
        match self.fetched {
            None => Instant::now(),
            Some(fetched) => fetched + wait_after(self.failures),
        }
    }

    fn may_fetch(&self, now: Instant) -> bool {
        let pause = wait_after(self.failures).min(BETWEEN_FETCHES);
        self.fetched.is_none_or(|fetched| now >= fetched + pause)
    }

    async fn fetch(&mut self) {
        let fetched = fetch(&self.client, &self.issuer).await;
        self.fetched = Some(Instant::now());
        match fetched {
            Ok(keys) => {
                if self.failures > 0 || self.keys.borrow().is_none() {
                    tracing::info!(
                        issuer = self.issuer,
                        keys = keys.len(),
                        "the identity provider's keys are here"
                    );
                }
                self.failures = 0;
                self.keys.send_replace(Some(keys));
            }
            Err(error) => {
                self.failures += 1;
                self.complain(&error);
            }
        }
    }

    /// Loudly at first, then quietly until it works again.
    fn complain(&self, error: &FetchError) {
        let meanwhile = match self.keys.borrow().is_some() {
            true => "the last good ones go on",
            false => "nobody can sign in meanwhile; asking again",
        };
        let what = format!("the identity provider's keys can't be fetched: {error}; {meanwhile}");
        match self.failures {
            1 => tracing::warn!(issuer = self.issuer, "{what}"),
            failures => tracing::debug!(issuer = self.issuer, failures, "{what}"),
        }
    }
}

type Client = hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// A client that follows no redirection, and trusts the authorities that this machine does (SSL_CERT_FILE names
/// others).
fn client() -> io::Result<Client> {
    let connector = HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(rustls::crypto::ring::default_provider())?
        .https_or_http()
        .enable_http1()
        .build();
    Ok(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector))
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

async fn fetch(client: &Client, issuer: &str) -> Result<KeySet, FetchError> {
    let url = format!(
        "{}/.well-known/openid-configuration",
        issuer.trim_end_matches('/')
    );
    let discovery: Discovery = get(client, &url).await?;
    if discovery.issuer != issuer {
        return Err(FetchError::OtherIssuer {
            url,
            says: discovery.issuer,
        });
    }
    check_url(&discovery.jwks_uri).map_err(FetchError::Insecure)?;
    let set: JwkSet = get(client, &discovery.jwks_uri).await?;
    let keys = KeySet::new(&set);
    if keys.is_empty() {
        return Err(FetchError::NoKeys(discovery.jwks_uri));
    }
    Ok(keys)
}

async fn get<T: DeserializeOwned>(client: &Client, url: &str) -> Result<T, FetchError> {
    let failed = |why: String| FetchError::Http {
        url: url.to_owned(),
        why,
    };
    let request = Request::get(url)
        .header("accept", "application/json")
        .body(Empty::new());
    let request = request.map_err(|error| failed(error.to_string()))?;
    let answer = async {
        let answer = client.request(request).await.map_err(|error| innermost(&error))?;
        if answer.status() != StatusCode::OK {
            return Err(format!("the answer is {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_DOCUMENT_BYTES)
            .collect()
            .await;
        Ok(body.map_err(|error| error.to_string())?.to_bytes())
    };
    let answer = tokio::time::timeout(FETCH_TIMEOUT, answer).await;
    let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {} s", FETCH_TIMEOUT.as_secs())));
    let body = answer.map_err(failed)?;
    serde_json::from_slice(&body).map_err(|source| FetchError::Json {
        url: url.to_owned(),
        source,
    })
}

/// Keys that anyone on the way could exchange protect nothing: only https, or this machine itself.
///
/// # Errors
/// What is wrong with the URL, for people.
pub fn check_url(url: &str) -> Result<(), String> {
    let parsed = Url::parse(url).map_err(|error| format!("{url:?} is not a URL: {error}"))?;
    let local = match parsed.host_str() {
        Some("localhost") => true,
        Some(host) => host
            .trim_matches(['[', ']'])
            .parse()
            .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()),
        None => false,
    };
    match parsed.scheme() {
        "https" => Ok(()),
        "http" if local => Ok(()),
        _ => Err(format!(
            "{url} must begin with https://, so that nobody can exchange the keys on their way"
        )),
    }
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("GET {url}: {why}")]
    Http { url: String, why: String },
    #[error("GET {url}: the answer can't be read: {source}")]
    Json { url: String, source: serde_json::Error },
    #[error(
        "{url} is about the issuer {says:?}: give exactly that with --oidc-issuer, if it is the right one"
    )]
    OtherIssuer { url: String, says: String },
    #[error("jwks_uri: {0}")]
    Insecure(String),
    #[error("GET {0}: there is no public key for signatures in it")]
    NoKeys(String),
}

/// The client's own text says only that connecting failed; why is in its sources.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Ten minutes while all is well; after failures half a second, then twice as long each time, up to half a minute.
fn wait_after(failures: u32) -> Duration {
    match failures {
        0 => REFRESH_EVERY,
        failures => (FIRST_WAIT * 2_u32.saturating_pow(failures - 1)).min(LONGEST_WAIT),
    }
}

const REFRESH_EVERY: Duration = Duration::from_secs(600);
const BETWEEN_FETCHES: Duration = Duration::from_secs(10);
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_DOCUMENT_BYTES: usize = 1 << 20;
const MOST_WAITING: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_over_tls_or_from_this_machine() {
        for good in [
            "https://id.example/a",
            "http://127.0.0.1:8080",
            "http://[::1]/",
            "http://localhost/x",
        ] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        for bad in [
            "http://id.example",
            "http://127.0.0.1.example/",
            "ftp://localhost/",
            "id.example",
            "",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn waits_grow_to_half_a_minute() {
        let waits = [1, 2, 3, 7, 100].map(|failures| wait_after(failures).as_millis());
        assert_eq!(waits, [500, 1000, 2000, 30_000, 30_000]);
        assert_eq!(wait_after(0), REFRESH_EVERY);
    }
}
