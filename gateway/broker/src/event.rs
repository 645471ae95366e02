//! What an endpoint tells its daemon.

use bytes::Bytes;

/// Something happened at the endpoint.
///
/// The events of one node are in order: `Connected`, its messages, `Disconnected`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointEvent {
    /// A child was authenticated and its CONNACK is sent. It says hello itself, once its subscriptions stand.
    Connected {
        /// The child.
        node: String,
    },
    /// A child is gone.
    Disconnected {
        /// The child.
        node: String,
        /// Why, for people.
        reason: String,
    },
    /// A child sent a message. The topic's node is the one that its certificate names.
    Message {
        /// The child.
        node: String,
        /// What kind of message.
        kind: String,
        /// The signed bytes, not looked at.
        payload: Bytes,
    },
    /// Somebody was turned away, or thrown out for breaking the rules.
    ///
    /// Told at once and when there is room: it may come before earlier events of the same node, and a flood of
    /// refusals never takes the place of a message.
    Refused {
        /// Address of the peer, followed by the identity it proved, if it did.
        peer: String,
        /// Why, for people.
        reason: String,
    },
    /// The router no longer works. The daemon must exit with a failure, so that it is started again.
    Stalled {
        /// What was seen, for people.
        reason: String,
    },
    /// The external broker is reached and the subscription stands.
    BrokerUp,
    /// The external broker is not reached; it is tried again until it is.
    BrokerDown {
        /// Why, for people.
        reason: String,
    },
}
