//! From a launch to a process: the folder, its files, the spec, the runtime.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;

use cnova_agent_core::Launch;
use cnova_attestation::event_log;
use cnova_link::Witness;
use cnova_ral::cgroup::GroupError;
use cnova_ral::{FolderError, Mount, Part, SecretSlot, Secrets, SecretsError, Spec};
use cnova_root_of_trust::measurer::MeasureError;
use cnova_shared::ids::{Digest, Name};
use cnova_shared::secret::{self, Address};
use cnova_shared::wire::v1::{InputFile, SecretTarget, SecretUse, TrustRequirement, Workload};
use cnova_store::Artifacts;
use rustix::fs::inotify;
use thiserror::Error;

use crate::box_key::Chest;
use crate::catalog::Catalog;
use crate::folders::Folders;
use crate::groups::Groups;
use crate::hardware::{Hardware, HardwareError};
use crate::instance::{self, InstanceId, Record};

/// The folder of input files in an instance's folder.
const FILES: &str = "files";

/// Why nothing was started.
#[derive(Debug, Error)]
pub(crate) enum LaunchError {
    #[error("runtime {0} is not installed here")]
    NoRuntime(String),
    #[error("artifact {0} is not in the store any more; it is fetched again")]
    ArtifactMissing(Digest),
    #[error("its settings are not JSON: {0}")]
    Settings(#[source] serde_json::Error),
    #[error("cannot {action} {path}: {source}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Hardware(#[from] HardwareError),
    #[error("no control group for it: {0}")]
    Group(#[from] GroupError),
    #[error("runtime {0} is too old to be given secrets: install a newer one")]
    NoSecrets(String),
    #[error("secret {name} cannot be opened: {why}")]
    Secret { name: Name, why: String },
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error("it asks for attestation, and its launch cannot be measured: {0}")]
    Unmeasured(MeasureError),
    #[error("its launch is not recorded, and what this node cannot account for is not started: {0}")]
    Unrecorded(MeasureError),
}

/// What every start needs.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) run_dir: PathBuf,
    pub(crate) folders: Folders,
    pub(crate) catalog: Catalog,
    pub(crate) artifacts: Arc<Artifacts>,
    pub(crate) groups: Groups,
    pub(crate) hardware: Hardware,
    /// With a TPM.
    pub(crate) witness: Option<Arc<Witness>>,
    /// The key for secrets, once it is open.
    pub(crate) chest: Arc<Chest>,
}

/// A runtime that was just started.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) child: Child,
    /// Readable whenever a file in the folder got its name.
    pub(crate) folder_events: OwnedFd,
    pub(crate) pidfd: OwnedFd,
    /// Why its launch could not be measured, if it could not.
    pub(crate) unmeasured: Option<String>,
}

fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LaunchError {
    let path = path.to_owned();
    move |source| LaunchError::Io { action, path, source }
}

/// Makes the folder and starts the runtime in it. Blocks on the disk.
pub(crate) fn launch(ground: &Ground, launch: &Launch) -> Result<Launched, LaunchError> {
    let w = &launch.workload;
    let exe = ground
        .catalog
        .exe(&w.runtime)
        .ok_or_else(|| LaunchError::NoRuntime(w.runtime.clone()))?;
    let id = InstanceId {
        workload: w.id.clone(),
        attempt: launch.attempt,
    };
    let dir = instance::folder(&ground.run_dir, &id);
    if let Some(missing) = artifacts_of(w).find(|digest| !ground.artifacts.has(digest)) {
        return Err(LaunchError::ArtifactMissing(missing));
    }
    cnova_ral::prepare_folder(&dir)?;
    let secrets = open_secrets(ground, launch)?;
    let spec = Spec {
        secrets: secrets.slots(),
        ..spec_of(ground, &dir, launch)?
    };
    let boot_id = cnova_ral::boot_id().map_err(fail("read", Path::new("/proc/sys/kernel/random/boot_id")))?;
    let record = Record {
        workload: w.id.clone(),
        attempt: launch.attempt,
        spec: launch.spec,
        boot_id,
        health_interval_ms: w.health.interval_ms,
    };
    instance::write_record(&dir, &record).map_err(fail("write the record in", &dir))?;
    cnova_ral::write_spec(&dir, &spec)?;
    let unmeasured = measure(ground, launch, exe)?;
    // Before the runtime exists, so that no file of it is missed.
    let folder_events = watch(&dir).map_err(fail("watch", &dir))?;
    let group = ground.groups.create(&id)?;
    let input = secrets.into_input()?;
    let mut child = cnova_ral::spawn_with(exe, &dir, group.as_ref(), input).map_err(fail("start", exe))?;
    match cnova_ral::pidfd_open(child.id()) {
        Ok(pidfd) => Ok(Launched {
            child,
            folder_events,
            pidfd,
            unmeasured,
        }),
        Err(source) => {
            // A process that cannot be watched must not run.
            let _ = child.kill();
            let _ = child.wait();
            Err(fail("open the process of", exe)(source))
        }
    }
}

