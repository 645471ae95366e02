//! `settings`, judged against what the runtime understands (`cnova_ral::settings`), and brought into one form.
//!
//! serde accepts several forms of one value (`host` and `{host: null}`, a map and a list of its values). Policies look
//! at the manifest, so there must be only one: the one that the runtime's own type prints, without its defaults.

use std::collections::BTreeMap;

use cnova_ral::settings as ral;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use super::errors::{join, nearest, quoted};
use super::model::RuntimeKind;
use super::schema::describe;

/// Most mistakes that are looked for in the settings of one workload.
const MAX_MISTAKES: usize = 64;

/// What is wrong with one setting.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// JSON pointer below `settings`.
    pub(super) pointer: String,
    pub(super) message: String,
    pub(super) hint: Option<String>,
    /// Whether it is about the key and not about the value.
    pub(super) at_key: bool,
}

impl Mistake {
    pub(super) fn new(pointer: impl Into<String>, message: impl Into<String>, hint: Option<&str>) -> Self {
        Self {
            pointer: pointer.into(),
            message: message.into(),
            hint: hint.map(str::to_owned),
            at_key: false,
        }
    }
}

/// Settings, read.
pub(super) enum Settings {
    Container(Box<ral::Container>),
    Ebpf(Box<ral::Ebpf>),
    Wasm(Box<ral::Wasm>),
}

/// Reads the settings of a runtime.
pub(super) fn read(runtime: RuntimeKind, value: &Value) -> Result<Settings, Vec<Mistake>> {
    match runtime {
        RuntimeKind::Container => typed(value).map(|s| Settings::Container(Box::new(s))),
        RuntimeKind::Ebpf => typed(value).map(|s| Settings::Ebpf(Box::new(s))),
        RuntimeKind::Wasm => typed(value).map(|s| Settings::Wasm(Box::new(s))),
    }
}

/// The one form of settings that can be read; others come back as they are.
pub(super) fn canonical(runtime: RuntimeKind, settings: BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let value = Value::Object(settings.clone().into_iter().collect());
    match read(runtime, &value) {
        Ok(Settings::Container(s)) => without_defaults(&*s),
        Ok(Settings::Ebpf(s)) => without_defaults(&*s),
        Ok(Settings::Wasm(s)) => without_defaults(&*s),
        Err(_) => settings,
    }
}

fn without_defaults<T: Serialize + Default>(settings: &T) -> BTreeMap<String, Value> {
    let fields = |s: &T| match serde_json::to_value(s) {
        Ok(Value::Object(fields)) => fields,
        // A struct is an object, and its keys are text.
        _ => Map::new(),
    };
    let defaults = fields(&T::default());
    fields(settings)
        .into_iter()
        .filter(|(name, value)| defaults.get(name) != Some(value))
        .collect()
}

/// serde stops at the first mistake. What is wrong is taken out and the rest read again, so that all are found.
fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, Vec<Mistake>> {
    let mut rest = value.clone();
    let (mut mistakes, mut removed) = (Vec::new(), Vec::new());
    while mistakes.len() < MAX_MISTAKES {
        let error = match serde_path_to_error::deserialize::<_, T>(&rest) {
            Ok(settings) if mistakes.is_empty() => return Ok(settings),
            Ok(_) => break,
            Err(error) => error,
        };
        let pointer = pointer_of(error.path());
        let text = error.inner().to_string();
        if let Some(field) = between(&text, "missing field `", "`") {
            if !removed.contains(&join(&pointer, field)) {
                mistakes.push(Mistake::new(pointer, format!("the field \"{field}\" is missing"), None));
            }
            break;
        }
        let mistake = explain(&rest, pointer, &text);
        let gone = take_out(&mut rest, &mistake.pointer);
        removed.push(mistake.pointer.clone());
        mistakes.push(mistake);
        if !gone {
            break;
        }
    }
    Err(mistakes)
}

fn pointer_of(path: &serde_path_to_error::Path) -> String {
    path.iter().fold(String::new(), |at, segment| match segment {
        Segment::Seq { index } => format!("{at}/{index}"),
        Segment::Map { key } => join(&at, key),
        Segment::Enum { variant } => join(&at, variant),
        Segment::Unknown => at,
    })
}

/// Removes the value at a pointer; false when there is none to remove.
fn take_out(value: &mut Value, pointer: &str) -> bool {
    let Some((parent, last)) = pointer.rsplit_once('/') else {
        return false;
    };
    let last = last.replace("~1", "/").replace("~0", "~");
    match value.pointer_mut(parent) {
        Some(Value::Object(fields)) => fields.remove(&last).is_some(),
        // Removing an item would move those behind it to other places.
        _ => false,
    }
}

