//! What is answered where something is wrong: a status, and why as JSON.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use penstock_core::wire::agent::Problem;

/// A refusal, whatever for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    error: String,
    challenge: Option<String>,
    retry_after: Option<u64>,
}

impl Refusal {
    /// A status, and what is wrong, in words.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
            challenge: None,
            retry_after: None,
        }
    }

    /// 400.
    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// 401, with the challenge for its `WWW-Authenticate` header.
    pub fn unauthorized(challenge: impl Into<String>, error: impl Into<String>) -> Self {
        Self {
            challenge: Some(challenge.into()),
            ..Self::new(StatusCode::UNAUTHORIZED, error)
        }
    }

    /// 403.
    pub fn forbidden(error: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error)
    }

    /// 429, to be tried again after so many seconds.
    pub fn too_many(error: impl Into<String>, retry_after: u64) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, error)
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
        response
    }
}
