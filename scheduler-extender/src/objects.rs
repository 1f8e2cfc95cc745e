//! What the API server says, read into what the index takes: plain data, no I/O.
//!
//! A pod is read as far as anything here needs it, from a watch as well as from the scheduler's questions: the rest of
//! it, which is most, is skipped and never kept.

use std::borrow::Cow;
use std::str::FromStr;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta};
use penstock_core::ids::NodeName;
use penstock_core::names::{ANNOTATION_GPU, RESOURCE_MPS, RESOURCE_NVENC, RESOURCE_VRAM};
use penstock_core::packing::Resources;
use penstock_core::pod_demand::ContainerKind;
use penstock_core::quantity::whole_number;
use penstock_core::units::{EncoderUnits, SmPercent, VramBlocks};
use serde::Deserialize;

use crate::index::{Budget, Pod, Requirement, Selector};

/// A pod, as far as it matters here.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct PodObject {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: Option<String>,
    priority: Option<i32>,
    init_containers: Option<Vec<Container>>,
    containers: Option<Vec<Container>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    name: String,
    restart_policy: Option<String>,
    resources: Option<ContainerResources>,
}

/// Quantities by name. Kubernetes wants a limit for resources such as ours, and a request of the same amount or none:
/// <https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/#extended-resources>.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ContainerResources {
    limits: Option<Amounts>,
    requests: Option<Amounts>,
}

/// Of a list of quantities, ours.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Amounts {
    #[serde(rename = "penstock.dev/nvenc")]
    nvenc: Option<Quantity>,
    #[serde(rename = "penstock.dev/mps")]
    mps: Option<Quantity>,
    #[serde(rename = "penstock.dev/vram")]
    vram: Option<Quantity>,
}

/// API servers write a text; people's tools may write a number.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Quantity {
    Text(String),
    Number(u32),
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: Option<String>,
}

impl kube::Resource for PodObject {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// What in an object can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name}: {what} {why}")]
pub(crate) struct Unreadable {
    kind: &'static str,
    name: String,
    what: String,
    why: String,
}

impl PodObject {
    /// The pod, where it asks for any of our resources.
    ///
    /// # Errors
    /// Where an amount is no whole number, or a name or UID is none: no API server gives such a pod.
    pub(crate) fn read(&self) -> Result<Option<Pod>, Unreadable> {
        let containers = self.containers()?;
        if containers.iter().all(|(_, demand)| *demand == Resources::NONE) {
            return Ok(None);
        }
        let metadata = &self.metadata;
        Ok(Some(Pod {
            uid: self.parse("its UID", metadata.uid.as_deref().unwrap_or_default())?,
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            node: self.node()?,
            gpu: self.annotation(ANNOTATION_GPU),
            containers,
            priority: self.spec.priority.unwrap_or_default(),
            deletion_cost: self.annotation::<i32>(DELETION_COST).unwrap_or_default(),
            labels: metadata.labels.clone().unwrap_or_default(),
            terminal: matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed")),
            deleting: metadata.deletion_timestamp.is_some(),
        }))
    }

    fn containers(&self) -> Result<Vec<(ContainerKind, Resources)>, Unreadable> {
        let init = self
            .spec
            .init_containers
            .iter()
            .flatten()
            .map(|c| (init_kind(c), c));
        let apps = self
            .spec
            .containers
            .iter()
            .flatten()
            .map(|c| (ContainerKind::App, c));
        init.chain(apps)
            .map(|(kind, container)| Ok((kind, self.demand(container)?)))
            .collect()
    }

    fn demand(&self, container: &Container) -> Result<Resources, Unreadable> {
        let asked = |name: &str, of: fn(&Amounts) -> Option<&Quantity>| {
            let resources = container.resources.as_ref();
            let lists = resources.map(|r| [r.limits.as_ref(), r.requests.as_ref()]);
            let quantity = lists.into_iter().flatten().flatten().find_map(of);
            let amount = quantity.map_or(Some(0), Quantity::whole);
            amount.ok_or_else(|| {
                self.fault(
                    format!("{name} of container {}", container.name),
                    "is no whole number",
                )
            })
        };
        Ok(Resources {
            nvenc: EncoderUnits(asked(RESOURCE_NVENC, |amounts| amounts.nvenc.as_ref())?),
            mps: SmPercent(asked(RESOURCE_MPS, |amounts| amounts.mps.as_ref())?),
            vram: VramBlocks(asked(RESOURCE_VRAM, |amounts| amounts.vram.as_ref())?),
        })
    }

