//! Lists, and watches.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::kinds::Kind;
use crate::selector::Selector;
use crate::server::Shared;
use crate::status::Failure;
use crate::store::Store;

/// A list or a watch that is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) kind: Kind,
    pub(crate) selector: Selector,
    pub(crate) query: BTreeMap<String, String>,
    /// Whether only metadata are wanted.
    pub(crate) partial: bool,
}

impl Ask {
    fn says(&self, parameter: &str) -> bool {
        self.query
            .get(parameter)
            .is_some_and(|value| ["true", "1"].contains(&&**value))
    }

    fn version(&self) -> Result<u64, Failure> {
        match self.query.get("resourceVersion").map_or("", String::as_str) {
            "" => Ok(0),
            text => text
                .parse()
                .map_err(|_| Failure::bad_request(format!("invalid resource version \"{text}\""))),
        }
    }

    fn shown(&self, object: &Value) -> Value {
        match self.partial {
            true => partial(object),
            false => object.clone(),
        }
    }

    /// The list, or one page of it.
    ///
    /// # Errors
    /// 410 where the page, or the very version asked for, is of a time that was forgotten.
    pub(crate) fn list(&self, store: &Store) -> Result<Value, Failure> {
        let page = self.query.get("continue").filter(|token| !token.is_empty());
        let (version, after) = match page {
            Some(token) => read_token(token)?,
            None => (store.version, String::new()),
        };
        let asked = self.version()?;
        let exact = self
            .query
            .get("resourceVersionMatch")
            .is_some_and(|how| how == "Exact");
        if version < store.compacted && page.is_some() {
            return Err(Failure::expired(
                "The provided continue parameter is too old to display a consistent list \
                result. You can start a new list without the continue parameter.",
            ));
        }
        if exact && asked < store.compacted {
            return Err(Failure::expired(
                "The resourceVersion for the provided list is too old.",
            ));
        }
        if exact && asked != store.version {
            return Err(Failure::bad_request("the stand-in lists its newest version only"));
        }
        let limit = self
            .query
            .get("limit")
            .and_then(|text| text.parse().ok())
            .filter(|limit| *limit > 0);
        // By the place of the last page's end, not by going through all that came before: lists can be long.
        let after = after.split_once('/').unwrap_or_default();
        let mut rest = store.list_behind(&self.kind, &self.selector, after.into());
        let mut last = None;
        let mut items = Vec::new();
        for (key, object) in rest.by_ref().take(limit.unwrap_or(usize::MAX)) {
            last = Some(key.place());
            items.push(object);
        }
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        let remaining = rest.count();
        if let Some([namespace, name]) = last.filter(|_| remaining > 0) {
            metadata["remainingItemCount"] = json!(remaining);
            metadata["continue"] = json!(write_token(version, &format!("{namespace}/{name}")));
        }
        Ok(self.list_of(&items, &metadata))
    }

    fn list_of(&self, items: &[&Value], metadata: &Value) -> Value {
        let items: Vec<_> = items.iter().map(|object| self.item(object)).collect();
        let (version, kind) = match self.partial {
            true => (
                "meta.k8s.io/v1".to_owned(),
                "PartialObjectMetadataList".to_owned(),
            ),
            false => (self.kind.api_version(), format!("{}List", self.kind.kind)),
        };
        json!({ "kind": kind, "apiVersion": version, "metadata": metadata, "items": items })
    }

