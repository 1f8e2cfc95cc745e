//! Two matchmakers before one streamer, which alone decides. Scripts play the pages.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use penstock_tests::browser::Browser;
use penstock_tests::programs::{Program, free_tcp, ready};
use penstock_tests::stage::{Stage, TEST_SOURCE, status};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

#[tokio::test]
async fn of_two_who_race_through_two_matchmakers_one_plays_and_the_other_keeps_its_place()
-> anyhow::Result<()> {
    let (stage, doors, _second) = two_doors().await?;
    let streamer = stage.streamer().await?;
    for round in 0..5 {
        let (ann, bob) = tokio::join!(Script::connect(doors[0]), Script::connect(doors[1]));
        let (mut ann, mut bob) = (ann?, bob?);
        let won = tokio::select! {
            matched = ann.notice("matched") => matched.map(|_| true)?,
            matched = bob.notice("matched") => matched.map(|_| false)?,
        };
        let (winner, mut loser) = if won { (ann, bob) } else { (bob, ann) };
        let place = loser.notice("queued").await?;
        assert_eq!(place["position"], 1, "round {round}");
        assert_eq!(status(streamer).await?.players, 1);
        winner.leave().await?;
        // It asks again by itself, from its old place.
        loser.notice("matched").await?;
        assert_eq!(status(streamer).await?.players, 1);
        loser.leave().await?;
        penstock_tests::eventually("a free streamer", Duration::from_secs(5), async || {
            Ok((status(streamer).await?.players == 0).then_some(()))
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_freed_streamer_goes_to_the_one_who_has_waited_longest_at_either_matchmaker() -> anyhow::Result<()>
{
    let (_stage, doors, _second) = two_doors().await?;
    let mut playing = Script::connect(doors[0]).await?;
    playing.notice("matched").await?;
    // They come in turns to the two doors; whoever comes first is to play first.
    let mut waiting = Vec::new();
    for n in 0..4 {
        let mut next = Script::connect(doors[(n + 1) % 2]).await?;
        next.notice("queued").await?;
        waiting.push(next);
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    for (n, mut next) in waiting.into_iter().enumerate() {
        playing.leave().await?;
        next.notice("matched")
            .await
            .with_context(|| format!("the one who came as number {n} is next"))?;
        playing = next;
    }
    Ok(())
}

#[tokio::test]
async fn the_page_says_how_long_it_may_take_once_that_is_known() -> anyhow::Result<()> {
    let stage = Stage::start(1, &TEST_SOURCE).await?;
    let mut playing = Script::connect(stage.web()).await?;
    playing.notice("matched").await?;
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let mut next = Script::connect(stage.web()).await?;
        next.notice("queued").await?;
        waiting.push(next);
    }
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("")).await?;
    page.until(
        "document.body.innerText.includes('number 5 of 5.')",
        Duration::from_secs(10),
    )
    .await?;
    let unknown = page.eval("document.body.innerText.includes('should take')");
    assert_eq!(unknown.await?, false);
    for mut next in waiting.drain(..3) {
        tokio::time::sleep(Duration::from_millis(300)).await;
        playing.leave().await?;
        next.notice("matched").await?;
        playing = next;
    }
    page.until(
        "document.body.innerText.includes('number 2 of 2. It should take about 10 seconds.')",
        Duration::from_secs(5),
    )
    .await?;
    Ok(())
}

async fn two_doors() -> anyhow::Result<(Stage, [SocketAddr; 2], Program)> {
    let stage = Stage::start(1, &TEST_SOURCE).await?;
    let other = free_tcp()?;
    let second = stage.another_matchmaker(other)?;
    ready(&format!("http://{other}/readyz")).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let doors = [stage.web(), other];
    Ok((stage, doors, second))
}

/// A page that is a script, and never comes back.
struct Script {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// What it was told and did not ask for yet.
    told: Vec<Value>,
}

impl Script {
    async fn connect(door: SocketAddr) -> anyhow::Result<Self> {
        let (mut socket, _) = connect_async(format!("ws://{door}/signalling")).await?;
        let list = json!({ "type": "listStreamers" }).to_string();
        socket.send(Message::text(list)).await?;
        let told = Vec::new();
        Ok(Self { socket, told })
    }

    /// The next notice of this kind. Others are kept.
    async fn notice(&mut self, status: &str) -> anyhow::Result<Value> {
        let end = tokio::time::Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(n) = self.told.iter().position(|notice| notice["status"] == status) {
                return Ok(self.told.remove(n));
            }
            let next = tokio::time::timeout_at(end, self.socket.next()).await;
            let next = next.with_context(|| format!("waiting for {status}"))?;
            let Message::Text(text) = next.context("the socket ended")?? else {
                continue;
            };
            let message: Value = serde_json::from_str(&text)?;
            if message["type"] == "matchmaker" {
                self.told.push(message);
            }
        }
    }

    async fn leave(mut self) -> anyhow::Result<()> {
        Ok(self.socket.close(None).await?)
    }
}
