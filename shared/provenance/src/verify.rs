//! From an envelope to a [`VerifiedProvenance`].

use std::collections::BTreeSet;

use cnova_shared::bundle::TrustedBuilder;
use cnova_shared::ids::Digest;
use cnova_shared::keys::{KeyId, PublicKey};
use cnova_shared::wire::v1::AttestationPolicy;
use thiserror::Error;

use crate::dsse::{Frame, FrameError, Signature};
use crate::statement::{Statement, StatementError};

/// Why an envelope proves nothing of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProvenanceError {
    /// Not an envelope.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// No signature is of a builder of the trust bundle.
    #[error(
        "no builder of the trust bundle signed it (it names {}): have a root sign a bundle with that builder, `cnova trust builder add`",
        named(.keyids)
    )]
    NoKnownKey {
        /// The keys that it names.
        keyids: Vec<String>,
    },
    /// A known key is named, and its signature does not hold.
    #[error("the signature with key {key} does not hold: the envelope was changed")]
    BadSignature {
        /// Which.
        key: KeyId,
    },
    /// Signed, but not provenance.
    #[error(transparent)]
    Statement(#[from] StatementError),
    /// About other bytes.
    #[error("it is about {}, not about {subject}", about(.found))]
    OtherSubject {
        /// What it should be about.
        subject: Digest,
        /// What it is about.
        found: Vec<Digest>,
    },
    /// The key may not speak for the builder that it names.
    #[error("it is signed with key {key}, which the trust bundle knows as {} and not as {claimed}", may.join(", "))]
    NotThisBuilder {
        /// The key.
        key: KeyId,
        /// Who it claims to be.
        claimed: String,
        /// Who it is.
        may: Vec<String>,
    },
    /// The builder's time is over.
    #[error("the key {key} of {builder} ran out at {not_after} and it is {now} (seconds since 1970)")]
    BuilderExpired {
        /// The key.
        key: KeyId,
        /// The builder.
        builder: String,
        /// When it ran out.
        not_after: u64,
        /// Now.
        now: u64,
    },
    /// Not believed far enough.
    #[error("{builder} is believed up to SLSA build level {level}, and level {needed} is asked for")]
    LevelTooLow {
        /// The builder.
        builder: String,
        /// Its level.
        level: u8,
        /// The level asked for.
        needed: u8,
    },
    /// Not a builder that the policy names.
    #[error("{builder} built it, and only {} may", allowed.join(", "))]
    BuilderNotListed {
        /// The builder.
        builder: String,
        /// Those that may.
        allowed: Vec<String>,
    },
    /// The hub's compiler signs whatever it compiles: that says nothing of where the source is from.
    #[error("it only says that the hub compiled it, not who built it")]
    OnlyCompiled,
    /// Compiled from something else.
    #[error("it was compiled from {}, not from {source_digest}", about(.found))]
    OtherSource {
        /// What it should be compiled from.
        source_digest: Digest,
        /// What it was compiled from.
        found: Vec<Digest>,
    },
}

/// At most so many names in one message.
const NAMED: usize = 3;

fn named(keyids: &[String]) -> String {
    let shown = |k: &String| {
        if k.is_empty() {
            "a key without id".to_owned()
        } else {
            format!("key {k}")
        }
    };
    keyids.iter().take(NAMED).map(shown).collect::<Vec<_>>().join(", ")
}

fn about(found: &[Digest]) -> String {
    match found {
        [] => "nothing that has a SHA-256".to_owned(),
        some => {
            let names: Vec<String> = some.iter().take(NAMED).map(ToString::to_string).collect();
            names.join(", ")
        }
    }
}

/// Who made an artifact, from what, and how far that is believed. Only [`verify`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedProvenance {
    builder: String,
    level: u8,
    subject: Digest,
    materials: Vec<Digest>,
    build_type: String,
}

impl VerifiedProvenance {
    /// The builder's URI.
    #[must_use]
    pub fn builder(&self) -> &str {
        &self.builder
    }
    /// Its SLSA build level, by the trust bundle.
    #[must_use]
    pub const fn level(&self) -> u8 {
        self.level
    }
    /// The artifact.
    #[must_use]
    pub const fn subject(&self) -> &Digest {
        &self.subject
    }
    /// What went into it, where that has a SHA-256.
    #[must_use]
    pub fn materials(&self) -> &[Digest] {
        &self.materials
    }
    /// What kind of build it was, a URI.
    #[must_use]
    pub fn build_type(&self) -> &str {
        &self.build_type
    }

