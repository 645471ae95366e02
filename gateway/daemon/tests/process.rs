//! The gateway's process between a parent and children that speak the real protocol over real TLS.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use cnova_shared::envelope::peek;
use cnova_shared::ids::Digest;
use cnova_shared::topics::Kind;
use cnova_shared::tree::Said;
use cnova_shared::wire::v1::{Body, Stream};
use support::actors::{Child, Gateway, Heard, Mosquitto, Parent, free_port, introduces};
use support::{Plant, Tmpfs, now_s};

/// A parent with a gateway below it that has said hello.
async fn pair(artifacts: &[&[u8]]) -> (Plant, Parent, Gateway) {
    let plant = Plant::new();
    let parent = Parent::start(&plant, "127.0.0.1:0".parse().unwrap(), artifacts).await;
    let gateway = Gateway::start(&plant, parent.local_addr(), None);
    parent.hello_of("gw-1").await;
    (plant, parent, gateway)
}

fn says_relayed(heard: &Heard, name: &str) -> Option<()> {
    let Heard::Said {
        said: Said::Report(report),
        ..
    } = heard
    else {
        return None;
    };
    let relayed = |b: &Body| matches!(b, Body::Relayed { node, .. } if node.as_str() == name);
    report.entries.iter().any(|e| relayed(&e.body)).then_some(())
}

#[tokio::test]
async fn a_hello_is_answered_with_an_introduced_acknowledgement() {
    let (plant, parent, gateway) = pair(&[]).await;
    let mut child = Child::connect(&plant, "plc-1", gateway.address).await;
    let (ack, bytes) = child.greet("boot-7").await;
    assert_eq!(
        (ack.stream, ack.seq, ack.hello.as_deref()),
        (Stream::Report, 0, Some("boot-7"))
    );
    assert!(introduces(&bytes));
    let (claims, _) = peek(&bytes).unwrap();
    assert_eq!((claims.iss.as_str(), claims.aud.as_str()), ("gw-1", "plc-1"));
    assert!(claims.iat.abs_diff(now_s()) < 60);
    assert_eq!(parent.hello_of("plc-1").await.boot, "boot-7", "and its hello went up");
    let own = parent.hello_of("gw-1").await;
    assert_eq!(
        (own.site.as_str(), own.labels.get("zone").map(String::as_str)),
        ("plant-7/line-2", Some("a"))
    );
}

#[tokio::test]
async fn a_twin_reaches_the_child_byte_for_byte_and_a_changed_one_does_not() {
    let (plant, parent, gateway) = pair(&[]).await;
    let mut child = Child::connect(&plant, "plc-1", gateway.address).await;
    child.greet("b").await;
    let first = plant.twin("plc-1");
    parent.send_twin("gw-1", &first);
    assert_eq!(child.next(Kind::Twin).await, first);
    parent
        .wait("word that it was relayed", |h| says_relayed(h, "plc-1"))
        .await;
    // Any byte: header, payload, signature.
    let second = plant.twin("plc-1");
    for at in [30, second.len() / 2, second.len() - 5] {
        let mut changed = second.clone();
        changed[at] ^= 1;
        parent.send_twin("gw-1", &changed);
    }
    let third = plant.twin("plc-1");
    parent.send_twin("gw-1", &third);
    loop {
        let came = child.next(Kind::Twin).await;
        assert!(came == first || came == third, "nothing but what the hub signed");
        if came == third {
            break;
        }
    }
}

#[tokio::test]
async fn a_report_goes_up_inside_a_relay_byte_for_byte() {
    let (plant, parent, gateway) = pair(&[]).await;
    let mut child = Child::connect(&plant, "plc-1", gateway.address).await;
    child.greet("b").await;
    let bytes = child.report(0, "w/1").await;
    parent.raw("the child's report", &bytes).await;
    let author = parent.wait("its author", |h| match h {
        Heard::Said { author, raw, .. } if *raw == bytes => Some(author.to_string()),
        _ => None,
    });
    assert_eq!(author.await, "plc-1");
}

