//! What a workload of a twin must prove, and whether its envelopes do.

use std::collections::BTreeMap;
use std::fmt;

use cnova_shared::bundle::{Bundle, TrustedBuilder};
use cnova_shared::ids::Digest;
use cnova_shared::wire::v1::{AttestationPolicy, Workload};

use crate::AOT_BUILDER;
use crate::verify::{ProvenanceError, VerifiedProvenance, verify};

/// Envelopes by the digests of their bytes, in the order in which they are tried.
pub type Envelopes<'a> = [(Digest, &'a [u8])];

/// The envelope that proves it, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Which.
    pub envelope: Digest,
    /// What it says.
    pub provenance: VerifiedProvenance,
}

/// An artifact without provenance that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unproven {
    /// The artifact.
    pub subject: Digest,
    /// What it is in its workload.
    pub what: String,
    /// What is wrong with each envelope that might have been its; empty when there is none.
    pub why: Vec<ProvenanceError>,
}

/// At most so many reasons in one message.
const REASONS: usize = 3;

impl fmt::Display for Unproven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, what, why } = self;
        if why.is_empty() {
            return write!(f, "{what} {subject} has no provenance");
        }
        write!(f, "{what} {subject} has no provenance that holds")?;
        for (i, one) in why.iter().take(REASONS).enumerate() {
            write!(f, "{} {one}", if i == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Unproven {}

/// The first envelope that proves an artifact to all policies.
///
/// # Errors
/// [`Unproven`] with what is wrong with every envelope that is not clearly about something else.
pub fn prove(
    what: &str,
    subject: &Digest,
    envelopes: &Envelopes<'_>,
    policies: &[&AttestationPolicy],
    builders: &[TrustedBuilder],
    now_s: Option<u64>,
) -> Result<Proof, Unproven> {
    first(what, subject, envelopes, |bytes| {
        let verified = verify(bytes, policies, builders, now_s, subject)?;
        if verified.builder() == AOT_BUILDER {
            return Err(ProvenanceError::OnlyCompiled);
        }
        Ok(verified)
    })
}

/// The first envelope that proves that the hub's compiler made `compiled` from `source`. The builders that a policy
/// names are those of sources; the level counts for both.
///
/// # Errors
/// As [`prove`].
pub fn prove_compiled(
    compiled: &Digest,
    source: &Digest,
    envelopes: &Envelopes<'_>,
    policies: &[&AttestationPolicy],
    builders: &[TrustedBuilder],
    now_s: Option<u64>,
) -> Result<Proof, Unproven> {
    let by_hub = AttestationPolicy {
        required: true,
        min_level: policies.iter().map(|p| p.min_level).max().unwrap_or_default(),
        builders: vec![AOT_BUILDER.to_owned()],
        files: false,
    };
    first("its compiled form", compiled, envelopes, |bytes| {
        let verified = verify(bytes, &[&by_hub], builders, now_s, compiled)?;
        if verified.materials().contains(source) {
            return Ok(verified);
        }
        Err(ProvenanceError::OtherSource {
            source_digest: *source,
            found: verified.materials().to_vec(),
        })
    })
}

fn first(
    what: &str,
    subject: &Digest,
    envelopes: &Envelopes<'_>,
    check: impl Fn(&[u8]) -> Result<VerifiedProvenance, ProvenanceError>,
) -> Result<Proof, Unproven> {
    let (mut why, mut others) = (Vec::new(), Vec::new());
    for (envelope, bytes) in envelopes {
        match check(bytes) {
            Ok(provenance) => {
                return Ok(Proof {
                    envelope: *envelope,
                    provenance,
                });
            }
            Err(other @ ProvenanceError::OtherSubject { .. }) => others.push(other),
            Err(e) => why.push(e),
        }
    }
    // Envelopes of the workload's other artifacts lie beside; they are worth a word only when nothing else is.
    let why = if why.is_empty() { others } else { why };
    let (subject, what) = (*subject, what.to_owned());
    Err(Unproven { subject, what, why })
}

/// Whether the provenance of a workload is what its own policy and the trust bundle's ask for.
///
/// What was compiled for the node is proved in two steps: the hub's compiler made it from the source, and the source
/// has provenance of its own.
///
/// # Errors
/// [`Unproven`] with the first artifact that is not proved.
pub fn check_workload(
    workload: &Workload,
    envelopes: &BTreeMap<Digest, Vec<u8>>,
    bundle: &Bundle,
    now_s: Option<u64>,
) -> Result<(), Unproven> {
    let policies = AttestationPolicy::in_force([workload.attestation.as_ref(), bundle.attestation.as_ref()]);
    if policies.is_empty() {
        return Ok(());
    }
    let named = workload.provenance.iter();
    let held: Vec<(Digest, &[u8])> = named
        .filter_map(|a| envelopes.get(&a.digest).map(|bytes| (a.digest, bytes.as_slice())))
        .collect();
    let (artifact, source) = (&workload.artifact.digest, &workload.source);
    if artifact != source {
        prove_compiled(artifact, source, &held, &policies, &bundle.builders, now_s)?;
    }
    prove("artifact", source, &held, &policies, &bundle.builders, now_s)?;
    if policies.iter().any(|p| p.files) {
        for file in &workload.files {
            let (what, digest) = (format!("file {}", file.path), &file.artifact.digest);
            prove(&what, digest, &held, &policies, &bundle.builders, now_s)?;
        }
    }
    Ok(())
}
