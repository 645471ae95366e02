//! Processes as the agent sees them: starting a runtime, naming one for ever, and never mistaking another for it.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

use crate::cgroup::Group;
use crate::{Description, State, file};

/// What a runtime printed is kept up to here, in bytes; it starts anew with the next start after that.
const RUNTIME_ERR_BYTES_MAX: u64 = 64 << 10;
/// Longest answer to `describe`, in bytes.
const DESCRIPTION_BYTES_MAX: u64 = 64 << 10;
/// How long a runtime may take to describe itself:
/// long enough for the first programs of a cold boot on a slow, busy board, because one that is given up on is not used until the agent starts again.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts `exe run --state dir` in a session of its own with an empty environment (except PATH), no standard input,
/// no other descriptor of the caller, and what it prints appended to `dir/runtime.err`. The caller reaps the child, or
/// leaves it to init.
pub fn spawn(exe: &Path, dir: &Path) -> io::Result<Child> {
    spawn_in(exe, dir, None)
}

/// [`spawn`] in an instance's control group: the runtime is in it before its first instruction.
pub fn spawn_in(exe: &Path, dir: &Path, group: Option<&Group>) -> io::Result<Child> {
    spawn_with(exe, dir, group, None)
}

/// [`spawn_in`] with secrets on the standard input, see [`crate::Secrets::into_input`].
pub fn spawn_with(exe: &Path, dir: &Path, group: Option<&Group>, input: Option<OwnedFd>) -> io::Result<Child> {
    let mut command = run_command(exe, dir)?;
    if let Some(input) = input {
        command.stdin(input);
    }
    if let Some(group) = group {
        group.enter_command(&mut command).map_err(io::Error::other)?;
    }
    command.spawn()
}

/// For a runtime, first of all: a session of its own, so that nobody's Ctrl-C or hang-up reaches the workload.
pub fn own_session() -> io::Result<()> {
    match rustix::process::setsid() {
        // Whoever started it may have made the session already.
        Ok(_) | Err(rustix::io::Errno::PERM) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The command that [`spawn`] starts.
pub fn run_command(exe: &Path, dir: &Path) -> io::Result<Command> {
    let dir = std::path::absolute(dir)?;
    let err_path = dir.join(file::RUNTIME_ERR);
    let chatty = fs::metadata(&err_path).is_ok_and(|meta| meta.len() > RUNTIME_ERR_BYTES_MAX);
    if chatty {
        fs::remove_file(&err_path)?;
    }
    let err = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&err_path)?;
    let mut command = Command::new(exe);
    command
        .arg("run")
        .arg("--state")
        .arg(&dir)
        .current_dir(&dir)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(err.try_clone()?)
        .stderr(err);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    // SAFETY: between fork and exec only two system calls are made, which are async-signal-safe and allocate nothing.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            close_rest_on_exec();
            Ok(())
        });
    }
    Ok(command)
}

/// Some library may have opened a file without close-on-exec: the runtime gets none of them. A kernel before 5.11 does
/// not know how, and then it is as it was.
fn close_rest_on_exec() {
    // SAFETY: a system call with three numbers; it only marks descriptors, which stay open until the exec.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}

/// Asks a runtime executable what it is. It is killed if it does not answer within a minute.
pub fn describe(exe: &Path) -> io::Result<Description> {
    let mut child = Command::new(exe)
        .arg("describe")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let deadline = Instant::now() + DESCRIBE_TIMEOUT;
    let pid = Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let ended = wait_for_end(pidfd.as_fd(), deadline)?;
    if !ended {
        child.kill()?;
    }
    let status = child.wait()?;
    if !ended {
        let seconds = DESCRIBE_TIMEOUT.as_secs();
        let why = format!("{} describe: no answer within {seconds} s", exe.display());
        return Err(io::Error::new(io::ErrorKind::TimedOut, why));
    }
    let mut text = String::new();
    if let Some(out) = child.stdout.take() {
        out.take(DESCRIPTION_BYTES_MAX).read_to_string(&mut text)?;
    }
    if !status.success() {
        return Err(io::Error::other(format!("{} describe: {status}", exe.display())));
    }
    serde_json::from_str(&text).map_err(io::Error::from)
}

/// When a process started: field 22 of `/proc/PID/stat`, in clock ticks since boot.
pub fn process_start_time(pid: u32) -> io::Result<u64> {
    read_stat(pid).map(|(_, start)| start)
}

/// The kernel's name for this boot.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim_end()
        .to_owned())
}

/// Whether exactly the process that wrote this state still runs: same boot, same pid, same start time, not a zombie.
pub fn is_alive(state: &State) -> bool {
    let same_boot = boot_id().is_ok_and(|now| now == state.boot_id);
    let same_process =
        || read_stat(state.pid).is_ok_and(|(run, start)| start == state.start_time && !matches!(run, b'Z' | b'X'));
    same_boot && same_process()
}

