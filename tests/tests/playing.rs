//! A player in a real browser, through the whole path.

use std::time::{Duration, Instant};

use penstock_tests::browser::{Browser, Page};
use penstock_tests::programs::metric;
use penstock_tests::stage::{Stage, TEST_SOURCE, frames_decoded, plays};
use serde_json::Value;

#[tokio::test]
async fn a_720p30_stream_plays_for_ten_seconds() -> anyhow::Result<()> {
    let stage = Stage::start(1, &TEST_SOURCE).await?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("")).await?;
    plays(&mut page).await?;
    let (kind, protocol) = pair(&mut page).await?;
    assert_ne!(kind, "relay", "media goes directly");
    assert_eq!(protocol, "udp");
    watch_for_ten_seconds(&mut page).await?;
    let size = page.eval(
        "document.querySelector('video').videoWidth + 'x' + document.querySelector('video').videoHeight",
    );
    assert_eq!(size.await?, "1280x720");
    page.keep_picture("page-playing").await
}

#[tokio::test]
async fn the_same_plays_through_our_relay() -> anyhow::Result<()> {
    let stage = Stage::start(1, &TEST_SOURCE).await?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("ForceTURN=true")).await?;
    plays(&mut page).await?;
    assert_eq!(pair(&mut page).await?, ("relay".to_owned(), "udp".to_owned()));
    watch_for_ten_seconds(&mut page).await?;
    let relayed = metric(stage.turn_metrics(), "penstock_turn_allocations").await?;
    assert!(relayed >= 1.0, "the relay has an allocation");
    Ok(())
}

/// Ten seconds of 30 frames each, give or take what a busy machine drops, both as the browser counts them and as
/// the picture says.
async fn watch_for_ten_seconds(page: &mut Page) -> anyhow::Result<()> {
    let begin = Instant::now();
    let (frames, number) = (frames_decoded(page).await?, frame_number(page).await?);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let decoded = frames_decoded(page).await? - frames;
    let shown = frame_number(page).await?.wrapping_sub(number);
    let expected = begin.elapsed().as_secs_f64() * 30.0;
    assert!(
        (expected * 0.8..expected * 1.1).contains(&(decoded as f64)),
        "{decoded} decoded, {expected} sent"
    );
    assert!(
        (expected * 0.8..expected * 1.1).contains(&f64::from(shown)),
        "{shown} shown, {expected} sent"
    );
    Ok(())
}

/// The number in the picture: 16 black or white cells across its top, most significant first.
async fn frame_number(page: &mut Page) -> anyhow::Result<u16> {
    let script = "(() => {
        const video = document.querySelector('video');
        const canvas = Object.assign(document.createElement('canvas'), { width: 1280, height: 720 });
        const context = canvas.getContext('2d');
        context.drawImage(video, 0, 0, 1280, 720);
        let number = 0;
        for (let bit = 0; bit < 16; bit++) {
            number = number * 2 + (context.getImageData(bit * 80 + 40, 22, 1, 1).data[1] > 128 ? 1 : 0);
        }
        return number;
    })()";
    Ok(u16::try_from(page.eval(script).await?.as_u64().unwrap_or(0))?)
}

/// The local type and the protocol of the candidate pair that media takes.
async fn pair(page: &mut Page) -> anyhow::Result<(String, String)> {
    let script = "penstock.stats().then(all => {
        const pair = all.find(s => s.type === 'candidate-pair' && s.nominated && s.state === 'succeeded');
        const local = all.find(s => s.id === pair.localCandidateId);
        return [local.candidateType, local.protocol];
    })";
    let pair = page.eval(script).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok((text(&pair[0]), text(&pair[1])))
}
