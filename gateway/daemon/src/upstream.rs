//! The side of the parent: the link to it, and its events in the core's words.

use std::sync::Arc;

use cnova_gateway_core::{Event, UpMessage};
use cnova_link::config::ParentConfig;
use cnova_link::{Authorities, FloorClock, Identity, TlsError, Uplink, UplinkConfig, UplinkEvent, client_tls_with};
use cnova_shared::topics::Kind;
use tokio::sync::mpsc;

use crate::seal::Sealer;

/// The link, and whether it is up as far as the core was told.
#[derive(Debug)]
pub struct Upstream {
    uplink: Uplink,
    sealer: Sealer,
    is_up: bool,
}

impl Upstream {
    /// Begins to connect to the parent.
    ///
    /// # Errors
    /// [`TlsError`] when the certificates cannot be used.
    pub fn start(
        identity: &Arc<Identity>,
        parent: &ParentConfig,
        clock: Arc<FloorClock>,
        authorities: Arc<Authorities>,
        sealer: Sealer,
    ) -> Result<(Self, mpsc::Receiver<UplinkEvent>), TlsError> {
        let tls = client_tls_with(identity, &parent.node, clock, authorities)?;
        let config = UplinkConfig::new(
            parent.address.clone(),
            identity.node().clone(),
            parent.node.clone(),
            tls,
        );
        let (uplink, events) = Uplink::start(config);
        Ok((
            Self {
                uplink,
                sealer,
                is_up: false,
            },
            events,
        ))
    }

    /// What a core that knows nothing yet must be told.
    #[must_use]
    pub fn event(&self) -> Option<Event> {
        self.is_up.then_some(Event::ParentConnected)
    }

    /// Keeps the state of the link and says what the core must hear.
    pub fn take(&mut self, event: UplinkEvent) -> Event {
        match event {
            UplinkEvent::Connected => {
                self.is_up = true;
                Event::ParentConnected
            }
            UplinkEvent::Disconnected { reason } => {
                tracing::debug!(reason, "the parent is not reached");
                self.is_up = false;
                Event::ParentDisconnected
            }
            UplinkEvent::Message { kind, bytes } => {
                tracing::debug!(kind = kind.as_str(), bytes = bytes.len(), "from the parent");
                Event::FromParent { kind, bytes }
            }
        }
    }

    /// Signs and sends; what cannot go is said again by the core.
    pub fn send(&self, message: &UpMessage, now_s: u64) {
        let (kind, bytes) = match self.sealer.up(message, now_s) {
            Ok(sealed) => sealed,
            Err(error) => return tracing::error!(%error, "not signed"),
        };
        let size = bytes.len();
        match self.uplink.send(kind, bytes) {
            Ok(()) => tracing::debug!(kind = kind.as_str(), bytes = size, "to the parent"),
            Err(error) => tracing::debug!(kind = kind.as_str(), bytes = size, %error, "not sent to the parent"),
        }
    }

    /// Tries to connect at once, such as with a new certificate.
    pub fn try_now(&self) {
        self.uplink.try_now();
    }

    /// Sends a descendant's signed bytes unchanged; what cannot go, the descendant says again.
    pub fn carry(&self, kind: Kind, bytes: Vec<u8>) {
        if let Err(error) = self.uplink.send(kind, bytes) {
            tracing::debug!(kind = kind.as_str(), %error, "not carried to the parent");
        }
    }

    /// Says goodbye.
    pub async fn shutdown(self) {
        self.uplink.shutdown().await;
    }
}
