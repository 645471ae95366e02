//! Node certificates: X.509, one CA per tree, subject CN = NodeId.

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use thiserror::Error;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::ids::{Digest, NodeId, SitePath};
use crate::keys::{Algorithm, PublicKey};

/// Why a certificate does not speak for a node.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CertificateError {
    /// Not X.509, or without what we need in it.
    #[error("not a usable certificate: {0}")]
    Malformed(String),
    /// No chain to an authority of this tree, or expired.
    #[error("the certificate of {cn:?} is not accepted: {reason}")]
    NotTrusted {
        /// The CN it carries.
        cn: String,
        /// What the chain check said.
        reason: String,
    },
}

/// What a node holds its key in. The hub pins it at enrolment; it stands in the node's certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// A file. Shown as UNATTESTED everywhere.
    #[default]
    Soft,
    /// A TPM 2.0.
    Tpm,
}

/// A node's name and key, read from its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCertificate {
    /// The subject's CN.
    pub node: NodeId,
    /// The certified key.
    pub key: PublicKey,
    /// The place in the tree that it was issued for (a URI name `urn:cnova:site:<path>`).
    pub site: Option<SitePath>,
    /// What it holds its key in (a URI name `urn:cnova:tier:tpm`); a file, where nothing is said.
    pub tier: Tier,
    /// SHA-256 of its attestation key (a URI name `urn:cnova:ak:<hex>`): whoever has the certificate can tell its quotes
    /// from those of another TPM.
    pub ak: Option<Digest>,
    /// When it ends, seconds since 1970.
    pub not_after_s: u64,
}

const OID_ED25519: &str = "1.3.101.112";
const OID_EC: &str = "1.2.840.10045.2.1";
const P256_POINT_LEN: usize = 65;

/// Reads name and key without checking who issued the certificate.
///
/// # Errors
/// [`CertificateError::Malformed`].
pub fn read(der: &[u8]) -> Result<NodeCertificate, CertificateError> {
    let bad = |s: &str| CertificateError::Malformed(s.to_owned());
    let (rest, cert) = X509Certificate::from_der(der).map_err(|e| bad(&e.to_string()))?;
    if !rest.is_empty() {
        return Err(bad("bytes follow it"));
    }
    let mut names = cert.subject().iter_common_name();
    let cn = names
        .next()
        .and_then(|a| a.as_str().ok())
        .ok_or_else(|| bad("its subject has no CN"))?;
    if names.next().is_some() {
        return Err(bad("its subject has more than one CN"));
    }
    let node = NodeId::new(cn).map_err(|e| bad(&e.to_string()))?;
    let spki = cert.public_key();
    let raw = spki.subject_public_key.data.to_vec();
    let algorithm = match (spki.algorithm.algorithm.to_id_string().as_str(), raw.len()) {
        (OID_ED25519, 32) => Algorithm::Ed25519,
        (OID_EC, P256_POINT_LEN) => Algorithm::Es256,
        (other, _) => return Err(bad(&format!("its key ({other}) is neither Ed25519 nor P-256"))),
    };
    let not_after_s = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
    let site = read_site(&cert)?;
    let (tier, ak) = (read_tier(&cert)?, read_ak(&cert)?);
    Ok(NodeCertificate {
        node,
        key: PublicKey { algorithm, bytes: raw },
        site,
        tier,
        ak,
        not_after_s,
    })
}

/// The prefix of the URI name that carries a site path.
pub const SITE_URN: &str = "urn:cnova:site:";

/// The URI name of a node that holds its key in a TPM.
pub const TPM_URN: &str = "urn:cnova:tier:tpm";

fn read_site(cert: &X509Certificate<'_>) -> Result<Option<SitePath>, CertificateError> {
    let site = uri_names(cert)?.into_iter().find_map(|u| u.strip_prefix(SITE_URN));
    site.map(|s| SitePath::new(s).map_err(|e| CertificateError::Malformed(e.to_string())))
        .transpose()
}

fn read_tier(cert: &X509Certificate<'_>) -> Result<Tier, CertificateError> {
    let is_tpm = uri_names(cert)?.contains(&TPM_URN);
    Ok(if is_tpm { Tier::Tpm } else { Tier::Soft })
}

/// The prefix of the URI name that carries the SHA-256 of an attestation key.
pub const AK_URN: &str = "urn:cnova:ak:";

fn read_ak(cert: &X509Certificate<'_>) -> Result<Option<Digest>, CertificateError> {
    let ak = uri_names(cert)?.into_iter().find_map(|u| u.strip_prefix(AK_URN));
    ak.map(|hex| {
        let digest = format!("sha256:{hex}").parse();
        digest.map_err(|e| CertificateError::Malformed(format!("its attestation key: {e}")))
    })
    .transpose()
}

fn uri_names<'a>(cert: &'a X509Certificate<'_>) -> Result<Vec<&'a str>, CertificateError> {
    let san = cert.subject_alternative_name();
    let san = san.map_err(|e| CertificateError::Malformed(e.to_string()))?;
    let names = san.map(|s| s.value.general_names.as_slice()).unwrap_or_default();
    let uri = |n: &GeneralName<'a>| match n {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    };
    Ok(names.iter().filter_map(uri).collect())
}

/// Checks a chain (leaf first) against the tree's authorities at `now_s` and reads the leaf.
///
/// # Errors
/// [`CertificateError`] with the reason, for the log and the report.
pub fn verify(chain: &[Vec<u8>], authorities: &[Vec<u8>], now_s: u64) -> Result<NodeCertificate, CertificateError> {
    let leaf = chain
        .first()
        .ok_or_else(|| CertificateError::Malformed("the chain is empty".into()))?;
    let node = read(leaf)?;
    let fail = |reason: String| CertificateError::NotTrusted {
        cn: node.node.to_string(),
        reason,
    };
    let roots: Vec<CertificateDer<'_>> = authorities.iter().map(|a| CertificateDer::from(a.as_slice())).collect();
    let anchors: Vec<TrustAnchor<'_>> = roots
        .iter()
        .map(webpki::anchor_from_trusted_cert)
        .collect::<Result<_, _>>()
        .map_err(|e| fail(format!("an authority cannot be read: {e}")))?;
    let intermediates: Vec<CertificateDer<'_>> =
        chain[1..].iter().map(|c| CertificateDer::from(c.as_slice())).collect();
    let leaf = CertificateDer::from(leaf.as_slice());
    let leaf = webpki::EndEntityCert::try_from(&leaf).map_err(|e| fail(e.to_string()))?;
    leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        &intermediates,
        UnixTime::since_unix_epoch(Duration::from_secs(now_s)),
        webpki::KeyUsage::client_auth(),
        None,
        None,
    )
    .map_err(|e| fail(e.to_string()))?;
    Ok(node)
}
