//! The kinds of objects that there are: some built in, others by definitions.

use std::any::TypeId;
use std::sync::Arc;

use k8s_openapi::api::{
    admissionregistration::v1 as admission, apps::v1 as apps, autoscaling::v2 as autoscaling,
    coordination::v1 as coordination, core::v1 as core, events::v1 as events, node::v1 as node,
    policy::v1 as policy, rbac::v1 as rbac, scheduling::v1 as scheduling,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::{ClusterResourceScope, Metadata, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::schema::Schema;
use crate::status::{Cause, Failure, Subject};

/// One kind in one version.
#[derive(Debug, Clone)]
pub(crate) struct Kind {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) kind: String,
    pub(crate) namespaced: bool,
    /// Whether `status` is written at a path of its own only.
    pub(crate) status: bool,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    /// What the type does not know is dropped, what it can't read is refused.
    Typed(fn(&Value) -> Result<Value, serde_json::Error>),
    Custom(Arc<Schema>),
}

impl Kind {
    fn typed<T>() -> Self
    where
        T: Resource + Metadata + Serialize + DeserializeOwned,
        T::Scope: 'static,
    {
        Self {
            group: T::GROUP.to_owned(),
            version: T::VERSION.to_owned(),
            plural: T::URL_PATH_SEGMENT.to_owned(),
            kind: T::KIND.to_owned(),
            namespaced: TypeId::of::<T::Scope>() != TypeId::of::<ClusterResourceScope>(),
            status: false,
            content: Content::Typed(|value| serde_json::to_value(T::deserialize(value)?)),
        }
    }

    fn with_status(self) -> Self {
        Self { status: true, ..self }
    }

    /// `v1` or `penstock.dev/v1alpha1`.
    pub(crate) fn api_version(&self) -> String {
        match &*self.group {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// `Pod` or `GpuNode.penstock.dev`, as errors name it.
    pub(crate) fn qualified(&self) -> String {
        match &*self.group {
            "" => self.kind.clone(),
            group => format!("{}.{group}", self.kind),
        }
    }

    pub(crate) fn subject<'a>(&'a self, name: &'a str) -> Subject<'a> {
        Subject {
            group: &self.group,
            plural: &self.plural,
            name,
        }
    }

    /// The group that its objects are kept under: Events are the same objects in two groups.
    pub(crate) fn home(&self) -> &str {
        match (&*self.group, &*self.plural) {
            ("", "events") => events::Event::GROUP,
            (group, _) => group,
        }
    }

    pub(crate) fn is_custom(&self) -> bool {
        matches!(self.content, Content::Custom(_))
    }

    /// Whether a PUT may leave `metadata.resourceVersion` out.
    pub(crate) fn may_be_overwritten(&self) -> bool {
        !self.is_custom() && self.kind != "Lease"
    }

    /// The object with what its kind does not know dropped, and with defaults.
    pub(crate) fn read(&self, object: &Value) -> Result<Value, Failure> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let mut read = match &self.content {
            Content::Typed(read) => read(object).map_err(|error| self.unreadable(&error))?,
            Content::Custom(schema) => {
                let metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta =
                    serde_json::from_value(object["metadata"].clone())
                        .map_err(|error| self.unreadable(&error))?;
                let mut read = schema.read(object);
                read["metadata"] = json!(metadata);
                read
            }
        };
        read["apiVersion"] = json!(self.api_version());
        read["kind"] = json!(self.kind);
        let causes = self.faults(&read);
        match causes.is_empty() {
            true => Ok(read),
            false => Err(Failure::invalid(&self.qualified(), name, &causes)),
        }
    }

    fn unreadable(&self, error: &serde_json::Error) -> Failure {
        let (kind, version) = (&self.kind, &self.version);
        Failure::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: {error}"
        ))
    }

    fn faults(&self, object: &Value) -> Vec<Cause> {
        match &self.content {
            Content::Custom(schema) => schema.faults(object),
            Content::Typed(_) => builtin_faults(self, object),
        }
    }

    /// The field by which elements of the list at this place are told apart; none where the list is one value.
    pub(crate) fn list_key(&self, path: &[&str]) -> Option<String> {
        let last = *path.last()?;
        if let ["metadata", "ownerReferences"] = path {
            return Some("uid".to_owned());
        }
        if let Content::Custom(schema) = &self.content {
            return schema.list_key(path);
        }
        let key = match last {
            "containers" | "initContainers" | "env" | "volumes" | "imagePullSecrets" => "name",
            "conditions" => "type",
            "ports" if self.kind == "Service" => "port",
            "ports" => "containerPort",
            "volumeMounts" => "mountPath",
            _ => return None,
        };
        Some(key.to_owned())
    }

    /// The object as this version of the kind shows it.
    pub(crate) fn show(&self, object: &Value) -> Value {
        let mut shown = object.clone();
        if self.home() != self.group {
            rename(&mut shown, CORE_EVENT, true);
        }
        shown["apiVersion"] = json!(self.api_version());
        shown
    }

    /// The other way round.
    pub(crate) fn take(&self, body: &Value) -> Value {
        let mut taken = body.clone();
        if self.home() != self.group {
            rename(&mut taken, CORE_EVENT, false);
        }
        taken
    }

    /// What a typed reader would silently drop of `object`: the paths of unknown fields.
    pub(crate) fn unknown_fields(&self, object: &Value) -> Result<Vec<String>, Failure> {
        let read = self.read(object)?;
        let mut unknown = Vec::new();
        dropped(object, &read, "", &mut unknown);
        Ok(unknown)
    }
}

