//! Performing the cores' actions on the simulated machines, as the daemons do on real ones: in order, and nothing that
//! follows a commit before the commit.

use cnova_agent_core as agent;
use cnova_gateway_core as gateway;
use cnova_hub_core as hub;
use cnova_shared::ids::{Digest, HUB_AUDIENCE, NodeId, WorkloadId};
use cnova_shared::topics::Kind;

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
            // Its machines have no slots.
            agent::Action::System(_) => {}
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
        if self.full_disks.contains(node) {
            self.announce_outage(node);
            return false;
        }
        let now = self.clock(node);
        let a = self.agents.get_mut(node).expect("it acts");
        if full {
            a.boot(now, vec![super::lives::disk_is_full()]);
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

    pub(super) fn agent_says(&mut self, node: &NodeId, message: agent::Message) {
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
}
