//! The hub's voice: every message to its tree is signed with a key that the trust bundle names. Which of the configured
//! ones that is follows the bundle: the one that lasts longest.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::{fs, io};

use cnova_attestation::ear::Ear;
use cnova_attestation::reference::{self, ReferenceError, References};
use cnova_shared::bundle::{Role, TrustBundle};
use cnova_shared::envelope::{self, Claims, SealError};
use cnova_shared::ids::NodeId;
use cnova_shared::keys::{Algorithm, KeyId, SignError, Signer as _, SoftKey};
use cnova_shared::topics::Kind;
use cnova_shared::trust_documents::{BootPolicy, Document, DocumentError, FLEET_AUDIENCE, SealDocumentError};
use cnova_shared::twin::{self, TwinError};
use cnova_shared::wire::v1;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;

/// How long a node may still follow a command, in seconds.
pub const COMMAND_SECONDS: u64 = 60;

/// Why the signing key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    /// None is configured.
    #[error("no signing key is configured: name one in [signing] key")]
    NoFiles,
    /// The file cannot be read.
    #[error(
        "cannot read the signing key {path}: {source}; check [signing] key in the configuration and the file's owner"
    )]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// It is no key that can be used.
    #[error("{path} is not a PEM file with a PKCS #8 key (BEGIN PRIVATE KEY) for Ed25519 or P-256")]
    NotAKey {
        /// Which file.
        path: PathBuf,
    },
    /// Nodes would refuse everything that it signs.
    #[error(
        "the trust bundle does not name the signing key {path} (key id {kid}): no node would take its twins. Use the key \
         that the bundle was made for, or have the root keys sign a bundle with this one"
    )]
    NotInBundle {
        /// Which file.
        path: PathBuf,
        /// The key's id.
        kid: KeyId,
    },
    /// It may sign something else.
    #[error(
        "the trust bundle does not let the signing key {path} (key id {kid}) sign twins: it has the roles {roles:?}"
    )]
    WrongRole {
        /// Which file.
        path: PathBuf,
        /// The key's id.
        kid: KeyId,
        /// What it may sign.
        roles: Vec<Role>,
    },
    /// It approves no boots.
    #[error(
        "the trust bundle does not let the key {path} (key id {kid}) approve boots (role boot-policy, ES256), or its time is \
         over: have the root keys sign one that does (cnova trust boot-policy-key)"
    )]
    NotForBoots {
        /// Which file.
        path: PathBuf,
        /// The key's id.
        kid: KeyId,
    },
    /// Its time is over.
    #[error(
        "the signing key {path} (key id {kid}) ran out at {not_after} and it is {now} (seconds since 1970): nodes keep \
         what they run and take nothing new. Have the root keys sign a bundle with a new key"
    )]
    Expired {
        /// Which file.
        path: PathBuf,
        /// The key's id.
        kid: KeyId,
        /// When it ran out.
        not_after: u64,
        /// Now.
        now: u64,
    },
}

