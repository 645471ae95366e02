//! The ledger on disk is the ledger in memory.

#![allow(clippy::unwrap_used)]

use cnova_agent::ledger::Ledger;
use cnova_agent_core::ledger::{InstanceRow, Op, Phase, Stored};
use cnova_shared::hop::Position;
use cnova_shared::ids::{Digest, Name, NodeId, WorkloadId};
use cnova_shared::report::StreamOp;
use cnova_shared::trust::TrustOp;
use cnova_shared::wire::v1::{Alarm, Body, Entry, TrustItemKind, WorkloadReport, WorkloadState};
use proptest::prelude::*;

fn workload() -> impl Strategy<Value = WorkloadId> {
    (0..3_u8, 0..3_u8).prop_map(|(a, n)| WorkloadId {
        application: Name::new(format!("app-{a}")).unwrap(),
        name: Name::new(format!("w{n}")).unwrap(),
    })
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        (any::<u64>(), any::<u64>(), any::<[u8; 32]>()).prop_map(|(epoch, generation, d)| Body::Twin {
            epoch,
            generation,
            digest: Digest(d),
            verified_ms: generation,
            committed_ms: 0,
        }),
        (workload(), any::<u32>(), ".{0,20}").prop_map(|(id, attempt, reason)| {
            Body::Workload(WorkloadReport {
                id,
                app_generation: 1,
                epoch: 1,
                generation: u64::from(attempt),
                state: WorkloadState::CrashLoop,
                reason,
                attempt,
                pid: attempt,
                adopted: attempt % 2 == 0,
                returned: false,
            })
        }),
        ".{0,20}".prop_map(|detail| Body::Alarm(Alarm {
            code: "x".into(),
            detail
        })),
    ]
}

fn trust_op() -> impl Strategy<Value = TrustOp> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..50);
    let version = prop_oneof![0..4_u64, Just(u64::MAX)];
    let gateway = (0..3_u8).prop_map(|n| NodeId::new(format!("gw-{n}")).unwrap());
    prop_oneof![
        (version, bytes()).prop_map(|(version, bytes)| TrustOp::PutBundle { version, bytes }),
        bytes().prop_map(TrustOp::PutRevocations),
        (gateway, bytes()).prop_map(|(gateway, bytes)| TrustOp::PutDelegation { gateway, bytes }),
        bytes().prop_map(|bytes| TrustOp::PutDocument {
            kind: TrustItemKind::References,
            bytes
        }),
        bytes().prop_map(|bytes| TrustOp::PutDocument {
            kind: TrustItemKind::BootPolicy,
            bytes
        }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let phase = prop_oneof![
        Just(Phase::Active),
        Just(Phase::Backoff),
        Just(Phase::Finished),
        Just(Phase::CrashLoop)
    ];
    let entry = (any::<u64>(), "[a-c]", any::<u64>(), body());
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200).prop_map(Op::PutTwin),
        any::<u64>().prop_map(Op::TimeFloor),
        any::<u64>().prop_map(Op::Counter),
        proptest::collection::vec(any::<u8>(), 0..200).prop_map(Op::PutEar),
        proptest::collection::vec(any::<u8>(), 0..200).prop_map(Op::PutParentEar),
        (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(of_parent, bytes)| Op::PutDelegatedEar { of_parent, bytes }),
        (any::<u64>(), any::<u64>()).prop_map(|(epoch, generation)| Op::Floor { epoch, generation }),
        trust_op().prop_map(Op::Trust),
        (workload(), any::<u32>(), any::<[u8; 32]>(), any::<u32>(), phase).prop_map(
            |(id, attempt, spec, failures, phase)| {
                Op::PutInstance(InstanceRow {
                    attempt,
                    spec: Digest(spec),
                    failures,
                    phase,
                    ok: failures % 2 == 0,
                    leases: vec![format!("npu{attempt}")],
                    fired_s: u64::from(attempt) << 32,
                    good: None,
                    bad: (failures > 3).then_some(Digest(spec)),
                    proved: (failures > 1).then_some(Digest(spec)),
                    ..InstanceRow::new(id)
                })
            }
        ),
        workload().prop_map(Op::DeleteInstance),
        entry.prop_map(|(seq, key, at_ms, body)| Op::Stream(StreamOp::Put(Entry { seq, key, at_ms, body }))),
        "[a-c]".prop_map(|key| Op::Stream(StreamOp::Delete(key))),
        (any::<u64>(), any::<u64>())
            .prop_map(|(incarnation, seq)| Op::Stream(StreamOp::Acked(Position { incarnation, seq }))),
    ]
}

