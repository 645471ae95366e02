//! rumqttd's router, and the few links with which everything goes through it.
//!
//! A lane is one link that publishes to and subscribes to one topic filter. The whole endpoint has three: what
//! children say, what is said to them, and a canary. A link for each child would be the obvious design and was
//! measured to be the worse one: about 50 KiB a child, a scan of all filters at every disconnect and at every first
//! publish, filters that are never freed, and most of the router's known panics are in connect and disconnect.
//!
//! rumqttd drops, silently, what its bounded log no longer holds when a reader comes to it. Here that cannot happen:
//! a lane has room for `WINDOW` bytes between sender and receiver, and the log is larger than that.

use std::sync::Arc;

use bytes::Bytes;
use rumqttd::local::{LinkBuilder, LinkError, LinkRx, LinkTx};
use rumqttd::protocol::{Filter, Packet, Publish, PublishProperties, QoS, RetainForwardRule, Subscribe};
use rumqttd::{Notification, Router, RouterConfig};
use tokio::sync::{Mutex, Semaphore};

use crate::error::EndpointError;
use crate::topics;

/// Filter of the canary lane.
pub(crate) const CANARY: &str = "cnova/canary";

/// Messages in one lane. The router's inbox holds 1000 events and a send to it blocks the thread when it is full:
/// three lanes of this many cannot fill it.
const WINDOW_MESSAGES: usize = 200;
/// Bytes in one lane, beyond one message of the largest size.
const WINDOW_SPARE_BYTES: usize = 1 << 20;
/// The router's log is kept and dropped in segments of this size.
const SEGMENT_BYTES: usize = 1 << 20;
/// Messages the router hands over at once.
const BATCH: u64 = 100;

/// The router ended or threw a link out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the router closed the link")]
pub(crate) struct RouterGone;

/// The sending end of a lane.
pub(crate) struct LaneSender {
    link: Mutex<LinkTx>,
    room: Arc<Room>,
}

/// The receiving end of a lane.
pub(crate) struct LaneReceiver {
    link: LinkRx,
    room: Arc<Room>,
}

/// A message that came out of a lane. Its room is free again when this is dropped.
pub(crate) struct Delivery {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    /// What the sender marked it with.
    pub(crate) tag: u64,
    cost: u32,
    room: Arc<Room>,
}

/// The three lanes of an endpoint.
pub(crate) struct Lanes {
    pub(crate) up: (LaneSender, LaneReceiver),
    pub(crate) down: (LaneSender, LaneReceiver),
    pub(crate) canary: (LaneSender, LaneReceiver),
}

struct Room {
    messages: Semaphore,
    bytes: Semaphore,
}

/// Starts a router on a thread of its own. rumqttd cannot stop it again: the thread sleeps when the lanes are dropped.
pub(crate) async fn start(max_packet_bytes: usize) -> Result<Lanes, EndpointError> {
    let failed = |reason: String| EndpointError::Router { reason };
    // Building a link blocks the thread until the router answers.
    let built = tokio::task::spawn_blocking(move || build(max_packet_bytes));
    let links = built
        .await
        .map_err(|error| failed(error.to_string()))?
        .map_err(|error| failed(error.to_string()))?;
    let window = max_packet_bytes + WINDOW_SPARE_BYTES;
    let [up, down, canary] = links;
    let gone = |error: RouterGone| failed(error.to_string());
    Ok(Lanes {
        up: open(up, topics::ALL_UP, window).await.map_err(gone)?,
        down: open(down, topics::ALL_DOWN, window).await.map_err(gone)?,
        canary: open(canary, CANARY, window).await.map_err(gone)?,
    })
}

fn build(max_packet_bytes: usize) -> Result<[(LinkTx, LinkRx); 3], Box<LinkError>> {
    let config = RouterConfig {
        max_connections: 8,
        max_outgoing_packet_count: BATCH,
        max_segment_size: SEGMENT_BYTES,
        // What was not read yet is at most the window; one segment more is the one being filled.
        max_segment_count: (max_packet_bytes + WINDOW_SPARE_BYTES).div_ceil(SEGMENT_BYTES) + 1,
        ..RouterConfig::default()
    };
    let router = Router::new(0, config).spawn();
    let link = |name: &str| {
        LinkBuilder::new(name, router.clone())
            .clean_session(true)
            .build()
            .map_err(Box::new)
    };
    let ((up_tx, up_rx, _), (down_tx, down_rx, _), (canary_tx, canary_rx, _)) =
        (link("up")?, link("down")?, link("canary")?);
    Ok([(up_tx, up_rx), (down_tx, down_rx), (canary_tx, canary_rx)])
}

async fn open(
    (mut tx, mut rx): (LinkTx, LinkRx),
    filter: &str,
    window: usize,
) -> Result<(LaneSender, LaneReceiver), RouterGone> {
    let filter = Filter {
        path: filter.to_owned(),
        // Inside one process nothing is lost between router and link; QoS 1 would only bound the batch to 100
        // and end the link on an acknowledgement out of order.
        qos: QoS::AtMostOnce,
        nolocal: false,
        preserve_retain: false,
        retain_forward_rule: RetainForwardRule::Never,
    };
    let subscribe = Subscribe {
        pkid: 1,
        filters: vec![filter],
    };
    tx.send(Packet::Subscribe(subscribe, None))
        .await
        .map_err(|_| RouterGone)?;
    loop {
        match rx.next().await {
            Ok(Some(Notification::DeviceAck(ack))) => {
                if matches!(Packet::from(ack), Packet::SubAck(..)) {
                    break;
                }
            }
            Ok(_) => {}
            Err(_) => return Err(RouterGone),
        }
    }
    let room = Arc::new(Room {
        messages: Semaphore::new(WINDOW_MESSAGES),
        bytes: Semaphore::new(window),
    });
    Ok((
        LaneSender {
            link: Mutex::new(tx),
            room: room.clone(),
        },
        LaneReceiver { link: rx, room },
    ))
}

