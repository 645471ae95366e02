//! A gateway in the hub's place: when it appraises its children, when it does not, and what it believes.

#![allow(clippy::unwrap_used)]

mod verifier_rig;

use cnova_attestation::ear::Status;
use cnova_gateway_core::{Action, Event, Op};
use cnova_shared::ids::Digest;
use cnova_shared::keys::Signer;
use cnova_shared::limits;
use cnova_shared::topics::Kind;
use cnova_shared::trust_documents::Delegation;
use cnova_shared::wire::v1::{self, Body};
use rotation::{bundle_item, delegation_item, revocations, second_key};
use support::{EPOCH_S, hub_key, node, soft};
use verifier_rig::*;

fn child() -> Machine {
    Machine::new(CHILD, 10, "plant-7/line-2/plc-1")
}

#[test]
fn while_the_hub_is_away_the_gateway_appraises_its_child_and_reports_it() {
    let child = child();
    let mut rig = Rig::ready(&child);
    assert!(challenged(&rig.wait(10 * AFTER_MS)).is_empty(), "the hub is here");
    rig.take(Event::ParentDisconnected);
    assert!(challenged(&rig.wait(AFTER_MS - 1)).is_empty(), "not for long enough");
    let due = rig.gateway.poll_timeout().unwrap();
    assert_eq!(due, rig.now.mono_ms + 1, "it wakes up by itself");
    let actions = rig.wait(1);
    let [challenge] = &challenged(&actions)[..] else {
        panic!("{actions:?}")
    };
    let actions = rig.answers(&child, challenge);
    let [ear] = &told(&actions)[..] else {
        panic!("{actions:?}")
    };
    let now_s = rig.now.wall_ms / 1000;
    assert_eq!(
        (ear.status, ear.subject.as_str(), ear.iat),
        (Status::Affirming, CHILD, now_s)
    );
    assert_eq!(ear.exp, now_s + limits::DELEGATED_RESULT_S);
    assert!(ear.verifier.build.ends_with("at line-gw"), "{}", ear.verifier.build);
    assert_eq!(ear.key, *child.identity.key.public_key());
    let Some(Body::Appraised {
        node: about,
        ear: bytes,
    }) = rig.says("appraised/plc-1")
    else {
        panic!("not reported")
    };
    assert_eq!((about.as_str(), issuer(bytes).as_str()), (CHILD, ME));
    let standing = &rig.gateway.children(rig.now)[0];
    assert_eq!((standing.status, standing.by.as_str()), (Status::Affirming, ME));
    assert!(rig.stored.verdicts.contains_key(&node(CHILD)));
    // A result that was lost on the way is told again when the child says hello again; the gateway remembers it.
    let mut rig = rig.restart();
    assert_eq!(told(&rig.hello(&child)).len(), 1);
    // And it goes on by itself, before the result ends.
    let mut again = Vec::new();
    for _ in 0..4 {
        again.extend(challenged(&rig.wait(3_600_000 / 4)));
    }
    assert!(!again.is_empty());
}

#[test]
fn a_result_never_outlives_the_delegation() {
    let child = child();
    let mut rig = Rig::ready(&child);
    let short = delegation(2, EPOCH_S + 600);
    rig.trust(vec![delegation_item(&short, &hub_key())]);
    rig.take(Event::ParentDisconnected);
    let challenge = challenged(&rig.wait(AFTER_MS)).remove(0);
    let actions = rig.answers(&child, &challenge);
    assert_eq!(told(&actions)[0].exp, EPOCH_S + 600);
    // It ends: nobody is challenged any more, and evidence that is still on its way says nothing.
    let mut child = child;
    child.reboot(111);
    let challenge = challenged(&rig.hello(&child)).remove(0);
    let actions = rig.wait(600_000);
    assert!(
        challenged(&actions).is_empty() && noted(&actions, "no delegation"),
        "{actions:?}"
    );
    let actions = rig.answers(&child, &challenge);
    assert!(
        told(&actions).is_empty() && noted(&actions, "does not appraise it"),
        "{actions:?}"
    );
}

