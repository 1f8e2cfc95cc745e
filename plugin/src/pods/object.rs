//! The parts of a pod that are read here. The whole of it is some hundred types, the code of which would take room in the
//! memory of each node.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

/// A pod, as the API server gives it.
#[derive(Debug, Clone, Default, Deserialize, kube::Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Pod")]
pub(crate) struct Pod {
    #[serde(default)]
    pub(super) metadata: ObjectMeta,
    pub(super) spec: Option<PodSpec>,
    pub(super) status: Option<PodStatus>,
}

/// What it is to be.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) init_containers: Option<Vec<Container>>,
    pub(super) containers: Option<Vec<Container>>,
}

/// What it is.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct PodStatus {
    pub(super) phase: Option<String>,
}

/// One container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) resources: Option<ResourceRequirements>,
    pub(super) restart_policy: Option<String>,
}

/// What it asks for.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct ResourceRequirements {
    pub(super) limits: Option<BTreeMap<String, Quantity>>,
    pub(super) requests: Option<BTreeMap<String, Quantity>>,
}
