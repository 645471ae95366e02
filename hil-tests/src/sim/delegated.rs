//! A run in which every node has a TPM and the hub is out of reach for hours: a machine comes up with something else than it
//! should, its gateway finds it out, and lets it back when it has booted as it should. Meanwhile messages are lost, doubled
//! and changed, programs die at their commits, and results are forged.

use cnova_attestation::ear::{Ear, Status, VerifierId};
use cnova_attestation::event_log::{Boot, Event as Logged, slice};
use cnova_attestation::reference::{PcrReference, ReferenceSet, References, Selector};
use cnova_attestation::testing::SoftTpm;
use cnova_gateway_core as gateway;
use cnova_hub_core as hub;
use cnova_hub_core::cndl;
use cnova_hub_core::policy::{AdmissionContext, PolicySet};
use cnova_shared::certificate::Tier;
use cnova_shared::envelope::{Claims, seal};
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::keys::Signer;
use cnova_shared::limits::DELEGATED_RESULT_S;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::{Challenge, WorkloadState};

use super::faults::Faults;
use super::net::Arrival;
use super::pki::{AGENTS, AREA, HUB, LINE, id, pki};
use super::world::{Outcome, TRACE_LINES, Violation, World};

/// Virtual milliseconds that anything may take once nothing goes wrong any more: two periods of the gateway's.
const PATIENCE_MS: u64 = 2 * 3_600_000;
/// For so long things go wrong in each part.
const FAULTY_MS: u64 = 12 * 60_000;
const LOOK_EVERY_MS: u64 = 1_000;
const LAUNCH_PCR: u8 = 14;

/// Runs one seed.
///
/// # Errors
/// The first broken invariant, or that something did not come to pass.
pub fn run_delegated(seed: u64) -> Result<Outcome, Violation> {
    run_traced(seed, TRACE_LINES)
}

fn run_traced(seed: u64, trace_lines: usize) -> Result<Outcome, Violation> {
    let mut world = World::new(seed);
    world.keep_trace(trace_lines);
    let drawn = std::mem::replace(&mut world.faults, Faults::NONE);
    // Agents may stop what is wanted, and must say why.
    (world.weather, world.rotates) = (true, false);
    world.give_tpms();
    world.start_nodes();
    let victim = id(AGENTS[world.rng.usize(0..AGENTS.len())]);

    world.until("everybody is attested and knows who may appraise", |w| w.is_prepared())?;
    world.apply_trusted();
    world.until("what asks for attestation runs", |w| {
        AGENTS.iter().all(|a| w.runs_trusted(&id(a)))
    })?;

    // The hub is gone. A machine comes up with another key in its secure boot.
    world.hub_is_cut = true;
    world.disconnect(&id(AREA), 1_000);
    world.faults = drawn;
    world.cut_power(&victim, true);
    world.suffer(&victim)?;
    world.until("the gateway finds it out", |w| {
        w.status(&victim) == Some(Status::Contraindicated)
    })?;
    world.until("what asks for attestation has ended there", |w| {
        !w.runs_trusted(&victim)
    })?;
    let others = AGENTS
        .iter()
        .map(|a| id(a))
        .filter(|a| *a != victim)
        .collect::<Vec<_>>();
    world.until("and runs elsewhere", |w| others.iter().all(|a| w.runs_trusted(a)))?;

    // It boots as it should, still without the hub.
    world.faults = drawn;
    world.cut_power(&victim, false);
    world.suffer(&victim)?;
    world.until("the gateway lets it back", |w| {
        w.status(&victim) == Some(Status::Affirming)
    })?;
    world.until("what asks for attestation runs there again", |w| {
        w.runs_trusted(&victim)
    })?;

    world.hub_is_cut = false;
    let back_s = world.clock(&id(HUB)).wall_ms / 1000;
    world.until("the hub shows who judged meanwhile, and judges itself again", |w| {
        w.is_shown(&victim, back_s)
    })?;
    Ok(world.outcome())
}

impl World {
    pub(super) fn give_tpms(&mut self) {
        for (node, identity) in pki().nodes.iter().filter(|(n, _)| n.as_str() != HUB) {
            self.tpms.insert(node.clone(), SoftTpm::with_key(&identity.ak));
        }
        for agent in AGENTS.map(id) {
            self.log_boot(&agent);
            if let Some(a) = self.agents.get_mut(&agent) {
                a.tier = Tier::Tpm;
            }
        }
        self.hub.stored.references = references(&SoftTpm::new());
    }

    fn log_boot(&mut self, agent: &NodeId) {
        let boot = Logged::Boot(Boot {
            agent: Digest::of(b"agent"),
            version: "sim".into(),
            boot: "sim".into(),
            before: None,
        });
        if let Some(tpm) = self.tpms.get_mut(agent) {
            tpm.log_and_extend(boot);
        }
    }

