//! A scripted player, which plays, leaves and comes again as chance will have it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// What everybody sees, by number.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) people: BTreeMap<usize, Doing>,
    /// Who plays on which streamer.
    playing: BTreeMap<String, usize>,
    /// How often anybody was matched, and how often sent elsewhere by a streamer's death.
    pub(crate) matched: usize,
    pub(crate) moved: usize,
    /// What should not be.
    pub(crate) wrong: Vec<String>,
}

/// What one does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Doing {
    Coming,
    /// At this door, with the place and the length of the queue as it was told last.
    Waiting {
        door: usize,
        place: Option<(u64, u64)>,
    },
    Playing {
        door: usize,
        streamer: String,
        session: String,
    },
    Gone,
}

pub(crate) struct Person {
    number: usize,
    doors: Vec<SocketAddr>,
    chance: StdRng,
    seen: Arc<Mutex<Seen>>,
    /// While it is true, it leaves and comes again.
    storm: watch::Receiver<bool>,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

impl Person {
    /// Starts one. A word on the channel makes it go for good.
    pub(crate) fn start(
        number: usize,
        doors: &[SocketAddr],
        seed: u64,
        seen: Arc<Mutex<Seen>>,
        storm: watch::Receiver<bool>,
    ) -> (mpsc::Sender<()>, JoinHandle<()>) {
        let chance = StdRng::seed_from_u64(seed.wrapping_add(u64::try_from(number).unwrap()));
        let doors = doors.to_vec();
        let person = Self {
            number,
            doors,
            chance,
            seen,
            storm,
        };
        let (go, told) = mpsc::channel(1);
        (go, tokio::spawn(person.run(told)))
    }

    async fn run(mut self, mut told: mpsc::Receiver<()>) {
        loop {
            self.does(Doing::Coming);
            let pause = Duration::from_millis(self.chance.random_range(0..200));
            tokio::time::sleep(pause).await;
            let door = self.chance.random_range(0..self.doors.len());
            let (mut socket, _) = connect_async(format!("ws://{}/signalling", self.doors[door]))
                .await
                .unwrap();
            say(&mut socket, json!({ "type": "listStreamers" })).await;
            self.does(Doing::Waiting { door, place: None });
            let for_good = self.stay(door, &mut socket, &mut told).await;
            self.does(if for_good { Doing::Gone } else { Doing::Coming });
            let _ = socket.close(None).await;
            if for_good {
                return;
            }
        }
    }

    /// Until it leaves. Whether it goes for good.
    async fn stay(&mut self, door: usize, socket: &mut Socket, told: &mut mpsc::Receiver<()>) -> bool {
        // Most wait for as long as it takes.
        let patience = self.chance.random_range(0..8_000);
        let mut leaves_at = Instant::now() + Duration::from_millis(patience);
        loop {
            let storm = *self.storm.borrow();
            tokio::select! {
                _ = told.recv() => return true,
                () = sleep_until(leaves_at), if storm => return false,
                // So that the storm's end is noticed.
                _ = self.storm.changed() => {}
                frame = socket.next() => match frame {
                    Some(Ok(Message::Text(text))) => {
                        let message: Value = serde_json::from_str(&text).unwrap();
                        if self.hear(door, socket, &message).await {
                            let plays = self.chance.random_range(20..800);
                            leaves_at = Instant::now() + Duration::from_millis(plays);
                        }
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => {
                        let why = format!("player {} was lost: {frame:?}", self.number);
                        self.seen.lock().unwrap().wrong.push(why);
                        return true;
                    }
                    Some(Ok(_)) => {}
                }
            }
        }
    }

    /// Whether it begins to play.
    async fn hear(&mut self, door: usize, socket: &mut Socket, message: &Value) -> bool {
        let text = |key: &str| message[key].as_str().unwrap_or_default().to_owned();
        match (message["type"].as_str().unwrap(), message["status"].as_str()) {
            ("matchmaker", Some("queued")) => {
                let place = message["position"].as_u64().zip(message["waiting"].as_u64());
                self.does(Doing::Waiting { door, place });
            }
            ("matchmaker", Some("matched")) => {
                self.does(Doing::Playing {
                    door,
                    streamer: text("streamerId"),
                    session: text("sessionId"),
                });
                return true;
            }
            ("matchmaker", Some("ended")) => {
                self.seen.lock().unwrap().moved += 1;
                self.does(Doing::Waiting { door, place: None });
            }
            ("streamerList", _) => {
                say(
                    socket,
                    json!({ "type": "subscribe", "streamerId": message["ids"][0] }),
                )
                .await;
            }
            ("offer", _) => say(socket, json!({ "type": "answer", "sdp": "v=0" })).await,
            _ => {}
        }
        false
    }

    fn does(&self, doing: Doing) {
        let mut seen = self.seen.lock().unwrap();
        let before = seen.people.insert(self.number, doing.clone());
        if let Some(Doing::Playing { streamer, .. }) = before {
            seen.playing.remove(&streamer);
        }
        if let Doing::Playing { streamer, .. } = doing {
            seen.matched += 1;
            if let Some(other) = seen.playing.insert(streamer.clone(), self.number) {
                let why = format!("{streamer} has the players {other} and {}", self.number);
                seen.wrong.push(why);
            }
        }
    }
}

async fn say(socket: &mut Socket, message: Value) {
    let _ = socket.send(Message::text(message.to_string())).await;
}
