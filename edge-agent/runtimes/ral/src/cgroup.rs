//! Control groups: every instance runs in one of its own, outside the agent's, so that all runtimes are accounted in the
//! same way and nothing of a workload is ever left behind.
//!
//! On v1 an instance has a group in each of the hierarchies for CPU, CPU accounting, memory and processes; on v2 one
//! group. A [`Parent`] is where they are made, a [`Group`] is one of them; [`Parent::open`] finds it again after a restart
//! of the agent. Where groups are not permitted [`Parent::find`] says why, and the agent runs without.

mod files;
mod kill;
mod layout;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use files::Hierarchy;
pub use files::working_set;
pub use layout::Parent;

/// Longest name of a group, in bytes.
pub const NAME_BYTES_MAX: usize = 200;
/// Deepest tree of groups that is walked: a runtime's own children and what a container makes below.
const DEPTH_MAX: usize = 16;
/// Most groups below one instance that are walked.
const GROUPS_MAX: usize = 1024;

/// Why a control group could not be used.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The system has no hierarchy that accounts anything.
    #[error(
        "no control group hierarchy for CPU or memory is mounted: mount cgroup2 on /sys/fs/cgroup; workloads run without \
         accounting and without limits by the kernel"
    )]
    NoHierarchy,
    /// Groups exist, but none may be made.
    #[error("cannot make control groups {tried}: run the agent as root, or give its unit `Delegate=yes`")]
    NotPermitted {
        /// Where it was tried and what the system answered.
        tried: String,
    },
    /// A name that is no name of a group.
    #[error(
        "`{name}` cannot name a control group: 1 to {NAME_BYTES_MAX} letters, digits and `-_.:@`, not beginning with a dot"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// A file of a group could not be used.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A file of a group does not hold what the kernel documents.
    #[error("{path} holds no number where one is expected")]
    Format {
        /// Which file.
        path: PathBuf,
    },
    /// Processes could not be ended.
    #[error("{count} processes of control group {group} do not end though they were killed; one is {pid}")]
    Unkillable {
        /// The group.
        group: String,
        /// How many.
        count: usize,
        /// One of them.
        pid: u32,
    },
}

/// What an instance uses, its ended processes included. A value is absent where the kernel does not account it, such as
/// memory on a Raspberry Pi without `cgroup_enable=memory`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in milliseconds since the group was made.
    pub cpu_ms: Option<u64>,
    /// Memory in use without page cache that can be dropped at once, in bytes (the working set).
    pub memory_bytes: Option<u64>,
    /// Most memory that was ever in use, page cache included, in bytes.
    pub memory_peak: Option<u64>,
    /// Processes that the kernel killed because memory ran out.
    pub oom_kills: Option<u64>,
    /// Living processes.
    pub processes: u64,
}

/// The control group of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    name: String,
    hierarchies: Vec<Hierarchy>,
}

impl Group {
    /// Makes the group, or takes over the one that is there.
    ///
    /// # Errors
    /// If the name cannot be one or the system does not permit it; then nothing is left of it.
    pub fn create(parent: &Parent, name: &str) -> Result<Group, GroupError> {
        let group = parent.group(name)?;
        for hierarchy in &group.hierarchies {
            if let Err(error) = hierarchy.make() {
                let _ = group.remove();
                return Err(error);
            }
        }
        Ok(group)
    }

    /// Its name below the parent.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folders, one for each hierarchy.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.hierarchies.iter().map(|h| h.dir.as_path())
    }

    /// Has the command's process enter the group between fork and exec, so that not one instruction of it runs outside.
    /// Empty groups below, which an earlier runtime left there, are removed where they would be in the way: on v2 a group
    /// that limits groups below takes no processes.
    ///
    /// # Errors
    /// If a file of the group cannot be used, or something lives in a group below that is in the way; a failure in the
    /// child is an error of the spawn.
    pub fn enter_command(&self, command: &mut Command) -> Result<(), GroupError> {
        for hierarchy in self.hierarchies.iter().filter(|h| h.version == files::Version::V2) {
            kill::make_room(&hierarchy.dir)?;
        }
        let open = |h: &Hierarchy| -> Result<File, GroupError> {
            // By way of `cgroup.procs` the kernel waits for all of its CPUs, 5 to 17 ms, in case the process has threads.
            // Between fork and exec it has one, and v1's `tasks` takes that one at once.
            let tasks = h.dir.join(files::TASKS);
            let path = if tasks.exists() {
                tasks
            } else {
                h.dir.join(files::PROCS)
            };
            OpenOptions::new()
                .write(true)
                .open(&path)
                .map_err(files::io_error("open", &path))
        };
        let doors: Vec<File> = self.hierarchies.iter().map(open).collect::<Result<_, _>>()?;
        // SAFETY: between fork and exec only `write` is called, on descriptors opened before, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                for door in &doors {
                    // Zero is the process that writes.
                    rustix::io::write(door, b"0")?;
                }
                Ok(())
            });
        }
        Ok(())
    }

    /// What the instance uses.
    ///
    /// # Errors
    /// If a file that is there cannot be read or does not hold what it should.
    pub fn usage(&self) -> Result<Usage, GroupError> {
        let mut usage = Usage::default();
        for hierarchy in &self.hierarchies {
            hierarchy.read_usage(&mut usage)?;
        }
        usage.processes = self.processes()?.len() as u64;
        Ok(usage)
    }

    /// The processes in it and in the groups below, in ascending order.
    ///
    /// # Errors
    /// If a list cannot be read.
    pub fn processes(&self) -> Result<Vec<u32>, GroupError> {
        let mut all = Vec::new();
        for hierarchy in &self.hierarchies {
            for dir in files::subtree(&hierarchy.dir)? {
                all.extend(files::processes_in(&dir)?);
            }
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Ends every process in it, however they fork meanwhile, and waits until they are gone.
    ///
    /// # Errors
    /// If one of them does not end within five seconds, or a file cannot be used.
    pub fn kill(&self) -> Result<(), GroupError> {
        kill::kill(self)
    }

    /// Removes it and the groups below. What it used is forgotten: read [`Group::usage`] before.
    ///
    /// # Errors
    /// While a process lives in it.
    pub fn remove(&self) -> Result<(), GroupError> {
        for hierarchy in &self.hierarchies {
            let mut dirs = files::subtree(&hierarchy.dir)?;
            dirs.reverse();
            for dir in dirs {
                match fs::remove_dir(&dir) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(files::io_error("remove", &dir)(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
