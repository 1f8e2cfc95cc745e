//! The objects, their versions, and all that ever happened to them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::apply::{Manager, Owners};
use crate::kinds::{self, Kind};
use crate::selector::Selector;
use crate::status::Failure;

/// Where an object is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    group: String,
    plural: String,
    namespace: String,
    name: String,
}

impl Key {
    pub(crate) fn new(kind: &Kind, namespace: Option<&str>, name: &str) -> Self {
        Self {
            group: kind.home().to_owned(),
            plural: kind.plural.clone(),
            namespace: namespace.unwrap_or_default().to_owned(),
            name: name.to_owned(),
        }
    }

    fn is_of(&self, kind: &Kind) -> bool {
        self.group == kind.home() && self.plural == kind.plural
    }

    /// Where it is among those of its kind: namespace and name.
    pub(crate) fn place(&self) -> [&str; 2] {
        [&self.namespace, &self.name]
    }
}

/// An object and its owners.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) object: Arc<Value>,
    pub(crate) owners: Owners,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) version: u64,
    key: Key,
    before: Option<Arc<Value>>,
    after: Option<Arc<Value>>,
}

impl Change {
    /// What a watch of that kind and selection sees of it: an object that is selected no more is deleted for it.
    pub(crate) fn seen(&self, kind: &Kind, selector: &Selector) -> Option<(&'static str, Value)> {
        if !self.key.is_of(kind) {
            return None;
        }
        let is_selected = |object: &&Arc<Value>| selector.matches(object);
        let before = self.before.as_ref().filter(is_selected);
        let after = self.after.as_ref().filter(is_selected);
        match (before, after) {
            (None, None) => None,
            (None, Some(after)) => Some(("ADDED", kind.show(after))),
            (Some(_), Some(after)) => Some(("MODIFIED", kind.show(after))),
            (Some(before), None) => {
                let mut last = kind.show(before);
                last["metadata"]["resourceVersion"] = json!(self.version.to_string());
                Some(("DELETED", last))
            }
        }
    }
}

