//! Prints what one hop costs. Run it by hand, optimised:
//! `cargo test --profile fast -p cnova-broker --test latency -- --ignored --nocapture`
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use cnova_broker::EndpointEvent;
use support::{Site, subscribe};

#[tokio::test]
#[ignore = "a measurement: it asserts nothing"]
async fn round_trip_on_loopback() {
    let mut site = Site::start().await;
    let publisher = site.endpoint.publisher();
    let mut child = site.raw_connected("a").await;
    child.send(&subscribe(&["cnova/v1/a/down/ack"])).await;
    child.packet().await.unwrap();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let message = support::publish(0, "cnova/v1/a/up/report", &[], &[7; 1000]);
    site.event().await;
    for _ in 0..5000 {
        let start = Instant::now();
        child.send(&message).await;
        let EndpointEvent::Message { .. } = site.event().await else {
            panic!("a message")
        };
        up.push(start.elapsed());
        let start = Instant::now();
        publisher.publish("a", "ack", Bytes::from_static(&[7; 1000])).unwrap();
        let packet = child.packet().await.unwrap();
        down.push(start.elapsed());
        let topic_len = usize::from(packet[4]);
        child
            .send(&[0x40, 2, packet[5 + topic_len], packet[6 + topic_len]])
            .await;
    }
    report("up", up);
    report("down", down);

    let before = rss_kib();
    println!("RSS after 10,000 messages: {before} KiB");
    let start = Instant::now();
    let mut all = Vec::new();
    for index in 0..500 {
        all.push(site.raw_connected(&format!("plc-{index}")).await);
    }
    println!(
        "500 connects in sequence, client's side included: {:?} each",
        start.elapsed() / 500
    );
    println!(
        "RSS of each, client's side included: {} KiB",
        (rss_kib() - before) / 500
    );
}

fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[times.len() * percent / 100];
    println!("{what}: p50 {:?}, p99 {:?}", at(50), at(99));
}
