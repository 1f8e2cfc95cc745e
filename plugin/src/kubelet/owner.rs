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
use crate::assign::{Assigner, GpuOffer, Grant, Outcome};
use crate::pods::PodEvent;

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
    pub(super) pods: Option<mpsc::Receiver<PodEvent>>,
    /// The GPUs of this node.
    pub(super) gpus: watch::Receiver<Vec<GpuOffer>>,
    /// What the kubelet says that containers hold; sent again even if it is the same.
    pub(super) holdings: watch::Receiver<Arc<Vec<PodDevices>>>,
    /// Whether the kubelet knows us: it does anew after a restart.
    pub(super) registered: watch::Receiver<bool>,
}

/// The owner.
pub(super) struct Owner {
    assigner: Assigner,
    inputs: Inputs,
    answers: Answers,
    lists: Lists,
    allocated: Arc<Notify>,
    look_now: Arc<Notify>,
    waiting: Vec<(Call, Instant)>,
    /// Whether a call waits for what podresources says.
    asked_kubelet: bool,
}

/// How to have podresources looked at.
#[derive(Debug, Clone, Default)]
pub(super) struct Looks {
    /// Once the kubelet has had time to store what it was answered.
    pub(super) soon: Arc<Notify>,
    /// At once: a call waits for it.
    pub(super) now: Arc<Notify>,
}

/// What happened.
enum Event {
    Pods(PodEvent),
    Gpus,
    Held,
    Registered,
    Called(Call),
    Time,
    ToldToEnd,
}

impl Owner {
    /// The owner of an [`Assigner`] that knows nothing yet. It publishes to `lists`, and asks for looks at
    /// podresources.
    pub(super) fn new(inputs: Inputs, answers: Answers, lists: Lists, looks: Looks) -> Self {
        let assigner = match inputs.pods {
            Some(_) => Assigner::watching(),
            None => Assigner::default(),
        };
        Self {
            assigner,
            inputs,
            answers,
            lists,
            allocated: looks.soon,
            look_now: looks.now,
            waiting: Vec::new(),
            asked_kubelet: false,
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
                Event::Registered => self.registered(),
                Event::Called(call) => self.answer(call),
                Event::Time => self.time(),
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
            Some(change) = change_of(&mut inputs.pods) => Event::Pods(change),
            Ok(()) = inputs.gpus.changed() => Event::Gpus,
            Ok(()) = inputs.registered.changed() => Event::Registered,
            Ok(()) = inputs.holdings.changed() => Event::Held,
            Some(call) = inputs.calls.recv() => Event::Called(call),
            () = sleep_until(soonest.unwrap_or(idle).into()) => Event::Time,
        }
    }

    /// What waited for podresources has waited long enough.
    fn time(&mut self) {
        if std::mem::take(&mut self.asked_kubelet) {
            self.assigner.unlisted();
        }
        self.ask_again(|at, now| at <= now);
    }

    fn pods_changed(&mut self, change: PodEvent) {
        match change {
            PodEvent::All(pods) => self.assigner.set_pods(pods),
            PodEvent::Changed(pod) => self.assigner.apply_pod(pod),
            PodEvent::Gone(uid) => self.assigner.delete_pod(&uid),
        }
        self.ask_all_again();
    }

    fn held_changed(&mut self) {
        let held = held(&self.inputs.holdings.borrow_and_update());
        self.asked_kubelet = false;
        self.assigner.set_held(Instant::now(), &held);
        // What other plugins hold may have changed too.
        self.gpus_changed();
    }

    fn registered(&mut self) {
        if *self.inputs.registered.borrow_and_update() {
            self.assigner.kubelet_restarted();
        }
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
        let (question, until) = match question {
            Question::Preferred {
                available,
                must_include,
                size,
                answer,
            } => {
                match self
                    .assigner
                    .preferred(now, resource, &available, &must_include, size)
                {
                    Outcome::Done(ids) => return drop(answer.send(Ok(ids))),
                    Outcome::Refuse(why) => return drop(answer.send(Err(refused(resource, why)))),
                    later => {
                        let question = Question::Preferred {
                            available,
                            must_include,
                            size,
                            answer,
                        };
                        (question, self.until(now, &later))
                    }
                }
            }
            Question::Allocate { ids, answer } => match self.assigner.allocate(now, resource, &ids) {
                Outcome::Done(grant) => return self.granted(resource, &grant, answer),
                Outcome::Refuse(why) => return drop(answer.send(Err(refused(resource, why)))),
                later => (Question::Allocate { ids, answer }, self.until(now, &later)),
            },
        };
        // An instant that is past would have us ask without pause.
        let until = until.max(now + SHORTEST_WAIT);
        self.waiting.push((Call { resource, question }, until));
    }

    /// When to ask again, if nothing happens before.
    fn until<T>(&mut self, now: Instant, later: &Outcome<T>) -> Instant {
        match later {
            Outcome::Wait(until) => *until,
            _ => {
                self.asked_kubelet = true;
                self.look_now.notify_one();
                now + LOOK_WITHIN
            }
        }
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

/// The next change of a pod; never, where pods are not watched.
async fn change_of(pods: &mut Option<mpsc::Receiver<PodEvent>>) -> Option<PodEvent> {
    match pods {
        Some(pods) => pods.recv().await,
        None => std::future::pending().await,
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
/// podresources answers within milliseconds, or something is wrong with it.
const LOOK_WITHIN: Duration = Duration::from_secs(1);
const SHORTEST_WAIT: Duration = Duration::from_millis(10);
