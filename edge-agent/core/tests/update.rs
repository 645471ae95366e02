//! Health, and updates that go wrong: what runs well is never lost to what does not.

#![allow(clippy::unwrap_used)]

mod rig;

use cnova_agent_core::workload::GOOD_AFTER_MS;
use cnova_agent_core::{Event, Observed, ObservedState, RuntimeEvent};
use cnova_shared::ids::Digest;
use cnova_shared::wire::v1::{self, OnBadUpdate, WorkloadState};
use rig::support::{workload, workload_id};
use rig::*;

/// A minute in which a new version must become healthy.
const WITHIN_MS: u64 = v1::HEALTHY_WITHIN_MS;

fn healthy(rig: &mut Rig, attempt: u32) -> Vec<String> {
    health(rig, attempt, true, "")
}

fn health(rig: &mut Rig, attempt: u32, healthy: bool, detail: &str) -> Vec<String> {
    rig.runtime(
        attempt,
        RuntimeEvent::Health {
            healthy,
            detail: detail.into(),
        },
    )
}

/// Version `one` has proved good, version `two` was started after it.
fn updated(change: impl Fn(&mut v1::Workload)) -> Rig {
    let mut rig = Rig::welcomed(&["one", "two", "three"]);
    rig.twin(1, &[a("one")]);
    rig.started(1);
    healthy(&mut rig, 1);
    rig.wait(GOOD_AFTER_MS);
    let row = &rig.stored.instances[0];
    assert_eq!(
        row.good.as_ref().unwrap().workload.artifact.digest,
        Digest::of(b"one"),
        "it is on disk"
    );
    let mut two = a("two");
    change(&mut two);
    assert_eq!(stopped_or_started(&rig.twin_with(2, &[two])), ["stop app/a#1 2000"]);
    assert_eq!(
        stopped_or_started(&rig.exited(1, true, "stopped")),
        ["start app/a#2 of 1.2"]
    );
    rig.started(2);
    rig
}

#[test]
fn a_version_that_never_gets_well_makes_room_for_the_one_before() {
    let mut rig = updated(|_| {});
    health(&mut rig, 2, false, "port 80 is closed");
    assert!(rig.report_of("app/a").reason.contains("unhealthy: port 80 is closed"));
    assert!(stopped_or_started(&rig.wait(WITHIN_MS - 1)).is_empty());
    assert_eq!(stopped_or_started(&rig.wait(1)), ["stop app/a#2 2000"]);
    let actions = rig.exited(2, true, "stopped");
    assert_eq!(
        stopped_or_started(&actions),
        ["start app/a#3 of 1.1"],
        "as the twin before asked for it"
    );
    rig.started(3);
    healthy(&mut rig, 3);
    let report = rig.report_of("app/a");
    assert_eq!(
        report.reason,
        "the new version did not become healthy (not healthy within 60 s: port 80 is closed); the one before runs again"
    );
    assert!(report.returned);
    assert_eq!(
        (report.state, report.app_generation),
        (WorkloadState::Running, 0),
        "it does not claim the new one"
    );
    rig.wait(3_600_000);
    assert_eq!(rig.report_of("app/a").attempt, 3, "it is not tried again by itself");

    // Neither does a restart of the agent try it again, and the next version gets its chance.
    let one = cnova_agent_core::workload::spec_digest(&a("one"));
    let found = Observed {
        id: workload_id("app/a"),
        attempt: 3,
        spec: one,
        state: ObservedState::Alive { pid: 77 },
    };
    let (mut rig, actions) = Rig::boot(rig.stored, &["one", "two", "three"], vec![found]);
    assert!(stopped_or_started(&actions).is_empty(), "{actions:?}");
    assert!(rig.report_of("app/a").returned);
    assert_eq!(
        stopped_or_started(&rig.twin_with(3, &[a("three")])),
        ["stop app/a#3 2000"]
    );
    assert_eq!(
        stopped_or_started(&rig.exited(3, true, "stopped")),
        ["start app/a#4 of 1.3"]
    );
    rig.started(4);
    healthy(&mut rig, 4);
    rig.wait(GOOD_AFTER_MS);
    let report = rig.report_of("app/a");
    assert_eq!((report.returned, report.reason.as_str()), (false, ""));
    assert_eq!(rig.stored.instances[0].bad, None);
}

