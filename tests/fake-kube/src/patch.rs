//! The kinds of patches but server-side apply, which [`crate::apply`] has.

use serde_json::{Map, Value};

use crate::kinds::Kind;
use crate::status::{Cause, Failure};

/// How a patch is written, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl Format {
    /// # Errors
    /// Where the kind does not take such patches. Custom resources take no strategic merge patch.
    pub(crate) fn of(kind: &Kind, content_type: &str) -> Result<Self, Failure> {
        let found = match content_type.split(';').next().unwrap_or_default().trim() {
            JSON => Self::Json,
            MERGE => Self::Merge,
            STRATEGIC if !kind.is_custom() => Self::Strategic,
            APPLY => Self::Apply,
            _ if kind.is_custom() => return Err(Failure::unsupported_media_type(&[JSON, MERGE, APPLY])),
            _ => return Err(Failure::unsupported_media_type(&[JSON, MERGE, STRATEGIC, APPLY])),
        };
        Ok(found)
    }
}

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// `object` after the patch.
///
/// # Errors
/// Where the patch can't be read, or does not fit.
pub(crate) fn patched(kind: &Kind, object: &Value, format: Format, patch: &Value) -> Result<Value, Failure> {
    let mut patched = object.clone();
    match format {
        Format::Json => {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let operations: json_patch::Patch = serde_json::from_value(patch.clone())
                .map_err(|error| Failure::bad_request(format!("error decoding patch: {error}")))?;
            json_patch::patch(&mut patched, &operations).map_err(|error| {
                let cause = Cause {
                    reason: "FieldValueInvalid",
                    field: "patch".to_owned(),
                    message: format!("Invalid value: {patch}: {error}"),
                };
                Failure::invalid(&kind.qualified(), name, &[cause])
            })?;
        }
        Format::Merge => json_patch::merge(&mut patched, patch),
        Format::Strategic | Format::Apply => merge(kind, &mut Vec::new(), &mut patched, patch)?,
    }
    Ok(patched)
}

/// Merges objects field by field, lists with a key element by element, and puts everything else in place of what
/// was there.
fn merge<'a>(kind: &Kind, path: &mut Vec<&'a str>, into: &mut Value, from: &'a Value) -> Result<(), Failure> {
    match (&mut *into, from) {
        (Value::Object(into), Value::Object(from)) => merge_fields(kind, path, into, from),
        (Value::Array(into), Value::Array(from)) => match kind.list_key(path) {
            Some(key) => merge_items(kind, path, &key, into, from),
            None => {
                into.clone_from(from);
                Ok(())
            }
        },
        (into, from) => {
            // Into nothing, so that directives and nulls are dealt with inside, too.
            *into = match from {
                Value::Object(_) => Value::Object(Map::new()),
                Value::Array(_) => Value::Array(Vec::new()),
                other => {
                    *into = other.clone();
                    return Ok(());
                }
            };
            merge(kind, path, into, from)
        }
    }
}

fn merge_fields<'a>(
    kind: &Kind,
    path: &mut Vec<&'a str>,
    into: &mut Map<String, Value>,
    from: &'a Map<String, Value>,
) -> Result<(), Failure> {
    for (field, value) in from {
        if field.starts_with("$setElementOrder/") {
            continue;
        }
        if field.starts_with('$') {
            return Err(Failure::bad_request(format!(
                "the stand-in does not know the directive {field} in this place"
            )));
        }
        if value.is_null() {
            into.remove(field);
            continue;
        }
        path.push(field);
        merge(
            kind,
            path,
            into.entry(field.clone()).or_insert(Value::Null),
            value,
        )?;
        path.pop();
    }
    Ok(())
}

fn merge_items<'a>(
    kind: &Kind,
    path: &mut Vec<&'a str>,
    key: &str,
    into: &mut Vec<Value>,
    from: &'a [Value],
) -> Result<(), Failure> {
    for item in from {
        let here = into.iter().position(|other| other[key] == item[key]);
        match (here, item["$patch"].as_str()) {
            (Some(at), Some("delete")) => {
                into.remove(at);
            }
            (None, Some("delete")) => {}
            (Some(at), _) => merge(kind, path, &mut into[at], item)?,
            (None, _) => {
                into.push(Value::Null);
                if let Some(new) = into.last_mut() {
                    merge(kind, path, new, item)?;
                }
            }
        }
    }
    Ok(())
}
