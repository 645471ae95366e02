//! The envelope of every message: COSE_Sign1 (RFC 9052 section 4.2), tagged, with CWT claims (RFC 9597) in the
//! protected header.
//!
//! Who introduces itself shows its certificate chain and, where its certified key is slow (a TPM's), a session key that the
//! certified key vouches for ([`Endorsement`]); the session key then signs everything.
//!
//! [`Untrusted::read`] looks at the header only. [`Untrusted::verify`] is the one way to a payload, and
//! [`VerifiedBytes::decode`] the one way to a decoded value. The unprotected header must be empty and the encoding the
//! one we would write ourselves, so that a change of any byte is refused.

use coset::cbor::value::Value;
use coset::{
    CborSerializable, ContentType, CoseSign1, Header, Label, RegisteredLabelWithPrivate, TaggedCborSerializable, iana,
};
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::certificate::NodeCertificate;
use crate::ids::{Digest, NodeId};
use crate::keys::{Algorithm, KeyId, PublicKey};
use crate::limits;
use crate::topics::Kind;
use crate::wire::v1::{TrustItemKind, VERSION, Versioned};

mod endorsement;
mod seal;

pub use endorsement::{Endorsement, Introduction};
pub use seal::{SealError, seal, seal_document, seal_payload};

/// The content type of every payload of this version.
pub const CONTENT_TYPE: &str = "application/cnova-v1+cbor";

const LABEL_CWT_CLAIMS: i64 = 15;
const LABEL_X5CHAIN: i64 = 33;
/// For private use (RFC 9052 section 11.1): `[alg, key, signature]`, a session key that the certified key vouches for.
const LABEL_SESSION: i64 = -70_002;
const CLAIM_ISS: i64 = 1;
const CLAIM_AUD: i64 = 3;
const CLAIM_EXP: i64 = 4;
const CLAIM_IAT: i64 = 6;

/// Who says it, to whom, when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The author.
    pub iss: NodeId,
    /// The node (or `hub`) that it is for.
    pub aud: NodeId,
    /// When it was signed, seconds since 1970 by the author's clock.
    pub iat: u64,
    /// When it is too old to be taken, where that matters.
    pub exp: Option<u64>,
}

/// Why bytes were not taken. None of these say anything about what the bytes mean.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EnvelopeError {
    /// Longer than this kind may be.
    #[error("{len} bytes, at most {max} are taken")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Not the COSE_Sign1 that we write.
    #[error("not a COSE_Sign1 of this protocol: {0}")]
    Malformed(String),
    /// Signed with a key that this node does not trust for this author.
    #[error("key {kid} of {iss} is not trusted here")]
    UnknownKey {
        /// The claimed author.
        iss: NodeId,
        /// The key id in the header.
        kid: KeyId,
    },
    /// Signed with a key whose time is over, by this node's clock.
    #[error("key {kid} of {iss} has run out, by this node's clock: look at the clock, or install a newer trust bundle")]
    KeyExpired {
        /// The claimed author.
        iss: NodeId,
        /// The key id in the header.
        kid: KeyId,
    },
    /// The signature does not hold.
    #[error("the signature of {iss} with key {kid} does not hold: the bytes were changed or the key is another")]
    BadSignature {
        /// The claimed author.
        iss: NodeId,
        /// The key id in the header.
        kid: KeyId,
    },
    /// The certified key does not vouch for the session key.
    #[error("{iss} introduces a session key that its certified key does not vouch for")]
    BadEndorsement {
        /// The claimed author.
        iss: NodeId,
    },
    /// Meant for somebody else.
    #[error("it is for {aud}, not for {me}")]
    WrongAudience {
        /// Whom it is for.
        aud: NodeId,
        /// Who read it.
        me: NodeId,
    },
    /// Past its `exp`.
    #[error("it expired at {exp} and it is {now} (seconds since 1970)")]
    Expired {
        /// The claim.
        exp: u64,
        /// The reader's time.
        now: u64,
    },
    /// The signature held, but the payload is of a version that this node does not read.
    #[error(
        "signed by {iss}, but its {kind} is of version {version}, and this node reads {}: update the node",
        crate::wire::v1::VERSION
    )]
    UnknownVersion {
        /// The author.
        iss: NodeId,
        /// What it claims to be.
        kind: &'static str,
        /// Its version.
        version: u32,
    },
    /// The signature held, but the payload is not what its kind should be.
    #[error("signed by {iss}, but its payload is not a valid {kind}: {detail}")]
    BadPayload {
        /// The author.
        iss: NodeId,
        /// What it claims to be.
        kind: &'static str,
        /// What was wrong.
        detail: String,
    },
}

