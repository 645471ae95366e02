//! The bytes of version 1. Nodes in the field read and write exactly these: a change here is a change of the wire.
//!
//! `CNOVA_WRITE_GOLDEN=1 cargo nextest run -p cnova-shared --test golden` writes the files anew.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::PathBuf;

use cnova_shared::bundle::{self, Role, TrustBundle};
use cnova_shared::certificate;
use cnova_shared::envelope::{Untrusted, seal};
use cnova_shared::ids::{Digest, Name, NodeId, SitePath};
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::topics::Kind;
use cnova_shared::twin::{TwinError, VerifiedTwin, check};
use cnova_shared::wire::v1::{self, Body, WorkloadState};
use cnova_shared::wire::{decode, encode};
use coset::cbor::value::Value;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;
use support::{EPOCH_S, claims, node, workload_id};

const NODE: &str = "plc-1";
const GATEWAY: &str = "line-gw";

fn writing() -> bool {
    std::env::var("CNOVA_WRITE_GOLDEN").is_ok_and(|v| v == "1")
}

/// The golden file, which is `made` when files are being written.
fn golden(name: &str, made: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if writing() {
        fs::write(&path, made).unwrap();
        return made.to_vec();
    }
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; CNOVA_WRITE_GOLDEN=1 writes it", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn assert_golden(name: &str, made: &[u8]) -> Vec<u8> {
    let file = golden(name, made);
    assert_eq!(
        hex(made),
        hex(&file),
        "tests/golden/{name} differs: nodes in the field would not read this. If the wire is meant to change, \
         CNOVA_WRITE_GOLDEN=1 writes the files anew"
    );
    file
}

/// Certificates come from files, so that another version of the tool that makes them changes nothing here.
fn certificates() -> (Vec<u8>, Vec<u8>) {
    (
        golden("ca.der", &support::ca_der()),
        golden("node.der", &support::identity(NODE, 10).chain[0]),
    )
}

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn hello() -> v1::Hello {
    let runtime = v1::RuntimeCapability {
        name: "wasm".into(),
        version: "0.1.0".into(),
        engine: "wasmtime-48.0.8".into(),
        targets: vec!["x86_64-unknown-linux-gnu".into()],
    };
    v1::Hello {
        v: 1,
        boot: "boot-7".into(),
        epoch: 2,
        generation: 9,
        digest: Some(digest("twin")),
        incarnation: 3,
        role: v1::NodeRole::Agent,
        site: SitePath::new("plant-7/plc-1").unwrap(),
        labels: BTreeMap::from([("zone".into(), "a".into())]),
        capabilities: v1::Capabilities {
            runtimes: vec![runtime],
            memory_bytes: 1 << 28,
            cpu_millis: 4000,
            ..Default::default()
        },
        software: "0.1.0".into(),
        trust_version: 5,
        documents: Default::default(),
        renew: false,
        box_key: None,
        alarms: vec![v1::Alarm {
            code: "store-set-aside".into(),
            detail: "it could not be read".into(),
        }],
    }
}

/// One of every variant.
fn bodies() -> Vec<(&'static str, Body)> {
    let report = v1::WorkloadReport {
        id: workload_id("vibration-watch/detector"),
        app_generation: 4,
        epoch: 2,
        generation: 9,
        state: WorkloadState::CrashLoop,
        reason: "exit 3".into(),
        attempt: 6,
        pid: 4711,
        adopted: true,
        returned: false,
    };
    let refused = Body::Refused {
        code: "old-generation".into(),
        detail: "older".into(),
        epoch: 2,
        generation: 8,
    };
    vec![
        (
            "twin",
            Body::Twin {
                epoch: 2,
                generation: 9,
                digest: digest("twin"),
                verified_ms: 1_790_000_000_123,
                committed_ms: 1_790_000_000_125,
            },
        ),
        ("refused/0", refused),
        ("w/vibration-watch/detector", Body::Workload(report)),
        (
            "w/vibration-watch/gone",
            Body::Gone {
                id: workload_id("vibration-watch/gone"),
            },
        ),
        (
            "relayed/plc-2",
            Body::Relayed {
                node: node("plc-2"),
                epoch: 2,
                generation: 9,
            },
        ),
        (
            "link/plc-2",
            Body::Link {
                child: node("plc-2"),
                up: false,
                reason: "timed out".into(),
            },
        ),
        (
            "alarm/disk",
            Body::Alarm(v1::Alarm {
                code: "disk".into(),
                detail: "full".into(),
            }),
        ),
        ("alarm/over", Body::Over),
        ("later", Body::Unknown),
    ]
}

