//! What a workload is to be: the file the agent writes and a runtime obeys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{RAL_VERSION, SECRETS_MAX, SecretSlot};

/// One workload for one attempt at running it. Unknown fields are ignored, so that an older runtime runs a newer
/// agent's spec as long as the RAL version is the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Version of the RAL this spec is written for; see [`RAL_VERSION`].
    pub ral: u32,
    /// Name of the workload, unique on the node.
    pub workload: String,
    /// Name of the application that the workload belongs to; empty if none.
    #[serde(default)]
    pub application: String,
    /// Epoch of the twin that asked for it.
    #[serde(default)]
    pub epoch: u64,
    /// Generation of the twin that asked for it.
    #[serde(default)]
    pub generation: u64,
    /// Counts the starts of this workload in this generation, from 1.
    #[serde(default)]
    pub attempt: u64,
    /// Absolute path of the artifact's bytes.
    pub artifact: PathBuf,
    /// `sha256:` and 64 lower-case hexadecimal digits. The runtime checks the bytes against it before it uses them.
    pub digest: String,
    /// Arguments after the program's name.
    #[serde(default)]
    pub args: Vec<String>,
    /// The whole environment of the workload; nothing is inherited from the agent.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Folders and files of the host that the workload may see.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// How much it may use.
    #[serde(default)]
    pub limits: Limits,
    /// What it may reach beyond computing.
    #[serde(default)]
    pub grants: Grants,
    /// How long a stop may take before the runtime ends the workload by force, in milliseconds.
    #[serde(default = "default_grace_ms")]
    pub stop_grace_ms: u64,
    /// What only this kind of runtime understands; see [`crate::settings`].
    #[serde(default)]
    pub settings: serde_json::Value,
    /// Files that the artifact refers to by digest, such as the layers of a container image.
    #[serde(default)]
    pub parts: Vec<Part>,
    /// Devices of the host that the workload may use: leased accelerators and devices named by the node's configuration.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// A folder that all workloads of this runtime share and that outlives them, for what is costly to make anew, such
    /// as unpacked layers. Absolute; mode 0700.
    #[serde(default)]
    pub cache: Option<PathBuf>,
    /// Secrets that come on the standard input, in this order; see [`crate::take_secrets`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretSlot>,
}

/// A file that the artifact refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// `sha256:` and 64 lower-case hexadecimal digits. The runtime checks the bytes against it before it uses them.
    pub digest: String,
    /// Absolute path of the bytes.
    pub path: PathBuf,
}

/// A device of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// What the workload calls it: the name of a configured device, or the id of a leased accelerator (`hailo0`).
    pub name: String,
    /// Kind of the accelerator (`hailo-8`, `intel-npu`); empty for other devices.
    #[serde(default)]
    pub kind: String,
    /// Its device nodes, absolute.
    #[serde(default)]
    pub nodes: Vec<PathBuf>,
}

/// A folder or file of the host inside the workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path as the workload sees it.
    pub guest: PathBuf,
    /// Absolute path on the host.
    pub host: PathBuf,
    /// Whether the workload may change it.
    #[serde(default)]
    pub writable: bool,
}

/// Upper bounds on what a workload uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Memory of the workload in bytes (linear memory for Wasm, the cgroup for a container).
    pub memory_bytes: u64,
    /// Share of one core in thousandths: 1000 is a whole core, 0 sets no limit.
    pub cpu_millis: u32,
    /// Both log files together, in bytes; raised to [`crate::LOG_BYTES_MIN`].
    pub log_bytes: u64,
    /// The workload is ended after this many seconds.
    pub wall_seconds: Option<u64>,
    /// Elements of all tables of a Wasm instance together.
    pub table_elements: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            memory_bytes: 64 << 20,
            cpu_millis: 0,
            log_bytes: 1 << 20,
            wall_seconds: None,
            table_elements: 100_000,
        }
    }
}

/// What a workload may reach. The default is nothing but the clocks and random numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Grants {
    /// Read the real clocks. Without it they stand still at zero, and sleeping is still possible.
    pub clocks: bool,
    /// Unpredictable random numbers. Without it they are the same on every run.
    pub random: bool,
    /// Peers that may be connected to, each `host:port`; empty is no network.
    pub network: Vec<String>,
    /// Threads in a Wasm workload.
    pub threads: bool,
    /// wasi-nn in a Wasm workload.
    pub nn: bool,
}

impl Default for Grants {
    fn default() -> Self {
        Grants {
            clocks: true,
            random: true,
            network: Vec::new(),
            threads: false,
            nn: false,
        }
    }
}

/// What a runtime says about itself when asked to `describe`: one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Version of the RAL it speaks.
    pub ral: u32,
    /// Name of the runtime as manifests use it: `wasm`, `container`, `ebpf`.
    pub runtime: String,
    /// Version of the runtime executable.
    pub version: String,
    /// Targets whose artifacts it runs, such as `x86_64-unknown-linux-gnu`.
    pub targets: Vec<String>,
    /// Engine and exact version; a precompiled artifact must be made for this one.
    #[serde(default)]
    pub engine: String,
    /// Optional abilities, such as `component`.
    #[serde(default)]
    pub features: Vec<String>,
}

