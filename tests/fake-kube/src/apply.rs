//! Server-side apply, and who owns which field.
//!
//! Fields are owned as an API server has it: by manager, and by whether they were applied or updated. An apply
//! takes away what its manager applied before and now leaves out, and is refused where another manager owns a field
//! with another value, unless it is forced. Lists without a key are one value.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::kinds::Kind;
use crate::patch::{Format, patched};
use crate::status::{Cause, Failure};

/// Who wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manager {
    pub(crate) name: String,
    /// `Apply` or `Update`.
    pub(crate) operation: &'static str,
    pub(crate) subresource: Option<String>,
}

/// A field's place, in the notation of `fieldsV1`: `f:spec`, `k:{"uid":"…"}`.
type Path = Vec<String>;

/// Who owns what of one object.
#[derive(Debug, Clone, Default)]
pub(crate) struct Owners(Vec<(Manager, BTreeSet<Path>)>);

impl Owners {
    /// The object that `config` makes of `live`, and who then owns what.
    ///
    /// # Errors
    /// Where others own what would change, and `force` is not set.
    pub(crate) fn apply(
        &self,
        kind: &Kind,
        live: &Value,
        config: &Value,
        manager: &Manager,
        force: bool,
    ) -> Result<(Value, Self), Failure> {
        let asked = leaves(kind, config);
        let there = leaves(kind, live);
        let mut owners = self.clone();
        let conflicts = owners.yield_to(manager, &asked, &there);
        if !conflicts.is_empty() && !force {
            return Err(Failure::apply_conflict(&conflicts));
        }
        let before = owners.take(manager);
        let mut object = live.clone();
        for gone in before.iter().filter(|path| !asked.contains_key(*path)) {
            if !owners.0.iter().any(|(_, paths)| paths.contains(gone)) {
                remove(&mut object, gone);
            }
        }
        let object = patched(kind, &object, Format::Apply, config)?;
        owners.0.push((manager.clone(), asked.into_keys().collect()));
        Ok((object, owners))
    }

    /// Who owns what after `manager` has written `after` in the place of `before`.
    pub(crate) fn updated(&self, kind: &Kind, before: &Value, after: &Value, manager: &Manager) -> Self {
        let (before, after) = (leaves(kind, before), leaves(kind, after));
        let mut owners = self.clone();
        let mut mine = owners.take(manager);
        let changed = |path: &&Path| before.get(*path) != after.get(*path);
        let set: BTreeSet<Path> = after.keys().filter(changed).cloned().collect();
        for (_, paths) in &mut owners.0 {
            paths.retain(|path| after.contains_key(path) && !set.contains(path));
        }
        mine.retain(|path| after.contains_key(path));
        mine.extend(set);
        owners.0.retain(|(_, paths)| !paths.is_empty());
        if !mine.is_empty() {
            owners.0.push((manager.clone(), mine));
        }
        owners
    }

    /// `metadata.managedFields`.
    pub(crate) fn shown(&self, api_version: &str, now: &str) -> Value {
        let each = self.0.iter().map(|(manager, paths)| {
            let mut entry = json!({
                "manager": manager.name, "operation": manager.operation, "apiVersion": api_version, "time": now,
                "fieldsType": "FieldsV1", "fieldsV1": fields(paths),
            });
            if let Some(subresource) = &manager.subresource {
                entry["subresource"] = json!(subresource);
            }
            entry
        });
        each.collect()
    }

    fn take(&mut self, manager: &Manager) -> BTreeSet<Path> {
        let at = self.0.iter().position(|(owner, _)| owner == manager);
        at.map(|at| self.0.remove(at).1).unwrap_or_default()
    }