fn dropped(sent: &Value, kept: &Value, path: &str, unknown: &mut Vec<String>) {
    match (sent, kept) {
        (Value::Object(sent), Value::Object(kept)) => {
            for (field, value) in sent.iter().filter(|(_, value)| !value.is_null()) {
                let path = format!("{path}.{field}");
                match kept.get(field) {
                    Some(kept) => dropped(value, kept, &path, unknown),
                    None => unknown.push(path.trim_start_matches('.').to_owned()),
                }
            }
        }
        (Value::Array(sent), Value::Array(kept)) => {
            for (index, (sent, kept)) in sent.iter().zip(kept).enumerate() {
                dropped(sent, kept, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

/// The kinds that every API server has, as far as anybody here needs them.
pub(crate) fn built_in() -> Vec<Kind> {
    let mut core_event = Kind::typed::<events::Event>();
    core_event.group = String::new();
    vec![
        Kind::typed::<core::Namespace>().with_status(),
        Kind::typed::<core::Node>().with_status(),
        Kind::typed::<core::Pod>().with_status(),
        Kind::typed::<core::ConfigMap>(),
        Kind::typed::<core::Secret>(),
        Kind::typed::<core::Service>().with_status(),
        Kind::typed::<core::ServiceAccount>(),
        core_event,
        Kind::typed::<events::Event>(),
        Kind::typed::<apps::DaemonSet>().with_status(),
        Kind::typed::<apps::Deployment>().with_status(),
        Kind::typed::<apps::ReplicaSet>().with_status(),
        Kind::typed::<apps::StatefulSet>().with_status(),
        Kind::typed::<coordination::Lease>(),
        Kind::typed::<rbac::Role>(),
        Kind::typed::<rbac::ClusterRole>(),
        Kind::typed::<rbac::RoleBinding>(),
        Kind::typed::<rbac::ClusterRoleBinding>(),
        Kind::typed::<CustomResourceDefinition>().with_status(),
        Kind::typed::<node::RuntimeClass>(),
        Kind::typed::<policy::PodDisruptionBudget>().with_status(),
        Kind::typed::<scheduling::PriorityClass>(),
        Kind::typed::<autoscaling::HorizontalPodAutoscaler>().with_status(),
        Kind::typed::<admission::MutatingAdmissionPolicy>(),
        Kind::typed::<admission::MutatingAdmissionPolicyBinding>(),
    ]
}

/// The kinds that a definition brings: one for each version that is served.
pub(crate) fn defined(definition: &Value) -> Result<Vec<Kind>, Failure> {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = text(&definition["metadata"]["name"]);
    let expected = format!("{}.{}", text(&spec["names"]["plural"]), text(&spec["group"]));
    if name != expected {
        let cause = Cause {
            reason: "FieldValueInvalid",
            field: "metadata.name".to_owned(),
            message: format!("Invalid value: \"{name}\": must be spec.names.plural+\".\"+spec.group"),
        };
        return Err(Failure::invalid(
            "CustomResourceDefinition.apiextensions.k8s.io",
            &name,
            &[cause],
        ));
    }
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let served = versions.iter().filter(|version| version["served"] == true);
    served
        .map(|version| {
            let schema = Schema::new(&version["schema"]["openAPIV3Schema"]).map_err(Failure::bad_request)?;
            Ok(Kind {
                group: text(&spec["group"]),
                version: text(&version["name"]),
                plural: text(&spec["names"]["plural"]),
                kind: text(&spec["names"]["kind"]),
                namespaced: spec["scope"] == "Namespaced",
                status: version["subresources"]["status"].is_object(),
                content: Content::Custom(Arc::new(schema)),
            })
        })
        .collect()
}

/// What a built-in kind insists on, as far as it matters here.
fn builtin_faults(kind: &Kind, object: &Value) -> Vec<Cause> {
    let required: &[&str] = match &*kind.kind {
        "Pod" => &["/spec/containers/0/name", "/spec/containers/0/image"],
        "Event" => &[
            "/eventTime",
            "/reportingController",
            "/reportingInstance",
            "/action",
            "/reason",
        ],
        _ => &[],
    };
    let is_there = |path: &&&str| object.pointer(path).is_some_and(|v| !v.is_null() && v != "");
    let mut causes: Vec<_> = required
        .iter()
        .filter(|path| !is_there(path))
        .map(|path| missing(path))
        .collect();
    if kind.kind == "Event" && !["Normal", "Warning"].contains(&object["type"].as_str().unwrap_or_default()) {
        causes.push(Cause {
            reason: "FieldValueInvalid",
            field: "type".to_owned(),
            message: format!("Invalid value: {}: has invalid value", object["type"]),
        });
    }
    if kind.kind == "Lease"
        && object["spec"]["leaseDurationSeconds"]
            .as_i64()
            .is_some_and(|s| s <= 0)
    {
        causes.push(Cause {
            reason: "FieldValueInvalid",
            field: "spec.leaseDurationSeconds".to_owned(),
            message: "Invalid value: 0: must be greater than 0".to_owned(),
        });
    }
    causes
}

fn missing(pointer: &str) -> Cause {
    let field = pointer
        .trim_start_matches('/')
        .replace("/0", "[0]")
        .replace('/', ".");
    Cause {
        reason: "FieldValueRequired",
        field,
        message: "Required value".to_owned(),
    }
}

/// Fields of `events.k8s.io`, and what core calls them.
const CORE_EVENT: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

fn rename(object: &mut Value, names: &[(&str, &str)], forth: bool) {
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    for (inner, outer) in names {
        let (from, to) = if forth { (inner, outer) } else { (outer, inner) };
        move_field(fields, from, to);
    }
}

fn move_field(fields: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = fields.remove(from) {
        fields.insert(to.to_owned(), value);
    }
}
