//! Attestation on the way through, and the gateway's own: its children want to know whom they listen to.

use cnova_attestation::parent;
use cnova_attestation::result::{self, By, Expected, Opened, ResultError, When};

use super::*;

impl Gateway {
    /// A verifier asks a descendant, or this gateway.
    pub(super) fn on_challenge(&mut self, bytes: &[u8], now: Now) -> Result<(), String> {
        let claims = Untrusted::read(bytes).map_err(|e| e.to_string())?.claims;
        if claims.aud != self.config.node {
            return self.hand_down(Kind::Challenge, bytes);
        }
        let (me, now_s) = (self.config.node.clone(), self.now_s(now));
        // Gateways on the way take what is for the hub, whatever its name.
        let mut verifier = NodeId::new(cnova_shared::ids::HUB_AUDIENCE).unwrap_or(claims.iss.clone());
        let by_hub = Parent::open_hub(Kind::Challenge, bytes, &me, self.trust.bundle(), now_s);
        let opened = match by_hub {
            Ok(opened) => opened,
            Err(_) => {
                verifier = claims.iss;
                let opened = self.parent.open(Kind::Challenge, bytes, &me, &self.trust, now_s);
                opened.map_err(|e| e.to_string())?
            }
        };
        let challenge = opened.decode::<v1::Challenge>().map_err(|e| e.to_string())?;
        if challenge.value().nonce.len() != cnova_shared::limits::NONCE_BYTES {
            return Err("its nonce has another length".into());
        }
        self.effects.push_back(Action::Attest {
            verifier,
            challenge: challenge.into_value(),
        });
        Ok(())
    }

    /// A result about a descendant, about the parent, or about this gateway: this one is shown to every child.
    pub(super) fn on_ear(&mut self, bytes: &[u8], now: Now) -> Result<(), String> {
        let aud = Untrusted::read(bytes).map_err(|e| e.to_string())?.claims.aud;
        if aud == self.config.parent {
            return self.on_result_of_parent(bytes, now);
        }
        if aud != self.config.node {
            self.on_result_of_child(&aud, bytes, now);
            return self.hand_down(Kind::Ear, bytes);
        }
        let opened = self.open_own(bytes, When::Now(self.now_s(now)));
        let opened = opened.map_err(|e| e.to_string())?;
        let (by, status) = (opened.by().clone(), opened.ear().status);
        let doubt = parent::doubt_about_verifier(&self.above, self.now_s(now));
        if let (By::Gateway(gateway), Some(doubt)) = (&by, doubt) {
            return Err(format!("it is by {gateway}: {doubt}"));
        }
        if !self.own.take(opened) {
            return Err("a newer one is held".into());
        }
        self.note(format!("{by} says of this gateway: {status}"));
        let bytes = bytes.to_vec();
        self.ops.push(match by {
            By::Hub => Op::PutEar(bytes),
            By::Gateway(_) => Op::PutDelegatedEar(bytes),
        });
        let is_here = |child: &&NodeId| self.tree.is_connected(child);
        let children: Vec<NodeId> = self.tree.descendants().filter(is_here).cloned().collect();
        for child in &children {
            self.show_ear(child, now);
        }
        Ok(())
    }

    /// Shows a child whom it listens to.
    pub(super) fn show_ear(&mut self, child: &NodeId, now: Now) {
        let shown = self.own.in_force(self.now_s(now)).map(|o| o.bytes().to_vec());
        if let Some(bytes) = shown {
            let (child, kind) = (child.clone(), Kind::Ear);
            self.effects.push_back(Action::Forward { child, kind, bytes });
        }
    }

    /// A result about this gateway: by the hub, or by the gateway above it under its delegation.
    pub(super) fn open_own(&self, bytes: &[u8], when: When) -> Result<Opened, ResultError> {
        let expected = Expected {
            subject: &self.config.node,
            site: &self.config.site,
            gateway: Some(&self.config.parent),
        };
        result::open(bytes, &expected, &self.trust, when)
    }
}
