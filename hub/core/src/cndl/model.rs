//! What a manifest says once it has been checked: plain values in base units, every default filled in.

use std::collections::BTreeMap;

use cnova_shared::wire::v1::{
    AcceleratorClaim, AttestationPolicy, DependencyCondition, Health, OnBadUpdate, PowerLevel, SecretTarget,
    TrustRequirement,
};
use serde::{Serialize, Serializer};

use super::site_pattern::SitePattern;

/// One application: what a person writes, versions and removes as a whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Application {
    /// Name, unique in the hub; a DNS label.
    pub name: String,
    /// Free labels for people and policies; they do not steer placement.
    pub labels: BTreeMap<String, String>,
    /// At least one workload, names unique, in the order they were written.
    pub workloads: Vec<WorkloadDef>,
}

impl Application {
    /// The workload of that name.
    #[must_use]
    pub fn workload(&self, name: &str) -> Option<&WorkloadDef> {
        self.workloads.iter().find(|w| w.name == name)
    }
}

/// One workload of an application.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkloadDef {
    /// Name, unique in the application; a DNS label.
    pub name: String,
    /// What runs it.
    pub runtime: RuntimeKind,
    /// The program: a Wasm module or component, an eBPF object, or an OCI layout.
    pub artifact: ArtifactRef,
    /// Read-only input files.
    pub files: Vec<FileInput>,
    /// Command-line arguments.
    pub args: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Secrets of the hub that it is given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretDef>,
    /// What it asks of a node.
    pub resources: Resources,
    /// What it may not exceed.
    pub limits: Limits,
    /// What it may touch.
    pub grants: Grants,
    /// What happens when it ends.
    pub restart: Restart,
    /// Time between the request to stop and the kill.
    pub stop_grace_ms: u64,
    /// Settings of the runtime: those that differ from its defaults, each in the one form that its type prints.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// Writable folders that it keeps.
    pub volumes: Vec<VolumeDef>,
    /// Workloads of the same node that come first.
    pub needs: Vec<Need>,
    /// Accelerators that it holds alone while it runs.
    pub accelerators: Vec<AcceleratorClaim>,
    /// Devices of the node's configuration that it may use, by name.
    pub devices: Vec<String>,
    /// When it runs; always, where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleDef>,
    /// The worst supply with power and cooling at which it still runs.
    pub power: PowerLevel,
    /// How its health is watched.
    pub health: Health,
    /// What happens when a new version does not become healthy.
    pub on_bad_update: OnBadUpdate,
    /// What its artifacts must prove; nothing, where no provenance is required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attestation: Option<AttestationPolicy>,
    /// 0..=1000; under pressure the lowest is shed first.
    pub priority: u16,
    /// Where it may run and how often.
    pub placement: PlacementRule,
}

impl WorkloadDef {
    /// Whether a Wasm workload runs as portable bytecode instead of machine code.
    #[must_use]
    pub fn pulley(&self) -> bool {
        self.settings.get("pulley") == Some(&serde_json::Value::Bool(true))
    }
}

/// What runs a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// A WASI preview 1 module or a component.
    Wasm,
    /// An OCI layout.
    Container,
    /// An eBPF object.
    Ebpf,
}

impl RuntimeKind {
    /// The name as written in manifests and reported by nodes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wasm => "wasm",
            Self::Container => "container",
            Self::Ebpf => "ebpf",
        }
    }
}

/// Content-addressed bytes, or a file that still has to be uploaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactRef {
    /// A path relative to the manifest. Only the CLI can resolve it; the hub refuses it.
    File {
        /// The path as written.
        path: String,
        /// Size in bytes, where it was given.
        #[serde(skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
    },
    /// Content in the artifact store.
    Digest {
        /// `sha256:` and 64 lowercase hex digits.
        digest: String,
        /// Size in bytes, where it was given.
        #[serde(skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
    },
}

