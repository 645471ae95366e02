//! Documents of which there is one for the whole tree, versioned and signed by the hub, and whose contents this crate does
//! not know: they are verified, kept, and handed on to whom they concern. What they say is for others to read
//! ([`Kept::decode`]).
//!
//! A new kind is an entry of [`RULES`]; stores, hellos and the way down follow from it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{TrustError, TrustOp, TrustState};
use crate::bundle::Role;
use crate::envelope::{EnvelopeError, Untrusted, Verified, VerifiedBytes};
use crate::ids::{NodeId, SitePath};
use crate::keys::{KeyId, PublicKey};
use crate::limits;
use crate::trust_documents::{DocumentError, Right};
use crate::wire::v1::{NodeRole, TrustItem, TrustItemKind, Versioned};

/// What holds for one kind.
struct Rule {
    kind: TrustItemKind,
    /// What the key that signs it must be for.
    role: Role,
    /// Largest signed document, bytes.
    max: usize,
    /// Whether a node that takes documents keeps one of this kind.
    keeps: fn(NodeRole) -> bool,
    /// Whether a child needs it.
    concerns: fn(&TrustState, &Holder<'_>) -> bool,
}

const RULES: [Rule; 1] = [Rule {
    kind: TrustItemKind::References,
    role: Role::Attestation,
    max: limits::REFERENCES_BYTES,
    keeps: |role| role == NodeRole::Gateway,
    concerns: is_for_a_verifier,
}];

fn rule(kind: TrustItemKind) -> Option<&'static Rule> {
    RULES.iter().find(|r| r.kind == kind)
}

/// A child as its hello describes it.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    /// Its name.
    pub node: &'a NodeId,
    /// Its place.
    pub site: &'a SitePath,
    /// What it is.
    pub role: NodeRole,
    /// The bundle that it holds.
    pub trust_version: u64,
    /// The other documents that it holds, with their versions.
    pub documents: &'a BTreeMap<String, u64>,
}

/// Gateways that may appraise, and those on the way to one.
fn is_for_a_verifier(trust: &TrustState, child: &Holder<'_>) -> bool {
    let leads_there = |d: &crate::trust_documents::Delegation| {
        d.rights.contains(&Right::Appraise) && (d.gateway == *child.node || d.is_within(child.site))
    };
    let mut delegations = trust.delegations().filter(|d| trust.names(d.kid(), Role::Attestation));
    child.role == NodeRole::Gateway && delegations.any(|d| leads_there(d.value()))
}

/// What every such document begins with, whatever else is in it.
#[derive(Deserialize)]
struct Head {
    v: u32,
    #[serde(rename = "n")]
    version: u64,
}

impl Versioned for Head {
    fn version(&self) -> u32 {
        self.v
    }
}

/// A document whose signature held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    version: u64,
    kid: KeyId,
    bytes: Vec<u8>,
    opened: VerifiedBytes,
}

impl Kept {
    /// Its place in the order of its kind; only goes up.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The key that signed it.
    #[must_use]
    pub fn kid(&self) -> KeyId {
        self.kid
    }

    /// The signed bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What it says.
    ///
    /// # Errors
    /// [`EnvelopeError::BadPayload`] when it is not a `T`.
    pub fn decode<T: DeserializeOwned + Versioned>(&self) -> Result<Verified<T>, EnvelopeError> {
        self.opened.clone().decode()
    }
}

fn open<'k>(
    rule: &Rule,
    bytes: &[u8],
    key: impl FnOnce(KeyId) -> Option<&'k PublicKey>,
) -> Result<Kept, DocumentError> {
    let (len, max) = (bytes.len(), rule.max);
    if len > max {
        return Err(EnvelopeError::TooLarge { len, max }.into());
    }
    let untrusted = Untrusted::read(bytes)?;
    let (iss, kid) = (untrusted.claims.iss.clone(), untrusted.kid);
    let key = key(kid).ok_or(EnvelopeError::UnknownKey { iss, kid })?;
    let opened = untrusted.verify_document(rule.kind, key)?;
    let head = opened.clone().decode::<Head>()?.into_value();
    if head.version == 0 {
        return Err(DocumentError::Invalid("versions begin at 1".into()));
    }
    Ok(Kept {
        version: head.version,
        kid,
        bytes: bytes.to_vec(),
        opened,
    })
}

