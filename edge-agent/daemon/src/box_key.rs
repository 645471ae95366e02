//! The key that the node's secrets are encrypted to: made once, kept in the ledger under the ledger's own key, and in
//! memory while the agent runs.

use cnova_root_of_trust::ledger_key::LedgerKey;
use cnova_shared::ids::NodeId;
use cnova_shared::secret::{self, BoxKey, KEY_BYTES};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::process::DumpableBehavior;
use zeroize::Zeroizing;

use crate::ledger::Ledger;

/// Draws of a new key; each fails once in 2^32.
const DRAWS: usize = 4;

/// Opens the key, or makes one: the hub encrypts to the new one when it hears of it.
///
/// # Errors
/// Why this node can open no secrets, for a person. Everything that uses none runs all the same.
pub(crate) async fn open(ledger: &Ledger, ledger_key: Option<&LedgerKey>, node: &NodeId) -> Result<BoxKey, String> {
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
