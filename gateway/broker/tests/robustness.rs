//! Children and strangers that do not behave, and what it costs the others: nothing.

mod support;

use std::time::Duration;

use bytes::Bytes;
use cnova_broker::{Endpoint, EndpointError, EndpointEvent, Limits, PublishError};
use support::{Raw, Site, config, connect, connect_with, publish, soon, subscribe};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

#[tokio::test]
async fn garbage_and_silence_harm_nobody() {
    let limits = Limits {
        handshake_timeout: Duration::from_secs(1),
        ..Limits::default()
    };
    let mut site = Site::start_with(limits).await;
    let silent_tcp = TcpStream::connect(site.address).await.unwrap();
    let silent_tls = site.raw("silent").await;
    let mut garbage = TcpStream::connect(site.address).await.unwrap();
    garbage.write_all(&[0x5a; 5000]).await.unwrap();
    let mut plain_mqtt = TcpStream::connect(site.address).await.unwrap();
    plain_mqtt.write_all(&connect("a")).await.unwrap();
    // While all of them hold their sockets:
    let child = site.child("plc-14", &[]).await;
    child.say("plc-14", "hello", b"here").await;
    let (mut timeouts, mut broken, mut heard) = (0, 0, false);
    while timeouts < 2 || broken < 2 || !heard {
        match site.event().await {
            EndpointEvent::Refused { reason, .. } if reason.contains("within 1s") => timeouts += 1,
            EndpointEvent::Refused { reason, .. } if reason.contains("TLS") => broken += 1,
            EndpointEvent::Message { .. } => heard = true,
            EndpointEvent::Connected { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    drop((silent_tcp, silent_tls, garbage));
    site.assert_serves().await;
}

#[tokio::test]
async fn strangers_cannot_take_the_place_of_children() {
    let limits = Limits {
        max_handshakes: 2,
        handshake_timeout: Duration::from_secs(1),
        ..Limits::default()
    };
    let mut site = Site::start_with(limits).await;
    let first = site.child("first", &[]).await;
    assert!(matches!(site.event().await, EndpointEvent::Connected { .. }));
    let mut strangers = Vec::new();
    for _ in 0..6 {
        strangers.push(TcpStream::connect(site.address).await.unwrap());
    }
    assert!(site.refusal().await.contains("too many handshakes"));
    first.say("first", "hello", b"still served").await;
    site.event_where("a message", |event| {
        matches!(event, EndpointEvent::Message { .. }).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_number_of_connections_is_bounded() {
    let mut site = Site::start_with(Limits {
        max_connections: 1,
        ..Limits::default()
    })
    .await;
    let _first = site.raw_connected("a").await;
    let mut second = site.raw("b").await;
    second.send(&connect("b")).await;
    assert_eq!(second.connack_reason().await, 0x89);
    assert!(site.refusal().await.contains("limit of 1 connections"));
    // The one that is in may still come again.
    let _again = site.raw_connected("a").await;
}

#[tokio::test]
async fn a_child_that_does_not_read_is_dropped_and_others_are_served() {
    let limits = Limits {
        write_timeout: Duration::from_millis(500),
        ..Limits::default()
    };
    let mut site = Site::start_with(limits).await;
    let publisher = site.endpoint.publisher();
    let mut slow = site.raw_connected("slow").await;
    slow.send(&subscribe(&["cnova/v1/slow/down/chunk"])).await;
    slow.packet().await.unwrap();
    let mut good = site.child("good", &["chunk"]).await;
    let chunk = Bytes::from(vec![1; 100_000]);
    // Until the sockets and the queue between are full. The publisher is told, nothing grows.
    soon("a full queue", async {
        loop {
            match publisher.publish("slow", "chunk", chunk.clone()) {
                Ok(()) => tokio::task::yield_now().await,
                Err(PublishError::QueueFull { node }) => break assert_eq!(node, "slow"),
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
    for _ in 0..20 {
        publisher.publish("good", "chunk", chunk.clone()).unwrap();
        assert_eq!(good.message().await.1.len(), chunk.len());
    }
    let reason = site.disconnected("slow").await;
    assert!(reason.contains("slow consumer"), "{reason}");
    assert!(matches!(
        publisher.publish("slow", "chunk", chunk),
        Err(PublishError::NotConnected { .. })
    ));
}

#[tokio::test]
async fn a_child_that_acknowledges_nothing_is_dropped() {
    let limits = Limits {
        ack_timeout: Duration::from_millis(500),
        ..Limits::default()
    };
    let mut site = Site::start_with(limits).await;
    let publisher = site.endpoint.publisher();
    let mut raw = site.raw_connected("a").await;
    raw.send(&subscribe(&["cnova/v1/a/down/ack"])).await;
    raw.packet().await.unwrap();
    for _ in 0..100 {
        publisher.publish("a", "ack", Bytes::from_static(b"x")).unwrap();
    }
    assert_eq!(raw.disconnect_reason().await, 0x97);
    assert!(site.disconnected("a").await.contains("acknowledges nothing"));
}

#[tokio::test]
async fn a_silent_child_outlives_its_keep_alive_by_half() {
    let mut site = Site::start().await;
    let mut raw = site.raw("a").await;
    raw.send(&connect_with("a", 0x02, 1, &[])).await;
    assert_eq!(raw.connack_reason().await, 0);
    raw.send(&[0xc0, 0]).await;
    assert_eq!(raw.packet().await.unwrap(), [0xd0, 0]);
    assert_eq!(raw.disconnect_reason().await, 0x8d);
    assert!(site.disconnected("a").await.contains("keep-alive"));
}

#[tokio::test]
async fn a_second_connection_takes_over_in_order() {
    let mut site = Site::start().await;
    let mut first = site.raw_connected("a").await;
    first.send(&publish(0, "cnova/v1/a/up/hello", &[], b"first")).await;
    let mut second = site.raw_connected("a").await;
    assert_eq!(first.disconnect_reason().await, 0x8e);
    second.send(&publish(0, "cnova/v1/a/up/hello", &[], b"second")).await;
    let connected = EndpointEvent::Connected { node: "a".to_owned() };
    let message = |text: &'static str| EndpointEvent::Message {
        node: "a".to_owned(),
        kind: "hello".to_owned(),
        payload: Bytes::from_static(text.as_bytes()),
    };
    assert_eq!(site.event().await, connected);
    assert_eq!(site.event().await, message("first"));
    assert!(matches!(site.event().await, EndpointEvent::Disconnected { .. }));
    assert_eq!(site.event().await, connected);
    assert_eq!(site.event().await, message("second"));
}

#[tokio::test]
async fn two_agents_with_one_identity_are_told_apart() {
    let mut site = Site::start().await;
    let mut current = site.raw_connected("a").await;
    for _ in 0..3 {
        current = site.raw_connected("a").await;
    }
    for _ in 0..2 {
        let mut newcomer = site.raw("a").await;
        newcomer.send(&connect("a")).await;
        assert_eq!(newcomer.connack_reason().await, 0x97);
        assert!(site.refusal().await.contains("two agents use identity a"));
    }
    // The one that is in works on.
    current.send(&publish(0x02, "cnova/v1/a/up/hello", &[], b"x")).await;
    assert_eq!(current.packet().await.unwrap(), [0x40, 2, 0, 9]);
    // When it leaves, the other one may come.
    current.send(&[0xe0, 0]).await;
    assert_eq!(current.packet().await, None);
    site.event_where("its end", |event| match event {
        EndpointEvent::Disconnected { reason, .. } if reason.contains("said DISCONNECT") => Some(()),
        _ => None,
    })
    .await;
    let _other = site.raw_connected("a").await;
}

#[tokio::test]
async fn a_daemon_that_is_behind_makes_children_wait_and_loses_nothing() {
    let mut site = Site::start_with(Limits {
        event_queue: 4,
        ..Limits::default()
    })
    .await;
    let child = site.child("a", &[]).await;
    let sending = tokio::spawn(async move {
        for number in 0..2000_u32 {
            child.say("a", "report", &number.to_be_bytes()).await;
        }
        child
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    for number in 0..2000_u32 {
        let payload = site
            .event_where("a report", |event| match event {
                EndpointEvent::Message { payload, .. } => Some(payload),
                _ => None,
            })
            .await;
        assert_eq!(payload[..], number.to_be_bytes());
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let site = Site::start().await;
    let error = Endpoint::start(config(&site.authority, site.address, Limits::default()))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, EndpointError::AddressInUse { address } if address == site.address));
    let text = error.to_string();
    assert!(
        text.contains(&site.address.to_string()) && text.contains("another address"),
        "{text}"
    );
}

#[tokio::test]
async fn new_certificates_hold_for_new_connections() {
    let mut site = Site::start().await;
    let mut old = site.raw_connected("a").await;
    let next = support::Authority::new("Plant 7, next");
    site.endpoint
        .replace_tls(config(&next, site.address, Limits::default()).tls)
        .unwrap();
    let mut new = Raw::open(&next, Some(&next.issue("b")), site.address).await.unwrap();
    new.send(&connect("b")).await;
    assert_eq!(new.connack_reason().await, 0);
    old.send(&[0xc0, 0]).await;
    assert_eq!(old.packet().await.unwrap(), [0xd0, 0]);
    let mut empty = config(&next, site.address, Limits::default()).tls;
    empty.client_ca.clear();
    assert!(matches!(
        site.endpoint.replace_tls(empty),
        Err(EndpointError::Authority { .. })
    ));
    assert!(matches!(site.event().await, EndpointEvent::Connected { .. }));
}
