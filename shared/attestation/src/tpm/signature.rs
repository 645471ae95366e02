//! `TPMT_SIGNATURE` (part 2, section 11.3.4) and its verification.

use ring::rsa::PublicKeyComponents;
use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

use super::reader::Reader;
use super::{Curve, Hash, Key, Public, TpmError};

const ALG_RSASSA: u16 = 0x0014;
const ALG_ECDSA: u16 = 0x0018;
const P256_COORDINATE: usize = 32;
const RSA_MAX: usize = 256;

/// A signature of a TPM, with SHA-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signature {
    /// ECDSA with P-256: r || s, each 32 bytes.
    Ecdsa(Vec<u8>),
    /// RSASSA-PKCS1-v1_5.
    Rsassa(Vec<u8>),
}

impl Signature {
    /// Reads a `TPMT_SIGNATURE`.
    ///
    /// # Errors
    /// [`TpmError`] when it is not one, or not of a supported kind.
    pub fn read(bytes: &[u8]) -> Result<Self, TpmError> {
        let mut r = Reader::new(bytes);
        let algorithm = r.u16("its algorithm")?;
        let hash = r.u16("its hash")?;
        if Hash::from_id("its hash", hash)? != Hash::Sha256 {
            return Err(TpmError::Value {
                what: "its hash",
                value: hash.into(),
            });
        }
        let signature = match algorithm {
            ALG_ECDSA => {
                let first = padded(r.sized("r", P256_COORDINATE)?, P256_COORDINATE);
                let second = padded(r.sized("s", P256_COORDINATE)?, P256_COORDINATE);
                Signature::Ecdsa([first, second].concat())
            }
            ALG_RSASSA => Signature::Rsassa(r.sized("its bytes", RSA_MAX)?.to_vec()),
            other => {
                return Err(TpmError::Value {
                    what: "its algorithm",
                    value: other.into(),
                });
            }
        };
        r.end()?;
        Ok(signature)
    }

    /// Whether it is `public`'s over `message`.
    #[must_use]
    pub fn holds(&self, public: &Public, message: &[u8]) -> bool {
        match (self, &public.key) {
            (Signature::Ecdsa(signature), key @ Key::Ecc { curve: Curve::P256, .. }) => {
                key.point().is_some_and(|point| {
                    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                        .verify(message, signature)
                        .is_ok()
                })
            }
            (Signature::Rsassa(signature), Key::Rsa { modulus, exponent }) => {
                let e = exponent.to_be_bytes();
                let e = &e[e.iter().take_while(|b| **b == 0).count()..];
                PublicKeyComponents {
                    n: modulus.as_slice(),
                    e,
                }
                .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
                .is_ok()
            }
            _ => false,
        }
    }
}

/// With leading zeros, to `len` bytes: a TPM leaves them out. `short` is not longer.
pub(super) fn padded(short: &[u8], len: usize) -> Vec<u8> {
    let mut out = vec![0; len.saturating_sub(short.len())];
    out.extend_from_slice(short);
    out
}
