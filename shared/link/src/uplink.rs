//! The connection to the parent: made again and again, subscribed to everything that a parent says.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cnova_shared::ids::NodeId;
use cnova_shared::limits;
use cnova_shared::topics::{Kind, parse_topic, topic};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Packet, Publish, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use rumqttc::{Outgoing, TlsConfiguration, Transport};
use rustls::ClientConfig;
use thiserror::Error;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::address::Address;
use crate::reason;

/// Largest packet, both ways: a message of the largest size and its topic.
const MAX_PACKET_BYTES: u32 = 2 << 20;
/// rumqttc allocates for this many at once; its default costs 13.9 MiB.
const INFLIGHT: u16 = 16;
/// Longest time for TCP, TLS and CONNECT together, in seconds.
const CONNECT_SECONDS: u64 = 15;
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A connection that lasted this long was a good one: the next pause is short again.
const LASTED: Duration = Duration::from_secs(10);
const FAREWELL: Duration = Duration::from_secs(2);
/// Distinct reasons remembered during one outage, so that each is logged once.
const REASONS_KEPT: usize = 16;

/// The kinds that a node subscribes to.
const DOWN: [Kind; 8] = [
    Kind::Twin,
    Kind::Ack,
    Kind::Chunk,
    Kind::Command,
    Kind::Trust,
    Kind::Challenge,
    Kind::Ear,
    Kind::Enrolled,
];

/// How to reach the parent.
#[derive(Clone, Debug)]
pub struct UplinkConfig {
    /// Where it listens.
    pub address: Address,
    /// This node: the MQTT client id.
    pub node: NodeId,
    /// The parent.
    pub parent: NodeId,
    /// See [`crate::client_tls`].
    pub tls: Arc<ClientConfig>,
    /// An idle connection is probed this often.
    pub keep_alive: Duration,
    /// Messages that wait for the link; more are refused.
    pub queue_messages: usize,
    /// Bytes that wait for the link; more are refused.
    pub queue_bytes: usize,
    /// Events that wait for the daemon; when they are full the parent waits (TCP), nothing is lost.
    pub event_queue: usize,
}

impl UplinkConfig {
    /// The usual: keep-alive of 60 s, small queues.
    #[must_use]
    pub fn new(address: Address, node: NodeId, parent: NodeId, tls: Arc<ClientConfig>) -> Self {
        Self {
            address,
            node,
            parent,
            tls,
            keep_alive: Duration::from_secs(60),
            queue_messages: 64,
            queue_bytes: 8 << 20,
            event_queue: 64,
        }
    }
}

/// Something happened on the way to the parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UplinkEvent {
    /// Connected, and every subscription was granted: what is sent now can be answered.
    Connected,
    /// Not connected any more, or still not for another reason.
    Disconnected {
        /// Why, for a person.
        reason: String,
    },
    /// The parent said something.
    Message {
        /// Its kind.
        kind: Kind,
        /// The bytes, unverified.
        bytes: Vec<u8>,
    },
}

/// Why a message was dropped. Whoever sent it says it again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SendError {
    /// The link is down.
    #[error("not connected to the parent")]
    NotConnected,
    /// Too much waits already.
    #[error("too much waits for the link already")]
    Full,
    /// Longer than a message may be.
    #[error("{0} bytes, at most {max} are sent", max = limits::MESSAGE_BYTES)]
    TooLarge(usize),
}

/// The link, running. Dropping it closes it without a word.
#[derive(Debug)]
pub struct Uplink {
    node: NodeId,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    again: Arc<Notify>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    client: AsyncClient,
    queue: Mutex<Queue>,
    queue_bytes: usize,
}

#[derive(Debug, Default)]
struct Queue {
    connected: bool,
    /// Sizes of the messages that rumqttc has not written yet, in their order.
    sizes: VecDeque<usize>,
    bytes: usize,
}

