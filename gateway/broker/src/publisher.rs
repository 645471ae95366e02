//! The sending side that a daemon holds.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::connection::Shared;
use crate::error::PublishError;
use crate::external::Uplink;
use crate::outbox::Outbox;
use crate::topics;

/// Sends messages to children: cheap to clone, never blocks.
///
/// "Ok" means that the message is in memory and on its way to a connection that is open and subscribed; it does
/// not mean that it arrived.
#[derive(Clone)]
pub struct Publisher {
    target: Target,
}

#[derive(Clone)]
enum Target {
    Embedded {
        shared: Arc<Shared>,
        queue: mpsc::UnboundedSender<Staged>,
    },
    External(Arc<Uplink>),
}

/// A message whose room is reserved, on its way to the router. The queue of these is bounded by the reservations.
pub(crate) struct Staged {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
}

impl Publisher {
    pub(crate) fn embedded(shared: Arc<Shared>, queue: mpsc::UnboundedSender<Staged>) -> Self {
        Self {
            target: Target::Embedded { shared, queue },
        }
    }

    pub(crate) fn external(uplink: Arc<Uplink>) -> Self {
        Self {
            target: Target::External(uplink),
        }
    }

    /// Sends `payload` to `cnova/v1/<node>/down/<kind>`, QoS 1 if the child subscribed with it, not retained.
    ///
    /// # Errors
    /// Says at once when the message cannot go: see [`PublishError`]. Over an external broker nobody knows which
    /// children are there, so only the link to the broker is judged.
    pub fn publish(&self, node: &str, kind: &str, payload: Bytes) -> Result<(), PublishError> {
        if !topics::is_node_id(node) {
            return Err(PublishError::Invalid {
                what: "node id",
                value: node.to_owned(),
            });
        }
        if !topics::is_kind(kind) {
            return Err(PublishError::Invalid {
                what: "kind",
                value: kind.to_owned(),
            });
        }
        let topic = topics::down(node, kind);
        match &self.target {
            Target::External(uplink) => uplink.publish(node, topic, payload),
            Target::Embedded { shared, queue } => {
                let outbox = shared
                    .registry
                    .get(node)
                    .ok_or_else(|| PublishError::NotConnected { node: node.to_owned() })?;
                outbox.reserve(kind, topic.len(), payload.len())?;
                let bytes = payload.len();
                queue.send(Staged { outbox, topic, payload }).map_err(|refused| {
                    refused.0.outbox.release(1, bytes);
                    PublishError::Stopped
                })
            }
        }
    }
}
