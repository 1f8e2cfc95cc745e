//! Keys and mouse of a real browser arrive in an X client.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use penstock_tests::browser::{Browser, Page};
use penstock_tests::eventually;
use penstock_tests::listener::{Heard, Listener};
use penstock_tests::stage::{Stage, plays, x11_stage};

#[tokio::test]
async fn text_typed_in_the_browser_arrives() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (stage, listener) = x11_stage(folder.path(), &[]).await?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("")).await?;
    plays(&mut page).await?;
    listener.forget();
    page.eval("document.querySelector('video').focus()").await?;
    for (code, key, key_code, text) in [
        ("KeyH", "h", 72, Some("h")),
        ("KeyI", "i", 73, Some("i")),
        ("Space", " ", 32, Some(" ")),
        ("Digit7", "7", 55, Some("7")),
        ("Minus", "-", 189, Some("-")),
        ("Enter", "Enter", 13, Some("\r")),
        ("ArrowLeft", "ArrowLeft", 37, None),
        ("F5", "F5", 116, None),
    ] {
        page.press(code, key, key_code, text).await?;
    }
    let keysyms = [0x68, 0x69, 0x20, 0x37, 0x2d, 0xff0d, 0xff51, 0xffc2];
    for keysym in keysyms {
        assert_eq!(listener.next()?, Heard::Key(keysym));
    }
    Ok(())
}

#[tokio::test]
async fn a_click_arrives_within_a_pixel_at_corners_and_centre() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (stage, listener) = x11_stage(folder.path(), &[]).await?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("")).await?;
    plays(&mut page).await?;
    // Coordinates are the picture's only where the page shows it pixel by pixel.
    let shown = page.eval("(r => [r.x, r.y, r.width, r.height].join())(document.querySelector('video').getBoundingClientRect())");
    assert_eq!(shown.await?, "0,0,1280,720");
    listener.forget();
    for (x, y) in [(1, 1), (1278, 1), (1, 718), (1278, 718), (640, 360)] {
        click(&mut page, x, y).await?;
        let Heard::Press(1, got_x, got_y) = listener.next()? else {
            panic!("no left press at {x},{y}")
        };
        assert!(
            (got_x - x).abs() <= 1 && (got_y - y).abs() <= 1,
            "{x},{y} came as {got_x},{got_y}"
        );
        assert!(matches!(listener.next()?, Heard::Release(1, ..)));
    }
    Ok(())
}

#[tokio::test]
async fn of_two_players_who_leaves_lets_go_of_its_own_buttons() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (stage, listener) = x11_stage(folder.path(), &["--max-players", "2"]).await?;
    let mut browser = Browser::start().await?;
    let mut ann = browser.open(&stage.page("")).await?;
    plays(&mut ann).await?;
    let mut bob = browser.open(&stage.page("")).await?;
    plays(&mut bob).await?;
    listener.forget();
    // X has the left button on 1 and the right one on 3.
    for (page, button, number) in [(&mut ann, "left", 1), (&mut bob, "right", 3)] {
        page.mouse("mouseMoved", 640.0, 360.0, "none").await?;
        page.mouse("mousePressed", 640.0, 360.0, button).await?;
        assert!(matches!(listener.next()?, Heard::Press(pressed, ..) if pressed == number));
    }
    ann.eval("document.getElementById('leave').click()").await?;
    assert!(matches!(listener.next()?, Heard::Release(1, ..)));
    bob.mouse("mouseReleased", 640.0, 360.0, "right").await?;
    assert!(
        matches!(listener.next()?, Heard::Release(3, ..)),
        "Bob held it until now"
    );
    Ok(())
}

#[tokio::test]
async fn a_window_that_loses_the_keyboard_lets_go_of_keys_and_buttons() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (stage, listener) = x11_stage(folder.path(), &[]).await?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("")).await?;
    plays(&mut page).await?;
    page.eval(
        "(handlers => { const send = handlers.get('KeyUp'); window.released = []; \
         handlers.set('KeyUp', data => { window.released.push(data[0]); send(data); }) \
         })(penstock.pixelStreaming.webRtcController.streamMessageController.toStreamerHandlers)",
    )
    .await?;
    listener.forget();
    for (code, key, key_code) in [("AltLeft", "Alt", 18), ("F5", "F5", 116)] {
        let down = serde_json::json!({
            "type": "rawKeyDown", "code": code, "key": key, "windowsVirtualKeyCode": key_code,
        });
        page.call("Input.dispatchKeyEvent", down).await?;
        assert!(matches!(listener.next()?, Heard::Key(_)));
    }
    page.mouse("mouseMoved", 640.0, 360.0, "none").await?;
    page.mouse("mousePressed", 640.0, 360.0, "left").await?;
    assert!(matches!(listener.next()?, Heard::Press(1, ..)));
    page.eval("window.dispatchEvent(new Event('blur'))").await?;
    assert!(matches!(
        listener.next()?,
        Heard::Release(1, 639..=641, 359..=361)
    ));
    assert_eq!(page.eval("window.released.join()").await?, "18,116");
    Ok(())
}

async fn click(page: &mut Page, x: i16, y: i16) -> anyhow::Result<()> {
    let (x, y) = (f64::from(x), f64::from(y));
    page.mouse("mouseMoved", x, y, "none").await?;
    page.mouse("mousePressed", x, y, "left").await?;
    page.mouse("mouseReleased", x, y, "left").await
}

/// An application in another container of the pod, which knows the display's number and nothing else. The container of
/// the streamer may be killed at any time, and its files outlive it.
#[tokio::test]
async fn an_application_of_its_own_container_gets_the_input_and_finds_the_display_again() -> anyhow::Result<()>
{
    let display = format!(":{}", 1000 + std::process::id() % 10_000);
    let args = [
        "--source",
        "x11",
        "--serve-display",
        &display,
        "--media-ip",
        "127.0.0.1",
    ];
    let stage = Stage::start(1, &args).await?;
    let listener = Listener::open(&display)?;
    let mut browser = Browser::start().await?;
    let mut page = browser.open(&stage.page("")).await?;
    plays(&mut page).await?;
    listener.forget();
    click(&mut page, 640, 360).await?;
    assert!(matches!(listener.next()?, Heard::Press(1, 639..=641, 359..=361)));

    let streamer = stage.slices().await?.remove(0).pid.context("its process")?;
    kill_process(Pid::from_raw(streamer as i32).context("a pid")?, Signal::KILL)?;
    let socket = format!("/tmp/.X11-unix/X{}", &display[1..]);
    assert!(Path::new(&socket).exists(), "it had no time to tidy up");
    let again = eventually(
        "the display is there again",
        Duration::from_secs(30),
        async || {
            let other = stage
                .slices()
                .await?
                .first()
                .is_some_and(|slice| slice.pid != Some(streamer));
            Ok(other.then(|| Listener::open(&display).ok()).flatten())
        },
    )
    .await?;
    plays(&mut page).await?;
    again.forget();
    eventually("a click arrives", Duration::from_secs(10), async || {
        click(&mut page, 100, 100).await?;
        Ok(again.next().ok())
    })
    .await?;
    Ok(())
}