#[test]
fn a_gateway_that_may_not_appraise_says_why_and_does_not() {
    type Change = fn(&mut Rig);
    let cases: [(&str, Change); 8] = [
        ("no delegation", |rig| {
            let rights = Vec::new();
            let taken_back = Delegation {
                rights,
                ..delegation(2, ENDS_S)
            };
            rig.trust(vec![delegation_item(&taken_back, &hub_key())]);
        }),
        ("no delegation", |rig| {
            let other_key = Delegation {
                key: soft(77).public_key().clone(),
                ..delegation(2, ENDS_S)
            };
            rig.trust(vec![delegation_item(&other_key, &hub_key())]);
        }),
        ("no delegation", |rig| {
            rig.trust(vec![revocations(1, &[(ME, None)], &hub_key())]);
        }),
        ("no delegation", |rig| {
            // Its key has left the bundle: nobody would believe it.
            rig.trust(vec![bundle_item(3)]);
        }),
        ("this gateway itself is warning", |rig| {
            rig.hub_says(&hub_ear(ME, MY_KEY, Status::Warning, EPOCH_S + 1, ENDS_S));
        }),
        ("is not what it should be", |rig| {
            rig.hub_says(&hub_ear(ME, MY_KEY, Status::Contraindicated, EPOCH_S + 1, ENDS_S));
        }),
        ("about another key", |rig| {
            rig.hub_says(&hub_ear(ME, 77, Status::Affirming, EPOCH_S + 1, ENDS_S));
        }),
        ("ended at", |rig| {
            let long = delegation(2, EPOCH_S + 10 * limits::VERIFIER_GRACE_S);
            rig.trust(vec![delegation_item(&long, &hub_key())]);
            rig.wait((86_400 + limits::VERIFIER_GRACE_S) * 1000);
        }),
    ];
    for (at, (why, change)) in cases.into_iter().enumerate() {
        let mut rig = Rig::ready(&child());
        change(&mut rig);
        rig.take(Event::ParentDisconnected);
        let actions = rig.wait(AFTER_MS);
        assert!(challenged(&actions).is_empty(), "case {at}: {actions:?}");
        assert!(noted(&actions, why), "case {at}: {actions:?}");
        assert!(
            challenged(&rig.take(Event::Demand)).is_empty(),
            "case {at}: on demand neither"
        );
    }
    // Without reference values everybody would be a warning.
    let mut rig = Rig::new();
    rig.trust(vec![delegation_item(&delegation(1, ENDS_S), &hub_key())]);
    rig.hub_says(&hub_ear(ME, MY_KEY, Status::Affirming, EPOCH_S, ENDS_S));
    rig.hello(&child());
    assert!(noted(&rig.wait(AFTER_MS), "no reference values"));
}

