//! The state folder: made, writable, and used by one hub only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The state folder, held for as long as this lives.
#[derive(Debug)]
pub struct StateFolder {
    // Closing it gives the lock back, also when the process dies.
    _lock: File,
}

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateFolderError {
    /// It cannot be made or written.
    #[error(
        "the state folder {path} cannot be used: {source}; give it to the user that the hub runs as, or set state_dir"
    )]
    NotWritable {
        /// The folder, or a file in it.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// Another hub uses it.
    #[error("another hub (process {holder}) uses {path}: stop that one first, or set state_dir")]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The process id that it wrote.
        holder: String,
    },
}

impl StateFolder {
    /// Makes the folder and takes its lock.
    ///
    /// # Errors
    /// [`StateFolderError`].
    pub fn hold(folder: &Path) -> Result<Self, StateFolderError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| StateFolderError::NotWritable { path, source }
        };
        fs::create_dir_all(folder).map_err(fail(folder))?;
        let path = folder.join("lock");
        let mut lock = OpenOptions::new()
            .write(true)
            .read(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(fail(&path))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let holder = fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
            return Err(StateFolderError::InUse {
                path: folder.to_owned(),
                holder,
            });
        }
        lock.set_len(0)
            .and_then(|()| write!(lock, "{}", std::process::id()))
            .map_err(fail(&path))?;
        Ok(Self { _lock: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_hub_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        let held = StateFolder::hold(&state).unwrap();
        let error = StateFolder::hold(&state).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(held);
        StateFolder::hold(&state).unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = StateFolder::hold(&file.join("state")).unwrap_err().to_string();
        assert!(error.contains("state_dir"), "{error}");
    }
}
