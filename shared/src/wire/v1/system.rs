//! A node's operating system: which one shall run, and how far that is.

use serde::{Deserialize, Serialize};

use super::conditions::{Schedule, is_default};
use super::workload::Artifact;
use crate::ids::{Digest, Name, WorkloadId};

/// The operating system that a node shall run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// The manifest that asks for it.
    #[serde(rename = "n")]
    pub name: Name,
    /// That manifest's generation.
    #[serde(rename = "g")]
    pub generation: u64,
    /// The bundle ([`crate::system_bundle`]).
    #[serde(rename = "b")]
    pub bundle: Artifact,
    /// The digest of the bundle's header, magic and length with it: nothing of it is read before it holds.
    #[serde(rename = "h")]
    pub header: Digest,
    /// The system's version, for people; the header has the last word.
    #[serde(rename = "v")]
    pub version: String,
    /// Which attempt: a system that a node went back from is tried again when this is another number.
    #[serde(rename = "a")]
    pub attempt: u32,
    /// How often the slot is started before the other one is taken again.
    #[serde(rename = "t")]
    pub tries: u8,
    /// Whether it may be older than the one that runs.
    #[serde(rename = "old", default, skip_serializing_if = "is_default")]
    pub downgrade: bool,
    /// When the node may start anew for it; at any time, where nothing is said.
    #[serde(rename = "w", default, skip_serializing_if = "is_default")]
    pub window: Option<Schedule>,
    /// When it is good.
    #[serde(rename = "hl")]
    pub health: SystemHealth,
}

/// When a system that was started on trial is good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemHealth {
    /// Seconds after the agent's start within which all of it must hold.
    #[serde(rename = "w")]
    pub within_s: u64,
    /// Workloads that must run; those that ran before the restart and are still asked for, where none is named.
    #[serde(rename = "wl", default, skip_serializing_if = "is_default")]
    pub workloads: Vec<WorkloadId>,
    /// Whether the parent must have been reached.
    #[serde(rename = "p", default, skip_serializing_if = "is_default")]
    pub parent: bool,
}

/// How far a system is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SystemState {
    /// No other one is asked for.
    #[default]
    Idle,
    /// It cannot be begun, or not go on, until something changes; the reason says what.
    Waiting,
    /// It is fetched, and written into the other slot as it comes.
    Writing,
    /// What was written is read back.
    Verifying,
    /// It is whole in the other slot, and waits for its time.
    Staged,
    /// The machine is being started anew.
    Rebooting,
    /// It runs, and has to prove itself.
    Trial,
    /// It runs, and is good.
    Confirmed,
    /// It was started and was not good: the one before runs again.
    RolledBack,
    /// It was refused, or could not be written.
    Failed,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

/// A node's operating system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemReport {
    /// How far what is asked for is.
    #[serde(rename = "st")]
    pub state: SystemState,
    /// Why it is there, for a person.
    #[serde(rename = "why", default, skip_serializing_if = "is_default")]
    pub reason: String,
    /// The bundle that this is about.
    #[serde(rename = "b", default, skip_serializing_if = "is_default")]
    pub bundle: Option<Digest>,
    /// Which attempt at it.
    #[serde(rename = "a", default, skip_serializing_if = "is_default")]
    pub attempt: u32,
    /// The version of that bundle.
    #[serde(rename = "want", default, skip_serializing_if = "is_default")]
    pub wanted: String,
    /// The version that runs; empty where the node cannot say.
    #[serde(rename = "v", default, skip_serializing_if = "is_default")]
    pub version: String,
    /// The slot that runs.
    #[serde(rename = "s", default, skip_serializing_if = "is_default")]
    pub slot: String,
    /// What the board calls itself; empty where it has no slots.
    #[serde(rename = "c", default, skip_serializing_if = "is_default")]
    pub compatible: String,
    /// How much of the bundle is written, hundredths.
    #[serde(rename = "pc", default, skip_serializing_if = "is_default")]
    pub percent: u8,
}
