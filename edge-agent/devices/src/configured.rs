//! Devices that the operator names for workloads: serial ports, fieldbus cards, cameras.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::glob;
use crate::tree::{Kind, Tree};

/// Configured devices of one node.
pub const DEVICES_MAX: usize = 256;
/// Paths and patterns of one device.
pub const DEVICE_PATTERNS_MAX: usize = 32;
/// Device nodes of one device.
pub const DEVICE_NODES_MAX: usize = 64;
/// Bytes of a name.
const NAME_BYTES: usize = 63;
/// Bytes of a path or pattern.
const PATTERN_BYTES: usize = 255;

/// One `[[devices]]` of the agent's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// What manifests call it: lower-case letters, digits and inner `-`.
    pub name: String,
    /// Paths below `/dev`: device nodes, links to them such as those in `/dev/serial/by-id`, or patterns with `*`, `?`
    /// and `[a-c]`. Each must lead to a device for the whole to be there. What they lead to is looked up anew for each
    /// lease.
    pub nodes: Vec<String>,
    /// Whether block devices are given out too. A workload with a disk of the node can change every file on it.
    #[serde(default)]
    pub allow_block: bool,
    /// Guarded devices that are given out nevertheless, by the path of their node: TPMs (`/dev/tpm0` and `/dev/tpmrm0`
    /// are two), watchdogs (opening one starts it), and the registers of the CPU (`/dev/cpu/0/msr`).
    #[serde(default)]
    pub allow: Vec<String>,
}

/// Why a configured device is wrong or cannot be given out.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// More than the limit of something.
    #[error("devices: {what} are more than {limit}: name fewer, or use a pattern")]
    TooMany {
        /// What there is too much of, and where.
        what: String,
        /// The limit.
        limit: usize,
    },
    /// A name that manifests cannot use.
    #[error(
        "devices: name {name:?} is not valid: use 1 to 63 lower-case letters, digits and `-`, beginning and ending \
         with a letter or digit"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// Two devices of one name.
    #[error("devices: the name {name:?} is used twice: rename one of them")]
    Twice {
        /// The name.
        name: String,
    },
    /// A device without nodes.
    #[error("device {name}: nodes is empty: name at least one path below /dev")]
    Empty {
        /// The device.
        name: String,
    },
    /// A path that is not a plain path below `/dev`.
    #[error("device {name}: {path:?} is not a path below /dev of at most 255 bytes without `..`")]
    Path {
        /// The device.
        name: String,
        /// The path or pattern.
        path: String,
    },
    /// A link that leads out of `/dev`.
    #[error("device {name}: {path} leads to {target}, outside of /dev: name the device node itself",
        path = path.display(), target = target.display())]
    Outside {
        /// The device.
        name: String,
        /// The path.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// No device of this name is configured.
    #[error("no device is named {name:?}: add [[devices]] with this name to the agent's configuration")]
    Unknown {
        /// The name.
        name: String,
    },
    /// Nothing is there now; it may come.
    #[error("device {name}: {path} is not there: plug it in, load its driver, or correct the path")]
    Absent {
        /// The device.
        name: String,
        /// The path or pattern.
        path: String,
    },
    /// The path cannot be looked at.
    #[error("device {name}: {path} cannot be looked at: {source}", path = path.display())]
    Unreadable {
        /// The device.
        name: String,
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or folder.
    #[error("device {name}: {path} is not a device node but a file or folder", path = path.display())]
    NotADevice {
        /// The device.
        name: String,
        /// The path.
        path: PathBuf,
    },
    /// A disk.
    #[error("device {name}: {path} is a block device: set allow_block = true if workloads may have it",
        path = path.display())]
    Block {
        /// The device.
        name: String,
        /// The path.
        path: PathBuf,
    },
    /// A device that would give a workload the whole machine.
    #[error("device {name}: {path} is {what}, which is never given to workloads: remove it", path = path.display())]
    Forbidden {
        /// The device.
        name: String,
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A device that the agent or the system depends on.
    #[error("device {name}: {path} is {what}: add {path:?} to allow if workloads may have it", path = path.display())]
    Guarded {
        /// The device.
        name: String,
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
}

impl DeviceError {
    /// Whether it may pass by itself when somebody plugs the device in. All others are faults of the configuration.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(self, DeviceError::Absent { .. })
    }
}

