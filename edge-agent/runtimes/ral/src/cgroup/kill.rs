//! Ending everything in a group.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::files::{self, Version};
use super::{Group, GroupError, layout};
use crate::pidfd_open;

/// How long killed processes may take to go: one that writes to a slow disk is not interrupted at once.
const DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks at the list.
const PAUSE: Duration = Duration::from_millis(2);

pub(super) fn kill(group: &Group) -> Result<(), GroupError> {
    let at_once = kill_v2(group)?;
    if !at_once {
        set_fork_limit(group, "0")?;
    }
    let result = until_empty(group, at_once);
    if !at_once {
        // The next attempt may use the group again.
        set_fork_limit(group, "max")?;
    }
    result
}

/// Lets a group of v2 take processes again.
pub(super) fn make_room(dir: &Path) -> Result<(), GroupError> {
    let enabled = layout::words(&dir.join(files::SUBTREE_CONTROL))?;
    if enabled.is_empty() {
        return Ok(());
    }
    let end = Instant::now() + DEADLINE;
    for below in files::subtree(dir)?.into_iter().skip(1).rev() {
        // What was killed may be gone from the list of processes and not yet from the group.
        while let Err(error) = fs::remove_dir(&below) {
            match error.kind() {
                std::io::ErrorKind::NotFound => break,
                _ if Instant::now() > end => return Err(files::io_error("remove", &below)(error)),
                _ => sleep(PAUSE),
            }
        }
    }
    let order: Vec<String> = enabled.iter().map(|name| format!("-{name}")).collect();
    files::write(&dir.join(files::SUBTREE_CONTROL), &order.join(" "))
}

/// v2 has a file for it since Linux 5.14, which also gets processes that are being forked.
fn kill_v2(group: &Group) -> Result<bool, GroupError> {
    for hierarchy in group.hierarchies.iter().filter(|h| h.version == Version::V2) {
        let path = hierarchy.dir.join("cgroup.kill");
        if path.exists() {
            files::write(&path, "1")?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Without that file a process could fork faster than it is found: none may fork any more. Freezing them would do too,
/// but a frozen process of v1 must be thawed to die, and could then fork.
fn set_fork_limit(group: &Group, limit: &str) -> Result<(), GroupError> {
    for hierarchy in group.hierarchies.iter().filter(|h| h.has("pids")) {
        let path = hierarchy.dir.join("pids.max");
        if path.exists() {
            files::write(&path, limit)?;
        }
    }
    Ok(())
}

fn until_empty(group: &Group, killed: bool) -> Result<(), GroupError> {
    let end = Instant::now() + DEADLINE;
    loop {
        let processes = group.processes()?;
        let Some(&first) = processes.first() else {
            return Ok(());
        };
        if Instant::now() > end {
            return Err(GroupError::Unkillable {
                group: group.name().to_owned(),
                count: processes.len(),
                pid: first,
            });
        }
        if !killed {
            kill_each(group, &processes);
        }
        sleep(PAUSE);
    }
}

/// A pid may be another process's by the time it is used. So the process is opened first and looked up again then: if
/// the pid is still in the group, what was opened is what is in the group, or has ended.
fn kill_each(group: &Group, processes: &[u32]) {
    let opened: Vec<_> = processes
        .iter()
        .filter_map(|pid| Some((*pid, pidfd_open(*pid).ok()?)))
        .collect();
    let Ok(still) = group.processes() else { return };
    for (pid, pidfd) in opened {
        if still.binary_search(&pid).is_ok() {
            // It fails for one that has ended, and the list will not have it next time.
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
}
