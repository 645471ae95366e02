//! What `/proc` says about the processes of a workload.

use std::fs;
use std::path::PathBuf;

/// Deepest tree of processes that is looked at.
const DEPTH_MAX: usize = 64;

/// A process and all below it by parentage, itself first. One that ends meanwhile is left out.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let all: Vec<(u32, u32)> = pids().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = vec![root];
    let mut at = 0;
    for _ in 0..DEPTH_MAX {
        let end = found.len();
        for index in at..end {
            let above = found[index];
            found.extend(all.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| *pid));
        }
        at = end;
    }
    found
}

/// The run state letter: `Z` for one that ended and was not reaped.
pub(crate) fn run_state(pid: u32) -> Option<char> {
    stat_fields(pid)?.first()?.chars().next()
}

/// Where its descriptors lead, by number. Nothing for a process that is gone.
pub(crate) fn descriptors(pid: u32) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let number = entry.file_name().into_string().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?))
        })
        .collect()
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn parent(pid: u32) -> Option<u32> {
    stat_fields(pid)?.get(1)?.parse().ok()
}

/// The fields of `/proc/PID/stat` behind the program's name.
fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let text = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?).into_owned();
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_ascii_whitespace().map(str::to_owned).collect())
}