impl ArtifactRef {
    /// The digest, unless this is still a file.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        match self {
            Self::Digest { digest, .. } => Some(digest),
            Self::File { .. } => None,
        }
    }

    /// The path, if this is still a file.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        match self {
            Self::File { path, .. } => Some(path),
            Self::Digest { .. } => None,
        }
    }

    /// Size in bytes, where the manifest gave it.
    #[must_use]
    pub const fn size(&self) -> Option<u64> {
        match self {
            Self::File { size, .. } | Self::Digest { size, .. } => *size,
        }
    }
}

/// A read-only input file of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileInput {
    /// Absolute path inside the workload.
    pub path: String,
    /// Its content.
    pub artifact: ArtifactRef,
}

/// A secret of the hub that a workload is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SecretDef {
    /// The secret's name.
    pub name: String,
    /// How it is given.
    pub target: SecretTarget,
}

/// What a workload asks of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Memory, which is also its limit. `None` where the manifest does not say; the built-in policy refuses that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// CPU share, in thousandths of a core.
    pub cpu_millis: u32,
}

/// What a workload may not exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Bytes of log the node keeps.
    pub log_bytes: u64,
    /// Longest run, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall_time_ms: Option<u64>,
}

/// What a workload may touch besides its own memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Grants {
    /// Wall and monotonic clocks.
    pub clocks: bool,
    /// Random numbers.
    pub random: bool,
    /// Peers it may connect to: `host:port`, `tcp:host:port`, `udp:host:port`, or `*`.
    pub network: Vec<String>,
    /// Threads, in a Wasm workload.
    pub threads: bool,
    /// Neural networks (wasi-nn), in a Wasm workload.
    pub nn: bool,
}

/// A writable folder that belongs to one workload on its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeDef {
    /// Name among the workload's volumes.
    pub name: String,
    /// Absolute path inside the workload.
    pub path: String,
}

/// Another workload of the same node that comes first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    /// Its application; `None` for the same one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application: Option<String>,
    /// Its name there.
    pub workload: String,
    /// How far it must have come.
    pub condition: DependencyCondition,
}

impl Need {
    /// As it is written: `workload` or `application/workload`.
    #[must_use]
    pub fn to_text(&self) -> String {
        match &self.application {
            Some(application) => format!("{application}/{}", self.workload),
            None => self.workload.clone(),
        }
    }
}

/// When a workload runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScheduleDef {
    /// Five fields of cron.
    pub cron: String,
    /// IANA time zone.
    pub zone: String,
    /// Length of the window that each firing opens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<u64>,
    /// How late a firing may still start a run that was missed.
    pub late_ms: u64,
}

/// What happens when a workload ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Restart {
    /// When it is started again.
    pub policy: RestartPolicy,
    /// First wait.
    pub backoff_min_ms: u64,
    /// Longest wait.
    pub backoff_max_ms: u64,
    /// Failures in a row after which it counts as crash-looping.
    pub crash_loop_after: u32,
}

/// When a workload is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Whenever it ends.
    Always,
    /// When it failed.
    OnFailure,
    /// Never: it runs once.
    Never,
}

impl RestartPolicy {
    /// The name as written in manifests.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::OnFailure => "on-failure",
            Self::Never => "never",
        }
    }
}

/// Where a workload may run and how often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlacementRule {
    /// Which site paths.
    pub site: SitePattern,
    /// Labels that a node must have, all of them.
    pub labels: BTreeMap<String, String>,
    /// On how many nodes.
    pub replicas: Replicas,
    /// Replicas go to different nodes. Always so today: a node runs a workload at most once.
    pub spread: bool,
    /// How far a node must be trusted.
    #[serde(skip_serializing_if = "is_none")]
    pub trust: TrustRequirement,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn is_none(trust: &TrustRequirement) -> bool {
    *trust == TrustRequirement::None
}

/// On how many nodes a workload runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    /// On that many.
    Count(u32),
    /// On every node that fits the rule.
    Each,
}

impl Serialize for Replicas {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Count(n) => serializer.serialize_u32(*n),
            Self::Each => serializer.serialize_str("each"),
        }
    }
}