/// The order of rows means nothing.
fn sorted(mut stored: Stored) -> Stored {
    stored.instances.sort_by(|a, b| a.id.cmp(&b.id));
    stored.stream.entries.sort_by(|a, b| a.key.cmp(&b.key));
    stored
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_of_changes_reads_back_as_in_memory(
        batches in proptest::collection::vec(proptest::collection::vec(op(), 1..8), 1..8),
        reopen_at in 0..8_usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.db");
        let mut image = Stored::default();
        image.stream.acked.incarnation = 77;
        let runtime = runtime();
        let (mut ledger, set_aside) = Ledger::open(&path, 77).unwrap();
        prop_assert!(set_aside.is_none());
        for (i, batch) in batches.iter().enumerate() {
            image.apply(batch);
            runtime.block_on(ledger.persist(batch.clone())).unwrap();
            if i == reopen_at {
                drop(ledger);
                // Another time of day changes nothing in a ledger that exists.
                ledger = Ledger::open(&path, 99).unwrap().0;
            }
            prop_assert_eq!(sorted(runtime.block_on(ledger.load()).unwrap()), sorted(image.clone()));
        }
    }
}

#[test]
fn rows_that_make_no_sense_set_the_ledger_aside() {
    let spoils = [
        "INSERT INTO entry (key, seq, cbor) VALUES ('x', 1, x'ff00')",
        "INSERT INTO instance VALUES ('a', 'b', 1, x'00', 0, 'active', NULL)",
        "INSERT INTO instance VALUES ('A B', 'b', 1, zeroblob(32), 0, 'active', NULL)",
        "INSERT INTO instance VALUES ('a', 'b', 1, zeroblob(32), 0, 'dancing', NULL)",
        "INSERT INTO instance VALUES ('a', 'b', -1, zeroblob(32), 0, 'active', NULL)",
        "INSERT INTO instance VALUES ('a', 'b', 1, zeroblob(32), 0, 'active', x'ff00')",
    ];
    for spoil in spoils {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.db");
        drop(Ledger::open(&path, 5).unwrap());
        rusqlite::Connection::open(&path).unwrap().execute_batch(spoil).unwrap();
        let (ledger, set_aside) = Ledger::open(&path, 6).unwrap();
        assert!(
            set_aside.is_some_and(|a| a.path.ends_with("agent.db.corrupt-1")),
            "{spoil}"
        );
        let stored = runtime().block_on(ledger.load()).unwrap();
        assert_eq!((stored.instances.len(), stored.stream.acked.incarnation), (0, 6));
    }
}

#[test]
fn nothing_of_a_failed_batch_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let (ledger, _) = Ledger::open(&dir.path().join("agent.db"), 0).unwrap();
    let too_large = Op::PutTwin(vec![0; 40 << 20]);
    let error = runtime
        .block_on(ledger.persist(vec![Op::TimeFloor(9), too_large]))
        .unwrap_err();
    assert!(matches!(error, cnova_store::CallError::Full(_)), "{error}");
    let stored = runtime.block_on(ledger.load()).unwrap();
    assert_eq!((stored.time_floor, stored.stream.acked.incarnation), (0, 1));
    runtime.block_on(ledger.persist(vec![Op::TimeFloor(9)])).unwrap();
}

/// By a version that knew more, or another form.
#[test]
fn a_system_that_cannot_be_read_is_told_from_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.db");
    let runtime = runtime();
    let (ledger, _) = Ledger::open(&path, 0).unwrap();
    let stored = runtime.block_on(ledger.load()).unwrap();
    assert!(stored.system.is_none() && !stored.system_unread);
    drop(ledger);
    let write = "INSERT INTO result (about, bytes) VALUES ('system', x'00')";
    rusqlite::Connection::open(&path).unwrap().execute_batch(write).unwrap();
    let (ledger, _) = Ledger::open(&path, 0).unwrap();
    let stored = runtime.block_on(ledger.load()).unwrap();
    assert!(stored.system.is_none() && stored.system_unread);
}
