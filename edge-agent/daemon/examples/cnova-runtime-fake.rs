//! A runtime for the agent's tests: the fourth one, written on the RAL's library alone.
//!
//! What it does is in the workload's first argument:
//!
//! | argument | what it does |
//! |---|---|
//! | `run` | runs until it is told to stop |
//! | `exit N` | ends with code N at once |
//! | `slow` | lives without a word: no socket, no state |
//! | `deaf` | ignores that it shall stop |
//! | `prepare` | says that it prepares until a file `go` is in its state folder |
//! | `litter` | leaves a process behind that is in a session of its own |
//!
//! How it is asked for its health, is in the file `fake-health` in its state folder: nothing or `well`, `hang`, or what
//! is wrong.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cnova_ral::{
    Control, Exit, ExitReason, Health, Metrics, Phase, Spec, State, boot_id, file, process_start_time, write_exit,
    write_state,
};
use cnova_shared::ids::Digest;

const TURN: Duration = Duration::from_millis(5);
const DESCRIPTION: &str = r#"{"ral":1,"runtime":"fake","version":"1.0","targets":["any"],"engine":"fake-1"}"#;

/// What the socket's thread and the main one share.
struct Shared {
    dir: PathBuf,
    began: Instant,
    running: AtomicBool,
    stopped: AtomicBool,
}

impl Control for Shared {
    fn health(&self) -> Health {
        let told = std::fs::read_to_string(self.dir.join("fake-health")).unwrap_or_default();
        let detail = match told.trim() {
            "" | "well" => None,
            "hang" => loop {
                sleep(Duration::from_secs(1));
            },
            wrong => Some(wrong.to_owned()),
        };
        let is_running = self.running.load(Ordering::Acquire);
        Health {
            healthy: is_running && detail.is_none(),
            phase: if is_running { Phase::Running } else { Phase::Starting },
            uptime_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            detail,
        }
    }

    fn metrics(&self) -> Metrics {
        Metrics {
            cpu_ms: 1,
            memory_bytes: 2,
            ..Metrics::default()
        }
    }

    fn stop(&self, _: Option<Duration>) {
        self.stopped.store(true, Ordering::Release);
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["describe"] => {
            let _ = writeln!(std::io::stdout(), "{DESCRIPTION}");
            ExitCode::SUCCESS
        }
        ["run", "--state", dir] => match run(Path::new(dir)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "{error}");
                ExitCode::FAILURE
            }
        },
        _ => ExitCode::from(2),
    }
}

fn run(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (_lock, spec) = cnova_ral::open_folder(dir)?;
    let found = Digest::of(&std::fs::read(&spec.artifact)?).to_string();
    if found != spec.digest {
        let exit = Exit::new(ExitReason::Refused).with_detail("the artifact is another");
        return Ok(write_exit(dir, &exit)?);
    }
    let mode = spec.args.first().map_or("run", String::as_str);
    if mode == "slow" {
        loop {
            sleep(TURN);
        }
    }
    let shared = Arc::new(Shared {
        dir: dir.to_owned(),
        began: Instant::now(),
        running: AtomicBool::new(false),
        stopped: AtomicBool::new(false),
    });
    // It lives until the process ends: a thread of it that was told to hang could not be joined.
    std::mem::forget(cnova_ral::serve(dir, shared.clone())?);
    while mode == "prepare" && !dir.join("go").exists() && !shared.stopped.load(Ordering::Acquire) {
        sleep(TURN);
    }
    let mut log = std::fs::File::options()
        .append(true)
        .create(true)
        .open(dir.join(file::LOG))?;
    writeln!(log, "2026-01-01T00:00:00Z stdout F started {}", spec.args.join(" "))?;
    if mode == "litter" {
        let mut left = Command::new("setsid");
        left.args(["sleep", "1000"]).stdin(Stdio::null());
        let pid = left.spawn()?.id();
        std::fs::write(dir.join("litter"), pid.to_string())?;
    }
    write_state(dir, &state(&spec)?)?;
    shared.running.store(true, Ordering::Release);
    if mode == "exit" {
        let code = spec.args.get(1).map_or(Ok(0), |code| code.parse())?;
        return Ok(write_exit(dir, &Exit::new(ExitReason::Finished).with_code(code))?);
    }
    while mode == "deaf" || !shared.stopped.load(Ordering::Acquire) {
        sleep(TURN);
    }
    Ok(write_exit(dir, &Exit::new(ExitReason::Stopped))?)
}

fn state(spec: &Spec) -> std::io::Result<State> {
    let pid = std::process::id();
    Ok(State {
        ral: cnova_ral::RAL_VERSION,
        pid,
        start_time: process_start_time(pid)?,
        boot_id: boot_id()?,
        workload: spec.workload.clone(),
        epoch: spec.epoch,
        generation: spec.generation,
        attempt: spec.attempt,
        digest: spec.digest.clone(),
        started_unix_ms: 0,
        phase: Phase::Running,
    })
}
