//! One run, from the spec to the exit file.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use cnova_ral::settings::{self, Wasm};
use cnova_ral::{
    Exit, ExitReason, FolderError, LogError, LogWriter, SecretsError, ServeError, Server, Spec, State, open_folder,
    serve, take_secrets, write_exit, write_state,
};
use rustix::fs::Mode;
use wasmtime::{Config, Engine};

use crate::artifact::{self, ArtifactError};
use crate::control::Shared;
use crate::guest::{self, Job, Outcome};
use crate::nn::{Nn, NnError};
use crate::output::Output;
use crate::secrets::{self, PlaceError};
use crate::supervisor::{self, Signals};
use crate::wasi::{self, WorldError};

/// Status of the process when the folder already has a runtime; its files are not touched then.
const STATUS_HELD: u8 = 3;

/// Threads that access files for the workload. They come when they are needed and go soon after.
const FILE_THREADS: usize = 2;
/// How long such a thread waits for more work.
const FILE_THREAD_IDLE: Duration = Duration::from_millis(500);
/// The stack of such a thread, in bytes.
const FILE_THREAD_STACK_BYTES: usize = 256 << 10;

/// Why a workload was not started; it becomes the detail of a `refused` exit.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error(transparent)]
    World(#[from] WorldError),
    #[error("cannot {action}: {source}")]
    System { action: &'static str, source: io::Error },
    #[error("cannot set up the engine: {reason}")]
    Engine { reason: String },
    #[error("{reason}")]
    Settings { reason: String },
    #[error(transparent)]
    Nn(#[from] NnError),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("settings.coreDump: a core dump would hold the secrets; leave one of the two out")]
    SecretsInCore,
    #[error(
        "grants.threads: this runtime has no threads (shared memory escapes the memory limit, and one thread's trap \
         would have to end them all): build the workload without, or run it as a container"
    )]
    Threads,
}

/// Runs the workload in `dir` to its end. The status is the workload's code if it has one that fits, else 1.
pub(crate) fn run(dir: &Path) -> ExitCode {
    let dir = match std::path::absolute(dir) {
        Ok(dir) => dir,
        Err(error) => return complain(&error, 1),
    };
    if let Err(error) = confine() {
        return complain(&error, 1);
    }
    let (_lock, spec) = match open_folder(&dir) {
        Ok(opened) => opened,
        Err(error @ FolderError::Held { .. }) => return complain(&error, STATUS_HELD),
        Err(error) => return refuse(&dir, &error.into()),
    };
    match launch(&dir, &spec) {
        Ok((exit, _server)) => end(&dir, &exit),
        Err(error) => refuse(&dir, &error),
    }
}

/// A session of its own, so that nobody's Ctrl-C or hang-up reaches the workload; no way to gain rights.
fn confine() -> io::Result<()> {
    cnova_ral::own_session()?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

fn launch(dir: &Path, spec: &Spec) -> Result<(Exit, Server), LaunchError> {
    let system = |action| move |source| LaunchError::System { action, source };
    // Before the first thread: what they are put into is this thread's and that of those it starts.
    let secrets = take_secrets(spec)?;
    let folder = secrets::place(dir, &secrets)?;
    let signals = Signals::block().map_err(system("block signals"))?;
    let log = LogWriter::open(dir, spec.limits.log_bytes)?;
    let shared = Shared::new(Output::new(log), spec.stop_grace_ms);
    let server = serve(dir, shared.clone())?;
    let settings = read_settings(spec)?;
    let engine = Engine::new(&engine_config(&settings)).map_err(|error| LaunchError::Engine {
        reason: format!("{error:#}"),
    })?;
    let artifact = artifact::load(&engine, spec, &settings)?;
    let world = wasi::build(spec, &settings, &shared, &secrets, folder.mounts())?;
    drop(secrets);
    supervisor::start(signals, engine.clone(), shared.clone(), &spec.limits, &settings, dir)
        .map_err(system("start the supervisor"))?;
    let runtime = event_loop(spec).map_err(system("start the event loop"))?;
    let nn = match spec.grants.nn {
        true => Some(runtime.block_on(Nn::start(spec, &settings, &shared))?),
        false => None,
    };
    let started = || {
        shared.start(|| {
            write_state(dir, &State::of_this_process(spec)?)?;
            Ok(())
        })
    };
    let job = Job {
        engine: &engine,
        spec,
        settings: &settings,
        shared: &shared,
        dir,
    };
    let outcome: Outcome = runtime.block_on(guest::run(&job, artifact, world, nn, started));
    let exit = outcome.into_exit(&job);
    if !shared.begin_end() {
        // The supervisor ends this process any moment now, with the exit file that it writes.
        loop {
            std::thread::park();
        }
    }
    shared.with_output(Output::finish);
    // A thread that still looks up a name must not hold the end up.
    runtime.shutdown_background();
    Ok((exit, server))
}

/// What the manifest asks for, unless it asks for what no workload gets here.
fn read_settings(spec: &Spec) -> Result<Wasm, LaunchError> {
    if spec.grants.threads {
        return Err(LaunchError::Threads);
    }
    let settings: Wasm = settings::read(&spec.settings).map_err(|reason| LaunchError::Settings { reason })?;
    if !settings.models.is_empty() && !spec.grants.nn {
        let reason = "settings.models needs grants.nn".to_owned();
        return Err(LaunchError::Settings { reason });
    }
    if settings.core_dump && !spec.secrets.is_empty() {
        return Err(LaunchError::SecretsInCore);
    }
    Ok(settings)
}

fn engine_config(settings: &Wasm) -> Config {
    let mut config = match settings.pulley {
        true => cnova_wasm_engine::pulley_config(),
        false => cnova_wasm_engine::config(),
    };
    // No matter of the machine code, so not of the engine's name either.
    config.coredump_on_trap(settings.core_dump);
    config
}

fn event_loop(spec: &Spec) -> io::Result<tokio::runtime::Runtime> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime
        .enable_time()
        .max_blocking_threads(FILE_THREADS)
        .thread_keep_alive(FILE_THREAD_IDLE)
        .thread_stack_size(FILE_THREAD_STACK_BYTES);
    if !spec.grants.network.is_empty() || spec.grants.nn {
        runtime.enable_io();
    }
    runtime.build()
}

/// Writes the exit file as the last thing. The server is dropped after it, so that the agent sees one or the other.
fn end(dir: &Path, exit: &Exit) -> ExitCode {
    let status = match exit.code {
        Some(code) => u8::try_from(code).unwrap_or(1),
        None => 1,
    };
    match write_exit(dir, exit) {
        Ok(()) => ExitCode::from(status),
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
