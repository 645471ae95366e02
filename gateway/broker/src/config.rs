//! What an endpoint is told when it starts, and every limit it keeps.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::ResolvesClientCert;
use rustls::server::ResolvesServerCert;
use rustls_pki_types::CertificateDer;

/// The embedded endpoint.
#[derive(Debug)]
pub struct EndpointConfig {
    /// Where children connect. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Who we are and whom we believe.
    pub tls: TlsMaterial,
    /// What is bounded, and how tightly.
    pub limits: Limits,
}

/// Certificates and key of the embedded endpoint.
pub struct TlsMaterial {
    /// Our certificate, its intermediates and its key, asked for at each handshake. See [`crate::fixed`].
    pub own: Arc<dyn ResolvesServerCert>,
    /// The authorities whose certificates a child may show.
    pub client_ca: Vec<CertificateDer<'static>>,
}

/// The same service over an external MQTT 5 broker.
#[derive(Debug)]
pub struct ExternalConfig {
    /// Name or address of the broker.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Who we are and whom we believe.
    pub tls: ClientTlsMaterial,
    /// Our client id: the CN of our certificate.
    pub client_id: String,
}

/// Certificates and key with which we connect to an external broker.
pub struct ClientTlsMaterial {
    /// Our certificate, its intermediates and its key, asked for at each handshake. See [`crate::fixed`].
    pub own: Arc<dyn ResolvesClientCert>,
    /// The authorities that may have signed the broker's certificate.
    pub ca: Vec<CertificateDer<'static>>,
    /// The name that the broker's certificate must carry; it may differ from the host that is dialled.
    pub server_name: String,
}

/// Everything the embedded endpoint bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest MQTT packet taken from a child and largest payload sent to one.
    pub max_packet_bytes: usize,
    /// Most children connected at once.
    pub max_connections: usize,
    /// Most peers between `accept` and the end of the handshake, so that strangers never take the place of children.
    pub max_handshakes: usize,
    /// Time a peer has for TLS and CONNECT together.
    pub handshake_timeout: Duration,
    /// Time without any byte accepted by a child's socket after which the child is dropped.
    pub write_timeout: Duration,
    /// Time a child may leave a full window of messages unacknowledged before it is dropped.
    pub ack_timeout: Duration,
    /// Messages that wait for one child.
    pub outbound_queue: usize,
    /// Bytes that wait for one child.
    pub outbound_queue_bytes: usize,
    /// Bytes that wait for all children together.
    pub outbound_total_bytes: usize,
    /// Events that wait for the daemon. When they are full, children wait (TCP), nothing is lost.
    pub event_queue: usize,
    /// Longest keep-alive a child may have; a child that asks for more, or for none, is told this one.
    pub keep_alive_max: Duration,
    /// Message kinds one node may use in each direction, over the life of the endpoint: rumqttd never forgets a topic.
    pub kinds_per_node: usize,
    /// This many takeovers of one identity within `takeover_window` mean that two agents have it.
    pub takeover_limit: usize,
    /// See `takeover_limit`.
    pub takeover_window: Duration,
    /// How long the newcomer is then refused, so that the other one can work.
    pub conflict_hold: Duration,
    /// How often a message goes around through the router to see that it lives.
    pub canary_interval: Duration,
    /// How long that message may take before the router counts as stalled.
    pub canary_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_packet_bytes: 2 << 20,
            max_connections: 4096,
            max_handshakes: 512,
            handshake_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(10),
            ack_timeout: Duration::from_secs(60),
            outbound_queue: 256,
            outbound_queue_bytes: 8 << 20,
            outbound_total_bytes: 128 << 20,
            event_queue: 1024,
            keep_alive_max: Duration::from_secs(1200),
            kinds_per_node: 32,
            takeover_limit: 4,
            takeover_window: Duration::from_secs(60),
            conflict_hold: Duration::from_secs(60),
            canary_interval: Duration::from_secs(5),
            canary_timeout: Duration::from_secs(15),
        }
    }
}

// Keys never reach a log.
impl fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsMaterial")
            .field("client_ca", &self.client_ca.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientTlsMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTlsMaterial")
            .field("ca", &self.ca.len())
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}
