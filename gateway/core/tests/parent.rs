//! A gateway below another one: what it makes of what its parent turns out to be.

#![allow(clippy::unwrap_used)]

mod verifier_rig;

use cnova_attestation::ear::{Ear, Status};
use cnova_attestation::parent::{PARENT_GRACE_S, ParentTrust};
use cnova_gateway_core::spool::SpoolOp;
use cnova_gateway_core::{Action, Event, Op, Stored};
use cnova_shared::envelope::seal;
use cnova_shared::keys::Signer;
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::{self, Body, Stream};
use rotation::{bundle_item, delegation_item, trust_message};
use support::{EPOCH_S, Identity, claims, hub_key, identity, node, soft};
use verifier_rig::*;

const PARENT: &str = "plant-gw";
const PARENT_KEY: u8 = 40;
const ABOVE: &str = "region-gw";
const LATER_S: u64 = EPOCH_S + 86_400;

fn parent() -> Identity {
    identity(PARENT, PARENT_KEY)
}

fn below_a_gateway(asks: ParentTrust) -> Rig {
    let now = Now {
        mono_ms: 1000,
        wall_ms: EPOCH_S * 1000,
    };
    let mut rig = Rig::boot(Rig::config(PARENT, asks), Stored::default(), now);
    rig.take(Event::ParentConnected);
    rig
}

/// The parent answers the reports of this gateway up to `seq`, and introduces itself.
fn ack(rig: &mut Rig, seq: u64) -> Vec<Action> {
    let streams = [Stream::Report, Stream::Relay];
    let answer = |stream| v1::Ack {
        v: 1,
        stream,
        incarnation: 0,
        seq,
        hello: Some("boot-1".into()),
        away_s: 0,
    };
    let sent = streams.map(|s| says(rig, Kind::Ack, &answer(s)));
    sent.concat()
}

fn says<T: serde::Serialize>(rig: &mut Rig, kind: Kind, value: &T) -> Vec<Action> {
    let parent = parent();
    let bytes = seal(kind, &claims(PARENT, ME), value, &parent.chain, &parent.key).unwrap();
    rig.take(Event::FromParent { kind, bytes })
}

/// What the parent shows about itself, as the hub signed it.
fn shows(rig: &mut Rig, ear: &Ear) -> Vec<Action> {
    let bytes = sign_ear(ear, "hub", &hub_key());
    rig.take(Event::FromParent { kind: Kind::Ear, bytes })
}

fn about_parent(status: Status, iat: u64) -> Ear {
    hub_ear(PARENT, PARENT_KEY, status, iat, LATER_S)
}

fn twin(rig: &mut Rig) -> Vec<Action> {
    let bytes = rotation::twin_by(&hub_key(), &support::twin(CHILD, 1, Vec::new()));
    rig.take(Event::FromParent {
        kind: Kind::Twin,
        bytes,
    })
}

fn refused(actions: &[Action], why: &str) -> bool {
    noted(actions, "from the parent was not taken") && noted(actions, why)
}

/// What waits for the parent and is dropped when that has it.
fn dropped(actions: &[Action]) -> bool {
    let gone = |op: &Op| matches!(op, Op::Spool(SpoolOp::Delete(_) | SpoolOp::Acked(_)));
    let is_gone = |a: &Action| matches!(a, Action::Persist(ops) if ops.iter().any(gone));
    actions.iter().any(is_gone)
}

fn doubts(rig: &Rig) -> Option<&str> {
    match rig.says("alarm/parent-doubtful")? {
        Body::Alarm(a) => Some(&a.detail),
        _ => None,
    }
}

