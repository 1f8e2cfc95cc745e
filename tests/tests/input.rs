//! Keys and mouse of a real browser arrive in an X client.

use penstock_tests::browser::{Browser, Page};
use penstock_tests::listener::Heard;
use penstock_tests::stage::{plays, x11_stage};

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

async fn click(page: &mut Page, x: i16, y: i16) -> anyhow::Result<()> {
    let (x, y) = (f64::from(x), f64::from(y));
    page.mouse("mouseMoved", x, y, "none").await?;
    page.mouse("mousePressed", x, y, "left").await?;
    page.mouse("mouseReleased", x, y, "left").await
}
