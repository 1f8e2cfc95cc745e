//! Files that are read again when they change, or on SIGHUP: a mounted Secret is exchanged under a running program.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// Files, and what is in them.
pub struct Reloading<T> {
    /// What they are, for the log.
    pub what: &'static str,
    /// The files.
    pub files: Vec<PathBuf>,
    /// Reads them.
    pub read: Box<dyn Fn() -> anyhow::Result<T> + Send>,
    /// Who needs to know.
    pub values: watch::Sender<T>,
}

impl<T> Reloading<T> {
    /// Works for ever. What can't be read changes nothing, and is said once.
    pub async fn run(self) {
        let mut known = self.contents();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut hangup = signal(SignalKind::hangup()).ok();
        loop {
            let asked = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            let told = tokio::select! {
                _ = looks.tick() => false,
                _ = asked => true,
            };
            let now = self.contents();
            if now != known || told {
                known = now;
                self.again();
            }
        }
    }

    /// They are small: comparing them is surer than their times, which a Secret's links keep.
    fn contents(&self) -> Vec<Option<Vec<u8>>> {
        self.files.iter().map(|file| std::fs::read(file).ok()).collect()
    }

    fn again(&self) {
        match (self.read)() {
            Ok(value) => {
                self.values.send_replace(value);
                tracing::info!("{} read again", self.what);
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(
                    error,
                    "{} can't be read again: what was there before goes on",
                    self.what
                );
            }
        }
    }
}

/// Takes SIGHUPs for ever, each of which would else end the program; `has_files`: there are some that are read again, by
/// others.
///
/// # Errors
/// Where no handler can be installed.
pub fn outlive_hang_ups(has_files: bool) -> io::Result<impl Future<Output = ()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        while hangup.recv().await.is_some() {
            if !has_files {
                tracing::info!(
                    "told to read files again by SIGHUP: there are none, neither users nor a certificate"
                );
            }
        }
        std::future::pending().await
    })
}

const LOOK_EVERY: Duration = Duration::from_secs(2);
