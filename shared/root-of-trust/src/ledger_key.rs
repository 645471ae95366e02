//! The key under which a node keeps what is secret in its ledger, and the file in which it lies sealed.
//!
//! With a TPM the file is worth nothing elsewhere. Until the hub has approved a boot of this node the key opens on this
//! TPM whatever was booted; from then on only under a boot that the hub approves ([`crate::boot_policy`]). Without a TPM
//! it lies beside the node's key, and whoever reads the disk reads it.

use std::fmt;
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{RootError, RootOfTrust};

mod file;

pub use file::KeyFileError;
use file::{KeyFile, Lock};

/// Bytes of the key.
pub const LEDGER_KEY_BYTES: usize = 32;
/// The file's name in a node's state folder.
pub const LEDGER_KEY_FILE: &str = "ledger.key";

/// A key of 256 bits that is in memory only as long as somebody holds it.
pub struct LedgerKey(Zeroizing<[u8; LEDGER_KEY_BYTES]>);

impl LedgerKey {
    fn generate() -> Result<Self, LedgerKeyError> {
        let mut bytes = Zeroizing::new([0; LEDGER_KEY_BYTES]);
        SystemRandom::new()
            .fill(&mut *bytes)
            .map_err(|_| LedgerKeyError::Random)?;
        Ok(Self(bytes))
    }

    fn from_opened(opened: &Zeroizing<Vec<u8>>) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; LEDGER_KEY_BYTES]);
        if opened.len() != bytes.len() {
            return None;
        }
        bytes.copy_from_slice(opened);
        Some(Self(bytes))
    }

    /// The key itself.
    #[must_use]
    pub fn expose(&self) -> &[u8; LEDGER_KEY_BYTES] {
        &self.0
    }
}

// Not derived: a key is not for logs.
impl fmt::Debug for LedgerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LedgerKey(..)")
    }
}

/// Why there is no ledger key.
#[derive(Debug, Error)]
pub enum LedgerKeyError {
    /// The file.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// What holds the node's keys.
    #[error(transparent)]
    Root(#[from] RootError),
    /// What opened is no key.
    #[error("{path} holds something else than a key of {LEDGER_KEY_BYTES} bytes; move it away, and a new key is made")]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The system gave no randomness.
    #[error("the system gives no random numbers for a new key")]
    Random,
}

/// Where a node's ledger key lies sealed.
#[derive(Clone, Debug)]
pub struct SealedKey {
    path: PathBuf,
}

impl SealedKey {
    /// The one of this state folder.
    #[must_use]
    pub fn in_folder(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join(LEDGER_KEY_FILE),
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the key where nobody has approved a boot; makes it where there is none. Blocks for as long as the TPM takes.
    ///
    /// # Errors
    /// [`LedgerKeyError`]; nothing is replaced.
    pub fn open_here(&self, root: &dyn RootOfTrust) -> Result<LedgerKey, LedgerKeyError> {
        match KeyFile::read(&self.path)? {
            None => {
                let key = LedgerKey::generate()?;
                let sealed = root.seal_here(key.expose())?;
                KeyFile::new(Lock::Here, sealed).replace(&self.path)?;
                Ok(key)
            }
            Some(file) => self.key_of(&root.unseal_here(&file.sealed)?),
        }
    }

    fn key_of(&self, opened: &Zeroizing<Vec<u8>>) -> Result<LedgerKey, LedgerKeyError> {
        LedgerKey::from_opened(opened).ok_or_else(|| LedgerKeyError::NoKey {
            path: self.path.clone(),
        })
    }
}
