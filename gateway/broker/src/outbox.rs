//! What waits to be sent to one connected child, bounded.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::codec;
use crate::config::Limits;
use crate::error::PublishError;

/// Messages a child may leave unacknowledged at once, if it does not ask for fewer itself.
const MAX_INFLIGHT: u16 = 64;
/// Answers (PUBACK and the like) that wait; a child that does not read them is not read any further.
const CONTROL_BYTES: usize = 64 << 10;
/// One write carries about this much.
const BATCH_BYTES: usize = 64 << 10;

/// One connection's queue. The publisher reserves, the router's lane delivers, the writer sends.
pub(crate) struct Outbox {
    pub(crate) node: String,
    /// Tells this connection from an earlier one of the same node.
    pub(crate) serial: u64,
    limits: OutboxLimits,
    state: Mutex<State>,
    total: Arc<AtomicUsize>,
    /// Something for the writer.
    work: Notify,
    /// Room for the reader's next answer.
    control_room: Notify,
    closing: watch::Sender<bool>,
    gone: watch::Sender<bool>,
}

/// The bounds of one connection: ours, and what the child announced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutboxLimits {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    pub(crate) total_bytes: usize,
    pub(crate) max_payload: usize,
    pub(crate) client_max_packet: usize,
    pub(crate) inflight: usize,
    pub(crate) subscriptions: usize,
    pub(crate) ack_timeout: std::time::Duration,
}

/// Why a connection is to be closed: with a DISCONNECT of this reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Close {
    pub(crate) reason: u8,
    pub(crate) text: String,
}

/// What the writer does next.
pub(crate) enum Work {
    /// Write these bytes, then give the reservation back.
    Write { messages: usize, bytes: usize },
    /// Write a DISCONNECT and stop.
    Close(Close),
    /// The child acknowledges nothing.
    Unacknowledged,
}

#[derive(Default)]
struct State {
    /// Of messages between the publisher and the socket.
    reserved_messages: usize,
    reserved_bytes: usize,
    /// Kind to granted QoS.
    subscriptions: HashMap<String, u8>,
    ready: VecDeque<Ready>,
    control: BytesMut,
    inflight: HashSet<u16>,
    last_id: u16,
    last_ack: Option<Instant>,
    close: Option<Close>,
    dead: bool,
}

struct Ready {
    topic: String,
    kind_len: usize,
    payload: Bytes,
}

impl OutboxLimits {
    pub(crate) fn new(limits: &Limits, receive_maximum: u16, client_max_packet: Option<u32>) -> Self {
        Self {
            messages: limits.outbound_queue,
            bytes: limits.outbound_queue_bytes,
            total_bytes: limits.outbound_total_bytes,
            max_payload: limits.max_packet_bytes,
            client_max_packet: client_max_packet.map_or(usize::MAX, |size| size as usize),
            inflight: usize::from(receive_maximum.min(MAX_INFLIGHT)),
            subscriptions: limits.kinds_per_node,
            ack_timeout: limits.ack_timeout,
        }
    }
}

impl Outbox {
    pub(crate) fn new(node: String, serial: u64, limits: OutboxLimits, total: Arc<AtomicUsize>) -> Self {
        Self {
            node,
            serial,
            limits,
            state: Mutex::default(),
            total,
            work: Notify::new(),
            control_room: Notify::new(),
            closing: watch::Sender::new(false),
            gone: watch::Sender::new(false),
        }
    }

    /// Takes room for one message, or says why there is none.
    pub(crate) fn reserve(&self, kind: &str, topic_len: usize, payload_len: usize) -> Result<(), PublishError> {
        let mut state = self.lock();
        let node = || self.node.clone();
        if state.dead || state.close.is_some() {
            return Err(PublishError::NotConnected { node: node() });
        }
        if !state.subscriptions.contains_key(kind) {
            return Err(PublishError::NotSubscribed {
                node: node(),
                kind: kind.to_owned(),
            });
        }
        let frame = codec::publish_len(topic_len, payload_len);
        if payload_len > self.limits.max_payload || frame > self.limits.client_max_packet {
            let limit = self.limits.max_payload.min(self.limits.client_max_packet);
            return Err(PublishError::TooLarge {
                node: node(),
                size: payload_len,
                limit,
            });
        }
        let full = state.reserved_messages >= self.limits.messages
            // A queue that is empty takes one message of any allowed size.
            || (state.reserved_messages > 0 && state.reserved_bytes + payload_len > self.limits.bytes)
            || self.total.load(Ordering::Relaxed) + payload_len > self.limits.total_bytes;
        if full {
            return Err(PublishError::QueueFull { node: node() });
        }
        state.reserved_messages += 1;
        state.reserved_bytes += payload_len;
        self.total.fetch_add(payload_len, Ordering::Relaxed);
        Ok(())
    }