fn malformed(what: impl Into<String>) -> EnvelopeError {
    EnvelopeError::Malformed(what.into())
}

/// Bytes whose header was read and whose signature was not checked: good for routing, for nothing else.
#[derive(Debug)]
pub struct Untrusted<'a> {
    sign1: CoseSign1,
    bytes: &'a [u8],
    /// What the header claims.
    pub claims: Claims,
    /// The key it claims to be signed with.
    pub kid: KeyId,
    algorithm: Algorithm,
    /// The author's certificate chain (x5chain, RFC 9360), leaf first, where the message introduces its author.
    pub x5chain: Vec<Vec<u8>>,
    /// The session key that the author introduces with its chain.
    pub endorsement: Option<Endorsement>,
}

/// A payload whose signature held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedBytes {
    claims: Claims,
    what: &'static str,
    payload: Vec<u8>,
    bytes: Vec<u8>,
}

/// A decoded message whose signature held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<T> {
    claims: Claims,
    value: T,
    digest: Digest,
    bytes: Vec<u8>,
}

impl<T> Verified<T> {
    /// Who said it, to whom, when.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }
    /// What was said.
    #[must_use]
    pub fn value(&self) -> &T {
        &self.value
    }
    /// What was said, owned.
    #[must_use]
    pub fn into_value(self) -> T {
        self.value
    }
    /// The SHA-256 of the payload (not of the signature, so that signing again does not change it).
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }
    /// The signed bytes, as they came.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl VerifiedBytes {
    /// Decodes the payload.
    ///
    /// # Errors
    /// [`EnvelopeError::BadPayload`] when it is not a `T`, [`EnvelopeError::UnknownVersion`] when it is a later one.
    pub fn decode<T: DeserializeOwned + Versioned>(self) -> Result<Verified<T>, EnvelopeError> {
        let value: T = crate::wire::decode(&self.payload).map_err(|e| EnvelopeError::BadPayload {
            iss: self.claims.iss.clone(),
            kind: self.what,
            detail: limits::clip_to(&e.to_string(), 300),
        })?;
        let version = value.version();
        if version != VERSION {
            return Err(EnvelopeError::UnknownVersion {
                iss: self.claims.iss,
                kind: self.what,
                version,
            });
        }
        Ok(Verified {
            digest: Digest::of(&self.payload),
            claims: self.claims,
            value,
            bytes: self.bytes,
        })
    }
}

fn claim_text(map: &[(Value, Value)], label: i64) -> Option<&str> {
    claim(map, label).and_then(Value::as_text)
}

fn claim(map: &[(Value, Value)], label: i64) -> Option<&Value> {
    map.iter()
        .find(|(k, _)| k.as_integer() == Some(label.into()))
        .map(|(_, v)| v)
}

fn claim_u64(map: &[(Value, Value)], label: i64) -> Option<u64> {
    claim(map, label)
        .and_then(Value::as_integer)
        .and_then(|i| u64::try_from(i).ok())
}

