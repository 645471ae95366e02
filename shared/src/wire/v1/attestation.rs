//! What a workload must prove about where it comes from.

use serde::{Deserialize, Serialize};

use super::conditions::is_default;

/// What the provenance of a workload's artifacts must be before the workload is loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttestationPolicy {
    /// Whether there must be any. Without it nothing else of this is looked at.
    #[serde(rename = "req", default, skip_serializing_if = "is_default")]
    pub required: bool,
    /// The lowest SLSA build level, 0 to [`crate::limits::LEVEL_MAX`].
    #[serde(rename = "lvl", default, skip_serializing_if = "is_default")]
    pub min_level: u8,
    /// URIs of the builders that may have built it, `*` for any text; empty for every builder of the trust bundle.
    #[serde(rename = "by", default, skip_serializing_if = "is_default")]
    pub builders: Vec<String>,
    /// Whether input files must have provenance, too.
    #[serde(rename = "files", default, skip_serializing_if = "is_default")]
    pub files: bool,
}

impl AttestationPolicy {
    /// Those of several policies that ask for provenance. All of them must be met: the workload's own and the trust
    /// bundle's, which no twin can loosen.
    #[must_use]
    pub fn in_force(policies: [Option<&Self>; 2]) -> Vec<&Self> {
        policies.into_iter().flatten().filter(|p| p.required).collect()
    }
}
