//! Operating systems: which node gets which one, and when.

use cnova_attestation::appraiser::LOADS_PCR;
use cnova_attestation::event_log::{ZERO, extended};
use cnova_shared::certificate::Tier;
use cnova_shared::system_bundle::compare_versions;
use cnova_shared::wire::v1::{SystemReport, SystemState};

use super::*;
use crate::cndl::SystemDef;
use crate::policy::AdmittedSystem;
use crate::systems::{BundleFacts, Measured, NodeSystem, StoredSystem, SystemInfo};

/// The key of the report.
const KEY: &str = "system";
/// Bundles of which it is kept what was found, beyond those in force.
const FACTS_KEPT: usize = 64;

/// A system in force.
#[derive(Debug)]
pub(crate) struct SystemInForce {
    generation: u64,
    manifest: AdmittedSystem,
    bundle: Digest,
    facts: BundleFacts,
}

impl SystemInForce {
    fn def(&self) -> &SystemDef {
        self.manifest.system()
    }

    fn is_asked_by(&self, twin: &v1::System) -> bool {
        twin.bundle.digest == self.bundle && twin.attempt == self.def().attempt
    }

    fn is_about(&self, report: &SystemReport) -> bool {
        report.bundle == Some(self.bundle) && report.attempt == self.def().attempt
    }

    fn to_wire(&self) -> v1::System {
        let def = self.def();
        v1::System {
            name: def.name.clone(),
            generation: self.generation,
            bundle: v1::Artifact {
                digest: self.bundle,
                size: self.facts.size,
            },
            header: self.facts.header_digest,
            version: self.facts.header.version.clone(),
            attempt: def.attempt,
            tries: def.tries,
            downgrade: def.downgrade,
            window: def.window.as_ref().map(rollout::schedule),
            health: v1::SystemHealth {
                within_s: def.within_ms.div_ceil(1000).max(1),
                workloads: def.workloads.clone(),
                parent: def.parent,
            },
        }
    }
}

/// How many nodes of a system failed, and which of its nodes are under way: to it, or to another one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count {
    failed: u32,
    under_way: BTreeSet<NodeId>,
}

/// So many nodes that others wait for are named.
const NAMED: usize = 5;

/// Nothing more comes of it.
const fn is_over(state: SystemState) -> bool {
    matches!(
        state,
        SystemState::Confirmed | SystemState::RolledBack | SystemState::Failed
    )
}

/// What register 4 and the image's own registers will hold, by what the node last showed.
fn predicted(
    mut pcrs: BTreeMap<u8, Digest>,
    loads: &[Digest],
    image: &Measured,
) -> Result<BTreeMap<u8, Digest>, String> {
    for (pcr, values) in &image.measured {
        if let (Some(held), Some(value)) = (pcrs.get_mut(pcr), values.first()) {
            *held = *value;
        }
    }
    let (Some(held), false) = (pcrs.get_mut(&LOADS_PCR), image.loads.is_empty()) else {
        return Ok(pcrs);
    };
    let before = loads.len().checked_sub(image.loads.len()).and_then(|n| loads.get(..n));
    let before = before.ok_or(
        "the node has not shown what its firmware starts (register 4): what it will hold after the update is not known",
    )?;
    *held = before
        .iter()
        .chain(&image.loads)
        .fold(ZERO, |value, load| extended(&value, load));
    Ok(pcrs)
}

impl Hub {
    pub(super) fn restore_system(&mut self, name: &Name, stored: StoredSystem) {
        match cndl::parse_system(&stored.manifest, name.as_str()) {
            Ok(manifest) => {
                let context = AdmissionContext {
                    user: stored.user,
                    now_unix_s: stored.admitted_s,
                };
                let manifest = AdmittedSystem::restored(manifest, context);
                self.take_system(manifest, stored.generation, stored.facts);
            }
            Err(e) => self.note(format!("stored system {name} cannot be read and is left out: {e}")),
        }
    }

