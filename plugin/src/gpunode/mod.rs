//! What this node says about its GPUs in the cluster.
//!
//! ```text
//!   NodeState ──► policy ──► publisher ──► server-side apply of GpuNode/<this node>
//!   (watch)       when       the task
//!                            resource      the custom resource, and its definition
//!   a streamer over its slice ──► overuse ──► an Event on its pod
//!
//!   words    the API server's refusals, for people
//! ```

mod overuse;
mod policy;
mod publisher;
mod resource;
mod state;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use overuse::{Overuse, OveruseReporter, PodRef};
pub(crate) use publisher::publish;
pub(crate) use resource::crd_yaml;
pub(crate) use state::{NodeState, Observed, Reading};
