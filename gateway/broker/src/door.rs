//! What a daemon changes about who may come in, while the endpoint runs.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use crate::connection::Shared;
use crate::error::EndpointError;
use crate::tls::{Clients, NamedServer};

/// Says why the holder of a certificate (DER) is not let in, although an authority certified it; nothing when it is.
pub type Gate = Arc<dyn Fn(&[u8]) -> Option<String> + Send + Sync>;

/// Who may come in. Cheap to clone.
#[derive(Clone)]
pub struct Door {
    side: Side,
}

#[derive(Clone)]
enum Side {
    Embedded { clients: Arc<Clients>, shared: Arc<Shared> },
    External(Arc<NamedServer>),
}

impl Door {
    pub(crate) fn embedded(clients: Arc<Clients>, shared: Arc<Shared>) -> Self {
        Self {
            side: Side::Embedded { clients, shared },
        }
    }

    pub(crate) fn external(server: Arc<NamedServer>) -> Self {
        Self {
            side: Side::External(server),
        }
    }

    /// Believes these authorities (DER) for the connections to come. Those that stand are not touched.
    ///
    /// # Errors
    /// [`EndpointError::Authority`]; the old ones then stay.
    pub fn believe(&self, authorities: &[Vec<u8>]) -> Result<(), EndpointError> {
        let authorities: Vec<_> = authorities.iter().cloned().map(CertificateDer::from).collect();
        match &self.side {
            Side::Embedded { clients, .. } => clients.replace(&authorities),
            Side::External(server) => server.replace(&authorities),
        }
    }

    /// Asks `gate` about every child, those that are connected too: whom it refuses is told why and its connection ends.
    ///
    /// An external broker has its own door; there, only what children say can be refused, and their parent does that.
    pub fn guard(&self, gate: Gate) {
        if let Side::Embedded { shared, .. } = &self.side {
            shared.guard(gate);
        }
    }
}
