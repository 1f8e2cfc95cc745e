//! The custom resource `GpuNode`: Kubernetes' glue around [`penstock_core::gpu_node`].

#![expect(
    clippy::duplicated_attributes,
    reason = "the lint takes the columns' fields for attributes of the struct"
)]

use anyhow::Context as _;
use kube::{CustomResource, CustomResourceExt as _};
use penstock_core::gpu_node;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

// Its doc is the schema's description, which `kubectl explain gpunodes.spec` prints.
/// What the node has, gives and measures. The plugin alone writes it; there is no status beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "GpuNode",
    plural = "gpunodes",
    shortname = "gn",
    category = "penstock",
    doc = "What a node's GPUs offer, who holds what of them, and how they are. Written by penstock-plugin.",
    derive = "PartialEq",
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".spec.summary.gpus"),
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.summary.models"),
    printcolumn(
        name = "Encoder",
        type_ = "string",
        json_path = ".spec.summary.encoder",
        description = "Encoder units that are free, of all"
    ),
    printcolumn(
        name = "Pods",
        type_ = "integer",
        json_path = ".spec.summary.pods",
        description = "Pods that hold a slice"
    ),
    printcolumn(
        name = "Sessions",
        type_ = "integer",
        json_path = ".spec.summary.sessions",
        description = "Encoder sessions that are open"
    ),
    printcolumn(
        name = "Healthy",
        type_ = "string",
        json_path = ".spec.summary.healthy",
        description = "GPUs that are healthy in all respects, of all"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(transparent)]
pub(crate) struct GpuNodeSpec(pub(crate) gpu_node::GpuNodeSpec);

/// The definition of the custom resource, as it stands in `manifests/crd/gpunodes.yaml`.
///
/// # Errors
/// Where it can't be written as YAML, which is a bug.
pub(crate) fn crd_yaml() -> anyhow::Result<String> {
    let yaml =
        serde_yaml_ng::to_string(&GpuNode::crd()).context("writing the definition of GpuNode as YAML")?;
    Ok(format!("{HEADER}{yaml}"))
}

const HEADER: &str = "# Made by `penstock-plugin crd` from the types in core/src/gpu_node.rs.\n";

#[cfg(test)]
mod tests {
    use kube::Resource as _;
    use penstock_core::gpu_node::{API_GROUP, API_VERSION};

    use super::*;

    #[test]
    fn the_manifest_is_what_the_types_say() {
        let kept = include_str!("../../../manifests/crd/gpunodes.yaml");
        let made = crd_yaml().unwrap();
        assert!(
            kept == made,
            "manifests/crd/gpunodes.yaml is out of date: write it with \
             `cargo run -p penstock-plugin -- crd > manifests/crd/gpunodes.yaml`"
        );
    }

    #[test]
    fn the_resource_is_named_once() {
        assert_eq!(GpuNode::group(&()), API_GROUP);
        assert_eq!(GpuNode::version(&()), API_VERSION);
        assert_eq!(GpuNode::crd().spec.scope, "Cluster");
    }

    #[test]
    fn a_reader_needs_no_schema() {
        let content = gpu_node::GpuNodeSpec::new(Vec::new(), Vec::new());
        let written = GpuNode::new("node-1", GpuNodeSpec(content.clone()));
        let text = serde_json::to_string(&written).unwrap();
        let read: penstock_shell::gpu_node::GpuNode = serde_json::from_str(&text).unwrap();
        assert_eq!(read.spec.0, content);
        assert_eq!(read.node(), "node-1".parse().ok());
    }

    /// API servers warn about formats that they don't know, and drop fields that no schema names.
    #[test]
    fn the_schema_is_one_that_api_servers_like() {
        let yaml = crd_yaml().unwrap();
        assert!(!yaml.contains("format: uint"), "{yaml}");
        assert!(!yaml.contains("preserve-unknown-fields"), "{yaml}");
        assert!(!yaml.contains("anyOf"), "{yaml}");
    }
}
