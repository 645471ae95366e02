//! The file of the sealed key: read whole or not at all, replaced so that a power cut at any point leaves one that opens.

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
        /// The approval under which it opened last, for when the key has left the trust bundle.
        #[serde(rename = "a")]
        approval: BootApproval,
    },
}

impl Lock {
    pub(super) const fn approver(&self) -> Option<&PublicKey> {
        match self {
            Self::Here => None,
            Self::Boot { approver, .. } => Some(approver),
        }
    }
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
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed("read", path))?,
        };
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(failed("read", path))?;
        let damaged = |reason: String| KeyFileError::Damaged {
            path: path.to_owned(),
            reason,
        };
        if bytes.len() > FILE_BYTES_MAX {
            return Err(damaged(format!("it has more than {FILE_BYTES_MAX} bytes")));
        }
        let file: Self = serde_cbor::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if file.v != VERSION {
            return Err(damaged(format!("it is of version {}, not {VERSION}", file.v)));
        }
        Ok(Some(file))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyFileError {
    let path = path.to_owned();
    move |source| KeyFileError::File { action, path, source }
}

/// Which of two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// The one in its place.
    Place,
    /// The next one.
    Beside,
}

/// Where the file is, and where the next one is written.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) beside: PathBuf,
    unusable: PathBuf,
    /// Told before each step; an error of it ends the work there, as a power cut does.
    #[cfg(test)]
    pub(super) cut: Option<Step>,
}

/// Where replacing may be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Create,
    Write,
    Sync,
    Overwrite,
    Rename,
    SyncFolder,
}

/// A file that is on the disk beside the one that it is to replace, as it was read back.
pub(super) struct Staged<'a> {
    place: &'a Place,
    pub(super) file: KeyFile,
}

impl Place {
    pub(super) fn new(path: PathBuf) -> Self {
        let named = |ending: &str| {
            let mut name = OsString::from(&path);
            name.push(ending);
            PathBuf::from(name)
        };
        Self {
            beside: named(".new"),
            unusable: named(".unusable"),
            path,
            #[cfg(test)]
            cut: None,
        }
    }

    #[cfg(not(test))]
    #[allow(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "tests cut the work off here"
    )]
    fn begin(&self, _: Step) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn begin(&self, step: Step) -> io::Result<()> {
        match self.cut {
            Some(cut) if cut == step => Err(io::Error::other("the power failed")),
            _ => Ok(()),
        }
    }

    pub(super) fn file(&self, at: At) -> &Path {
        match at {
            At::Place => &self.path,
            At::Beside => &self.beside,
        }
    }

    /// The file that opened is in its place from now on: one that is found beside it was cut off on its way there.
    pub(super) fn settle(&self, at: At) -> Result<(), KeyFileError> {
        match at {
            At::Place => Ok(()),
            At::Beside => self.rename(),
        }
    }

    fn rename(&self) -> Result<(), KeyFileError> {
        self.begin(Step::Rename)
            .and_then(|()| fs::rename(&self.beside, &self.path))
            .and_then(|()| self.begin(Step::SyncFolder))
            .and_then(|()| sync_folder(&self.path))
            .map_err(failed("replace", &self.path))
    }

    /// Writes a file beside the one that is there, and reads it back.
    pub(super) fn stage(&self, file: &KeyFile) -> Result<Staged<'_>, KeyFileError> {
        let damaged = |reason: String| KeyFileError::Damaged {
            path: self.beside.clone(),
            reason,
        };
        let bytes = serde_cbor::to_vec(file).map_err(|e| damaged(e.to_string()))?;
        let write = || -> io::Result<()> {
            self.begin(Step::Create)?;
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(MODE)
                .open(&self.beside)?;
            self.begin(Step::Write)?;
            file.write_all(&bytes)?;
            self.begin(Step::Sync)?;
            file.sync_all()?;
            sync_folder(&self.beside)
        };
        write().map_err(failed("write", &self.beside))?;
        let file = KeyFile::read(&self.beside)?.ok_or_else(|| damaged("it is gone".into()))?;
        Ok(Staged { place: self, file })
    }
}

impl Staged<'_> {
    /// Puts it in its place. What was there is overwritten first, because it may open where this one does not; flash may
    /// keep a copy of it all the same. Cut off in between, this one is found beside what is no longer readable. With
    /// `keep_old` what was there, and opens nowhere here, is moved aside for a person.
    pub(super) fn commit(self, keep_old: bool) -> Result<(), KeyFileError> {
        let Place { path, unusable, .. } = self.place;
        if keep_old {
            match fs::rename(path, unusable) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("move away", path)(e)),
                _ => {}
            }
        } else {
            let overwritten = self.place.begin(Step::Overwrite).and_then(|()| overwrite(path));
            overwritten.map_err(failed("overwrite", path))?;
        }
        self.place.rename()
    }
}

/// Zeros in the place of what is there, on the disk.
fn overwrite(path: &Path) -> io::Result<()> {
    let mut file = match OpenOptions::new().write(true).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(FILE_BYTES_MAX);
    file.write_all(&vec![0; length.min(FILE_BYTES_MAX)])?;
    file.sync_all()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| *p != Path::new(""));
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
