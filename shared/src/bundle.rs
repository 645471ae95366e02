//! The trust bundle: which keys may sign twins, which authorities certify nodes. Signed by the offline root keys
//! (COSE_Sign, RFC 9052 section 4.1, one signature per root), replaced only by a newer one that a threshold of the old
//! roots *and* of the new roots signed (as TUF does).

use coset::{
    CoseSign, CoseSignBuilder, CoseSignatureBuilder, Header, HeaderBuilder, RegisteredLabelWithPrivate,
    TaggedCborSerializable, iana,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use thiserror::Error;

use crate::keys::{Algorithm, KeyId, PublicKey, Signer};
use crate::limits;
use crate::wire::v1::AttestationPolicy;

const AAD: &[u8] = b"cnova/v1/trust-bundle";

/// What a signing key may sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Twins and commands.
    Twin,
    /// Attestation results, reference values, revocations and delegations.
    Attestation,
    /// Boots under which a node's sealed key may be opened (TPM2_PolicyAuthorize). An ES256 key that signs nothing else.
    BootPolicy,
    /// A role of a later version.
    #[serde(other)]
    Unknown,
}

/// A signing key, what it may sign and until when new signatures of it are accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKey {
    /// The key.
    pub key: PublicKey,
    /// What it may sign.
    pub roles: Vec<Role>,
    /// Seconds since 1970; what was accepted before keeps running.
    pub not_after: u64,
}

/// A builder whose provenance is believed, and how far. The level is what the roots say of this builder: nobody claims
/// it for himself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustedBuilder {
    /// The key that it signs with.
    pub key: PublicKey,
    /// Its URI, as it stands in provenance (`runDetails.builder.id`).
    pub builder: String,
    /// SLSA build level, 0 to [`limits::LEVEL_MAX`].
    pub level: u8,
    /// Seconds since 1970; what was accepted before stays accepted.
    pub not_after: u64,
}

/// The contents of a trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// The format's version, 1.
    pub v: u32,
    /// Only goes up.
    pub version: u64,
    /// When it was made, seconds since 1970: no node that holds it believes that it is earlier.
    #[serde(default)]
    pub issued_at: u64,
    /// The root keys that may sign the next bundle.
    pub roots: Vec<PublicKey>,
    /// How many of them must.
    pub threshold: u32,
    /// The hub's keys.
    pub keys: Vec<SigningKey>,
    /// The authorities (X.509, DER) that certify nodes.
    pub authorities: Vec<serde_bytes::ByteBuf>,
    /// Builders whose provenance is believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub builders: Vec<TrustedBuilder>,
    /// What every workload of the tree must prove, whatever its own policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<AttestationPolicy>,
}

impl crate::wire::v1::Versioned for Bundle {
    fn version(&self) -> u32 {
        self.v
    }
}

/// Why a bundle is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BundleError {
    /// Not a trust bundle.
    #[error("not a trust bundle: {0}")]
    Malformed(String),
    /// Too few of the roots signed it.
    #[error("{valid} of the {whose} root keys signed it, {threshold} are needed")]
    TooFewSignatures {
        /// `old` or `new`.
        whose: &'static str,
        /// How many signatures held.
        valid: usize,
        /// How many are needed.
        threshold: u32,
    },
    /// Not newer than the one held.
    #[error("its version {offered} is not above {held}")]
    NotNewer {
        /// The version offered.
        offered: u64,
        /// The version held.
        held: u64,
    },
}

/// A bundle whose signatures held, with the bytes that prove it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    bundle: Bundle,
    bytes: Vec<u8>,
}

struct Signed {
    bundle: Bundle,
    valid: BTreeSet<KeyId>,
}

