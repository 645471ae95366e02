//! The database: the same as the core's image in memory, whatever is done to it.

// Helpers are not recognised as tests.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cnova_hub::store::audit::{self, Draft};
use cnova_hub::store::history::{HISTORY_PER_NODE, HISTORY_SLACK};
use cnova_hub::store::{BACKUPS_KEPT, Store, StoreError, back_up, list_backups};
use cnova_hub_core::placement::CurrentPlacement;
use cnova_hub_core::secrets::StoredSecret;
use cnova_hub_core::{CompileKey, Op, Stored, StoredApp, StoredEntry};
use cnova_shared::hop::Position;
use cnova_shared::ids::{Digest, Name, NodeId, WorkloadId};
use cnova_shared::tree::TreeOp;
use cnova_shared::trust::TrustOp;
use cnova_shared::wire::v1::{self, Body, Stream};
use cnova_store::OnCorrupt;
use proptest::prelude::*;

const MAX_BYTES: u64 = 64 << 20;

fn open(folder: &Path) -> Result<Store, StoreError> {
    Store::open(
        &folder.join("hub.db"),
        &folder.join("backup"),
        OnCorrupt::Refuse,
        MAX_BYTES,
    )
}

fn node() -> impl Strategy<Value = NodeId> {
    (0..3_u8).prop_map(|n| NodeId::new(format!("plc-{n}")).unwrap())
}

fn name() -> impl Strategy<Value = Name> {
    (0..3_u8).prop_map(|n| Name::new(format!("app-{n}")).unwrap())
}

fn digest() -> impl Strategy<Value = Digest> {
    (0..4_u8).prop_map(|n| Digest::of(&[n]))
}

fn key() -> impl Strategy<Value = String> {
    (0..3_u8).prop_map(|n| format!("w/app/{n}"))
}

fn body() -> impl Strategy<Value = Body> {
    let id = || WorkloadId {
        application: Name::new("app").unwrap(),
        name: Name::new("one").unwrap(),
    };
    prop_oneof![
        (any::<u64>(), any::<u64>(), digest()).prop_map(|(epoch, generation, digest)| Body::Twin {
            epoch,
            generation,
            digest,
            verified_ms: 1,
            committed_ms: 2
        }),
        any::<u32>().prop_map(move |attempt| Body::Workload(v1::WorkloadReport {
            id: id(),
            app_generation: 1,
            epoch: 1,
            generation: 1,
            state: v1::WorkloadState::CrashLoop,
            reason: "trap: \"quoted\" \u{1F4A5}".into(),
            attempt,
            pid: 7,
            adopted: true,
            returned: false,
        })),
        Just(Body::Gone { id: id() }),
        Just(Body::Unknown),
    ]
}

fn tree_op() -> impl Strategy<Value = TreeOp> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..40);
    let stream = prop_oneof![Just(Stream::Report), Just(Stream::Relay)];
    prop_oneof![
        (node(), node(), bytes.clone()).prop_map(|(node, via, hello)| TreeOp::PutDescendant { node, via, hello }),
        (node(), bytes).prop_map(|(node, bytes)| TreeOp::PutTwin { node, bytes }),
        (node(), any::<u64>(), any::<u64>(), proptest::option::of(digest())).prop_map(
            |(node, epoch, generation, digest)| TreeOp::Reported {
                node,
                epoch,
                generation,
                digest
            }
        ),
        (node(), stream, any::<u64>(), any::<u64>()).prop_map(|(child, stream, incarnation, seq)| {
            TreeOp::Received {
                child,
                stream,
                position: Position { incarnation, seq },
            }
        }),
    ]
}

fn app() -> impl Strategy<Value = StoredApp> {
    (any::<u64>(), any::<String>(), any::<u64>(), node()).prop_map(|(generation, manifest, admitted_s, node)| {
        let workloads = BTreeMap::from([("one".to_owned(), BTreeSet::from([node.to_string()]))]);
        StoredApp {
            generation,
            manifest,
            user: "ops".into(),
            admitted_s,
            placement: CurrentPlacement { workloads },
        }
    })
}

