//! What the fleet trusts: newer bundles, who is revoked, what gateways may decide; and everything in force signed anew
//! when the hub's key changes.

use super::*;
use cnova_shared::bundle::Role;
use cnova_shared::ids::SitePath;
use cnova_shared::trust::{StoredTrust, TrustOp, revoked_text};
use cnova_shared::trust_documents::{Delegation, Revocations, RevokedNode};
use cnova_shared::wire::v1::{TrustItem, TrustItemKind};

use crate::api::Draft;

/// How often delegations are looked at, milliseconds.
const LOOK_AT_DELEGATIONS_MS: u64 = 10 * 60_000;

impl Hub {
    /// Keeps the bundles that the store does not hold yet, and says what of it does not verify.
    pub(super) fn begin_trust(&mut self, held: &StoredTrust, faults: &[String], now: Now) {
        for fault in faults {
            self.note(fault.clone());
        }
        let missing: Vec<(u64, Vec<u8>)> = self
            .trust
            .bundles()
            .map(|b| (b.contents().version, b.bytes().to_vec()))
            .filter(|(v, bytes)| held.bundles.get(v) != Some(bytes))
            .collect();
        if !missing.is_empty() {
            self.trust_is_new(now);
        }
        let put = |(version, bytes)| Op::Trust(TrustOp::PutBundle { version, bytes });
        self.ops.extend(missing.into_iter().map(put));
        self.delegations_at = Some(now.mono_ms);
        self.effects.push_back(Action::TrustChanged(self.trust.view()));
    }

    fn trust_is_new(&mut self, now: Now) {
        self.trust_since_ms = now.wall_ms;
        self.ops.push(Op::TrustSince(now.wall_ms));
    }

    /// Why a node is not trusted any more; by its last key, when the hub has heard of it.
    pub(crate) fn why_revoked(&self, node: &NodeId) -> Option<String> {
        self.trust.revoked(node, self.tree.key_of(node)).map(revoked_text)
    }

    /// A node that holds an older bundle than the hub for too long: it was not reached, or somebody keeps it from it.
    pub(crate) fn behind_alarm(&self, version: u64) -> Option<v1::Alarm> {
        let newest = self.trust.version();
        let is_late = self.wall_ms >= self.trust_since_ms.saturating_add(limits::TRUST_BEHIND_MS);
        (version < newest && is_late).then(|| v1::Alarm {
            code: "trust-behind".into(),
            detail: format!(
                "it last said that it holds trust bundle version {version}; version {newest} is out for {} hours. Look at the \
                 links on the way to it, and at the gateways before it",
                self.wall_ms.saturating_sub(self.trust_since_ms) / 3_600_000
            ),
        })
    }

    pub(super) fn on_bundle(&mut self, request: RequestId, bytes: Vec<u8>, now: Now) {
        let item = TrustItem {
            kind: TrustItemKind::Bundle,
            body: bytes.into(),
        };
        let taken = self.trust.take(&item, now.wall_ms / 1000);
        let version = self.trust.version();
        let (changed, text) = match taken {
            Err(e) => return self.refuse(request, vec![e.to_string()]),
            Ok(None) => (false, format!("trust bundle version {version} is in force already")),
            Ok(Some(op)) => {
                self.ops.push(Op::Trust(op));
                self.trust_is_new(now);
                self.trust_taken();
                (
                    true,
                    format!("trust bundle version {version} is in force and on its way"),
                )
            }
        };
        let outcome = Outcome::Trusted { version, changed, text };
        self.answer(request, outcome);
    }

    fn trust_taken(&mut self) {
        self.tree.trust_changed(&self.trust);
        self.effects.push_back(Action::TrustChanged(self.trust.view()));
    }