    fn take_system(&mut self, manifest: AdmittedSystem, generation: u64, facts: BundleFacts) {
        let name = manifest.system().name.clone();
        let Some(bundle) = manifest.system().bundle.digest().and_then(|d| d.parse().ok()) else {
            return;
        };
        self.systems.insert(
            name,
            SystemInForce {
                generation,
                manifest,
                bundle,
                facts,
            },
        );
    }

    pub(super) fn on_apply_system(&mut self, request: RequestId, manifest: AdmittedSystem, now: Now) {
        if let Some(file) = manifest.manifest().unresolved_file() {
            let why =
                format!("the manifest names the file {file}; upload it and name its digest, as `cnova apply` does");
            return self.refuse(request, vec![why]);
        }
        let digest = manifest.system().bundle.digest().unwrap_or_default().to_owned();
        let Some(bundle) = digest.parse().ok().filter(|d| self.artifacts.contains_key(d)) else {
            return self.refuse(request, vec![format!("artifact {digest} was never uploaded")]);
        };
        if !matches!(self.bundles.get(&bundle), Some(Ok(_))) && self.looking_into.insert(bundle) {
            self.effects.push_back(Action::InspectBundle(bundle));
        }
        self.waiting_systems.push((request, bundle, manifest));
        self.judge_systems(now);
    }

    pub(super) fn on_bundle_inspected(&mut self, bundle: Digest, result: Result<BundleFacts, String>, now: Now) {
        self.looking_into.remove(&bundle);
        while self.bundles.len() >= FACTS_KEPT {
            self.bundles.pop_first();
        }
        self.bundles.insert(bundle, result.map_err(|why| limits::clip(&why)));
        self.judge_systems(now);
        self.bundles.retain(|_, found| found.is_ok());
    }

    fn judge_systems(&mut self, now: Now) {
        for (request, bundle, manifest) in std::mem::take(&mut self.waiting_systems) {
            match self.bundles.get(&bundle).cloned() {
                None => self.waiting_systems.push((request, bundle, manifest)),
                Some(Ok(facts)) => self.commit_system(request, manifest, facts, now),
                Some(Err(why)) => {
                    let hint = "firmware-images/build BOARD --bundle makes one".to_owned();
                    let errors = manifest.manifest().mistake(why, Some(hint));
                    self.answer(request, Outcome::Mistakes(errors));
                }
            }
        }
    }

    fn commit_system(&mut self, request: RequestId, manifest: AdmittedSystem, facts: BundleFacts, now: Now) {
        let name = manifest.system().name.clone();
        let before = self.systems.get(&name);
        let changed = before.is_none_or(|s| s.def() != manifest.system());
        let generation = before.map_or(0, |s| s.generation) + u64::from(changed);
        if changed {
            let (user, version) = (&manifest.context().user, &facts.header.version);
            self.note(format!(
                "system {name} (version {version}, generation {generation}) is in force, by {user}"
            ));
            let stored = StoredSystem {
                generation,
                manifest: manifest.manifest().to_value().to_string(),
                user: manifest.context().user.clone(),
                admitted_s: manifest.context().now_unix_s,
                facts: facts.clone(),
            };
            let op = Op::PutSystem {
                name: name.clone(),
                system: Box::new(stored),
            };
            self.ops.push(op);
            self.take_system(manifest, generation, facts);
        }
        self.reconcile(now);
        let nodes = self.system_nodes(&name);
        let asked = nodes.iter().filter(|(_, n)| n.asked).map(|(id, _)| id.to_string());
        let held = nodes
            .iter()
            .filter(|(_, n)| !n.asked)
            .map(|(id, n)| (id.to_string(), n.reason.clone()));
        let outcome = Outcome::Applied {
            placed: BTreeMap::from([("system".to_owned(), asked.collect())]),
            unplaced: held.collect(),
            name,
            generation,
            changed,
        };
        self.answer(request, outcome);
    }

