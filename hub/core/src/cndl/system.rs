//! `kind: System`: which operating system nodes shall run.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use cnova_shared::ids::{Name as CheckedName, WorkloadId};
use cnova_shared::limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::errors::{ManifestError, ManifestErrors};
use super::model::{ArtifactRef, ScheduleDef};
use super::schema::Published;
use super::site_pattern::SitePattern;
use super::tree::{self, Position};
use super::wire::{ApiVersion, Artifact, Metadata, drop_default};
use super::wire_conditions::Schedule;
use super::wire_values::{Duration, Labels};
use super::{checks, convert_error};

/// Identifies the schema; also the name of its checked-in copy.
pub const SYSTEM_SCHEMA_ID: &str = "urn:cnova:schema:system-v1";

const DEFAULT_TRIES: u8 = 3;
const DEFAULT_WITHIN_MS: u64 = 600_000;

static PUBLISHED: LazyLock<Published> = LazyLock::new(|| {
    let mut schema = schemars::schema_for!(Document);
    schema.insert("$id".to_owned(), SYSTEM_SCHEMA_ID.into());
    Published::of(schema.to_value())
});

/// The JSON Schema of `kind: System`, draft 2020-12.
#[must_use]
pub fn system_json_schema() -> Value {
    PUBLISHED.value.clone()
}

/// The operating system that nodes shall run, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemDef {
    /// Name, unique among systems.
    pub name: CheckedName,
    /// Free labels for people and policies.
    pub labels: BTreeMap<String, String>,
    /// The bundle.
    pub bundle: ArtifactRef,
    /// Another number tries a bundle again that nodes went back from.
    pub attempt: u32,
    /// Which nodes: those at these site paths
    pub site: SitePattern,
    /// with all of these labels.
    pub node_labels: BTreeMap<String, String>,
    /// How often a slot is started before the other one is taken again.
    pub tries: u8,
    /// Whether it may be older than what runs.
    pub downgrade: bool,
    /// When nodes may start anew for it.
    pub window: Option<ScheduleDef>,
    /// Within which it must be healthy.
    pub within_ms: u64,
    /// Workloads that must run; those that ran before, where none is named.
    pub workloads: Vec<WorkloadId>,
    /// Whether the parent must have been reached.
    pub parent: bool,
    /// How many nodes change at a time.
    pub at_once: u32,
    /// How many may fail before no further one begins.
    pub max_failures: u32,
}

/// A manifest of a system that passed the schema and every check. Only [`parse_system`] makes one.
#[derive(Clone, Debug)]
pub struct SystemManifest {
    system: SystemDef,
    source_name: String,
    bundle_at: Position,
}

impl PartialEq for SystemManifest {
    fn eq(&self, other: &Self) -> bool {
        self.system == other.system
    }
}

impl SystemManifest {
    /// What it says.
    #[must_use]
    pub const fn system(&self) -> &SystemDef {
        &self.system
    }

    /// The canonical form, every default filled in; [`parse_system`] gives the same manifest back.
    #[must_use]
    pub fn to_value(&self) -> Value {
        serde_json::to_value(Document::from(&self.system)).unwrap_or_default()
    }

    /// The bundle's file, where it is still one beside the manifest.
    #[must_use]
    pub fn unresolved_file(&self) -> Option<&str> {
        self.system.bundle.file()
    }

    /// With its file replaced by the digest that the map gives for its path as written.
    ///
    /// # Errors
    /// The file is not in the map, or what it gives is no digest.
    pub fn resolve_file(mut self, digests: &BTreeMap<String, String>) -> Result<Self, ManifestErrors> {
        match super::manifest::resolve(&mut self.system.bundle, digests) {
            Ok(()) => Ok(self),
            Err((message, hint)) => Err(self.mistake(message, hint)),
        }
    }

    /// What only showed when the bundle was looked into.
    #[must_use]
    pub fn mistake(&self, message: String, hint: Option<String>) -> ManifestErrors {
        let Position { line, column } = self.bundle_at;
        let error = ManifestError {
            line,
            column,
            pointer: "/bundle".to_owned(),
            message,
            hint,
        };
        ManifestErrors::new(&self.source_name, vec![error])
    }
}

/// Whether a text is a manifest of this kind, as far as can be seen without checking it.
#[must_use]
pub fn is_system(text: &str) -> bool {
    let read = tree::read(text).ok().map(|t| t.to_value());
    read.is_some_and(|v| v["kind"] == "System")
}

/// Reads a manifest of a system, YAML or JSON.
///
/// # Errors
/// As [`super::parse`].
pub fn parse_system(text: &str, source_name: &str) -> Result<SystemManifest, ManifestErrors> {
    let fail = |errors| ManifestErrors::new(source_name, errors);
    let tree = tree::read(text).map_err(|e| fail(vec![e]))?;
    let value = tree.to_value();
    let mut errors = PUBLISHED.check(&tree, &value);
    let more = checks::check_system(&tree, &value, &errors);
    errors.extend(more);
    if !errors.is_empty() {
        return Err(fail(errors));
    }
    let document: Document = serde_json::from_value(value).map_err(|e| fail(vec![convert_error(&e.to_string())]))?;
    let system = SystemDef::try_from(document).map_err(|e| fail(vec![convert_error(&e)]))?;
    Ok(SystemManifest {
        system,
        source_name: source_name.to_owned(),
        bundle_at: tree.position_of("/bundle"),
    })
}

