//! A stand-in streamer: `/events` and `/session` as penstock-core writes them down, and a canned offer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use penstock_core::wire::status::StreamerStatus;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::PATIENCE;

/// A streamer that takes one player at a time.
pub(crate) struct StandIn {
    pub(crate) address: SocketAddr,
    pub(crate) name: String,
    inner: Inner,
    server: JoinHandle<()>,
}

#[derive(Clone)]
struct Inner {
    status: Arc<watch::Sender<StreamerStatus>>,
    heard: Arc<watch::Sender<Vec<Value>>>,
    refusal: Arc<Mutex<Option<String>>>,
    death: CancellationToken,
    ended: Arc<Notify>,
    refuses_to_end: Arc<Mutex<bool>>,
}

impl StandIn {
    pub(crate) async fn start(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let status = json!({
            "streamerId": name, "state": "free", "players": 0, "viewers": 0,
            "stream": {"width": 1280, "height": 720, "fps": 30}, "units": 3, "mediaAddresses": ["127.0.0.1"],
        });
        let inner = Inner {
            status: Arc::new(watch::Sender::new(serde_json::from_value(status).unwrap())),
            heard: Arc::default(),
            refusal: Arc::default(),
            death: CancellationToken::new(),
            ended: Arc::default(),
            refuses_to_end: Arc::default(),
        };
        let app = Router::new()
            .route("/events", get(events))
            .route("/session", get(session))
            .route("/session/{id}", delete(end))
            .with_state(inner.clone());
        let death = inner.death.clone();
        let server = tokio::spawn(async move {
            tokio::select! {
                served = axum::serve(listener, app) => served.unwrap(),
                () = death.cancelled() => {}
            }
        });
        let name = name.to_owned();
        Self {
            address,
            name,
            inner,
            server,
        }
    }

    /// All that was said on its links, once there are `count` messages.
    pub(crate) async fn heard(&self, count: usize) -> Vec<Value> {
        let mut heard = self.inner.heard.subscribe();
        let enough = heard.wait_for(|heard| heard.len() >= count);
        let heard = tokio::time::timeout(PATIENCE, enough).await;
        heard
            .expect("the streamer should have heard more")
            .unwrap()
            .clone()
    }

    /// From now on it streams this.
    pub(crate) fn streams(&self, application: &str) {
        self.inner
            .set(|status| status["application"] = json!(application));
    }

    /// Says that it can't, whoever wants to end a session.
    pub(crate) fn refuse_to_end(&self) {
        *self.inner.refuses_to_end.lock().unwrap() = true;
    }

    pub(crate) fn refuse_next(&self, reason: &str) {
        *self.inner.refusal.lock().unwrap() = Some(reason.to_owned());
    }

    /// Everything ends without a word.
    pub(crate) fn die(&self) {
        self.inner.death.cancel();
        self.server.abort();
    }
}

async fn events(State(inner): State<Inner>) -> Response {
    let death = inner.death.clone();
    let (ours, theirs) = watch::channel(inner.status.borrow().clone());
    let mut source = inner.status.subscribe();
    tokio::spawn(async move {
        loop {
            let status = source.borrow_and_update().clone();
            if ours.send(status).is_err() {
                return;
            }
            tokio::select! {
                changed = source.changed() => if changed.is_err() { return },
                () = death.cancelled() => return,
            }
        }
    });
    penstock_shell::events::sse(theirs).into_response()
}

async fn session(State(inner): State<Inner>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async move |mut socket| {
        let death = inner.death.clone();
        let ended = inner.ended.clone();
        tokio::select! {
            () = serve(&inner, &mut socket) => {}
            () = ended.notified() => {
                let why = "an operator ended the session";
                say(&mut socket, &json!({"type": "disconnectPlayer", "playerId": "p", "reason": why})).await;
                inner.free();
            }
            () = death.cancelled() => {}
        }
    })
}

async fn end(State(inner): State<Inner>, Path(id): Path<String>) -> StatusCode {
    let session = inner.status.borrow().session_id.clone();
    if session.is_none_or(|session| session.as_str() != id) {
        return StatusCode::NOT_FOUND;
    }
    if *inner.refuses_to_end.lock().unwrap() {
        return StatusCode::INTERNAL_SERVER_ERROR;
    }
    inner.ended.notify_waiters();
    StatusCode::NO_CONTENT
}

async fn serve(inner: &Inner, socket: &mut WebSocket) {
    let Some(claim) = hear(inner, socket).await else {
        return;
    };
    assert_eq!(claim["type"], "claim");
    let viewer = claim["role"] == "viewer";
    if let Some(reason) = inner.decide(&claim, viewer) {
        say(socket, &json!({"type": "refused", "reason": reason})).await;
        return;
    }
    let streamer_id = inner.status.borrow().streamer_id.clone();
    say(
        socket,
        &json!({"type": "claimed", "streamerId": streamer_id, "sessionId": claim["sessionId"]}),
    )
    .await;
    while let Some(message) = hear(inner, socket).await {
        if message["type"] == "playerConnected" {
            let player = &message["playerId"];
            say(
                socket,
                &json!({"type": "offer", "playerId": player, "sdp": "v=0\r\n"}),
            )
            .await;
            let candidate = json!({
                "candidate": "candidate:1 1 udp 2122260223 127.0.0.1 9 typ host", "sdpMid": "0", "sdpMLineIndex": 0,
            });
            say(
                socket,
                &json!({"type": "iceCandidate", "playerId": player, "candidate": candidate}),
            )
            .await;
        }
    }
    if !viewer {
        inner.free();
    }
}

impl Inner {
    /// The streamer's own yes or no.
    fn decide(&self, claim: &Value, viewer: bool) -> Option<String> {
        if let Some(reason) = self.refusal.lock().unwrap().take() {
            return Some(reason);
        }
        let status = serde_json::to_value(self.status.borrow().clone()).unwrap();
        if viewer {
            return (status["sessionId"] != claim["sessionId"]).then(|| "noSuchSession".into());
        }
        if status["state"] != "free" {
            return Some("busy".into());
        }
        self.set(|status| {
            status["state"] = json!("busy");
            status["players"] = json!(1);
            status["sessionId"] = claim["sessionId"].clone();
        });
        None
    }

    fn free(&self) {
        self.set(|status| {
            status["state"] = json!("free");
            status.as_object_mut().unwrap().remove("sessionId");
        });
    }

    fn set(&self, change: impl FnOnce(&mut Value)) {
        let mut status = serde_json::to_value(self.status.borrow().clone()).unwrap();
        change(&mut status);
        self.status.send_replace(serde_json::from_value(status).unwrap());
    }
}

async fn hear(inner: &Inner, socket: &mut WebSocket) -> Option<Value> {
    loop {
        match socket.recv().await?.ok()? {
            Message::Text(text) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                inner.heard.send_modify(|heard| heard.push(message.clone()));
                return Some(message);
            }
            Message::Close(_) => return None,
            _ => {}
        }
    }
}

async fn say(socket: &mut WebSocket, message: &Value) {
    let _ = socket.send(Message::text(message.to_string())).await;
}
