//! The key of this start of the program, for which the node's own key vouches once.
//!
//! A TPM takes up to half a second for a signature, and a node says something every few seconds. So a node with a TPM
//! signs what it says with a key in memory, and its TPM vouches for that key, once.

use std::sync::{Arc, OnceLock};

use cnova_shared::envelope::Endorsement;
use cnova_shared::ids::NodeId;
use cnova_shared::keys::{SignError, Signer, SoftKey};
use ring::signature::Ed25519KeyPair;

/// A session key.
#[derive(Debug)]
pub(crate) struct Session {
    signer: Arc<SoftKey>,
    endorsement: OnceLock<Endorsement>,
}

impl Session {
    /// A fresh key; nobody vouches for it yet. Nothing when the system gives no randomness.
    pub(crate) fn new() -> Option<Self> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).ok()?;
        let signer = SoftKey::from_pkcs8(pkcs8.as_ref()).ok()?;
        Some(Self {
            signer: Arc::new(signer),
            endorsement: OnceLock::new(),
        })
    }

    pub(crate) fn signer(&self) -> Arc<SoftKey> {
        self.signer.clone()
    }

    /// Lets the node's key vouch for this one, unless it has. Blocks for as long as a TPM takes.
    pub(crate) fn endorse(&self, node: &NodeId, certified: &dyn Signer) -> Result<(), SignError> {
        if self.endorsement.get().is_none() {
            let made = Endorsement::make(node, self.signer.public_key().clone(), certified)?;
            // Whoever was faster made an equally good one.
            let _ = self.endorsement.set(made);
        }
        Ok(())
    }

    /// The word of the node's key.
    pub(crate) fn endorsement(&self) -> Result<&Endorsement, SignError> {
        self.endorsement.get().ok_or_else(|| SignError {
            key: self.signer.public_key().id(),
            reason: "the TPM has not vouched for the key of this start yet".into(),
        })
    }
}
