//! The hub's own issuing authority: it certifies nodes under the tree's offline one.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use cnova_hub_core::enrol::{Certify, EnrolRules};
use cnova_shared::bundle::TrustBundle;
use cnova_shared::certificate::{self, CertificateError, SITE_URN, TPM_URN, Tier};
use cnova_shared::ids::{NodeId, SitePath};
use cnova_shared::keys::{Algorithm, PublicKey};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer as Authority, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::Enrolment;

/// Most certificates of TPM makers.
const TPM_CERTIFICATES_MAX: usize = 4096;
/// Largest file with certificates of TPM makers.
const TPM_FILE_BYTES: u64 = 1 << 20;
/// Random bytes of a serial number (RFC 5280 section 4.1.2.2 permits 20).
const SERIAL_BYTES: usize = 16;
/// `SubjectPublicKeyInfo` (RFC 5480) of P-256 up to the point.
const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Why there is no issuer.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// A file cannot be read.
    #[error("[enrolment] cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// Not what it should be.
    #[error("[enrolment] {path} is not {what}")]
    Not {
        /// Which file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
    },
    /// Nodes would not accept what it issues.
    #[error(
        "[enrolment] what {path} issues would not be accepted: {source}; make it with `cnova trust issuer` in the folder \
         whose trust bundle this hub has"
    )]
    NotAccepted {
        /// The certificate.
        path: PathBuf,
        /// What the check said.
        source: CertificateError,
    },
    /// The certificate could not be made.
    #[error("[enrolment] {0}")]
    Issue(#[from] IssueError),
    /// The system gives no randomness.
    #[error("the system gives no random numbers")]
    Random,
}

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// Only P-256 is certified.
    #[error("the node's key is not one of P-256")]
    Key,
    /// The library said no.
    #[error("the certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// The system gives no randomness.
    #[error("the system gives no random numbers")]
    Random,
    /// It would end before it begins.
    #[error("the issuer's own certificate ends at {0} (seconds since 1970): make another with `cnova trust issuer`")]
    Ended(u64),
}

/// Certifies nodes.
pub struct Issuer {
    authority: Authority<'static, KeyPair>,
    certificate: Vec<u8>,
    ends_s: u64,
}

impl Issuer {
    /// Reads certificate and key, and makes sure that nodes will accept what they issue.
    ///
    /// # Errors
    /// [`IssuerError`] with the file and what to do.
    pub fn load(config: &Enrolment, trust: &TrustBundle, now_s: u64) -> Result<Self, IssuerError> {
        let path = config.issuer_certificate.clone();
        let not = |path: &Path, what| IssuerError::Not {
            path: path.to_owned(),
            what,
        };
        let der = CertificateDer::from_pem_slice(&read(&path)?).map_err(|_| not(&path, "a PEM certificate"))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| not(&path, "a certificate"))?;
        let ends_s = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let key_pem = String::from_utf8(read(&config.issuer_key)?).ok();
        let key = key_pem.and_then(|pem| KeyPair::from_pem(&pem).ok());
        let key = key.ok_or_else(|| not(&config.issuer_key, "a PEM key (PKCS #8)"))?;
        if parsed.public_key().subject_public_key.data != rcgen::PublicKeyData::der_bytes(&key) {
            return Err(not(&config.issuer_key, "the key of issuer_certificate"));
        }
        let certificate = der.to_vec();
        let authority = Authority::from_ca_cert_der(&der, key).map_err(IssueError::from)?;
        let issuer = Self {
            authority,
            certificate,
            ends_s,
        };
        issuer.try_out(&path, trust, now_s)?;
        Ok(issuer)
    }

    /// What every peer of a node will do.
    fn try_out(&self, path: &Path, trust: &TrustBundle, now_s: u64) -> Result<(), IssuerError> {
        let probe = KeyPair::generate().map_err(IssueError::from)?;
        let key = PublicKey {
            algorithm: Algorithm::Es256,
            bytes: rcgen::PublicKeyData::der_bytes(&probe).to_vec(),
        };
        let name = |_| IssueError::Key;
        let (node, site) = (
            NodeId::new("probe").map_err(name)?,
            SitePath::new("probe").map_err(name)?,
        );
        let chain = self.issue(&node, &site, Tier::Soft, &key, self.ends_s)?;
        certificate::verify(&chain, &trust.authorities(), now_s)
            .map(|_| ())
            .map_err(|source| IssuerError::NotAccepted {
                path: path.to_owned(),
                source,
            })
    }

    /// When its own certificate ends, seconds since 1970.
    #[must_use]
    pub const fn ends_s(&self) -> u64 {
        self.ends_s
    }

    /// Makes the certificate that the core asks for; the node's own first.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn certify(&self, c: &Certify) -> Result<Vec<Vec<u8>>, IssueError> {
        if c.not_after_s <= c.issued_s {
            return Err(IssueError::Ended(self.ends_s));
        }
        self.issue(&c.node, &c.site, c.tier, &c.key, c.not_after_s)
    }

    fn issue(
        &self,
        node: &NodeId,
        site: &SitePath,
        tier: Tier,
        key: &PublicKey,
        ends_s: u64,
    ) -> Result<Vec<Vec<u8>>, IssueError> {
        if key.algorithm != Algorithm::Es256 || key.bytes.len() != 65 {
            return Err(IssueError::Key);
        }
        let mut p = CertificateParams::default();
        p.distinguished_name = DistinguishedName::new();
        p.distinguished_name.push(DnType::CommonName, node.as_str());
        p.subject_alt_names = vec![
            SanType::DnsName(node.as_str().try_into()?),
            SanType::URI(format!("{SITE_URN}{site}").as_str().try_into()?),
        ];
        if tier == Tier::Tpm {
            p.subject_alt_names.push(SanType::URI(TPM_URN.try_into()?));
        }
        p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A gateway is a server to its children and a client to its parent.
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        p.use_authority_key_identifier_extension = true;
        let mut serial = [0; SERIAL_BYTES];
        SystemRandom::new().fill(&mut serial).map_err(|_| IssueError::Random)?;
        // Positive, and of this length.
        serial[0] = serial[0] & 0x7f | 0x40;
        p.serial_number = Some(SerialNumber::from_slice(&serial));
        // In the past, as `cnova trust issue` does: a peer whose clock is behind must not find it "not yet valid".
        p.not_before = rcgen::date_time_ymd(2024, 1, 1);
        p.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(ends_s);
        let spki = SubjectPublicKeyInfo::from_der(&[P256_SPKI.as_slice(), &key.bytes].concat())?;
        let leaf = p.signed_by(&spki, &self.authority)?;
        Ok(vec![leaf.der().to_vec(), self.certificate.clone()])
    }
}

