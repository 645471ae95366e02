//! Under what conditions a workload runs, beyond its resources: times, power, other workloads, devices, its health.
//!
//! Every field is left out of the encoding at its default. The digest that decides whether a running instance is what
//! is desired is taken over the encoding, so that an agent that learned a field does not restart what never used it.

use serde::{Deserialize, Serialize};

use crate::ids::WorkloadId;

/// Another workload of the same node that comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dependency {
    /// Which.
    pub id: WorkloadId,
    /// How far it must have come.
    #[serde(rename = "c", default, skip_serializing_if = "is_default")]
    pub condition: DependencyCondition,
}

/// How far a dependency must have come before its dependents start. It only orders starts: what runs already runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DependencyCondition {
    /// It runs.
    Started,
    /// It runs and is healthy.
    #[default]
    Healthy,
    /// It ended as it should.
    Finished,
}

/// An accelerator that a workload holds alone while it runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AcceleratorClaim {
    /// `npu`, `gpu` or `tpu`, or a kind such as `hailo-8` or `intel-npu`.
    #[serde(rename = "k")]
    pub kind: String,
    /// Whether the workload also runs without one, on the CPU.
    #[serde(rename = "o", default, skip_serializing_if = "is_default")]
    pub optional: bool,
}

/// When a workload runs, by the clock of a time zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Five fields of cron: minute, hour, day of month, month, day of week.
    pub cron: String,
    /// IANA time zone, such as `Europe/Berlin`.
    #[serde(rename = "tz")]
    pub zone: String,
    /// Length of the window that each firing opens, seconds: the workload runs in it and is stopped at its end. Without
    /// one each firing starts the workload once, and it ends by itself.
    #[serde(rename = "for", default, skip_serializing_if = "is_default")]
    pub window_seconds: Option<u64>,
    /// How late a firing may still start a job that was missed, seconds.
    #[serde(rename = "late", default, skip_serializing_if = "is_default")]
    pub late_seconds: u64,
}

/// How well a node is supplied with power and cooling, from worst to best.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerLevel {
    /// The battery is nearly empty, or the board is about to switch off for heat.
    #[default]
    Critical,
    /// The battery is low, or the board throttles for heat.
    Low,
    /// On battery.
    Battery,
    /// On mains, or on a board that says nothing about its supply.
    Mains,
}

/// How a workload's health is watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Milliseconds from one question to the next.
    #[serde(rename = "i", default = "interval", skip_serializing_if = "is_interval")]
    pub interval_ms: u64,
    /// Milliseconds within which a new instance must become healthy; longer than that is a failure.
    #[serde(rename = "w", default = "within", skip_serializing_if = "is_within")]
    pub within_ms: u64,
    /// Bad answers in a row after which a running instance is ended as failed. 0 only reports.
    #[serde(rename = "f", default = "failures", skip_serializing_if = "is_failures")]
    pub failures: u32,
}

/// [`Health::interval_ms`] where nothing else is said.
pub const HEALTH_INTERVAL_MS: u64 = 10_000;
/// [`Health::within_ms`] where nothing else is said.
pub const HEALTHY_WITHIN_MS: u64 = 60_000;
/// [`Health::failures`] where nothing else is said.
pub const HEALTH_FAILURES: u32 = 3;

impl Default for Health {
    fn default() -> Self {
        Self {
            interval_ms: HEALTH_INTERVAL_MS,
            within_ms: HEALTHY_WITHIN_MS,
            failures: HEALTH_FAILURES,
        }
    }
}

/// What happens to the version before when a new one comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadUpdate {
    /// The last good version is started again when the new one does not become healthy in its time.
    #[default]
    Return,
    /// The new version stays, and its restart policy goes on.
    Stay,
}

/// Something that a node has and that computes for one workload at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Accelerator {
    /// Names it on its node, for example `hailo0`.
    pub id: String,
    /// `npu`, `gpu` or `tpu`.
    #[serde(rename = "c")]
    pub class: String,
    /// What it is, for example `hailo-8` or `intel-npu`.
    #[serde(rename = "k")]
    pub kind: String,
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn interval() -> u64 {
    HEALTH_INTERVAL_MS
}
fn is_interval(v: &u64) -> bool {
    *v == HEALTH_INTERVAL_MS
}
fn within() -> u64 {
    HEALTHY_WITHIN_MS
}
fn is_within(v: &u64) -> bool {
    *v == HEALTHY_WITHIN_MS
}
fn failures() -> u32 {
    HEALTH_FAILURES
}
fn is_failures(v: &u32) -> bool {
    *v == HEALTH_FAILURES
}
