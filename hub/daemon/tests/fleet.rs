//! A hub and a child that a test plays.

// Helpers are not recognised as tests.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cnova_link::{FloorClock, Identity, Uplink, UplinkConfig, UplinkEvent, client_tls};
use cnova_shared::bundle::TrustBundle;
use cnova_shared::ids::{Digest, HUB_AUDIENCE};
use cnova_shared::parent::Parent;
use cnova_shared::topics::Kind;
use cnova_shared::twin::VerifiedTwin;
use cnova_shared::wire::v1::{self, Body};
use serde_json::{Value, json};
use support::{Client, ENGINE, OPERATOR, PATIENCE, Site, TARGET, VIEWER, by_digest, node, now_s, provenance};
use tokio::sync::mpsc;

const WASM: &[u8] = b"\0asm\x01\0\0\0";

/// An agent without an agent in it.
struct Played {
    identity: Identity,
    parent: Parent,
    uplink: Uplink,
    events: mpsc::Receiver<UplinkEvent>,
    trust: TrustBundle,
}

impl Played {
    async fn connect(site: &Site) -> Self {
        let (name, folder) = ("plc-1", site.folder.path());
        site.plant.issue(folder, name, "plant-7/line-2");
        let at = |file: &str| folder.join(file);
        let identity = Identity::load(&at("plc-1.pem"), &at("plc-1.key"), &at("trust.cose")).unwrap();
        let clock = Arc::new(FloorClock::of(&identity));
        let tls = client_tls(&identity, &node("hub"), clock).unwrap();
        let config = UplinkConfig::new(site.mqtt.into(), node(name), node("hub"), tls);
        let (uplink, events) = Uplink::start(config);
        let trust = identity.trust().clone();
        let mut played = Self {
            identity,
            parent: Parent::new(node("hub")),
            uplink,
            events,
            trust,
        };
        loop {
            if played.event().await == UplinkEvent::Connected {
                break;
            }
        }
        played
    }

    async fn event(&mut self) -> UplinkEvent {
        tokio::time::timeout(PATIENCE, self.events.recv())
            .await
            .expect("something within time")
            .unwrap()
    }

    async fn hear(&mut self, wanted: Kind) -> Vec<u8> {
        loop {
            match self.event().await {
                UplinkEvent::Message { kind, bytes } if kind == wanted => return bytes,
                UplinkEvent::Disconnected { reason } => panic!("{reason}"),
                _ => {}
            }
        }
    }

    async fn hear_from_parent<T: serde::de::DeserializeOwned + v1::Versioned>(&mut self, kind: Kind) -> T {
        let bytes = self.hear(kind).await;
        let opened = self
            .parent
            .open(kind, &bytes, &node("plc-1"), &self.trust.clone().into(), now_s())
            .unwrap();
        opened.decode::<T>().unwrap().into_value()
    }

    fn say<T: serde::Serialize>(&self, kind: Kind, aud: &str, value: &T) {
        let introduce = kind == Kind::Hello;
        let bytes = self
            .identity
            .seal(kind, &node(aud), now_s(), None, value, introduce)
            .unwrap();
        self.uplink.send(kind, bytes).unwrap();
    }

    async fn say_hello(&mut self) {
        let runtime = v1::RuntimeCapability {
            name: "wasm".into(),
            version: "1".into(),
            engine: ENGINE.into(),
            targets: vec![TARGET.into()],
        };
        let container = v1::RuntimeCapability {
            name: "container".into(),
            ..runtime.clone()
        };
        let hello = v1::Hello {
            v: v1::VERSION,
            boot: "boot-1".into(),
            epoch: 0,
            generation: 0,
            digest: None,
            incarnation: 1,
            role: v1::NodeRole::Agent,
            site: "plant-7/line-2".parse().unwrap(),
            labels: BTreeMap::new(),
            capabilities: v1::Capabilities {
                runtimes: vec![runtime, container],
                memory_bytes: 1 << 30,
                cpu_millis: 2000,
                ..Default::default()
            },
            software: "test".into(),
            trust_version: 1,
            documents: Default::default(),
            renew: false,
            box_key: None,
            alarms: Vec::new(),
        };
        self.say(Kind::Hello, HUB_AUDIENCE, &hello);
        let ack: v1::Ack = self.hear_from_parent(Kind::Ack).await;
        assert_eq!((ack.hello.as_deref(), ack.stream), (Some("boot-1"), v1::Stream::Report));
    }

