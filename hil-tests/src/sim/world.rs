//! One run: a hub, two gateways and three agents under one seed.

use std::collections::{BTreeMap, BTreeSet};

use cnova_attestation::testing::SoftTpm;
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;

use super::agents::SimAgent;
use super::faults::{Faults, happens};
use super::gateways::SimGateway;
use super::hubs::SimHub;
use super::invariants::Oracle;
use super::net::{Arrival, Net};
use super::pki::{AGENTS, AREA, EPOCH_S, HUB, LINE, id};

/// Virtual milliseconds in which things go wrong.
pub const FAULTY_MS: u64 = 60_000;
/// Virtual milliseconds after which everything must have converged.
pub const CONVERGED_BY_MS: u64 = FAULTY_MS + 20 * 60_000;
/// Lines of the trace that a violation shows.
pub const TRACE_LINES: usize = 80;
/// Events after which a run is taken to be stuck in a loop.
const MOST_EVENTS: u64 = 400_000;

/// A broken invariant, with what is needed to see it again.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The seed.
    pub seed: u64,
    /// When, virtual milliseconds.
    pub at_ms: u64,
    /// What.
    pub what: String,
    /// The last steps before it.
    pub trace: Vec<String>,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "seed {} at {} ms: {}", self.seed, self.at_ms, self.what)?;
        self.trace.iter().try_for_each(|line| writeln!(f, "    {line}"))
    }
}

/// What a run did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Events handled.
    pub events: u64,
    /// When everything had converged, virtual milliseconds.
    pub converged_ms: u64,
    /// Twins signed.
    pub twins: usize,
    /// Processes that died.
    pub crashes: u64,
    /// A digest of every step, the same for the same seed.
    pub fingerprint: Digest,
}

/// The state of a link between a child and its parent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Link {
    pub(super) up: bool,
    pub(super) life: u64,
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) rng: fastrand::Rng,
    pub(super) now: u64,
    pub(super) faults: Faults,
    pub(super) net: Net,
    pub(super) hub: SimHub,
    pub(super) gateways: BTreeMap<NodeId, SimGateway>,
    pub(super) agents: BTreeMap<NodeId, SimAgent>,
    pub(super) links: BTreeMap<NodeId, Link>,
    pub(super) oracle: Oracle,
    trace: Vec<String>,
    trace_lines: usize,
    pub(super) crashes: u64,
    pub(super) events: u64,
    fingerprint: Digest,
    pub(super) broken: Option<String>,
    requests: u64,
    /// Whether pressure and power change in this run, and manifests have conditions.
    pub(super) weather: bool,
    /// Whether some versions never become healthy in this run.
    pub(super) sickness: bool,
    /// Whether keys are rotated and nodes revoked in this run.
    pub(super) rotates: bool,
    pub(super) revoked: BTreeSet<NodeId>,
    /// The TPMs of nodes that have one: of none, unless the run is about attestation.
    pub(super) tpms: BTreeMap<NodeId, SoftTpm>,
    /// Whether nothing gets to the hub and back.
    pub(super) hub_is_cut: bool,
    /// Nodes whose link up is cut until somebody mends it.
    pub(super) cut_off: BTreeSet<NodeId>,
    /// Nodes without power: they do not start.
    pub(super) dark: BTreeSet<NodeId>,
    /// Agents that can write nothing.
    pub(super) full_disks: BTreeSet<NodeId>,
    /// Agents that have found that out and wait.
    pub(super) in_outage: BTreeSet<NodeId>,
}

/// The node above.
pub(super) fn parent_of(node: &NodeId) -> NodeId {
    match node.as_str() {
        AREA => id(HUB),
        LINE => id(AREA),
        _ => id(LINE),
    }
}

/// Runs one seed.
///
/// # Errors
/// The first broken invariant, or that the tree did not converge.
pub fn run(seed: u64) -> Result<Outcome, Violation> {
    run_traced(seed, TRACE_LINES)
}

