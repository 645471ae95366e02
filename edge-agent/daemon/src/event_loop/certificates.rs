//! The node's next certificate.

use cnova_agent_core::Event;
use cnova_shared::wire::v1::EnrolIssued;

use super::{Done, EventLoop};

impl EventLoop {
    /// Kept as well, for a core that is made anew.
    pub(super) fn on_installed(&mut self, renew_s: u64) -> Event {
        self.parts.config.renew_s = Some(renew_s);
        Event::Installed { renew_s }
    }

    /// The next certificate goes onto the disk before it is used. What fails is asked for again.
    pub(super) fn install(&self, issued: EnrolIssued) {
        let (identity, path) = (self.parts.identity.clone(), self.parts.certificate.clone());
        self.beside(move || {
            let stored = cnova_link::store_issued(&path, &issued).map_err(|e| e.to_string());
            match stored.and_then(|()| identity.install(&issued).map_err(|e| e.to_string())) {
                Ok(()) => {
                    tracing::info!(until = identity.not_after_s(), "the certificate was renewed");
                    Some(Done::Installed(issued.renew_s))
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), error, "the renewed certificate is not used");
                    None
                }
            }
        });
    }
}