    /// Gives back the room of messages that were written or dropped.
    pub(crate) fn release(&self, messages: usize, bytes: usize) {
        let mut state = self.lock();
        if !state.dead {
            state.reserved_messages = state.reserved_messages.saturating_sub(messages);
            state.reserved_bytes = state.reserved_bytes.saturating_sub(bytes);
            self.total.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// A reserved message has come through the router.
    pub(crate) fn deliver(&self, topic: String, kind_len: usize, payload: Bytes) {
        let mut state = self.lock();
        if !state.dead {
            state.ready.push_back(Ready {
                topic,
                kind_len,
                payload,
            });
            drop(state);
            self.work.notify_one();
        }
    }

    /// Grants a subscription; `false` when the child has too many.
    pub(crate) fn subscribe(&self, kind: &str, qos: u8) -> bool {
        let mut state = self.lock();
        let known = state.subscriptions.contains_key(kind);
        if !known && state.subscriptions.len() >= self.limits.subscriptions {
            return false;
        }
        state.subscriptions.insert(kind.to_owned(), qos);
        true
    }

    /// Ends a subscription; `false` when there was none.
    pub(crate) fn unsubscribe(&self, kind: &str) -> bool {
        self.lock().subscriptions.remove(kind).is_some()
    }

    /// The child acknowledged a message.
    pub(crate) fn acknowledged(&self, packet_id: u16) {
        let mut state = self.lock();
        if state.inflight.remove(&packet_id) {
            state.last_ack = Some(Instant::now());
            drop(state);
            self.work.notify_one();
        }
    }

    /// Queues an answer. Waits while the child does not read the earlier ones, so that it is not read either.
    pub(crate) async fn answer(&self, write: impl Fn(&mut BytesMut)) {
        loop {
            {
                let mut state = self.lock();
                if state.control.len() < CONTROL_BYTES {
                    write(&mut state.control);
                    self.work.notify_one();
                    return;
                }
            }
            self.control_room.notified().await;
        }
    }

    /// Asks for the connection to be closed. The first reason stands.
    pub(crate) fn close(&self, reason: u8, text: impl Into<String>) {
        let mut state = self.lock();
        if state.close.is_none() {
            state.close = Some(Close {
                reason,
                text: text.into(),
            });
        }
        drop(state);
        self.closing.send_replace(true);
        self.work.notify_one();
    }

    /// Returns when [`close`](Self::close) was called.
    pub(crate) async fn closing(&self) {
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    /// Fills `batch` with what may be sent now; waits until there is something.
    pub(crate) async fn next_work(&self, batch: &mut BytesMut) -> Work {
        loop {
            let blocked_since = {
                let mut state = self.lock();
                if let Some(close) = state.close.clone() {
                    return Work::Close(close);
                }
                let (messages, bytes) = self.fill(&mut state, batch);
                if !batch.is_empty() {
                    return Work::Write { messages, bytes };
                }
                (!state.ready.is_empty()).then(|| state.last_ack.unwrap_or_else(Instant::now))
            };
            let Some(blocked_since) = blocked_since else {
                self.work.notified().await;
                continue;
            };
            tokio::select! {
                () = self.work.notified() => {}
                () = sleep_until(blocked_since + self.limits.ack_timeout) => return Work::Unacknowledged,
            }
        }
    }

    fn fill(&self, state: &mut State, batch: &mut BytesMut) -> (usize, usize) {
        batch.extend_from_slice(&state.control);
        state.control.clear();
        self.control_room.notify_one();
        let (mut messages, mut bytes) = (0, 0);
        while batch.len() < BATCH_BYTES && state.inflight.len() < self.limits.inflight {
            let Some(ready) = state.ready.pop_front() else { break };
            messages += 1;
            bytes += ready.payload.len();
            let kind = &ready.topic[ready.topic.len() - ready.kind_len..];
            let packet_id = match state.subscriptions.get(kind) {
                // Unsubscribed while the message was on its way.
                None => continue,
                Some(0) => None,
                Some(_) => Some(state.next_id()),
            };
            codec::publish(batch, &ready.topic, packet_id, &ready.payload);
        }
        if batch.is_empty() && messages > 0 {
            state.reserved_messages = state.reserved_messages.saturating_sub(messages);
            state.reserved_bytes = state.reserved_bytes.saturating_sub(bytes);
            self.total.fetch_sub(bytes, Ordering::Relaxed);
        }
        (messages, bytes)
    }

    /// The connection's end: everything that waits is dropped, its room is free.
    pub(crate) fn die(&self) {
        let mut state = self.lock();
        if !state.dead {
            self.total.fetch_sub(state.reserved_bytes, Ordering::Relaxed);
            *state = State {
                dead: true,
                ..State::default()
            };
        }
    }

    /// Says that nothing of this connection is left.
    pub(crate) fn set_gone(&self) {
        self.gone.send_replace(true);
    }

    /// Returns when nothing of this connection is left.
    pub(crate) async fn wait_gone(&self) {
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock; were it otherwise, the state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_id(&mut self) -> u16 {
        // Ends: fewer than MAX_INFLIGHT of the 65,535 are taken.
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if self.inflight.insert(self.last_id) {
                if self.inflight.len() == 1 {
                    self.last_ack = Some(Instant::now());
                }
                return self.last_id;
            }
        }
    }
}
