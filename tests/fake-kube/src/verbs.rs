//! What a request does to the objects: the verbs but list and watch.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::apply::Manager;
use crate::kinds::Kind;
use crate::patch::{Format, patched};
use crate::status::{Cause, Failure};
use crate::store::{Key, Store, Stored, now, server};

/// What is asked for, and by whom.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    pub(crate) subresource: Option<String>,
    pub(crate) manager: Manager,
}

impl Target {
    fn key(&self) -> Key {
        Key::new(&self.kind, self.namespace.as_deref(), &self.name)
    }

    fn not_found(&self) -> Failure {
        Failure::not_found(self.kind.subject(&self.name))
    }

    fn invalid(&self, field: &str, reason: &'static str, message: String) -> Failure {
        let cause = Cause {
            reason,
            field: field.to_owned(),
            message,
        };
        Failure::invalid(&self.kind.qualified(), &self.name, &[cause])
    }

    /// The body as an object of this kind and in this place.
    fn taken(&self, body: &Value) -> Result<Value, Failure> {
        if !body.is_object() || !(body["metadata"].is_null() || body["metadata"].is_object()) {
            return Err(Failure::bad_request(
                "the body of the request is no object with metadata",
            ));
        }
        let mut object = self.kind.take(body);
        for (field, expected) in [
            ("kind", self.kind.kind.clone()),
            ("apiVersion", self.kind.api_version()),
        ] {
            if object[field].is_null() {
                object[field] = json!(expected);
            } else if object[field] != expected {
                let message = format!("the {field} of the object ({}) is not {expected}", object[field]);
                return Err(Failure::bad_request(message));
            }
        }
        if object["metadata"].is_null() {
            object["metadata"] = json!({});
        }
        let namespace = &object["metadata"]["namespace"];
        if !namespace.is_null() && namespace.as_str() != self.namespace.as_deref() {
            return Err(Failure::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        if let Some(namespace) = &self.namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        let name = &object["metadata"]["name"];
        if !self.name.is_empty() && !name.is_null() && *name != *self.name {
            return Err(Failure::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                name.as_str().unwrap_or_default(),
                self.name
            )));
        }
        if !self.name.is_empty() {
            object["metadata"]["name"] = json!(self.name);
        }
        Ok(object)
    }
}

impl Store {
    pub(crate) fn read(&self, target: &Target) -> Result<Value, Failure> {
        let stored = self.get(&target.key()).ok_or_else(|| target.not_found())?;
        Ok(target.kind.show(&stored.object))
    }

