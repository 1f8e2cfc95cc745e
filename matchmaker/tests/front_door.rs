//! The real program between stand-in streamers and scripted players: what each sees, in which order.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is their verdict")]

mod access;
mod api;
mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Matchmaker, Player, StandIn};

#[tokio::test]
async fn a_player_sees_the_protocol_in_order() {
    let streamer = StandIn::start("demo").await;
    let door = Matchmaker::start(&[&streamer], &TURN).await;
    let mut ann = door.player("/signalling").await;

    let config = ann.next().await;
    assert_eq!(config["type"], "config");
    assert_eq!(config["protocolVersion"], "1.3.0");
    let void = &config["peerConnectionOptions"]["iceServers"][0];
    let name = void["username"].as_str().unwrap();
    assert!(
        name.starts_with("1:") && name.ends_with("@0.0.0.0"),
        "long over, and to nowhere: {name}"
    );

    let config = ann.next().await;
    assert_eq!(config["type"], "config");
    let server = &config["peerConnectionOptions"]["iceServers"][0];
    assert_eq!(server["urls"], json!(["turn:127.0.0.1:3478?transport=udp"]));
    assert!(server["credential"].is_string());
    let name = server["username"].as_str().unwrap();
    assert!(name.ends_with("@127.0.0.1"), "for its streamer only: {name}");
    ann.say(json!({"type": "listStreamers"})).await;
    let list = ann.next().await;
    assert_eq!(list, json!({"type": "streamerList", "ids": ["demo"]}));
    assert_eq!(ann.last_notice("matched")["streamerId"], "demo");
    assert_eq!(
        ann.last_notice("matched")["sessionId"].as_str().unwrap().len(),
        22
    );

    ann.say(json!({"type": "subscribe", "streamerId": "demo"})).await;
    let offer = ann.next().await;
    assert_eq!(keys(&offer), ["playerId", "sdp", "type"]);
    assert!(offer["sdp"].as_str().unwrap().starts_with("v=0"));
    let candidate = ann.next().await;
    assert_eq!(keys(&candidate), ["candidate", "playerId", "type"]);
    assert_eq!(
        keys(&candidate["candidate"]),
        ["candidate", "sdpMLineIndex", "sdpMid"]
    );
    assert!(candidate["candidate"]["sdpMLineIndex"].is_u64());

    ann.say(json!({"type": "layerPreference", "spatialLayer": 0, "temporalLayer": 0, "playerId": ""}))
        .await;
    ann.say(json!({"type": "answer", "sdp": "v=0 answer", "minBitrateBps": 0, "maxBitrateBps": 0, "playerId": "mallory"})).await;
    ann.say(json!({"type": "iceCandidate", "candidate": {"candidate": "candidate:1 1 udp 1 a.local 9 typ host", "sdpMid": "0", "sdpMLineIndex": 0, "usernameFragment": "abcd"}})).await;
    ann.say(json!({"type": "ping", "time": 1_893_456_000_123_u64}))
        .await;
    assert_eq!(
        ann.next().await,
        json!({"type": "pong", "time": 1_893_456_000_123_u64})
    );

    let heard = streamer.heard(5).await;
    let kinds: Vec<_> = heard
        .iter()
        .map(|message| message["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "claim",
            "playerConnected",
            "layerPreference",
            "answer",
            "iceCandidate"
        ]
    );
    let name = &heard[0]["playerId"];
    assert!(
        heard.iter().all(|message| message["playerId"] == *name),
        "{heard:?}"
    );
    assert_eq!(heard[0]["role"], "player");
    assert_eq!(offer["playerId"], *name);
}

#[tokio::test]
async fn the_second_player_waits_and_plays_when_the_first_leaves() {
    let streamer = StandIn::start("demo").await;
    let door = Matchmaker::start(&[&streamer], &[]).await;
    let ann = door.playing().await;
    let mut bob = door.player("/").await;
    let mut eve = door.player("/signalling").await;
    for (player, position) in [(&mut bob, 1), (&mut eve, 2)] {
        player.say(json!({"type": "listStreamers"})).await;
        player
            .notice(json!({"type": "matchmaker", "status": "queued", "position": position, "waiting": 2}))
            .await;
    }
    let left = Instant::now();
    ann.leave().await;
    bob.next_of("streamerList").await;
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
    eve.notice(json!({"type": "matchmaker", "status": "queued", "position": 1, "waiting": 1}))
        .await;
}

