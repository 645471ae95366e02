//! A key in a file of mode 0600: the tier that never claims to be more.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use cnova_attestation::{Credential, Pcr, Quote, TpmEnrolment};
use cnova_shared::certificate::Tier;
use cnova_shared::ids::Digest;
use cnova_shared::keys::{PublicKey, Signer, SoftKey};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::{BootApproval, RootError, RootOfTrust, SEALED_BYTES_MAX, SECRET_BYTES_MAX};

/// Longest key file that is read, in bytes.
const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;
/// What a sealed secret begins with; it changes with the format.
const SEALED_VERSION: u8 = 1;
const SEAL_INFO: &[u8] = b"cnova-soft-seal-v1";
const KEY_MODE: u32 = 0o600;

/// A private key in a PEM file (PKCS #8, Ed25519 or P-256).
///
/// What it seals is encrypted with a key derived from the private key, so that callers need no special case. **That
/// protects against nobody who can read the disk**: key and sealed bytes lie side by side. It has no registers, no
/// counter and no boot to measure.
pub struct Soft {
    signer: Arc<SoftKey>,
    seal_key: LessSafeKey,
    random: SystemRandom,
}

impl std::fmt::Debug for Soft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Soft({:?})", self.signer.public_key())
    }
}

impl Soft {
    /// Reads the key.
    ///
    /// # Errors
    /// [`RootError::File`] with the path and what to do.
    pub fn open(path: &Path) -> Result<Self, RootError> {
        let pem = read_key_file(path)?;
        Self::from_pem(path, &pem)
    }

    /// Reads the key; makes a P-256 key when there is no such file.
    ///
    /// # Errors
    /// [`RootError::File`] with the path and what to do. A file that is there and cannot be used is never replaced.
    pub fn open_or_create(path: &Path) -> Result<Self, RootError> {
        if !path.try_exists().map_err(|e| file_error("look for", path, &e))? {
            create_key_file(path)?;
        }
        Self::open(path)
    }

    fn from_pem(path: &Path, pem: &[u8]) -> Result<Self, RootError> {
        let not_a_key = || {
            RootError::File(format!(
                "{p} is not a PEM file with a PKCS #8 key (BEGIN PRIVATE KEY) for Ed25519 or P-256; \
                 convert it with: openssl pkcs8 -topk8 -nocrypt -in {p}",
                p = path.display()
            ))
        };
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| not_a_key())?;
        let signer = SoftKey::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| not_a_key())?;
        Ok(Self {
            signer: Arc::new(signer),
            seal_key: seal_key(der.secret_pkcs8_der())?,
            random: SystemRandom::new(),
        })
    }

    fn encrypt(&self, secret: &[u8], associated: Aad<Vec<u8>>) -> Result<Vec<u8>, RootError> {
        if secret.len() > SECRET_BYTES_MAX {
            return Err(too_long(secret.len()));
        }
        let mut nonce = [0; NONCE_LEN];
        let no_random = |_| RootError::File("the system gave no randomness to seal with".into());
        self.random.fill(&mut nonce).map_err(no_random)?;
        let mut out = vec![SEALED_VERSION];
        out.extend_from_slice(&nonce);
        // With room for the tag: growing would leave a copy of the secret behind.
        let mut text = Zeroizing::new(Vec::with_capacity(secret.len() + AES_256_GCM.tag_len()));
        text.extend_from_slice(secret);
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.seal_key
            .seal_in_place_append_tag(nonce, associated, &mut *text)
            .map_err(|_| RootError::File("sealing failed".into()))?;
        out.extend_from_slice(&text);
        Ok(out)
    }

    fn decrypt(&self, sealed: &[u8], associated: Aad<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, RootError> {
        let bad = || RootError::NotOurs {
            reason: "another key or another approver sealed it, or it was changed".into(),
        };
        let text = sealed.strip_prefix(&[SEALED_VERSION]).ok_or_else(bad)?;
        let (nonce, text) = text.split_first_chunk::<NONCE_LEN>().ok_or_else(bad)?;
        if text.len() > SEALED_BYTES_MAX {
            return Err(bad());
        }
        let mut text = Zeroizing::new(text.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.seal_key.open_in_place(nonce, associated, &mut text);
        let length = opened.map_err(|_| bad())?.len();
        text.truncate(length);
        Ok(text)
    }
}

fn file_error(what: &str, path: &Path, source: &io::Error) -> RootError {
    RootError::File(format!(
        "cannot {what} the key {}: {source}; check [identity] in the configuration and the file's owner",
        path.display()
    ))
}

fn read_key_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, RootError> {
    let bad = |e: io::Error| file_error("read", path, &e);
    let file = File::open(path).map_err(bad)?;
    let mode = file.metadata().map_err(bad)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        // Not an error: a node whose key was copied carelessly must still be reachable to be mended.
        tracing::warn!(path = %path.display(), mode = format!("{mode:o}"), "others may read this node's key; chmod 600");
    }
    let mut pem = Zeroizing::new(Vec::new());
    file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut pem).map_err(bad)?;
    Ok(pem)
}

