//! What browsers and operators ask for over HTTP.

use std::path::Path;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use penstock_core::wire::agent::Problem;
use penstock_core::wire::returning::ReturnToken;
use penstock_core::wire::signalling::MAX_MESSAGE_BYTES;
use penstock_shell::ops;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::services::{ServeDir, ServeFile};
use tower_http::set_header::SetResponseHeaderLayer;

use crate::events::Event;
use crate::ice::Ice;
use crate::lobby::{Return, Want};
use crate::metrics::Metrics;
use crate::page_socket::Page;

/// What every request may need.
#[derive(Clone)]
pub struct Front {
    /// Where the desk is.
    pub events: mpsc::Sender<Event>,
    /// What pages are told of ICE servers.
    pub ice: Ice,
    /// The metrics.
    pub metrics: Metrics,
    /// Whether all that says where streamers are was heard.
    pub ready: ops::Ready,
    /// The tasks of all pages.
    pub pages: TaskTracker,
    /// Cancelled when the program ends.
    pub stop: CancellationToken,
}

/// The whole site, with the page from `page`.
pub fn router(front: Front, page: &Path) -> Router {
    let ready = front.ready.clone();
    let registry = front.metrics.registry.clone();
    let files = ServeDir::new(page).append_index_html_on_directories(false);
    let index = ServeFile::new(page.join("index.html"));
    let index = get(
        async move |State(front): State<Front>, upgrade: Upgrade, query: Wish, request: Request| match upgrade
        {
            Ok(upgrade) => front.welcome(upgrade, query),
            Err(_) => file(index, request).await,
        },
    );
    let site = Router::new()
        .route("/", index)
        .route("/signalling", get(signalling))
        .route("/status", get(status))
        .merge(ops::router(registry, ready).layer(from_fn_with_state(front.clone(), up_to_date)))
        .fallback_service(files)
        .layer(from_fn(caching));
    with_security_headers(site).with_state(front)
}

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;
type Wish = Query<Wished>;

/// What a page's URL asks for.
#[derive(Debug, Deserialize)]
struct Wished {
    /// The session to watch; absent to play.
    watch: Option<String>,
    /// The token that the page was given when it was matched; empty where it has none yet; absent for pages that don't
    /// know of it.
    #[serde(rename = "return")]
    back: Option<String>,
    /// Whether its peer connection goes on.
    #[serde(default)]
    live: bool,
}

impl Wished {
    /// What is no token is none: the page then queues as everyone.
    fn back(&self) -> Return {
        let Some(text) = &self.back else {
            return Return::Never;
        };
        match ReturnToken::try_from(text.clone()) {
            Ok(token) => Return::Now {
                token,
                live: self.live,
            },
            Err(_) => Return::Later,
        }
    }
}

impl Front {
    fn welcome(self, upgrade: WebSocketUpgrade, Query(wish): Wish) -> Response {
        if self.stop.is_cancelled() {
            return problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "The matchmaker ends. Connect again.",
            );
        }
        let page = Page {
            back: wish.back(),
            want: wish.watch.map_or(Want::Play, Want::Watch),
            events: self.events,
            ice: self.ice,
            metrics: self.metrics,
            stop: self.stop,
        };
        let task = self.pages.token();
        upgrade
            .max_message_size(MAX_MESSAGE_BYTES)
            .max_frame_size(MAX_MESSAGE_BYTES)
            .on_upgrade(async move |socket| {
                page.serve(socket).await;
                drop(task);
            })
    }
}

async fn signalling(State(front): State<Front>, upgrade: Upgrade, wish: Wish) -> Response {
    match upgrade {
        Ok(upgrade) => front.welcome(upgrade, wish),
        Err(error) => problem(
            StatusCode::UPGRADE_REQUIRED,
            &format!("This is a WebSocket: {error}"),
        ),
    }
}

async fn status(State(front): State<Front>) -> Response {
    let (answer, view) = oneshot::channel();
    let asked = front.events.send(Event::Look(answer)).await;
    match (asked, view.await) {
        (Ok(()), Ok(view)) => Json(view).into_response(),
        _ => problem(StatusCode::SERVICE_UNAVAILABLE, "The matchmaker ends. Ask again."),
    }
}

async fn file(index: ServeFile, request: Request) -> Response {
    use tower_http::BoxError;
    let mut index = index;
    let served: Result<_, BoxError> = index.try_call(request).await.map_err(Into::into);
    match served {
        Ok(response) => response.into_response(),
        Err(error) => {
            tracing::error!(%error, "reading index.html");
            problem(StatusCode::INTERNAL_SERVER_ERROR, "The page can't be read.")
        }
    }
}

fn problem(status: StatusCode, error: &str) -> Response {
    let error = error.to_owned();
    (status, Json(Problem { error })).into_response()
}

/// What `/metrics` shows of the lobby is asked for anew each time.
async fn up_to_date(State(front): State<Front>, request: Request, next: Next) -> Response {
    if request.uri().path() == "/metrics" {
        front.metrics.refresh(&front.events).await;
    }
    next.run(request).await
}

/// The page's assets have their content's hash in their names and never change; everything else is asked for anew.
async fn caching(request: Request, next: Next) -> Response {
    let asset = request.uri().path().starts_with("/assets/");
    let mut response = next.run(request).await;
    let value = match asset && response.status().is_success() {
        true => "public, max-age=31536000, immutable",
        false => "no-cache",
    };
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static(value));
    response
}

fn with_security_headers(site: Router<Front>) -> Router<Front> {
    SECURITY_HEADERS.iter().fold(site, |site, (name, value)| {
        let name = HeaderName::from_static(name);
        site.layer(SetResponseHeaderLayer::overriding(
            name,
            HeaderValue::from_static(value),
        ))
    })
}

/// `ws:` and `wss:` stand beside `'self'` because the page takes a signalling server's URL as a parameter, like the
/// stock one. A session's name in the page's URL is a capability, so no other site is told the URL.
const SECURITY_HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data: blob:; \
         media-src 'self' blob:; style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'self'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
];
