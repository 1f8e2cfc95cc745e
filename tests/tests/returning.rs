//! Players who come back, and what they come back to.

use std::time::{Duration, Instant};

use penstock_core::wire::status::StreamerState;
use penstock_tests::browser::{Browser, Page};
use penstock_tests::eventually;
use penstock_tests::listener::{Heard, Listener};
use penstock_tests::programs::ready;
use penstock_tests::stage::{Stage, TEST_SOURCE, frames_decoded, plays, status, x11_stage};
use rustix::process::{Pid, Signal, kill_process};

#[tokio::test]
async fn a_stream_outlives_its_matchmaker_and_a_reload_is_the_same_session() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut stage, listener) = x11_stage(folder.path(), &[]).await?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("")).await?;
    plays(&mut page).await?;
    let session = page.eval("penstock.sessionId").await?;
    mark(&mut page).await?;

    stage.kill_matchmaker().await?;
    let frames = frames_decoded(&mut page).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(
        frames_decoded(&mut page).await? > frames,
        "the picture goes on without a matchmaker"
    );
    let away = status(stage.streamer().await?).await?;
    assert_eq!((away.players, away.away), (1, 1));
    stage.restart_matchmaker()?;
    page.until("penstock.resumed === 1", Duration::from_secs(15))
        .await?;
    let here = status(stage.streamer().await?).await?;
    assert_eq!((here.players, here.away), (1, 0));
    assert_eq!(page.eval("penstock.state").await?, "playing");
    assert_eq!(page.eval("penstock.peer().mark").await?, "the first");
    // New credentials for a relay come as another `config`, of which the library would make a new peer connection.
    page.eval(
        "penstock.pixelStreaming.webRtcController.protocol.transport.webSocket.hear(new MessageEvent('message',
            { data: JSON.stringify({ type: 'config', peerConnectionOptions: { iceServers: [] } }) }))",
    )
    .await?;
    assert_eq!(page.eval("penstock.peer().mark").await?, "the first");
    let frames = frames_decoded(&mut page).await?;
    input_arrives(&mut page, &listener).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(frames_decoded(&mut page).await? > frames + 15);

    page.reload().await?;
    page.until("penstock.peer()?.mark === undefined", Duration::from_secs(5))
        .await?;
    plays(&mut page).await?;
    assert_eq!(page.eval("penstock.sessionId").await?, session);
    input_arrives(&mut page, &listener).await?;
    let runs = std::fs::read_to_string(folder.path().join("display"))?;
    assert_eq!(runs.lines().count(), 1, "the application was not started again");
    Ok(())
}

#[tokio::test]
async fn a_viewer_stays_while_the_player_reloads_and_outlives_a_matchmaker_too() -> anyhow::Result<()> {
    let (mut stage, mut browser, mut player) = playing(1, &["--mode", "shared"]).await?;
    let session = player.eval("penstock.sessionId").await?;
    let share = "!document.getElementById('share').hidden";
    assert_eq!(player.eval(share).await?, true);
    let link = format!("watch={}", session.as_str().unwrap_or_default());
    let mut viewer = browser.open(&stage.page(&link)).await?;
    plays(&mut viewer).await?;
    mark(&mut viewer).await?;
    player.eval("window.mark = 'before'; true").await?;
    player.reload().await?;
    player
        .until("window.mark !== 'before'", Duration::from_secs(5))
        .await?;
    plays(&mut player).await?;
    assert_eq!(player.eval("penstock.sessionId").await?, session);
    stage.kill_matchmaker().await?;
    stage.restart_matchmaker()?;
    for page in [&mut player, &mut viewer] {
        page.until("penstock.resumed === 1", Duration::from_secs(15))
            .await?;
    }
    let frames = frames_decoded(&mut viewer).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(frames_decoded(&mut viewer).await? > frames + 15);
    assert_eq!(viewer.eval("penstock.peer().mark").await?, "the first");
    let here = status(stage.streamer().await?).await?;
    assert_eq!((here.players, here.viewers, here.away), (1, 1, 0));
    Ok(())
}

