//! Several people, and what happens when a streamer dies.

use std::time::{Duration, Instant};

use penstock_core::wire::agent::SliceState;
use penstock_tests::browser::Browser;
use penstock_tests::eventually;
use penstock_tests::programs::metric;
use penstock_tests::stage::{Stage, TEST_SOURCE, frames_decoded, plays, status};
use rustix::process::{Pid, Signal, kill_process};

#[tokio::test]
async fn the_second_player_sees_its_place_and_plays_when_the_first_leaves() -> anyhow::Result<()> {
    let stage = Stage::start(1, &TEST_SOURCE).await?;
    let mut browser = Browser::start().await?;
    let mut first = browser.open(&stage.page("")).await?;
    plays(&mut first).await?;
    let mut second = browser.open(&stage.page("")).await?;
    second
        .until("penstock.state === 'waiting'", Duration::from_secs(10))
        .await?;
    let says = second.until(
        "document.body.innerText.includes('number 1 of 1')",
        Duration::from_secs(5),
    );
    says.await?;
    let mut third = browser.open(&stage.page("")).await?;
    third
        .until(
            "document.body.innerText.includes('number 2 of 2')",
            Duration::from_secs(10),
        )
        .await?;
    third.keep_picture("page-waiting").await?;
    first.close().await?;
    plays(&mut second).await?;
    third
        .until(
            "document.body.innerText.includes('number 1 of 1')",
            Duration::from_secs(5),
        )
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_viewer_sees_the_same_encode_and_goes_with_the_player() -> anyhow::Result<()> {
    let shared = [&TEST_SOURCE[..], &["--mode", "shared"]].concat();
    let stage = Stage::start(1, &shared).await?;
    let mut browser = Browser::start().await?;
    let mut player = browser.open(&stage.page("")).await?;
    plays(&mut player).await?;
    let session = player.until("penstock.sessionId", Duration::from_secs(5)).await?;
    let mut viewer = browser
        .open(&stage.page(&format!("watch={}", session.as_str().unwrap_or_default())))
        .await?;
    plays(&mut viewer).await?;
    let streamer = stage.streamer().await?;
    let here = status(streamer).await?;
    assert_eq!((here.players, here.viewers), (1, 1));
    // One encode for both: in three seconds about 90 frames are encoded, and both have decoded them.
    let before = metric(streamer, "penstock_streamer_frames_encoded_total").await?;
    let seen = (
        frames_decoded(&mut player).await?,
        frames_decoded(&mut viewer).await?,
    );
    tokio::time::sleep(Duration::from_secs(3)).await;
    let encoded = metric(streamer, "penstock_streamer_frames_encoded_total").await? - before;
    let both = (
        frames_decoded(&mut player).await? - seen.0,
        frames_decoded(&mut viewer).await? - seen.1,
    );
    assert!(encoded < 110.0, "{encoded} frames were encoded for two");
    assert!(both.0 > 60 && both.1 > 60, "{both:?} frames were decoded");
    let feedback = metric(streamer, "penstock_streamer_transport_feedback_total").await?;
    assert!(
        feedback > 0.0,
        "congestion feedback of the browsers reaches our interceptor"
    );
    player.close().await?;
    viewer
        .until("penstock.state !== 'playing'", Duration::from_secs(10))
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_keyframe_comes_when_the_browser_asks_for_one() -> anyhow::Result<()> {
    let stage = Stage::start(1, &TEST_SOURCE).await?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("")).await?;
    plays(&mut page).await?;
    let streamer = stage.streamer().await?;
    // The stream has no keyframes but those that are asked for.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = metric(streamer, "penstock_streamer_keyframes_encoded_total").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        metric(streamer, "penstock_streamer_keyframes_encoded_total").await?,
        before
    );
    // A script that stands between receiver and decoder may ask for a keyframe; the browser then sends a PLI.
    let ask = "(() => {
        const source = 'onrtctransform = ({ transformer: t }) => {\
            t.readable.pipeTo(t.writable); setTimeout(() => t.sendKeyFrameRequest(), 200); }';
        const worker = new Worker(URL.createObjectURL(new Blob([source])));
        const receiver = penstock.peer().getReceivers().find(r => r.track.kind === 'video');
        receiver.transform = new RTCRtpScriptTransform(worker, {});
    })()";
    page.eval(ask).await?;
    eventually("a keyframe", Duration::from_secs(5), async || {
        let now = metric(streamer, "penstock_streamer_keyframes_encoded_total").await?;
        Ok((now > before).then_some(()))
    })
    .await?;
    let plis = "penstock.stats().then(all => all.find(s => s.type === 'inbound-rtp' && s.kind === 'video').pliCount)";
    assert!(page.eval(plis).await?.as_u64() > Some(0));
    Ok(())
}

#[tokio::test]
async fn a_killed_streamer_is_back_within_five_seconds_and_plays_for_who_reloads() -> anyhow::Result<()> {
    let stage = Stage::start(1, &TEST_SOURCE).await?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("")).await?;
    plays(&mut page).await?;
    let killed = stage.slices().await?[0]
        .pid
        .and_then(|pid| Pid::from_raw(pid as i32));
    let killed = killed.expect("a running slice has a process");
    let begin = Instant::now();
    kill_process(killed, Signal::KILL)?;
    eventually(
        "the streamer is running again",
        Duration::from_secs(5),
        async || {
            let slice = stage.slices().await?.remove(0);
            let anew = slice
                .pid
                .is_some_and(|pid| pid as i32 != killed.as_raw_nonzero().get());
            Ok((anew && slice.state == SliceState::Running).then_some(()))
        },
    )
    .await?;
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(stage.slices().await?[0].restarts, 1);
    page.reload().await?;
    plays(&mut page).await
}
