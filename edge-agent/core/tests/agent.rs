//! Events in, exact actions out.

#![allow(clippy::unwrap_used)]

mod rig;

use cnova_agent_core::ledger::Stored;
use cnova_agent_core::workload::spec_digest;
use cnova_agent_core::{Event, Observed, ObservedState, RuntimeEvent};
use cnova_shared::envelope::seal;
use cnova_shared::ids::Digest;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::{self, Body, WorkloadState};
use rig::support::{HUB, claims, workload, workload_id};
use rig::*;

#[test]
fn a_fresh_twin_is_on_disk_before_anything_follows_from_it() {
    let mut rig = Rig::welcomed(&[]);
    assert_eq!(
        rig.twin(1, &[a("one")]),
        [
            "persist [twin, say twin, say w/app/a]",
            "accepted 1.1",
            "app/a is Fetching",
            "send want one 0+1000",
            "send report 0..2",
        ]
    );
    assert_eq!(
        rig.message(Kind::Chunk, &chunk("one")),
        ["append one 0+1000 complete true"]
    );
    let digest = Digest::of(b"one");
    assert_eq!(
        rig.take(Event::ArtifactStored(digest)),
        [
            "persist [app/a#1 Active, say w/app/a]",
            "start app/a#1 of 1.1",
            "app/a is Starting",
            "send report 2..3",
        ]
    );
    assert_eq!(
        rig.started(1),
        ["persist [say w/app/a]", "app/a is Running", "send report 3..4"]
    );
}

#[test]
fn a_twin_that_is_not_taken_changes_nothing_but_the_report() {
    let mut rig = running();
    rig.twin(5, &[a("one")]);
    let held = rig.stored.twin.clone();
    let other = rig::support::twin(ME, 6, vec![]);
    let mut changed = rig::support::sign_twin(&other);
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    let rogue = seal(Kind::Twin, &claims(HUB, ME), &other, &[], &rig::support::soft(99)).unwrap();
    let cases = [
        (
            rig::support::sign_twin(&rig::support::twin(ME, 4, vec![])),
            "old-generation",
            4,
        ),
        (
            rig::support::sign_twin(&rig::support::twin(ME, 5, vec![])),
            "same-generation",
            5,
        ),
        (
            rig::support::sign_twin(&rig::support::twin("plc-2", 6, vec![])),
            "wrong-node",
            6,
        ),
        (changed, "bad-signature", 0),
        (rogue, "unknown-key", 0),
        (b"junk".to_vec(), "malformed", 0),
        (
            rig::support::sign_twin(&v1::Twin { v: 2, ..other }),
            "unknown-version",
            0,
        ),
    ];
    for (i, (bytes, code, generation)) in cases.into_iter().enumerate() {
        let actions = rig.take(Event::Message {
            kind: Kind::Twin,
            bytes: bytes.clone(),
        });
        assert_eq!(
            actions[..2],
            [format!("persist [say refused/{i}]"), format!("refused {code}")],
            "{code}"
        );
        assert!(
            actions[2..].iter().all(|a| a.starts_with("send report")),
            "{code}: {actions:?}"
        );
        assert_eq!(rig.refusal(), (code.to_owned(), generation));
        let again = rig.take(Event::Message {
            kind: Kind::Twin,
            bytes,
        });
        assert_eq!(again, [format!("refused {code}")], "the same refusal is said once");
    }
    assert_eq!(rig.stored.twin, held);
    assert_eq!(rig.agent.version().generation, 5);
    assert_eq!(rig.report_of("app/a").state, WorkloadState::Running);
    assert_eq!(
        rig.twin(5, &[a("one")]),
        ["note"],
        "the one in force is neither taken nor refused"
    );
}

