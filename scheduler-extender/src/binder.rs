//! Binds pods: one Binding, which carries the node and, as an annotation, the GPU.
//!
//! ```text
//!   bind ──► choose_gpu ──► the GPU is promised ──► Binding ──► API server
//!                │                                     │ yes            the promise stays until the GpuNode shows it
//!                │ not now: look again after           │ no             the promise is taken back
//!                └ the next change, for 2 s            └ no answer      the very same Binding again, until there is one
//! ```
//!
//! The API server takes a Binding only for the pod with that very UID, and only while the pod has no node: sending it
//! again can't bind twice. While it is not known whether a pod is bound, its promise stays and other requests for it
//! are refused, so its place can't be given away either.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use penstock_core::ids::{GpuUuid, NodeName, PodUid};
use penstock_core::names::ANNOTATION_GPU;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use crate::index::BindRefusal;
use crate::metrics::Metrics;
use crate::owner::{Ending, Owner};
use crate::wire::ExtenderBindingArgs;
use penstock_shell::api_errors;

/// Binds pods. See the [module](self).
#[derive(Clone)]
pub(crate) struct Binder {
    /// To the API server.
    pub(crate) client: Client,
    /// To the index.
    pub(crate) owner: Owner,
    /// Counts what becomes of it.
    pub(crate) metrics: Arc<Metrics>,
    /// Bindings under way. They go on when the scheduler hangs up.
    pub(crate) under_way: TaskTracker,
}

/// Why a pod is not bound, as far as is known. kube-scheduler tries again after any error of an extender: it puts the
/// pod back into its queue, with its usual back-off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotBound {
    /// There is no place for it now.
    #[error(transparent)]
    Refused(#[from] BindRefusal),
    /// The API server knows better.
    #[error("binding pod {pod} to node {node}: {why}")]
    Conflict {
        pod: String,
        node: NodeName,
        why: String,
    },
    /// The pod was deleted.
    #[error("binding pod {pod}, which is gone: {why}")]
    Gone { pod: String, why: String },
    /// The API server does not want to.
    #[error("binding pod {pod} to node {node}: {why}")]
    Api {
        pod: String,
        node: NodeName,
        why: String,
    },
    /// It may be bound.
    #[error(
        "binding pod {pod} to node {node}: the API server gave no answer yet; it is asked again until it does"
    )]
    NoAnswer { pod: String, node: NodeName },
    /// The program ends.
    #[error(transparent)]
    Ending(#[from] Ending),
}

impl NotBound {
    /// As a metric's label.
    fn label(&self) -> &'static str {
        match self {
            Self::Refused(BindRefusal::UnknownPod(_)) => "unknown_pod",
            Self::Refused(BindRefusal::Placed { .. }) => "placed",
            Self::Refused(BindRefusal::NoRoom { .. }) => "no_room",
            Self::Refused(BindRefusal::Wait { .. }) => "wait",
            Self::Conflict { .. } => "conflict",
            Self::Gone { .. } => "gone",
            Self::Api { .. } | Self::NoAnswer { .. } => "api_error",
            Self::Ending(_) => "ending",
        }
    }
}

impl Binder {
    /// Binds a pod to a GPU of a node, or says why not.
    ///
    /// # Errors
    /// [`NotBound`].
    pub(crate) async fn bind(&self, args: ExtenderBindingArgs) -> Result<GpuUuid, NotBound> {
        let no_answer = NotBound::NoAnswer {
            pod: full_name(&args),
            node: args.node.clone(),
        };
        let binder = self.clone();
        let binding = self.under_way.spawn(async move {
            let outcome = binder.carry_out(&args).await;
            binder
                .metrics
                .bind(outcome.as_ref().map_or_else(NotBound::label, |_| "bound"));
            match &outcome {
                Ok(gpu) => tracing::info!(pod = full_name(&args), node = %args.node, %gpu, "bound"),
                Err(why) => tracing::info!(pod = full_name(&args), node = %args.node, "not bound: {why}"),
            }
            outcome
        });
        match timeout(ANSWER_WITHIN, binding).await {
            Ok(Ok(outcome)) => outcome,
            // A task that panicked has said so.
            Ok(Err(_)) | Err(_) => Err(no_answer),
        }
    }

    async fn carry_out(&self, args: &ExtenderBindingArgs) -> Result<GpuUuid, NotBound> {
        let gpu = self.place(&args.pod_uid, &args.node).await?;
        let outcome = self.send(args, &gpu).await;
        if let Err(kept) = &outcome
            && kept.frees
        {
            let uid = args.pod_uid.clone();
            self.owner.tell(move |index| index.forget(&uid)).await?;
        }
        outcome.map(|()| gpu).map_err(|failure| failure.why)
    }

