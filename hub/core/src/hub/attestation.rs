//! How far each node is trusted: challenges, appraisals, results, reference values.

use cnova_attestation::appraiser::{About, Known, Standing, Verdict};
use cnova_attestation::ear::Ear;
use cnova_attestation::reference::{self, PcrReference, ReferenceSet, Selector};
use cnova_attestation::result::{self, By, Expected, Opened, When};
use cnova_shared::bundle::Role;
use cnova_shared::envelope::{Untrusted, VerifiedBytes};
use cnova_shared::wire::v1::TrustItemKind;

use super::*;
use crate::api::{AttestChange, Draft};
use crate::placement::NodeTrust;
use crate::systems::Measured;

/// Whether a standing has become stale by time alone is looked at this often, milliseconds.
const LOOK_EVERY_MS: u64 = 30_000;

impl Hub {
    /// How far placement may trust a node, and why not further.
    pub(crate) fn standing(&self, node: &NodeId) -> NodeTrust {
        let standing = self.appraiser.standing(node, self.now_s());
        let (meets, keeps) = standing.meets();
        NodeTrust {
            meets,
            keeps,
            why: standing.why(),
        }
    }

    /// How a node proved itself, in one word.
    pub(crate) fn trust_word(&self, node: &NodeId) -> String {
        self.appraiser.standing(node, self.now_s()).word().to_owned()
    }

    /// What the last appraisal of a node came to.
    #[must_use]
    pub fn verdict(&self, node: &NodeId) -> Option<&Verdict> {
        self.appraiser.verdict(node)
    }

    /// The reference values.
    #[must_use]
    pub fn references(&self) -> &reference::References {
        &self.references
    }

    pub(super) fn known(&self, node: &NodeId) -> Option<Known> {
        let certificate = self.tree.certificate(node)?;
        Some(Known {
            tier: certificate.tier,
            ak: certificate.ak,
            key: certificate.key.clone(),
            session: self.tree.session_key(node)?.clone(),
        })
    }

    /// A node said hello: it may have begun anew, and it may not have its result.
    pub(super) fn greet(&mut self, node: &NodeId, now: Now) {
        let Some(known) = self.known(node) else { return };
        self.appraiser.greet(node, &known, now);
        if let Some(bytes) = self.ears.get(node).cloned() {
            self.send_to(node, Kind::Ear, bytes);
        }
        let quarantined = self
            .inventory
            .nodes()
            .get(node)
            .and_then(|r| r.hello.as_ref())
            .is_some_and(|h| h.alarms.iter().any(|a| a.code == "quarantine"));
        if quarantined && self.config.appraisal.releases {
            self.release(node);
        }
    }

    /// Tells a node in quarantine what is newest; it takes nothing older from then on.
    fn release(&mut self, node: &NodeId) -> bool {
        let hello = self.inventory.nodes().get(node).and_then(|r| r.hello.as_ref());
        let (Some(boot), Some(via)) = (hello.map(|h| h.boot.clone()), self.tree.via(node).cloned()) else {
            return false;
        };
        let Version { epoch, generation } = self.tree.desired(node).unwrap_or_default();
        let op = v1::Operation::Release {
            boot,
            epoch,
            generation,
        };
        self.note(format!(
            "{node} is let out of quarantine; nothing below {epoch}.{generation} is to be taken"
        ));
        let command = v1::Command {
            v: v1::VERSION,
            // Nobody waits for the answer.
            id: 0,
            op,
        };
        let node = node.clone();
        self.effects.push_back(Action::Command {
            child: via,
            node,
            command,
        });
        true
    }

    fn send_to(&mut self, node: &NodeId, kind: Kind, bytes: Vec<u8>) {
        if let Some(via) = self.tree.via(node).filter(|via| self.tree.is_connected(via)) {
            let child = via.clone();
            self.effects.push_back(Action::Forward { child, kind, bytes });
        }
    }

    pub(super) fn on_evidence(&mut self, node: &NodeId, evidence: VerifiedBytes, now: Now) {
        let (Some(known), Some(certificate)) = (self.known(node), self.tree.certificate(node)) else {
            return;
        };
        let hello = self.inventory.nodes().get(node).and_then(|r| r.hello.as_ref());
        let Some(hello) = hello else { return };
        let site = certificate.site.clone().unwrap_or(hello.site.clone());
        let (labels, launches) = (hello.labels.clone(), hello.role == v1::NodeRole::Agent);
        let about = About {
            node,
            site: &site,
            labels: &labels,
            known: &known,
            launches,
        };
        let before = self.appraiser.standing(node, self.now_s());
        match self
            .appraiser
            .judge(&about, evidence, &self.references, self.now_s(), now)
        {
            Err(why) => self.note(format!("evidence of {node} says nothing: {why}")),
            Ok(judged) => {
                let after = self.appraiser.standing(node, self.now_s());
                self.ops.push(Op::PutVerdict {
                    node: node.clone(),
                    verdict: Box::new(judged.verdict),
                });
                if before != after {
                    self.note(format!("{node} is {} now: {}", after.word(), after.why()));
                }
                if let Some(ear) = judged.ear {
                    self.effects.push_back(Action::SignEar(Box::new(ear)));
                }
                self.notice_standings(now);
            }
        }
    }

