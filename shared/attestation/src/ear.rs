//! Attestation results: what a verifier concluded about a node, as an EAT Attestation Result (EAR,
//! draft-ietf-rats-ear) in a COSE_Sign1 of kind [`cnova_shared::topics::Kind::Ear`].
//!
//! Who may sign one is for the caller to check: the hub by a key of the bundle with the role `Attestation`, a gateway by a
//! delegation. [`check_ear`] then says whether the result is about the peer at hand and good now.

use cnova_shared::certificate::Tier;
use cnova_shared::ids::NodeId;
use cnova_shared::keys::PublicKey;
use cnova_shared::limits::{NONCE_BYTES, clip_to};
use cnova_shared::wire::v1::{VERSION, Versioned};
use cnova_shared::wire::{self, WireError};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::ByteBuf;
use std::collections::BTreeMap;
use std::fmt;
use thiserror::Error;

use crate::Pcr;
use crate::cose_key::{Confirmation, CoseKey};
use crate::evidence::subject;
use crate::labels::labelled_map;
use crate::limits::{FINDING_NAMES, FINDINGS, RESULT_TEXT_BYTES};

/// The profile of our attestation results.
pub const PROFILE: &str = "urn:cnova:ear:1";

const SUBMODULE: &str = "node";

/// How far a node is trusted (AR4SI, draft-ietf-rats-ar4si section 2.3.2). The order is from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// It booted and launched what it should, and a TPM says so.
    Affirming,
    /// Nothing speaks for it: it keeps its key in a file. Shown as UNATTESTED.
    None,
    /// Nothing speaks against it, and not all was there to judge by.
    Warning,
    /// It is not what it should be.
    Contraindicated,
}

impl Status {
    /// The number on the wire: 2, 0, 32, 96.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Status::None => 0,
            Status::Affirming => 2,
            Status::Warning => 32,
            Status::Contraindicated => 96,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [
            Status::None,
            Status::Affirming,
            Status::Warning,
            Status::Contraindicated,
        ]
        .into_iter()
        .find(|s| s.code() == code)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::None => "UNATTESTED",
            Status::Affirming => "affirming",
            Status::Warning => "warning",
            Status::Contraindicated => "contraindicated",
        })
    }
}

impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.code())
    }
}

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = u8::deserialize(deserializer)?;
        Status::from_code(code).ok_or_else(|| serde::de::Error::custom(format!("status {code} is none of ours")))
    }
}

/// What a status rests on (AR4SI section 2.3.4): one claim per aspect, 0 where none is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrustVector {
    /// Whether the node is the one that was admitted: 2 yes, 97 no.
    pub instance_identity: i8,
    /// Whether its registers are among the reference values: 2 yes, 96 no.
    pub configuration: i8,
    /// Whether it booted (3) or also launched (2) what was approved; 33 something unknown, 96 something refused.
    pub executables: i8,
    /// Whether its keys are in genuine hardware: 2 yes.
    pub hardware: i8,
}

/// One thing that a verifier found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// A stable word, such as `pcr-mismatch`.
    pub code: String,
    /// What was found, for a person: which register, which event, what to do.
    pub detail: String,
    /// The register that it is about.
    pub pcr: Option<u8>,
    /// What the register held.
    pub got: Option<Pcr>,
    /// Names of the references that would have had another value there.
    pub expected: Vec<String>,
    /// The event that differs, where it can be told.
    pub event: Option<String>,
}

/// Who judged (AR4SI section 3.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierId {
    /// Who is responsible for the verifier.
    pub developer: String,
    /// Which program, with its version.
    pub build: String,
}

/// An attestation result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "EarMap", into = "EarMap")]
pub struct Ear {
    /// About whom.
    pub subject: NodeId,
    /// The subject's device key: the key of its certificate.
    pub key: PublicKey,
    /// The nonce that the evidence answered.
    pub nonce: Vec<u8>,
    /// When it was judged, seconds since 1970 by the verifier's clock.
    pub iat: u64,
    /// Until when it may be relied on, seconds since 1970.
    pub exp: u64,
    /// Who judged.
    pub verifier: VerifierId,
    /// The judgement.
    pub status: Status,
    /// What it rests on.
    pub vector: TrustVector,
    /// The references that it was judged by: name and version of the document.
    pub policy: String,
    /// What the node holds its keys in, as pinned at enrolment.
    pub tier: Tier,
    /// Whether the firmware measured the boot at all. Without, what runs proves little: see docs/ATTESTATION.md.
    pub boot_measured: bool,
    /// What was found, the weightiest first, at most [`FINDINGS`].
    pub findings: Vec<Finding>,
}

