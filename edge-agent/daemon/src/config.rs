//! `agent.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cnova_link::config::{ConfigError, IdentityConfig, ParentConfig, load_toml};
use cnova_shared::ids::{NodeId, SitePath};
use serde::{Deserialize, Deserializer};

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// This node; the certificate's CN unless it is said. Saying it guards against the wrong certificate.
    #[serde(default)]
    pub node: Option<NodeId>,
    /// Where it hangs in the tree; the certificate's unless it is said.
    #[serde(default)]
    pub site: Option<SitePath>,
    /// Everything that the agent keeps.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Runtime executables, named `cnova-runtime-<name>`.
    #[serde(default = "default_runtime_dir")]
    pub runtime_dir: PathBuf,
    /// The node above.
    pub parent: ParentConfig,
    /// Certificate, key, trust.
    pub identity: IdentityConfig,
    /// What placement may ask for.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What workloads may use.
    #[serde(default)]
    pub capacity: Capacity,
    /// Logging.
    #[serde(default)]
    pub log: LogConfig,
}

/// `[capacity]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capacity {
    /// Memory for all workloads together; half of the machine's unless it is said.
    pub memory: Option<Size>,
    /// CPU for all workloads together, thousandths of a core; all cores unless it is said.
    pub cpu_millis: Option<u64>,
    /// Disk for artifacts; 1 GiB unless it is said.
    pub artifacts: Option<Size>,
}

/// `[log]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `text` or `json`.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, or a filter as in `RUST_LOG`, which goes before this.
    pub level: Option<String>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people and the journal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Bytes, as people write them: `128MiB`, `1GiB`, `512KiB`, or a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        let text = match Written::deserialize(d) {
            Ok(Written::Bytes(bytes)) => return Ok(Self(bytes)),
            Ok(Written::Text(text)) => text,
            Err(_) => String::new(),
        };
        parse_size(&text).ok_or_else(|| {
            serde::de::Error::custom(format!("{text:?} is not a size: write \"128MiB\", \"1GiB\" or bytes"))
        })
    }
}

fn parse_size(text: &str) -> Option<Size> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(unit).map(Size)
}

fn default_state_dir() -> PathBuf {
    "/var/lib/cnova".into()
}

fn default_runtime_dir() -> PathBuf {
    "/usr/libexec/cnova".into()
}

const ARTIFACT_BYTES: u64 = 1 << 30;
/// When the machine does not tell its memory.
const MEMORY_UNKNOWN: u64 = 64 << 20;

impl AgentConfig {
    /// Reads the file and its drop-ins.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line and reason.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        load_toml(path)
    }

    /// Memory for workloads, bytes. Half of what is built in, not of what is free just now: a restart of the agent
    /// must not find less because of the workloads that run already.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.capacity.memory.map_or_else(
            || memory_total().map_or(MEMORY_UNKNOWN, |total| total / 2),
            |size| size.0,
        )
    }

    /// CPU for workloads, thousandths of a core.
    #[must_use]
    pub fn cpu_millis(&self) -> u64 {
        self.capacity
            .cpu_millis
            .unwrap_or_else(|| 1000 * std::thread::available_parallelism().map_or(1, |n| n.get() as u64))
    }

    /// Disk for artifacts, bytes.
    #[must_use]
    pub fn artifact_bytes(&self) -> u64 {
        self.capacity.artifacts.map_or(ARTIFACT_BYTES, |size| size.0)
    }

    /// The folder of instances.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.state_dir.join("run")
    }

    /// The ledger's database.
    #[must_use]
    pub fn ledger_path(&self) -> PathBuf {
        self.state_dir.join("agent.db")
    }

    /// The folder of artifacts.
    #[must_use]
    pub fn artifacts_dir(&self) -> PathBuf {
        self.state_dir.join("artifacts")
    }
}

fn memory_total() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("128MiB"), Some(Size(128 << 20)));
        assert_eq!(parse_size("1 GiB"), Some(Size(1 << 30)));
        assert_eq!(parse_size("5"), Some(Size(5)));
        for bad in ["", "MiB", "1MB", "-1", "1.5GiB", "99999999999GiB"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn this_machine_tells_its_memory() {
        assert!(memory_total().is_some_and(|m| m > 1 << 20));
    }
}