/// All faults of the configured devices, one a line. Never empty.
#[derive(Debug)]
pub struct DeviceErrors(
    /// The faults, in the order of the configuration.
    pub Vec<DeviceError>,
);

impl fmt::Display for DeviceErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for DeviceErrors {}

/// Configured devices without faults.
#[derive(Clone, Debug)]
pub struct ConfiguredDevices {
    tree: Tree,
    devices: Vec<DeviceConfig>,
}

impl ConfiguredDevices {
    /// Checks the configuration, and what it leads to as far as that is there. A device that is absent is no fault: it
    /// may be plugged in later; see [`ConfiguredDevices::status`].
    ///
    /// # Errors
    /// All faults together.
    pub fn check(root: &Path, devices: Vec<DeviceConfig>) -> Result<Self, DeviceErrors> {
        let mut errors = Vec::new();
        if devices.len() > DEVICES_MAX {
            let what = format!("{} entries", devices.len());
            return Err(DeviceErrors(vec![DeviceError::TooMany {
                what,
                limit: DEVICES_MAX,
            }]));
        }
        let mut names = BTreeSet::new();
        for device in &devices {
            if !names.insert(&device.name) {
                errors.push(DeviceError::Twice {
                    name: device.name.clone(),
                });
            }
            errors.extend(faults(device));
        }
        let checked = Self {
            tree: Tree::new(root),
            devices,
        };
        if errors.is_empty() {
            let found = checked.status().into_iter().filter_map(|(_, result)| result.err());
            errors.extend(found.filter(|e| !e.is_absence()));
        }
        if errors.is_empty() {
            Ok(checked)
        } else {
            Err(DeviceErrors(errors))
        }
    }

    /// The device nodes that a device stands for now: absolute, without links, each once, in order.
    ///
    /// # Errors
    /// [`DeviceError`] if it is unknown, absent, or has become something that is not given out.
    pub fn resolve(&self, name: &str) -> Result<Vec<PathBuf>, DeviceError> {
        let device = self.devices.iter().find(|d| d.name == name);
        let device = device.ok_or_else(|| DeviceError::Unknown { name: name.to_owned() })?;
        self.nodes(device)
    }

    /// All devices in the order of the configuration, with their nodes or why they have none.
    #[must_use]
    pub fn status(&self) -> Vec<(&str, Result<Vec<PathBuf>, DeviceError>)> {
        self.devices.iter().map(|d| (d.name.as_str(), self.nodes(d))).collect()
    }

    /// The names of the devices that could be given out now.
    #[must_use]
    pub fn available(&self) -> Vec<String> {
        let present = self.status().into_iter().filter(|(_, nodes)| nodes.is_ok());
        present.map(|(name, _)| name.to_owned()).collect()
    }