fn read_claims(header: &Header) -> Result<Claims, EnvelopeError> {
    let value = rest(header, LABEL_CWT_CLAIMS).ok_or_else(|| malformed("it has no CWT claims"))?;
    let map = value
        .as_map()
        .ok_or_else(|| malformed("its CWT claims are not a map"))?;
    let node = |label, name| {
        let text = claim_text(map, label).ok_or_else(|| malformed(format!("it has no {name}")))?;
        NodeId::new(text).map_err(|e| malformed(e.to_string()))
    };
    let exp = match claim(map, CLAIM_EXP) {
        None => None,
        Some(_) => Some(claim_u64(map, CLAIM_EXP).ok_or_else(|| malformed("its exp is not a time"))?),
    };
    Ok(Claims {
        iss: node(CLAIM_ISS, "iss")?,
        aud: node(CLAIM_AUD, "aud")?,
        iat: claim_u64(map, CLAIM_IAT).ok_or_else(|| malformed("it has no iat"))?,
        exp,
    })
}

fn rest(header: &Header, label: i64) -> Option<&Value> {
    header
        .rest
        .iter()
        .find(|(l, _)| *l == Label::Int(label))
        .map(|(_, v)| v)
}

fn read_x5chain(header: &Header) -> Result<Vec<Vec<u8>>, EnvelopeError> {
    let bad = || malformed("its x5chain is not one certificate or a list of them");
    match rest(header, LABEL_X5CHAIN) {
        None => Ok(Vec::new()),
        Some(Value::Bytes(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(many)) if (2..=limits::X5CHAIN_CERTS).contains(&many.len()) => {
            many.iter().map(|v| v.as_bytes().cloned().ok_or_else(bad)).collect()
        }
        Some(_) => Err(bad()),
    }
}

impl<'a> Untrusted<'a> {
    /// Reads the header. Nothing of the payload is looked at.
    ///
    /// # Errors
    /// [`EnvelopeError::TooLarge`] or [`EnvelopeError::Malformed`].
    pub fn read(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        let max = limits::MESSAGE_BYTES;
        if bytes.len() > max {
            return Err(EnvelopeError::TooLarge { len: bytes.len(), max });
        }
        let sign1 = CoseSign1::from_tagged_slice(bytes).map_err(|e| malformed(e.to_string()))?;
        let again = sign1.clone().to_tagged_vec().map_err(|e| malformed(e.to_string()))?;
        if again != bytes {
            return Err(malformed("it is not in the one encoding that we write"));
        }
        if sign1.unprotected != Header::default() {
            return Err(malformed("its unprotected header is not empty"));
        }
        let header = &sign1.protected.header;
        if !header.crit.is_empty() {
            return Err(malformed("it has critical headers, and none are known"));
        }
        if header.content_type != Some(ContentType::Text(CONTENT_TYPE.into())) {
            return Err(malformed(format!("its content type is not {CONTENT_TYPE}")));
        }
        let algorithm = match &header.alg {
            Some(RegisteredLabelWithPrivate::Assigned(iana::Algorithm::EdDSA)) => Algorithm::Ed25519,
            Some(RegisteredLabelWithPrivate::Assigned(iana::Algorithm::ES256)) => Algorithm::Es256,
            other => return Err(malformed(format!("its algorithm {other:?} is not EdDSA or ES256"))),
        };
        let kid = KeyId(
            header
                .key_id
                .as_slice()
                .try_into()
                .map_err(|_| malformed("its kid has not 8 bytes"))?,
        );
        let (claims, x5chain) = (read_claims(header)?, read_x5chain(header)?);
        let endorsement = rest(header, LABEL_SESSION)
            .map(|v| Endorsement::from_value(v).ok_or_else(|| malformed("its session key is not one")))
            .transpose()?;
        Ok(Self {
            bytes,
            claims,
            kid,
            algorithm,
            x5chain,
            endorsement,
            sign1,
        })
    }

    /// The key that speaks for an author that introduces itself: the session key that the certified key vouches for, or
    /// the certified key itself. `certificate` is the author's and was verified.
    ///
    /// # Errors
    /// [`EnvelopeError::BadEndorsement`].
    pub fn speaker(&self, certificate: &NodeCertificate) -> Result<PublicKey, EnvelopeError> {
        match &self.endorsement {
            None => Ok(certificate.key.clone()),
            Some(e) if e.holds(&certificate.node, &certificate.key) => Ok(e.key.clone()),
            Some(_) => Err(EnvelopeError::BadEndorsement {
                iss: self.claims.iss.clone(),
            }),
        }
    }

    /// Checks the signature with `key`, as a message of `kind`.
    ///
    /// # Errors
    /// [`EnvelopeError::UnknownKey`] when `key` is not the one named, [`EnvelopeError::BadSignature`] otherwise.
    pub fn verify(self, kind: Kind, key: &PublicKey) -> Result<VerifiedBytes, EnvelopeError> {
        self.verify_as(kind.as_str(), &aad(kind), key)
    }

    /// Checks the signature with `key`, as a document about trust, which is carried by a message and signed by another.
    ///
    /// # Errors
    /// As [`Untrusted::verify`].
    pub fn verify_document(self, kind: TrustItemKind, key: &PublicKey) -> Result<VerifiedBytes, EnvelopeError> {
        self.verify_as(kind.as_str(), &document_aad(kind), key)
    }

    fn verify_as(self, what: &'static str, aad: &str, key: &PublicKey) -> Result<VerifiedBytes, EnvelopeError> {
        if key.id() != self.kid || key.algorithm != self.algorithm {
            return Err(EnvelopeError::UnknownKey {
                iss: self.claims.iss,
                kid: self.kid,
            });
        }
        let held = self.sign1.verify_signature(aad.as_bytes(), |signature, message| {
            if key.verifies(message, signature) {
                Ok(())
            } else {
                Err(())
            }
        });
        match (held, self.sign1.payload) {
            (Ok(()), Some(payload)) => Ok(VerifiedBytes {
                claims: self.claims,
                what,
                payload,
                bytes: self.bytes.to_vec(),
            }),
            (Ok(()), None) => Err(malformed("it carries no payload")),
            (Err(()), _) => Err(EnvelopeError::BadSignature {
                iss: self.claims.iss,
                kid: self.kid,
            }),
        }
    }
}

impl VerifiedBytes {
    /// Who said it, to whom, when.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Whether both say the same, whoever signed them when.
    #[must_use]
    pub fn is_same_payload(&self, other: &Self) -> bool {
        self.payload == other.payload
    }

    /// Refuses what is for another node or past its time.
    ///
    /// # Errors
    /// [`EnvelopeError::WrongAudience`] or [`EnvelopeError::Expired`].
    pub fn meant_for(self, me: &NodeId, now_s: u64) -> Result<Self, EnvelopeError> {
        if self.claims.aud != *me {
            return Err(EnvelopeError::WrongAudience {
                aud: self.claims.aud,
                me: me.clone(),
            });
        }
        match self.claims.exp {
            Some(exp) if exp <= now_s => Err(EnvelopeError::Expired { exp, now: now_s }),
            _ => Ok(self),
        }
    }
}

fn aad(kind: Kind) -> String {
    format!("cnova/v1/{}", kind.as_str())
}

// No message's kind contains a slash: a document is never taken for a message, nor a message for a document.
fn document_aad(kind: TrustItemKind) -> String {
    format!("cnova/v1/trust/{}", kind.as_str())
}

/// The claims of a signed message, for routing; the signature is not checked.
///
/// # Errors
/// [`EnvelopeError`] when it is not one of our envelopes.
pub fn peek(bytes: &[u8]) -> Result<(Claims, KeyId), EnvelopeError> {
    Untrusted::read(bytes).map(|u| (u.claims, u.kid))
}

/// Whether these bytes are some CBOR at all; for the messages of tools.
#[must_use]
pub fn is_cbor(bytes: &[u8]) -> bool {
    Value::from_slice(bytes).is_ok()
}
