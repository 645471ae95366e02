//! Which provenance goes to the nodes with a workload.

use cnova_provenance::{Proof, prove, prove_compiled};
use cnova_shared::ids::Digest;
use cnova_shared::wire::v1::{self, AttestationPolicy};

use super::ArtifactView;
use crate::cndl::WorkloadDef;

impl<'a> ArtifactView<'a> {
    /// What a workload has to prove: its own policy, and the trust bundle's.
    pub(crate) fn policies<'p>(&self, def: &'p WorkloadDef) -> Vec<&'p AttestationPolicy>
    where
        'a: 'p,
    {
        let trust: &'a _ = self.trust;
        AttestationPolicy::in_force([def.attestation.as_ref(), trust.attestation.as_ref()])
    }

    /// Whether it has to prove anything.
    #[must_use]
    pub fn must_prove(&self, def: &WorkloadDef) -> bool {
        !self.policies(def).is_empty()
    }

    /// Everything that is said of where an artifact is from, the oldest first.
    pub(crate) fn envelopes(&self, subject: &Digest) -> Vec<(Digest, &'a [u8])> {
        let held = self.provenance.get(subject).into_iter().flatten();
        held.map(|p| (p.artifact.digest, p.envelope.as_slice())).collect()
    }

    /// The envelopes that prove a workload to its node: the oldest that do, so that a newer one restarts nothing. A
    /// builder's key counts whatever the time: whether it was in force was asked when the application was taken.
    pub(crate) fn provenance_of(
        &self,
        def: &WorkloadDef,
        source: Digest,
        artifact: &v1::Artifact,
        files: &[v1::InputFile],
    ) -> Result<Vec<v1::Artifact>, String> {
        let policies = self.policies(def);
        if policies.is_empty() {
            return Ok(Vec::new());
        }
        let builders = &self.trust.builders;
        let mut proofs: Vec<(Digest, Proof)> = Vec::new();
        if artifact.digest != source {
            let envelopes = self.envelopes(&artifact.digest);
            let proof = prove_compiled(&artifact.digest, &source, &envelopes, &policies, builders, None);
            proofs.push((artifact.digest, proof.map_err(|e| e.to_string())?));
        }
        let proof = prove("artifact", &source, &self.envelopes(&source), &policies, builders, None);
        proofs.push((source, proof.map_err(|e| e.to_string())?));
        if policies.iter().any(|p| p.files) {
            for file in files {
                let (what, digest) = (format!("file {}", file.path), file.artifact.digest);
                let proof = prove(&what, &digest, &self.envelopes(&digest), &policies, builders, None);
                proofs.push((digest, proof.map_err(|e| e.to_string())?));
            }
        }
        let stored = |(subject, proof): &(Digest, Proof)| {
            let held = self.provenance.get(subject).into_iter().flatten();
            held.map(|p| &p.artifact).find(|a| a.digest == proof.envelope).cloned()
        };
        let mut all: Vec<v1::Artifact> = Vec::new();
        for artifact in proofs.iter().filter_map(stored) {
            // One envelope may prove several artifacts.
            if !all.contains(&artifact) {
                all.push(artifact);
            }
        }
        Ok(all)
    }
}
