//! Performing the cores' actions on the simulated machines, as the daemons do on real ones: in order, and nothing that
//! follows a commit before the commit.

use cnova_agent_core as agent;
use cnova_gateway_core as gateway;
use cnova_hub_core as hub;
use cnova_shared::envelope::{Claims, seal};
use cnova_shared::ids::{Digest, HUB_AUDIENCE, NodeId, WorkloadId};
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1;

use super::agents::{Process, ProcessState};
use super::faults::happens;
use super::net::Arrival;
use super::pki::{HUB, id, pki};
use super::world::{World, parent_of};

impl World {
    pub(super) fn agent_event(&mut self, node: &NodeId, event: agent::Event) {
        let now = self.clock(node);
        if let Some(core) = self.agents.get_mut(node).and_then(|a| a.core.as_mut()) {
            core.handle(event, now);
            self.perform_agent(node);
        }
    }

    pub(super) fn gateway_event(&mut self, node: &NodeId, event: gateway::Event) {
        let now = self.clock(node);
        if let Some(core) = self.gateways.get_mut(node).and_then(|g| g.core.as_mut()) {
            core.handle(event, now);
            self.perform_gateway(node);
        }
    }

    pub(super) fn hub_event(&mut self, event: hub::Event) {
        let now = self.clock(&id(HUB));
        if let Some(core) = self.hub.core.as_mut() {
            core.handle(event, now);
            self.perform_hub();
        }
    }

    pub(super) fn send_up(&mut self, from: &NodeId, kind: Kind, bytes: Vec<u8>) {
        let to = parent_of(from);
        self.oracle.spoken.insert(Digest::of(&bytes));
        let message = Arrival::Message {
            from: from.clone(),
            to,
            kind,
            bytes,
            link: self.links[from].life,
        };
        self.net.send(self.now, message, &self.faults, &mut self.rng);
    }

    pub(super) fn send_down(&mut self, from: &NodeId, to: &NodeId, kind: Kind, bytes: Vec<u8>) {
        let Some(link) = self.links.get(to) else { return };
        let message = Arrival::Message {
            from: from.clone(),
            to: to.clone(),
            kind,
            bytes,
            link: link.life,
        };
        self.net.send(self.now, message, &self.faults, &mut self.rng);
    }

    pub(super) fn perform_agent(&mut self, node: &NodeId) {
        while let Some(action) = self.agents.get_mut(node).and_then(|a| a.core.as_mut()?.poll_action()) {
            if !self.agent_action(node, action) || self.broken.is_some() {
                return;
            }
        }
    }

    /// False when the process did not survive it.
    fn agent_action(&mut self, node: &NodeId, action: agent::Action) -> bool {
        match action {
            agent::Action::Persist(ops) => return self.agent_commits(node, &ops),
            agent::Action::Send(message) => self.agent_says(node, message),
            agent::Action::AppendChunk {
                digest,
                offset,
                data,
                complete,
            } => {
                let a = self.agents.get_mut(node).expect("it acts");
                a.append(digest, offset, data.len() as u64);
                if complete {
                    a.partial.remove(&digest);
                    a.artifacts.insert(digest);
                    let event = agent::Event::ArtifactStored(digest);
                    let arrival = Arrival::Agent {
                        node: node.clone(),
                        life: a.life,
                        event,
                    };
                    self.net.at(self.now + 1, arrival);
                }
            }
            agent::Action::CheckProvenance(check) => self.agent_checks(node, *check),
            agent::Action::Start(launch) => self.agent_starts(node, *launch),
            agent::Action::Stop { id, attempt, .. } => {
                let processes = &self.agents[node].processes;
                let running = processes.get(&(id.clone(), attempt)).map(|p| p.spec);
                let older = processes.keys().any(|(i, a)| *i == id && *a > attempt);
                // Where pressure, power or sick versions are in play, the agent must at least say why.
                let broken = if self.weather || self.sickness {
                    self.unexplained(node, &id, older)
                } else {
                    self.oracle.on_stop(node, &id, running, older)
                };
                self.check(broken);
                self.log(format!("{node} stops {id} #{attempt}"));
                let at = self.now + self.rng.u64(1..50);
                self.net.at(
                    at,
                    Arrival::Workload {
                        node: node.clone(),
                        id,
                        attempt,
                        up: false,
                    },
                );
            }
            agent::Action::KeepArtifacts(keep) => {
                let a = self.agents.get_mut(node).expect("it acts");
                a.artifacts.retain(|d| keep.contains(d));
            }
            agent::Action::Attest { verifier, challenge } => self.attest(node, &verifier, &challenge),
            // Never due: see the core's configuration.
            agent::Action::Answer { .. }
            | agent::Action::Install(_)
            | agent::Action::CountUp
            | agent::Action::OpenLedgerKey(_) => {}
            agent::Action::TrustChanged(view) => self.log(format!("{node} trusts bundle {}", view.version)),
            agent::Action::Stage(stage) => self.log(format!("{node}: {stage:?}")),
        }
        true
    }

