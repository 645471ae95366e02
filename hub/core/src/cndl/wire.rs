//! The manifest as it is written, version `cnova/v1`: the source of the published JSON Schema, and of the canonical
//! form. `x-expected` is our own keyword: what a person should have written, for the error message.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::wire_attestation::AttestationPolicy;
use super::wire_conditions::{Accelerator, Health, Need, OnBadUpdate, Power, Schedule, Volume};
use super::wire_secrets::Secret;
use super::wire_values::{
    AbsolutePath, Cpu, Digest, Duration, Environment, Labels, Name, Peer, RelativePath, Replicas, Size, Text,
};

/// A CloudNova application manifest.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "CloudNova Definition Language, version 1")]
pub(super) struct Document {
    /// Version of the manifest format.
    pub(super) api_version: ApiVersion,
    /// What the document describes.
    pub(super) kind: DocumentKind,
    /// Name and labels of the application.
    pub(super) metadata: Metadata,
    /// What the artifacts of all workloads must prove; a workload's own word goes before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "AttestationPolicy", transform = drop_default)]
    pub(super) attestation_policy: Option<AttestationPolicy>,
    /// What runs.
    #[schemars(length(min = 1, max = 256), extend("x-expected" = "1 to 256 workloads"))]
    pub(super) workloads: Vec<Workload>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) enum ApiVersion {
    #[serde(rename = "cnova/v1")]
    V1,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) enum DocumentKind {
    Application,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Metadata {
    /// Name of the application, unique in the hub.
    pub(super) name: Name,
    /// Free labels for people and policies.
    #[serde(default)]
    pub(super) labels: Labels,
}

/// One Wasm module or component, one container, or one eBPF object.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Workload {
    /// Name, unique in the application.
    pub(super) name: Name,
    /// What runs it.
    pub(super) runtime: Runtime,
    /// The program.
    pub(super) artifact: Artifact,
    /// Read-only input files given to the workload.
    #[serde(default)]
    #[schemars(length(max = 64), extend("x-expected" = "at most 64 files"))]
    pub(super) files: Vec<FileInput>,
    /// Command-line arguments.
    #[serde(default)]
    #[schemars(length(max = 256), extend("x-expected" = "at most 256 arguments"))]
    pub(super) args: Vec<Text>,
    /// Environment variables.
    #[serde(default)]
    pub(super) env: Environment,
    /// Secrets of the hub that it is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-expected" = "at most 32 secrets"))]
    pub(super) secrets: Vec<Secret>,
    /// What the workload asks of a node.
    #[serde(default)]
    pub(super) resources: Resources,
    /// What it may not exceed.
    #[serde(default)]
    pub(super) limits: Limits,
    /// What it may touch.
    #[serde(default)]
    pub(super) grants: Grants,
    /// What happens when it ends.
    #[serde(default)]
    pub(super) restart: Restart,
    /// Time between the request to stop and the kill.
    #[serde(default = "default_stop_grace")]
    pub(super) stop_grace: Duration,
    /// Settings of the runtime; which there are depends on `runtime` (docs/MANIFEST.md).
    #[serde(default)]
    #[schemars(length(max = 256), extend("x-expected" = "at most 256 settings"))]
    pub(super) settings: BTreeMap<String, Value>,
    /// Writable folders that it keeps.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-expected" = "at most 16 volumes"))]
    pub(super) volumes: Vec<Volume>,
    /// Workloads of the same node that come first.
    #[serde(default)]
    #[schemars(length(max = 32), extend("x-expected" = "at most 32 needs"))]
    pub(super) needs: Vec<Need>,
    /// Accelerators that it holds alone while it runs.
    #[serde(default)]
    #[schemars(length(max = 8), extend("x-expected" = "at most 8 accelerators"))]
    pub(super) accelerators: Vec<Accelerator>,
    /// Devices of the node's configuration that it may use, by name.
    #[serde(default)]
    #[schemars(length(max = 32), extend("x-expected" = "at most 32 devices"))]
    pub(super) devices: Vec<Name>,
    /// When it runs; always, where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Schedule", transform = drop_default)]
    pub(super) schedule: Option<Schedule>,
    /// The worst supply with power and cooling at which it still runs.
    #[serde(default)]
    pub(super) power: Power,
    /// How its health is watched.
    #[serde(default)]
    pub(super) health: Health,
    /// Whether the last good version comes back when a new one does not become healthy.
    #[serde(default)]
    pub(super) on_bad_update: OnBadUpdate,
    /// What its artifacts must prove before they are loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "AttestationPolicy", transform = drop_default)]
    pub(super) attestation_policy: Option<AttestationPolicy>,
    /// Under pressure the lowest priority is shed first.
    #[serde(default = "default_priority")]
    #[schemars(range(max = 1000), extend("x-expected" = "a whole number from 0 to 1000"))]
    pub(super) priority: u16,
    /// Where it runs and how often.
    #[serde(default)]
    pub(super) placement: Placement,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum Runtime {
    Wasm,
    Container,
    Ebpf,
}

/// Content: exactly one of a file beside the manifest (uploaded by `cnova apply`) and the digest of an uploaded one.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend(
    "oneOf" = [{"required": ["file"]}, {"required": ["digest"]}],
    "x-expected" = "exactly one of \"file\" (a path relative to the manifest) and \"digest\" (sha256:<64 hex digits>)"
))]
pub(super) struct Artifact {
    /// A path relative to the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "RelativePath", transform = drop_default)]
    pub(super) file: Option<String>,
    /// SHA-256 of the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Digest", transform = drop_default)]
    pub(super) digest: Option<String>,
    /// Size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64", range(max = 9_007_199_254_740_992_u64), transform = drop_default)]
    #[schemars(extend("x-expected" = "a number of bytes"))]
    pub(super) size: Option<u64>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FileInput {
    /// Absolute path inside the workload.
    pub(super) path: AbsolutePath,
    /// Its content.
    pub(super) artifact: Artifact,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Resources {
    /// Memory, asked for and limited to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Size", transform = drop_default)]
    pub(super) memory: Option<Size>,
    /// CPU share.
    #[serde(default = "default_cpu")]
    pub(super) cpu: Cpu,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Limits {
    /// Log kept on the node.
    #[serde(default = "default_log")]
    pub(super) log: Size,
    /// Longest run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Duration", transform = drop_default)]
    pub(super) wall_time: Option<Duration>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Grants {
    /// Wall and monotonic clocks.
    #[serde(default = "yes")]
    pub(super) clocks: bool,
    /// Random numbers.
    #[serde(default = "yes")]
    pub(super) random: bool,
    /// Peers it may connect to.
    #[serde(default)]
    #[schemars(length(max = 64), extend("x-expected" = "at most 64 peers"))]
    pub(super) network: Vec<Peer>,
    /// Threads, in a Wasm workload.
    #[serde(default)]
    pub(super) threads: bool,
    /// Neural networks (wasi-nn), in a Wasm workload.
    #[serde(default)]
    pub(super) nn: bool,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Restart {
    /// When it is started again.
    #[serde(default)]
    pub(super) policy: RestartPolicy,
    /// First wait.
    #[serde(default = "default_backoff_min")]
    pub(super) backoff_min: Duration,
    /// Longest wait.
    #[serde(default = "default_backoff_max")]
    pub(super) backoff_max: Duration,
    /// Failures in a row after which it counts as crash-looping.
    #[serde(default = "default_crash_loop_after")]
    #[schemars(range(min = 1, max = 1000), extend("x-expected" = "a whole number from 1 to 1000"))]
    pub(super) crash_loop_after: u32,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub(super) enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Placement {
    /// Site paths: exact segments, `*` for one segment, `**` at the end for any tail.
    #[serde(default = "everywhere")]
    #[schemars(length(min = 1, max = 512), extend("x-expected" = "a site pattern such as plant-7/line-2/**"))]
    pub(super) site: String,
    /// Labels a node must have, all of them.
    #[serde(default)]
    pub(super) labels: Labels,
    /// On how many nodes, or on `each` one that fits.
    #[serde(default)]
    pub(super) replicas: Replicas,
    /// Replicas go to different nodes; always so today.
    #[serde(default = "yes")]
    pub(super) spread: bool,
    /// How far a node must be trusted: `none`, `tpm` (its key lies in a TPM) or `attested` (its TPM has shown what it
    /// booted and launched).
    #[serde(default, skip_serializing_if = "Trust::is_none")]
    pub(super) trust: Trust,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum Trust {
    #[default]
    None,
    Tpm,
    Attested,
}

impl Trust {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            memory: None,
            cpu: default_cpu(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            log: default_log(),
            wall_time: None,
        }
    }
}

impl Default for Grants {
    fn default() -> Self {
        Self {
            clocks: true,
            random: true,
            network: Vec::new(),
            threads: false,
            nn: false,
        }
    }
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            policy: RestartPolicy::Always,
            backoff_min: default_backoff_min(),
            backoff_max: default_backoff_max(),
            crash_loop_after: default_crash_loop_after(),
        }
    }
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            site: everywhere(),
            labels: Labels::default(),
            replicas: Replicas::default(),
            spread: true,
            trust: Trust::None,
        }
    }
}

const fn default_cpu() -> Cpu {
    Cpu(100)
}

const fn default_log() -> Size {
    Size(256 << 10)
}

const fn default_stop_grace() -> Duration {
    Duration(5_000)
}

const fn default_backoff_min() -> Duration {
    Duration(super::DEFAULT_BACKOFF_MIN_MS)
}

const fn default_backoff_max() -> Duration {
    Duration(super::DEFAULT_BACKOFF_MAX_MS)
}

const fn default_crash_loop_after() -> u32 {
    5
}

const fn default_priority() -> u16 {
    100
}

const fn yes() -> bool {
    true
}

fn everywhere() -> String {
    "**".to_owned()
}

/// An optional field is left out, never null: the `default: null` that schemars writes would contradict the type.
pub(super) fn drop_default(schema: &mut Schema) {
    schema.remove("default");
}
