//! Attestation on the way through, and the gateway's own: its children want to know whom they listen to.

use cnova_attestation::ear::Ear;
use cnova_shared::bundle::Role;

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

    /// A result about a descendant, or about this gateway: this one is shown to every child.
    pub(super) fn on_ear(&mut self, bytes: &[u8], now: Now) -> Result<(), String> {
        let aud = Untrusted::read(bytes).map_err(|e| e.to_string())?.claims.aud;
        if aud != self.config.node {
            return self.hand_down(Kind::Ear, bytes);
        }
        let ear = self.open_ear(bytes, Some(self.now_s(now)))?;
        if ear.subject != self.config.node {
            return Err(format!("it is about {}", ear.subject));
        }
        self.note(format!("the hub says of this gateway: {}", ear.status));
        self.ops.push(Op::PutEar(bytes.to_vec()));
        self.ear = Some(bytes.to_vec());
        let is_here = |child: &&NodeId| self.tree.is_connected(child);
        let children: Vec<NodeId> = self.tree.descendants().filter(is_here).cloned().collect();
        for child in &children {
            self.show_ear(child);
        }
        Ok(())
    }

    /// Shows a child whom it listens to.
    pub(super) fn show_ear(&mut self, child: &NodeId) {
        if let Some(bytes) = self.ear.clone() {
            let (child, kind) = (child.clone(), Kind::Ear);
            self.effects.push_back(Action::Forward { child, kind, bytes });
        }
    }

    /// `now_s` is nothing for a result that was taken before: its key may have run out since.
    pub(super) fn open_ear(&self, bytes: &[u8], now_s: Option<u64>) -> Result<Ear, String> {
        let untrusted = Untrusted::read(bytes).map_err(|e| e.to_string())?;
        let trust = self.trust.bundle();
        let key = match now_s {
            Some(now_s) => trust.key(untrusted.kid, Role::Attestation, now_s),
            None => trust.key_at_any_time(untrusted.kid, Role::Attestation),
        };
        let key = key.ok_or_else(|| format!("key {} may not sign attestation results here", untrusted.kid))?;
        let verified = untrusted.verify(Kind::Ear, key).map_err(|e| e.to_string())?;
        Ok(verified.decode::<Ear>().map_err(|e| e.to_string())?.into_value())
    }
}
