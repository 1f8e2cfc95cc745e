//! kube-scheduler's extender protocol, version 1, as Kubernetes 1.36 speaks it with `nodeCacheCapable: true`: nodes by
//! their names only. See <https://pkg.go.dev/k8s.io/kube-scheduler/extender/v1>.
//!
//! The keys are those of Go's fields. Go writes an empty list or map as `null`, and takes a key that is absent for one.

use std::collections::BTreeMap;

use penstock_core::ids::{NodeName, PodUid};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::index::{Verdict, Victims};
use crate::objects::PodObject;

/// What `filter` and `prioritize` are asked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ExtenderArgs {
    /// The pod that wants a place.
    pub(crate) pod: PodObject,
    node_names: Option<Vec<NodeName>>,
}

/// What `filter` answers.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ExtenderFilterResult {
    /// Never there: nodes go by their names.
    nodes: Option<()>,
    node_names: Vec<NodeName>,
    failed_nodes: BTreeMap<NodeName, String>,
    failed_and_unresolvable_nodes: BTreeMap<NodeName, String>,
    error: String,
}

/// A node's score, of which `prioritize` answers a list.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct HostPriority {
    host: NodeName,
    score: u8,
}

/// What `bind` is asked.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ExtenderBindingArgs {
    /// The pod's name.
    pub(crate) pod_name: String,
    /// Its namespace.
    pub(crate) pod_namespace: String,
    /// Which pod of that name.
    #[serde(rename = "PodUID")]
    pub(crate) pod_uid: PodUid,
    /// Where it is to go.
    pub(crate) node: NodeName,
}

/// What `bind` answers: why not, or nothing.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ExtenderBindingResult {
    /// Empty where the pod is bound.
    pub(crate) error: String,
}

/// What `preempt` is asked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ExtenderPreemptionArgs {
    /// The pod that wants a place.
    pub(crate) pod: PodObject,
    node_name_to_victims: Option<serde::de::IgnoredAny>,
    node_name_to_meta_victims: Option<BTreeMap<NodeName, MetaVictims>>,
}

/// What `preempt` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ExtenderPreemptionResult {
    node_name_to_meta_victims: BTreeMap<NodeName, MetaVictims>,
}

/// Who would have to go from a node.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct MetaVictims {
    #[serde(rename = "Pods")]
    pods: Option<Vec<MetaPod>>,
    #[serde(rename = "NumPDBViolations", default)]
    violations: i64,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct MetaPod {
    #[serde(rename = "UID")]
    uid: PodUid,
}

/// Why a body can't be answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadBody {
    /// It is none.
    #[error("the body is no JSON: {0}")]
    NoJson(#[source] serde_json::Error),
    /// Something is missing, or is not what it should be.
    #[error("the body is not what a scheduler sends: {0}")]
    WrongShape(#[source] serde_json::Error),
    /// Whole nodes, where names were expected.
    #[error(
        "{0} is null: this extender takes nodes by their names, so its entry in the scheduler's configuration needs nodeCacheCapable: true"
    )]
    NoNames(&'static str),
}

/// Reads a body.
///
/// # Errors
/// [`BadBody`].
pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, BadBody> {
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => BadBody::WrongShape(error),
        _ => BadBody::NoJson(error),
    })
}

impl ExtenderArgs {
    /// The nodes in question.
    ///
    /// # Errors
    /// Where the scheduler was not told to send names.
    pub(crate) fn names(&mut self) -> Result<Vec<NodeName>, BadBody> {
        self.node_names.take().ok_or(BadBody::NoNames("NodeNames"))
    }
}

impl ExtenderFilterResult {
    /// Each node is in order.
    pub(crate) fn all(node_names: Vec<NodeName>) -> Self {
        Self {
            node_names,
            ..Self::default()
        }
    }

    /// What became of each of `names`, in their order.
    pub(crate) fn of(names: Vec<NodeName>, verdicts: &[Verdict]) -> Self {
        let mut result = Self::default();
        for (name, verdict) in names.into_iter().zip(verdicts) {
            match verdict {
                Verdict::Fits => result.node_names.push(name),
                Verdict::Refused(why) => drop(result.failed_nodes.insert(name, why.to_string())),
                Verdict::Unresolvable(why) => {
                    result.failed_and_unresolvable_nodes.insert(name, why.to_string());
                }
            }
        }
        result
    }
}

/// The scores of `names`, in their order.
pub(crate) fn priorities(names: Vec<NodeName>, scores: Vec<u8>) -> Vec<HostPriority> {
    names
        .into_iter()
        .zip(scores)
        .map(|(host, score)| HostPriority { host, score })
        .collect()
}

