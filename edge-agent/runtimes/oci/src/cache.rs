//! Unpacked layers, shared by the containers of a node: each is unpacked once, and stays while one of them uses it.
//!
//! ```text
//! layers/<diff_id>-<shift>   complete, or not there
//! locks/<diff_id>-<shift>    shared while a container uses the layer, exclusive while it is unpacked or removed
//! drafts/<diff_id>-<shift>   being unpacked; what is left of an interruption is removed and begun anew
//! ```

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::digest::Digest;
use crate::unpack::UnpackError;

/// The pause before a lock is looked at again that somebody else holds just now.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(2);

/// How often taking a layer is begun anew because somebody removed it in between.
const ATTEMPTS_MAX: u32 = 16;

/// Why a layer could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The file system said no.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The layer is not acceptable.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// It was removed again and again.
    #[error("layer {0} is removed as fast as it is unpacked")]
    Contended(Digest),
}

/// The folder of unpacked layers.
#[derive(Clone, Debug)]
pub struct LayerCache {
    dir: PathBuf,
}

/// An unpacked layer that stays as long as this value.
#[derive(Debug)]
pub struct LayerUse {
    /// Its folder.
    pub path: PathBuf,
    /// Whether this call unpacked it.
    pub fresh: bool,
    _lock: File,
}

/// What a prune did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Layers that are gone.
    pub removed: usize,
    /// Layers that nobody wants to keep but a container uses.
    pub in_use: usize,
}

impl LayerCache {
    /// Opens the cache, making its folders (mode 0700) if they are not there.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn open(dir: &Path) -> Result<LayerCache, CacheError> {
        for name in ["layers", "locks", "drafts"] {
            let path = dir.join(name);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(io_error("create", &path))?;
        }
        Ok(LayerCache { dir: dir.to_owned() })
    }

    /// The unpacked layer; `unpack` is called with an empty folder if it is not there yet. Of several who want it at
    /// once, one unpacks and the others wait.
    ///
    /// # Errors
    /// What is wrong with the layer or the cache.
    pub fn layer(
        &self,
        diff_id: &Digest,
        shift: u32,
        unpack: impl FnOnce(&Path) -> Result<(), UnpackError>,
    ) -> Result<LayerUse, CacheError> {
        let name = format!("{}-{shift}", diff_id.hex());
        let path = self.dir.join("layers").join(&name);
        let mut unpack = Some(unpack);
        loop {
            // Waits while somebody unpacks it.
            let lock = self.locked(&name, FlockOperation::LockShared)?;
            if path.exists() {
                let fresh = unpack.is_none();
                return Ok(LayerUse {
                    path,
                    fresh,
                    _lock: lock,
                });
            }
            drop(lock);
            // Never waited for: whoever has unpacked it meanwhile holds it shared for as long as a container runs.
            let _lock = match self.locked(&name, FlockOperation::NonBlockingLockExclusive) {
                Ok(lock) => lock,
                Err(CacheError::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(LOOK_AGAIN);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if path.exists() {
                continue;
            }
            let Some(unpack) = unpack.take() else {
                return Err(CacheError::Contended(*diff_id));
            };
            self.make(&name, &path, unpack)?;
        }
    }

    /// Removes every layer that is neither in `keep` nor in use, and drafts that nobody works on.
    ///
    /// # Errors
    /// Why the cache cannot be read; a layer that cannot be removed is tried again the next time.
    pub fn prune(&self, keep: &BTreeSet<Digest>) -> Result<Pruned, CacheError> {
        let mut pruned = Pruned::default();
        for folder in ["layers", "drafts"] {
            for name in self.names(folder)? {
                let kept = |digest: &Digest| name.starts_with(&digest.hex());
                if folder == "layers" && keep.iter().any(kept) {
                    continue;
                }
                match self.locked(&name, FlockOperation::NonBlockingLockExclusive) {
                    Ok(_lock) => {
                        self.remove(folder, &name)?;
                        pruned.removed += usize::from(folder == "layers");
                    }
                    Err(CacheError::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                        pruned.in_use += usize::from(folder == "layers");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(pruned)
    }

    fn make(
        &self,
        name: &str,
        path: &Path,
        unpack: impl FnOnce(&Path) -> Result<(), UnpackError>,
    ) -> Result<(), CacheError> {
        let draft = self.dir.join("drafts").join(name);
        remove_tree(&draft)?;
        DirBuilder::new()
            .mode(0o755)
            .create(&draft)
            .map_err(io_error("create", &draft))?;
        if let Err(error) = unpack(&draft) {
            remove_tree(&draft)?;
            return Err(error.into());
        }
        fs::rename(&draft, path).map_err(io_error("rename onto", path))
    }

    /// Under the exclusive lock: the rename first, so that nobody ever sees half a layer; then the lock's file, which
    /// whoever waits for it will find gone and make anew.
    fn remove(&self, folder: &str, name: &str) -> Result<(), CacheError> {
        let draft = self.dir.join("drafts").join(name);
        if folder == "layers" {
            remove_tree(&draft)?;
            let path = self.dir.join(folder).join(name);
            match fs::rename(&path, &draft) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &path)(source));
                }
                _ => {}
            }
        }
        remove_tree(&draft)?;
        let lock = self.dir.join("locks").join(name);
        fs::remove_file(&lock).map_err(io_error("remove", &lock))
    }

    /// A lock counts only while its file is the one under its name.
    fn locked(&self, name: &str, how: FlockOperation) -> Result<File, CacheError> {
        let path = self.dir.join("locks").join(name);
        for _ in 0..ATTEMPTS_MAX {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(io_error("open", &path))?;
            rustix::fs::flock(&file, how).map_err(|errno| io_error("lock", &path)(errno.into()))?;
            let held = file.metadata().map_err(io_error("look at", &path))?;
            if fs::metadata(&path).is_ok_and(|named| named.ino() == held.ino() && named.dev() == held.dev()) {
                return Ok(file);
            }
        }
        Err(io_error("lock", &path)(io::Error::other("it is replaced all the time")))
    }

    fn names(&self, folder: &str) -> Result<Vec<String>, CacheError> {
        let path = self.dir.join(folder);
        let entries = fs::read_dir(&path).map_err(io_error("read", &path))?;
        Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect())
    }
}

fn remove_tree(path: &Path) -> Result<(), CacheError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(source)),
        _ => Ok(()),
    }
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> CacheError {
    let path = path.to_owned();
    move |source| CacheError::Io {
        action,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::{Arc, Barrier, mpsc};
    use std::time::Duration;

    use super::*;

    /// Each keeps the layer until both have it, as containers do.
    #[test]
    fn two_that_need_a_new_layer_at_once_both_get_it() {
        for round in 0..50_u8 {
            let dir = tempfile::tempdir().unwrap();
            let (together, (got, both)) = (Arc::new(Barrier::new(2)), mpsc::channel());
            for _ in 0..2 {
                let (together, got, dir) = (together.clone(), got.clone(), dir.path().to_owned());
                std::thread::spawn(move || {
                    let cache = LayerCache::open(&dir).unwrap();
                    together.wait();
                    let layer = cache.layer(&Digest::of(&[round]), 0, |_| Ok(())).unwrap();
                    got.send(layer).unwrap();
                });
            }
            let layers: Vec<LayerUse> = (0..2)
                .map(|_| both.recv_timeout(Duration::from_secs(30)).unwrap())
                .collect();
            assert_eq!(layers.iter().filter(|l| l.fresh).count(), 1, "it is unpacked once");
        }
    }
}
