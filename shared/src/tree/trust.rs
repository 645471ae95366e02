//! Documents about trust on their way down: a parent sends what a direct child has not said that it holds, less and less
//! often, until it says so.

use super::*;
use crate::bundle::Role;
use crate::trust::{Holder, batches};

/// A child that does not hold everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behind {
    at: u64,
    pause_ms: u64,
}

impl Descendant {
    pub(super) fn holder<'a>(&'a self, node: &'a NodeId) -> Holder<'a> {
        Holder {
            node,
            site: &self.site,
            role: self.role,
            trust_version: self.trust_version,
            documents: &self.documents,
        }
    }
}

impl Tree {
    /// What a descendant said of the documents that it holds.
    #[must_use]
    pub fn holder<'a>(&'a self, node: &'a NodeId) -> Option<Holder<'a>> {
        self.descendants.get(node).map(|d| d.holder(node))
    }

    /// What this node trusts has changed: some twins may no longer be sent, some nodes no longer be heard, and children
    /// need what is new.
    pub fn trust_changed(&mut self, trust: &TrustState) {
        for twin in self.twins.values_mut() {
            twin.is_void = !trust.names(twin.kid, Role::Twin);
        }
        let is_revoked = |(n, d): &(&NodeId, &Descendant)| trust.revoked(n, Some(d.certificate.key.id())).is_some();
        let revoked: BTreeSet<NodeId> = self
            .descendants
            .iter()
            .filter(is_revoked)
            .map(|(n, _)| n.clone())
            .collect();
        self.revoked = revoked;
        let is_direct = |(n, d): &(&NodeId, &Descendant)| d.via == **n;
        let direct: Vec<NodeId> = self
            .descendants
            .iter()
            .filter(is_direct)
            .map(|(n, _)| n.clone())
            .collect();
        for child in direct {
            self.look_behind(&child, trust);
        }
    }

    /// Whether a descendant is known and was revoked.
    #[must_use]
    pub fn is_revoked(&self, node: &NodeId) -> bool {
        self.revoked.contains(node)
    }

    /// The key that a descendant's certificate names.
    #[must_use]
    pub fn key_of(&self, node: &NodeId) -> Option<KeyId> {
        self.certificate(node).map(|c| c.key.id())
    }

    /// Whether a direct child needs something; if so, at once.
    pub(super) fn look_behind(&mut self, child: &NodeId, trust: &TrustState) {
        let Some(d) = self.descendants.get(child) else { return };
        let is_behind = !trust.lacking(&d.holder(child)).is_empty();
        if is_behind && !self.revoked.contains(child) {
            let now = Behind {
                at: 0,
                pause_ms: limits::TRUST_RESEND_MIN_MS,
            };
            self.behind.insert(child.clone(), now);
        } else {
            self.behind.remove(child);
        }
    }

    /// Sends documents that are due.
    pub fn poll_trust(&mut self, trust: &TrustState, now: Now) {
        for (child, behind) in &mut self.behind {
            let Some(d) = self.descendants.get(child) else { continue };
            if behind.at > now.mono_ms || !self.connected.contains(child) {
                continue;
            }
            behind.at = now.mono_ms + behind.pause_ms;
            behind.pause_ms = (behind.pause_ms * 2).min(limits::TRUST_RESEND_MAX_MS);
            for items in batches(trust.lacking(&d.holder(child))) {
                let (child, v) = (child.clone(), v1::VERSION);
                let trust = v1::Trust { v, items };
                self.events.push_back(TreeEvent::Trust { child, trust });
            }
        }
    }

    pub(super) fn trust_timeout(&self) -> Option<u64> {
        let due = self.behind.iter().filter(|(c, _)| self.connected.contains(*c));
        due.map(|(_, b)| b.at).min()
    }
}
