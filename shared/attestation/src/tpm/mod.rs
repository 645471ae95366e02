//! Structures of TPM 2.0 (library specification part 2, "Structures"), read strictly: every length is checked, every
//! reserved value refused, no byte may be left over. Only what enrolment and quotes need is known.

mod attest;
mod public;
mod reader;
mod signature;

pub use attest::{Attest, Attested, ClockInfo, PcrSelection};
pub use public::{Attributes, Curve, Key, Public, Scheme, Symmetric};
pub use signature::Signature;

use ring::digest::{SHA256, SHA384};
use ring::{digest, hmac};
use thiserror::Error;

/// Why bytes are not the structure that they should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TpmError {
    /// They end too early.
    #[error("it ends in the middle of {0}")]
    Short(&'static str),
    /// Bytes follow it.
    #[error("{0} bytes follow it")]
    Trailing(usize),
    /// A field has a value that its type does not have, or that is not supported here.
    #[error("{what} is {value:#x}, which is not allowed or not supported here")]
    Value {
        /// Which field.
        what: &'static str,
        /// What it held.
        value: u64,
    },
    /// A field is longer than its type allows.
    #[error("{what} has {len} bytes, at most {max} are allowed")]
    Long {
        /// Which field.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// It does not begin with what a TPM writes into every attestation (`TPM_GENERATED_VALUE`).
    #[error("it does not say that a TPM made it")]
    NotGenerated,
}

/// A hash algorithm (`TPMI_ALG_HASH`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
}

impl Hash {
    const SHA256: u16 = 0x000b;
    const SHA384: u16 = 0x000c;

    fn from_id(what: &'static str, id: u16) -> Result<Self, TpmError> {
        match id {
            Self::SHA256 => Ok(Hash::Sha256),
            Self::SHA384 => Ok(Hash::Sha384),
            _ => Err(TpmError::Value { what, value: id.into() }),
        }
    }

    /// Its `TPM_ALG_ID`.
    #[must_use]
    pub fn id(self) -> u16 {
        match self {
            Hash::Sha256 => Self::SHA256,
            Hash::Sha384 => Self::SHA384,
        }
    }

    /// Bytes of a digest.
    #[must_use]
    pub fn digest_len(self) -> usize {
        match self {
            Hash::Sha256 => 32,
            Hash::Sha384 => 48,
        }
    }

    /// The digest of `parts`, one after the other.
    #[must_use]
    pub fn digest(self, parts: &[&[u8]]) -> Vec<u8> {
        let mut context = digest::Context::new(match self {
            Hash::Sha256 => &SHA256,
            Hash::Sha384 => &SHA384,
        });
        parts.iter().for_each(|p| context.update(p));
        context.finish().as_ref().to_vec()
    }

    /// The HMAC of `parts`, one after the other.
    #[must_use]
    pub fn hmac(self, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let algorithm = match self {
            Hash::Sha256 => hmac::HMAC_SHA256,
            Hash::Sha384 => hmac::HMAC_SHA384,
        };
        let mut context = hmac::Context::with_key(&hmac::Key::new(algorithm, key));
        parts.iter().for_each(|p| context.update(p));
        context.sign().as_ref().to_vec()
    }
}