fn open(bytes: &[u8], extra_roots: &[PublicKey]) -> Result<Signed, BundleError> {
    let bad = |s: String| BundleError::Malformed(s);
    if bytes.len() > limits::BUNDLE_BYTES {
        return Err(bad(format!(
            "{} bytes, at most {} are taken",
            bytes.len(),
            limits::BUNDLE_BYTES
        )));
    }
    let sign = CoseSign::from_tagged_slice(bytes).map_err(|e| bad(e.to_string()))?;
    if sign.clone().to_tagged_vec().map_err(|e| bad(e.to_string()))? != bytes {
        return Err(bad("it is not in the one encoding that we write".into()));
    }
    if sign.unprotected != Header::default() || sign.signatures.len() > limits::BUNDLE_KEYS {
        return Err(bad("it has unprotected headers or too many signatures".into()));
    }
    // The old roots, known beforehand, verify before anything is decoded. The new roots stand in the bundle itself: a
    // bundle is only decoded when an old root signed it, or when it is the one the image was flashed with.
    let mut valid = verify_with(&sign, extra_roots);
    if !extra_roots.is_empty() && valid.is_empty() {
        return Err(BundleError::TooFewSignatures {
            whose: "old",
            valid: 0,
            threshold: 1,
        });
    }
    let payload = sign
        .payload
        .as_deref()
        .ok_or_else(|| bad("it carries no payload".into()))?;
    let bundle: Bundle = crate::wire::decode(payload).map_err(|e| bad(e.to_string()))?;
    check_shape(&bundle)?;
    valid.extend(verify_with(&sign, &bundle.roots));
    Ok(Signed { bundle, valid })
}

fn check_shape(b: &Bundle) -> Result<(), BundleError> {
    let bad = |s: &str| Err(BundleError::Malformed(s.to_owned()));
    if b.v != 1 {
        return bad("its format is of another version");
    }
    let many = |n: usize| n == 0 || n > limits::BUNDLE_KEYS;
    if many(b.roots.len()) || many(b.keys.len()) || many(b.authorities.len()) {
        return bad("it names no keys, no authorities, or too many");
    }
    if b.threshold == 0 || b.threshold as usize > b.roots.len() {
        return bad("its threshold cannot be met by its roots");
    }
    if b.builders.len() > limits::BUNDLE_BUILDERS {
        return bad("it names too many builders");
    }
    let is_named = |t: &TrustedBuilder| {
        (1..=limits::BUILDER_URI_LEN).contains(&t.builder.len())
            && t.builder.bytes().all(|c| c.is_ascii_graphic())
            && t.level <= limits::LEVEL_MAX
    };
    if !b.builders.iter().all(is_named) {
        return bad("a builder in it has no URI or no build level");
    }
    Ok(())
}

fn verify_with(sign: &CoseSign, keys: &[PublicKey]) -> BTreeSet<KeyId> {
    let mut valid = BTreeSet::new();
    for (which, signature) in sign.signatures.iter().enumerate() {
        let header = &signature.protected.header;
        for key in keys {
            let id = key.id();
            let alg = match key.algorithm {
                Algorithm::Ed25519 => iana::Algorithm::EdDSA,
                Algorithm::Es256 => iana::Algorithm::ES256,
            };
            let named = header.key_id == id.0
                && header.alg == Some(RegisteredLabelWithPrivate::Assigned(alg))
                && signature.unprotected == Header::default();
            let held = named
                && sign
                    .verify_signature(which, AAD, |s, m| if key.verifies(m, s) { Ok(()) } else { Err(()) })
                    .is_ok();
            if held {
                valid.insert(id);
            }
        }
    }
    valid
}

fn require(
    valid: &BTreeSet<KeyId>,
    roots: &[PublicKey],
    threshold: u32,
    whose: &'static str,
) -> Result<(), BundleError> {
    let count = roots
        .iter()
        .map(PublicKey::id)
        .collect::<BTreeSet<_>>()
        .intersection(valid)
        .count();
    if count < threshold as usize {
        return Err(BundleError::TooFewSignatures {
            whose,
            valid: count,
            threshold,
        });
    }
    Ok(())
}