    /// A node's TPM answers a challenge.
    pub(super) fn attest(&mut self, node: &NodeId, verifier: &NodeId, challenge: &Challenge) {
        let Some(tpm) = self.tpms.get(node) else { return };
        let session = pki().nodes[node].session(self.life_of(node));
        let log = slice(&tpm.file, challenge.log.as_ref());
        let iat = self.clock(node).wall_ms / 1000;
        let evidence = tpm.evidence_of(node, &challenge.nonce, session.public_key(), log, iat);
        let bytes = self.speak(node, Kind::Evidence, verifier.as_str(), &evidence, false);
        self.log(format!("{node} attests to {verifier}"));
        self.send_up(node, Kind::Evidence, bytes);
    }

    /// A gateway signs a result, which must be within its delegation.
    pub(super) fn gateway_signs(&mut self, gateway: &NodeId, ear: &Ear) {
        let held = self.gateways[gateway].core.as_ref();
        let delegation = held
            .and_then(|c| c.trust().delegation(gateway))
            .map(|d| d.value().clone());
        let is_within = delegation.is_some_and(|d| ear.exp <= d.not_after && ear.exp <= ear.iat + DELEGATED_RESULT_S);
        self.check((!is_within).then(|| format!("{gateway} signs beyond its delegation")));
        let me = &pki().nodes[gateway];
        let claims = Claims {
            iss: gateway.clone(),
            aud: ear.subject.clone(),
            iat: ear.iat,
            exp: Some(ear.exp),
        };
        let bytes = seal(Kind::Ear, &claims, ear, &[], &me.key).expect("the simulator's messages can be encoded");
        self.log(format!("{gateway} says of {}: {}", ear.subject, ear.status));
        self.oracle.results.insert(bytes.clone(), ear.status);
        let (node, life) = (gateway.clone(), self.life_of(gateway));
        let about = ear.subject.clone();
        let event = gateway::Event::EarSigned { node: about, bytes };
        self.net.at(self.now, Arrival::Gateway { node, life, event });
    }

