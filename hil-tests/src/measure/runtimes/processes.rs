//! What living processes use.

use std::collections::BTreeMap;
use std::fs;

use super::super::memory::pss_kib;

/// Memory of some processes, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Held {
    /// All of them together, shared pages in part.
    pub(super) pss: u64,
    /// Most that one of them ever had resident.
    pub(super) peak: u64,
}

/// Of these processes.
pub(super) fn held(pids: &[u32]) -> Held {
    Held {
        pss: pids.iter().map(|pid| pss_kib(*pid)).sum(),
        peak: pids.iter().map(|pid| peak_kib(*pid)).max().unwrap_or(0),
    }
}

fn peak_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok())
        .unwrap_or(0)
}

/// How a process was called.
pub(super) fn program(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let word = line.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(word).into_owned()
}

/// These processes and all below them.
pub(super) fn trees(roots: &[u32]) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parents = pids.filter_map(|pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some((pid, parent(&stat)?))
    });
    below(roots, &parents.collect())
}

/// The parent's pid is the second field after the name, which may hold anything.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn below(roots: &[u32], parents: &BTreeMap<u32, u32>) -> Vec<u32> {
    let mut all = roots.to_vec();
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        let children = parents.iter().filter(|(child, of)| **of == pid && !all.contains(child));
        let children: Vec<u32> = children.map(|(child, _)| *child).collect();
        all.extend(children);
        next += 1;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_belongs_to_the_tree_of_its_parents() {
        let parents = BTreeMap::from([(1, 0), (5, 1), (6, 5), (7, 6), (8, 1), (9, 8)]);
        assert_eq!(below(&[5], &parents), [5, 6, 7]);
        assert_eq!(below(&[6, 8], &parents), [6, 8, 7, 9]);
        assert_eq!(parent("12 (a ) b) S 7 12 12 0"), Some(7));
        assert_eq!(parent("nothing"), None);
    }
}
