//! Evidence: what a node says of itself, as an Entity Attestation Token (EAT, RFC 9711) in a COSE_Sign1 of kind
//! [`cnova_shared::topics::Kind::Evidence`].
//!
//! Two profiles: with a TPM, and without one. Evidence without a TPM proves a name and a key, and nothing of what runs.

use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::keys::PublicKey;
use cnova_shared::limits::NONCE_BYTES;
use cnova_shared::wire::v1::{VERSION, Versioned};
use cnova_shared::wire::{self, WireError};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::collections::BTreeMap;
use thiserror::Error;

use crate::cose_key::{Confirmation, CoseKey};
use crate::event_log::Slice;
use crate::labels::labelled_map;
use crate::limits::{self, PCRS};
use crate::{Pcr, Quote, cose_key};

/// The profile of evidence from a TPM.
pub const PROFILE_TPM: &str = "urn:cnova:evidence:tpm:1";
/// The profile of evidence from a node that keeps its key in a file.
pub const PROFILE_SOFT: &str = "urn:cnova:evidence:soft:1";

const BINDING: &[u8] = b"cnova-att-v1";

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "EvidenceMap", into = "EvidenceMap")]
pub struct Evidence {
    /// Who says it.
    pub node: NodeId,
    /// The verifier's nonce that it answers, [`NONCE_BYTES`] long.
    pub nonce: Vec<u8>,
    /// When, seconds since 1970 by the node's clock. Nothing rests on it.
    pub iat: u64,
    /// The key of this boot that the node signs with; a quote binds it.
    pub session_key: PublicKey,
    /// What the TPM says; nothing for a node that keeps its key in a file.
    pub tpm: Option<TpmEvidence>,
}

/// What the TPM says, and the logs that explain its registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmEvidence {
    /// The registers, signed; [`qualifying`] is in it.
    pub quote: Quote,
    /// The attestation key, `TPMT_PUBLIC`. A verifier compares it with the one it pinned at enrolment.
    pub ak_public: Vec<u8>,
    /// The launch log, or the part of it that the verifier does not have yet.
    pub log: Slice,
    /// The firmware's log (`binary_bios_measurements`), where there is one: it names events, it proves nothing by itself.
    pub firmware_log: Option<Vec<u8>>,
}

/// What a quote is made over (`extraData`): the verifier's nonce and the key of this boot.
/// `SHA-256("cnova-att-v1" || nonce || COSE_Key)`.
#[must_use]
pub fn qualifying(nonce: &[u8], session_key: &PublicKey) -> Digest {
    Digest::of(&[BINDING, nonce, &cose_key::encode(session_key)].concat())
}

/// Evidence that cannot be sent.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// It breaks a limit that a verifier would refuse it for.
    #[error("evidence cannot be sent: {0}")]
    Invalid(#[from] InvalidEvidence),
    /// It could not be encoded.
    #[error("evidence was not encoded: {0}")]
    Wire(#[from] WireError),
}

impl Evidence {
    /// Encodes it; [`cnova_shared::envelope::seal_payload`] signs the result. Two encodings of the same evidence are equal.
    ///
    /// # Errors
    /// [`EncodeError`] when a limit is broken; nothing is cut silently.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        self.check()?;
        let bytes = wire::encode(self)?;
        let (len, max) = (bytes.len(), limits::EVIDENCE_BYTES);
        if len > max {
            return Err(too_large("the evidence", len, max).into());
        }
        Ok(bytes)
    }

    /// The profile's name.
    #[must_use]
    pub fn profile(&self) -> &'static str {
        if self.tpm.is_some() { PROFILE_TPM } else { PROFILE_SOFT }
    }

    fn check(&self) -> Result<(), InvalidEvidence> {
        if self.nonce.len() != NONCE_BYTES {
            return Err(InvalidEvidence::Nonce(self.nonce.len()));
        }
        let Some(tpm) = &self.tpm else { return Ok(()) };
        let structures = [
            ("the attestation", tpm.quote.attest.len()),
            ("its signature", tpm.quote.signature.len()),
            ("the attestation key", tpm.ak_public.len()),
        ];
        for (what, len) in structures {
            if len > limits::TPM_STRUCTURE_BYTES {
                return Err(too_large(what, len, limits::TPM_STRUCTURE_BYTES));
            }
        }
        if let Some(pcr) = tpm.quote.pcrs.keys().find(|p| **p >= PCRS) {
            return Err(InvalidEvidence::NoSuchPcr(*pcr));
        }
        let firmware = tpm.firmware_log.as_ref().map_or(0, Vec::len);
        if firmware > limits::FIRMWARE_LOG_BYTES {
            return Err(too_large("the firmware's log", firmware, limits::FIRMWARE_LOG_BYTES));
        }
        check_slice(&tpm.log)
    }
}

