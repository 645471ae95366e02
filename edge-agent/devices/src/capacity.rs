//! How much memory and CPU the node has for workloads.
//!
//! Memory: `MemTotal`, or the lowest limit of the control groups above this process. CPU: the CPUs that this process
//! may run on, or the lowest CPU quota of those groups.
//!
//! Of the memory, the system and the agent keep a tenth, at least [`RESERVE_MIN`] and at most [`RESERVE_MAX`], but
//! never more than half of all. In figures: of 128 MiB workloads get 64, of 256 MiB 192, of 512 MiB 448, of 1 GiB
//! 921 MiB, of 4 GiB 3.6, of 16 GiB 15. 64 MiB is what a small Debian or Yocto system without desktop and the agent
//! need; what grows with the machine beyond that is page tables and caches. CPU can be shared out moment by moment, so
//! nothing of it is kept unless it is configured: a node with one core admits a workload that asks for a whole core.

use std::io;
use std::path::Path;

use crate::cgroup::{Controller, Groups};
use crate::tree::{ATTRIBUTE_BYTES, PROC_BYTES, Tree};

/// The least memory that is kept for the system, unless that were more than half of all.
pub const RESERVE_MIN: u64 = 64 << 20;
/// The most memory that is kept for the system unless more is configured.
pub const RESERVE_MAX: u64 = 1 << 30;
/// The share of the memory that is kept for the system: one part in this many.
const RESERVE_PART: u64 = 10;
/// CPU of a machine that does not say which CPUs may be used.
pub const CPU_MILLIS_UNKNOWN: u64 = 1000;
/// CPUs that are counted at most; a list in `/proc` that names more is wrong.
const CPUS_MAX: u64 = 8192;

/// Memory and CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Thousandths of a core.
    pub cpu_millis: u64,
}

/// What the operator says about capacity; all of it may be left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Configured {
    /// Memory for all workloads together. Bounded by what there is; the reserve is then the operator's concern.
    pub memory_bytes: Option<u64>,
    /// CPU for all workloads together. Bounded by what there is.
    pub cpu_millis: Option<u64>,
    /// Memory that is kept for the system in place of the default. Without effect where `memory_bytes` is said.
    pub reserve_memory_bytes: Option<u64>,
    /// CPU that is kept for the system; none unless it is said. Without effect where `cpu_millis` is said.
    pub reserve_cpu_millis: Option<u64>,
}

/// Why the capacity is not known.
#[derive(Debug, thiserror::Error)]
pub enum CapacityError {
    /// `/proc/meminfo` cannot be read.
    #[error("/proc/meminfo cannot be read ({source}): mount proc, or set capacity.memory in the agent's configuration")]
    Unreadable {
        /// What the system said.
        source: io::Error,
    },
    /// A line of `/proc/meminfo` is missing or odd.
    #[error("/proc/meminfo has no usable line {field}: set capacity.memory in the agent's configuration")]
    Field {
        /// Which line.
        field: &'static str,
    },
}

/// What the machine, or the control group that this process is in, has in all.
///
/// # Errors
/// [`CapacityError`] if the memory is not known.
pub fn measure(root: &Path) -> Result<Capacity, CapacityError> {
    measure_in(root, &Groups::own(root))
}

/// [`measure`] with the groups whose limits count, for example [`Groups::parent`].
///
/// # Errors
/// [`CapacityError`] if the memory is not known.
pub fn measure_in(root: &Path, groups: &Groups) -> Result<Capacity, CapacityError> {
    let tree = Tree::new(root);
    let total = meminfo(&tree, "MemTotal")?;
    let v2 = groups.is_v2(Controller::Memory);
    let limits = groups
        .folders(Controller::Memory)
        .iter()
        .filter_map(|g| memory_limit(&tree, g, v2));
    let quota = |g: &std::path::PathBuf| cpu_quota(&tree, g, groups.is_v2(Controller::Cpu));
    let quotas = groups.folders(Controller::Cpu).iter().filter_map(quota);
    Ok(Capacity {
        memory_bytes: limits.fold(total, u64::min),
        cpu_millis: quotas.fold(cpus_allowed(&tree), u64::min),
    })
}

