//! TLS with a key that its holder does not give out: a [`Signer`] as rustls' signing key.

use std::fmt;
use std::sync::Arc;

use cnova_shared::keys::{Algorithm, Signer};
use rustls::pki_types::{SubjectPublicKeyInfoDer, alg_id};
use rustls::sign::{Signer as TlsSigner, SigningKey, public_key_to_spki};
use rustls::{SignatureAlgorithm, SignatureScheme};

/// Bytes of r and of s in an ES256 signature.
const SCALAR_BYTES: usize = 32;

/// Makes rustls sign handshakes with `signer`, wherever its key is.
#[must_use]
pub fn tls_signing_key(signer: Arc<dyn Signer>) -> Arc<dyn SigningKey> {
    Arc::new(TlsKey(signer))
}

#[derive(Clone)]
struct TlsKey(Arc<dyn Signer>);

impl TlsKey {
    fn scheme(&self) -> SignatureScheme {
        match self.0.public_key().algorithm {
            Algorithm::Ed25519 => SignatureScheme::ED25519,
            Algorithm::Es256 => SignatureScheme::ECDSA_NISTP256_SHA256,
        }
    }
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsKey({:?})", self.0.public_key())
    }
}

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn TlsSigner>> {
        let chosen = offered.contains(&self.scheme());
        chosen.then(|| Box::new(self.clone()) as Box<dyn TlsSigner>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        let key = self.0.public_key();
        let algorithm = match key.algorithm {
            Algorithm::Ed25519 => alg_id::ED25519,
            Algorithm::Es256 => alg_id::ECDSA_P256,
        };
        Some(public_key_to_spki(&algorithm, &key.bytes))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.0.public_key().algorithm {
            Algorithm::Ed25519 => SignatureAlgorithm::ED25519,
            Algorithm::Es256 => SignatureAlgorithm::ECDSA,
        }
    }
}

impl TlsSigner for TlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let signature = self
            .0
            .sign(message)
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        match self.0.public_key().algorithm {
            Algorithm::Ed25519 => Ok(signature),
            Algorithm::Es256 => ecdsa_der(&signature)
                .ok_or_else(|| rustls::Error::General(format!("an ES256 signature of {} bytes", signature.len()))),
        }
    }

    fn scheme(&self) -> SignatureScheme {
        Self::scheme(self)
    }
}

/// `Ecdsa-Sig-Value` (RFC 3279 section 2.2.3) of r || s; `None` when it has another length.
#[must_use]
pub fn ecdsa_der(fixed: &[u8]) -> Option<Vec<u8>> {
    if fixed.len() != 2 * SCALAR_BYTES {
        return None;
    }
    let (r, s) = fixed.split_at(SCALAR_BYTES);
    let body = [der_integer(r), der_integer(s)].concat();
    // At most 2 * (2 + 33) = 70 bytes, so one byte of length is enough.
    let length = u8::try_from(body.len()).ok()?;
    Some([&[0x30, length][..], &body].concat())
}

/// A non-negative DER INTEGER: as short as it can be, with a zero in front where the sign bit would be set.
fn der_integer(scalar: &[u8]) -> Vec<u8> {
    let first = scalar.iter().position(|b| *b != 0).unwrap_or(scalar.len() - 1);
    let digits = &scalar[first..];
    let pad = usize::from(digits[0] & 0x80 != 0);
    let mut out = vec![0x02, (digits.len() + pad) as u8];
    out.extend(std::iter::repeat_n(0, pad));
    out.extend_from_slice(digits);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn der_integers_are_minimal_and_positive() {
        let mut fixed = [0_u8; 64];
        fixed[31] = 1;
        fixed[32] = 0x80;
        let der = ecdsa_der(&fixed).unwrap();
        assert_eq!(der[..7], [0x30, 38, 0x02, 1, 1, 0x02, 33]);
        assert_eq!(der[7..9], [0, 0x80]);
        assert_eq!(der.len(), 40);
        assert_eq!(ecdsa_der(&[0; 64]).unwrap(), [0x30, 6, 2, 1, 0, 2, 1, 0]);
        assert_eq!(ecdsa_der(&[1; 63]), None);
    }
}
