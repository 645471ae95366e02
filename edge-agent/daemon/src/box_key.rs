//! The key that the node's secrets are encrypted to: made once, kept in the ledger under the ledger's own key, and in
//! memory while the agent runs.

use std::sync::OnceLock;

use cnova_root_of_trust::ledger_key::LedgerKey;
use cnova_shared::ids::NodeId;
use cnova_shared::secret::{self, BoxKey, BoxPublicKey, KEY_BYTES};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::process::DumpableBehavior;
use zeroize::Zeroizing;

use crate::ledger::Ledger;

/// Draws of a new key; each fails once in 2^32.
const DRAWS: usize = 4;

/// The key and whose it is, once it is open; it stays so until the agent ends.
#[derive(Debug, Default)]
pub(crate) struct Chest(OnceLock<(NodeId, BoxKey)>);

impl Chest {
    /// What secrets are opened with.
    pub(crate) fn get(&self) -> Option<&(NodeId, BoxKey)> {
        self.0.get()
    }

    /// Opens it, if it is not open; the public half, for the hello.
    ///
    /// # Errors
    /// Why this node can open no secrets, for a person. Everything that uses none runs all the same.
    pub(crate) async fn open(
        &self,
        ledger: &Ledger,
        ledger_key: Option<&LedgerKey>,
        node: &NodeId,
    ) -> Result<BoxPublicKey, String> {
        if let Some((_, key)) = self.get() {
            return Ok(key.public());
        }
        let key = open(ledger, ledger_key, node).await?;
        let public = key.public();
        // One task opens it.
        let _ = self.0.set((node.clone(), key));
        Ok(public)
    }
}

/// Opens the key, or makes one: the hub encrypts to the new one when it hears of it.
async fn open(ledger: &Ledger, ledger_key: Option<&LedgerKey>, node: &NodeId) -> Result<BoxKey, String> {
    let Some(ledger_key) = ledger_key else {
        return Err("the key of this node's ledger does not open (alarm ledger-key says why)".to_owned());
    };
    // From here on this process holds what must not be in a file.
    if let Err(error) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "a crash of the agent may leave its keys in a core file");
    }
    let purpose = format!("cnova/v1/box-key/{node}");
    let kept = ledger
        .box_key()
        .await
        .map_err(|e| format!("the ledger cannot be read: {e}"))?;
    if let Some(locked) = kept {
        match unlock(&locked, ledger_key, &purpose) {
            Some(key) => return Ok(key),
            None => tracing::warn!("the node's key for secrets was kept under another ledger key; it gets a new one"),
        }
    }
    let key = make()?;
    let iv = random()?;
    let locked = secret::lock(&key.expose(), ledger_key.expose(), purpose.as_bytes(), iv).map_err(|e| e.to_string())?;
    let written = ledger.put_box_key(locked).await;
    written.map_err(|e| format!("its key for them cannot be kept: {e}"))?;
    tracing::info!(key = %key.public().id(), "made the node's key for secrets");
    Ok(key)
}

fn unlock(locked: &[u8], ledger_key: &LedgerKey, purpose: &str) -> Option<BoxKey> {
    let bytes = secret::unlock(locked, ledger_key.expose(), purpose.as_bytes()).ok()?;
    BoxKey::from_bytes(<&[u8; KEY_BYTES]>::try_from(bytes.as_slice()).ok()?).ok()
}

fn make() -> Result<BoxKey, String> {
    for _ in 0..DRAWS {
        let bytes = Zeroizing::new(random::<KEY_BYTES>()?);
        if let Ok(key) = BoxKey::from_bytes(&bytes) {
            return Ok(key);
        }
    }
    Err("the system's random numbers make no key".to_owned())
}

fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| "the system gives no random numbers".to_owned())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cnova_root_of_trust::Soft;
    use cnova_root_of_trust::ledger_key::SealedKey;
    use cnova_shared::boot_policy::OwnBoots;
    use std::fs;
    use std::path::Path;

    fn ledger_key(dir: &Path) -> LedgerKey {
        let root = Soft::open_or_create(&dir.join("node.key")).unwrap();
        let opened = SealedKey::in_folder(dir).open(&root, &OwnBoots::default(), None);
        opened.unwrap().key.unwrap()
    }

    #[tokio::test]
    async fn the_key_is_made_once_and_lies_nowhere_in_clear() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeId::new("plc-1").unwrap();
        let ledger = || Ledger::open(&dir.path().join("agent.db"), 1).unwrap().0;
        let (held, key) = (ledger(), ledger_key(dir.path()));
        let chest = Chest::default();
        let said = chest.open(&held, None, &node).await.unwrap_err();
        assert!(said.contains("does not open") && chest.get().is_none(), "{said}");
        let made = chest.open(&held, Some(&key), &node).await.unwrap();
        assert_eq!(chest.open(&held, None, &node).await.unwrap(), made, "it stays open");
        let private = chest.get().unwrap().1.expose();
        for file in fs::read_dir(dir.path()).unwrap() {
            let bytes = fs::read(file.unwrap().path()).unwrap();
            assert!(!bytes.windows(16).any(|w| private.windows(16).any(|p| p == w)));
        }
        drop(held);
        let again = Chest::default().open(&ledger(), Some(&key), &node).await.unwrap();
        assert_eq!(again, made, "by the next start");
        // Another name, or another ledger key, has another.
        let other = NodeId::new("plc-2").unwrap();
        assert_ne!(
            Chest::default().open(&ledger(), Some(&key), &other).await.unwrap(),
            made
        );
        let elsewhere = tempfile::tempdir().unwrap();
        let new = Chest::default()
            .open(&ledger(), Some(&ledger_key(elsewhere.path())), &node)
            .await;
        assert_ne!(new.unwrap(), made);
    }
}