    pub(super) fn on_delete_system(&mut self, request: RequestId, name: &Name, now: Now) {
        if self.systems.remove(name).is_none() {
            let what = format!("system {name}");
            return self.answer(request, Outcome::NotFound { what });
        }
        self.ops.push(Op::DropSystem(name.clone()));
        self.answer(request, Outcome::Deleted { name: name.clone() });
        self.reconcile(now);
    }

    /// Bundles that systems and twins refer to.
    pub(super) fn used_bundles(&self) -> BTreeSet<Digest> {
        let waiting = self.waiting_systems.iter().map(|(_, bundle, _)| *bundle);
        let twins = self
            .composed
            .values()
            .filter_map(|m| Some(m.system.as_ref()?.bundle.digest));
        let in_force = self.systems.values().map(|s| s.bundle);
        in_force.chain(waiting).chain(twins).collect()
    }

    pub(crate) fn system_report(&self, node: &NodeId) -> Option<&SystemReport> {
        let entry = self.inventory.nodes().get(node)?.entries.get(KEY)?;
        match &entry.entry.body {
            Body::System(report) => Some(report),
            _ => None,
        }
    }

    fn selects(&self, system: &SystemInForce, node: &NodeId) -> bool {
        let hello = self.inventory.nodes().get(node).and_then(|r| r.hello.as_ref());
        let Some(hello) = hello.filter(|h| h.role == v1::NodeRole::Agent) else {
            return false;
        };
        let (def, labels) = (system.def(), &hello.labels);
        def.site.matches(hello.site.as_str()) && def.node_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
    }

    /// The system for a node's next twin: a new one when its turn has come, and what its twin said before until then.
    pub(super) fn system_for(&self, node: &NodeId) -> Option<Box<v1::System>> {
        let before = self.composed.get(node).and_then(|m| m.system.as_deref());
        let mut meant = self.systems.values().filter(|s| self.selects(s, node));
        let first = meant.next()?;
        let kept = || {
            before
                .filter(|b| self.systems.contains_key(&b.name))
                .cloned()
                .map(Box::new)
        };
        if meant.next().is_some() || self.held_back(node, first).is_some() {
            return kept();
        }
        Some(Box::new(first.to_wire()))
    }

    /// Why a node is not asked for a system now.
    fn held_back(&self, node: &NodeId, system: &SystemInForce) -> Option<String> {
        let before = self.composed.get(node).and_then(|m| m.system.as_deref());
        if before.is_some_and(|b| system.is_asked_by(b)) {
            // Whatever is under way is not taken back.
            return None;
        }
        if let Some(why) = self.why_revoked(node) {
            return Some(why);
        }
        let (header, def) = (&system.facts.header, system.def());
        let report = self.system_report(node).filter(|r| !r.compatible.is_empty());
        let Some(report) = report else {
            return Some("it has not said that its system has two slots (docs/OS-UPDATES.md)".into());
        };
        if report.compatible != header.compatible {
            return Some(format!(
                "it is a {}, and the bundle is for the board {}",
                report.compatible, header.compatible
            ));
        }
        if compare_versions(&header.version, &report.version).is_lt() && !def.downgrade {
            return Some(format!(
                "version {} is older than {}, which runs there; say slots.downgrade: true where that is meant",
                header.version, report.version
            ));
        }
        if let Err(why) = self.will_be_trusted(node, &Measured::from(header)) {
            return Some(why);
        }
        self.turn(node, system)
    }

    /// Counts for each system how many nodes failed and how many are under way: once for all nodes that are looked at next.
    pub(super) fn count_systems(&mut self) {
        let mut counts = BTreeMap::new();
        for (name, system) in &self.systems {
            let mut count = Count::default();
            for (node, made) in &self.composed {
                let Some(asked) = made.system.as_deref() else { continue };
                let is_asked = system.is_asked_by(asked);
                if !is_asked && !self.selects(system, node) {
                    continue;
                }
                let about = |r: &&SystemReport| r.bundle == Some(asked.bundle.digest) && r.attempt == asked.attempt;
                match self.system_report(node).filter(about).map(|r| r.state) {
                    Some(SystemState::RolledBack | SystemState::Failed) => count.failed += u32::from(is_asked),
                    Some(SystemState::Confirmed) => {}
                    // Whoever is let in no more never says how it ended.
                    _ if self.why_revoked(node).is_some() => {}
                    _ => {
                        count.under_way.insert(node.clone());
                    }
                }
            }
            counts.insert(name.clone(), count);
        }
        self.system_counts = counts;
    }

