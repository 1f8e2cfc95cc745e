//! A matchmaker that asks who comes, under a path of its own, and a real browser before it.

use std::time::Duration;

use penstock_tests::browser::{Browser, Page};
use penstock_tests::eventually;
use penstock_tests::programs::{Program, free_tcp, ready};
use penstock_tests::stage::{Stage, TEST_SOURCE, plays, status};
use serde_json::{Value, json};

/// The users file: `north` and `south`, as `htpasswd -nbB -C 4` hashes them.
const USERS: &str = "\
ann:$2y$04$abcdefghijklmnopqrstuu/BF5x45nWA2IFt0RPxaNJR1iCCMwFPO
oscar:$2y$04$abcdefghijklmnopqrstuuqtICzFzLh0LVKzy9UDbOdIoMOCshIvy
";

#[tokio::test]
async fn a_password_or_a_link_lets_a_browser_in_and_an_operator_ends_its_session() -> anyhow::Result<()> {
    let stage = Stage::start(1, &TEST_SOURCE).await?;
    let files = tempfile::tempdir()?;
    let users = files.path().join("users");
    std::fs::write(&users, USERS)?;
    let (web, streamer) = (free_tcp()?, stage.streamer().await?);
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../player/dist");
    let (listen, streamers, users) = (web.to_string(), streamer.to_string(), users.to_string_lossy());
    let _door = Program::start(
        "penstock-matchmaker",
        &[
            "--listen",
            &listen,
            "--streamer",
            &streamers,
            "--page",
            page,
            "--path-prefix",
            "/play",
            "--auth",
            "basic",
            "--users",
            &users,
            "--operator",
            "oscar",
        ],
    )?;
    ready(&format!("http://{web}/readyz")).await?;
    let mut browser = Browser::start().await?;
    let stranger = reqwest::get(format!("http://{web}/play/")).await?;
    assert_eq!(stranger.status(), 401);

    let mut ann = browser.open(&format!("http://ann:north@{web}/play/")).await?;
    plays(&mut ann).await?;
    let sessions = format!("http://{web}/play/sessions");
    let operator = reqwest::Client::new();
    let asked = operator.get(&sessions).basic_auth("oscar", Some("south"));
    let list: Value = asked.send().await?.error_for_status()?.json().await?;
    let id = list["sessions"][0]["id"].as_str().unwrap_or_default();
    let wish = json!({"stream": "720p30"});
    let full = operator
        .post(&sessions)
        .basic_auth("oscar", Some("south"))
        .json(&wish);
    assert_eq!(full.send().await?.status(), 503);
    let ended = operator
        .delete(format!("{sessions}/{id}"))
        .basic_auth("oscar", Some("south"));
    assert_eq!(ended.send().await?.status(), 204);
    ann.until("penstock.state === 'ended'", Duration::from_secs(10))
        .await?;
    let free = async || Ok((status(streamer).await?.players == 0).then_some(()));
    eventually("the end of the session", Duration::from_secs(10), free).await?;
    stays_ended(&mut ann).await?;
    ann.eval("document.getElementById('again').click()").await?;
    plays(&mut ann).await?;
    ann.eval("document.getElementById('leave').click()").await?;

    let made = eventually("a link", Duration::from_secs(10), async || {
        let asked = operator
            .post(&sessions)
            .basic_auth("oscar", Some("south"))
            .json(&wish);
        let answer = asked.send().await?;
        Ok(answer.status().is_success().then_some(answer))
    });
    let made: Value = made.await?.json().await?;
    let mut other = Browser::start().await?;
    let mut guest = other.open(made["joinUrl"].as_str().unwrap_or_default()).await?;
    plays(&mut guest).await
}

/// It stays so until the player wants it otherwise.
async fn stays_ended(page: &mut Page) -> anyhow::Result<()> {
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(page.eval("penstock.state").await?, "ended");
    let said = page.eval("document.getElementById('overlay').innerText").await?;
    let words: Vec<_> = said.as_str().unwrap_or_default().split_whitespace().collect();
    let expected = "The stream has ended An operator ended the session. Connect now";
    assert_eq!(words.join(" "), expected);
    Ok(())
}
