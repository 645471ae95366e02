//! Where simulated artifacts are from: real envelopes, made when they are asked for.

use std::collections::BTreeMap;

use cnova_agent_core as agent;
use cnova_hub_core::{CompileKey, StoredProvenance};
use cnova_provenance::{AOT_BUILD_TYPE, AOT_BUILDER, Dependency, Made, Subject};
use cnova_shared::bundle::TrustBundle;
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::keys::SoftKey;
use cnova_shared::wire::v1;

use super::net::Arrival;
use super::pki::{BUILDER, EPOCH_S, pki};
use super::world::World;

fn stored(
    subject: Digest,
    builder: &str,
    build_type: &str,
    dependencies: &[Dependency],
    key: &SoftKey,
) -> StoredProvenance {
    let statement = cnova_provenance::make(&Made {
        subjects: &[Subject {
            name: subject.short(),
            digest: subject,
        }],
        build_type,
        parameters: serde_json::Value::Null,
        dependencies,
        builder,
        builder_version: BTreeMap::new(),
        started_s: EPOCH_S,
        finished_s: EPOCH_S,
    });
    let envelope = cnova_provenance::sign(&statement, &[key]).expect("a key in memory signs");
    let artifact = v1::Artifact {
        digest: Digest::of(&envelope),
        size: envelope.len() as u64,
    };
    StoredProvenance { artifact, envelope }
}

/// What the builder says of an artifact.
#[must_use]
pub fn of_source(subject: Digest) -> StoredProvenance {
    stored(subject, BUILDER, "urn:sim:build", &[], &pki().builder_key)
}

/// What the hub says with its key of what it compiled.
#[must_use]
pub fn of_compiled(key: &CompileKey, compiled: Digest, hub: &SoftKey) -> StoredProvenance {
    let source = Dependency::of_file(key.source.to_string(), &key.source);
    stored(compiled, AOT_BUILDER, AOT_BUILD_TYPE, &[source], hub)
}

impl World {
    /// The trust bundle in force on a node.
    fn bundle_of(&self, node: &NodeId) -> TrustBundle {
        let core = self.agents[node].core.as_ref();
        core.map_or_else(|| pki().trust.clone(), |core| core.trust().bundle().clone())
    }

    /// Nothing runs that has to prove where it is from and cannot.
    pub(super) fn unproved(&self, node: &NodeId, workload: &v1::Workload) -> super::invariants::Broken {
        let trust = self.bundle_of(node);
        let proved = cnova_provenance::check_workload(workload, &self.envelopes(workload), trust.contents(), None);
        proved.err().map(|e| format!("{} is started though {e}", workload.id))
    }

    /// The envelopes that an agent has are those that the hub has: what is fetched is checked by its digest.
    fn envelopes(&self, workload: &v1::Workload) -> BTreeMap<Digest, Vec<u8>> {
        let named = |digest: &Digest| workload.provenance.iter().any(|p| p.digest == *digest);
        let held = self.hub.stored.provenance.values().flatten();
        held.filter(|p| named(&p.artifact.digest))
            .map(|p| (p.artifact.digest, p.envelope.clone()))
            .collect()
    }

    pub(super) fn agent_checks(&mut self, node: &NodeId, check: agent::ProvenanceCheck) {
        let now = self.clock(node);
        let a = &self.agents[node];
        let missing = check.workload.artifacts().any(|w| !a.artifacts.contains(&w.digest));
        let now_s = a
            .core
            .as_ref()
            .map(|core| core.now_s(now))
            .filter(|_| !check.was_accepted);
        let life = a.life;
        let (envelopes, trust) = (self.envelopes(&check.workload), self.bundle_of(node));
        let held = cnova_provenance::check_workload(&check.workload, &envelopes, trust.contents(), now_s);
        self.check(missing.then(|| format!("{node} checks {} without its artifacts", check.workload.id)));
        self.log(format!(
            "{node} checks the provenance of {}: {held:?}",
            check.workload.id
        ));
        let event = agent::Event::ProvenanceChecked {
            spec: check.spec,
            result: held.map_err(|e| agent::Unproved { why: e.to_string() }),
        };
        let at = self.now + self.rng.u64(1..50);
        let node = node.clone();
        self.net.at(at, Arrival::Agent { node, life, event });
    }
}