fn report() -> v1::Report {
    let entries: Vec<v1::Entry> = (41..)
        .zip(bodies())
        .map(|(seq, (key, body))| v1::Entry {
            seq,
            key: key.into(),
            at_ms: 1_790_000_000_000 + seq,
            body,
        })
        .collect();
    let all_keys = Some(entries.iter().map(|e| e.key.clone()).collect());
    v1::Report {
        v: 1,
        incarnation: 3,
        from: 0,
        to: 49,
        entries,
        all_keys,
    }
}

fn relay() -> v1::Relay {
    let item = v1::RelayItem {
        kind: "report".into(),
        body: ByteBuf::from(vec![0xd2, 0x84, 0x00]),
    };
    v1::Relay {
        v: 1,
        incarnation: 3,
        from: 10,
        to: 11,
        items: vec![item],
    }
}

fn ack() -> v1::Ack {
    v1::Ack {
        v: 1,
        stream: v1::Stream::Relay,
        incarnation: 3,
        seq: 49,
        hello: Some("boot-7".into()),
        away_s: 0,
    }
}

fn chunk_request() -> v1::ChunkRequest {
    v1::ChunkRequest {
        v: 1,
        digest: digest("artifact"),
        offset: 262_144,
        length: 65_536,
        base: Some(digest("old")),
    }
}

fn chunk() -> v1::Chunk {
    v1::Chunk {
        v: 1,
        digest: digest("artifact"),
        offset: 7,
        total: 10,
        data: vec![1, 2, 255],
        missing: None,
    }
}

fn command() -> v1::Command {
    let op = v1::Operation::Logs {
        workload: workload_id("vibration-watch/detector"),
        lines: 100,
    };
    v1::Command { v: 1, id: u64::MAX, op }
}

fn reply() -> v1::Reply {
    v1::Reply {
        v: 1,
        id: u64::MAX,
        ok: true,
        text: "line 1\nline 2 \u{e4}".into(),
    }
}

fn twin() -> v1::Twin {
    let mut w = support::workload("vibration-watch/detector", "artifact");
    w.files = vec![v1::InputFile {
        path: "/etc/model.bin".into(),
        artifact: v1::Artifact {
            digest: digest("model"),
            size: 70_000,
        },
    }];
    w.args = vec!["--fast".into()];
    w.env = BTreeMap::from([("RATE".into(), "100".into())]);
    w.wall_seconds = Some(3600);
    w.grants = v1::Grants {
        clocks: true,
        random: true,
        network: vec!["10.0.0.1:502".into()],
        ..v1::Grants::default()
    };
    w.settings = "{\"fuel\":1}".into();
    v1::Twin {
        v: 1,
        node: node(NODE),
        epoch: 2,
        generation: 9,
        workloads: vec![w],
        secrets: Vec::new(),
        system: None,
    }
}

/// A twin that asks for an operating system.
fn system_twin() -> v1::Twin {
    let window = v1::Schedule {
        cron: "0 2 * * SUN".into(),
        zone: "UTC".into(),
        window_seconds: Some(7200),
        late_seconds: 0,
    };
    let system = v1::System {
        name: Name::new("plc-os").unwrap(),
        generation: 4,
        bundle: v1::Artifact {
            digest: digest("bundle"),
            size: 70_000_000,
        },
        header: digest("header"),
        version: "2.0.0".into(),
        attempt: 2,
        tries: 3,
        downgrade: true,
        window: Some(window),
        health: v1::SystemHealth {
            within_s: 600,
            workloads: vec![workload_id("vibration-watch/detector")],
            parent: true,
        },
    };
    v1::Twin {
        system: Some(Box::new(system)),
        ..twin()
    }
}

#[test]
fn what_is_said_of_a_system_keeps_its_bytes() {
    let said = Body::System(v1::SystemReport {
        state: v1::SystemState::RolledBack,
        reason: "workload app/w is failed".into(),
        bundle: Some(digest("bundle")),
        attempt: 2,
        wanted: "2.0.0".into(),
        version: "1.0.0".into(),
        slot: "a".into(),
        compatible: "plc-x86".into(),
        percent: 40,
    });
    let file = assert_golden("body-system.cbor", &encode(&said).unwrap());
    assert_eq!(decode::<Body>(&file).unwrap(), said);
}

