//! Who becomes a node: tokens, known TPMs, what was pinned of each node, and the exchange with a newcomer.
//!
//! A newcomer is admitted by the TPM that its name was given to, by a TPM that was made known beforehand, or by a token; in
//! this order. What it is admitted as is pinned: another TPM or key under the same name is refused from then on, and so is
//! a key in a file where a TPM was. docs/ENROLMENT.md has all the rules.

mod admission;
pub(crate) mod changes;
mod desk;
mod pattern;
mod tpm;

use std::collections::BTreeMap;

use cnova_shared::certificate::Tier;
use cnova_shared::ids::{Digest, NodeId, SitePath};
use cnova_shared::keys::PublicKey;
use cnova_shared::wire::v1::EnrolRefused;
use serde::{Deserialize, Serialize};

pub use changes::{EnrolChange, EnrolmentInfo, KnownInfo, PinnedInfo, TokenInfo, tier_word, token_id};
pub use desk::{Certify, Desk, RANDOM_BYTES};
pub(crate) use desk::{Next, Step};
pub use pattern::{InvalidPattern, NamePattern, SiteRule};

/// Sessions of newcomers between challenge and proof at once.
pub const SESSIONS_MAX: usize = 256;
/// Sessions at once of newcomers at one gateway's door.
pub const SESSIONS_PER_DOOR: usize = 64;
/// A newcomer has this long to prove itself, milliseconds: a real TPM takes seconds.
pub const SESSION_MS: u64 = 60_000;
/// Answers kept for questions that are asked again because the answer was lost.
pub const ANSWERS_KEPT: usize = 256;
/// How long such an answer is kept, milliseconds.
pub const ANSWER_MS: u64 = 60_000;
/// Most tokens at once.
pub const TOKENS_MAX: usize = 10_000;
/// Most TPMs made known beforehand.
pub const KNOWN_MAX: usize = 100_000;

/// What the hub's configuration says about enrolment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolRules {
    /// Whether keys in files are admitted at all, with a token.
    pub allow_soft: bool,
    /// How long a certificate lasts, seconds.
    pub lifetime_s: u64,
    /// When the issuing certificate ends, seconds since 1970: none that it issues lasts longer.
    pub issuer_ends_s: u64,
    /// The root certificates of TPM makers, DER. They never come from a newcomer.
    pub tpm_roots: Vec<Vec<u8>>,
    /// Their intermediate certificates, DER.
    pub tpm_intermediates: Vec<Vec<u8>>,
}

/// A one-time token, or one for so many uses. Only its hash is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredToken {
    /// Where whom it admits hangs.
    pub site: SiteRule,
    /// Which names it admits; any that the site leads to where nothing is said.
    pub name: Option<NamePattern>,
    /// Seconds since 1970.
    pub expires_s: u64,
    /// How many it still admits.
    pub uses_left: u32,
    /// Who made it.
    pub by: String,
    /// When, seconds since 1970.
    pub made_s: u64,
}

/// A TPM that was made known beforehand, by the SHA-256 of its endorsement key (`TPMT_PUBLIC`) or of that key's certificate
/// (DER).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownTpm {
    /// The name that it gets.
    pub node: NodeId,
    /// Where it hangs.
    pub site: SitePath,
    /// Who said so.
    pub by: String,
    /// When, seconds since 1970.
    pub made_s: u64,
}

/// What was found out of a node when it was admitted, and holds from then on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Where it hangs.
    pub site: SitePath,
    /// What it holds its key in. Never changes from a TPM to a file.
    pub tier: Tier,
    /// SHA-256 of its endorsement key, `TPMT_PUBLIC`.
    pub ek: Option<Digest>,
    /// Its attestation key, `TPMT_PUBLIC`.
    #[serde(with = "serde_bytes")]
    pub ak: Vec<u8>,
    /// Its device key.
    pub key: PublicKey,
    /// The token that admitted it, by hash.
    pub token: Option<Digest>,
    /// When it was admitted first, seconds since 1970.
    pub first_s: u64,
    /// When it was certified last, seconds since 1970.
    pub last_s: u64,
    /// When its certificate ends, seconds since 1970.
    pub not_after_s: u64,
}

/// All of it, as the store holds it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredEnrolment {
    /// Tokens by hash.
    pub tokens: BTreeMap<Digest, StoredToken>,
    /// TPMs made known beforehand, by fingerprint.
    pub known: BTreeMap<Digest, KnownTpm>,
    /// Nodes.
    pub pinned: BTreeMap<NodeId, Pinned>,
}

