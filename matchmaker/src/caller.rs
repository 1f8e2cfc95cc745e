//! Whoever sent a request: found out before the request is looked at.

use std::net::IpAddr;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use serde::Deserialize;

use crate::auth::rights::{Action, Who, may};
use crate::auth::{Cookie, Shown};
use crate::client_address::{Peer, origin_is_allowed};
use crate::clock::now_unix;
use crate::front::Front;
use crate::problem::{Reason, Refusal};

/// See the module.
#[derive(Debug)]
pub struct Caller {
    /// Who.
    pub who: Who,
    /// Where from, as far as proxies are trusted.
    pub address: IpAddr,
    /// What their browser should remember.
    pub cookie: Option<Cookie>,
    /// Whether the browser's connection is encrypted.
    pub https: bool,
    refusal: Refusal,
}

#[derive(Deserialize)]
struct Joining {
    join: Option<String>,
}

impl Caller {
    /// Passes where they may do that.
    ///
    /// # Errors
    /// 401 to whoever has not said who they are, 403 to others.
    pub fn must(&self, action: Action) -> Result<(), Refusal> {
        match (may(&self.who, action), &self.who) {
            (true, _) => Ok(()),
            (false, Who::Nobody) => Err(self.refusal.clone()),
            (false, Who::Guest(_)) => {
                let why = "This link does not admit to that.";
                Err(Refusal::forbidden(Reason::Rights, why))
            }
            (false, Who::User(_)) => {
                let why = "This is for operators, and you are not one.";
                Err(Refusal::forbidden(Reason::Rights, why))
            }
        }
    }

    /// Has their browser remember what it should.
    pub fn remember(&self, front: &Front, response: &mut Response) {
        let Some(cookie) = &self.cookie else { return };
        let text = cookie.header(&front.site.cookie_path(), self.https);
        // It is made of characters that a header takes.
        if let Ok(value) = HeaderValue::try_from(text) {
            response.headers_mut().append(header::SET_COOKIE, value);
        }
    }
}

impl FromRequestParts<Front> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, front: &Front) -> Result<Self, Refusal> {
        let site = &front.site;
        let Some(peer) = parts.extensions.get::<Peer>().copied() else {
            let why = "the connection of a request is not known";
            return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why));
        };
        let reads = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
        let upgrades = parts.headers.contains_key(header::UPGRADE);
        if front.auth.is_open() && !site.is_asked_for(&parts.headers) {
            let why = "Without authentication this host name is not answered, since any site's could lead here. Ask for \
                       the address, or start the matchmaker with --public-url and the page's URL by this name.";
            return Err(Refusal::forbidden(Reason::Origin, why));
        }
        let https = site.proxies.is_https(peer, &parts.headers);
        if (!reads || upgrades) && !origin_is_allowed(&parts.headers, &site.allow_origin, https) {
            let why = "Pages of this origin may not do this. The operator can allow it with --allow-origin.";
            return Err(Refusal::forbidden(Reason::Origin, why));
        }
        let address = site.proxies.client(peer, &parts.headers);
        let Query(Joining { join }) = Query::try_from_uri(&parts.uri)
            .map_err(|error| Refusal::bad_request(format!("reading the URL's query: {error}")))?;
        let shown = Shown {
            join: join.as_deref(),
            headers: &parts.headers,
            address,
        };
        let identity = front.auth.identify(shown, now_unix()).await?;
        Ok(Self {
            who: identity.who,
            address,
            cookie: identity.cookie,
            https,
            refusal: front
                .auth
                .unauthorized(Reason::Anonymous, "Sign in first, or open a join link."),
        })
    }
}
