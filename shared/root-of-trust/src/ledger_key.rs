//! The key under which a node keeps what is secret in its ledger, and the file in which it lies sealed.
//!
//! With a TPM the file is worth nothing elsewhere. Until the hub has approved a boot of this node the key opens on this
//! TPM whatever was booted; from then on only under a boot that the hub approves ([`crate::boot_policy`]), and what opened
//! it before is overwritten. Without a TPM it lies beside the node's key, and whoever reads the disk reads it.

use std::fmt;
use std::path::{Path, PathBuf};

use cnova_shared::boot_policy::{ApprovedBoot, OwnBoots};
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{RootError, RootOfTrust};

mod file;

pub use file::KeyFileError;
use file::{At, KeyFile, Lock, Place};

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

    fn from_opened(opened: &Zeroizing<Vec<u8>>) -> Result<Self, RootError> {
        let mut bytes = Zeroizing::new([0; LEDGER_KEY_BYTES]);
        if opened.len() != bytes.len() {
            let reason = format!(
                "it holds {} bytes, and a ledger key has {LEDGER_KEY_BYTES}",
                opened.len()
            );
            return Err(RootError::NotOurs { reason });
        }
        bytes.copy_from_slice(opened);
        Ok(Self(bytes))
    }

    fn copy(&self) -> Self {
        Self(self.0.clone())
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
    /// The system gave no randomness.
    #[error("the system gives no random numbers for a new key")]
    Random,
}

/// What became of the attempt to open it.
#[derive(Debug)]
pub struct Opening {
    /// What it says of this boot.
    pub boot: BootVerdict,
    /// The key, where it may be used.
    pub key: Option<LedgerKey>,
    /// Where the one before can be opened here never again, and a new one was made: why, for a person. What was encrypted
    /// with it is lost.
    pub lost: Option<String>,
}

/// What the sealed key says of this boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootVerdict {
    /// Nothing: nobody has approved a boot of this node, or it has no TPM.
    Unsealed,
    /// It is the approved one of this name.
    Approved(String),
    /// It is not approved; the registers that differ, for a person.
    Refused(String),
}

/// Where a node's ledger key lies sealed.
#[derive(Clone, Debug)]
pub struct SealedKey {
    place: Place,
}

/// Files that may hold the key, the likeliest first, and why others do not.
struct Found {
    files: Vec<(At, KeyFile)>,
    damage: Option<KeyFileError>,
}

