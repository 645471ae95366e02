//! The wire: versioned structures and their CBOR form. Decoding is reached only through
//! [`crate::envelope::VerifiedBytes::decode`], or for bytes that this node wrote itself.
//!
//! serde_cbor stands behind this module alone, so that it can be replaced. Unknown fields are ignored; an unknown
//! version is refused by whoever reads the message; `shared/tests/golden/` pins the bytes.

pub mod v1;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Bytes that are not the CBOR of what was expected.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct WireError(#[from] serde_cbor::Error);

/// Encodes a structure as CBOR with text keys.
///
/// # Errors
/// [`WireError`] when the value cannot be represented.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, WireError> {
    Ok(serde_cbor::to_vec(value)?)
}

/// Decodes bytes that are known to be genuine: their signature held, or this node wrote them.
///
/// # Errors
/// [`WireError`] when they are not a `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    Ok(serde_cbor::from_slice(bytes)?)
}
