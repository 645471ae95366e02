//! What a node trusts, and how it came to that: the trust bundle that it was flashed with, every newer one since, who was
//! revoked, and what gateways may decide.
//!
//! Three rules. A bundle is taken when a threshold of the roots *before* it and of its own signed it, so that a node that
//! missed some takes them in their order. A list or a delegation is taken when a key of the newest bundle signed it. And
//! what was taken before its key left the bundle stays genuine: it is verified with the bundle of that time, which is
//! kept for this; nothing new by that key is taken.

mod kept;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use thiserror::Error;

use crate::bundle::{BundleError, Role, TrustBundle};
use crate::certificate;
use crate::ids::NodeId;
use crate::keys::{KeyId, PublicKey};
use crate::limits;
use crate::trust_documents::{
    BootPolicy, Delegation, Document, DocumentError, Revocations, RevokedNode, Signed, open_with,
};
use crate::twin::{TwinError, VerifiedTwin};
use crate::wire::v1::{NodeRole, TrustItem, TrustItemKind};

pub use kept::{Holder, Kept};

mod single;

pub use single::BOOT_POLICY_SAID;

/// What a hello calls the list of revocations.
const REVOCATIONS: &str = "r";
/// How what a hello calls a delegation begins; the gateway follows.
const DELEGATION: &str = "d/";

/// A change that must be on disk before it has an effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrustOp {
    /// A newer bundle; the older ones stay.
    PutBundle {
        /// Its version.
        version: u64,
        /// The signed bytes.
        bytes: Vec<u8>,
    },
    /// The list of revocations.
    PutRevocations(Vec<u8>),
    /// What a gateway may decide.
    PutDelegation {
        /// The gateway.
        gateway: NodeId,
        /// The signed bytes.
        bytes: Vec<u8>,
    },
    /// The document of a kind of which there is one for the tree.
    PutDocument {
        /// Which kind.
        kind: TrustItemKind,
        /// The signed bytes.
        bytes: Vec<u8>,
    },
}

impl TrustOp {
    /// As stores keep it: kind, name within the kind, version (of bundles, whose older ones stay), signed bytes. What
    /// follows takes the place of what has the same kind, name and version. [`StoredTrust::put_row`] reads it back.
    #[must_use]
    pub fn row(&self) -> (&'static str, &str, u64, &[u8]) {
        match self {
            TrustOp::PutBundle { version, bytes } => (TrustItemKind::Bundle.as_str(), "", *version, bytes),
            TrustOp::PutRevocations(bytes) => (TrustItemKind::Revocations.as_str(), "", 0, bytes),
            TrustOp::PutDelegation { gateway, bytes } => {
                (TrustItemKind::Delegation.as_str(), gateway.as_str(), 0, bytes)
            }
            TrustOp::PutDocument { kind, bytes } => (kind.as_str(), "", 0, bytes),
        }
    }
}

/// Trust as a node's store holds it. Nothing of it is believed for being there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredTrust {
    /// Signed bundles by version.
    pub bundles: BTreeMap<u64, Vec<u8>>,
    /// The signed list of revocations.
    pub revocations: Option<Vec<u8>>,
    /// Signed delegations by gateway.
    pub delegations: BTreeMap<NodeId, Vec<u8>>,
    /// Signed documents of which the tree has one of each kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub documents: BTreeMap<TrustItemKind, Vec<u8>>,
}

impl StoredTrust {
    /// Takes a row of a store ([`TrustOp::row`]).
    ///
    /// # Errors
    /// What is wrong with it: no program of ours wrote it.
    pub fn put_row(&mut self, kind: &str, name: &str, version: u64, bytes: Vec<u8>) -> Result<(), String> {
        match TrustItemKind::parse(kind) {
            Some(TrustItemKind::Bundle) => drop(self.bundles.insert(version, bytes)),
            Some(TrustItemKind::Revocations) => self.revocations = Some(bytes),
            Some(TrustItemKind::Delegation) => {
                let gateway = NodeId::new(name).map_err(|e| e.to_string())?;
                self.delegations.insert(gateway, bytes);
            }
            Some(kind) => drop(self.documents.insert(kind, bytes)),
            None => return Err(format!("{kind:?} is no kind of document")),
        }
        Ok(())
    }

