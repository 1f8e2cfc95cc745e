//! HTTP: who asks for what, and what comes of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::{Query, State as Extension};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::apply::Manager;
use crate::fault::{Fault, Trouble};
use crate::kinds::Kind;
use crate::patch::Format;
use crate::rbac::{Deed, User};
use crate::selector::Selector;
use crate::status::{Cause, Failure};
use crate::store::Store;
use crate::verbs::Target;
use crate::watch::{Ask, partial};

/// A request that was answered; for a watch, whose answer has begun.
#[derive(Debug, Clone)]
pub struct Request {
    /// When it came.
    pub at: Instant,
    /// Who asked: `kubernetes-admin`, `system:serviceaccount:penstock:penstock-plugin`, or nobody.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: &'static str,
    /// `/api/v1/namespaces/games/pods/quake-0`.
    pub path: String,
    /// What follows the `?`.
    pub query: BTreeMap<String, String>,
    /// The body; null where there was none.
    pub content: Value,
    /// The HTTP status of the answer.
    pub code: u16,
}

/// All that there is, behind one lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) faults: Vec<Fault>,
    pub(crate) log: Vec<Request>,
    /// Counts the orders to end all watches.
    pub(crate) cuts: u64,
    /// Counts the orders to send bookmarks.
    pub(crate) bookmarks: u64,
    /// Whether requests wait.
    pub(crate) paused: bool,
}

#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        let state = State {
            store: Store::new(),
            faults: Vec::new(),
            log: Vec::new(),
            cuts: 0,
            bookmarks: 0,
            paused: false,
        };
        Self {
            state: Mutex::new(state),
            changes: watch::Sender::new(0),
        }
    }

    /// To look only; [`Self::with`] tells watches of what was done.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A test that failed while it held the lock has said so already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let outcome = work(&mut self.lock());
        self.changes.send_modify(|count| *count += 1);
        outcome
    }

    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new().fallback(answer).with_state(shared)
}

async fn answer(
    Extension(shared): Extension<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut changed = shared.changed();
    while shared.lock().paused {
        // Its sender lives as long as `shared`.
        let _ = changed.changed().await;
    }
    let at = Instant::now();
    let query = Query::<BTreeMap<String, String>>::try_from_uri(&uri)
        .map(|Query(query)| query)
        .unwrap_or_default();
    let header = |name| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let place = Place::of(uri.path());
    let verb = verb(
        &method,
        &query,
        place.as_ref().is_some_and(|place| !place.name.is_empty()),
    );
    let user = User::of(&shared.lock().store, header(header::AUTHORIZATION).as_deref());
    let asked = Asked {
        verb,
        content_type: header(header::CONTENT_TYPE).unwrap_or_default(),
        partial: header(header::ACCEPT).is_some_and(|accept| accept.contains("as=PartialObjectMetadata")),
        agent: header(header::USER_AGENT),
        content: content(&body),
        query: query.clone(),
    };
    let entry = Request {
        at,
        user: user.as_ref().map(User::name).unwrap_or_default(),
        verb,
        path: uri.path().to_owned(),
        query,
        content: asked.content.clone().unwrap_or_default(),
        code: 0,
    };
    let response = match (user, place) {
        (Err(failure), _) => failure.into_response(),
        (Ok(_), None) => general(uri.path()),
        (Ok(user), Some(place)) => {
            let outcome = match trouble(&shared, &entry, &place).await {
                Ok(()) => asked.carry_out(&shared, &user, &place),
                Err(failure) => Err(failure),
            };
            outcome.unwrap_or_else(|failure| failure.into_response())
        }
    };
    let code = response.status().as_u16();
    shared.with(|state| state.log.push(Request { code, ..entry }));
    response
}

/// JSON, or YAML, which server-side apply may send.
fn content(body: &[u8]) -> Result<Value, Failure> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    let json = serde_json::from_slice(body);
    json.or_else(|_| serde_yaml_ng::from_slice(body))
        .map_err(|error: serde_yaml_ng::Error| Failure::bad_request(format!("can't read the body: {error}")))
}

/// Does what a test has asked for.
async fn trouble(shared: &Shared, request: &Request, place: &Place<'_>) -> Result<(), Failure> {
    let wanted = shared.with(|state| crate::fault::next(&mut state.faults, request.verb, place.plural));
    match wanted {
        Some(Trouble::Refuse { code, retry_after }) => Err(Failure::on_demand(code, retry_after)),
        Some(Trouble::Delay(time)) => {
            tokio::time::sleep(time).await;
            Ok(())
        }
        None => Ok(()),
    }
}

