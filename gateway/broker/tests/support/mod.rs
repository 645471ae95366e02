//! A certificate authority, an endpoint on a free port, a well-behaved client (rumqttc) and a raw one.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cnova_broker::{ClientTlsMaterial, Endpoint, EndpointConfig, EndpointEvent, Limits, TlsMaterial};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The most that anything here waits.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `future`, but not for ever.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: CertificateDer<'static>,
    pub pem: String,
}

pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub cert_pem: String,
    pub key_pem: String,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            cert_pem: self.cert_pem.clone(),
            key_pem: self.key_pem.clone(),
        }
    }
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self {
            issuer: Issuer::new(params, key),
            certificate: der,
            pem,
        }
    }

    pub fn issue(&self, cn: &str) -> Identity {
        self.issue_with(cn, |_| {})
    }

    pub fn issue_with(&self, cn: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, cn);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            cert_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }

    /// How a client with `identity` connects to a server of this authority.
    pub fn client_config(&self, identity: Option<&Identity>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match identity {
            Some(identity) => builder
                .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
                .unwrap(),
            None => builder.with_no_client_auth(),
        })
    }

    pub fn client_material(&self, identity: &Identity) -> ClientTlsMaterial {
        ClientTlsMaterial {
            own: cnova_broker::fixed(identity.chain.clone(), identity.key.clone_key()).unwrap(),
            ca: vec![self.certificate.clone()],
            server_name: "localhost".to_owned(),
        }
    }
}

/// An endpoint with its authority and its events.
pub struct Site {
    pub authority: Authority,
    pub endpoint: Endpoint,
    pub events: mpsc::Receiver<EndpointEvent>,
    pub address: SocketAddr,
}

impl Site {
    pub async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    pub async fn start_with(limits: Limits) -> Self {
        let authority = Authority::new("Plant 7");
        let (endpoint, events) = Endpoint::start(config(&authority, "127.0.0.1:0".parse().unwrap(), limits))
            .await
            .unwrap();
        let address = endpoint.local_addr();
        Self {
            authority,
            endpoint,
            events,
            address,
        }
    }

    pub async fn event(&mut self) -> EndpointEvent {
        soon("an event", self.events.recv()).await.expect("the endpoint runs")
    }

    /// The next event that `wanted` recognises; others are passed over.
    pub async fn event_where<T>(&mut self, what: &str, mut wanted: impl FnMut(EndpointEvent) -> Option<T>) -> T {
        soon(what, async {
            loop {
                let event = self.events.recv().await.expect("the endpoint runs");
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        })
        .await
    }

    /// The reason of the next refusal.
    pub async fn refusal(&mut self) -> String {
        self.event_where("a refusal", |event| match event {
            EndpointEvent::Refused { peer, reason } => Some(format!("{peer}: {reason}")),
            _ => None,
        })
        .await
    }

    pub async fn disconnected(&mut self, node: &str) -> String {
        self.event_where("a disconnection", |event| match event {
            EndpointEvent::Disconnected { node: who, reason } if who == node => Some(reason),
            _ => None,
        })
        .await
    }

    /// A client that behaves, connected and subscribed to `kinds`.
    pub async fn child(&self, node: &str, kinds: &[&str]) -> Child {
        Child::connect(&self.authority, &self.authority.issue(node), self.address, node, kinds).await
    }

    /// A raw connection after its TLS handshake.
    pub async fn raw(&self, node: &str) -> Raw {
        Raw::open(&self.authority, Some(&self.authority.issue(node)), self.address)
            .await
            .unwrap()
    }

    /// A raw connection after CONNACK.
    pub async fn raw_connected(&self, node: &str) -> Raw {
        let mut raw = self.raw(node).await;
        raw.send(&connect(node)).await;
        assert_eq!(
            raw.packet().await.unwrap()[..4],
            [0x20, raw.last_remaining, 0, 0],
            "CONNACK"
        );
        raw
    }

    /// Shows that the endpoint still serves: a child connects and a message arrives.
    pub async fn assert_serves(&mut self) {
        let child = self.child("witness", &[]).await;
        child.say("witness", "hello", b"here").await;
        self.event_where("a message of the witness", |event| match event {
            EndpointEvent::Message { node, .. } if node == "witness" => Some(()),
            EndpointEvent::Stalled { reason } => panic!("{reason}"),
            _ => None,
        })
        .await;
    }
}

pub fn config(authority: &Authority, listen: SocketAddr, limits: Limits) -> EndpointConfig {
    let identity = authority.issue("hub");
    let tls = TlsMaterial {
        own: cnova_broker::fixed(identity.chain, identity.key).unwrap(),
        client_ca: vec![authority.certificate.clone()],
    };
    EndpointConfig { listen, tls, limits }
}

/// A rumqttc client and the task that drives it.
pub struct Child {
    pub client: AsyncClient,
    pub packets: mpsc::UnboundedReceiver<Result<Packet, String>>,
    task: tokio::task::JoinHandle<()>,
}

impl Child {
    pub async fn connect(
        authority: &Authority,
        identity: &Identity,
        address: SocketAddr,
        node: &str,
        kinds: &[&str],
    ) -> Self {
        let mut child = Self::begin(authority, identity, address, node);
        child
            .expect("CONNACK", |packet| matches!(packet, Packet::ConnAck(_)).then_some(()))
            .await;
        for kind in kinds {
            child
                .client
                .subscribe(format!("cnova/v1/{node}/down/{kind}"), QoS::AtLeastOnce)
                .await
                .unwrap();
            child
                .expect("SUBACK", |packet| matches!(packet, Packet::SubAck(_)).then_some(()))
                .await;
        }
        child
    }

