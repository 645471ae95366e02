//! One connected child, from CONNACK to its end.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;

use crate::codec::{self, Announcement, Incoming, Publish, decode, frame_len, reason};
use crate::config::Limits;
use crate::door::Gate;
use crate::event::EndpointEvent;
use crate::handshake::Authenticated;
use crate::lane::{LaneSender, RouterGone};
use crate::outbox::{Outbox, Work};
use crate::registry::Registry;
use crate::topics::{self, Direction};

/// Markers in the up lane. They are no valid kinds, so no child can send them; they travel with its messages, so
/// that a daemon never sees a message of a child that it believes to be gone.
pub(crate) const CONNECTED: &str = "!connected";
pub(crate) const DISCONNECTED: &str = "!disconnected";

/// Messages a child may send unacknowledged. Each is acknowledged as soon as the router has it.
const RECEIVE_MAXIMUM: u16 = 64;
/// How long a peer that is thrown out may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);
/// Room for the next read: little while a child is idle, since there are thousands; a TLS record in a packet.
const IDLE_READ_BYTES: usize = 1 << 10;
const BUSY_READ_BYTES: usize = 16 << 10;
/// A buffer above this is given back once it is empty.
const KEPT_BUFFER_BYTES: usize = 16 << 10;

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) registry: Registry,
    pub(crate) up: LaneSender,
    /// Weak: a publisher that a daemon still holds must not keep the event channel open.
    pub(crate) events: mpsc::WeakSender<EndpointEvent>,
    pub(crate) gate: RwLock<Option<Gate>>,
}

impl Shared {
    /// Why the holder of a certificate is not let in.
    pub(crate) fn refuses(&self, certificate: &[u8]) -> Option<String> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        gate(certificate)
    }

    /// From now on by this gate, also for those that are in. Whoever comes in at this moment is asked again once it is in.
    pub(crate) fn guard(&self, gate: Gate) {
        *self.gate.write().unwrap_or_else(PoisonError::into_inner) = Some(gate.clone());
        for (outbox, certificate) in self.registry.live() {
            if let Some(why) = gate(&certificate) {
                outbox.close(reason::NOT_AUTHORIZED, why);
            }
        }
    }

    /// Tells that somebody was turned away or broke a rule.
    pub(crate) fn report(&self, peer: SocketAddr, node: Option<&str>, reason: String) {
        let peer = node.map_or_else(|| peer.to_string(), |node| format!("{peer} ({node})"));
        tracing::debug!(peer, reason, "refused");
        // Lost when the daemon is behind: strangers must not be able to fill its queue.
        if let Some(events) = self.events.upgrade() {
            let _ = events.try_send(EndpointEvent::Refused { peer, reason });
        }
    }
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// DISCONNECT to send, when the child is still there to read it.
    code: Option<u8>,
    pub(crate) reason: String,
    /// The child broke a rule: operators want to know.
    pub(crate) is_offence: bool,
}

impl End {
    fn left(reason: impl Into<String>) -> Self {
        Self {
            code: None,
            reason: reason.into(),
            is_offence: false,
        }
    }

    fn closed(code: u8, reason: impl Into<String>) -> Self {
        Self {
            code: Some(code),
            reason: reason.into(),
            is_offence: false,
        }
    }

    fn offence(code: u8, reason: impl Into<String>) -> Self {
        Self {
            code: Some(code),
            reason: reason.into(),
            is_offence: true,
        }
    }
}

impl From<RouterGone> for End {
    fn from(gone: RouterGone) -> Self {
        Self::closed(reason::SERVER_SHUTTING_DOWN, gone.to_string())
    }
}

/// Serves an admitted child until its end, and tells the daemon of both.
///
/// Hands the connection back when a DISCONNECT is on its way that should still arrive.
pub(crate) async fn serve(shared: &Shared, authenticated: Authenticated, outbox: Arc<Outbox>) -> (End, Option<Halves>) {
    let Authenticated {
        mut stream,
        peer,
        node,
        connect,
        buffer,
        certificate: _,
    } = authenticated;
    let keep_alive = KeepAlive::agree(connect.keep_alive_secs, shared.limits.keep_alive_max);
    let mut connack = BytesMut::new();
    let announcement = Announcement {
        max_packet_bytes: u32::try_from(shared.limits.max_packet_bytes).unwrap_or(u32::MAX),
        receive_maximum: RECEIVE_MAXIMUM,
        keep_alive_secs: keep_alive.told,
    };
    codec::connack(&mut connack, reason::SUCCESS, Some(announcement), "");
    let greeting = write(&mut stream, &connack, shared.limits.write_timeout).await;
    let (mut reading, mut writing) = tokio::io::split(stream);
    let end = match greeting {
        Ok(()) => match tell(shared, &outbox, CONNECTED, "").await {
            Ok(()) => {
                let reader = Reader {
                    shared,
                    outbox: &outbox,
                    peer,
                    node: &node,
                    buffer,
                    known_kinds: Vec::new(),
                };
                let end = exchange(reader, &outbox, &mut reading, &mut writing, keep_alive.patience, shared).await;
                outbox.die();
                let _ = tell(shared, &outbox, DISCONNECTED, &end.reason).await;
                end
            }
            Err(gone) => gone.into(),
        },
        Err(end) => end,
    };
    outbox.die();
    shared.registry.remove(&outbox);
    outbox.set_gone();
    let halves = end.code.is_some().then_some(Halves { reading, writing });
    (end, halves)
}