    fn node(&self) -> Result<Option<NodeName>, Unreadable> {
        let name = self.spec.node_name.as_deref().filter(|name| !name.is_empty());
        name.map(|name| self.parse("its node's name", name)).transpose()
    }

    /// Anybody may write an annotation: what is none counts as absent.
    fn annotation<T: FromStr>(&self, name: &str) -> Option<T> {
        self.metadata.annotations.as_ref()?.get(name)?.parse().ok()
    }

    fn parse<T: FromStr<Err: ToString>>(&self, what: &str, text: &str) -> Result<T, Unreadable> {
        text.parse()
            .map_err(|error: T::Err| self.fault(format!("{what}:"), &error.to_string()))
    }

    fn fault(&self, what: String, why: &str) -> Unreadable {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Unreadable {
            kind: "pod",
            name: format!("{}/{}", text(&self.metadata.namespace), text(&self.metadata.name)),
            what,
            why: why.to_owned(),
        }
    }
}

fn init_kind(container: &Container) -> ContainerKind {
    match container.restart_policy.as_deref() {
        Some("Always") => ContainerKind::Sidecar,
        _ => ContainerKind::Init,
    }
}

impl Quantity {
    fn whole(&self) -> Option<u32> {
        match self {
            Self::Text(text) => whole_number(text),
            Self::Number(number) => Some(*number),
        }
    }
}

/// Reads a PodDisruptionBudget; `None` for one without selector, which covers no pod.
///
/// # Errors
/// Where its selector has an operator that Kubernetes 1.36 doesn't: what it covers can't be told then.
pub(crate) fn budget(object: &PodDisruptionBudget) -> Result<Option<Budget>, Unreadable> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (namespace, name) = (text(&object.metadata.namespace), text(&object.metadata.name));
    let Some(selector) = object.spec.as_ref().and_then(|spec| spec.selector.as_ref()) else {
        return Ok(None);
    };
    let selector = read_selector(selector).map_err(|operator| Unreadable {
        kind: "PodDisruptionBudget",
        name: format!("{namespace}/{name}"),
        what: "its selector".to_owned(),
        why: format!("has the operator {operator:?}, which is not known"),
    })?;
    let status = object.status.as_ref();
    let disrupted = status.and_then(|status| status.disrupted_pods.as_ref());
    Ok(Some(Budget {
        namespace,
        name,
        selector,
        disruptions_allowed: status
            .and_then(|status| status.disruptions_allowed)
            .unwrap_or_default(),
        disrupted: disrupted
            .into_iter()
            .flatten()
            .map(|(pod, _)| pod.clone())
            .collect(),
    }))
}

fn read_selector(selector: &LabelSelector) -> Result<Selector, String> {
    let labels = selector.match_labels.iter().flatten();
    let labels = labels.map(|(key, value)| Ok(Requirement::In(key.clone(), [value.clone()].into())));
    let expressions = selector.match_expressions.iter().flatten().map(read_requirement);
    Ok(Selector(
        labels.chain(expressions).collect::<Result<_, String>>()?,
    ))
}

fn read_requirement(expression: &LabelSelectorRequirement) -> Result<Requirement, String> {
    let key = expression.key.clone();
    let values = || expression.values.iter().flatten().cloned().collect();
    match &*expression.operator {
        "In" => Ok(Requirement::In(key, values())),
        "NotIn" => Ok(Requirement::NotIn(key, values())),
        "Exists" => Ok(Requirement::Exists(key)),
        "DoesNotExist" => Ok(Requirement::Absent(key)),
        other => Err(other.to_owned()),
    }
}