    /// Lets time go by until it is so.
    fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) -> Result<(), Violation> {
        let last = self.now + PATIENCE_MS;
        loop {
            if let Some(broken) = self.broken.take() {
                return Err(self.violation(broken));
            }
            if is_so(self) {
                return Ok(());
            }
            if self.now >= last {
                return Err(self.violation(format!("not within {PATIENCE_MS} ms: {what}")));
            }
            self.now = self.next_time().min(self.now + LOOK_EVERY_MS).max(self.now);
            self.step();
        }
    }

    /// Things go wrong for a while, and somebody forges results; then all links break once and come back.
    fn suffer(&mut self, victim: &NodeId) -> Result<(), Violation> {
        let end = self.now + FAULTY_MS;
        while self.now < end {
            let next = self.now + self.rng.u64(5_000..60_000);
            self.until_time(next)?;
            match self.rng.u32(0..6) {
                0 => self.crash(&id(LINE)),
                1 => {
                    let agent = id(AGENTS[self.rng.usize(0..AGENTS.len())]);
                    self.crash(&agent);
                }
                2 => self.disconnect(&id(LINE), 5_000),
                _ => self.forge_result(victim),
            }
        }
        self.faults = Faults::NONE;
        for node in AGENTS.into_iter().chain([LINE]).map(id) {
            self.disconnect(&node, 1_000);
        }
        Ok(())
    }

    pub(super) fn until_time(&mut self, time: u64) -> Result<(), Violation> {
        while self.now < time {
            if let Some(broken) = self.broken.take() {
                return Err(self.violation(broken));
            }
            self.now = self.next_time().min(time).max(self.now);
            self.step();
        }
        Ok(())
    }

    /// A machine loses power and comes up again, with what it should boot or with something else.
    pub(super) fn cut_power(&mut self, agent: &NodeId, is_tampered: bool) {
        self.log(format!("{agent} loses power; tampered with: {is_tampered}"));
        self.crash(agent);
        if let Some(a) = self.agents.get_mut(agent) {
            a.power_cut();
        }
        if let Some(tpm) = self.tpms.get_mut(agent) {
            tpm.reboot();
            if is_tampered {
                tpm.pcrs.insert(7, Digest::of(b"another key"));
            }
        }
        self.log_boot(agent);
    }

    /// Somebody sends an agent what looks like a result.
    fn forge_result(&mut self, agent: &NodeId) {
        let now_s = self.clock(&id(LINE)).wall_ms / 1000;
        let ear = Ear {
            subject: agent.clone(),
            key: pki().nodes[agent].key.public_key().clone(),
            nonce: vec![7; 32],
            iat: now_s,
            exp: now_s + 3600,
            verifier: VerifierId {
                developer: "nobody".into(),
                build: "forged".into(),
            },
            status: Status::Affirming,
            vector: cnova_attestation::ear::TrustVector::default(),
            policy: "none".into(),
            tier: Tier::Tpm,
            boot_measured: true,
            findings: Vec::new(),
        };
        let area = &pki().nodes[&id(AREA)].key;
        let line = &pki().nodes[&id(LINE)].key;
        let too_long = Ear {
            exp: now_s + DELEGATED_RESULT_S + 1,
            ..ear.clone()
        };
        let (iss, key, ear) = match self.rng.u32(0..4) {
            // No delegation; another key in a name that has one, or in the hub's; longer than it may.
            0 => (AREA, area, ear),
            1 => (LINE, &pki().rogue_key, ear),
            2 => (HUB, line, ear),
            _ => (LINE, line, too_long),
        };
        let claims = Claims {
            iss: id(iss),
            aud: agent.clone(),
            iat: ear.iat,
            exp: None,
        };
        let bytes = seal(Kind::Ear, &claims, &ear, &[], key).expect("a forged result can be encoded");
        let (to, kind) = (agent.clone(), Kind::Ear);
        self.net.at(self.now + 1, Arrival::Forged { to, kind, bytes });
    }

    fn apply_trusted(&mut self) {
        let digest = Digest::of(&[0]);
        let text = format!(
            "apiVersion: cnova/v1\nkind: Application\nmetadata: {{name: guarded}}\nworkloads:\n\
             - {{name: w, runtime: wasm, artifact: {{digest: \"{digest}\"}}, resources: {{memory: 8MiB, cpu: 100m}},\n   \
             placement: {{site: \"plant-7/**\", replicas: each, trust: attested}}}}\n"
        );
        let manifest = cndl::parse(&text, "sim.yaml").unwrap_or_else(|e| panic!("the simulator's manifest: {e}"));
        let context = AdmissionContext {
            user: "sim".into(),
            now_unix_s: self.clock(&id(HUB)).wall_ms / 1000,
        };
        let policy = PolicySet::builtin().expect("the built-in policy compiles");
        let manifest = policy.admit(manifest, &context).expect("the built-in policy takes it");
        let request = self.next_request();
        let manifest = Box::new(manifest);
        self.hub_event(hub::Event::Apply { request, manifest });
    }

    /// The hub finds everybody to be what it should be, and the gateway has what it needs to take its place.
    fn is_prepared(&self) -> bool {
        let Some(core) = &self.hub.core else { return false };
        let nodes = AGENTS.into_iter().chain([LINE]).map(id);
        let is_affirming = |n: NodeId| core.attestation(&n).is_some_and(|a| a.standing == "affirming");
        let line = self.gateways[&id(LINE)].core.as_ref();
        let holds = |trust: &cnova_shared::trust::TrustState| trust.delegation(&id(LINE)).is_some();
        let agents = AGENTS.map(|a| self.agents[&id(a)].core.as_ref());
        core.references_info().awaited.is_empty()
            && { nodes }.all(is_affirming)
            && line.is_some_and(|c| holds(c.trust()))
            && agents.iter().all(|a| a.is_some_and(|c| holds(c.trust())))
    }

    fn runs_trusted(&self, agent: &NodeId) -> bool {
        let core = self.agents[agent].core.as_ref();
        let workloads = core.map(cnova_agent_core::Agent::workloads).unwrap_or_default();
        workloads.iter().any(|w| w.state == WorkloadState::Running)
    }

    /// What the agent was told last.
    fn status(&self, agent: &NodeId) -> Option<Status> {
        self.oracle.judged.get(agent).copied()
    }

    fn is_shown(&self, agent: &NodeId, back_s: u64) -> bool {
        let shown = self.hub.core.as_ref().and_then(|c| c.attestation(agent));
        shown.is_some_and(|a| {
            let by_gateway = a.by_gateway.as_ref();
            let told = by_gateway.is_some_and(|g| g.gateway == LINE && g.status == "affirming");
            told && a.standing == "affirming" && a.judged_s >= back_s
        })
    }
}

/// What every machine of the simulator should have booted.
pub(super) fn references(tpm: &SoftTpm) -> References {
    let boot = tpm.pcrs.iter().filter(|(pcr, _)| **pcr != LAUNCH_PCR);
    let one = |value: &Digest| PcrReference {
        values: [*value].into(),
        events: Default::default(),
    };
    let set = ReferenceSet {
        name: "sim-image".into(),
        nodes: Selector {
            all: true,
            ..Selector::default()
        },
        pcrs: boot.map(|(pcr, value)| (*pcr, one(value))).collect(),
        ..ReferenceSet::default()
    };
    References {
        v: 1,
        version: 1,
        sets: vec![set],
    }
}
