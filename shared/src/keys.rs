//! Public keys, key ids and signing, for the two algorithms on the wire: Ed25519 and ES256 (P-256 with SHA-256).

use std::fmt;

use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::Digest;

/// A signature algorithm; it is bound to the key and never chosen by a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Algorithm {
    /// EdDSA over Curve25519 (RFC 8032).
    Ed25519,
    /// ECDSA with P-256 and SHA-256, fixed-length r || s (RFC 9053 section 2.1).
    Es256,
}

/// A public key with its algorithm. The bytes are 32 for Ed25519, the 65 of an uncompressed point for ES256.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublicKey {
    /// The one algorithm that this key may be used with.
    #[serde(rename = "alg")]
    pub algorithm: Algorithm,
    /// The raw key.
    #[serde(rename = "key", with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// The first eight bytes of the SHA-256 of a raw public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}", self.algorithm, self.id())
    }
}

impl PublicKey {
    /// This key's id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let mut id = [0; 8];
        id.copy_from_slice(&Digest::of(&self.bytes).0[..8]);
        KeyId(id)
    }

    /// Whether `signature` is this key's over `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn signature::VerificationAlgorithm = match self.algorithm {
            Algorithm::Ed25519 => &signature::ED25519,
            Algorithm::Es256 => &signature::ECDSA_P256_SHA256_FIXED,
        };
        UnparsedPublicKey::new(algorithm, &self.bytes)
            .verify(message, signature)
            .is_ok()
    }
}

/// Something that signs with one key: a key in memory, later a TPM.
pub trait Signer: Send + Sync {
    /// The public half.
    fn public_key(&self) -> &PublicKey;
    /// Signs `message`.
    ///
    /// # Errors
    /// [`SignError`] when the key's holder did not answer.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError>;
}

/// Signing failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("key {key} did not sign: {reason}")]
pub struct SignError {
    /// Which key.
    pub key: KeyId,
    /// What its holder said.
    pub reason: String,
}

/// Key material that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("this is not a PKCS #8 private key for Ed25519 or P-256")]
pub struct BadPrivateKey;

enum Pair {
    Ed25519(Ed25519KeyPair),
    Es256(EcdsaKeyPair, ring::rand::SystemRandom),
}

/// A private key in memory, read from PKCS #8 (RFC 5958).
pub struct SoftKey {
    pair: Pair,
    public: PublicKey,
}

impl fmt::Debug for SoftKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SoftKey({:?})", self.public)
    }
}

impl SoftKey {
    /// Reads a DER-encoded PKCS #8 key.
    ///
    /// # Errors
    /// [`BadPrivateKey`] when it is neither Ed25519 nor P-256.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, BadPrivateKey> {
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            let public = PublicKey {
                algorithm: Algorithm::Ed25519,
                bytes: pair.public_key().as_ref().to_vec(),
            };
            return Ok(Self {
                pair: Pair::Ed25519(pair),
                public,
            });
        }
        let rng = ring::rand::SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, der, &rng)
            .map_err(|_| BadPrivateKey)?;
        let public = PublicKey {
            algorithm: Algorithm::Es256,
            bytes: pair.public_key().as_ref().to_vec(),
        };
        Ok(Self {
            pair: Pair::Es256(pair, rng),
            public,
        })
    }

    /// An Ed25519 key from its 32-byte seed; the simulator makes its keys from one number with it.
    ///
    /// # Panics
    /// Never: every 32 bytes are a seed.
    #[must_use]
    pub fn ed25519_from_seed(seed: &[u8; 32]) -> Self {
        #[allow(clippy::expect_used)]
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).expect("every 32 bytes are an Ed25519 seed");
        let public = PublicKey {
            algorithm: Algorithm::Ed25519,
            bytes: pair.public_key().as_ref().to_vec(),
        };
        Self {
            pair: Pair::Ed25519(pair),
            public,
        }
    }
}

impl Signer for SoftKey {
    fn public_key(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        match &self.pair {
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::Es256(pair, rng) => pair
                .sign(rng, message)
                .map(|s| s.as_ref().to_vec())
                .map_err(|_| SignError {
                    key: self.public.id(),
                    reason: "no randomness from the system".into(),
                }),
        }
    }
}
