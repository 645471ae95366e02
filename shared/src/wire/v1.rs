//! Version 1 of every message's payload. Short field names: they cross metered links.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::ids::{Digest, NodeId, SitePath, WorkloadId};

mod attestation;
mod conditions;
mod enrol;
mod system;
mod trust;
mod workload;

pub use attestation::AttestationPolicy;
use conditions::is_default;
pub use conditions::{
    Accelerator, AcceleratorClaim, Dependency, DependencyCondition, HEALTH_FAILURES, HEALTH_INTERVAL_MS,
    HEALTHY_WITHIN_MS, Health, OnBadUpdate, PowerLevel, Schedule,
};
pub use enrol::{
    Enrol, EnrolAnswer, EnrolBegin, EnrolChallenge, EnrolFinish, EnrolIssued, EnrolRefused, EnrolStep, Enrolled,
};
pub use system::{System, SystemHealth, SystemReport, SystemState};
pub use trust::{Challenge, LogPrefix, Trust, TrustItem, TrustItemKind, TrustRequirement};
pub use workload::{
    Artifact, Grants, InputFile, Restart, RestartPolicy, SealedSecret, SecretTarget, SecretUse, Twin, Volume, Workload,
};

/// The version that every message of this module carries in `v`.
pub const VERSION: u32 = 1;

/// A message that says of which version it is.
pub trait Versioned {
    /// Its version.
    fn version(&self) -> u32;
}

macro_rules! versioned {
    ($($message:ty),*) => { $(impl Versioned for $message {
        fn version(&self) -> u32 {
            self.v
        }
    })* };
}

versioned!(
    Enrol,
    Enrolled,
    Hello,
    Report,
    Relay,
    Ack,
    ChunkRequest,
    Chunk,
    Command,
    Reply,
    Twin,
    Trust,
    Challenge
);

/// What a node is in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeRole {
    /// A leaf that runs workloads.
    Agent,
    /// A node with children.
    Gateway,
}

/// One installed runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeCapability {
    /// `wasm`, `container` or `ebpf`.
    #[serde(rename = "n")]
    pub name: String,
    /// Its own version.
    #[serde(rename = "v")]
    pub version: String,
    /// The engine that precompiled artifacts must be made for, such as `wasmtime-48.0.8`.
    #[serde(rename = "e")]
    pub engine: String,
    /// Targets that it runs, such as `x86_64-unknown-linux-gnu`.
    #[serde(rename = "t")]
    pub targets: Vec<String>,
}

/// What a node has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Installed runtimes.
    #[serde(rename = "r", default)]
    pub runtimes: Vec<RuntimeCapability>,
    /// Memory that workloads may use, bytes.
    #[serde(rename = "m", default)]
    pub memory_bytes: u64,
    /// CPU that workloads may use, thousandths of a core.
    #[serde(rename = "c", default)]
    pub cpu_millis: u64,
    /// Accelerators that may be leased to a workload.
    #[serde(rename = "acc", default, skip_serializing_if = "is_default")]
    pub accelerators: Vec<Accelerator>,
    /// Names of the devices that the node's configuration offers to workloads.
    #[serde(rename = "dev", default, skip_serializing_if = "is_default")]
    pub devices: Vec<String>,
}

/// A condition of the node itself that a person should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// A stable word, such as `store-set-aside`.
    #[serde(rename = "c")]
    pub code: String,
    /// What happened, where, what to do.
    #[serde(rename = "d")]
    pub detail: String,
}

/// Up, on every connect and when capabilities change: here I am, and this is what I hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub v: u32,
    /// Differs on every start of the node's program.
    pub boot: String,
    /// Epoch of the twin held, 0 for none.
    pub epoch: u64,
    /// Generation of the twin held, 0 for none.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// Digest of the twin held.
    pub digest: Option<Digest>,
    /// The report stream's incarnation.
    #[serde(rename = "inc")]
    pub incarnation: u64,
    /// Agent or gateway.
    pub role: NodeRole,
    /// Where it believes to hang.
    pub site: SitePath,
    /// Labels from its configuration.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it has.
    #[serde(rename = "caps", default)]
    pub capabilities: Capabilities,
    /// The program's version.
    #[serde(rename = "ver", default)]
    pub software: String,
    /// Version of the trust bundle held.
    #[serde(rename = "trust", default)]
    pub trust_version: u64,
    /// Versions of the other documents about trust that it holds, by what [`crate::trust`] calls them.
    #[serde(rename = "docs", default, skip_serializing_if = "is_default")]
    pub documents: BTreeMap<String, u64>,
    /// The twin held is signed by a key that the trust bundle no longer names: send it, signed anew.
    #[serde(default, skip_serializing_if = "is_default")]
    pub renew: bool,
    /// The key that its secrets are encrypted to: a point of P-256, uncompressed; nothing where it can open none.
    #[serde(rename = "box", default, skip_serializing_if = "is_default")]
    pub box_key: Option<ByteBuf>,
    /// Conditions that cannot wait for, or do not fit, the report stream.
    #[serde(default)]
    pub alarms: Vec<Alarm>,
}