/// Bytes of memory that could be given out now without swapping: free, or in caches that can be dropped.
///
/// # Errors
/// [`CapacityError`] if it is not known.
pub fn available_memory(root: &Path) -> Result<u64, CapacityError> {
    available_memory_in(root, &Groups::own(root))
}

/// [`available_memory`] with the groups whose limits count.
///
/// # Errors
/// [`CapacityError`] if it is not known.
pub fn available_memory_in(root: &Path, groups: &Groups) -> Result<u64, CapacityError> {
    let tree = Tree::new(root);
    let v2 = groups.is_v2(Controller::Memory);
    let rooms = groups
        .folders(Controller::Memory)
        .iter()
        .filter_map(|g| room(&tree, g, v2));
    Ok(rooms.fold(meminfo(&tree, "MemAvailable")?, u64::min))
}

/// What is left for workloads.
#[must_use]
pub fn reserve(total: Capacity, configured: &Configured) -> Capacity {
    let usual = (total.memory_bytes / RESERVE_PART)
        .clamp(RESERVE_MIN, RESERVE_MAX)
        .min(total.memory_bytes / 2);
    let kept = configured.reserve_memory_bytes.unwrap_or(usual);
    let memory = configured
        .memory_bytes
        .unwrap_or(total.memory_bytes.saturating_sub(kept));
    let cpu_kept = configured.reserve_cpu_millis.unwrap_or(0);
    let cpu = configured
        .cpu_millis
        .unwrap_or(total.cpu_millis.saturating_sub(cpu_kept));
    Capacity {
        memory_bytes: memory.min(total.memory_bytes),
        cpu_millis: cpu.min(total.cpu_millis),
    }
}

fn meminfo(tree: &Tree, field: &'static str) -> Result<u64, CapacityError> {
    let text = tree
        .text(Path::new("/proc/meminfo"), PROC_BYTES)
        .map_err(|source| CapacityError::Unreadable { source })?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = value.and_then(|v| v.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.and_then(|kib| kib.checked_mul(1024))
        .ok_or(CapacityError::Field { field })
}

/// The limit of one group. `memory.high` counts as well: beyond it the kernel slows the group down until nothing works.
fn memory_limit(tree: &Tree, group: &Path, v2: bool) -> Option<u64> {
    if v2 {
        let read = |name: &str| tree.number::<u64>(group, name);
        return [read("memory.max"), read("memory.high")].into_iter().flatten().min();
    }
    // Limits of groups above that a container does not see.
    let inherited = stat(tree, group, "hierarchical_memory_limit");
    [tree.number::<u64>(group, "memory.limit_in_bytes"), inherited]
        .into_iter()
        .flatten()
        .min()
}

/// What a group may still take.
fn room(tree: &Tree, group: &Path, v2: bool) -> Option<u64> {
    let limit = memory_limit(tree, group, v2)?;
    let (usage, cache) = if v2 {
        ("memory.current", "inactive_file")
    } else {
        ("memory.usage_in_bytes", "total_inactive_file")
    };
    let used = tree
        .number::<u64>(group, usage)?
        .saturating_sub(stat(tree, group, cache).unwrap_or(0));
    Some(limit.saturating_sub(used))
}

fn stat(tree: &Tree, group: &Path, field: &str) -> Option<u64> {
    let text = tree.text(&group.join("memory.stat"), 4 * ATTRIBUTE_BYTES).ok()?;
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(' ')?.trim().parse().ok())
}

