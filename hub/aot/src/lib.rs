//! Compiling Wasm ahead of time in a process that may die.
//!
//! A compiler fed by strangers may panic, eat memory or run for ever. So the hub starts `cnova-aot` for each file:
//! the worker limits itself before it looks at the input, and the hub limits the time. This library is the hub's
//! side; it holds no compiler.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

/// Address space of a worker, in bytes: a compile of a 20 MB module takes about 400 MB.
pub const MEMORY_BYTES: u64 = 2 << 30;
/// CPU time of a worker, in seconds.
pub const CPU_SECONDS: u64 = 120;
/// Largest compiled file, in bytes.
pub const OUTPUT_BYTES: u64 = 256 << 20;
/// Largest Wasm file that is compiled, in bytes.
pub const INPUT_BYTES_MAX: u64 = 64 << 20;
/// How long a worker may take altogether.
pub const WALL: Duration = Duration::from_secs(300);

/// Longest answer of a worker that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// How much of a worker's complaints is kept, in bytes.
const COMPLAINT_BYTES_MAX: u64 = 4 << 10;

/// What one compile may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AotLimits {
    /// Address space in bytes.
    pub memory_bytes: u64,
    /// CPU time in seconds.
    pub cpu_seconds: u64,
    /// Size of the compiled file in bytes.
    pub output_bytes: u64,
    /// Time by the clock.
    pub wall: Duration,
}

impl Default for AotLimits {
    fn default() -> Self {
        AotLimits {
            memory_bytes: MEMORY_BYTES,
            cpu_seconds: CPU_SECONDS,
            output_bytes: OUTPUT_BYTES,
            wall: WALL,
        }
    }
}

/// A compile that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AotOutcome {
    /// Size of the compiled file in bytes.
    pub size: u64,
    /// `module` or `component`.
    pub kind: String,
    /// What it imports, sorted: `namespace.function` for a module, interface names for a component.
    pub imports: Vec<String>,
    /// Settings and version of the engine that it was compiled for.
    pub engine: String,
    /// The target that it was compiled for.
    pub target: String,
}

/// Why a file was turned down, in a form for programs and one for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// One of `target`, `not_wasm`, `invalid`, `feature`, `import`, `no_entry`, `too_large`, `compile`, `engine`,
    /// `input`, `output`, `limits`.
    pub code: String,
    /// A sentence.
    pub message: String,
}

/// The one line of JSON that a worker prints: an [`AotOutcome`] with `"ok":true`, or `"ok":false` and an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether the file was compiled.
    pub ok: bool,
    /// What came of it.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<AotOutcome>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Rejection>,
}

/// Why a compile failed.
#[derive(Debug, thiserror::Error)]
pub enum AotError {
    /// There is no worker to start.
    #[error("cannot start the compiler {worker}: {source}; it is installed next to the hub")]
    Spawn {
        /// The executable.
        worker: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The worker looked at the file and said no: asking again will not help.
    #[error("{input}: {} [{}]", rejection.message, rejection.code)]
    Rejected {
        /// The Wasm file.
        input: PathBuf,
        /// The worker's words.
        rejection: Rejection,
    },
    /// It took too long by the clock; perhaps the machine is busy.
    #[error("{input}: not compiled within {wall:?}")]
    Timeout {
        /// The Wasm file.
        input: PathBuf,
        /// How long was waited.
        wall: Duration,
    },
    /// The worker died: of its limits, or of a bug that the file brought out.
    #[error("{input}: the compiler died ({cause}){complaint}")]
    Died {
        /// The Wasm file.
        input: PathBuf,
        /// What ended it.
        cause: String,
        /// The last that it printed.
        complaint: String,
    },
    /// It ended without a sensible answer: probably not a worker of this version.
    #[error("{worker} gave no sensible answer: {reason}")]
    Protocol {
        /// The executable.
        worker: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system failed while the worker ran.
    #[error("cannot wait for the compiler: {source}")]
    Wait {
        /// What the system answered.
        source: io::Error,
    },
}

impl AotError {
    /// Whether the same file will fail again, so that it must not be tried again by itself.
    pub fn is_permanent(&self) -> bool {
        matches!(self, AotError::Rejected { .. } | AotError::Died { .. })
    }
}

/// Compiles `input` for `target` into `output` in a process of its own, and waits for it. `output` appears whole or
/// not at all. Blocks: call it from a thread that may.
pub fn precompile_in_subprocess(
    worker: &Path,
    input: &Path,
    target: &str,
    output: &Path,
    limits: &AotLimits,
) -> Result<AotOutcome, AotError> {
    let mut child = Command::new(worker)
        .args(arguments(input, target, output, limits))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| AotError::Spawn {
            worker: worker.to_owned(),
            source,
        })?;
    let draft = draft_path(output, child.id());
    let (answer, complaint) = (
        collect(child.stdout.take(), ANSWER_BYTES_MAX),
        collect(child.stderr.take(), COMPLAINT_BYTES_MAX),
    );
    let ended = wait_or_kill(&mut child, limits.wall).map_err(|source| AotError::Wait { source });
    let (answer, complaint) = (finish(answer), finish(complaint));
    // A worker that died left its draft behind.
    let _ = std::fs::remove_file(draft);
    match ended? {
        Some(status) => judge(worker, input, status, &answer, &complaint),
        None => Err(AotError::Timeout {
            input: input.to_owned(),
            wall: limits.wall,
        }),
    }
}

/// Where a worker with this process id writes before it renames.
pub fn draft_path(output: &Path, pid: u32) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(output.file_name().unwrap_or_default());
    name.push(format!(".{pid}.part"));
    output.with_file_name(name)
}

