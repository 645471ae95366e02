//! Health, and what follows from it: an instance that stays unwell is ended, a version that never gets well makes room
//! for the last good one.

use cnova_shared::wire::v1::{Health, OnBadUpdate};

use cnova_shared::twin::Version;

use crate::ledger::Good;

use super::{Decision, Machine, Observed, Phase, spec_digest};

/// A version has proved good after saying for this long, milliseconds, that it is well.
pub const GOOD_AFTER_MS: u64 = 5_000;

impl Machine {
    /// Whether the desired version did not become healthy, or is not proved, and the one before is to run.
    #[must_use]
    pub fn has_returned(&self) -> bool {
        let Some(desired) = &self.desired else { return false };
        let good = self.row.good.as_deref().map(|g| spec_digest(&g.workload));
        let is_passed_over = self.row.bad == Some(desired.spec) || self.is_held_back();
        is_passed_over && good.is_some_and(|g| g != desired.spec)
    }

    /// The runtime says how its workload is.
    pub fn health(&mut self, healthy: bool, detail: &str, mono_ms: u64) {
        // It may say so before the twin is here that wants it; the answer is not given twice.
        let limits = self.health_limits().unwrap_or_default();
        let Observed::Running(r) = &mut self.observed else {
            return;
        };
        if healthy {
            r.healthy_since.get_or_insert(mono_ms);
            r.bad_answers = 0;
            r.unwell.clear();
            return;
        }
        let was_ever_well = r.healthy_since.take().is_some() || r.bad_answers > 0;
        r.unwell = if detail.is_empty() {
            "it does not say why".into()
        } else {
            detail.to_owned()
        };
        if was_ever_well {
            r.bad_answers += 1;
            if limits.failures > 0 && r.bad_answers >= limits.failures {
                r.failing = Some(format!("unhealthy {} times in a row: {}", r.bad_answers, r.unwell));
            }
        }
    }

    fn health_limits(&self) -> Option<Health> {
        self.target().map(|w| w.health.clone())
    }

    /// A new version is tried from its first start on.
    pub(super) fn begin_trial(&mut self, mono_ms: u64) {
        let is_good = self.row.good.as_deref().map(|g| spec_digest(&g.workload)) == Some(self.row.spec);
        if is_good {
            self.trial_since = None;
        } else {
            self.trial_since.get_or_insert(mono_ms);
        }
    }

    /// What time brings: a version has proved good, or has not become healthy in its time.
    pub fn on_time(&mut self, mono_ms: u64) {
        let Some(limits) = self.health_limits() else { return };
        if let Observed::Running(r) = &mut self.observed {
            match r.healthy_since {
                Some(since) if since + GOOD_AFTER_MS <= mono_ms => self.prove_good(),
                None if r.bad_answers == 0 && r.failing.is_none() && r.since_ms + limits.within_ms <= mono_ms => {
                    let why = if r.unwell.is_empty() {
                        "it did not answer"
                    } else {
                        &r.unwell
                    };
                    r.failing = Some(format!("not healthy within {} s: {why}", limits.within_ms / 1000));
                }
                _ => {}
            }
        }
        if !self.is_trial_over(mono_ms) {
            return;
        }
        // The pause between attempts, or a lack of room for what the new version asks, does not prolong its time.
        match (&self.observed, &self.decision) {
            (Observed::Backoff { why, .. }, _) => self.give_up_trial(&why.clone()),
            (Observed::Idle { .. }, Decision::Wait(reason)) if self.lacks_room() => {
                self.give_up_trial(&reason.to_string());
            }
            _ => {}
        }
    }

    /// Whether it does not run because of what this version asks of the node.
    pub(super) fn lacks_room(&self) -> bool {
        let of_version = matches!(&self.decision, Decision::Wait(reason) if reason.is_of_version());
        of_version && matches!(self.observed, Observed::Idle { .. })
    }

    pub(super) fn trial_timeout(&self) -> Option<u64> {
        let limits = self.health_limits()?;
        let trial = self.trial_ends(&limits);
        match &self.observed {
            Observed::Running(r) if r.failing.is_none() => match r.healthy_since {
                Some(since) => self.trial_since.map(|_| since + GOOD_AFTER_MS),
                None if r.bad_answers == 0 => Some(r.since_ms + limits.within_ms),
                None => None,
            },
            Observed::Backoff { .. } => trial,
            Observed::Idle { .. } if self.lacks_room() => trial,
            _ => None,
        }
    }

    fn trial_ends(&self, limits: &Health) -> Option<u64> {
        self.may_return().then_some(self.trial_since? + limits.within_ms)
    }

    pub(super) fn is_trial_over(&self, mono_ms: u64) -> bool {
        self.health_limits()
            .and_then(|limits| self.trial_ends(&limits))
            .is_some_and(|end| end <= mono_ms)
    }

    /// Whether there is a version to return to, and the desired one is what is tried.
    pub(super) fn may_return(&self) -> bool {
        let Some(desired) = &self.desired else { return false };
        let other = self
            .row
            .good
            .as_deref()
            .is_some_and(|g| spec_digest(&g.workload) != desired.spec);
        other && !self.has_returned() && desired.workload.on_bad_update == OnBadUpdate::Return
    }

    pub(super) fn prove_good(&mut self) {
        self.trial_since = None;
        let Some(target) = self.target().filter(|_| self.target_spec() == Some(self.row.spec)) else {
            return;
        };
        if self.row.good.as_deref().map(|g| &g.workload) != Some(target) {
            let Version { epoch, generation } = self.target_version();
            self.row.good = Some(Box::new(Good {
                workload: target.clone(),
                epoch,
                generation,
                secrets: self.target_secrets().to_vec(),
            }));
            self.is_changed = true;
        }
    }

    /// Ends the trial of the desired version: the last good one is started instead, at once.
    pub(super) fn give_up_trial(&mut self, why: &str) {
        let Some(spec) = self.desired.as_ref().map(|d| d.spec) else {
            return;
        };
        if !self.may_return() || self.trial_since.is_none() {
            return;
        }
        self.trial_since = None;
        self.row.bad = Some(spec);
        self.row.failures = 0;
        self.row.phase = Phase::Backoff;
        self.is_changed = true;
        why.clone_into(&mut self.returned_why);
        self.observed = Observed::Idle { why: why.to_owned() };
    }
}
