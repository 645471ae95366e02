//! One run, from the spec to the exit file.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use cnova_oci::Digest;
use cnova_ral::settings::{self, Container, Isolation};
use cnova_ral::{
    Exit, ExitReason, FolderError, LogError, LogWriter, SecretsError, ServeError, Server, Spec, open_folder, serve,
    take_secrets, write_exit,
};
use rustix::fs::Mode;
use rustix::pipe::PipeFlags;

use crate::cgroup::{GroupError, GroupLimits, WorkloadGroup};
use crate::config::{Config, ConfigError};
use crate::control::Shared;
use crate::keeper::{self, Job};
use crate::messages::Channel;
use crate::oci::{self, OciError};
use crate::rootfs::{self, RootfsError};
use crate::shim::Shim;
use crate::sys::{self, Forked};

/// Status of the process when the folder already has a runtime; its files are not touched then.
const STATUS_HELD: u8 = 3;
/// Processes and threads of a container whose manifest does not say.
const PIDS: u32 = 64;
/// Least memory with which a container can be made at all.
const MEMORY_BYTES_MIN: u64 = 1 << 20;

/// Why a container was not started; it becomes the detail of a `refused` exit.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error(transparent)]
    Settings(#[from] OciError),
    #[error(transparent)]
    Devices(#[from] RootfsError),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error("{0}")]
    Unreadable(String),
    #[error("containers need root: start the agent as root")]
    NotRoot,
    #[error("limits.memory_bytes is {0}; a container needs at least {MEMORY_BYTES_MIN}")]
    Memory(u64),
    #[error("grants.network: containers are not limited to peers; say settings.network instead")]
    Peers,
    #[error("cannot {action}: {source}")]
    System { action: &'static str, source: io::Error },
}

/// Runs the container in `dir` to its end. The status is its code if it has one that fits, else 1.
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

/// A session of its own, so that nobody's Ctrl-C or hang-up reaches the workload.
fn confine() -> io::Result<()> {
    cnova_ral::own_session()?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}

fn launch(dir: &Path, spec: &Spec) -> Result<(Exit, Server), LaunchError> {
    let system = |action| move |source| LaunchError::System { action, source };
    if !rustix::process::geteuid().is_root() {
        return Err(LaunchError::NotRoot);
    }
    let config = Config::read()?;
    let settings: Container = settings::read(&spec.settings).map_err(LaunchError::Unreadable)?;
    check(spec, &settings)?;
    let nodes = rootfs::nodes(&spec.devices)?;
    let secrets = take_secrets(spec)?;
    // The name follows from the folder, so that what a killed shim left is found by the next one.
    let id = Digest::of(dir.as_os_str().as_encoded_bytes()).hex()[..12].to_owned();
    let log = LogWriter::open(dir, spec.limits.log_bytes)?;
    let group = WorkloadGroup::create(&format!("workload-{id}"), &limits(spec, &settings, &nodes))?;
    let doors = group.doors()?;
    let signals = sys::signal_fd(&[libc::SIGTERM, libc::SIGINT]).map_err(system("receive signals"))?;
    let (ours, theirs) = Channel::pair().map_err(system("make a channel"))?;
    let (stdout, stdout_writer) = pipe().map_err(system("make a pipe"))?;
    let (stderr, stderr_writer) = pipe().map_err(system("make a pipe"))?;
    let has_probe = settings.probe.is_some();
    let job = Job {
        spec: spec.clone(),
        secrets,
        settings,
        config,
        nodes,
        id,
        group: group.clone(),
        doors,
        channel: theirs,
        stdout: stdout_writer,
        stderr: stderr_writer,
    };
    // SAFETY: no thread has been started yet.
    let keeper = match unsafe { sys::fork(true) }.map_err(system("make a PID namespace"))? {
        Forked::Child => keeper::run(job),
        Forked::Parent(pid) => pid,
    };
    // The shim's copy of the secrets goes with it.
    drop(job);
    let shared = Shared::new(spec.stop_grace_ms, has_probe, group).map_err(system("make an event"))?;
    let server = serve(dir, shared.clone());
    let shim = Shim::new(dir, spec, keeper, ours, signals, [stdout, stderr], log, shared);
    match server {
        Ok(server) => Ok((shim.run(), server)),
        Err(error) => {
            shim.abandon();
            Err(error.into())
        }
    }
}

fn check(spec: &Spec, settings: &Container) -> Result<(), LaunchError> {
    if spec.limits.memory_bytes < MEMORY_BYTES_MIN {
        return Err(LaunchError::Memory(spec.limits.memory_bytes));
    }
    if !spec.grants.network.is_empty() {
        return Err(LaunchError::Peers);
    }
    Ok(oci::check(settings)?)
}

fn limits(spec: &Spec, settings: &Container, nodes: &[rootfs::Node]) -> GroupLimits {
    let own = rootfs::NODES
        .iter()
        .map(|(_, major, minor)| format!("c {major}:{minor} rwm"));
    // The multiplexer of pseudo terminals, and the terminals.
    let terminals = ["c 5:2 rwm", "c 136:* rwm"].map(str::to_owned);
    // An installed runtime grants by itself what all of them do: to make nodes, which its user namespace prevents.
    let external: &[&str] = match settings.isolation {
        Isolation::Process => &[],
        Isolation::Sandbox | Isolation::Vm => &["c *:* m", "b *:* m", "c 10:200 rwm", "c 5:1 rwm", "c 10:232 rwm"],
    };
    let external = external.iter().map(|rule| (*rule).to_owned());
    GroupLimits {
        memory_bytes: spec.limits.memory_bytes,
        cpu_millis: spec.limits.cpu_millis,
        pids: settings.pids.unwrap_or(PIDS).max(1),
        everywhere: settings.isolation != Isolation::Process,
        devices: own
            .chain(terminals)
            .chain(external)
            .chain(nodes.iter().map(rootfs::Node::rule))
            .collect(),
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
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