    fn agent_commits(&mut self, node: &NodeId, ops: &[agent::ledger::Op]) -> bool {
        let (before, after, full) = self.commit_fate();
        if before {
            self.crash(node);
            return false;
        }
        let now = self.clock(node);
        let a = self.agents.get_mut(node).expect("it acts");
        if full {
            let alarm = v1::Alarm {
                code: "store".into(),
                detail: "the disk is full".into(),
            };
            a.boot(now, vec![alarm]);
            self.log(format!("{node}: disk full, its core begins anew"));
            self.ask_health(node);
            if self.links[node].up {
                self.agent_event(node, agent::Event::Connected);
            } else {
                self.perform_agent(node);
            }
            return false;
        }
        a.stored.apply(ops);
        let broken = self.oracle.on_results(node, ops);
        self.check(broken);
        let a = self.agents.get_mut(node).expect("it acts");
        let broken = a.core.as_ref().and_then(|core| self.oracle.on_settled(core));
        let version = a.core.as_ref().map_or(0, |c| c.trust().version());
        self.check(broken);
        let broken = self.oracle.on_trust(node, version);
        self.check(broken);
        if after {
            self.crash(node);
            return false;
        }
        if ops.iter().any(|op| matches!(op, agent::ledger::Op::PutTwin(_)))
            && let Some(core) = self.agents.get_mut(node).and_then(|a| a.core.as_mut())
        {
            core.handle(agent::Event::TwinCommitted, now);
        }
        true
    }

    /// Signs what a node says: with a TPM by the session key of this life of its program.
    pub(super) fn speak<T: serde::Serialize>(
        &self,
        node: &NodeId,
        kind: Kind,
        aud: &str,
        value: &T,
        introduce: bool,
    ) -> Vec<u8> {
        let (me, iat) = (&pki().nodes[node], self.clock(node).wall_ms / 1000);
        match self.tpms.contains_key(node) {
            true => me.seal_in(self.life_of(node), kind, aud, iat, value, introduce),
            false => me.seal(kind, aud, iat, value, introduce),
        }
    }

    fn agent_says(&mut self, node: &NodeId, message: agent::Message) {
        let parent = parent_of(node);
        let (kind, bytes) = match message {
            agent::Message::Hello(m) => (Kind::Hello, self.speak(node, Kind::Hello, HUB_AUDIENCE, &m, true)),
            agent::Message::Report(m) => (Kind::Report, self.speak(node, Kind::Report, HUB_AUDIENCE, &m, false)),
            agent::Message::ChunkRequest(m) => (
                Kind::ChunkRequest,
                self.speak(node, Kind::ChunkRequest, parent.as_str(), &m, false),
            ),
            agent::Message::Enrol(m) => (Kind::Enrol, self.speak(node, Kind::Enrol, HUB_AUDIENCE, &m, false)),
            agent::Message::Reply(m) => (Kind::Reply, self.speak(node, Kind::Reply, HUB_AUDIENCE, &m, false)),
        };
        self.send_up(node, kind, bytes);
    }