    fn meets(&self, policy: &AttestationPolicy) -> Result<(), ProvenanceError> {
        if self.level < policy.min_level {
            return Err(ProvenanceError::LevelTooLow {
                builder: self.builder.clone(),
                level: self.level,
                needed: policy.min_level,
            });
        }
        let listed = policy.builders.is_empty() || policy.builders.iter().any(|p| matches(p, &self.builder));
        if listed {
            return Ok(());
        }
        Err(ProvenanceError::BuilderNotListed {
            builder: self.builder.clone(),
            allowed: policy.builders.clone(),
        })
    }
}

/// Verifies that an envelope is provenance of `subject` that meets every one of `policies`.
///
/// `now_s` is for what is accepted now; without it a builder's key counts whatever the time, because what was accepted
/// before stays accepted.
///
/// # Errors
/// [`ProvenanceError`] with the first thing that is wrong. Nothing of the statement was parsed unless a builder of the
/// trust bundle signed it.
pub fn verify(
    envelope: &[u8],
    policies: &[&AttestationPolicy],
    builders: &[TrustedBuilder],
    now_s: Option<u64>,
    subject: &Digest,
) -> Result<VerifiedProvenance, ProvenanceError> {
    let frame = Frame::read(envelope)?;
    let signers = signers(&frame, builders)?;
    let statement = Statement::read(frame.payload())?;
    if !statement.subjects.contains(subject) {
        return Err(ProvenanceError::OtherSubject {
            subject: *subject,
            found: statement.subjects,
        });
    }
    let signed: Vec<&TrustedBuilder> = builders.iter().filter(|b| signers.contains(&b.key)).collect();
    let builder = believed(&signed, &statement.builder, now_s)?;
    let verified = VerifiedProvenance {
        builder: statement.builder,
        level: builder.level,
        subject: *subject,
        materials: statement.materials,
        build_type: statement.build_type,
    };
    policies.iter().try_for_each(|p| verified.meets(p))?;
    Ok(verified)
}

/// The keys of builders whose signatures hold; at least one.
fn signers<'k>(frame: &Frame, builders: &'k [TrustedBuilder]) -> Result<BTreeSet<&'k PublicKey>, ProvenanceError> {
    let known: BTreeSet<&PublicKey> = builders.iter().map(|b| &b.key).collect();
    let mut held = BTreeSet::new();
    let mut broken = None;
    for signature in frame.signatures() {
        let by_name: Vec<&PublicKey> = known.iter().filter(|k| names(signature, k)).copied().collect();
        // The id is only a hint, and other tools have ids of their own.
        let candidates = if by_name.is_empty() {
            known.iter().copied().collect()
        } else {
            by_name.clone()
        };
        match candidates.into_iter().find(|k| frame.holds(signature, k)) {
            Some(key) => {
                held.insert(key);
            }
            None => broken = broken.or(by_name.first().map(|k| k.id())),
        }
    }
    match broken {
        _ if !held.is_empty() => Ok(held),
        Some(key) => Err(ProvenanceError::BadSignature { key }),
        None => Err(ProvenanceError::NoKnownKey {
            keyids: frame.signatures().iter().map(|s| s.keyid.clone()).collect(),
        }),
    }
}

fn names(signature: &Signature, key: &PublicKey) -> bool {
    signature.keyid == key.id().to_string()
}

/// The entry of the builder that the statement names; of several the one that is believed furthest.
fn believed<'b>(
    signed: &[&'b TrustedBuilder],
    claimed: &str,
    now_s: Option<u64>,
) -> Result<&'b TrustedBuilder, ProvenanceError> {
    let entries: Vec<&TrustedBuilder> = signed.iter().filter(|b| b.builder == claimed).copied().collect();
    let in_force = |b: &&&TrustedBuilder| now_s.is_none_or(|now| now < b.not_after);
    match entries.iter().filter(in_force).max_by_key(|b| b.level) {
        Some(best) => Ok(best),
        None => Err(match (entries.iter().max_by_key(|b| b.not_after), signed) {
            (Some(last), _) => ProvenanceError::BuilderExpired {
                key: last.key.id(),
                builder: last.builder.clone(),
                not_after: last.not_after,
                now: now_s.unwrap_or_default(),
            },
            (None, all) => ProvenanceError::NotThisBuilder {
                key: all.first().map_or(KeyId([0; 8]), |b| b.key.id()),
                claimed: cnova_shared::limits::clip_to(claimed, cnova_shared::limits::BUILDER_URI_LEN),
                may: all.iter().map(|b| b.builder.clone()).collect(),
            },
        }),
    }
}

/// Whether a URI is one that a pattern means: `*` stands for any text, everything else for itself.
#[must_use]
pub fn matches(pattern: &str, uri: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(rest) = parts.next().and_then(|head| uri.strip_prefix(head)) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((tail, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    let mut rest = rest;
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(tail)
}