    /// Built-in kinds leave out in a list what the list says already.
    fn item(&self, object: &Value) -> Value {
        let mut item = self.shown(&self.kind.show(object));
        if let Some(fields) = item
            .as_object_mut()
            .filter(|_| !self.partial && !self.kind.is_custom())
        {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        item
    }

    fn event(&self, what: &str, object: &Value) -> String {
        format!("{}\n", json!({ "type": what, "object": self.shown(object) }))
    }

    fn bookmark(&self, version: u64, ends_list: bool) -> String {
        let mut metadata = json!({ "resourceVersion": version.to_string(), "creationTimestamp": null });
        if ends_list {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object =
            json!({ "kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata });
        format!("{}\n", json!({ "type": "BOOKMARK", "object": object }))
    }

    /// The watch, as a stream of lines that ends when its time is over, or a test wants it to.
    ///
    /// # Errors
    /// Where the parameters make no sense together.
    pub(crate) fn watch(self, shared: &Arc<Shared>) -> Result<Response, Failure> {
        let watching = Watching::new(self, shared)?;
        let lines = stream::unfold(watching, |mut watching| async move {
            let line = watching.next().await?;
            Some((Ok::<_, Infallible>(line), watching))
        });
        let headers = [(header::CONTENT_TYPE, "application/json")];
        Ok((headers, Body::from_stream(lines)).into_response())
    }
}

/// An object's metadata alone.
pub(crate) fn partial(object: &Value) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"] })
}

struct Watching {
    ask: Ask,
    shared: Arc<Shared>,
    changed: tokio::sync::watch::Receiver<u64>,
    /// All changes up to this version are behind us.
    version: u64,
    ready: VecDeque<String>,
    cuts: u64,
    bookmarks: u64,
    deadline: Instant,
    over: bool,
}

impl Watching {
    fn new(ask: Ask, shared: &Arc<Shared>) -> Result<Self, Failure> {
        let since = ask.version()?;
        let initial = ask.says("sendInitialEvents");
        if initial
            && ask
                .query
                .get("resourceVersionMatch")
                .is_none_or(|how| how != "NotOlderThan")
        {
            return Err(Failure::bad_request(
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires \
                 setting resourceVersionMatch to NotOlderThan",
            ));
        }
        let seconds = ask.query.get("timeoutSeconds").and_then(|text| text.parse().ok());
        let changed = shared.changed();
        let state = shared.lock();
        let mut watching = Self {
            shared: shared.clone(),
            changed,
            version: since,
            ready: VecDeque::new(),
            cuts: state.cuts,
            bookmarks: state.bookmarks,
            deadline: Instant::now() + seconds.map_or(LONGEST, Duration::from_secs),
            over: false,
            ask,
        };
        if since == 0 || initial {
            watching.begin_with_all(&state.store, initial);
        } else if since < state.store.compacted {
            let message = format!("too old resource version: {since} ({})", state.store.compacted);
            watching
                .ready
                .push_back(watching.ask.event_of_failure(&Failure::expired(message)));
            watching.over = true;
        }
        drop(state);
        Ok(watching)
    }

    fn begin_with_all(&mut self, store: &Store, initial: bool) {
        let all = store.list(&self.ask.kind, &self.ask.selector);
        self.ready = all
            .map(|(_, object)| self.ask.event("ADDED", &self.ask.kind.show(object)))
            .collect();
        self.version = store.version;
        if initial && self.ask.says("allowWatchBookmarks") {
            self.ready.push_back(self.ask.bookmark(store.version, true));
        }
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if self.over {
                return None;
            }
            self.changed.mark_unchanged();
            self.look();
            if !self.ready.is_empty() || self.over {
                continue;
            }
            tokio::select! {
                changed = self.changed.changed() => self.over = changed.is_err(),
                () = sleep_until(self.deadline) => self.end_in_time(),
            }
        }
    }

    /// Takes what is new.
    fn look(&mut self) {
        let state = self.shared.lock();
        if state.cuts != self.cuts {
            self.over = true;
            return;
        }
        let at = state
            .store
            .history
            .partition_point(|change| change.version <= self.version);
        for change in &state.store.history[at..] {
            if let Some((what, object)) = change.seen(&self.ask.kind, &self.ask.selector) {
                self.ready.push_back(self.ask.event(what, &object));
            }
        }
        self.version = self.version.max(state.store.version);
        if state.bookmarks != self.bookmarks && self.ask.says("allowWatchBookmarks") {
            self.ready.push_back(self.ask.bookmark(self.version, false));
        }
        self.bookmarks = state.bookmarks;
    }

    fn end_in_time(&mut self) {
        if self.ask.says("allowWatchBookmarks") {
            self.ready.push_back(self.ask.bookmark(self.version, false));
        }
        self.over = true;
    }
}

impl Ask {
    fn event_of_failure(&self, failure: &Failure) -> String {
        format!("{}\n", json!({ "type": "ERROR", "object": failure.status() }))
    }
}

fn write_token(version: u64, after: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{version} {after}"))
}

fn read_token(token: &str) -> Result<(u64, String), Failure> {
    let read = || {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        let (version, after) = text.split_once(' ')?;
        Some((version.parse().ok()?, after.to_owned()))
    };
    read().ok_or_else(|| Failure::bad_request("continue key is not valid"))
}

/// A watch for which no time is asked.
const LONGEST: Duration = Duration::from_secs(1800);
