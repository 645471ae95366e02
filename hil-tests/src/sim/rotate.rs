//! Keys that are replaced and nodes that are revoked while everything else goes wrong.

use cnova_attestation::reference;
use cnova_hub_core::{Draft, Event, Hub};
use cnova_shared::envelope::Claims;
use cnova_shared::ids::NodeId;
use cnova_shared::topics::Kind;
use cnova_shared::trust::TrustView;
use cnova_shared::trust_documents::{Document, FLEET_AUDIENCE};
use cnova_shared::twin::VerifiedTwin;
use cnova_shared::wire::v1;

use super::net::Arrival;
use super::pki::{AGENTS, AREA, HUB, LINE, id, pki};
use super::world::{World, parent_of};

/// What a twin says that the hub signed under any bundle.
pub(super) fn contents(bytes: &[u8]) -> Option<v1::Twin> {
    let bundles = pki().bundles.iter();
    let opened = bundles
        .filter_map(|b| cnova_shared::bundle::TrustBundle::flashed(b).ok())
        .find_map(|b| VerifiedTwin::reopen(bytes, &b).ok())?;
    Some(opened.twin().clone())
}

impl World {
    /// The hub gets the next trust bundle, or a node is revoked or let in again.
    pub(super) fn change_trust(&mut self) {
        let Some(core) = &self.hub.core else { return };
        if let Some(bundle) = pki().after(core.trust().version()).filter(|_| self.rng.bool()) {
            return self.push_bundle(bundle.clone());
        }
        let all: Vec<&str> = [AREA, LINE].into_iter().chain(AGENTS).collect();
        let node = id(all[self.rng.usize(0..all.len())]);
        let request = self.next_request();
        if self.revoked.remove(&node) {
            self.log(format!("{node} is let in again"));
            let new_key = false;
            return self.hub_event(Event::Readmit { request, node, new_key });
        }
        self.log(format!("{node} is revoked"));
        self.revoked.insert(node.clone());
        let keys_only = self.rng.bool();
        self.hub_event(Event::Revoke {
            request,
            node,
            keys_only,
            reason: "as simulated".into(),
        });
    }

    fn push_bundle(&mut self, bytes: Vec<u8>) {
        let request = self.next_request();
        self.log("the hub gets a newer trust bundle".into());
        self.hub_event(Event::PushBundle { request, bytes });
        use cnova_shared::keys::Signer;
        let key = self.hub.key().public_key().id();
        self.hub_event(Event::Signer(key));
    }

    /// Nobody stays revoked: a request may have been lost with the hub, so this is asked until it holds.
    pub(super) fn readmit_everybody(&mut self) {
        let list = self.hub.core.as_ref().and_then(|c| c.trust().revocations());
        let nodes = list.map(|l| l.value().nodes.clone()).unwrap_or_default();
        for revoked in nodes {
            let (request, node) = (self.next_request(), revoked.node);
            self.log(format!("{node} is let in again"));
            let new_key = false;
            self.hub_event(Event::Readmit { request, node, new_key });
        }
        self.revoked.clear();
    }

    pub(super) fn hub_sends_trust(&mut self, child: &NodeId, trust: &v1::Trust) {
        let hub = id(HUB);
        let iat = self.clock(&hub).wall_ms / 1000;
        let bytes = pki().nodes[&hub].seal(Kind::Trust, child.as_str(), iat, trust, true);
        self.send_down(&hub, child, Kind::Trust, bytes);
    }

    pub(super) fn hub_signs_document(&mut self, draft: Box<Draft>) {
        let now_s = self.clock(&id(HUB)).wall_ms / 1000;
        let key = self.hub.key();
        let signed = match &*draft {
            Draft::Revocations(list) => list.seal(&id(HUB), now_s, key).map_err(|e| e.to_string()),
            Draft::Delegation(delegation) => delegation.seal(&id(HUB), now_s, key).map_err(|e| e.to_string()),
            Draft::BootPolicy(policy) => policy.seal(&id(HUB), now_s, key).map_err(|e| e.to_string()),
            Draft::References(references) => {
                let claims = Claims {
                    iss: id(HUB),
                    aud: id(FLEET_AUDIENCE),
                    iat: now_s,
                    exp: None,
                };
                reference::seal(references, &claims, key).map_err(|e| e.to_string())
            }
        };
        let event = Event::DocumentSigned(draft, signed);
        let life = self.hub.life;
        self.net.at(self.now, Arrival::Hub { life, event });
    }

    /// The door of a parent goes by what it trusts from now on.
    pub(super) fn view_changes(&mut self, parent: &NodeId, view: TrustView) {
        self.log(format!("{parent} trusts bundle {}", view.version));
        match self.gateways.get_mut(parent) {
            Some(g) => g.view = view,
            None => self.hub.view = view,
        }
        let children: Vec<NodeId> = self.links.keys().filter(|c| parent_of(c) == *parent).cloned().collect();
        for child in children {
            if self.links[&child].up && self.is_refused(&child) {
                let for_ms = self.rng.u64(100..2_000);
                self.disconnect(&child, for_ms);
            }
        }
    }

    /// Whether the door of its parent is closed to a node.
    pub(super) fn is_refused(&self, child: &NodeId) -> bool {
        let certificate = &pki().nodes[child].chain[0];
        let parent = parent_of(child);
        let view = self.gateways.get(&parent).map_or(&self.hub.view, |g| &g.view);
        view.refuses(certificate).is_some()
    }

    /// The first node that does not trust what the hub trusts.
    pub(super) fn why_trust_differs(&self, hub: &Hub) -> Option<String> {
        let version = hub.trust().version();
        let documents = hub.trust().documents();
        let agents = self
            .agents
            .values()
            .filter_map(|a| Some((&a.node, a.core.as_ref()?.trust())));
        let gateways = self
            .gateways
            .values()
            .filter_map(|g| Some((&g.node, g.core.as_ref()?.trust())));
        for (node, trust) in agents.chain(gateways) {
            if trust.version() != version {
                return Some(format!("{node} trusts bundle {}, the hub {version}", trust.version()));
            }
            let held = trust.documents();
            if let Some((name, _)) = documents.iter().find(|(n, v)| held.get(*n) != Some(*v)) {
                return Some(format!(
                    "{node} does not hold the hub's document {name}: {held:?}, {documents:?}"
                ));
            }
        }
        let void = self.agents.values().find(|a| {
            let core = a.core.as_ref();
            let twin = core.and_then(|c| Some((c.twin()?, c.trust())));
            twin.is_some_and(|(t, trust)| !trust.names(t.kid(), cnova_shared::bundle::Role::Twin))
        })?;
        Some(format!("{} still holds a twin by a key that was taken away", void.node))
    }
}
