//! The published JSON Schema, and its verdict turned into sentences.

use std::sync::LazyLock;

use jsonschema::error::{TypeKind, ValidationErrorKind as Kind};
use jsonschema::{JsonType, ValidationError, Validator};
use serde_json::{Map, Value};

use super::errors::{MAX_REPORTED_ERRORS, ManifestError, join, nearest, nearest_by, quoted};
use super::tree::{Node, Position};
use super::wire;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut schema = schemars::schema_for!(wire::Document);
    schema.insert("$id".to_owned(), super::SCHEMA_ID.into());
    schema.to_value()
});

static PUBLISHED: LazyLock<Published> = LazyLock::new(|| Published::of(SCHEMA.clone()));

/// A schema that manifests are checked against.
pub(super) struct Published {
    pub(super) value: Value,
    // The schema comes from our own types, so that a failure is a bug; a test pins that it compiles.
    validator: Option<Validator>,
}

/// The JSON Schema of manifests, draft 2020-12.
#[must_use]
pub fn json_schema() -> Value {
    SCHEMA.clone()
}

/// Everything that the schema of applications finds wrong.
pub(super) fn check(tree: &Node, value: &Value) -> Vec<ManifestError> {
    PUBLISHED.check(tree, value)
}

impl Published {
    pub(super) fn of(value: Value) -> Self {
        let validator = jsonschema::validator_for(&value).ok();
        Self { value, validator }
    }

    /// Everything that the schema finds wrong.
    pub(super) fn check(&self, tree: &Node, value: &Value) -> Vec<ManifestError> {
        let Some(validator) = self.validator.as_ref() else {
            return vec![error(
                Position::START,
                "",
                "the built-in schema does not compile; this is a bug",
                None,
            )];
        };
        // One more than is shown, so that the reader learns that there are more.
        validator
            .iter_errors(value)
            .flat_map(|e| explain(&self.value, tree, &e))
            .take(MAX_REPORTED_ERRORS + 1)
            .collect()
    }
}

fn error(position: Position, pointer: &str, message: impl Into<String>, hint: Option<String>) -> ManifestError {
    ManifestError {
        line: position.line,
        column: position.column,
        pointer: pointer.to_owned(),
        message: message.into(),
        hint,
    }
}

fn explain(root: &Value, tree: &Node, problem: &ValidationError<'_>) -> Vec<ManifestError> {
    let pointer = problem.instance_path().as_str();
    let schema = parent_schema(root, problem.schema_path().as_str());
    let here = tree.position_of(pointer);
    let found = problem.instance().as_ref();
    match problem.kind() {
        Kind::AdditionalProperties { unexpected } => {
            let names = unexpected.iter().take(MAX_REPORTED_ERRORS + 1);
            names
                .map(|name| unknown_field(root, tree, schema, pointer, name, found))
                .collect()
        }
        Kind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            vec![error(here, pointer, format!("the field \"{name}\" is missing"), None)]
        }
        Kind::PropertyNames { error: inner } => {
            let name = inner.instance().as_str().unwrap_or_default().to_owned();
            let path = join(pointer, &name);
            let expected = expected_at(parent_schema(root, inner.schema_path().as_str())).unwrap_or("another name");
            let message = format!("expected {expected}, found {}", quoted(&name));
            vec![error(tree.key_position_of(&path), &path, message, None)]
        }
        Kind::Enum { options } => {
            let names: Vec<&str> = options
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            vec![choice(here, pointer, &names, found)]
        }
        Kind::Constant { expected_value } => {
            vec![choice(
                here,
                pointer,
                &expected_value.as_str().into_iter().collect::<Vec<_>>(),
                found,
            )]
        }
        Kind::OneOfNotValid { .. } | Kind::OneOfMultipleValid { .. } => {
            let expected = expected_at(schema).unwrap_or("something else");
            vec![error(here, pointer, format!("expected {expected}"), None)]
        }
        Kind::AnyOf { context } if found.is_object() => match branch_for_maps(context, pointer) {
            Some(branch) => branch.iter().flat_map(|e| explain(root, tree, e)).collect(),
            None => {
                let expected = expected_at(schema).unwrap_or("something else");
                vec![error(
                    here,
                    pointer,
                    format!("expected {expected}, found {}", describe(found)),
                    None,
                )]
            }
        },
        kind => {
            let message = expected_by(kind, schema).map_or_else(
                || problem.masked().to_string(),
                |expected| format!("expected {expected}, found {}", describe(found)),
            );
            vec![error(here, pointer, message, hint_for_type(kind, found))]
        }
    }
}

/// Of the forms that a value may have, what is wrong with it in the one that is a map.
fn branch_for_maps<'e>(
    forms: &'e [Vec<ValidationError<'static>>],
    pointer: &str,
) -> Option<&'e [ValidationError<'static>]> {
    let is_other = |e: &ValidationError<'_>| {
        e.instance_path().as_str() == pointer && matches!(e.kind(), Kind::Type { .. } | Kind::Constant { .. })
    };
    let mut maps = forms.iter().filter(|errors| !errors.iter().any(is_other));
    let first = maps.next()?;
    maps.next().is_none().then_some(first.as_slice())
}

