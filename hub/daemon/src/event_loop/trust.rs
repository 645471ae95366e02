//! What the fleet trusts, where this process goes by it: the signing key, TLS and the door.

use std::collections::BTreeSet;
use std::sync::Arc;

use cnova_broker::Door;
use cnova_hub_core::{Action, Draft, Event, Hub, Outcome, RequestId};
use cnova_shared::ids::NodeId;
use cnova_shared::keys::{KeyId, Signer as _};
use cnova_shared::topics::Kind;
use cnova_shared::trust::TrustView;
use cnova_shared::wire::v1::{Trust, TrustItem, TrustItemKind};

use super::{EventLoop, Parts};
use crate::bundle_file;
use crate::signer::SigningKey;

impl EventLoop {
    /// A newer bundle is taken when this hub has a key for it: otherwise no node would take its twins any more.
    pub(super) fn on_bundle(&mut self, request: RequestId, bytes: Vec<u8>) {
        match self.prepare(&bytes) {
            Err(why) => self.refuse(request, why),
            Ok(None) => self.handle(Event::PushBundle { request, bytes }),
            Ok(Some(key)) => {
                let kid = key.kid();
                self.parts.signer.change(key);
                self.handle(Event::PushBundle { request, bytes });
                self.handle(Event::Signer(kid));
                let approvers = approvers(&self.parts, &self.hub);
                self.handle(Event::Approvers(approvers));
            }
        }
    }

    /// The key for a bundle that would be taken, with the bundle on the disk; nothing when it would not be, and the core
    /// says why.
    fn prepare(&self, bytes: &[u8]) -> Result<Option<SigningKey>, String> {
        let mut next = self.hub.trust().clone();
        let item = TrustItem {
            kind: TrustItemKind::Bundle,
            body: bytes.to_vec().into(),
        };
        let now_s = self.parts.clock.now_s();
        if !matches!(next.take(&item, now_s), Ok(Some(_))) {
            return Ok(None);
        }
        let key = self.parts.signer.pick(next.bundle(), now_s);
        let key = key.map_err(|e| format!("the hub has no key for this bundle: {e}. Give it the new key first"))?;
        bundle_file::keep(&self.parts.newest_bundle, bytes)
            .map_err(|e| format!("it cannot be kept as {}: {e}", self.parts.newest_bundle.display()))?;
        Ok(Some(key))
    }

    fn refuse(&mut self, request: RequestId, why: String) {
        let outcome = Outcome::Refused { reasons: vec![why] };
        self.batch.drafts.extend(self.pending.audit_of(request, &outcome));
        self.batch.effects.push_back(Action::Answer { request, outcome });
    }

    pub(super) fn sign_document(&mut self, draft: Box<Draft>) {
        let now = self.parts.clock.now();
        let signer = &self.parts.signer;
        let now_s = now.wall_ms / 1000;
        let signed = match &*draft {
            Draft::Revocations(list) => signer.document(list, now_s).map_err(|e| e.to_string()),
            Draft::Delegation(delegation) => signer.document(delegation, now_s).map_err(|e| e.to_string()),
            Draft::BootPolicy(policy) => signer
                .boot_policy(policy, self.hub.trust().bundle(), now_s)
                .map_err(|e| e.to_string()),
            Draft::References(references) => signer.references(references, now_s).map_err(|e| e.to_string()),
        };
        self.hub.handle(Event::DocumentSigned(draft, signed), now);
    }

    /// Signed with the key of the hub's certificate: a child that missed a rotation does not know the signing key yet.
    pub(super) fn say_trust(&self, child: &NodeId, trust: &Trust, now_s: u64) {
        let identity = &self.parts.downstream.identity;
        self.say(
            child,
            Kind::Trust,
            identity.seal(Kind::Trust, child, now_s, None, trust, true),
        );
    }

    pub(super) fn trust_changed(&self, view: TrustView) {
        if let Some(link) = &self.link {
            enforce(&link.endpoint.door(), view);
        }
    }
}

/// Goes by `view` from now on. Connections that stand stay, unless their node was revoked.
pub(super) fn enforce(door: &Door, view: TrustView) {
    if let Err(error) = door.believe(&view.authorities) {
        tracing::error!(%error, "children are judged by the authorities of before");
    }
    door.guard(Arc::new(move |certificate| view.refuses(certificate)));
}

/// The key for the newest bundle of the store, which may not be the one that the process was started with.
pub(super) fn choose_key(parts: &Parts, hub: &mut Hub) {
    let now = parts.clock.now();
    match parts.signer.pick(hub.trust().bundle(), now.wall_ms / 1000) {
        Ok(key) => parts.signer.change(key),
        Err(error) => tracing::error!(%error, "nodes will not take what this hub signs"),
    }
    hub.handle(Event::Signer(parts.signer.kid()), now);
    let approvers = approvers(parts, hub);
    hub.handle(Event::Approvers(approvers), now);
}

fn approvers(parts: &Parts, hub: &Hub) -> BTreeSet<KeyId> {
    let keys = parts.signer.approvers(hub.trust().bundle(), parts.clock.now_s());
    keys.iter().map(|k| k.public_key().id()).collect()
}
