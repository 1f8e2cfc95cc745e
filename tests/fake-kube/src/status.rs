//! Refusals, as an API server words them.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Why a request is not carried out: a `Status` with code, reason and message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    pub(crate) code: u16,
    reason: &'static str,
    message: String,
    details: Value,
    /// Seconds that the client is asked to wait.
    pub(crate) retry_after: Option<u32>,
}

/// One fault of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    /// `FieldValueRequired` and the like.
    pub(crate) reason: &'static str,
    /// `spec.gpus[0].uuid`.
    pub(crate) field: String,
    pub(crate) message: String,
}

/// What a failure is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) group: &'a str,
    pub(crate) plural: &'a str,
    pub(crate) name: &'a str,
}

impl Subject<'_> {
    /// `pods "x"` or `gpunodes.penstock.dev "x"`.
    fn quoted(&self) -> String {
        let resource = self.resource();
        match self.name {
            "" => resource,
            name => format!("{resource} \"{name}\""),
        }
    }

    fn resource(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    fn details(&self) -> Value {
        let mut details = json!({ "kind": self.plural });
        for (field, text) in [("name", self.name), ("group", self.group)] {
            if !text.is_empty() {
                details[field] = json!(text);
            }
        }
        details
    }
}

impl Failure {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: Value::Null,
            retry_after: None,
        }
    }

    fn about(mut self, subject: Subject<'_>) -> Self {
        self.details = subject.details();
        self
    }

    fn with_causes(mut self, causes: &[Cause]) -> Self {
        let causes = causes
            .iter()
            .map(|c| json!({ "reason": c.reason, "message": c.message, "field": c.field }));
        if self.details.is_null() {
            self.details = json!({});
        }
        self.details["causes"] = causes.collect();
        self
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub(crate) fn forbidden(subject: Subject<'_>, why: &str) -> Self {
        Self::new(
            403,
            "Forbidden",
            format!("{} is forbidden: {why}", subject.quoted()),
        )
        .about(subject)
    }

    pub(crate) fn not_found(subject: Subject<'_>) -> Self {
        Self::new(404, "NotFound", format!("{} not found", subject.quoted())).about(subject)
    }

    /// A path that leads to nothing, a kind that is not defined for one.
    pub(crate) fn no_such_path() -> Self {
        Self::new(404, "", "404 page not found")
    }

    pub(crate) fn already_exists(subject: Subject<'_>) -> Self {
        let message = format!("{} already exists", subject.quoted());
        Self::new(409, "AlreadyExists", message).about(subject)
    }

    pub(crate) fn conflict(subject: Subject<'_>, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {}: {why}", subject.quoted());
        Self::new(409, "Conflict", message).about(subject)
    }

    /// The version that a write is based on is not the newest.
    pub(crate) fn stale(subject: Subject<'_>) -> Self {
        Self::conflict(
            subject,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// Other managers own fields that an apply sets.
    pub(crate) fn apply_conflict(causes: &[Cause]) -> Self {
        let plural = if causes.len() == 1 { "" } else { "s" };
        let each: Vec<_> = causes
            .iter()
            .map(|c| format!("{}: {}", c.message, c.field))
            .collect();
        let message = format!(
            "Apply failed with {} conflict{plural}: {}",
            causes.len(),
            each.join(", ")
        );
        Self::new(409, "Conflict", message).with_causes(causes)
    }

    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub(crate) fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// `kind` is `Pod` or `GpuNode.penstock.dev`.
    pub(crate) fn invalid(kind: &str, name: &str, causes: &[Cause]) -> Self {
        let each: Vec<_> = causes
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect();
        let each = match &each[..] {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let (short, group) = kind.split_once('.').unwrap_or((kind, ""));
        let subject = Subject {
            group,
            plural: short,
            name,
        };
        Self::new(422, "Invalid", format!("{kind} \"{name}\" is invalid: {each}"))
            .about(subject)
            .with_causes(causes)
    }

    /// What a test has asked for.
    pub(crate) fn on_demand(code: u16, retry_after: Option<u32>) -> Self {
        let reason = match code {
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            409 => "Conflict",
            410 => "Expired",
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "InternalError",
        };
        Self {
            retry_after,
            ..Self::new(code, reason, "the stand-in was told to say so")
        }
    }

    /// The `Status` object.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = match self.reason {
            // The one answer that is no `Status`.
            "" => (code, format!("{}\n", self.message)).into_response(),
            _ => (code, Json(self.status())).into_response(),
        };
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
