//! The file of the sealed key: read whole or not at all, replaced so that a power cut leaves the old one or the new one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cnova_shared::keys::PublicKey;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{BootApproval, SEALED_BYTES_MAX};

/// Changes with the format.
const VERSION: u8 = 1;
/// Longest file that is read: the sealed key, an approver and an approval.
const FILE_BYTES_MAX: usize = SEALED_BYTES_MAX + 4096;
const MODE: u32 = 0o600;

/// Why the file of the sealed key cannot be used.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// The system.
    #[error("cannot {action} the sealed ledger key {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// Its contents.
    #[error("{path} is not a sealed ledger key: {reason}; it was cut off or changed on disk")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
}

/// What opens the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Lock {
    /// This root of trust, whatever was booted.
    #[serde(rename = "h")]
    Here,
    /// A boot that this key approves.
    #[serde(rename = "b")]
    Boot {
        /// The key.
        #[serde(rename = "k")]
        approver: PublicKey,
        /// The approval under which it was sealed, for when the key has left the trust bundle.
        #[serde(rename = "a")]
        approval: BootApproval,
    },
}

/// What lies on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyFile {
    v: u8,
    #[serde(rename = "l")]
    pub(super) lock: Lock,
    #[serde(rename = "s", with = "serde_bytes")]
    pub(super) sealed: Vec<u8>,
}

impl KeyFile {
    pub(super) fn new(lock: Lock, sealed: Vec<u8>) -> Self {
        Self {
            v: VERSION,
            lock,
            sealed,
        }
    }

    /// Nothing where there is no file.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, KeyFileError> {
        let fail = |source| KeyFileError::File {
            action: "read",
            path: path.to_owned(),
            source,
        };
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(fail)?,
        };
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(fail)?;
        Self::decode(path, &bytes).map(Some)
    }

    fn decode(path: &Path, bytes: &[u8]) -> Result<Self, KeyFileError> {
        let damaged = |reason: String| KeyFileError::Damaged {
            path: path.to_owned(),
            reason,
        };
        if bytes.len() > FILE_BYTES_MAX {
            return Err(damaged(format!("it has more than {FILE_BYTES_MAX} bytes")));
        }
        let file: Self = serde_cbor::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        if file.v != VERSION {
            return Err(damaged(format!("it is of version {}, not {VERSION}", file.v)));
        }
        Ok(file)
    }

    /// Puts this in the place of what is there. The new one is on disk before the old one goes, and the old one's bytes
    /// are overwritten: they may open where the new ones do not. Flash may keep a copy all the same.
    pub(super) fn replace(&self, path: &Path) -> Result<(), KeyFileError> {
        self.replace_in_steps(path, |_| Ok(()))
    }

    /// `before` is told of each step; an error of it ends the work there, as a power cut does.
    fn replace_in_steps(&self, path: &Path, before: impl Fn(Step) -> io::Result<()>) -> Result<(), KeyFileError> {
        let beside = beside(path);
        let fail = |action, path: &Path| {
            let path = path.to_owned();
            move |source| KeyFileError::File { action, path, source }
        };
        let bytes = serde_cbor::to_vec(self).map_err(|e| KeyFileError::Damaged {
            path: path.to_owned(),
            reason: e.to_string(),
        })?;
        let write = || -> io::Result<()> {
            before(Step::Create)?;
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(MODE)
                .open(&beside)?;
            before(Step::Write)?;
            file.write_all(&bytes)?;
            before(Step::Sync)?;
            file.sync_all()
        };
        write().map_err(fail("write", &beside))?;
        let old = match OpenOptions::new().write(true).open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            opened => Some(opened.map_err(fail("open", path))?),
        };
        let rename = || -> io::Result<()> {
            before(Step::Rename)?;
            fs::rename(&beside, path)?;
            before(Step::SyncFolder)?;
            let folder = path.parent().filter(|p| *p != Path::new(""));
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        };
        rename().map_err(fail("replace", path))?;
        let Some(old) = old else { return Ok(()) };
        let overwrite = || -> io::Result<()> {
            before(Step::Overwrite)?;
            let length = usize::try_from(old.metadata()?.len()).unwrap_or(FILE_BYTES_MAX);
            (&old).write_all(&vec![0; length.min(FILE_BYTES_MAX)])?;
            old.sync_all()
        };
        overwrite().map_err(fail("overwrite what was before", path))
    }
}

/// The file in which the next one is written.
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    PathBuf::from(name)
}

/// Where replacing may be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create,
    Write,
    Sync,
    Rename,
    SyncFolder,
    Overwrite,
}
