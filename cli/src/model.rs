//! What the hub says, as far as this program prints it. A newer hub may say more.

use std::collections::{BTreeMap, BTreeSet};

use cnova_shared::ids::{Name, NodeId};
use cnova_shared::wire::v1;
use serde::{Deserialize, Serialize};

/// A node.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct NodeInfo {
    pub(crate) node: String,
    pub(crate) role: String,
    pub(crate) site: String,
    pub(crate) link: String,
    pub(crate) trust: String,
    pub(crate) via: String,
    pub(crate) desired: String,
    pub(crate) reported: String,
    pub(crate) in_sync: bool,
    pub(crate) heard_ms: u64,
    pub(crate) software: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) capabilities: v1::Capabilities,
    pub(crate) alarms: Vec<v1::Alarm>,
    pub(crate) refusals: Vec<Refused>,
}

impl Default for NodeInfo {
    fn default() -> Self {
        Self {
            node: String::new(),
            role: String::new(),
            site: String::new(),
            link: "unknown".into(),
            // What a hub does not say about trust is never read as trust.
            trust: "UNATTESTED".into(),
            via: String::new(),
            desired: String::new(),
            reported: String::new(),
            in_sync: false,
            heard_ms: 0,
            software: String::new(),
            labels: BTreeMap::new(),
            capabilities: v1::Capabilities::default(),
            alarms: Vec::new(),
            refusals: Vec::new(),
        }
    }
}

/// An operating system, and how far its nodes are.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SystemInfo {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) nodes: BTreeMap<String, NodeSystem>,
}

/// One node of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeSystem {
    pub(crate) state: v1::SystemState,
    pub(crate) reason: String,
    pub(crate) percent: u8,
    pub(crate) version: String,
    pub(crate) slot: String,
}

/// A twin that a node refused.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Refused {
    #[serde(default)]
    pub(crate) at_ms: u64,
    pub(crate) code: String,
    #[serde(default)]
    pub(crate) detail: String,
}

/// A workload on a node. Its state is text: a later version may know more of them.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct WorkloadInfo {
    pub(crate) application: Name,
    pub(crate) workload: Name,
    pub(crate) node: NodeId,
    #[serde(default)]
    pub(crate) desired: u64,
    #[serde(default)]
    pub(crate) generation: u64,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) reason: String,
    #[serde(default)]
    pub(crate) attempt: u32,
    #[serde(default)]
    pub(crate) pid: u32,
    #[serde(default)]
    pub(crate) adopted: bool,
    /// A new version did not become healthy, and the one before runs again.
    #[serde(default)]
    pub(crate) returned: bool,
    #[serde(default)]
    pub(crate) since_ms: u64,
}

impl WorkloadInfo {
    pub(crate) fn state_text(&self) -> String {
        match (self.adopted, self.returned) {
            (_, true) => format!("{} (returned)", self.state),
            (true, false) => format!("{} (adopted)", self.state),
            (false, false) => self.state.clone(),
        }
    }

    pub(crate) fn id(&self) -> String {
        format!("{}/{}", self.application, self.workload)
    }

    pub(crate) fn is(&self, id: &cnova_shared::ids::WorkloadId) -> bool {
        self.application == id.application && self.workload == id.name
    }
}

/// An application.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ApplicationInfo {
    pub(crate) name: Name,
    #[serde(default)]
    pub(crate) generation: u64,
    #[serde(default)]
    pub(crate) user: String,
    #[serde(default)]
    pub(crate) workloads: BTreeMap<String, PlacementInfo>,
    #[serde(default)]
    pub(crate) problems: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) timeline: Vec<StageRecord>,
}

/// Where a workload goes.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PlacementInfo {
    #[serde(default)]
    pub(crate) nodes: Vec<String>,
    #[serde(default)]
    pub(crate) not: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) summary: Option<String>,
}

/// When a stage was reached, by the clock of `by`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub(crate) struct StageRecord {
    pub(crate) at_ms: u64,
    pub(crate) stage: String,
    #[serde(default)]
    pub(crate) by: String,
    #[serde(default)]
    pub(crate) node: Option<String>,
    #[serde(default)]
    pub(crate) detail: String,
}

/// All workloads.
#[derive(Debug, Deserialize)]
pub(crate) struct Workloads {
    pub(crate) workloads: Vec<WorkloadInfo>,
}

/// The stages of one generation.
#[derive(Debug, Deserialize)]
pub(crate) struct Timeline {
    pub(crate) stages: Vec<StageRecord>,
}

/// A twin with what its signature covers.
#[derive(Debug, Deserialize)]
pub(crate) struct TwinDocument {
    #[serde(default)]
    pub(crate) digest: String,
    #[serde(default)]
    pub(crate) size: u64,
    pub(crate) twin: v1::Twin,
}

/// What a node reported, and when the hub received it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct HistoryEntry {
    #[serde(default)]
    pub(crate) seq: u64,
    pub(crate) key: String,
    #[serde(default)]
    pub(crate) received_ms: u64,
    pub(crate) body: v1::Body,
}

/// Who changed what.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct AuditEntry {
    #[serde(default)]
    pub(crate) seq: u64,
    #[serde(default)]
    pub(crate) at_ms: u64,
    #[serde(default)]
    pub(crate) user: String,
    pub(crate) action: String,
    #[serde(default)]
    pub(crate) object: String,
    #[serde(default)]
    pub(crate) outcome: String,
    #[serde(default)]
    pub(crate) detail: String,
}

/// The audit log's newest entries.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Audit {
    pub(crate) entries: Vec<AuditEntry>,
    pub(crate) chain: Chain,
}

/// Whether nothing was taken out of the audit log, or changed in it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Chain {
    pub(crate) holds: bool,
    #[serde(default)]
    pub(crate) broken_at: Option<u64>,
}

/// The answer to a request.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// Stored; its twins are on their way.
    Applied(Applied),
    /// What would come of it; nothing was changed.
    DryRun(Applied),
    /// Nothing was changed.
    Refused {
        /// Why.
        #[serde(default)]
        reasons: Vec<String>,
    },
    /// A node's answer.
    Replied {
        /// Whether it could do it.
        ok: bool,
        /// What it said.
        #[serde(default)]
        text: String,
    },
    /// There is no such thing.
    NotFound {
        /// What there is not.
        #[serde(default)]
        what: String,
    },
    /// Something that does not answer what this program asks.
    #[serde(other)]
    Other,
}

/// What became of a manifest.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Applied {
    pub(crate) name: Name,
    #[serde(default)]
    pub(crate) generation: u64,
    #[serde(default)]
    pub(crate) changed: bool,
    /// Nodes by workload.
    #[serde(default)]
    pub(crate) placed: BTreeMap<String, BTreeSet<String>>,
    /// Workloads without all their nodes, and why.
    #[serde(default)]
    pub(crate) unplaced: BTreeMap<String, String>,
    /// Of a dry run: workloads whose provenance the hub does not have, and what is missing.
    #[serde(default)]
    pub(crate) unproven: BTreeMap<String, String>,
    /// Of a dry run: the secrets that it would be given, and their versions.
    #[serde(default)]
    pub(crate) secrets: BTreeMap<String, u64>,
}
