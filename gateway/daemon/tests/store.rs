//! The store in SQLite against the core's image in memory; damaged files; full disks.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use cnova_attestation::appraiser::{StatusWord, Verdict};
use cnova_gateway::store::{FILE, Store};
use cnova_gateway_core::spool::{Item, SpoolOp};
use cnova_gateway_core::{Op, Stored};
use cnova_shared::hop::Position;
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::keys::KeyId;
use cnova_shared::report::StreamOp;
use cnova_shared::tree::TreeOp;
use cnova_shared::trust::TrustOp;
use cnova_shared::wire::v1::{Alarm, Body, Entry, Stream, TrustItemKind};
use cnova_store::CallError;
use proptest::prelude::*;
use support::{Tmpfs, node};

const MAX_BYTES: u64 = 64 << 20;
const BEGAN_MS: u64 = 1_700_000_000_000;

fn any_node() -> impl Strategy<Value = NodeId> {
    (0..5u8).prop_map(|n| node(&format!("node-{n}")))
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..300)
}

fn any_position() -> impl Strategy<Value = Position> {
    (any::<u64>(), any::<u64>()).prop_map(|(incarnation, seq)| Position { incarnation, seq })
}

fn any_tree_op() -> impl Strategy<Value = TreeOp> {
    let stream = prop_oneof![Just(Stream::Report), Just(Stream::Relay)];
    prop_oneof![
        (any_node(), any_node(), any_bytes()).prop_map(|(node, via, hello)| TreeOp::PutDescendant { node, via, hello }),
        (any_node(), any_bytes()).prop_map(|(node, bytes)| TreeOp::PutTwin { node, bytes }),
        (any_node(), any::<u64>(), any::<u64>(), any::<Option<[u8; 32]>>()).prop_map(
            |(node, epoch, generation, digest)| {
                TreeOp::Reported {
                    node,
                    epoch,
                    generation,
                    digest: digest.map(Digest),
                }
            }
        ),
        (any_node(), stream, any_position()).prop_map(|(child, stream, position)| TreeOp::Received {
            child,
            stream,
            position
        }),
    ]
}

fn any_spool_op() -> impl Strategy<Value = SpoolOp> {
    let seq = prop_oneof![0..8u64, Just(u64::MAX)];
    let keys = proptest::collection::btree_set("[a-z/\"\\\\é]{0,6}", 0..4);
    prop_oneof![
        3 => (seq.clone(), any_node(), keys, any_bytes()).prop_map(|(seq, node, keys, bytes)| {
            SpoolOp::Put { seq, item: Item { node, kind: "report".into(), keys, bytes } }
        }),
        1 => seq.prop_map(SpoolOp::Delete),
        1 => any_position().prop_map(SpoolOp::Acked),
    ]
}

fn any_stream_op() -> impl Strategy<Value = StreamOp> {
    let key = "[a-c]";
    prop_oneof![
        3 => (key, any::<u64>(), any::<u64>(), ".{0,20}").prop_map(|(key, seq, at_ms, detail)| {
            StreamOp::Put(Entry { seq, key, at_ms, body: Body::Alarm(Alarm { code: "x".into(), detail }) })
        }),
        1 => key.prop_map(StreamOp::Delete),
        1 => any_position().prop_map(StreamOp::Acked),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        any_tree_op().prop_map(Op::Tree),
        any_spool_op().prop_map(Op::Spool),
        any_stream_op().prop_map(Op::Stream),
        any::<u64>().prop_map(Op::TimeFloor),
        any_trust_op().prop_map(Op::Trust),
        any_bytes().prop_map(Op::PutEar),
        any_bytes().prop_map(Op::PutDelegatedEar),
        (any::<bool>(), any_bytes()).prop_map(|(is_delegated, bytes)| Op::PutParentEar { is_delegated, bytes }),
        (any_node(), any::<bool>(), any_bytes()).prop_map(|(child, is_own, bytes)| Op::PutResult {
            child,
            is_own,
            bytes
        }),
        (any_node(), any_verdict()).prop_map(|(child, verdict)| Op::PutVerdict { child, verdict }),
    ]
}

fn any_verdict() -> impl Strategy<Value = Box<Verdict>> {
    (any::<u64>(), any::<[u8; 8]>(), any::<[u8; 32]>(), any::<bool>()).prop_map(
        |(at_s, session, pcr, boot_measured)| {
            Box::new(Verdict {
                status: StatusWord::Contraindicated,
                findings: vec!["PCR 7".into()],
                policy: "image (references 1)".into(),
                at_s,
                exp_s: at_s,
                session: KeyId(session),
                boot_measured,
                pcrs: [(7, Digest(pcr))].into(),
                loads: vec![Digest(pcr)],
                log: None,
            })
        },
    )
}