    /// Whatever another key signed and is in force is signed anew: nodes that begin with nothing take only what a key of
    /// their bundle signed.
    pub(super) fn on_signer(&mut self, key: KeyId, now: Now) {
        self.signer = Some(key);
        let foreign = self.tree.twin_keys().filter(|(_, k)| *k != key).map(|(n, _)| n.clone());
        let mut twins = Vec::new();
        for node in foreign.collect::<Vec<_>>() {
            let twin = self.tree.twin_bytes(&node).map(|b| self.trust.reopen_twin(b));
            match twin {
                Some(Ok(twin)) => twins.push(twin.twin().clone()),
                Some(Err(e)) => self.note(format!("the twin of {node} cannot be signed anew: {e}")),
                None => {}
            }
        }
        for twin in twins {
            self.effects.push_back(Action::SignTwin(Box::new(twin)));
        }
        let list = self.trust.revocations().filter(|l| l.kid() != key);
        if let Some(nodes) = list.map(|l| l.value().nodes.clone()) {
            self.sign_revocations(nodes, now);
        }
        self.sign_results_anew(key);
        self.sign_references(now);
        self.delegations_at = Some(now.mono_ms);
        self.approve_boots(now);
    }

    /// Versions go up also when the store was lost: nodes keep the newest list that they have seen.
    fn sign_revocations(&mut self, nodes: Vec<RevokedNode>, now: Now) {
        let now_s = now.wall_ms / 1000;
        let held = self.trust.revocations().map_or(0, |l| l.value().version);
        let list = Revocations::new(held.saturating_add(1).max(now_s), now_s, nodes);
        let draft = Box::new(Draft::Revocations(list));
        self.effects.push_back(Action::SignDocument(draft));
    }

    fn revoked_nodes(&self) -> Vec<RevokedNode> {
        self.trust
            .revocations()
            .map(|l| l.value().nodes.clone())
            .unwrap_or_default()
    }

    /// Whether what the hub signs about trust would be believed.
    pub(super) fn may_sign_documents(&self, now: Now) -> Result<(), String> {
        let now_s = now.wall_ms / 1000;
        match self.signer {
            Some(key) if self.trust.bundle().key(key, Role::Attestation, now_s).is_some() => Ok(()),
            Some(key) => Err(format!(
                "the trust bundle does not let the hub's key {key} sign revocations and delegations (role attestation): \
                 have the root keys sign one that does (cnova trust rotate)"
            )),
            None => Err("the hub has no signing key".into()),
        }
    }

    pub(super) fn on_revoke(&mut self, request: RequestId, node: NodeId, keys_only: bool, reason: String, now: Now) {
        if let Err(why) = self.may_sign_documents(now) {
            return self.refuse(request, vec![why]);
        }
        if node == self.config.node {
            let why = "the hub cannot revoke itself: rotate its key (cnova trust rotate, cnova trust revoke)";
            return self.refuse(request, vec![why.into()]);
        }
        let key = self.tree.key_of(&node);
        if keys_only && key.is_none() {
            let why = format!("the hub has never heard {node} and knows no key of it: revoke the whole name");
            return self.refuse(request, vec![why]);
        }
        let mut nodes = self.revoked_nodes();
        let before = nodes.iter().position(|r| r.node == node).map(|i| nodes.remove(i));
        let mut keys = before.as_ref().map(|b| b.keys.clone()).unwrap_or_default();
        keys.extend(key.filter(|k| !keys.contains(k)));
        // The newest count; a name that had so many devices is revoked as a whole.
        let is_full = keys.len() > limits::REVOKED_KEYS;
        keys.truncate(limits::REVOKED_KEYS);
        nodes.push(RevokedNode {
            is_whole: !keys_only || is_full || before.is_some_and(|b| b.is_whole),
            keys,
            reason: limits::clip_to(&reason, limits::REASON_BYTES),
            at_s: now.wall_ms / 1000,
            node: node.clone(),
        });
        if nodes.len() > limits::REVOKED_NODES {
            let most = limits::REVOKED_NODES;
            return self.refuse(
                request,
                vec![format!("{most} nodes are revoked already: begin a new node CA")],
            );
        }
        self.revoking.push_back((request, format!("{node} is revoked")));
        self.sign_revocations(nodes, now);
    }

    pub(super) fn on_readmit(&mut self, request: RequestId, node: &NodeId, new_key: bool, now: Now) {
        if let Err(why) = self.may_sign_documents(now) {
            return self.refuse(request, vec![why]);
        }
        let mut nodes = self.revoked_nodes();
        let Some(at) = nodes.iter().position(|r| r.node == *node) else {
            let what = format!("revocation of {node}");
            return self.answer(request, Outcome::NotFound { what });
        };
        let entry = nodes.remove(at);
        if new_key && !entry.keys.is_empty() {
            nodes.push(RevokedNode {
                is_whole: false,
                ..entry
            });
        }
        self.revoking.push_back((request, format!("{node} is let in again")));
        self.sign_revocations(nodes, now);
    }