/// Why a spec was refused before anything was started.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Written for another version of this interface.
    #[error("spec is for RAL {found}, this side speaks RAL {RAL_VERSION}: update the older of agent and runtime")]
    Version {
        /// The version that the spec names.
        found: u32,
    },
    /// A path that must not depend on the working directory does.
    #[error("{field} `{path}` is not an absolute path without `..`")]
    Path {
        /// Which field of the spec.
        field: &'static str,
        /// What it holds.
        path: PathBuf,
    },
    /// Not a SHA-256 digest.
    #[error("digest `{digest}` is not `sha256:` and 64 lower-case hexadecimal digits")]
    Digest {
        /// What the spec holds.
        digest: String,
    },
    /// More secrets than a workload may have, or one that cannot be given.
    #[error("secrets: {0}")]
    Secrets(String),
    /// A field that must hold something is empty.
    #[error("{field} is empty")]
    Empty {
        /// Which field of the spec.
        field: &'static str,
    },
}

impl Spec {
    /// Checks what holds for every runtime; both the agent and the runtime call it.
    pub fn check(&self) -> Result<(), SpecError> {
        if self.ral != RAL_VERSION {
            return Err(SpecError::Version { found: self.ral });
        }
        if self.workload.is_empty() {
            return Err(SpecError::Empty { field: "workload" });
        }
        check_path("artifact", &self.artifact)?;
        for mount in &self.mounts {
            check_path("mounts.guest", &mount.guest)?;
            check_path("mounts.host", &mount.host)?;
        }
        for part in &self.parts {
            check_path("parts.path", &part.path)?;
            check_digest(&part.digest)?;
        }
        for node in self.devices.iter().flat_map(|d| &d.nodes) {
            check_path("devices.nodes", node)?;
        }
        if let Some(cache) = &self.cache {
            check_path("cache", cache)?;
        }
        self.check_secrets()?;
        check_digest(&self.digest)
    }

    fn check_secrets(&self) -> Result<(), SpecError> {
        if self.secrets.len() > SECRETS_MAX {
            let text = format!("{} of them, at most {SECRETS_MAX}", self.secrets.len());
            return Err(SpecError::Secrets(text));
        }
        for slot in &self.secrets {
            match slot {
                SecretSlot::File(path) => check_path("secrets.file", path)?,
                SecretSlot::Env(name) if name.is_empty() || name.contains(['=', '\0']) => {
                    return Err(SpecError::Secrets(format!(
                        "`{}` is not a variable's name",
                        name.escape_debug()
                    )));
                }
                SecretSlot::Env(_) => {}
            }
        }
        Ok(())
    }

    /// The 32 bytes of [`Spec::digest`], or nothing if it is malformed.
    pub fn sha256(&self) -> Option<[u8; 32]> {
        parse_digest(&self.digest)
    }
}

/// The 32 bytes of `sha256:` and 64 lower-case hexadecimal digits, or nothing if it is malformed.
pub fn parse_digest(text: &str) -> Option<[u8; 32]> {
    let hex = text.strip_prefix("sha256:")?.as_bytes();
    if hex.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

fn check_digest(text: &str) -> Result<(), SpecError> {
    parse_digest(text).map(|_| ()).ok_or_else(|| SpecError::Digest {
        digest: text.to_owned(),
    })
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

fn check_path(field: &'static str, path: &Path) -> Result<(), SpecError> {
    let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
    if path.is_absolute() && !climbs {
        return Ok(());
    }
    Err(SpecError::Path {
        field,
        path: path.to_owned(),
    })
}

fn default_grace_ms() -> u64 {
    10_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> Spec {
        serde_json::from_value(serde_json::json!({
            "ral": 1, "workload": "w", "artifact": "/a", "digest": format!("sha256:{}", "0f".repeat(32)),
            "a_field_of_the_future": true,
        }))
        .unwrap()
    }

    #[test]
    fn a_minimal_spec_has_safe_defaults_and_ignores_unknown_fields() {
        let spec = minimal();
        spec.check().unwrap();
        assert_eq!(spec.sha256(), Some([0x0f; 32]));
        assert!(spec.grants.network.is_empty());
        assert_eq!(spec.limits, Limits::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        type Spoil = fn(&mut Spec);
        let cases: [(Spoil, &str); 9] = [
            (|s| s.ral = 2, "RAL 2"),
            (|s| s.workload.clear(), "workload is empty"),
            (|s| s.artifact = "rel".into(), "artifact `rel`"),
            (|s| s.artifact = "/x/../y".into(), "`/x/../y`"),
            (|s| s.digest = "sha256:00".into(), "sha256:00"),
            (|s| s.digest.replace_range(7..9, "0G"), "0G0f"),
            (|s| s.secrets = vec![SecretSlot::File("x".into())], "secrets.file `x`"),
            (
                |s| s.secrets = vec![SecretSlot::Env("A=B".into())],
                "`A=B` is not a variable's name",
            ),
            (
                |s| s.secrets = vec![SecretSlot::Env("A".into()); 33],
                "33 of them, at most 32",
            ),
        ];
        for (spoil, expected) in cases {
            let mut spec = minimal();
            spoil(&mut spec);
            let message = spec.check().unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