#[test]
fn only_direct_children_with_a_tpm_at_the_delegated_site_are_appraised() {
    let good = child();
    let mut rig = Rig::ready(&good);
    rig.hello(&Machine::new("plc-2", 11, "plant-7/line-3/plc-2"));
    let mut cell = Machine::new("cell-gw", 12, "plant-7/line-2/cell");
    cell.role = v1::NodeRole::Gateway;
    rig.hello(&cell);
    let behind = Machine::new("plc-3", 13, "plant-7/line-2/cell/plc-3");
    let relay = v1::Relay {
        v: 1,
        incarnation: 1,
        from: 0,
        to: 1,
        items: vec![v1::RelayItem {
            kind: "hello".into(),
            body: behind.hello().into(),
        }],
    };
    let claims = support::claims("cell-gw", ME);
    let bytes = cnova_shared::envelope::seal(Kind::Relay, &claims, &relay, &[], &cell.session).unwrap();
    rig.child_sends(&cell, Kind::Relay, bytes);
    assert!(rig.gateway.tree().via(&node("plc-3")).is_some());
    let soft_node = support::identity("plc-4", 14);
    rig.take(Event::ChildConnected(node("plc-4")));
    let hello = v1::Hello {
        site: "plant-7/plc-4".parse().unwrap(),
        ..hello_of_soft()
    };
    let bytes = soft_node.seal(Kind::Hello, &hello, true);
    let from = node("plc-4");
    rig.take(Event::FromChild {
        child: from,
        kind: Kind::Hello,
        bytes,
    });
    rig.take(Event::ParentDisconnected);
    let actions = rig.wait(AFTER_MS);
    let whom = |a: &Action| match a {
        Action::Challenge { child, .. } => Some(child.to_string()),
        _ => None,
    };
    let challenged: Vec<String> = actions.iter().filter_map(whom).collect();
    assert_eq!(challenged, ["cell-gw", CHILD]);
    // Nothing is due for the others: the gateway does not spin.
    assert!(rig.gateway.poll_timeout().unwrap() > rig.now.mono_ms);
}

fn hello_of_soft() -> v1::Hello {
    v1::Hello {
        v: 1,
        boot: "b".into(),
        epoch: 0,
        generation: 0,
        digest: None,
        incarnation: 1,
        role: v1::NodeRole::Agent,
        site: "plant-7".parse().unwrap(),
        labels: Default::default(),
        capabilities: v1::Capabilities::default(),
        software: "test".into(),
        trust_version: 2,
        documents: Default::default(),
        renew: false,
        box_key: None,
        alarms: Vec::new(),
    }
}

#[test]
fn a_replayed_quote_says_nothing() {
    let child = child();
    let (mut rig, actions) = Rig::acting(&child);
    let first = challenged(&actions).remove(0);
    let old = child.seal(&child.evidence(&first.nonce), ME);
    assert_eq!(told(&rig.child_sends(&child, Kind::Evidence, old.clone())).len(), 1);
    // The same once more, and with the nonce of the next challenge put in front of the old quote.
    let actions = rig.child_sends(&child, Kind::Evidence, old);
    assert!(
        told(&actions).is_empty() && noted(&actions, "nobody challenged it"),
        "{actions:?}"
    );
    rig.take(Event::Demand);
    let second = challenged(&rig.wait(5_000)).remove(0);
    let mut forged = child.evidence(&first.nonce);
    forged.nonce = second.nonce;
    let actions = rig.child_sends(&child, Kind::Evidence, child.seal(&forged, ME));
    assert!(
        told(&actions).is_empty() && noted(&actions, "it was replayed"),
        "{actions:?}"
    );
}

#[test]
fn a_quote_of_another_tpm_says_nothing() {
    let child = child();
    let (mut rig, actions) = Rig::acting(&child);
    let challenge = challenged(&actions).remove(0);
    // A machine that booted as it should answers for one that did not.
    let helper = Machine::new("plc-9", 19, "plant-7/line-2/plc-9");
    let log = cnova_attestation::event_log::slice(&helper.tpm.file, None);
    let session = child.session.public_key();
    let evidence = helper
        .tpm
        .evidence_of(&node(CHILD), &challenge.nonce, session, log, EPOCH_S);
    let actions = rig.child_sends(&child, Kind::Evidence, child.seal(&evidence, ME));
    assert!(
        told(&actions).is_empty() && noted(&actions, "of another TPM"),
        "{actions:?}"
    );
    // Its own quote with another session key says nothing either.
    let log = cnova_attestation::event_log::slice(&child.tpm.file, None);
    let other = soft(66);
    let evidence = child
        .tpm
        .evidence_of(&node(CHILD), &challenge.nonce, other.public_key(), log, EPOCH_S);
    let actions = rig.child_sends(&child, Kind::Evidence, child.seal(&evidence, ME));
    assert!(
        told(&actions).is_empty() && noted(&actions, "another session key"),
        "{actions:?}"
    );
}