#[test]
fn a_version_that_keeps_failing_makes_room_too_and_its_artifacts_were_kept() {
    let mut rig = updated(|_| {});
    assert!(rig.stored.instances[0].good.is_some());
    rig.exited(2, false, "exit 1");
    rig.wait(1000);
    rig.started(3);
    rig.exited(3, false, "exit 1");
    rig.wait(2000);
    rig.started(4);
    let actions = rig.exited(4, false, "exit 1");
    assert_eq!(
        stopped_or_started(&actions),
        ["start app/a#5 of 1.1"],
        "three failures were enough"
    );
    rig.started(5);
    assert!(
        rig.report_of("app/a").reason.contains("(exit 1)"),
        "{}",
        rig.report_of("app/a").reason
    );
}

#[test]
fn a_version_that_has_no_room_makes_room_for_the_one_that_had() {
    let mut rig = Rig::welcomed(&["one", "two"]);
    rig.twin(1, &[a("one")]);
    rig.started(1);
    healthy(&mut rig, 1);
    rig.wait(GOOD_AFTER_MS);
    let mut two = a("two");
    two.memory_bytes = 1 << 40;
    rig.twin_with(2, &[two]);
    rig.exited(1, true, "stopped");
    assert!(
        rig.report_of("app/a").reason.starts_with("memory: asks"),
        "{}",
        rig.report_of("app/a").reason
    );
    let actions = rig.wait(WITHIN_MS);
    assert_eq!(stopped_or_started(&actions), ["start app/a#2 of 1.1"]);
}

#[test]
fn a_bad_version_stays_where_the_manifest_says_so_and_where_there_is_none_before() {
    let mut rig = updated(|w| w.on_bad_update = OnBadUpdate::Stay);
    assert_eq!(stopped_or_started(&rig.wait(WITHIN_MS)), ["stop app/a#2 2000"]);
    assert!(stopped_or_started(&rig.exited(2, true, "stopped")).is_empty());
    assert_eq!(rig.report_of("app/a").state, WorkloadState::Failed);
    assert_eq!(
        stopped_or_started(&rig.wait(1000)),
        ["start app/a#3 of 1.2"],
        "its restart policy goes on"
    );

    let mut rig = Rig::welcomed(&["one"]);
    rig.twin(1, &[a("one")]);
    rig.started(1);
    assert_eq!(stopped_or_started(&rig.wait(WITHIN_MS)), ["stop app/a#1 2000"]);
    rig.exited(1, true, "stopped");
    assert_eq!(
        rig.report_of("app/a").reason,
        "not healthy within 60 s: it did not answer"
    );
    assert_eq!(stopped_or_started(&rig.wait(1000)), ["start app/a#2 of 1.1"]);
}

#[test]
fn what_was_well_and_is_not_any_more_is_started_again() {
    let mut rig = Rig::welcomed(&["one"]);
    rig.twin(1, &[a("one")]);
    rig.started(1);
    healthy(&mut rig, 1);
    health(&mut rig, 1, false, "stuck");
    health(&mut rig, 1, false, "stuck");
    healthy(&mut rig, 1);
    for _ in 0..2 {
        assert!(stopped_or_started(&health(&mut rig, 1, false, "stuck")).is_empty());
    }
    assert_eq!(
        stopped_or_started(&health(&mut rig, 1, false, "stuck")),
        ["stop app/a#1 2000"]
    );
    rig.exited(1, false, "stopped");
    let report = rig.report_of("app/a");
    assert_eq!(
        (report.state, report.reason.as_str()),
        (WorkloadState::Failed, "unhealthy 3 times in a row: stuck")
    );

    let mut patient = a("one");
    patient.health.failures = 0;
    let mut rig = Rig::welcomed(&["one"]);
    rig.twin(1, &[patient]);
    rig.started(1);
    healthy(&mut rig, 1);
    for _ in 0..9 {
        assert!(
            stopped_or_started(&health(&mut rig, 1, false, "stuck")).is_empty(),
            "it only reports"
        );
    }
}

#[test]
fn an_answer_that_comes_before_the_twin_counts() {
    let one = cnova_agent_core::workload::spec_digest(&a("one"));
    let found = Observed {
        id: workload_id("app/a"),
        attempt: 1,
        spec: one,
        state: ObservedState::Alive { pid: 77 },
    };
    let (mut rig, _) = Rig::boot(cnova_agent_core::ledger::Stored::default(), &["one"], vec![found]);
    healthy(&mut rig, 1);
    rig.wait(1000);
    rig.twin(1, &[a("one")]);
    assert!(stopped_or_started(&rig.wait(WITHIN_MS)).is_empty());
    assert_eq!(rig.report_of("app/a").state, WorkloadState::Running);
}

