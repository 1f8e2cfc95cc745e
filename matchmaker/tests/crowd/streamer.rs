//! A streamer without a picture. Who may be on it is decided by the real streamer's own code.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use penstock_core::wire::link::{
    Claim, Claimed, FromStreamer, PlayerConnected, Refused, RefusedReason, ToStreamer,
};
use penstock_core::wire::returning::ReturnToken;
use penstock_core::wire::signalling::{Offer, parse};
use penstock_core::wire::status::StreamerStatus;
use penstock_streamer::session::{Decision, Gone, Limits, LinkId, Session};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What all streamers have decided.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// For every claim that was granted while others were there: how long its player had waited, and how long each of
    /// the others.
    pub(crate) contested: Vec<(u64, Vec<u64>)>,
    /// Claims granted.
    pub(crate) granted: usize,
    /// What should not be.
    pub(crate) wrong: Vec<String>,
}

/// A streamer, until it dies.
pub(crate) struct Decider {
    pub(crate) address: SocketAddr,
    pub(crate) name: String,
    pub(crate) status: watch::Receiver<StreamerStatus>,
    death: CancellationToken,
}

impl Decider {
    /// One that takes one player at a time. One that is not `ready` takes nobody yet.
    pub(crate) async fn start(name: &str, ready: bool, ledger: Arc<Mutex<Ledger>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut session = Session::new(Limits {
            players: 1,
            viewers: None,
            return_grace: Duration::from_secs(30),
        });
        let _ = session.set_ready(ready);
        let (values, status) = watch::channel(status_of(name, &session));
        let (asks, asked) = mpsc::unbounded_channel();
        let death = CancellationToken::new();
        let owner = Owner {
            name: name.to_owned(),
            session,
            ledger,
            waiting: BTreeMap::new(),
            seated: BTreeSet::new(),
            status: values,
        };
        let shared = Shared {
            asks,
            status: status.clone(),
            death: death.clone(),
            next: Arc::default(),
        };
        let app = Router::new()
            .route(
                "/events",
                get(async |State(shared): State<Shared>| penstock_shell::events::sse(shared.status)),
            )
            .route("/session", get(session_socket))
            .with_state(shared);
        let until = death.clone();
        tokio::spawn(async move {
            tokio::select! {
                served = axum::serve(listener, app) => served.unwrap(),
                () = owner.run(asked) => {}
                () = until.cancelled() => {}
            }
        });
        let name = name.to_owned();
        Self {
            address,
            name,
            status,
            death,
        }
    }

    /// Everything ends without a word.
    pub(crate) fn die(&self) {
        self.death.cancel();
    }
}

impl Drop for Decider {
    fn drop(&mut self) {
        self.die();
    }
}

#[derive(Clone)]
struct Shared {
    asks: mpsc::UnboundedSender<Ask>,
    status: watch::Receiver<StreamerStatus>,
    death: CancellationToken,
    next: Arc<Mutex<u64>>,
}

enum Ask {
    Claim(LinkId, Claim, mpsc::UnboundedSender<Decision>),
    Gone(LinkId, Gone),
}

/// The one task that owns the session, as the real streamer has one.
struct Owner {
    name: String,
    session: Session,
    ledger: Arc<Mutex<Ledger>>,
    waiting: BTreeMap<LinkId, (Claim, mpsc::UnboundedSender<Decision>)>,
    seated: BTreeSet<LinkId>,
    status: watch::Sender<StreamerStatus>,
}

impl Owner {
    async fn run(mut self, mut asked: mpsc::UnboundedReceiver<Ask>) {
        let mut tokens = 0_u64;
        loop {
            let due = self.session.poll_timeout();
            let decisions = tokio::select! {
                Some(ask) = asked.recv() => match ask {
                    Ask::Claim(link, claim, answer) => {
                        tokens += 1;
                        let token = ReturnToken::new(&format!("{}-{tokens}", self.name), "secret").unwrap();
                        self.waiting.insert(link, (claim.clone(), answer));
                        self.session.claim(Instant::now(), link, claim, token)
                    }
                    Ask::Gone(link, how) => {
                        self.waiting.remove(&link);
                        self.seated.remove(&link);
                        self.session.gone(Instant::now(), link, how, true)
                    }
                },
                () = at(due) => self.session.timeout(Instant::now()),
            };
            self.note(&decisions);
            for decision in decisions {
                self.tell(decision);
            }
            let status = status_of(&self.name, &self.session);
            self.status
                .send_if_modified(|old| std::mem::replace(old, status.clone()) != status);
        }
    }

