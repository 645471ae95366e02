//! The embedded endpoint: listener, router and the tasks between them.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::config::{EndpointConfig, TlsMaterial};
use crate::connection::{CONNECTED, DISCONNECTED, Shared};
use crate::door::Door;
use crate::error::EndpointError;
use crate::event::EndpointEvent;
use crate::external::ExternalEndpoint;
use crate::lane::{self, CANARY, Delivery, LaneReceiver, LaneSender, RouterGone};
use crate::listener::Listener;
use crate::publisher::{Publisher, Staged};
use crate::registry::Registry;
use crate::tls::{self, Clients};
use crate::topics;

/// The embedded endpoint, running. Dropping it stops it too, without waiting.
pub struct Endpoint {
    local_addr: SocketAddr,
    publisher: Publisher,
    tls: Arc<RwLock<Arc<ServerConfig>>>,
    clients: Arc<Clients>,
    door: Door,
    stop: watch::Sender<bool>,
    listener: JoinHandle<()>,
    pumps: Vec<JoinHandle<()>>,
}

impl Endpoint {
    /// Starts to listen. The events come in the order in which they happened, node by node.
    ///
    /// # Errors
    /// When the address is taken or the certificates do not work: see [`EndpointError`].
    pub async fn start(config: EndpointConfig) -> Result<(Self, mpsc::Receiver<EndpointEvent>), EndpointError> {
        let EndpointConfig { listen, tls, limits } = config;
        let clients = Arc::new(Clients::of(&tls.client_ca)?);
        let tls = Arc::new(RwLock::new(Arc::new(tls::server_config(tls, clients.clone())?)));
        // Before the router: its thread cannot be stopped again.
        let socket = TcpListener::bind(listen)
            .await
            .map_err(|source| cannot_listen(listen, source))?;
        let local_addr = socket.local_addr().map_err(|source| cannot_listen(listen, source))?;
        let lanes = lane::start(limits.max_packet_bytes).await?;
        let (events, receiver) = mpsc::channel(limits.event_queue);
        let (queue, staged) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            registry: Registry::new(&limits),
            up: lanes.up.0,
            events: events.downgrade(),
            gate: RwLock::default(),
            limits,
        });
        let (stop, stopped) = watch::channel(false);
        let pumps = vec![
            tokio::spawn(watch_over(pump_up(lanes.up.1, events.clone()), "up", events.clone())),
            tokio::spawn(watch_over(feed_down(staged, lanes.down.0), "down", events.clone())),
            tokio::spawn(watch_over(
                pump_down(lanes.down.1, shared.clone()),
                "down",
                events.clone(),
            )),
            tokio::spawn(canary(
                lanes.canary,
                shared.limits.canary_interval,
                shared.limits.canary_timeout,
                events.clone(),
            )),
        ];
        let listener = Listener {
            socket,
            tls: tls.clone(),
            shared: shared.clone(),
        };
        let endpoint = Self {
            local_addr,
            door: Door::embedded(clients.clone(), shared.clone()),
            publisher: Publisher::embedded(shared, queue),
            tls,
            clients,
            stop,
            listener: tokio::spawn(listener.run(stopped)),
            pumps,
        };
        Ok((endpoint, receiver))
    }

    /// Where it listens, with the port that was given when 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The sending side.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// Who may come in.
    #[must_use]
    pub fn door(&self) -> Door {
        self.door.clone()
    }

    /// Uses other certificates for the connections to come; those that stand are not touched.
    ///
    /// # Errors
    /// When the new material does not work; the old one then stays.
    pub fn replace_tls(&self, material: TlsMaterial) -> Result<(), EndpointError> {
        let authorities = material.client_ca.clone();
        let config = Arc::new(tls::server_config(material, self.clients.clone())?);
        self.clients.replace(&authorities)?;
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Tells every child (DISCONNECT 0x8B), closes the port and stops. Takes a few seconds at most.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        let _ = (&mut self.listener).await;
        for pump in &mut self.pumps {
            pump.abort();
            let _ = pump.await;
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        // The listener ends its connections by itself; the pumps have no end of their own.
        for pump in &self.pumps {
            pump.abort();
        }
    }
}

/// Either endpoint, so that a daemon can be configured for one or the other.
pub enum AnyEndpoint {
    /// rumqttd's router in this process.
    Embedded(Endpoint),
    /// A broker of its own.
    External(ExternalEndpoint),
}

impl AnyEndpoint {
    /// The sending side.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        match self {
            Self::Embedded(endpoint) => endpoint.publisher(),
            Self::External(endpoint) => endpoint.publisher(),
        }
    }

    /// Who may come in.
    #[must_use]
    pub fn door(&self) -> Door {
        match self {
            Self::Embedded(endpoint) => endpoint.door(),
            Self::External(endpoint) => endpoint.door(),
        }
    }

    /// Where children connect, when that is here.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Embedded(endpoint) => Some(endpoint.local_addr()),
            Self::External(_) => None,
        }
    }

    /// Stops it.
    pub async fn shutdown(self) {
        match self {
            Self::Embedded(endpoint) => endpoint.shutdown().await,
            Self::External(endpoint) => endpoint.shutdown().await,
        }
    }
}