    /// Takes from others what `manager` sets to another value, and says what that is.
    fn yield_to(
        &mut self,
        manager: &Manager,
        asked: &BTreeMap<Path, Value>,
        there: &BTreeMap<Path, Value>,
    ) -> Vec<Cause> {
        let mut conflicts = Vec::new();
        for (owner, paths) in self.0.iter_mut().filter(|(owner, _)| owner != manager) {
            let version = match owner.operation {
                "Apply" => "",
                _ => " using an update",
            };
            paths.retain(|path| {
                let live = there.get(path);
                let clash = |(other, value): (&Path, &Value)| match path.len().cmp(&other.len()) {
                    Ordering::Equal => path == other && live != Some(value),
                    // An empty map leaves room for what others have in it.
                    Ordering::Less => other.starts_with(path) && live.is_some_and(|live| !live.is_object()),
                    Ordering::Greater => path.starts_with(other) && !value.is_object(),
                };
                let clashes = asked.iter().any(clash);
                if clashes {
                    conflicts.push(Cause {
                        reason: "FieldManagerConflict",
                        field: dotted(path),
                        message: format!("conflict with \"{}\"{version}", owner.name),
                    });
                }
                !clashes
            });
        }
        conflicts
    }
}

fn dotted(path: &[String]) -> String {
    let step = |step: &String| match step.split_once(':') {
        Some(("k", key)) => format!(
            "[{}]",
            key.trim_matches(['{', '}'])
                .replacen("\":", "=", 1)
                .replacen('"', "", 1)
        ),
        Some((_, field)) => format!(".{field}"),
        None => String::new(),
    };
    path.iter().map(step).collect()
}

/// The fields with values of their own. What the server itself sets is not among them.
fn leaves(kind: &Kind, object: &Value) -> BTreeMap<Path, Value> {
    let mut found = BTreeMap::new();
    for (field, value) in object.as_object().into_iter().flatten() {
        if !["apiVersion", "kind"].contains(&&**field) {
            walk(
                kind,
                value,
                &mut vec![field],
                &mut vec![format!("f:{field}")],
                &mut found,
            );
        }
    }
    let is_ours = |path: &Path| match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["f:metadata", field, ..] => {
            ["f:labels", "f:annotations", "f:ownerReferences", "f:finalizers"].contains(&field)
        }
        _ => true,
    };
    found.retain(|path, _| is_ours(path));
    found
}

fn walk<'a>(
    kind: &Kind,
    value: &'a Value,
    plain: &mut Vec<&'a str>,
    path: &mut Path,
    found: &mut BTreeMap<Path, Value>,
) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (field, value) in fields {
                plain.push(field);
                path.push(format!("f:{field}"));
                walk(kind, value, plain, path, found);
                plain.pop();
                path.pop();
            }
        }
        Value::Array(items) if !items.is_empty() => match kind.list_key(plain) {
            Some(key) => {
                for item in items {
                    path.push(format!("k:{}", json!({ &*key: item[&*key] })));
                    walk(kind, item, plain, path, found);
                    path.pop();
                }
            }
            None => {
                found.insert(path.clone(), value.clone());
            }
        },
        Value::Null => {}
        _ => {
            found.insert(path.clone(), value.clone());
        }
    }
}

/// Removes a field, and what is empty without it.
fn remove(object: &mut Value, path: &[String]) {
    let [step, rest @ ..] = path else { return };
    match (step.split_once(':'), &mut *object) {
        (Some(("f", field)), Value::Object(fields)) => {
            if let Some(inner) = fields.get_mut(field) {
                remove(inner, rest);
                if (rest.is_empty() && !inner.is_object()) || is_empty(inner) {
                    fields.remove(field);
                }
            }
        }
        (Some(("k", key)), Value::Array(items)) => {
            let key: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
            let is_it = |item: &Value| key.iter().all(|(field, value)| item[field] == *value);
            items
                .iter_mut()
                .filter(|item| is_it(item))
                .for_each(|item| remove(item, rest));
            items.retain(|item| !is_empty(item));
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn fields(paths: &BTreeSet<Path>) -> Value {
    let mut root = Map::new();
    for path in paths {
        let mut at = &mut root;
        for step in path {
            let inner = at
                .entry(step.clone())
                .or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(inner) = inner else { break };
            at = inner;
        }
    }
    Value::Object(root)
}