/// Writes a new key beside its place and links it in, so that the file is there whole or not at all, and two that start
/// at once end with the same key.
fn create_key_file(path: &Path) -> Result<(), RootError> {
    let bad = |e: io::Error| file_error("make", path, &e);
    let random = SystemRandom::new();
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
        .map_err(|_| RootError::File("the system gave no randomness for a new key".into()))?;
    let mut suffix = [0_u8; 8];
    let no_random = |_| RootError::File("the system gave no randomness for a file name".into());
    random.fill(&mut suffix).map_err(no_random)?;
    let folder = folder_of(path);
    let temporary = folder.join(format!(".new-key-{:016x}", u64::from_be_bytes(suffix)));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(KEY_MODE)
            .open(&temporary)?;
        file.write_all(&pem_of(der.as_ref()))?;
        file.sync_all()?;
        match fs::hard_link(&temporary, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    };
    let written = write();
    let removed = fs::remove_file(&temporary);
    written.map_err(bad)?;
    removed.map_err(bad)?;
    File::open(&folder).and_then(|f| f.sync_all()).map_err(bad)
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn pem_of(der: &[u8]) -> Zeroizing<Vec<u8>> {
    let text = Zeroizing::new(BASE64.encode(der));
    let mut out = Zeroizing::new(b"-----BEGIN PRIVATE KEY-----\n".to_vec());
    // Lines of 64 characters (RFC 7468 section 2).
    for line in text.as_bytes().chunks(64) {
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out.extend_from_slice(b"-----END PRIVATE KEY-----\n");
    out
}

fn seal_key(private_key: &[u8]) -> Result<LessSafeKey, RootError> {
    let unusable = |_| RootError::File("no sealing key could be derived".into());
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(private_key);
    let okm = prk.expand(&[SEAL_INFO], &AES_256_GCM).map_err(unusable)?;
    Ok(LessSafeKey::new(UnboundKey::from(okm)))
}

fn associated(approver: &PublicKey) -> Aad<Vec<u8>> {
    Aad::from([SEAL_INFO, &approver.bytes].concat())
}

/// For what nobody approves; no approver's key is empty.
fn associated_here() -> Aad<Vec<u8>> {
    Aad::from(SEAL_INFO.to_vec())
}

const fn no_tpm<T>(what: &'static str) -> Result<T, RootError> {
    Err(RootError::NoTpm { what })
}

impl RootOfTrust for Soft {
    fn tier(&self) -> Tier {
        Tier::Soft
    }

    fn device_key(&self) -> Arc<dyn Signer> {
        Arc::clone(&self.signer) as Arc<dyn Signer>
    }

    fn enrolment(&self, _: &[u8]) -> Result<TpmEnrolment, RootError> {
        no_tpm("enrolment by an endorsement key")
    }

    fn activate(&self, _: &Credential) -> Result<Zeroizing<Vec<u8>>, RootError> {
        no_tpm("opening a credential")
    }

    fn quote(&self, _: &Digest, _: &[u8]) -> Result<Quote, RootError> {
        no_tpm("a quote")
    }

    fn attestation_key(&self) -> Result<Vec<u8>, RootError> {
        no_tpm("an attestation key")
    }

    fn read_pcrs(&self, _: &[u8]) -> Result<BTreeMap<u8, Pcr>, RootError> {
        no_tpm("reading registers")
    }

    fn extend(&self, _: u8, _: &Digest) -> Result<(), RootError> {
        no_tpm("extending a register")
    }

    fn seal(&self, secret: &[u8], approver: &PublicKey) -> Result<Vec<u8>, RootError> {
        self.encrypt(secret, associated(approver))
    }

    fn unseal(&self, sealed: &[u8], approver: &PublicKey, _: &BootApproval) -> Result<Zeroizing<Vec<u8>>, RootError> {
        self.decrypt(sealed, associated(approver))
    }

    fn seal_here(&self, secret: &[u8]) -> Result<Vec<u8>, RootError> {
        self.encrypt(secret, associated_here())
    }

    fn unseal_here(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError> {
        self.decrypt(sealed, associated_here())
    }

    /// Always `None`: a file can be put back, so it counts nothing.
    fn counter(&self) -> Result<Option<u64>, RootError> {
        Ok(None)
    }

    fn count_up(&self) -> Result<u64, RootError> {
        no_tpm("a monotonic counter")
    }
}

pub(crate) fn too_long(bytes: usize) -> RootError {
    RootError::Refused {
        command: "seal",
        reason: format!("a secret has at most {SECRET_BYTES_MAX} bytes, not {bytes}; seal a key and encrypt with it"),
    }
}
