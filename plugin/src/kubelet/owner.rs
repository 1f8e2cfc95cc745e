//! The one task that owns the [`Assigner`], and carries its answers to those who ask.
//!
//! ```text
//!   the kubelet's calls ───┐              ┌──► answers; or they wait here, and are asked again
//!   pods of this node ─────┼──► Assigner ─┼──► device lists published, podresources looked at
//!   GPUs, and what is held ┘              └──► who holds what
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_core::device::Resource;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::container_answer::ContainerAnswer;
use super::devices::Lists;
use super::metrics::{self, Metrics};
use super::pod_resources::{Foreign, Holdings, Looks};
use crate::assign::{Assigner, Devices, GpuOffer, Grant, Occupancy, Outcome};
use crate::pods::PodEvent;

/// Builds what a container gets; the same for every resource of one container.
pub(crate) type Answers = Box<dyn FnMut(&Grant) -> ContainerAnswer + Send>;

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
        available: Devices,
        /// These have to be among them.
        must_include: Devices,
        /// That many.
        size: usize,
        /// Takes the answer.
        answer: oneshot::Sender<Result<Devices, String>>,
    },
    /// What the container that has these devices gets.
    Allocate {
        /// The devices.
        ids: Devices,
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
    /// The GPUs of this node; none before they are known.
    pub(super) gpus: watch::Receiver<Option<Vec<GpuOffer>>>,
    /// What the kubelet says that containers hold; sent again even if it is the same.
    pub(super) holdings: watch::Receiver<Arc<Holdings>>,
    /// Whether the kubelet knows us: it does anew after a restart.
    pub(super) registered: watch::Receiver<bool>,
}

/// Whom the owner tells.
pub(super) struct Outputs {
    /// What a container gets.
    pub(super) answers: Answers,
    /// The devices, for the kubelet.
    pub(super) lists: Lists,
    /// Who holds what.
    pub(super) occupied: watch::Sender<Option<Arc<Occupancy>>>,
    /// What is counted.
    pub(super) metrics: Metrics,
}

/// The owner.
pub(super) struct Owner {
    assigner: Assigner,
    inputs: Inputs,
    outputs: Outputs,
    /// Whether the pods have been listed, and the kubelet has said what they hold: before, what is held is not known.
    pods_known: bool,
    held_known: bool,
    /// When to tell who holds what.
    tell_at: Option<Instant>,
    allocated: Arc<Notify>,
    look_now: Arc<Notify>,
    waiting: Vec<(Call, Instant)>,
    /// Whether a call waits for what podresources says.
    asked_kubelet: bool,
}

/// What happened.
enum Event {
    Pods(PodEvent),
    Gpus,
    Held,
    Registered,
    Called(Call),
    Time,
    /// Who holds what is to be told.
    Tell,
    ToldToEnd,
}

impl Owner {
    /// The owner of an [`Assigner`] that knows nothing yet. It tells `outputs`, and asks for looks at podresources.
    pub(super) fn new(inputs: Inputs, outputs: Outputs, looks: Looks) -> Self {
        let assigner = match inputs.pods {
            Some(_) => Assigner::watching(),
            None => Assigner::default(),
        };
        Self {
            assigner,
            pods_known: inputs.pods.is_none(),
            held_known: false,
            tell_at: None,
            inputs,
            outputs,
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
                Event::Tell => {
                    self.tell();
                    continue;
                }
                Event::ToldToEnd => return,
            }
            // One pod makes several calls: they come first.
            self.tell_at.get_or_insert_with(|| Instant::now() + TELL_WITHIN);
        }
    }

    /// What is known comes before what is asked: it makes for fewer waits.
    async fn next(&mut self, told_to_end: &CancellationToken) -> Event {
        let soonest = self.waiting.iter().map(|(_, at)| *at).min();
        let idle = Instant::now() + IDLE;
        let tell_at = self.tell_at.unwrap_or(idle);
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
            () = sleep_until(tell_at.into()) => Event::Tell,
        }
    }

    /// Tells who holds what, unless it is not known yet: it would look as if all were free, or no GPU there.
    fn tell(&mut self) {
        self.tell_at = None;
        let gpus_known = self.inputs.gpus.borrow().is_some();
        if !gpus_known || !self.pods_known || !self.held_known {
            return;
        }
        let occupancy = self.assigner.occupancy();
        self.outputs.occupied.send_if_modified(|told| {
            let changed = told.as_deref() != Some(&occupancy);
            if changed {
                *told = Some(Arc::new(occupancy));
            }
            changed
        });
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
            PodEvent::All(pods) => {
                self.pods_known = true;
                self.assigner.set_pods(pods);
            }
            PodEvent::Changed(pod) => self.assigner.apply_pod(pod),
            PodEvent::Gone(uid) => self.assigner.delete_pod(&uid),
        }
        self.ask_all_again();
    }

    fn held_changed(&mut self) {
        let holdings = Arc::clone(&self.inputs.holdings.borrow_and_update());
        self.asked_kubelet = false;
        self.held_known = true;
        self.assigner
            .set_held(Instant::now(), &holdings.listed, holdings.stored.as_deref());
        // What other plugins hold may have changed too.
        self.gpus_changed();
    }

    fn registered(&mut self) {
        if *self.inputs.registered.borrow_and_update() {
            self.assigner.kubelet_restarted();
        }
    }

    fn gpus_changed(&mut self) {
        let mut gpus = self.inputs.gpus.borrow_and_update().clone().unwrap_or_default();
        mark_foreign(&mut gpus, &self.inputs.holdings.borrow().foreign);
        self.outputs.lists.publish(&gpus);
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
                    Outcome::Refuse(why) => return drop(answer.send(Err(self.refused(resource, why)))),
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
                Outcome::Refuse(why) => return drop(answer.send(Err(self.refused(resource, why)))),
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

    fn refused(&self, resource: Resource, why: String) -> String {
        tracing::warn!(resource = resource.name(), "refused: {why}");
        let labels = [metrics::short(resource)];
        self.outputs.metrics.refusals.with_label_values(&labels).inc();
        why
    }

    fn granted(
        &mut self,
        resource: Resource,
        grant: &Grant,
        answer: oneshot::Sender<Result<ContainerAnswer, String>>,
    ) {
        let pod = grant.pod.as_deref().unwrap_or("a pod unknown as yet");
        tracing::info!(resource = resource.name(), gpu = %grant.gpu, pod, "allocated {}", grant.container);
        let _ = answer.send(Ok((self.outputs.answers)(grant)));
        let labels = [metrics::short(resource)];
        self.outputs.metrics.allocations.with_label_values(&labels).inc();
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

/// Makes what another plugin handed out unhealthy for us.
fn mark_foreign(gpus: &mut [GpuOffer], foreign: &Foreign) {
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
/// Soon enough for whoever writes within a second.
const TELL_WITHIN: Duration = Duration::from_millis(50);
/// podresources answers within milliseconds, or something is wrong with it.
const LOOK_WITHIN: Duration = Duration::from_secs(1);
const SHORTEST_WAIT: Duration = Duration::from_millis(10);
