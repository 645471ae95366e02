//! The same service over mosquitto, with the configuration that this crate writes for it.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Child as Process, Command, Stdio};

use bytes::Bytes;
use cnova_broker::{
    AnyEndpoint, EndpointError, EndpointEvent, ExternalConfig, ExternalEndpoint, MosquittoSettings, PublishError,
    mosquitto_acl, mosquitto_config,
};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use support::{Authority, Child, soon};
use tokio::sync::mpsc;

const MOSQUITTO: &str = "/usr/sbin/mosquitto";

/// A mosquitto of our own on a free port; killed at the end of the test.
struct Mosquitto {
    process: Process,
    folder: tempfile::TempDir,
    port: u16,
}

impl Mosquitto {
    fn start(authority: &Authority, parent: &str) -> Option<Self> {
        if !Path::new(MOSQUITTO).exists() {
            eprintln!("SKIPPED: {MOSQUITTO} is not installed (apt-get install mosquitto); nothing was tested");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let server = authority.issue("broker");
        // mosquitto gives up root and must still be able to read its files.
        open_up(folder.path(), 0o755);
        let files = [
            ("ca.pem", authority.pem.clone()),
            ("cert.pem", server.cert_pem),
            ("key.pem", server.key_pem),
            ("acl", mosquitto_acl(parent)),
        ];
        for (name, text) in files {
            std::fs::write(path(name), text).unwrap();
            open_up(&path(name), 0o644);
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let settings = MosquittoSettings {
            bind: Some("127.0.0.1".parse().unwrap()),
            port,
            cafile: path("ca.pem"),
            certfile: path("cert.pem"),
            keyfile: path("key.pem"),
            acl_file: path("acl"),
            max_packet_bytes: 2 << 20,
        };
        std::fs::write(path("mosquitto.conf"), mosquitto_config(&settings)).unwrap();
        let process = Self::spawn(folder.path());
        Some(Self { process, folder, port })
    }

    fn spawn(folder: &Path) -> Process {
        Command::new(MOSQUITTO)
            .arg("-c")
            .arg(folder.join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap()
    }

    fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    fn restart(&mut self) {
        self.process = Self::spawn(self.folder.path());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("mosquitto said:\n{}", self.log());
        }
    }
}

fn open_up(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

async fn parent(authority: &Authority, port: u16) -> (ExternalEndpoint, mpsc::Receiver<EndpointEvent>) {
    let config = ExternalConfig {
        host: "127.0.0.1".to_owned(),
        port,
        tls: authority.client_material(&authority.issue("hub")),
        client_id: "hub".to_owned(),
    };
    ExternalEndpoint::start(config).await.unwrap()
}

async fn next(events: &mut mpsc::Receiver<EndpointEvent>) -> EndpointEvent {
    soon("an event", events.recv()).await.expect("the endpoint runs")
}

/// The broker may take a moment to listen: downs before the first up are no failure.
async fn until_up(events: &mut mpsc::Receiver<EndpointEvent>) {
    loop {
        match next(events).await {
            EndpointEvent::BrokerUp => return,
            EndpointEvent::BrokerDown { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn messages_go_both_ways_and_the_link_comes_back() {
    let authority = Authority::new("Plant 7");
    let Some(mut mosquitto) = Mosquitto::start(&authority, "hub") else {
        return;
    };
    let (endpoint, mut events) = parent(&authority, mosquitto.port).await;
    let endpoint = AnyEndpoint::External(endpoint);
    assert_eq!(endpoint.local_addr(), None);
    let publisher = endpoint.publisher();
    until_up(&mut events).await;
    let address = ([127, 0, 0, 1], mosquitto.port).into();

    let identity = authority.issue("plc-14");
    let mut child = Child::connect(&authority, &identity, address, "plc-14", &["twin"]).await;
    child.say("plc-14", "hello", b"boot 1").await;
    let hello = |payload: &'static [u8]| EndpointEvent::Message {
        node: "plc-14".to_owned(),
        kind: "hello".to_owned(),
        payload: Bytes::from_static(payload),
    };
    assert_eq!(next(&mut events).await, hello(b"boot 1"));
    let twin = Bytes::from(vec![3; 1 << 20]);
    publisher.publish("plc-14", "twin", twin.clone()).unwrap();
    assert_eq!(child.message().await, ("cnova/v1/plc-14/down/twin".to_owned(), twin));
    assert!(matches!(
        publisher.publish("plc-14", "twin", vec![0; (2 << 20) + 1].into()),
        Err(PublishError::TooLarge { .. })
    ));

    mosquitto.stop();
    assert!(matches!(next(&mut events).await, EndpointEvent::BrokerDown { .. }));
    assert!(matches!(
        publisher.publish("plc-14", "twin", Bytes::new()),
        Err(PublishError::NotConnected { .. })
    ));
    mosquitto.restart();
    until_up(&mut events).await;
    let mut child = Child::connect(&authority, &identity, address, "plc-14", &["twin"]).await;
    child.say("plc-14", "hello", b"boot 2").await;
    assert_eq!(next(&mut events).await, hello(b"boot 2"));
    for number in 0..300_u32 {
        publisher
            .publish("plc-14", "twin", Bytes::copy_from_slice(&number.to_be_bytes()))
            .unwrap();
        if number % 50 == 49 {
            for _ in 0..50 {
                child.message().await;
            }
        }
    }
    soon("shutdown", endpoint.shutdown()).await;
    assert_eq!(events.recv().await, None);
}

#[tokio::test]
async fn the_written_rules_hold_in_mosquitto() {
    let authority = Authority::new("Plant 7");
    let Some(mosquitto) = Mosquitto::start(&authority, "hub") else {
        return;
    };
    let (endpoint, mut events) = parent(&authority, mosquitto.port).await;
    until_up(&mut events).await;
    let address = ([127, 0, 0, 1], mosquitto.port).into();

    // A client id that is not the CN is replaced by it.
    let identity = authority.issue("plc-14");
    let mut child = Child::connect(&authority, &identity, address, "plc-15", &[]).await;
    for filter in [
        "cnova/v1/plc-15/down/twin",
        "cnova/v1/+/up/+",
        "cnova/v1/plc-14/up/hello",
        "#",
    ] {
        // mosquitto grants every subscription and applies the rules when it delivers.
        child.client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        child
            .expect("SUBACK", |packet| matches!(packet, Packet::SubAck(_)).then_some(()))
            .await;
    }
    child.say("plc-15", "hello", b"forged").await;
    child
        .client
        .publish("cnova/v1/plc-14/down/twin", QoS::AtLeastOnce, false, "forged")
        .await
        .unwrap();
    child.say("plc-14", "hello", b"true").await;
    let EndpointEvent::Message { node, payload, .. } = next(&mut events).await else {
        panic!("a message")
    };
    assert_eq!((node.as_str(), &payload[..]), ("plc-14", &b"true"[..]));
    // Other children's messages are not delivered, whatever it subscribed to.
    let other = Child::connect(&authority, &authority.issue("plc-16"), address, "plc-16", &[]).await;
    other.say("plc-16", "hello", b"private").await;
    let EndpointEvent::Message { node, .. } = next(&mut events).await else {
        panic!("a message")
    };
    assert_eq!(node, "plc-16");
    endpoint
        .publisher()
        .publish("plc-15", "twin", Bytes::from_static(b"private"))
        .unwrap();
    endpoint
        .publisher()
        .publish("plc-14", "twin", Bytes::from_static(b"own"))
        .unwrap();
    assert_eq!(child.message().await.0, "cnova/v1/plc-14/down/twin");
    child.client.unsubscribe("#").await.unwrap();
    child
        .expect("UNSUBACK", |packet| match packet {
            Packet::Publish(publish) => panic!("overheard {:?}", publish.topic),
            Packet::UnsubAck(_) => Some(()),
            _ => None,
        })
        .await;

    let stranger = Authority::new("Plant 7").issue("plc-17");
    let mut stranger = Child::begin(&authority, &stranger, address, "plc-17");
    assert!(soon("a refusal", stranger.packets.recv()).await.unwrap().is_err());
}

#[tokio::test]
async fn a_broker_that_is_not_there_or_not_ours_is_an_event() {
    let authority = Authority::new("Plant 7");
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let (endpoint, mut events) = parent(&authority, free).await;
    assert!(matches!(next(&mut events).await, EndpointEvent::BrokerDown { .. }));
    soon("shutdown", endpoint.shutdown()).await;

    let Some(mosquitto) = Mosquitto::start(&Authority::new("Plant 8"), "hub") else {
        return;
    };
    let (endpoint, mut events) = parent(&authority, mosquitto.port).await;
    loop {
        match next(&mut events).await {
            EndpointEvent::BrokerDown { reason } if reason.to_lowercase().contains("certificate") => break,
            EndpointEvent::BrokerDown { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    soon("shutdown", endpoint.shutdown()).await;

    let mut tls = authority.client_material(&authority.issue("hub"));
    tls.server_name = "not a name".to_owned();
    let config = ExternalConfig {
        host: "127.0.0.1".to_owned(),
        port: free,
        tls,
        client_id: "hub".to_owned(),
    };
    assert!(matches!(
        ExternalEndpoint::start(config).await,
        Err(EndpointError::Invalid { .. })
    ));
}
