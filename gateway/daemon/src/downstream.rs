//! The side of the children: their endpoint, and its events in the core's words.

use std::collections::BTreeSet;
use std::sync::Arc;

use cnova_broker::{
    AnyEndpoint, ClientTlsMaterial, Endpoint, EndpointConfig, EndpointError, EndpointEvent, ExternalConfig,
    ExternalEndpoint, Limits, TlsMaterial,
};
use cnova_gateway_core::Event;
use cnova_link::Identity;
use cnova_shared::ids::NodeId;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1;
use tokio::sync::mpsc;

use crate::config::Children;

/// Starts the endpoint that the configuration names.
///
/// # Errors
/// [`EndpointError`], which says what to do.
pub async fn start(
    children: &Children,
    identity: &Arc<Identity>,
    authorities: &[Vec<u8>],
) -> Result<(AnyEndpoint, mpsc::Receiver<EndpointEvent>), EndpointError> {
    match children {
        Children::Listen(address) => {
            let tls = TlsMaterial {
                own: identity.certified(),
                client_ca: authorities.iter().cloned().map(Into::into).collect(),
            };
            let config = EndpointConfig {
                listen: *address,
                tls,
                limits: Limits::default(),
            };
            let (endpoint, events) = Endpoint::start(config).await?;
            Ok((AnyEndpoint::Embedded(endpoint), events))
        }
        Children::Broker(broker) => {
            // Children expect their parent's name in the certificate that they are shown: the broker's is ours.
            let server_name = broker
                .server_name
                .clone()
                .unwrap_or_else(|| identity.node().to_string());
            let tls = ClientTlsMaterial {
                own: identity.certified(),
                ca: authorities.iter().cloned().map(Into::into).collect(),
                server_name,
            };
            let (host, port, client_id) = (broker.host.clone(), broker.port, identity.node().to_string());
            let (endpoint, events) = ExternalEndpoint::start(ExternalConfig {
                host,
                port,
                tls,
                client_id,
            })
            .await?;
            Ok((AnyEndpoint::External(endpoint), events))
        }
    }
}

/// The router no longer works: the process must end, so that it is started again.
#[derive(Debug, PartialEq, Eq)]
pub struct Stalled {
    /// What was seen.
    pub reason: String,
}

/// Which children are there.
#[derive(Debug, Default)]
pub struct Roll(BTreeSet<NodeId>);

impl Roll {
    /// Those that are there, as a core that knows nothing yet must be told.
    pub fn events(&self) -> impl Iterator<Item = Event> {
        self.0.iter().cloned().map(Event::ChildConnected)
    }

    /// Keeps the roll and says what the core must hear.
    ///
    /// # Errors
    /// [`Stalled`] when the router no longer works.
    pub fn take(&mut self, event: EndpointEvent) -> Result<Option<Event>, Stalled> {
        let event = match event {
            EndpointEvent::Connected { node } => name(&node).map(|child| {
                tracing::info!(%child, "child up");
                self.0.insert(child.clone());
                Event::ChildConnected(child)
            }),
            EndpointEvent::Disconnected { node, reason } => name(&node).map(|child| {
                tracing::info!(%child, reason, "child down");
                self.0.remove(&child);
                Event::ChildDisconnected { child, reason }
            }),
            EndpointEvent::Message { node, kind, payload } => self.message(&node, &kind, payload.into()),
            EndpointEvent::Refused { peer, reason } => {
                if reason.starts_with(cnova_broker::IDENTITY_CONFLICT) {
                    tracing::warn!(peer, reason, "refused at the door");
                    let alarm = v1::Alarm {
                        code: "identity-conflict".into(),
                        detail: reason,
                    };
                    return Ok(Some(Event::Trouble(alarm)));
                }
                tracing::debug!(peer, reason, "refused at the door");
                None
            }
            EndpointEvent::Stalled { reason } => return Err(Stalled { reason }),
            EndpointEvent::BrokerUp => {
                tracing::info!("the children's broker is reached");
                None
            }
            // Children stay connected to it, and do not say hello again when only this link broke: they stay on the
            // roll.
            EndpointEvent::BrokerDown { reason } => {
                tracing::warn!(reason, "the children's broker is not reached");
                None
            }
        };
        Ok(event)
    }

    fn message(&mut self, node: &str, kind: &str, bytes: Vec<u8>) -> Option<Event> {
        let child = name(node)?;
        let Some(kind) = Kind::parse(kind) else {
            tracing::debug!(%child, kind, "a message of an unknown kind");
            return None;
        };
        tracing::debug!(%child, kind = kind.as_str(), bytes = bytes.len(), "from a child");
        // An external broker does not tell who is connected; a message does.
        self.0.insert(child.clone());
        Some(Event::FromChild { child, kind, bytes })
    }
}

fn name(node: &str) -> Option<NodeId> {
    NodeId::new(node)
        .map_err(|error| tracing::warn!(%error, "a child with an impossible name"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(roll: &Roll) -> Vec<String> {
        roll.events()
            .map(|e| match e {
                Event::ChildConnected(child) => child.to_string(),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn the_roll_knows_who_is_there() {
        let mut roll = Roll::default();
        let of = |node: &str| node.to_owned();
        roll.take(EndpointEvent::Connected { node: of("a") }).unwrap();
        roll.take(EndpointEvent::Message {
            node: of("b"),
            kind: of("hello"),
            payload: vec![1].into(),
        })
        .unwrap();
        assert!(
            roll.take(EndpointEvent::Connected { node: of("c-") })
                .unwrap()
                .is_none(),
            "not a node id"
        );
        assert_eq!(names(&roll), ["a", "b"]);
        roll.take(EndpointEvent::Disconnected {
            node: of("a"),
            reason: of("gone"),
        })
        .unwrap();
        roll.take(EndpointEvent::BrokerDown { reason: of("gone") }).unwrap();
        assert_eq!(names(&roll), ["b"]);
        assert!(roll.take(EndpointEvent::Stalled { reason: of("canary") }).is_err());
    }
}
