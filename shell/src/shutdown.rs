//! Graceful shutdown: the first SIGTERM or SIGINT asks, the second one ends the process at once.

use std::io;
use std::thread;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled on the first SIGTERM or SIGINT. A second signal ends the process at once: a thread of
/// its own waits for it, so that it does so whatever blocks the others.
///
/// # Errors
/// Where signal handlers can't be installed, or no thread can be started.
pub fn token() -> io::Result<CancellationToken> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (term, int) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    let token = CancellationToken::new();
    let told = token.clone();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || runtime.block_on(wait(term, int, told)))?;
    Ok(token)
}

async fn wait(mut term: Signal, mut int: Signal, told: CancellationToken) {
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
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    const BLOCKED: &str = "PENSTOCK_TEST_BLOCKED";

    #[test]
    fn a_second_signal_ends_a_process_whose_only_thread_is_blocked() {
        let name = "shutdown::tests::a_second_signal_ends_a_process_whose_only_thread_is_blocked";
        if std::env::var_os(BLOCKED).is_some() {
            return block();
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(BLOCKED, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("blocked")));
        let pid = Pid::from_raw(child.id() as i32).unwrap();
        let since = Instant::now();
        let status = loop {
            // Signals that come together are one.
            kill_process(pid, Signal::TERM).unwrap();
            thread::sleep(Duration::from_millis(100));
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if since.elapsed() > Duration::from_secs(10) => break None,
                None => {}
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(status.and_then(|status| status.code()), Some(130));
    }

    fn block() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let _told = token().unwrap();
            println!("blocked");
            thread::sleep(Duration::from_secs(60));
        });
    }
}