impl Versioned for Ear {
    // The profile carries the version, and an unknown profile was refused by now.
    fn version(&self) -> u32 {
        VERSION
    }
}

impl Ear {
    /// Encodes it; [`cnova_shared::envelope::seal_payload`] signs the result.
    ///
    /// # Errors
    /// [`WireError`] when it could not be encoded.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        wire::encode(self)
    }
}

/// Why a peer is not taken on the word of an attestation result.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EarError {
    /// It is about another node.
    #[error("the attestation result is about {about}, not about {peer}")]
    OtherSubject {
        /// Whom it is about.
        about: NodeId,
        /// Who showed it.
        peer: NodeId,
    },
    /// It is about another key: the node was admitted anew since, or somebody shows another's result.
    #[error("the attestation result of {peer} is about another key than that of its certificate: it must attest anew")]
    OtherKey {
        /// Who showed it.
        peer: NodeId,
    },
    /// Its time is over. What was built on it may go on for a grace; nothing new is.
    #[error(
        "the attestation result of {peer} ended at {exp} and it is {now} (seconds since 1970): it must attest anew"
    )]
    Expired {
        /// Who showed it.
        peer: NodeId,
        /// When it ended.
        exp: u64,
        /// The reader's time.
        now: u64,
        /// What it said while it held.
        was: Status,
    },
    /// The verifier found that the node is not what it should be.
    #[error("{peer} is not what it should be: {reason}")]
    Contraindicated {
        /// Who showed it.
        peer: NodeId,
        /// What was found.
        reason: String,
    },
}

/// Checks a result whose signature held as a word about `peer`, whose certificate is about `key`. What comes back is
/// affirming, a warning, or none (UNATTESTED); which of them is enough is the caller's policy.
///
/// # Errors
/// [`EarError`]. A result that contraindicates is no less so when its time is over.
pub fn check_ear(ear: &Ear, peer: &NodeId, key: &PublicKey, now_s: u64) -> Result<Status, EarError> {
    let peer = peer.clone();
    if ear.subject != peer {
        let about = ear.subject.clone();
        return Err(EarError::OtherSubject { about, peer });
    }
    if ear.key != *key {
        return Err(EarError::OtherKey { peer });
    }
    if ear.status == Status::Contraindicated {
        let reason = ear.findings.first().map_or("no reason given", |f| f.detail.as_str());
        let reason = reason.to_owned();
        return Err(EarError::Contraindicated { peer, reason });
    }
    if ear.exp <= now_s {
        return Err(EarError::Expired {
            peer,
            exp: ear.exp,
            now: now_s,
            was: ear.status,
        });
    }
    Ok(ear.status)
}

labelled_map! {
    struct EarMap {
        exp: u64 = 4,
        iat: u64 = 6,
        cnf: Confirmation = 8,
        nonce: ByteBuf = 10,
        ueid: ByteBuf = 256,
        profile: String = 265,
        submods: BTreeMap<String, NodeMap> = 266,
        verifier: VerifierMap = 1004,
    }
}

labelled_map! {
    struct VerifierMap {
        developer: String = 0,
        build: String = 1,
    }
}

labelled_map! {
    struct NodeMap {
        status: Status = 1000,
        vector: VectorMap = 1001,
        policy: String = 1003,
        tier: Tier = -70002,
        boot_measured: bool = -70003,
        findings: Vec<FindingMap> = -70004,
    }
}

labelled_map! {
    struct VectorMap {
        instance_identity: i8 = 0,
        configuration: i8 = 1,
        executables: i8 = 2,
        hardware: i8 = 4,
    }
}

labelled_map! {
    struct FindingMap {
        code: String = 1,
        detail: String = 2,
        expected: Vec<String> = 3,
        ? pcr: u8 = 4,
        ? got: Pcr = 5,
        ? event: String = 6,
    }
}

