//! Performing the hub's actions.

use cnova_hub_core as hub;
use cnova_shared::envelope::{Claims, seal};
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1;

use super::net::Arrival;
use super::pki::{HUB, id};
use super::world::World;

impl World {
    pub(super) fn perform_hub(&mut self) {
        while let Some(action) = self.hub.core.as_mut().and_then(hub::Hub::poll_action) {
            if !self.hub_action(action) || self.broken.is_some() {
                return;
            }
        }
    }

    fn hub_seals<T: serde::Serialize>(&self, kind: Kind, aud: &NodeId, value: &T) -> Vec<u8> {
        let iat = self.clock(&id(HUB)).wall_ms / 1000;
        let claims = Claims {
            iss: id(HUB),
            aud: aud.clone(),
            iat,
            exp: None,
        };
        seal(kind, &claims, value, &[], self.hub.key()).expect("the simulator's messages can be encoded")
    }

    fn hub_signs(&mut self, twin: &v1::Twin) {
        let bytes = self.hub_seals(Kind::Twin, &twin.node, twin);
        let version = cnova_shared::twin::Version {
            epoch: twin.epoch,
            generation: twin.generation,
        };
        self.log(format!("the hub signs {version} for {}", twin.node));
        let before = self.oracle.twins.insert((twin.node.clone(), version), twin.clone());
        // A crash before the commit may reuse a number, but never after a node could have seen it.
        let reused = before.filter(|b| b != twin && self.oracle.twin_bytes.iter().any(|x| is_twin(x, b)));
        let sent = reused.is_some_and(|_| self.oracle.committed.get(&twin.node) >= Some(&version));
        self.check(sent.then(|| format!("the hub signed {version} for {} twice, differently", twin.node)));
        self.oracle.twin_bytes.insert(bytes.clone());
        let event = hub::Event::TwinSigned(bytes);
        self.net.at(
            self.now,
            Arrival::Hub {
                life: self.hub.life,
                event,
            },
        );
    }

    fn hub_action(&mut self, action: hub::Action) -> bool {
        match action {
            hub::Action::Persist(ops) => return self.hub_commits(&ops),
            hub::Action::SignTwin(twin) => self.hub_signs(&twin),
            hub::Action::Compile(key) => self.hub_compiles(key),
            hub::Action::Ack { child, ack } => {
                let bytes = self.hub_seals(Kind::Ack, &child, &ack);
                self.send_down(&id(HUB), &child, Kind::Ack, bytes);
            }
            hub::Action::Trust { child, trust } => self.hub_sends_trust(&child, &trust),
            hub::Action::TrustChanged(view) => self.view_changes(&id(HUB), view),
            hub::Action::SignDocument(draft) => self.hub_signs_document(draft),
            hub::Action::Forward { child, kind, bytes } => {
                if kind == Kind::Twin {
                    self.oracle.seen_twins.insert(bytes.clone());
                }
                self.send_down(&id(HUB), &child, kind, bytes);
            }
            hub::Action::ServeChunk {
                child,
                digest,
                offset,
                length,
            } => self.hub_serves(&child, digest, offset, length),
            hub::Action::RefuseChunk { child, chunk } => {
                let bytes = self.hub_seals(Kind::Chunk, &child, &chunk);
                self.send_down(&id(HUB), &child, Kind::Chunk, bytes);
            }
            // Every artifact of the simulator is what it should be, and none has parts.
            hub::Action::Inspect(key) => {
                let event = hub::Event::Inspected {
                    key,
                    result: Ok(Vec::new()),
                };
                let at = self.now + self.rng.u64(1..50);
                let life = self.hub.life;
                self.net.at(at, Arrival::Hub { life, event });
            }
            // Nobody applies a system here.
            hub::Action::InspectBundle(_) => {}
            hub::Action::Challenge { child, node, challenge } => {
                let bytes = self.hub_seals(Kind::Challenge, &node, &challenge);
                self.send_down(&id(HUB), &child, Kind::Challenge, bytes);
            }
            // Nobody has set a secret here.
            hub::Action::SealSecret(order) => {
                let (key, result) = (order.key, Err("there are none".to_owned()));
                let (at, life) = (self.now, self.hub.life);
                let event = hub::Event::SecretSealed { key, result };
                self.net.at(at, Arrival::Hub { life, event });
            }
            hub::Action::SignEar(ear) => {
                let node = ear.subject.clone();
                let bytes = self.hub_seals(Kind::Ear, &node, &*ear);
                self.oracle.results.insert(bytes.clone(), ear.status);
                let (at, life) = (self.now, self.hub.life);
                let event = hub::Event::EarSigned { node, bytes };
                self.net.at(at, Arrival::Hub { life, event });
            }
            // Nobody enrols here.
            hub::Action::Enrol { .. }
            | hub::Action::Certify(_)
            | hub::Action::Enrolled { .. }
            | hub::Action::Audit { .. } => {}
            hub::Action::RemoveArtifacts(_) | hub::Action::Command { .. } => {}
            hub::Action::Answer { outcome, .. } => self.log(format!("the hub answers {outcome:?}")),
            hub::Action::Note(text) => self.log(format!("hub: {text}")),
        }
        true
    }

    fn hub_compiles(&mut self, key: hub::CompileKey) {
        let name = format!("{}/{}/{}", key.source, key.target, key.engine);
        let artifact = v1::Artifact {
            digest: Digest::of(name.as_bytes()),
            size: 300_000,
        };
        let made = super::provenance::of_compiled(&key, artifact.digest, self.hub.key());
        let told = hub::Event::ProvenanceAdded {
            subject: artifact.digest,
            artifact: made.artifact,
            envelope: made.envelope,
        };
        let done = hub::Event::Compiled {
            key,
            result: Ok(artifact),
        };
        let (at, life) = (self.now + self.rng.u64(1..2_000), self.hub.life);
        for event in [told, done] {
            self.net.at(at, Arrival::Hub { life, event });
        }
    }

    fn hub_serves(&mut self, child: &NodeId, digest: Digest, offset: u64, length: u64) {
        let compiled = self
            .hub
            .stored
            .compiled
            .values()
            .find(|a| a.digest == digest)
            .map(|a| a.size);
        let total = compiled
            .or(self.hub.stored.artifacts.get(&digest).copied())
            .unwrap_or(300_000);
        let chunk = v1::Chunk {
            v: 1,
            digest,
            offset,
            total,
            data: vec![7; length as usize],
            missing: None,
        };
        let bytes = self.hub_seals(Kind::Chunk, child, &chunk);
        self.send_down(&id(HUB), child, Kind::Chunk, bytes);
    }

    fn hub_commits(&mut self, ops: &[hub::Op]) -> bool {
        let (before, after, full) = self.commit_fate();
        if before || full {
            self.crash(&id(HUB));
            return false;
        }
        self.hub.stored.apply(ops);
        let broken = self.oracle.on_hub_commit(ops);
        self.check(broken);
        if after {
            self.crash(&id(HUB));
            return false;
        }
        true
    }
}

fn is_twin(bytes: &[u8], twin: &v1::Twin) -> bool {
    super::rotate::contents(bytes).is_some_and(|t| t == *twin)
}