/// Opens what the workload is given. It is in memory for as long as the start takes.
fn open_secrets(ground: &Ground, launch: &Launch) -> Result<Secrets, LaunchError> {
    let w = &launch.workload;
    if !w.secrets.is_empty() && !ground.catalog.takes_secrets(&w.runtime) {
        return Err(LaunchError::NoSecrets(w.runtime.clone()));
    }
    let open = |given: &SecretUse| {
        let name = &given.name;
        let fail = |why: &str| LaunchError::Secret {
            name: name.clone(),
            why: why.to_owned(),
        };
        let (node, key) = ground
            .chest
            .get()
            .ok_or_else(|| fail("this node has no key for secrets"))?;
        let sealed = launch
            .secrets
            .iter()
            .find(|s| s.name == *name && s.version == given.version);
        let sealed = sealed.ok_or_else(|| fail("it is not in the twin"))?;
        let address = Address {
            node,
            name,
            version: given.version,
        };
        let value = secret::open(&sealed.blob, key, address).map_err(|e| fail(&e.to_string()))?;
        let slot = match &given.target {
            SecretTarget::Env(name) => SecretSlot::Env(name.clone()),
            SecretTarget::File(path) => SecretSlot::File(path.into()),
        };
        Ok((slot, value))
    };
    let opened = w.secrets.iter().map(open).collect::<Result<Vec<_>, LaunchError>>()?;
    Ok(Secrets::new(opened)?)
}

/// Log, sync, extend; the caller launches. What asks for attestation is not launched without; the rest is, once it is
/// written down, and is logged later.
fn measure(ground: &Ground, launch: &Launch, exe: &Path) -> Result<Option<String>, LaunchError> {
    let measurer = ground.witness.as_ref().and_then(|w| w.measurer.as_ref());
    let Some(measurer) = measurer else { return Ok(None) };
    let w = &launch.workload;
    let runtime = measurer.executable(exe).map_err(LaunchError::Unrecorded)?;
    let measured = measurer.measure(event_log::Launch {
        workload: w.id.to_string(),
        artifact: w.artifact.digest,
        spec: launch.spec,
        runtime,
    });
    match measured {
        Ok(()) => Ok(None),
        Err(why @ MeasureError::Unrecorded { .. }) => Err(LaunchError::Unrecorded(why)),
        Err(why) if w.trust == TrustRequirement::Attested => Err(LaunchError::Unmeasured(why)),
        Err(why) => Ok(Some(why.to_string())),
    }
}

/// Everything that the runtime reads from the store. Input files are looked at when they are placed.
fn artifacts_of(w: &Workload) -> impl Iterator<Item = Digest> {
    std::iter::once(w.artifact.digest).chain(w.parts.iter().map(|p| p.digest))
}

fn watch(dir: &Path) -> io::Result<OwnedFd> {
    let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(
        &fd,
        dir,
        inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CLOSE_WRITE,
    )?;
    Ok(fd)
}

