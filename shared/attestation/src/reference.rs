//! Reference values: what nodes shall have booted, and what they may launch. One document for the tree, signed by a hub key
//! with the role `Attestation`; gateways that appraise under a delegation get it as
//! [`TrustItemKind::References`].
//!
//! Sets that select the same node are alternatives: an update is approved by adding a set with the new values before it is
//! rolled out, and by taking the old one away afterwards.

use std::collections::{BTreeMap, BTreeSet};

use cnova_shared::bundle::{Role, TrustBundle};
use cnova_shared::envelope::{Claims, EnvelopeError, SealError, Untrusted, seal_document};
use cnova_shared::ids::Digest;
use cnova_shared::keys::{KeyId, PublicKey, Signer};
pub use cnova_shared::selector::Selector;
use cnova_shared::wire::v1::{TrustItemKind, Versioned};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::firmware_log::FirmwareLog;
use crate::quote::VerifiedQuote;
use crate::{Pcr, limits};

/// The format's version.
pub const VERSION: u32 = 1;

const NAME_BYTES: usize = 63;

/// All reference values of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct References {
    /// [`VERSION`].
    pub v: u32,
    /// Only goes up.
    #[serde(rename = "n")]
    pub version: u64,
    /// The sets.
    #[serde(rename = "s")]
    pub sets: Vec<ReferenceSet>,
}

/// One thing that nodes may have booted: an image, on one kind of machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceSet {
    /// For people: `plc-image-1.4`.
    #[serde(rename = "n")]
    pub name: String,
    /// Whom it is for.
    #[serde(rename = "for")]
    pub nodes: Selector,
    /// What the registers may hold; at least one. Under the launch register stand values that it may have *before* the
    /// first entry of the launch log, where a boot loader uses it too.
    #[serde(rename = "p")]
    pub pcrs: BTreeMap<u8, PcrReference>,
    /// Executables of the agent (SHA-256) that may write the launch log; any when empty.
    #[serde(rename = "ag", default, skip_serializing_if = "BTreeSet::is_empty")]
    pub agents: BTreeSet<Digest>,
    /// Executables of runtimes (SHA-256) that may be launched; any when empty.
    #[serde(rename = "rt", default, skip_serializing_if = "BTreeSet::is_empty")]
    pub runtimes: BTreeSet<Digest>,
    /// Artifacts that may be launched; any when empty. What a twin may ask for is decided elsewhere; this is for nodes
    /// that do one thing.
    #[serde(rename = "art", default, skip_serializing_if = "BTreeSet::is_empty")]
    pub artifacts: BTreeSet<Digest>,
}

impl ReferenceSet {
    /// What a node shows now, as a set: every register that it quoted but the launch register, and the events of the
    /// firmware where its log replays to the register. Whoever signs it vouches that this is how the node should be.
    #[must_use]
    pub fn observed(name: &str, nodes: Selector, quote: &VerifiedQuote, launch_pcr: u8) -> Self {
        let firmware = quote.firmware_log().and_then(|l| FirmwareLog::read(l).ok());
        let events = |pcr: u8, value: &Pcr| {
            let log = firmware.as_ref().filter(|l| l.replay(pcr) == *value);
            let digests = log.map(|l| l.digests(pcr)).unwrap_or_default();
            // A list that would be cut could only mislead.
            if digests.len() > limits::EVENTS_PER_PCR {
                BTreeSet::new()
            } else {
                digests
            }
        };
        let boot = quote.pcrs().iter().filter(|(pcr, _)| **pcr != launch_pcr);
        let reference = |value: &Pcr, pcr| PcrReference {
            values: BTreeSet::from([*value]),
            events: events(pcr, value),
        };
        Self {
            name: name.to_owned(),
            nodes,
            pcrs: boot.map(|(pcr, value)| (*pcr, reference(value, *pcr))).collect(),
            ..Self::default()
        }
    }
}

/// What one register may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PcrReference {
    /// Its allowed values.
    #[serde(rename = "v")]
    pub values: BTreeSet<Pcr>,
    /// Digests of the firmware's events that make them up, to name the one that differs; optional.
    #[serde(rename = "e", default, skip_serializing_if = "BTreeSet::is_empty")]
    pub events: BTreeSet<Digest>,
}

impl Versioned for References {
    fn version(&self) -> u32 {
        self.v
    }
}

/// Why a document of reference values is not taken, or not signed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReferenceError {
    /// The envelope did not hold.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// It could not be signed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// It breaks a rule.
    #[error("reference set {set:?}: {rule}")]
    Invalid {
        /// Which set; empty for the document as a whole.
        set: String,
        /// The rule that it breaks.
        rule: String,
    },
}

/// A document of reference values that a hub key with the role `Attestation` signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedReferences {
    references: References,
    iat: u64,
    bytes: Vec<u8>,
}

