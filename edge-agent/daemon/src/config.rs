//! `agent.toml`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cnova_attestation::parent::ParentTrust;
use cnova_devices::{Capacity as Measured, Configured, DeviceConfig, Groups, Thresholds};
use cnova_link::config::{ConfigError, EnrolmentConfig, IdentityConfig, ParentConfig, load_toml};
use cnova_shared::ids::{NodeId, SitePath};
use serde::{Deserialize, Deserializer};

use crate::folders::Folders;
use crate::system::SystemConfig;

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
    /// How it gets its certificate; by hand where nothing is said.
    #[serde(default)]
    pub enrolment: Option<EnrolmentConfig>,
    /// What placement may ask for.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What workloads may use.
    #[serde(default)]
    pub capacity: Capacity,
    /// How runtimes are started.
    #[serde(default)]
    pub runtime: RuntimeConfig,
    /// Devices that workloads may ask for by name.
    #[serde(default)]
    pub devices: Vec<DeviceConfig>,
    /// When the supply with power and cooling counts as bad.
    #[serde(default)]
    pub power: Thresholds,
    /// Where the machine is read from.
    #[serde(default)]
    pub sensors: SensorsConfig,
    /// What the TPM is asked for.
    #[serde(default)]
    pub attestation: AttestationConfig,
    /// How the operating system is changed.
    #[serde(default)]
    pub system: SystemConfig,
    /// Logging.
    #[serde(default)]
    pub log: LogConfig,
}

/// `[attestation]`, for a node with a TPM.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttestationConfig {
    /// The registers of the boot that are quoted; 0 to 7 and 11 unless it is said.
    pub pcrs: Vec<u8>,
    /// The register that launches are measured into; the hub's configuration must say the same.
    pub launch_pcr: u8,
    /// Whether anything is taken only from a parent that is attested itself.
    pub parent: ParentTrust,
}

impl Default for AttestationConfig {
    fn default() -> Self {
        Self {
            pcrs: cnova_attestation::DEFAULT_BOOT_PCRS.to_vec(),
            launch_pcr: cnova_attestation::DEFAULT_LAUNCH_PCR,
            parent: ParentTrust::default(),
        }
    }
}

impl AttestationConfig {
    /// What is quoted: the registers of the boot, and the launch register.
    #[must_use]
    pub fn quoted(&self) -> Vec<u8> {
        let all: BTreeSet<u8> = self.pcrs.iter().copied().chain([self.launch_pcr]).collect();
        all.into_iter().collect()
    }
}

/// `[runtime]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeConfig {
    /// The control group below which those of instances are made, from the root group on; `cnova` unless it is said, or
    /// where that is not permitted, below the agent's own.
    pub cgroup_parent: Option<String>,
    /// Seconds within which a runtime must have its workload running, or say that it still prepares it.
    pub start_seconds: u64,
    /// Seconds within which a runtime that prepares must have its workload running: unpacking an image takes its time.
    pub prepare_seconds: u64,
}

/// [`RuntimeConfig::start_seconds`] unless it is said.
pub const START_SECONDS: u64 = 30;
/// [`RuntimeConfig::prepare_seconds`] unless it is said.
pub const PREPARE_SECONDS: u64 = 600;

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            cgroup_parent: None,
            start_seconds: START_SECONDS,
            prepare_seconds: PREPARE_SECONDS,
        }
    }
}

/// `[sensors]`: not for operators.
#[doc(hidden)]
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SensorsConfig {
    /// The root of sysfs, procfs and `/dev`: a folder made by a test.
    pub root: PathBuf,
    /// Seconds between two readings.
    pub seconds: u64,
}

/// [`SensorsConfig::seconds`] unless it is said.
const SENSOR_SECONDS: u64 = 5;

impl Default for SensorsConfig {
    fn default() -> Self {
        Self {
            root: "/".into(),
            seconds: SENSOR_SECONDS,
        }
    }
}

/// `[capacity]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capacity {
    /// Memory for all workloads together; what the machine has without `reserve` unless it is said.
    pub memory: Option<Size>,
    /// Memory that the system and the agent keep; a tenth, and from 64 MiB to 1 GiB, unless it is said. Without effect
    /// where `memory` is said.
    pub reserve: Option<Size>,
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
/// When the machine does not tell what it has.
const UNKNOWN: Measured = Measured {
    memory_bytes: 128 << 20,
    cpu_millis: cnova_devices::CPU_MILLIS_UNKNOWN,
};

impl AgentConfig {
    /// Reads the file and its drop-ins.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line and reason.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        load_toml(path)
    }

    /// What workloads may use, given the control groups whose limits count. What is configured is taken as it is; the
    /// rest is measured as what is built in, not as what is free just now: a restart of the agent must not find less
    /// because of the workloads that run already.
    #[must_use]
    pub fn capacity(&self, limits: &Groups) -> Measured {
        let total = cnova_devices::measure_in(&self.sensors.root, limits).unwrap_or_else(|error| {
            tracing::warn!(%error, "the machine does not say what it has");
            UNKNOWN
        });
        let configured = Configured {
            reserve_memory_bytes: self.capacity.reserve.map(|size| size.0),
            ..Configured::default()
        };
        let measured = cnova_devices::reserve(total, &configured);
        Measured {
            memory_bytes: self.capacity.memory.map_or(measured.memory_bytes, |size| size.0),
            cpu_millis: self.capacity.cpu_millis.unwrap_or(measured.cpu_millis),
        }
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

    /// The folders that outlive instances.
    pub(crate) fn folders(&self) -> Folders {
        Folders {
            cache: self.state_dir.join("cache"),
            volumes: self.state_dir.join("volumes"),
        }
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
    fn what_is_not_configured_is_measured_and_the_reserve_is_left() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc/self")).unwrap();
        std::fs::write(root.path().join("proc/meminfo"), "MemTotal:  1048576 kB\n").unwrap();
        std::fs::write(root.path().join("proc/self/status"), "Cpus_allowed_list:\t0-3\n").unwrap();
        let capacity = |text: &str| {
            let text = format!(
                "[parent]\nnode = \"a\"\naddress = \"a:1\"\n[identity]\ncertificate = \"a\"\nkey = \"a\"\n\
                 trust_bundle = \"a\"\n[sensors]\nroot = \"{}\"\n[capacity]\n{text}",
                root.path().display()
            );
            let path = root.path().join("agent.toml");
            std::fs::write(&path, text).unwrap();
            let c = AgentConfig::load(&path).unwrap().capacity(&Groups::default());
            (c.memory_bytes >> 20, c.cpu_millis)
        };
        assert_eq!(capacity("reserve = \"24MiB\""), (1000, 4000));
        assert_eq!(capacity(""), (921, 4000));
        assert_eq!(capacity("memory = \"4GiB\"\ncpu_millis = 8000"), (4096, 8000));
        std::fs::remove_file(root.path().join("proc/meminfo")).unwrap();
        assert_eq!(capacity(""), (64, 1000));
    }
}
