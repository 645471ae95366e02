//! A node's twin and the workloads in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::attestation::AttestationPolicy;
use super::conditions::{AcceleratorClaim, Dependency, Health, OnBadUpdate, PowerLevel, Schedule, is_default};
use super::system::System;
use super::trust::TrustRequirement;
use crate::ids::{Digest, Name, NodeId, WorkloadId};
use crate::keys::KeyId;

/// One node's whole desired state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Twin {
    /// [`VERSION`].
    pub v: u32,
    /// The node it is for.
    pub node: NodeId,
    /// Goes up when the hub starts anew.
    pub epoch: u64,
    /// Goes up with every change.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// All workloads that shall run there.
    #[serde(rename = "w")]
    pub workloads: Vec<Workload>,
    /// The secrets that these workloads use, each encrypted to the node, in order of name and version.
    #[serde(rename = "sec", default, skip_serializing_if = "is_default")]
    pub secrets: Vec<SealedSecret>,
    /// The operating system that shall run there; whichever runs, where nothing is said.
    #[serde(rename = "sys", default, skip_serializing_if = "is_default")]
    pub system: Option<Box<System>>,
}

/// A secret, encrypted to one node's box key ([`crate::secret`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedSecret {
    /// Its name.
    #[serde(rename = "n")]
    pub name: Name,
    /// Which value of it.
    #[serde(rename = "v")]
    pub version: u64,
    /// The box key that opens it.
    #[serde(rename = "k")]
    pub key: KeyId,
    /// A COSE_Encrypt.
    #[serde(rename = "b")]
    pub blob: ByteBuf,
}

/// A secret that a workload is given. What it is worth stands in the twin's `secrets`, so that a new key of the node
/// changes no workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SecretUse {
    /// The secret's name.
    #[serde(rename = "n")]
    pub name: Name,
    /// Which value of it; another one is another version of the workload.
    #[serde(rename = "v")]
    pub version: u64,
    /// How the workload gets it.
    #[serde(rename = "to")]
    pub target: SecretTarget,
}

/// How a workload gets a secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretTarget {
    /// As this variable of its environment.
    Env(String),
    /// As this read-only file, absolute.
    File(String),
}

/// An artifact, by content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Artifact {
    /// SHA-256.
    #[serde(rename = "d")]
    pub digest: Digest,
    /// Bytes.
    #[serde(rename = "s")]
    pub size: u64,
}

/// A read-only input file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Where the workload sees it, absolute.
    #[serde(rename = "p")]
    pub path: String,
    /// Its contents.
    #[serde(rename = "a")]
    pub artifact: Artifact,
}

/// When a workload is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Whatever its end was.
    Always,
    /// When it ended with an error.
    OnFailure,
    /// Never.
    Never,
}

/// Restart behaviour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// When.
    #[serde(rename = "p")]
    pub policy: RestartPolicy,
    /// First pause, milliseconds; it doubles.
    #[serde(rename = "min")]
    pub backoff_min_ms: u64,
    /// Longest pause, milliseconds.
    #[serde(rename = "max")]
    pub backoff_max_ms: u64,
    /// Failures in a row after which it is given up until its twin changes.
    #[serde(rename = "loop")]
    pub crash_loop_after: u32,
}

/// What a workload may touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    /// Clocks.
    #[serde(rename = "clk", default)]
    pub clocks: bool,
    /// Random numbers.
    #[serde(rename = "rnd", default)]
    pub random: bool,
    /// `host:port` that it may connect to.
    #[serde(rename = "net", default)]
    pub network: Vec<String>,
    /// Threads in a Wasm workload.
    #[serde(rename = "thr", default, skip_serializing_if = "is_default")]
    pub threads: bool,
    /// wasi-nn in a Wasm workload.
    #[serde(rename = "nn", default, skip_serializing_if = "is_default")]
    pub nn: bool,
}

/// A folder of the node that belongs to one workload and outlives its instances and versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name among the workload's volumes.
    #[serde(rename = "n")]
    pub name: Name,
    /// Where the workload sees it, absolute.
    #[serde(rename = "p")]
    pub path: String,
}