    pub(super) fn on_ear_signed(&mut self, node: NodeId, bytes: Vec<u8>) {
        self.ops.push(Op::PutEar {
            node: node.clone(),
            bytes: bytes.clone(),
        });
        self.send_to(&node, Kind::Ear, bytes.clone());
        self.ears.insert(node, bytes);
    }

    /// Challenges what is due.
    pub(super) fn attest(&mut self, now: Now) {
        let tree = &self.tree;
        let reachable = |node: &NodeId| tree.via(node).is_some_and(|via| tree.is_connected(via));
        for (node, challenge) in self.appraiser.poll(reachable, now) {
            if let Some(child) = self.tree.via(&node).cloned() {
                self.effects.push_back(Action::Challenge { child, node, challenge });
            }
        }
        if self.look_at_ms <= now.mono_ms {
            self.look_at_ms = now.mono_ms + LOOK_EVERY_MS;
            self.notice_standings(now);
        }
    }

    /// When [`Hub::attest`] has something to do, monotonic milliseconds.
    pub(super) fn attest_timeout(&self) -> Option<u64> {
        let tree = &self.tree;
        let reachable = |node: &NodeId| tree.via(node).is_some_and(|via| tree.is_connected(via));
        let challenge = self.appraiser.timeout(reachable);
        let look = (!self.standings.is_empty()).then_some(self.look_at_ms);
        challenge.into_iter().chain(look).min()
    }

    /// Who may be trusted less or more than at the last look has workloads placed anew.
    fn notice_standings(&mut self, now: Now) {
        let with_tpm = |s: &Standing| *s != Standing::Unattested;
        let standings: BTreeMap<NodeId, &'static str> = self
            .tree
            .descendants()
            .map(|n| (n, self.appraiser.standing(n, self.now_s())))
            .filter(|(_, s)| with_tpm(s))
            .map(|(n, s)| (n.clone(), s.word()))
            .collect();
        if standings != self.standings {
            self.standings = standings;
            self.reconcile(now);
        }
    }

    pub(super) fn on_attest_change(&mut self, request: RequestId, change: AttestChange, now: Now) {
        let result = match change {
            AttestChange::Demand(node) => self.demand(&node, now),
            AttestChange::Release(node) => match self.release(&node) {
                true => Ok(format!("{node} was told to leave its quarantine")),
                false => Err(format!("{node} has not said hello, so it cannot be told anything")),
            },
            AttestChange::PutSet(set) => self.put_set(*set, now),
            AttestChange::SetFromNode {
                name,
                node,
                nodes,
                image,
            } => self.set_from_node(name, &node, nodes, &image, now),
            AttestChange::DropSet(name) => self.drop_set(&name, now),
        };
        match result {
            Ok(text) => self.answer(request, Outcome::Attested { text }),
            Err(why) => self.refuse(request, vec![why]),
        }
    }

    fn demand(&mut self, node: &NodeId, now: Now) -> Result<String, String> {
        if self.tree.certificate(node).is_none() {
            return Err(format!("there is no node {node}"));
        }
        if !self.appraiser.demand(node, now) {
            return Err(format!(
                "{node} has no TPM: it cannot attest, and is shown as UNATTESTED"
            ));
        }
        Ok(format!("{node} is challenged"))
    }

    fn put_set(&mut self, set: ReferenceSet, now: Now) -> Result<String, String> {
        let mut references = self.references.clone();
        let name = set.name.clone();
        references.sets.retain(|s| s.name != name);
        references.sets.push(set);
        self.replace_references(references, now)?;
        let own_boot = self.own_boot_text(&name);
        Ok(format!(
            "reference values {name} are in force (references {}){own_boot}",
            self.references.version
        ))
    }

    fn drop_set(&mut self, name: &str, now: Now) -> Result<String, String> {
        let mut references = self.references.clone();
        let before = references.sets.len();
        references.sets.retain(|s| s.name != name);
        if references.sets.len() == before {
            return Err(format!("there are no reference values {name}"));
        }
        self.replace_references(references, now)?;
        Ok(format!(
            "reference values {name} are gone (references {})",
            self.references.version
        ))
    }

    /// What a node booted becomes what nodes shall boot; with an image, what it would boot then. The launch register is left
    /// out: its log is judged by itself.
    fn set_from_node(
        &mut self,
        name: String,
        node: &NodeId,
        nodes: Selector,
        image: &Measured,
        now: Now,
    ) -> Result<String, String> {
        let boot = self.predicted_boot(node, image)?;
        let reference = |(pcr, value): (&u8, &Digest)| {
            let values = BTreeSet::from([*value]);
            let events = BTreeSet::new();
            (*pcr, PcrReference { values, events })
        };
        let pcrs = boot.iter().map(reference).collect();
        let set = ReferenceSet {
            name,
            nodes,
            pcrs,
            ..ReferenceSet::default()
        };
        self.put_set(set, now)
    }

