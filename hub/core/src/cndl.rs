//! CNDL, the CloudNova Definition Language: the YAML or JSON that a person writes, checked against a schema that we
//! publish. [`parse`] reports every mistake with its line, its column and what was probably meant.

mod checks;
mod checks_attestation;
mod checks_conditions;
mod checks_secrets;
mod convert;
mod convert_conditions;
mod errors;
mod manifest;
mod model;
mod quantity;
mod schema;
mod settings;
mod settings_checks;
mod site_pattern;
mod system;
mod tree;
mod wire;
mod wire_attestation;
mod wire_conditions;
mod wire_secrets;
mod wire_values;

pub(crate) use errors::nearest as nearest_name;
pub use errors::{MAX_REPORTED_ERRORS, ManifestError, ManifestErrors};
pub use manifest::Manifest;
pub use model::{
    Application, ArtifactRef, FileInput, Grants, Limits, Need, PlacementRule, Replicas, Resources, Restart,
    RestartPolicy, RuntimeKind, ScheduleDef, SecretDef, VolumeDef, WorkloadDef,
};
pub use quantity::{MAX_CPU_MILLIS, MAX_DURATION_MS};
pub use schema::json_schema;
pub use site_pattern::{InvalidSitePattern, SitePattern};
pub use system::{SYSTEM_SCHEMA_ID, SystemDef, SystemManifest, is_system, parse_system, system_json_schema};

/// A larger text is refused before it is parsed.
pub const MAX_MANIFEST_BYTES: usize = 1 << 20;
/// Deepest nesting of maps and lists.
pub const MAX_DEPTH: usize = 32;
/// Most workloads in one application; the schema says the same.
pub const MAX_WORKLOADS: usize = 256;
/// Most values in one manifest.
pub const MAX_NODES: usize = 100_000;
/// Most YAML aliases, and most anchors.
pub const MAX_ALIASES: usize = 1_000;
/// Most values that all aliases together may expand to.
pub const MAX_ALIAS_EVENTS: usize = 50_000;
/// Most bytes of text with escapes that stand under anchors; each alias copies them.
pub const MAX_ANCHOR_BYTES: usize = 64 << 10;
/// Longest key.
pub const MAX_KEY_CHARS: usize = 256;
/// Identifies the schema; also the name of its checked-in copy.
pub const SCHEMA_ID: &str = "urn:cnova:schema:cndl-v1";

const DEFAULT_BACKOFF_MIN_MS: u64 = 1_000;
const DEFAULT_BACKOFF_MAX_MS: u64 = 60_000;

/// Reads a manifest, YAML or JSON. `source_name` stands before each error; usually the path of the file.
///
/// # Errors
/// Everything that is wrong, by place. Only a syntax error or a broken limit stands alone, because nothing
/// after it can be trusted.
pub fn parse(text: &str, source_name: &str) -> Result<Manifest, ManifestErrors> {
    Manifest::parse(text, source_name, Origin::Written)
}

/// Reads a manifest that was accepted once and comes back from the hub's own store. Its settings are not judged again:
/// a runtime that has learned to refuse something must not take down what runs.
///
/// # Errors
/// As [`parse`].
pub fn restore(text: &str, source_name: &str) -> Result<Manifest, ManifestErrors> {
    Manifest::parse(text, source_name, Origin::Stored)
}

/// Where a manifest comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Written,
    Stored,
}

/// The one text for a manifest: JSON without spaces, keys in the order of the schema, every default filled in.
/// [`parse`] gives the same manifest back.
#[must_use]
pub fn canonical_json(manifest: &Manifest) -> String {
    // Nothing in the wire form can fail to serialize: keys are text and numbers are finite.
    let json = serde_json::to_string(manifest).unwrap_or_default();
    if !json.contains(is_unprintable) {
        return json;
    }
    // These can only stand inside strings, where an escape means the same.
    json.chars().fold(String::with_capacity(json.len()), |mut out, c| {
        if is_unprintable(c) {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
        out
    })
}

/// What JSON lets stand in a string and YAML does not; [`parse`] reads both with the same eyes.
fn is_unprintable(c: char) -> bool {
    matches!(
        c,
        '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
    )
}

fn convert_error(message: &str) -> ManifestError {
    let message = format!("passed the schema but not the decoder, which is a bug: {message}");
    ManifestError {
        line: 1,
        column: 1,
        pointer: String::new(),
        message,
        hint: None,
    }
}