impl VerifiedReferences {
    /// Verifies a document that has just come; its key must still be in force at `now_s`. Whether it is newer than the one
    /// held is for the caller to check: [`References::version`] only goes up.
    ///
    /// # Errors
    /// [`ReferenceError`]; nothing of the payload was decoded unless the signature held.
    pub fn open(bytes: &[u8], trust: &TrustBundle, now_s: u64) -> Result<Self, ReferenceError> {
        let opened = Self::open_with(bytes, |kid| trust.key(kid, Role::Attestation, now_s));
        match opened {
            Err(ReferenceError::Envelope(EnvelopeError::UnknownKey { iss, kid }))
                if trust.key_at_any_time(kid, Role::Attestation).is_some() =>
            {
                Err(EnvelopeError::KeyExpired { iss, kid }.into())
            }
            other => other,
        }
    }

    /// Verifies a document that was accepted before and read back from disk: its key may have run out since.
    ///
    /// # Errors
    /// [`ReferenceError`]; the file was changed, or the key was taken out of the bundle.
    pub fn reopen(bytes: &[u8], trust: &TrustBundle) -> Result<Self, ReferenceError> {
        Self::open_with(bytes, |kid| trust.key_at_any_time(kid, Role::Attestation))
    }

    fn open_with<'k>(bytes: &[u8], key: impl FnOnce(KeyId) -> Option<&'k PublicKey>) -> Result<Self, ReferenceError> {
        let (len, max) = (bytes.len(), limits::REFERENCES_BYTES);
        if len > max {
            return Err(EnvelopeError::TooLarge { len, max }.into());
        }
        let untrusted = Untrusted::read(bytes)?;
        let Some(key) = key(untrusted.kid) else {
            let (iss, kid) = (untrusted.claims.iss, untrusted.kid);
            return Err(EnvelopeError::UnknownKey { iss, kid }.into());
        };
        let verified = untrusted.verify_document(TrustItemKind::References, key)?;
        let verified = verified.decode::<References>()?;
        check(verified.value())?;
        Ok(Self {
            iat: verified.claims().iat,
            bytes: verified.bytes().to_vec(),
            references: verified.into_value(),
        })
    }

    /// The values.
    #[must_use]
    pub fn references(&self) -> &References {
        &self.references
    }
    /// When it was signed, seconds since 1970.
    #[must_use]
    pub fn iat(&self) -> u64 {
        self.iat
    }
    /// The signed bytes, as they came.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Checks and signs a document. It is for the whole tree: its audience is not looked at.
///
/// # Errors
/// [`ReferenceError`] with the first rule that is broken.
pub fn seal(references: &References, claims: &Claims, signer: &dyn Signer) -> Result<Vec<u8>, ReferenceError> {
    check(references)?;
    let kind = TrustItemKind::References;
    Ok(seal_document(
        kind,
        claims,
        references,
        limits::REFERENCES_BYTES,
        signer,
    )?)
}

/// The rules that a document must follow; the hub applies them before it signs.
///
/// # Errors
/// [`ReferenceError::Invalid`] with the first rule that is broken.
pub fn check(references: &References) -> Result<(), ReferenceError> {
    let whole = |rule: String| ReferenceError::Invalid {
        set: String::new(),
        rule,
    };
    if references.v != VERSION {
        return Err(whole(format!("its format has version {}, not {VERSION}", references.v)));
    }
    let count = references.sets.len();
    if count > limits::REFERENCE_SETS {
        return Err(whole(format!("{count} sets, at most {}", limits::REFERENCE_SETS)));
    }
    let mut names = BTreeSet::new();
    for set in &references.sets {
        let rule = if names.insert(&set.name) {
            broken_rule(set)
        } else {
            Some("another set has the same name".to_owned())
        };
        if let Some(rule) = rule {
            let set = cnova_shared::limits::clip_to(&set.name, NAME_BYTES);
            return Err(ReferenceError::Invalid { set, rule });
        }
    }
    Ok(())
}

fn broken_rule(set: &ReferenceSet) -> Option<String> {
    if set.name.is_empty() || set.name.len() > NAME_BYTES {
        return Some(format!("a name has 1 to {NAME_BYTES} bytes"));
    }
    if set.nodes.selects_nobody() {
        return Some("it selects no node: name nodes, a site, labels or all".into());
    }
    if set.pcrs.is_empty() {
        return Some("it names no register: a node could have booted anything".into());
    }
    for (pcr, reference) in &set.pcrs {
        if *pcr >= limits::PCRS {
            return Some(format!("PCR {pcr}: a TPM has {}", limits::PCRS));
        }
        let (values, events) = (reference.values.len(), reference.events.len());
        if values == 0 || values > limits::VALUES_PER_PCR {
            return Some(format!(
                "PCR {pcr}: {values} values, 1 to {} are taken",
                limits::VALUES_PER_PCR
            ));
        }
        if events > limits::EVENTS_PER_PCR {
            return Some(format!(
                "PCR {pcr}: {events} events, at most {}",
                limits::EVENTS_PER_PCR
            ));
        }
    }
    let names = [
        set.nodes.nodes.len(),
        set.nodes.labels.len(),
        set.agents.len(),
        set.runtimes.len(),
        set.artifacts.len(),
    ];
    let most = names.into_iter().max().unwrap_or(0);
    (most > limits::SET_NAMES).then(|| format!("{most} names in one list, at most {}", limits::SET_NAMES))
}
