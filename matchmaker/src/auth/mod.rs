//! Who asks. What they may do is in [`rights`]; where the two meet is `caller.rs`.
//!
//! ```text
//!  ?join=<link>            a join link                                    Guest
//!  cookie penstock_login   signed by us after one of the next two         User
//!  Authorization: Basic    a user of --users            (--auth basic)    User
//!  Authorization: Bearer   a token of --oidc-issuer     (--auth oidc)     User
//!  nothing of it           --auth none                                    User, an operator
//!                          else                                           Nobody
//! ```
//!
//! A browser sets no headers on a WebSocket. So whoever opens the page with one of the two headers, or sends it to
//! `POST /login`, gets a cookie, which the browser adds to all that follows. It is signed and says until when it is good:
//! nothing is kept here, and every replica with the same key takes it. A user who is taken out of the file, or changes
//! the password, is out at once all the same: the cookie has a mark of the password's hash.

pub mod basic;
pub mod jwt;
mod jwt_crypto;
pub mod oidc;
pub mod options;
pub mod rights;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

use self::basic::{Credentials, Users};
use self::oidc::{NotAccepted, Provider};
use self::rights::{Role, User, Who};
use crate::addresses::{Gate, PerAddress};
use crate::join::Link;
use crate::players::Account;
use crate::problem::{Reason, Refusal};
use crate::signed::{Purpose, SigningKey};

/// Finds out who asks.
#[derive(Debug)]
pub struct Authenticator {
    how: How,
    key: SigningKey,
    /// Attempts to sign in, by address.
    attempts: Gate,
    /// Passwords are looked at by so many threads at once: each look takes a CPU for a good part of a second.
    lookers: Semaphore,
    /// Those whose password is looked at, or soon will be.
    waiting: Semaphore,
}

/// How people show who they are.
#[derive(Debug)]
pub enum How {
    /// Not at all.
    Anyone,
    /// By name and password.
    Basic {
        /// The users, as the file has them now.
        users: watch::Receiver<Arc<Users>>,
        /// Those of them who are operators.
        operators: BTreeSet<String>,
    },
    /// By tokens.
    Oidc(Provider),
}

/// What a request shows.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// Its `join` parameter.
    pub join: Option<&'a str>,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Where it comes from.
    pub address: IpAddr,
}

/// Who asks, and what their browser should remember.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who.
    pub who: Who,
    /// A cookie to set, if there is one.
    pub cookie: Option<Cookie>,
}

/// A cookie to set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    /// Its name.
    pub name: String,
    /// What is in it.
    pub value: String,
    /// For how long.
    pub lasts: Duration,
}

/// What a login's cookie says.
#[derive(Serialize, Deserialize)]
struct Login {
    name: String,
    /// With tokens: what the token said. A user of the file is what the file and the options say now.
    role: Option<Role>,
    /// With passwords: a mark of the password's hash.
    stamp: Option<String>,
}

impl Authenticator {
    /// With logins and join links signed by `key`.
    pub fn new(how: How, key: SigningKey) -> Self {
        Self {
            how,
            key,
            attempts: Gate::new(ATTEMPTS),
            lookers: Semaphore::new(LOOKERS),
            waiting: Semaphore::new(MOST_WAITING),
        }
    }

    /// What signs join links.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Whether nobody needs to show anything. Then a request says by nothing that its site is ours.
    pub fn is_open(&self) -> bool {
        matches!(self.how, How::Anyone)
    }

    /// Whom a player counts for; `None` where nobody answers for it.
    pub fn account(&self, who: &Who) -> Option<Account> {
        match (who, &self.how) {
            (Who::Guest(link), _) => Some(Account::Link(link.id.clone())),
            (Who::User(user), How::Basic { .. } | How::Oidc(_)) => Some(Account::User(user.name.clone())),
            (Who::User(_), How::Anyone) | (Who::Nobody, _) => None,
        }
    }

