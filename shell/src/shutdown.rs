//! Graceful shutdown: the first SIGTERM or SIGINT asks, the second one ends the process at once.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled on the first SIGTERM or SIGINT. A second signal ends the process at once.
///
/// # Errors
/// Where signal handlers can't be installed.
pub fn token() -> io::Result<CancellationToken> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let told = token.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = int.recv() => "SIGINT",
            }
        };
        let signal = next().await;
        told.cancel();
        tracing::info!(signal, "told to end");
        let signal = next().await;
        tracing::warn!(signal, "told to end again: ending at once");
        std::process::exit(130);
    });
    Ok(token)
}