impl ExtenderPreemptionArgs {
    /// What the scheduler proposes.
    ///
    /// # Errors
    /// Where it was not told to send names.
    pub(crate) fn proposed(&mut self) -> Result<Vec<Victims>, BadBody> {
        // Go writes a map without entries as it writes none: only whole pods say that names were not asked for.
        if self.node_name_to_victims.is_some() && self.node_name_to_meta_victims.is_none() {
            return Err(BadBody::NoNames("NodeNameToMetaVictims"));
        }
        let proposed = self.node_name_to_meta_victims.take().unwrap_or_default();
        Ok(proposed
            .into_iter()
            .map(|(node, victims)| victims.on(node))
            .collect())
    }
}

impl MetaVictims {
    fn on(self, node: NodeName) -> Victims {
        Victims {
            node,
            pods: self.pods.into_iter().flatten().map(|pod| pod.uid).collect(),
            budget_violations: usize::try_from(self.violations).unwrap_or_default(),
        }
    }
}

impl From<Vec<Victims>> for ExtenderPreemptionResult {
    fn from(victims: Vec<Victims>) -> Self {
        let of = |victims: Victims| MetaVictims {
            pods: Some(victims.pods.into_iter().map(|uid| MetaPod { uid }).collect()),
            violations: i64::try_from(victims.budget_violations).unwrap_or(i64::MAX),
        };
        let by_node = victims
            .into_iter()
            .map(|victims| (victims.node.clone(), of(victims)));
        Self {
            node_name_to_meta_victims: by_node.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::index::Refusal;

    fn names(names: &[&str]) -> Vec<NodeName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn an_answer_to_filter_has_the_keys_that_go_knows() {
        let verdicts = [
            Verdict::Fits,
            Verdict::Refused(Refusal::NoGpus),
            Verdict::Unresolvable(Refusal::Sessions { open: 8, limit: 8 }),
        ];
        let answer = ExtenderFilterResult::of(names(&["a", "b", "c"]), &verdicts);
        let expected = json!({
            "Nodes": null,
            "NodeNames": ["a"],
            "FailedNodes": { "b": "no GPU is known here: is penstock-plugin running on it?" },
            "FailedAndUnresolvableNodes": { "c": "8 encoder sessions are open, and the driver allows 8 on this node" },
            "Error": "",
        });
        assert_eq!(serde_json::to_value(answer).unwrap(), expected);
    }

    #[test]
    fn answers_to_the_other_verbs_too() {
        let scores = serde_json::to_value(priorities(names(&["a", "b"]), vec![10, 0])).unwrap();
        assert_eq!(
            scores,
            json!([{ "Host": "a", "Score": 10 }, { "Host": "b", "Score": 0 }])
        );
        let bound = serde_json::to_value(ExtenderBindingResult::default()).unwrap();
        assert_eq!(bound, json!({ "Error": "" }));
        let victims = Victims {
            node: "a".parse().unwrap(),
            pods: vec!["u1".parse().unwrap()],
            budget_violations: 1,
        };
        let victims = serde_json::to_value(ExtenderPreemptionResult::from(vec![victims])).unwrap();
        let expected =
            json!({ "NodeNameToMetaVictims": { "a": { "Pods": [{ "UID": "u1" }], "NumPDBViolations": 1 } } });
        assert_eq!(victims, expected);
    }

    #[test]
    fn what_go_writes_as_null_is_empty() {
        let body = json!({
            "Pod": {"metadata": {}}, "NodeNameToVictims": null,
            "NodeNameToMetaVictims": { "a": { "Pods": null, "NumPDBViolations": 0 } },
        });
        let mut args: ExtenderPreemptionArgs = read(body.to_string().as_bytes()).unwrap();
        let nobody = Victims {
            node: "a".parse().unwrap(),
            pods: vec![],
            budget_violations: 0,
        };
        assert_eq!(args.proposed().unwrap(), [nobody]);
    }

    #[test]
    fn a_bad_body_says_what_is_wrong_with_it() {
        let bind = |body: &str| {
            read::<ExtenderBindingArgs>(body.as_bytes())
                .unwrap_err()
                .to_string()
        };
        assert!(bind("{").starts_with("the body is no JSON: EOF"), "{}", bind("{"));
        assert!(
            bind("{}").starts_with("the body is not what a scheduler sends: missing field `PodName`"),
            "{}",
            bind("{}")
        );
        let whole_nodes =
            |field: &str, value: Value| json!({ "Pod": {"metadata": {}}, field: value }).to_string();
        let mut filter: ExtenderArgs = read(whole_nodes("Nodes", json!({ "items": [] })).as_bytes()).unwrap();
        assert!(
            filter
                .names()
                .unwrap_err()
                .to_string()
                .contains("nodeCacheCapable: true")
        );
        let mut preempt: ExtenderPreemptionArgs =
            read(whole_nodes("NodeNameToVictims", json!({})).as_bytes()).unwrap();
        assert!(
            preempt
                .proposed()
                .unwrap_err()
                .to_string()
                .starts_with("NodeNameToMetaVictims is null")
        );
    }
}