    /// Why nobody can sign in yet; `Ok` where they can.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn ready(&self) -> Result<(), String> {
        match &self.how {
            How::Oidc(provider) if !provider.is_ready() => {
                Err("the identity provider's keys are not here yet; the log says why".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// What a client that is to sign in is told (RFC 9110, section 11.6.1).
    pub fn challenge(&self) -> &'static str {
        match self.how {
            How::Oidc(_) => r#"Bearer realm="penstock""#,
            How::Anyone | How::Basic { .. } => r#"Basic realm="penstock", charset="UTF-8""#,
        }
    }

    /// Finds out who asks.
    ///
    /// # Errors
    /// The answer to a link, a password or a token that is not good.
    pub async fn identify(&self, shown: Shown<'_>, now_unix: Duration) -> Result<Identity, Refusal> {
        if let Some(text) = shown.join {
            return self.guest(text, shown.headers, now_unix);
        }
        if let How::Anyone = self.how {
            let (name, role) = ("anyone".to_owned(), Role::Operator);
            return Ok(Who::User(User { name, role }).into());
        }
        let credentials = authorization(shown.headers);
        let user = self.logged_in(shown.headers, now_unix);
        match (user, credentials) {
            (None, None) => Ok(Who::Nobody.into()),
            (Some(user), None) => Ok(Who::User(user).into()),
            // Looking at a password is dear, and browsers send the same one every time.
            (Some(user), Some(shown)) if is_password_of(shown, &user) => Ok(Who::User(user).into()),
            (_, Some(credentials)) => self.sign_in(credentials, shown.address, now_unix).await,
        }
    }

    async fn sign_in(
        &self,
        (scheme, credentials): (&str, &str),
        address: IpAddr,
        now_unix: Duration,
    ) -> Result<Identity, Refusal> {
        match &self.how {
            How::Basic { users, operators } if scheme.eq_ignore_ascii_case("basic") => {
                let users = users.borrow().clone();
                self.password(users, operators, credentials, address, now_unix)
                    .await
            }
            How::Oidc(provider) if scheme.eq_ignore_ascii_case("bearer") => {
                self.token(provider, credentials, now_unix).await
            }
            _ => Err(self.unauthorized(Reason::Credentials, "this server takes no such Authorization")),
        }
    }

    fn guest(&self, text: &str, headers: &HeaderMap, now_unix: Duration) -> Result<Identity, Refusal> {
        let (link, cookie) = match Link::read(&self.key, text, now_unix) {
            Ok(link) => {
                let cookie = Cookie {
                    name: format!("{OPENED_COOKIE}{}", link.id),
                    value: link.opened(&self.key, now_unix),
                    lasts: crate::join::OPENED_FOR,
                };
                (Ok(link), Some(cookie))
            }
            Err(_) => {
                let opened = cookies(headers).filter(|(name, _)| name.starts_with(OPENED_COOKIE));
                let opened = opened.map(|(_, value)| value);
                (Link::read_again(&self.key, text, opened, now_unix), None)
            }
        };
        let link = link.map_err(|why| {
            let why = format!("This link does not admit: {why}. Ask for a new one.");
            Refusal::forbidden(Reason::Link, why)
        })?;
        let who = Who::Guest(link);
        Ok(Identity { who, cookie })
    }

    fn logged_in(&self, headers: &HeaderMap, now_unix: Duration) -> Option<User> {
        let (_, text) = cookies(headers).find(|(name, _)| *name == LOGIN_COOKIE)?;
        let login: Login = self.key.open(Purpose::Login, text, now_unix).ok()?;
        let role = match (&self.how, login.role, login.stamp) {
            (How::Basic { users, operators }, None, Some(stamp)) => {
                let users = users.borrow();
                let same = self.key.stamp(users.hash(&login.name)?) == stamp;
                same.then(|| role(operators, &login.name))?
            }
            (How::Oidc(_), Some(role), None) => role,
            _ => return None,
        };
        let name = login.name;
        Some(User { name, role })
    }

    async fn password(
        &self,
        users: Arc<Users>,
        operators: &BTreeSet<String>,
        encoded: &str,
        address: IpAddr,
        now_unix: Duration,
    ) -> Result<Identity, Refusal> {
        let credentials = Credentials::parse(encoded)
            .ok_or_else(|| self.unauthorized(Reason::Credentials, "the name and password can't be read"))?;
        let waiting = self.waiting.try_acquire().map_err(|_| busy())?;
        let attempt = self.attempts.enter_or_wait(address, LOOK_WITHIN).await;
        let attempt = attempt.map_err(|_| {
            let why = "too many attempts to sign in from this address; try again in a minute";
            Refusal::too_many(Reason::Attempts, why, 60)
        })?;
        let looked = tokio::time::timeout(LOOK_WITHIN, self.look(users.clone(), credentials.clone())).await;
        drop(waiting);
        let good = looked.unwrap_or_else(|_| Err(busy()))?;
        if !good {
            tracing::info!(%address, "a wrong name or password");
            return Err(self.unauthorized(Reason::Credentials, "the name or the password is wrong"));
        }
        attempt.forgive();
        let name = credentials.name;
        let login = Login {
            stamp: users.hash(&name).map(|hash| self.key.stamp(hash)),
            name: name.clone(),
            role: None,
        };
        let role = role(operators, &name);
        let cookie = Some(self.login_cookie(&login, LOGIN_LASTS, now_unix));
        let who = Who::User(User { name, role });
        Ok(Identity { who, cookie })
    }

    async fn look(&self, users: Arc<Users>, credentials: Credentials) -> Result<bool, Refusal> {
        let failed = |_| {
            Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the password could not be checked",
            )
        };
        let looker = self.lookers.acquire().await.map_err(|_| Refusal::ending())?;
        let good = tokio::task::spawn_blocking(move || users.check(&credentials)).await;
        drop(looker);
        good.map_err(failed)
    }

    async fn token(&self, provider: &Provider, token: &str, now_unix: Duration) -> Result<Identity, Refusal> {
        let accepted = provider.check(token).await.map_err(|error| match error {
            NotAccepted::NoKeys => Refusal::unavailable(error.to_string(), 5),
            NotAccepted::Rejected(jwt::Rejected::NoRole(_)) => {
                Refusal::forbidden(Reason::Rights, error.to_string())
            }
            NotAccepted::Rejected(why) => {
                let challenge = format!("{}, error=\"invalid_token\"", self.challenge());
                let why = format!("the token is not accepted: {why}");
                Refusal::unauthorized(Reason::Credentials, challenge, why)
            }
        })?;
        let login = Login {
            name: accepted.user.name.clone(),
            role: Some(accepted.user.role),
            stamp: None,
        };
        let lasts = accepted.expires.saturating_sub(now_unix).min(LOGIN_LASTS);
        let cookie = (!lasts.is_zero()).then(|| self.login_cookie(&login, lasts, now_unix));
        let who = Who::User(accepted.user);
        Ok(Identity { who, cookie })
    }

    fn login_cookie(&self, login: &Login, lasts: Duration, now_unix: Duration) -> Cookie {
        Cookie {
            name: LOGIN_COOKIE.to_owned(),
            value: self.key.seal(Purpose::Login, login, now_unix + lasts),
            lasts,
        }
    }

    /// 401.
    pub fn unauthorized(&self, reason: Reason, why: &str) -> Refusal {
        Refusal::unauthorized(reason, self.challenge(), why)
    }
}

impl From<Who> for Identity {
    fn from(who: Who) -> Self {
        Self { who, cookie: None }
    }
}

impl Cookie {
    /// One that takes a login back.
    pub fn logout() -> Self {
        Self {
            name: LOGIN_COOKIE.to_owned(),
            value: String::new(),
            lasts: Duration::ZERO,
        }
    }

