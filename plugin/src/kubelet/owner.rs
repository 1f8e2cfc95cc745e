//! The one task that owns the [`Assigner`], and carries its answers to those who ask.
//!
//! ```text
//!   the kubelet's calls ───┐              ┌──► answers; or they wait here, and are asked again
//!   pods of this node ─────┼──► Assigner ─┤
//!   GPUs, and what is held ┘              └──► device lists published, podresources looked at
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_core::device::{DeviceId, Resource};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::container_answer::ContainerAnswer;
use super::devices::Lists;
use super::pod_resources::{PodDevices, foreign_gpus, held};
use crate::assign::{Assigner, GpuOffer, Grant, Outcome, PodOnNode};

/// What has become of the pods of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "the watch of pods makes them"))]
pub(crate) enum PodChange {
    /// These are all.
    All(Vec<PodOnNode>),
    /// This one is new or has changed.
    Applied(PodOnNode),
    /// The one with this UID is gone.
    Deleted(String),
}

/// Builds what a container gets; the same for every resource of one container.
pub(crate) type Answers = Box<dyn Fn(&Grant) -> ContainerAnswer + Send>;

/// A call of the kubelet's.
#[derive(Debug)]
pub(super) struct Call {
    /// The resource that it is about.
    pub(super) resource: Resource,
    /// What it asks.
    pub(super) question: Question,
}

/// What a call asks; `Err` goes to the pod's owner.
#[derive(Debug)]
pub(super) enum Question {
    /// Which devices to take.
    Preferred {
        /// These can be had.
        available: Vec<DeviceId>,
        /// These have to be among them.
        must_include: Vec<DeviceId>,
        /// That many.
        size: usize,
        /// Takes the answer.
        answer: oneshot::Sender<Result<Vec<DeviceId>, String>>,
    },
    /// What the container that has these devices gets.
    Allocate {
        /// The devices.
        ids: Vec<DeviceId>,
        /// Takes the answer.
        answer: oneshot::Sender<Result<ContainerAnswer, String>>,
    },
}

/// What the owner hears from.
pub(super) struct Inputs {
    /// The kubelet's calls.
    pub(super) calls: mpsc::Receiver<Call>,
    /// The pods of this node.
    pub(super) pods: mpsc::Receiver<PodChange>,
    /// The GPUs of this node.
    pub(super) gpus: watch::Receiver<Vec<GpuOffer>>,
    /// What the kubelet says that containers hold; sent again even if it is the same.
    pub(super) holdings: watch::Receiver<Arc<Vec<PodDevices>>>,
}

/// The owner.
pub(super) struct Owner {
    assigner: Assigner,
    inputs: Inputs,
    answers: Answers,
    lists: Lists,
    allocated: Arc<Notify>,
    waiting: Vec<(Call, Instant)>,
}

/// What happened.
enum Event {
    Pods(PodChange),
    Gpus,
    Held,
    Called(Call),
    Time,
    ToldToEnd,
}

impl Owner {
    /// The owner of an [`Assigner`] that knows nothing yet. It publishes to `lists`, and says `allocated` after each
    /// allocation.
    pub(super) fn new(inputs: Inputs, answers: Answers, lists: Lists, allocated: Arc<Notify>) -> Self {
        Self {
            assigner: Assigner::default(),
            inputs,
            answers,
            lists,
            allocated,
            waiting: Vec::new(),
        }
    }

    /// Runs until `told_to_end`; calls that wait then go unanswered.
    pub(super) async fn run(mut self, told_to_end: CancellationToken) {
        self.gpus_changed();
        loop {
            let event = self.next(&told_to_end).await;
            match event {
                Event::Pods(change) => self.pods_changed(change),
                Event::Gpus => self.gpus_changed(),
                Event::Held => self.held_changed(),
                Event::Called(call) => self.answer(call),
                Event::Time => self.ask_again(|at, now| at <= now),
                Event::ToldToEnd => return,
            }
        }
    }

    /// What is known comes before what is asked: it makes for fewer waits.
    async fn next(&mut self, told_to_end: &CancellationToken) -> Event {
        let soonest = self.waiting.iter().map(|(_, at)| *at).min();
        let idle = Instant::now() + IDLE;
        let inputs = &mut self.inputs;
        tokio::select! {
            biased;
            () = told_to_end.cancelled() => Event::ToldToEnd,
            Some(change) = inputs.pods.recv() => Event::Pods(change),
            Ok(()) = inputs.gpus.changed() => Event::Gpus,
            Ok(()) = inputs.holdings.changed() => Event::Held,
            Some(call) = inputs.calls.recv() => Event::Called(call),
            () = sleep_until(soonest.unwrap_or(idle).into()) => Event::Time,
        }
    }