#[test]
fn soft_evidence_from_a_tpm_node_is_a_downgrade() {
    let child = child();
    let (mut rig, actions) = Rig::acting(&child);
    let challenge = challenged(&actions).remove(0);
    let mut evidence = child.evidence(&challenge.nonce);
    evidence.tpm = None;
    let actions = rig.child_sends(&child, Kind::Evidence, child.seal(&evidence, ME));
    let [ear] = &told(&actions)[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(
        (ear.status, ear.findings[0].code.as_str()),
        (Status::Contraindicated, "downgrade")
    );
    assert!(rig.alarm());
}

#[test]
fn a_child_that_booted_something_else_is_found_out_and_let_back_when_it_did_not() {
    let mut child = child();
    let (mut rig, _) = Rig::acting(&child);
    child.reboot(111);
    child.tpm.pcrs.insert(7, Digest::of(b"another key"));
    let challenge = challenged(&rig.hello(&child)).remove(0);
    let actions = rig.answers(&child, &challenge);
    assert_eq!(told(&actions)[0].status, Status::Contraindicated);
    assert!(told(&actions)[0].findings[0].detail.starts_with("PCR 7 holds"));
    assert!(rig.alarm());
    assert!(rig.restart().alarm(), "it stands after a restart");
    child.reboot(112);
    rig.wait(1000);
    let challenge = challenged(&rig.hello(&child)).remove(0);
    assert_eq!(told(&rig.answers(&child, &challenge))[0].status, Status::Affirming);
    assert!(!rig.alarm());
}

#[test]
fn the_hub_takes_over_again_as_soon_as_it_answers() {
    let mut child = child();
    let (mut rig, actions) = Rig::acting(&child);
    let late = challenged(&actions).remove(0);
    rig.take(Event::ParentConnected);
    let actions = rig.hub_answers(0);
    assert!(noted(&actions, "the hub is within reach"), "{actions:?}");
    let actions = rig.answers(&child, &late);
    assert!(told(&actions).is_empty(), "{actions:?}");
    child.reboot(111);
    assert!(challenged(&rig.hello(&child)).is_empty());
    // The hub judges this start of the child; what it asked and was answered went through here.
    let evidence = child.evidence(&[8; 32]);
    let bytes = child.seal(&evidence, "hub");
    assert!(relayed(&rig.child_sends(&child, Kind::Evidence, bytes.clone()), &bytes));
    let now_s = rig.now.wall_ms / 1000;
    let ear = cnova_attestation::ear::Ear {
        nonce: vec![8; 32],
        ..hub_ear(CHILD, 10, Status::Affirming, now_s, now_s + 86_400)
    };
    rig.hub_says(&ear);
    assert_eq!(rig.gateway.children(rig.now)[0].by, "the hub");
    // The hub goes away again: nothing is asked until that result nears its end.
    rig.take(Event::ParentDisconnected);
    assert!(challenged(&rig.wait(20 * 3_600_000)).is_empty());
    assert_eq!(challenged(&rig.wait(4 * 3_600_000 - 600_000)).len(), 1);
    // Evidence for this gateway is nobody else's.
    let challenge = challenged(&rig.wait(5_000)).remove(0);
    let bytes = child.seal(&child.evidence(&challenge.nonce), ME);
    assert!(!relayed(
        &rig.child_sends(&child, Kind::Evidence, bytes.clone()),
        &bytes
    ));
}

#[test]
fn what_the_hub_found_against_a_child_stands_whatever_the_gateway_finds() {
    let child = child();
    let mut rig = Rig::ready(&child);
    rig.hub_says(&hub_ear(CHILD, 10, Status::Contraindicated, EPOCH_S, EPOCH_S + 60));
    assert!(rig.alarm());
    rig.take(Event::ParentDisconnected);
    let challenge = challenged(&rig.wait(AFTER_MS)).remove(0);
    rig.answers(&child, &challenge);
    let standing = &rig.gateway.children(rig.now)[0];
    assert_eq!(
        (standing.status, standing.by.as_str()),
        (Status::Contraindicated, "the hub")
    );
    assert!(rig.alarm());
}

#[test]
fn a_gateway_below_learns_from_its_parent_that_the_hub_is_away() {
    // It is the parent:
    let child = child();
    let mut rig = Rig::ready(&child);
    let mut cell = Machine::new("cell-gw", 12, "plant-7/line-2/cell");
    cell.role = v1::NodeRole::Gateway;
    let away = |actions: &[Action]| {
        let acks = actions.iter().filter_map(|a| match a {
            Action::Ack { child, ack, .. } => Some((child.to_string(), ack.away_s)),
            _ => None,
        });
        acks.collect::<Vec<_>>()
    };
    assert!(away(&rig.hello(&cell)).iter().all(|(_, s)| *s == 0));
    let actions = rig.take(Event::ParentDisconnected);
    assert_eq!(away(&actions), [("cell-gw".to_owned(), 1)], "told at once");
    rig.wait(90_000);
    assert!(
        away(&rig.hello(&cell)).iter().all(|(_, s)| *s == 90),
        "and with every answer"
    );
    assert!(
        away(&rig.hello(&child)).iter().all(|(_, s)| *s == 0),
        "agents have no use for it"
    );
    rig.take(Event::ParentConnected);
    assert_eq!(away(&rig.hub_answers(0)), [("cell-gw".to_owned(), 0)]);

    // It is the child: its own line stands.
    let mut rig = Rig::ready(&child);
    rig.wait(AFTER_MS);
    assert!(challenged(&rig.hub_answers(10)).is_empty());
    assert!(challenged(&rig.wait(AFTER_MS - 10_000 - 1)).is_empty());
    assert_eq!(challenged(&rig.wait(1)).len(), 1);
    rig.hub_answers(0);
    assert!(challenged(&rig.wait(10 * AFTER_MS)).is_empty());
}

#[test]
fn results_by_a_key_that_was_taken_away_count_no_longer() {
    let child = child();
    let mut rig = Rig::ready(&child);
    let shown = |actions: &[Action]| {
        let ears = actions
            .iter()
            .filter(|a| matches!(a, Action::Forward { kind: Kind::Ear, .. }));
        ears.count()
    };
    assert_eq!(shown(&rig.hello(&child)), 1, "its own result is shown to its child");
    rig.hub_says(&hub_ear(CHILD, 10, Status::Contraindicated, EPOCH_S, ENDS_S));
    assert!(rig.alarm());
    rig.trust(vec![bundle_item(3)]);
    assert!(rig.gateway.children(rig.now).is_empty() && !rig.alarm());
    assert_eq!(shown(&rig.hello(&child)), 0);
    rig.hub_says_by(&hub_ear(ME, MY_KEY, Status::Affirming, EPOCH_S, ENDS_S), &second_key());
    assert_eq!(shown(&rig.hello(&child)), 1, "signed anew it counts again");
}

#[test]
fn what_a_stranger_signed_about_a_child_is_not_kept() {
    let child = child();
    let mut rig = Rig::ready(&child);
    let ear = hub_ear(CHILD, 10, Status::Affirming, EPOCH_S, ENDS_S);
    let actions = rig.hub_says_by(&ear, &soft(99));
    assert!(noted(&actions, "is not believed here"), "{actions:?}");
    assert!(rig.gateway.children(rig.now).is_empty());
    let kept = |op: &Op| matches!(op, Op::PutResult { .. });
    let any = actions
        .iter()
        .any(|a| matches!(a, Action::Persist(ops) if ops.iter().any(kept)));
    assert!(!any);
}