/// The rules for the core: the configuration, and the certificates of TPM makers.
///
/// # Errors
/// [`IssuerError`] with the file and what to do.
pub fn rules(config: &Enrolment, issuer: &Issuer) -> Result<EnrolRules, IssuerError> {
    let mut rules = EnrolRules {
        allow_soft: config.allow_soft,
        lifetime_s: config.lifetime_s,
        issuer_ends_s: issuer.ends_s(),
        tpm_roots: Vec::new(),
        tpm_intermediates: Vec::new(),
    };
    let Some(folder) = &config.tpm_roots else {
        return Ok(rules);
    };
    let unreadable = |source| IssuerError::Read {
        path: folder.clone(),
        source,
    };
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let extension = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default()
            .to_ascii_lowercase();
        if !["pem", "crt", "cer", "der"].contains(&extension.as_str()) {
            continue;
        }
        for der in certificates(&path)? {
            let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| IssuerError::Not {
                path: path.clone(),
                what: "a certificate, PEM or DER",
            })?;
            // Trusted because a person put it there; what is not its own issuer helps to get to one.
            let is_root = parsed.issuer() == parsed.subject();
            let list = if is_root {
                &mut rules.tpm_roots
            } else {
                &mut rules.tpm_intermediates
            };
            list.push(der);
        }
        if rules.tpm_roots.len() + rules.tpm_intermediates.len() > TPM_CERTIFICATES_MAX {
            return Err(IssuerError::Not {
                path: folder.clone(),
                what: "a folder with at most 4096 certificates",
            });
        }
    }
    Ok(rules)
}

fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, IssuerError> {
    let bytes = read(path)?;
    if !bytes.windows(11).any(|w| w == b"-----BEGIN ") {
        return Ok(vec![bytes]);
    }
    CertificateDer::pem_slice_iter(&bytes)
        .map(|c| c.map(|c| c.to_vec()))
        .collect::<Result<_, _>>()
        .map_err(|_| IssuerError::Not {
            path: path.to_owned(),
            what: "a PEM file with certificates",
        })
}

fn read(path: &Path) -> Result<Vec<u8>, IssuerError> {
    let fail = |source| IssuerError::Read {
        path: path.to_owned(),
        source,
    };
    let length = fs::metadata(path).map_err(fail)?.len();
    if length > TPM_FILE_BYTES {
        return Err(fail(io::Error::other(format!(
            "{length} bytes, at most {TPM_FILE_BYTES}"
        ))));
    }
    fs::read(path).map_err(fail)
}
