//! Dead Simple Signing Envelope, version 1 (secure-systems-lab/dsse): JSON around base64 of a payload, with signatures
//! over the payload and its type.
//!
//! ECDSA signatures are written in DER (RFC 3279 section 2.2.3), as cosign and the DSSE libraries write them; r || s of
//! fixed length, as COSE has it, is read as well. `keyid` is a hint that is not signed: ours is the hexadecimal
//! [`cnova_shared::keys::KeyId`]; of an envelope with other ids every known key is tried.

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use cnova_shared::keys::{Algorithm, PublicKey, SignError, Signer};
use cnova_shared::limits;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The type of what is signed.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Most signatures of one envelope.
pub const SIGNATURES_MAX: usize = 8;
/// Longest signature that is looked at; one of Ed25519 has 64 bytes, one of P-256 in DER at most 72.
const SIGNATURE_BYTES: usize = 128;
/// Longest `keyid` that is kept.
const KEYID_BYTES: usize = 256;
/// Bytes of r and of s for P-256.
const SCALAR: usize = 32;

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const PLAIN: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const FOR_URLS: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Bytes that are no DSSE envelope of an in-toto statement.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Longer than it may be.
    #[error("it has {len} bytes; provenance has at most {}", limits::PROVENANCE_BYTES)]
    TooLarge {
        /// Its length.
        len: usize,
    },
    /// Not the JSON of an envelope.
    #[error("it is not a DSSE envelope: {0}")]
    NotAnEnvelope(String),
    /// Something else is in it.
    #[error("its payload is of type {0:?}, not {PAYLOAD_TYPE}")]
    OtherType(String),
    /// None or too many.
    #[error("it has {0} signatures; 1 to {SIGNATURES_MAX} are looked at")]
    Signatures(usize),
}

#[derive(Serialize, Deserialize)]
struct Wire {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<WireSignature>,
}

#[derive(Serialize, Deserialize)]
struct WireSignature {
    #[serde(default)]
    keyid: String,
    sig: String,
}

/// An envelope whose signatures were not checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    payload: Vec<u8>,
    signatures: Vec<Signature>,
}

/// One signature, and the key that it claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    pub(crate) keyid: String,
    bytes: Vec<u8>,
}

fn decode(text: &str) -> Option<Vec<u8>> {
    PLAIN.decode(text).or_else(|_| FOR_URLS.decode(text)).ok()
}

impl Frame {
    /// Reads the frame. The payload stays bytes.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn read(envelope: &[u8]) -> Result<Self, FrameError> {
        if envelope.len() > limits::PROVENANCE_BYTES {
            return Err(FrameError::TooLarge { len: envelope.len() });
        }
        let bad = |why: String| FrameError::NotAnEnvelope(limits::clip_to(&why, 200));
        let wire: Wire = serde_json::from_slice(envelope).map_err(|e| bad(e.to_string()))?;
        if wire.payload_type != PAYLOAD_TYPE {
            return Err(FrameError::OtherType(limits::clip_to(&wire.payload_type, 80)));
        }
        if !(1..=SIGNATURES_MAX).contains(&wire.signatures.len()) {
            return Err(FrameError::Signatures(wire.signatures.len()));
        }
        let payload = decode(&wire.payload).ok_or_else(|| bad("its payload is not base64".into()))?;
        let signature = |s: WireSignature| {
            let bytes = decode(&s.sig).filter(|b| b.len() <= SIGNATURE_BYTES);
            let bytes = bytes.ok_or_else(|| bad("a signature is not base64 of a signature".into()))?;
            let keyid = limits::clip_to(&s.keyid, KEYID_BYTES);
            Ok(Signature { keyid, bytes })
        };
        let signatures = wire.signatures.into_iter().map(signature).collect::<Result<_, _>>()?;
        Ok(Self { payload, signatures })
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }

    pub(crate) fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Whether `key` made this signature of the envelope.
    pub(crate) fn holds(&self, signature: &Signature, key: &PublicKey) -> bool {
        let message = pae(PAYLOAD_TYPE, &self.payload);
        let of_der = || {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &key.bytes)
                .verify(&message, &signature.bytes)
                .is_ok()
        };
        match key.algorithm {
            Algorithm::Ed25519 => key.verifies(&message, &signature.bytes),
            Algorithm::Es256 => {
                (signature.bytes.len() == 2 * SCALAR && key.verifies(&message, &signature.bytes)) || of_der()
            }
        }
    }
}

/// What is signed: the pre-authentication encoding of a payload and its type.
#[must_use]
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// Signs a payload of [`PAYLOAD_TYPE`] with every key given. The envelope is one line of JSON.
///
/// # Errors
/// [`SignError`] when a key did not sign.
pub fn sign(payload: &[u8], signers: &[&dyn Signer]) -> Result<Vec<u8>, SignError> {
    let message = pae(PAYLOAD_TYPE, payload);
    let one = |signer: &&dyn Signer| {
        let key = signer.public_key();
        let raw = signer.sign(&message)?;
        let bytes = match key.algorithm {
            Algorithm::Ed25519 => raw,
            Algorithm::Es256 => der(&raw),
        };
        Ok(WireSignature {
            keyid: key.id().to_string(),
            sig: STANDARD.encode(bytes),
        })
    };
    let wire = Wire {
        payload: STANDARD.encode(payload),
        payload_type: PAYLOAD_TYPE.to_owned(),
        signatures: signers.iter().map(one).collect::<Result<_, SignError>>()?,
    };
    // Text in a structure of text: nothing in it can fail to become JSON.
    Ok(serde_json::to_vec(&wire).unwrap_or_default())
}

/// r || s as SEQUENCE { INTEGER r, INTEGER s }.
fn der(raw: &[u8]) -> Vec<u8> {
    let (r, s) = raw.split_at(raw.len() / 2);
    let integer = |scalar: &[u8]| {
        let first = scalar
            .iter()
            .position(|b| *b != 0)
            .unwrap_or(scalar.len().saturating_sub(1));
        let digits = &scalar[first..];
        // A first bit that is set would make it negative.
        let pad = digits.first().is_some_and(|b| b & 0x80 != 0);
        let mut out = vec![2, small(digits.len() + usize::from(pad))];
        out.extend(pad.then_some(0));
        out.extend_from_slice(digits);
        out
    };
    let body = [integer(r), integer(s)].concat();
    [&[0x30, small(body.len())], &body[..]].concat()
}

/// The lengths here are at most 70.
fn small(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}
