//! When to register with the kubelet, and when to do so again. No I/O, no clock: what is seen comes in with the
//! time, and whether to register now comes out.
//!
//! ```text
//!             kubelet.sock appears                  done
//!   Away ──────────────────────────► Due(at) ─────────────────► Registered
//!    ▲                                ▲  │ failed: at is later,     │ another kubelet.sock, our sockets gone,
//!    │                                │  │ 0.5 s doubling to 30     │ or nobody watches our devices
//!    │  kubelet.sock is gone          └──┴──────────────────────────┘
//!    └── from any
//! ```
//!
//! A kubelet that starts deletes every socket in its plugin directory and makes its own anew; it knows no plugin
//! until each has registered again.

use std::time::{Duration, Instant};

/// What tells one socket file from another of the same name: a new file may get an old one's inode number, but not
/// its time too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SocketIdentity {
    /// The device that the file is on.
    pub(super) device: u64,
    /// Its number there.
    pub(super) inode: u64,
    /// When it was made, in seconds and nanoseconds since 1970: nothing changes a socket afterwards.
    pub(super) made: (i64, i64),
}

/// How things stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// The kubelet's socket, where there is one.
    pub(super) kubelet: Option<SocketIdentity>,
    /// Whether all our sockets are where we put them, and served.
    pub(super) sockets: bool,
    /// Whether the kubelet watches the devices of every resource.
    pub(super) watched: bool,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Rest,
    /// Nothing but saying, once, that there is no kubelet.
    SayAway,
    /// End what is left of the last registration, and register with this kubelet.
    Register(SocketIdentity, Why),
}

/// Why to register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It is the first time, or the last attempt failed.
    NotYet,
    /// The kubelet's socket is another one than that we registered with.
    NewKubelet,
    /// A socket of ours is gone.
    SocketsGone,
    /// The kubelet does not watch our devices, so it takes them for unhealthy.
    NobodyWatches,
}

/// The state. Owned and asked by one task.
#[derive(Debug)]
pub(super) struct Registrar {
    state: State,
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unseen,
    Away,
    Due {
        at: Instant,
        kubelet: SocketIdentity,
    },
    Registered {
        kubelet: SocketIdentity,
        watched_until: Instant,
    },
}

impl Registrar {
    /// One that has seen nothing yet.
    pub(super) fn new() -> Self {
        Self {
            state: State::Unseen,
            failures: 0,
        }
    }

    /// What to do about what is seen.
    pub(super) fn look(&mut self, now: Instant, seen: Seen) -> Step {
        let Some(kubelet) = seen.kubelet else {
            let was = std::mem::replace(&mut self.state, State::Away);
            return if was == State::Away {
                Step::Rest
            } else {
                Step::SayAway
            };
        };
        match self.why(now, kubelet, seen) {
            Some(why) => Step::Register(kubelet, why),
            None => Step::Rest,
        }
    }

    /// Registering with `kubelet` went well.
    pub(super) fn registered(&mut self, now: Instant, kubelet: SocketIdentity) {
        self.failures = 0;
        self.state = State::Registered {
            kubelet,
            watched_until: now,
        };
    }

    /// Registering with `kubelet` failed. Gives whether that is worth saying: it is the first time in a row.
    pub(super) fn failed(&mut self, now: Instant, kubelet: SocketIdentity) -> bool {
        let delay = FIRST_DELAY * 2u32.pow(self.failures.min(MAX_DOUBLINGS));
        let at = now + delay.min(LONGEST_DELAY);
        self.state = State::Due { at, kubelet };
        self.failures += 1;
        self.failures == 1
    }

    fn why(&mut self, now: Instant, seen_kubelet: SocketIdentity, seen: Seen) -> Option<Why> {
        match &mut self.state {
            State::Unseen | State::Away => Some(Why::NotYet),
            State::Due { at, kubelet } => (now >= *at || *kubelet != seen_kubelet).then_some(Why::NotYet),
            State::Registered { kubelet, .. } if *kubelet != seen_kubelet => Some(Why::NewKubelet),
            State::Registered { .. } if !seen.sockets => Some(Why::SocketsGone),
            State::Registered { watched_until, .. } => {
                if seen.watched {
                    *watched_until = now;
                }
                (now >= *watched_until + WATCHED_AGAIN_WITHIN).then_some(Why::NobodyWatches)
            }
        }
    }
}

