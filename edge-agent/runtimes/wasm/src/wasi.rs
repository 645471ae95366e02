//! The world a workload sees: its arguments, environment, folders, clocks and random numbers, and nothing else.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cnova_ral::settings::{NamedModel, Wasm};
use cnova_ral::{Mount, Secrets, Spec, Stream};
use wasmtime_wasi::{Deterministic, FsPerms, HostMonotonicClock, HostWallClock, WasiCtxBuilder};

use crate::control::Shared;
use crate::network::{self, GrantError};
use crate::output::Sink;

/// Longest run of random bytes in one call, in bytes.
const RANDOM_BYTES_MAX: u64 = 1 << 20;

/// Why a workload does not get what its spec promises.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorldError {
    #[error("mount {host} on {guest}: {reason}")]
    Mount {
        host: PathBuf,
        guest: PathBuf,
        reason: String,
    },
    #[error(transparent)]
    Network(#[from] GrantError),
}

/// Everything is denied until the spec grants it.
pub(crate) fn build(
    spec: &Spec,
    settings: &Wasm,
    shared: &Arc<Shared>,
    secrets: &Secrets,
    secret_mounts: &[Mount],
) -> Result<WasiCtxBuilder, WorldError> {
    let mut builder = WasiCtxBuilder::new();
    builder
        // Otherwise a workload that sleeps, or waits for a file, would hold the thread and could not be stopped.
        .allow_blocking_current_thread(false)
        .stdout(Sink::new(shared.clone(), Stream::Stdout))
        .stderr(Sink::new(shared.clone(), Stream::Stderr))
        .max_random_size(RANDOM_BYTES_MAX)
        .arg(&spec.workload)
        .args(&spec.args);
    for (name, value) in &spec.env {
        builder.env(name, value);
    }
    for (name, value) in secrets.env() {
        builder.env(name, value);
    }
    // A model that is mounted as a file is for the inference engine, not for the workload to read.
    let is_model = |mount: &Mount| {
        let path = |model: &NamedModel| Path::new("/").join(&model.file) == mount.guest;
        settings.models.iter().any(path) && mount.host.is_file()
    };
    let mounts = spec.mounts.iter().filter(|mount| !is_model(mount));
    for mount in mounts.chain(secret_mounts) {
        preopen(&mut builder, mount)?;
    }
    if !spec.grants.clocks {
        builder.wall_clock(Stopped).monotonic_clock(Stopped);
    }
    if !spec.grants.random {
        builder
            .secure_random(Deterministic::new(vec![0]))
            .insecure_random(Deterministic::new(vec![0]))
            .insecure_random_seed(0);
    }
    network::grant(&mut builder, &spec.grants.network)?;
    Ok(builder)
}

fn preopen(builder: &mut WasiCtxBuilder, mount: &Mount) -> Result<(), WorldError> {
    let error = |reason: String| WorldError::Mount {
        host: mount.host.clone(),
        guest: mount.guest.clone(),
        reason,
    };
    let Some(guest) = mount.guest.to_str() else {
        return Err(error("the guest path is not UTF-8".to_owned()));
    };
    let metadata = std::fs::metadata(&mount.host).map_err(|source| error(source.to_string()))?;
    if !metadata.is_dir() {
        return Err(error(
            "only folders can be given to Wasm: mount the folder of the file".to_owned(),
        ));
    }
    let permissions = if mount.writable {
        FsPerms::ReadWrite
    } else {
        FsPerms::ReadOnly
    };
    match builder.preopened_dir(&mount.host, guest, permissions) {
        Ok(_) => Ok(()),
        Err(source) => Err(error(format!("{source:#}"))),
    }
}

/// The clocks of a workload that may not know the time: sleeping works, reading always says zero.
struct Stopped;

impl HostWallClock for Stopped {
    fn resolution(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

impl HostMonotonicClock for Stopped {
    fn resolution(&self) -> u64 {
        1_000_000_000
    }

    fn now(&self) -> u64 {
        0
    }
}