/// Runs one seed and keeps as many lines of its trace as asked for.
///
/// # Errors
/// As [`run`].
pub fn run_traced(seed: u64, trace_lines: usize) -> Result<Outcome, Violation> {
    let mut world = World::new(seed);
    world.trace_lines = trace_lines;
    world.start();
    world.play()?;
    Ok(world.outcome())
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let faults = Faults::draw(&mut rng);
        let (weather, sickness) = (rng.bool(), rng.bool());
        let rotates = rng.bool();
        let gateways = [(AREA, HUB), (LINE, AREA)].map(|(n, p)| (id(n), SimGateway::new(id(n), id(p))));
        let agents = AGENTS.map(|n| (id(n), SimAgent::new(id(n))));
        let children = [AREA, LINE].into_iter().chain(AGENTS);
        Self {
            seed,
            rng,
            now: 0,
            faults,
            net: Net::default(),
            hub: SimHub::new(),
            gateways: BTreeMap::from(gateways),
            agents: BTreeMap::from(agents),
            links: children.map(|n| (id(n), Link::default())).collect(),
            oracle: Oracle::default(),
            trace: Vec::new(),
            trace_lines: TRACE_LINES,
            crashes: 0,
            events: 0,
            fingerprint: Digest([0; 32]),
            broken: None,
            requests: 0,
            weather,
            sickness,
            rotates,
            revoked: BTreeSet::new(),
            tpms: BTreeMap::new(),
            hub_is_cut: false,
            cut_off: BTreeSet::new(),
            dark: BTreeSet::new(),
            full_disks: BTreeSet::new(),
            in_outage: BTreeSet::new(),
        }
    }

    /// How often a node's program was started.
    pub(super) fn life_of(&self, node: &NodeId) -> u64 {
        let agent = self.agents.get(node).map(|a| a.life);
        agent.or_else(|| self.gateways.get(node).map(|g| g.life)).unwrap_or(0)
    }

    /// The clocks of a node.
    pub(super) fn clock(&self, node: &NodeId) -> Now {
        let off_s = if let Some(a) = self.agents.get(node) {
            a.clock_off_s
        } else {
            self.gateways.get(node).map_or(0, |g| g.clock_off_s)
        };
        let right = i64::try_from(EPOCH_S * 1000 + self.now).unwrap_or(i64::MAX);
        Now {
            mono_ms: self.now,
            wall_ms: u64::try_from(right + off_s * 1000).unwrap_or(0),
        }
    }

    /// Remembers a step, for the trace and the fingerprint.
    pub(super) fn log(&mut self, line: String) {
        let mut bytes = self.fingerprint.0.to_vec();
        bytes.extend_from_slice(&self.now.to_le_bytes());
        bytes.extend_from_slice(line.as_bytes());
        self.fingerprint = Digest::of(&bytes);
        if self.trace.len() >= self.trace_lines {
            self.trace.remove(0);
        }
        self.trace.push(format!("{:>7} {line}", self.now));
    }

    pub(super) fn check(&mut self, broken: Option<String>) {
        if self.broken.is_none() {
            self.broken = broken;
        }
    }

    pub(super) fn violation(&self, what: String) -> Violation {
        Violation {
            seed: self.seed,
            at_ms: self.now,
            what,
            trace: self.trace.clone(),
        }
    }

    fn start(&mut self) {
        self.start_nodes();
        self.plan_faults();
    }

    pub(super) fn start_nodes(&mut self) {
        for node in [HUB, AREA, LINE].into_iter().chain(AGENTS) {
            self.net.at(self.rng.u64(0..500), Arrival::Restart(id(node)));
        }
    }

    pub(super) fn keep_trace(&mut self, lines: usize) {
        self.trace_lines = lines;
    }

    /// What the run did until now.
    pub(super) fn outcome(&self) -> Outcome {
        Outcome {
            events: self.events,
            converged_ms: self.now,
            twins: self.oracle.twins.len(),
            crashes: self.crashes,
            fingerprint: self.fingerprint,
        }
    }

    /// Draws what goes wrong, and what people do meanwhile.
    fn plan_faults(&mut self) {
        for _ in 0..self.rng.usize(2..8) {
            let at = self.rng.u64(1_000..FAULTY_MS);
            self.net.at(
                at,
                Arrival::Hub {
                    life: ANY_LIFE,
                    event: cnova_hub_core::Event::Tick,
                },
            );
        }
    }

    fn play(&mut self) -> Result<(), Violation> {
        let mut mishap_at = self.rng.u64(500..4_000);
        let mut healed = false;
        let mut look_at = FAULTY_MS + 1_000;
        loop {
            if let Some(what) = self.broken.take() {
                return Err(self.violation(what));
            }
            if self.events > MOST_EVENTS {
                return Err(self.violation(format!("{MOST_EVENTS} events without an end")));
            }
            let next = self
                .next_time()
                .min(if healed { look_at } else { mishap_at.min(FAULTY_MS) });
            self.now = self.now.max(next);
            if !healed && self.now >= FAULTY_MS {
                healed = true;
                self.heal_everything();
            } else if !healed && self.now >= mishap_at {
                self.mishap();
                mishap_at = self.now + self.rng.u64(200..4_000);
            }
            if healed && self.now >= look_at {
                self.readmit_everybody();
                let Some(why) = self.why_not_converged() else {
                    return Ok(());
                };
                if self.now >= CONVERGED_BY_MS {
                    return Err(self.violation(format!("not converged: {why}")));
                }
                look_at = self.now + 1_000;
            }
            self.step();
        }
    }

    pub(super) fn next_time(&self) -> u64 {
        let agents = self.agents.values().filter_map(|a| a.core.as_ref()?.poll_timeout());
        let gateways = self.gateways.values().filter_map(|g| g.core.as_ref()?.poll_timeout());
        let hub = self.hub.core.iter().filter_map(cnova_hub_core::Hub::poll_timeout);
        agents
            .chain(gateways)
            .chain(hub)
            .chain(self.net.next_time())
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Handles everything that is due now.
    pub(super) fn step(&mut self) {
        while let Some(arrival) = self.net.take(self.now) {
            self.events += 1;
            self.arrive(arrival);
            if self.broken.is_some() {
                return;
            }
        }
        let due = |t: Option<u64>, now| t.is_some_and(|t| t <= now);
        for node in self.agents.keys().cloned().collect::<Vec<_>>() {
            if due(
                self.agents[&node].core.as_ref().and_then(|c| c.poll_timeout()),
                self.now,
            ) {
                self.agent_event(&node, cnova_agent_core::Event::Tick);
            }
        }
        for node in self.gateways.keys().cloned().collect::<Vec<_>>() {
            if due(
                self.gateways[&node].core.as_ref().and_then(|c| c.poll_timeout()),
                self.now,
            ) {
                self.gateway_event(&node, cnova_gateway_core::Event::Tick);
            }
        }
        if due(self.hub.core.as_ref().and_then(|c| c.poll_timeout()), self.now) {
            self.hub_event(cnova_hub_core::Event::Tick);
        }
        self.events += 1;
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Message {
                from,
                to,
                kind,
                bytes,
                link,
            } => self.deliver(&from, &to, kind, bytes, link),
            Arrival::Forged { to, kind, bytes } => {
                self.log(format!("forged {} reaches {to}", kind.as_str()));
                self.arrive_from_above(&to, kind, bytes);
            }
            Arrival::Agent { node, life, event } if self.agents[&node].life == life => self.agent_event(&node, event),
            Arrival::Gateway { node, life, event } if self.gateways[&node].life == life => {
                self.gateway_event(&node, event);
            }
            Arrival::Hub { life, .. } if life == ANY_LIFE => self.somebody_applies(),
            Arrival::Hub { life, event } if self.hub.life == life => self.hub_event(event),
            Arrival::Agent { .. } | Arrival::Gateway { .. } | Arrival::Hub { .. } => {}
            Arrival::Workload { node, id, attempt, up } => self.workload_changes(&node, id, attempt, up),
            Arrival::Restart(node) => self.restart(&node),
            Arrival::Heal { child } => self.connect(&child),
        }
    }

    fn deliver(&mut self, from: &NodeId, to: &NodeId, kind: Kind, bytes: Vec<u8>, life: u64) {
        let child = if kind.is_up() { from } else { to };
        let link = self.links[child];
        if !link.up || link.life != life {
            return;
        }
        self.log(format!("{from} -> {to} {} {} B", kind.as_str(), bytes.len()));
        if kind.is_up() {
            let child = from.clone();
            if to.as_str() == HUB {
                self.hub_event(cnova_hub_core::Event::FromChild { child, kind, bytes });
            } else {
                self.gateway_event(to, cnova_gateway_core::Event::FromChild { child, kind, bytes });
            }
        } else {
            self.arrive_from_above(to, kind, bytes);
        }
    }

    fn arrive_from_above(&mut self, to: &NodeId, kind: Kind, bytes: Vec<u8>) {
        if self.agents.contains_key(to) {
            self.agent_event(to, cnova_agent_core::Event::Message { kind, bytes });
        } else {
            self.gateway_event(to, cnova_gateway_core::Event::FromParent { kind, bytes });
        }
    }

    /// A number for what somebody asks of the hub.
    pub(super) fn next_request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    fn somebody_applies(&mut self) {
        let request = self.next_request();
        let now_s = self.clock(&id(HUB)).wall_ms / 1000;
        use cnova_hub_core::Event;
        let event = if self.rng.u32(0..5) == 0 {
            let name = ["alpha", "beta", "gamma"][self.rng.usize(0..3)];
            Event::Delete {
                request,
                name: cnova_shared::ids::Name::new(name).expect("a valid name"),
            }
        } else {
            Event::Apply {
                request,
                manifest: Box::new(super::manifests::draw(
                    &mut self.rng,
                    now_s,
                    self.weather,
                    self.sickness,
                )),
            }
        };
        self.log(format!("somebody applies or deletes ({request})"));
        self.hub_event(event);
    }

    /// What breaks a commit: (before it, after it, the disk is full).
    pub(super) fn commit_fate(&mut self) -> (bool, bool, bool) {
        let f = self.faults;
        let before = happens(&mut self.rng, f.crash_before);
        let after = happens(&mut self.rng, f.crash_after);
        let full = happens(&mut self.rng, f.disk_full);
        (before, after, full)
    }

    fn heal_everything(&mut self) {
        self.log("everything is well from here".into());
        self.faults = Faults::NONE;
        for a in self.agents.values_mut() {
            a.power = cnova_shared::wire::v1::PowerLevel::Mains;
            a.clock_off_s = 0;
        }
        for g in self.gateways.values_mut() {
            g.clock_off_s = 0;
        }
        for node in self.agents.keys().cloned().collect::<Vec<_>>() {
            if self.is_alive(&node) {
                let calm = cnova_agent_core::schedule::Pressure::default();
                self.agent_event(&node, cnova_agent_core::Event::Pressure(calm));
                let level = cnova_shared::wire::v1::PowerLevel::Mains;
                let why = String::new();
                self.agent_event(&node, cnova_agent_core::Event::Power { level, why });
            }
        }
        for child in self.links.keys().cloned().collect::<Vec<_>>() {
            self.net.at(self.now + 1, Arrival::Heal { child });
        }
    }

    /// Nodes that are up and say the same as the hub; otherwise the first difference.
    pub(super) fn why_not_converged(&self) -> Option<String> {
        let Some(hub) = &self.hub.core else {
            return Some("the hub is down".into());
        };
        if let Some(why) = self.why_trust_differs(hub) {
            return Some(why);
        }
        for g in self.gateways.values() {
            match &g.core {
                Some(core) if core.spooled() == 0 => {}
                Some(core) => return Some(format!("{} still has {} messages to relay", g.node, core.spooled())),
                None => return Some(format!("{} is down", g.node)),
            }
        }
        let mut seen = BTreeSet::new();
        for a in self.agents.values() {
            let Some(core) = &a.core else {
                return Some(format!("{} is down", a.node));
            };
            let Some(info) = hub.node(&a.node) else {
                return Some(format!("the hub does not know {}", a.node));
            };
            if !info.in_sync {
                return Some(format!(
                    "{}: desired {}, reported {}",
                    a.node, info.desired, info.reported
                ));
            }
            for w in core.workloads() {
                use cnova_shared::wire::v1::WorkloadState as W;
                if !matches!(w.state, W::Running | W::CrashLoop | W::Finished) && w.reason.is_empty() {
                    return Some(format!("{}: {} is {:?} without a reason", a.node, w.id, w.state));
                }
                if matches!(w.state, W::Starting | W::Stopping | W::Fetching | W::Failed) {
                    return Some(format!("{}: {} is still {:?}: {}", a.node, w.id, w.state, w.reason));
                }
                let shown = hub
                    .workloads()
                    .into_iter()
                    .find(|i| i.node == a.node && i.application == w.id.application && i.workload == w.id.name);
                let same = shown.as_ref().is_some_and(|i| {
                    let is_desired = w.returned || i.desired == i.generation;
                    i.state == w.state && i.generation == w.app_generation && is_desired
                });
                if !same {
                    return Some(format!(
                        "{}: {} is {:?}, the hub shows {shown:?}",
                        a.node, w.id, w.state
                    ));
                }
                seen.insert((a.node.clone(), w.id));
            }
        }
        let ghost = hub.workloads().into_iter().find(|i| {
            let id = cnova_shared::ids::WorkloadId {
                application: i.application.clone(),
                name: i.workload.clone(),
            };
            !seen.contains(&(i.node.clone(), id))
        })?;
        Some(format!("the hub shows what is not there: {ghost:?}"))
    }
}

/// Marks a hub event that stands for a person's wish.
pub(super) const ANY_LIFE: u64 = u64::MAX;