/// The schema that holds the keyword at the end of the path.
fn parent_schema<'s>(root: &'s Value, path: &str) -> Option<&'s Value> {
    root.pointer(path.rsplit_once('/').map_or("", |(parent, _)| parent))
}

fn expected_at(schema: Option<&Value>) -> Option<&str> {
    schema?.get("x-expected")?.as_str()
}

fn expected_by(kind: &Kind, schema: Option<&Value>) -> Option<String> {
    match kind {
        // Of a number where a text belongs, how long the text may be is beside the point.
        Kind::Type {
            kind: TypeKind::Single(JsonType::Array | JsonType::Object | JsonType::String),
        } => None,
        _ => expected_at(schema).map(str::to_owned),
    }
    .or_else(|| match kind {
        Kind::Type { kind } => Some(type_names(kind)),
        _ => None,
    })
}

fn unknown_field(
    root: &Value,
    tree: &Node,
    schema: Option<&Value>,
    pointer: &str,
    name: &str,
    found: &Value,
) -> ManifestError {
    let properties = schema.and_then(|s| s.get("properties")).and_then(Value::as_object);
    let known: Vec<&str> = properties
        .into_iter()
        .flat_map(|p| p.keys().map(String::as_str))
        .collect();
    // What is already there is not what was meant.
    let free = known.iter().copied().filter(|k| found.get(*k).is_none());
    let hint = nearest(name, free)
        .or_else(|| nearest_below(root, name, properties))
        .unwrap_or_else(|| format!("known fields: {}", known.join(", ")));
    let path = join(pointer, name);
    error(
        tree.key_position_of(&path),
        &path,
        format!("unknown field {}", quoted(name)),
        Some(hint),
    )
}

/// `resources.memory` for a `memory` that was written one level too high.
fn nearest_below(root: &Value, name: &str, properties: Option<&Map<String, Value>>) -> Option<String> {
    let below = properties.into_iter().flatten().filter_map(|(field, schema)| {
        let target = schema.get("$ref")?.as_str()?.strip_prefix('#')?;
        Some((field, root.pointer(target)?.get("properties")?.as_object()?))
    });
    let fields = below.flat_map(|(field, inner)| inner.keys().map(move |key| (key.as_str(), format!("{field}.{key}"))));
    nearest_by(name, fields)
}

fn choice(here: Position, pointer: &str, options: &[&str], found: &Value) -> ManifestError {
    let list: Vec<String> = options.iter().map(|o| format!("\"{o}\"")).collect();
    let expected = if list.len() == 1 {
        list.concat()
    } else {
        format!("one of {}", list.join(", "))
    };
    let hint = found.as_str().and_then(|text| nearest(text, options.iter().copied()));
    error(
        here,
        pointer,
        format!("expected {expected}, found {}", describe(found)),
        hint,
    )
}

fn type_names(kind: &TypeKind) -> String {
    let name = |t: &str| match t {
        "object" => "a map",
        "array" => "a list",
        "string" => "text",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        _ => "nothing",
    };
    match kind {
        TypeKind::Single(t) => name(&t.to_string()).to_owned(),
        TypeKind::Multiple(set) => set
            .iter()
            .map(|t| name(&t.to_string()).to_owned())
            .collect::<Vec<_>>()
            .join(" or "),
    }
}

pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(text) => format!("the text {}", quoted(text)),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(entries) => format!("a map of {}", entries.len()),
    }
}

/// YAML guesses types; who wrote `2` or `true` where text belongs only has to quote it.
fn hint_for_type(kind: &Kind, found: &Value) -> Option<String> {
    let Kind::Type {
        kind: TypeKind::Single(wanted),
    } = kind
    else {
        return None;
    };
    match (wanted.to_string().as_str(), found) {
        ("string", Value::Number(_) | Value::Bool(_)) => Some(format!("write \"{found}\" with its quotes")),
        (_, Value::Null) => Some("give it a value or remove the line".to_owned()),
        ("boolean", Value::String(text)) => match text.to_lowercase().as_str() {
            "yes" | "on" | "y" | "true" => Some("did you mean true?".to_owned()),
            "no" | "off" | "n" | "false" => Some("did you mean false?".to_owned()),
            _ => None,
        },
        ("integer" | "number", Value::String(text)) if text.parse::<f64>().is_ok() => {
            Some("remove the quotes".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_compiles() {
        assert!(
            PUBLISHED.validator.is_some(),
            "{:?}",
            jsonschema::validator_for(&SCHEMA).err()
        );
        assert!(jsonschema::meta::is_valid(&SCHEMA));
    }
}