/// Twenty reports, each acknowledged, and a kill after every seventh.
async fn reports_between_kills(child: &mut Child, gateway: &mut Gateway) -> Vec<Vec<u8>> {
    let mut said = Vec::new();
    for seq in 0..20 {
        said.push(child.report(seq, &format!("w/{seq}")).await);
        if seq % 7 == 6 {
            gateway.kill();
            gateway.run();
            child.reconnect().await;
            let (ack, _) = child.greet("b").await;
            assert_eq!(ack.seq, seq + 1, "it knows how far it had come");
        }
    }
    gateway.kill();
    said
}

#[tokio::test]
async fn a_kill_loses_nothing_that_was_acknowledged() {
    let (plant, parent, mut gateway) = pair(&[]).await;
    let above = parent.local_addr();
    let mut child = Child::connect(&plant, "plc-1", gateway.address).await;
    child.greet("b").await;
    parent.hello_of("plc-1").await;
    let known = parent.stop().await;
    let said = reports_between_kills(&mut child, &mut gateway).await;
    let parent = Parent::resume(&plant, above, &[], known).await;
    gateway.run();
    for (seq, bytes) in said.iter().enumerate() {
        parent.raw(&format!("report {seq}"), bytes).await;
    }
}

#[tokio::test]
async fn a_kill_at_any_moment_loses_nothing_that_was_acknowledged() {
    let plant = Plant::new();
    let mut gateway = Gateway::start(&plant, free_port(), None);
    let mut child = Child::connect(&plant, "plc-1", gateway.address).await;
    child.greet("b").await;
    let mut held = 0;
    for round in 0..12_u64 {
        for seq in held..held + 15 {
            let report = support::report(seq, &format!("w/{}", seq % 4), "x");
            child.say(Kind::Report, child.issued.seal(Kind::Report, "hub", &report, false));
        }
        // Microseconds to several commits.
        tokio::time::sleep(Duration::from_micros(300 * round * round)).await;
        gateway.kill();
        let acked = child.acknowledged_before_the_end().await.unwrap_or(held);
        gateway.run();
        child.reconnect().await;
        let (ack, _) = child.greet("b").await;
        assert!(
            ack.seq >= acked && acked >= held,
            "round {round}: {acked} were acknowledged, {} are held",
            ack.seq
        );
        held = ack.seq;
    }
    assert!(held > 0, "some were taken");
}

#[tokio::test]
async fn a_cached_twin_answers_a_hello_while_the_parent_is_away() {
    let (plant, parent, mut gateway) = pair(&[]).await;
    let mut child = Child::connect(&plant, "plc-1", gateway.address).await;
    child.greet("b1").await;
    let twin = plant.twin("plc-1");
    parent.send_twin("gw-1", &twin);
    assert_eq!(child.next(Kind::Twin).await, twin);
    child.leave().await;
    parent.stop().await;
    gateway.kill();
    gateway.run();
    let mut child = Child::connect(&plant, "plc-1", gateway.address).await;
    child.greet("b2").await;
    assert_eq!(child.next(Kind::Twin).await, twin);
}

