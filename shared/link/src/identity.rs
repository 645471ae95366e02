//! Who this node is: its certificate, its key and whom it trusts, read from three files.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cnova_shared::bundle::{BundleError, TrustBundle};
use cnova_shared::certificate::{self, CertificateError};
use cnova_shared::envelope::{self, Claims, SealError};
use cnova_shared::ids::{NodeId, SitePath};
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::topics::Kind;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::Serialize;
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Longest identity file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Why a node does not know who it is.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("cannot read {what} {path}: {source}; check [identity] in the configuration and the file's owner")]
    Read {
        /// Which file.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The certificate file holds no certificates.
    #[error("{path} is not a PEM file with certificates, the node's own first: {reason}")]
    NotCertificates {
        /// Where.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
    /// The first certificate is not a node's.
    #[error("{path}: {source}")]
    Certificate {
        /// Where.
        path: PathBuf,
        /// What was wrong.
        source: CertificateError,
    },
    /// The key file holds no key that can be used.
    #[error(
        "{path} is not a PEM file with a PKCS #8 key (BEGIN PRIVATE KEY) for Ed25519 or P-256; \
         convert it with: openssl pkcs8 -topk8 -nocrypt -in {path}"
    )]
    NotAKey {
        /// Where.
        path: PathBuf,
    },
    /// The key belongs to another certificate.
    #[error("{key} is not the key of {certificate} ({node}): they must have been made together")]
    KeyOfAnother {
        /// The key file.
        key: PathBuf,
        /// The certificate file.
        certificate: PathBuf,
        /// The node in the certificate.
        node: NodeId,
    },
    /// The trust bundle does not hold.
    #[error("the trust bundle {path} is not accepted: {source}; flash the one that the hub's root keys signed")]
    Trust {
        /// Where.
        path: PathBuf,
        /// What was wrong.
        source: BundleError,
    },
}

/// A node's name, certificate, key and trust.
#[derive(Debug)]
pub struct Identity {
    node: NodeId,
    site: Option<SitePath>,
    chain: Vec<Vec<u8>>,
    signer: Arc<SoftKey>,
    key_der: PrivatePkcs8KeyDer<'static>,
    trust: TrustBundle,
    not_before_s: u64,
    not_after_s: u64,
    warnings: Vec<String>,
}

impl Identity {
    /// Reads and checks the three files: certificates (PEM, the node's own first), key (PEM, PKCS #8), trust bundle.
    ///
    /// # Errors
    /// [`IdentityError`] with the file and what to do.
    pub fn load(certificate_pem: &Path, key_pem: &Path, trust_bundle: &Path) -> Result<Self, IdentityError> {
        let chain = read_chain(certificate_pem)?;
        let bad = |source| IdentityError::Certificate {
            path: certificate_pem.to_owned(),
            source,
        };
        let leaf = chain.first().map(Vec::as_slice).unwrap_or_default();
        let named = certificate::read(leaf).map_err(bad)?;
        let not_before_s = not_before(leaf).map_err(bad)?;
        let mut warnings = Vec::new();
        let key_der = read_key(key_pem, &mut warnings)?;
        let signer = SoftKey::from_pkcs8(key_der.secret_pkcs8_der()).map_err(|_| IdentityError::NotAKey {
            path: key_pem.to_owned(),
        })?;
        if *signer.public_key() != named.key {
            let (key, certificate) = (key_pem.to_owned(), certificate_pem.to_owned());
            return Err(IdentityError::KeyOfAnother {
                key,
                certificate,
                node: named.node,
            });
        }
        let trust =
            TrustBundle::flashed(&read(trust_bundle, "the trust bundle")?).map_err(|source| IdentityError::Trust {
                path: trust_bundle.to_owned(),
                source,
            })?;
        Ok(Self {
            node: named.node,
            site: named.site,
            not_after_s: named.not_after_s,
            not_before_s,
            chain,
            signer: Arc::new(signer),
            key_der,
            trust,
            warnings,
        })
    }

    /// The node's name: the CN of its certificate.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The place that its certificate was issued for, if it names one.
    #[must_use]
    pub fn site(&self) -> Option<&SitePath> {
        self.site.as_ref()
    }

