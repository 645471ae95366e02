//! Boots that are approved: under them nodes' own secrets open. They follow from the reference values, and are signed by the
//! boot-policy keys that the hub has.

use cnova_attestation::reference::ReferenceSet;
use cnova_shared::bundle::Role;
use cnova_shared::trust_documents::{BootPolicy, BootSignature, PolicyBoot};

use super::*;
use crate::api::Draft;

/// Most boots of one reference set: one for each way in which allowed values of its registers go together.
const BOOTS_PER_SET: usize = 32;

impl Hub {
    pub(super) fn on_approvers(&mut self, keys: BTreeSet<KeyId>, now: Now) {
        self.approvers = keys;
        self.approve_boots(now);
    }

    /// Has a new document signed when the one in force does not say what the references say, or not by every key.
    pub(super) fn approve_boots(&mut self, now: Now) {
        let held = self.trust.boot_policy();
        let is_idle = held.is_none() && self.approvers.is_empty();
        if is_idle || self.may_sign_documents(now).is_err() {
            return;
        }
        let (mut boots, unapproved) = self.desired_boots();
        for boot in &mut boots {
            boot.signatures = self.signatures_of(&boot.values);
        }
        // What no key approves, and none will, is left out.
        if self.approvers.is_empty() {
            boots.retain(|b| !b.signatures.is_empty());
        }
        let is_signed = |b: &PolicyBoot| self.approvers.iter().all(|kid| b.is_signed_by(*kid));
        let is_good = held
            .is_some_and(|h| Some(h.kid()) == self.signer && h.value().boots == boots && boots.iter().all(is_signed));
        let version = held.map_or(0, |h| h.value().version).max(self.boots_version);
        for why in unapproved.iter().filter(|w| !self.unapproved.contains(w)) {
            self.effects
                .push_back(Action::Note(format!("not approved as anybody's own boot: {why}")));
        }
        self.unapproved = unapproved;
        if is_good || (held.is_none() && boots.is_empty()) {
            return;
        }
        self.boots_version = version.saturating_add(1).max(now.wall_ms / 1000);
        let draft = Draft::BootPolicy(BootPolicy::new(self.boots_version, boots));
        self.effects.push_back(Action::SignDocument(Box::new(draft)));
    }

    /// What keys of the newest bundle said of these values before.
    fn signatures_of(&self, values: &BTreeMap<u8, Digest>) -> Vec<BootSignature> {
        let held = self.trust.boot_policy().into_iter().flat_map(|h| &h.value().boots);
        let same = held.filter(|b| b.values == *values).flat_map(|b| &b.signatures);
        let mut kept: Vec<BootSignature> = Vec::new();
        for signature in same.filter(|s| self.trust.names(s.kid, Role::BootPolicy)) {
            if !kept.iter().any(|k| k.kid == signature.kid) {
                kept.push(signature.clone());
            }
        }
        kept
    }

    /// What the references say, and of what they say too much or too little.
    fn desired_boots(&self) -> (Vec<PolicyBoot>, Vec<String>) {
        let (mut boots, mut problems) = (Vec::new(), Vec::new());
        for set in &self.references.sets {
            match self.boots_of(set) {
                Err(why) => problems.push(format!("reference values {}: {why}", set.name)),
                Ok(more) if boots.len() + more.len() > limits::BOOTS_APPROVED => problems.push(format!(
                    "reference values {}: {} boots are approved already, and a node keeps no more",
                    set.name,
                    limits::BOOTS_APPROVED
                )),
                Ok(more) => boots.extend(more),
            }
        }
        (boots, problems)
    }

    fn boots_of(&self, set: &ReferenceSet) -> Result<Vec<PolicyBoot>, String> {
        let appraisal = &self.config.appraisal;
        let mut pcrs: BTreeSet<u8> = if appraisal.boot_pcrs.is_empty() {
            set.pcrs.keys().copied().collect()
        } else {
            appraisal.boot_pcrs.clone()
        };
        // It changes with every launch.
        pcrs.remove(&appraisal.launch_pcr);
        if pcrs.is_empty() {
            return Err("it names no register of the boot".into());
        }
        let mut boots = vec![BTreeMap::new()];
        for pcr in pcrs {
            let Some(reference) = set.pcrs.get(&pcr) else {
                return Err(format!("it says nothing of PCR {pcr}"));
            };
            if boots.len() * reference.values.len() > BOOTS_PER_SET {
                return Err(format!(
                    "the values of its registers go together in more than {BOOTS_PER_SET} ways; make a set for each image"
                ));
            }
            boots = boots
                .iter()
                .flat_map(|boot| {
                    reference.values.iter().map(move |value| {
                        let mut boot: BTreeMap<u8, Digest> = boot.clone();
                        boot.insert(pcr, *value);
                        boot
                    })
                })
                .collect();
        }
        let boot = |values| PolicyBoot {
            name: set.name.clone(),
            nodes: set.nodes.clone(),
            values,
            signatures: Vec::new(),
        };
        Ok(boots.into_iter().map(boot).collect())
    }

    /// What a set means for what nodes have sealed, for whoever changed it.
    pub(super) fn own_boot_text(&self, name: &str) -> String {
        let Some(set) = self.references.sets.iter().find(|s| s.name == name) else {
            return String::new();
        };
        if self.approvers.is_empty() {
            return String::new();
        }
        match self.boots_of(set) {
            Ok(_) => "; nodes that boot so open their ledger keys".into(),
            Err(why) => format!("; not approved as anybody's own boot: {why}"),
        }
    }
}