/// An attestation result that breaks a rule of its form.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidEar {
    /// A profile that this program does not know.
    #[error("its profile {0:?} is not known here: update this program")]
    UnknownProfile(String),
    /// The subject is not a node's name.
    #[error("its subject is not a node id: {0}")]
    Subject(String),
    /// The subject's key is of no kind that we use.
    #[error("{0}")]
    Key(String),
    /// The nonce has another length.
    #[error("its nonce has {0} bytes, not {NONCE_BYTES}")]
    Nonce(usize),
    /// It says nothing about the node.
    #[error("it has no submodule \"node\"")]
    NoSubmodule,
    /// More findings than a verifier writes.
    #[error("{0} findings, at most {FINDINGS} are taken")]
    TooManyFindings(usize),
    /// A longer text than a verifier writes.
    #[error("a text of {0} bytes, at most {RESULT_TEXT_BYTES} are taken")]
    LongText(usize),
}

impl From<Ear> for EarMap {
    fn from(e: Ear) -> Self {
        let text = |s: &str| clip_to(s, RESULT_TEXT_BYTES);
        let finding = |f: Finding| FindingMap {
            code: text(&f.code),
            detail: text(&f.detail),
            expected: f.expected.iter().take(FINDING_NAMES).map(|s| text(s)).collect(),
            pcr: f.pcr,
            got: f.got,
            event: f.event.as_deref().map(text),
        };
        let node = NodeMap {
            status: e.status,
            vector: VectorMap {
                instance_identity: e.vector.instance_identity,
                configuration: e.vector.configuration,
                executables: e.vector.executables,
                hardware: e.vector.hardware,
            },
            policy: text(&e.policy),
            tier: e.tier,
            boot_measured: e.boot_measured,
            findings: e.findings.into_iter().take(FINDINGS).map(finding).collect(),
        };
        Self {
            exp: e.exp,
            iat: e.iat,
            cnf: Confirmation {
                key: CoseKey::from(&e.key),
            },
            nonce: ByteBuf::from(e.nonce),
            ueid: ByteBuf::from(e.subject.as_str()),
            profile: PROFILE.into(),
            submods: BTreeMap::from([(SUBMODULE.to_owned(), node)]),
            verifier: VerifierMap {
                developer: text(&e.verifier.developer),
                build: text(&e.verifier.build),
            },
        }
    }
}

impl TryFrom<EarMap> for Ear {
    type Error = InvalidEar;

    fn try_from(mut map: EarMap) -> Result<Self, InvalidEar> {
        if map.profile != PROFILE {
            return Err(InvalidEar::UnknownProfile(clip_to(&map.profile, 80)));
        }
        if map.nonce.len() != NONCE_BYTES {
            return Err(InvalidEar::Nonce(map.nonce.len()));
        }
        let node = map.submods.remove(SUBMODULE).ok_or(InvalidEar::NoSubmodule)?;
        if node.findings.len() > FINDINGS {
            return Err(InvalidEar::TooManyFindings(node.findings.len()));
        }
        let texts = node.findings.iter().flat_map(|f| {
            let own = [&f.code, &f.detail].into_iter().chain(&f.event);
            own.chain(f.expected.iter().take(FINDING_NAMES))
        });
        let longest = texts.chain([&node.policy]).map(String::len).max().unwrap_or(0);
        if longest > RESULT_TEXT_BYTES {
            return Err(InvalidEar::LongText(longest));
        }
        let finding = |f: FindingMap| Finding {
            code: f.code,
            detail: f.detail,
            pcr: f.pcr,
            got: f.got,
            expected: f.expected.into_iter().take(FINDING_NAMES).collect(),
            event: f.event,
        };
        Ok(Self {
            subject: subject(&map.ueid).map_err(InvalidEar::Subject)?,
            key: map.cnf.key.try_into().map_err(InvalidEar::Key)?,
            nonce: map.nonce.into_vec(),
            iat: map.iat,
            exp: map.exp,
            verifier: VerifierId {
                developer: map.verifier.developer,
                build: map.verifier.build,
            },
            status: node.status,
            vector: TrustVector {
                instance_identity: node.vector.instance_identity,
                configuration: node.vector.configuration,
                executables: node.vector.executables,
                hardware: node.vector.hardware,
            },
            policy: node.policy,
            tier: node.tier,
            boot_measured: node.boot_measured,
            findings: node.findings.into_iter().map(finding).collect(),
        })
    }
}
