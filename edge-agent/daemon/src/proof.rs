//! The provenance of a version, read from the store and checked.

use std::collections::BTreeMap;

use cnova_agent_core::{ProvenanceCheck, Unproved};
use cnova_shared::bundle::TrustBundle;
use cnova_shared::ids::Digest;
use cnova_shared::limits;
use cnova_store::Artifacts;

/// What a check found.
#[derive(Debug)]
pub(crate) enum Checked {
    /// Whether the provenance is what is asked for.
    Judged(Result<(), Unproved>),
    /// Envelopes that were not on the disk as they had been stored, and were removed.
    Damaged(Vec<Digest>),
}

/// Checks a version against its own policy and the bundle's. `now_s` is the newest time that is known, seconds since
/// 1970. Blocks on the disk.
pub(crate) fn check(artifacts: &Artifacts, trust: &TrustBundle, wanted: &ProvenanceCheck, now_s: u64) -> Checked {
    let mut envelopes = BTreeMap::new();
    let mut damaged = Vec::new();
    for digest in wanted.workload.provenance.iter().map(|p| p.digest) {
        match artifacts.read(&digest, 0, limits::PROVENANCE_BYTES as u64) {
            Ok((bytes, _)) if Digest::of(&bytes) == digest => {
                envelopes.insert(digest, bytes);
            }
            // It is fetched again, once its place is free.
            _ if !artifacts.has(&digest) || artifacts.remove(&digest).is_ok() => damaged.push(digest),
            _ => {
                let path = artifacts.path(&digest);
                let why = format!(
                    "the provenance file {} is damaged and cannot be removed",
                    path.display()
                );
                return Checked::Judged(Err(Unproved { why }));
            }
        }
    }
    if !damaged.is_empty() {
        return Checked::Damaged(damaged);
    }
    // What was accepted stays accepted when a builder's key runs out.
    let now_s = (!wanted.was_accepted).then_some(now_s);
    let held = cnova_provenance::check_workload(&wanted.workload, &envelopes, trust.contents(), now_s);
    Checked::Judged(held.map_err(|unproven| Unproved {
        why: unproven.to_string(),
    }))
}