fn secret() -> impl Strategy<Value = StoredSecret> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    (any::<u64>(), bytes(), bytes(), any::<bool>(), any::<u64>()).prop_map(|(version, locked, tag, is_text, set_ms)| {
        StoredSecret {
            version,
            locked,
            tag,
            is_text,
            allow: ["app", "app/one"].map(|g| g.parse().unwrap()).into(),
            by: "ann".into(),
            set_ms,
        }
    })
fn trust_op() -> impl Strategy<Value = TrustOp> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..50);
    let version = prop_oneof![0..4_u64, Just(u64::MAX)];
    prop_oneof![
        (version, bytes()).prop_map(|(version, bytes)| TrustOp::PutBundle { version, bytes }),
        bytes().prop_map(TrustOp::PutRevocations),
        (node(), bytes()).prop_map(|(gateway, bytes)| TrustOp::PutDelegation { gateway, bytes }),
        bytes().prop_map(|bytes| TrustOp::PutDocument {
            kind: v1::TrustItemKind::BootPolicy,
            bytes
        }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => trust_op().prop_map(Op::Trust),
        3 => tree_op().prop_map(Op::Tree),
        1 => any::<u64>().prop_map(Op::Epoch),
        2 => (name(), app()).prop_map(|(name, app)| Op::PutApp { name, app }),
        1 => (name(), any::<u64>()).prop_map(|(name, generation)| Op::DeleteApp { name, generation }),
        1 => (digest(), any::<u64>()).prop_map(|(digest, size)| Op::PutArtifact { digest, size }),
        1 => (digest(), digest(), any::<u64>()).prop_map(|(source, digest, size)| Op::PutCompiled {
            key: CompileKey { source, target: "t".into(), engine: "e".into() },
            artifact: v1::Artifact { digest, size },
        }),
        4 => (node(), any::<u64>(), 0..9_u64, key(), body()).prop_map(|(node, received_ms, seq, key, body)| Op::PutEntry {
            node,
            stored: StoredEntry { incarnation: 3, received_ms, entry: v1::Entry { seq, key, at_ms: u64::MAX, body } },
        }),
        1 => (node(), any::<u64>()).prop_map(|(node, retired)| Op::ClearEntries { node, retired }),
        1 => (node(), key()).prop_map(|(node, key)| Op::VoidEntry { node, key }),
        2 => (name(), secret()).prop_map(|(name, secret)| Op::PutSecret { name, secret }),
        1 => (name(), any::<u64>()).prop_map(|(name, version)| Op::DropSecret { name, version }),
    ]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_database_is_the_image_in_memory(
        transactions in proptest::collection::vec(proptest::collection::vec(op(), 1..12), 1..8),
    ) {
        let folder = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            let store = open(folder.path()).unwrap();
            let mut image = Stored::default();
            for ops in transactions {
                image.apply(&ops);
                store.commit(ops, Vec::new()).await.unwrap();
            }
            // The image keeps an empty map where the database has no row.
            image.entries.retain(|_, entries| !entries.is_empty());
            assert_eq!(store.load().await.unwrap(), image);
            drop(store);
            assert_eq!(open(folder.path()).unwrap().load().await.unwrap(), image);
        });
    }
}

fn entry(seq: u64) -> Op {
    let entry = v1::Entry {
        seq,
        key: "alarm/x".into(),
        at_ms: seq,
        body: Body::Unknown,
    };
    Op::PutEntry {
        node: NodeId::new("plc-1").unwrap(),
        stored: StoredEntry {
            incarnation: 1,
            received_ms: 5,
            entry,
        },
    }
}

