//! A Lease of `coordination.k8s.io/v1`, which one of several replicas holds at a time.
//!
//! ```text
//!  found     nobody's, or mine          another's, and it moved        another's, and it stood still for its duration
//!  step      take, or renew             wait                           take
//! ```
//!
//! Whether another still renews is told by its record changing, measured by our own clock, so the replicas' clocks may
//! differ. The holder may act until [`ACTS_FOR`] after the *begin* of its last renewal; what it has begun by then has to
//! be over within [`ENDS_WITHIN`] more. Another takes over [`DURATION`] after it saw that renewal at the earliest. As
//! `ACTS_FOR + ENDS_WITHIN <= DURATION`, two never act at once.
//!
//! kube-lease-manager and kube-leader-election, which do the like, compare the holder's clock with their own.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use penstock_shell::api_errors;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How long a holder that does not renew is waited for.
pub const DURATION: Duration = Duration::from_secs(15);
/// How long after a renewal the holder may begin what only the holder may do.
pub const ACTS_FOR: Duration = Duration::from_secs(10);
/// How long that may take.
pub const ENDS_WITHIN: Duration = Duration::from_secs(5);
const _: () = assert!(ACTS_FOR.as_secs() + ENDS_WITHIN.as_secs() <= DURATION.as_secs());
/// How often it is renewed, or looked at.
const EVERY: Duration = Duration::from_secs(2);
/// How long the API server may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// A replica's part in it.
pub struct Holder {
    api: Api<Lease>,
    name: String,
    me: String,
    seen: Option<Seen>,
    held: watch::Sender<Option<Instant>>,
    in_trouble: bool,
}

/// The holder's record as it was seen last.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    spec: LeaseSpec,
    /// When it was first seen so.
    at: Instant,
}

/// What to do about what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Create,
    Take,
    Renew,
    Wait,
}

impl Holder {
    /// The replica `me`, and until when it may act: nothing while it is not the holder.
    pub fn new(
        client: Client,
        namespace: &str,
        name: String,
        me: String,
    ) -> (Self, watch::Receiver<Option<Instant>>) {
        let (held, until) = watch::channel(None);
        let holder = Self {
            api: Api::namespaced(client, namespace),
            name,
            me,
            seen: None,
            held,
            in_trouble: false,
        };
        (holder, until)
    }

