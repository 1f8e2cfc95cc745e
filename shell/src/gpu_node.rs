//! The custom resource `GpuNode` as those have it who read it. Its definition is made by the plugin, which writes them.

use kube::CustomResource;
use penstock_core::gpu_node::GpuNodeSpec;
use penstock_core::ids::NodeName;
use serde::{Deserialize, Serialize};

/// What a [`GpuNode`] says.
#[derive(Debug, Clone, Serialize, Deserialize, CustomResource)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "GpuNode",
    plural = "gpunodes"
)]
#[kube(schema = "disabled")]
#[serde(transparent)]
pub struct GpuNodeContent(pub GpuNodeSpec);

impl GpuNode {
    /// The node that it is about; nothing where its name is no node's.
    pub fn node(&self) -> Option<NodeName> {
        self.metadata.name.as_deref()?.parse().ok()
    }
}
