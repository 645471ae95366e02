//! What the core trusts, where TLS and the door go by it.

use std::sync::Arc;

use cnova_broker::Door;
use cnova_link::Authorities;
use cnova_shared::trust::TrustView;

/// The verifiers of this process.
pub struct Trust {
    /// Of the children.
    pub door: Door,
    /// Of the parent.
    pub parent: Arc<Authorities>,
}

impl Trust {
    /// Goes by `view` from now on. Connections that stand stay, unless their node was revoked.
    pub fn enforce(&self, view: TrustView) {
        if let Err(error) = self.parent.replace(&view.authorities) {
            tracing::error!(%error, "the parent is judged by the authorities of before");
        }
        if let Err(error) = self.door.believe(&view.authorities) {
            tracing::error!(%error, "children are judged by the authorities of before");
        }
        self.door.guard(Arc::new(move |certificate| view.refuses(certificate)));
    }
}