    /// Takes the Lease when it can be had, and renews it, until `stop`; then gives it back.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let begun = Instant::now();
            let outcome = timeout(ANSWER_WITHIN, self.round()).await;
            match outcome {
                Ok(Ok(true)) => self.has_it(begun),
                Ok(Ok(false)) => self.has_not("another matchmaker holds it"),
                Ok(Err(error)) => self.trouble(&api_errors::of(&error)),
                Err(_) => self.trouble(&api_errors::no_answer(ANSWER_WITHIN)),
            }
            // Not always at the same time as the others.
            let wait = EVERY.mul_f64(rand::random_range(0.8..1.2));
            let _ = timeout(wait, stop.cancelled()).await;
        }
        if self.held.send_replace(None).is_some() {
            self.give_back().await;
        }
    }

    /// Whether it is ours now.
    async fn round(&mut self) -> Result<bool, kube::Error> {
        let found = self.api.get_opt(&self.name).await?;
        let now = Instant::now();
        let step = decide(
            now,
            &self.me,
            &mut self.seen,
            found.as_ref().and_then(|l| l.spec.as_ref()),
        );
        let how = PostParams::default();
        let written = match (step, found) {
            (Step::Wait, _) => return Ok(false),
            (Step::Create, None) => {
                let metadata = ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                };
                let spec = Some(self.spec(None));
                self.api.create(&how, &Lease { metadata, spec }).await
            }
            (_, found) => {
                let found = found.unwrap_or_default();
                let spec = Some(self.spec(found.spec.as_ref()));
                // With the version that was found: where somebody else was quicker, this is refused.
                self.api.replace(&self.name, &how, &Lease { spec, ..found }).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn spec(&self, found: Option<&LeaseSpec>) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let found = found.cloned().unwrap_or_default();
        let mine = found.holder_identity.as_deref() == Some(&self.me);
        let transitions = found.lease_transitions.unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if mine { found.acquire_time } else { now.clone() },
            renew_time: now,
            lease_transitions: Some(if mine { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        }
    }

    fn has_it(&mut self, begun: Instant) {
        self.in_trouble = false;
        if self.held.send_replace(Some(begun + ACTS_FOR)).is_none() {
            tracing::info!(
                lease = self.name,
                "this matchmaker writes what pods cost to delete"
            );
        }
    }

    fn has_not(&mut self, reason: &str) {
        self.in_trouble = false;
        if self.held.send_replace(None).is_some() {
            tracing::info!(
                lease = self.name,
                reason,
                "this matchmaker writes on pods no more"
            );
        }
    }

    /// What was had is had until its time is over: the last renewal says until when.
    fn trouble(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.in_trouble, true) {
            tracing::warn!(
                "taking or renewing the Lease {}: {reason}; it is tried again (the matchmaker needs the verbs get, \
                 create and update on leases)",
                self.name
            );
        }
        if self.held.borrow().is_some_and(|until| until <= Instant::now()) {
            self.has_not("it could not be renewed in time");
            self.in_trouble = true;
        }
    }

    /// So that another need not wait. Where that fails, it waits.
    async fn give_back(&self) {
        let give = async {
            let found = self.api.get(&self.name).await?;
            let mine = found
                .spec
                .as_ref()
                .and_then(|spec| spec.holder_identity.as_deref())
                == Some(&self.me);
            if mine {
                let spec = found.spec.clone().map(|spec| LeaseSpec {
                    holder_identity: None,
                    ..spec
                });
                self.api
                    .replace(&self.name, &PostParams::default(), &Lease { spec, ..found })
                    .await?;
            }
            Ok::<_, kube::Error>(())
        };
        match timeout(ANSWER_WITHIN, give).await {
            Ok(Ok(())) => tracing::debug!(lease = self.name, "gave the Lease back"),
            Ok(Err(error)) => tracing::debug!("giving the Lease back: {}", api_errors::of(&error)),
            Err(_) => tracing::debug!("giving the Lease back: {}", api_errors::no_answer(ANSWER_WITHIN)),
        }
    }
}

/// What this replica calls itself: its host's name, which is its pod's, and something that no other start has.
pub fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{:08x}", host.trim(), rand::random::<u32>())
}

/// What to do now. Notes what was seen.
fn decide(now: Instant, me: &str, seen: &mut Option<Seen>, found: Option<&LeaseSpec>) -> Step {
    let Some(spec) = found else {
        return Step::Create;
    };
    let same = seen.as_ref().filter(|seen| seen.spec == *spec);
    let at = same.map_or(now, |seen| seen.at);
    *seen = Some(Seen {
        spec: spec.clone(),
        at,
    });
    match spec.holder_identity.as_deref() {
        None | Some("") => Step::Take,
        Some(holder) if holder == me => Step::Renew,
        Some(_) => {
            let theirs = spec
                .lease_duration_seconds
                .and_then(|seconds| u64::try_from(seconds).ok());
            match now >= at + theirs.map_or(DURATION, Duration::from_secs) {
                true => Step::Take,
                false => Step::Wait,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn what_nobody_holds_is_taken_and_what_is_mine_renewed() {
        let (now, mut seen) = (Instant::now(), None);
        assert_eq!(decide(now, "me", &mut seen, None), Step::Create);
        assert_eq!(decide(now, "me", &mut seen, Some(&held_by("", 1))), Step::Take);
        assert_eq!(
            decide(now, "me", &mut seen, Some(&LeaseSpec::default())),
            Step::Take
        );
        assert_eq!(decide(now, "me", &mut seen, Some(&held_by("me", 1))), Step::Renew);
    }

    #[test]
    fn anothers_is_taken_once_it_has_stood_still_for_its_duration() {
        let (start, mut seen) = (Instant::now(), None);
        let mut at = |seconds, n| {
            let now = start + Duration::from_secs(seconds);
            decide(now, "me", &mut seen, Some(&held_by("other", n)))
        };
        assert_eq!(at(0, 1), Step::Wait);
        assert_eq!(at(14, 1), Step::Wait);
        assert_eq!(at(14, 2), Step::Wait, "it moved");
        assert_eq!(at(28, 2), Step::Wait);
        assert_eq!(at(29, 2), Step::Take);
    }
}
