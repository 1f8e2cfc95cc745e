//! What went wrong between us and Kubernetes' API server, in words. The client library's own are for its developers: they
//! repeat themselves and end in a dump.

use std::error::Error as _;
use std::time::Duration;

use kube::core::Status;
use kube::runtime::watcher;

/// What an error of the client says.
pub fn of(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => of_status(status),
        // The outermost one repeats the first of its sources.
        other => other.source().map_or_else(|| other.to_string(), chain),
    }
}

/// What an error of a watch says.
pub fn of_watch(error: &watcher::Error) -> String {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => of(error),
        WatchError(status) => of_status(status),
        NoResourceVersion => "the API server gave no resource version".to_owned(),
    }
}

/// What is said of a request that was given up.
pub fn no_answer(within: Duration) -> String {
    format!("the API server did not answer within {} s", within.as_secs())
}

fn of_status(status: &Status) -> String {
    let what = match (&*status.message, &*status.reason) {
        ("", reason) => reason,
        (message, _) => message,
    };
    format!("the API server says {} {}", status.code, what.trim())
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let each = std::iter::successors(Some(error), |error| (*error).source());
    each.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_said_once() {
        let status = Status::failure("gpunodes is forbidden", "Forbidden").with_code(403);
        let words = of(&kube::Error::Api(status.clone().boxed()));
        assert_eq!(words, "the API server says 403 gpunodes is forbidden");
        assert_eq!(of_watch(&watcher::Error::WatchError(status.boxed())), words);
    }

    #[test]
    fn a_connection_error_names_its_causes() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(of(&kube::Error::Service(refused.into())), "connection refused");
    }
}