impl SealedKey {
    /// The one of this state folder.
    #[must_use]
    pub fn in_folder(state_dir: &Path) -> Self {
        Self {
            place: Place::new(state_dir.join(LEDGER_KEY_FILE)),
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &PathBuf {
        &self.place.path
    }

    /// Opens the key, makes it where there is none, and seals it for approved boots as soon as this is one. `held` is the
    /// key that this process opened before: with it the key outlives that of its approver. Blocks for as long as the TPM
    /// takes.
    ///
    /// A boot that is not approved is no error. The TPM is the judge of an approved one: this code only chooses which
    /// approval to show it.
    ///
    /// # Errors
    /// [`LedgerKeyError`]; nothing is concluded then, and it may be tried again.
    pub fn open(
        &self,
        root: &dyn RootOfTrust,
        boots: &OwnBoots,
        held: Option<&LedgerKey>,
    ) -> Result<Opening, LedgerKeyError> {
        let found = self.found()?;
        if boots.approved.is_empty() {
            return self.open_here(root, &found);
        }
        let now = root.read_pcrs(&boots.pcrs())?;
        let Some(fit) = boots.fitting(&now) else {
            return Ok(refused(boots.differing(&now)));
        };
        match self.open_approved(root, boots, &found, fit, held) {
            Ok((key, lost)) => Ok(Opening {
                boot: BootVerdict::Approved(fit.name.clone()),
                key: Some(key),
                lost,
            }),
            // Extended between the two looks.
            Err(LedgerKeyError::Root(RootError::BootNotApproved { .. })) => {
                Ok(refused(boots.differing(&root.read_pcrs(&boots.pcrs())?)))
            }
            Err(e) => Err(e),
        }
    }

    fn found(&self) -> Result<Found, LedgerKeyError> {
        let (mut files, mut damage) = (Vec::new(), None);
        for at in [At::Place, At::Beside] {
            match KeyFile::read(self.place.file(at)) {
                Ok(file) => files.extend(file.map(|f| (at, f))),
                Err(e @ KeyFileError::Damaged { .. }) => {
                    damage.get_or_insert(e);
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Found { files, damage })
    }

    /// Where nobody has approved a boot.
    fn open_here(&self, root: &dyn RootOfTrust, found: &Found) -> Result<Opening, LedgerKeyError> {
        let mut lost = found.damage.as_ref().map(ToString::to_string);
        for (at, file) in found.files.iter().filter(|(_, f)| f.lock == Lock::Here) {
            match opened(root.unseal_here(&file.sealed)) {
                Ok(key) => {
                    self.place.settle(*at)?;
                    return Ok(unsealed(key, None));
                }
                Err(e @ RootError::NotOurs { .. }) => lost = Some(e.to_string()),
                Err(e) => return Err(e.into()),
            }
        }
        if found.files.iter().any(|(_, f)| f.lock != Lock::Here) {
            let why = "the ledger key is sealed for approved boots, and none is approved for this node any more";
            return Ok(refused(why.into()));
        }
        let key = LedgerKey::generate()?;
        self.seal(root, &key, Lock::Here, lost.is_some())?;
        Ok(unsealed(key, lost))
    }

    /// The key under a boot that `fit` approves, sealed for its approver from now on.
    fn open_approved(
        &self,
        root: &dyn RootOfTrust,
        boots: &OwnBoots,
        found: &Found,
        fit: &ApprovedBoot,
        held: Option<&LedgerKey>,
    ) -> Result<(LedgerKey, Option<String>), LedgerKeyError> {
        let lock = Lock::Boot {
            approver: fit.approver.clone(),
            approval: fit.approval.clone(),
        };
        let mut lost = found.damage.as_ref().map(ToString::to_string);
        for (at, file) in &found.files {
            let key = match open_file(root, boots, file, fit) {
                Ok(key) => key,
                Err(e @ RootError::NotOurs { .. }) => {
                    lost = Some(e.to_string());
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            // Never written over while it is the only one.
            self.place.settle(*at)?;
            if file.lock.approver() != Some(&fit.approver) {
                self.seal(root, &key, lock, false)?;
            } else if file.lock != lock {
                // The same object; the newest approval beside it opens it when its approver is no longer known.
                self.replace(root, KeyFile::new(lock, file.sealed.clone()), false)?;
            }
            return Ok((key, None));
        }
        if let Some(held) = held {
            self.seal(root, held, lock, lost.is_some())?;
            return Ok((held.copy(), None));
        }
        let key = LedgerKey::generate()?;
        self.seal(root, &key, lock, lost.is_some())?;
        Ok((key, lost))
    }

    fn seal(&self, root: &dyn RootOfTrust, key: &LedgerKey, lock: Lock, keep_old: bool) -> Result<(), LedgerKeyError> {
        let sealed = match lock.approver() {
            Some(approver) => root.seal(key.expose(), approver)?,
            None => root.seal_here(key.expose())?,
        };
        self.replace(root, KeyFile::new(lock, sealed), keep_old)
    }

    /// Puts a file in the place of what is there, once it is on the disk and opens.
    fn replace(&self, root: &dyn RootOfTrust, file: KeyFile, keep_old: bool) -> Result<(), LedgerKeyError> {
        let staged = self.place.stage(&file)?;
        match &staged.file.lock {
            Lock::Here => root.unseal_here(&staged.file.sealed)?,
            Lock::Boot { approver, approval } => root.unseal(&staged.file.sealed, approver, approval)?,
        };
        Ok(staged.commit(keep_old)?)
    }
}

fn refused(why: String) -> Opening {
    Opening {
        boot: BootVerdict::Refused(why),
        key: None,
        lost: None,
    }
}

fn unsealed(key: LedgerKey, lost: Option<String>) -> Opening {
    Opening {
        boot: BootVerdict::Unsealed,
        key: Some(key),
        lost,
    }
}

fn opened(result: Result<Zeroizing<Vec<u8>>, RootError>) -> Result<LedgerKey, RootError> {
    LedgerKey::from_opened(&result?)
}

/// Opens a file under this boot, which `fit` approves.
fn open_file(
    root: &dyn RootOfTrust,
    boots: &OwnBoots,
    file: &KeyFile,
    fit: &ApprovedBoot,
) -> Result<LedgerKey, RootError> {
    let (approver, own) = match &file.lock {
        Lock::Here => return opened(root.unseal_here(&file.sealed)),
        Lock::Boot { approver, approval } => (approver, approval),
    };
    if *approver == fit.approver {
        return opened(root.unseal(&file.sealed, approver, &fit.approval));
    }
    // A key that was replaced: by what it still approves, or by what it approved when this was sealed.
    let mine = boots
        .approved
        .iter()
        .filter(|a| a.approver == *approver)
        .map(|a| &a.approval);
    for approval in mine.chain([own]) {
        match root.unseal(&file.sealed, approver, approval) {
            Err(RootError::BootNotApproved { .. }) => {}
            done => return opened(done),
        }
    }
    Err(RootError::NotOurs {
        reason: format!("it is sealed for the boot-policy key {approver:?}, which approves this boot no longer"),
    })
}

#[cfg(test)]
mod tests;