fn any_trust_op() -> impl Strategy<Value = TrustOp> {
    let version = prop_oneof![0..4u64, Just(u64::MAX)];
    prop_oneof![
        (version, any_bytes()).prop_map(|(version, bytes)| TrustOp::PutBundle { version, bytes }),
        any_bytes().prop_map(TrustOp::PutRevocations),
        (any_node(), any_bytes()).prop_map(|(gateway, bytes)| TrustOp::PutDelegation { gateway, bytes }),
        any_bytes().prop_map(|bytes| TrustOp::PutDocument {
            kind: TrustItemKind::References,
            bytes
        }),
        any_bytes().prop_map(|bytes| TrustOp::PutDocument {
            kind: TrustItemKind::BootPolicy,
            bytes
        }),
    ]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn fresh() -> Stored {
    let mut stored = Stored::default();
    let began = Position {
        incarnation: BEGAN_MS,
        seq: 0,
    };
    (stored.spool.acked, stored.stream.acked) = (began, began);
    stored
}

fn open(folder: &Path) -> (Store, Stored, Option<Alarm>) {
    let found = Store::open(folder, MAX_BYTES, BEGAN_MS).unwrap();
    (found.store, found.stored, found.alarm)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn the_store_equals_its_image_in_memory(
        commits in proptest::collection::vec(proptest::collection::vec(any_op(), 1..12), 1..8),
    ) {
        let (folder, runtime) = (tempfile::tempdir().unwrap(), runtime());
        let mut image = fresh();
        for ops in commits {
            let (store, stored, alarm) = open(folder.path());
            prop_assert_eq!((&stored, alarm), (&image, None));
            image.apply(&ops);
            runtime.block_on(store.persist(ops)).unwrap();
            prop_assert_eq!(&runtime.block_on(store.load()).unwrap(), &image);
        }
        let (_, stored, _) = open(folder.path());
        prop_assert_eq!(stored, image);
    }
}

#[test]
fn a_fresh_store_has_incarnations_that_stay() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(open(folder.path()).1, fresh());
    let later = Store::open(folder.path(), MAX_BYTES, BEGAN_MS + 5).unwrap().stored;
    assert_eq!(later, fresh(), "opened again it is the same store");
    let elsewhere = tempfile::tempdir().unwrap();
    let at_1970 = Store::open(elsewhere.path(), MAX_BYTES, 0).unwrap().stored;
    assert_eq!(
        (at_1970.spool.acked.incarnation, at_1970.stream.acked.incarnation),
        (1, 1)
    );
}

fn some_ops() -> Vec<Op> {
    let twin = |n: u8| {
        Op::Tree(TreeOp::PutTwin {
            node: node(&format!("plc-{n}")),
            bytes: vec![n; 5000],
        })
    };
    (0..40).map(twin).collect()
}

#[test]
fn a_damaged_database_is_set_aside() {
    let (folder, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let (store, _, _) = open(folder.path());
    runtime.block_on(store.persist(some_ops())).unwrap();
    // Folded into the database, so that what is damaged is read.
    drop(store);
    let path = folder.path().join(FILE);
    rusqlite::Connection::open(&path)
        .unwrap()
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle / 4096 * 4096..][..2000].fill(0xa5);
    bytes[100..200].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let (_, stored, alarm) = open(folder.path());
    assert_eq!(stored, fresh());
    let alarm = alarm.unwrap();
    assert_eq!(alarm.code, "store-set-aside");
    assert!(alarm.detail.contains(&format!("{FILE}.corrupt-1")), "{}", alarm.detail);
    assert!(folder.path().join(format!("{FILE}.corrupt-1")).exists());
}

#[test]
fn a_database_that_makes_no_sense_is_set_aside() {
    let (folder, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let (store, _, _) = open(folder.path());
    runtime.block_on(store.persist(some_ops())).unwrap();
    drop(store);
    let db = rusqlite::Connection::open(folder.path().join(FILE)).unwrap();
    db.execute("UPDATE twin SET node = 'NOT A NODE' WHERE node = 'plc-7'", [])
        .unwrap();
    drop(db);
    let (_, stored, alarm) = open(folder.path());
    assert_eq!((stored, alarm.unwrap().code.as_str()), (fresh(), "store-set-aside"));
    assert_eq!(open(folder.path()).2, None, "once");
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let error = Store::open(Path::new("/proc/cnova"), MAX_BYTES, 1)
        .unwrap_err()
        .to_string();
    assert!(error.contains("/proc/cnova/gateway.db"), "{error}");
}

#[test]
fn a_full_disk_changes_nothing_and_is_survived() {
    let Some(disk) = Tmpfs::mount("2m") else { return };
    let runtime = runtime();
    let (store, mut image, _) = open(disk.path());
    let put = |seq: u64| {
        let item = Item {
            node: node("a"),
            kind: "report".into(),
            keys: BTreeSet::new(),
            bytes: vec![7; 50_000],
        };
        vec![Op::Spool(SpoolOp::Put { seq, item }), Op::TimeFloor(seq)]
    };
    let mut seq = 0;
    let error = loop {
        match runtime.block_on(store.persist(put(seq))) {
            Ok(()) => image.apply(&put(seq)),
            Err(error) => break error,
        }
        seq += 1;
        assert!(seq < 100, "two megabytes must be full by now");
    };
    assert!(matches!(error, CallError::Full(_) | CallError::Sql(_)), "{error:?}");
    assert_eq!(
        runtime.block_on(store.load()).unwrap(),
        image,
        "all or nothing, and it can be read"
    );
    disk.grow("8m");
    image.apply(&put(seq));
    runtime.block_on(store.persist(put(seq))).unwrap();
    drop(store);
    assert_eq!(open(disk.path()).1, image);
}
