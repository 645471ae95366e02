//! The manifest's words for when and with what a workload runs: volumes, needs, accelerators, schedule, health.
//! Some can be written short; the canonical form always writes them out.

use std::borrow::Cow;

use cnova_shared::wire::v1::{DependencyCondition, HEALTH_FAILURES, HEALTH_INTERVAL_MS, HEALTHY_WITHIN_MS};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::wire_values::{AbsolutePath, Duration, Name};

/// A writable folder of the node that belongs to the workload and outlives its instances and versions.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Volume {
    /// Name among the workload's volumes; the content stays with the name.
    pub(super) name: Name,
    /// Absolute path inside the workload.
    pub(super) path: AbsolutePath,
}

/// Another workload of the same node that comes first, written as its name or in full.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "NeedForm")]
pub(super) struct Need {
    pub(super) workload: String,
    pub(super) condition: Condition,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NeedForm {
    Name(String),
    Full(NeedInFull),
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "NeedInFull")]
struct NeedInFull {
    /// A workload of this application by its name, or one of another as `application/workload`.
    #[schemars(with = "WorkloadName")]
    workload: String,
    /// How far it must have come.
    #[serde(default)]
    condition: Condition,
}

/// A workload of this application, or `application/workload`.
#[derive(JsonSchema)]
#[schemars(extend("pattern" = r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?/)?[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
#[schemars(extend("x-expected" = "a workload's name, or \"application/workload\""))]
#[expect(dead_code, reason = "only its schema is used")]
struct WorkloadName(String);

impl From<NeedForm> for Need {
    fn from(form: NeedForm) -> Self {
        match form {
            NeedForm::Name(workload) => Self {
                workload,
                condition: Condition::default(),
            },
            NeedForm::Full(NeedInFull { workload, condition }) => Self { workload, condition },
        }
    }
}

impl JsonSchema for Need {
    fn schema_name() -> Cow<'static, str> {
        "Need".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Another workload of the same node that comes first: its name, or {workload, condition}.",
            "anyOf": [generator.subschema_for::<WorkloadName>(), generator.subschema_for::<NeedInFull>()],
            "x-expected": "a workload's name, or a map with \"workload\" and \"condition\""
        })
    }
}

/// How far a needed workload must have come.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub(super) enum Condition {
    Started,
    #[default]
    Healthy,
    Finished,
}

impl From<Condition> for DependencyCondition {
    fn from(condition: Condition) -> Self {
        match condition {
            Condition::Started => Self::Started,
            Condition::Healthy => Self::Healthy,
            Condition::Finished => Self::Finished,
        }
    }
}

impl From<DependencyCondition> for Condition {
    fn from(condition: DependencyCondition) -> Self {
        match condition {
            DependencyCondition::Started => Self::Started,
            DependencyCondition::Healthy => Self::Healthy,
            DependencyCondition::Finished => Self::Finished,
        }
    }
}

/// An accelerator that the workload holds alone while it runs, written as its class or kind or in full.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "AcceleratorForm")]
pub(super) struct Accelerator {
    pub(super) kind: String,
    pub(super) optional: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AcceleratorForm {
    Kind(String),
    Full(AcceleratorInFull),
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "AcceleratorInFull")]
struct AcceleratorInFull {
    /// A class (`npu`, `gpu`, `tpu`) or a kind such as `hailo-8` or `intel-npu`.
    #[schemars(with = "AcceleratorKind")]
    kind: String,
    /// Whether the workload also runs without one, on the CPU.
    #[serde(default)]
    optional: bool,
}

/// A class or kind of accelerators.
#[derive(JsonSchema)]
#[schemars(extend("pattern" = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
#[schemars(extend("x-expected" = "a class (npu, gpu, tpu) or a kind such as hailo-8 or intel-npu"))]
#[expect(dead_code, reason = "only its schema is used")]
struct AcceleratorKind(String);

impl From<AcceleratorForm> for Accelerator {
    fn from(form: AcceleratorForm) -> Self {
        match form {
            AcceleratorForm::Kind(kind) => Self { kind, optional: false },
            AcceleratorForm::Full(AcceleratorInFull { kind, optional }) => Self { kind, optional },
        }
    }
}

impl JsonSchema for Accelerator {
    fn schema_name() -> Cow<'static, str> {
        "Accelerator".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An accelerator that the workload holds alone: its class or kind, or {kind, optional}.",
            "anyOf": [generator.subschema_for::<AcceleratorKind>(), generator.subschema_for::<AcceleratorInFull>()],
            "x-expected": "a class (npu, gpu, tpu), a kind such as hailo-8, or a map with \"kind\" and \"optional\""
        })
    }
}

/// When it runs, by the clock of a time zone.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Schedule {
    /// Five fields of cron: minute, hour, day of month, month, day of week.
    #[schemars(length(min = 9, max = 256), extend("x-expected" = "five fields of cron such as \"0 6 * * MON-FRI\""))]
    pub(super) cron: String,
    /// IANA time zone.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64), extend("x-expected" = "an IANA time zone such as Europe/Berlin"))]
    pub(super) zone: String,
    /// Length of the window that each firing opens: the workload runs in it and is stopped at its end. Without one each
    /// firing starts the workload once, and it ends by itself.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Duration", transform = super::wire::drop_default)]
    pub(super) window: Option<Duration>,
    /// How late a firing may still start a run that was missed.
    #[serde(default = "zero")]
    pub(super) late: Duration,
}

/// The worst supply with power and cooling at which it still runs.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub(super) enum Power {
    Mains,
    Battery,
    Low,
    #[default]
    Critical,
}

/// How its health is watched.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Health {
    /// Time from one question to the next.
    #[serde(default = "interval")]
    pub(super) interval: Duration,
    /// Time within which a new instance must become healthy.
    #[serde(default = "within")]
    pub(super) within: Duration,
    /// Bad answers in a row after which a running instance is ended as failed; 0 only reports.
    #[serde(default = "failures")]
    #[schemars(range(max = 1000), extend("x-expected" = "a whole number from 0 to 1000"))]
    pub(super) failures: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            interval: interval(),
            within: within(),
            failures: failures(),
        }
    }
}

/// What happens when a new version does not become healthy.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub(super) enum OnBadUpdate {
    #[default]
    Return,
    Stay,
}

fn utc() -> String {
    "UTC".to_owned()
}

const fn zero() -> Duration {
    Duration(0)
}

const fn interval() -> Duration {
    Duration(HEALTH_INTERVAL_MS)
}

const fn within() -> Duration {
    Duration(HEALTHY_WITHIN_MS)
}

const fn failures() -> u32 {
    HEALTH_FAILURES
}