    pub(super) fn on_document(&mut self, draft: Draft, signed: Result<Vec<u8>, String>, now: Now) {
        let (kind, version) = match &draft {
            Draft::Revocations(list) => (TrustItemKind::Revocations, list.version),
            Draft::Delegation(d) => (TrustItemKind::Delegation, d.version),
            Draft::BootPolicy(p) => (TrustItemKind::BootPolicy, p.version),
            Draft::References(r) => (TrustItemKind::References, r.version),
        };
        let waiting = if kind == TrustItemKind::Revocations {
            self.revoking.pop_front()
        } else {
            None
        };
        let taken = signed.and_then(|bytes| {
            let body = bytes.into();
            let taken = self.trust.take(&TrustItem { kind, body }, now.wall_ms / 1000);
            taken.map_err(|e| e.to_string())
        });
        match (taken, waiting) {
            (Err(why), Some((request, _))) => self.refuse(request, vec![why]),
            (Err(why), None) => self.note(format!("a document was not signed: {why}")),
            (Ok(op), waiting) => {
                self.ops.extend(op.map(Op::Trust));
                self.trust_taken();
                // What a system waits for may be published now.
                if kind == TrustItemKind::Revocations || !self.systems.is_empty() {
                    self.reconcile(now);
                }
                if let Some((request, text)) = waiting {
                    let changed = true;
                    self.answer(request, Outcome::Trusted { version, changed, text });
                }
            }
        }
    }

    /// Delegations that are due are signed; ones that are no longer allowed are taken back.
    pub(super) fn look_at_delegations(&mut self, now: Now) {
        if self.delegations_at.is_none_or(|at| at > now.mono_ms) {
            return;
        }
        let rules = &self.config.delegation;
        let is_idle = rules.gateways.is_empty() && rules.sites.is_empty() && self.trust.delegations().next().is_none();
        self.delegations_at = (!is_idle).then_some(now.mono_ms + LOOK_AT_DELEGATIONS_MS);
        if is_idle || self.may_sign_documents(now).is_err() {
            return;
        }
        let gateways = self.inventory.nodes().iter().filter_map(|(node, record)| {
            let hello = record.hello.as_ref()?;
            (hello.role == v1::NodeRole::Gateway).then(|| (node.clone(), hello.site.clone()))
        });
        let due: Vec<Delegation> = gateways
            .filter_map(|(node, site)| self.due(&node, &site, now))
            .collect();
        for d in due {
            let draft = Box::new(Draft::Delegation(d));
            self.effects.push_back(Action::SignDocument(draft));
        }
    }

    /// The delegation that a gateway should get now, if it should get one.
    fn due(&self, node: &NodeId, site: &SitePath, now: Now) -> Option<Delegation> {
        let rules = &self.config.delegation;
        let now_s = now.wall_ms / 1000;
        let is_named = rules.gateways.contains(node) || rules.sites.iter().any(|p| p.matches(site.as_str()));
        let is_allowed = is_named && self.why_revoked(node).is_none();
        let held = self.trust.delegation(node);
        let version = held.map_or(0, |h| h.value().version).saturating_add(1).max(now_s);
        if !is_allowed {
            // One that still holds is replaced by one without any right, until it would have ended.
            let held = held.filter(|h| !h.value().rights.is_empty() && h.value().not_after > now_s)?;
            let rights = Vec::new();
            return Some(Delegation {
                version,
                rights,
                ..held.value().clone()
            });
        }
        let key = self.tree.certificate(node)?.key.clone();
        let lasts_s = rules.hours.saturating_mul(3600);
        let is_good = held.is_some_and(|h| {
            let d = h.value();
            let is_same = d.key == key && d.site == *site && d.rights == rules.rights;
            is_same && Some(h.kid()) == self.signer && d.not_after >= now_s + lasts_s / 2
        });
        (!is_good).then(|| Delegation {
            v: v1::VERSION,
            kind: TrustItemKind::Delegation,
            version,
            gateway: node.clone(),
            key,
            site: site.clone(),
            not_after: now_s.saturating_add(lasts_s),
            rights: rules.rights.clone(),
        })
    }
}