    fn note(&mut self, decisions: &[Decision]) {
        let mut ledger = self.ledger.lock().unwrap();
        let waited = |link: &LinkId| self.waiting.get(link).map(|(claim, _)| claim.waited_ms);
        let beaten: Vec<_> = decisions
            .iter()
            .filter_map(|decision| match decision {
                Decision::Refuse(link, RefusedReason::Busy) => waited(link),
                _ => None,
            })
            .collect();
        for decision in decisions {
            if let Decision::Grant(link, _) = decision {
                self.seated.insert(*link);
                ledger.granted += 1;
                if !beaten.is_empty() {
                    ledger.contested.push((waited(link).unwrap(), beaten.clone()));
                }
            }
        }
        if self.seated.len() > 1 || self.session.players() > 1 {
            ledger
                .wrong
                .push(format!("{} has players {:?}", self.name, self.seated));
        }
    }

    fn tell(&mut self, decision: Decision) {
        let (Decision::Grant(link, _) | Decision::Refuse(link, _) | Decision::End(link, ..)) = &decision
        else {
            panic!("nobody comes back here: {decision:?}");
        };
        if let Some((_, answer)) = self.waiting.remove(link) {
            let _ = answer.send(decision);
        }
    }
}

async fn session_socket(State(shared): State<Shared>, upgrade: WebSocketUpgrade) -> Response {
    upgrade
        .on_upgrade(async move |mut socket| {
            let death = shared.death.clone();
            death.run_until_cancelled(carry(&shared, &mut socket)).await;
        })
        .into_response()
}

async fn carry(shared: &Shared, socket: &mut WebSocket) {
    let Some(ToStreamer::Claim(claim)) = hear(socket).await else {
        return;
    };
    let link = {
        let mut next = shared.next.lock().unwrap();
        *next += 1;
        LinkId(*next)
    };
    let (answer, mut answered) = mpsc::unbounded_channel();
    let session_id = claim.session_id.clone();
    let _ = shared.asks.send(Ask::Claim(link, claim, answer));
    let mut gone = Gone::Lost;
    // A matchmaker may hang up before it has its answer.
    let decision = tokio::select! {
        decision = answered.recv() => decision,
        _ = hear(socket) => None,
    };
    match decision {
        Some(Decision::Grant(_, token)) => {
            let streamer_id = shared.status.borrow().streamer_id.clone();
            let claimed = Claimed {
                streamer_id,
                session_id,
                return_token: Some(token),
                resumed: false,
                shared: false,
            };
            say(socket, &FromStreamer::Claimed(claimed)).await;
            while let Some(message) = hear(socket).await {
                match message {
                    ToStreamer::PlayerConnected(PlayerConnected { player_id, .. }) => {
                        let sdp = "v=0\r\n".to_owned();
                        say(socket, &FromStreamer::Offer(Offer { player_id, sdp })).await;
                    }
                    ToStreamer::Goodbye(said) => {
                        gone = if said.for_good {
                            Gone::ForGood
                        } else {
                            Gone::Closed
                        };
                    }
                    _ => {}
                }
            }
        }
        Some(Decision::Refuse(_, reason)) => {
            say(socket, &FromStreamer::Refused(Refused { reason })).await;
        }
        _ => {}
    }
    let _ = shared.asks.send(Ask::Gone(link, gone));
}

async fn hear(socket: &mut WebSocket) -> Option<ToStreamer> {
    loop {
        match socket.recv().await?.ok()? {
            Message::Text(text) => return Some(parse(&text).unwrap()),
            Message::Close(_) => return None,
            _ => {}
        }
    }
}

async fn say(socket: &mut WebSocket, message: &FromStreamer) {
    let text = serde_json::to_string(message).unwrap();
    let _ = socket.send(Message::text(text)).await;
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

fn status_of(name: &str, session: &Session) -> StreamerStatus {
    let stream: penstock_core::units::StreamSize = "1280x720@30".parse().unwrap();
    StreamerStatus {
        streamer_id: name.parse().unwrap(),
        state: session.state(),
        application: None,
        session_id: session.session_id().cloned(),
        players: session.players(),
        away: session.away(),
        max_players: 1,
        seats: session.seat_names(),
        viewers: session.viewers(),
        units: stream.units(),
        stream,
        media_addresses: vec![[127, 0, 0, 1].into()],
    }
}
