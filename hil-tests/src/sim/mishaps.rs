//! What goes wrong besides messages and commits: links, power, stores, clocks, forgers.

use cnova_agent_core as agent;
use cnova_shared::envelope::{Claims, seal};
use cnova_shared::ids::NodeId;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1;

use super::net::Arrival;
use super::pki::{AGENTS, AREA, HUB, LINE, id, pki};
use super::world::{FAULTY_MS, World};

const YEAR_S: i64 = 365 * 86_400;

impl World {
    /// Something goes wrong.
    pub(super) fn mishap(&mut self) {
        let agent = id(AGENTS[self.rng.usize(0..AGENTS.len())]);
        let gateway = id([AREA, LINE][self.rng.usize(0..2)]);
        let any_child = if self.rng.bool() {
            agent.clone()
        } else {
            gateway.clone()
        };
        if self.weather && self.rng.u32(0..4) == 0 {
            return self.change_weather(&agent);
        }
        if self.rotates && self.rng.u32(0..4) == 0 {
            return self.change_trust();
        }
        match self.rng.u32(0..10) {
            0 | 1 => {
                let for_ms = self.rng.u64(100..20_000);
                self.disconnect(&any_child, for_ms);
            }
            2 => self.crash(&agent),
            3 => self.crash(&gateway),
            4 => self.crash(&id(HUB)),
            5 => self.power_cut(&agent),
            6 => self.lose_store(&any_child),
            7 => self.clock_jumps(&any_child),
            _ => self.forge(&agent),
        }
    }

    /// The node comes under pressure, or its supply with power changes.
    fn change_weather(&mut self, node: &NodeId) {
        let event = if self.rng.bool() {
            let busy = self.rng.bool();
            let share = if busy { 900 } else { 0 };
            agent::Event::Pressure(agent::schedule::Pressure {
                memory_some: share,
                memory_full: share / 2,
                cpu_some: share,
            })
        } else {
            use v1::PowerLevel as P;
            let level = [P::Critical, P::Low, P::Battery, P::Mains][self.rng.usize(0..4)];
            let why = "as simulated".to_owned();
            agent::Event::Power { level, why }
        };
        self.log(format!("{node}: {event:?}"));
        if let (agent::Event::Power { level, .. }, Some(a)) = (&event, self.agents.get_mut(node)) {
            a.power = *level;
        }
        if self.is_alive(node) {
            self.agent_event(node, event);
        }
    }

    fn power_cut(&mut self, node: &NodeId) {
        self.log(format!("{node} loses power"));
        self.crash(node);
        if let Some(a) = self.agents.get_mut(node) {
            a.power_cut();
        }
    }

    /// The database is found corrupt at the next start and set aside.
    fn lose_store(&mut self, node: &NodeId) {
        self.log(format!("{node} loses its store"));
        self.crash(node);
        let incarnation = self.clock(node).wall_ms.max(1);
        // What it was flashed with is all that it has then; its parent brings the rest.
        self.oracle.trusted.remove(node);
        if let Some(a) = self.agents.get_mut(node) {
            a.lose_store(incarnation);
            // Without its ledger a node has no memory of generations; the TPM's counter will keep it.
            self.oracle.committed.remove(node);
        } else if let Some(g) = self.gateways.get_mut(node) {
            g.lose_store(incarnation);
        }
    }

    fn clock_jumps(&mut self, node: &NodeId) {
        let off_s = [0, -56 * YEAR_S, 73 * YEAR_S, -3_600, 3_600][self.rng.usize(0..5)];
        self.log(format!("the clock of {node} jumps to {off_s} s off"));
        if let Some(a) = self.agents.get_mut(node) {
            a.clock_off_s = off_s;
        } else if let Some(g) = self.gateways.get_mut(node) {
            g.clock_off_s = off_s;
        }
    }

    /// Somebody on the way, a gateway even, sends what it likes.
    fn forge(&mut self, agent: &NodeId) {
        if self.now >= FAULTY_MS || self.oracle.seen_twins.is_empty() {
            return;
        }
        let all: Vec<&Vec<u8>> = self.oracle.seen_twins.iter().collect();
        let old = all[self.rng.usize(0..all.len())].clone();
        let bytes = match self.rng.u32(0..3) {
            // Any twin that ever left the hub, for this node or another, old or new.
            0 => old,
            1 => {
                let mut changed = old;
                let at = self.rng.usize(0..changed.len());
                changed[at] ^= 1 << self.rng.u32(0..8);
                changed
            }
            _ => {
                let twin = v1::Twin {
                    v: 1,
                    node: agent.clone(),
                    epoch: u64::MAX,
                    generation: 1,
                    workloads: vec![],
                    secrets: vec![],
                    system: None,
                };
                let claims = Claims {
                    iss: id(HUB),
                    aud: agent.clone(),
                    iat: 0,
                    exp: None,
                };
                seal(Kind::Twin, &claims, &twin, &[], &pki().rogue_key).expect("a forged twin can be encoded")
            }
        };
        let to = if self.rng.u32(0..4) == 0 {
            id(LINE)
        } else {
            agent.clone()
        };
        self.net.at(
            self.now + 1,
            Arrival::Forged {
                to,
                kind: Kind::Twin,
                bytes,
            },
        );
    }
}
