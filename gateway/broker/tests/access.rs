//! Who is let in, and what a child may do.

mod support;

use cnova_broker::{EndpointEvent, Limits};
use rcgen::{DnType, date_time_ymd};
use support::{Authority, Identity, Raw, Site, connect, connect_with, publish, soon, subscribe, will};

/// TLS 1.3 tells a client of its refusal after its handshake: at the first read, at the latest.
async fn is_turned_away(site: &Site, identity: Option<&Identity>) {
    if let Ok(mut raw) = Raw::open(&site.authority, identity, site.address).await {
        raw.send(&connect("plc-14")).await;
        assert_eq!(raw.packet().await, None);
    }
}

#[tokio::test]
async fn certificates_that_do_not_count_are_refused() {
    let mut site = Site::start().await;
    is_turned_away(&site, Some(&Authority::new("Plant 7").issue("plc-14"))).await;
    assert!(site.refusal().await.contains("the TLS handshake failed"));

    let expired = site.authority.issue_with("plc-14", |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    is_turned_away(&site, Some(&expired)).await;
    assert!(site.refusal().await.to_lowercase().contains("expired"));

    is_turned_away(&site, None).await;
    assert!(site.refusal().await.contains("the TLS handshake failed"));
    site.assert_serves().await;
}

#[tokio::test]
async fn the_client_id_must_be_the_cn() {
    let mut site = Site::start().await;
    let mut raw = site.raw("plc-14").await;
    raw.send(&connect("plc-15")).await;
    assert_eq!(raw.connack_reason().await, 0x85);
    assert_eq!(raw.packet().await, None);
    let refusal = site.refusal().await;
    assert!(
        refusal.contains("(plc-14)") && refusal.contains("`plc-15` is not the CN"),
        "{refusal}"
    );

    for cn in ["PLC 14", "a/b", "+", ""] {
        let identity = site.authority.issue(cn);
        let mut raw = Raw::open(&site.authority, Some(&identity), site.address).await.unwrap();
        assert_eq!(raw.connack_reason().await, 0x85);
        assert!(site.refusal().await.contains("not a node id"));
    }
    let two_names = site.authority.issue_with("a", |params| {
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::OrganizationName, "a");
    });
    let mut raw = Raw::open(&site.authority, Some(&two_names), site.address)
        .await
        .unwrap();
    assert_eq!(raw.connack_reason().await, 0x85);
    assert!(site.refusal().await.contains("exactly one subject CN"));
}

#[tokio::test]
async fn connack_announces_what_is_served() {
    let site = Site::start().await;
    let mut raw = site.raw("a").await;
    raw.send(&connect_with("a", 0x00, 0, &[])).await;
    let connack = raw.packet().await.unwrap();
    assert_eq!(connack[2..4], [0, 0], "no session, success");
    let properties = &connack[5..];
    for wanted in [
        &[0x11, 0, 0, 0, 0][..], // session expiry 0, though a clean start was not asked for
        &[0x27, 0, 0x20, 0, 0],  // 2 MiB
        &[0x22, 0, 0],
        &[0x24, 1],
        &[0x25, 0],
        &[0x28, 0],
        &[0x29, 0],
        &[0x2a, 0],
        &[0x13, 0x04, 0xb0], // 1200 s, as none was asked for
    ] {
        assert!(
            properties.windows(wanted.len()).any(|window| window == wanted),
            "{wanted:x?} in {properties:x?}"
        );
    }
}

#[tokio::test]
async fn only_its_own_down_topics_can_be_subscribed() {
    let mut site = Site::start().await;
    let mut raw = site.raw_connected("a").await;
    raw.send(&subscribe(&[
        "cnova/v1/a/down/twin",
        "#",
        "+/+/+/+/+",
        "cnova/v1/a/down/+",
        "cnova/v1/a/down/#",
        "cnova/v1/b/down/twin",
        "cnova/v1/a/up/hello",
        "$share/g/cnova/v1/a/down/twin",
        "$SYS/#",
        "cnova/canary",
    ]))
    .await;
    let suback = raw.packet().await.unwrap();
    assert_eq!(
        suback,
        [
            0x90, 13, 0, 1, 0, 1, 0x87, 0x87, 0x87, 0x87, 0x87, 0x87, 0x87, 0x87, 0x87
        ]
    );
    assert!(site.refusal().await.ends_with("(a): it may not subscribe to `#`"));
}

#[tokio::test]
async fn breaking_a_rule_ends_the_connection_and_nobody_else_s() {
    let mut site = Site::start().await;
    let own = "cnova/v1/a/up/hello";
    let big = vec![0; 3 << 20];
    let cases: [(&str, Vec<u8>, u8); 14] = [
        (
            "another node's topic",
            publish(0x02, "cnova/v1/b/up/hello", &[], b"x"),
            0x87,
        ),
        (
            "down is not for children",
            publish(0x02, "cnova/v1/a/down/twin", &[], b"x"),
            0x87,
        ),
        ("a topic outside", publish(0, "other", &[], b"x"), 0x87),
        ("the canary", publish(0, "cnova/canary", &[], b"x"), 0x87),
        ("a marker", publish(0, "cnova/v1/a/up/!disconnected", &[], b"x"), 0x87),
        ("QoS 2", publish(0x04, own, &[], b"x"), 0x9b),
        ("retain", publish(0x03, own, &[], b"x"), 0x9a),
        ("topic alias", publish(0x02, own, &[0x23, 0, 1], b"x"), 0x94),
        ("oversized", publish(0x02, own, &[], &big), 0x95),
        ("a second CONNECT", connect("a"), 0x82),
        ("a CONNACK", vec![0x20, 3, 0, 0, 0], 0x82),
        ("an UNSUBACK", vec![0xb0, 2, 0, 1], 0x82),
        ("AUTH", vec![0xf0, 0], 0x82),
        (
            "a subscription identifier",
            vec![0x82, 12, 0, 1, 2, 0x0b, 1, 0, 4, b'a', b'/', b'b', b'c', 1],
            0xa1,
        ),
    ];
    for (what, packet, code) in cases {
        let mut raw = site.raw_connected("a").await;
        raw.send(&packet).await;
        assert_eq!(raw.disconnect_reason().await, code, "{what}");
        let refusal = site.refusal().await;
        assert!(refusal.contains("(a)"), "{what}: {refusal}");
    }
    site.assert_serves().await;
}