#[test]
fn history_is_kept_once_newest_first_and_within_its_bound() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = open(folder.path()).unwrap();
        let total = HISTORY_PER_NODE + 3 * HISTORY_SLACK;
        for from in (1..=total).step_by(250) {
            let ops: Vec<Op> = (from..from + 250).map(entry).collect();
            store.commit(ops, Vec::new()).await.unwrap();
        }
        store.commit(vec![entry(total)], Vec::new()).await.unwrap();
        let all = store.history(NodeId::new("plc-1").unwrap(), u32::MAX).await.unwrap();
        let kept = all.len() as u64;
        assert!(
            (HISTORY_PER_NODE..=HISTORY_PER_NODE + HISTORY_SLACK).contains(&kept),
            "{kept}"
        );
        let seqs: Vec<u64> = all.iter().map(|e| e.seq).collect();
        assert!(
            seqs.windows(2).all(|w| w[0] == w[1] + 1) && seqs[0] == total,
            "newest first, none twice"
        );
    });
}

fn draft(n: u64) -> Draft {
    Draft {
        at_ms: n,
        user: "ops".into(),
        action: "apply",
        object: format!("app-{n}"),
        outcome: "done",
        detail: String::new(),
    }
}

#[test]
fn the_audit_chain_shows_every_change() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = open(folder.path()).unwrap();
        for n in 1..=5 {
            store.commit(Vec::new(), vec![draft(n)]).await.unwrap();
        }
        assert_eq!(store.verify_audit().await.unwrap(), None);
        let entries = store.audit(2).await.unwrap();
        assert_eq!(entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [5, 4]);
    });
    let path = folder.path().join("hub.db");
    for (forgery, broken_at) in [
        ("UPDATE audit SET user = 'somebody' WHERE seq = 3", 3),
        ("DELETE FROM audit WHERE seq = 2", 2),
        ("UPDATE audit SET seq = seq + 10 WHERE seq = 5", 5),
        ("UPDATE audit SET action = 'applya', object = 'pp-4' WHERE seq = 4", 4),
    ] {
        let db = rusqlite::Connection::open(&path).unwrap();
        assert!(db.execute(forgery, []).is_err(), "the triggers stand in the way");
        let forged = folder.path().join("forged.db");
        let _ = std::fs::remove_file(&forged);
        db.execute("VACUUM INTO ?1", [forged.to_str().unwrap()]).unwrap();
        let db = rusqlite::Connection::open(&forged).unwrap();
        db.execute_batch("DROP TRIGGER audit_is_never_changed; DROP TRIGGER audit_is_never_deleted")
            .unwrap();
        assert_eq!(db.execute(forgery, []).unwrap(), 1);
        assert_eq!(audit::verify(&db).unwrap(), Some(broken_at), "{forgery}");
    }
}

#[test]
fn backups_can_be_opened_and_only_the_newest_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let copies = folder.path().join("backup");
    runtime().block_on(async {
        let store = open(folder.path()).unwrap();
        for n in 1..=BACKUPS_KEPT as u64 + 2 {
            store.commit(vec![Op::Epoch(n)], Vec::new()).await.unwrap();
            back_up(store.paths().0, &copies, n).unwrap();
        }
        let kept = list_backups(&copies);
        assert_eq!(kept.len(), BACKUPS_KEPT);
        // Into a folder of its own: the store that is let go of closes its files when it comes to it.
        let fresh = tempfile::tempdir().unwrap();
        std::fs::copy(&kept[0], fresh.path().join("hub.db")).unwrap();
        let restored = open(fresh.path()).unwrap().load().await.unwrap();
        assert_eq!(restored.epoch, BACKUPS_KEPT as u64 + 2);
    });
}

#[test]
fn a_row_that_the_hub_did_not_write_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        drop(open(folder.path()).unwrap());
        let db = rusqlite::Connection::open(folder.path().join("hub.db")).unwrap();
        db.execute("INSERT INTO twin (node, bytes) VALUES ('NOT A NODE', x'00')", [])
            .unwrap();
        drop(db);
        let error = open(folder.path()).unwrap().load().await.unwrap_err().to_string();
        assert!(
            error.contains("table twin") && error.contains("--set-aside-corrupt-store"),
            "{error}"
        );
    });
}
