//! Says on a pod that it uses more of the encoder than its slice.
//!
//! NVENC is not capped by anything, so a pod that takes too much takes it from its neighbours: whoever looks at it
//! with `kubectl describe pod` should see that. At most one Event per pod in [`QUIET`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use penstock_core::ids::{GpuUuid, NodeName, PodUid};
use penstock_core::units::EncoderUnits;

use penstock_shell::api_errors;

/// The least time between two Events on one pod.
pub(crate) const QUIET: Duration = Duration::from_secs(600);
/// The least time after an Event that could not be written.
pub(crate) const RETRY: Duration = Duration::from_secs(60);

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodRef {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Which one of that name.
    pub(crate) uid: PodUid,
}

/// How much too much it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Overuse {
    /// The GPU.
    pub(crate) gpu: GpuUuid,
    /// What the pod was measured to use.
    pub(crate) used: EncoderUnits,
    /// What its slice has.
    pub(crate) slice: EncoderUnits,
}

/// An Event could not be written.
#[derive(Debug, thiserror::Error)]
#[error(
    "writing an Event on pod {namespace}/{name} about its encoder use: {why} (the agent needs the verbs create \
     and patch on events of events.k8s.io)"
)]
pub(crate) struct NotReported {
    namespace: String,
    name: String,
    why: String,
}

/// Writes the Events.
pub(crate) struct OveruseReporter {
    recorder: Recorder,
    policy: OncePerPod,
}

impl OveruseReporter {
    /// Reports as the agent of `node`.
    pub(crate) fn new(client: Client, node: &NodeName) -> Self {
        let reporter = Reporter {
            controller: "penstock.dev/plugin".to_owned(),
            instance: Some(node.to_string()),
        };
        Self {
            recorder: Recorder::new(client, reporter),
            policy: OncePerPod::default(),
        }
    }

    /// Says on `pod` that it uses too much, unless that was said a short while ago. Gives whether it was said.
    ///
    /// # Errors
    /// Where the API server does not take the Event; it is tried again not before [`RETRY`].
    pub(crate) async fn report(
        &mut self,
        now: Instant,
        pod: &PodRef,
        overuse: &Overuse,
    ) -> Result<bool, NotReported> {
        if !self.policy.may(now, &pod.uid) {
            return Ok(false);
        }
        let published = self.publish(pod, overuse).await;
        let quiet = if published.is_ok() { QUIET } else { RETRY };
        self.policy.said(now, pod.uid.clone(), quiet);
        let failed = |why| NotReported {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            why,
        };
        published.map(|()| true).map_err(failed)
    }

    async fn publish(&self, pod: &PodRef, overuse: &Overuse) -> Result<(), String> {
        let (event, reference) = (event(overuse), reference(pod));
        let publishing = self.recorder.publish(&event, &reference);
        match tokio::time::timeout(ANSWER_WITHIN, publishing).await {
            Ok(answer) => answer.map_err(|error| api_errors::of(&error)),
            Err(_) => Err(api_errors::no_answer(ANSWER_WITHIN)),
        }
    }
}

fn event(overuse: &Overuse) -> Event {
    let Overuse { gpu, used, slice } = overuse;
    Event {
        type_: EventType::Warning,
        reason: "EncoderOverSlice".to_owned(),
        note: Some(format!(
            "The pod uses {used} of {gpu}, and its slice has {slice}: other pods on that GPU may drop frames. Ask \
             for more penstock.dev/nvenc, or stream smaller or slower."
        )),
        action: "Measure".to_owned(),
        secondary: None,
    }
}

fn reference(pod: &PodRef) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}

/// Until when each pod is left alone.
#[derive(Debug, Default)]
struct OncePerPod(BTreeMap<PodUid, Instant>);

impl OncePerPod {
    /// Whether something may be said on `pod`. Forgets pods whose time is over, so that it does not grow.
    fn may(&mut self, now: Instant, pod: &PodUid) -> bool {
        self.0.retain(|_, until| *until > now);
        !self.0.contains_key(pod)
    }

    fn said(&mut self, now: Instant, pod: PodUid, quiet: Duration) {
        self.0.insert(pod, now + quiet);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_spoken_of_once_in_ten_minutes() {
        let start = Instant::now();
        let [a, b] = ["a", "b"].map(|uid| PodUid::new(uid).unwrap());
        let mut policy = OncePerPod::default();
        assert!(policy.may(start, &a));
        policy.said(start, a.clone(), QUIET);
        let before = start + QUIET - Duration::from_millis(1);
        assert!(!policy.may(before, &a));
        assert!(policy.may(before, &b));
        assert!(policy.may(start + QUIET, &a));
    }

    #[test]
    fn pods_of_the_past_are_forgotten() {
        let start = Instant::now();
        let mut policy = OncePerPod::default();
        for n in 0..100 {
            policy.said(start, PodUid::new(format!("pod-{n}")).unwrap(), QUIET);
        }
        assert!(policy.may(start + QUIET, &PodUid::new("other").unwrap()));
        assert!(policy.0.is_empty());
    }
}
