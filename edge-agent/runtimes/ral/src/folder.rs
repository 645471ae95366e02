//! The state folder: its files, how they are written so that nobody ever reads half of one, and who holds it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Spec, SpecError, file};

/// Longest spec, state or exit file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a file of a state folder could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
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
    /// The content is not what the file must hold.
    #[error("{path} is not valid: {source}")]
    Json {
        /// Which file.
        path: PathBuf,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// Longer than any file this interface writes.
    #[error("{path} is longer than {FILE_BYTES_MAX} bytes")]
    TooLong {
        /// Which file.
        path: PathBuf,
    },
    /// The spec breaks a rule of the interface.
    #[error("{path}: {source}")]
    Spec {
        /// Which file.
        path: PathBuf,
        /// Which rule.
        source: SpecError,
    },
    /// A runtime lives in this folder.
    #[error("{dir} is held by a running workload: adopt or stop it first")]
    Held {
        /// The state folder.
        dir: PathBuf,
    },
}

/// Proof that this process is the only runtime in its folder. The lock goes with the process, however it ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

/// For a runtime: takes the folder for the life of this process and reads the checked spec in it.
pub fn open_folder(dir: &Path) -> Result<(FolderLock, Spec), FolderError> {
    let lock = lock(dir)?;
    Ok((lock, read_spec(dir)?))
}

/// For the agent: whether a runtime lives in the folder, even one that has not written its state yet.
pub fn is_held(dir: &Path) -> Result<bool, FolderError> {
    if !dir.join(file::LOCK).exists() {
        return Ok(false);
    }
    match lock(dir) {
        Ok(_) => Ok(false),
        Err(FolderError::Held { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

/// For the agent: makes the folder (mode 0700) and removes what an earlier attempt left, except its log.
/// Fails with [`FolderError::Held`] while a runtime lives in it, which it does for a moment after its exit file appears:
/// wait for the end of the process first.
pub fn prepare_folder(dir: &Path) -> Result<(), FolderError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io_error("create", dir))?;
    if is_held(dir)? {
        return Err(FolderError::Held { dir: dir.to_owned() });
    }
    for stale in [file::STATE, file::EXIT, file::SOCKET] {
        remove_if_there(&dir.join(stale))?;
    }
    Ok(())
}

/// For the agent: [`prepare_folder`], then writes the checked spec atomically.
pub fn write_spec(dir: &Path, spec: &Spec) -> Result<(), FolderError> {
    let path = dir.join(file::SPEC);
    spec.check().map_err(|source| FolderError::Spec {
        path: path.clone(),
        source,
    })?;
    prepare_folder(dir)?;
    write_json(dir, file::SPEC, spec)
}

/// Reads and checks the spec.
pub fn read_spec(dir: &Path) -> Result<Spec, FolderError> {
    let path = dir.join(file::SPEC);
    let spec: Spec = read_json(&path)?;
    match spec.check() {
        Ok(()) => Ok(spec),
        Err(source) => Err(FolderError::Spec { path, source }),
    }
}

/// Reads a file that may not be there yet.
pub(crate) fn read_json_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FolderError> {
    match read_json(path) {
        Ok(value) => Ok(Some(value)),
        Err(FolderError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a sibling, forces it to the disk and renames it over `name`: a reader sees the old file or the new one.
/// The folder itself is not forced: after a power cut the process these files speak of is gone anyway.
pub(crate) fn write_json<T: Serialize>(dir: &Path, name: &str, value: &T) -> Result<(), FolderError> {
    let path = dir.join(name);
    let mut text = serde_json::to_vec(value).map_err(|source| FolderError::Json {
        path: path.clone(),
        source,
    })?;
    text.push(b'\n');
    let draft = dir.join(format!(".{name}.tmp"));
    let mut out = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .map_err(io_error("create", &draft))?;
    out.write_all(&text).map_err(io_error("write", &draft))?;
    out.sync_data().map_err(io_error("sync", &draft))?;
    fs::rename(&draft, &path).map_err(io_error("rename onto", &path))
}

pub(crate) fn remove_if_there(path: &Path) -> Result<(), FolderError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(source)),
        _ => Ok(()),
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, FolderError> {
    let input = File::open(path).map_err(io_error("open", path))?;
    let mut text = Vec::new();
    input
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(io_error("read", path))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(FolderError::TooLong { path: path.to_owned() });
    }
    serde_json::from_slice(&text).map_err(|source| FolderError::Json {
        path: path.to_owned(),
        source,
    })
}

fn lock(dir: &Path) -> Result<FolderLock, FolderError> {
    let path = dir.join(file::LOCK);
    let held = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(FolderLock { _file: held }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(FolderError::Held { dir: dir.to_owned() }),
        Err(errno) => Err(io_error("lock", &path)(errno.into())),
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        serde_json::from_value(serde_json::json!({
            "ral": 1, "workload": "w", "artifact": "/a", "digest": format!("sha256:{}", "00".repeat(32)),
        }))
        .unwrap()
    }

    #[test]
    fn a_spec_survives_the_way_through_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("deep/er");
        write_spec(&inner, &spec()).unwrap();
        let (_lock, read) = open_folder(&inner).unwrap();
        assert_eq!(read, spec());
    }

    #[test]
    fn a_held_folder_is_neither_prepared_nor_opened_twice() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_held(dir.path()).unwrap());
        write_spec(dir.path(), &spec()).unwrap();
        let (held, _) = open_folder(dir.path()).unwrap();
        assert!(is_held(dir.path()).unwrap());
        assert!(matches!(open_folder(dir.path()), Err(FolderError::Held { .. })));
        assert!(matches!(write_spec(dir.path(), &spec()), Err(FolderError::Held { .. })));
        drop(held);
        assert!(!is_held(dir.path()).unwrap());
        write_spec(dir.path(), &spec()).unwrap();
    }

    #[test]
    fn preparing_removes_the_last_attempt_but_not_its_log() {
        let dir = tempfile::tempdir().unwrap();
        for name in [file::STATE, file::EXIT, file::LOG] {
            fs::write(dir.path().join(name), "old").unwrap();
        }
        prepare_folder(dir.path()).unwrap();
        assert!(!dir.path().join(file::STATE).exists());
        assert!(!dir.path().join(file::EXIT).exists());
        assert!(dir.path().join(file::LOG).exists());
    }

    #[test]
    fn a_torn_or_overlong_file_is_an_error_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file::SPEC);
        fs::write(&path, "{\"ral\":").unwrap();
        assert!(read_spec(dir.path()).unwrap_err().to_string().contains("spec.json"));
        fs::write(&path, vec![b' '; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert!(matches!(read_spec(dir.path()), Err(FolderError::TooLong { .. })));
    }
}