    /// One node more is asked for a system.
    pub(super) fn count_asked(&mut self, node: &NodeId, before: Option<&v1::System>, now: Option<&v1::System>) {
        let Some(now) = now else { return };
        let is_same = before.is_some_and(|b| b.bundle.digest == now.bundle.digest && b.attempt == now.attempt);
        if !is_same {
            let count = self.system_counts.entry(now.name.clone()).or_default();
            count.under_way.insert(node.clone());
        }
    }

    /// Why this node does not begin now.
    fn turn(&self, node: &NodeId, system: &SystemInForce) -> Option<String> {
        let def = system.def();
        let count = self.system_counts.get(&def.name)?;
        if count.failed > def.max_failures {
            let (failed, most) = (count.failed, def.max_failures);
            return Some(format!(
                "the rollout has stopped: {failed} node(s) failed, rollout.maxFailures is {most}"
            ));
        }
        // A node that is under way to another system takes nobody's place but its own.
        let others: Vec<&str> = count
            .under_way
            .iter()
            .filter(|n| *n != node)
            .map(NodeId::as_str)
            .collect();
        if others.len() < usize::try_from(def.at_once).unwrap_or(usize::MAX) {
            return None;
        }
        let named = others
            .get(..NAMED)
            .map_or(others.join(", "), |some| format!("{}, ...", some.join(", ")));
        Some(format!(
            "its turn comes: {} node(s) are under way: {named}",
            others.len()
        ))
    }

    /// That a node with a TPM will be what it should be once it has booted this, by what is published now: the reference
    /// values, and the boots under which its own secrets open.
    fn will_be_trusted(&self, node: &NodeId, image: &Measured) -> Result<(), String> {
        if self.known(node).is_none_or(|k| k.tier != Tier::Tpm) {
            return Ok(());
        }
        let add = format!("cnova reference add NAME --from-node {node} --from-bundle FILE");
        let boot = self.predicted_boot(node, image)?;
        let hello = self.inventory.nodes().get(node).and_then(|r| r.hello.as_ref());
        let Some(hello) = hello else {
            return Err("it has not said hello".into());
        };
        let site = self
            .tree
            .certificate(node)
            .and_then(|c| c.site.clone())
            .unwrap_or(hello.site.clone());
        let launch_pcr = self.config.appraisal.launch_pcr;
        let sets = self
            .references
            .sets
            .iter()
            .filter(|s| s.nodes.selects(node, &site, &hello.labels));
        let fits = |set: &cnova_attestation::reference::ReferenceSet| {
            let mut named = set.pcrs.iter().filter(|(pcr, _)| **pcr != launch_pcr);
            named.all(|(pcr, r)| boot.get(pcr).is_some_and(|v| r.values.contains(v)))
        };
        let mut sets = sets.peekable();
        if sets.peek().is_some() && !sets.any(fits) {
            return Err(format!(
                "no reference values are published for what it will boot: {add}"
            ));
        }
        if self.approvers.is_empty() && self.trust.boot_policy().is_none() {
            return Ok(());
        }
        let own = self
            .trust
            .boot_policy()
            .map(|p| p.value().for_node(node, &site, &hello.labels, self.trust.bundle()));
        let approved = own.is_some_and(|own| own.fitting(&boot).is_some());
        if approved {
            Ok(())
        } else {
            Err(format!("what it will boot is not approved as its own boot yet: {add}"))
        }
    }