/// A change of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum EnrolOp {
    /// A token, new or used.
    PutToken {
        /// SHA-256 of its text.
        hash: Digest,
        /// It.
        token: StoredToken,
    },
    /// A token that is no more.
    DropToken(Digest),
    /// A TPM is known.
    PutKnown {
        /// Its fingerprint.
        fingerprint: Digest,
        /// It.
        known: KnownTpm,
    },
    /// A TPM is no longer known beforehand. The node that it became stays.
    DropKnown(Digest),
    /// A node was admitted or certified anew.
    PutPinned {
        /// Which.
        node: NodeId,
        /// What holds of it.
        pinned: Box<Pinned>,
    },
    /// A node's name is free again.
    DropPinned(NodeId),
}

impl StoredEnrolment {
    /// Applies a change.
    pub fn apply(&mut self, op: &EnrolOp) {
        match op.clone() {
            EnrolOp::PutToken { hash, token } => drop(self.tokens.insert(hash, token)),
            EnrolOp::DropToken(hash) => drop(self.tokens.remove(&hash)),
            EnrolOp::PutKnown { fingerprint, known } => drop(self.known.insert(fingerprint, known)),
            EnrolOp::DropKnown(fingerprint) => drop(self.known.remove(&fingerprint)),
            EnrolOp::PutPinned { node, pinned } => drop(self.pinned.insert(node, *pinned)),
            EnrolOp::DropPinned(node) => drop(self.pinned.remove(&node)),
        }
    }
}

/// The gates and rules at which a newcomer can fail, by their words on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The hub admits nobody.
    Closed,
    /// Too many at once.
    Busy,
    /// What it sent is not what the step should hold.
    Malformed,
    /// First gate: the endorsement key's certificate leads to a TPM maker.
    EkChain,
    /// Second gate: that certificate is about the endorsement key shown.
    EkKey,
    /// Third gate: the TPM with that key opened the credential.
    Activation,
    /// Fourth gate: the attestation key can only sign what its TPM made.
    AkAttributes,
    /// Fifth gate: the attestation key vouches for the device key.
    Certify,
    /// The signature of a key in a file.
    Possession,
    /// Keys in files are not admitted.
    Soft,
    /// Nothing admits it: no token, and its TPM is not known.
    Unknown,
    /// The token is not one of this hub's, was taken back, or has run out.
    Token,
    /// The name is not one that it may have.
    Name,
    /// The name belongs to another TPM or key, or the TPM or key to another name.
    Bound,
    /// A key in a file where a TPM was.
    Downgrade,
    /// The node was revoked.
    Revoked,
    /// There is no such session.
    Session,
    /// It is no node of this hub.
    NotANode,
    /// The certificate could not be made.
    Issuer,
}

impl Gate {
    /// Its word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Gate::Closed => "closed",
            Gate::Busy => "busy",
            Gate::Malformed => "malformed",
            Gate::EkChain => "ek-chain",
            Gate::EkKey => "ek-key",
            Gate::Activation => "activation",
            Gate::AkAttributes => "ak-attributes",
            Gate::Certify => "certify",
            Gate::Possession => "possession",
            Gate::Soft => "soft",
            Gate::Unknown => "unknown",
            Gate::Token => "token",
            Gate::Name => "name",
            Gate::Bound => "bound",
            Gate::Downgrade => "downgrade",
            Gate::Revoked => "revoked",
            Gate::Session => "session",
            Gate::NotANode => "not-a-node",
            Gate::Issuer => "issuer",
        }
    }

    const fn is_passing(self) -> bool {
        matches!(self, Gate::Busy | Gate::Session | Gate::Issuer)
    }

    /// Whether a refusal here belongs into the audit log: whoever gets so far has a token, or a genuine TPM.
    const fn is_audited(self) -> bool {
        matches!(self, Gate::Bound | Gate::Downgrade | Gate::Revoked)
    }
}

/// A refusal before it is put on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where it failed.
    pub gate: Gate,
    /// Why, for a person.
    pub message: String,
    /// What to do about it.
    pub advice: String,
}

impl Refused {
    pub(crate) fn new(gate: Gate, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            gate,
            message: message.into(),
            advice: advice.into(),
        }
    }

    /// Whether it belongs into the audit log.
    #[must_use]
    pub fn is_audited(&self) -> bool {
        self.gate.is_audited()
    }
}

impl From<Refused> for EnrolRefused {
    fn from(r: Refused) -> Self {
        let clip = |text: &str| cnova_shared::limits::clip_to(text, 1000);
        EnrolRefused {
            gate: r.gate.as_str().into(),
            message: clip(&r.message),
            advice: clip(&r.advice),
            passing: r.gate.is_passing(),
        }
    }
}