fn general(path: &str) -> Response {
    match path {
        "/version" => Json(json!({
            "major": "1", "minor": "36", "gitVersion": "v1.36.2", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64",
        }))
        .into_response(),
        "/healthz" | "/readyz" | "/livez" => "ok".into_response(),
        _ => Failure::no_such_path().into_response(),
    }
}

fn verb(method: &Method, query: &BTreeMap<String, String>, named: bool) -> &'static str {
    let watches = query
        .get("watch")
        .is_some_and(|watch| ["true", "1"].contains(&&**watch));
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ if watches => "watch",
        _ if named => "get",
        _ => "list",
    }
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, Default)]
struct Place<'a> {
    group: &'a str,
    version: &'a str,
    plural: &'a str,
    namespace: Option<&'a str>,
    name: &'a str,
    subresource: Option<&'a str>,
}

impl<'a> Place<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let steps: Vec<_> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match &steps[..] {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() && rest != ["status"] => {
                (Some(*namespace), rest)
            }
            rest => (None, rest),
        };
        let place = Self {
            group,
            version,
            namespace,
            ..Self::default()
        };
        match rest {
            [plural] => Some(Self { plural, ..place }),
            [plural, name] => Some(Self {
                plural,
                name,
                ..place
            }),
            [plural, name, subresource] => Some(Self {
                plural,
                name,
                subresource: Some(subresource),
                ..place
            }),
            _ => None,
        }
    }
}

/// What is asked for at that place.
struct Asked {
    verb: &'static str,
    content_type: String,
    partial: bool,
    agent: Option<String>,
    content: Result<Value, Failure>,
    query: BTreeMap<String, String>,
}

impl Asked {
    fn carry_out(self, shared: &Arc<Shared>, user: &User, place: &Place<'_>) -> Result<Response, Failure> {
        let kind = shared
            .lock()
            .store
            .kind(place.group, place.version, place.plural)
            .cloned();
        let selector = kind
            .as_ref()
            .map(|kind| self.selector(kind, place))
            .transpose()?
            .unwrap_or_default();
        let deed = Deed {
            verb: self.verb,
            group: place.group,
            plural: place.plural,
            subresource: place.subresource,
            namespace: place.namespace,
            name: if place.name.is_empty() {
                selector.name().unwrap_or_default()
            } else {
                place.name
            },
        };
        deed.check(&shared.lock().store, user)?;
        let is_right_scope = |kind: &Kind| match (kind.namespaced, place.namespace) {
            (true, None) => place.name.is_empty() && self.verb != "create",
            (false, Some(_)) => false,
            _ => true,
        };
        let kind = kind.filter(is_right_scope).ok_or_else(Failure::no_such_path)?;
        let (query, partial) = (self.query.clone(), self.partial);
        let ask = Ask {
            kind: kind.clone(),
            selector: selector.clone(),
            query,
            partial,
        };
        match self.verb {
            "watch" => ask.watch(shared),
            "list" => Ok(Json(ask.list(&shared.lock().store)?).into_response()),
            _ => {
                let target = self.target(kind, place)?;
                let (code, value) =
                    shared.with(|state| self.write(&mut state.store, user, &deed, &target, &ask))?;
                let value = if self.partial { partial_of(&value) } else { value };
                Ok((code, Json(value)).into_response())
            }
        }
    }

    fn selector(&self, kind: &Kind, place: &Place<'_>) -> Result<Selector, Failure> {
        let parameter = |name: &str| self.query.get(name).map(String::as_str);
        Selector::new(
            kind,
            place.namespace,
            parameter("labelSelector"),
            parameter("fieldSelector"),
        )
    }