/// Up: entries `from < seq <= to` of the node's report stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`VERSION`].
    pub v: u32,
    /// Which life of the stream.
    #[serde(rename = "inc")]
    pub incarnation: u64,
    /// The sequence number that this message follows.
    pub from: u64,
    /// The last sequence number that it covers.
    pub to: u64,
    /// The newest entry of each key in that range, in order of `seq`.
    #[serde(rename = "e")]
    pub entries: Vec<Entry>,
    /// Where the stream is told from its beginning (`from` is 0): all keys that there are. What the reader holds under
    /// any other key is void.
    #[serde(rename = "all", default)]
    pub all_keys: Option<Vec<String>>,
}

/// The newest word on one subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place in the stream.
    #[serde(rename = "s")]
    pub seq: u64,
    /// The subject; a newer entry with the same key replaces this one.
    #[serde(rename = "k")]
    pub key: String,
    /// When it happened, milliseconds since 1970 by the author's clock.
    #[serde(rename = "at")]
    pub at_ms: u64,
    /// What happened.
    #[serde(rename = "b")]
    pub body: Body,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "kebab-case")]
pub enum Body {
    /// The twin in force.
    Twin {
        /// Its epoch.
        epoch: u64,
        /// Its generation.
        #[serde(rename = "gen")]
        generation: u64,
        /// Its digest.
        digest: Digest,
        /// When its signature was checked.
        verified_ms: u64,
        /// When it was on disk; 0 while it is only just being written.
        committed_ms: u64,
    },
    /// A twin that was not taken.
    Refused {
        /// A stable word: `bad-signature`, `unknown-key`, `wrong-node`, `old-generation`, `same-generation`, `malformed`.
        code: String,
        /// Why, for a person.
        detail: String,
        /// The epoch it claimed, where it could be read safely.
        epoch: u64,
        /// The generation it claimed, where it could be read safely.
        #[serde(rename = "gen")]
        generation: u64,
    },
    /// A workload's state.
    Workload(WorkloadReport),
    /// A workload that is no longer in the twin and has stopped.
    Gone {
        /// Which.
        id: WorkloadId,
    },
    /// A gateway handed a twin on.
    Relayed {
        /// The node it is for.
        node: NodeId,
        /// Its epoch.
        epoch: u64,
        /// Its generation.
        #[serde(rename = "gen")]
        generation: u64,
    },
    /// A child's connection, as its parent sees it.
    Link {
        /// The child.
        child: NodeId,
        /// Whether it is connected.
        up: bool,
        /// Why not.
        #[serde(default)]
        reason: String,
    },
    /// A gateway appraised one of its children in the hub's place.
    Appraised {
        /// The child.
        node: NodeId,
        /// The attestation result, as the gateway signed it.
        ear: ByteBuf,
    },
    /// The node's operating system.
    System(SystemReport),
    /// A condition of the node itself.
    Alarm(Alarm),
    /// The condition that this key stood for is over.
    Over,
    /// Something of a later version.
    #[serde(other)]
    Unknown,
}

/// Where a workload stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadState {
    /// Waiting for something that `reason` names.
    Waiting,
    /// Its artifacts are being fetched.
    Fetching,
    /// Its runtime was told to start it.
    Starting,
    /// It runs.
    Running,
    /// It was told to stop.
    Stopping,
    /// It ended by itself, as it may.
    Finished,
    /// It ended with an error and will be started again.
    Failed,
    /// It failed too often and is not started again until its twin changes.
    CrashLoop,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

