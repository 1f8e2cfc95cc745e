//! The endpoints for operators: `/metrics` (Prometheus text), `/healthz` (the process lives), `/readyz` (it can
//! do its work, or 503 and why not).

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use prometheus::{Encoder as _, Registry, TextEncoder};

/// Says why the program is not ready; `Ok` where it is.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The three endpoints over `registry`.
pub fn router<S: Clone + Send + Sync + 'static>(registry: Registry, ready: Ready) -> Router<S> {
    Router::new()
        .route("/metrics", get(move || async move { metrics(&registry) }))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(move || async move { readiness(&*ready) }))
}

fn metrics(registry: &Registry) -> Response {
    let encoder = TextEncoder::new();
    let mut body = Vec::new();
    match encoder.encode(&registry.gather(), &mut body) {
        Ok(()) => ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], body).into_response(),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("encoding the metrics: {error}\n"),
        )
            .into_response(),
    }
}

fn readiness(ready: &(dyn Fn() -> Result<(), String> + Send + Sync)) -> Response {
    match ready() {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}