    fn pods_changed(&mut self, change: PodChange) {
        match change {
            PodChange::All(pods) => self.assigner.set_pods(pods),
            PodChange::Applied(pod) => self.assigner.apply_pod(pod),
            PodChange::Deleted(uid) => self.assigner.delete_pod(&uid),
        }
        self.ask_all_again();
    }

    fn held_changed(&mut self) {
        let held = held(&self.inputs.holdings.borrow_and_update());
        self.assigner.set_held(Instant::now(), &held);
        // What other plugins hold may have changed too.
        self.gpus_changed();
    }

    fn gpus_changed(&mut self) {
        let mut gpus = self.inputs.gpus.borrow_and_update().clone();
        mark_foreign(&mut gpus, &self.inputs.holdings.borrow());
        self.lists.publish(&gpus);
        self.assigner.set_gpus(gpus);
        self.ask_all_again();
    }

    fn ask_all_again(&mut self) {
        self.ask_again(|_, _| true);
    }

    /// Asks those that wait and are `due` once more, in the order in which they came.
    fn ask_again(&mut self, due: impl Fn(Instant, Instant) -> bool) {
        let now = Instant::now();
        for (call, at) in std::mem::take(&mut self.waiting) {
            match due(at, now) {
                true => self.answer(call),
                false => self.waiting.push((call, at)),
            }
        }
    }

    fn answer(&mut self, call: Call) {
        // Whoever asked may have hung up: a kubelet that was restarted asks anew.
        if call.is_moot() {
            return;
        }
        let Call { resource, question } = call;
        let now = Instant::now();
        let wait = match question {
            Question::Preferred {
                available,
                must_include,
                size,
                answer,
            } => match self
                .assigner
                .preferred(now, resource, &available, &must_include, size)
            {
                Outcome::Done(ids) => return drop(answer.send(Ok(ids))),
                Outcome::Refuse(why) => return drop(answer.send(Err(refused(resource, why)))),
                Outcome::Wait(until) => {
                    let question = Question::Preferred {
                        available,
                        must_include,
                        size,
                        answer,
                    };
                    (question, until)
                }
            },
            Question::Allocate { ids, answer } => match self.assigner.allocate(now, resource, &ids) {
                Outcome::Done(grant) => return self.granted(resource, &grant, answer),
                Outcome::Refuse(why) => return drop(answer.send(Err(refused(resource, why)))),
                Outcome::Wait(until) => (Question::Allocate { ids, answer }, until),
            },
        };
        let (question, until) = wait;
        // An instant that is past would have us ask without pause.
        let until = until.max(now + SHORTEST_WAIT);
        self.waiting.push((Call { resource, question }, until));
    }

    fn granted(
        &self,
        resource: Resource,
        grant: &Grant,
        answer: oneshot::Sender<Result<ContainerAnswer, String>>,
    ) {
        let pod = grant.pod.as_deref().unwrap_or("a pod unknown as yet");
        tracing::info!(resource = resource.name(), gpu = %grant.gpu, pod, "allocated {}", grant.container);
        let _ = answer.send(Ok((self.answers)(grant)));
        self.allocated.notify_one();
    }
}

impl Call {
    fn is_moot(&self) -> bool {
        match &self.question {
            Question::Preferred { answer, .. } => answer.is_closed(),
            Question::Allocate { answer, .. } => answer.is_closed(),
        }
    }
}

fn refused(resource: Resource, why: String) -> String {
    tracing::warn!(resource = resource.name(), "refused: {why}");
    why
}

/// Makes what another plugin handed out unhealthy for us.
fn mark_foreign(gpus: &mut [GpuOffer], holdings: &[PodDevices]) {
    let foreign = foreign_gpus(holdings);
    for gpu in gpus {
        let Some(why) = foreign.get(&gpu.uuid) else {
            continue;
        };
        for resource in Resource::ALL {
            gpu.unhealthy.entry(resource).or_insert_with(|| why.clone());
        }
    }
}

/// How long to sleep where nobody waits.
const IDLE: Duration = Duration::from_secs(3600);
const SHORTEST_WAIT: Duration = Duration::from_millis(10);
