//! What is asked over HTTP, and answered.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get, post};
use penstock_core::ids::{BadId, PlayerId, SessionId};
use penstock_core::turn_rest;
use penstock_core::wire::status::StreamerStatus;
use serde_json::{Map, Value};
use tokio::sync::oneshot;

use super::promises::Full;
use super::types::{IceServers, Invitation, NewSession, Session, SessionList};
use crate::auth::Cookie;
use crate::auth::rights::{Action, Who};
use crate::caller::Caller;
use crate::clock::now_unix;
use crate::events::{Event, Survey};
use crate::front::Front;
use crate::join::{Admits, Link};
use crate::problem::Refusal;

type Answer = Result<Response, Refusal>;
/// What stands in a path, as it came.
type Id = Result<Path<String>, PathRejection>;

/// All of the API's routes, in the order of `openapi.json`.
pub fn routes() -> Vec<(&'static str, MethodRouter<Front>)> {
    vec![
        ("/sessions", get(list).post(create)),
        ("/sessions/{id}", get(show).delete(end)),
        ("/sessions/{id}/links", post(invite)),
        ("/ice-servers", get(ice_servers)),
        ("/login", post(log_in).delete(log_out)),
        ("/openapi.json", get(document)),
    ]
}

async fn list(State(front): State<Front>, caller: Caller) -> Answer {
    caller.must(Action::ListSessions)?;
    let survey = survey(&front).await?;
    let sessions = survey
        .streamers
        .iter()
        .filter_map(|(_, status)| Session::of(status));
    let sessions = sessions.collect();
    Ok(Json(SessionList { sessions }).into_response())
}

async fn show(State(front): State<Front>, caller: Caller, id: Id) -> Answer {
    caller.must(Action::ListSessions)?;
    let (_, status) = find(&front, id).await?;
    let session = Session::of(&status).ok_or_else(no_such_session)?;
    Ok(Json(session).into_response())
}

async fn create(
    State(front): State<Front>,
    caller: Caller,
    headers: HeaderMap,
    asked: Result<Json<Map<String, Value>>, JsonRejection>,
) -> Answer {
    caller.must(Action::CreateSession)?;
    let Json(asked) = asked.map_err(|error| Refusal::new(error.status(), error.body_text()))?;
    // By way of an object: from a list its fields would be read too, in order.
    let asked: NewSession = serde_json::from_value(Value::Object(asked)).map_err(|error| {
        Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("reading what to play: {error}"),
        )
    })?;
    let wish = asked.wish()?;
    let survey = survey(&front).await?;
    let link = Link::new(Admits::Player(wish.clone()));
    let (now, expires) = (now_unix(), now_unix() + front.api.link_ttl);
    let promised = front
        .api
        .with_promises(|promises| promises.promise(&survey, &link.id, &wish, now, expires));
    promised.map_err(|full| {
        let why = match full {
            Full::Taken => {
                "All streamers that fit have a player, or were promised to one. Ask again in a moment."
            }
            Full::NothingFits => {
                "No streamer that is here streams this, free or not. Ask again when one was started."
            }
        };
        Refusal::unavailable(why, RETRY_AFTER)
    })?;
    Ok(invitation(&front, &caller, &headers, &link, expires))
}

async fn invite(State(front): State<Front>, caller: Caller, headers: HeaderMap, id: Id) -> Answer {
    caller.must(Action::CreateSession)?;
    let (_, status) = find(&front, id).await?;
    let session = status.session_id.ok_or_else(no_such_session)?;
    let expires = now_unix() + front.api.link_ttl;
    let link = Link::new(Admits::Viewer { session });
    Ok(invitation(&front, &caller, &headers, &link, expires))
}

fn invitation(
    front: &Front,
    caller: &Caller,
    headers: &HeaderMap,
    link: &Link,
    expires: Duration,
) -> Response {
    let text = link.sign(front.auth.key(), expires);
    let join_url = format!("{}?join={text}", front.site.url(caller.https, headers));
    let location = [(header::LOCATION, join_url.clone())];
    let invitation = Invitation {
        join_url,
        expires_at: expires.as_secs(),
    };
    (StatusCode::CREATED, NO_STORE, location, Json(invitation)).into_response()
}