/// Runs the same check for every message of version 1.
macro_rules! for_every_message {
    ($check:ident) => {
        $check("hello", Kind::Hello, &hello());
        $check("report", Kind::Report, &report());
        $check("relay", Kind::Relay, &relay());
        $check("ack", Kind::Ack, &ack());
        $check("chunk-request", Kind::ChunkRequest, &chunk_request());
        $check("chunk", Kind::Chunk, &chunk());
        $check("command", Kind::Command, &command());
        $check("reply", Kind::Reply, &reply());
        $check("twin", Kind::Twin, &twin());
        $check("twin-system", Kind::Twin, &system_twin());
    };
}

trait Wire: Serialize + DeserializeOwned + v1::Versioned + PartialEq + Debug {}
impl<T: Serialize + DeserializeOwned + v1::Versioned + PartialEq + Debug> Wire for T {}

#[test]
fn every_payload_keeps_its_bytes() {
    fn check<T: Wire>(name: &str, _: Kind, value: &T) {
        let file = assert_golden(&format!("{name}.cbor"), &encode(value).unwrap());
        assert_eq!(decode::<T>(&file).unwrap(), *value, "{name}");
    }
    for_every_message!(check);
}

/// Who signs a message of this kind, and for whom.
fn parties(kind: Kind) -> (SoftKey, NodeId, NodeId) {
    match kind {
        Kind::Twin | Kind::Command => (support::hub_key(), node(support::HUB), node(NODE)),
        Kind::Ack | Kind::Chunk => (support::soft(11), node(GATEWAY), node(NODE)),
        Kind::Relay => (support::soft(11), node(GATEWAY), node(support::HUB)),
        _ => (support::soft(10), node(NODE), node("hub")),
    }
}

#[test]
fn every_signed_message_keeps_its_bytes() {
    fn check<T: Wire>(name: &str, kind: Kind, value: &T) {
        let (key, iss, aud) = parties(kind);
        let mut claims = claims(iss.as_str(), aud.as_str());
        claims.exp = (kind == Kind::Command).then_some(EPOCH_S + 60);
        let chain = if kind == Kind::Hello {
            vec![certificates().1]
        } else {
            Vec::new()
        };
        let file = assert_golden(
            &format!("{name}.cose"),
            &seal(kind, &claims, value, &chain, &key).unwrap(),
        );

        let untrusted = Untrusted::read(&file).unwrap();
        assert_eq!(
            (&untrusted.claims, untrusted.kid, &untrusted.x5chain),
            (&claims, key.public_key().id(), &chain)
        );
        let verified = untrusted
            .verify(kind, key.public_key())
            .unwrap()
            .meant_for(&aud, EPOCH_S)
            .unwrap();
        let verified = verified.decode::<T>().unwrap();
        assert_eq!(verified.digest(), Digest::of(&encode(value).unwrap()));
        assert_eq!(verified.bytes(), file);
        assert_eq!(verified.into_value(), *value, "{name}");
    }
    for_every_message!(check);
}

#[test]
fn the_trust_bundle_keeps_its_bytes_and_opens_the_rest() {
    let (ca, leaf) = certificates();
    let contents = support::contents(ca);
    let file = assert_golden(
        "trust-bundle.cose",
        &bundle::sign(&contents, &[&support::root_key()]).unwrap(),
    );
    let trust = TrustBundle::flashed(&file).unwrap();
    assert_eq!(*trust.contents(), contents);

    let signed = golden("twin.cose", &support::sign_twin(&twin()));
    let opened = VerifiedTwin::open(&signed, &trust, EPOCH_S).unwrap();
    assert_eq!(*opened.twin(), twin());
    let introduced = certificate::verify(std::slice::from_ref(&leaf), &trust.authorities(), EPOCH_S).unwrap();
    assert_eq!(introduced.node, node(NODE));
    assert_eq!(introduced.site, Some(hello().site));
}

fn to_value(bytes: &[u8]) -> Value {
    coset::cbor::from_reader(bytes).unwrap()
}

fn to_bytes(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    coset::cbor::into_writer(value, &mut bytes).unwrap();
    bytes
}

