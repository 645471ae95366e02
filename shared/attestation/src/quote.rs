//! Verification of quotes: from [`Evidence`] to a [`VerifiedQuote`], which only this module makes.

use std::collections::BTreeMap;

use cnova_shared::ids::NodeId;
use cnova_shared::keys::PublicKey;
use thiserror::Error;

use crate::event_log::Slice;
use crate::evidence::{Evidence, TpmEvidence, qualifying};
use crate::tpm::{Attest, Attested, ClockInfo, Hash, Public, Signature, TpmError};
use crate::{Pcr, Quote};

/// Why a quote proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QuoteError {
    /// The evidence is about another node than the one that was asked.
    #[error("the evidence is about {about}, and {asked} was asked")]
    OtherNode {
        /// Whom it is about.
        about: NodeId,
        /// Who was asked.
        asked: NodeId,
    },
    /// It answers another challenge.
    #[error("the evidence answers another challenge: it was replayed, or it is late; ask again")]
    StaleNonce,
    /// It comes from a node without a TPM.
    #[error("the evidence has no quote: the node keeps its key in a file")]
    NoQuote,
    /// The node was admitted without a TPM, so no key of one is known.
    #[error("{node} was admitted without a TPM and shows evidence of one: enrol it again to make use of it")]
    NotEnrolled {
        /// The node.
        node: NodeId,
    },
    /// The attestation key is another than the one pinned at enrolment.
    #[error("the quote is of another TPM: its attestation key is not the one that was pinned at enrolment")]
    OtherTpm,
    /// A structure cannot be read.
    #[error("{what} cannot be read: {reason}")]
    Malformed {
        /// Which.
        what: &'static str,
        /// What is wrong with it.
        reason: TpmError,
    },
    /// The signature does not hold.
    #[error("the signature of the attestation key does not hold: the quote was changed, or another key signed it")]
    BadSignature,
    /// Something else was signed.
    #[error("the attestation key signed a certification, not a quote")]
    NotQuote,
    /// The quote was made for another nonce or another session key.
    #[error("the quote is not over this challenge and this session key: it was replayed")]
    NotBound,
    /// The registers quoted are not the registers shown.
    #[error("the quote covers other registers than the evidence shows")]
    OtherRegisters,
    /// The values shown are not those quoted.
    #[error("the values shown are not those that were quoted: a register's value was changed on the way")]
    OtherValues,
}

/// A quote that holds: what the node's own TPM says now, for this challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedQuote {
    node: NodeId,
    nonce: Vec<u8>,
    session_key: PublicKey,
    pcrs: BTreeMap<u8, Pcr>,
    clock: ClockInfo,
    firmware_version: u64,
    log: Slice,
    firmware_log: Option<Vec<u8>>,
}

/// A node without a TPM that answered this challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedSoft {
    node: NodeId,
    nonce: Vec<u8>,
    session_key: PublicKey,
}

/// Evidence that answers its challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifiedEvidence {
    /// Of a TPM.
    Tpm(Box<VerifiedQuote>),
    /// Of a node that keeps its key in a file.
    Soft(VerifiedSoft),
}

impl VerifiedEvidence {
    /// The key of this boot that the node signs with.
    #[must_use]
    pub fn session_key(&self) -> &PublicKey {
        match self {
            VerifiedEvidence::Tpm(quote) => &quote.session_key,
            VerifiedEvidence::Soft(soft) => &soft.session_key,
        }
    }

    /// The nonce that it answered.
    #[must_use]
    pub fn nonce(&self) -> &[u8] {
        match self {
            VerifiedEvidence::Tpm(quote) => &quote.nonce,
            VerifiedEvidence::Soft(soft) => &soft.nonce,
        }
    }

    /// About whom it is.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        match self {
            VerifiedEvidence::Tpm(quote) => &quote.node,
            VerifiedEvidence::Soft(soft) => &soft.node,
        }
    }
}

impl VerifiedQuote {
    /// The registers.
    #[must_use]
    pub fn pcrs(&self) -> &BTreeMap<u8, Pcr> {
        &self.pcrs
    }
    /// When, by the TPM.
    #[must_use]
    pub fn clock(&self) -> ClockInfo {
        self.clock
    }
    /// The version of the TPM's firmware, as its maker counts.
    #[must_use]
    pub fn firmware_version(&self) -> u64 {
        self.firmware_version
    }
    /// The key of this boot that the node signs with.
    #[must_use]
    pub fn session_key(&self) -> &PublicKey {
        &self.session_key
    }
    /// The part of the launch log that came with it; only the registers prove it.
    #[must_use]
    pub fn log(&self) -> &Slice {
        &self.log
    }
    /// The firmware's log that came with it; only the registers prove it.
    #[must_use]
    pub fn firmware_log(&self) -> Option<&[u8]> {
        self.firmware_log.as_deref()
    }
}