fn cpu_quota(tree: &Tree, group: &Path, v2: bool) -> Option<u64> {
    let (quota, period) = if v2 {
        let text = tree.attribute(group, "cpu.max")?;
        let (quota, period) = text.split_once(' ')?;
        (quota.parse::<u64>().ok()?, period.trim().parse::<u64>().ok()?)
    } else {
        // -1 is no quota, and no u64.
        (
            tree.number(group, "cpu.cfs_quota_us")?,
            tree.number(group, "cpu.cfs_period_us")?,
        )
    };
    let millis = u128::from(quota) * 1000 / u128::from(period.max(1));
    Some(u64::try_from(millis).unwrap_or(u64::MAX).max(1))
}

/// From the affinity of this process, which cpusets have narrowed already.
fn cpus_allowed(tree: &Tree) -> u64 {
    let status = tree
        .text(Path::new("/proc/self/status"), PROC_BYTES)
        .unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let count = list.and_then(|list| count_list(list.trim()));
    count.filter(|n| *n > 0).map_or(CPU_MILLIS_UNKNOWN, |n| n * 1000)
}

/// How many numbers a list such as `0-3,8` names.
fn count_list(list: &str) -> Option<u64> {
    list.split(',').try_fold(0u64, |sum, part| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high): (u64, u64) = (low.parse().ok()?, high.parse().ok()?);
        let count = high.checked_sub(low)?.checked_add(1)?;
        sum.checked_add(count).filter(|n| *n <= CPUS_MAX)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn left(mib: u64) -> u64 {
        let total = Capacity {
            memory_bytes: mib * MIB,
            cpu_millis: 1000,
        };
        reserve(total, &Configured::default()).memory_bytes / MIB
    }

    #[test]
    fn small_nodes_keep_room_for_workloads_and_large_ones_waste_little() {
        let expected = [
            (64, 32),
            (128, 64),
            (256, 192),
            (512, 448),
            (1024, 921),
            (4096, 3686),
            (16384, 15360),
        ];
        for (total, workloads) in expected {
            assert_eq!(left(total), workloads, "of {total} MiB");
        }
    }

    #[test]
    fn the_operator_decides_within_what_there_is() {
        let total = Capacity {
            memory_bytes: 1000,
            cpu_millis: 2000,
        };
        let said = |memory, cpu, keep, keep_cpu| {
            let configured = Configured {
                memory_bytes: memory,
                cpu_millis: cpu,
                reserve_memory_bytes: keep,
                reserve_cpu_millis: keep_cpu,
            };
            let left = reserve(total, &configured);
            (left.memory_bytes, left.cpu_millis)
        };
        assert_eq!(said(Some(900), Some(500), Some(999), Some(999)), (900, 500));
        assert_eq!(said(Some(5000), Some(9000), None, None), (1000, 2000));
        assert_eq!(said(None, None, Some(100), Some(250)), (900, 1750));
        assert_eq!(said(None, None, Some(5000), Some(5000)), (0, 0));
    }

    #[test]
    fn lists_of_cpus_are_counted() {
        for (list, expected) in [("0", Some(1)), ("0-3", Some(4)), ("0-1,4,6-7", Some(5))] {
            assert_eq!(count_list(list), expected, "{list}");
        }
        for odd in ["", "x", "3-1", "0-", "0-18446744073709551615", "0-99999", "1,,2"] {
            assert_eq!(count_list(odd), None, "{odd}");
        }
    }

    proptest! {
        #[test]
        fn what_is_left_is_never_more_than_there_is(
            memory in any::<u64>(), cpu in any::<u64>(), said in any::<[Option<u64>; 4]>()
        ) {
            let total = Capacity { memory_bytes: memory, cpu_millis: cpu };
            let [memory_bytes, cpu_millis, reserve_memory_bytes, reserve_cpu_millis] = said;
            let configured = Configured { memory_bytes, cpu_millis, reserve_memory_bytes, reserve_cpu_millis };
            let left = reserve(total, &configured);
            prop_assert!(left.memory_bytes <= memory && left.cpu_millis <= cpu);
            if said == [None; 4] {
                prop_assert!(left.memory_bytes >= memory / 2);
            }
        }
    }
}