async fn tell(shared: &Shared, outbox: &Outbox, marker: &str, text: &str) -> Result<(), RouterGone> {
    shared
        .up
        .send(
            topics::up(&outbox.node, marker),
            Bytes::copy_from_slice(text.as_bytes()),
            outbox.serial,
        )
        .await
}

/// Reads and writes at the same time. Were it one after the other, two sides that both write a large message would
/// wait for one another.
async fn exchange<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    mut reader: Reader<'_>,
    outbox: &Outbox,
    reading: &mut R,
    writing: &mut W,
    patience: Duration,
    shared: &Shared,
) -> End {
    let reader = reader.run(reading, patience);
    let writer = run_writer(outbox, writing, shared.limits.write_timeout);
    let stuck = async {
        outbox.closing().await;
        sleep(FAREWELL).await;
    };
    tokio::pin!(reader, writer, stuck);
    tokio::select! {
        end = &mut reader => {
            if let Some(code) = end.code {
                outbox.close(code, end.reason.clone());
                // Writes what is owed and the DISCONNECT, unless the child does not read.
                let _ = timeout(FAREWELL, writer).await;
            }
            end
        }
        end = &mut writer => end,
        () = &mut stuck => End::left("it was to be closed and did not read why"),
    }
}

/// Both directions of a connection that has ended.
pub(crate) struct Halves {
    reading: ReadHalf<TlsStream<TcpStream>>,
    writing: WriteHalf<TlsStream<TcpStream>>,
}

/// Closes in a way that lets the DISCONNECT arrive: a socket closed with unread input resets the connection.
pub(crate) async fn say_farewell(halves: Halves) {
    let Halves {
        mut reading,
        mut writing,
    } = halves;
    let farewell = async {
        writing.shutdown().await?;
        let mut rest = vec![0; 16 << 10];
        while reading.read(&mut rest).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    let _ = timeout(FAREWELL, farewell).await;
}

async fn run_writer<W: AsyncWrite + Unpin>(outbox: &Outbox, writing: &mut W, patience: Duration) -> End {
    let mut batch = BytesMut::new();
    loop {
        let end = match outbox.next_work(&mut batch).await {
            Work::Write { messages, bytes } => {
                if let Err(end) = write(writing, &batch, patience).await {
                    return end;
                }
                outbox.release(messages, bytes);
                if batch.capacity() > KEPT_BUFFER_BYTES {
                    batch = BytesMut::new();
                }
                batch.clear();
                continue;
            }
            Work::Close(close) => End::closed(close.reason, close.text),
            Work::Unacknowledged => End::closed(
                reason::QUOTA_EXCEEDED,
                "slow consumer: it acknowledges nothing that it is sent",
            ),
        };
        batch.clear();
        codec::disconnect(&mut batch, end.code.unwrap_or_default(), &end.reason);
        let _ = timeout(FAREWELL, write(writing, &batch, patience)).await;
        return end;
    }
}

/// Writes everything and flushes once. Slow is fine as long as something moves: a large twin over a thin line takes
/// longer than any timeout for the whole.
async fn write<W: AsyncWrite + Unpin>(writing: &mut W, mut bytes: &[u8], patience: Duration) -> Result<(), End> {
    let stalled = || {
        End::closed(
            reason::QUOTA_EXCEEDED,
            "slow consumer: its socket takes nothing any more",
        )
    };
    let left = |error: std::io::Error| End::left(format!("the connection broke while writing: {error}"));
    while !bytes.is_empty() {
        match timeout(patience, writing.write(bytes))
            .await
            .map_err(|_| stalled())?
            .map_err(left)?
        {
            0 => return Err(End::left("the connection takes no more bytes")),
            count => bytes = &bytes[count..],
        }
    }
    timeout(patience, writing.flush())
        .await
        .map_err(|_| stalled())?
        .map_err(left)
}

/// The keep-alive that holds for a connection.
struct KeepAlive {
    /// Present when it is not the one the child asked for.
    told: Option<u16>,
    patience: Duration,
}

impl KeepAlive {
    fn agree(asked_secs: u16, max: Duration) -> Self {
        let max_secs = u16::try_from(max.as_secs()).unwrap_or(u16::MAX).max(1);
        let too_long = asked_secs == 0 || asked_secs > max_secs;
        let secs = if too_long { max_secs } else { asked_secs };
        Self {
            told: too_long.then_some(secs),
            patience: Duration::from_secs(u64::from(secs)) * 3 / 2,
        }
    }
}

/// Takes packets from the child and does what they ask for, within the rules.
struct Reader<'a> {
    shared: &'a Shared,
    outbox: &'a Outbox,
    peer: SocketAddr,
    node: &'a str,
    buffer: BytesMut,
    known_kinds: Vec<String>,
}