fn spec_of(ground: &Ground, dir: &Path, launch: &Launch) -> Result<Spec, LaunchError> {
    let w = &launch.workload;
    let settings = match w.settings.as_str() {
        "" => serde_json::Value::Null,
        text => serde_json::from_str(text).map_err(LaunchError::Settings)?,
    };
    let no_folder = |(path, source): (PathBuf, io::Error)| fail("make the folder", &path)(source);
    let mut mounts = place_files(dir, &ground.artifacts, w)?;
    mounts.extend(ground.folders.volumes(w).map_err(no_folder)?);
    let parts = w.parts.iter().map(|part| Part {
        digest: part.digest.to_string(),
        path: ground.artifacts.path(&part.digest),
    });
    Ok(Spec {
        ral: cnova_ral::RAL_VERSION,
        workload: w.id.to_string(),
        application: w.id.application.to_string(),
        epoch: launch.version.epoch,
        generation: launch.version.generation,
        attempt: u64::from(launch.attempt),
        artifact: ground.artifacts.path(&w.artifact.digest),
        digest: w.artifact.digest.to_string(),
        args: w.args.clone(),
        env: w.env.clone(),
        mounts,
        limits: cnova_ral::Limits {
            memory_bytes: w.memory_bytes,
            cpu_millis: u32::try_from(w.cpu_millis).unwrap_or(u32::MAX),
            log_bytes: w.log_bytes,
            wall_seconds: w.wall_seconds,
            ..cnova_ral::Limits::default()
        },
        grants: cnova_ral::Grants {
            clocks: w.grants.clocks,
            random: w.grants.random,
            network: w.grants.network.clone(),
            threads: w.grants.threads,
            nn: w.grants.nn,
        },
        stop_grace_ms: w.stop_grace_ms,
        settings,
        parts: parts.collect(),
        devices: ground.hardware.for_workload(w, &launch.accelerators)?,
        cache: Some(ground.folders.cache(&w.runtime).map_err(no_folder)?),
        secrets: Vec::new(),
    })
}

/// Puts the input files below `files/` as the workload shall see them, and says what to mount.
fn place_files(dir: &Path, artifacts: &Artifacts, w: &Workload) -> Result<Vec<Mount>, LaunchError> {
    let root = dir.join(FILES);
    if root.exists() {
        fs::remove_dir_all(&root).map_err(fail("remove", &root))?;
    }
    for file in &w.files {
        let to = root.join(file.path.trim_start_matches('/'));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(fail("create", parent))?;
        }
        let from = artifacts.path(&file.artifact.digest);
        if !from.is_file() {
            return Err(LaunchError::ArtifactMissing(file.artifact.digest));
        }
        // A link costs no flash; across file systems only a copy works.
        if fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).map_err(fail("copy an input file to", &to))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o444)).map_err(fail("protect", &to))?;
        }
    }
    // A container keeps what its image has beside the file; Wasm can only be given whole folders.
    let guests = if w.runtime == "container" {
        paths_of(&w.files)
    } else {
        folders_of(&w.files)
    };
    let mount = |guest: PathBuf| {
        let host = root.join(guest.strip_prefix("/").unwrap_or(&guest));
        Mount {
            guest,
            host,
            writable: false,
        }
    };
    Ok(guests.into_iter().map(mount).collect())
}

fn paths_of(files: &[InputFile]) -> BTreeSet<PathBuf> {
    files.iter().map(|f| PathBuf::from(&f.path)).collect()
}

/// The outermost folders that hold files.
fn folders_of(files: &[InputFile]) -> BTreeSet<PathBuf> {
    let all: BTreeSet<PathBuf> = files
        .iter()
        .filter_map(|f| Path::new(&f.path).parent().map(Path::to_owned))
        .collect();
    let is_outermost = |p: &PathBuf| !p.ancestors().skip(1).any(|a| all.contains(a));
    all.iter().filter(|p| is_outermost(p)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cnova_shared::wire::v1::Artifact;

    #[test]
    fn only_the_outermost_folders_are_mounted() {
        let file = |path: &str| InputFile {
            path: path.into(),
            artifact: Artifact {
                digest: Digest::of(b"x"),
                size: 1,
            },
        };
        let files = [file("/data/a"), file("/data/sub/b"), file("/etc/x/c"), file("/data2/d")];
        let folders: Vec<PathBuf> = folders_of(&files).into_iter().collect();
        assert_eq!(folders, ["/data", "/data2", "/etc/x"].map(PathBuf::from));
        assert_eq!(
            folders_of(&[file("/a"), file("/b/c")]).into_iter().collect::<Vec<_>>(),
            [PathBuf::from("/")]
        );
    }
}
