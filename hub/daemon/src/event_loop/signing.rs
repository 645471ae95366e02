//! What the core has signed or sealed in between: nobody has seen it before it is committed.

use cnova_attestation::ear::Ear;
use cnova_hub_core::Event;
use cnova_hub_core::secrets::SealOrder;
use cnova_shared::wire::v1;

use super::EventLoop;

impl EventLoop {
    pub(super) fn sign(&mut self, twin: &v1::Twin) {
        let now = self.parts.clock.now();
        match self.parts.signer.twin(twin, now.wall_ms / 1000) {
            Ok(bytes) => {
                self.parts.traffic.twins_signed.one();
                self.hub.handle(Event::TwinSigned(bytes), now);
            }
            Err(error) => tracing::error!(node = %twin.node, %error, "its twin was not signed: the last one stays"),
        }
    }

    pub(super) fn sign_ear(&mut self, ear: &Ear) {
        let now = self.parts.clock.now();
        match self.parts.signer.ear(ear) {
            Ok(bytes) => {
                let node = ear.subject.clone();
                self.hub.handle(Event::EarSigned { node, bytes }, now);
            }
            Err(error) => tracing::error!(node = %ear.subject, %error, "its attestation result was not signed"),
        }
    }

    /// Like a signature: what nobody has seen is no effect, so that it is in the same transaction as the twin.
    pub(super) fn seal_secret(&mut self, order: &SealOrder) {
        let result = self.parts.vault.seal(order);
        let key = order.key.clone();
        let now = self.parts.clock.now();
        self.hub.handle(Event::SecretSealed { key, result }, now);
    }
}
