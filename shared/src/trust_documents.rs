//! What the hub signs about trust besides twins: which nodes are no longer trusted, what a gateway may decide for its site
//! while the hub is away, and which boots are approved. COSE_Sign1 like every message (see [`crate::envelope`]), for the whole fleet
//! ([`FLEET_AUDIENCE`]), by a key with [`Role::Attestation`]. Each says in its payload what it is, so that one is never
//! taken for the other.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use thiserror::Error;

use crate::bundle::{Role, TrustBundle};
use crate::envelope::{self, Claims, EnvelopeError, SealError, Untrusted};
use crate::ids::{NodeId, SitePath};
use crate::keys::{KeyId, PublicKey, Signer};
use crate::limits;
use crate::topics::Kind;
use crate::wire::v1::{self, TrustItemKind, Versioned};

mod boots;

pub use boots::{BootPolicy, BootSignature, PolicyBoot};

/// The audience of what the hub signs for every node of the tree.
pub const FLEET_AUDIENCE: &str = "fleet";

/// Why a document about trust is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DocumentError {
    /// The envelope did not hold.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// Signed, but it says of itself that it is something else.
    #[error("it came as {expected:?} and says that it is {found:?}")]
    OtherKind {
        /// What it came as.
        expected: TrustItemKind,
        /// What it says.
        found: TrustItemKind,
    },
    /// Signed, but it breaks a rule of such documents.
    #[error("signed, but not valid: {0}")]
    Invalid(String),
    /// Its time is over.
    #[error("it ended at {not_after} and it is {now} (seconds since 1970)")]
    Over {
        /// When it ended.
        not_after: u64,
        /// The reader's time.
        now: u64,
    },
    /// It is not newer than what is held.
    #[error("its version {offered} is not above {held}")]
    NotNewer {
        /// The version offered.
        offered: u64,
        /// The version held.
        held: u64,
    },
    /// The fleet's audience is no node id: a defect.
    #[error("the fleet's audience is not a name")]
    Audience,
}

/// A document whose signature held, with the bytes that prove it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed<T> {
    value: T,
    kid: KeyId,
    iat: u64,
    bytes: Vec<u8>,
}

impl<T> Signed<T> {
    /// What it says.
    #[must_use]
    pub fn value(&self) -> &T {
        &self.value
    }
    /// The key that signed it.
    #[must_use]
    pub fn kid(&self) -> KeyId {
        self.kid
    }
    /// When it was signed, seconds since 1970.
    #[must_use]
    pub fn iat(&self) -> u64 {
        self.iat
    }
    /// The signed bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What every document about trust has.
pub trait Document: Serialize + DeserializeOwned + Versioned {
    /// What it travels as.
    const KIND: TrustItemKind;
    /// What it says that it is.
    fn kind(&self) -> TrustItemKind;
    /// Its place in the order of its kind; only goes up.
    fn number(&self) -> u64;
    /// The rules beyond its form.
    ///
    /// # Errors
    /// The first rule that is broken.
    fn check(&self) -> Result<(), String>;

    /// Verifies a document that has just come: its key must be in force at `now_s`.
    ///
    /// # Errors
    /// [`DocumentError`]; nothing of the payload was decoded unless the signature held.
    fn verify(bytes: &[u8], trust: &TrustBundle, now_s: u64) -> Result<Signed<Self>, DocumentError> {
        let opened = open_with(bytes, |kid| trust.key(kid, Role::Attestation, now_s));
        match opened {
            Err(DocumentError::Envelope(EnvelopeError::UnknownKey { iss, kid }))
                if trust.key_at_any_time(kid, Role::Attestation).is_some() =>
            {
                Err(EnvelopeError::KeyExpired { iss, kid }.into())
            }
            other => other,
        }
    }

    /// Signs it as `hub`.
    ///
    /// # Errors
    /// [`SealError`] when it is too large or the key did not sign; [`DocumentError::Invalid`] when nodes would refuse it.
    fn seal(&self, hub: &NodeId, now_s: u64, signer: &dyn Signer) -> Result<Vec<u8>, SealDocumentError> {
        self.check().map_err(DocumentError::Invalid)?;
        let claims = Claims {
            iss: hub.clone(),
            aud: NodeId::new(FLEET_AUDIENCE).map_err(|_| DocumentError::Audience)?,
            iat: now_s,
            exp: None,
        };
        Ok(envelope::seal(Kind::Trust, &claims, self, &[], signer)?)
    }
}

/// A document was not signed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SealDocumentError {
    /// Nodes would refuse it.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// It is too large, or the key did not sign.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Opens a document with whichever key the caller knows under its id.
pub(crate) fn open_with<'k, T: Document>(
    bytes: &[u8],
    key: impl FnOnce(KeyId) -> Option<&'k PublicKey>,
) -> Result<Signed<T>, DocumentError> {
    let untrusted = Untrusted::read(bytes)?;
    let (kid, iss, iat) = (untrusted.kid, untrusted.claims.iss.clone(), untrusted.claims.iat);
    let Some(key) = key(kid) else {
        return Err(EnvelopeError::UnknownKey { iss, kid }.into());
    };
    let fleet = NodeId::new(FLEET_AUDIENCE).map_err(|_| DocumentError::Audience)?;
    let verified = untrusted.verify(Kind::Trust, key)?.meant_for(&fleet, iat)?;
    let value = verified.decode::<T>()?.into_value();
    if value.kind() != T::KIND {
        return Err(DocumentError::OtherKind {
            expected: T::KIND,
            found: value.kind(),
        });
    }
    value.check().map_err(DocumentError::Invalid)?;
    Ok(Signed {
        value,
        kid,
        iat,
        bytes: bytes.to_vec(),
    })
}

