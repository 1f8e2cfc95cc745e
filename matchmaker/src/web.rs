//! What browsers and operators ask for over HTTP.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::rejection::QueryRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::handler::HandlerWithoutStateExt as _;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use penstock_core::wire::returning::ReturnToken;
use penstock_core::wire::signalling::MAX_MESSAGE_BYTES;
use penstock_shell::ops;
use serde::Deserialize;
use tokio::sync::oneshot;
use tower_http::services::{ServeDir, ServeFile};
use tower_http::set_header::SetResponseHeaderLayer;

use crate::addresses::Pass;
use crate::api::routes as api;
use crate::api::types::wish;
use crate::auth::rights::{Action, Who};
use crate::caller::Caller;
use crate::events::Event;
use crate::front::Front;
use crate::lobby::{Return, Want};
use crate::overview::routes as overview;
use crate::page_socket::Page;
use crate::prefix;
use crate::problem::{Reason, Refusal};

/// The paths that are not the API's.
pub const PATHS: [&str; 7] = [
    "/",
    "/signalling",
    "/overview",
    "/status",
    "/healthz",
    "/readyz",
    "/metrics",
];

/// The whole site, with the page from `page`.
pub fn router(front: Front, page: &Path) -> Router {
    let files = ServeDir::new(page).append_index_html_on_directories(false);
    let files = files
        .call_fallback_on_method_not_allowed(true)
        .fallback(nothing_there.into_service());
    let index = ServeFile::new(page.join("index.html"));
    let index = get(
        async move |State(front): State<Front>,
                    caller: Caller,
                    upgrade: Upgrade,
                    wish: Wish,
                    request: Request| {
            match upgrade {
                Ok(upgrade) => front.welcome(caller, upgrade, wish),
                Err(_) => front.page(caller, index, request).await,
            }
        },
    );
    let overview = ServeFile::new(page.join("overview.html"));
    let overview = get(
        async move |State(front): State<Front>, caller: Caller, request: Request| {
            front.overview(caller, overview, request).await
        },
    );
    let mut site = Router::new()
        .route("/", index)
        .route("/overview", overview)
        .route("/signalling", get(signalling))
        .route("/status", get(status));
    for (path, methods) in api::routes().into_iter().chain(overview::routes()) {
        site = site.route(path, methods);
    }
    let prefix = front.site.prefix.clone();
    let ops = operators(&front);
    let counting = from_fn_with_state(front.clone(), count_refusals);
    let site = site
        .merge(ops.clone())
        .fallback_service(files)
        .method_not_allowed_fallback(wrong_method)
        .layer(counting)
        .layer(from_fn(caching))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES));
    let site = with_security_headers(site).with_state(front.clone());
    match prefix.as_str() {
        "" => site,
        prefix => prefix::under(prefix, site).merge(ops.with_state(front)),
    }
}

fn operators(front: &Front) -> Router<Front> {
    let (discovered, auth) = (front.discovered.clone(), front.auth.clone());
    let ready: ops::Ready = Arc::new(move || discovered().and_then(|()| auth.ready()));
    let fresh = from_fn_with_state(front.clone(), up_to_date);
    ops::router(front.metrics.registry.clone(), ready).layer(fresh)
}

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;
type Wish = Result<Query<Wished>, QueryRejection>;

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
    /// The application to play.
    application: Option<String>,
    /// The size and rate to play at.
    stream: Option<String>,
    /// The streamer to play on, and no other.
    id: Option<String>,
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

    /// What was asked for, if the caller may.
    fn want(self, caller: &Caller) -> Result<Want, Refusal> {
        if let Some(session) = self.watch {
            caller.must(Action::Watch)?;
            return Ok(Want::Watch(session));
        }
        caller.must(Action::Play)?;
        if self.id.is_some() {
            caller.must(Action::ChooseStreamer)?;
        }
        let wish = wish(
            self.application.as_deref(),
            self.stream.as_deref(),
            self.id.as_deref(),
        );
        Ok(Want::Play(wish?))
    }
}

