//! From bytes to a [`VerifiedTwin`]: the only way to one is a signature of a hub key in the trust bundle.

use std::collections::BTreeSet;

use thiserror::Error;

use crate::bundle::{Role, TrustBundle};
use crate::envelope::{EnvelopeError, Untrusted, VerifiedBytes};
use crate::ids::{Digest, NodeId};
use crate::keys::{KeyId, PublicKey};
use crate::limits;
use crate::topics::Kind;
use crate::wire::v1::{self, SecretTarget};

/// The order of twins: it only goes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version {
    /// Goes up when the hub starts anew.
    pub epoch: u64,
    /// Goes up with every change.
    pub generation: u64,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.epoch, self.generation)
    }
}

/// Why a twin was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TwinError {
    /// The envelope did not hold.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// It is of another format version.
    #[error("its format has version {0}, this node reads 1: update the node first")]
    UnknownVersion(u32),
    /// It breaks a rule of twins.
    #[error("signed, but not a valid twin: {0}")]
    Invalid(String),
}

impl TwinError {
    /// A stable word for reports and metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            TwinError::Envelope(e) => match e {
                EnvelopeError::TooLarge { .. } => "too-large",
                EnvelopeError::Malformed(_) => "malformed",
                EnvelopeError::UnknownKey { .. } => "unknown-key",
                EnvelopeError::KeyExpired { .. } => "key-expired",
                EnvelopeError::BadSignature { .. } | EnvelopeError::BadEndorsement { .. } => "bad-signature",
                EnvelopeError::WrongAudience { .. } => "wrong-node",
                EnvelopeError::Expired { .. } => "expired",
                EnvelopeError::BadPayload { .. } => "malformed",
                EnvelopeError::UnknownVersion { .. } => "unknown-version",
            },
            TwinError::UnknownVersion(_) => "unknown-version",
            TwinError::Invalid(_) => "invalid",
        }
    }
}

/// A twin that a hub key of the trust bundle signed for the node it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedTwin {
    twin: v1::Twin,
    digest: Digest,
    iat: u64,
    exp: Option<u64>,
    kid: KeyId,
    bytes: Vec<u8>,
}

impl VerifiedTwin {
    /// Verifies a twin that has just come; its key must still be in force at `now_s`.
    ///
    /// # Errors
    /// [`TwinError`]; nothing of the payload was decoded unless the signature held.
    pub fn open(bytes: &[u8], trust: &TrustBundle, now_s: u64) -> Result<Self, TwinError> {
        let opened = Self::open_with(bytes, |kid| trust.key(kid, Role::Twin, now_s));
        match opened {
            Err(TwinError::Envelope(EnvelopeError::UnknownKey { iss, kid }))
                if trust.key(kid, Role::Twin, now_s).is_none() && trust.key_at_any_time(kid, Role::Twin).is_some() =>
            {
                Err(EnvelopeError::KeyExpired { iss, kid }.into())
            }
            Ok(Self { exp: Some(exp), .. }) if exp <= now_s => Err(EnvelopeError::Expired { exp, now: now_s }.into()),
            other => other,
        }
    }

    /// Verifies a twin that was accepted before and read back from disk: its key may have run out since.
    ///
    /// # Errors
    /// [`TwinError`]; the file was changed, or the key was taken out of the bundle.
    pub fn reopen(bytes: &[u8], trust: &TrustBundle) -> Result<Self, TwinError> {
        Self::open_with(bytes, |kid| trust.key_at_any_time(kid, Role::Twin))
    }

    pub(crate) fn open_with<'k>(
        bytes: &[u8],
        key: impl FnOnce(KeyId) -> Option<&'k PublicKey>,
    ) -> Result<Self, TwinError> {
        if bytes.len() > limits::TWIN_BYTES {
            return Err(EnvelopeError::TooLarge {
                len: bytes.len(),
                max: limits::TWIN_BYTES,
            }
            .into());
        }
        let untrusted = Untrusted::read(bytes)?;
        let Some(key) = key(untrusted.kid) else {
            return Err(EnvelopeError::UnknownKey {
                iss: untrusted.claims.iss,
                kid: untrusted.kid,
            }
            .into());
        };
        let kid = untrusted.kid;
        let verified = untrusted.verify(Kind::Twin, key)?;
        Self::decode(verified, kid)
    }

    fn decode(verified: VerifiedBytes, kid: KeyId) -> Result<Self, TwinError> {
        let twin = verified.decode::<v1::Twin>().map_err(|e| match e {
            EnvelopeError::UnknownVersion { version, .. } => TwinError::UnknownVersion(version),
            other => other.into(),
        })?;
        check(twin.value(), &twin.claims().aud)?;
        Ok(Self {
            digest: twin.digest(),
            iat: twin.claims().iat,
            exp: twin.claims().exp,
            kid,
            bytes: twin.bytes().to_vec(),
            twin: twin.into_value(),
        })
    }

    /// The desired state.
    #[must_use]
    pub fn twin(&self) -> &v1::Twin {
        &self.twin
    }
    /// Its place in the order of twins.
    #[must_use]
    pub fn version(&self) -> Version {
        Version {
            epoch: self.twin.epoch,
            generation: self.twin.generation,
        }
    }
    /// SHA-256 of its payload.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }
    /// When it was signed, seconds since 1970.
    #[must_use]
    pub fn iat(&self) -> u64 {
        self.iat
    }
    /// The key that signed it.
    #[must_use]
    pub fn kid(&self) -> KeyId {
        self.kid
    }
    /// The signed bytes, as they came.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The rules that a decoded twin must follow; the hub applies them before it signs.