/// The kernel goes on taking what is sent to the matchmaker, so that nothing but silence says that it is gone.
#[tokio::test]
async fn a_stream_outlives_a_matchmaker_that_falls_silent() -> anyhow::Result<()> {
    let stage = Stage::start(1, &TEST_SOURCE).await?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("KeepaliveDelay=7000")).await?;
    plays(&mut page).await?;
    mark(&mut page).await?;
    let matchmaker = Pid::from_raw(stage.pids()[0] as i32).expect("a pid");
    kill_process(matchmaker, Signal::STOP)?;
    // Two pings of the library, after the second of which it would end the stream.
    tokio::time::sleep(Duration::from_secs(17)).await;
    let frames = frames_decoded(&mut page).await?;
    kill_process(matchmaker, Signal::CONT)?;
    page.until("penstock.resumed === 1", Duration::from_secs(12))
        .await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(frames_decoded(&mut page).await? > frames + 15);
    assert_eq!(page.eval("penstock.peer().mark").await?, "the first");
    assert_eq!(page.eval("penstock.state").await?, "playing");
    Ok(())
}

#[tokio::test]
async fn whose_session_is_gone_meanwhile_gets_a_new_one_without_a_reload() -> anyhow::Result<()> {
    let (mut stage, _browser, mut page) = playing(1, &["--return-grace", "1"]).await?;
    mark(&mut page).await?;
    stage.kill_matchmaker().await?;
    free(stage.streamer().await?, Duration::from_secs(5)).await?;
    stage.restart_matchmaker()?;
    page.until(
        "penstock.state === 'playing' && penstock.peer()?.mark !== 'the first'",
        Duration::from_secs(20),
    )
    .await?;
    plays(&mut page).await?;
    assert_eq!(page.eval("window.mark").await?, "not loaded again");
    assert_eq!(status(stage.streamer().await?).await?.players, 1);
    Ok(())
}

#[tokio::test]
async fn who_comes_back_finds_its_session_through_another_matchmaker() -> anyhow::Result<()> {
    let (stage, _browser, mut page) = playing(2, &[]).await?;
    let other = penstock_tests::programs::free_tcp()?;
    let _other = stage.another_matchmaker(other)?;
    ready(&format!("http://{other}/readyz")).await?;
    let session = page.eval("penstock.sessionId").await?;
    // Storage is an origin's own, so the token is carried there by hand, as one name for both would do it.
    let token = token_of(&mut page).await?;
    go_with(&mut page, &token, &format!("http://{other}/")).await?;
    page.until(
        &format!(
            "location.port === '{}' && window.penstock !== undefined",
            other.port()
        ),
        Duration::from_secs(10),
    )
    .await?;
    plays(&mut page).await?;
    assert_eq!(page.eval("penstock.sessionId").await?, session);
    Ok(())
}

#[tokio::test]
async fn a_second_window_takes_the_session_over_and_the_first_stays_quiet() -> anyhow::Result<()> {
    let (stage, mut browser, mut first) = playing(1, &[]).await?;
    let token = token_of(&mut first).await?;
    let mut second = browser.open("about:blank").await?;
    go_with(&mut second, &token, &stage.page("")).await?;
    plays(&mut second).await?;
    first
        .until(
            "document.body.innerText.includes('another window')",
            Duration::from_secs(5),
        )
        .await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(second.eval("penstock.state").await?, "playing");
    assert_eq!(first.eval("penstock.state").await?, "ended");
    Ok(())
}

