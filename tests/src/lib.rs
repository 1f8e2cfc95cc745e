//! Whole-system tests: the real programs, a real browser, a real X server.
//!
//! ```text
//!  browser    headless Chromium over the DevTools protocol: pages, scripts, keys and mouse
//!  programs   our binaries as children, with ports of their own, ended with the test
//!  stage      the whole path: agent, streamers, TURN, matchmaker
//!  listener   an X client that reports the input it gets
//! ```

pub mod browser;
pub mod listener;
pub mod programs;
pub mod stage;

use std::time::{Duration, Instant};

use anyhow::bail;

/// Asks `probe` every 50 ms until it gives a value; after `within` it is an error that says `what` did not happen.
///
/// # Errors
/// Where `probe` fails, or gives nothing in time.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let end = Instant::now() + within;
    loop {
        if let Some(value) = probe().await? {
            return Ok(value);
        }
        if Instant::now() > end {
            bail!("{what}: not within {within:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
