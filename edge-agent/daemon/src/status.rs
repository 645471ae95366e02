//! `cnova-agent status`: how the node stands, for a person in front of it. Asked on a local socket, without any network.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cnova_agent_core::Status;
use cnova_shared::wire::v1::{SystemReport, SystemState, WorkloadState};
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::config::AgentConfig;

/// The socket in the state folder.
const SOCKET: &str = "status.sock";
/// Largest answer, bytes.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// How long an answer may take, and how long a reader may take to read it.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// Questions that wait.
const QUESTIONS: usize = 4;

/// Where an answer goes.
pub(crate) type Question = oneshot::Sender<Status>;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum StatusError {
    /// Nobody answers.
    #[error("no agent answers on {path} ({source}); is it running? `cnova-agent check` says what would be wrong")]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// It answered something else.
    #[error("the agent's answer on {path} is not a status: {source}")]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Answers on the socket until the receiver of questions is dropped.
pub(crate) fn serve(state_dir: &Path) -> io::Result<mpsc::Receiver<Question>> {
    let path = state_dir.join(SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let folder = File::open(state_dir)?;
    let listener = UnixListener::bind(short(&folder))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let (asked, questions) = mpsc::channel(QUESTIONS);
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else {
                // Out of descriptors, most likely; there may be some later.
                tokio::time::sleep(ANSWER_TIME).await;
                continue;
            };
            let (answer, answered) = oneshot::channel();
            if asked.send(answer).await.is_err() {
                return;
            }
            let Ok(Ok(status)) = timeout(ANSWER_TIME, answered).await else {
                continue;
            };
            let text = serde_json::to_vec(&status).unwrap_or_default();
            // One at a time; who does not read is dropped.
            let _ = timeout(ANSWER_TIME, stream.write_all(&text)).await;
        }
    });
    Ok(questions)
}

/// The socket by way of its folder: a path longer than a socket's address may be is no obstacle.
fn short(folder: &File) -> String {
    format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd())
}

/// Asks the agent that runs on this node.
///
/// # Errors
/// [`StatusError`].
pub fn ask(config: &AgentConfig) -> Result<Status, StatusError> {
    let path = config.state_dir.join(SOCKET);
    let fail = |source| StatusError::NoAgent {
        path: path.clone(),
        source,
    };
    let folder = File::open(&config.state_dir).map_err(fail)?;
    let stream = UnixStream::connect(short(&folder)).map_err(fail)?;
    stream.set_read_timeout(Some(2 * ANSWER_TIME)).map_err(fail)?;
    let mut text = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut text).map_err(fail)?;
    serde_json::from_slice(&text).map_err(|source| StatusError::Malformed { path, source })
}

/// For people.
#[must_use]
pub fn text(s: &Status) -> String {
    let mut out = String::new();
    let link = if s.connected {
        "connected"
    } else {
        "not connected: it works on by itself"
    };
    let _ = writeln!(out, "node      {} at {} (cnova-agent {})", s.node, s.site, s.software);
    let _ = writeln!(out, "parent    {}, {link}", s.parent);
    match (s.epoch, s.generation) {
        (0, 0) => out.push_str("twin      none yet\n"),
        (epoch, generation) => {
            let _ = writeln!(out, "twin      {epoch}.{generation}");
        }
    }
    let _ = writeln!(
        out,
        "given out {} of {} MiB of memory, {} of {} thousandths of a core",
        s.memory_used_bytes.div_ceil(1 << 20),
        s.memory_bytes >> 20,
        s.cpu_used_millis,
        s.cpu_millis
    );
    let why = if s.power_why.is_empty() {
        String::new()
    } else {
        format!(" ({})", s.power_why)
    };
    let _ = writeln!(out, "power     {}{why}", s.power);
    let boot = match s.own_boot.as_str() {
        "approved" => "approved: the ledger key opened under it",
        "refused" => "NOT APPROVED: the ledger key stays closed, see the alarm",
        "unknown" => "not known yet: the TPM does not answer",
        _ => "nothing is sealed for it",
    };
    let _ = writeln!(out, "boot      {boot}");
    system(&mut out, &s.system);
    for a in &s.accelerators {
        let held = match a.leased_to.as_str() {
            "" => "free".to_owned(),
            by => format!("leased to {by}"),
        };
        let _ = writeln!(out, "{:<9} {} ({}), {held}", "leasable", a.id, a.kind);
    }
    for alarm in &s.alarms {
        let _ = writeln!(out, "alarm     {alarm}");
    }
    if s.workloads.is_empty() {
        out.push_str("\nno workloads\n");
    } else {
        workloads(&mut out, s);
    }
    out
}

fn system(out: &mut String, s: &SystemReport) {
    if !s.version.is_empty() {
        let _ = writeln!(out, "system    {} in slot {} ({})", s.version, s.slot, s.compatible);
    }
    if !s.wanted.is_empty() {
        let state = system_word(s.state);
        let why = if s.reason.is_empty() {
            String::new()
        } else {
            format!(": {}", s.reason)
        };
        let _ = writeln!(out, "asked for {} (attempt {}), {state}{why}", s.wanted, s.attempt);
    }
}

const fn system_word(state: SystemState) -> &'static str {
    match state {
        SystemState::Idle => "idle",
        SystemState::Waiting => "waiting",
        SystemState::Writing => "being written",
        SystemState::Verifying => "being read back",
        SystemState::Staged => "staged",
        SystemState::Rebooting => "about to start",
        SystemState::Trial => "on trial",
        SystemState::Confirmed => "good",
        SystemState::RolledBack => "ROLLED BACK",
        SystemState::Failed => "FAILED",
        SystemState::Unknown => "unknown",
    }
}

fn workloads(out: &mut String, s: &Status) {
    let width = s.workloads.iter().map(|w| w.id.len()).max().unwrap_or(0).max(8);
    let _ = writeln!(
        out,
        "\n{:<width$}  {:<9}  {:<10}  {:>4}  {:>5}  {:>7}",
        "WORKLOAD", "RUNTIME", "STATE", "PRIO", "TRIES", "PID"
    );
    for w in &s.workloads {
        let pid = if w.pid == 0 { "-".to_owned() } else { w.pid.to_string() };
        let _ = writeln!(
            out,
            "{:<width$}  {:<9}  {:<10}  {:>4}  {:>5}  {:>7}",
            w.id,
            w.runtime,
            state(w.state),
            w.priority,
            w.attempt,
            pid
        );
        if !w.reason.is_empty() {
            let _ = writeln!(out, "{:<width$}  {}", "", w.reason);
        }
    }
}

const fn state(state: WorkloadState) -> &'static str {
    match state {
        WorkloadState::Waiting => "waiting",
        WorkloadState::Fetching => "fetching",
        WorkloadState::Starting => "starting",
        WorkloadState::Running => "running",
        WorkloadState::Stopping => "stopping",
        WorkloadState::Finished => "finished",
        WorkloadState::Failed => "failed",
        WorkloadState::CrashLoop => "crash-loop",
        WorkloadState::Unknown => "unknown",
    }
}
