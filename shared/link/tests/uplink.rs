//! The uplink against a real endpoint.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use bytes::Bytes;
use cnova_broker::EndpointEvent;
use cnova_link::{FloorClock, SendError, Uplink, UplinkConfig, UplinkEvent, client_tls};
use cnova_shared::topics::Kind;
use rcgen::date_time_ymd;
use support::{Files, Pki, endpoint, node, soon};
use tokio::sync::mpsc::Receiver;

fn start(files: &Files, parent: &str, address: &str) -> (Uplink, Receiver<UplinkEvent>) {
    let me = files.load();
    start_with(files, parent, address, Arc::new(FloorClock::of(&me)))
}

fn start_with(files: &Files, parent: &str, address: &str, clock: Arc<FloorClock>) -> (Uplink, Receiver<UplinkEvent>) {
    let me = files.load();
    let tls = client_tls(&me, &node(parent), clock).unwrap();
    Uplink::start(UplinkConfig::new(
        address.parse().unwrap(),
        me.node().clone(),
        node(parent),
        tls,
    ))
}

async fn next(events: &mut Receiver<UplinkEvent>) -> UplinkEvent {
    soon("an event of the uplink", events.recv()).await.unwrap()
}

async fn reason(events: &mut Receiver<UplinkEvent>) -> String {
    match next(events).await {
        UplinkEvent::Disconnected { reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn messages_go_both_ways_by_address_although_certificates_carry_names() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path());
    let (endpoint, mut heard) = endpoint(&pki.issue("gw-1"), "127.0.0.1:0").await;
    let (uplink, mut events) = start(&pki.issue("plc-1"), "gw-1", &endpoint.local_addr().to_string());
    assert_eq!(
        uplink.send(Kind::Hello, b"early".to_vec()),
        Err(SendError::NotConnected)
    );
    assert_eq!(next(&mut events).await, UplinkEvent::Connected);
    // Connected means subscribed: whatever is sent from now on arrives.
    for kind in [
        Kind::Twin,
        Kind::Ack,
        Kind::Chunk,
        Kind::Command,
        Kind::Trust,
        Kind::Challenge,
        Kind::Ear,
    ] {
        endpoint
            .publisher()
            .publish("plc-1", kind.as_str(), Bytes::from_static(b"down"))
            .unwrap();
        assert_eq!(
            next(&mut events).await,
            UplinkEvent::Message {
                kind,
                bytes: b"down".to_vec()
            }
        );
    }
    let large = vec![7; 1 << 20];
    uplink.send(Kind::Report, large.clone()).unwrap();
    assert!(matches!(
        uplink.send(Kind::Report, vec![0; 2 << 20]),
        Err(SendError::TooLarge(_))
    ));
    loop {
        let event = soon("the report", heard.recv()).await.unwrap();
        if let EndpointEvent::Message { node, kind, payload } = event {
            assert_eq!(
                (node.as_str(), kind.as_str(), payload.len()),
                ("plc-1", "report", large.len())
            );
            break;
        }
    }
    uplink.shutdown().await;
    loop {
        if let EndpointEvent::Disconnected { reason, .. } = soon("the farewell", heard.recv()).await.unwrap() {
            assert!(!reason.is_empty());
            break;
        }
    }
    endpoint.shutdown().await;
}

#[tokio::test]
async fn it_comes_back_when_the_parent_does() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path());
    let gateway = pki.issue("gw-1");
    let (first, _heard) = endpoint(&gateway, "127.0.0.1:0").await;
    let address = first.local_addr().to_string();
    let (uplink, mut events) = start(&pki.issue("plc-1"), "gw-1", &address);
    assert_eq!(next(&mut events).await, UplinkEvent::Connected);
    first.shutdown().await;
    let why = reason(&mut events).await;
    assert!(why.contains("gw-1") || why.contains(&address), "{why}");
    assert!(!uplink.is_connected());
    let (second, _heard) = endpoint(&gateway, &address).await;
    loop {
        match next(&mut events).await {
            UplinkEvent::Connected => break,
            UplinkEvent::Disconnected { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    second.shutdown().await;
}

#[tokio::test]
async fn reasons_say_what_to_look_at() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path());
    let (_uplink, mut events) = start(&pki.issue("plc-1"), "gw-1", "127.0.0.1:1");
    assert_eq!(reason(&mut events).await, "nobody listens at 127.0.0.1:1");

    let (endpoint, _heard) = endpoint(&pki.issue("gw-1"), "127.0.0.1:0").await;
    let address = endpoint.local_addr().to_string();
    let (_uplink, mut events) = start(&pki.issue("plc-1"), "gw-2", &address);
    let why = reason(&mut events).await;
    assert!(why.contains("not accepted as that of gw-2"), "{why}");

    let strangers = tempfile::tempdir().unwrap();
    let stranger = Pki::new(strangers.path()).issue("plc-1");
    // It knows the tree's authorities, but its own certificate is of another tree.
    let stranger = Files {
        trust_bundle: pki.issue("x").trust_bundle,
        ..stranger
    };
    let (_uplink, mut events) = start(&stranger, "gw-1", &address);
    let why = reason(&mut events).await;
    assert!(why.contains("refused this node's certificate"), "{why}");
    endpoint.shutdown().await;
}

#[tokio::test]
async fn a_clock_that_is_behind_is_lifted_by_what_was_verified() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path());
    // As a node whose clock is behind sees it: the parent's certificate begins in its future.
    let future = pki.issue_with("gw-1", |p| {
        p.not_before = date_time_ymd(2070, 1, 1);
        p.not_after = date_time_ymd(2080, 1, 1);
    });
    let (endpoint, _heard) = endpoint(&future, "127.0.0.1:0").await;
    let address = endpoint.local_addr().to_string();
    let clock = Arc::new(FloorClock::new(0));
    let plc = pki.issue_with("plc-1", |p| p.not_after = date_time_ymd(2090, 1, 1));
    let (_uplink, mut events) = start_with(&plc, "gw-1", &address, clock.clone());
    let why = reason(&mut events).await;
    assert!(why.contains("not accepted"), "{why}");
    clock.raise(3_200_000_000);
    loop {
        match next(&mut events).await {
            UplinkEvent::Connected => break,
            UplinkEvent::Disconnected { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    endpoint.shutdown().await;
}
