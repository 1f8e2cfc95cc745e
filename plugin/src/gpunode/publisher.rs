//! The task that writes this node's `GpuNode`.
//!
//! Each write is one server-side apply, by force: nobody else has anything to say there. The object is owned by
//! its Node, so it goes when the node goes. The agent's account needs the verbs `get` on `nodes`, and `patch` and
//! `create` on `gpunodes` (an apply that finds no object needs both).

use std::mem::{Discriminant, discriminant};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use penstock_core::gpu_node;
use penstock_core::ids::NodeName;
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};

use super::policy::{Jitter, Policy, REFRESH_EVERY};
use super::resource::{GpuNode, GpuNodeSpec};
use super::state::NodeState;
use penstock_shell::api_errors;

/// Writes what `states` says of `node` until its sender is gone, the value that it has at first at once, and the facts of
/// its last one at the end. The API
/// server may be away, and the custom resource missing, for any time: the newest state is written afterwards.
pub(crate) async fn publish(client: Client, node: NodeName, mut states: watch::Receiver<NodeState>) {
    let mut publisher = Publisher {
        policy: Policy::default(),
        writer: Writer::new(client, node),
        trouble: None,
    };
    publisher.take(&mut states);
    loop {
        // A pause for ever, where nothing is due.
        let due = publisher.policy.due();
        let wait = async {
            match due {
                Some(due) => sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = states.changed() => match changed {
                Ok(()) => publisher.take(&mut states),
                Err(_) => return publisher.write_last().await,
            },
            () = wait => publisher.write().await,
        }
    }
}

struct Publisher {
    policy: Policy,
    writer: Writer,
    /// What kind of failure the log has last spoken of.
    trouble: Option<Discriminant<NotWritten>>,
}

impl Publisher {
    fn take(&mut self, states: &mut watch::Receiver<NodeState>) {
        let state = states.borrow_and_update().clone();
        let wall = format!("{:.0}", Timestamp::now());
        self.policy.set(Instant::now(), &wall, state);
    }

    async fn write(&mut self) {
        if let Some(content) = self.policy.begin(Instant::now()) {
            self.send(content).await;
        }
    }

    async fn write_last(&mut self) {
        if let Some(content) = self.policy.begin_last(Instant::now()) {
            self.send(content).await;
        }
    }

    async fn send(&mut self, content: gpu_node::GpuNodeSpec) {
        let outcome = self.writer.write(content).await;
        let jitter = Jitter::new(rand::random());
        match outcome {
            Ok(()) => {
                self.policy.wrote(Instant::now(), jitter);
                self.well();
            }
            Err(error) => {
                let wait = self.policy.failed(Instant::now(), jitter);
                self.ill(&error, wait);
            }
        }
    }

    fn well(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!(node = %self.writer.node, "the GpuNode is up to date again");
        }
    }

    /// A failure is logged as a warning where it is of another kind than the one before.
    fn ill(&mut self, error: &NotWritten, wait: Duration) {
        let kind = Some(discriminant(error));
        let wait = wait.as_secs_f32();
        if self.trouble == kind {
            tracing::debug!("still {error}; next try in {wait:.1} s");
        } else {
            tracing::warn!(
                "{error}; next try in {wait:.1} s, then less and less often, down to once a minute"
            );
        }
        self.trouble = kind;
    }
}

/// Talks to the API server.
struct Writer {
    node: NodeName,
    nodes: Api<Node>,
    gpu_nodes: Api<GpuNode>,
    /// The Node, and when it was looked up: one of the same name may take its place.
    owner: Option<(Instant, OwnerReference)>,
}

/// Why a `GpuNode` was not written.
#[derive(Debug, thiserror::Error)]
enum NotWritten {
    #[error(
        "writing GpuNode {0}: there is no Node of that name; tell the agent the name that `kubectl get nodes` shows"
    )]
    NoNode(NodeName),
    #[error("looking up Node {0}, to write its GpuNode: {1}")]
    Node(NodeName, String),
    #[error(
        "writing GpuNode {0}: the cluster does not know this kind of object; `kubectl apply -f \
         manifests/crd/gpunodes.yaml` brings it"
    )]
    NoDefinition(NodeName),
    #[error("writing GpuNode {0}: {1}; the agent needs the verbs patch and create on gpunodes.penstock.dev")]
    Forbidden(NodeName, String),
    #[error("writing GpuNode {0}: {1}")]
    Refused(NodeName, String),
    #[error("writing GpuNode {0}: {answer}", answer = api_errors::no_answer(ANSWER_WITHIN))]
    NoAnswer(NodeName),
}

impl Writer {
    fn new(client: Client, node: NodeName) -> Self {
        Self {
            node,
            nodes: Api::all(client.clone()),
            gpu_nodes: Api::all(client),
            owner: None,
        }
    }

    async fn write(&mut self, content: gpu_node::GpuNodeSpec) -> Result<(), NotWritten> {
        let outcome = match timeout(ANSWER_WITHIN, self.try_write(content)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(NotWritten::NoAnswer(self.node.clone())),
        };
        if outcome.is_err() {
            self.owner = None;
        }
        outcome
    }

    async fn try_write(&mut self, content: gpu_node::GpuNodeSpec) -> Result<(), NotWritten> {
        let mut object = GpuNode::new(self.node.as_str(), GpuNodeSpec(content));
        object.metadata.owner_references = Some(vec![self.owner().await?]);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&object);
        let patched = self.gpu_nodes.patch(self.node.as_str(), &params, &patch).await;
        patched.map(drop).map_err(|error| self.not_applied(&error))
    }

    fn not_applied(&self, error: &kube::Error) -> NotWritten {
        let node = self.node.clone();
        match code(error) {
            // An apply makes what is not there, so it is the kind that is missing.
            Some(404) => NotWritten::NoDefinition(node),
            Some(401 | 403) => NotWritten::Forbidden(node, api_errors::of(error)),
            _ => NotWritten::Refused(node, api_errors::of(error)),
        }
    }

    async fn owner(&mut self) -> Result<OwnerReference, NotWritten> {
        if let Some((at, owner)) = &self.owner
            && at.elapsed() < REFRESH_EVERY
        {
            return Ok(owner.clone());
        }
        let owner = self.look_up_owner().await?;
        self.owner = Some((Instant::now(), owner.clone()));
        Ok(owner)
    }

    async fn look_up_owner(&self) -> Result<OwnerReference, NotWritten> {
        let name = self.node.as_str();
        let failed = |error: kube::Error| match code(&error) {
            Some(404) => NotWritten::NoNode(self.node.clone()),
            _ => NotWritten::Node(self.node.clone(), api_errors::of(&error)),
        };
        let node = self.nodes.get_metadata(name).await.map_err(failed)?;
        let no_uid = || NotWritten::Node(self.node.clone(), "the API server gave no uid".to_owned());
        Ok(OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: name.to_owned(),
            uid: node.metadata.uid.ok_or_else(no_uid)?,
            ..OwnerReference::default()
        })
    }
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

const FIELD_MANAGER: &str = "penstock-plugin";
/// How long one attempt may take, the look at the Node included.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