/// An operating system for nodes.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "CloudNova Definition Language, version 1: System")]
struct Document {
    /// Version of the manifest format.
    api_version: ApiVersion,
    /// What the document describes.
    kind: Kind,
    /// Name and labels.
    metadata: Metadata,
    /// The bundle that `firmware-images/build BOARD --bundle` made.
    bundle: Artifact,
    /// Another number tries a bundle again that nodes went back from.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1_000_000), extend("x-expected" = "a whole number from 1"))]
    attempt: u32,
    /// Which nodes.
    #[serde(default)]
    placement: Where,
    /// How the slots are used.
    #[serde(default)]
    slots: Slots,
    /// When nodes may start anew for it; at any time, where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Schedule", transform = drop_default)]
    window: Option<Schedule>,
    /// When it is good.
    #[serde(default)]
    health: Health,
    /// How it gets around.
    #[serde(default)]
    rollout: Rollout,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
enum Kind {
    System,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Where {
    /// Site paths: exact segments, `*` for one segment, `**` at the end for any tail.
    #[serde(default = "everywhere")]
    #[schemars(length(min = 1, max = 512), extend("x-expected" = "a site pattern such as plant-7/line-2/**"))]
    site: String,
    /// Labels a node must have, all of them.
    #[serde(default)]
    labels: Labels,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Slots {
    /// How often the new slot is started before the other one is taken again.
    #[serde(default = "tries")]
    #[schemars(range(min = 1, max = 10), extend("x-expected" = "a whole number from 1 to 10"))]
    tries: u8,
    /// Whether the bundle may be older than what runs.
    #[serde(default)]
    downgrade: bool,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "SystemHealth")]
struct Health {
    /// Time in which all of it must hold after a start; at most an hour.
    #[serde(default = "within")]
    within: Duration,
    /// Workloads that must run, as `application/workload`; those that ran before the restart, where none is named.
    #[serde(default)]
    #[schemars(length(max = 64), extend("x-expected" = "at most 64 workloads"))]
    workloads: Vec<String>,
    /// Whether the parent must have been reached.
    #[serde(default)]
    parent: bool,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rollout {
    /// How many nodes change at a time.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 100_000), extend("x-expected" = "a whole number from 1"))]
    at_once: u32,
    /// How many may fail before no further one begins.
    #[serde(default)]
    #[schemars(range(max = 100_000), extend("x-expected" = "a whole number"))]
    max_failures: u32,
}

fn one() -> u32 {
    1
}
fn tries() -> u8 {
    DEFAULT_TRIES
}
fn within() -> Duration {
    Duration(DEFAULT_WITHIN_MS)
}
fn everywhere() -> String {
    SitePattern::everywhere().as_str().to_owned()
}

impl Default for Where {
    fn default() -> Self {
        Self {
            site: everywhere(),
            labels: Labels::default(),
        }
    }
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            tries: DEFAULT_TRIES,
            downgrade: false,
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            within: within(),
            workloads: Vec::new(),
            parent: false,
        }
    }
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            at_once: 1,
            max_failures: 0,
        }
    }
}

impl TryFrom<Document> for SystemDef {
    type Error = String;

    fn try_from(d: Document) -> Result<Self, String> {
        let ids = d
            .health
            .workloads
            .iter()
            .map(|w| w.parse::<WorkloadId>().map_err(|e| e.to_string()));
        Ok(Self {
            name: CheckedName::new(&d.metadata.name.0).map_err(|e| e.to_string())?,
            labels: d.metadata.labels.0,
            bundle: d.bundle.into(),
            attempt: d.attempt,
            site: SitePattern::new(&d.placement.site).map_err(|e| e.to_string())?,
            node_labels: d.placement.labels.0,
            tries: d.slots.tries.clamp(1, limits::SYSTEM_TRIES),
            downgrade: d.slots.downgrade,
            window: d.window.map(ScheduleDef::from),
            within_ms: d.health.within.0,
            workloads: ids.collect::<Result<_, _>>()?,
            parent: d.health.parent,
            at_once: d.rollout.at_once,
            max_failures: d.rollout.max_failures,
        })
    }
}

impl From<&SystemDef> for Document {
    fn from(s: &SystemDef) -> Self {
        Self {
            api_version: ApiVersion::V1,
            kind: Kind::System,
            metadata: Metadata {
                name: super::wire_values::Name(s.name.to_string()),
                labels: Labels(s.labels.clone()),
            },
            bundle: Artifact::from(&s.bundle),
            attempt: s.attempt,
            placement: Where {
                site: s.site.as_str().to_owned(),
                labels: Labels(s.node_labels.clone()),
            },
            slots: Slots {
                tries: s.tries,
                downgrade: s.downgrade,
            },
            window: s.window.as_ref().map(Schedule::from),
            health: Health {
                within: Duration(s.within_ms),
                workloads: s.workloads.iter().map(ToString::to_string).collect(),
                parent: s.parent,
            },
            rollout: Rollout {
                at_once: s.at_once,
                max_failures: s.max_failures,
            },
        }
    }
}
