//! Secrets at the agent: what cannot be opened waits with its reason, what runs runs on, what is started has them.

#![allow(clippy::unwrap_used)]

mod rig;

use cnova_agent_core::ledger::Stored;
use cnova_agent_core::workload::{GOOD_AFTER_MS, spec_digest};
use cnova_agent_core::{Event, Observed, ObservedState, RuntimeEvent};
use cnova_shared::ids::Name;
use cnova_shared::secret::{BoxKey, BoxPublicKey};
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::{self, WorkloadState};
use rig::support::workload_id;
use rig::*;

fn key(n: u8) -> BoxPublicKey {
    BoxKey::from_bytes(&[n; 32]).unwrap().public()
}

/// Workload `a` with this version of its secret.
fn with_secret(artifact: &str, version: u64) -> v1::Workload {
    let mut w = a(artifact);
    w.secrets = vec![v1::SecretUse {
        name: Name::new("db").unwrap(),
        version,
        target: v1::SecretTarget::Env("DB".into()),
    }];
    w
}

fn sealed(name: &str, version: u64, to: u8) -> v1::SealedSecret {
    v1::SealedSecret {
        name: Name::new(name).unwrap(),
        version,
        key: key(to).id(),
        blob: vec![to, u8::try_from(version).unwrap()].into(),
    }
}

fn twin(rig: &mut Rig, generation: u64, w: &v1::Workload, secrets: &[v1::SealedSecret]) -> Vec<String> {
    let twin = v1::Twin {
        secrets: secrets.to_vec(),
        ..support::twin(ME, generation, vec![w.clone()])
    };
    let actions = rig.message(Kind::Twin, &twin);
    stopped_or_started(&actions).into_iter().cloned().collect()
}

fn boot(own: Result<u8, &str>, stored: Stored, found: Vec<Observed>) -> Rig {
    let config = cnova_agent_core::Config {
        box_key: own.map(key).map_err(str::to_owned),
        ..config()
    };
    let (mut rig, _) = Rig::boot_as(config, stored, &["one", "two"], found);
    rig.take(Event::Connected);
    rig
}

fn state(rig: &Rig) -> (WorkloadState, String) {
    let report = rig.report_of("app/a");
    (report.state, report.reason)
}

#[test]
fn what_is_started_has_the_secrets_that_it_uses_and_no_others() {
    let mut rig = boot(Ok(1), Stored::default(), Vec::new());
    assert_eq!(rig.hello_box_key, Some(key(1).to_bytes()));
    let own = sealed("db", 3, 1);
    let secrets = [sealed("another", 1, 1), own.clone()];
    assert_eq!(
        twin(&mut rig, 1, &with_secret("one", 3), &secrets),
        ["start app/a#1 of 1.1"]
    );
    assert_eq!(rig.launches[0].secrets, [own]);
    rig.started(1);
    rig.exited(1, false, "exit 1");
    rig.wait(60_000);
    assert_eq!(rig.launches.len(), 2);
    assert_eq!(rig.launches[1].secrets.len(), 1, "the next attempt as well");
}

#[test]
fn what_cannot_be_opened_waits_and_the_rest_runs() {
    let mut rig = boot(
        Err("the key of this node's ledger does not open"),
        Stored::default(),
        Vec::new(),
    );
    assert_eq!(rig.hello_box_key, None);
    let mut other = a("two");
    other.id = workload_id("app/b");
    let both = v1::Twin {
        secrets: vec![sealed("db", 1, 1)],
        ..support::twin(ME, 1, vec![with_secret("one", 1), other])
    };
    assert_eq!(
        stopped_or_started(&rig.message(Kind::Twin, &both)),
        ["start app/b#1 of 1.1"]
    );
    let (at, why) = state(&rig);
    assert_eq!(at, WorkloadState::Waiting);
    assert_eq!(
        why,
        "secret db cannot be opened: the key of this node's ledger does not open"
    );
    // The next start of the agent has the key.
    let mut rig = boot(Ok(1), rig.stored, Vec::new());
    assert!(rig.launches.iter().any(|l| l.workload.id == workload_id("app/a")));
    rig.runtime(1, RuntimeEvent::Started { pid: 1 });
    assert_eq!(state(&rig).0, WorkloadState::Running);
}

#[test]
fn a_key_that_opens_later_is_told_to_the_hub_and_starts_what_waited() {
    let mut rig = boot(Err("the TPM does not answer"), Stored::default(), Vec::new());
    assert!(twin(&mut rig, 1, &with_secret("one", 1), &[sealed("db", 1, 1)]).is_empty());
    let actions = rig.take(Event::BoxKey(key(1)));
    assert_eq!(stopped_or_started(&actions), ["start app/a#1 of 1.1"]);
    assert_eq!(rig.hello_box_key, None, "not before the last hello is some time ago");
    rig.wait(60_000);
    assert_eq!(rig.hello_box_key, Some(key(1).to_bytes()));
}