#[tokio::test]
async fn of_two_who_race_for_one_streamer_one_plays() {
    let streamer = StandIn::start("demo").await;
    let door = Matchmaker::start(&[&streamer], &[]).await;
    let (mut ann, mut bob) = tokio::join!(door.player("/signalling"), door.player("/signalling"));
    for player in [&mut ann, &mut bob] {
        player.say(json!({"type": "listStreamers"})).await;
    }
    let won = tokio::select! {
        _ = ann.next_of("streamerList") => true,
        _ = bob.next_of("streamerList") => false,
    };
    let loser = if won { &mut bob } else { &mut ann };
    loser
        .notice(json!({"type": "matchmaker", "status": "queued", "position": 1, "waiting": 1}))
        .await;
    assert_eq!(door.status().await["waiting"], 1);
}

#[tokio::test]
async fn a_claim_that_another_matchmaker_won_puts_the_player_back() {
    let streamer = StandIn::start("demo").await;
    streamer.refuse_next("busy");
    let door = Matchmaker::start(&[&streamer], &[]).await;
    let mut ann = door.player("/signalling").await;
    ann.say(json!({"type": "listStreamers"})).await;
    ann.next_of("streamerList").await;
    ann.notice(json!({"type": "matchmaker", "status": "queued", "position": 1, "waiting": 1}))
        .await;
}

#[tokio::test]
async fn when_a_streamer_dies_its_player_goes_on_elsewhere_over_the_same_socket() {
    let first = StandIn::start("first").await;
    let door = Matchmaker::start(&[&first], &[]).await;
    let mut ann = door.playing().await;
    let second = StandIn::start("second").await;
    door.agent.list(&[&first, &second]);
    first.die();
    ann.next_of("streamerIdChanged").await;
    assert!(ann.last_notice("ended")["reason"].is_string());
    let list = ann.next_of("streamerList").await;
    assert_eq!(list["ids"], json!(["second"]));
    ann.say(json!({"type": "subscribe", "streamerId": "second"}))
        .await;
    ann.next_of("offer").await;
}

