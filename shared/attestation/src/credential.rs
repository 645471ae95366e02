//! TPM2_MakeCredential in software (library specification part 1, section 24 and annexes B.10.4 and C.6.4): a secret that
//! only the TPM with this endorsement key opens, and only if it also holds the key with this name.

use aes::{Aes128, Aes256};
use cfb_mode::Encryptor;
use cfb_mode::cipher::{AsyncStreamCipher, KeyIvInit};
use p256::elliptic_curve::sec1::FromEncodedPoint;
use rsa::rand_core::{CryptoRng, Error as RandError, RngCore};
use rsa::{BigUint, Oaep, RsaPublicKey};
use serde_bytes::ByteBuf;
use sha2::{Sha256, Sha384};
use thiserror::Error;

use crate::Credential;
use crate::tpm::{Curve, Hash, Key, Public, Symmetric};

/// Bytes of the secret in a credential.
pub const SECRET_BYTES: usize = 32;

/// How often an ephemeral key is drawn before giving up. One draw fails once in 2^32 for P-256.
const DRAWS: usize = 8;
const LABEL_IDENTITY: &str = "IDENTITY";
const LABEL_STORAGE: &str = "STORAGE";
const LABEL_INTEGRITY: &str = "INTEGRITY";
const IV: [u8; 16] = [0; 16];

/// A source of random bytes: fills what it is given, from the system's generator.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]);

/// Why a credential cannot be made for a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CredentialError {
    /// The key does not wrap anything.
    #[error("the endorsement key has no symmetric algorithm: it is no storage key")]
    NotStorage,
    /// The point is not on its curve, or the modulus is no modulus.
    #[error("the endorsement key is not a valid key")]
    InvalidKey,
    /// The source of randomness gives nothing usable.
    #[error("no randomness: no ephemeral key after {DRAWS} draws")]
    NoRandomness,
}

/// Wraps `secret` for the TPM that has the endorsement key `ek` and a key named `name`.
///
/// # Errors
/// [`CredentialError`] when the endorsement key cannot be used.
pub fn make(
    ek: &Public,
    name: &[u8],
    secret: &[u8; SECRET_BYTES],
    random: Random<'_>,
) -> Result<Credential, CredentialError> {
    let hash = ek.name_alg;
    let (seed, wrapped_seed) = share_seed(ek, random)?;
    let mut identity = sized(secret);
    match ek.symmetric {
        Symmetric::None => return Err(CredentialError::NotStorage),
        Symmetric::Aes128 => {
            let key = kdf_a(hash, &seed, LABEL_STORAGE, name, 128);
            Encryptor::<Aes128>::new_from_slices(&key, &IV)
                .map_err(|_| CredentialError::InvalidKey)?
                .encrypt(&mut identity);
        }
        Symmetric::Aes256 => {
            let key = kdf_a(hash, &seed, LABEL_STORAGE, name, 256);
            Encryptor::<Aes256>::new_from_slices(&key, &IV)
                .map_err(|_| CredentialError::InvalidKey)?
                .encrypt(&mut identity);
        }
    }
    let bits = u32::try_from(hash.digest_len() * 8).unwrap_or(0);
    let integrity_key = kdf_a(hash, &seed, LABEL_INTEGRITY, &[], bits);
    let integrity = hash.hmac(&integrity_key, &[&identity, name]);
    Ok(Credential {
        blob: ByteBuf::from(sized(&[sized(&integrity), identity].concat())),
        secret: ByteBuf::from(sized(&wrapped_seed)),
    })
}

/// A seed and how it travels to the TPM: as many bytes as the digest of the key's name.
fn share_seed(ek: &Public, random: Random<'_>) -> Result<(Vec<u8>, Vec<u8>), CredentialError> {
    match &ek.key {
        Key::Rsa { modulus, exponent } => share_rsa(ek.name_alg, modulus, *exponent, random),
        Key::Ecc { curve, x, .. } => {
            let point = ek.key.point().ok_or(CredentialError::InvalidKey)?;
            let shared = match curve {
                Curve::P256 => share_p256(&point, random)?,
                Curve::P384 => share_p384(&point, random)?,
            };
            let seed = kdf_e(ek.name_alg, &shared.z, LABEL_IDENTITY, &shared.x, x);
            // TPMS_ECC_POINT
            Ok((seed, [sized(&shared.x), sized(&shared.y)].concat()))
        }
    }
}