/// Verifies evidence of `node` that should answer `nonce`. `pinned_ak` is the attestation key from the node's enrolment,
/// nothing for a node that was admitted without a TPM.
///
/// Evidence without a TPM is verified as what it is even where a key is pinned: appraisal calls it a downgrade.
///
/// # Errors
/// [`QuoteError`]; the evidence then says nothing at all, and the node's standing stays what it was.
pub fn verify_evidence(
    evidence: &Evidence,
    node: &NodeId,
    nonce: &[u8],
    pinned_ak: Option<&[u8]>,
) -> Result<VerifiedEvidence, QuoteError> {
    match (&evidence.tpm, pinned_ak) {
        (None, _) => {
            check_challenge(evidence, node, nonce)?;
            Ok(VerifiedEvidence::Soft(VerifiedSoft {
                node: evidence.node.clone(),
                nonce: evidence.nonce.clone(),
                session_key: evidence.session_key.clone(),
            }))
        }
        (Some(_), None) => Err(QuoteError::NotEnrolled { node: node.clone() }),
        (Some(_), Some(ak)) => verify(evidence, node, nonce, ak).map(|q| VerifiedEvidence::Tpm(Box::new(q))),
    }
}

fn check_challenge(evidence: &Evidence, node: &NodeId, nonce: &[u8]) -> Result<(), QuoteError> {
    if evidence.node != *node {
        return Err(QuoteError::OtherNode {
            about: evidence.node.clone(),
            asked: node.clone(),
        });
    }
    if evidence.nonce != nonce {
        return Err(QuoteError::StaleNonce);
    }
    Ok(())
}

/// Verifies the quote in evidence of `node` that should answer `nonce`, with the attestation key pinned at enrolment.
///
/// # Errors
/// [`QuoteError`]; nothing of what the TPM signed is parsed before the signature held.
pub fn verify(evidence: &Evidence, node: &NodeId, nonce: &[u8], pinned_ak: &[u8]) -> Result<VerifiedQuote, QuoteError> {
    check_challenge(evidence, node, nonce)?;
    let tpm = evidence.tpm.as_ref().ok_or(QuoteError::NoQuote)?;
    if tpm.ak_public != pinned_ak {
        return Err(QuoteError::OtherTpm);
    }
    let attest = signed_attest(tpm, pinned_ak)?;
    let Attested::Quote { selection, digest } = &attest.attested else {
        return Err(QuoteError::NotQuote);
    };
    if attest.extra_data != qualifying(&evidence.nonce, &evidence.session_key).0 {
        return Err(QuoteError::NotBound);
    }
    check_registers(&tpm.quote, selection, digest)?;
    Ok(VerifiedQuote {
        node: evidence.node.clone(),
        nonce: evidence.nonce.clone(),
        session_key: evidence.session_key.clone(),
        pcrs: tpm.quote.pcrs.clone(),
        clock: attest.clock,
        firmware_version: attest.firmware_version,
        log: tpm.log.clone(),
        firmware_log: tpm.firmware_log.clone(),
    })
}

fn signed_attest(tpm: &TpmEvidence, pinned_ak: &[u8]) -> Result<Attest, QuoteError> {
    let malformed = |what| move |reason| QuoteError::Malformed { what, reason };
    let ak = Public::read(pinned_ak).map_err(malformed("the attestation key"))?;
    let signature = Signature::read(&tpm.quote.signature).map_err(malformed("the signature"))?;
    if !signature.holds(&ak, &tpm.quote.attest) {
        return Err(QuoteError::BadSignature);
    }
    Attest::read(&tpm.quote.attest).map_err(malformed("the attestation"))
}

fn check_registers(quote: &Quote, selection: &[crate::tpm::PcrSelection], digest: &[u8]) -> Result<(), QuoteError> {
    let [bank] = selection else {
        return Err(QuoteError::OtherRegisters);
    };
    // Both ascend, so the order of the values is the order in which the TPM digested them.
    if bank.bank != Hash::Sha256.id() || !bank.pcrs.iter().eq(quote.pcrs.keys()) {
        return Err(QuoteError::OtherRegisters);
    }
    let values: Vec<&[u8]> = quote.pcrs.values().map(|v| v.0.as_slice()).collect();
    if Hash::Sha256.digest(&values) != digest {
        return Err(QuoteError::OtherValues);
    }
    Ok(())
}
