//! Whether a version has proved where it comes from, as far as that outlives the check.

use cnova_shared::ids::Digest;
use cnova_shared::wire::v1::{OnBadUpdate, Workload};

use super::{Machine, spec_digest};

impl Machine {
    /// The versions that may be started: what is desired, and the last good one where that is to run instead.
    pub fn versions(&self) -> impl Iterator<Item = (&Workload, Digest)> {
        let desired = self.desired.as_ref().map(|d| (&d.workload, d.spec));
        let target = self.target().zip(self.target_spec());
        let other = target.filter(|(_, spec)| desired.is_none_or(|(_, d)| d != *spec));
        desired.into_iter().chain(other)
    }

    /// Whether this version's provenance was accepted before: a builder's key that ran out since does not matter then.
    #[must_use]
    pub fn was_proved(&self, spec: Digest) -> bool {
        let is_good = || {
            self.row
                .good
                .as_deref()
                .is_some_and(|g| spec_digest(&g.workload) == spec)
        };
        self.row.proved == Some(spec) || is_good()
    }

    /// A version's provenance holds. It is written with the next start.
    pub(crate) fn take_proof(&mut self, spec: Digest) {
        if self.desired.as_ref().is_some_and(|d| d.spec == spec) {
            self.unproven = None;
        }
        if self.target_spec() == Some(spec) {
            self.row.proved = Some(spec);
        }
    }

    /// A version's provenance does not hold; until it does, the last good version runs.
    pub(crate) fn refuse_proof(&mut self, spec: Digest, why: &str) {
        if self.desired.as_ref().is_some_and(|d| d.spec == spec) {
            let had_returned = self.has_returned();
            self.unproven = Some(why.to_owned());
            // The artifacts of the version before may have to be fetched again.
            self.is_changed |= self.has_returned() && !had_returned;
        }
    }

    /// Whether the last good version runs because the desired one is not proved. What runs is not ended for it.
    pub(super) fn is_held_back(&self) -> bool {
        let Some(desired) = &self.desired else { return false };
        let good = self.row.good.as_deref().map(|g| spec_digest(&g.workload));
        self.unproven.is_some()
            && desired.workload.on_bad_update == OnBadUpdate::Return
            && (!self.is_live() || good == Some(self.row.spec))
    }
}