///
/// # Errors
/// [`TwinError`] with the first rule that was broken.
pub fn check(twin: &v1::Twin, aud: &NodeId) -> Result<(), TwinError> {
    let bad = |s: String| Err(TwinError::Invalid(s));
    if twin.v != v1::VERSION {
        return Err(TwinError::UnknownVersion(twin.v));
    }
    if twin.node != *aud {
        return bad(format!("it names node {}, its envelope {aud}", twin.node));
    }
    if twin.generation == 0 || twin.epoch == 0 {
        return bad("epoch and generation begin at 1".into());
    }
    if twin.workloads.len() > limits::WORKLOADS_PER_TWIN {
        return bad(format!(
            "{} workloads, at most {}",
            twin.workloads.len(),
            limits::WORKLOADS_PER_TWIN
        ));
    }
    let mut seen = BTreeSet::new();
    for w in &twin.workloads {
        if !seen.insert(&w.id) {
            return bad(format!("workload {} stands in it twice", w.id));
        }
        let artifacts = std::iter::once(&w.artifact).chain(w.files.iter().map(|f| &f.artifact));
        for a in artifacts {
            if a.size == 0 || a.size > limits::ARTIFACT_BYTES {
                return bad(format!(
                    "workload {}: artifact {} of {} bytes",
                    w.id,
                    a.digest.short(),
                    a.size
                ));
            }
        }
        if w.provenance.len() > limits::PROVENANCE_PER_WORKLOAD {
            return bad(format!("workload {}: {} provenance files", w.id, w.provenance.len()));
        }
        for p in &w.provenance {
            if p.size == 0 || p.size > limits::PROVENANCE_BYTES as u64 {
                return bad(format!(
                    "workload {}: provenance {} of {} bytes",
                    w.id,
                    p.digest.short(),
                    p.size
                ));
            }
        }
        if let Some(path) = w.files.iter().map(|f| &f.path).find(|path| !is_plain(path)) {
            return bad(format!(
                "workload {}: file path {path:?} is not absolute and plain",
                w.id
            ));
        }
        check_uses(w)?;
    }
    if let Some(system) = &twin.system {
        check_system(system)?;
    }
    check_sealed(&twin.secrets)
}

fn check_system(system: &v1::System) -> Result<(), TwinError> {
    let bad = |s: String| Err(TwinError::Invalid(format!("system {}: {s}", system.name)));
    let (size, within_s) = (system.bundle.size, system.health.within_s);
    if size == 0 || size > limits::ARTIFACT_BYTES {
        return bad(format!("a bundle of {size} bytes"));
    }
    if system.tries == 0 || system.tries > limits::SYSTEM_TRIES {
        return bad(format!("{} tries, 1 to {}", system.tries, limits::SYSTEM_TRIES));
    }
    if within_s == 0 || within_s > limits::SYSTEM_HEALTHY_WITHIN_S {
        let most = limits::SYSTEM_HEALTHY_WITHIN_S;
        return bad(format!("healthy within {within_s} s, 1 to {most}"));
    }
    let (workloads, words) = (system.health.workloads.len(), system.version.len());
    if workloads > limits::SYSTEM_WORKLOADS || words > limits::SYSTEM_WORD_LEN {
        return bad(format!("{workloads} workloads, a version of {words} bytes"));
    }
    Ok(())
}

/// Absolute, and nothing in it leads elsewhere.
fn is_plain(path: &str) -> bool {
    path.starts_with('/') && !path.split('/').skip(1).any(|s| matches!(s, "" | "." | ".."))
}

/// The secrets that a workload is given.
fn check_uses(w: &v1::Workload) -> Result<(), TwinError> {
    let bad = |s: String| Err(TwinError::Invalid(format!("workload {}: {s}", w.id)));
    if w.secrets.len() > limits::SECRETS_PER_WORKLOAD {
        return bad(format!("{} secrets", w.secrets.len()));
    }
    let mut seen = BTreeSet::new();
    for given in &w.secrets {
        let is_fit = match &given.target {
            SecretTarget::Env(name) => !name.is_empty() && !name.contains(['=', '\0']) && !w.env.contains_key(name),
            SecretTarget::File(path) => {
                is_plain(path) && !path.contains('\0') && !w.files.iter().any(|f| f.path == *path)
            }
        };
        if !is_fit || !seen.insert(&given.target) {
            return bad(format!("secret {} cannot be given as {:?}", given.name, given.target));
        }
    }
    Ok(())
}

fn check_sealed(secrets: &[v1::SealedSecret]) -> Result<(), TwinError> {
    let bad = |s: String| Err(TwinError::Invalid(s));
    if secrets.len() > limits::SECRETS_PER_TWIN {
        return bad(format!(
            "{} secrets, at most {}",
            secrets.len(),
            limits::SECRETS_PER_TWIN
        ));
    }
    let mut seen = BTreeSet::new();
    let mut total = 0;
    for sealed in secrets {
        let len = sealed.blob.len();
        total += len;
        if len > limits::SECRET_BYTES + limits::SEALED_SECRET_EXTRA {
            return bad(format!("secret {} of {len} bytes", sealed.name));
        }
        if !seen.insert((&sealed.name, sealed.version)) {
            return bad(format!("secret {} stands in it twice", sealed.name));
        }
    }
    if total > limits::SECRETS_BYTES_PER_TWIN {
        let most = limits::SECRETS_BYTES_PER_TWIN;
        return bad(format!("{total} bytes of secrets, at most {most}"));
    }
    Ok(())
}
