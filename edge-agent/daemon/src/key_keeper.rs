//! Opens the node's own sealed key, one attempt at a time.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use cnova_agent_core::standing::OwnBoot;
use cnova_root_of_trust::ledger_key::{BootVerdict, LedgerKey, LedgerKeyError, SealedKey};
use cnova_root_of_trust::{RootError, RootOfTrust};
use cnova_shared::boot_policy::OwnBoots;

/// Holds the key while this boot is an approved one.
#[derive(Debug)]
pub(crate) struct KeyKeeper {
    root: Arc<dyn RootOfTrust>,
    sealed: SealedKey,
    /// Locked for as long as an attempt takes: two would write the same files.
    held: Mutex<Option<Arc<LedgerKey>>>,
}

/// What came of an attempt.
#[derive(Debug)]
pub(crate) struct Tried {
    pub(crate) own_boot: OwnBoot,
    /// The key, where it may be used.
    pub(crate) key: Option<Arc<LedgerKey>>,
    /// Why the key of before is lost.
    pub(crate) lost: Option<String>,
}

impl KeyKeeper {
    pub(crate) fn new(root: Arc<dyn RootOfTrust>, state_dir: &Path) -> Self {
        Self {
            root,
            sealed: SealedKey::in_folder(state_dir),
            held: Mutex::new(None),
        }
    }

    /// Opens the key under what was booted. Blocks for as long as the TPM takes.
    pub(crate) fn open(&self, boots: &OwnBoots) -> Tried {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let opening = match self.sealed.open(&*self.root, boots, held.as_deref()) {
            Ok(opening) => opening,
            // Nothing is concluded from silence: what was opened stays so.
            Err(error) => {
                return Tried {
                    own_boot: OwnBoot::Unknown(reason(&error)),
                    key: held.clone(),
                    lost: None,
                };
            }
        };
        *held = opening.key.map(Arc::new);
        let own_boot = match opening.boot {
            BootVerdict::Unsealed => OwnBoot::Unsealed,
            BootVerdict::Approved(name) => {
                tracing::info!(boot = name, "the ledger key opened under an approved boot");
                OwnBoot::Approved
            }
            BootVerdict::Refused(why) => OwnBoot::Refused(why),
        };
        Tried {
            own_boot,
            key: held.clone(),
            lost: opening.lost,
        }
    }
}

fn reason(error: &LedgerKeyError) -> String {
    match error {
        LedgerKeyError::Root(RootError::NoAnswer { .. } | RootError::NoRoom { .. }) => error.to_string(),
        other => format!("the sealed ledger key cannot be opened: {other}"),
    }
}
