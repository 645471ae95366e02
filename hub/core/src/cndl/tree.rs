//! Text -> a tree of values that know their place. YAML and JSON go the same way: serde-saphyr reads both.

use std::fmt;

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{DefaultMessageFormatter, Error as YamlError, MessageFormatter, Options, Spanned};

use super::errors::{ManifestError, quoted};
use super::{MAX_ALIAS_EVENTS, MAX_ALIASES, MAX_ANCHOR_BYTES, MAX_DEPTH, MAX_KEY_CHARS, MAX_MANIFEST_BYTES, MAX_NODES};

/// Where something stands, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: u32,
    pub(super) column: u32,
}

impl Position {
    pub(super) const START: Self = Self { line: 1, column: 1 };

    fn of(location: serde_saphyr::Location) -> Self {
        let clamp = |n: u64| u32::try_from(n.max(1)).unwrap_or(u32::MAX);
        Self {
            line: clamp(location.line()),
            column: clamp(location.column()),
        }
    }
}

/// A value and where it starts.
pub(super) struct Node {
    pub(super) position: Position,
    content: Content,
}

enum Content {
    Scalar(Value),
    List(Vec<Node>),
    /// Sorted by key; the parser has refused duplicates.
    Map(Vec<Entry>),
}

type Entry = (String, Position, Node);