/// What the ReplicaSet controller reads too:
/// <https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#pod-deletion-cost>.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> PodObject {
        let metadata = json!({ "name": "quake-0", "namespace": "games", "uid": "8a1c" });
        serde_json::from_value(
            json!({ "metadata": metadata, "spec": spec, "status": { "phase": "Running" } }),
        )
        .unwrap()
    }

    #[test]
    fn a_pod_is_read_with_all_its_containers() {
        let object: PodObject = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "quake-0", "namespace": "games", "uid": "8a1c", "labels": { "app": "quake" },
                "deletionTimestamp": "2026-01-01T00:00:00Z",
                "annotations": { "penstock.dev/gpu": "GPU-1", "controller.kubernetes.io/pod-deletion-cost": "100" },
            },
            "spec": {
                "nodeName": "node-1", "priority": 7, "unheard": [1],
                "initContainers": [
                    { "name": "shaders", "resources": { "requests": { "penstock.dev/mps": "50" } } },
                    { "name": "streamer", "restartPolicy": "Always", "resources": { "limits": { "penstock.dev/nvenc": "13" } } },
                ],
                "containers": [{ "name": "game", "resources": { "limits": { "penstock.dev/vram": "1k", "cpu": "1500m" } } }],
            },
            "status": { "phase": "Succeeded" },
        }))
        .unwrap();
        let read = object.read().unwrap().unwrap();
        let demand = |nvenc, mps, vram| Resources {
            nvenc: EncoderUnits(nvenc),
            mps: SmPercent(mps),
            vram: VramBlocks(vram),
        };
        let expected = Pod {
            uid: "8a1c".parse().unwrap(),
            namespace: "games".to_owned(),
            name: "quake-0".to_owned(),
            node: Some("node-1".parse().unwrap()),
            gpu: Some("GPU-1".parse().unwrap()),
            containers: vec![
                (ContainerKind::Init, demand(0, 50, 0)),
                (ContainerKind::Sidecar, demand(13, 0, 0)),
                (ContainerKind::App, demand(0, 0, 1000)),
            ],
            priority: 7,
            deletion_cost: 100,
            labels: BTreeMap::from([("app".to_owned(), "quake".to_owned())]),
            terminal: true,
            deleting: true,
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn a_pod_that_asks_for_nothing_of_ours_is_nobodys() {
        let other =
            json!({ "limits": { "cpu": "1500m", "example.com/gpu": "1", "penstock.dev/nvenc": "0" } });
        assert_eq!(
            pod(json!({ "containers": [{ "name": "c", "resources": other }] })).read(),
            Ok(None)
        );
        assert_eq!(pod(json!({})).read(), Ok(None));
    }

    #[test]
    fn an_amount_that_is_none_is_named() {
        let limits = json!({ "penstock.dev/nvenc": "1500m" });
        let error = pod(json!({ "containers": [{ "name": "c", "resources": { "limits": limits } }] }))
            .read()
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "pod games/quake-0: penstock.dev/nvenc of container c is no whole number"
        );
    }

    #[test]
    fn a_budget_is_read_with_its_selector() {
        let read = |selector: Value| {
            budget(&serde_json::from_value(json!({
                "metadata": { "name": "keep", "namespace": "games" },
                "spec": { "selector": selector },
                "status": { "disruptionsAllowed": 2, "disruptedPods": { "quake-1": "2026-01-01T00:00:00Z" },
                            "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1 },
            })).unwrap())
        };
        let expressions = json!([
            { "key": "tier", "operator": "NotIn", "values": ["test"] },
            { "key": "new", "operator": "DoesNotExist" },
            { "key": "app", "operator": "Exists" },
        ]);
        let full = read(json!({ "matchLabels": { "app": "quake" }, "matchExpressions": expressions }))
            .unwrap()
            .unwrap();
        let text = |text: &str| text.to_owned();
        let expected = vec![
            Requirement::In(text("app"), [text("quake")].into()),
            Requirement::NotIn(text("tier"), [text("test")].into()),
            Requirement::Absent(text("new")),
            Requirement::Exists(text("app")),
        ];
        assert_eq!(full.selector, Selector(expected));
        assert_eq!(
            (full.disruptions_allowed, full.disrupted),
            (2, [text("quake-1")].into())
        );
        assert_eq!(read(json!({})).unwrap().unwrap().selector, Selector::default());
        assert_eq!(read(Value::Null), Ok(None));
        let odd = read(json!({ "matchExpressions": [{ "key": "a", "operator": "Like" }] })).unwrap_err();
        assert!(
            odd.to_string()
                .contains("games/keep: its selector has the operator \"Like\""),
            "{odd}"
        );
    }
}