    /// Promises the pod a GPU. What another watch event may change is waited for.
    async fn place(&self, uid: &PodUid, node: &NodeName) -> Result<GpuUuid, NotBound> {
        let mut changes = self.owner.changes();
        let deadline = Instant::now() + PATIENCE;
        loop {
            changes.borrow_and_update();
            let asked = (uid.clone(), node.clone());
            let chosen = self
                .owner
                .ask(move |index| index.choose_gpu(&asked.0, &asked.1))
                .await?;
            match chosen {
                Ok(gpu) => return Ok(gpu),
                Err(refusal) if may_pass(&refusal) => {
                    let changed = timeout_at(deadline, changes.changed()).await;
                    changed.map_err(|_| refusal)?.map_err(|_| Ending)?;
                }
                Err(refusal) => return Err(refusal.into()),
            }
        }
    }

    /// Sends the Binding until there is an answer.
    async fn send(&self, args: &ExtenderBindingArgs, gpu: &GpuUuid) -> Result<(), Failure> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &args.pod_namespace);
        let binding = binding(args, gpu);
        let mut pause = FIRST_PAUSE;
        let mut unanswered = false;
        loop {
            let params = PostParams::default();
            let asked =
                pods.create_subresource::<_, serde_json::Value>("binding", &args.pod_name, &params, &binding);
            match timeout(ATTEMPT, asked).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) if !may_have_happened(&error) => {
                    return Err(Failure::of(args, &error, unanswered));
                }
                Ok(Err(error)) => {
                    tracing::warn!(pod = full_name(args), "binding: {}", api_errors::of(&error))
                }
                Err(_) => tracing::warn!(pod = full_name(args), "binding: the API server did not answer"),
            }
            unanswered = true;
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Whether waiting helps: for a watch that is late, or for pods that the node is still taking in.
fn may_pass(refusal: &BindRefusal) -> bool {
    matches!(refusal, BindRefusal::UnknownPod(_) | BindRefusal::Wait { .. })
}

/// Whether the API server may have done what it was asked although it says that it failed, or says nothing.
fn may_have_happened(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code >= 500,
        _ => true,
    }
}

/// The API server's no.
struct Failure {
    why: NotBound,
    /// Whether the pod surely is not bound by us.
    frees: bool,
}

impl Failure {
    fn of(args: &ExtenderBindingArgs, error: &kube::Error, unanswered: bool) -> Self {
        let (pod, node, why) = (full_name(args), args.node.clone(), api_errors::of(error));
        let code = match error {
            kube::Error::Api(status) => status.code,
            _ => 0,
        };
        let why = match code {
            404 => NotBound::Gone { pod, why },
            409 => NotBound::Conflict { pod, node, why },
            _ => NotBound::Api { pod, node, why },
        };
        // A conflict may be with our own Binding, whose answer was lost: the watch will tell.
        Self {
            why,
            frees: !(unanswered && code == 409),
        }
    }
}

fn binding(args: &ExtenderBindingArgs, gpu: &GpuUuid) -> Binding {
    Binding {
        metadata: ObjectMeta {
            name: Some(args.pod_name.clone()),
            namespace: Some(args.pod_namespace.clone()),
            uid: Some(args.pod_uid.to_string()),
            annotations: Some(BTreeMap::from([(ANNOTATION_GPU.to_owned(), gpu.to_string())])),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(args.node.to_string()),
            ..ObjectReference::default()
        },
    }
}

fn full_name(args: &ExtenderBindingArgs) -> String {
    format!("{}/{}", args.pod_namespace, args.pod_name)
}

/// So long a pod waits for others that its node is taking in. The kubelet asks for devices some 30 ms after a bind,
/// and allocations are published within a second.
const PATIENCE: Duration = Duration::from_secs(2);
/// So long an attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The scheduler is answered within this. It is under the httpTimeout of manifests/base/scheduler.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn refusal(code: u16) -> kube::Error {
        kube::Error::Api(Status::failure("no", "Reason").with_code(code).boxed())
    }

    fn args() -> ExtenderBindingArgs {
        ExtenderBindingArgs {
            pod_name: "quake-0".to_owned(),
            pod_namespace: "games".to_owned(),
            pod_uid: "8a1c".parse().unwrap(),
            node: "node-1".parse().unwrap(),
        }
    }

    #[test]
    fn a_place_is_freed_once_it_is_sure_that_the_pod_does_not_have_it() {
        let frees = |code, unanswered| Failure::of(&args(), &refusal(code), unanswered).frees;
        assert!(frees(409, false), "somebody else has bound it");
        assert!(
            !frees(409, true),
            "that may have been the try that was not answered"
        );
        assert!(frees(404, true) && frees(403, true));
        let sure = [403, 404, 409, 429].map(|code| !may_have_happened(&refusal(code)));
        let unsure = [500, 503, 504].map(|code| may_have_happened(&refusal(code)));
        assert!(sure.into_iter().chain(unsure).all(|as_expected| as_expected));
    }
}