    /// Applies a change to an image in memory.
    pub fn apply(&mut self, op: &TrustOp) {
        match op.clone() {
            TrustOp::PutBundle { version, bytes } => drop(self.bundles.insert(version, bytes)),
            TrustOp::PutRevocations(bytes) => self.revocations = Some(bytes),
            TrustOp::PutDelegation { gateway, bytes } => drop(self.delegations.insert(gateway, bytes)),
            TrustOp::PutDocument { kind, bytes } => drop(self.documents.insert(kind, bytes)),
        }
    }
}

/// Why a document about trust is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TrustError {
    /// A bundle.
    #[error("trust bundle: {0}")]
    Bundle(#[from] BundleError),
    /// Too many bundles already.
    #[error(
        "trust bundle: {} are kept already; install the newest one as the node's own",
        limits::BUNDLES_KEPT
    )]
    TooManyBundles,
    /// Another document.
    #[error("{kind:?}: {source}")]
    Document {
        /// What it came as.
        kind: TrustItemKind,
        /// What was wrong.
        source: DocumentError,
    },
    /// Too many delegations already.
    #[error("delegation: {} are kept already", limits::DELEGATIONS_KEPT)]
    TooManyDelegations,
    /// A kind that this version does not keep.
    #[error("{0:?} is not known to this version")]
    UnknownKind(TrustItemKind),
}

impl TrustError {
    /// Whether somebody offers what was replaced long ago: an attack, or a parent whose store was restored.
    #[must_use]
    pub fn is_rollback(&self) -> bool {
        matches!(
            self,
            TrustError::Bundle(BundleError::NotNewer { .. })
                | TrustError::Document {
                    source: DocumentError::NotNewer { .. },
                    ..
                }
        )
    }
}

/// What became of documents that came together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// What must be written; nothing when nothing was new.
    pub ops: Vec<TrustOp>,
    /// Why documents were not taken.
    pub refused: Vec<String>,
    /// Whether one of these was replaced long ago.
    pub is_older: bool,
}

impl Taken {
    /// Whether whoever sent them does not know what is held here: it repeats it, or offers what is older.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.ops.is_empty() && (self.is_older || self.refused.is_empty())
    }
}

/// What TLS and the door need to know; made anew whenever it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustView {
    /// The newest bundle's version.
    pub version: u64,
    /// When it was made: it is not earlier than that, seconds since 1970.
    pub issued_at: u64,
    /// The authorities that certify nodes, DER.
    pub authorities: Vec<Vec<u8>>,
    /// Nodes that are not let in.
    pub revoked: BTreeMap<NodeId, RevokedNode>,
}

impl TrustView {
    /// Why the holder of this certificate (DER) is not let in; nothing when it is, or when it cannot be read, which others
    /// refuse.
    #[must_use]
    pub fn refuses(&self, certificate: &[u8]) -> Option<String> {
        let read = certificate::read(certificate).ok()?;
        let revoked = self.revoked.get(&read.node)?;
        revoked.covers(Some(read.key.id())).then(|| revoked_text(revoked))
    }
}

/// What is said of a node that was revoked.
#[must_use]
pub fn revoked_text(r: &RevokedNode) -> String {
    let why = if r.reason.is_empty() {
        "no reason given"
    } else {
        &r.reason
    };
    format!("{} is revoked: {why}", r.node)
}

/// What a node trusts.
#[derive(Clone, Debug)]
pub struct TrustState {
    /// From the flashed one to the newest; never empty.
    newest: TrustBundle,
    /// Those before the newest, verified, oldest first.
    older: Vec<TrustBundle>,
    /// Older than the flashed one: this node cannot verify them and only hands them on.
    carried: BTreeMap<u64, Vec<u8>>,
    revocations: Option<Signed<Revocations>>,
    delegations: BTreeMap<NodeId, Signed<Delegation>>,
    boot_policy: Option<Signed<BootPolicy>>,
    kept: BTreeMap<TrustItemKind, Kept>,
}

impl From<TrustBundle> for TrustState {
    fn from(flashed: TrustBundle) -> Self {
        Self {
            newest: flashed,
            older: Vec::new(),
            carried: BTreeMap::new(),
            revocations: None,
            delegations: BTreeMap::new(),
            boot_policy: None,
            kept: BTreeMap::new(),
        }
    }
}

