//! Messages between an endpoint and children that behave.

mod support;

use std::collections::HashMap;

use bytes::Bytes;
use cnova_broker::{EndpointEvent, PublishError};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use support::{Site, soon};

#[tokio::test]
async fn messages_go_both_ways() {
    let mut site = Site::start().await;
    let publisher = site.endpoint.publisher();
    assert!(matches!(
        publisher.publish("plc-14", "twin", Bytes::from_static(b"t")),
        Err(PublishError::NotConnected { .. })
    ));

    let mut child = site.child("plc-14", &["twin"]).await;
    assert_eq!(
        site.event().await,
        EndpointEvent::Connected {
            node: "plc-14".to_owned()
        }
    );
    child.say("plc-14", "hello", b"boot 1").await;
    child
        .expect("PUBACK", |packet| matches!(packet, Packet::PubAck(_)).then_some(()))
        .await;
    let EndpointEvent::Message { node, kind, payload } = site.event().await else {
        panic!("a message")
    };
    assert_eq!(
        (node.as_str(), kind.as_str(), &payload[..]),
        ("plc-14", "hello", &b"boot 1"[..])
    );

    publisher
        .publish("plc-14", "twin", Bytes::from_static(b"generation 2"))
        .unwrap();
    let (topic, payload) = child.message().await;
    assert_eq!(
        (topic.as_str(), &payload[..]),
        ("cnova/v1/plc-14/down/twin", &b"generation 2"[..])
    );

    assert!(matches!(
        publisher.publish("plc-14", "ack", Bytes::new()),
        Err(PublishError::NotSubscribed { .. })
    ));
    assert!(matches!(
        publisher.publish("plc-14", "twin", vec![0; (2 << 20) + 1].into()),
        Err(PublishError::TooLarge { .. })
    ));
    assert!(matches!(
        publisher.publish("plc/14", "twin", Bytes::new()),
        Err(PublishError::Invalid { .. })
    ));

    child.client.disconnect().await.unwrap();
    assert_eq!(site.disconnected("plc-14").await, "it said DISCONNECT");
    assert!(matches!(
        publisher.publish("plc-14", "twin", Bytes::from_static(b"t")),
        Err(PublishError::NotConnected { .. })
    ));
    site.endpoint.shutdown().await;
}

#[tokio::test]
async fn large_messages_pass_each_other() {
    let mut site = Site::start().await;
    let mut child = site.child("gw", &["chunk"]).await;
    let publisher = site.endpoint.publisher();
    let big = Bytes::from(vec![7; 1 << 20]);
    for _ in 0..6 {
        publisher.publish("gw", "chunk", big.clone()).unwrap();
        child.say("gw", "log", &big).await;
    }
    for _ in 0..6 {
        assert_eq!(child.message().await.1, big);
        let payload = site
            .event_where("a message", |event| match event {
                EndpointEvent::Message { payload, .. } => Some(payload),
                _ => None,
            })
            .await;
        assert_eq!(payload, big);
    }
}

#[tokio::test]
async fn after_unsubscribing_nothing_more_is_taken_for_that_kind() {
    let site = Site::start().await;
    let mut child = site.child("a", &["twin"]).await;
    child.client.unsubscribe("cnova/v1/a/down/twin").await.unwrap();
    child
        .expect("UNSUBACK", |packet| matches!(packet, Packet::UnsubAck(_)).then_some(()))
        .await;
    let refused = site.endpoint.publisher().publish("a", "twin", Bytes::new());
    assert!(matches!(refused, Err(PublishError::NotSubscribed { .. })));
}

#[tokio::test]
async fn children_learn_of_a_shutdown() {
    let mut site = Site::start().await;
    let mut raw = site.raw_connected("a").await;
    assert_eq!(site.event().await, EndpointEvent::Connected { node: "a".to_owned() });
    soon("shutdown", site.endpoint.shutdown()).await;
    assert_eq!(raw.disconnect_reason().await, 0x8b);
    assert!(matches!(
        site.events.recv().await,
        Some(EndpointEvent::Disconnected { .. })
    ));
    assert_eq!(site.events.recv().await, None);
    assert!(
        tokio::net::TcpStream::connect(site.address).await.is_err(),
        "the port is closed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_children_lose_nothing() {
    const CHILDREN: usize = 200;
    const MESSAGES: usize = 50;
    let mut site = Site::start().await;
    let publisher = site.endpoint.publisher();
    let (authority, address) = (&site.authority, site.address);
    let mut tasks = Vec::new();
    for index in 0..CHILDREN {
        let node = format!("plc-{index}");
        let mut child = support::Child::begin(authority, &authority.issue(&node), address, &node);
        tasks.push(tokio::spawn(async move {
            child
                .expect("CONNACK", |packet| matches!(packet, Packet::ConnAck(_)).then_some(()))
                .await;
            child
                .client
                .subscribe(format!("cnova/v1/{node}/down/ack"), QoS::AtLeastOnce)
                .await
                .unwrap();
            child
                .expect("SUBACK", |packet| matches!(packet, Packet::SubAck(_)).then_some(()))
                .await;
            for number in 0..MESSAGES {
                child.say(&node, "report", format!("{number}").as_bytes()).await;
            }
            for number in 0..MESSAGES {
                assert_eq!(child.message().await.1, format!("ack {number}"));
            }
        }));
    }
    let mut heard: HashMap<String, usize> = HashMap::new();
    for _ in 0..CHILDREN * MESSAGES {
        let (node, payload) = site
            .event_where("a report", |event| match event {
                EndpointEvent::Message { node, payload, .. } => Some((node, payload)),
                EndpointEvent::Refused { reason, .. } | EndpointEvent::Stalled { reason } => panic!("{reason}"),
                _ => None,
            })
            .await;
        let next = heard.entry(node.clone()).or_default();
        assert_eq!(payload, format!("{next}"), "in order");
        publisher.publish(&node, "ack", format!("ack {next}").into()).unwrap();
        *next += 1;
    }
    for task in tasks {
        soon("a child", task).await.unwrap();
    }
}