#[tokio::test]
async fn wills_and_other_protocols_are_refused() {
    let mut site = Site::start().await;
    let mut raw = site.raw("a").await;
    raw.send(&connect_with("a", 0x06, 60, &will("cnova/v1/a/up/gone")))
        .await;
    assert_eq!(raw.connack_reason().await, 0x87);
    assert!(site.refusal().await.contains("will"));

    let mut raw = site.raw("a").await;
    raw.send(b"GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(raw.connack_reason().await, 0x82);
    assert!(site.refusal().await.contains("first packet"));

    let mut raw = site.raw("a").await;
    raw.send(&[0xc0, 0]).await;
    assert_eq!(raw.connack_reason().await, 0x82);
    assert!(site.refusal().await.contains("not an MQTT CONNECT"));
}

#[tokio::test]
async fn a_client_of_mqtt_3_is_told_so() {
    let mut site = Site::start().await;
    let mut options = rumqttc::MqttOptions::new("a", "localhost", site.address.port());
    let tls = site.authority.client_config(Some(&site.authority.issue("a")));
    options.set_transport(rumqttc::Transport::Tls(rumqttc::TlsConfiguration::Rustls(tls)));
    let (_client, mut event_loop) = rumqttc::AsyncClient::new(options, 4);
    let error = soon("a refusal", event_loop.poll()).await.unwrap_err();
    assert!(
        matches!(
            error,
            rumqttc::ConnectionError::ConnectionRefused(rumqttc::ConnectReturnCode::RefusedProtocolVersion)
        ),
        "{error}"
    );
    assert!(site.refusal().await.contains("MQTT 3"));
}

#[tokio::test]
async fn a_node_cannot_invent_kinds_without_end() {
    let mut site = Site::start_with(Limits {
        kinds_per_node: 2,
        ..Limits::default()
    })
    .await;
    let mut raw = site.raw_connected("a").await;
    for kind in ["hello", "report", "hello", "other"] {
        raw.send(&publish(0, &format!("cnova/v1/a/up/{kind}"), &[], b"x")).await;
    }
    assert_eq!(raw.disconnect_reason().await, 0x97);
    let mut raw = site.raw_connected("a").await;
    raw.send(&subscribe(&[
        "cnova/v1/a/down/a",
        "cnova/v1/a/down/b",
        "cnova/v1/a/down/c",
    ]))
    .await;
    assert_eq!(raw.packet().await.unwrap()[5..], [1, 1, 0x97]);
    site.event_where("it was let in", |event| {
        matches!(event, EndpointEvent::Connected { .. }).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_gate_ends_the_sessions_of_whom_it_refuses_and_lets_nobody_of_them_in() {
    let mut site = Site::start().await;
    let mut revoked = site.raw_connected("plc-1").await;
    let mut other = site.raw_connected("plc-2").await;
    let gate = |certificate: &[u8]| {
        let name = certificate.windows(5).any(|w| w == b"plc-1");
        name.then(|| "plc-1 is revoked: stolen".to_owned())
    };
    site.endpoint.door().guard(std::sync::Arc::new(gate));
    assert_eq!(revoked.disconnect_reason().await, 0x87);
    let why = site.disconnected("plc-1").await;
    assert!(why.contains("revoked: stolen"), "{why}");
    let mut again = site.raw("plc-1").await;
    again.send(&connect("plc-1")).await;
    assert_eq!(again.connack_reason().await, 0x87);
    let refusal = site.refusal().await;
    assert!(refusal.contains("(plc-1): plc-1 is revoked: stolen"), "{refusal}");
    // Nobody else notices.
    other.send(&subscribe(&["cnova/v1/plc-2/down/twin"])).await;
    assert!(other.packet().await.is_some());
    // And it is let in again when the gate says so.
    site.endpoint.door().guard(std::sync::Arc::new(|_: &[u8]| None));
    site.raw_connected("plc-1").await;
}

#[tokio::test]
async fn other_authorities_count_for_the_connections_to_come() {
    let mut site = Site::start().await;
    let mut before = site.raw_connected("plc-1").await;
    let next = Authority::new("Plant 8");
    site.endpoint.door().believe(&[next.certificate.to_vec()]).unwrap();
    before.send(&subscribe(&["cnova/v1/plc-1/down/twin"])).await;
    assert!(before.packet().await.is_some(), "what stands is not touched");
    is_turned_away(&site, Some(&site.authority.issue("plc-2"))).await;
    assert!(site.refusal().await.contains("the TLS handshake failed"));
    // The endpoint's own certificate is still of the old authority.
    let identity = next.issue("plc-3");
    let mut raw = Raw::open(&site.authority, Some(&identity), site.address).await.unwrap();
    raw.send(&connect("plc-3")).await;
    assert_eq!(raw.connack_reason().await, 0);
    assert!(
        site.endpoint.door().believe(&[vec![0x30, 0]]).is_err(),
        "the ones of before stay"
    );
}