/// One node that is no longer trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedNode {
    /// Its name.
    #[serde(rename = "n")]
    pub node: NodeId,
    /// Whether nobody of that name is let in, whatever its key. Otherwise only `keys` are refused, and another device may
    /// take the name.
    #[serde(rename = "all")]
    pub is_whole: bool,
    /// The keys that are refused under that name for ever.
    #[serde(rename = "k")]
    pub keys: Vec<KeyId>,
    /// Why, for a person.
    #[serde(rename = "why")]
    pub reason: String,
    /// When, seconds since 1970 by the hub's clock.
    #[serde(rename = "at")]
    pub at_s: u64,
}

impl RevokedNode {
    /// Whether a device of this name with this key is refused. Without a key: whether every device of this name is.
    #[must_use]
    pub fn covers(&self, key: Option<KeyId>) -> bool {
        self.is_whole || key.is_some_and(|k| self.keys.contains(&k))
    }
}

/// All nodes that are no longer trusted. A newer list replaces the older one, whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocations {
    /// [`v1::VERSION`].
    pub v: u32,
    /// [`TrustItemKind::Revocations`].
    #[serde(rename = "k")]
    pub kind: TrustItemKind,
    /// Only goes up.
    #[serde(rename = "ver")]
    pub version: u64,
    /// Seconds since 1970.
    pub issued_at: u64,
    /// The nodes, each once.
    pub nodes: Vec<RevokedNode>,
}

impl Versioned for Revocations {
    fn version(&self) -> u32 {
        self.v
    }
}

impl Revocations {
    /// A list.
    #[must_use]
    pub fn new(version: u64, issued_at: u64, nodes: Vec<RevokedNode>) -> Self {
        Self {
            v: v1::VERSION,
            kind: TrustItemKind::Revocations,
            version,
            issued_at,
            nodes,
        }
    }
}

impl Document for Revocations {
    const KIND: TrustItemKind = TrustItemKind::Revocations;
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
        if self.nodes.len() > limits::REVOKED_NODES {
            return Err(format!(
                "{} nodes in it, at most {}",
                self.nodes.len(),
                limits::REVOKED_NODES
            ));
        }
        let mut seen = BTreeSet::new();
        for r in &self.nodes {
            if !seen.insert(&r.node) {
                return Err(format!("{} stands in it twice", r.node));
            }
            if r.keys.len() > limits::REVOKED_KEYS || r.reason.len() > limits::REASON_BYTES {
                return Err(format!("{}: too many keys, or too long a reason", r.node));
            }
        }
        Ok(())
    }
}

/// What a gateway may do in the hub's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Right {
    /// Judge the evidence of nodes of its site and sign the result.
    Appraise,
    /// Move floating workloads between nodes of its site.
    MoveFloating,
    /// A right of a later version.
    #[serde(other)]
    Unknown,
}

/// What one gateway may decide for one site, until when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegation {
    /// [`v1::VERSION`].
    pub v: u32,
    /// [`TrustItemKind::Delegation`].
    #[serde(rename = "k")]
    pub kind: TrustItemKind,
    /// Only goes up, for each gateway.
    #[serde(rename = "ver")]
    pub version: u64,
    /// The gateway.
    #[serde(rename = "gw")]
    pub gateway: NodeId,
    /// Its key: what it signs under this delegation, it signs with this.
    pub key: PublicKey,
    /// The site: nodes at this path and below.
    pub site: SitePath,
    /// Seconds since 1970.
    pub not_after: u64,
    /// What it may do; nothing, when a delegation is taken back before its end.
    pub rights: Vec<Right>,
}

impl Versioned for Delegation {
    fn version(&self) -> u32 {
        self.v
    }
}

impl Document for Delegation {
    const KIND: TrustItemKind = TrustItemKind::Delegation;
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
        if self.rights.len() > limits::RIGHTS {
            return Err(format!("{} rights, at most {}", self.rights.len(), limits::RIGHTS));
        }
        Ok(())
    }
}

impl Delegation {
    /// Whether a node at `site` is one of those that the gateway may decide for: the site itself, or below it.
    #[must_use]
    pub fn covers(&self, site: &SitePath) -> bool {
        is_at_or_below(site, &self.site)
    }

    /// Whether the site that it is about is at `site` or below.
    #[must_use]
    pub fn is_within(&self, site: &SitePath) -> bool {
        is_at_or_below(&self.site, site)
    }

    /// Whether the gateway may do this for a node at `site` at `now_s`.
    #[must_use]
    pub fn allows(&self, right: Right, site: &SitePath, now_s: u64) -> bool {
        now_s < self.not_after && self.rights.contains(&right) && self.covers(site)
    }

    /// Opens one that is to be relied on now: signed by a key in force, and not over.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn open(bytes: &[u8], trust: &TrustBundle, now_s: u64) -> Result<Signed<Self>, DocumentError> {
        let signed = Self::verify(bytes, trust, now_s)?;
        let not_after = signed.value.not_after;
        if not_after <= now_s {
            return Err(DocumentError::Over { not_after, now: now_s });
        }
        Ok(signed)
    }

    /// Whether a child at `site` needs it: it decides for that child, or for somebody behind it.
    #[must_use]
    pub fn concerns(&self, child: &NodeId, site: &SitePath) -> bool {
        *child == self.gateway || self.covers(site) || self.is_within(site)
    }
}

fn is_at_or_below(site: &SitePath, of: &SitePath) -> bool {
    let (site, of) = (site.as_str(), of.as_str());
    site == of || site.strip_prefix(of).is_some_and(|rest| rest.starts_with('/'))
}
