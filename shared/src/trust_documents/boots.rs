//! Boots under which nodes' own secrets may open: what the hub's boot-policy key approved, for whom.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Document;
use crate::boot_policy::{ApproveError, ApprovedBoot, BootApproval, OwnBoots, PCR_COUNT, pcr_policy};
use crate::bundle::{Role, SigningKey, TrustBundle};
use crate::ids::{Digest, NodeId, SitePath};
use crate::keys::{KeyId, Signer};
use crate::limits;
use crate::selector::Selector;
use crate::wire::v1::{self, TrustItemKind, Versioned};

/// Bytes of an ES256 signature, r || s.
const SIGNATURE_BYTES: usize = 64;

/// All boots that are approved. A newer document replaces the older one, whole: what is not in it is not approved any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootPolicy {
    /// [`v1::VERSION`].
    pub v: u32,
    /// [`TrustItemKind::BootPolicy`].
    #[serde(rename = "k")]
    pub kind: TrustItemKind,
    /// Only goes up.
    #[serde(rename = "ver")]
    pub version: u64,
    /// The boots. More than one may be approved for a node: the image that it has and the one that it gets next.
    #[serde(rename = "b")]
    pub boots: Vec<PolicyBoot>,
}

/// One boot, and whom it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyBoot {
    /// The name of the reference values that it is one of.
    #[serde(rename = "n")]
    pub name: String,
    /// Whom it is for.
    #[serde(rename = "for")]
    pub nodes: Selector,
    /// What the registers hold (SHA-256 bank).
    #[serde(rename = "p")]
    pub values: BTreeMap<u8, Digest>,
    /// Who approved it.
    #[serde(rename = "s")]
    pub signatures: Vec<BootSignature>,
}

/// A key's approval of a boot ([`BootApproval`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSignature {
    /// The key.
    #[serde(rename = "k")]
    pub kid: KeyId,
    /// Its signature over the digest of the policy, r || s.
    #[serde(rename = "s", with = "serde_bytes")]
    pub signature: Vec<u8>,
}

impl PolicyBoot {
    /// Whether this key approved it already.
    #[must_use]
    pub fn is_signed_by(&self, kid: KeyId) -> bool {
        self.signatures.iter().any(|s| s.kid == kid)
    }

    /// Approves it with one key more.
    ///
    /// # Errors
    /// [`ApproveError`].
    pub fn approve(&mut self, approver: &dyn Signer) -> Result<(), ApproveError> {
        let kid = approver.public_key().id();
        let signature = BootApproval::sign(&self.values, approver)?.signature;
        self.signatures.retain(|s| s.kid != kid);
        self.signatures.push(BootSignature { kid, signature });
        Ok(())
    }

    fn approval(&self, by: &BootSignature) -> BootApproval {
        BootApproval {
            pcrs: self.values.keys().copied().collect(),
            policy: pcr_policy(&self.values),
            signature: by.signature.clone(),
            values: self.values.clone(),
        }
    }

    fn broken_rule(&self) -> Option<String> {
        let name = &self.name;
        if name.is_empty() || name.len() > limits::BOOT_NAME_BYTES {
            return Some(format!("a name of {} bytes", name.len()));
        }
        if self.nodes.selects_nobody() {
            return Some(format!("{name}: it selects no node"));
        }
        if self.values.is_empty() || self.values.keys().any(|pcr| *pcr >= PCR_COUNT) {
            return Some(format!("{name}: registers are 0 to 23, and at least one"));
        }
        let kids: BTreeSet<KeyId> = self.signatures.iter().map(|s| s.kid).collect();
        let is_form = |s: &BootSignature| s.signature.len() == SIGNATURE_BYTES;
        let is_bad = kids.len() != self.signatures.len() || !self.signatures.iter().all(is_form);
        if is_bad || kids.len() > limits::BOOT_SIGNATURES {
            return Some(format!(
                "{name}: signatures are of 64 bytes, one for each key, at most 8"
            ));
        }
        None
    }
}

impl BootPolicy {
    /// A document.
    #[must_use]
    pub fn new(version: u64, boots: Vec<PolicyBoot>) -> Self {
        Self {
            v: v1::VERSION,
            kind: TrustItemKind::BootPolicy,
            version,
            boots,
        }
    }

    /// What is approved for one node by keys that the newest bundle names, those by the key first that lasts longest; of keys
    /// that last equally long (made within one second) the one that the bundle names later, which is the newer one.
    /// A key that ran out still counts: what it approved, runs.
    #[must_use]
    pub fn for_node(
        &self,
        node: &NodeId,
        site: &SitePath,
        labels: &BTreeMap<String, String>,
        trust: &TrustBundle,
    ) -> OwnBoots {
        let mut keys: Vec<&SigningKey> = trust
            .contents()
            .keys
            .iter()
            .filter(|k| k.roles.contains(&Role::BootPolicy))
            .collect();
        keys.reverse();
        keys.sort_by_key(|k| std::cmp::Reverse(k.not_after));
        let mine: Vec<&PolicyBoot> = self
            .boots
            .iter()
            .filter(|b| b.nodes.selects(node, site, labels))
            .collect();
        let mut approved = Vec::new();
        for key in keys {
            let kid = key.key.id();
            for boot in &mine {
                let Some(by) = boot.signatures.iter().find(|s| s.kid == kid) else {
                    continue;
                };
                approved.push(ApprovedBoot {
                    name: boot.name.clone(),
                    approver: key.key.clone(),
                    approval: boot.approval(by),
                });
            }
        }
        OwnBoots { approved }
    }

    /// Whether boots of this node are in it, and the newest bundle names none of the keys that approved them: it is older
    /// than the bundle that took the key away, and the next one is on its way.
    #[must_use]
    pub fn is_overtaken(
        &self,
        node: &NodeId,
        site: &SitePath,
        labels: &BTreeMap<String, String>,
        trust: &TrustBundle,
    ) -> bool {
        let is_named = |s: &BootSignature| trust.key_at_any_time(s.kid, Role::BootPolicy).is_some();
        let mut mine = self
            .boots
            .iter()
            .filter(|b| b.nodes.selects(node, site, labels))
            .peekable();
        mine.peek().is_some() && mine.all(|b| !b.signatures.iter().any(is_named))
    }
}

impl Versioned for BootPolicy {
    fn version(&self) -> u32 {
        self.v
    }
}

impl Document for BootPolicy {
    const KIND: TrustItemKind = TrustItemKind::BootPolicy;
    fn kind(&self) -> TrustItemKind {
        self.kind
    }
    fn number(&self) -> u64 {
        self.version
    }
    fn check(&self) -> Result<(), String> {
        if self.version == 0 {
            return Err("versions begin at 1".into());
        }
        let (count, max) = (self.boots.len(), limits::BOOTS_APPROVED);
        if count > max {
            return Err(format!("{count} boots in it, at most {max}"));
        }
        self.boots.iter().find_map(PolicyBoot::broken_rule).map_or(Ok(()), Err)
    }
}