    pub(crate) fn create(&mut self, target: &Target, body: &Value) -> Result<Value, Failure> {
        let mut object = target.taken(body)?;
        if !object["metadata"]["resourceVersion"].is_null() {
            return Err(Failure::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        if let (Value::Null, Some(prefix)) = (
            &object["metadata"]["name"],
            object["metadata"]["generateName"].as_str(),
        ) {
            object["metadata"]["name"] = json!(format!("{prefix}{:05x}", rand::random::<u32>() & 0xf_ffff));
        }
        let named = Target {
            name: object["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            ..target.clone()
        };
        if named.name.is_empty() {
            let message = "Required value: name or generateName is required".to_owned();
            return Err(named.invalid("metadata.name", "FieldValueRequired", message));
        }
        if self.get(&named.key()).is_some() {
            return Err(Failure::already_exists(named.kind.subject(&named.name)));
        }
        let owners = crate::apply::Owners::default();
        let new = self.born(&named, object)?;
        let owners = owners.updated(&named.kind, &Value::Null, &new, &named.manager);
        Ok(named.kind.show(&self.put(&named.kind, new, owners)?))
    }

    /// An object that was not there before, as it is kept.
    fn born(&self, target: &Target, mut object: Value) -> Result<Value, Failure> {
        if let Some(namespace) = &target.namespace {
            let namespaces = self.kind_called("namespaces").ok_or_else(Failure::no_such_path)?;
            if self.get(&Key::new(namespaces, None, namespace)).is_none() {
                return Err(Failure::not_found(namespaces.subject(namespace)));
            }
        }
        if target.kind.kind == "Event" && object["regarding"]["namespace"] != object["metadata"]["namespace"]
        {
            let message = "Invalid value: does not match event.namespace".to_owned();
            return Err(target.invalid("involvedObject.namespace", "FieldValueInvalid", message));
        }
        if let Some(metadata) = object["metadata"].as_object_mut() {
            for of_the_server in [
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "selfLink",
                "managedFields",
            ] {
                metadata.remove(of_the_server);
            }
        }
        // The kubelet writes a Node with its status; every other kind begins without one.
        if target.kind.status && target.kind.kind != "Node" {
            object["status"] = Value::Null;
        }
        let mut object = target.kind.read(&tidy(object))?;
        object["metadata"]["uid"] = json!(uid());
        object["metadata"]["creationTimestamp"] = json!(now());
        if object.get("spec").is_some() {
            object["metadata"]["generation"] = json!(1);
        }
        match &*target.kind.kind {
            "Pod" => pod_defaults(&mut object),
            "Namespace" => object["status"] = json!({ "phase": "Active" }),
            _ => {}
        }
        Ok(object)
    }

    pub(crate) fn update(&mut self, target: &Target, body: &Value) -> Result<Value, Failure> {
        let object = target.taken(body)?;
        let stored = self.get(&target.key()).ok_or_else(|| target.not_found())?.clone();
        if object["metadata"]["resourceVersion"].is_null() && !target.kind.may_be_overwritten() {
            let message = "Invalid value: 0: must be specified for an update".to_owned();
            return Err(target.invalid("metadata.resourceVersion", "FieldValueInvalid", message));
        }
        self.replace(target, &stored, object, None)
    }

    /// A patch; `may_create` is asked where an apply finds nothing.
    pub(crate) fn patch(
        &mut self,
        target: &Target,
        format: Format,
        force: bool,
        body: &Value,
        may_create: impl Fn(&Self) -> Result<(), Failure>,
    ) -> Result<Value, Failure> {
        let stored = self.get(&target.key()).cloned();
        let Some(stored) = stored else {
            if format != Format::Apply || target.subresource.is_some() {
                return Err(target.not_found());
            }
            may_create(self)?;
            let object = target.taken(body)?;
            let (object, owners) = crate::apply::Owners::default().apply(
                &target.kind,
                &Value::Null,
                &object,
                &target.manager,
                force,
            )?;
            let new = self.born(target, object)?;
            return Ok(target.kind.show(&self.put(&target.kind, new, owners)?));
        };
        if format == Format::Apply {
            let config = target.taken(body)?;
            let (object, owners) =
                stored
                    .owners
                    .apply(&target.kind, &stored.object, &config, &target.manager, force)?;
            return self.replace(target, &stored, object, Some(owners));
        }
        let shown = target.kind.show(&stored.object);
        let object = target.taken(&patched(&target.kind, &shown, format, body)?)?;
        self.replace(target, &stored, object, None)
    }

    /// Puts `object` in the place of what is stored, as far as the path that it was sent to allows.
    fn replace(
        &mut self,
        target: &Target,
        stored: &Stored,
        mut object: Value,
        owners: Option<crate::apply::Owners>,
    ) -> Result<Value, Failure> {
        let old = &*stored.object;
        self.check_versions(target, old, &object)?;
        for of_the_server in OF_THE_SERVER {
            object["metadata"][of_the_server] = old["metadata"][of_the_server].clone();
        }
        match target.subresource.as_deref() {
            Some("status") => {
                let status = object["status"].take();
                let mut whole = old.clone();
                whole["status"] = status;
                object = whole;
            }
            _ if target.kind.status => object["status"] = old["status"].clone(),
            _ => {}
        }
        let mut object = target.kind.read(&tidy(object))?;
        if target.kind.kind == "Pod" && fixed(&object["spec"]) != fixed(&old["spec"]) {
            let message = "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,\
                           `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only \
                           additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be \
                           set to 1 if it was previously negative)";
            return Err(target.invalid("spec", "FieldValueForbidden", message.to_owned()));
        }
        if object["spec"] != old["spec"] {
            let generation = old["metadata"]["generation"].as_u64().unwrap_or(1);
            object["metadata"]["generation"] = json!(generation + 1);
        }
        let owners =
            owners.unwrap_or_else(|| stored.owners.updated(&target.kind, old, &object, &target.manager));
        let new = self.put(&target.kind, object, owners)?;
        let is_over = !new["metadata"]["deletionTimestamp"].is_null()
            && new["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty)
            && new["metadata"]["deletionGracePeriodSeconds"]
                .as_u64()
                .unwrap_or(0)
                == 0;
        if is_over {
            self.remove(&target.key());
        }
        Ok(target.kind.show(&new))
    }

    fn check_versions(&self, target: &Target, old: &Value, new: &Value) -> Result<(), Failure> {
        let differs = |field: &str| {
            let sent = &new["metadata"][field];
            !sent.is_null() && *sent != old["metadata"][field]
        };
        let subject = target.kind.subject(&target.name);
        if differs("uid") {
            return Err(Failure::conflict(
                subject,
                &precondition("UID", &new["metadata"]["uid"], &old["metadata"]["uid"]),
            ));
        }
        match differs("resourceVersion") {
            true => Err(Failure::stale(subject)),
            false => Ok(()),
        }
    }

    pub(crate) fn delete(&mut self, target: &Target, options: &Value) -> Result<Value, Failure> {
        let stored = self.get(&target.key()).ok_or_else(|| target.not_found())?.clone();
        let mut object = Value::clone(&stored.object);
        for (field, what) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
            let (wanted, there) = (&options["preconditions"][field], &object["metadata"][field]);
            if !wanted.is_null() && wanted != there {
                let why = precondition(what, wanted, there);
                return Err(Failure::conflict(target.kind.subject(&target.name), &why));
            }
        }
        let grace = grace(&target.kind, &object, options);
        let has_finalizers = object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|list| !list.is_empty());
        if grace == 0 && !has_finalizers {
            let last = self.remove(&target.key()).unwrap_or_default();
            return Ok(target.kind.show(&last));
        }
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = json!(now());
        }
        object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        let shown = self.put(&target.kind, object, stored.owners)?;
        Ok(target.kind.show(&shown))
    }

    /// `pods/NAME/binding`: the pod gets its node, and the annotations of the Binding.
    pub(crate) fn bind(&mut self, target: &Target, binding: &Value) -> Result<Value, Failure> {
        let stored = self.get(&target.key()).ok_or_else(|| target.not_found())?.clone();
        let mut pod = Value::clone(&stored.object);
        let mut subject = target.kind.subject(&target.name);
        subject.plural = "pods/binding";
        let refuse = |why: String| Err(Failure::conflict(subject, &why));
        let uid = &binding["metadata"]["uid"];
        if !uid.is_null() && *uid != pod["metadata"]["uid"] {
            return refuse(precondition("UID", uid, &pod["metadata"]["uid"]));
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            return refuse(format!(
                "pod {} is being deleted, cannot be assigned to a host",
                target.name
            ));
        }
        if let Some(node) = pod["spec"]["nodeName"].as_str() {
            return refuse(format!(
                "pod {} is already assigned to node \"{node}\"",
                target.name
            ));
        }
        let Some(node) = binding["target"]["name"].as_str().filter(|name| !name.is_empty()) else {
            let cause = Cause {
                reason: "FieldValueRequired",
                field: "target.name".to_owned(),
                message: "Required value".to_owned(),
            };
            return Err(Failure::invalid("Binding", &target.name, &[cause]));
        };
        pod["spec"]["nodeName"] = json!(node);
        for annotation in binding["metadata"]["annotations"]
            .as_object()
            .into_iter()
            .flatten()
        {
            pod["metadata"]["annotations"][annotation.0] = annotation.1.clone();
        }
        let condition = json!({ "type": "PodScheduled", "status": "True", "lastTransitionTime": now() });
        let status = json!({ "conditions": [condition] });
        pod["status"] = patched(
            &target.kind,
            &json!({ "status": pod["status"] }),
            Format::Strategic,
            &json!({ "status": status }),
        )?["status"]
            .take();
        let owners = stored
            .owners
            .updated(&target.kind, &stored.object, &pod, &target.manager);
        self.put(&target.kind, pod, owners)?;
        Ok(json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 }))
    }

    /// `serviceaccounts/NAME/token`.
    pub(crate) fn token(&self, target: &Target, request: &Value) -> Result<Value, Failure> {
        self.get(&target.key()).ok_or_else(|| target.not_found())?;
        let namespace = target.namespace.as_deref().unwrap_or_default();
        let mut answer = request.clone();
        answer["status"] =
            json!({ "token": token(namespace, &target.name), "expirationTimestamp": "2100-01-01T00:00:00Z" });
        Ok(answer)
    }

    /// Writes as the server itself: what its own parts do to objects, and tests to the status of others.
    pub(crate) fn as_server(&self, object: &Value) -> Result<Target, Failure> {
        let kind = self.kind_of(object).ok_or_else(Failure::no_such_path)?.clone();
        let text = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
        let namespace = kind
            .namespaced
            .then(|| text("namespace").unwrap_or_else(|| "default".to_owned()));
        let name = text("name").unwrap_or_default();
        Ok(Target {
            kind,
            namespace,
            name,
            subresource: None,
            manager: server(),
        })
    }
}

