//! Making an envelope.

use coset::cbor::value::Value;
use coset::{CoseSign1Builder, HeaderBuilder, TaggedCborSerializable, iana};
use serde::Serialize;
use thiserror::Error;

use super::{
    CLAIM_AUD, CLAIM_EXP, CLAIM_IAT, CLAIM_ISS, CONTENT_TYPE, Claims, Introduction, LABEL_CWT_CLAIMS, LABEL_SESSION,
    LABEL_X5CHAIN, aad, document_aad,
};
use crate::keys::{Algorithm, SignError, Signer};
use crate::limits;
use crate::topics::Kind;
use crate::wire::v1::TrustItemKind;

/// A message could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SealError {
    /// The payload could not be encoded, or is too large.
    #[error("a {kind} was not encoded: {detail}")]
    Encode {
        /// What it should have become.
        kind: &'static str,
        /// Why not.
        detail: String,
    },
    /// The key did not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// Encodes and signs a message.
///
/// # Errors
/// [`SealError`] when it is too large or the key did not sign.
pub fn seal<T: Serialize>(
    kind: Kind,
    claims: &Claims,
    value: &T,
    x5chain: &[Vec<u8>],
    signer: &dyn Signer,
) -> Result<Vec<u8>, SealError> {
    let fail = |detail: String| SealError::Encode {
        kind: kind.as_str(),
        detail,
    };
    let payload = crate::wire::encode(value).map_err(|e| fail(e.to_string()))?;
    let introduction = Introduction {
        chain: x5chain,
        endorsement: None,
    };
    seal_payload(kind, claims, payload, introduction, signer)
}

/// Signs an encoded payload.
///
/// # Errors
/// [`SealError`] when it is too large or the key did not sign.
pub fn seal_payload(
    kind: Kind,
    claims: &Claims,
    payload: Vec<u8>,
    introduction: Introduction<'_>,
    signer: &dyn Signer,
) -> Result<Vec<u8>, SealError> {
    let max = if kind == Kind::Twin {
        limits::TWIN_BYTES
    } else {
        limits::MESSAGE_BYTES
    };
    let subject = Subject {
        what: kind.as_str(),
        aad: aad(kind),
        max,
    };
    seal_as(&subject, claims, payload, introduction, signer)
}

/// Encodes and signs a document about trust. It is carried to whom it concerns in a [`crate::wire::v1::Trust`] message.
///
/// # Errors
/// [`SealError`] when it is larger than `max` bytes or the key did not sign.
pub fn seal_document<T: Serialize>(
    kind: TrustItemKind,
    claims: &Claims,
    value: &T,
    max: usize,
    signer: &dyn Signer,
) -> Result<Vec<u8>, SealError> {
    let subject = Subject {
        what: kind.as_str(),
        aad: document_aad(kind),
        max,
    };
    let payload = crate::wire::encode(value).map_err(|e| SealError::Encode {
        kind: subject.what,
        detail: e.to_string(),
    })?;
    seal_as(&subject, claims, payload, Introduction::default(), signer)
}

/// What is being signed.
struct Subject {
    what: &'static str,
    aad: String,
    max: usize,
}

fn seal_as(
    subject: &Subject,
    claims: &Claims,
    payload: Vec<u8>,
    introduction: Introduction<'_>,
    signer: &dyn Signer,
) -> Result<Vec<u8>, SealError> {
    let fail = |detail: String| SealError::Encode {
        kind: subject.what,
        detail,
    };
    let key = signer.public_key();
    let algorithm = match key.algorithm {
        Algorithm::Ed25519 => iana::Algorithm::EdDSA,
        Algorithm::Es256 => iana::Algorithm::ES256,
    };
    let mut cwt = vec![
        (Value::from(CLAIM_ISS), Value::from(claims.iss.as_str())),
        (Value::from(CLAIM_AUD), Value::from(claims.aud.as_str())),
    ];
    if let Some(exp) = claims.exp {
        cwt.push((Value::from(CLAIM_EXP), Value::from(exp)));
    }
    cwt.push((Value::from(CLAIM_IAT), Value::from(claims.iat)));
    let mut header = HeaderBuilder::new()
        .algorithm(algorithm)
        .content_type(CONTENT_TYPE.into())
        .key_id(key.id().0.to_vec())
        .value(LABEL_CWT_CLAIMS, Value::Map(cwt));
    if let Some(endorsement) = introduction.endorsement {
        header = header.value(LABEL_SESSION, endorsement.to_value());
    }
    match introduction.chain {
        [] => {}
        [one] => header = header.value(LABEL_X5CHAIN, Value::Bytes(one.clone())),
        many => {
            let all = many.iter().map(|c| Value::Bytes(c.clone())).collect();
            header = header.value(LABEL_X5CHAIN, Value::Array(all));
        }
    }
    let sign1 = CoseSign1Builder::new()
        .protected(header.build())
        .payload(payload)
        .try_create_signature(subject.aad.as_bytes(), |message| signer.sign(message))?
        .build();
    let bytes = sign1.to_tagged_vec().map_err(|e| fail(e.to_string()))?;
    let max = subject.max;
    if bytes.len() > max {
        return Err(fail(format!("{} bytes, at most {max} are sent", bytes.len())));
    }
    Ok(bytes)
}