fn cannot_listen(address: SocketAddr, source: std::io::Error) -> EndpointError {
    match source.kind() {
        ErrorKind::AddrInUse => EndpointError::AddressInUse { address },
        _ => EndpointError::Listen { address, source },
    }
}

/// No pump ends while the router works. When one does, the daemon must know.
async fn watch_over(pump: impl Future<Output = RouterGone>, lane: &str, events: mpsc::Sender<EndpointEvent>) {
    let gone = pump.await;
    stalled(&events, format!("{lane}: {gone}")).await;
}

async fn stalled(events: &mpsc::Sender<EndpointEvent>, reason: String) {
    tracing::error!(reason, "the message router no longer works");
    let _ = events.send(EndpointEvent::Stalled { reason }).await;
}

/// Router to daemon. Waits for the daemon; the lane fills and the children wait.
async fn pump_up(mut lane: LaneReceiver, events: mpsc::Sender<EndpointEvent>) -> RouterGone {
    loop {
        let delivery = match lane.recv().await {
            Ok(delivery) => delivery,
            Err(gone) => return gone,
        };
        // A daemon that no longer listens is shutting down.
        if let Some(event) = event_of(&delivery) {
            let _ = events.send(event).await;
        }
    }
}

/// The access rules hold the topic's node to be the certificate's, so the topic can be believed.
fn event_of(delivery: &Delivery) -> Option<EndpointEvent> {
    if let Some(topic) = topics::parse(&delivery.topic) {
        let (node, kind) = (topic.node.to_owned(), topic.kind.to_owned());
        return Some(EndpointEvent::Message {
            node,
            kind,
            payload: delivery.payload.clone(),
        });
    }
    let mut levels = delivery.topic.split('/').skip(2);
    let (node, marker) = (levels.next()?.to_owned(), levels.nth(1)?);
    match marker {
        CONNECTED => Some(EndpointEvent::Connected { node }),
        DISCONNECTED => Some(EndpointEvent::Disconnected {
            node,
            reason: String::from_utf8_lossy(&delivery.payload).into_owned(),
        }),
        _ => None,
    }
}

/// Publisher to router.
async fn feed_down(mut staged: mpsc::UnboundedReceiver<Staged>, lane: LaneSender) -> RouterGone {
    loop {
        // The publisher in `Endpoint` keeps the channel open for as long as this task runs.
        let Some(Staged { outbox, topic, payload }) = staged.recv().await else {
            return std::future::pending().await;
        };
        if let Err(gone) = lane.send(topic, payload, outbox.serial).await {
            return gone;
        }
    }
}

/// Router to the child's queue, at once, so that the router's log never has to wait for a slow child.
async fn pump_down(mut lane: LaneReceiver, shared: Arc<Shared>) -> RouterGone {
    loop {
        let delivery = match lane.recv().await {
            Ok(delivery) => delivery,
            Err(gone) => return gone,
        };
        let Some(topic) = topics::parse(&delivery.topic) else {
            continue;
        };
        // Meant for a connection that has ended since: its successor says hello and gets what is new then.
        let outbox = shared
            .registry
            .get(topic.node)
            .filter(|outbox| outbox.serial == delivery.tag);
        if let Some(outbox) = outbox {
            outbox.deliver(delivery.topic.clone(), topic.kind.len(), delivery.payload.clone());
        }
    }
}

/// Sends a message around through the router again and again. A router that hangs keeps its links open, so only this
/// shows it.
async fn canary(
    (sender, mut receiver): (LaneSender, LaneReceiver),
    interval: Duration,
    patience: Duration,
    events: mpsc::Sender<EndpointEvent>,
) {
    for round in 0_u64.. {
        let around = async {
            sender.send(CANARY.to_owned(), Bytes::new(), round).await?;
            while receiver.recv().await?.tag != round {}
            Ok::<_, RouterGone>(())
        };
        match timeout(patience, around).await {
            Ok(Ok(())) => sleep(interval).await,
            Ok(Err(gone)) => return stalled(&events, format!("canary: {gone}")).await,
            Err(_) => {
                return stalled(
                    &events,
                    format!("canary: the router did not answer within {patience:?}"),
                )
                .await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_router_that_does_not_answer_is_reported() {
        let lanes = lane::start(1 << 20).await.unwrap();
        let (sender, mut receiver) = lanes.canary;
        // Its messages never come back: another receiver takes them.
        tokio::spawn(async move { while receiver.recv().await.is_ok() {} });
        let (events, mut heard) = mpsc::channel(1);
        let watched = (sender, lanes.up.1);
        canary(watched, Duration::from_millis(1), Duration::from_millis(200), events).await;
        assert!(matches!(heard.recv().await, Some(EndpointEvent::Stalled { reason }) if reason.contains("canary")));
    }

    #[tokio::test]
    async fn a_pump_that_ends_is_reported() {
        let (events, mut heard) = mpsc::channel(1);
        watch_over(async { RouterGone }, "up", events).await;
        assert!(matches!(heard.recv().await, Some(EndpointEvent::Stalled { .. })));
    }
}