#[tokio::test]
async fn a_seat_is_kept_for_a_while_and_free_at_once_when_its_player_leaves() -> anyhow::Result<()> {
    let (stage, mut browser, page) = playing(1, &[]).await?;
    let streamer = stage.streamer().await?;
    page.close().await?;
    let closed = Instant::now();
    eventually("the player is away", Duration::from_secs(3), async || {
        let now = status(streamer).await?;
        Ok((now.away == 1 && now.state == StreamerState::Busy).then_some(()))
    })
    .await?;
    free(streamer, Duration::from_secs(10)).await?;
    let kept = closed.elapsed();
    assert!(
        (Duration::from_secs(4)..Duration::from_secs(9)).contains(&kept),
        "a closed page's seat was kept for {kept:?}"
    );

    let mut page = browser.open(&stage.page("")).await?;
    plays(&mut page).await?;
    let share = page.eval("document.getElementById('share').hidden");
    assert_eq!(share.await?, true, "nobody else may watch an exclusive session");
    page.eval("document.getElementById('leave').click()").await?;
    free(streamer, Duration::from_secs(2)).await?;
    assert_eq!(page.eval("penstock.state").await?, "left");
    Ok(())
}

#[tokio::test]
async fn a_player_of_a_streamer_that_drains_is_told_and_moves_without_a_reload() -> anyhow::Result<()> {
    let (stage, _browser, mut page) = playing(2, &["--grace", "6"]).await?;
    mark(&mut page).await?;
    signal_streamer_with_player(&stage, Signal::TERM).await?;
    page.until(
        "document.getElementById('hint').textContent.includes('This place closes in')",
        Duration::from_secs(3),
    )
    .await?;
    let frames = frames_decoded(&mut page).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(
        frames_decoded(&mut page).await? > frames,
        "until then it plays on"
    );
    page.until("penstock.peer()?.mark !== 'the first'", Duration::from_secs(15))
        .await?;
    plays(&mut page).await?;
    assert_eq!(page.eval("window.mark").await?, "not loaded again");
    Ok(())
}

#[tokio::test]
async fn a_player_whose_streamer_died_plays_on_another_without_a_reload() -> anyhow::Result<()> {
    let (stage, _browser, mut page) = playing(2, &[]).await?;
    mark(&mut page).await?;
    signal_streamer_with_player(&stage, Signal::KILL).await?;
    page.until("penstock.peer()?.mark !== 'the first'", Duration::from_secs(10))
        .await?;
    plays(&mut page).await?;
    assert_eq!(page.eval("window.mark").await?, "not loaded again");
    Ok(())
}

#[tokio::test]
async fn players_of_one_streamer_share_a_session_and_one_encode() -> anyhow::Result<()> {
    let (stage, mut browser, mut first) = playing(2, &["--max-players", "2"]).await?;
    let mut second = browser.open(&stage.page("")).await?;
    plays(&mut second).await?;
    let session = first.eval("penstock.sessionId").await?;
    assert_eq!(second.eval("penstock.sessionId").await?, session);
    first.close().await?;
    let frames = frames_decoded(&mut second).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(frames_decoded(&mut second).await? > frames + 15);
    Ok(())
}

