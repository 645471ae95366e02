//! Handing messages to the endpoint.

use cnova_broker::{PublishError, Publisher};
use cnova_shared::ids::NodeId;
use cnova_shared::topics::Kind;

use crate::traffic::Traffic;

/// Sends signed bytes to a child. What cannot go now is said again later by the core or asked for again by the child.
pub fn send(publisher: &Publisher, traffic: &Traffic, child: &NodeId, kind: Kind, bytes: Vec<u8>) {
    let size = bytes.len() as u64;
    match publisher.publish(child.as_str(), kind.as_str(), bytes.into()) {
        Ok(()) => {
            traffic.messages_out.one();
            traffic.bytes_out.add(size);
        }
        Err(error) => {
            traffic.messages_unsent.one();
            match error {
                PublishError::TooLarge { .. } | PublishError::Invalid { .. } => {
                    tracing::error!(kind = kind.as_str(), %error, "can never be sent");
                }
                _ => tracing::debug!(kind = kind.as_str(), %error, "not sent"),
            }
        }
    }
}
