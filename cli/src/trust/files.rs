//! Key material on disk: never overwritten, private keys readable by their owner alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cnova_shared::bundle::TrustBundle;
use cnova_shared::keys::{Algorithm, PublicKey, Signer, SoftKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::TrustError;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Its owner.
    Private,
    /// Everybody.
    Public,
}

impl Access {
    const fn mode(self) -> u32 {
        match self {
            Self::Private => 0o600,
            Self::Public => 0o644,
        }
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TrustError> {
    fs::read(path).map_err(|source| TrustError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Writes a file that must not be there, and sees it on the disk.
pub(super) fn create(path: &Path, content: &[u8], access: Access) -> Result<(), TrustError> {
    let open = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(access.mode())
        .open(path);
    let mut file = open.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => TrustError::Exists { path: path.to_owned() },
        _ => TrustError::Write {
            path: path.to_owned(),
            source,
        },
    })?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    written.map_err(|source| TrustError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Puts new content in the place of an old file, at once: a reader sees one or the other.
pub(super) fn replace(path: &Path, content: &[u8], access: Access) -> Result<(), TrustError> {
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let next = PathBuf::from(next);
    // Left over from a run that was cut off.
    if next.exists() {
        fs::remove_file(&next).map_err(|source| TrustError::Write {
            path: next.clone(),
            source,
        })?;
    }
    create(&next, content, access)?;
    let renamed = fs::rename(&next, path).and_then(|()| sync_folder(path.parent().unwrap_or(Path::new("."))));
    renamed.map_err(|source| TrustError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Makes a folder that only its owner can look into, and those above it.
pub(super) fn create_folder(path: &Path) -> Result<(), TrustError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| TrustError::Write {
        path: path.to_owned(),
        source,
    })
}

pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    File::open(path)?.sync_all()
}

/// PKCS #8 version 1 (RFC 8410) around the 32 bytes of an Ed25519 seed. The version that ring writes also holds the
/// public key, and OpenSSL 3.0 does not read that.
const ED25519_PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// A new Ed25519 key, and its PEM.
pub(super) fn new_signing_key() -> Result<(SoftKey, String), TrustError> {
    let mut seed = [0; 32];
    SystemRandom::new()
        .fill(&mut seed)
        .map_err(|_| TrustError::NoRandomness)?;
    let text = STANDARD.encode([&ED25519_PKCS8[..], &seed].concat());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
    Ok((SoftKey::ed25519_from_seed(&seed), pem))
}

pub(super) fn read_key(path: &Path) -> Result<SoftKey, TrustError> {
    let bad = || TrustError::NotAKey { path: path.to_owned() };
    let der = PrivatePkcs8KeyDer::from_pem_slice(&read(path)?).map_err(|_| bad())?;
    SoftKey::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| bad())
}

/// SubjectPublicKeyInfo before the key itself, for Ed25519 (RFC 8410) and P-256 (RFC 5480).
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7, 3,
    0x42, 0,
];

/// A public key as other tools read it.
pub(super) fn public_pem(key: &PublicKey) -> String {
    let head: &[u8] = match key.algorithm {
        Algorithm::Ed25519 => &ED25519_SPKI,
        Algorithm::Es256 => &P256_SPKI,
    };
    let text = STANDARD.encode([head, &key.bytes].concat());
    let lines: Vec<&str> = (0..text.len())
        .step_by(64)
        .map(|i| &text[i..text.len().min(i + 64)])
        .collect();
    format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        lines.join("\n")
    )
}

/// Reads a public key, or the public half of a private one.
pub(super) fn read_public_key(path: &Path) -> Result<PublicKey, TrustError> {
    let pem = read(path)?;
    if let Ok(spki) = SubjectPublicKeyInfoDer::from_pem_slice(&pem) {
        let ed25519 = spki.strip_prefix(&ED25519_SPKI[..]).filter(|k| k.len() == 32);
        let p256 = spki.strip_prefix(&P256_SPKI[..]).filter(|k| k.len() == 65);
        let found = match (ed25519, p256) {
            (Some(bytes), _) => Some((Algorithm::Ed25519, bytes)),
            (None, Some(bytes)) => Some((Algorithm::Es256, bytes)),
            (None, None) => None,
        };
        if let Some((algorithm, bytes)) = found {
            let bytes = bytes.to_vec();
            return Ok(PublicKey { algorithm, bytes });
        }
    }
    let key = read_key(path).map_err(|_| TrustError::NotAPublicKey { path: path.to_owned() })?;
    Ok(key.public_key().clone())
}

pub(super) fn read_certificate(path: &Path) -> Result<Vec<u8>, TrustError> {
    let der = CertificateDer::from_pem_slice(&read(path)?);
    der.map(|d| d.to_vec())
        .map_err(|_| TrustError::NotACertificate { path: path.to_owned() })
}

/// When a certificate (DER) ends, seconds since 1970.
pub(super) fn not_after_s(der: &[u8]) -> Option<u64> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    u64::try_from(certificate.validity().not_after.timestamp()).ok()
}

/// The subject of a certificate (DER), as text.
pub(super) fn subject(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.subject().to_string())
}

/// Reads a bundle and checks that its own roots signed it.
pub(super) fn read_bundle(path: &Path) -> Result<TrustBundle, TrustError> {
    TrustBundle::flashed(&read(path)?).map_err(|source| TrustError::Bundle {
        path: path.to_owned(),
        source,
    })
}