#[tokio::test]
async fn the_page_says_how_the_picture_comes_and_fits_a_phone() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (stage, listener) = x11_stage(folder.path(), &[]).await?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("ForceTURN=true")).await?;
    plays(&mut page).await?;
    page.until("penstock.path === 'through a relay'", Duration::from_secs(5))
        .await?;
    let mut phone = browser.open("about:blank").await?;
    page.eval("document.getElementById('leave').click()").await?;
    let metrics = serde_json::json!({ "width": 390, "height": 844, "deviceScaleFactor": 3, "mobile": true });
    phone.call("Emulation.setDeviceMetricsOverride", metrics).await?;
    phone
        .call(
            "Emulation.setTouchEmulationEnabled",
            serde_json::json!({ "enabled": true }),
        )
        .await?;
    phone
        .call("Page.navigate", serde_json::json!({ "url": stage.page("") }))
        .await?;
    plays(&mut phone).await?;
    phone
        .until("penstock.path === 'direct'", Duration::from_secs(5))
        .await?;
    let fits = "[...document.querySelectorAll('#tools > :not([hidden])')].every(tool => {
        const r = tool.getBoundingClientRect();
        return r.left >= 0 && r.right <= innerWidth && r.bottom <= innerHeight; })";
    assert_eq!(phone.eval(fits).await?, true);
    assert_eq!(
        phone
            .eval("document.documentElement.scrollWidth <= innerWidth")
            .await?,
        true
    );
    // A finger on the picture, which lies in the middle of an upright screen.
    listener.forget();
    for (kind, points) in [
        ("touchStart", serde_json::json!([{ "x": 195, "y": 422 }])),
        ("touchEnd", serde_json::json!([])),
    ] {
        let event = serde_json::json!({ "type": kind, "touchPoints": points });
        phone.call("Input.dispatchTouchEvent", event).await?;
    }
    let Heard::Press(1, x, y) = listener.next()? else {
        panic!("a touch is a press")
    };
    assert!(
        (x - 640).abs() <= 2 && (y - 360).abs() <= 2,
        "the middle came as {x},{y}"
    );
    assert!(matches!(listener.next()?, Heard::Release(1, ..)));
    // A phone's keyboard writes into a field.
    phone.eval("document.getElementById('keys').click()").await?;
    phone
        .call("Input.insertText", serde_json::json!({ "text": "e" }))
        .await?;
    assert_eq!(listener.next()?, Heard::Key(0x65));
    Ok(())
}

/// So many slices with the test picture, whose streamers get `more`, and a page that plays.
async fn playing(slices: u32, more: &[&str]) -> anyhow::Result<(Stage, Browser, Page)> {
    let stage = Stage::start(slices, &[&TEST_SOURCE[..], more].concat()).await?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("")).await?;
    plays(&mut page).await?;
    Ok((stage, browser, page))
}

/// Marks this page as it was loaded, and its peer connection.
async fn mark(page: &mut Page) -> anyhow::Result<()> {
    page.eval("window.mark = 'not loaded again'; penstock.peer().mark = 'the first'; true")
        .await?;
    Ok(())
}

/// With what a page may come back.
async fn token_of(page: &mut Page) -> anyhow::Result<String> {
    let token = page.eval("sessionStorage.getItem('penstock.return ')").await?;
    Ok(token.as_str().unwrap_or_default().to_owned())
}

/// Opens `url` in a page that has the token.
async fn go_with(page: &mut Page, token: &str, url: &str) -> anyhow::Result<()> {
    let source = format!("sessionStorage.setItem('penstock.return ', '{token}')");
    let source = serde_json::json!({ "source": source });
    page.call("Page.addScriptToEvaluateOnNewDocument", source).await?;
    page.call("Page.navigate", serde_json::json!({ "url": url }))
        .await?;
    Ok(())
}

async fn signal_streamer_with_player(stage: &Stage, signal: Signal) -> anyhow::Result<()> {
    for slice in stage.slices().await? {
        let (Some(address), Some(pid)) = (slice.address, slice.pid) else {
            continue;
        };
        if status(address).await?.players == 1 {
            kill_process(Pid::from_raw(pid as i32).expect("a pid"), signal)?;
        }
    }
    Ok(())
}

async fn free(streamer: std::net::SocketAddr, within: Duration) -> anyhow::Result<()> {
    eventually("the place is free", within, async || {
        Ok((status(streamer).await?.state == StreamerState::Free).then_some(()))
    })
    .await
}

async fn input_arrives(page: &mut Page, listener: &Listener) -> anyhow::Result<()> {
    listener.forget();
    page.eval("document.querySelector('video').focus()").await?;
    page.press("KeyH", "h", 72, Some("h")).await?;
    assert_eq!(listener.next()?, Heard::Key(0x68));
    Ok(())
}