#[test]
fn a_replaced_workload_runs_until_its_successor_is_here() {
    let mut rig = running();
    let actions = rig.twin(2, &[a("two")]);
    assert_eq!(actions[1..3], ["accepted 1.2", "send want two 0+1000"]);
    assert!(stopped_or_started(&actions).is_empty(), "{actions:?}");
    let report = rig.report_of("app/a");
    assert_eq!(
        (report.state, report.attempt, report.app_generation),
        (WorkloadState::Running, 1, 0)
    );
    assert!(
        report.reason.contains("the version before runs on"),
        "{}",
        report.reason
    );

    assert!(stopped_or_started(&rig.message(Kind::Chunk, &chunk("two"))).is_empty());
    let actions = rig.take(Event::ArtifactStored(Digest::of(b"two")));
    assert_eq!(
        stopped_or_started(&actions),
        ["stop app/a#1 2000"],
        "asked, not yet gone"
    );
    let actions = rig.exited(1, true, "stopped");
    assert_eq!(stopped_or_started(&actions), ["start app/a#2 of 1.2"]);
    assert!(actions.contains(&"keep [two]".to_owned()), "{actions:?}");
    let forgets = actions.iter().position(|a| a == "keep [two]");
    assert!(
        forgets > actions.iter().position(|a| a.starts_with("persist")),
        "{actions:?}"
    );
}

#[test]
fn a_removed_workload_is_stopped_and_then_gone() {
    let mut rig = running();
    assert_eq!(stopped_or_started(&rig.twin(2, &[])), ["stop app/a#1 2000"]);
    let actions = rig.exited(1, true, "stopped");
    assert!(
        actions[0].contains("no app/a") && actions[0].contains("say w/app/a"),
        "{actions:?}"
    );
    assert!(rig.stored.instances.is_empty() && rig.agent.workloads().is_empty());
    assert!(rig.stored.stream.entries.iter().any(|e| e.body
        == Body::Gone {
            id: workload_id("app/a")
        }));
}

#[test]
fn failures_pause_longer_and_longer_and_end_in_a_crash_loop() {
    let mut rig = running();
    for (attempt, pause) in [(1, 1000), (2, 2000)] {
        let actions = rig.exited(attempt, false, "exit 3");
        assert!(
            actions[0].starts_with(&format!("persist [app/a#{attempt} Backoff")),
            "{actions:?}"
        );
        assert!(stopped_or_started(&actions).is_empty(), "{actions:?}");
        let report = rig.report_of("app/a");
        assert_eq!(
            (report.state, report.reason.as_str()),
            (WorkloadState::Failed, "exit 3")
        );
        // Up to a quarter of the pause is left off, so that nodes do not come back together.
        let earliest = pause - pause / 4;
        assert!(stopped_or_started(&rig.wait(earliest - 1)).is_empty(), "too early");
        let next = attempt + 1;
        assert_eq!(
            stopped_or_started(&rig.wait(pause / 4 + 1)),
            [&format!("start app/a#{next} of 1.1")]
        );
        rig.started(next);
    }
    let actions = rig.exited(3, false, "exit 3");
    assert!(actions[0].starts_with("persist [app/a#3 CrashLoop"), "{actions:?}");
    let report = rig.report_of("app/a");
    assert_eq!(report.state, WorkloadState::CrashLoop);
    assert!(
        report.reason.contains("3 failures in a row") && report.reason.contains("exit 3"),
        "{}",
        report.reason
    );
    assert!(stopped_or_started(&rig.wait(3_600_000)).is_empty(), "it stays so");
    // It stays so over a restart of the agent as well, and a changed twin is another chance.
    let (mut rig, actions) = Rig::boot(rig.stored, &["one", "two"], Vec::new());
    assert!(stopped_or_started(&actions).is_empty());
    assert_eq!(rig.report_of("app/a").state, WorkloadState::CrashLoop);
    assert_eq!(stopped_or_started(&rig.twin(2, &[a("two")])), ["start app/a#4 of 1.2"]);
}

#[test]
fn a_workload_may_end_when_its_policy_says_so() {
    for (policy, ok, state) in [
        (v1::RestartPolicy::Never, true, WorkloadState::Finished),
        (v1::RestartPolicy::Never, false, WorkloadState::Finished),
        (v1::RestartPolicy::OnFailure, true, WorkloadState::Finished),
        (v1::RestartPolicy::OnFailure, false, WorkloadState::Failed),
        (v1::RestartPolicy::Always, true, WorkloadState::Failed),
    ] {
        let mut rig = Rig::welcomed(&["one"]);
        let mut w = a("one");
        w.restart.policy = policy;
        assert_eq!(stopped_or_started(&rig.twin(1, &[w])), ["start app/a#1 of 1.1"]);
        rig.started(1);
        rig.exited(1, ok, "over");
        assert_eq!(rig.report_of("app/a").state, state, "{policy:?} {ok}");
    }
}

