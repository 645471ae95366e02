//! The scalar types of the manifest, each with its schema.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::quantity;

/// A DNS label: lowercase letters, digits and inner hyphens.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(extend("pattern" = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
#[schemars(extend("x-expected" = "a name of up to 63 lowercase letters, digits and inner hyphens"))]
pub(super) struct Name(pub(super) String);

/// Labels: short keys and values of letters, digits and `._/-`.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Labels(pub(super) BTreeMap<String, String>);

impl JsonSchema for Labels {
    fn schema_name() -> Cow<'static, str> {
        "Labels".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "maxProperties": 64,
            "propertyNames": {
                "pattern": "^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$",
                "x-expected": "a label of up to 63 letters, digits and ._/-"
            },
            "additionalProperties": {
                "type": "string",
                "pattern": "^[A-Za-z0-9._/-]{0,63}$",
                "x-expected": "a label value of up to 63 letters, digits and ._/-"
            }
        })
    }
}

/// Environment variables.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Environment(pub(super) BTreeMap<String, String>);

impl JsonSchema for Environment {
    fn schema_name() -> Cow<'static, str> {
        "Environment".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "maxProperties": 256,
            "propertyNames": {
                "pattern": "^[A-Za-z_][A-Za-z0-9_.-]{0,127}$",
                "x-expected": "a variable name of letters, digits and _.-"
            },
            "additionalProperties": generator.subschema_for::<Text>()
        })
    }
}

/// Text without NUL, which no operating system can pass on.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(extend("maxLength" = 32_768, "pattern" = r"^[^\x00]*$"))]
#[schemars(extend("x-expected" = "text of at most 32768 characters, none of them NUL"))]
pub(super) struct Text(pub(super) String);

/// A path relative to the manifest.
#[derive(JsonSchema)]
#[schemars(extend("maxLength" = 1024, "pattern" = r"^[^/\x00][^\x00]*$"))]
#[schemars(extend("x-expected" = "a path relative to the manifest"))]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct RelativePath(String);

/// `sha256:` and 64 lowercase hex digits.
#[derive(JsonSchema)]
#[schemars(extend("pattern" = r"^sha256:[0-9a-f]{64}$"))]
#[schemars(extend("x-expected" = "\"sha256:\" and 64 lowercase hex digits"))]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct Digest(String);

/// An absolute path inside the workload.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(extend("maxLength" = 1024, "pattern" = r"^(/[A-Za-z0-9._-]+)+$"))]
#[schemars(extend("x-expected" = "an absolute path such as /data/signal.gse2"))]
pub(super) struct AbsolutePath(pub(super) String);

/// A peer that a workload may connect to.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(extend("pattern" = r"^(\*|((tcp|udp):)?([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]|\*):([0-9]{1,5}|\*))$"))]
#[schemars(extend("x-expected" = "\"host:port\", \"tcp:host:port\", \"udp:host:port\" or \"*\""))]
pub(super) struct Peer(pub(super) String);

/// On how many nodes.
#[derive(Clone, Copy)]
pub(super) enum Replicas {
    Count(u32),
    Each,
}

impl Default for Replicas {
    fn default() -> Self {
        Self::Count(1)
    }
}

impl Serialize for Replicas {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Count(n) => serializer.serialize_u32(*n),
            Self::Each => serializer.serialize_str("each"),
        }
    }
}

impl<'de> Deserialize<'de> for Replicas {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) if text == "each" => Ok(Self::Each),
            other => {
                let count = other.as_u64().and_then(|n| u32::try_from(n).ok());
                count
                    .map(Self::Count)
                    .ok_or_else(|| D::Error::custom("expected a number of nodes or \"each\""))
            }
        }
    }
}

impl JsonSchema for Replicas {
    fn schema_name() -> Cow<'static, str> {
        "Replicas".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [{"type": "integer", "minimum": 1, "maximum": 100_000}, {"const": "each"}],
            "x-expected": "a number of nodes from 1 to 100000, or \"each\""
        })
    }
}

/// A type that is written as text with a unit or as a number, and printed as a plain number.
macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident($int:ty), $parse:path, $print:expr, $expected:expr, $pattern:expr, $number:tt) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $name(pub(super) $int);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $print(u64::from(self.0)).serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $parse(&Value::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "anyOf": [$number, {"type": "string", "pattern": $pattern}],
                    "x-expected": $expected
                })
            }
        }
    };
}

quantity!(
    /// Bytes.
    Size(u64),
    quantity::size,
    serde_json::Number::from,
    quantity::SIZE,
    quantity::SIZE_PATTERN,
    {"type": "integer", "minimum": 0}
);
quantity!(
    /// Thousandths of a core.
    Cpu(u32),
    quantity::cpu,
    quantity::thousandths,
    quantity::CPU,
    quantity::CPU_PATTERN,
    {"type": "number", "minimum": 0}
);
quantity!(
    /// Milliseconds.
    Duration(u64),
    quantity::duration,
    quantity::thousandths,
    quantity::DURATION,
    quantity::DURATION_PATTERN,
    {"type": "number", "minimum": 0}
);