impl Front {
    fn welcome(self, caller: Caller, upgrade: WebSocketUpgrade, wish: Wish) -> Result<Response, Refusal> {
        let Query(wish) = wish.map_err(|error| Refusal::bad_request(error.body_text()))?;
        let back = wish.back();
        let want = match &caller.who {
            // The link says it all; what else the URL asks for, anyone could have written.
            Who::Guest(link) => {
                self.api.arrived(&link.id);
                link.admits.want()
            }
            Who::Nobody | Who::User(_) => wish.want(&caller)?,
        };
        if self.stop.is_cancelled() {
            return Err(Refusal::ending());
        }
        let pass = self.admit(&caller)?;
        let account = self
            .auth
            .account(&caller.who)
            .filter(|_| matches!(want, Want::Play(_)));
        let page = Page {
            back,
            want,
            account,
            players: self.players.clone(),
            events: self.events.clone(),
            ice: self.ice.clone(),
            metrics: self.metrics.clone(),
            stop: self.stop.clone(),
        };
        let task = self.pages.token();
        let mut response = upgrade
            .max_message_size(MAX_MESSAGE_BYTES)
            .max_frame_size(MAX_MESSAGE_BYTES)
            .read_buffer_size(READ_BUFFER_BYTES)
            .on_upgrade(async move |socket| {
                page.serve(socket).await;
                drop((task, pass));
            });
        caller.remember(&self, &mut response);
        Ok(response)
    }

    fn admit(&self, caller: &Caller) -> Result<Pass, Refusal> {
        let pass = self.gate.enter(Instant::now(), caller.address);
        pass.map_err(|error| Refusal::too_many(Reason::Players, error.to_string(), 1))
    }

    /// Whether a socket of the caller would be refused. Of one that was, a browser says nothing to its page, which asks
    /// without a socket then.
    fn would_refuse(&self, caller: &Caller, wish: Wish) -> Result<(), Refusal> {
        if let (Who::Nobody | Who::User(_), Ok(Query(wish))) = (&caller.who, wish) {
            wish.want(caller)?;
        }
        self.admit(caller).map(drop)
    }

    /// The overview's page. What it shows it asks for itself.
    async fn overview(self, caller: Caller, page: ServeFile, request: Request) -> Result<Response, Refusal> {
        caller.must(Action::SeeOverview)?;
        let mut response = file(page, request).await;
        caller.remember(&self, &mut response);
        Ok(response)
    }

    /// The page itself. Its assets are open to all; but where a password is needed, only a page makes a browser ask for
    /// one.
    async fn page(self, caller: Caller, index: ServeFile, request: Request) -> Result<Response, Refusal> {
        caller.must(Action::OpenPage)?;
        let mut response = file(index, request).await;
        caller.remember(&self, &mut response);
        Ok(response)
    }
}

async fn signalling(
    State(front): State<Front>,
    caller: Caller,
    upgrade: Upgrade,
    wish: Wish,
) -> Result<Response, Refusal> {
    match upgrade {
        Ok(upgrade) => front.welcome(caller, upgrade, wish),
        Err(error) => {
            front.would_refuse(&caller, wish)?;
            let why = format!("This is a WebSocket: {error}");
            Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, why))
        }
    }
}

async fn status(State(front): State<Front>, caller: Caller) -> Result<Response, Refusal> {
    caller.must(Action::SeeOverview)?;
    let (answer, view) = oneshot::channel();
    let asked = front.events.send(Event::Look(answer)).await;
    match (asked, view.await) {
        (Ok(()), Ok(view)) => Ok(Json(view).into_response()),
        _ => Err(Refusal::ending()),
    }
}

async fn nothing_there() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "There is nothing here. GET openapi.json shows what there is.",
    )
}

async fn wrong_method() -> Refusal {
    let why = "This path takes other methods. GET openapi.json shows which.";
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, why)
}

async fn file(index: ServeFile, request: Request) -> Response {
    use tower_http::BoxError;
    let mut index = index;
    let served: Result<_, BoxError> = index.try_call(request).await.map_err(Into::into);
    match served {
        Ok(response) => response.into_response(),
        Err(error) => {
            tracing::error!(%error, "reading a page");
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "The page can't be read.").into_response()
        }
    }
}

/// What `/metrics` shows of the lobby is asked for anew each time.
async fn up_to_date(State(front): State<Front>, request: Request, next: Next) -> Response {
    if request.uri().path().ends_with("/metrics") {
        front.metrics.refresh(&front.events).await;
    }
    next.run(request).await
}

/// Whoever was refused what they asked for shows in the metrics.
async fn count_refusals(State(front): State<Front>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if let Some(reason) = response.extensions().get::<Reason>() {
        front.metrics.refused(*reason);
    }
    response
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
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static(value));
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

/// Every socket has one from its begin to its end, and most messages of pages are shorter. By default there would be
/// 128 KiB for each.
const READ_BUFFER_BYTES: usize = 2 << 10;

/// What the API takes is small.
const MAX_BODY_BYTES: usize = 16 << 10;