impl Uplink {
    /// Begins to connect, in a task of its own; call it inside a tokio runtime.
    #[must_use]
    pub fn start(config: UplinkConfig) -> (Self, mpsc::Receiver<UplinkEvent>) {
        let mut options = MqttOptions::new(config.node.as_str(), config.address.host(), config.address.port());
        options
            .set_transport(Transport::Tls(TlsConfiguration::Rustls(config.tls.clone())))
            .set_clean_start(true)
            .set_keep_alive(config.keep_alive)
            .set_connection_timeout(CONNECT_SECONDS)
            .set_max_packet_size(Some(MAX_PACKET_BYTES))
            .set_outgoing_inflight_upper_limit(INFLIGHT);
        let mut network = options.network_options();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(CONNECT_SECONDS);
        options.set_network_options(network);
        let (client, event_loop) = AsyncClient::new(options, config.queue_messages);
        let shared = Arc::new(Shared {
            client,
            queue: Mutex::default(),
            queue_bytes: config.queue_bytes,
        });
        let (events, receiver) = mpsc::channel(config.event_queue);
        let (stop, stopped) = watch::channel(false);
        let again = Arc::new(Notify::new());
        let link = Link {
            again: again.clone(),
            shared: shared.clone(),
            events,
            address: config.address,
            node: config.node.clone(),
            parent: config.parent,
            pause: BACKOFF_FIRST,
            since: None,
            told: None,
            logged: Vec::new(),
        };
        let task = tokio::spawn(link.run(event_loop, stopped));
        (
            Self {
                node: config.node,
                shared,
                stop,
                again,
                task,
            },
            receiver,
        )
    }

    /// Puts a message on its way, without waiting. `Ok` means that it is in memory, no more.
    ///
    /// # Errors
    /// [`SendError`]; the message is dropped.
    pub fn send(&self, kind: Kind, bytes: Vec<u8>) -> Result<(), SendError> {
        let size = bytes.len();
        if size > limits::MESSAGE_BYTES {
            return Err(SendError::TooLarge(size));
        }
        let mut queue = self.shared.lock();
        if !queue.connected {
            return Err(SendError::NotConnected);
        }
        if queue.bytes + size > self.shared.queue_bytes {
            return Err(SendError::Full);
        }
        // Under the lock, so that the sizes are in the order of the messages.
        let name = topic(&self.node, kind);
        self.shared
            .client
            .try_publish(name, QoS::AtLeastOnce, false, bytes)
            .map_err(|_| SendError::Full)?;
        queue.sizes.push_back(size);
        queue.bytes += size;
        Ok(())
    }

    /// Tries at once when the link is down, such as with a new certificate.
    pub fn try_now(&self) {
        self.again.notify_one();
    }

    /// Whether the link is up.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.lock().connected
    }

    /// Says DISCONNECT and stops; takes two seconds at most.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        if timeout(FAREWELL, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrote_one(&self) {
        let mut queue = self.lock();
        if let Some(size) = queue.sizes.pop_front() {
            queue.bytes -= size;
        }
    }
}

/// The task that drives rumqttc.
struct Link {
    again: Arc<Notify>,
    shared: Arc<Shared>,
    events: mpsc::Sender<UplinkEvent>,
    address: Address,
    node: NodeId,
    parent: NodeId,
    pause: Duration,
    /// When the present connection was ready.
    since: Option<Instant>,
    /// The reason that the daemon was told last.
    told: Option<String>,
    logged: Vec<String>,
}

impl Link {
    async fn run(mut self, mut event_loop: EventLoop, mut stop: watch::Receiver<bool>) {
        loop {
            let polled = tokio::select! {
                () = stopped(&mut stop) => break,
                polled = event_loop.poll() => polled,
            };
            let fault = match polled {
                Ok(event) => self.handle(event).await.err(),
                Err(error) => Some(reason::of(&error, &self.parent, &self.address)),
            };
            let Some(reason) = fault else { continue };
            event_loop.clean();
            self.down(reason).await;
            let pause = self.next_pause();
            tokio::select! {
                () = stopped(&mut stop) => break,
                () = self.again.notified() => {}
                () = sleep(pause) => {}
            }
        }
        self.say_goodbye(event_loop).await;
    }

