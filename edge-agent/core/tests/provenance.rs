//! Nothing is loaded that has to prove where it is from and has not: when that is checked, and what follows.

#![allow(clippy::unwrap_used)]

mod rig;

use cnova_agent_core::ledger::Stored;
use cnova_agent_core::workload::{GOOD_AFTER_MS, spec_digest};
use cnova_agent_core::{Action, Event, Observed, ObservedState, PROVENANCE_AGAIN_MS, RuntimeEvent, Unproved};
use cnova_shared::ids::Digest;
use cnova_shared::wire::v1::{self, AttestationPolicy, WorkloadState};
use rig::support::workload_id;
use rig::{Rig, a, running};

/// `app/a`, which has to prove something; its one envelope is the artifact `two`.
fn proving(artifact: &str) -> v1::Workload {
    let mut w = a(artifact);
    w.attestation = Some(AttestationPolicy {
        required: true,
        ..Default::default()
    });
    w.provenance = vec![v1::Artifact {
        digest: Digest::of(b"two"),
        size: 1000,
    }];
    w
}

fn checked(rig: &mut Rig, w: &v1::Workload, result: Result<(), &str>) -> Vec<String> {
    rig.take(Event::ProvenanceChecked {
        spec: spec_digest(w),
        result: result.map_err(|why| Unproved { why: why.to_owned() }),
    })
}

fn state(rig: &Rig) -> (WorkloadState, String) {
    let report = rig.report_of("app/a");
    (report.state, report.reason)
}

#[test]
fn it_is_checked_once_everything_is_here_and_started_when_it_holds() {
    let mut rig = Rig::welcomed(&["one"]);
    let w = proving("one");
    let actions = rig.twin(1, std::slice::from_ref(&w));
    assert!(
        !actions.iter().any(|a| a.starts_with("start") || a.starts_with("check")),
        "{actions:?}"
    );
    assert_eq!(
        state(&rig).0,
        WorkloadState::Fetching,
        "the envelope is an artifact like others"
    );

    let actions = rig.take(Event::ArtifactStored(Digest::of(b"two")));
    assert!(
        actions.contains(&"check app/a accepted false".to_owned()),
        "{actions:?}"
    );
    assert!(!actions.iter().any(|a| a.starts_with("start")), "{actions:?}");
    assert_eq!(
        state(&rig),
        (WorkloadState::Waiting, "provenance: it is being checked".into())
    );
    assert!(
        !rig.wait(1000).iter().any(|a| a.starts_with("check")),
        "it is asked once"
    );

    let actions = checked(&mut rig, &w, Ok(()));
    let start = actions.iter().position(|a| a == "start app/a#1 of 1.1").unwrap();
    let persist = actions
        .iter()
        .position(|a| a.starts_with("persist [app/a#1 Active"))
        .unwrap();
    assert!(persist < start, "{actions:?}");
    assert_eq!(rig.stored.instances[0].proved, Some(spec_digest(&w)));
    // Another start of the same version needs no other check.
    rig.started(1);
    rig.exited(1, false, "it fell");
    let actions = rig.wait(60_000);
    assert!(actions.contains(&"start app/a#2 of 1.1".to_owned()), "{actions:?}");
    assert!(!actions.iter().any(|a| a.starts_with("check")), "{actions:?}");
}

#[test]
fn what_does_not_hold_waits_with_its_reason_and_is_looked_at_again() {
    let mut rig = Rig::welcomed(&["one", "two"]);
    let w = proving("one");
    rig.twin(1, std::slice::from_ref(&w));
    let actions = checked(&mut rig, &w, Err("nobody signed it"));
    assert!(!actions.iter().any(|a| a.starts_with("start")), "{actions:?}");
    assert_eq!(
        state(&rig),
        (WorkloadState::Waiting, "provenance: nobody signed it".into())
    );
    assert!(rig.stored.instances.is_empty(), "nothing is kept of what never ran");
    assert!(
        !rig.wait(PROVENANCE_AGAIN_MS - 1000)
            .iter()
            .any(|a| a.starts_with("check"))
    );
    let actions = rig.wait(1000);
    assert!(
        actions.contains(&"check app/a accepted false".to_owned()),
        "{actions:?}"
    );
    let actions = checked(&mut rig, &w, Ok(()));
    assert!(actions.contains(&"start app/a#1 of 1.1".to_owned()), "{actions:?}");
    // An answer to a question that was not asked changes nothing.
    rig.started(1);
    checked(&mut rig, &w, Err("late"));
    assert_eq!(state(&rig).0, WorkloadState::Running);
}