#[test]
fn what_is_for_an_earlier_key_waits_until_the_hub_sends_it_anew() {
    let mut rig = boot(Ok(2), Stored::default(), Vec::new());
    assert!(twin(&mut rig, 1, &with_secret("one", 1), &[sealed("db", 1, 1)]).is_empty());
    assert!(
        state(&rig).1.contains("encrypted to an earlier key of this node"),
        "{}",
        state(&rig).1
    );
    assert_eq!(
        twin(&mut rig, 2, &with_secret("one", 1), &[sealed("db", 1, 2)]),
        ["start app/a#1 of 1.1"]
    );
    let mut rig = boot(Ok(2), Stored::default(), Vec::new());
    assert!(twin(&mut rig, 1, &with_secret("one", 2), &[sealed("db", 1, 2)]).is_empty());
    assert_eq!(state(&rig).1, "secret db (version 2) is not in the twin");
}

#[test]
fn another_key_restarts_nothing_and_another_value_does() {
    let mut rig = boot(Ok(1), Stored::default(), Vec::new());
    twin(&mut rig, 1, &with_secret("one", 1), &[sealed("db", 1, 1)]);
    rig.started(1);
    // The disk was replaced: a new key, and the agent begins anew with what runs.
    let found = vec![Observed {
        id: workload_id("app/a"),
        attempt: 1,
        spec: spec_digest(&with_secret("one", 1)),
        state: ObservedState::Alive { pid: 41 },
    }];
    let mut rig = boot(Ok(2), rig.stored, found);
    assert!(rig.launches.is_empty());
    assert_eq!(
        state(&rig),
        (WorkloadState::Running, String::new()),
        "it keeps what it has"
    );
    assert!(twin(&mut rig, 2, &with_secret("one", 1), &[sealed("db", 1, 2)]).is_empty());
    assert_eq!(
        twin(&mut rig, 3, &with_secret("one", 2), &[sealed("db", 2, 2)]),
        ["stop app/a#1 2000"]
    );
    assert_eq!(
        stopped_or_started(&rig.exited(1, true, "stopped")),
        ["start app/a#2 of 1.3"]
    );
    assert_eq!(rig.launches[0].secrets, [sealed("db", 2, 2)]);
}

#[test]
fn a_new_version_that_cannot_be_opened_leaves_the_one_before() {
    let mut rig = boot(Ok(1), Stored::default(), Vec::new());
    twin(&mut rig, 1, &with_secret("one", 1), &[sealed("db", 1, 1)]);
    rig.started(1);
    assert!(twin(&mut rig, 2, &with_secret("one", 2), &[sealed("db", 2, 9)]).is_empty());
    let (at, why) = state(&rig);
    assert_eq!(at, WorkloadState::Running);
    assert!(why.contains("the version before runs on; secret db"), "{why}");
}

#[test]
fn the_version_that_is_returned_to_has_its_own_secrets_under_the_newest_key() {
    let mut rig = boot(Ok(1), Stored::default(), Vec::new());
    twin(&mut rig, 1, &with_secret("one", 1), &[sealed("db", 1, 1)]);
    rig.started(1);
    let well = RuntimeEvent::Health {
        healthy: true,
        detail: String::new(),
    };
    rig.runtime(1, well);
    rig.wait(GOOD_AFTER_MS);
    assert_eq!(
        rig.stored.instances[0].good.as_ref().unwrap().secrets,
        [sealed("db", 1, 1)]
    );
    // Encrypted anew to the same node, whose key changed meanwhile; the agent was not started anew here.
    twin(&mut rig, 2, &with_secret("one", 1), &[sealed("db", 1, 2)]);
    assert_eq!(
        rig.stored.instances[0].good.as_ref().unwrap().secrets,
        [sealed("db", 1, 2)]
    );
    twin(&mut rig, 3, &with_secret("one", 1), &[sealed("db", 1, 1)]);
    // A new value that the workload does not live with.
    assert_eq!(
        twin(&mut rig, 4, &with_secret("one", 2), &[sealed("db", 2, 1)]),
        ["stop app/a#1 2000"]
    );
    rig.exited(1, true, "stopped");
    rig.started(2);
    rig.wait(v1::HEALTHY_WITHIN_MS);
    rig.exited(2, true, "stopped");
    let last = rig.launches.last().unwrap();
    assert_eq!((last.attempt, last.workload.secrets[0].version), (3, 1));
    assert_eq!(
        last.secrets,
        [sealed("db", 1, 1)],
        "although the twin in force has it no more"
    );
    assert!(rig.report_of("app/a").returned);
}