    async fn handle(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                let filters = DOWN.map(|kind| Filter::new(topic(&self.node, kind), QoS::AtLeastOnce));
                // The queue is empty: nothing is taken for it while the link is down.
                self.shared
                    .client
                    .try_subscribe_many(filters)
                    .map_err(|e| format!("cannot subscribe: {e}"))
            }
            Event::Incoming(Packet::SubAck(suback)) => {
                self.check_subscribed(&suback.return_codes)?;
                self.up().await;
                Ok(())
            }
            Event::Incoming(Packet::Publish(publish)) => {
                self.message(publish).await;
                Ok(())
            }
            Event::Incoming(Packet::Disconnect(d)) => {
                Err(format!("{} closed the connection: {:?}", self.parent, d.reason_code))
            }
            Event::Outgoing(Outgoing::Publish(_)) => {
                self.shared.wrote_one();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A node that does not hear everything must not say that it is there.
    fn check_subscribed(&self, codes: &[SubscribeReasonCode]) -> Result<(), String> {
        let granted = |c: &SubscribeReasonCode| matches!(c, SubscribeReasonCode::Success(_));
        let refused: Vec<&str> = DOWN
            .iter()
            .zip(codes)
            .filter(|(_, c)| !granted(c))
            .map(|(k, _)| k.as_str())
            .collect();
        if refused.is_empty() && codes.len() == DOWN.len() {
            return Ok(());
        }
        let what = if refused.is_empty() {
            "not all of them were answered".into()
        } else {
            refused.join(", ")
        };
        Err(format!(
            "{} refused subscriptions below cnova/v1/{}/down/: {what}",
            self.parent, self.node
        ))
    }

    async fn message(&self, publish: Publish) {
        let parsed = std::str::from_utf8(&publish.topic).ok().and_then(parse_topic);
        match parsed {
            // Retained means from the past: what was missed is told again after the hello.
            Some((node, kind)) if node == self.node && !kind.is_up() && !publish.retain => {
                let bytes = Vec::from(publish.payload);
                // Waits for the daemon; one that never reads again is gone, and so is this task then.
                let _ = self.events.send(UplinkEvent::Message { kind, bytes }).await;
            }
            _ => tracing::warn!(topic = ?publish.topic, "ignored: not for this node"),
        }
    }

    async fn up(&mut self) {
        self.shared.lock().connected = true;
        self.since = Some(Instant::now());
        self.told = None;
        self.logged.clear();
        tracing::info!(parent = %self.parent, address = %self.address, "connected");
        let _ = self.events.send(UplinkEvent::Connected).await;
    }

    async fn down(&mut self, reason: String) {
        // rumqttc drops what was queued for a session that ended.
        *self.shared.lock() = Queue::default();
        if self.since.take().is_some_and(|since| since.elapsed() >= LASTED) {
            self.pause = BACKOFF_FIRST;
        }
        if !self.logged.contains(&reason) && self.logged.len() < REASONS_KEPT {
            tracing::warn!(parent = %self.parent, address = %self.address, reason, "not connected");
            self.logged.push(reason.clone());
        }
        if self.told.as_ref() != Some(&reason) {
            self.told = Some(reason.clone());
            let _ = self.events.send(UplinkEvent::Disconnected { reason }).await;
        }
    }

    /// Doubles up to its maximum; up to a fifth is added or taken off, so that the nodes of a site do not all come back
    /// in the same instant.
    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (self.pause * 2).min(BACKOFF_MAX);
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        pause.mul_f64(0.8 + (random % 401) as f64 / 1000.0)
    }

    async fn say_goodbye(&self, mut event_loop: EventLoop) {
        if !self.shared.lock().connected || self.shared.client.try_disconnect().is_err() {
            return;
        }
        let goodbye = async {
            while let Ok(event) = event_loop.poll().await {
                if matches!(event, Event::Outgoing(Outgoing::Disconnect)) {
                    break;
                }
            }
        };
        let _ = timeout(FAREWELL, goodbye).await;
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The sender lives in `Uplink`, which aborts this task when it is dropped.
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
