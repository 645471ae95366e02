//! Who this node is: its certificate, its key and whom it trusts, read from three files.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use cnova_root_of_trust::{RootError, RootOfTrust};
use cnova_shared::bundle::{BundleError, TrustBundle};
use cnova_shared::certificate::{self, CertificateError, Tier};
use cnova_shared::envelope::{self, Claims, Introduction, SealError};
use cnova_shared::ids::{NodeId, SitePath};
use cnova_shared::keys::{SignError, Signer, SoftKey};
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::EnrolIssued;
use rustls::sign::SigningKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::Serialize;
use thiserror::Error;

use crate::certified::{self, Certified};
use crate::session::Session;

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
    /// What holds the key does not do its part.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The configuration wants a TPM, and the program was built without.
    #[error("[identity] root = \"tpm\": this program was built without support for TPMs (feature `tpm`)")]
    NoTpmSupport,
    /// The configuration names no key file.
    #[error("[identity] names no key: write key = \"/etc/cnova/node.key\", or root = \"tpm\"")]
    NoKeyFile,
    /// The trust bundle does not hold.
    #[error("the trust bundle {path} is not accepted: {source}; flash the one that the hub's root keys signed")]
    Trust {
        /// Where.
        path: PathBuf,
        /// What was wrong.
        source: BundleError,
    },
}

/// A node's key, as what signs messages and as what signs handshakes. It may lie in a TPM, so it is never read.
#[derive(Clone)]
pub struct NodeKey {
    /// Signs messages.
    pub signer: Arc<dyn Signer>,
    /// Signs TLS handshakes; the same key.
    pub tls: Arc<dyn SigningKey>,
    /// The TPM that holds it, if one does.
    pub tpm: Option<Arc<dyn RootOfTrust>>,
}

impl NodeKey {
    /// The device key of a root of trust.
    #[must_use]
    pub fn of(root: &Arc<dyn RootOfTrust>) -> Self {
        let signer = root.device_key();
        Self {
            tls: cnova_root_of_trust::tls_signing_key(signer.clone()),
            tpm: (root.tier() == Tier::Tpm).then(|| root.clone()),
            signer,
        }
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({:?})", self.signer.public_key())
    }
}

/// A node's name, certificate, key and trust.
#[derive(Debug)]
pub struct Identity {
    node: NodeId,
    site: Option<SitePath>,
    key: NodeKey,
    /// With a TPM: what it says is signed by this key, and the TPM vouches for it.
    session: Option<Session>,
    certified: Arc<Certified>,
    trust: TrustBundle,
    warnings: Vec<String>,
}

impl Identity {
    /// Reads and checks the three files: certificates (PEM, the node's own first), key (PEM, PKCS #8), trust bundle.
    ///
    /// # Errors
    /// [`IdentityError`] with the file and what to do.
    pub fn load(certificate_pem: &Path, key_pem: &Path, trust_bundle: &Path) -> Result<Self, IdentityError> {
        let mut warnings = Vec::new();
        let key = read_key(key_pem, &mut warnings)?;
        let mut identity = Self::with_key(certificate_pem, key, key_pem, read_trust(trust_bundle)?)?;
        identity.warnings = warnings;
        Ok(identity)
    }

    /// Reads the certificates of a node whose key is at hand, such as one in a TPM. `key_name` is what the key is called
    /// when it does not fit.
    ///
    /// # Errors
    /// [`IdentityError`] with the file and what to do.
    pub fn with_key(
        certificate_pem: &Path,
        key: NodeKey,
        key_name: &Path,
        trust: TrustBundle,
    ) -> Result<Self, IdentityError> {
        let (chain, renew_s) = certified::read(certificate_pem)?;
        let bad = |source| IdentityError::Certificate {
            path: certificate_pem.to_owned(),
            source,
        };
        let leaf = chain.first().map(Vec::as_slice).unwrap_or_default();
        let named = certificate::read(leaf).map_err(bad)?;
        if *key.signer.public_key() != named.key {
            let (key, certificate) = (key_name.to_owned(), certificate_pem.to_owned());
            return Err(IdentityError::KeyOfAnother {
                key,
                certificate,
                node: named.node,
            });
        }
        let certified = Certified::new(chain, renew_s, key.tls.clone()).map_err(bad)?;
        Ok(Self {
            node: named.node,
            site: named.site,
            session: session_for(&key),
            key,
            certified: Arc::new(certified),
            trust,
            warnings: Vec::new(),
        })
    }