impl TrustState {
    /// From the bundle that the image was flashed with and what the store holds. What does not verify is left out, with
    /// the reason in the list.
    #[must_use]
    pub fn restore(flashed: TrustBundle, stored: StoredTrust) -> (Self, Vec<String>) {
        let mut state = Self::from(flashed);
        let mut faults = Vec::new();
        let first = state.newest.contents().version;
        for (version, bytes) in stored.bundles {
            if version < first {
                state.carried.insert(version, bytes);
            } else if bytes != state.newest.bytes()
                && let Err(e) = state.take_bundle(&bytes)
            {
                faults.push(format!("the stored trust bundle {version} is left out: {e}"));
            }
        }
        if let Some(bytes) = stored.revocations {
            match open_with(&bytes, |kid| state.key_ever(kid, Role::Attestation)) {
                Ok(list) => state.revocations = Some(list),
                Err(e) => faults.push(format!("the stored revocations are left out: {e}")),
            }
        }
        for (gateway, bytes) in stored.delegations {
            match open_with::<Delegation>(&bytes, |kid| state.key_ever(kid, Role::Attestation)) {
                Ok(d) if d.value().gateway == gateway => drop(state.delegations.insert(gateway, d)),
                Ok(_) => faults.push(format!("the stored delegation of {gateway} names another gateway")),
                Err(e) => faults.push(format!("the stored delegation of {gateway} is left out: {e}")),
            }
        }
        let (single, kept) = stored
            .documents
            .into_iter()
            .partition(|(kind, _)| single::is_one(*kind));
        state.restore_single(single, &mut faults);
        state.restore_kept(kept, &mut faults);
        (state, faults)
    }

    /// For the hub, whose store is the truth: from the oldest bundle that it holds, and the one of its configuration, which
    /// may be newer. Bundles that do not lead there are left out, with the reason in the list.
    #[must_use]
    pub fn restore_of_hub(configured: TrustBundle, mut stored: StoredTrust) -> (Self, Vec<String>) {
        let oldest = stored.bundles.first_key_value();
        let oldest = oldest.and_then(|(_, bytes)| TrustBundle::flashed(bytes).ok());
        let version = configured.contents().version;
        let Some(oldest) = oldest.filter(|o| o.contents().version < version) else {
            return Self::restore(configured, stored);
        };
        stored
            .bundles
            .entry(version)
            .or_insert_with(|| configured.bytes().to_vec());
        let (state, mut faults) = Self::restore(oldest, stored.clone());
        if state.bundles().any(|b| b.bytes() == configured.bytes()) {
            return (state, faults);
        }
        faults.push(format!(
            "the stored trust bundles do not lead to the configured one (version {version}), which counts from here"
        ));
        let (state, more) = Self::restore(configured, stored);
        faults.extend(more);
        (state, faults)
    }

    /// The newest bundle.
    #[must_use]
    pub fn bundle(&self) -> &TrustBundle {
        &self.newest
    }

    /// All bundles that were verified, oldest first.
    pub fn bundles(&self) -> impl DoubleEndedIterator<Item = &TrustBundle> {
        self.older.iter().chain(std::iter::once(&self.newest))
    }