impl Reader<'_> {
    async fn run<R: AsyncRead + Unpin>(&mut self, reading: &mut R, patience: Duration) -> End {
        loop {
            match self.take_packets().await {
                Ok(()) => {}
                Err(end) => return end,
            }
            if self.buffer.is_empty() && self.buffer.capacity() > KEPT_BUFFER_BYTES {
                self.buffer = BytesMut::new();
            }
            self.buffer.reserve(if self.buffer.is_empty() {
                IDLE_READ_BYTES
            } else {
                BUSY_READ_BYTES
            });
            match timeout(patience, reading.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) => return End::left("it closed the connection without DISCONNECT"),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return End::left(format!("the connection broke: {error}")),
                Err(_) => {
                    return End::closed(
                        reason::KEEP_ALIVE_TIMEOUT,
                        "it said nothing for 1.5 times its keep-alive",
                    );
                }
            }
        }
    }

    async fn take_packets(&mut self) -> Result<(), End> {
        let max = self.shared.limits.max_packet_bytes;
        let offence = |malformed: codec::Malformed| End::offence(malformed.reason, malformed.what);
        while let Some(len) = frame_len(&self.buffer, max).map_err(offence)? {
            let packet = self.buffer.split_to(len);
            match decode(&packet).map_err(offence)? {
                Incoming::Publish(publish) => self.publish(publish).await?,
                Incoming::PubAck(packet_id) => self.outbox.acknowledged(packet_id),
                Incoming::Subscribe { packet_id, filters } => {
                    let codes: Vec<u8> = filters
                        .iter()
                        .map(|(filter, qos)| self.subscribe(filter, *qos))
                        .collect();
                    self.outbox.answer(|out| codec::suback(out, packet_id, &codes)).await;
                }
                Incoming::Unsubscribe { packet_id, filters } => {
                    let codes: Vec<u8> = filters.iter().map(|filter| self.unsubscribe(filter)).collect();
                    self.outbox.answer(|out| codec::unsuback(out, packet_id, &codes)).await;
                }
                Incoming::PingReq => self.outbox.answer(codec::pingresp).await,
                Incoming::Disconnect => return Err(End::left("it said DISCONNECT")),
            }
        }
        Ok(())
    }

    async fn publish(&mut self, publish: Publish) -> Result<(), End> {
        let kind = match topics::parse(&publish.topic) {
            Some(topic) if topic.node == self.node && topic.direction == Direction::Up => topic.kind,
            _ => {
                let why = format!("it may not publish to {}", shown(&publish.topic));
                return Err(End::offence(reason::NOT_AUTHORIZED, why));
            }
        };
        if !self.known_kinds.iter().any(|known| known == kind) {
            if !self.shared.registry.allow_kind(self.node, kind) {
                return Err(End::offence(
                    reason::QUOTA_EXCEEDED,
                    "it uses too many kinds of messages",
                ));
            }
            self.known_kinds.push(kind.to_owned());
        }
        // Waits while the daemon is behind: the child then waits too, and nothing is dropped.
        self.shared
            .up
            .send(publish.topic, publish.payload, self.outbox.serial)
            .await?;
        if let Some(packet_id) = publish.packet_id {
            self.outbox.answer(|out| codec::puback(out, packet_id)).await;
        }
        Ok(())
    }

    fn subscribe(&self, filter: &str, qos: u8) -> u8 {
        let granted = qos.min(1);
        match self.own_down_kind(filter) {
            None => {
                self.shared.report(
                    self.peer,
                    Some(self.node),
                    format!("it may not subscribe to {}", shown(filter)),
                );
                reason::NOT_AUTHORIZED
            }
            Some(kind) if self.outbox.subscribe(kind, granted) => granted,
            Some(_) => reason::QUOTA_EXCEEDED,
        }
    }

    fn unsubscribe(&self, filter: &str) -> u8 {
        match self.own_down_kind(filter) {
            None => reason::NOT_AUTHORIZED,
            Some(kind) if self.outbox.unsubscribe(kind) => reason::SUCCESS,
            Some(_) => reason::NO_SUBSCRIPTION_EXISTED,
        }
    }

    /// Exact names only: a wildcard or `$share` is no topic and so falls through here.
    fn own_down_kind<'f>(&self, filter: &'f str) -> Option<&'f str> {
        let topic = topics::parse(filter)?;
        (topic.node == self.node && topic.direction == Direction::Down).then_some(topic.kind)
    }
}

/// A topic from outside, fit for a log.
fn shown(topic: &str) -> String {
    format!("`{}`", topic.chars().take(120).collect::<String>().escape_debug())
}