/// A descriptor of the process that becomes readable when it ends. It may be another process than the one meant:
/// prefer [`Handle::open`], which checks.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{pid} is not a process id")))?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Why a process could not be adopted.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// It ended, or its pid belongs to another process by now.
    #[error("process {pid} of workload `{workload}` is gone")]
    Gone {
        /// The pid in the state file.
        pid: u32,
        /// The workload in the state file.
        workload: String,
    },
    /// The kernel gave no descriptor.
    #[error("cannot open process {pid}: {source}")]
    Open {
        /// The pid in the state file.
        pid: u32,
        /// What the system answered.
        source: io::Error,
    },
}

/// A process that was checked to be the workload's. It stays that process even when the pid is used again.
#[derive(Debug)]
pub struct Handle {
    pidfd: OwnedFd,
}

impl Handle {
    /// Opens the process and then checks that it is the one meant, in this order, so that no reuse slips between.
    pub fn open(state: &State) -> Result<Handle, HandleError> {
        let gone = || HandleError::Gone {
            pid: state.pid,
            workload: state.workload.clone(),
        };
        let pidfd = match pidfd_open(state.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => return Err(gone()),
            Err(source) => {
                let pid = state.pid;
                return Err(HandleError::Open { pid, source });
            }
        };
        if !is_alive(state) {
            return Err(gone());
        }
        Ok(Handle { pidfd })
    }

    /// Asks the process to end, as `stop` on the socket does.
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Ends the process without asking. It leaves no exit file.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    /// Waits for the end of the process; true if it has ended.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        wait_for_end(self.pidfd.as_fd(), Instant::now() + timeout)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Handle {
    /// Readable once the process has ended: for the agent's event loop.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

fn wait_for_end(pidfd: BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The run state letter and the start time of a process.
fn read_stat(pid: u32) -> io::Result<(u8, u64)> {
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat")))
}

/// The second field is the program's name in parentheses and may hold anything, so fields count from the last `)`.
fn parse_stat(text: &[u8]) -> Option<(u8, u64)> {
    let end_of_name = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&text[end_of_name + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let run_state = *fields.next()?.as_bytes().first()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((run_state, start_time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_program_name_does_not_move_the_fields() {
        let stat = b"42 (a) R 1 (b) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3\n";
        assert_eq!(parse_stat(stat), Some((b'S', 987_654)));
        assert_eq!(parse_stat(b"42 (short) S 1 2"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn this_process_is_alive_and_its_reused_pid_is_not() {
        let spec: crate::Spec = serde_json::from_value(serde_json::json!({
            "ral": 1, "workload": "w", "artifact": "/a", "digest": format!("sha256:{}", "00".repeat(32)),
        }))
        .unwrap();
        let state = State::of_this_process(&spec).unwrap();
        assert!(is_alive(&state));
        Handle::open(&state).unwrap();
        for spoil in [
            |s: &mut State| s.start_time += 1,
            |s: &mut State| s.boot_id = "another".into(),
            |s: &mut State| s.pid = u32::MAX,
        ] {
            let mut other = state.clone();
            spoil(&mut other);
            assert!(!is_alive(&other));
            assert!(Handle::open(&other).is_err());
        }
    }

    /// `waitpid(-1)` anywhere would take the status of a child that somebody else waits for.
    #[test]
    fn waiting_for_one_process_reaps_no_other_and_not_even_that_one() {
        let mut other = Command::new("sh").args(["-c", "exit 5"]).spawn().unwrap();
        let mut child = Command::new("sh").args(["-c", "exit 6"]).spawn().unwrap();
        for pid in [other.id(), child.id()] {
            let pidfd = pidfd_open(pid).unwrap();
            assert!(wait_for_end(pidfd.as_fd(), Instant::now() + Duration::from_secs(60)).unwrap());
        }
        assert!(
            describe(Path::new("/bin/false")).is_err(),
            "which reaps its own child only"
        );
        assert_eq!(child.wait().unwrap().code(), Some(6));
        assert_eq!(other.wait().unwrap().code(), Some(5));
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = Command::new("true").spawn().unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        assert!(wait_for_end(pidfd.as_fd(), Instant::now() + Duration::from_secs(60)).unwrap());
        let state = State {
            ral: 1,
            pid: child.id(),
            start_time: process_start_time(child.id()).unwrap(),
            boot_id: boot_id().unwrap(),
            workload: "w".into(),
            epoch: 0,
            generation: 0,
            attempt: 0,
            digest: String::new(),
            started_unix_ms: 0,
            phase: crate::Phase::Running,
        };
        assert!(!is_alive(&state));
        child.wait().unwrap();
    }
}
