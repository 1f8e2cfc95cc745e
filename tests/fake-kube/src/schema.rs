//! The schema of a custom resource: what it drops, what it fills in, what it refuses.

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::status::Cause;

/// An `openAPIV3Schema`.
#[derive(Debug)]
pub(crate) struct Schema(Value);

impl Schema {
    /// Takes a schema, unless it has a keyword that is not supported here: a test must not pass because of that.
    pub(crate) fn new(schema: &Value) -> Result<Self, String> {
        if !schema.is_object() {
            return Err("a version without an openAPIV3Schema".to_owned());
        }
        supported(schema)?;
        Ok(Self(schema.clone()))
    }

    /// The object without what no schema names, and with defaults.
    pub(crate) fn read(&self, object: &Value) -> Value {
        let mut read = object.clone();
        let kept = ["apiVersion", "kind", "metadata"].map(|field| (field, object[field].clone()));
        fill_in(&self.0, &mut read);
        for (field, value) in kept {
            read[field] = value;
        }
        read
    }

    /// What is wrong with it.
    pub(crate) fn faults(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        check(&self.0, object, "", &mut causes);
        causes
    }

    /// See [`crate::kinds::Kind::list_key`].
    pub(crate) fn list_key(&self, path: &[&str]) -> Option<String> {
        let list = path.iter().try_fold(&self.0, |schema, field| {
            let inner = schema.get("items").unwrap_or(schema);
            inner.pointer("/properties")?.get(field)
        })?;
        let is_map = list["x-kubernetes-list-type"] == "map";
        is_map.then(|| list["x-kubernetes-list-map-keys"][0].as_str().map(str::to_owned))?
    }
}

fn supported(schema: &Value) -> Result<(), String> {
    for (keyword, value) in schema.as_object().into_iter().flatten() {
        if !KEYWORDS.contains(&&**keyword) {
            return Err(format!(
                "the stand-in does not support {keyword} in a schema: teach it, or do without"
            ));
        }
        match &**keyword {
            "properties" => value
                .as_object()
                .into_iter()
                .flatten()
                .try_for_each(|(_, inner)| supported(inner))?,
            "items" | "additionalProperties" if value.is_object() => supported(value)?,
            "x-kubernetes-list-map-keys" if value.as_array().is_none_or(|keys| keys.len() != 1) => {
                return Err("the stand-in supports one key in x-kubernetes-list-map-keys".to_owned());
            }
            "pattern" => {
                let pattern = value.as_str().unwrap_or_default();
                Regex::new(pattern).map_err(|error| error.to_string())?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Drops what is not named, and fills in defaults, from the outside in.
fn fill_in(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(properties) = schema["properties"].as_object() {
                if schema["x-kubernetes-preserve-unknown-fields"] != true {
                    fields.retain(|field, _| properties.contains_key(field));
                }
                fill_in_fields(properties, fields);
            } else if schema["additionalProperties"].is_object() {
                fields
                    .values_mut()
                    .for_each(|value| fill_in(&schema["additionalProperties"], value));
            } else if schema["x-kubernetes-preserve-unknown-fields"] != true {
                fields.clear();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill_in(&schema["items"], item)),
        _ => {}
    }
}

fn fill_in_fields(properties: &Map<String, Value>, fields: &mut Map<String, Value>) {
    for (field, schema) in properties {
        let default = schema.get("default").filter(|default| !default.is_null());
        let is_null = fields.get(field).is_some_and(Value::is_null) && schema["nullable"] != true;
        if let Some(default) = default
            && (is_null || !fields.contains_key(field))
        {
            fields.insert(field.clone(), default.clone());
        }
        if let Some(value) = fields.get_mut(field) {
            fill_in(schema, value);
        }
    }
}

fn check(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    if !is_of_type(schema, value) {
        let wanted = schema["type"].as_str().unwrap_or_default();
        let shown = json!(type_name(value));
        let message = format!("Invalid value: {shown}: {path} in body must be of type {wanted}: {shown}");
        causes.push(Cause {
            reason: "FieldValueTypeInvalid",
            field: path.to_owned(),
            message,
        });
        return;
    }
    causes.extend(bounds(schema, value, path));
    match value {
        Value::Object(fields) => check_fields(schema, fields, path, causes),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                check(&schema["items"], item, &format!("{path}[{index}]"), causes);
            }
        }
        _ => {}
    }
}

fn check_fields(schema: &Value, fields: &Map<String, Value>, path: &str, causes: &mut Vec<Cause>) {
    let inner = |field: &str| match path {
        "" => field.to_owned(),
        path => format!("{path}.{field}"),
    };
    for field in schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if !fields.contains_key(field) {
            let message = "Required value".to_owned();
            causes.push(Cause {
                reason: "FieldValueRequired",
                field: inner(field),
                message,
            });
        }
    }
    for (field, value) in fields {
        if let Some(schema) = schema["properties"]
            .get(field)
            .filter(|_| !path.is_empty() || field != "metadata")
        {
            check(schema, value, &inner(field), causes);
        } else if schema["additionalProperties"].is_object() {
            check(&schema["additionalProperties"], value, &inner(field), causes);
        }
    }
}

