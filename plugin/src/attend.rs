//! Listening to a child process until its end: what it says on standard error is passed on, and how it ended is
//! told in words.

use std::convert::Infallible;
use std::future::pending;
use std::io::{self, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::ChildStderr;

use crate::last_words::LastWords;

/// Passes a process's standard error on until `ended` says that it is gone, and tells how it ended.
pub(crate) async fn until_ended(
    stderr: Option<ChildStderr>,
    ended: impl Future<Output = io::Result<ExitStatus>>,
) -> String {
    let mut stderr = Stderr {
        pipe: stderr,
        words: LastWords::default(),
    };
    let status = tokio::select! {
        status = ended => status,
        never = stderr.pass_on_and_stay() => match never {},
    };
    // What it said last may still be in the pipe. A process that it left behind may hold that open, and is
    // swept only after this.
    let _ = tokio::time::timeout(DRAIN, stderr.pass_on()).await;
    stderr.finish();
    status.map_or_else(
        |error| format!("waiting for it failed: {error}"),
        |status| in_words(status, stderr.words.why()),
    )
}

/// How a process ended, in words.
pub(crate) fn in_words(status: ExitStatus, why: Option<&str>) -> String {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => return format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    };
    match why {
        Some(why) => format!("{how}: {why}"),
        None => how,
    }
}

struct Stderr {
    pipe: Option<ChildStderr>,
    words: LastWords,
}

impl Stderr {
    async fn pass_on_and_stay(&mut self) -> Infallible {
        self.pass_on().await;
        pending().await
    }

    /// Passes lines on until the pipe is closed.
    async fn pass_on(&mut self) {
        let mut buffer = [0; 4096];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut buffer).await {
                Ok(read) if read > 0 => to_our_stderr(&self.words.push(&buffer[..read])),
                _ => self.pipe = None,
            }
        }
    }

    fn finish(&mut self) {
        to_our_stderr(&self.words.finish());
    }
}

fn to_our_stderr(lines: &[u8]) {
    // Nobody may be reading any more; the processes go on all the same.
    let _ = io::stderr().lock().write_all(lines);
}

const DRAIN: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_in_words() {
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        assert_eq!(
            in_words(exited(3), Some("no display")),
            "exited with status 3: no display"
        );
        assert_eq!(in_words(exited(0), None), "exited with status 0");
        assert_eq!(
            in_words(ExitStatus::from_raw(9), Some("all is well")),
            "killed by signal 9"
        );
    }
}
