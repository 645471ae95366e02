//! From an accepted socket to an authenticated CONNECT.

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
    pub(crate) node: String,
    pub(crate) connect: Connect,
    /// What came behind CONNECT already.
    pub(crate) buffer: BytesMut,
}

/// Why a peer is turned away.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The identity that its certificate proved, if it came that far.
    pub(crate) node: Option<String>,
    pub(crate) reason: String,
}

/// Runs the handshake. The caller bounds its time.
pub(crate) async fn authenticate(acceptor: TlsAcceptor, tcp: TcpStream) -> Result<Authenticated, Refusal> {
    // A small twin must not wait 40 ms for the acknowledgement of the packet before it.
    let _ = tcp.set_nodelay(true);
    let refusal = |node: Option<&str>, reason: String| Refusal {
        node: node.map(str::to_owned),
        reason,
    };
    let mut stream = acceptor
        .accept(tcp)
        .await
        .map_err(|error| refusal(None, format!("the TLS handshake failed: {error}")))?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let node = match certificate.map(tls::node_of) {
        Some(Ok(node)) => node,
        Some(Err(why)) => {
            refuse(stream, reason::CLIENT_IDENTIFIER_NOT_VALID, &why).await;
            return Err(refusal(None, why));
        }
        None => return Err(refusal(None, "it showed no certificate".to_owned())),
    };
    let mut buffer = BytesMut::new();
    let packet = match first_packet(&mut stream, &mut buffer).await {
        Ok(packet) => packet,
        Err(why) => return Err(refusal(Some(&node), why)),
    };
    match decode_connect(&packet)
        .map_err(explain)
        .and_then(|connect| check(connect, &node))
    {
        Ok(connect) => Ok(Authenticated {
            stream,
            node,
            connect,
            buffer,
        }),
        Err((code, why)) => {
            refuse(stream, code, &why).await;
            Err(refusal(Some(&node), why))
        }
    }
}

/// Answers with a CONNACK that says no, and closes.
pub(crate) async fn refuse(mut stream: TlsStream<TcpStream>, code: u8, why: &str) {
    let mut out = BytesMut::new();
    if code == V3 {
        codec::connack_v3_refusal(&mut out);
    } else {
        codec::connack(&mut out, code, None, why);
    }
    let farewell = async {
        stream.write_all(&out).await?;
        stream.shutdown().await?;
        // Until the peer has closed too: closing with unread input would destroy the answer on its way.
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    let _ = timeout(FAREWELL, farewell).await;
}

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

async fn first_packet(stream: &mut TlsStream<TcpStream>, buffer: &mut BytesMut) -> Result<BytesMut, String> {
    loop {
        match frame_len(buffer, MAX_CONNECT_BYTES) {
            Ok(Some(len)) => return Ok(buffer.split_to(len)),
            Ok(None) => {}
            Err(malformed) => return Err(format!("bad first packet: {}", malformed.what)),
        }
        match stream.read_buf(buffer).await {
            // TLS 1.3: a client learns only now that its certificate was refused, or it leaves without a word.
            Ok(0) => return Err("it left before CONNECT".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(format!("it left before CONNECT: {error}")),
        }
    }
}