#[tokio::test]
async fn an_artifact_crosses_the_uplink_once_for_two_children() {
    let artifact: Vec<u8> = (0..700_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let (plant, parent, mut gateway) = pair(&[&artifact]).await;
    let mut one = Child::connect(&plant, "plc-1", gateway.address).await;
    let mut two = Child::connect(&plant, "plc-2", gateway.address).await;
    one.greet("b").await;
    two.greet("b").await;
    let digest = Digest::of(&artifact);
    let (a, b) = tokio::join!(one.fetch(digest), two.fetch(digest));
    assert!(a == artifact && b == artifact);
    let asked: Vec<u64> = parent
        .heard()
        .iter()
        .filter_map(|h| match h {
            Heard::ChunkRequest(r) => Some(r.offset),
            _ => None,
        })
        .collect();
    assert_eq!(asked, [0, 256 << 10, 512 << 10], "three pieces, each once");
    // And it is still there after a restart, without a parent.
    parent.stop().await;
    gateway.kill();
    gateway.run();
    one.reconnect().await;
    one.greet("b").await;
    assert_eq!(one.fetch(digest).await, artifact);
}

#[tokio::test]
async fn a_full_disk_is_told_and_survived_with_the_children_connected() {
    let Some(disk) = Tmpfs::mount("3m") else { return };
    let plant = Plant::new();
    let parent = Parent::start(&plant, "127.0.0.1:0".parse().unwrap(), &[]).await;
    let gateway = Gateway::start(&plant, parent.local_addr(), Some(disk.path()));
    parent.hello_of("gw-1").await;
    let mut child = Child::connect(&plant, "plc-1", gateway.address).await;
    child.greet("b").await;
    child.report(0, "w/0").await;
    parent.forget();
    let ballast = disk.path().join("ballast");
    let _ = std::fs::write(&ballast, vec![1; 4 << 20]).expect_err("it fills the disk");
    // Each is dropped unacknowledged as soon as nothing can be written any more.
    let mut seq = 1;
    let alarm = loop {
        let bytes = child.issued.seal(
            Kind::Report,
            "hub",
            &support::report(seq, &format!("w/{seq}"), "x"),
            false,
        );
        child.say(Kind::Report, bytes);
        seq += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let alarms = parent.heard().into_iter().filter_map(|h| match h {
            Heard::Said {
                author,
                said: Said::Hello(hello),
                ..
            } if author.as_str() == "gw-1" => Some(hello.alarms),
            _ => None,
        });
        if let Some(alarm) = alarms.flatten().next() {
            break alarm;
        }
        assert!(seq < 500, "the gateway says that it cannot write");
    };
    assert_eq!(alarm.code, "store");
    std::fs::remove_file(&ballast).unwrap();
    let held = loop {
        let (ack, _) = child.greet("b").await;
        if ack.seq > 0 {
            break ack.seq;
        }
    };
    let bytes = child.report(held, "w/last").await;
    parent.raw("the report after the disk was full", &bytes).await;
    assert_eq!(child.connections, 1, "it was connected all the while");
}

#[tokio::test]
async fn it_stops_when_asked_and_one_state_folder_has_one_gateway() {
    let (plant, parent, mut gateway) = pair(&[]).await;
    let second = gateway.command("run").output().unwrap();
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        !second.status.success() && text.contains("another gateway uses"),
        "{text}"
    );
    let mut child = Child::connect(&plant, "plc-1", gateway.address).await;
    child.greet("b").await;
    assert_eq!(gateway.terminate().await.code(), Some(0));
    parent
        .wait("the goodbye", |h| {
            matches!(h, Heard::Link { up: false, .. }).then_some(())
        })
        .await;
}

/// The gateway and its child beside a mosquitto with the configuration that the gateway prints.
#[tokio::test]
async fn an_external_broker_serves_the_same_children() {
    let plant = Plant::new();
    let parent = Parent::start(&plant, "127.0.0.1:0".parse().unwrap(), &[]).await;
    let mut gateway = Gateway::install(&plant, parent.local_addr(), None);
    gateway.use_external_broker();
    let Some(_broker) = Mosquitto::start(&gateway) else {
        return;
    };
    gateway.run();
    parent.hello_of("gw-1").await;
    let mut child = Child::connect(&plant, "plc-1", gateway.address).await;
    child.greet("b").await;
    let bytes = child.report(0, "w/1").await;
    parent.raw("the child's report", &bytes).await;
    let twin = plant.twin("plc-1");
    parent.send_twin("gw-1", &twin);
    assert_eq!(child.next(Kind::Twin).await, twin);
}

#[test]
fn a_configuration_is_checked_without_starting() {
    let plant = Plant::new();
    let gateway = Gateway::install(&plant, free_port(), None);
    let checked = gateway.command("check").output().unwrap();
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(
        checked.status.success() && text.contains("gw-1 at plant-7/line-2 under hub"),
        "{text}"
    );
    let refused = gateway.command("print-mosquitto-config").output().unwrap();
    assert_eq!(refused.status.code(), Some(78));

    let good = std::fs::read_to_string(&gateway.config).unwrap();
    gateway.use_external_broker();
    for (part, wanted) in [
        ("conf", "tls_version tlsv1.3"),
        ("acl", "user gw-1"),
        ("ca", "BEGIN CERTIFICATE"),
    ] {
        let printed = gateway
            .command("print-mosquitto-config")
            .args(["--part", part])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&printed.stdout).into_owned();
        assert!(printed.status.success() && text.contains(wanted), "{part}: {text}");
    }
    std::fs::write(&gateway.config, good.replace("plant-7/line-2", "plant-7/line-3")).unwrap();
    let wrong = gateway.command("check").output().unwrap();
    assert_eq!(wrong.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("its certificate says plant-7/line-2"));
}