    fn nodes(&self, device: &DeviceConfig) -> Result<Vec<PathBuf>, DeviceError> {
        let mut found = BTreeSet::new();
        for pattern in &device.nodes {
            let globbed = glob::is_pattern(pattern);
            let paths = if globbed {
                glob::expand(&self.tree, pattern, DEVICE_NODES_MAX)
            } else {
                vec![PathBuf::from(pattern)]
            };
            let before = found.len();
            let mut matched = false;
            for path in paths {
                let node = self.node(device, pattern, &path, globbed)?;
                matched |= node.is_some();
                found.extend(node);
            }
            if !matched {
                return Err(absent(device, pattern));
            }
            if found.len() > DEVICE_NODES_MAX {
                let what = format!("the nodes of {} ({before} and those of {pattern})", device.name);
                return Err(DeviceError::TooMany {
                    what,
                    limit: DEVICE_NODES_MAX,
                });
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Where one path leads, if a workload may have that. A pattern passes folders over.
    fn node(
        &self,
        device: &DeviceConfig,
        pattern: &str,
        path: &Path,
        globbed: bool,
    ) -> Result<Option<PathBuf>, DeviceError> {
        let name = || device.name.clone();
        let unreadable = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => absent(device, pattern),
            _ => DeviceError::Unreadable {
                name: name(),
                path: path.to_owned(),
                source,
            },
        };
        let node = self.tree.resolve(path).map_err(unreadable)?;
        if !below_dev(&node) {
            return Err(DeviceError::Outside {
                name: name(),
                path: path.to_owned(),
                target: node,
            });
        }
        let (number, block) = match self.tree.kind(&node).map_err(unreadable)? {
            Kind::Char(major, minor) => ((major, minor), false),
            Kind::Block(major, minor) => ((major, minor), true),
            Kind::Folder if globbed => return Ok(None),
            Kind::Folder | Kind::Other => {
                return Err(DeviceError::NotADevice {
                    name: name(),
                    path: node,
                });
            }
        };
        if block && !device.allow_block {
            return Err(DeviceError::Block {
                name: name(),
                path: node,
            });
        }
        if let Some(what) = forbidden(&node, number, block) {
            return Err(DeviceError::Forbidden {
                name: name(),
                path: node,
                what,
            });
        }
        let allowed = device.allow.iter().any(|a| Path::new(a) == node);
        match guarded(&self.tree, &node, number, block) {
            Some(what) if !allowed => Err(DeviceError::Guarded {
                name: name(),
                path: node,
                what,
            }),
            _ => Ok(Some(node)),
        }
    }
}

fn absent(device: &DeviceConfig, pattern: &str) -> DeviceError {
    DeviceError::Absent {
        name: device.name.clone(),
        path: pattern.to_owned(),
    }
}

/// What is wrong with an entry as it is written.
fn faults(device: &DeviceConfig) -> Vec<DeviceError> {
    let name = || device.name.clone();
    let mut errors = Vec::new();
    if !is_name(&device.name) {
        errors.push(DeviceError::Name {
            name: device.name.chars().take(80).collect(),
        });
    }
    if device.nodes.is_empty() {
        errors.push(DeviceError::Empty { name: name() });
    }
    for (list, what) in [(&device.nodes, "nodes"), (&device.allow, "allow")] {
        if list.len() > DEVICE_PATTERNS_MAX {
            let what = format!("the paths in {what} of {}", device.name);
            errors.push(DeviceError::TooMany {
                what,
                limit: DEVICE_PATTERNS_MAX,
            });
        }
        let wrong = list
            .iter()
            .filter(|p| p.len() > PATTERN_BYTES || !below_dev(Path::new(p)));
        errors.extend(wrong.map(|p| DeviceError::Path {
            name: name(),
            path: p.chars().take(PATTERN_BYTES).collect(),
        }));
    }
    errors
}

fn is_name(name: &str) -> bool {
    let edge = |c: Option<&u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inner = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-';
    let bytes = name.as_bytes();
    bytes.len() <= NAME_BYTES && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
}

/// Something below `/dev`, without `..`.
fn below_dev(path: &Path) -> bool {
    let mut parts = path
        .strip_prefix("/dev")
        .into_iter()
        .flat_map(Path::components)
        .peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// What a device is if no workload may ever have it. By number as well as by name: a node can be made under any name.
fn forbidden(node: &Path, number: (u32, u32), block: bool) -> Option<&'static str> {
    if block {
        return None;
    }
    let what = match (number, node.to_str()) {
        ((1, 1), _) | (_, Some("/dev/mem")) => "the machine's memory",
        ((1, 2), _) | (_, Some("/dev/kmem")) => "the kernel's memory",
        ((1, 4), _) | (_, Some("/dev/port")) => "the machine's I/O ports",
        _ => return None,
    };
    Some(what)
}

/// What a device is if a workload may only have it when the operator says so.
fn guarded(tree: &Tree, node: &Path, number: (u32, u32), block: bool) -> Option<&'static str> {
    const TPM: &str = "a TPM, which may hold the keys of this node";
    const WATCHDOG: &str = "a watchdog, which restarts the machine once it was opened";
    const MSR: &str = "the registers of a CPU";
    if block {
        return None;
    }
    let device = PathBuf::from(format!("/sys/dev/char/{}:{}", number.0, number.1));
    match (number, tree.link_name(&device, "subsystem").as_deref()) {
        ((10, 130), _) | (_, Some("watchdog")) => return Some(WATCHDOG),
        ((10, 224), _) | (_, Some("tpm" | "tpmrm")) => return Some(TPM),
        ((202, _), _) | (_, Some("msr")) => return Some(MSR),
        _ => {}
    }
    let name = node.file_name()?.to_str()?;
    let numbered = |prefix: &str| {
        let rest = name.strip_prefix(prefix);
        rest.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
    };
    if numbered("watchdog") {
        Some(WATCHDOG)
    } else if numbered("tpm") || numbered("tpmrm") {
        Some(TPM)
    } else {
        None
    }
}