impl TrustBundle {
    /// Opens the bundle that the image was flashed with: it vouches for itself.
    ///
    /// # Errors
    /// [`BundleError`] when too few of its own roots signed it.
    pub fn flashed(bytes: &[u8]) -> Result<Self, BundleError> {
        let signed = open(bytes, &[])?;
        require(&signed.valid, &signed.bundle.roots, signed.bundle.threshold, "new")?;
        Ok(Self {
            bundle: signed.bundle,
            bytes: bytes.to_vec(),
        })
    }

    /// Opens a newer bundle: a threshold of the old roots and of the new roots signed it, and its version is higher.
    ///
    /// # Errors
    /// [`BundleError`]; the old bundle then stays in force.
    pub fn succeed(&self, bytes: &[u8]) -> Result<Self, BundleError> {
        let signed = open(bytes, &self.bundle.roots)?;
        require(&signed.valid, &self.bundle.roots, self.bundle.threshold, "old")?;
        require(&signed.valid, &signed.bundle.roots, signed.bundle.threshold, "new")?;
        let (offered, held) = (signed.bundle.version, self.bundle.version);
        if offered <= held {
            return Err(BundleError::NotNewer { offered, held });
        }
        Ok(Self {
            bundle: signed.bundle,
            bytes: bytes.to_vec(),
        })
    }

    /// The key with this id, when it may sign for `role` at `now_s`.
    #[must_use]
    pub fn key(&self, id: KeyId, role: Role, now_s: u64) -> Option<&PublicKey> {
        let mut keys = self.bundle.keys.iter();
        keys.find(|k| k.key.id() == id && k.roles.contains(&role) && now_s < k.not_after)
            .map(|k| &k.key)
    }

    /// The key with this id whatever the time: what was accepted before its key ran out is still genuine.
    #[must_use]
    pub fn key_at_any_time(&self, id: KeyId, role: Role) -> Option<&PublicKey> {
        self.key(id, role, 0)
    }

    /// When nothing new is taken any more from the hub under this bundle: the last of its keys for twins has run out.
    /// Seconds since 1970. So a bundle is fresh for as long as its keys are, and one that is withheld from a node (a freeze
    /// attack) ends with them.
    #[must_use]
    pub fn ends_s(&self) -> u64 {
        let twins = self.bundle.keys.iter().filter(|k| k.roles.contains(&Role::Twin));
        twins.map(|k| k.not_after).max().unwrap_or(0)
    }

    /// The authorities that certify nodes, DER.
    #[must_use]
    pub fn authorities(&self) -> Vec<Vec<u8>> {
        self.bundle.authorities.iter().map(|a| a.to_vec()).collect()
    }

    /// The contents.
    #[must_use]
    pub fn contents(&self) -> &Bundle {
        &self.bundle
    }

    /// The signed bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Signs a bundle with every key given.
///
/// # Errors
/// [`BundleError::Malformed`] when it cannot be encoded or a key did not sign.
pub fn sign(bundle: &Bundle, signers: &[&dyn Signer]) -> Result<Vec<u8>, BundleError> {
    check_shape(bundle)?;
    let bad = |s: String| BundleError::Malformed(s);
    let payload = crate::wire::encode(bundle).map_err(|e| bad(e.to_string()))?;
    let mut builder = CoseSignBuilder::new()
        .protected(
            HeaderBuilder::new()
                .content_type(crate::envelope::CONTENT_TYPE.into())
                .build(),
        )
        .payload(payload);
    for signer in signers {
        let key = signer.public_key();
        let alg = match key.algorithm {
            Algorithm::Ed25519 => iana::Algorithm::EdDSA,
            Algorithm::Es256 => iana::Algorithm::ES256,
        };
        let header = HeaderBuilder::new().algorithm(alg).key_id(key.id().0.to_vec()).build();
        let signature = CoseSignatureBuilder::new().protected(header).build();
        builder = builder
            .try_add_created_signature(signature, AAD, |m| signer.sign(m))
            .map_err(|e| bad(e.to_string()))?;
    }
    builder.build().to_tagged_vec().map_err(|e| bad(e.to_string()))
}