fn alive(attempt: u32, w: &v1::Workload) -> Observed {
    let state = ObservedState::Alive { pid: 77 };
    Observed {
        id: w.id.clone(),
        attempt,
        spec: spec_digest(w),
        state,
    }
}

#[test]
fn what_runs_as_desired_is_adopted_and_what_does_not_is_stopped() {
    let stored = running().stored;
    let (rig, actions) = Rig::boot(stored.clone(), &["one"], vec![alive(1, &a("one"))]);
    assert!(stopped_or_started(&actions).is_empty(), "{actions:?}");
    let report = rig.report_of("app/a");
    assert_eq!(
        (report.state, report.pid, report.adopted, report.attempt),
        (WorkloadState::Running, 77, true, 1)
    );

    let (mut rig, actions) = Rig::boot(stored.clone(), &["one"], vec![alive(1, &a("two"))]);
    assert_eq!(
        stopped_or_started(&actions).len(),
        1,
        "another specification: {actions:?}"
    );
    assert!(actions.iter().any(|a| a.starts_with("stop app/a#1")), "{actions:?}");
    assert_eq!(
        stopped_or_started(&rig.exited(1, true, "stopped")),
        ["start app/a#2 of 1.1"]
    );

    let stranger = workload("app/b", "one");
    let (_, actions) = Rig::boot(stored.clone(), &["one"], vec![alive(1, &a("one")), alive(4, &stranger)]);
    assert_eq!(stopped_or_started(&actions), ["stop app/b#4 5000"], "not in the twin");

    let exited = ObservedState::Exited {
        ok: false,
        detail: "exit 9".into(),
    };
    let found = Observed {
        state: exited,
        ..alive(1, &a("one"))
    };
    let (mut rig, actions) = Rig::boot(stored.clone(), &["one"], vec![found]);
    assert!(stopped_or_started(&actions).is_empty(), "it pauses: {actions:?}");
    assert_eq!(rig.report_of("app/a").reason, "exit 9");
    assert_eq!(stopped_or_started(&rig.wait(1000)), ["start app/a#2 of 1.1"]);

    let found = Observed {
        state: ObservedState::MachineRestarted,
        ..alive(1, &a("one"))
    };
    let (_, actions) = Rig::boot(stored, &["one"], vec![found]);
    assert_eq!(
        stopped_or_started(&actions),
        ["start app/a#2 of 1.1"],
        "no failure of its own"
    );
}

#[test]
fn without_a_twin_nothing_is_stopped() {
    let mut damaged = running().stored;
    damaged.twin.as_mut().unwrap()[50] ^= 1;
    for stored in [Stored::default(), damaged] {
        let found = vec![alive(1, &a("one")), alive(3, &workload("app/b", "one"))];
        let (mut rig, mut actions) = Rig::boot(stored, &["one"], found);
        actions.extend(rig.take(Event::Connected));
        actions.extend(rig.wait(1));
        actions.extend(rig.wait(3_600_000));
        assert!(stopped_or_started(&actions).is_empty(), "{actions:?}");
        assert!(
            actions.contains(&"send hello 0.0".to_owned()),
            "the twin is asked for: {actions:?}"
        );
        let actions = rig.twin(1, &[a("one")]);
        assert_eq!(
            stopped_or_started(&actions),
            ["stop app/b#3 5000"],
            "now it is known what is desired"
        );
        assert!(rig.report_of("app/a").adopted);
    }
}

#[test]
fn events_of_an_older_instance_are_ignored() {
    let mut rig = running();
    rig.exited(1, false, "exit 3");
    rig.wait(1000);
    rig.started(2);
    let before = rig.stored.clone();
    for stale in [
        RuntimeEvent::Started { pid: 1 },
        RuntimeEvent::Exited {
            ok: false,
            detail: "late".into(),
        },
    ] {
        assert_eq!(rig.runtime(1, stale.clone()), [""; 0]);
        assert_eq!(rig.runtime(3, stale), [""; 0], "nor of one that never was");
    }
    assert_eq!(rig.stored, before);
    let report = rig.report_of("app/a");
    assert_eq!(
        (report.state, report.pid, report.attempt),
        (WorkloadState::Running, 42, 2)
    );
    rig.exited(2, false, "exit 3");
    assert_eq!(rig.exited(2, false, "exit 3"), [""; 0], "an end is told once");
}
