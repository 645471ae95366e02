//! The files of one group in one hierarchy.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{DEPTH_MAX, GROUPS_MAX, GroupError, Usage};

/// The processes of a group; a process enters it by writing to it.
pub(super) const PROCS: &str = "cgroup.procs";
/// The controllers that a group of v2 gives to those below.
pub(super) const SUBTREE_CONTROL: &str = "cgroup.subtree_control";
/// The threads of a group, on v1.
pub(super) const TASKS: &str = "tasks";

/// Which interface a hierarchy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// One group in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    /// Those of ours that this hierarchy has.
    pub(super) controllers: Vec<String>,
    pub(super) dir: PathBuf,
}

impl Hierarchy {
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }

    pub(super) fn make(&self) -> Result<(), GroupError> {
        match fs::create_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && self.dir.is_dir() => Ok(()),
            Err(error) => Err(io_error("create control group", &self.dir)(error)),
            Ok(()) => Ok(()),
        }
    }

    pub(super) fn read_usage(&self, usage: &mut Usage) -> Result<(), GroupError> {
        // Told apart from a controller that is off, which leaves only its files away.
        fs::metadata(&self.dir).map_err(io_error("find control group", &self.dir))?;
        match self.version {
            Version::V1 => self.read_usage_v1(usage),
            Version::V2 => self.read_usage_v2(usage),
        }
    }

    fn read_usage_v1(&self, usage: &mut Usage) -> Result<(), GroupError> {
        if self.has("cpuacct") {
            usage.cpu_ms = number(&self.dir.join("cpuacct.usage"))?.map(|ns| ns / 1_000_000);
        }
        if self.has("memory") {
            let used = number(&self.dir.join("memory.usage_in_bytes"))?;
            let inactive = keyed(&self.dir.join("memory.stat"), "total_inactive_file")?;
            usage.memory_bytes = used.map(|used| working_set(used, inactive.unwrap_or(0)));
            usage.memory_peak = number(&self.dir.join("memory.max_usage_in_bytes"))?;
            // Unlike the rest this one does not count the groups below.
            for dir in subtree(&self.dir)? {
                if let Some(kills) = keyed(&dir.join("memory.oom_control"), "oom_kill")? {
                    *usage.oom_kills.get_or_insert(0) += kills;
                }
            }
        }
        Ok(())
    }

    fn read_usage_v2(&self, usage: &mut Usage) -> Result<(), GroupError> {
        // Time is accounted even without the controller, which only shares it.
        usage.cpu_ms = keyed(&self.dir.join("cpu.stat"), "usage_usec")?.map(|us| us / 1_000);
        let used = number(&self.dir.join("memory.current"))?;
        let inactive = keyed(&self.dir.join("memory.stat"), "inactive_file")?;
        usage.memory_bytes = used.map(|used| working_set(used, inactive.unwrap_or(0)));
        usage.memory_peak = number(&self.dir.join("memory.peak"))?;
        usage.oom_kills = keyed(&self.dir.join("memory.events"), "oom_kill")?;
        Ok(())
    }
}

/// What a group cannot give back at once: what it uses, without the file pages that nobody used lately. In bytes.
///
/// The kernel counts the use at once, but gathers the pages of `memory.stat` from its CPUs later, up to seconds later on a
/// busy machine. A number that is more than the whole is of before, and is not believed.
#[must_use]
pub fn working_set(used: u64, inactive_file: u64) -> u64 {
    used.checked_sub(inactive_file).filter(|rest| *rest > 0).unwrap_or(used)
}

/// The group and those below it, parents first; empty if it is not there.
pub(super) fn subtree(dir: &Path) -> Result<Vec<PathBuf>, GroupError> {
    let mut found = Vec::new();
    let mut open = vec![(dir.to_owned(), 0)];
    while let Some((dir, depth)) = open.pop() {
        let entries = match fs::read_dir(&dir) {
            // A group that goes while it is walked is a group that is not there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(io_error("list control group", &dir))?,
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && depth < DEPTH_MAX {
                open.push((entry.path(), depth + 1));
            }
        }
        found.push(dir);
        if found.len() >= GROUPS_MAX {
            break;
        }
    }
    Ok(found)
}

/// The processes of one group, without those below. Threaded groups have none of their own.
pub(super) fn processes_in(dir: &Path) -> Result<Vec<u32>, GroupError> {
    let path = dir.join(PROCS);
    let Some(text) = read(&path)? else {
        return Ok(Vec::new());
    };
    // A process of another pid namespace shows as 0.
    let pids = text.lines().map(str::trim).filter(|line| !line.is_empty());
    pids.map(|line| line.parse().map_err(|_| GroupError::Format { path: path.clone() }))
        .filter(|pid| !matches!(pid, Ok(0)))
        .collect()
}

/// Writes into a file that the kernel must have made.
pub(super) fn write(path: &Path, text: &str) -> Result<(), GroupError> {
    let write = || OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes());
    write().map_err(io_error("write to", path))
}

/// A file's text; nothing if it or its group is not there.
pub(super) fn read(path: &Path) -> Result<Option<String>, GroupError> {
    // ENODEV is what an open file says when its group was removed, EOPNOTSUPP what the list of a threaded group says.
    let gone = [libc::ENODEV, libc::EOPNOTSUPP];
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error().is_some_and(|code| gone.contains(&code)) => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

fn number(path: &Path) -> Result<Option<u64>, GroupError> {
    let Some(text) = read(path)? else { return Ok(None) };
    match text.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(GroupError::Format { path: path.to_owned() }),
    }
}

/// The number behind a key at the beginning of a line.
fn keyed(path: &Path, key: &str) -> Result<Option<u64>, GroupError> {
    let Some(text) = read(path)? else { return Ok(None) };
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        .map(|value| value.trim().parse());
    match value {
        None => Ok(None),
        Some(Ok(number)) => Ok(Some(number)),
        Some(Err(_)) => Err(GroupError::Format { path: path.to_owned() }),
    }
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> GroupError {
    let path = path.to_owned();
    move |source| GroupError::Io { action, path, source }
}
