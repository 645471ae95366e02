//! The manifest's words for secrets. Their values are the hub's (`cnova secret set`), never a manifest's.

use cnova_shared::wire::v1::SecretTarget;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::SecretDef;
use super::wire::drop_default;
use super::wire_values::{AbsolutePath, Name};

/// A secret of the hub that the workload is given, as a variable of its environment or as a read-only file in memory.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend(
    "oneOf" = [{"required": ["env"]}, {"required": ["path"]}],
    "x-expected" = "exactly one of \"path\" (where the workload finds it as a file) and \"env\" (a variable's name)"
))]
pub(super) struct Secret {
    /// The secret's name at the hub.
    pub(super) name: Name,
    /// The variable that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "VariableName", transform = drop_default)]
    pub(super) env: Option<String>,
    /// The absolute path of the file that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "AbsolutePath", transform = drop_default)]
    pub(super) path: Option<String>,
}

/// The name of a variable.
#[derive(JsonSchema)]
#[schemars(extend("pattern" = r"^[A-Za-z_][A-Za-z0-9_.-]{0,127}$"))]
#[schemars(extend("x-expected" = "a variable name of letters, digits and _.-"))]
#[expect(dead_code, reason = "only its schema is used")]
struct VariableName(String);

impl From<Secret> for SecretDef {
    fn from(secret: Secret) -> Self {
        // The schema has made sure that exactly one of the two is there.
        let target = match (secret.env, secret.path) {
            (Some(env), _) => SecretTarget::Env(env),
            (None, path) => SecretTarget::File(path.unwrap_or_default()),
        };
        Self {
            name: secret.name.0,
            target,
        }
    }
}

impl From<&SecretDef> for Secret {
    fn from(def: &SecretDef) -> Self {
        let (env, path) = match &def.target {
            SecretTarget::Env(env) => (Some(env.clone()), None),
            SecretTarget::File(path) => (None, Some(path.clone())),
        };
        Self {
            name: Name(def.name.clone()),
            env,
            path,
        }
    }
}