    async fn twin(&mut self) -> VerifiedTwin {
        let bytes = self.hear(Kind::Twin).await;
        VerifiedTwin::open(&bytes, &self.trust, now_s()).unwrap()
    }

    async fn report_running(&mut self, twin: &VerifiedTwin) {
        let workload = &twin.twin().workloads[0];
        let running = v1::WorkloadReport {
            id: workload.id.clone(),
            app_generation: workload.app_generation,
            epoch: twin.version().epoch,
            generation: twin.version().generation,
            state: v1::WorkloadState::Running,
            reason: String::new(),
            attempt: 1,
            pid: 4711,
            adopted: false,
            returned: false,
        };
        let has = Body::Twin {
            epoch: twin.version().epoch,
            generation: twin.version().generation,
            digest: twin.digest(),
            verified_ms: 1,
            committed_ms: 2,
        };
        let entry = |seq, key: String, body| v1::Entry {
            seq,
            key,
            at_ms: 3,
            body,
        };
        let entries = vec![
            entry(1, "twin".into(), has),
            entry(2, format!("w/{}", workload.id), Body::Workload(running)),
        ];
        let report = v1::Report {
            v: v1::VERSION,
            incarnation: 1,
            from: 0,
            to: 2,
            entries,
            all_keys: None,
        };
        self.say(Kind::Report, HUB_AUDIENCE, &report);
        let ack: v1::Ack = self.hear_from_parent(Kind::Ack).await;
        assert_eq!((ack.incarnation, ack.seq), (1, 2));
    }

    /// Fetches an artifact as an agent would.
    async fn fetch(&mut self, artifact: &v1::Artifact) -> Vec<u8> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < artifact.size {
            let offset = bytes.len() as u64;
            let length = (artifact.size - offset).min(cnova_shared::limits::CHUNK_BYTES);
            let request = v1::ChunkRequest {
                v: v1::VERSION,
                digest: artifact.digest,
                offset,
                length,
                base: None,
            };
            self.say(Kind::ChunkRequest, "hub", &request);
            let chunk: v1::Chunk = self.hear_from_parent(Kind::Chunk).await;
            assert_eq!(
                (chunk.missing, chunk.total, chunk.offset),
                (None, artifact.size, offset)
            );
            bytes.extend(chunk.data);
        }
        bytes
    }
}

/// Asks the API beside the loop that plays the child.
async fn ask<T: Send + 'static>(client: Client, ask: impl FnOnce(Client) -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(move || ask(client)).await.unwrap()
}

async fn apply(client: Client, manifest: String) -> (u16, Value) {
    ask(client, move |c| c.apply(OPERATOR, &manifest, json!({}))).await
}