fn is_of_type(schema: &Value, value: &Value) -> bool {
    if schema["x-kubernetes-int-or-string"] == true {
        return value.is_i64() || value.is_u64() || value.is_string();
    }
    match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("number") => value.is_number(),
        Some("integer") => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        _ => true,
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Enumerations, limits, lengths and patterns.
fn bounds(schema: &Value, value: &Value, path: &str) -> Option<Cause> {
    if let Some(allowed) = schema["enum"]
        .as_array()
        .filter(|allowed| !allowed.contains(value))
    {
        let shown: Vec<_> = allowed.iter().map(ToString::to_string).collect();
        return Some(Cause {
            reason: "FieldValueNotSupported",
            field: path.to_owned(),
            message: format!(
                "Unsupported value: {value}: supported values: {}",
                shown.join(", ")
            ),
        });
    }
    let size = match value {
        Value::Number(number) => number.as_f64(),
        _ => None,
    };
    let length = match value {
        Value::String(text) => Some(("Length", text.chars().count())),
        Value::Array(items) => Some(("Items", items.len())),
        Value::Object(fields) => Some(("Properties", fields.len())),
        _ => None,
    };
    let limit = |keyword: &str| schema.get(keyword).and_then(Value::as_f64);
    let wrong = match (size, length) {
        (Some(size), _) if limit("minimum").is_some_and(|least| size < least) => {
            format!(
                "should be greater than or equal to {}",
                schema["minimum"].as_f64()?
            )
        }
        (Some(size), _) if limit("maximum").is_some_and(|most| size > most) => {
            format!("should be less than or equal to {}", schema["maximum"].as_f64()?)
        }
        (Some(size), _) if limit("multipleOf").is_some_and(|of| size % of != 0.0) => {
            format!("should be a multiple of {}", schema["multipleOf"].as_f64()?)
        }
        (_, Some((what, length)))
            if limit(&format!("min{what}")).is_some_and(|least| (length as f64) < least) =>
        {
            format!("should have at least {} {what}", schema[format!("min{what}")])
        }
        (_, Some((what, length)))
            if limit(&format!("max{what}")).is_some_and(|most| length as f64 > most) =>
        {
            format!("should have at most {} {what}", schema[format!("max{what}")])
        }
        _ => {
            let pattern = schema["pattern"].as_str()?;
            let matches =
                Regex::new(pattern).is_ok_and(|regex| regex.is_match(value.as_str().unwrap_or_default()));
            (!matches).then(|| format!("should match '{pattern}'"))?
        }
    };
    Some(Cause {
        reason: "FieldValueInvalid",
        field: path.to_owned(),
        message: format!("Invalid value: {value}: {path} in body {wrong}"),
    })
}

const KEYWORDS: &[&str] = &[
    "additionalProperties",
    "default",
    "description",
    "enum",
    "example",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "nullable",
    "pattern",
    "properties",
    "required",
    "title",
    "type",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields",
];