#[test]
fn only_an_attested_parent_is_listened_to_where_that_is_asked_for() {
    let mut rig = below_a_gateway(ParentTrust::Attested);
    let actions = ack(&mut rig, 0);
    assert!(
        refused(&actions, "no attestation result about it has come"),
        "the first answer introduces it, and nothing vouches for it: {actions:?}"
    );
    assert!(doubts(&rig).unwrap().contains("no attestation result"));

    let other_key = hub_ear(PARENT, 77, Status::Affirming, EPOCH_S, LATER_S);
    let not_good: [(Ear, &str); 3] = [
        (other_key, "is about another key"),
        (about_parent(Status::Warning, EPOCH_S + 1), "it is warning"),
        (
            about_parent(Status::Contraindicated, EPOCH_S + 2),
            "is not what it should be",
        ),
    ];
    for (ear, why) in not_good {
        shows(&mut rig, &ear);
        let actions = twin(&mut rig);
        assert!(refused(&actions, why), "{why}: {actions:?}");
        assert!(refused(&ack(&mut rig, 0), why), "{why}");
    }

    let actions = shows(&mut rig, &about_parent(Status::Affirming, EPOCH_S + 3));
    assert!(noted(&actions, "the hub says of the parent: affirming"), "{actions:?}");
    assert_eq!(doubts(&rig), None, "the alarm is over");
    let actions = twin(&mut rig);
    let is_kept = |a: &Action| matches!(a, Action::Persist(ops) if ops.iter().any(|o| matches!(o, Op::Tree(_))));
    assert!(actions.iter().any(is_kept), "{actions:?}");
    // Shown again with every greeting, and not written again.
    let actions = shows(&mut rig, &about_parent(Status::Affirming, EPOCH_S + 3));
    assert_eq!(actions, []);
}

#[test]
fn what_waits_is_not_dropped_on_the_word_of_a_parent_that_is_not_what_it_should_be() {
    let child = Machine::new(CHILD, 10, "plant-7/line-2/plc-1");
    let mut rig = below_a_gateway(ParentTrust::Attested);
    shows(&mut rig, &about_parent(Status::Affirming, EPOCH_S));
    ack(&mut rig, 0);
    rig.hello(&child);
    shows(&mut rig, &about_parent(Status::Contraindicated, EPOCH_S + 1));
    let waiting = rig.gateway.spooled();
    assert!(waiting > 0);
    let actions = ack(&mut rig, 5);
    assert!(
        refused(&actions, "plant-gw is not what it should be: PCR 7"),
        "{actions:?}"
    );
    assert!(!dropped(&actions), "{actions:?}");
    assert_eq!(rig.gateway.spooled(), waiting);
    // The same after a restart: the result is on disk.
    let mut rig = rig.restart();
    rig.take(Event::ParentConnected);
    ack(&mut rig, 5);
    assert_eq!(rig.gateway.spooled(), waiting);
    assert!(doubts(&rig).is_some());
    // It was mended, and goes on without a restart of this one.
    shows(&mut rig, &about_parent(Status::Affirming, EPOCH_S + 2));
    ack(&mut rig, 5);
    assert_eq!(rig.gateway.spooled(), 0);
    assert_eq!(doubts(&rig), None);
}

#[test]
fn what_needs_nobodys_word_comes_through_a_doubtful_parent() {
    let mut rig = below_a_gateway(ParentTrust::Attested);
    ack(&mut rig, 0);
    assert!(doubts(&rig).is_some());
    let challenge = v1::Challenge {
        v: 1,
        nonce: vec![1; 32],
        log: None,
    };
    let bytes = seal(Kind::Challenge, &claims("hub", ME), &challenge, &[], &hub_key()).unwrap();
    let actions = rig.take(Event::FromParent {
        kind: Kind::Challenge,
        bytes,
    });
    assert!(
        actions.iter().any(|a| matches!(a, Action::Attest { .. })),
        "{actions:?}"
    );
    says(&mut rig, Kind::Trust, &trust_message(vec![bundle_item(3)]));
    assert_eq!(rig.gateway.trust().version(), 3, "signed by the roots");
}