/// All of a cluster.
#[derive(Debug)]
pub(crate) struct Store {
    kinds: Vec<Kind>,
    objects: BTreeMap<Key, Stored>,
    pub(crate) history: Vec<Change>,
    pub(crate) version: u64,
    /// Versions below this are gone.
    pub(crate) compacted: u64,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self {
            kinds: kinds::built_in(),
            objects: BTreeMap::new(),
            history: Vec::new(),
            version: 1,
            compacted: 0,
        }
    }

    pub(crate) fn kind(&self, group: &str, version: &str, plural: &str) -> Option<&Kind> {
        let is_it = |kind: &&Kind| kind.group == group && kind.version == version && kind.plural == plural;
        self.kinds.iter().find(is_it)
    }

    /// The kind of an object, by what it says of itself.
    pub(crate) fn kind_of(&self, object: &Value) -> Option<&Kind> {
        let is_it = |kind: &&Kind| object["kind"] == kind.kind && object["apiVersion"] == kind.api_version();
        self.kinds.iter().find(is_it)
    }

    /// The kind with that plural; the first of several.
    pub(crate) fn kind_called(&self, plural: &str) -> Option<&Kind> {
        self.kinds.iter().find(|kind| kind.plural == plural)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Stored> {
        self.objects.get(key)
    }

    /// The objects of a kind, by namespace and name.
    pub(crate) fn list<'a>(
        &'a self,
        kind: &'a Kind,
        selector: &'a Selector,
    ) -> impl Iterator<Item = (&'a Key, &'a Value)> {
        self.objects
            .iter()
            .filter(|(key, stored)| key.is_of(kind) && selector.matches(&stored.object))
            .map(|(key, stored)| (key, &*stored.object))
    }

    /// The same from behind a place on, which need not be taken.
    pub(crate) fn list_behind<'a>(
        &'a self,
        kind: &'a Kind,
        selector: &'a Selector,
        [namespace, name]: [&str; 2],
    ) -> impl Iterator<Item = (&'a Key, &'a Value)> {
        let place = Key::new(kind, Some(namespace), name);
        self.objects
            .range((Bound::Excluded(place), Bound::Unbounded))
            .take_while(|(key, _)| key.is_of(kind))
            .filter(|(_, stored)| selector.matches(&stored.object))
            .map(|(key, stored)| (key, &*stored.object))
    }

    /// All objects of `plural` in `group`, whatever the version.
    pub(crate) fn all(&self, group: &str, plural: &str) -> impl Iterator<Item = &Value> {
        let (group, plural) = (group.to_owned(), plural.to_owned());
        self.objects
            .iter()
            .filter(move |(key, _)| key.group == group && key.plural == plural)
            .map(|(_, stored)| &*stored.object)
    }

    /// Keeps an object in its next version, and gives that. One that was there already and is no other now stays
    /// as it was.
    pub(crate) fn put(&mut self, kind: &Kind, mut object: Value, owners: Owners) -> Result<Value, Failure> {
        let metadata = &object["metadata"];
        let key = Key::new(
            kind,
            metadata["namespace"].as_str(),
            metadata["name"].as_str().unwrap_or_default(),
        );
        let before = self.objects.get(&key).cloned();
        let now = now();
        if let Some(before) = &before {
            // A write of the very same is none, whoever wrote it before.
            object["metadata"]["resourceVersion"] = before.object["metadata"]["resourceVersion"].clone();
            object["metadata"]["managedFields"] = before.object["metadata"]["managedFields"].clone();
            let owned = |owners: &Owners| owners.shown("", "");
            if object == *before.object && owned(&owners) == owned(&before.owners) {
                return Ok(object);
            }
        }
        if kind.plural == DEFINITIONS {
            self.define(&mut object)?;
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        object["metadata"]["managedFields"] = owners.shown(&kind.api_version(), &now);
        let after = Arc::new(object.clone());
        let stored = Stored {
            object: after.clone(),
            owners,
        };
        self.objects.insert(key.clone(), stored);
        self.happened(key, before.map(|stored| stored.object), Some(after));
        Ok(object)
    }

    /// Removes an object, and all that is in it where it is a namespace or a definition. Gives its last state.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Value> {
        let before = self.objects.remove(key)?.object;
        self.version += 1;
        self.happened(key.clone(), Some(before.clone()), None);
        let inside = |other: &Key| match &*key.plural {
            "namespaces" => other.namespace == key.name,
            DEFINITIONS => key.name == format!("{}.{}", other.plural, other.group),
            _ => false,
        };
        let gone: Vec<Key> = self
            .objects
            .keys()
            .filter(|other| inside(other))
            .cloned()
            .collect();
        for key in gone {
            self.remove(&key);
        }
        if key.plural == DEFINITIONS {
            self.kinds
                .retain(|kind| key.name != format!("{}.{}", kind.plural, kind.group));
        }
        let mut last = Value::clone(&before);
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        Some(last)
    }

    fn define(&mut self, definition: &mut Value) -> Result<(), Failure> {
        let defined = kinds::defined(definition)?;
        let names = &definition["spec"]["names"];
        let now = now();
        let condition = |about: &str, reason: &str| json!({ "type": about, "status": "True", "reason": reason, "message": "", "lastTransitionTime": now });
        let versions: Vec<_> = defined.iter().map(|kind| kind.version.clone()).collect();
        let status = json!({
            "acceptedNames": names, "storedVersions": versions,
            "conditions": [condition("NamesAccepted", "NoConflicts"), condition("Established", "InitialNamesAccepted")],
        });
        for kind in defined {
            self.kinds.retain(|old| {
                (&old.group, &old.plural, &old.version) != (&kind.group, &kind.plural, &kind.version)
            });
            self.kinds.push(kind);
        }
        definition["status"] = status;
        Ok(())
    }

    fn happened(&mut self, key: Key, before: Option<Arc<Value>>, after: Option<Arc<Value>>) {
        let version = self.version;
        self.history.push(Change {
            version,
            key,
            before,
            after,
        });
    }
}

/// Now, by RFC 3339, in whole seconds.
pub(crate) fn now() -> String {
    format!("{:.0}", Timestamp::now())
}

/// Who the server itself is.
pub(crate) fn server() -> Manager {
    Manager {
        name: "kube-apiserver".to_owned(),
        operation: "Update",
        subresource: None,
    }
}

const DEFINITIONS: &str = "customresourcedefinitions";