/// Whether a node of this role keeps documents of this kind. One that does not leaves it aside without a word: whoever sent
/// it made a mistake that harms nobody.
pub(super) fn keeps(kind: TrustItemKind, role: NodeRole) -> bool {
    rule(kind).is_none_or(|r| (r.keeps)(role))
}

impl TrustState {
    /// The document of this kind, if it is held and a key of the newest bundle signed it.
    #[must_use]
    pub fn kept(&self, kind: TrustItemKind) -> Option<&Kept> {
        let rule = rule(kind)?;
        self.kept.get(&kind).filter(|k| self.names(k.kid, rule.role))
    }

    pub(super) fn restore_kept(&mut self, stored: BTreeMap<TrustItemKind, Vec<u8>>, faults: &mut Vec<String>) {
        for (kind, bytes) in stored {
            let name = kind.as_str();
            let Some(rule) = rule(kind) else {
                faults.push(format!("the stored {name} are not known to this version"));
                continue;
            };
            match open(rule, &bytes, |kid| self.key_ever(kid, rule.role)) {
                Ok(kept) => drop(self.kept.insert(kind, kept)),
                Err(e) => faults.push(format!("the stored {name} are left out: {e}")),
            }
        }
    }

    /// One that is newer than what is held, or that takes the place of one whose key has left the bundle.
    pub(super) fn take_kept(
        &mut self,
        kind: TrustItemKind,
        bytes: &[u8],
        now_s: u64,
    ) -> Result<Option<TrustOp>, TrustError> {
        let rule = rule(kind).ok_or(TrustError::UnknownKind(kind))?;
        let held = self.kept.get(&kind);
        if held.is_some_and(|h| h.bytes == bytes) {
            return Ok(None);
        }
        let fail = |source| TrustError::Document { kind, source };
        let offered = open(rule, bytes, |kid| self.newest.key(kid, rule.role, now_s)).map_err(fail)?;
        if let Some(held) = held.filter(|h| self.names(h.kid, rule.role)) {
            let is_same = held.version == offered.version && held.opened.is_same_payload(&offered.opened);
            if is_same && held.kid == offered.kid {
                return Ok(None);
            }
            // The same, signed anew after a rotation, is taken: the key of the one that is held is about to leave.
            if offered.version <= held.version && !is_same {
                let (offered, held) = (offered.version, held.version);
                return Err(fail(DocumentError::NotNewer { offered, held }));
            }
        }
        self.kept.insert(kind, offered);
        let bytes = bytes.to_vec();
        Ok(Some(TrustOp::PutDocument { kind, bytes }))
    }

    /// What a hello says of these.
    pub(super) fn kept_versions(&self) -> impl Iterator<Item = (String, u64)> {
        let kinds = self.kept.keys().filter_map(|kind| self.kept(*kind).map(|k| (kind, k)));
        kinds.map(|(kind, k)| (kind.as_str().to_owned(), k.version))
    }

    /// Those that a child needs and has not said that it holds.
    pub(super) fn kept_lacking(&self, child: &Holder<'_>) -> impl Iterator<Item = TrustItem> {
        let is_lacking = |kind: TrustItemKind, kept: &Kept| {
            let has = child.documents.get(kind.as_str()).copied().unwrap_or(0);
            has < kept.version && rule(kind).is_some_and(|r| (r.concerns)(self, child))
        };
        let kinds = self.kept.keys().filter_map(|kind| Some((*kind, self.kept(*kind)?)));
        let lacking: Vec<TrustItem> = kinds
            .filter(|(kind, kept)| is_lacking(*kind, kept))
            .map(|(kind, kept)| TrustItem {
                kind,
                body: kept.bytes.clone().into(),
            })
            .collect();
        lacking.into_iter()
    }

    /// Whether a child that needs the document of this kind has said that it holds what is in force here. True for a child
    /// that does not need it.
    #[must_use]
    pub fn holds(&self, kind: TrustItemKind, child: &Holder<'_>) -> bool {
        !self.kept_lacking(child).any(|item| item.kind == kind)
    }
}
