//! Looking into what the store holds, beside the loop: provenance before a start, and artifacts that a runtime refused.

use cnova_agent_core::ProvenanceCheck;
use cnova_shared::bundle::TrustBundle;

use super::*;
use crate::proof::{self, Checked};

impl EventLoop {
    /// Reads and judges the provenance of a version by the trust bundle in force.
    pub(super) fn check_provenance(&self, check: ProvenanceCheck, trust: TrustBundle, now_s: u64) {
        let artifacts = self.parts.artifacts.clone();
        self.beside(move || {
            Some(match proof::check(&artifacts, &trust, &check, now_s) {
                Checked::Judged(result) => Done::Event(Event::ProvenanceChecked {
                    spec: check.spec,
                    result,
                }),
                Checked::Damaged(digests) => Done::Damaged(digests),
            })
        });
    }

    /// A runtime refused what it was given: perhaps the flash did not keep it.
    pub(super) fn look_at(&self, digests: Vec<Digest>) {
        let artifacts = self.parts.artifacts.clone();
        self.beside(move || {
            let is_damaged = |digest: &Digest| {
                !artifacts.has(digest)
                    || (artifacts.verify(digest).is_ok_and(|sound| !sound) && artifacts.remove(digest).is_ok())
            };
            let damaged: Vec<Digest> = digests.into_iter().filter(is_damaged).collect();
            (!damaged.is_empty()).then_some(Done::Damaged(damaged))
        });
    }

    pub(super) fn raise_damaged(&mut self, digests: &[Digest]) {
        let which: Vec<String> = digests.iter().map(Digest::short).collect();
        let detail = format!(
            "damaged or missing on this disk and fetched again: {}",
            which.join(", ")
        );
        tracing::error!(alarm = "artifact-damaged", "{detail}");
        self.set_alarm(Alarm {
            code: "artifact-damaged".into(),
            detail,
        });
    }
}
