//! Folders that outlive instances: the volumes of each workload, and what the workloads of a runtime share.
//!
//! `volumes/<application>.<name>/<volume>` is kept over versions, restarts and power cuts, and also when its workload is
//! taken off the node: data is only ever deleted by a person. `cache/<runtime>` can be deleted while nothing runs.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cnova_ral::Mount;
use cnova_shared::wire::v1::Workload;

/// Only the agent, and runtimes that run as the same user, may look inside.
const MODE: u32 = 0o700;

/// Where they are.
#[derive(Clone, Debug)]
pub(crate) struct Folders {
    pub(crate) cache: PathBuf,
    pub(crate) volumes: PathBuf,
}

impl Folders {
    /// The folder that the workloads of a runtime share; made when it is not there.
    pub(crate) fn cache(&self, runtime: &str) -> Result<PathBuf, (PathBuf, io::Error)> {
        private(&self.cache)?;
        private(&self.cache.join(runtime))
    }

    /// A workload's volumes, made when they are not there, as mounts.
    pub(crate) fn volumes(&self, w: &Workload) -> Result<Vec<Mount>, (PathBuf, io::Error)> {
        if w.volumes.is_empty() {
            return Ok(Vec::new());
        }
        private(&self.volumes)?;
        let own = private(&self.volumes.join(format!("{}.{}", w.id.application, w.id.name)))?;
        let mount = |v: &cnova_shared::wire::v1::Volume| {
            let host = own.join(v.name.as_str());
            // Its owner and mode may have been changed by the workload's runtime: only a new one is given them.
            if !host.is_dir() {
                private(&host)?;
            }
            Ok(Mount {
                guest: PathBuf::from(&v.path),
                host,
                writable: true,
            })
        };
        w.volumes.iter().map(mount).collect()
    }
}

fn private(path: &Path) -> Result<PathBuf, (PathBuf, io::Error)> {
    let make = || {
        match DirBuilder::new().mode(MODE).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let found = fs::symlink_metadata(path)?;
        if !found.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        if found.permissions().mode() & 0o777 != MODE {
            fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
        }
        Ok(path.to_owned())
    };
    make().map_err(|error| (path.to_owned(), error))
}
