//! When to write, and what. Time and chance are arguments.
//!
//! ```text
//!            set                begin               wrote
//!   at rest ─────► due at some ──────► in flight ─────────► at rest
//!                  time    ▲               │ failed
//!                          └───────────────┘ after a back-off, with what is newest then
//! ```
//!
//! | what | is written |
//! |---|---|
//! | the first state | at once |
//! | a change of facts (allocations, health, capacity) | within [`AT_MOST_EVERY`], together with what comes meanwhile |
//! | a change of measurements alone | [`MEASURED_EVERY`] after the write before, and up to a fifth later |
//! | nothing new | [`REFRESH_EVERY`] after the write before, should somebody have deleted or changed the object |
//! | what failed | after 1 s at first and 60 s at most, or up to half of that earlier |

use std::time::{Duration, Instant};

use penstock_core::gpu_node::GpuNodeSpec;

use super::state::{Facts, NodeState, Readings, readings};

/// The least time from the start of one write to that of the next.
pub(super) const AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// The least time from a write to one that brings new measurements only.
pub(super) const MEASURED_EVERY: Duration = Duration::from_secs(30);
/// The time from a write to one that brings nothing new.
pub(super) const REFRESH_EVERY: Duration = Duration::from_secs(300);
/// How long a change of facts waits for others that come with it: one pod makes several calls.
pub(super) const GATHER: Duration = Duration::from_millis(100);
/// The longest wait after a failed write.
pub(super) const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// A number from 0 to 1 by chance, so that nodes don't write in step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Jitter(f64);

impl Jitter {
    /// Keeps `chance` within 0 and 1.
    pub(super) fn new(chance: f64) -> Self {
        Self(if chance.is_finite() {
            chance.clamp(0.0, 1.0)
        } else {
            0.0
        })
    }

    /// `base`, and up to `share` of it more.
    fn beyond(self, base: Duration, share: f64) -> Duration {
        base + base.mul_f64(share * self.0)
    }
}

/// Decides when to write what.
#[derive(Debug, Default)]
pub(super) struct Policy {
    /// What is known now; none before the first state.
    wanted: Option<Wanted>,
    written: Option<Written>,
    in_flight: Option<Written>,
    /// When the last attempt began.
    last_attempt: Option<Instant>,
    /// When measurements alone may be written, and when all is written again.
    pace: Option<Pace>,
    failures: u32,
    /// No attempt before this: the back-off.
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct Wanted {
    facts: Facts,
    state: NodeState,
    /// When the facts became what they are.
    since: Instant,
}

#[derive(Debug, Clone)]
struct Written {
    facts: Facts,
    readings: Readings,
}

#[derive(Debug, Clone, Copy)]
struct Pace {
    measured: Instant,
    refresh: Instant,
}

impl Policy {
    /// Takes the newest state; `wall` is the time of day by RFC 3339, for conditions that it changes.
    pub(super) fn set(&mut self, now: Instant, wall: &str, state: NodeState) {
        let before = self.wanted.take();
        let known = before.as_ref().map(|w| w.facts.clone()).unwrap_or_default();
        let facts = Facts::of(&state, &known, wall);
        // The first of several changes that wait together sets the time; a change that waits for nothing, its own.
        let waiting = before.as_ref().is_some_and(|w| !self.is_written(&w.facts));
        let since = before.filter(|w| waiting || w.facts == facts).map(|w| w.since);
        self.wanted = Some(Wanted {
            facts,
            state,
            since: since.unwrap_or(now),
        });
    }

    /// When to call [`Self::begin`]; `None` while there is nothing to write, or a write is in flight.
    pub(super) fn due(&self) -> Option<Instant> {
        let wanted = self.wanted.as_ref().filter(|_| self.in_flight.is_none())?;
        let wish = self.wish(wanted);
        let spaced = self
            .last_attempt
            .map_or(wish, |last| wish.max(last + AT_MOST_EVERY));
        Some(
            self.not_before
                .map_or(spaced, |not_before| spaced.max(not_before)),
        )
    }

    /// The earliest time for a write, failures and spacing aside.
    fn wish(&self, wanted: &Wanted) -> Instant {
        let (Some(written), Some(pace)) = (&self.written, self.pace) else {
            return wanted.since;
        };
        if written.facts != wanted.facts {
            return wanted.since + GATHER;
        }
        let shown = readings(&wanted.state, &written.readings);
        if shown == written.readings {
            pace.refresh
        } else {
            pace.measured
        }
    }

    /// Begins a write that is due, and gives what to write. The next call is [`Self::wrote`] or [`Self::failed`].
    pub(super) fn begin(&mut self, now: Instant) -> Option<GpuNodeSpec> {
        self.due().filter(|due| *due <= now)?;
        self.start(now)
    }

    /// Begins the last write of all, where there are facts that were not written: no other comes, so it waits for none.
    pub(super) fn begin_last(&mut self, now: Instant) -> Option<GpuNodeSpec> {
        let unwritten = self.wanted.as_ref().is_some_and(|w| !self.is_written(&w.facts));
        unwritten.then(|| self.start(now)).flatten()
    }

    fn start(&mut self, now: Instant) -> Option<GpuNodeSpec> {
        let wanted = self.wanted.as_ref()?;
        let shown = self.written.as_ref().map(|w| &w.readings);
        let readings = readings(&wanted.state, shown.unwrap_or(&Readings::new()));
        let content = wanted.facts.with(&readings);
        let facts = wanted.facts.clone();
        self.in_flight = Some(Written { facts, readings });
        self.last_attempt = Some(now);
        Some(content)
    }

    /// The write that was begun has succeeded.
    pub(super) fn wrote(&mut self, now: Instant, jitter: Jitter) {
        self.written = self.in_flight.take();
        self.failures = 0;
        self.not_before = None;
        self.pace = Some(Pace {
            measured: now + jitter.beyond(MEASURED_EVERY, 0.2),
            refresh: now + jitter.beyond(REFRESH_EVERY, 0.2),
        });
    }

    /// The write that was begun has failed, or nobody knows what became of it. Gives the wait before the next one.
    pub(super) fn failed(&mut self, now: Instant, jitter: Jitter) -> Duration {
        self.in_flight = None;
        self.failures = self.failures.saturating_add(1);
        let wait = backoff(self.failures, jitter);
        self.not_before = Some(now + wait);
        wait
    }

    fn is_written(&self, facts: &Facts) -> bool {
        let newest = self.in_flight.as_ref().or(self.written.as_ref());
        newest.is_some_and(|written| written.facts == *facts)
    }
}

/// Half of 1, 2, 4 … 60 seconds, and up to as much again.
fn backoff(failures: u32, jitter: Jitter) -> Duration {
    let doublings = failures.saturating_sub(1).min(MAX_DOUBLINGS);
    let longest = (FIRST_BACKOFF * 2u32.pow(doublings)).min(LONGEST_BACKOFF);
    jitter.beyond(longest / 2, 1.0)
}

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// 1 s doubled six times is past [`LONGEST_BACKOFF`].
const MAX_DOUBLINGS: u32 = 6;