impl Why {
    /// In words that go after "registering with the kubelet again:".
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::NotYet => "it does not know our resources",
            Self::NewKubelet => "it was restarted",
            Self::SocketsGone => "our sockets are gone from its directory",
            Self::NobodyWatches => "it has stopped watching our devices",
        }
    }
}

const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// 0.5 s doubled six times is past [`LONGEST_DELAY`].
const MAX_DOUBLINGS: u32 = 6;
/// How long the kubelet may take from a registration to its watch of the devices.
const WATCHED_AGAIN_WITHIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelet_that_appears_is_registered_with_at_once() {
        let mut registrar = Registrar::new();
        let t = Instant::now();
        assert_eq!(registrar.look(t, none()), Step::SayAway);
        assert_eq!(registrar.look(t, none()), Step::Rest, "it was said before");
        assert_eq!(
            registrar.look(t, well(1)),
            Step::Register(kubelet(1), Why::NotYet)
        );
        registrar.registered(t, kubelet(1));
        assert_eq!(registrar.look(t + 100 * SECOND, well(1)), Step::Rest);
    }

    #[test]
    fn another_kubelet_or_lost_sockets_are_registered_at_once() {
        let (mut registrar, t) = registered();
        let lost = Seen {
            sockets: false,
            ..well(1)
        };
        assert_eq!(
            registrar.look(t, lost),
            Step::Register(kubelet(1), Why::SocketsGone)
        );
        assert_eq!(
            registrar.look(t, well(2)),
            Step::Register(kubelet(2), Why::NewKubelet)
        );
    }

    #[test]
    fn a_kubelet_that_stops_watching_has_two_seconds() {
        let (mut registrar, t) = registered();
        let unwatched = Seen {
            watched: false,
            ..well(1)
        };
        assert_eq!(registrar.look(t + SECOND, unwatched), Step::Rest);
        assert_eq!(registrar.look(t + 2 * SECOND, well(1)), Step::Rest);
        assert_eq!(registrar.look(t + 3 * SECOND, unwatched), Step::Rest);
        let again = Step::Register(kubelet(1), Why::NobodyWatches);
        assert_eq!(registrar.look(t + 4 * SECOND, unwatched), again);
    }

    #[test]
    fn failures_wait_ever_longer_but_not_for_a_new_kubelet() {
        let mut registrar = Registrar::new();
        let mut t = Instant::now();
        let mut waits = Vec::new();
        for nth in 0..8 {
            assert_eq!(registrar.failed(t, kubelet(1)), nth == 0);
            let wait = (1..).map(|n| n * FIRST_DELAY);
            let due = |wait: &Duration| registrar.look(t + *wait, well(1)) != Step::Rest;
            let wait = wait.clone().find(due).unwrap();
            waits.push(wait.as_secs_f64());
            t += wait;
        }
        assert_eq!(waits, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        registrar.failed(t, kubelet(1));
        assert_eq!(
            registrar.look(t, well(2)),
            Step::Register(kubelet(2), Why::NotYet)
        );
    }

    #[test]
    fn a_kubelet_that_went_away_is_new_when_it_is_back() {
        let (mut registrar, t) = registered();
        assert_eq!(registrar.look(t, none()), Step::SayAway);
        assert_eq!(
            registrar.look(t, well(1)),
            Step::Register(kubelet(1), Why::NotYet)
        );
    }

    fn registered() -> (Registrar, Instant) {
        let t = Instant::now();
        let mut registrar = Registrar::new();
        registrar.registered(t, kubelet(1));
        (registrar, t)
    }

    fn kubelet(inode: u64) -> SocketIdentity {
        SocketIdentity {
            device: 1,
            inode,
            made: (0, 0),
        }
    }

    fn well(inode: u64) -> Seen {
        Seen {
            kubelet: Some(kubelet(inode)),
            sockets: true,
            watched: true,
        }
    }

    fn none() -> Seen {
        Seen {
            kubelet: None,
            ..well(1)
        }
    }

    const SECOND: Duration = Duration::from_secs(1);
}
