//! The certificate of an endorsement key (TCG EK Credential Profile for TPM Family 2.0): its chain to a maker of TPMs, its
//! purpose, its key.

use std::time::Duration;

use cnova_shared::limits::clip_to;
use rustls_pki_types::{CertificateDer, UnixTime};
use thiserror::Error;
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::oid_registry::asn1_rs::{Oid, oid};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey as SubjectKey;

use crate::limits;
use crate::tpm::{Curve, Key};

/// `tcg-kp-EKCertificate`, 2.23.133.8.1, as the contents of a DER object identifier.
const EKU_EK: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];
const OID_EKU_EK: Oid<'static> = oid!(2.23.133.8.1);
const OID_RSA: Oid<'static> = oid!(1.2.840.113549.1.1.1);
/// Some makers bind the key to its use (RFC 4055 section 4.1); the key is encoded as any other RSA key.
const OID_RSA_OAEP: Oid<'static> = oid!(1.2.840.113549.1.1.7);
const OID_EC: Oid<'static> = oid!(1.2.840.10045.2.1);
const OID_P256: Oid<'static> = oid!(1.2.840.10045.3.1.7);
const OID_P384: Oid<'static> = oid!(1.3.132.0.34);

/// Whom this tree takes TPMs from.
#[derive(Clone, Debug, Default)]
pub struct Makers {
    /// Root certificates of makers of TPMs, DER.
    pub roots: Vec<Vec<u8>>,
    /// Their intermediate certificates, DER: most TPMs hold only their own certificate.
    pub intermediates: Vec<Vec<u8>>,
}

/// Why the certificate of an endorsement key is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChainError {
    /// There is none.
    #[error("the TPM showed no certificate of its endorsement key; provision one, or use another TPM")]
    Missing,
    /// There are too many, or one is too large.
    #[error("{0} certificates came with the endorsement key, or one is larger than {max} bytes: at most {count} are taken",
        max = limits::EK_CERTIFICATE_BYTES, count = limits::EK_CERTIFICATES)]
    TooLarge(usize),
    /// It cannot be read.
    #[error("the certificate of the endorsement key cannot be read: {0}")]
    Malformed(String),
    /// No maker's root can be read.
    #[error("no root of a maker of TPMs is configured, or one cannot be read: {0}")]
    NoRoots(String),
    /// It does not lead to a maker's root, or is not in its time.
    #[error(
        "the certificate of the endorsement key (issued by {issuer}) does not lead to a trusted maker of TPMs: {reason}"
    )]
    NotTrusted {
        /// Who issued it.
        issuer: String,
        /// What the chain check said.
        reason: String,
    },
    /// It was issued for another purpose.
    #[error("the certificate shown is not one of an endorsement key: it lacks the purpose 2.23.133.8.1")]
    OtherPurpose,
}

/// Checks the chain, own certificate first, at `now_s`, and reads the certified key.
pub(crate) fn verify<C: AsRef<[u8]>>(certificates: &[C], makers: &Makers, now_s: u64) -> Result<Key, ChainError> {
    let (leaf, chain) = certificates.split_first().ok_or(ChainError::Missing)?;
    let large = |c: &C| c.as_ref().len() > limits::EK_CERTIFICATE_BYTES;
    if certificates.len() > limits::EK_CERTIFICATES || certificates.iter().any(large) {
        return Err(ChainError::TooLarge(certificates.len()));
    }
    let bytes = without_padding(leaf.as_ref());
    let (_, parsed) = X509Certificate::from_der(bytes).map_err(|e| ChainError::Malformed(e.to_string()))?;
    verify_chain(bytes, &parsed, chain, makers, now_s)?;
    let usage = parsed.extended_key_usage();
    let usage = usage.map_err(|e| ChainError::Malformed(e.to_string()))?;
    // webpki takes a certificate without any purpose for one of every purpose; the profile demands this one.
    if !usage.is_some_and(|u| u.value.other.contains(&OID_EKU_EK)) {
        return Err(ChainError::OtherPurpose);
    }
    certified_key(&parsed)
}

