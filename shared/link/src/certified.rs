//! The certificate in use: read from its file, shown in handshakes, replaced while the node runs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cnova_shared::certificate::{self, CertificateError};
use cnova_shared::keys::PublicKey;
use cnova_shared::wire::v1::EnrolIssued;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{self, IdentityError};

/// Stands before the certificates in a file that an enrolment wrote, with the time to ask for the next one (seconds since
/// 1970). RFC 7468 section 2 permits text there, and every reader skips it.
const RENEW: &str = "cnova-renew: ";
const CERTIFICATE_MODE: u32 = 0o644;

#[derive(Debug)]
struct Held {
    chain: Vec<Vec<u8>>,
    shown: Option<Arc<CertifiedKey>>,
    not_before_s: u64,
    not_after_s: u64,
    renew_s: Option<u64>,
}

/// A certificate and its key. What is in use may change at any time, at once for everybody who holds this.
#[derive(Debug)]
pub struct Certified {
    key: Arc<dyn SigningKey>,
    held: RwLock<Held>,
}

impl Certified {
    pub(crate) fn new(
        chain: Vec<Vec<u8>>,
        renew_s: Option<u64>,
        key: Arc<dyn SigningKey>,
    ) -> Result<Self, CertificateError> {
        let held = RwLock::new(hold(chain, renew_s, &key)?);
        Ok(Self { key, held })
    }

    pub(crate) fn none(key: Arc<dyn SigningKey>) -> Self {
        let held = Held {
            chain: Vec::new(),
            shown: None,
            not_before_s: 0,
            not_after_s: 0,
            renew_s: None,
        };
        Self {
            key,
            held: RwLock::new(held),
        }
    }

    pub(crate) fn replace(&self, chain: Vec<Vec<u8>>, renew_s: Option<u64>) -> Result<(), CertificateError> {
        let next = hold(chain, renew_s, &self.key)?;
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    fn look<R>(&self, at: impl FnOnce(&Held) -> R) -> R {
        at(&self.held.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn chain(&self) -> Vec<Vec<u8>> {
        self.look(|h| h.chain.clone())
    }

    pub(crate) fn validity(&self) -> (u64, u64) {
        self.look(|h| (h.not_before_s, h.not_after_s))
    }

    pub(crate) fn renew_s(&self) -> Option<u64> {
        self.look(|h| h.renew_s)
    }

    /// Seconds since 1970 at which the certificate ends; nothing while there is none.
    #[must_use]
    pub fn not_after_s(&self) -> Option<u64> {
        self.look(|h| h.shown.as_ref().map(|_| h.not_after_s))
    }
}

impl ResolvesServerCert for Certified {
    fn resolve(&self, _client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.look(|h| h.shown.clone())
    }
}

impl ResolvesClientCert for Certified {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.look(|h| h.shown.clone())
    }

    fn has_certs(&self) -> bool {
        self.look(|h| h.shown.is_some())
    }
}

fn hold(chain: Vec<Vec<u8>>, renew_s: Option<u64>, key: &Arc<dyn SigningKey>) -> Result<Held, CertificateError> {
    let leaf = chain.first().map(Vec::as_slice).unwrap_or_default();
    let (not_before_s, not_after_s) = validity(leaf)?;
    let der = chain.iter().map(|c| CertificateDer::from(c.clone())).collect();
    Ok(Held {
        shown: Some(Arc::new(CertifiedKey::new(der, key.clone()))),
        chain,
        not_before_s,
        not_after_s,
        renew_s,
    })
}

pub(crate) fn validity(der: &[u8]) -> Result<(u64, u64), CertificateError> {
    let (_, cert) = X509Certificate::from_der(der).map_err(|e| CertificateError::Malformed(e.to_string()))?;
    let seconds = |t: x509_parser::time::ASN1Time| u64::try_from(t.timestamp()).unwrap_or(0);
    Ok((seconds(cert.validity().not_before), seconds(cert.validity().not_after)))
}

/// The key that the node's own certificate in a file is about.
pub(crate) fn key(path: &Path) -> Result<PublicKey, IdentityError> {
    let (chain, _) = read(path)?;
    let named = certificate::read(chain.first().map(Vec::as_slice).unwrap_or_default());
    let named = named.map_err(|source| IdentityError::Certificate {
        path: path.to_owned(),
        source,
    })?;
    Ok(named.key)
}

/// The certificates in a file, and when the next one is to be asked for.
pub(crate) fn read(path: &Path) -> Result<(Vec<Vec<u8>>, Option<u64>), IdentityError> {
    let pem = identity::read(path, "the certificate")?;
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
    let text = String::from_utf8_lossy(&pem);
    let renew_s = text.lines().find_map(|l| l.strip_prefix(RENEW)?.trim().parse().ok());
    Ok((chain, renew_s))
}

/// Puts what was issued in the place of the certificate file: whole, or not at all.
///
/// # Errors
/// What the system answered; the old file is as it was.
pub fn store_issued(path: &Path, issued: &EnrolIssued) -> io::Result<()> {
    let mut text = format!("{RENEW}{}\n", issued.renew_s);
    for der in &issued.chain {
        let body = STANDARD.encode(der);
        text += "-----BEGIN CERTIFICATE-----\n";
        // RFC 7468 section 2: 64 characters a line.
        for line in body.as_bytes().chunks(64) {
            text += std::str::from_utf8(line).unwrap_or_default();
            text.push('\n');
        }
        text += "-----END CERTIFICATE-----\n";
    }
    replace_file(path, text.as_bytes(), CERTIFICATE_MODE)
}

/// Replaces a file at once and sees it on the disk: a reader, and a power cut, find the old one or the new one.
///
/// # Errors
/// What the system answered; the old file is as it was.
pub fn replace_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder)?;
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let next = PathBuf::from(next);
    // Left over from a run that was cut off.
    match fs::remove_file(&next) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&next)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    File::open(folder)?.sync_all()
}
