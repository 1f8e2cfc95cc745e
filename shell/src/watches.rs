//! Watches of Kubernetes' API server: all objects first, then each change, whatever happens in between.
//!
//! ```text
//!   API server ──list, watch──► kube's watcher ──► events ──► changes ──► whoever asked
//!                                  ▲ after an error: again, each time later, from where it ended;
//!                                    from a new list where nobody remembers that place
//! ```
//!
//! kube's watcher does nearly all of it, but for two things. Where the very request for a watch is refused, since its
//! place is too old, it asks for the same place for ever: it takes that only as an event of a watch. And it begins to wait
//! anew, with the shortest wait, whenever it begins a list, although that may fail as the one before did.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, future, stream};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, DefaultBackoff, Error, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use crate::api_errors;

/// A change among the objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<K> {
    /// These are all; whatever was known before is no more.
    All(Vec<K>),
    /// One is new, or has changed.
    Changed(K),
    /// One is gone, or is not among those watched any more.
    Gone(K),
    /// The API server can't be heard. What was known may be old.
    Silent,
}

/// Where a watch goes on after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Where it ended, as far as anybody remembers that: this costs the API server least. But that it works again shows
    /// only when something changes.
    WhereItEnded,
    /// With a new list, which shows at once that it works again.
    WithAList,
}

/// What the log says of a watch that fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// What is watched, such as `the pods of node a`.
    pub what: String,
    /// What it needs, such as `the agent needs the verbs list and watch on pods`.
    pub needs: &'static str,
}

/// The objects of `api` that `config` selects: all of them first, then each change, for ever. That a watch fails is
/// logged once, until it works again.
pub fn changes<K>(
    api: Api<K>,
    config: watcher::Config,
    resume: Resume,
    words: Words,
) -> impl Stream<Item = Change<K>> + Send
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut hearing = Hearing {
        words,
        listed: Vec::new(),
        in_trouble: false,
    };
    events(api, config, resume).filter_map(move |next| future::ready(hearing.change(next)))
}

/// The same as it comes, for those to whom a list is too long to be kept twice. It never ends. That a place is too old is
/// no error: a new list follows.
pub fn events<K>(
    api: Api<K>,
    config: watcher::Config,
    resume: Resume,
) -> impl Stream<Item = Result<Event<K>, Error>> + Send
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let begin = move || {
        let watch = watcher(api.clone(), config.clone()).boxed();
        stream::unfold(Some(watch), move |watch| async move {
            let mut watch = watch?;
            let next = watch.next().await?;
            let ends = |error: &Error| resume == Resume::WithAList || is_too_old(error);
            let ended = next.as_ref().is_err_and(ends);
            Some((next, (!ended).then_some(watch)))
        })
    };
    let all = stream::repeat_with(begin).flatten();
    all.backoff(Patience::default())
        .filter(|next| future::ready(!next.as_ref().is_err_and(is_too_old)))
}

fn is_too_old(error: &Error) -> bool {
    let code = match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchError(status) => status.code,
        _ => return false,
    };
    code == 410
}

struct Hearing<K> {
    words: Words,
    /// The objects of a list that is not complete yet.
    listed: Vec<K>,
    in_trouble: bool,
}

impl<K> Hearing<K> {
    fn change(&mut self, next: Result<Event<K>, Error>) -> Option<Change<K>> {
        let change = match next {
            Ok(Event::Init) => {
                self.listed.clear();
                return None;
            }
            Ok(Event::InitApply(object)) => {
                self.listed.push(object);
                return None;
            }
            Ok(Event::InitDone) => Change::All(std::mem::take(&mut self.listed)),
            Ok(Event::Apply(object)) => Change::Changed(object),
            Ok(Event::Delete(object)) => Change::Gone(object),
            Err(error) => {
                self.complain(&error);
                return Some(Change::Silent);
            }
        };
        if std::mem::take(&mut self.in_trouble) {
            tracing::info!("watching {} again", self.words.what);
        }
        Some(change)
    }

    fn complain(&mut self, error: &Error) {
        let Words { what, needs } = &self.words;
        let why = api_errors::of_watch(error);
        if std::mem::replace(&mut self.in_trouble, true) {
            tracing::debug!("still trying to watch {what}: {why}");
        } else {
            tracing::warn!("watching {what}: {why}; it is tried again, {TRIED_AGAIN} ({needs})");
        }
    }
}

/// Waits grow until two minutes have passed without an error, as in Kubernetes' own clients, and not only until something
/// seems to work.
#[derive(Default)]
struct Patience(DefaultBackoff);

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next()
    }
}

impl Backoff for Patience {
    /// Time alone does that.
    fn reset(&mut self) {}
}

/// How often a watch that fails is tried, in words.
pub const TRIED_AGAIN: &str = "at least once a minute";

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn waits_grow_to_a_minute_at_most_whatever_seems_to_work() {
        let mut patience = Patience::default();
        let mut waits = Vec::new();
        for _ in 0..20 {
            patience.reset();
            waits.extend(patience.next());
        }
        // Each is lengthened by chance, to twice its time at most.
        let seconds = |from: f32, to: f32| Duration::from_secs_f32(from)..=Duration::from_secs_f32(to);
        assert!(seconds(0.8, 1.6).contains(&waits[0]), "{waits:?}");
        assert!(seconds(3.2, 6.4).contains(&waits[2]), "{waits:?}");
        assert!(
            waits[10..].iter().all(|wait| seconds(30.0, 60.0).contains(wait)),
            "{waits:?}"
        );
    }

    #[test]
    fn a_list_is_told_when_it_is_whole() {
        let mut hearing = hearing();
        let mut hear = |event| hearing.change(event);
        assert_eq!(hear(Ok(Event::Init)), None);
        assert_eq!(hear(Ok(Event::InitApply("lost"))), None);
        assert_eq!(hear(Err(Error::NoResourceVersion)), Some(Change::Silent));
        for (event, change) in [
            (Event::Init, None),
            (Event::InitApply("a"), None),
            (Event::InitApply("b"), None),
            (Event::InitDone, Some(Change::All(vec!["a", "b"]))),
            (Event::Apply("c"), Some(Change::Changed("c"))),
            (Event::Delete("a"), Some(Change::Gone("a"))),
            (Event::Init, None),
            (Event::InitDone, Some(Change::All(vec![]))),
        ] {
            assert_eq!(hear(Ok(event)), change);
        }
    }

    #[test]
    fn trouble_lasts_until_something_is_heard() {
        let mut hearing = hearing();
        for _ in 0..2 {
            hearing.change(Err(Error::NoResourceVersion));
            hearing.change(Ok(Event::Init));
            assert!(
                hearing.in_trouble,
                "that a list begins says nothing: it is asked for only then"
            );
        }
        hearing.change(Ok(Event::InitDone));
        assert!(!hearing.in_trouble);
    }

    #[test]
    fn a_place_is_too_old_as_an_event_and_as_an_answer() {
        let status = |code| Status::failure("", "Expired").with_code(code).boxed();
        for (code, expected) in [(410, true), (403, false)] {
            assert_eq!(is_too_old(&Error::WatchError(status(code))), expected);
            let answer = Error::WatchStartFailed(kube::Error::Api(status(code)));
            assert_eq!(is_too_old(&answer), expected);
        }
    }

    fn hearing() -> Hearing<&'static str> {
        let what = "things".to_owned();
        let words = Words { what, needs: "" };
        Hearing {
            words,
            listed: Vec::new(),
            in_trouble: false,
        }
    }
}