#[tokio::test]
async fn a_twin_goes_down_and_its_state_comes_up() {
    let site = Site::new();
    let hub = site.start();
    let client = hub.client();
    let mut child = Played::connect(&site).await;
    child.say_hello().await;
    let wasm: Vec<u8> = WASM.iter().copied().chain(std::iter::repeat_n(9, 600_000)).collect();
    let digest = {
        let wasm = wasm.clone();
        ask(client, move |c| c.upload(&wasm)).await
    };
    let (status, applied) = apply(client, by_digest("shaker", &digest)).await;
    assert_eq!(
        (status, &applied["placed"]["one"]),
        (200, &json!(["plc-1"])),
        "{applied}"
    );
    let twin = child.twin().await;
    assert_eq!(twin.twin().workloads[0].id.to_string(), "shaker/one");
    let artifact = twin.twin().workloads[0].artifact.clone();
    let fetched = child.fetch(&artifact).await;
    assert_eq!(Digest::of(&fetched), artifact.digest);
    child.report_running(&twin).await;
    let (_, workloads) = ask(client, |c| c.get("/v1/workloads", VIEWER)).await;
    let one = &workloads["workloads"][0];
    assert_eq!(
        (&one["state"], &one["node"], &one["pid"]),
        (&json!("running"), &json!("plc-1"), &json!(4711))
    );
    let (_, info) = ask(client, |c| c.get("/v1/nodes/plc-1", VIEWER)).await;
    assert_eq!(
        (&info["link"], &info["in_sync"], &info["trust"]),
        (&json!("connected"), &json!(true), &json!("UNATTESTED"))
    );
    let (_, history) = ask(client, |c| c.get("/v1/nodes/plc-1/history", VIEWER)).await;
    let keys: Vec<&Value> = history["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["key"])
        .collect();
    assert_eq!(keys, [&json!("w/shaker/one"), &json!("twin")]);
    let (_, timeline) = ask(client, |c| c.get("/v1/applications/shaker/timeline", VIEWER)).await;
    let stages: Vec<&str> = timeline["stages"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|s| s["stage"].as_str())
        .collect();
    for stage in [
        "admitted",
        "placed",
        "signed",
        "relayed",
        "verified",
        "committed",
        "running",
        "reported",
    ] {
        assert!(stages.contains(&stage), "{stage}: {timeline}");
    }
    let (_, bytes) = ask(client, |c| c.get_bytes("/v1/nodes/plc-1/twin", "application/cose")).await;
    assert_eq!(VerifiedTwin::open(&bytes, &child.trust, now_s()).unwrap(), twin);
    let (_, document) = ask(client, |c| c.get("/v1/nodes/plc-1/twin", VIEWER)).await;
    assert_eq!(document["digest"], json!(Digest::of(&bytes)));
    // After a crash the hub says what it said before.
    drop(hub);
    let hub = site.start();
    let (_, again) = ask(hub.client(), |c| c.get("/v1/workloads", VIEWER)).await;
    assert_eq!(again, workloads);
    assert_eq!(
        ask(hub.client(), |c| c
            .get_bytes("/v1/nodes/plc-1/twin", "application/cose"))
        .await
        .1,
        bytes
    );
}

#[tokio::test]
async fn a_node_is_asked_and_a_silent_one_is_named() {
    let site = Site::new();
    let hub = site.start();
    let client = hub.client();
    let mut child = Played::connect(&site).await;
    child.say_hello().await;
    let logs = "/v1/nodes/plc-1/workloads/shaker/one/logs?lines=5";
    for (ok, status) in [(true, 200), (false, 422)] {
        let asking = tokio::spawn(ask(client, move |c| c.get(logs, VIEWER)));
        let bytes = child.hear(Kind::Command).await;
        let opened = Parent::open_hub(Kind::Command, &bytes, &node("plc-1"), &child.trust, now_s()).unwrap();
        let exp = opened.claims().exp.unwrap();
        assert!((now_s() + 50..=now_s() + 60).contains(&exp), "it expires");
        let command = opened.decode::<v1::Command>().unwrap().into_value();
        let v1::Operation::Logs { workload, lines } = command.op else {
            panic!("{command:?}")
        };
        assert_eq!((workload.to_string().as_str(), lines), ("shaker/one", 5));
        let reply = v1::Reply {
            v: v1::VERSION,
            id: command.id,
            ok,
            text: "line 1\nline 2".into(),
        };
        child.say(Kind::Reply, HUB_AUDIENCE, &reply);
        let (answered, body) = asking.await.unwrap();
        assert_eq!(answered, status, "{body}");
        assert!(body.to_string().contains("line 2"), "{body}");
    }
    assert_eq!(
        ask(client, |c| c.get("/v1/nodes/plc-9/workloads/a/b/metrics", VIEWER))
            .await
            .0,
        404
    );
    let (status, body) = ask(client, move |c| c.get(logs, VIEWER)).await;
    assert_eq!((status, &body["error"]["code"]), (504, &json!("timeout")), "{body}");
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("plc-1 did not answer within 10 s"),
        "{body}"
    );
    child.uplink.shutdown().await;
    let deadline = std::time::Instant::now() + PATIENCE;
    while ask(client, |c| c.get("/v1/nodes/plc-1", VIEWER)).await.1["link"] != "disconnected" {
        assert!(std::time::Instant::now() < deadline, "{}", site.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (status, body) = ask(client, move |c| c.get(logs, VIEWER)).await;
    assert_eq!((status, &body["error"]["code"]), (504, &json!("unreachable")), "{body}");
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("plc-1 is not connected"),
        "{body}"
    );
}

#[tokio::test]
async fn a_containers_twin_names_the_parts_of_its_image_and_its_conditions() {
    use cnova_oci::testing::{ImageBuilder, LayerBuilder};
    let site = Site::new();
    let hub = site.start();
    let api = hub.client();
    let image = ImageBuilder::new()
        .layer(LayerBuilder::new().file("hello", 0o755, b"hello"))
        .build();
    let digest = image.digest.to_string();
    let named = by_digest("web", &digest).replace("runtime: wasm", "runtime: container")
        + "    volumes: [{name: data, path: /var/data}]\n    power: low\n    schedule: {cron: \"0 6 * * *\", for: 90m}\n";
    for (_, bytes) in image.blobs.iter().filter(|(d, _)| *d != image.parts[1]) {
        api.upload(bytes);
    }
    let (status, body) = api.apply(OPERATOR, &named, json!({}));
    let layer = image.parts[1];
    assert_eq!(status, 422, "{body}");
    let said = body["error"]["details"][0]["message"].as_str().unwrap();
    assert!(said.starts_with(&format!("layer 1 of 1 ({layer}) of image")), "{said}");
    for (_, bytes) in &image.blobs {
        api.upload(bytes);
    }
    let mut agent = Played::connect(&site).await;
    agent.say_hello().await;
    let (status, body) = api.apply(OPERATOR, &named, json!({}));
    assert_eq!(status, 200, "{body}");
    let twin = agent.twin().await;
    let workload = &twin.twin().workloads[0];
    assert_eq!(workload.artifact.digest.to_string(), digest);
    let parts: Vec<String> = workload.parts.iter().map(|p| p.digest.to_string()).collect();
    let expected: Vec<String> = image.parts.iter().map(ToString::to_string).collect();
    assert_eq!(parts, expected);
    assert_eq!(
        (workload.volumes[0].path.as_str(), workload.power),
        ("/var/data", v1::PowerLevel::Low)
    );
    let schedule = workload.schedule.as_ref().unwrap();
    assert_eq!((schedule.zone.as_str(), schedule.window_seconds), ("UTC", Some(5_400)));
    agent.report_running(&twin).await;
    let (_, body) = api.get("/v1/applications/web/workloads/one/explanation?node=plc-1", VIEWER);
    let here = &body["nodes"][0];
    assert_eq!(
        (&here["node"], &here["placed"]),
        (&json!("plc-1"), &json!(true)),
        "{body}"
    );
    assert_eq!(here["reported"]["state"], "running", "{body}");
    assert_eq!(body["verdict"], "runs on 1 of 1 node(s) that are to run it", "{body}");
    assert_eq!(body["history"]["plc-1"][0]["body"]["t"], "workload", "{body}");
    let (status, body) = api.get("/v1/applications/web/workloads/one/explanation?node=plc-9", VIEWER);
    assert_eq!(status, 404, "there is no such node: {body}");
    assert!(body.to_string().contains("plc-9"), "{body}");
}

/// Attaches what proves nothing, which is refused or said, and at last what does.
async fn attach_and_be_refused(client: Client, digest: &str) {
    let path = format!("/v1/artifacts/{digest}/provenance");
    let attach = |envelope: Vec<u8>| {
        let path = path.clone();
        ask(client, move |c| c.post(&path, OPERATOR, &[], &envelope))
    };
    let (status, about_other) = attach(provenance(21, b"other bytes")).await;
    assert_eq!(
        (status, &about_other["error"]["code"]),
        (422, &json!("provenance")),
        "{about_other}"
    );
    let mut changed = provenance(21, WASM);
    let middle = changed.len() / 2;
    changed[middle] = if changed[middle] == b'A' { b'B' } else { b'A' };
    assert_eq!(attach(changed).await.0, 422);
    assert_eq!(attach(b"no envelope".to_vec()).await.0, 422);
    assert_eq!(attach(vec![b' '; 200_000]).await.0, 413);
    let (status, stranger) = attach(provenance(22, WASM)).await;
    assert!(
        status == 201 && stranger["problem"].as_str().unwrap().contains("no builder"),
        "{stranger}"
    );
    let (status, kept) = attach(provenance(21, WASM)).await;
    assert_eq!(
        (status, &kept["builder"], &kept["level"]),
        (201, &json!(support::CI), &json!(2)),
        "{kept}"
    );
    assert_eq!(attach(provenance(21, WASM)).await.0, 200);
    let unknown = format!("/v1/artifacts/{}/provenance", Digest::of(b"never uploaded"));
    let envelope = provenance(21, b"never uploaded");
    assert_eq!(
        ask(client, move |c| c.post(&unknown, OPERATOR, &[], &envelope)).await.0,
        404
    );
}

/// From the upload of an envelope to what a node needs to check it offline, with a compiler that makes something new.
#[tokio::test]
async fn provenance_travels_with_what_asks_for_it() {
    let site = Site::new();
    let worker = std::fs::read_to_string(site.path("worker")).unwrap();
    let changing = worker.replacen("&& printf", "&& printf compiled >> \"$6\" && printf", 1);
    std::fs::write(site.path("worker"), changing).unwrap();
    let hub = site.start();
    let client = hub.client();
    let mut child = Played::connect(&site).await;
    child.say_hello().await;
    let digest = ask(client, |c| c.upload(WASM)).await;
    let asking = format!(
        "{}    attestationPolicy: {{provenance: required, minLevel: 2, builders: [\"https://ci.example/*\"]}}\n",
        by_digest("shaker", &digest)
    );
    let (status, refused) = apply(client, asking.clone()).await;
    let why = refused["error"]["message"].as_str().unwrap_or_default();
    assert!(
        status == 422 && why.contains("app.yaml:7:15") && why.contains("has no provenance"),
        "{refused}"
    );

    attach_and_be_refused(client, &digest).await;

    // It outlives the hub's process.
    drop(hub);
    let hub = site.start();
    let client = hub.client();
    let mut child = Played::connect(&site).await;
    child.say_hello().await;
    let (status, applied) = apply(client, asking).await;
    assert_eq!(status, 200, "{applied}");
    let twin = child.twin().await;
    let workload = &twin.twin().workloads[0];
    assert_ne!(
        workload.artifact.digest, workload.source,
        "the compiler made something new"
    );
    assert_eq!(workload.provenance.len(), 2);
    let mut envelopes = BTreeMap::new();
    for artifact in &workload.provenance {
        envelopes.insert(artifact.digest, child.fetch(artifact).await);
    }
    let trust = child.trust.contents();
    let held = cnova_provenance::check_workload(workload, &envelopes, trust, Some(now_s()));
    assert_eq!(held, Ok(()));
    envelopes.remove(&workload.provenance[0].digest);
    assert!(cnova_provenance::check_workload(workload, &envelopes, trust, None).is_err());

    // What asks for nothing carries nothing.
    let (status, _) = apply(client, by_digest("shaker", &digest)).await;
    assert_eq!(status, 200);
    let plain = child.twin().await;
    let workload = &plain.twin().workloads[0];
    assert_eq!((workload.provenance.len(), &workload.attestation), (0, &None));
    let (_, audit) = ask(client, |c| c.get("/v1/audit?limit=50", support::ADMIN)).await;
    assert!(audit.to_string().contains("\"attest\""), "{audit}");
}