#[test]
fn a_parent_that_cannot_be_judged_again_is_listened_to_for_a_week() {
    let mut rig = below_a_gateway(ParentTrust::Attested);
    shows(&mut rig, &about_parent(Status::Affirming, EPOCH_S));
    ack(&mut rig, 0);
    rig.wait((LATER_S - EPOCH_S + PARENT_GRACE_S - 1) * 1000);
    assert_eq!(doubts(&rig), None);
    rig.wait(1000);
    assert!(doubts(&rig).is_some());
    assert!(refused(&ack(&mut rig, 0), ""));
}

#[test]
fn where_a_certificate_is_enough_the_parents_result_is_only_known() {
    let mut rig = below_a_gateway(ParentTrust::Certified);
    shows(&mut rig, &about_parent(Status::Contraindicated, EPOCH_S));
    let actions = ack(&mut rig, 0);
    assert!(!refused(&actions, ""), "{actions:?}");
    assert_eq!(doubts(&rig), None);
}

#[test]
fn a_parent_that_is_not_what_it_should_be_does_not_judge_this_gateway() {
    for asks in [ParentTrust::Certified, ParentTrust::Attested] {
        let mut rig = below_a_gateway(asks);
        shows(&mut rig, &about_parent(Status::Affirming, EPOCH_S));
        ack(&mut rig, 0);
        let may = cnova_shared::trust_documents::Delegation {
            key: soft(PARENT_KEY).public_key().clone(),
            rights: vec![cnova_shared::trust_documents::Right::Appraise],
            ..rotation::delegation(1, &node(PARENT), "plant-7", ENDS_S)
        };
        says(
            &mut rig,
            Kind::Trust,
            &trust_message(vec![delegation_item(&may, &hub_key())]),
        );
        let judge = |rig: &mut Rig, iat| {
            let ear = hub_ear(ME, MY_KEY, Status::Affirming, iat, iat + 3600);
            let bytes = sign_ear(&ear, PARENT, &soft(PARENT_KEY));
            rig.take(Event::FromParent { kind: Kind::Ear, bytes })
        };
        let actions = judge(&mut rig, EPOCH_S + 1);
        assert!(
            noted(&actions, "plant-gw says of this gateway: affirming"),
            "{actions:?}"
        );
        shows(&mut rig, &about_parent(Status::Contraindicated, EPOCH_S + 2));
        let actions = judge(&mut rig, EPOCH_S + 3);
        assert!(
            refused(&actions, "it was found not to be what it should be by the hub"),
            "{actions:?}"
        );
    }
}

#[test]
fn a_parent_does_not_vouch_for_itself() {
    let mut rig = below_a_gateway(ParentTrust::Attested);
    let may = |name: &str, n: u8| cnova_shared::trust_documents::Delegation {
        key: soft(n).public_key().clone(),
        rights: vec![cnova_shared::trust_documents::Right::Appraise],
        ..rotation::delegation(1, &node(name), "plant-7", ENDS_S)
    };
    let both = [may(PARENT, PARENT_KEY), may(ABOVE, 60)].map(|d| delegation_item(&d, &hub_key()));
    says(&mut rig, Kind::Trust, &trust_message(both.to_vec()));
    ack(&mut rig, 0);
    let by = |rig: &mut Rig, name: &str, n: u8| {
        let ear = hub_ear(PARENT, PARENT_KEY, Status::Affirming, EPOCH_S, EPOCH_S + 3600);
        let bytes = sign_ear(&ear, name, &soft(n));
        rig.take(Event::FromParent { kind: Kind::Ear, bytes })
    };
    let actions = by(&mut rig, PARENT, PARENT_KEY);
    assert!(refused(&actions, "vouches for itself"), "{actions:?}");
    assert!(doubts(&rig).is_some());
    // The gateway above it may, while the hub is away.
    let actions = by(&mut rig, ABOVE, 60);
    assert!(
        noted(&actions, "region-gw says of the parent: affirming"),
        "{actions:?}"
    );
    assert_eq!(doubts(&rig), None);
}
