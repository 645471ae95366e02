//! What a workload is: the state file of a running one, the exit file of an ended one.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::folder::{read_json_if_there, write_json};
use crate::{FolderError, RAL_VERSION, Spec, boot_id, file, process_start_time};

/// Longest [`Exit::detail`], in bytes.
pub const DETAIL_BYTES_MAX: usize = 8 << 10;

/// A running workload, as the agent finds it again. Pid, start time and boot id together name one process for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Version of the RAL.
    pub ral: u32,
    /// The process that answers for the workload.
    pub pid: u32,
    /// When that process started: field 22 of `/proc/PID/stat`, in clock ticks since boot.
    pub start_time: u64,
    /// The boot in which it started: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// [`Spec::workload`].
    pub workload: String,
    /// [`Spec::epoch`].
    #[serde(default)]
    pub epoch: u64,
    /// [`Spec::generation`].
    #[serde(default)]
    pub generation: u64,
    /// [`Spec::attempt`].
    #[serde(default)]
    pub attempt: u64,
    /// [`Spec::digest`]: what really runs.
    #[serde(default)]
    pub digest: String,
    /// When the workload was started, in milliseconds since 1970 by the node's clock; for people only.
    #[serde(default)]
    pub started_unix_ms: u64,
    /// Always [`Phase::Running`] in the file.
    pub phase: Phase,
}

/// Where a workload is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The runtime loads the artifact.
    Starting,
    /// The workload is instantiated and started.
    Running,
    /// A stop was asked for.
    Stopping,
}

/// How a workload ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// What the workload returned, if it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Whether it ran into its memory limit.
    pub oom: bool,
    /// Why it ended.
    pub reason: ExitReason,
    /// A trap message with its backtrace, or why it was refused; at most [`DETAIL_BYTES_MAX`] bytes.
    pub detail: Option<String>,
    /// When, in milliseconds since 1970 by the node's clock.
    pub at_unix_ms: u64,
}

/// Why a workload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// By itself, with an exit code.
    Finished,
    /// By a fault of its own: a Wasm trap, a fatal signal.
    Trap,
    /// Its time was up.
    Budget,
    /// It asked for more memory than it may have.
    Memory,
    /// It was asked to stop.
    Stopped,
    /// It was never started: the artifact, the spec or a grant was not acceptable.
    Refused,
    /// It was killed from outside.
    Killed,
    /// A reason this version does not know.
    #[serde(other)]
    Unknown,
}

impl ExitReason {
    /// The word in the exit file.
    pub fn as_str(self) -> &'static str {
        match self {
            ExitReason::Finished => "finished",
            ExitReason::Trap => "trap",
            ExitReason::Budget => "budget",
            ExitReason::Memory => "memory",
            ExitReason::Stopped => "stopped",
            ExitReason::Refused => "refused",
            ExitReason::Killed => "killed",
            ExitReason::Unknown => "unknown",
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl State {
    /// The state of the calling process as a runtime of `spec`, running from now on.
    pub fn of_this_process(spec: &Spec) -> std::io::Result<State> {
        let pid = std::process::id();
        Ok(State {
            ral: RAL_VERSION,
            pid,
            start_time: process_start_time(pid)?,
            boot_id: boot_id()?,
            workload: spec.workload.clone(),
            epoch: spec.epoch,
            generation: spec.generation,
            attempt: spec.attempt,
            digest: spec.digest.clone(),
            started_unix_ms: unix_ms(),
            phase: Phase::Running,
        })
    }
}

impl Exit {
    /// An end without code, signal or detail, now.
    pub fn new(reason: ExitReason) -> Exit {
        Exit {
            code: None,
            signal: None,
            oom: reason == ExitReason::Memory,
            reason,
            detail: None,
            at_unix_ms: unix_ms(),
        }
    }

    /// The same with an exit code.
    pub fn with_code(mut self, code: i32) -> Exit {
        self.code = Some(code);
        self
    }

    /// The same with an explanation, cut to [`DETAIL_BYTES_MAX`].
    pub fn with_detail(mut self, detail: impl Into<String>) -> Exit {
        self.detail = Some(bounded_detail(detail.into()));
        self
    }
}

/// Cuts a text to [`DETAIL_BYTES_MAX`] bytes at a character's edge and says so in it.
pub fn bounded_detail(mut text: String) -> String {
    const CUT: &str = "\n[cut]";
    if text.len() > DETAIL_BYTES_MAX {
        let end = text.floor_char_boundary(DETAIL_BYTES_MAX - CUT.len());
        text.truncate(end);
        text.push_str(CUT);
    }
    text
}

/// The state file, if the workload got so far.
pub fn read_state(dir: &Path) -> Result<Option<State>, FolderError> {
    read_json_if_there(&dir.join(file::STATE))
}

/// The exit file, if the workload ended and its runtime lived to say so.
pub fn read_exit(dir: &Path) -> Result<Option<Exit>, FolderError> {
    read_json_if_there(&dir.join(file::EXIT))
}

/// For a runtime: writes the state file atomically, once the workload is started.
pub fn write_state(dir: &Path, state: &State) -> Result<(), FolderError> {
    write_json(dir, file::STATE, state)
}

/// For a runtime: writes the exit file atomically, as its last act. If the disk is full the log gives way, first its
/// older half: how a workload ended matters more than what it printed before.
pub fn write_exit(dir: &Path, exit: &Exit) -> Result<(), FolderError> {
    let mut result = write_json(dir, file::EXIT, exit);
    for giving_way in [file::LOG_OLD, file::LOG] {
        match &result {
            Err(FolderError::Io { source, .. }) if is_disk_full(source) => {}
            _ => break,
        }
        // Made empty, not removed: whoever follows the log keeps following it.
        if OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(dir.join(giving_way))
            .is_ok()
        {
            result = write_json(dir, file::EXIT, exit);
        }
    }
    result
}

fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_files_look_as_documented() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_exit(dir.path()).unwrap(), None);
        let mut exit = Exit::new(ExitReason::Finished).with_code(3);
        exit.at_unix_ms = 7;
        write_exit(dir.path(), &exit).unwrap();
        assert_eq!(
            std::fs::read_to_string(dir.path().join(file::EXIT)).unwrap().trim_end(),
            r#"{"code":3,"signal":null,"oom":false,"reason":"finished","detail":null,"at_unix_ms":7}"#
        );
        assert_eq!(read_exit(dir.path()).unwrap(), Some(exit));
    }

    #[test]
    fn a_reason_of_the_future_is_read_as_unknown() {
        let text = r#"{"code":null,"signal":null,"oom":false,"reason":"evicted","detail":null,"at_unix_ms":7}"#;
        assert_eq!(serde_json::from_str::<Exit>(text).unwrap().reason, ExitReason::Unknown);
    }

    #[test]
    fn details_are_cut_at_a_character() {
        let long = bounded_detail("\u{e9}".repeat(DETAIL_BYTES_MAX));
        assert!(long.len() <= DETAIL_BYTES_MAX && long.ends_with("[cut]"));
        assert_eq!(bounded_detail("short".into()), "short");
    }
}