    /// The newest bundle's version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.newest.contents().version
    }

    /// The list of revocations.
    #[must_use]
    pub fn revocations(&self) -> Option<&Signed<Revocations>> {
        self.revocations.as_ref()
    }

    /// What a gateway may decide.
    #[must_use]
    pub fn delegation(&self, gateway: &NodeId) -> Option<&Signed<Delegation>> {
        self.delegations.get(gateway)
    }

    /// All delegations.
    pub fn delegations(&self) -> impl Iterator<Item = &Signed<Delegation>> {
        self.delegations.values()
    }

    /// The boots under which nodes' own secrets may open.
    #[must_use]
    pub fn boot_policy(&self) -> Option<&Signed<BootPolicy>> {
        self.boot_policy.as_ref()
    }

    /// The revocation under which a device of this name with this key falls; without a key: every device of this name.
    #[must_use]
    pub fn revoked(&self, node: &NodeId, key: Option<KeyId>) -> Option<&RevokedNode> {
        let list = self.revocations.as_ref()?;
        let mut nodes = list.value().nodes.iter();
        nodes.find(|r| r.node == *node).filter(|r| r.covers(key))
    }

    /// What TLS and the door need to know.
    #[must_use]
    pub fn view(&self) -> TrustView {
        let revoked = self.revocations.iter().flat_map(|l| &l.value().nodes);
        TrustView {
            version: self.version(),
            issued_at: self.newest.contents().issued_at,
            authorities: self.newest.authorities(),
            revoked: revoked.map(|r| (r.node.clone(), r.clone())).collect(),
        }
    }

    /// Whether the newest bundle names this key for `role`, whatever the time.
    #[must_use]
    pub fn names(&self, kid: KeyId, role: Role) -> bool {
        self.newest.key_at_any_time(kid, role).is_some()
    }

    /// A key of any bundle that was verified, the newest first: for what was taken when that bundle was in force. Nothing
    /// new is verified with it.
    #[must_use]
    pub fn key_ever(&self, kid: KeyId, role: Role) -> Option<&PublicKey> {
        self.bundles().rev().find_map(|b| b.key_at_any_time(kid, role))
    }

    /// Verifies a twin that was taken before and is read back from disk. Its key may have run out, or have left the bundle:
    /// it was in force when the twin was taken, and a rotation never stops what runs.
    ///
    /// # Errors
    /// [`TwinError`]; the file was changed, or no bundle of this node ever named the key.
    pub fn reopen_twin(&self, bytes: &[u8]) -> Result<VerifiedTwin, TwinError> {
        VerifiedTwin::open_with(bytes, |kid| self.key_ever(kid, Role::Twin))
    }

    /// Takes a document that came; what must be written is returned, nothing when it is here already.
    ///
    /// # Errors
    /// [`TrustError`]; nothing is changed.
    pub fn take(&mut self, item: &TrustItem, now_s: u64) -> Result<Option<TrustOp>, TrustError> {
        match item.kind {
            TrustItemKind::Bundle => self.take_bundle(&item.body),
            TrustItemKind::Revocations => self.take_revocations(&item.body, now_s),
            TrustItemKind::Delegation => self.take_delegation(&item.body, now_s),
            kind if single::is_one(kind) => self.take_single(kind, &item.body, now_s),
            kind => self.take_kept(kind, &item.body, now_s),
        }
    }

    /// Takes documents that came together, in their order, at a node of this role. Kinds that such a node has no use for
    /// are left aside.
    pub fn take_all(&mut self, items: &[TrustItem], role: NodeRole, now_s: u64) -> Taken {
        let mut taken = Taken::default();
        for item in items.iter().filter(|i| kept::keeps(i.kind, role)) {
            match self.take(item, now_s) {
                Ok(op) => taken.ops.extend(op),
                Err(e) => {
                    taken.is_older |= e.is_rollback();
                    taken.refused.push(e.to_string());
                }
            }
        }
        taken
    }

    fn take_bundle(&mut self, bytes: &[u8]) -> Result<Option<TrustOp>, TrustError> {
        // A parent that does not know that they are here says them again.
        let is_held = self.bundles().any(|b| b.bytes() == bytes) || self.carried.values().any(|b| b == bytes);
        if is_held {
            return Ok(None);
        }
        let next = self.newest.succeed(bytes)?;
        if self.older.len() + 1 >= limits::BUNDLES_KEPT {
            return Err(TrustError::TooManyBundles);
        }
        let version = next.contents().version;
        self.older.push(std::mem::replace(&mut self.newest, next));
        Ok(Some(TrustOp::PutBundle {
            version,
            bytes: bytes.to_vec(),
        }))
    }

    fn take_revocations(&mut self, bytes: &[u8], now_s: u64) -> Result<Option<TrustOp>, TrustError> {
        let offered = self.verify::<Revocations>(bytes, self.revocations.as_ref(), now_s)?;
        let Some(offered) = offered else { return Ok(None) };
        self.revocations = Some(offered);
        Ok(Some(TrustOp::PutRevocations(bytes.to_vec())))
    }

    fn take_delegation(&mut self, bytes: &[u8], now_s: u64) -> Result<Option<TrustOp>, TrustError> {
        let fail = |source| TrustError::Document {
            kind: TrustItemKind::Delegation,
            source,
        };
        let gateway = Delegation::verify(bytes, &self.newest, now_s)
            .map_err(fail)?
            .value()
            .gateway
            .clone();
        let held = self.delegations.get(&gateway);
        let Some(offered) = self.verify::<Delegation>(bytes, held, now_s)? else {
            return Ok(None);
        };
        if held.is_none() && self.delegations.len() >= limits::DELEGATIONS_KEPT {
            return Err(TrustError::TooManyDelegations);
        }
        self.delegations.insert(gateway.clone(), offered);
        Ok(Some(TrustOp::PutDelegation {
            gateway,
            bytes: bytes.to_vec(),
        }))
    }

    /// A document that is newer than the one held. One whose key has left the bundle is replaced by any that a key of the
    /// bundle signed: whoever stole the old key may have given it the highest version there is.
    fn verify<T: Document + PartialEq>(
        &self,
        bytes: &[u8],
        held: Option<&Signed<T>>,
        now_s: u64,
    ) -> Result<Option<Signed<T>>, TrustError> {
        let fail = |source| TrustError::Document { kind: T::KIND, source };
        if held.is_some_and(|h| h.bytes() == bytes) {
            return Ok(None);
        }
        let new = T::verify(bytes, &self.newest, now_s).map_err(fail)?;
        let in_force = held.filter(|h| self.names(h.kid(), Role::Attestation));
        if let Some(held) = in_force {
            let (offered, version) = (new.value().number(), held.value().number());
            if offered == version && new.value() == held.value() {
                return Ok(None);
            }
            if offered <= version {
                return Err(fail(DocumentError::NotNewer { offered, held: version }));
            }
        }
        Ok(Some(new))
    }

    /// What a hello says that this node holds beside the bundle. What is signed by a key that has left the bundle is not
    /// said, so that it comes anew.
    #[must_use]
    pub fn documents(&self) -> BTreeMap<String, u64> {
        let named = |kid| self.names(kid, Role::Attestation);
        let list = self.revocations.iter().filter(|l| named(l.kid()));
        let list = list.map(|l| (REVOCATIONS.to_owned(), l.value().number()));
        let delegations = self.delegations.values().filter(|d| named(d.kid()));
        let delegations = delegations.map(|d| (format!("{DELEGATION}{}", d.value().gateway), d.value().number()));
        list.chain(delegations)
            .chain(self.singles_said())
            .chain(self.kept_versions())
            .collect()
    }

    /// What a child needs that it has not said it holds, oldest bundle first. What this node itself would not take any more
    /// is not handed on.
    #[must_use]
    pub fn lacking(&self, child: &Holder<'_>) -> Vec<TrustItem> {
        let item = |kind, bytes: &[u8]| TrustItem {
            kind,
            body: ByteBuf::from(bytes.to_vec()),
        };
        let mut items = Vec::new();
        if child.trust_version < self.version() {
            let carried = self.carried.range(child.trust_version + 1..).map(|(_, b)| b.as_slice());
            let verified = self.bundles().filter(|b| b.contents().version > child.trust_version);
            let all = carried.chain(verified.map(TrustBundle::bytes));
            items.extend(all.map(|b| item(TrustItemKind::Bundle, b)));
        }
        let has = |name: &str| child.documents.get(name).copied().unwrap_or(0);
        let named = |kid| self.names(kid, Role::Attestation);
        if let Some(list) = self.revocations.as_ref().filter(|l| named(l.kid()))
            && has(REVOCATIONS) < list.value().number()
        {
            items.push(item(TrustItemKind::Revocations, list.bytes()));
        }
        for d in self.delegations.values().filter(|d| named(d.kid())) {
            let concerns = d.value().concerns(child.node, child.site);
            if concerns && has(&format!("{DELEGATION}{}", d.value().gateway)) < d.value().number() {
                items.push(item(TrustItemKind::Delegation, d.bytes()));
            }
        }
        items.extend(self.singles_lacking(child.documents));
        items.extend(self.kept_lacking(child));
        items
    }
}

/// Messages' worth of documents, in order, each of at most [`limits::BATCH_BYTES`] unless one alone is larger.
#[must_use]
pub fn batches(items: Vec<TrustItem>) -> Vec<Vec<TrustItem>> {
    let mut all: Vec<Vec<TrustItem>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let size = item.body.len();
        match all.last_mut().filter(|_| bytes + size <= limits::BATCH_BYTES) {
            Some(batch) => batch.push(item),
            None => {
                bytes = 0;
                all.push(vec![item]);
            }
        }
        bytes += size;
    }
    all
}
