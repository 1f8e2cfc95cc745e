//! What is answered where something is wrong: a status, and why as JSON.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use penstock_core::wire::agent::Problem;

/// Why somebody was refused who asked for something that others get. Each counts by itself in the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// They did not say who they are.
    Anonymous,
    /// Their name, password or token is not good.
    Credentials,
    /// Their join link is not good.
    Link,
    /// They are known, and may not do that.
    Rights,
    /// A page of another site sent it.
    Origin,
    /// Their address has too many connections, or makes them too fast.
    Connections,
    /// The same of players.
    Players,
    /// Their address tried to sign in too often.
    Attempts,
    /// Their page sent too many messages in too short a time.
    Messages,
    /// As many listen to the overview as may.
    Listeners,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Anonymous,
        Self::Credentials,
        Self::Link,
        Self::Rights,
        Self::Origin,
        Self::Connections,
        Self::Players,
        Self::Attempts,
        Self::Messages,
        Self::Listeners,
    ];

    /// As metrics call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Credentials => "credentials",
            Self::Link => "link",
            Self::Rights => "rights",
            Self::Origin => "origin",
            Self::Connections => "connections",
            Self::Players => "players",
            Self::Attempts => "attempts",
            Self::Messages => "messages",
            Self::Listeners => "listeners",
        }
    }
}

/// A refusal, whatever for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    error: String,
    challenge: Option<String>,
    retry_after: Option<u64>,
    reason: Option<Reason>,
}

impl Refusal {
    /// A status, and what is wrong, in words.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
            challenge: None,
            retry_after: None,
            reason: None,
        }
    }

    /// The same, counted as this.
    pub fn because(self, reason: Reason) -> Self {
        Self {
            reason: Some(reason),
            ..self
        }
    }

    /// 400.
    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// 401, with the challenge for its `WWW-Authenticate` header.
    pub fn unauthorized(reason: Reason, challenge: impl Into<String>, error: impl Into<String>) -> Self {
        Self {
            challenge: Some(challenge.into()),
            ..Self::new(StatusCode::UNAUTHORIZED, error).because(reason)
        }
    }

    /// 403.
    pub fn forbidden(reason: Reason, error: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error).because(reason)
    }

    /// 429, to be tried again after so many seconds.
    pub fn too_many(reason: Reason, error: impl Into<String>, retry_after: u64) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, error).because(reason)
        }
    }

    /// 503, to be tried again after so many seconds.
    pub fn unavailable(error: impl Into<String>, retry_after: u64) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, error)
        }
    }

    /// 503, because the program ends.
    pub fn ending() -> Self {
        Self::unavailable("The matchmaker ends. Ask again.", 1)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = Json(Problem { error: self.error });
        let mut response = (self.status, problem).into_response();
        let headers = response.headers_mut();
        let challenge = self.challenge.and_then(|text| HeaderValue::try_from(text).ok());
        if let Some(challenge) = challenge {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        // For who counts them.
        if let Some(reason) = self.reason {
            response.extensions_mut().insert(reason);
        }
        response
    }
}
