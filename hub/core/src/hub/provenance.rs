//! Where artifacts are from: kept as it comes, believed only against the trust bundle.

use cnova_provenance::{ProvenanceError, Unproven, prove, prove_compiled, verify};
use serde::Serialize;

use super::*;
use crate::cndl::{Application, WorkloadDef};
use crate::explain::ArtifactState;

/// What an envelope says of an artifact, verified; policies see it, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProvenanceFact {
    /// The envelope.
    pub envelope: Digest,
    /// Who built it, a URI.
    pub builder: String,
    /// How far that builder is believed, SLSA build level.
    pub level: u8,
    /// What kind of build it was, a URI.
    pub build_type: String,
}

/// Facts by artifact. What does not verify is not among them.
pub type ProvenanceFacts = BTreeMap<Digest, Vec<ProvenanceFact>>;

/// A mistake at a workload: its name, what is wrong, and what would be right.
type Mistake = (String, String, Option<String>);

impl Hub {
    pub(super) fn on_provenance(&mut self, subject: Digest, artifact: v1::Artifact, envelope: Vec<u8>, now: Now) {
        let held = self.provenance.entry(subject).or_default();
        if held.iter().any(|p| p.artifact == artifact) {
            return;
        }
        if held.len() >= limits::PROVENANCE_PER_ARTIFACT {
            let oldest = held.remove(0).artifact.digest;
            self.ops.push(Op::DropProvenance {
                subject,
                envelope: oldest,
            });
        }
        let stored = StoredProvenance { artifact, envelope };
        let (digest, size) = (stored.artifact.digest, stored.artifact.size);
        held.push(stored.clone());
        if self.artifacts.insert(digest, size).is_none() {
            self.ops.push(Op::PutArtifact { digest, size });
        }
        self.ops.push(Op::PutProvenance { subject, stored });
        // It may be what a composition that failed was waiting for.
        if self.apps.values().any(|a| !a.problems.is_empty()) {
            self.reconcile(now);
        }
    }

    pub(super) fn forget_provenance(&mut self, digest: &Digest) {
        self.provenance.remove(digest);
        for held in self.provenance.values_mut() {
            held.retain(|p| p.artifact.digest != *digest);
        }
        self.provenance.retain(|_, held| !held.is_empty());
    }

    /// What an envelope says of an artifact at `now_s`, seconds since 1970.
    ///
    /// # Errors
    /// [`ProvenanceError`] when it says nothing that is believed.
    pub fn judge_provenance(
        &self,
        envelope: &[u8],
        subject: &Digest,
        now_s: u64,
    ) -> Result<ProvenanceFact, ProvenanceError> {
        let builders = &self.trust.bundle().contents().builders;
        let verified = verify(envelope, &[], builders, Some(now_s), subject)?;
        Ok(ProvenanceFact {
            envelope: Digest::of(envelope),
            builder: verified.builder().to_owned(),
            level: verified.level(),
            build_type: verified.build_type().to_owned(),
        })
    }

    /// What is known of where artifacts are from at `now_s`, seconds since 1970.
    #[must_use]
    pub fn provenance_facts(&self, artifacts: &BTreeSet<Digest>, now_s: u64) -> ProvenanceFacts {
        let fact = |subject, stored: &StoredProvenance| self.judge_provenance(&stored.envelope, subject, now_s).ok();
        let known = artifacts.iter().filter_map(|d| Some((d, self.provenance.get(d)?)));
        known
            .map(|(d, held)| (*d, held.iter().filter_map(|s| fact(d, s)).collect()))
            .collect()
    }

    /// What is wrong with the provenance of an application's artifacts; `compiled` are pairs of source and result.
    #[must_use]
    pub fn unproven(
        &self,
        application: &Application,
        compiled: &[(Digest, Digest)],
        now_s: Option<u64>,
    ) -> Vec<Mistake> {
        let workloads = application.workloads.iter();
        let mistake = |def: &WorkloadDef| {
            let unproven = self.unproven_workload(def, compiled, now_s)?;
            Some((def.name.clone(), unproven.to_string(), Some(advice(&unproven))))
        };
        workloads.filter_map(mistake).collect()
    }

    /// Whether the hub's word on what it compiled holds for something new.
    pub(super) fn is_proved_compiled(&self, compiled: &Digest, source: &Digest, now_s: u64) -> bool {
        let view = self.artifact_view();
        let builders = &self.trust.bundle().contents().builders;
        prove_compiled(compiled, source, &view.envelopes(compiled), &[], builders, Some(now_s)).is_ok()
    }

    /// For people: whether what a workload has to prove is proved.
    pub(crate) fn provenance_state(&self, def: &WorkloadDef) -> Option<ArtifactState> {
        if !self.artifact_view().must_prove(def) {
            return None;
        }
        let state = match self.unproven_workload(def, &[], None) {
            None => "there".to_owned(),
            Some(unproven) => format!("failed: {unproven}"),
        };
        Some(ArtifactState {
            what: "provenance".to_owned(),
            digest: None,
            size: None,
            state,
        })
    }

    fn unproven_workload(
        &self,
        def: &WorkloadDef,
        compiled: &[(Digest, Digest)],
        now_s: Option<u64>,
    ) -> Option<Unproven> {
        let view = self.artifact_view();
        let policies = view.policies(def);
        let source: Digest = def.artifact.digest()?.parse().ok()?;
        if policies.is_empty() {
            return None;
        }
        let builders = &self.trust.bundle().contents().builders;
        let check = |what: &str, digest: &Digest| {
            prove(what, digest, &view.envelopes(digest), &policies, builders, now_s).err()
        };
        let files = || {
            let asked = policies.iter().any(|p| p.files);
            def.files.iter().filter(|_| asked).find_map(|f| {
                let digest = f.artifact.digest()?.parse().ok()?;
                check(&format!("file {}", f.path), &digest)
            })
        };
        let links = || {
            compiled
                .iter()
                .filter(|(from, _)| *from == source)
                .find_map(|(from, to)| prove_compiled(to, from, &view.envelopes(to), &policies, builders, now_s).err())
        };
        check("artifact", &source).or_else(links).or_else(files)
    }
}

fn advice(unproven: &Unproven) -> String {
    if unproven.what == "its compiled form" {
        let builder = cnova_provenance::AOT_BUILDER;
        return format!(
            "let the hub's key stand in the trust bundle as a builder: cnova trust builder add DIR --hub-key --builder {builder}"
        );
    }
    "sign it with: cnova artifact sign FILE --key KEY --builder URI (docs/PROVENANCE.md)".to_owned()
}