impl Node {
    /// The value without its places.
    pub(super) fn to_value(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::List(items) => items.iter().map(Self::to_value).collect(),
            Content::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|(k, _, v)| (k.clone(), v.to_value()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }

    pub(super) const fn is_null(&self) -> bool {
        matches!(self.content, Content::Scalar(Value::Null))
    }

    /// Where the value at a JSON pointer starts; of what does not exist, its nearest ancestor.
    pub(super) fn position_of(&self, pointer: &str) -> Position {
        self.walk(pointer).1.position
    }

    /// Where the key that a JSON pointer ends with starts; for a list item, where the item starts.
    pub(super) fn key_position_of(&self, pointer: &str) -> Position {
        let (key, node) = self.walk(pointer);
        key.unwrap_or(node.position)
    }

    fn walk(&self, pointer: &str) -> (Option<Position>, &Self) {
        let (mut key, mut node) = (None, self);
        for step in pointer.split('/').skip(1) {
            let step = step.replace("~1", "/").replace("~0", "~");
            let next = match &node.content {
                Content::Scalar(_) => None,
                Content::List(items) => step.parse::<usize>().ok().and_then(|i| items.get(i)).map(|n| (None, n)),
                Content::Map(entries) => {
                    let found = entries.binary_search_by(|(k, ..)| k.as_str().cmp(&step)).ok();
                    found.map(|i| &entries[i]).map(|(_, p, n)| (Some(*p), n))
                }
            };
            match next {
                Some((p, n)) => (key, node) = (p, n),
                None => break,
            }
        }
        (key, node)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Content>::deserialize(deserializer)?;
        // The place where a value is used, not where its anchor stands, is what a reader looks for.
        Ok(Self {
            position: Position::of(spanned.referenced),
            content: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Content, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number must be finite"))?;
        Ok(Content::Scalar(Value::Number(number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Content::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Content, A::Error> {
        let mut map: Vec<Entry> = Vec::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            // The canonical form is JSON that must parse again; its keys have a limit there too.
            if key.value.chars().count() > MAX_KEY_CHARS {
                return Err(A::Error::custom(format_args!(
                    "a key is longer than {MAX_KEY_CHARS} characters"
                )));
            }
            map.push((key.value, Position::of(key.referenced), entries.next_value()?));
        }
        map.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        Ok(Content::Map(map))
    }
}

/// Reads the text; stops at the first mistake, because what follows a syntax error means nothing.
pub(super) fn read(text: &str) -> Result<Node, ManifestError> {
    if text.len() > MAX_MANIFEST_BYTES {
        let message = format!(
            "the manifest has {} bytes; at most {MAX_MANIFEST_BYTES} are accepted",
            text.len()
        );
        return Err(at(
            Position::START,
            message,
            Some("put large content into files or artifacts".to_owned()),
        ));
    }
    let node: Node = serde_saphyr::from_str_with_options(text, options()).map_err(|e| explain(text, &e))?;
    if node.is_null() {
        return Err(at(Position::START, "the manifest is empty".to_owned(), None));
    }
    Ok(node)
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            // A JSON key is looked ahead whole, escapes included.
            simple_key_max_lookahead: MAX_KEY_CHARS * 8,
            max_nodes: MAX_NODES,
            max_events: MAX_NODES * 3,
            max_aliases: MAX_ALIASES,
            max_anchors: MAX_ALIASES,
            max_recorded_anchor_events: MAX_ALIAS_EVENTS,
            max_recorded_anchor_bytes: MAX_ANCHOR_BYTES,
            // Many uses of one anchor are what anchors are for; the other limits bound what they add up to.
            enforce_alias_anchor_ratio: false,
            max_documents: 1,
            // Counts what aliases repeat, so that they cannot multiply a long text.
            max_total_scalar_bytes: MAX_MANIFEST_BYTES,
            max_inclusion_depth: 0,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_ALIAS_EVENTS,
            max_replay_stack_depth: 8,
        },
        strict_booleans: true,
        emit_comments: false,
        non_finite_float_policy: NonFiniteFloatPolicy::Reject,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

fn at(position: Position, message: String, hint: Option<String>) -> ManifestError {
    ManifestError {
        line: position.line,
        column: position.column,
        pointer: String::new(),
        message,
        hint,
    }
}

/// The parser's error in words that fit a manifest.
fn explain(text: &str, error: &YamlError) -> ManifestError {
    let position = error.location().map_or(Position::START, Position::of);
    let mut cause = error;
    while let YamlError::AliasError { error, .. } | YamlError::WithSnippet { error, .. } = cause {
        cause = error;
    }
    let (message, hint) = match cause {
        YamlError::DuplicateMappingKey { key: Some(key), .. } => {
            (format!("the key {} is given twice", quoted(key)), None)
        }
        YamlError::DuplicateMappingKey { key: None, .. } => ("a key is given twice".to_owned(), None),
        YamlError::MultipleDocuments { .. }
        | YamlError::Budget {
            breach: BudgetBreach::Documents { .. },
            ..
        } => (
            "a second document begins here".to_owned(),
            Some("one manifest per file".to_owned()),
        ),
        YamlError::MergeKeyNotAllowed { .. } => ("merge keys (\"<<\") are not supported".to_owned(), None),
        YamlError::Budget {
            breach: BudgetBreach::Depth { .. },
            ..
        } => (too_deep(), None),
        YamlError::Budget {
            breach: BudgetBreach::Nodes { .. } | BudgetBreach::Events { .. },
            ..
        } => (format!("the manifest has more than {MAX_NODES} values"), None),
        YamlError::Budget {
            breach: BudgetBreach::ScalarBytes { .. },
            ..
        } => (aliases_too_large(), None),
        YamlError::Budget { .. } => (
            "the manifest has more anchors and aliases than are accepted".to_owned(),
            None,
        ),
        YamlError::AliasReplayLimitExceeded { .. }
        | YamlError::AliasExpansionLimitExceeded { .. }
        | YamlError::AliasReplayStackDepthExceeded { .. }
        | YamlError::AliasReplayCounterOverflow { .. }
        | YamlError::RecursiveReferencesRequireWeakTypes { .. } => {
            ("aliases expand to more than is accepted".to_owned(), None)
        }
        YamlError::NonFiniteFloat { .. } => ("a number must be finite".to_owned(), None),
        other => {
            let said = DefaultMessageFormatter.format_message(other).escape_debug().to_string();
            if said.contains("recursion limit exceeded") {
                (too_deep(), None)
            } else {
                let format = if text.trim_start().starts_with('{') {
                    "JSON"
                } else {
                    "YAML"
                };
                (format!("not valid {format}: {said}"), None)
            }
        }
    };
    at(position, message, hint)
}

fn aliases_too_large() -> String {
    format!("with its aliases written out the manifest has more than {MAX_MANIFEST_BYTES} bytes")
}

fn too_deep() -> String {
    format!("nested deeper than {MAX_DEPTH} levels")
}
