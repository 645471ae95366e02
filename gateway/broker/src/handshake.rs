//! From an accepted socket to an authenticated CONNECT.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::codec::{self, Connect, ConnectError, decode_connect, frame_len, reason};
use crate::tls;

/// A CONNECT is small; a stranger's certificate was accepted, but nothing else of it is believed yet.
const MAX_CONNECT_BYTES: usize = 16 << 10;
/// How long a refused peer may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// A peer that proved who it is and asked properly. It has no CONNACK yet.
pub(crate) struct Authenticated {
    pub(crate) stream: TlsStream<TcpStream>,
    pub(crate) peer: SocketAddr,
    pub(crate) node: String,
    /// Its certificate, DER.
    pub(crate) certificate: Arc<[u8]>,
    pub(crate) connect: Connect,
    /// What came behind CONNECT already.
    pub(crate) buffer: BytesMut,
}

/// Why a peer is turned away.
pub(crate) struct Refusal {
    /// The identity that its certificate proved, if it came that far.
    pub(crate) node: Option<String>,
    pub(crate) reason: String,
    /// The CONNACK that tells the peer, when there is somebody to tell.
    pub(crate) farewell: Option<Farewell>,
}

/// A connection to be closed with a CONNACK that says no.
pub(crate) struct Farewell {
    pub(crate) stream: TlsStream<TcpStream>,
    pub(crate) code: u8,
}

/// Runs the handshake. The caller bounds its time.
pub(crate) async fn authenticate(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    peer: SocketAddr,
) -> Result<Authenticated, Refusal> {
    // A small twin must not wait 40 ms for the acknowledgement of the packet before it.
    let _ = tcp.set_nodelay(true);
    let mut stream = acceptor
        .accept(tcp)
        .await
        .map_err(|error| Refusal::stranger(format!("the TLS handshake failed: {error}")))?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = certificate.map(|c| c.clone().into_owned());
    let node = match certificate.as_ref().map(tls::node_of) {
        Some(Ok(node)) => node,
        Some(Err(reason)) => {
            let farewell = Some(Farewell {
                stream,
                code: reason::CLIENT_IDENTIFIER_NOT_VALID,
            });
            return Err(Refusal {
                node: None,
                reason,
                farewell,
            });
        }
        None => return Err(Refusal::stranger("it showed no certificate".to_owned())),
    };
    let certificate: Arc<[u8]> = certificate.map(|c| Arc::from(&c[..])).unwrap_or_default();
    let mut buffer = BytesMut::new();
    let first = match first_packet(&mut stream, &mut buffer).await {
        Ok(packet) => decode_connect(&packet).map_err(explain),
        Err(FirstPacket::Bad(why)) => Err(why),
        Err(FirstPacket::Left(reason)) => {
            return Err(Refusal {
                node: Some(node),
                reason,
                farewell: None,
            });
        }
    };
    match first.and_then(|connect| check(connect, &node)) {
        Ok(connect) => Ok(Authenticated {
            stream,
            peer,
            node,
            certificate,
            connect,
            buffer,
        }),
        Err((code, reason)) => Err(Refusal {
            node: Some(node),
            reason,
            farewell: Some(Farewell { stream, code }),
        }),
    }
}

impl Refusal {
    /// Of a peer that proved nothing and is told nothing.
    pub(crate) fn stranger(reason: String) -> Self {
        Self {
            node: None,
            reason,
            farewell: None,
        }
    }
}

impl Farewell {
    /// Says why, and closes.
    pub(crate) async fn say(mut self, why: &str) {
        let mut out = BytesMut::new();
        if self.code == V3 {
            codec::connack_v3_refusal(&mut out);
        } else {
            codec::connack(&mut out, self.code, None, why);
        }
        let farewell = async {
            self.stream.write_all(&out).await?;
            self.stream.shutdown().await?;
            // Until the peer has closed too: closing with unread input would destroy the answer on its way.
            let mut rest = [0; 1024];
            while self.stream.read(&mut rest).await? > 0 {}
            Ok::<_, std::io::Error>(())
        };
        let _ = timeout(FAREWELL, farewell).await;
    }
}

/// First byte of a CONNECT.
const CONNECT: u8 = 0x10;
/// Not a code of MQTT 5: marks the refusal that a client of MQTT 3 understands.
const V3: u8 = 0x01;

fn explain(error: ConnectError) -> (u8, String) {
    match error {
        ConnectError::NotConnect => (
            reason::PROTOCOL_ERROR,
            "the first packet is not an MQTT CONNECT".to_owned(),
        ),
        ConnectError::Version(level @ 3..=4) => (V3, format!("it speaks MQTT 3 (protocol level {level}), we MQTT 5")),
        ConnectError::Version(level) => (
            reason::UNSUPPORTED_PROTOCOL_VERSION,
            format!("it speaks MQTT protocol level {level}, we speak 5"),
        ),
        ConnectError::Malformed(malformed) => (malformed.reason, malformed.what.to_owned()),
    }
}

fn check(connect: Connect, node: &str) -> Result<Connect, (u8, String)> {
    if connect.client_id != node {
        let why = format!(
            "its client id `{}` is not the CN `{node}` of its certificate",
            connect.client_id.chars().take(80).collect::<String>().escape_debug()
        );
        return Err((reason::CLIENT_IDENTIFIER_NOT_VALID, why));
    }
    if connect.has_will {
        return Err((
            reason::NOT_AUTHORIZED,
            "it wants to leave a will; none are taken here".to_owned(),
        ));
    }
    if connect.has_authentication_method {
        return Err((
            reason::BAD_AUTHENTICATION_METHOD,
            "it asks for enhanced authentication".to_owned(),
        ));
    }
    Ok(connect)
}

/// Why there is no first packet.
enum FirstPacket {
    Bad((u8, String)),
    Left(String),
}

async fn first_packet(stream: &mut TlsStream<TcpStream>, buffer: &mut BytesMut) -> Result<BytesMut, FirstPacket> {
    loop {
        // Not after its length was waited for: another protocol's bytes may promise many more.
        if buffer.first().is_some_and(|first| *first != CONNECT) {
            return Err(FirstPacket::Bad(explain(ConnectError::NotConnect)));
        }
        match frame_len(buffer, MAX_CONNECT_BYTES) {
            Ok(Some(len)) => return Ok(buffer.split_to(len)),
            Ok(None) => {}
            Err(malformed) => return Err(FirstPacket::Bad(explain(ConnectError::Malformed(malformed)))),
        }
        match stream.read_buf(buffer).await {
            Ok(0) => return Err(FirstPacket::Left("it left before CONNECT".to_owned())),
            Ok(_) => {}
            // In TLS 1.3 a client that does not believe our certificate tells it here.
            Err(error) => return Err(FirstPacket::Left(format!("it left before CONNECT: {error}"))),
        }
    }
}