/// A workload's state, with its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadReport {
    /// Which.
    pub id: WorkloadId,
    /// The application's generation that this instance runs.
    #[serde(rename = "ag")]
    pub app_generation: u64,
    /// Epoch of the twin that asked for it.
    #[serde(rename = "ep")]
    pub epoch: u64,
    /// Generation of the twin that asked for it.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// Where it stands.
    #[serde(rename = "st")]
    pub state: WorkloadState,
    /// Why it stands there, for a person; empty when it runs.
    #[serde(rename = "why", default)]
    pub reason: String,
    /// How often it was started for this application generation.
    #[serde(rename = "try")]
    pub attempt: u32,
    /// The process.
    #[serde(default)]
    pub pid: u32,
    /// Whether it was found running after a restart of the agent.
    #[serde(default)]
    pub adopted: bool,
    /// Whether the new version did not become healthy and the one before runs again.
    #[serde(rename = "ret", default, skip_serializing_if = "is_default")]
    pub returned: bool,
}

/// Up: what a gateway's descendants said, unchanged, in the gateway's own sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// [`VERSION`].
    pub v: u32,
    /// Which life of the gateway's spool.
    #[serde(rename = "inc")]
    pub incarnation: u64,
    /// The sequence number that this message follows.
    pub from: u64,
    /// The last sequence number that it covers.
    pub to: u64,
    /// The messages.
    #[serde(rename = "i")]
    pub items: Vec<RelayItem>,
}

/// One carried message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayItem {
    /// Its kind's name.
    #[serde(rename = "k")]
    pub kind: String,
    /// The author's COSE_Sign1, byte for byte.
    #[serde(rename = "b")]
    pub body: ByteBuf,
}

/// The streams of a child that its parent acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// What the child says of itself.
    Report,
    /// What it carries for its descendants.
    Relay,
}

/// Down: everything up to here is on the parent's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// [`VERSION`].
    pub v: u32,
    /// Which of the child's streams.
    #[serde(rename = "st")]
    pub stream: Stream,
    /// Which life of the child's stream.
    #[serde(rename = "inc")]
    pub incarnation: u64,
    /// The last sequence number stored.
    pub seq: u64,
    /// The `boot` of the hello that this answers, if it answers one.
    #[serde(default)]
    pub hello: Option<String>,
    /// For so long the hub has been out of the sender's reach, seconds; 0 while it is within, and of the hub itself.
    #[serde(rename = "away", default, skip_serializing_if = "is_default")]
    pub away_s: u64,
}

/// Up: send me a piece of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRequest {
    /// [`VERSION`].
    pub v: u32,
    /// The artifact.
    pub digest: Digest,
    /// First byte wanted.
    #[serde(rename = "off")]
    pub offset: u64,
    /// Bytes wanted, at most [`crate::limits::CHUNK_BYTES`].
    #[serde(rename = "len")]
    pub length: u64,
    /// An artifact that the asker has and that the answer may be a difference to. Not used by version 1's answers.
    #[serde(default)]
    pub base: Option<Digest>,
}

/// Down: a piece of an artifact, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// [`VERSION`].
    pub v: u32,
    /// The artifact.
    pub digest: Digest,
    /// First byte.
    #[serde(rename = "off")]
    pub offset: u64,
    /// The artifact's whole size.
    pub total: u64,
    /// The bytes.
    #[serde(rename = "d", with = "serde_bytes")]
    pub data: Vec<u8>,
    /// Why it cannot be had.
    #[serde(default)]
    pub missing: Option<String>,
}

/// Down: do or tell something once. It expires; nothing waits for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// [`VERSION`].
    pub v: u32,
    /// What the answer refers to.
    pub id: u64,
    /// What to do.
    pub op: Operation,
}

/// What a command asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "kebab-case")]
pub enum Operation {
    /// The end of a workload's log.
    Logs {
        /// Which workload.
        workload: WorkloadId,
        /// How many lines at most.
        lines: u32,
    },
    /// A workload's metrics, now.
    Metrics {
        /// Which workload.
        workload: WorkloadId,
    },
    /// The node may trust its disk again: it is let out of quarantine, and takes no twin below this one.
    Release {
        /// The `boot` of the hello by which the node said that it is in quarantine: a word for another start is void.
        boot: String,
        /// Epoch of the newest twin that the hub made for it.
        epoch: u64,
        /// Generation of that twin.
        #[serde(rename = "gen")]
        generation: u64,
    },
    /// Something of a later version.
    #[serde(other)]
    Unknown,
}

/// Up: the answer to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// [`VERSION`].
    pub v: u32,
    /// The command's id.
    pub id: u64,
    /// Whether it could be done.
    pub ok: bool,
    /// The answer (log text, metrics as JSON) or the reason.
    pub text: String,
}