fn verify_chain<C: AsRef<[u8]>>(
    leaf: &[u8],
    parsed: &X509Certificate<'_>,
    chain: &[C],
    makers: &Makers,
    now_s: u64,
) -> Result<(), ChainError> {
    let der = |c: &'_ [u8]| CertificateDer::from(c.to_vec());
    let roots: Vec<_> = makers.roots.iter().map(|c| der(c)).collect();
    let anchors = roots
        .iter()
        .map(anchor_from_trusted_cert)
        .collect::<Result<Vec<_>, _>>();
    let anchors = anchors.map_err(|e| ChainError::NoRoots(e.to_string()))?;
    if anchors.is_empty() {
        return Err(ChainError::NoRoots("none".into()));
    }
    let between: Vec<_> = chain.iter().map(|c| der(without_padding(c.as_ref()))).collect();
    let between: Vec<_> = between
        .into_iter()
        .chain(makers.intermediates.iter().map(|c| der(c)))
        .collect();
    let not_trusted = |e: webpki::Error| ChainError::NotTrusted {
        issuer: clip_to(&parsed.issuer().to_string(), 120),
        reason: e.to_string(),
    };
    let leaf = der(leaf);
    EndEntityCert::try_from(&leaf)
        .and_then(|cert| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s));
            let purpose = KeyUsage::required_if_present(EKU_EK);
            cert.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, &between, now, purpose, None, None)
                .map(|_| ())
        })
        .map_err(not_trusted)
}

/// The certificate alone: TPMs hold it in memory of a fixed size and fill the rest with zeros or ones.
fn without_padding(bytes: &[u8]) -> &[u8] {
    let Ok((rest, _)) = X509Certificate::from_der(bytes) else {
        return bytes;
    };
    let padding = rest.iter().all(|b| *b == 0) || rest.iter().all(|b| *b == 0xff);
    if padding {
        &bytes[..bytes.len() - rest.len()]
    } else {
        bytes
    }
}

fn certified_key(cert: &X509Certificate<'_>) -> Result<Key, ChainError> {
    let bad = |s: &str| ChainError::Malformed(s.to_owned());
    let spki = cert.public_key();
    let algorithm = &spki.algorithm.algorithm;
    if *algorithm == OID_RSA || *algorithm == OID_RSA_OAEP {
        let (_, key) = x509_parser::public_key::RSAPublicKey::from_der(&spki.subject_public_key.data)
            .map_err(|e| bad(&e.to_string()))?;
        let modulus = &key.modulus[key.modulus.iter().take_while(|b| **b == 0).count()..];
        let exponent = key
            .exponent
            .iter()
            .try_fold(0_u32, |e, b| e.checked_mul(256)?.checked_add((*b).into()));
        return Ok(Key::Rsa {
            modulus: modulus.to_vec(),
            exponent: exponent.ok_or_else(|| bad("its exponent is too large"))?,
        });
    }
    if *algorithm != OID_EC {
        return Err(bad("its key is neither RSA nor of an elliptic curve"));
    }
    let named = spki.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
    let curve = match named {
        Some(c) if c == OID_P256 => Curve::P256,
        Some(c) if c == OID_P384 => Curve::P384,
        _ => return Err(bad("its curve is neither P-256 nor P-384")),
    };
    let Ok(SubjectKey::EC(point)) = spki.parsed() else {
        return Err(bad("its key is not a point"));
    };
    let len = curve.coordinate_len();
    match point.data().split_first() {
        Some((4, xy)) if xy.len() == 2 * len => Ok(Key::Ecc {
            curve,
            x: xy[..len].to_vec(),
            y: xy[len..].to_vec(),
        }),
        _ => Err(bad("its key is not an uncompressed point")),
    }
}
