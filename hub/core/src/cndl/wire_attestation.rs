//! `attestationPolicy`, as it is written: for the application and for each workload, the workload's word before the
//! application's.

use cnova_shared::limits;
use cnova_shared::wire::v1;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::wire::drop_default;

/// What the provenance of artifacts must show before anything is loaded (docs/PROVENANCE.md).
#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AttestationPolicy {
    /// Whether artifacts must have provenance; optional, where neither the workload nor the application says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Requirement", transform = drop_default)]
    pub(super) provenance: Option<Requirement>,
    /// The lowest SLSA build level, by the trust bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u8", range(max = 3), transform = drop_default)]
    #[schemars(extend("x-expected" = "a SLSA build level: 0, 1, 2 or 3"))]
    pub(super) min_level: Option<u8>,
    /// URIs of the builders that may have built it, `*` for any text; every builder of the trust bundle where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<BuilderPattern>", length(max = 16), transform = drop_default)]
    #[schemars(extend("x-expected" = "at most 16 URIs of builders"))]
    pub(super) builders: Option<Vec<BuilderPattern>>,
    /// Whether the input files must have provenance, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool", transform = drop_default)]
    pub(super) files: Option<bool>,
}

/// Whether there must be provenance.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub(super) enum Requirement {
    Required,
    Optional,
}

/// A URI of a builder, or a pattern of such.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("pattern" = r"^[!-~]{1,256}$"))]
#[schemars(extend("x-expected" = "a builder's URI, `*` for any text, such as https://ci.example/*"))]
pub(super) struct BuilderPattern(pub(super) String);

const _: () = assert!(limits::LEVEL_MAX == 3 && limits::POLICY_BUILDERS == 16 && limits::BUILDER_URI_LEN == 256);

/// The policy in force for a workload; nothing where nothing is asked for.
pub(super) fn in_force(
    workload: Option<&AttestationPolicy>,
    application: Option<&AttestationPolicy>,
) -> Option<v1::AttestationPolicy> {
    let said = [workload, application];
    fn first<T>(said: [Option<&AttestationPolicy>; 2], of: impl Fn(&AttestationPolicy) -> Option<T>) -> Option<T> {
        said.into_iter().flatten().find_map(of)
    }
    let policy = v1::AttestationPolicy {
        required: first(said, |p| p.provenance) == Some(Requirement::Required),
        min_level: first(said, |p| p.min_level).unwrap_or_default(),
        builders: first(said, |p| p.builders.clone())
            .unwrap_or_default()
            .into_iter()
            .map(|b| b.0)
            .collect(),
        files: first(said, |p| p.files).unwrap_or_default(),
    };
    policy.required.then_some(policy)
}

/// The canonical form: every field written out.
impl From<&v1::AttestationPolicy> for AttestationPolicy {
    fn from(policy: &v1::AttestationPolicy) -> Self {
        let provenance = if policy.required {
            Requirement::Required
        } else {
            Requirement::Optional
        };
        Self {
            provenance: Some(provenance),
            min_level: Some(policy.min_level),
            builders: Some(policy.builders.iter().cloned().map(BuilderPattern).collect()),
            files: Some(policy.files),
        }
    }
}