    pub(super) fn workload_changes(&mut self, node: &NodeId, id: WorkloadId, attempt: u32, up: bool) {
        let a = self.agents.get_mut(node).expect("it has processes");
        let key = (id.clone(), attempt);
        let event = if up {
            match a.comes_up(&key) {
                Some(pid) => agent::RuntimeEvent::Started { pid },
                None => return,
            }
        } else {
            if a.processes.remove(&key).is_none() {
                return;
            }
            agent::RuntimeEvent::Exited {
                ok: false,
                detail: "it ended".into(),
            }
        };
        if up && happens(&mut self.rng, self.faults.workload_dies) {
            let at = self.now + self.rng.u64(1..5_000);
            self.net.at(
                at,
                Arrival::Workload {
                    node: node.clone(),
                    id: id.clone(),
                    attempt,
                    up: false,
                },
            );
        }
        self.agent_event(node, agent::Event::Runtime { id, attempt, event });
        if up {
            self.ask_health(node);
        }
    }

    fn agent_starts(&mut self, node: &NodeId, launch: agent::Launch) {
        let broken = self.oracle.on_start(node, &launch);
        self.check(broken);
        let broken = self.oracle.on_trusted_start(node, &launch);
        self.check(broken);
        self.check(self.unproved(node, &launch.workload));
        let a = self.agents.get_mut(node).expect("it acts");
        let here = |d: &Digest| a.artifacts.contains(d);
        let complete = here(&launch.workload.artifact.digest);
        let key = (launch.workload.id.clone(), launch.attempt);
        a.processes.insert(
            key,
            Process {
                spec: launch.spec,
                state: ProcessState::Starting,
                memory_bytes: launch.workload.memory_bytes,
                is_well: launch.workload.env.get("TAG").is_none_or(|t| t != "sick"),
            },
        );
        let crowded = !a.lost_count && a.memory_in_use() > super::agents::MEMORY_BYTES;
        self.check(crowded.then(|| format!("{node} starts {} beyond its memory", launch.workload.id)));
        self.check((!complete).then(|| format!("{node} starts {} without its artifact", launch.workload.id)));
        self.log(format!("{node} starts {} #{}", launch.workload.id, launch.attempt));
        let (id, attempt) = (launch.workload.id, launch.attempt);
        let at = self.now + self.rng.u64(1..50);
        self.net.at(
            at,
            Arrival::Workload {
                node: node.clone(),
                id,
                attempt,
                up: true,
            },
        );
    }

    /// Every process that lives says soon how it is, as it does when it is asked.
    pub(super) fn ask_health(&mut self, node: &NodeId) {
        let a = &self.agents[node];
        let alive = |p: &Process| matches!(p.state, ProcessState::Alive(_));
        let (life, told): (u64, Vec<_>) = (
            a.life,
            a.processes
                .iter()
                .filter(|(_, p)| alive(p))
                .map(|(key, p)| (key.clone(), p.is_well))
                .collect(),
        );
        for ((id, attempt), healthy) in told {
            let detail = if healthy { String::new() } else { "it is sick".into() };
            let event = agent::RuntimeEvent::Health { healthy, detail };
            let event = agent::Event::Runtime { id, attempt, event };
            let node = node.clone();
            let at = self.now + self.rng.u64(1..500);
            self.net.at(at, Arrival::Agent { node, life, event });
        }
    }

    /// A stop for which the agent gives no reason.
    fn unexplained(&self, node: &NodeId, id: &WorkloadId, older: bool) -> Option<String> {
        let core = self.agents[node].core.as_ref()?;
        let said = core.workloads().into_iter().find(|w| w.id == *id);
        let silent = said.is_some_and(|w| w.reason.is_empty());
        (silent && !older).then(|| format!("{node} stops {id} and does not say why"))
    }

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
