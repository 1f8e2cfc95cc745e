//! The player's side of the protocol, and what happens to a player who breaks it. A script plays the page; the
//! streamer is real.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use penstock_tests::browser::Browser;
use penstock_tests::stage::{Stage, TEST_SOURCE, frames_decoded, plays, status};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// A page that is a script.
struct Script {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    configured: bool,
}

impl Script {
    async fn connect(stage: &Stage) -> anyhow::Result<Self> {
        let (socket, _) = connect_async(stage.signalling()).await?;
        let configured = false;
        Ok(Self { socket, configured })
    }

    async fn say(&mut self, message: Value) -> anyhow::Result<()> {
        Ok(self.socket.send(Message::text(message.to_string())).await?)
    }

    /// The next message of the protocol; notices of ours are passed over, as stock pages do, and so is the config that
    /// comes with a streamer.
    async fn hear(&mut self) -> anyhow::Result<Value> {
        loop {
            match self.next().await? {
                Message::Text(text) => {
                    let message: Value = serde_json::from_str(&text)?;
                    let again = message["type"] == "config" && std::mem::replace(&mut self.configured, true);
                    if message["type"] != "matchmaker" && !again {
                        return Ok(message);
                    }
                }
                Message::Close(frame) => anyhow::bail!("closed with {frame:?}"),
                _ => {}
            }
        }
    }

    async fn next(&mut self) -> anyhow::Result<Message> {
        let next = tokio::time::timeout(Duration::from_secs(10), self.socket.next()).await;
        next.context("waiting for a message")?
            .context("the socket ended")?
            .context("reading the socket")
    }

    /// The code that the socket is closed with.
    async fn close_code(&mut self) -> anyhow::Result<u16> {
        loop {
            if let Message::Close(frame) = self.next().await? {
                return Ok(frame.map_or(1005, |frame| frame.code.into()));
            }
        }
    }

    /// Up to the offer.
    async fn join(&mut self) -> anyhow::Result<Value> {
        self.hear().await?;
        self.say(json!({ "type": "listStreamers" })).await?;
        let list = self.hear().await?;
        self.say(json!({ "type": "subscribe", "streamerId": list["ids"][0] }))
            .await?;
        self.hear().await
    }
}

/// Names and JSON types of a message's fields, in the order of their names.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, field)| (name.clone(), shape(field)))
            .collect(),
        Value::Array(items) => items.iter().take(1).map(shape).collect(),
        Value::String(_) => json!("text"),
        Value::Number(_) => json!("number"),
        Value::Bool(_) => json!("bool"),
        Value::Null => json!("null"),
    }
}

#[tokio::test]
async fn messages_come_in_the_protocols_order_with_its_keys_and_types() -> anyhow::Result<()> {
    let stage = Stage::start(1, &TEST_SOURCE).await?;
    let mut page = Script::connect(&stage).await?;
    let config = page.hear().await?;
    assert_eq!(config["type"], "config");
    assert_eq!(
        shape(&config),
        json!({
            "type": "text",
            "peerConnectionOptions": { "iceServers": [{ "urls": ["text"], "username": "text", "credential": "text" }] },
            "protocolVersion": "text",
        })
    );
    page.say(json!({ "type": "listStreamers" })).await?;
    let list = page.hear().await?;
    assert_eq!(
        (&list["type"], shape(&list)),
        (&json!("streamerList"), json!({ "type": "text", "ids": ["text"] }))
    );
    page.say(json!({ "type": "subscribe", "streamerId": list["ids"][0] }))
        .await?;
    let offer = page.hear().await?;
    assert_eq!(offer["type"], "offer");
    assert_eq!(
        shape(&offer),
        json!({ "type": "text", "playerId": "text", "sdp": "text" })
    );
    let sdp = offer["sdp"].as_str().unwrap_or_default();
    for line in [
        "m=video",
        "m=audio",
        "m=application",
        "a=setup:actpass",
        "a=sendonly",
        "H264/90000",
        "a=candidate:",
    ] {
        assert!(sdp.contains(line), "{line} in {sdp}");
    }
    let candidate = page.hear().await?;
    assert_eq!(candidate["type"], "iceCandidate");
    let shape_of_candidate = json!({ "candidate": "text", "sdpMid": "text", "sdpMLineIndex": "number" });
    assert_eq!(
        shape(&candidate),
        json!({ "type": "text", "playerId": "text", "candidate": shape_of_candidate })
    );
    page.say(json!({ "type": "layerPreference", "spatialLayer": 0, "temporalLayer": 0, "playerId": "" }))
        .await?;
    page.say(json!({ "type": "ping", "time": 1_795_233_569_733_u64 }))
        .await?;
    assert_eq!(
        page.hear().await?,
        json!({ "type": "pong", "time": 1_795_233_569_733_u64 })
    );
    Ok(())
}