/// Why a twin was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignTwinError {
    /// Nodes would refuse it.
    #[error(transparent)]
    Invalid(#[from] TwinError),
    /// It is too large, or the key did not sign.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// A key that nodes believe, read from its file.
#[derive(Debug)]
pub struct SigningKey {
    key: SoftKey,
    not_after: u64,
}

impl SigningKey {
    /// The key's id.
    #[must_use]
    pub fn kid(&self) -> KeyId {
        self.key.public_key().id()
    }
}

/// The signing key and whose it is. The key can be replaced while others sign with it.
#[derive(Debug)]
pub struct Signer {
    files: Vec<PathBuf>,
    approvers: Vec<PathBuf>,
    hub: NodeId,
    now: RwLock<Arc<SigningKey>>,
}

impl Signer {
    /// Reads the key files and takes the key that nodes will believe longest.
    ///
    /// # Errors
    /// [`SigningKeyError`] of the first file when none can be used.
    pub fn load(files: &[PathBuf], hub: NodeId, trust: &TrustBundle, now_s: u64) -> Result<Self, SigningKeyError> {
        let key = pick(files, trust, now_s)?;
        Ok(Self {
            files: files.to_vec(),
            approvers: Vec::new(),
            hub,
            now: RwLock::new(Arc::new(key)),
        })
    }

    /// Has files of keys with which boots are approved, too.
    #[must_use]
    pub fn with_approvers(mut self, files: &[PathBuf]) -> Self {
        self.approvers = files.to_vec();
        self
    }

    /// The keys with which boots may be approved under this bundle, read from their files. One that cannot be used is
    /// named in the log.
    #[must_use]
    pub fn approvers(&self, trust: &TrustBundle, now_s: u64) -> Vec<SoftKey> {
        let usable = |path: &PathBuf| match read_approver(path, trust, now_s) {
            Ok(key) => Some(key),
            Err(error) => {
                tracing::warn!(%error, "no boots are approved with a key");
                None
            }
        };
        self.approvers.iter().filter_map(usable).collect()
    }

    /// Approves the boots of a document with every key that there is for it, and signs it.
    ///
    /// # Errors
    /// [`SealDocumentError`].
    pub fn boot_policy(
        &self,
        policy: &BootPolicy,
        trust: &TrustBundle,
        now_s: u64,
    ) -> Result<Vec<u8>, SealDocumentError> {
        let (mut policy, keys) = (policy.clone(), self.approvers(trust, now_s));
        for boot in &mut policy.boots {
            for key in keys
                .iter()
                .filter(|k| !boot.is_signed_by(k.public_key().id()))
                .collect::<Vec<_>>()
            {
                boot.approve(key).map_err(|e| DocumentError::Invalid(e.to_string()))?;
            }
        }
        policy.boots.retain(|b| !b.signatures.is_empty());
        self.document(&policy, now_s)
    }

    /// Reads the files again and says which key is the one for this bundle.
    ///
    /// # Errors
    /// [`SigningKeyError`] of the first file when none can be used.
    pub fn pick(&self, trust: &TrustBundle, now_s: u64) -> Result<SigningKey, SigningKeyError> {
        pick(&self.files, trust, now_s)
    }

    /// Signs with this key from now on.
    pub fn change(&self, key: SigningKey) {
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
    }

    fn key(&self) -> Arc<SigningKey> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When nodes stop taking what it signs, seconds since 1970.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.key().not_after
    }

    /// The key's id.
    #[must_use]
    pub fn kid(&self) -> KeyId {
        self.key().kid()
    }

    /// Signs a document about trust, for the whole fleet.
    ///
    /// # Errors
    /// [`SealDocumentError`].
    pub fn document<T: Document>(&self, document: &T, now_s: u64) -> Result<Vec<u8>, SealDocumentError> {
        document.seal(&self.hub, now_s, &self.key().key)
    }

    /// Signs reference values, for gateways that appraise.
    ///
    /// # Errors
    /// [`ReferenceError`].
    pub fn references(&self, references: &References, now_s: u64) -> Result<Vec<u8>, ReferenceError> {
        let claims = Claims {
            iss: self.hub.clone(),
            aud: NodeId::new(FLEET_AUDIENCE).unwrap_or_else(|_| self.hub.clone()),
            iat: now_s,
            exp: None,
        };
        reference::seal(references, &claims, &self.key().key)
    }

    /// Signs a twin, after the checks that nodes will make.
    ///
    /// # Errors
    /// [`SignTwinError`].
    pub fn twin(&self, twin: &v1::Twin, now_s: u64) -> Result<Vec<u8>, SignTwinError> {
        twin::check(twin, &twin.node)?;
        Ok(self.seal(Kind::Twin, &twin.node, now_s, None, twin)?)
    }

    /// Signs a command, which nodes follow for [`COMMAND_SECONDS`].
    ///
    /// # Errors
    /// [`SealError`].
    pub fn command(&self, node: &NodeId, command: &v1::Command, now_s: u64) -> Result<Vec<u8>, SealError> {
        self.seal(Kind::Command, node, now_s, Some(now_s + COMMAND_SECONDS), command)
    }

    /// Signs a challenge, which nodes answer for [`COMMAND_SECONDS`].
    ///
    /// # Errors
    /// [`SealError`].
    pub fn challenge(&self, node: &NodeId, challenge: &v1::Challenge, now_s: u64) -> Result<Vec<u8>, SealError> {
        self.seal(Kind::Challenge, node, now_s, Some(now_s + COMMAND_SECONDS), challenge)
    }

    /// Signs an attestation result for its subject, who shows it to others.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn ear(&self, ear: &Ear) -> Result<Vec<u8>, SealError> {
        self.seal(Kind::Ear, &ear.subject, ear.iat, Some(ear.exp), ear)
    }

    /// Signs what only a direct child hears: an acknowledgement or a chunk.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn to_child<T: Serialize>(
        &self,
        kind: Kind,
        child: &NodeId,
        value: &T,
        now_s: u64,
    ) -> Result<Vec<u8>, SealError> {
        self.seal(kind, child, now_s, None, value)
    }

    /// Signs a statement about where something is from.
    ///
    /// # Errors
    /// [`SignError`].
    pub fn provenance(&self, statement: &[u8]) -> Result<Vec<u8>, SignError> {
        cnova_provenance::sign(statement, &[&self.key().key])
    }

    fn seal<T: Serialize>(
        &self,
        kind: Kind,
        aud: &NodeId,
        now_s: u64,
        exp: Option<u64>,
        value: &T,
    ) -> Result<Vec<u8>, SealError> {
        let claims = Claims {
            iss: self.hub.clone(),
            aud: aud.clone(),
            iat: now_s,
            exp,
        };
        envelope::seal(kind, &claims, value, &[], &self.key().key)
    }
}