#[tokio::test]
async fn a_viewer_watches_the_session_of_its_link() {
    let streamer = StandIn::start("demo").await;
    let door = Matchmaker::start(&[&streamer], &[]).await;
    let ann = door.playing().await;
    let session = ann.last_notice("matched")["sessionId"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut vic = door.player(&format!("/signalling?watch={session}")).await;
    vic.say(json!({"type": "listStreamers"})).await;
    vic.next_of("streamerList").await;
    let heard = streamer.heard(3).await;
    assert_eq!(
        (&heard[2]["role"], &heard[2]["sessionId"]),
        (&json!("viewer"), &json!(session))
    );

    let mut una = door.player("/signalling?watch=no-such-session").await;
    let no = una.next_of("subscribeFailed").await;
    assert!(
        no["message"].as_str().unwrap().contains("no such session"),
        "{no}"
    );
}

#[tokio::test]
async fn what_is_malformed_is_answered_and_hurts_nobody() {
    let streamer = StandIn::start("demo").await;
    let door = Matchmaker::start(&[&streamer], &[]).await;
    let mut ann = door.playing().await;
    let mut mallory = door.player("/signalling").await;
    for bad in [
        "",
        "{",
        "[]",
        "null",
        "7",
        "\"x\"",
        r#"{"type":7}"#,
        r#"{"type":"answer","sdp":7}"#,
    ] {
        mallory.say_text(bad).await;
        let error = mallory.next_of("error").await;
        assert!(
            error["message"].as_str().unwrap().contains("could not be read"),
            "{bad}: {error}"
        );
    }
    for (odd, kind) in [
        (json!({"type": "answer", "sdp": "v=0"}), "error"),
        (
            json!({"type": "iceCandidate", "candidate": {"candidate": ""}}),
            "error",
        ),
        (
            json!({"type": "subscribe", "streamerId": "x\ny".repeat(50)}),
            "subscribeFailed",
        ),
    ] {
        mallory.say(odd).await;
        mallory.next_of(kind).await;
    }
    mallory.say(json!({"type": "somethingNew", "with": [1, 2]})).await;
    mallory.say_text("{").await;
    mallory.say_text("{").await;
    assert_eq!(mallory.closed().await, Some(1008));
    assert!(
        door.metrics()
            .await
            .contains("penstock_matchmaker_bad_messages_total 10")
    );
    ann.still_plays().await;
}

#[tokio::test]
async fn long_binary_and_endless_messages_end_their_sender_only() {
    let streamer = StandIn::start("demo").await;
    let door = Matchmaker::start(&[&streamer], &[]).await;
    let mut ann = door.playing().await;

    let mut long = door.player("/signalling").await;
    assert_eq!(long.shout(10 << 20).await, Some(1009));
    let mut just_too_long = door.player("/signalling").await;
    assert_eq!(just_too_long.shout((64 << 10) + 1).await, Some(1009));

    let mut binary = door.player("/signalling").await;
    binary.say_bytes(b"\x00\x01").await;
    assert_eq!(binary.closed().await, Some(1003));

    let mut flood = door.player("/signalling").await;
    for _ in 0..500 {
        flood.say_text(r#"{"type":"listStreamers"}"#).await;
    }
    assert_eq!(flood.closed().await, Some(1008));
    ann.still_plays().await;
    assert_eq!(door.status().await["players"], 1);
}

#[tokio::test]
async fn a_crowd_waits_without_harm() {
    let streamer = StandIn::start("demo").await;
    let door = Matchmaker::start(&[&streamer], &[]).await;
    let mut ann = door.playing().await;
    let mut crowd = Vec::new();
    for _ in 0..60 {
        crowd.push(door.player("/signalling").await);
    }
    let last = crowd.last_mut().unwrap();
    last.notice(json!({"type": "matchmaker", "status": "queued", "position": 60, "waiting": 60}))
        .await;
    crowd.truncate(1);
    crowd[0]
        .notice(json!({"type": "matchmaker", "status": "queued", "position": 1, "waiting": 1}))
        .await;
    ann.still_plays().await;
}

#[tokio::test]
async fn the_page_and_the_operators_get_what_they_ask_for() {
    let streamer = StandIn::start("demo").await;
    let door = Matchmaker::start(&[&streamer], &[]).await;
    let ann = door.playing().await;

    let page = door.get("/").await;
    assert!(
        page.0.contains("200 OK") && page.1.contains("the page"),
        "{page:?}"
    );
    for header in [
        "cache-control: no-cache",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
    ] {
        assert!(page.0.to_lowercase().contains(header), "{header}: {}", page.0);
    }
    assert!(
        page.0
            .to_lowercase()
            .contains("content-security-policy: default-src 'self'")
    );
    let asset = door.get("/assets/player.js").await;
    assert!(asset.0.contains("immutable"), "{}", asset.0);
    for missing in ["/assets/none.js", "/../Cargo.toml", "/nothing"] {
        assert!(door.get(missing).await.0.contains("404"), "{missing}");
    }
    assert!(door.get("/signalling").await.0.contains("426"));
    assert!(door.get("/healthz").await.0.contains("200"));
    assert!(door.get("/readyz").await.0.contains("200"));
    let status = door.status().await;
    assert_eq!(
        keys(&status["streamers"][0]),
        ["away", "players", "state", "streamerId", "viewers"]
    );
    assert!(!status.to_string().contains("127.0.0.1"), "no address: {status}");
    let metrics = door.metrics().await;
    for line in [
        "penstock_matchmaker_players 1",
        r#"penstock_matchmaker_claims_total{outcome="claimed"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    ann.leave().await;
}

#[tokio::test]
async fn told_to_end_it_says_goodbye() {
    let streamer = StandIn::start("demo").await;
    let mut door = Matchmaker::start(&[&streamer], &[]).await;
    let mut ann = door.playing().await;
    door.terminate();
    assert_eq!(ann.closed().await, Some(1012));
    assert!(door.ended().await.success());
}

#[tokio::test]
async fn without_a_page_it_says_how_to_build_one() {
    let empty = tempfile::tempdir().unwrap();
    let output = support::run(&["--page", empty.path().to_str().unwrap()]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("make player"), "{said}");
}

#[tokio::test]
async fn until_the_agent_is_heard_it_is_not_ready() {
    let door = Matchmaker::start_alone().await;
    let (head, body) = door.get("/readyz").await;
    assert!(head.contains("503") && body.contains("agent"), "{head} {body}");
    let mut ann: Player = door.player("/signalling").await;
    ann.notice(json!({"type": "matchmaker", "status": "queued", "position": 1, "waiting": 1}))
        .await;
}

const TURN: [&str; 4] = [
    "--turn-url",
    "turn:127.0.0.1:3478?transport=udp",
    "--turn-secret",
    "north",
];

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// Waits until `what` is so.
async fn eventually(what: impl AsyncFn() -> bool) {
    let so = async {
        while !what().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, so)
        .await
        .expect("it should come to that");
}
