//! Rotation and revocation at the agent.

#![allow(clippy::unwrap_used)]

mod rig;
#[path = "../../../shared/tests/support/rotation.rs"]
mod rotation;

use cnova_agent_core::Event;
use cnova_shared::keys::Signer;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::{self, Body};
use rig::support::{self, hub_key, node};
use rig::{ME, Rig, a, running};
use rotation::*;

fn alarm(rig: &Rig, code: &str) -> bool {
    let key = format!("alarm/{code}");
    let mut entries = rig.stored.stream.entries.iter();
    entries.any(|e| e.key == key && matches!(e.body, Body::Alarm(_)))
}

fn send(rig: &mut Rig, bytes: Vec<u8>) -> Vec<String> {
    rig.take(Event::Message {
        kind: Kind::Twin,
        bytes,
    })
}

#[test]
fn bundles_are_on_disk_before_they_count() {
    let mut rig = running();
    let actions = rig.message(Kind::Trust, &trust_message(vec![bundle_item(2), bundle_item(3)]));
    assert!(actions[0].contains("bundle 2, bundle 3"), "{actions:?}");
    assert!(actions.contains(&"trust 3".to_owned()), "{actions:?}");
    assert_eq!(rig.agent.trust().version(), 3);
    // It says so, and asks for its twin by a key that counts.
    let said = rig.wait(11_000);
    assert!(said.contains(&"send hello 1.1".to_owned()), "{said:?}");
}

#[test]
fn what_a_stolen_key_signed_runs_on_and_nothing_new_of_it_is_taken() {
    let mut rig = running();
    rig.message(Kind::Trust, &trust_message(vec![bundle_item(2), bundle_item(3)]));
    let stolen = support::twin(ME, 2, vec![]);
    let actions = send(&mut rig, twin_by(&hub_key(), &stolen));
    assert!(actions.contains(&"refused unknown-key".to_owned()), "{actions:?}");
    // Across a reboot too, from the ledger alone.
    let (mut rig, actions) = Rig::boot(rig.stored.clone(), &["one"], Vec::new());
    assert_eq!(rig.agent.trust().version(), 3);
    assert_eq!(rig.agent.version().generation, 1, "{actions:?}");
    assert!(actions.iter().any(|a| a.starts_with("start app/a")), "{actions:?}");
    let actions = send(&mut rig, twin_by(&hub_key(), &stolen));
    assert!(actions.contains(&"refused unknown-key".to_owned()), "{actions:?}");
}

#[test]
fn the_same_twin_signed_anew_takes_the_place_of_the_old_bytes() {
    let mut rig = running();
    rig.message(Kind::Trust, &trust_message(vec![bundle_item(2), bundle_item(3)]));
    let renewed = twin_by(&second_key(), &support::twin(ME, 1, vec![a("one")]));
    let actions = send(&mut rig, renewed.clone());
    assert!(actions[0].starts_with("persist [twin"), "{actions:?}");
    assert!(
        !actions.iter().any(|a| a.starts_with("stop") || a.starts_with("start")),
        "{actions:?}"
    );
    assert_eq!(rig.stored.twin.as_ref(), Some(&renewed));
}

#[test]
fn a_thief_cannot_shut_the_hub_out_with_the_highest_version() {
    let mut rig = running();
    let highest = support::twin(ME, u64::MAX, vec![a("one")]);
    send(&mut rig, twin_by(&hub_key(), &highest));
    assert_eq!(rig.agent.version().generation, u64::MAX);
    rig.message(Kind::Trust, &trust_message(vec![bundle_item(2), bundle_item(3)]));
    send(&mut rig, twin_by(&second_key(), &support::twin(ME, 2, vec![a("one")])));
    assert_eq!(rig.agent.version().generation, 2);
    // From here on the order holds again.
    let actions = send(&mut rig, twin_by(&second_key(), &support::twin(ME, 1, vec![])));
    assert!(actions.contains(&"refused old-generation".to_owned()), "{actions:?}");
}

#[test]
fn an_older_bundle_is_refused_and_reported() {
    let mut rig = running();
    rig.message(Kind::Trust, &trust_message(vec![bundle_item(3)]));
    assert_eq!(rig.agent.trust().version(), 3);
    let renew = support::twin(ME, 1, vec![a("one")]);
    send(&mut rig, twin_by(&second_key(), &renew));
    let old = seal_by_second(&trust_message(vec![bundle_item(2)]));
    rig.take(Event::Message {
        kind: Kind::Trust,
        bytes: old,
    });
    assert_eq!(rig.agent.trust().version(), 3);
    assert!(alarm(&rig, "trust-refused"));
}

fn seal_by_second<T: serde::Serialize>(value: &T) -> Vec<u8> {
    let claims = support::claims(support::HUB, ME);
    cnova_shared::envelope::seal(Kind::Trust, &claims, value, &[], &second_key()).unwrap()
}

#[test]
fn from_a_revoked_parent_only_documents_about_trust_are_taken() {
    let mut rig = running();
    rig.message(Kind::Trust, &trust_message(vec![bundle_item(2)]));
    let revoked = revocations(5, &[(support::HUB, None)], &second_key());
    let actions = rig.message(Kind::Trust, &trust_message(vec![revoked]));
    assert!(actions[0].contains("revocations"), "{actions:?}");
    assert!(alarm(&rig, "parent-revoked"));
    let actions = rig.twin(2, &[]);
    assert_eq!(actions, ["note"], "a twin from a revoked parent changes nothing");
    assert_eq!(rig.agent.version().generation, 1);
    let again = revocations(6, &[], &second_key());
    rig.message(Kind::Trust, &trust_message(vec![again]));
    assert!(!alarm(&rig, "parent-revoked"));
    rig.twin(2, &[]);
    assert_eq!(rig.agent.version().generation, 2);
}

#[test]
fn a_bundle_whose_keys_ran_out_is_an_alarm_and_stops_nothing() {
    let mut rig = running();
    rig.now.wall_ms = support::KEY_ENDS_S * 1000;
    let actions = rig.wait(1000);
    assert!(alarm(&rig, "trust-old"), "{actions:?}");
    assert_eq!(rig.report_of("app/a").state, v1::WorkloadState::Running);
    let actions = rig.twin(2, &[]);
    assert!(actions.contains(&"refused key-expired".to_owned()), "{actions:?}");
}

#[test]
fn a_ledger_with_a_bundle_that_does_not_follow_is_an_alarm() {
    let mut rig = running();
    rig.message(Kind::Trust, &trust_message(vec![bundle_item(2)]));
    let mut stored = rig.stored.clone();
    stored.trust.bundles.insert(9, b"not a bundle".to_vec());
    let (rig, _) = Rig::boot(stored, &["one"], Vec::new());
    assert_eq!(rig.agent.trust().version(), 2);
    assert!(alarm(&rig, "stored-trust"));
    assert!(second_key().public_key().id() != hub_key().public_key().id() && node(ME) == *rig.agent.node());
}
