//! The local HTTP API, as `penstock_core::wire::agent` documents it.

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use penstock_core::ids::SliceId;
use penstock_core::packing::Refusal;
use penstock_core::wire::agent::{GpuStatus, Problem, SliceSpec, SliceStatus};
use penstock_shell::events::sse;
use serde_json::error::Category;
use tokio::sync::oneshot;

use super::agent::Refused;
use super::owner::{Handle, Request};

/// The API over the owner's `handle`.
pub(super) fn router(handle: Handle) -> Router {
    Router::new()
        .route("/v1/gpus", get(list_gpus))
        .route("/v1/slices", get(list_slices).post(start_slice))
        .route("/v1/slices/{id}", get(show_slice).delete(end_slice))
        .route("/v1/events", get(events))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(handle)
}

async fn list_gpus(State(handle): State<Handle>) -> Json<Vec<GpuStatus>> {
    Json(handle.gpus.borrow().clone())
}

async fn list_slices(State(handle): State<Handle>) -> Json<Vec<SliceStatus>> {
    Json(handle.slices.borrow().clone())
}

async fn show_slice(
    State(handle): State<Handle>,
    Path(id): Path<String>,
) -> Result<Json<SliceStatus>, Failure> {
    let slices = handle.slices.borrow();
    let slice = slices.iter().find(|slice| slice.id.as_str() == id).cloned();
    slice.map(Json).ok_or_else(|| Refused::Unknown(id).into())
}

async fn start_slice(
    State(handle): State<Handle>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<SliceStatus>), Failure> {
    let spec = parse(&body?)?;
    let status = ask(&handle, |answer| Request::Start(spec, answer)).await?;
    Ok((StatusCode::CREATED, Json(status)))
}

async fn end_slice(State(handle): State<Handle>, Path(id): Path<String>) -> Result<StatusCode, Failure> {
    // What is no slice's name names no slice.
    let id = SliceId::new(id.as_str()).map_err(|_| Refused::Unknown(id))?;
    ask(&handle, |answer| Request::End(id, answer)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn events(State(handle): State<Handle>) -> impl IntoResponse {
    sse(handle.slices)
}

async fn no_such_path(uri: Uri) -> Failure {
    let path = uri.path();
    Failure::new(
        StatusCode::NOT_FOUND,
        format!(
            "there is nothing at {path}: the API's paths are /v1/gpus, /v1/slices, /v1/slices/{{id}} and /v1/events"
        ),
    )
}

async fn no_such_method(method: Method, uri: Uri) -> Failure {
    Failure::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!(
            "{} does not take {method}: read with GET, start with POST, end with DELETE",
            uri.path()
        ),
    )
}

/// Sends a request to the owner, and waits for its answer.
async fn ask<T>(
    handle: &Handle,
    request: impl FnOnce(oneshot::Sender<Result<T, Refused>>) -> Request,
) -> Result<T, Refused> {
    let (answer, answered) = oneshot::channel();
    // No owner, or one that ends before it answers: the agent is ending.
    let sent = handle.requests.send(request(answer)).await;
    sent.map_err(|_| Refused::Ending)?;
    answered.await.map_err(|_| Refused::Ending)?
}

fn parse(body: &[u8]) -> Result<SliceSpec, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        let (status, kind) = match error.classify() {
            Category::Data => (StatusCode::UNPROCESSABLE_ENTITY, "no description of a slice"),
            _ => (StatusCode::BAD_REQUEST, "not JSON"),
        };
        Failure::new(
            status,
            format!("starting a slice: the request's body is {kind}: {error}; send for example {EXAMPLE}"),
        )
    })
}

/// An answer that says what went wrong.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    problem: Problem,
}

impl Failure {
    fn new(status: StatusCode, error: String) -> Self {
        let problem = Problem { error };
        Self { status, problem }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let status = match &refused {
            Refused::Ledger(Refusal::NoRoom { .. } | Refusal::Exists(_)) => StatusCode::CONFLICT,
            Refused::Ledger(Refusal::Empty(_)) | Refused::Argument(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refused::Unknown(_) => StatusCode::NOT_FOUND,
            Refused::Name(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Refused::Ending => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, refused.to_string())
    }
}

impl From<BytesRejection> for Failure {
    fn from(rejection: BytesRejection) -> Self {
        let status = rejection.status();
        let why = rejection.body_text();
        Self::new(
            status,
            format!("reading the request's body, of {MAX_BODY_BYTES} bytes at most: {why}"),
        )
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(self.problem)).into_response()
    }
}

/// Room for long command lines.
const MAX_BODY_BYTES: usize = 64 << 10;
const EXAMPLE: &str = r#"{"demand":{"nvenc":3},"streamerArgs":["--source","test"]}"#;