    pub fn begin(authority: &Authority, identity: &Identity, address: SocketAddr, node: &str) -> Self {
        let mut options = MqttOptions::new(node, "localhost", address.port());
        options
            .set_transport(Transport::Tls(TlsConfiguration::Rustls(
                authority.client_config(Some(identity)),
            )))
            .set_max_packet_size(Some(4 << 20))
            .set_outgoing_inflight_upper_limit(16);
        let mut network = options.network_options();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        let (client, event_loop) = AsyncClient::new(options, 64);
        let (sender, packets) = mpsc::unbounded_channel();
        Self {
            client,
            packets,
            task: tokio::spawn(drive(event_loop, sender)),
        }
    }

    pub async fn say(&self, node: &str, kind: &str, payload: &[u8]) {
        let topic = format!("cnova/v1/{node}/up/{kind}");
        soon(
            "publishing",
            self.client.publish(topic, QoS::AtLeastOnce, false, payload.to_vec()),
        )
        .await
        .unwrap();
    }

    pub async fn expect<T>(&mut self, what: &str, mut wanted: impl FnMut(Packet) -> Option<T>) -> T {
        soon(what, async {
            loop {
                match self.packets.recv().await.expect("the client runs") {
                    Ok(packet) => {
                        if let Some(found) = wanted(packet) {
                            return found;
                        }
                    }
                    Err(error) => panic!("{what}: {error}"),
                }
            }
        })
        .await
    }

    pub async fn message(&mut self) -> (String, Bytes) {
        self.expect("a message", |packet| match packet {
            Packet::Publish(publish) => Some((String::from_utf8(publish.topic.to_vec()).unwrap(), publish.payload)),
            _ => None,
        })
        .await
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ends at the first error: these tests want to see it, not to reconnect.
async fn drive(mut event_loop: EventLoop, packets: mpsc::UnboundedSender<Result<Packet, String>>) {
    loop {
        match event_loop.poll().await {
            Ok(Event::Incoming(packet)) => {
                let _ = packets.send(Ok(packet));
            }
            Ok(Event::Outgoing(_)) => {}
            Err(error) => {
                let _ = packets.send(Err(error.to_string()));
                return;
            }
        }
    }
}

/// A TLS connection on which anything can be said.
pub struct Raw {
    pub stream: TlsStream<TcpStream>,
    pub last_remaining: u8,
}

impl Raw {
    pub async fn open(
        authority: &Authority,
        identity: Option<&Identity>,
        address: SocketAddr,
    ) -> std::io::Result<Self> {
        let connector = TlsConnector::from(authority.client_config(identity));
        let tcp = TcpStream::connect(address).await?;
        // Without it every second small write waits 40 ms for the acknowledgement of the first.
        tcp.set_nodelay(true)?;
        let stream = connector
            .connect(ServerName::try_from("localhost").unwrap(), tcp)
            .await?;
        Ok(Self {
            stream,
            last_remaining: 0,
        })
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        // The other side may have closed already; what it said shows it.
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// The next packet, whole; `None` when the other side closed.
    pub async fn packet(&mut self) -> Option<Vec<u8>> {
        soon("a packet", async {
            let mut packet = vec![self.stream.read_u8().await.ok()?];
            let (mut remaining, mut shift) = (0_usize, 0);
            loop {
                let byte = self.stream.read_u8().await.ok()?;
                packet.push(byte);
                remaining |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            self.last_remaining = packet[1];
            let start = packet.len();
            packet.resize(start + remaining, 0);
            self.stream.read_exact(&mut packet[start..]).await.ok()?;
            Some(packet)
        })
        .await
    }

    /// The reason code of the DISCONNECT that must come, after which the connection must close.
    pub async fn disconnect_reason(&mut self) -> u8 {
        loop {
            let packet = self.packet().await.expect("a DISCONNECT before the end");
            if packet[0] == 0xe0 {
                assert_eq!(self.packet().await, None, "closed after DISCONNECT");
                return packet[2];
            }
        }
    }

    /// The reason code of the CONNACK that must come.
    pub async fn connack_reason(&mut self) -> u8 {
        let packet = self.packet().await.expect("a CONNACK");
        assert_eq!(packet[0], 0x20);
        packet[3]
    }
}

fn with_header(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    loop {
        let byte = (length & 0x7f) as u8;
        length >>= 7;
        packet.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}

fn text(value: &str) -> Vec<u8> {
    let mut bytes = (value.len() as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(value.as_bytes());
    bytes
}

pub fn connect(client_id: &str) -> Vec<u8> {
    connect_with(client_id, 0x02, 60, &[])
}

/// `tail` follows the client id: a will.
pub fn connect_with(client_id: &str, flags: u8, keep_alive: u16, tail: &[u8]) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend_from_slice(&[5, flags]);
    body.extend_from_slice(&keep_alive.to_be_bytes());
    body.push(0);
    body.extend(text(client_id));
    body.extend_from_slice(tail);
    with_header(0x10, &body)
}

pub fn subscribe(filters: &[&str]) -> Vec<u8> {
    let mut body = vec![0, 1, 0];
    for filter in filters {
        body.extend(text(filter));
        body.push(1);
    }
    with_header(0x82, &body)
}

/// `flags`: QoS and retain of the fixed header.
pub fn publish(flags: u8, topic: &str, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = text(topic);
    if flags & 0x06 != 0 {
        body.extend_from_slice(&[0, 9]);
    }
    body.push(properties.len() as u8);
    body.extend_from_slice(properties);
    body.extend_from_slice(payload);
    with_header(0x30 | flags, &body)
}

/// A will's properties, topic and payload.
pub fn will(topic: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(text(topic));
    bytes.extend(text("gone"));
    bytes
}