#[test]
fn an_update_of_one_workload_does_not_touch_another() {
    let mut rig = Rig::welcomed(&["one", "two"]);
    let other = workload("app/b", "one");
    rig.twin(1, &[a("one"), other.clone()]);
    rig.started(1);
    let actions = rig.twin_with(2, &[a("two"), other]);
    assert_eq!(stopped_or_started(&actions), ["stop app/a#1 2000"]);
}

#[test]
fn a_job_that_fails_is_tried_again_and_one_that_a_power_cut_ended_too() {
    let job = || {
        let mut w = a("one");
        w.schedule = Some(v1::Schedule {
            cron: "* * * * *".into(),
            zone: "UTC".into(),
            window_seconds: None,
            late_seconds: 0,
        });
        w
    };
    let mut rig = Rig::welcomed(&["one"]);
    assert!(
        stopped_or_started(&rig.twin(1, &[job()])).is_empty(),
        "its time is to come"
    );
    assert!(rig.report_of("app/a").reason.starts_with("schedule: it runs next at "));
    assert_eq!(stopped_or_started(&rig.wait(60_000)), ["start app/a#1 of 1.1"]);
    rig.started(1);
    rig.exited(1, false, "exit 1");
    assert_eq!(stopped_or_started(&rig.wait(1000)), ["start app/a#2 of 1.1"]);
    rig.started(2);

    let cut = Observed {
        id: workload_id("app/a"),
        attempt: 2,
        spec: Digest([0; 32]),
        state: ObservedState::MachineRestarted,
    };
    let (mut rig, actions) = Rig::boot(rig.stored, &["one"], vec![cut]);
    assert_eq!(stopped_or_started(&actions), ["start app/a#3 of 1.1"]);
    rig.started(3);
    rig.exited(3, true, "exit 0");
    let report = rig.report_of("app/a");
    assert_eq!(
        report.state,
        WorkloadState::Finished,
        "whatever its restart policy: it waits for its time"
    );
    assert!(
        report.reason.starts_with("exit 0; schedule: it runs next at "),
        "{}",
        report.reason
    );
    assert_eq!(stopped_or_started(&rig.wait(120_000)), ["start app/a#4 of 1.1"]);

    // A firing that a clock in the future noted does not keep it from running when the clock is right again.
    rig.started(4);
    rig.exited(4, true, "exit 0");
    let mut stored = rig.stored;
    stored.instances[0].fired_s += 70 * 365 * 86_400;
    let (mut rig, actions) = Rig::boot(stored, &["one"], Vec::new());
    assert!(stopped_or_started(&actions).is_empty());
    assert_eq!(stopped_or_started(&rig.wait(60_000)), ["start app/a#5 of 1.1"]);
}

#[test]
fn an_accelerator_that_is_unplugged_ends_who_needs_it_and_the_hub_hears_of_it() {
    let mut rig = Rig::welcomed(&["one"]);
    let npu = v1::Accelerator {
        id: "hailo0".into(),
        class: "npu".into(),
        kind: "hailo-8".into(),
    };
    let mut w = a("one");
    w.accelerators = vec![v1::AcceleratorClaim {
        kind: "npu".into(),
        optional: false,
    }];
    rig.twin(1, &[w]);
    assert_eq!(
        rig.report_of("app/a").reason,
        "accelerator: this node has no npu (it has: none)"
    );
    let there = Event::Inventory {
        accelerators: vec![npu],
        devices: Vec::new(),
    };
    let mut actions = rig.take(there);
    assert_eq!(stopped_or_started(&actions), ["start app/a#1 of 1.1"]);
    actions.extend(rig.wait(10_000));
    assert!(actions.iter().any(|a| a.starts_with("send hello")), "{actions:?}");
    assert_eq!(rig.stored.instances[0].leases, ["hailo0"]);
    rig.started(1);
    let gone = Event::Inventory {
        accelerators: Vec::new(),
        devices: Vec::new(),
    };
    assert_eq!(stopped_or_started(&rig.take(gone)), ["stop app/a#1 2000"]);
}
