//! Which objects a list or a watch is about.

use serde_json::Value;

use crate::kinds::Kind;
use crate::status::Failure;

/// A label selector and a field selector.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selector {
    namespace: Option<String>,
    labels: Vec<Requirement>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Debug, Clone)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
}

impl Selector {
    /// # Errors
    /// Where a selector can't be read, or the kind has no such field to select by.
    pub(crate) fn new(
        kind: &Kind,
        namespace: Option<&str>,
        labels: Option<&str>,
        fields: Option<&str>,
    ) -> Result<Self, Failure> {
        let labels = labels.filter(|text| !text.trim().is_empty());
        let fields = fields.filter(|text| !text.trim().is_empty());
        let labels: Option<Result<_, _>> =
            labels.map(|text| split(text).iter().map(|part| requirement(part)).collect());
        let fields: Option<Result<_, _>> =
            fields.map(|text| text.split(',').map(|part| field(kind, part)).collect());
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            labels: labels.transpose()?.unwrap_or_default(),
            fields: fields.transpose()?.unwrap_or_default(),
        })
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let text = |path: &str| {
            let pointer = format!("/{}", path.replace('.', "/"));
            object
                .pointer(&pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let label = |name: &str| object["metadata"]["labels"].get(name).and_then(Value::as_str);
        self.namespace
            .as_ref()
            .is_none_or(|namespace| *namespace == text("metadata.namespace"))
            && self
                .fields
                .iter()
                .all(|(path, equal, value)| (text(path) == *value) == *equal)
            && self.labels.iter().all(|requirement| match requirement {
                Requirement::In(name, values) => {
                    label(name).is_some_and(|label| values.iter().any(|v| v == label))
                }
                Requirement::NotIn(name, values) => {
                    label(name).is_none_or(|label| values.iter().all(|v| v != label))
                }
                Requirement::Exists(name) => label(name).is_some(),
                Requirement::Missing(name) => label(name).is_none(),
            })
    }

    /// The one name that is selected, where that is so: access may be granted by name.
    pub(crate) fn name(&self) -> Option<&str> {
        let named = self
            .fields
            .iter()
            .find(|(path, equal, _)| path == "metadata.name" && *equal);
        named.map(|(_, _, name)| &**name)
    }
}

fn field(kind: &Kind, text: &str) -> Result<(String, bool, String), Failure> {
    let (path, equal, value) = operator(text).ok_or_else(|| {
        Failure::bad_request(format!("invalid field selector \"{text}\": can't understand it"))
    })?;
    let known = match &*kind.kind {
        "Pod" => &[
            "spec.nodeName",
            "status.phase",
            "spec.schedulerName",
            "status.podIP",
        ][..],
        "Secret" => &["type"],
        _ => &[],
    };
    if !["metadata.name", "metadata.namespace"].contains(&path) && !known.contains(&path) {
        let message = format!("field label not supported: {path}");
        return Err(Failure::bad_request(message));
    }
    Ok((path.to_owned(), equal, value.to_owned()))
}

fn operator(text: &str) -> Option<(&str, bool, &str)> {
    let parts = text
        .split_once("!=")
        .map(|(path, value)| (path, false, value))
        .or_else(|| text.split_once("==").map(|(path, value)| (path, true, value)))
        .or_else(|| text.split_once('=').map(|(path, value)| (path, true, value)))?;
    Some((parts.0.trim(), parts.1, parts.2.trim()))
}

/// Splits at the commas that are not inside parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0;
    text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
    .collect()
}

fn requirement(text: &str) -> Result<Requirement, Failure> {
    let list = |values: &str| -> Vec<String> {
        let values = values.trim().trim_start_matches('(').trim_end_matches(')');
        values.split(',').map(|value| value.trim().to_owned()).collect()
    };
    let bad = || Failure::bad_request(format!("unable to parse requirement: \"{text}\""));
    let found = if let Some((name, values)) = text.split_once(" notin ") {
        Requirement::NotIn(name.trim().to_owned(), list(values))
    } else if let Some((name, values)) = text.split_once(" in ") {
        Requirement::In(name.trim().to_owned(), list(values))
    } else if let Some((name, equal, value)) = operator(text) {
        match equal {
            true => Requirement::In(name.to_owned(), vec![value.to_owned()]),
            false => Requirement::NotIn(name.to_owned(), vec![value.to_owned()]),
        }
    } else if let Some(name) = text.strip_prefix('!') {
        Requirement::Missing(name.trim().to_owned())
    } else {
        Requirement::Exists(text.to_owned())
    };
    let name = match &found {
        Requirement::In(name, _) | Requirement::NotIn(name, _) => name,
        Requirement::Exists(name) | Requirement::Missing(name) => name,
    };
    match name.is_empty() || name.contains(char::is_whitespace) {
        true => Err(bad()),
        false => Ok(found),
    }
}