    /// The value of a `Set-Cookie` header. Scripts don't see it, and other sites' pages don't send it.
    pub fn header(&self, path: &str, https: bool) -> String {
        let secure = if https { "; Secure" } else { "" };
        let (name, value, lasts) = (&self.name, &self.value, self.lasts.as_secs());
        format!("{name}={value}; Path={path}; Max-Age={lasts}; HttpOnly; SameSite=Lax{secure}")
    }
}

/// Whether a password of this user is shown.
fn is_password_of((scheme, credentials): (&str, &str), user: &User) -> bool {
    scheme.eq_ignore_ascii_case("basic")
        && Credentials::parse(credentials).is_some_and(|credentials| credentials.name == user.name)
}

fn busy() -> Refusal {
    Refusal::unavailable("too many people sign in at once", 5).because(Reason::Attempts)
}

fn role(operators: &BTreeSet<String>, name: &str) -> Role {
    match operators.contains(name) {
        true => Role::Operator,
        false => Role::Player,
    }
}

fn authorization(headers: &HeaderMap) -> Option<(&str, &str)> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().unwrap_or_default();
    Some(text.trim().split_once(' ').unwrap_or((text, "")))
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let lines = headers.get_all(header::COOKIE).iter();
    let pairs = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'));
    pairs.filter_map(|pair| pair.trim().split_once('='))
}

const LOGIN_COOKIE: &str = "penstock_login";
const OPENED_COOKIE: &str = "penstock_link_";
const LOGIN_LASTS: Duration = Duration::from_secs(12 * 3600);
const LOOKERS: usize = 2;
const MOST_WAITING: usize = 1024;
const LOOK_WITHIN: Duration = Duration::from_secs(10);
/// Failed ones: ten in one go, then one a second. Others of an address wait while ten of it are looked at.
const ATTEMPTS: PerAddress = PerAddress {
    per_second: 1,
    burst: 10,
    at_once: 10,
};