fn share_rsa(
    hash: Hash,
    modulus: &[u8],
    exponent: u32,
    random: Random<'_>,
) -> Result<(Vec<u8>, Vec<u8>), CredentialError> {
    let key = RsaPublicKey::new(BigUint::from_bytes_be(modulus), BigUint::from(exponent));
    let key = key.map_err(|_| CredentialError::InvalidKey)?;
    let mut seed = vec![0; hash.digest_len()];
    random(&mut seed);
    // The label includes its terminating zero (part 1, annex B.4).
    let label = format!("{LABEL_IDENTITY}\0");
    let padding = match hash {
        Hash::Sha256 => Oaep::new_with_label::<Sha256, _>(label),
        Hash::Sha384 => Oaep::new_with_label::<Sha384, _>(label),
    };
    let wrapped = key.encrypt(&mut Source(random), padding, &seed);
    Ok((seed, wrapped.map_err(|_| CredentialError::InvalidKey)?))
}

/// An ephemeral point and what it shares with the endorsement key.
struct Shared {
    x: Vec<u8>,
    y: Vec<u8>,
    z: Vec<u8>,
}

macro_rules! share {
    ($name:ident, $curve:ident, $len:literal) => {
        fn $name(point: &[u8], random: Random<'_>) -> Result<Shared, CredentialError> {
            let point = $curve::EncodedPoint::from_bytes(point).map_err(|_| CredentialError::InvalidKey)?;
            let public = Option::<$curve::PublicKey>::from($curve::PublicKey::from_encoded_point(&point));
            let public = public.ok_or(CredentialError::InvalidKey)?;
            let mut scalar = [0; $len];
            let secret = (0..DRAWS).find_map(|_| {
                random(&mut scalar);
                $curve::SecretKey::from_slice(&scalar).ok()
            });
            let secret = secret.ok_or(CredentialError::NoRandomness)?;
            let shared = $curve::ecdh::diffie_hellman(secret.to_nonzero_scalar(), public.as_affine());
            let ephemeral = $curve::EncodedPoint::from(secret.public_key());
            match (ephemeral.x(), ephemeral.y()) {
                (Some(x), Some(y)) => Ok(Shared {
                    x: x.to_vec(),
                    y: y.to_vec(),
                    z: shared.raw_secret_bytes().to_vec(),
                }),
                _ => Err(CredentialError::InvalidKey),
            }
        }
    };
}
share!(share_p256, p256, 32);
share!(share_p384, p384, 48);

/// KDFa (part 1, section 11.4.10.2): SP 800-108 in counter mode with HMAC.
fn kdf_a(hash: Hash, key: &[u8], label: &str, context: &[u8], bits: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let len = bits as usize / 8;
    let mut counter = 0_u32;
    while out.len() < len {
        counter += 1;
        let (counter, bits) = (counter.to_be_bytes(), bits.to_be_bytes());
        out.extend(hash.hmac(key, &[&counter, label.as_bytes(), &[0], context, &bits]));
    }
    out.truncate(len);
    out
}

/// KDFe (part 1, section 11.4.10.3): SP 800-56A, one digest long.
fn kdf_e(hash: Hash, z: &[u8], label: &str, party_u: &[u8], party_v: &[u8]) -> Vec<u8> {
    let counter = 1_u32.to_be_bytes();
    hash.digest(&[&counter, z, label.as_bytes(), &[0], party_u, party_v])
}

/// A `TPM2B`. Nothing here is longer than 600 bytes.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&len.to_be_bytes(), bytes].concat()
}

/// The caller's randomness, as the RSA crate takes it.
struct Source<'a>(Random<'a>);

impl RngCore for Source<'_> {
    fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        (self.0)(&mut bytes);
        u32::from_be_bytes(bytes)
    }
    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        (self.0)(&mut bytes);
        u64::from_be_bytes(bytes)
    }
    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        (self.0)(bytes);
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), RandError> {
        (self.0)(bytes);
        Ok(())
    }
}

impl CryptoRng for Source<'_> {}
