//! What children and their descendants say.

use super::*;

impl Hub {
    pub(super) fn drain_tree(&mut self, now: Now) {
        while let Some(event) = self.tree.poll_event() {
            match event {
                TreeEvent::Persist(op) => self.ops.push(Op::Tree(op)),
                TreeEvent::Heard { author, said, .. } => self.on_heard(&author, said, now),
                TreeEvent::Ack { child, ack, .. } => self.effects.push_back(Action::Ack { child, ack }),
                TreeEvent::ChunkWanted { child, request } => self.on_chunk_wanted(child, &request),
                TreeEvent::Forward {
                    child,
                    kind,
                    node,
                    first,
                    bytes,
                } => {
                    if let Some(version) = first {
                        self.timeline
                            .add_for_twin(&node, version, "relayed", "hub", now.wall_ms);
                    }
                    self.effects.push_back(Action::Forward { child, kind, bytes });
                }
                TreeEvent::Enrol { author, enrol, .. } => {
                    let (ticket, step) = (enrol.ticket, enrol.step);
                    self.effects.push_back(Action::Enrol { author, ticket, step });
                }
                TreeEvent::Trust { child, trust } => self.effects.push_back(Action::Trust { child, trust }),
                TreeEvent::Note(text) => self.note(text),
            }
        }
    }

    pub(super) fn on_heard(&mut self, author: &NodeId, said: Said, now: Now) {
        match said {
            Said::Hello(hello) => {
                let has = Version {
                    epoch: hello.epoch,
                    generation: hello.generation,
                };
                let is_gateway = hello.role == v1::NodeRole::Gateway;
                // What a key signed that has left the bundle is not ahead, whatever its version.
                let ahead = !hello.renew && has > self.tree.desired(author).unwrap_or_default();
                let changed = self.inventory.on_hello(author, hello, now.wall_ms);
                self.greet(author, now);
                if changed || ahead {
                    self.reconcile(now);
                }
                if is_gateway {
                    self.delegations_at = Some(now.mono_ms);
                }
            }
            Said::Report(report) => match self.inventory.on_report(author, &report, now.wall_ms, &mut self.ops) {
                Some(fresh) => fresh.iter().for_each(|entry| self.on_entry(author, entry, now)),
                None => self.tree.ask_again(author, now.mono_ms),
            },
            Said::Evidence(evidence) => self.on_evidence(author, evidence, now),
            Said::Reply(reply) => {
                if let Some(request) = self.asked.remove(&reply.id) {
                    self.answer(
                        request,
                        Outcome::Replied {
                            ok: reply.ok,
                            text: reply.text,
                        },
                    );
                }
            }
        }
    }

    pub(super) fn on_entry(&mut self, author: &NodeId, entry: &v1::Entry, now: Now) {
        match &entry.body {
            Body::Relayed {
                node,
                epoch,
                generation,
            } => {
                let version = Version {
                    epoch: *epoch,
                    generation: *generation,
                };
                self.timeline
                    .add_for_twin(node, version, "relayed", author.as_str(), entry.at_ms);
            }
            Body::Twin {
                epoch,
                generation,
                verified_ms,
                committed_ms,
                ..
            } => {
                let version = Version {
                    epoch: *epoch,
                    generation: *generation,
                };
                self.timeline
                    .add_for_twin(author, version, "verified", author.as_str(), *verified_ms);
                if *committed_ms > 0 {
                    self.timeline
                        .add_for_twin(author, version, "committed", author.as_str(), *committed_ms);
                }
            }
            Body::Workload(w) if w.state == WorkloadState::Running && w.app_generation > 0 => {
                let (name, detail) = (&w.id.application, w.id.to_string());
                let record = |stage: &str, at_ms, by: &str| StageRecord {
                    stage: stage.to_owned(),
                    at_ms,
                    by: by.to_owned(),
                    node: Some(author.clone()),
                    detail: detail.clone(),
                };
                self.timeline
                    .add(name, w.app_generation, record("running", entry.at_ms, author.as_str()));
                self.timeline
                    .add(name, w.app_generation, record("reported", now.wall_ms, "hub"));
            }
            Body::System(report) => self.on_system_said(author, report, now),
            Body::Appraised { node, ear } => self.on_appraised(author, node, ear, now),
            Body::Refused { code, detail, .. } => self.note(format!("{author} refused a twin: {code}: {detail}")),
            Body::Alarm(a) => self.note(format!("alarm of {author}: {}: {}", a.code, a.detail)),
            _ => {}
        }
    }

    pub(super) fn on_chunk_wanted(&mut self, child: NodeId, r: &v1::ChunkRequest) {
        let size = self.artifacts.get(&r.digest).copied().unwrap_or(0);
        if r.offset < size {
            let length = r.length.min(size - r.offset);
            self.effects.push_back(Action::ServeChunk {
                child,
                digest: r.digest,
                offset: r.offset,
                length,
            });
            return;
        }
        let missing = Some(if size == 0 {
            "the hub does not have it".to_owned()
        } else {
            format!("it has {size} bytes, byte {} was asked for", r.offset)
        });
        let chunk = v1::Chunk {
            v: v1::VERSION,
            digest: r.digest,
            offset: r.offset,
            total: size,
            data: Vec::new(),
            missing,
        };
        self.effects.push_back(Action::RefuseChunk { child, chunk });
    }
}
