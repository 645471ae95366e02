//! What runs on this machine, and from which partition: by the kernel, not by what anybody wrote down.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cnova_agent_core::system::{OtherSlot, Running};
use cnova_shared::ids::Digest;
use thiserror::Error;

use super::boot_control::EntryState;
use super::{SlotError, fail};

/// Partitions of slots are called so, and the slot.
const ROOT: &str = "root-";
pub(super) const SLOTS: [&str; 2] = ["a", "b"];

/// Why the system of this machine cannot be changed.
#[derive(Debug, Error)]
pub enum Unfit {
    /// The configuration says so.
    #[error("[system] loader is \"none\" in this node's configuration: its system is not changed by twins")]
    Configured,
    /// U-Boot, and nobody said where its environment is.
    #[error("[system] loader is \"u-boot\", and [system.environment] does not say where its environment is")]
    NoEnvironment,
    /// There is no place for boot files.
    #[error("{0} is no folder: the boot files of the slots are there ([system] boot_dir)")]
    NoBootFolder(PathBuf),
    /// A file that tells it cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The kernel was not told which root it starts.
    #[error("this machine was not started from a slot: its kernel's command line has no cnova.hash=")]
    NoHash,
    /// What runs does not say what it is.
    #[error("{path} has no {name}=, so nobody knows what a bundle must be for", path = path.display())]
    NoName {
        /// The file.
        path: PathBuf,
        /// What is missing.
        name: &'static str,
    },
    /// The root's partition is not one of the two.
    #[error("the root of this machine is on {found:?}, and slots are partitions called root-a and root-b")]
    NoSlot {
        /// What was found.
        found: Vec<String>,
    },
}

/// A slot's partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// `a` or `b`.
    pub slot: String,
    /// Its device.
    pub device: PathBuf,
}

/// What runs.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The slot that runs.
    pub slot: String,
    compatible: String,
    version: String,
    root_hash: Digest,
    boot: String,
    other: Partition,
}

fn read(root: &Path, path: &str) -> Result<String, Unfit> {
    let path = root.join(path);
    fs::read_to_string(&path).map_err(|source| Unfit::Read { path, source })
}

/// The names of a folder's entries; none where it is not there.
fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

impl Machine {
    /// Looks at the machine whose `/proc`, `/sys`, `/dev` and `/etc` are below `root`.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn look(root: &Path) -> Result<Self, Unfit> {
        let line = read(root, "proc/cmdline")?;
        let hash = line.split_whitespace().find_map(|w| w.strip_prefix("cnova.hash="));
        let root_hash = hash
            .and_then(|h| format!("sha256:{h}").parse().ok())
            .ok_or(Unfit::NoHash)?;
        let release = read(root, "etc/os-release")?;
        let said = |name: &'static str| {
            let value = release.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
            let value = value.map(|v| v.trim_matches('"').to_owned());
            value.ok_or_else(|| Unfit::NoName {
                path: root.join("etc/os-release"),
                name,
            })
        };
        let (compatible, version) = (said("CNOVA_BOARD")?, said("IMAGE_VERSION")?);
        let boot = read(root, "proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let under = under_root(root)?;
        let partitions = partitions(root);
        let runs: Vec<&(String, Partition)> = partitions.iter().filter(|(name, _)| under.contains(name)).collect();
        let [(_, running)] = runs.as_slice() else {
            return Err(Unfit::NoSlot { found: under });
        };
        let others: Vec<&Partition> = partitions
            .iter()
            .map(|(_, p)| p)
            .filter(|p| p.slot != running.slot)
            .collect();
        let [other] = others.as_slice() else {
            let found = partitions.iter().map(|(_, p)| p.device.display().to_string()).collect();
            return Err(Unfit::NoSlot { found });
        };
        Ok(Self {
            slot: running.slot.clone(),
            compatible,
            version,
            root_hash,
            boot,
            other: (*other).clone(),
        })
    }

    /// The slot that does not run: the only one that is ever written.
    #[must_use]
    pub const fn other(&self) -> &Partition {
        &self.other
    }

    /// For the core.
    #[must_use]
    pub fn running(&self, other: OtherSlot, is_counted: bool) -> Running {
        Running {
            compatible: self.compatible.clone(),
            version: self.version.clone(),
            slot: self.slot.clone(),
            root_hash: self.root_hash,
            machine_boot: self.boot.clone(),
            other,
            is_counted,
        }
    }
}

impl From<EntryState> for OtherSlot {
    fn from(state: EntryState) -> Self {
        match state {
            EntryState::None => Self::None,
            EntryState::Counted { used: 0, .. } => Self::Untried,
            EntryState::Counted { .. } | EntryState::Good => Self::Tried,
        }
    }
}

/// Whether a folder is on a file system that was mounted for it, or above it: a slot's own root has no place for boot files.
///
/// # Errors
/// [`SlotError`].
pub(super) fn is_mounted(root: &Path, folder: &Path) -> Result<bool, SlotError> {
    let path = root.join("proc/self/mountinfo");
    let mounts = fs::read_to_string(&path).map_err(fail("read", &path))?;
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.any(|point| point != "/" && folder.starts_with(point)))
}

/// The names of the block devices under the root file system: itself, or those that dm-verity reads.
fn under_root(root: &Path) -> Result<Vec<String>, Unfit> {
    let mounts = read(root, "proc/self/mountinfo")?;
    let number = mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        (fields.get(4) == Some(&"/")).then(|| fields.get(2).map(|n| (*n).to_owned()))?
    });
    let found = || Vec::from_iter(number.clone());
    let number = number.clone().ok_or_else(|| Unfit::NoSlot { found: found() })?;
    let device = root.join("sys/dev/block").join(&number);
    let slaves = names(&device.join("slaves"));
    if !slaves.is_empty() {
        return Ok(slaves);
    }
    let uevent = fs::read_to_string(device.join("uevent")).unwrap_or_default();
    let name = uevent
        .lines()
        .find_map(|l| l.strip_prefix("DEVNAME=").map(str::to_owned));
    Ok(vec![name.unwrap_or(number)])
}

/// The partitions of slots, with the kernel's names of them.
fn partitions(root: &Path) -> Vec<(String, Partition)> {
    let class = root.join("sys/class/block");
    let partition = |name: String| {
        let uevent = fs::read_to_string(class.join(&name).join("uevent")).ok()?;
        let called = uevent.lines().find_map(|l| l.strip_prefix("PARTNAME="))?;
        let slot = called.strip_prefix(ROOT).filter(|s| SLOTS.contains(s))?.to_owned();
        let device = root.join("dev").join(&name);
        Some((name, Partition { slot, device }))
    };
    names(&class).into_iter().filter_map(partition).collect()
}
