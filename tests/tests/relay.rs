//! A player in a real browser, through our relay over TCP and TLS.

use std::time::Duration;

use penstock_tests::browser::{Browser, Page};
use penstock_tests::programs::metric;
use penstock_tests::stage::{RelayOver, Stage, TEST_SOURCE, frames_decoded, plays};

#[tokio::test]
async fn a_stream_plays_through_the_relay_over_tcp() -> anyhow::Result<()> {
    plays_over(RelayOver::Tcp, "tcp").await
}

#[tokio::test]
async fn a_stream_plays_through_the_relay_over_tls() -> anyhow::Result<()> {
    plays_over(RelayOver::Tls, "tls").await
}

async fn plays_over(over: RelayOver, protocol: &str) -> anyhow::Result<()> {
    let stage = Stage::start_relaying(over, 1, &TEST_SOURCE).await?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("ForceTURN=true")).await?;
    plays(&mut page).await?;
    assert_eq!(relay_protocol(&mut page).await?, protocol);
    let before = frames_decoded(&mut page).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let decoded = frames_decoded(&mut page).await? - before;
    assert!(
        (120..=165).contains(&decoded),
        "{decoded} frames in 5 s of 30 each"
    );
    // Its credentials were made when it had a streamer, and reach that alone.
    let user = "penstock.peer().getConfiguration().iceServers[0].username";
    let user = page.eval(user).await?;
    assert!(
        user.as_str().is_some_and(|user| user.ends_with("@127.0.0.1")),
        "{user}"
    );
    let connections = metric(stage.turn_metrics(), "penstock_turn_connections").await?;
    assert!(connections >= 1.0, "{connections} connections");
    Ok(())
}

/// What the browser says to the relay over, for the candidate pair that media takes.
async fn relay_protocol(page: &mut Page) -> anyhow::Result<String> {
    let script = "penstock.stats().then(all => {
        const pair = all.find(s => s.type === 'candidate-pair' && s.nominated && s.state === 'succeeded');
        return all.find(s => s.id === pair.localCandidateId).relayProtocol;
    })";
    Ok(page.eval(script).await?.as_str().unwrap_or_default().to_owned())
}