fn arguments(input: &Path, target: &str, output: &Path, limits: &AotLimits) -> Vec<OsString> {
    let numbers = [limits.memory_bytes, limits.cpu_seconds, limits.output_bytes];
    let mut arguments: Vec<OsString> = vec![target.into()];
    arguments.extend(numbers.iter().map(|number| number.to_string().into()));
    arguments.extend([input.into(), output.into()]);
    arguments
}

fn judge(
    worker: &Path,
    input: &Path,
    status: ExitStatus,
    answer: &[u8],
    complaint: &[u8],
) -> Result<AotOutcome, AotError> {
    if let Some(signal) = status.signal() {
        return Err(AotError::Died {
            input: input.to_owned(),
            cause: cause_of(signal),
            complaint: quote(complaint),
        });
    }
    let protocol = |reason: String| AotError::Protocol {
        worker: worker.to_owned(),
        reason: format!("{reason}{}", quote(complaint)),
    };
    match serde_json::from_slice::<Answer>(answer) {
        Ok(Answer {
            ok: true,
            outcome: Some(outcome),
            ..
        }) if status.success() => Ok(outcome),
        Ok(Answer {
            ok: false,
            error: Some(rejection),
            ..
        }) => Err(AotError::Rejected {
            input: input.to_owned(),
            rejection,
        }),
        // A panic ends the worker with a status of its own and no answer.
        Err(_) if answer.is_empty() && status.code() == Some(101) => Err(AotError::Died {
            input: input.to_owned(),
            cause: "panic".to_owned(),
            complaint: quote(complaint),
        }),
        Ok(_) => Err(protocol(format!("{status} does not fit its answer"))),
        Err(error) => Err(protocol(format!("{status}, {error}"))),
    }
}

fn cause_of(signal: i32) -> String {
    match signal {
        6 => "abort, as when it is out of memory: limits.memory_bytes".to_owned(),
        9 => "killed, as when it is out of CPU time or the machine out of memory: limits.cpu_seconds".to_owned(),
        24 => "out of CPU time: limits.cpu_seconds".to_owned(),
        25 => "its output is too large: limits.output_bytes".to_owned(),
        _ => format!("signal {signal}"),
    }
}

fn quote(complaint: &[u8]) -> String {
    let text = String::from_utf8_lossy(complaint);
    match text.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

/// The status of the child, or nothing if it had to be killed. It is reaped either way.
fn wait_or_kill(child: &mut Child, wall: Duration) -> io::Result<Option<ExitStatus>> {
    let ended = wait_for_end(child, wall);
    if !matches!(ended, Ok(true)) {
        child.kill()?;
    }
    let status = child.wait()?;
    Ok(ended?.then_some(status))
}

fn wait_for_end(child: &Child, wall: Duration) -> io::Result<bool> {
    let pidfd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let deadline = Instant::now() + wall;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut waits = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        match rustix::event::poll(&mut waits, Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

type Collected = Option<JoinHandle<Vec<u8>>>;

/// Reads a pipe to its end on a thread, keeping the first `max` bytes, so that the child never waits for us.
fn collect(pipe: Option<impl Read + Send + 'static>, max: u64) -> Collected {
    let pipe = pipe?;
    let read = move || {
        let mut pipe = pipe;
        let mut kept = Vec::new();
        // What cannot be read is judged as what was not said.
        let _ = pipe.by_ref().take(max).read_to_end(&mut kept);
        let _ = io::copy(&mut pipe, &mut io::sink());
        kept
    };
    std::thread::Builder::new().name("aot-pipe".into()).spawn(read).ok()
}

fn finish(collected: Collected) -> Vec<u8> {
    collected.and_then(|thread| thread.join().ok()).unwrap_or_default()
}
