//! Provenance: nothing is loaded that has to prove where it comes from and has not. The check reads files, so that the
//! daemon makes it; here is decided when it is due and what follows from it.

use super::*;
use crate::api::{ProvenanceCheck, Unproved};
use crate::workload::Lack;

/// After this pause, milliseconds, what may have changed without the twin (a clock, a file) is looked at again.
pub const PROVENANCE_AGAIN_MS: u64 = 60_000;

/// How far the check of one version of a workload has come.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Asked,
    Held,
    Refused { why: String, again_at: u64 },
}

/// All checks, by the digest of the version's specification. They last until the agent ends or the bundle changes:
/// envelopes are content-addressed, so that the same ones always say the same.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    verdicts: BTreeMap<Digest, Verdict>,
    bundle: u64,
}

impl Proofs {
    /// When a check is to be repeated, monotonic milliseconds.
    pub(super) fn timeout(&self) -> Option<u64> {
        let again = |v: &Verdict| match v {
            Verdict::Refused { again_at, .. } => Some(*again_at),
            _ => None,
        };
        self.verdicts.values().filter_map(again).min()
    }
}

impl Agent {
    fn must_prove(&self, workload: &v1::Workload) -> bool {
        let of_bundle = self.trust.bundle().contents().attestation.as_ref();
        !v1::AttestationPolicy::in_force([workload.attestation.as_ref(), of_bundle]).is_empty()
    }

    /// What keeps a workload's target from being started: an artifact that is not here, a secret that cannot be opened,
    /// or provenance that does not hold.
    pub(crate) fn lack(&self, machine: &Machine) -> Option<Lack> {
        if let Some(missing) = self.missing(machine) {
            return Some(Lack::Fetching(missing));
        }
        if let Some(why) = self.closed(machine) {
            return Some(Lack::Secret(why));
        }
        let (target, spec) = (machine.target()?, machine.target_spec()?);
        if !self.must_prove(target) {
            return None;
        }
        match self.proofs.verdicts.get(&spec) {
            Some(Verdict::Held) => None,
            Some(Verdict::Refused { why, .. }) => Some(Lack::Unproven(format!("provenance: {why}"))),
            Some(Verdict::Asked) | None => Some(Lack::Unproven("provenance: it is being checked".into())),
        }
    }

    /// Asks for the checks that are due: of what is desired, and of what is to run instead.
    pub(super) fn ask_for_proofs(&mut self, now: Now) {
        if self.twin.is_none() {
            return;
        }
        let bundle = self.trust.bundle().contents().version;
        if self.proofs.bundle != bundle {
            self.proofs = Proofs {
                bundle,
                ..Proofs::default()
            };
        }
        let mut known = BTreeSet::new();
        let mut due = Vec::new();
        for machine in self.machines.values() {
            for (workload, spec) in machine.versions() {
                known.insert(spec);
                let is_due = match self.proofs.verdicts.get(&spec) {
                    None => true,
                    Some(Verdict::Refused { again_at, .. }) => *again_at <= now.mono_ms,
                    Some(Verdict::Asked | Verdict::Held) => false,
                };
                let here = || workload.artifacts().all(|a| self.artifacts.contains(&a.digest));
                // What runs has been started: it is not asked about again before it ends.
                let runs = machine.is_live() && machine.row().spec == spec;
                if is_due && !runs && self.must_prove(workload) && here() {
                    due.push(ProvenanceCheck {
                        workload: workload.clone(),
                        spec,
                        was_accepted: machine.was_proved(spec),
                    });
                }
            }
        }
        self.proofs.verdicts.retain(|spec, _| known.contains(spec));
        for check in due {
            // Two workloads may be alike.
            if self.proofs.verdicts.insert(check.spec, Verdict::Asked) != Some(Verdict::Asked) {
                self.effects.push_back(Action::CheckProvenance(Box::new(check)));
            }
        }
    }

    pub(super) fn on_proved(&mut self, spec: Digest, result: Result<(), Unproved>, now: Now) {
        // Of a version that is wanted no more.
        if self.proofs.verdicts.get(&spec) != Some(&Verdict::Asked) {
            return;
        }
        let verdict = match result {
            Ok(()) => Verdict::Held,
            Err(Unproved { why }) => Verdict::Refused {
                why: limits::clip(&why),
                again_at: now.mono_ms + PROVENANCE_AGAIN_MS,
            },
        };
        for machine in self.machines.values_mut() {
            match &verdict {
                Verdict::Refused { why, .. } => machine.refuse_proof(spec, why),
                _ => machine.take_proof(spec),
            }
        }
        self.proofs.verdicts.insert(spec, verdict);
    }
}