/// serde's words in ours.
fn explain(root: &Value, pointer: String, text: &str) -> Mistake {
    if let Some(name) = between(text, "unknown field `", "`") {
        let known = expected_names(text);
        let nested = join(&pointer, name);
        let at = if root.pointer(&pointer).is_some_and(|v| v.get(name).is_some()) {
            nested
        } else {
            pointer
        };
        let hint =
            nearest(name, known.iter().copied()).unwrap_or_else(|| format!("known fields: {}", known.join(", ")));
        return Mistake {
            pointer: at,
            message: format!("unknown field {}", quoted(name)),
            hint: Some(hint),
            at_key: true,
        };
    }
    if let Some(name) = between(text, "unknown variant `", "`") {
        let known = expected_names(text);
        let list: Vec<String> = known.iter().map(|k| format!("\"{k}\"")).collect();
        let message = format!("expected one of {}, found {}", list.join(", "), quoted(name));
        return Mistake {
            hint: nearest(name, known.iter().copied()),
            ..Mistake::new(pointer, message, None)
        };
    }
    let message = match (text.rsplit_once("expected "), root.pointer(&pointer)) {
        (Some((_, wanted)), Some(found)) => format!("expected {}, found {}", in_words(wanted), describe(found)),
        (Some((_, wanted)), None) => format!("expected {}", in_words(wanted)),
        (None, Some(found)) => format!("{text}, found {}", describe(found)),
        (None, None) => text.to_owned(),
    };
    Mistake::new(pointer, message, None)
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split_once(after).map(|(name, _)| name)
}

/// The names in backticks behind "expected".
fn expected_names(text: &str) -> Vec<&str> {
    let list = text.rsplit_once("expected ").map_or("", |(_, list)| list);
    list.split('`').skip(1).step_by(2).collect()
}

fn in_words(expected: &str) -> String {
    match expected {
        "u8" => "a whole number from 0 to 255".to_owned(),
        "u16" => "a whole number from 0 to 65535".to_owned(),
        "u32" | "u64" | "usize" => "a whole number".to_owned(),
        "a string" => "text".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a map".to_owned(),
        "string or map" => "a name, or a map with one".to_owned(),
        other if other.starts_with("struct ") => "a map".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(runtime: RuntimeKind, value: &Value) -> Vec<String> {
        let mistakes = read(runtime, value).err().unwrap_or_default();
        let text = |m: Mistake| match m.hint {
            Some(hint) => format!("{}: {} ({hint})", m.pointer, m.message),
            None => format!("{}: {}", m.pointer, m.message),
        };
        mistakes.into_iter().map(text).collect()
    }

    #[test]
    fn every_mistake_has_its_place_and_our_words() {
        let value = json!({
            "capabilites": ["CHOWN"], "pids": "many", "isolation": "sandbx",
            "network": {"own": {"address": "10.0.0", "prefix": 300, "gateway": "10.0.0.1"}},
        });
        let expected = [
            "/capabilites: unknown field \"capabilites\" (did you mean \"capabilities\"?)",
            "/isolation: expected one of \"process\", \"sandbox\", \"vm\", found \"sandbx\" (did you mean \"sandbox\"?)",
            "/network/own/address: invalid IPv4 address syntax, found the text \"10.0.0\"",
            "/network/own/prefix: expected a whole number from 0 to 255, found the number 300",
            "/pids: expected a whole number, found the text \"many\"",
        ];
        let mut found = said(RuntimeKind::Container, &value);
        found.sort();
        // A field that is missing only because it was wrong is not told as missing, and ends the search behind it.
        assert!(found.iter().all(|f| expected.contains(&f.as_str())), "{found:#?}");
        assert!(found.len() >= 3, "{found:#?}");
        assert!(!found.iter().any(|f| f.contains("missing")), "{found:#?}");
        let ebpf = json!({"programs": [{"name": "watch", "kind": "socket_filter", "attach": "eth0"}, {"name": "x"}]});
        assert_eq!(
            said(RuntimeKind::Ebpf, &ebpf),
            [
                "/programs/0/kind: expected one of \"socket-filter\", \"tc-ingress\", \"xdp\", \"tracepoint\", \
              \"cgroup-skb\", found \"socket_filter\" (did you mean \"socket-filter\"?)"
            ]
        );
        assert_eq!(
            said(RuntimeKind::Wasm, &json!({"pulley": "yes"})),
            ["/pulley: expected true or false, found the text \"yes\""]
        );
    }

    #[test]
    fn one_form_without_defaults() {
        let odd =
            json!({"network": {"host": null}, "isolation": {"process": null}, "pids": 10, "tmpfs": [["/tmp", 4096]]});
        let Value::Object(odd) = odd else { unreachable!() };
        let one = canonical(RuntimeKind::Container, odd.into_iter().collect());
        assert_eq!(
            json!(one),
            json!({"network": "host", "pids": 10, "tmpfs": [{"path": "/tmp", "bytes": 4096}]})
        );
    }
}