#[tokio::test]
async fn what_breaks_the_protocol_is_named_or_closed_and_hurts_nobody_else() -> anyhow::Result<()> {
    let stage = Stage::start(2, &TEST_SOURCE).await?;
    let mut browser = Browser::start().await?;
    let mut bystander = browser.open(&stage.page("")).await?;
    plays(&mut bystander).await?;
    let connected = bystander.eval("penstock.times.connected").await?;

    for bad in [
        "{",
        "[]",
        "7",
        r#"{"type":7}"#,
        r#"{"type":"subscribe"}"#,
        r#"{"type":"answer","sdp":[]}"#,
    ] {
        let mut page = Script::connect(&stage).await?;
        page.hear().await?;
        page.socket.send(Message::text(bad)).await?;
        assert_eq!(page.hear().await?["type"], "error", "{bad}");
    }
    let mut early = Script::connect(&stage).await?;
    early.hear().await?;
    early.say(json!({ "type": "answer", "sdp": "v=0" })).await?;
    assert_eq!(early.hear().await?["type"], "error");
    drop(early);
    let mut large = Script::connect(&stage).await?;
    large.hear().await?;
    // The server may close before all of it is written.
    let _ = large.socket.send(Message::text("x".repeat(10 << 20))).await;
    if let Ok(code) = large.close_code().await {
        assert_eq!(code, 1009);
    }
    let mut wrong = Script::connect(&stage).await?;
    let offer = wrong.join().await?;
    assert_eq!(offer["type"], "offer");
    wrong
        .say(json!({ "type": "answer", "sdp": "this is no session description" }))
        .await?;
    assert_eq!(wrong.close_code().await?, 1011);

    // The bystander still has its first connection, and its picture still moves.
    assert_eq!(bystander.eval("penstock.times.connected").await?, connected);
    let frames = frames_decoded(&mut bystander).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(frames_decoded(&mut bystander).await? > frames + 15);
    Ok(())
}

#[tokio::test]
async fn data_channel_frames_that_are_cut_or_overlong_are_counted_and_the_stream_goes_on()
-> anyhow::Result<()> {
    let stage = Stage::start(1, &TEST_SOURCE).await?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("")).await?;
    plays(&mut page).await?;
    let send = "(bytes => penstock.pixelStreaming.webRtcController.sendMessageController
        .dataChannelSender.sendData(new Uint8Array(bytes).buffer))";
    for bytes in [
        "[60]",
        "[]",
        "[200,1,2]",
        "[51,255,255,1]",
        "new Array(65536).fill(0)",
    ] {
        page.eval(&format!("{send}({bytes})")).await?;
    }
    let streamer = stage.streamer().await?;
    penstock_tests::eventually("bad frames are counted", Duration::from_secs(5), async || {
        let metrics = reqwest::get(format!("http://{streamer}/metrics"))
            .await?
            .text()
            .await?;
        let line = "penstock_streamer_bad_messages_total{link=\"data_channel\"} ";
        let count = metrics
            .lines()
            .find_map(|l| l.strip_prefix(line)?.parse::<f64>().ok());
        Ok(count.filter(|count| *count >= 4.0))
    })
    .await?;
    assert_eq!(status(streamer).await?.players, 1);
    plays(&mut page).await
}

#[tokio::test]
async fn a_page_that_opens_data_channels_of_its_own_is_sent_away() -> anyhow::Result<()> {
    let stage = Stage::start(1, &TEST_SOURCE).await?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("")).await?;
    plays(&mut page).await?;
    page.eval("penstock.peer().createDataChannel('mine') && true")
        .await?;
    let streamer = stage.streamer().await?;
    penstock_tests::eventually("the page's seat is free", Duration::from_secs(5), async || {
        Ok((status(streamer).await?.players == 0).then_some(()))
    })
    .await?;
    page.until("penstock.state !== 'playing'", Duration::from_secs(10))
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_browser_is_not_let_into_a_streamer() -> anyhow::Result<()> {
    let stage = Stage::start(1, &TEST_SOURCE).await?;
    let answer = reqwest::Client::new()
        .get(format!("http://{}/session", stage.streamer().await?))
        .header("origin", "http://example.org")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .send()
        .await?;
    assert_eq!(answer.status(), 403);
    Ok(())
}

#[tokio::test]
async fn the_links_first_message_must_be_a_claim() -> anyhow::Result<()> {
    let stage = Stage::start(1, &TEST_SOURCE).await?;
    let link = format!("ws://{}/session", stage.streamer().await?);
    for bad in [
        json!({ "type": "ping", "time": 1 }),
        json!({ "type": "claim" }),
        json!(3),
    ] {
        let (socket, _) = connect_async(&link).await?;
        let configured = false;
        let mut script = Script { socket, configured };
        script.say(bad).await?;
        assert_eq!(script.close_code().await?, 1008);
    }
    Ok(())
}