#[test]
fn the_version_before_runs_on_until_the_new_one_is_proved() {
    let mut rig = Rig::welcomed(&["one"]);
    let mut before = a("one");
    // It has not said yet that it is well, and is not the last good version for that reason.
    before.health.within_ms = 3_600_000;
    rig.twin(1, &[before]);
    rig.started(1);
    let mut w = proving("three");
    w.health.within_ms = 3_600_000;
    rig.twin(2, std::slice::from_ref(&w));
    rig.take(Event::ArtifactStored(Digest::of(b"three")));
    let actions = rig.take(Event::ArtifactStored(Digest::of(b"two")));
    assert!(!actions.iter().any(|a| a.starts_with("stop")), "{actions:?}");
    let actions = checked(&mut rig, &w, Err("nobody signed it"));
    assert!(!actions.iter().any(|a| a.starts_with("stop")), "{actions:?}");
    let (state, why) = state(&rig);
    assert_eq!(state, WorkloadState::Running);
    assert!(
        why.contains("the version before runs on") && why.contains("nobody signed it"),
        "{why}"
    );
    rig.wait(PROVENANCE_AGAIN_MS);
    let actions = checked(&mut rig, &w, Ok(()));
    assert!(actions.iter().any(|a| a.starts_with("stop app/a#1")), "{actions:?}");
}

/// A power cut while a twin that proves nothing is in force: what ran before it starts again.
#[test]
fn after_a_restart_the_last_good_version_is_started_instead() {
    let mut rig = running();
    rig.runtime(
        1,
        RuntimeEvent::Health {
            healthy: true,
            detail: String::new(),
        },
    );
    rig.wait(GOOD_AFTER_MS);
    let w = proving("three");
    rig.twin(2, std::slice::from_ref(&w));
    rig.take(Event::ArtifactStored(Digest::of(b"three")));
    rig.take(Event::ArtifactStored(Digest::of(b"two")));
    checked(&mut rig, &w, Err("nobody signed it"));
    let (now, why) = state(&rig);
    assert!(
        now == WorkloadState::Running && why.contains("the one before runs"),
        "{now:?} {why}"
    );
    assert!(rig.report_of("app/a").returned);

    let cut = vec![Observed {
        id: workload_id("app/a"),
        attempt: 1,
        spec: spec_digest(&a("one")),
        state: ObservedState::MachineRestarted,
    }];
    let (mut rig, actions) = Rig::boot(rig.stored, &["one", "two", "three"], cut);
    assert!(
        actions.contains(&"check app/a accepted false".to_owned()),
        "{actions:?}"
    );
    assert!(!actions.iter().any(|a| a.starts_with("start")), "{actions:?}");
    let actions = checked(&mut rig, &w, Err("nobody signed it"));
    assert!(actions.contains(&"start app/a#2 of 1.1".to_owned()), "{actions:?}");
    rig.started(2);
    let healthy = RuntimeEvent::Health {
        healthy: true,
        detail: String::new(),
    };
    rig.runtime(2, healthy);
    // A later answer that is better ends it: the desired version takes its place.
    rig.wait(PROVENANCE_AGAIN_MS);
    let actions = checked(&mut rig, &w, Ok(()));
    assert!(actions.iter().any(|a| a.starts_with("stop app/a#2")), "{actions:?}");
}

#[test]
fn what_was_accepted_is_asked_about_as_such_after_a_restart_and_what_runs_not_at_all() {
    let mut rig = Rig::welcomed(&["one", "two"]);
    let w = proving("one");
    rig.twin(1, std::slice::from_ref(&w));
    checked(&mut rig, &w, Ok(()));
    rig.started(1);
    let found = |state| {
        vec![Observed {
            id: workload_id("app/a"),
            attempt: 1,
            spec: spec_digest(&w),
            state,
        }]
    };
    let stored: Stored = rig.stored.clone();
    let (_, actions) = Rig::boot(stored.clone(), &["one", "two"], found(ObservedState::Alive { pid: 41 }));
    assert!(
        !actions.iter().any(|a| a.starts_with("check") || a.starts_with("stop")),
        "{actions:?}"
    );
    let (mut rig, actions) = Rig::boot(stored, &["one", "two"], found(ObservedState::MachineRestarted));
    assert!(actions.contains(&"check app/a accepted true".to_owned()), "{actions:?}");
    let actions = checked(&mut rig, &w, Ok(()));
    assert!(actions.contains(&"start app/a#2 of 1.1".to_owned()), "{actions:?}");
}

#[test]
fn without_a_policy_nothing_is_asked() {
    let mut rig = Rig::welcomed(&["one"]);
    rig.agent.handle(Event::Tick, rig.now);
    let actions = rig.twin(1, &[a("one")]);
    assert!(actions.contains(&"start app/a#1 of 1.1".to_owned()), "{actions:?}");
    assert!(!actions.iter().any(|a| a.starts_with("check")), "{actions:?}");
    assert!(!matches!(rig.agent.poll_action(), Some(Action::CheckProvenance(_))));
}