    /// The registers of a node once it has booted this, but the launch register.
    pub(super) fn predicted_boot(&self, node: &NodeId, image: &Measured) -> Result<BTreeMap<u8, Digest>, String> {
        let verdict = self.appraiser.verdict(node).filter(|v| !v.pcrs.is_empty());
        let verdict =
            verdict.ok_or_else(|| format!("{node} has not shown its registers: `cnova attest now {node}` asks it"))?;
        let mut pcrs = verdict.pcrs.clone();
        pcrs.remove(&self.config.appraisal.launch_pcr);
        predicted(pcrs, &verdict.loads, image)
    }

    /// A node said how its system is: another one's turn may have come.
    pub(super) fn on_system_said(&mut self, node: &NodeId, report: &SystemReport, now: Now) {
        if is_over(report.state) {
            let why = if report.reason.is_empty() {
                String::new()
            } else {
                format!(": {}", report.reason)
            };
            let (wanted, state) = (&report.wanted, report.state);
            self.note(format!("system of {node}: version {wanted} is {state:?}{why}"));
        }
        // What it is at in between makes room for nobody.
        if !self.systems.is_empty() && (is_over(report.state) || report.state == SystemState::Idle) {
            self.reconcile(now);
        }
    }

    fn system_nodes(&self, name: &Name) -> BTreeMap<NodeId, NodeSystem> {
        let Some(system) = self.systems.get(name) else {
            return BTreeMap::new();
        };
        let nodes = self.inventory.nodes().keys().filter(|n| self.selects(system, n));
        nodes
            .map(|node| {
                let before = self.composed.get(node).and_then(|m| m.system.as_deref());
                let asked = before.is_some_and(|b| system.is_asked_by(b));
                let rival = self
                    .systems
                    .iter()
                    .find(|(other, s)| *other != name && self.selects(s, node));
                let held = match rival {
                    Some((other, _)) if !asked => Some(format!("system {other} is for it as well: only one can be")),
                    _ => self.held_back(node, system),
                };
                let report = self.system_report(node);
                let is_about = asked && report.is_some_and(|r| system.is_about(r));
                (node.clone(), NodeSystem::of(report, is_about, asked, held))
            })
            .collect()
    }

    /// All systems.
    #[must_use]
    pub fn systems(&self) -> Vec<SystemInfo> {
        let info = |(name, s): (&Name, &SystemInForce)| SystemInfo {
            name: name.clone(),
            generation: s.generation,
            user: s.manifest.context().user.clone(),
            version: s.facts.header.version.clone(),
            compatible: s.facts.header.compatible.clone(),
            bundle: s.bundle,
            attempt: s.def().attempt,
            manifest: s.manifest.manifest().to_value(),
            nodes: self.system_nodes(name),
        };
        self.systems.iter().map(info).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_predicted_from_what_stands_before_it() {
        let d = |n: u8| Digest([n; 32]);
        let loads = [d(1), d(2), d(3), d(4)];
        let replay = |loads: &[Digest]| loads.iter().fold(ZERO, |value, load| extended(&value, load));
        let register = replay(&loads);
        let pcrs = BTreeMap::from([(0, d(9)), (4, register), (11, d(8))]);
        let image = Measured {
            measured: BTreeMap::from([(11, vec![d(7)]), (12, vec![d(6)])]),
            loads: vec![d(13), d(14)],
        };
        let boot = predicted(pcrs.clone(), &loads, &image).unwrap();
        let after = replay(&[d(1), d(2), d(13), d(14)]);
        // What the node does not quote is not made up.
        assert_eq!(boot, BTreeMap::from([(0, d(9)), (4, after), (11, d(7))]));
        let same = Measured {
            loads: vec![d(3), d(4)],
            ..Measured::default()
        };
        assert_eq!(predicted(pcrs.clone(), &loads, &same).unwrap(), pcrs);
        assert!(predicted(pcrs, &[d(3)], &image).unwrap_err().contains("register 4"));
    }
}