/// The bearer token of a service account.
pub(crate) fn token(namespace: &str, name: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{namespace}:{name}"))
}

/// The namespace and name of the service account whose token that is.
pub(crate) fn whose(token: &str) -> Option<(String, String)> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let (namespace, name) = text.split_once(':')?;
    Some((namespace.to_owned(), name.to_owned()))
}

fn precondition(what: &str, wanted: &Value, there: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!(
        "Precondition failed: {what} in precondition: {}, {what} in object meta: {}",
        text(wanted),
        text(there)
    )
}

/// Seconds that an object has from its deletion to its end. Only pods on a node have any.
fn grace(kind: &Kind, object: &Value, options: &Value) -> u64 {
    let has_ended = ["Succeeded", "Failed"].contains(&object["status"]["phase"].as_str().unwrap_or_default());
    if kind.kind != "Pod" || object["spec"]["nodeName"].is_null() || has_ended {
        return 0;
    }
    let asked = options["gracePeriodSeconds"].as_u64();
    asked
        .or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_u64())
        .unwrap_or(30)
}

fn pod_defaults(pod: &mut Value) {
    let defaults = json!({
        "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "default", "schedulerName": "default-scheduler", "securityContext": {},
    });
    for (field, default) in defaults.as_object().into_iter().flatten() {
        if pod["spec"][field].is_null() {
            pod["spec"][field] = default.clone();
        }
    }
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let limits = container["resources"]["limits"].clone();
            for (resource, amount) in limits.as_object().into_iter().flatten() {
                if container["resources"]["requests"][resource].is_null() {
                    container["resources"]["requests"][resource] = amount.clone();
                }
            }
            if container["resources"].is_null() {
                container["resources"] = json!({});
            }
        }
    }
    pod["status"] = json!({ "phase": "Pending", "qosClass": "BestEffort" });
}

/// What of a pod's specification never changes.
fn fixed(spec: &Value) -> Value {
    let mut fixed = spec.clone();
    if let Some(fields) = fixed.as_object_mut() {
        for changeable in [
            "activeDeadlineSeconds",
            "tolerations",
            "terminationGracePeriodSeconds",
        ] {
            fields.remove(changeable);
        }
    }
    for list in ["containers", "initContainers"] {
        for container in fixed[list].as_array_mut().into_iter().flatten() {
            container["image"] = Value::Null;
        }
    }
    fixed
}

/// Writing to a JSON value by index leaves nulls behind. In a custom resource's own fields they may have a meaning.
fn tidy(mut object: Value) -> Value {
    let drop_nulls = |value: &mut Value| {
        if let Some(fields) = value.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
    };
    drop_nulls(&mut object["metadata"]);
    drop_nulls(&mut object);
    object
}

fn uid() -> String {
    let digits = format!("{:032x}", rand::random::<u128>());
    [
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    ]
    .join("-")
}

const OF_THE_SERVER: [&str; 6] = [
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "managedFields",
];
