//! The same service over an external MQTT 5 broker, reached with rumqttc.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use rumqttc::{Outgoing, TlsConfiguration, Transport};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::config::ExternalConfig;
use crate::door::Door;
use crate::error::{EndpointError, PublishError};
use crate::event::EndpointEvent;
use crate::listener::stopped;
use crate::publisher::Publisher;
use crate::tls;
use crate::topics::{self, Direction};

/// Largest message, both ways.
const MAX_PACKET_BYTES: usize = 2 << 20;
/// Messages and bytes that wait for the link to the broker.
const QUEUE_MESSAGES: usize = 1024;
const QUEUE_BYTES: usize = 32 << 20;
/// rumqttc allocates for this many at once; its default costs 13.9 MiB.
const INFLIGHT: u16 = 16;
const EVENT_QUEUE: usize = 1024;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
const FAREWELL: Duration = Duration::from_secs(2);

/// A parent's place at an external broker, running. Dropping it stops it too, without DISCONNECT.
///
/// It reports [`EndpointEvent::BrokerUp`], [`EndpointEvent::BrokerDown`] and messages. A broker does not tell who
/// is connected to it, so `Connected` and `Disconnected` never come: a child's hello says that it is there.
pub struct ExternalEndpoint {
    uplink: Arc<Uplink>,
    door: Door,
    stop: watch::Sender<bool>,
    link: JoinHandle<()>,
}

/// The queue to the broker.
pub(crate) struct Uplink {
    client: AsyncClient,
    state: Mutex<UplinkState>,
}

#[derive(Default)]
struct UplinkState {
    is_up: bool,
    /// Sizes of the messages that rumqttc has not written yet, in their order.
    queued: VecDeque<usize>,
    queued_bytes: usize,
}

impl ExternalEndpoint {
    /// Begins to connect. Returns at once: a broker that is not there is an event, not an error.
    ///
    /// # Errors
    /// When the certificates or names do not work: see [`EndpointError`].
    pub async fn start(config: ExternalConfig) -> Result<(Self, mpsc::Receiver<EndpointEvent>), EndpointError> {
        let ExternalConfig {
            host,
            port,
            tls,
            client_id,
        } = config;
        if !topics::is_node_id(&client_id) {
            return Err(EndpointError::Invalid {
                what: "the client id",
                value: client_id,
            });
        }
        let (tls, server) = tls::client_config(tls)?;
        let door = Door::external(server);
        let mut options = MqttOptions::new(client_id, host, port);
        options
            .set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls))))
            .set_clean_start(true)
            .set_keep_alive(KEEP_ALIVE)
            .set_max_packet_size(Some(MAX_PACKET_BYTES as u32))
            .set_outgoing_inflight_upper_limit(INFLIGHT);
        let mut network = options.network_options();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        let (client, event_loop) = AsyncClient::new(options, QUEUE_MESSAGES);
        let uplink = Arc::new(Uplink {
            client,
            state: Mutex::default(),
        });
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let (stop, stopped) = watch::channel(false);
        let link = Link {
            uplink: uplink.clone(),
            events,
            reported: None,
            backoff: BACKOFF_FIRST,
        };
        let link = tokio::spawn(link.run(event_loop, stopped));
        let endpoint = Self {
            uplink,
            door,
            stop,
            link,
        };
        Ok((endpoint, receiver))
    }

    /// Whom we believe to be the broker.
    #[must_use]
    pub fn door(&self) -> Door {
        self.door.clone()
    }

    /// The sending side.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        Publisher::external(self.uplink.clone())
    }

    /// Says DISCONNECT to the broker and stops.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        if timeout(FAREWELL, &mut self.link).await.is_err() {
            self.link.abort();
        }
    }
}

impl Drop for ExternalEndpoint {
    fn drop(&mut self) {
        self.link.abort();
    }
}

impl Uplink {
    pub(crate) fn publish(&self, node: &str, topic: String, payload: Bytes) -> Result<(), PublishError> {
        let size = payload.len();
        let mut state = self.lock();
        if !state.is_up {
            return Err(PublishError::NotConnected { node: node.to_owned() });
        }
        if size > MAX_PACKET_BYTES {
            return Err(PublishError::TooLarge {
                node: node.to_owned(),
                size,
                limit: MAX_PACKET_BYTES,
            });
        }
        let full = || PublishError::QueueFull { node: node.to_owned() };
        if state.queued_bytes + size > QUEUE_BYTES {
            return Err(full());
        }
        // Under the lock, so that the sizes are in the order of the messages.
        self.client
            .try_publish(topic, QoS::AtLeastOnce, false, payload)
            .map_err(|_| full())?;
        state.queued.push_back(size);
        state.queued_bytes += size;
        Ok(())
    }

