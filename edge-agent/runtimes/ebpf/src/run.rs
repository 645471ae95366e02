//! One run, from the spec to the exit file.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cnova_ral::settings::{self, Ebpf};
use cnova_ral::{
    Exit, ExitReason, FolderError, LogError, LogWriter, ServeError, Server, Spec, State, open_folder, serve,
    write_exit, write_state,
};
use ring::digest::{SHA256, digest};
use rustix::fs::Mode;

use crate::attached::{Attached, AttachedError};
use crate::control::Shared;
use crate::helper::{self, HelperError};
use crate::inspect::{OBJECT_BYTES_MAX, Verdict};
use crate::load::Report;
use crate::policy::{self, Bounds, Refusal};
use crate::records::{Ring, Writer};
use crate::signals::Signals;
use crate::watch::Watch;
use crate::{confine, sys};

/// Status of the process when the folder already has a runtime; its files are not touched then.
const STATUS_HELD: u8 = 3;

/// Why a workload was not started; it becomes the detail of a `refused` exit.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("cannot read artifact {path}: {source}")]
    Artifact { path: PathBuf, source: io::Error },
    #[error("artifact {path} is longer than {OBJECT_BYTES_MAX} bytes")]
    TooLong { path: PathBuf },
    #[error("artifact {path} has digest sha256:{found}, the spec says {wanted}: fetch it again")]
    Digest {
        path: PathBuf,
        found: String,
        wanted: String,
    },
    #[error("{0}")]
    Settings(String),
    #[error(transparent)]
    Helper(HelperError),
    #[error("refused by policy: {0}")]
    Policy(#[from] Refusal),
    #[error(transparent)]
    Attached(#[from] AttachedError),
    #[error("the ring buffer cannot be read: {0}")]
    Ring(String),
    #[error("cannot {action}: {source}")]
    System { action: &'static str, source: io::Error },
    #[error("stopped while it was starting")]
    Stopped,
}

impl From<HelperError> for LaunchError {
    fn from(error: HelperError) -> LaunchError {
        match error {
            HelperError::Stopped => LaunchError::Stopped,
            other => LaunchError::Helper(other),
        }
    }
}

/// Runs the workload in `dir` to its end. It has no exit code of its own, so the status is 1 unless it could not
/// start.
#[must_use]
pub fn run(dir: &Path) -> ExitCode {
    let dir = match std::path::absolute(dir) {
        Ok(dir) => dir,
        Err(error) => return complain(&error, 1),
    };
    if let Err(error) = settle() {
        return complain(&error, 1);
    }
    let (_lock, spec) = match open_folder(&dir) {
        Ok(opened) => opened,
        Err(error @ FolderError::Held { .. }) => return complain(&error, STATUS_HELD),
        Err(error) => return refuse(&dir, &error.into()),
    };
    match launch(&dir, &spec) {
        Ok((exit, _server)) => end(&dir, &exit),
        Err(LaunchError::Stopped) => end(&dir, &Exit::new(ExitReason::Stopped)),
        Err(error) => refuse(&dir, &error),
    }
}

/// A session of its own, so that nobody's Ctrl-C or hang-up reaches the workload.
fn settle() -> io::Result<()> {
    cnova_ral::own_session()?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    Ok(())
}

fn launch(dir: &Path, spec: &Spec) -> Result<(Exit, Server), LaunchError> {
    let system = |action| move |source| LaunchError::System { action, source };
    let signals = Signals::block().map_err(system("block signals"))?;
    // What needs rights comes first: the helpers, the artifact, the measuring of run times. Then the rights go,
    // before anything that the workload brings is looked at.
    let inspector = helper::start(helper::INSPECT)?;
    let loader = helper::start(helper::LOAD)?;
    let artifact = open_artifact(spec)?;
    let stats = sys::enable_run_time_stats().ok();
    confine::drop_all().map_err(system("give rights away"))?;

    let shared = Shared::new(LogWriter::open(dir, spec.limits.log_bytes)?);
    let server = serve(dir, shared.clone())?;
    let object = read_checked(artifact, spec)?;
    let settings: Ebpf = settings::read(&spec.settings).map_err(LaunchError::Settings)?;
    let bounds = Bounds {
        possible_cpus: possible_cpus().map_err(system("count the CPUs"))?,
        memory_bytes: spec.limits.memory_bytes,
    };
    let (verdict, _): (Verdict, _) = inspector.ask(&(), &object, &signals)?;
    policy::judge(&verdict, &settings, bounds)?;
    let (report, fds): (Report, _) = loader.ask(&settings, &object, &signals)?;
    drop(object);
    let (attached, log) = Attached::take(&settings, &verdict.maps, &report, fds, stats)?;
    let ring = open_ring(log)?;
    let writer = Writer::new(&settings).map_err(|e| LaunchError::Settings(e.to_string()))?;
    confine::filter_runtime().map_err(system("filter its system calls"))?;
    let state = State::of_this_process(spec).map_err(system("name this process"))?;
    shared.start(attached, || write_state(dir, &state))?;
    let exit = Watch::new(&shared, &signals, ring, writer, spec.limits.wall_seconds).until_the_end();
    shared.stopping();
    Ok((exit, server))
}

fn open_artifact(spec: &Spec) -> Result<File, LaunchError> {
    File::open(&spec.artifact).map_err(|source| LaunchError::Artifact {
        path: spec.artifact.clone(),
        source,
    })
}

/// Reads the bytes once and checks those that were read.
fn read_checked(artifact: File, spec: &Spec) -> Result<Vec<u8>, LaunchError> {
    let path = spec.artifact.clone();
    let mut bytes = Vec::new();
    if let Err(source) = artifact.take(OBJECT_BYTES_MAX + 1).read_to_end(&mut bytes) {
        return Err(LaunchError::Artifact { path, source });
    }
    if bytes.len() as u64 > OBJECT_BYTES_MAX {
        return Err(LaunchError::TooLong { path });
    }
    let found = digest(&SHA256, &bytes);
    if spec.sha256().is_none_or(|wanted| wanted != found.as_ref()) {
        return Err(LaunchError::Digest {
            path,
            found: found.as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
            wanted: spec.digest.clone(),
        });
    }
    Ok(bytes)
}

fn possible_cpus() -> io::Result<usize> {
    aya::util::nr_cpus().map_err(|(path, error)| io::Error::new(error.kind(), format!("{path}: {error}")))
}

fn open_ring(fd: Option<OwnedFd>) -> Result<Option<Ring>, LaunchError> {
    fd.map(Ring::open)
        .transpose()
        .map_err(|e| LaunchError::Ring(e.to_string()))
}

/// Writes the exit file as the last thing. The server is dropped after it, so that the agent sees one or the other.
fn end(dir: &Path, exit: &Exit) -> ExitCode {
    match write_exit(dir, exit) {
        Ok(()) => ExitCode::from(1),
        Err(error) => complain(&error, 1),
    }
}

fn refuse(dir: &Path, error: &LaunchError) -> ExitCode {
    eprintln!("refused: {error}");
    end(dir, &Exit::new(ExitReason::Refused).with_detail(error.to_string()))
}

fn complain(error: &dyn std::error::Error, status: u8) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(status)
}