    /// A node that knows its name and has no certificate yet. It can do everything but speak to others.
    #[must_use]
    pub fn uncertified(node: NodeId, site: SitePath, key: NodeKey, trust: TrustBundle) -> Self {
        Self {
            node,
            site: Some(site),
            certified: Arc::new(Certified::none(key.tls.clone())),
            session: session_for(&key),
            key,
            trust,
            warnings: Vec::new(),
        }
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

    /// The certificate chain in use, DER, the node's own first; empty while it has none.
    #[must_use]
    pub fn chain(&self) -> Vec<Vec<u8>> {
        self.certified.chain()
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// The TPM that holds the node's key, if one does.
    #[must_use]
    pub fn tpm(&self) -> Option<&Arc<dyn RootOfTrust>> {
        self.key.tpm.as_ref()
    }

    /// The key that signs what the node says: with a TPM one of this start, else the node's own.
    #[must_use]
    pub fn speaker(&self) -> Arc<dyn Signer> {
        match &self.session {
            Some(session) => session.signer(),
            None => self.key.signer.clone(),
        }
    }

    /// Lets the TPM vouch for the key of this start; until it has, the node cannot introduce itself. Nothing to do
    /// without a TPM. Blocks for as long as the TPM takes.
    ///
    /// # Errors
    /// [`SignError`]; it may be tried again.
    pub fn endorse(&self) -> Result<(), SignError> {
        match &self.session {
            Some(session) => session.endorse(&self.node, &*self.key.signer),
            None => Ok(()),
        }
    }

    /// [`Identity::endorse`] in a thread of its own, until it has succeeded.
    pub fn endorse_in_time(self: &Arc<Self>) {
        /// Until the TPM has vouched for the key of this start it is asked this often.
        const AGAIN: Duration = Duration::from_secs(5);
        if self.session.is_none() {
            return;
        }
        let identity = self.clone();
        thread::spawn(move || {
            let mut told = None;
            while let Err(error) = identity.endorse() {
                if told.as_ref() != Some(&error.reason) {
                    tracing::warn!(%error, "the node cannot introduce itself yet");
                    told = Some(error.reason);
                }
                thread::sleep(AGAIN);
            }
        });
    }

    /// The key of its certificate, as a signer.
    #[must_use]
    pub fn signer(&self) -> Arc<dyn Signer> {
        self.key.signer.clone()
    }

    /// The trust bundle that the node was flashed with.
    #[must_use]
    pub fn trust(&self) -> &TrustBundle {
        &self.trust
    }

    /// When the certificate begins, seconds since 1970: the earliest time that it can be. 0 while there is none.
    #[must_use]
    pub fn not_before_s(&self) -> u64 {
        self.certified.validity().0
    }

    /// When the certificate ends, seconds since 1970. 0 while there is none.
    #[must_use]
    pub fn not_after_s(&self) -> u64 {
        self.certified.validity().1
    }

    /// When the next certificate is to be asked for, seconds since 1970; nothing where this one was issued by hand.
    #[must_use]
    pub fn renew_s(&self) -> Option<u64> {
        self.certified.renew_s()
    }

    /// What a person should mend although it works, such as a key that everybody can read.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The certificate in use and its key, for rustls: whoever holds it shows at each handshake what is in use then.
    #[must_use]
    pub fn certified(&self) -> Arc<Certified> {
        self.certified.clone()
    }

    /// Uses what was issued from now on, in handshakes and introductions. It must be on disk ([`crate::store_issued`]).
    ///
    /// # Errors
    /// [`CertificateError`] when it is not this node's; the old one stays in use.
    pub fn install(&self, issued: &EnrolIssued) -> Result<(), CertificateError> {
        let chain: Vec<Vec<u8>> = issued.chain.iter().map(|c| c.to_vec()).collect();
        let named = certificate::read(chain.first().map(Vec::as_slice).unwrap_or_default())?;
        if named.node != self.node || named.key != *self.key.signer.public_key() {
            let reason = format!("it is for {} or about another key", named.node);
            return Err(CertificateError::Malformed(reason));
        }
        // Twin and hello name the site; it does not change while the node runs.
        if named.site != self.site {
            let said = |site: &Option<SitePath>| site.as_ref().map_or_else(|| "nowhere".into(), ToString::to_string);
            let (certified, mine) = (said(&named.site), said(&self.site));
            let reason = format!("it is for {certified}, and this node is at {mine}: correct site, or what admits it");
            return Err(CertificateError::Malformed(reason));
        }
        self.certified.replace(chain, Some(issued.renew_s))
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
        let x5chain = if introduce { self.chain() } else { Vec::new() };
        let payload = cnova_shared::wire::encode(value).map_err(|e| SealError::Encode {
            kind: kind.as_str(),
            detail: e.to_string(),
        })?;
        let endorsement = match &self.session {
            Some(session) if introduce => Some(session.endorsement()?),
            _ => None,
        };
        let introduction = Introduction {
            chain: &x5chain,
            endorsement,
        };
        envelope::seal_payload(kind, &claims, payload, introduction, &*self.speaker())
    }
}

/// Reads the trust bundle that the node was flashed with.
///
/// # Errors
/// [`IdentityError`] with the file and what to do.
pub fn read_trust(path: &Path) -> Result<TrustBundle, IdentityError> {
    TrustBundle::flashed(&read(path, "the trust bundle")?).map_err(|source| IdentityError::Trust {
        path: path.to_owned(),
        source,
    })
}

pub(crate) fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, IdentityError> {
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

fn read_key(path: &Path, warnings: &mut Vec<String>) -> Result<NodeKey, IdentityError> {
    let pem = read(path, "the key")?;
    let readable_by_all = fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o004 != 0);
    if readable_by_all {
        warnings.push(format!(
            "everybody on this machine can read the key {0}: chmod o-rwx {0}",
            path.display()
        ));
    }
    let bad = || IdentityError::NotAKey { path: path.to_owned() };
    let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| bad())?;
    let signer = SoftKey::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| bad())?;
    let tls = rustls::crypto::ring::sign::any_supported_type(&PrivateKeyDer::Pkcs8(der)).map_err(|_| bad())?;
    Ok(NodeKey {
        signer: Arc::new(signer),
        tls,
        tpm: None,
    })
}

fn session_for(key: &NodeKey) -> Option<Session> {
    key.tpm.as_ref().and_then(|_| Session::new())
}
