//! The child-facing MQTT 5 endpoint of a hub or a gateway.
//!
//! rumqttd's router runs in this process, behind a front of our own that speaks TLS 1.3 with mutual
//! certificates and the part of MQTT 5 that Cloudnova uses: QoS 0 and 1, exact topics, no retain, no wills,
//! no sessions. What a client sends reaches the router only after it was authenticated and checked.
//!
//! ```text
//!  child == TLS ==> handshake -> connection -- up lane ---> router --> EndpointEvent::Message
//!  child <== TLS == connection <- outbox <--- down lane --- router <-- Publisher::publish
//! ```
//!
//! Fleets that outgrow the embedded router bring a broker of their own: [`ExternalEndpoint`] offers the same
//! events and the same [`Publisher`] over mosquitto or any other MQTT 5 broker, and [`mosquitto_config`] writes
//! the configuration that gives it the same access rules. [`AnyEndpoint`] holds either.
//!
//! Nothing here is durable. A message that was accepted is in memory, no more: MQTT is a hint, the store of the
//! daemon is the truth.

mod codec;
mod config;
mod connection;
mod door;
mod endpoint;
mod error;
mod event;
mod external;
mod handshake;
mod lane;
mod listener;
mod mosquitto;
mod outbox;
mod publisher;
mod registry;
mod tls;
pub mod topics;

pub use config::{ClientTlsMaterial, EndpointConfig, ExternalConfig, Limits, TlsMaterial};
pub use door::{Door, Gate};
pub use endpoint::{AnyEndpoint, Endpoint};
pub use error::{EndpointError, PublishError};
pub use event::EndpointEvent;
pub use external::ExternalEndpoint;
pub use mosquitto::{MosquittoSettings, mosquitto_acl, mosquitto_config};
pub use publisher::Publisher;
pub use registry::IDENTITY_CONFLICT;
pub use tls::fixed;