impl LaneSender {
    /// Sends one message, when there is room for it. `tag` comes out again with it.
    pub(crate) async fn send(&self, topic: String, payload: Bytes, tag: u64) -> Result<(), RouterGone> {
        let cost = cost(&topic, &payload);
        let message = self.room.messages.acquire().await.map_err(|_| RouterGone)?;
        let bytes = self.room.bytes.acquire_many(cost).await.map_err(|_| RouterGone)?;
        let properties = PublishProperties {
            correlation_data: Some(Bytes::copy_from_slice(&tag.to_be_bytes())),
            ..PublishProperties::default()
        };
        let publish = Packet::Publish(Publish::new(Bytes::from(topic), payload, false), Some(properties));
        self.link.lock().await.send(publish).await.map_err(|_| RouterGone)?;
        // The receiver gives the room back.
        message.forget();
        bytes.forget();
        Ok(())
    }
}

impl LaneReceiver {
    /// The next message. May be dropped and called again without losing one.
    pub(crate) async fn recv(&mut self) -> Result<Delivery, RouterGone> {
        loop {
            match self.link.next().await.map_err(|_| RouterGone)? {
                Some(Notification::Forward(forward)) => {
                    let topic = String::from_utf8(forward.publish.topic.into()).map_err(|_| RouterGone)?;
                    let tag = forward.properties.and_then(|properties| properties.correlation_data);
                    let tag = tag
                        .and_then(|bytes| bytes.as_ref().try_into().ok())
                        .map(u64::from_be_bytes);
                    let payload = forward.publish.payload;
                    let cost = cost(&topic, &payload);
                    let (tag, room) = (tag.unwrap_or_default(), self.room.clone());
                    return Ok(Delivery {
                        topic,
                        payload,
                        tag,
                        cost,
                        room,
                    });
                }
                // The router pauses a link with a long backlog until it is told that the backlog was read.
                Some(Notification::Unschedule) => self.link.wake().await.map_err(|_| RouterGone)?,
                Some(Notification::Disconnect(..)) => return Err(RouterGone),
                _ => {}
            }
        }
    }
}

impl Drop for LaneReceiver {
    fn drop(&mut self) {
        // Whoever waits for room learns that there will be none.
        self.room.messages.close();
        self.room.bytes.close();
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.room.messages.add_permits(1);
        self.room.bytes.add_permits(self.cost as usize);
    }
}

/// What the router counts for a message against the size of a segment.
fn cost(topic: &str, payload: &Bytes) -> u32 {
    u32::try_from(4 + topic.len() + payload.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rumqttd::protocol::{Disconnect, DisconnectReasonCode};

    use super::*;

    #[tokio::test]
    async fn nothing_is_lost_when_the_log_rolls_under_a_slow_reader() {
        let Lanes {
            up: (sender, mut receiver),
            ..
        } = start(2 << 20).await.unwrap();
        let sizes = [10, 100_000, 2 << 20, 1, 700_000, 30];
        let count = 300;
        let sending = tokio::spawn(async move {
            for index in 0..count {
                let payload = Bytes::from(vec![index as u8; sizes[index % sizes.len()]]);
                sender
                    .send(topics::up("a", "chunk"), payload, index as u64)
                    .await
                    .unwrap();
            }
        });
        for index in 0..count {
            let delivery = tokio::time::timeout(Duration::from_secs(20), receiver.recv())
                .await
                .unwrap()
                .unwrap();
            assert_eq!(delivery.tag, index as u64);
            assert_eq!(delivery.payload.len(), sizes[index % sizes.len()]);
            assert!(delivery.payload.iter().all(|byte| *byte == index as u8));
            if index % 50 == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        sending.await.unwrap();
    }

    /// rumqttd panics when a link says "ready" after "disconnect". Whatever kills it, every lane must notice.
    #[tokio::test]
    async fn every_lane_notices_the_router_s_end() {
        let Lanes {
            up,
            down,
            canary: (sender, receiver),
        } = start(1 << 20).await.unwrap();
        let disconnect = Disconnect {
            reason_code: DisconnectReasonCode::NormalDisconnection,
        };
        sender
            .link
            .lock()
            .await
            .send(Packet::Disconnect(disconnect, None))
            .await
            .unwrap();
        let _ = receiver.link.wake().await;
        for mut receiver in [up.1, down.1] {
            let heard = tokio::time::timeout(Duration::from_secs(20), receiver.recv())
                .await
                .unwrap();
            assert_eq!(heard.err(), Some(RouterGone));
        }
        // Without a receiver nobody waits for room that never comes.
        let said = up.0.send(topics::up("a", "hello"), Bytes::new(), 0).await;
        assert_eq!(said, Err(RouterGone));
    }

    #[tokio::test]
    async fn many_small_messages_pass_the_router_s_pause_for_long_backlogs() {
        let Lanes {
            up: (sender, mut receiver),
            ..
        } = start(1 << 20).await.unwrap();
        let sending = tokio::spawn(async move {
            for index in 0..20_000_u64 {
                sender
                    .send(topics::up("a", "hello"), Bytes::from_static(b"x"), index)
                    .await
                    .unwrap();
            }
        });
        for index in 0..20_000_u64 {
            let delivery = tokio::time::timeout(Duration::from_secs(20), receiver.recv())
                .await
                .unwrap()
                .unwrap();
            assert_eq!(delivery.tag, index);
        }
        sending.await.unwrap();
    }
}