    fn set_up(&self) {
        self.lock().is_up = true;
    }

    fn set_down(&self) {
        // rumqttc drops what was queued for a session that ended.
        *self.lock() = UplinkState::default();
    }

    fn wrote_one(&self) {
        let mut state = self.lock();
        if let Some(size) = state.queued.pop_front() {
            state.queued_bytes -= size;
        }
    }

    fn lock(&self) -> MutexGuard<'_, UplinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that drives rumqttc.
struct Link {
    uplink: Arc<Uplink>,
    events: mpsc::Sender<EndpointEvent>,
    /// What the daemon was told last, so that an outage is told once.
    reported: Option<Result<(), String>>,
    backoff: Duration,
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
                Err(error) => Some(error.to_string()),
            };
            if let Some(fault) = fault {
                event_loop.clean();
                self.down(fault).await;
                tokio::select! {
                    () = stopped(&mut stop) => break,
                    () = sleep(self.next_pause()) => {}
                }
            }
        }
        self.say_goodbye(event_loop).await;
    }

    async fn handle(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                // The queue is empty: nothing is taken for it while the link is down.
                self.uplink
                    .client
                    .try_subscribe(topics::ALL_UP, QoS::AtLeastOnce)
                    .map_err(|error| format!("cannot subscribe: {error}"))
            }
            Event::Incoming(Packet::SubAck(suback)) => {
                if !matches!(suback.return_codes.first(), Some(SubscribeReasonCode::Success(_))) {
                    let (filter, codes) = (topics::ALL_UP, suback.return_codes);
                    return Err(format!(
                        "the broker refused the subscription {filter} ({codes:?}): check its ACL"
                    ));
                }
                self.up().await;
                Ok(())
            }
            Event::Incoming(Packet::Publish(publish)) => {
                self.message(publish).await;
                Ok(())
            }
            Event::Incoming(Packet::Disconnect(disconnect)) => Err(format!(
                "the broker closed the connection: {:?}",
                disconnect.reason_code
            )),
            Event::Outgoing(Outgoing::Publish(_)) => {
                self.uplink.wrote_one();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn message(&self, publish: Publish) {
        let topic = std::str::from_utf8(&publish.topic).ok().and_then(topics::parse);
        match topic {
            // Retained means from the past: a child's state is told by its hello, not by a broker's memory.
            Some(topic) if topic.direction == Direction::Up && !publish.retain => {
                let (node, kind) = (topic.node.to_owned(), topic.kind.to_owned());
                // Waits for the daemon. A daemon that is behind by longer than the keep-alive loses the link,
                // and children send again what was not acknowledged by a report.
                let _ = self
                    .events
                    .send(EndpointEvent::Message {
                        node,
                        kind,
                        payload: publish.payload,
                    })
                    .await;
            }
            _ => tracing::warn!(topic = ?publish.topic, "ignored: not a child's message"),
        }
    }

    async fn up(&mut self) {
        self.uplink.set_up();
        self.backoff = BACKOFF_FIRST;
        if self.reported != Some(Ok(())) {
            self.reported = Some(Ok(()));
            let _ = self.events.send(EndpointEvent::BrokerUp).await;
        }
    }

    async fn down(&mut self, reason: String) {
        self.uplink.set_down();
        if self.reported.as_ref().and_then(|told| told.as_ref().err()) != Some(&reason) {
            self.reported = Some(Err(reason.clone()));
            let _ = self.events.send(EndpointEvent::BrokerDown { reason }).await;
        }
    }

    /// Doubles up to its maximum. Up to half is taken off, differently each time, so that the nodes of a site do not
    /// all come back in the same instant.
    fn next_pause(&mut self) -> Duration {
        let pause = self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        pause - pause.mul_f64((random % 500) as f64 / 1000.0)
    }

    async fn say_goodbye(&self, mut event_loop: EventLoop) {
        if self.uplink.client.try_disconnect().is_err() {
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