/// Puts fields of a later version into every structure. `labels` and `env` are free maps, not structures.
fn grow(value: &mut Value) {
    match value {
        Value::Map(map) => {
            for (key, inner) in map.iter_mut() {
                if !matches!(key.as_text(), Some("labels" | "env")) {
                    grow(inner);
                }
            }
            map.insert(
                0,
                (
                    Value::from("aaa"),
                    Value::Array(vec![Value::from(1), Value::Bytes(vec![7])]),
                ),
            );
            map.push((
                Value::from("zzz"),
                Value::Map(vec![(Value::from("later"), Value::Null)]),
            ));
        }
        Value::Array(items) => items.iter_mut().for_each(grow),
        _ => {}
    }
}

#[test]
fn unknown_fields_are_ignored_in_every_structure() {
    fn check<T: Wire>(name: &str, _: Kind, value: &T) {
        let mut grown = to_value(&encode(value).unwrap());
        grow(&mut grown);
        assert_eq!(decode::<T>(&to_bytes(&grown)).unwrap(), *value, "{name}");
    }
    for_every_message!(check);
    check("trust-bundle", Kind::Trust, &support::contents(vec![1]));
}

fn map(fields: &[(&str, Value)]) -> Value {
    Value::Map(fields.iter().map(|(k, v)| (Value::from(*k), v.clone())).collect())
}

#[test]
fn words_of_a_later_version_become_unknown() {
    let later = map(&[
        ("t", "later".into()),
        ("digest", Value::Bytes(vec![0; 32])),
        ("n", 1.into()),
    ]);
    assert_eq!(decode::<Body>(&to_bytes(&later)).unwrap(), Body::Unknown);
    let last = map(&[
        ("digest", Value::Bytes(vec![0; 32])),
        ("n", 1.into()),
        ("t", "later".into()),
    ]);
    assert_eq!(
        decode::<Body>(&to_bytes(&last)).unwrap(),
        Body::Unknown,
        "the tag need not be first"
    );
    assert_eq!(
        decode::<v1::Operation>(&to_bytes(&later)).unwrap(),
        v1::Operation::Unknown
    );
    assert_eq!(
        decode::<WorkloadState>(&to_bytes(&"later".into())).unwrap(),
        WorkloadState::Unknown
    );
    assert_eq!(decode::<Role>(&to_bytes(&"later".into())).unwrap(), Role::Unknown);

    // In its place in a report, between entries that are understood.
    let mut value = to_value(&encode(&report()).unwrap());
    let entries = value
        .as_map_mut()
        .unwrap()
        .iter_mut()
        .find(|(k, _)| k.as_text() == Some("e"))
        .unwrap();
    let entry = &mut entries.1.as_array_mut().unwrap()[1];
    let body = entry
        .as_map_mut()
        .unwrap()
        .iter_mut()
        .find(|(k, _)| k.as_text() == Some("b"))
        .unwrap();
    body.1 = later;
    let mut expected = report();
    expected.entries[1].body = Body::Unknown;
    assert_eq!(decode::<v1::Report>(&to_bytes(&value)).unwrap(), expected);
}

#[test]
fn another_version_of_the_twin_is_refused() {
    let later = v1::Twin { v: 2, ..twin() };
    assert_eq!(check(&later, &later.node), Err(TwinError::UnknownVersion(2)));
    assert_eq!(
        check(&v1::Twin { v: 0, ..twin() }, &later.node),
        Err(TwinError::UnknownVersion(0))
    );
    let opened = VerifiedTwin::open(&support::sign_twin(&later), &support::trust(), EPOCH_S);
    assert_eq!(opened, Err(TwinError::UnknownVersion(2)));
    assert_eq!(opened.unwrap_err().code(), "unknown-version");
}

/// Bytes inside an internally tagged enum pass through serde's buffer, where they once became something else.
#[test]
fn every_body_survives_a_round_trip() {
    for (key, body) in bodies() {
        let bytes = encode(&body).unwrap();
        assert_eq!(decode::<Body>(&bytes).unwrap(), body, "{key}");
    }
    let Body::Twin { digest: d, .. } = bodies().remove(0).1 else {
        panic!("the first is a twin")
    };
    let bytes = encode(&bodies()[0].1).unwrap();
    assert!(
        bytes.windows(34).any(|w| w[..2] == [0x58, 32] && w[2..] == d.0),
        "32 bytes, not text"
    );
}
