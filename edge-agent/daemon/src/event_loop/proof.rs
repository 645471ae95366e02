//! What the loop asks of the TPM, beside itself: a TPM may take seconds, or never answer.

use cnova_agent_core::Event;
use cnova_agent_core::standing::{Counter, CounterState, OwnBoot};
use cnova_root_of_trust::RootOfTrust;
use cnova_shared::boot_policy::OwnBoots;
use cnova_shared::ids::NodeId;
use cnova_shared::wire::v1::Challenge;

use super::{Done, EventLoop};
use crate::key_keeper::Tried;

impl EventLoop {
    pub(super) fn attest(&self, verifier: NodeId, challenge: Challenge, now_s: u64) {
        let Some(witness) = self.parts.witness.clone() else {
            tracing::info!(%verifier, "asked to attest, and this node has no TPM");
            return;
        };
        let identity = self.parts.identity.clone();
        self.beside(move || match witness.answer(&identity, &verifier, &challenge, now_s) {
            Ok(bytes) => Some(Done::Evidence(bytes)),
            Err(error) => {
                tracing::warn!(%verifier, %error, "cannot attest; the verifier asks again");
                None
            }
        });
    }

    pub(super) fn count_up(&self) {
        let Some(root) = self.parts.identity.tpm().cloned() else {
            return;
        };
        self.beside(move || Some(Done::Counted(count_once(&*root))));
    }

    /// Kept as well, for a core that is made anew.
    pub(super) fn on_counted(&mut self, result: Result<u64, String>) -> Event {
        if let Ok(value) = result {
            self.parts.config.root.counter = CounterState::Value(Counter { value, is_new: false });
        }
        Event::Counted(result)
    }

    pub(super) fn open_ledger_key(&self, boots: OwnBoots) {
        let Some(keeper) = self.parts.keeper.clone() else {
            return;
        };
        self.beside(move || {
            let tried = keeper.open(&boots);
            Some(Done::OwnBoot(boots, tried))
        });
    }

    /// Kept as well, for a core that is made anew.
    pub(super) fn on_own_boot(&mut self, boots: OwnBoots, tried: Tried) -> Event {
        let Tried { own_boot, key, lost } = tried;
        self.parts.ledger_key = key;
        if !matches!(own_boot, OwnBoot::Unknown(_)) {
            let root = &mut self.parts.config.root;
            root.own_boot = own_boot.clone();
            root.boots.clone_from(&boots);
        }
        Event::OwnBoot { boots, own_boot, lost }
    }
}

/// An answer may be lost on its way although the TPM has counted: then the counter itself tells.
fn count_once(root: &dyn RootOfTrust) -> Result<u64, String> {
    let before = root.counter().map_err(|e| e.to_string())?;
    root.count_up().or_else(|error| match root.counter() {
        Ok(Some(after)) if Some(after) > before => Ok(after),
        _ => Err(error.to_string()),
    })
}