    fn replace_references(&mut self, mut references: reference::References, now: Now) -> Result<(), String> {
        references.v = reference::VERSION;
        // Versions go up also when the store was lost: gateways keep the newest that they have seen.
        references.version = references.version.saturating_add(1).max(now.wall_ms / 1000);
        reference::check(&references).map_err(|e| e.to_string())?;
        self.ops.push(Op::PutReferences(references.clone()));
        self.references = references;
        self.appraiser.references_changed(now);
        self.approve_boots(now);
        // On the way before anything that is rolled out from now on.
        self.sign_references(now);
        if !self.systems.is_empty() {
            self.reconcile(now);
        }
        Ok(())
    }

    /// The reference values as a document, for gateways that appraise while this hub is away; nothing to do when the one in
    /// force says the same and is by the hub's key.
    pub(super) fn sign_references(&mut self, now: Now) {
        let held = self.trust.kept(TrustItemKind::References);
        let is_good = held.is_some_and(|h| h.version() == self.references.version && Some(h.kid()) == self.signer);
        if self.references.version == 0 || is_good {
            return;
        }
        match self.may_sign_documents(now) {
            Ok(()) => {
                let draft = Box::new(Draft::References(self.references.clone()));
                self.effects.push_back(Action::SignDocument(draft));
            }
            Err(why) => self.note(format!("gateways get no reference values: {why}")),
        }
    }

    /// Results by another key are signed anew: nodes drop them when that key leaves the bundle.
    pub(super) fn sign_results_anew(&mut self, key: KeyId) {
        let anew = |bytes: &Vec<u8>| {
            let untrusted = Untrusted::read(bytes).ok().filter(|u| u.kid != key)?;
            let signed_by = self.trust.key_ever(untrusted.kid, Role::Attestation)?.clone();
            let opened = untrusted.verify(Kind::Ear, &signed_by).ok()?;
            Some(opened.decode::<Ear>().ok()?.into_value())
        };
        let ears: Vec<Ear> = self.ears.values().filter_map(anew).collect();
        let sign = |ear| Action::SignEar(Box::new(ear));
        self.effects.extend(ears.into_iter().map(sign));
    }

    /// A gateway has appraised one of its children while this hub was away: it is shown, and the hub judges for itself now.
    pub(super) fn on_appraised(&mut self, gateway: &NodeId, node: &NodeId, ear: &[u8], now: Now) {
        match self.open_of_gateway(gateway, node, ear) {
            Ok(result) => {
                let ear = result.ear();
                self.note(format!("{gateway} appraised {node} at {} s: {}", ear.iat, ear.status));
                self.appraiser.demand(node, now);
            }
            Err(why) => self.note(format!(
                "what {gateway} reports as its appraisal of {node} is not believed: {why}"
            )),
        }
    }

    fn open_of_gateway(&self, gateway: &NodeId, node: &NodeId, ear: &[u8]) -> Result<Opened, String> {
        let site = self.tree.certificate(node).and_then(|c| c.site.as_ref());
        let expected = Expected {
            subject: node,
            site: site.ok_or("it is not known here, or its certificate names no site")?,
            gateway: Some(gateway),
        };
        // Its delegation may have ended since.
        let opened = result::open(ear, &expected, &self.trust, When::Before).map_err(|e| e.to_string())?;
        match opened.by() {
            By::Gateway(_) => Ok(opened),
            By::Hub => Err("the hub signed it".into()),
        }
    }

    /// The newest result about a node that a gateway made in this hub's place and reported, and when that was told,
    /// milliseconds since 1970.
    pub(crate) fn delegated_result(&self, node: &NodeId) -> Option<(Opened, u64)> {
        let key = format!("appraised/{node}");
        let told = self.inventory.nodes().iter().filter_map(|(gateway, record)| {
            let entry = record.entries.get(&key)?;
            let Body::Appraised { ear, .. } = &entry.entry.body else {
                return None;
            };
            Some((self.open_of_gateway(gateway, node, ear).ok()?, entry.received_ms))
        });
        told.max_by_key(|(opened, _)| opened.ear().iat)
    }

    /// Gateways that may appraise, or are on the way to one, and have not said yet that they hold the reference values in
    /// force.
    pub(crate) fn without_references(&self) -> Vec<NodeId> {
        let is_behind = |node: &&NodeId| {
            let holder = self.tree.holder(node);
            holder.is_some_and(|h| !self.trust.holds(TrustItemKind::References, &h))
        };
        self.tree.descendants().filter(is_behind).cloned().collect()
    }
}
