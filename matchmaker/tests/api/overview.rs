//! The overview as programs get it.

use std::time::{Duration, Instant};

use reqwest::{Client, Response};
use serde_json::{Value, json};

use super::Api;
use crate::eventually;
use crate::support::{Matchmaker, PATIENCE, StandIn};

#[tokio::test]
async fn it_is_as_the_document_says_and_names_no_session_and_no_address() {
    let (one, two) = (StandIn::start("one").await, StandIn::start("two").await);
    let door = Matchmaker::start(&[&one, &two], &[]).await;
    let api = Api::of(&door).await;
    eventually(async || {
        let shown = api.ok("GET", "/overview.json", "", 200).await;
        states(&shown) == ["free", "free"]
    })
    .await;
    let ann = door.playing().await;
    let session = ann.last_notice("matched")["sessionId"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut bob = door.playing().await;
    let mut cora = door.player("/signalling").await;
    cora.notice(json!({"type": "matchmaker", "status": "queued", "position": 1, "waiting": 1}))
        .await;
    eventually(async || {
        let shown = api.ok("GET", "/overview.json", "", 200).await;
        states(&shown) == ["playing", "playing"]
    })
    .await;
    let answer = api.ask("GET", "/overview.json", "").await;
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let shown = answer.json();
    assert_eq!(shown["queue"], json!({ "waiting": 1, "longestWaitSeconds": 0 }));
    assert_eq!(shown["nodes"][0]["gpus"][0]["uuid"], "CPU-0");
    for secret in [&session, "127.0.0.1", "localhost"] {
        assert!(!answer.body.contains(secret), "{secret}: {answer:?}");
    }
    bob.still_plays().await;
    ann.leave().await;
}

#[tokio::test]
async fn events_begin_with_the_whole_and_tell_what_changed() {
    let streamer = StandIn::start("one").await;
    let mut door = Matchmaker::start(&[&streamer], &[]).await;
    let mut events = Events::open(&door).await;
    assert_eq!(states(&events.next().await), ["free"]);
    let ann = door.playing().await;
    let began = Instant::now();
    while states(&events.next().await) != ["playing"] {}
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    ann.leave().await;
    while states(&events.next().await) != ["free"] {}
    // Nobody is waited for at the end.
    door.terminate();
    assert!(events.ended().await);
    assert!(door.ended().await.success());
}

#[tokio::test]
async fn only_so_many_listen_and_who_goes_makes_room() {
    let streamer = StandIn::start("one").await;
    let door = Matchmaker::start(&[&streamer], &["--new-per-address", "0"]).await;
    let mut listeners = Vec::new();
    for _ in 0..penstock_matchmaker::overview::LISTENERS {
        listeners.push(Events::open(&door).await);
    }
    let full = Events::ask(&door).await;
    assert_eq!(full.status(), 503);
    assert_eq!(full.headers()["retry-after"], "5");
    listeners.pop();
    eventually(async || Events::ask(&door).await.status() == 200).await;
}

fn states(shown: &Value) -> Vec<&str> {
    let nodes = shown["nodes"].as_array().unwrap().iter();
    let gpus = nodes.flat_map(|node| node["gpus"].as_array().unwrap());
    gpus.flat_map(|gpu| gpu["slices"].as_array().unwrap())
        .map(|slice| slice["state"].as_str().unwrap())
        .collect()
}

struct Events {
    answer: Response,
    pending: String,
}

impl Events {
    async fn ask(door: &Matchmaker) -> Response {
        let url = format!("http://{}/overview/events", door.address());
        Client::new().get(url).send().await.unwrap()
    }

    async fn open(door: &Matchmaker) -> Self {
        let answer = Self::ask(door).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let pending = String::new();
        Self { answer, pending }
    }

    /// The next state.
    async fn next(&mut self) -> Value {
        loop {
            if let Some((event, rest)) = self.pending.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.pending = rest;
                if let Some(data) = event.strip_prefix("data: ") {
                    return serde_json::from_str(data).unwrap();
                }
                continue;
            }
            let part = tokio::time::timeout(PATIENCE, self.answer.chunk()).await;
            let part = part.expect("no event").unwrap().expect("it ended");
            self.pending += std::str::from_utf8(&part).unwrap();
        }
    }

    /// Whether it ends as it should.
    async fn ended(&mut self) -> bool {
        let end = async { while let Ok(Some(_)) = self.answer.chunk().await {} };
        tokio::time::timeout(PATIENCE, end).await.is_ok()
    }
}