/// One workload of a twin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Which.
    pub id: WorkloadId,
    /// The application's generation.
    #[serde(rename = "ag")]
    pub app_generation: u64,
    /// `wasm`, `container` or `ebpf`.
    #[serde(rename = "rt")]
    pub runtime: String,
    /// What the runtime loads, made for this node's target.
    #[serde(rename = "art")]
    pub artifact: Artifact,
    /// The digest of what it was made from.
    #[serde(rename = "src")]
    pub source: Digest,
    /// Read-only input files.
    #[serde(default)]
    pub files: Vec<InputFile>,
    /// Arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Most memory, bytes.
    #[serde(rename = "mem")]
    pub memory_bytes: u64,
    /// CPU share, thousandths of a core.
    #[serde(rename = "cpu")]
    pub cpu_millis: u64,
    /// Most log bytes kept on the node.
    #[serde(rename = "log")]
    pub log_bytes: u64,
    /// Longest run, seconds.
    #[serde(rename = "wall", default)]
    pub wall_seconds: Option<u64>,
    /// What it may touch.
    #[serde(rename = "grants")]
    pub grants: Grants,
    /// Restart behaviour.
    #[serde(rename = "rs")]
    pub restart: Restart,
    /// Time between asking it to stop and ending it, milliseconds.
    #[serde(rename = "grace")]
    pub stop_grace_ms: u64,
    /// 0 to 1000; the higher one stays when there is too little for both.
    #[serde(rename = "prio")]
    pub priority: u32,
    /// Free settings for the runtime, JSON.
    #[serde(rename = "set", default)]
    pub settings: String,
    /// What the artifact refers to and the runtime needs beside it: a container image's configuration and layers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub parts: Vec<Artifact>,
    /// Writable folders that it keeps.
    #[serde(rename = "vol", default, skip_serializing_if = "is_default")]
    pub volumes: Vec<Volume>,
    /// Workloads of the same node that come first.
    #[serde(default, skip_serializing_if = "is_default")]
    pub needs: Vec<Dependency>,
    /// Accelerators that it holds alone while it runs.
    #[serde(rename = "acc", default, skip_serializing_if = "is_default")]
    pub accelerators: Vec<AcceleratorClaim>,
    /// Devices of the node's configuration that it may use, by name. Several workloads may share one.
    #[serde(rename = "dev", default, skip_serializing_if = "is_default")]
    pub devices: Vec<String>,
    /// When it runs; always, where nothing is said.
    #[serde(rename = "when", default, skip_serializing_if = "is_default")]
    pub schedule: Option<Schedule>,
    /// The worst supply with power and cooling at which it still runs.
    #[serde(rename = "pow", default, skip_serializing_if = "is_default")]
    pub power: PowerLevel,
    /// How its health is watched.
    #[serde(rename = "hl", default, skip_serializing_if = "is_default")]
    pub health: Health,
    /// What happens when a new version does not become healthy.
    #[serde(rename = "bad", default, skip_serializing_if = "is_default")]
    pub on_bad_update: OnBadUpdate,
    /// What it asks of the node's trustworthiness.
    #[serde(rename = "tr", default, skip_serializing_if = "is_default")]
    pub trust: TrustRequirement,
    /// Provenance of its artifacts: DSSE envelopes, fetched as artifacts are.
    #[serde(rename = "prov", default, skip_serializing_if = "is_default")]
    pub provenance: Vec<Artifact>,
    /// What that provenance must show before anything is loaded.
    #[serde(rename = "att", default, skip_serializing_if = "is_default")]
    pub attestation: Option<AttestationPolicy>,
    /// Secrets that it is given.
    #[serde(rename = "sec", default, skip_serializing_if = "is_default")]
    pub secrets: Vec<SecretUse>,
}

impl Workload {
    /// Everything that must be on the node before it can be started.
    pub fn artifacts(&self) -> impl Iterator<Item = &Artifact> {
        std::iter::once(&self.artifact)
            .chain(&self.parts)
            .chain(self.files.iter().map(|f| &f.artifact))
            .chain(&self.provenance)
    }
}