/// Of the keys in these files the one that the bundle lets sign twins longest.
fn pick(files: &[PathBuf], trust: &TrustBundle, now_s: u64) -> Result<SigningKey, SigningKeyError> {
    let (mut best, mut first_error) = (None::<SigningKey>, None);
    for path in files {
        match read(path, trust, now_s) {
            Ok(key) if best.as_ref().is_none_or(|b| b.not_after < key.not_after) => best = Some(key),
            Ok(_) => {}
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    match (best, first_error) {
        (Some(best), _) => Ok(best),
        (None, Some(error)) => Err(error),
        (None, None) => Err(SigningKeyError::NoFiles),
    }
}

fn read_key(path: &Path) -> Result<SoftKey, SigningKeyError> {
    let pem = fs::read(path).map_err(|source| SigningKeyError::Read {
        path: path.to_owned(),
        source,
    })?;
    let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).ok();
    let key = der.and_then(|der| SoftKey::from_pkcs8(der.secret_pkcs8_der()).ok());
    key.ok_or_else(|| SigningKeyError::NotAKey { path: path.to_owned() })
}

/// A key with which boots may be approved now.
fn read_approver(path: &Path, trust: &TrustBundle, now_s: u64) -> Result<SoftKey, SigningKeyError> {
    let key = read_key(path)?;
    let kid = key.public_key().id();
    let is_usable = trust.key(kid, Role::BootPolicy, now_s).is_some() && key.public_key().algorithm == Algorithm::Es256;
    is_usable.then_some(key).ok_or_else(|| SigningKeyError::NotForBoots {
        path: path.to_owned(),
        kid,
    })
}

fn read(path: &Path, trust: &TrustBundle, now_s: u64) -> Result<SigningKey, SigningKeyError> {
    let path = path.to_owned();
    let key = read_key(&path)?;
    let kid = key.public_key().id();
    // A key may stand in a bundle more than once, for different roles and times.
    let keys = trust.contents().keys.iter();
    let named: Vec<_> = keys.filter(|k| k.key == *key.public_key()).collect();
    if named.is_empty() {
        return Err(SigningKeyError::NotInBundle { path, kid });
    }
    let for_twins = named.iter().filter(|k| k.roles.contains(&Role::Twin));
    let Some(not_after) = for_twins.map(|k| k.not_after).max() else {
        let roles = named.iter().flat_map(|k| k.roles.clone()).collect();
        return Err(SigningKeyError::WrongRole { path, kid, roles });
    };
    if now_s >= not_after {
        return Err(SigningKeyError::Expired {
            path,
            kid,
            not_after,
            now: now_s,
        });
    }
    Ok(SigningKey { key, not_after })
}
