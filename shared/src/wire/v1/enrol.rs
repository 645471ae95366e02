//! What a newcomer and the hub say to each other before there is a certificate, and how a node has its certificate made
//! anew. docs/ENROLMENT.md describes the exchange.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::is_default;
use crate::certificate::Tier;
use crate::ids::{Digest, NodeId, SitePath};
use crate::keys::PublicKey;

/// Up: a step of an enrolment. The author is the gateway to which the newcomer is connected, or the node itself when its
/// certificate is to be made anew. It is signed for the hub and carried unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrol {
    /// [`super::VERSION`].
    pub v: u32,
    /// What the answer refers to; the author chooses it.
    #[serde(rename = "t")]
    pub ticket: u64,
    /// What is asked.
    #[serde(rename = "s")]
    pub step: EnrolStep,
}

/// What is asked.
#[allow(
    clippy::large_enum_variant,
    reason = "one lives at a time and is taken apart at once"
)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "k", rename_all = "kebab-case")]
pub enum EnrolStep {
    /// I want to be a node.
    Begin(EnrolBegin),
    /// Here is the proof that was asked for.
    Finish(EnrolFinish),
    /// I am a node; certify my key for another while.
    Renew {
        /// The key that the certificate is about. It must be the one that was admitted.
        key: PublicKey,
    },
    /// Something of a later version.
    #[serde(other)]
    Unknown,
}

/// The first step of a newcomer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolBegin {
    /// The one-time token, where it has one.
    #[serde(rename = "tok", default, skip_serializing_if = "is_default")]
    pub token: Option<String>,
    /// The name that it wants, or has had.
    #[serde(rename = "n", default, skip_serializing_if = "is_default")]
    pub name: Option<NodeId>,
    /// The device key: the certificate will be about it.
    pub key: PublicKey,
    /// What it holds its key in.
    pub tier: Tier,
    /// What its TPM shows: the CBOR of `cnova_attestation::TpmEnrolment`, which only the hub reads.
    #[serde(rename = "tpm", default, skip_serializing_if = "is_default")]
    pub tpm: Option<ByteBuf>,
}

/// What stands first in everything that is hashed for enrolment.
const CONTEXT: &[u8] = b"cnova-enrol-v1";

impl EnrolBegin {
    /// What binds a proof to this beginning: who carries it can change neither key, name, tier nor token. A TPM certifies
    /// the device key with it as qualifying data; a key in a file signs it, see [`EnrolBegin::to_be_signed`].
    #[must_use]
    pub fn binding(&self) -> Digest {
        let mut bytes = CONTEXT.to_vec();
        let tier = match self.tier {
            Tier::Soft => "soft",
            Tier::Tpm => "tpm",
        };
        let name = self.name.as_ref().map_or("", NodeId::as_str);
        let token = self.token.as_deref().unwrap_or("");
        for part in [tier.as_bytes(), name.as_bytes(), token.as_bytes(), &self.key.bytes] {
            bytes.extend((part.len() as u64).to_be_bytes());
            bytes.extend(part);
        }
        Digest::of(&bytes)
    }

    /// What a device key in a file signs to prove that it is there.
    #[must_use]
    pub fn to_be_signed(&self, nonce: &[u8]) -> Vec<u8> {
        [CONTEXT, &self.binding().0, nonce].concat()
    }
}

/// The second step of a newcomer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolFinish {
    /// The session that the challenge named.
    #[serde(rename = "id", with = "serde_bytes")]
    pub session: Vec<u8>,
    /// What the credential held (a TPM), or the device key's signature over [`EnrolBegin::to_be_signed`] (a file).
    #[serde(with = "serde_bytes")]
    pub proof: Vec<u8>,
}

/// Down: the answer to an [`Enrol`], signed by the hub for its author.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// [`super::VERSION`].
    pub v: u32,
    /// The ticket of what it answers.
    #[serde(rename = "t")]
    pub ticket: u64,
    /// The answer.
    #[serde(rename = "a")]
    pub answer: EnrolAnswer,
}

/// What the hub says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "k", rename_all = "kebab-case")]
pub enum EnrolAnswer {
    /// Prove it.
    Challenge(EnrolChallenge),
    /// Here is the certificate.
    Issued(EnrolIssued),
    /// No.
    Refused(EnrolRefused),
    /// Something of a later version.
    #[serde(other)]
    Unknown,
}

/// What a newcomer is to prove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolChallenge {
    /// Names this attempt.
    #[serde(rename = "id", with = "serde_bytes")]
    pub session: Vec<u8>,
    /// For a TPM: the CBOR of `cnova_attestation::Credential`, which it is to open.
    #[serde(rename = "c", default, skip_serializing_if = "is_default")]
    pub credential: Option<ByteBuf>,
    /// For a key in a file: what it is to sign.
    #[serde(rename = "n", default, skip_serializing_if = "is_default", with = "serde_bytes")]
    pub nonce: Vec<u8>,
}

/// A certificate and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolIssued {
    /// The node's name.
    #[serde(rename = "n")]
    pub node: NodeId,
    /// Where it hangs.
    #[serde(rename = "s")]
    pub site: SitePath,
    /// Certificates, DER, the node's own first.
    #[serde(rename = "c")]
    pub chain: Vec<ByteBuf>,
    /// Trust bundles, oldest first, as their roots signed them. The newcomer takes what its own bundle leads to.
    #[serde(rename = "b", default, skip_serializing_if = "is_default")]
    pub bundles: Vec<ByteBuf>,
    /// When it was issued, seconds since 1970 by the hub's clock.
    #[serde(rename = "at")]
    pub issued_s: u64,
    /// When the node is to ask for the next one, seconds since 1970.
    #[serde(rename = "re")]
    pub renew_s: u64,
}

/// Why there is no certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRefused {
    /// A stable word: which gate or rule.
    #[serde(rename = "g")]
    pub gate: String,
    /// Why, for a person.
    #[serde(rename = "m")]
    pub message: String,
    /// What to do about it, for a person.
    #[serde(rename = "do")]
    pub advice: String,
    /// Whether the same may be answered otherwise later without anybody's doing.
    #[serde(rename = "r", default, skip_serializing_if = "is_default")]
    pub passing: bool,
}

impl std::fmt::Display for EnrolRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}): {}", self.message, self.gate, self.advice)
    }
}