    /// The certificate chain, DER, the node's own first.
    #[must_use]
    pub fn chain(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// The key, as a signer.
    #[must_use]
    pub fn signer(&self) -> Arc<SoftKey> {
        self.signer.clone()
    }

    /// The trust bundle that the node was flashed with.
    #[must_use]
    pub fn trust(&self) -> &TrustBundle {
        &self.trust
    }

    /// When the certificate begins, seconds since 1970: the earliest time that it can be.
    #[must_use]
    pub fn not_before_s(&self) -> u64 {
        self.not_before_s
    }

    /// When the certificate ends, seconds since 1970.
    #[must_use]
    pub fn not_after_s(&self) -> u64 {
        self.not_after_s
    }

    /// What a person should mend although it works, such as a key that everybody can read.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The certificate chain for rustls.
    #[must_use]
    pub fn tls_chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.iter().map(|c| CertificateDer::from(c.clone())).collect()
    }

    /// The key for rustls.
    #[must_use]
    pub fn tls_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key_der.clone_key())
    }

    /// The authorities of the tree for rustls.
    #[must_use]
    pub fn tls_authorities(&self) -> Vec<CertificateDer<'static>> {
        self.trust.authorities().into_iter().map(CertificateDer::from).collect()
    }

    /// Encodes and signs a message of this node. With `introduce` it carries the certificate chain.
    ///
    /// # Errors
    /// [`SealError`] when it is too large or the key did not sign.
    pub fn seal<T: Serialize>(
        &self,
        kind: Kind,
        aud: &NodeId,
        now_s: u64,
        exp: Option<u64>,
        value: &T,
        introduce: bool,
    ) -> Result<Vec<u8>, SealError> {
        let claims = Claims {
            iss: self.node.clone(),
            aud: aud.clone(),
            iat: now_s,
            exp,
        };
        let x5chain: &[Vec<u8>] = if introduce { &self.chain } else { &[] };
        envelope::seal(kind, &claims, value, x5chain, &*self.signer)
    }
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, IdentityError> {
    let fail = |source| IdentityError::Read {
        what,
        path: path.to_owned(),
        source,
    };
    let meta = fs::metadata(path).map_err(fail)?;
    if meta.len() > FILE_BYTES_MAX {
        let reason = format!("it has {} bytes, at most {FILE_BYTES_MAX} are read", meta.len());
        return Err(fail(io::Error::new(io::ErrorKind::InvalidData, reason)));
    }
    fs::read(path).map_err(fail)
}

fn read_chain(path: &Path) -> Result<Vec<Vec<u8>>, IdentityError> {
    let pem = read(path, "the certificate")?;
    let bad = |reason: String| IdentityError::NotCertificates {
        path: path.to_owned(),
        reason,
    };
    let chain: Vec<Vec<u8>> = CertificateDer::pem_slice_iter(&pem)
        .map(|c| c.map(|c| c.to_vec()))
        .collect::<Result<_, _>>()
        .map_err(|e| bad(e.to_string()))?;
    if chain.is_empty() {
        return Err(bad("no BEGIN CERTIFICATE in it".into()));
    }
    let most = cnova_shared::limits::X5CHAIN_CERTS;
    if chain.len() > most {
        return Err(bad(format!(
            "{} certificates in it, at most {most} are used",
            chain.len()
        )));
    }
    Ok(chain)
}

fn read_key(path: &Path, warnings: &mut Vec<String>) -> Result<PrivatePkcs8KeyDer<'static>, IdentityError> {
    let pem = read(path, "the key")?;
    let readable_by_all = fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o004 != 0);
    if readable_by_all {
        warnings.push(format!(
            "everybody on this machine can read the key {0}: chmod o-rwx {0}",
            path.display()
        ));
    }
    PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| IdentityError::NotAKey { path: path.to_owned() })
}

fn not_before(der: &[u8]) -> Result<u64, CertificateError> {
    let (_, cert) = X509Certificate::from_der(der).map_err(|e| CertificateError::Malformed(e.to_string()))?;
    Ok(u64::try_from(cert.validity().not_before.timestamp()).unwrap_or(0))
}