async fn end(State(front): State<Front>, caller: Caller, id: Id) -> Answer {
    caller.must(Action::EndSession)?;
    let (address, status) = find(&front, id).await?;
    let session = status.session_id.ok_or_else(no_such_session)?;
    let url = format!("http://{address}/session/{session}");
    let failed = |why: &str| {
        tracing::warn!(%address, why, "ending a session");
        let error = format!(
            "The streamer {} did not end the session: {why}. Try again.",
            status.streamer_id
        );
        Refusal::new(StatusCode::BAD_GATEWAY, error)
    };
    let answered = front.api.streamers.delete(url).send().await;
    match answered.map(|answer| answer.status()) {
        Ok(StatusCode::NO_CONTENT) => {
            tracing::info!(streamer = %status.streamer_id, who = ?caller.who, "ended a session");
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Ok(StatusCode::NOT_FOUND) => Err(no_such_session()),
        Ok(other) => Err(failed(&format!("it answered {other}"))),
        Err(_) => Err(failed("it can't be reached")),
    }
}

async fn ice_servers(State(front): State<Front>, caller: Caller) -> Answer {
    caller.must(Action::GetIceServers)?;
    let who = name_at_relays(&front, &caller)
        .map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let ice_servers = front.ice.servers_to_anywhere(&who, now_unix());
    let names = ice_servers.iter().filter_map(|server| server.username.as_deref());
    let expiries = names.filter_map(|name| Some(turn_rest::parse(name)?.expiry_unix_s));
    let expires_at = expiries.min();
    let servers = IceServers {
        ice_servers,
        expires_at,
    };
    Ok((NO_STORE, Json(servers)).into_response())
}

/// Always the same for one user: the TURN servers' quotas count by it. A user's own name may have characters in it that
/// mean something there.
fn name_at_relays(front: &Front, caller: &Caller) -> Result<PlayerId, BadId> {
    let name = match &caller.who {
        Who::User(user) => &user.name,
        Who::Guest(link) => &link.id,
        Who::Nobody => "",
    };
    PlayerId::new(format!("user-{}", front.auth.key().stamp(name)))
}

/// The cookie is what this is for; see `auth`.
async fn log_in(State(front): State<Front>, caller: Caller) -> Answer {
    caller.must(Action::OpenPage)?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    caller.remember(&front, &mut response);
    Ok(response)
}

async fn log_out(State(front): State<Front>, mut caller: Caller) -> Answer {
    let mut response = StatusCode::NO_CONTENT.into_response();
    caller.cookie = Some(Cookie::logout());
    caller.remember(&front, &mut response);
    Ok(response)
}

async fn document(State(front): State<Front>) -> Answer {
    let broken = |error: serde_json::Error| {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("reading openapi.json: {error}"),
        )
    };
    let mut document: Value = serde_json::from_str(DOCUMENT).map_err(broken)?;
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    document["servers"][0]["url"] = front.site.cookie_path().into();
    Ok(Json(document).into_response())
}

async fn survey(front: &Front) -> Result<Survey, Refusal> {
    let (answer, survey) = oneshot::channel();
    let asked = front.events.send(Event::Survey(answer)).await;
    asked.map_err(|_| Refusal::ending())?;
    survey.await.map_err(|_| Refusal::ending())
}

/// The streamer that has the session.
async fn find(front: &Front, id: Id) -> Result<(SocketAddr, StreamerStatus), Refusal> {
    let Path(id) = id.map_err(|error| Refusal::bad_request(error.body_text()))?;
    let id = SessionId::new(id).map_err(|error| Refusal::bad_request(error.to_string()))?;
    let survey = survey(front).await?;
    let mut streamers = survey.streamers.into_iter();
    let found = streamers.find(|(_, status)| status.session_id.as_ref() == Some(&id));
    found.ok_or_else(no_such_session)
}

fn no_such_session() -> Refusal {
    let why = "There is no such session (any more). GET /sessions lists those that are.";
    Refusal::new(StatusCode::NOT_FOUND, why)
}

/// What the API is, in OpenAPI 3.1. Version and server are put in when it is served.
pub const DOCUMENT: &str = include_str!("openapi.json");

const NO_STORE: [(HeaderName, &str); 1] = [(header::CACHE_CONTROL, "no-store")];
/// In seconds. When something will be free nobody knows; asking costs little.
const RETRY_AFTER: u64 = 5;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_in_the_document_and_every_path_of_it_is_a_route() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let paths = document["paths"].as_object().unwrap().keys().map(String::as_str);
        let routes = routes().into_iter().chain(crate::overview::routes::routes());
        let mut served: BTreeSet<_> = routes.map(|(path, _)| path).collect();
        served.extend(crate::web::PATHS);
        assert_eq!(paths.collect::<BTreeSet<_>>(), served);
    }
}