fn check_slice(slice: &Slice) -> Result<(), InvalidEvidence> {
    if slice.entries.len() > limits::SLICE_ENTRIES {
        return Err(InvalidEvidence::TooMany {
            what: "entries of the launch log",
            count: slice.entries.len(),
            max: limits::SLICE_ENTRIES,
        });
    }
    let sum = slice.entries.iter().map(|e| e.len()).sum();
    if sum > limits::SLICE_BYTES {
        return Err(too_large("the part of the launch log", sum, limits::SLICE_BYTES));
    }
    match slice.entries.iter().map(|e| e.len()).find(|l| *l > limits::ENTRY_BYTES) {
        Some(len) => Err(too_large("an entry of the launch log", len, limits::ENTRY_BYTES)),
        None => Ok(()),
    }
}

fn too_large(what: &'static str, len: usize, max: usize) -> InvalidEvidence {
    InvalidEvidence::TooLarge { what, len, max }
}

/// Evidence that breaks a rule of its form.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidEvidence {
    /// A profile that this program does not know.
    #[error("its profile {0:?} is not known here: update the verifier")]
    UnknownProfile(String),
    /// The profile says one thing, the content another.
    #[error("its profile is {0}, and its content is of the other one")]
    OtherProfile(String),
    /// The nonce has another length.
    #[error("its nonce has {0} bytes, not {NONCE_BYTES}")]
    Nonce(usize),
    /// The subject is not a node's name.
    #[error("its subject is not a node id: {0}")]
    Subject(String),
    /// The session key is of no kind that we use.
    #[error("{0}")]
    Key(String),
    /// A register that no TPM has.
    #[error("it names PCR {0}, and a TPM has {PCRS}")]
    NoSuchPcr(u8),
    /// Something is larger than it may be.
    #[error("{what}: {len} bytes, at most {max} are taken")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// There is more of something than there may be.
    #[error("{count} {what}, at most {max} are taken")]
    TooMany {
        /// What.
        what: &'static str,
        /// How many.
        count: usize,
        /// The limit.
        max: usize,
    },
}

impl Versioned for Evidence {
    // The profile carries the version, and an unknown profile was refused by now.
    fn version(&self) -> u32 {
        VERSION
    }
}

labelled_map! {
    /// The token's claims.
    struct EvidenceMap {
        iat: u64 = 6,
        cnf: Confirmation = 8,
        nonce: ByteBuf = 10,
        ueid: ByteBuf = 256,
        profile: String = 265,
        ? tpm: TpmMap = -70001,
    }
}

labelled_map! {
    struct TpmMap {
        attest: ByteBuf = 1,
        signature: ByteBuf = 2,
        pcrs: BTreeMap<u8, Pcr> = 3,
        ak_public: ByteBuf = 4,
        log: SliceMap = 5,
        ? firmware_log: ByteBuf = 6,
    }
}

labelled_map! {
    struct SliceMap {
        from: u64 = 1,
        total: u64 = 2,
        entries: Vec<ByteBuf> = 3,
    }
}

impl From<Evidence> for EvidenceMap {
    fn from(e: Evidence) -> Self {
        Self {
            iat: e.iat,
            cnf: Confirmation {
                key: CoseKey::from(&e.session_key),
            },
            profile: e.profile().into(),
            nonce: ByteBuf::from(e.nonce),
            ueid: ByteBuf::from(e.node.as_str()),
            tpm: e.tpm.map(|t| TpmMap {
                attest: t.quote.attest,
                signature: t.quote.signature,
                pcrs: t.quote.pcrs,
                ak_public: ByteBuf::from(t.ak_public),
                log: SliceMap {
                    from: t.log.from,
                    total: t.log.total,
                    entries: t.log.entries,
                },
                firmware_log: t.firmware_log.map(ByteBuf::from),
            }),
        }
    }
}

impl TryFrom<EvidenceMap> for Evidence {
    type Error = InvalidEvidence;

    fn try_from(map: EvidenceMap) -> Result<Self, InvalidEvidence> {
        match (map.profile.as_str(), &map.tpm) {
            (PROFILE_TPM, Some(_)) | (PROFILE_SOFT, None) => {}
            (PROFILE_TPM | PROFILE_SOFT, _) => return Err(InvalidEvidence::OtherProfile(map.profile)),
            _ => {
                let profile = cnova_shared::limits::clip_to(&map.profile, 80);
                return Err(InvalidEvidence::UnknownProfile(profile));
            }
        }
        let evidence = Evidence {
            node: subject(&map.ueid).map_err(InvalidEvidence::Subject)?,
            nonce: map.nonce.into_vec(),
            iat: map.iat,
            session_key: map.cnf.key.try_into().map_err(InvalidEvidence::Key)?,
            tpm: map.tpm.map(|t| TpmEvidence {
                quote: Quote {
                    attest: t.attest,
                    signature: t.signature,
                    pcrs: t.pcrs,
                },
                ak_public: t.ak_public.into_vec(),
                log: Slice {
                    from: t.log.from,
                    total: t.log.total,
                    entries: t.log.entries,
                },
                firmware_log: t.firmware_log.map(ByteBuf::into_vec),
            }),
        };
        evidence.check()?;
        Ok(evidence)
    }
}

/// The node that a `ueid` claim names: the bytes of its id.
pub(crate) fn subject(ueid: &[u8]) -> Result<NodeId, String> {
    let text = std::str::from_utf8(ueid).map_err(|e| e.to_string())?;
    NodeId::new(text).map_err(|e| e.to_string())
}