    fn target(&self, kind: Kind, place: &Place<'_>) -> Result<Target, Failure> {
        let applies = self.content_type.starts_with("application/apply-patch");
        let agent = self.agent.as_deref().and_then(|agent| agent.split('/').next());
        let named = self.query.get("fieldManager").filter(|name| !name.is_empty());
        if self.verb == "patch" {
            self.check_patch_options(applies, named.is_some())?;
        }
        if place.subresource == Some("status") && !kind.status {
            return Err(Failure::no_such_path());
        }
        let manager = Manager {
            name: named
                .map(String::as_str)
                .or(agent)
                .unwrap_or("unknown")
                .to_owned(),
            operation: if applies { "Apply" } else { "Update" },
            subresource: place
                .subresource
                .filter(|name| *name == "status")
                .map(str::to_owned),
        };
        Ok(Target {
            kind,
            namespace: place.namespace.map(str::to_owned),
            name: place.name.to_owned(),
            subresource: place.subresource.map(str::to_owned),
            manager,
        })
    }

    fn check_patch_options(&self, applies: bool, is_named: bool) -> Result<(), Failure> {
        let (reason, field, message) = match (applies, is_named, self.query.contains_key("force")) {
            (true, false, _) => (
                "FieldValueRequired",
                "fieldManager",
                "Required value: is required for apply patch",
            ),
            (false, _, true) => (
                "FieldValueForbidden",
                "force",
                "Forbidden: may not be specified for non-apply patch",
            ),
            _ => return Ok(()),
        };
        let cause = Cause {
            reason,
            field: field.to_owned(),
            message: message.to_owned(),
        };
        Err(Failure::invalid("PatchOptions.meta.k8s.io", "", &[cause]))
    }

    fn write(
        &self,
        store: &mut Store,
        user: &User,
        deed: &Deed<'_>,
        target: &Target,
        ask: &Ask,
    ) -> Result<(StatusCode, Value), Failure> {
        let content = self.content.as_ref().map_err(Clone::clone)?;
        let kind = &target.kind;
        let is = |plural: &str, name: &str| {
            *kind.plural == *plural && kind.group.is_empty() && target.subresource.as_deref() == Some(name)
        };
        let outcome = match self.verb {
            "create" if is("pods", "binding") => {
                return Ok((StatusCode::CREATED, store.bind(target, content)?));
            }
            "create" if is("serviceaccounts", "token") => store.token(target, content)?,
            "get" if target.subresource.is_none() || target.subresource.as_deref() == Some("status") => {
                store.read(target)?
            }
            _ if target.subresource.as_deref().is_some_and(|name| name != "status") => {
                return Err(Failure::no_such_path());
            }
            "create" if target.name.is_empty() => {
                self.check_strictly(kind, content)?;
                return Ok((StatusCode::CREATED, store.create(target, content)?));
            }
            "update" => {
                self.check_strictly(kind, content)?;
                store.update(target, content)?
            }
            "patch" => {
                let format = Format::of(kind, &self.content_type)?;
                let force = self
                    .query
                    .get("force")
                    .is_some_and(|force| ["true", "1"].contains(&&**force));
                let creation = Deed {
                    verb: "create",
                    ..*deed
                };
                store.patch(target, format, force, content, |store| {
                    creation.check(store, user)
                })?
            }
            "delete" => store.delete(target, content)?,
            "deletecollection" => delete_all(store, target, content, ask)?,
            _ => return Err(Failure::no_such_path()),
        };
        Ok((StatusCode::OK, outcome))
    }

    /// `fieldValidation=Strict`.
    fn check_strictly(&self, kind: &Kind, content: &Value) -> Result<(), Failure> {
        if self
            .query
            .get("fieldValidation")
            .is_none_or(|how| how != "Strict")
        {
            return Ok(());
        }
        match &kind.unknown_fields(&kind.take(content))?[..] {
            [] => Ok(()),
            unknown => {
                let each: Vec<_> = unknown
                    .iter()
                    .map(|field| format!("unknown field \"{field}\""))
                    .collect();
                Err(Failure::bad_request(format!(
                    "strict decoding error: {}",
                    each.join(", ")
                )))
            }
        }
    }
}

fn delete_all(store: &mut Store, target: &Target, options: &Value, ask: &Ask) -> Result<Value, Failure> {
    let list = ask.list(store)?;
    for item in list["items"].as_array().into_iter().flatten() {
        let text = |field: &str| item["metadata"][field].as_str().map(str::to_owned);
        let one = Target {
            namespace: text("namespace"),
            name: text("name").unwrap_or_default(),
            ..target.clone()
        };
        store.delete(&one, options)?;
    }
    Ok(list)
}

/// Of a `Status` all of it.
fn partial_of(value: &Value) -> Value {
    match value["kind"] == "Status" {
        true => value.clone(),
        false => partial(value),
    }
}
