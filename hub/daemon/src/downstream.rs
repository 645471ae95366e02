//! How children reach the hub: its own MQTT port, or a broker beside it.

use std::sync::Arc;

use cnova_broker::{
    AnyEndpoint, ClientTlsMaterial, Endpoint, EndpointConfig, EndpointError, EndpointEvent, ExternalConfig,
    ExternalEndpoint, Limits, TlsMaterial,
};
use cnova_link::Identity;
use tokio::sync::mpsc;

use crate::config::Children;

/// Starts the endpoint, again after an outage of the store.
#[derive(Clone, Debug)]
pub struct Downstream {
    /// Where.
    pub children: Children,
    /// As whom.
    pub identity: Arc<Identity>,
}

impl Downstream {
    /// Opens the port, or begins to connect to the broker. Certificates of `authorities` (DER) are believed.
    ///
    /// # Errors
    /// [`EndpointError`], which says what to do.
    pub async fn start(
        &self,
        authorities: &[Vec<u8>],
    ) -> Result<(AnyEndpoint, mpsc::Receiver<EndpointEvent>), EndpointError> {
        let identity = &self.identity;
        match &self.children {
            Children::Listen(listen) => {
                let tls = TlsMaterial {
                    own: identity.certified(),
                    client_ca: authorities.iter().cloned().map(Into::into).collect(),
                };
                let config = EndpointConfig {
                    listen: *listen,
                    tls,
                    limits: Limits::default(),
                };
                let (endpoint, events) = Endpoint::start(config).await?;
                tracing::info!(address = %endpoint.local_addr(), "children can connect");
                Ok((AnyEndpoint::Embedded(endpoint), events))
            }
            Children::Broker(broker) => {
                let config = ExternalConfig {
                    host: broker.host.clone(),
                    port: broker.port,
                    tls: ClientTlsMaterial {
                        own: identity.certified(),
                        ca: authorities.iter().cloned().map(Into::into).collect(),
                        server_name: broker
                            .server_name
                            .clone()
                            .unwrap_or_else(|| identity.node().to_string()),
                    },
                    client_id: identity.node().to_string(),
                };
                let (endpoint, events) = ExternalEndpoint::start(config).await?;
                tracing::info!(
                    host = broker.host,
                    port = broker.port,
                    "connecting to the external broker"
                );
                Ok((AnyEndpoint::External(endpoint), events))
            }
        }
    }
}
