//! Errors of starting an endpoint and of publishing through it.

use std::net::SocketAddr;

/// An endpoint could not start.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Another program has the port.
    #[error(
        "cannot listen on {address}: another program already does. Stop it (`ss -ltnp 'sport = :{port}'` names it) \
         or configure another address",
        port = .address.port()
    )]
    AddressInUse {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// The address cannot be listened on for another reason.
    #[error("cannot listen on {address}: {source}. Check that this machine has the address and may use the port")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The certificates or the key do not work together.
    #[error(
        "the TLS material does not work: {source}. Check that the key belongs to the first certificate of the chain"
    )]
    Tls {
        /// What rustls said.
        source: rustls::Error,
    },
    /// No authority was given that could have signed a peer's certificate.
    #[error("no usable CA certificate was given: {reason}. Configure the CA that signs the certificates of the peers")]
    Authority {
        /// What is wrong with it.
        reason: String,
    },
    /// The server name or client id is not usable.
    #[error("`{value}` is not usable as {what}: correct it in the configuration")]
    Invalid {
        /// Which setting.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// rumqttd's router did not start.
    #[error("the message router did not start: {reason}. This is a defect or a lack of memory: start again")]
    Router {
        /// What was seen.
        reason: String,
    },
}

/// A message was not taken for delivery. Nothing is lost that the caller does not know of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The child is not there; it will say hello when it comes.
    #[error("{node} is not connected: send again when it says hello")]
    NotConnected {
        /// The child (or the external broker).
        node: String,
    },
    /// The child is there but does not listen to this kind.
    #[error("{node} has not subscribed to {kind}: send again when it says hello")]
    NotSubscribed {
        /// The child.
        node: String,
        /// What kind of message.
        kind: String,
    },
    /// The child takes messages more slowly than they come.
    #[error("the queue to {node} is full: send again later")]
    QueueFull {
        /// The child.
        node: String,
    },
    /// The message can never be delivered.
    #[error("a message of {size} bytes for {node} exceeds the limit of {limit}: send it in chunks")]
    TooLarge {
        /// The child.
        node: String,
        /// Size of the payload.
        size: usize,
        /// The most that this endpoint or that child takes.
        limit: usize,
    },
    /// The node id or the kind would not make a valid topic.
    #[error("`{value}` is not a valid {what}: this is a defect of the caller")]
    Invalid {
        /// Node id or kind.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// The endpoint was shut down or its router is gone.
    #[error("the endpoint no longer runs")]
    Stopped,
}
