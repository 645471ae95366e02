//! Performing a gateway's actions.

use cnova_gateway_core as gateway;
use cnova_shared::ids::{HUB_AUDIENCE, NodeId};
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1;

use super::net::Arrival;
use super::world::{World, parent_of};

impl World {
    pub(super) fn perform_gateway(&mut self, node: &NodeId) {
        while let Some(action) = self.gateways.get_mut(node).and_then(|g| g.core.as_mut()?.poll_action()) {
            if !self.gateway_action(node, action) || self.broken.is_some() {
                return;
            }
        }
    }

    fn gateway_action(&mut self, node: &NodeId, action: gateway::Action) -> bool {
        match action {
            gateway::Action::Persist(ops) => return self.gateway_commits(node, &ops),
            gateway::Action::SendUp(message) => self.gateway_says(node, message),
            gateway::Action::Ack { child, ack, introduce } => {
                let bytes = self.speak(node, Kind::Ack, child.as_str(), &ack, introduce);
                self.send_down(node, &child, Kind::Ack, bytes);
            }
            gateway::Action::Trust { child, trust } => {
                let bytes = self.speak(node, Kind::Trust, child.as_str(), &trust, true);
                self.send_down(node, &child, Kind::Trust, bytes);
            }
            gateway::Action::TrustChanged(view) => self.view_changes(node, view),
            gateway::Action::Forward { child, kind, bytes } => {
                if kind == Kind::Twin {
                    let broken = self.oracle.on_forward_twin(node, &bytes);
                    self.check(broken);
                }
                self.send_down(node, &child, kind, bytes);
            }
            gateway::Action::ServeChunk {
                child,
                digest,
                offset,
                length,
            } => {
                let total = self.gateways[node].artifacts[&digest];
                let chunk = v1::Chunk {
                    v: 1,
                    digest,
                    offset,
                    total,
                    data: vec![7; length as usize],
                    missing: None,
                };
                let bytes = self.speak(node, Kind::Chunk, child.as_str(), &chunk, false);
                self.send_down(node, &child, Kind::Chunk, bytes);
            }
            gateway::Action::RefuseChunk { child, chunk } => {
                let bytes = self.speak(node, Kind::Chunk, child.as_str(), &chunk, false);
                self.send_down(node, &child, Kind::Chunk, bytes);
            }
            gateway::Action::AppendChunk {
                digest,
                offset,
                data,
                complete,
            } => {
                let g = self.gateways.get_mut(node).expect("it acts");
                let size = offset + data.len() as u64;
                g.partial.insert(digest, size);
                if complete {
                    g.partial.remove(&digest);
                    g.artifacts.insert(digest, size);
                    let event = gateway::Event::ArtifactStored { digest, size };
                    self.net.at(
                        self.now + 1,
                        Arrival::Gateway {
                            node: node.clone(),
                            life: g.life,
                            event,
                        },
                    );
                }
            }
            gateway::Action::CarryUp { kind, bytes } => self.send_up(node, kind, bytes),
            // Nobody enrols here and no certificate ends: see the core's configuration.
            gateway::Action::Attest { verifier, challenge } => self.attest(node, &verifier, &challenge),
            gateway::Action::Challenge { child, challenge } => {
                let bytes = self.speak(node, Kind::Challenge, child.as_str(), &challenge, false);
                self.send_down(node, &child, Kind::Challenge, bytes);
            }
            gateway::Action::SignEar(ear) => self.gateway_signs(node, &ear),
            // Nobody enrols here.
            gateway::Action::AnswerNewcomer { .. } | gateway::Action::Install(_) => {}
            gateway::Action::Note(text) => self.log(format!("{node}: {text}")),
        }
        true
    }

    fn gateway_commits(&mut self, node: &NodeId, ops: &[gateway::Op]) -> bool {
        let (before, after, full) = self.commit_fate();
        if before {
            self.crash(node);
            return false;
        }
        if full {
            self.rebuild_gateway(node);
            return false;
        }
        let g = self.gateways.get_mut(node).expect("it acts");
        g.stored.apply(ops);
        let version = g.core.as_ref().map_or(0, |c| c.trust().version());
        let broken = self.oracle.on_trust(node, version);
        self.check(broken);
        if after {
            self.crash(node);
            return false;
        }
        true
    }

    /// The gateway's disk was full: its core begins anew, its links stand.
    fn rebuild_gateway(&mut self, node: &NodeId) {
        let now = self.clock(node);
        let alarm = v1::Alarm {
            code: "store".into(),
            detail: "the disk is full".into(),
        };
        self.gateways.get_mut(node).expect("it acts").boot(now, vec![alarm]);
        self.log(format!("{node}: disk full, its core begins anew"));
        self.perform_gateway(node);
        let life = self.gateways[node].life;
        let children: Vec<NodeId> = self
            .links
            .iter()
            .filter(|(c, l)| l.up && parent_of(c) == *node)
            .map(|(c, _)| c.clone())
            .collect();
        for child in children {
            if self.gateways[node].life == life {
                self.gateway_event(node, gateway::Event::ChildConnected(child));
            }
        }
        if self.links[node].up && self.gateways[node].life == life {
            self.gateway_event(node, gateway::Event::ParentConnected);
        }
    }

    fn gateway_says(&mut self, node: &NodeId, message: gateway::UpMessage) {
        let parent = parent_of(node);
        use gateway::UpMessage as M;
        let (kind, bytes) = match message {
            M::Hello(m) => (Kind::Hello, self.speak(node, Kind::Hello, HUB_AUDIENCE, &m, true)),
            M::Report(m) => (Kind::Report, self.speak(node, Kind::Report, HUB_AUDIENCE, &m, false)),
            M::Relay(m) => {
                let broken = self.oracle.on_relay(node, &m);
                self.check(broken);
                (Kind::Relay, self.speak(node, Kind::Relay, parent.as_str(), &m, false))
            }
            M::Enrol(m) => (Kind::Enrol, self.speak(node, Kind::Enrol, HUB_AUDIENCE, &m, false)),
            M::ChunkRequest(m) => (
                Kind::ChunkRequest,
                self.speak(node, Kind::ChunkRequest, parent.as_str(), &m, false),
            ),
        };
        self.send_up(node, kind, bytes);
    }
}
