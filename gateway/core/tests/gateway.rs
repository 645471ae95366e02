//! Events in, exact actions out: what a gateway does for its children while its own parent is away.

#![allow(clippy::unwrap_used)]

#[path = "../../../shared/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use cnova_attestation::parent::ParentTrust;
use cnova_gateway_core::spool::SpoolOp;
use cnova_gateway_core::{Action, Appraisal, Config, Event, Gateway, Op, Stored, UpMessage};
use cnova_shared::envelope::seal;
use cnova_shared::hop::Position;
use cnova_shared::ids::{Digest, SitePath};
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::tree::TreeOp;
use cnova_shared::twin::Version;
use cnova_shared::wire::v1::{self, Body, Stream};
use support::{EPOCH_S, HUB, Identity, claims, hub_key, identity, node};

const ME: &str = "line-gw";
const CHILD: &str = "plc-1";

/// A gateway with a store that survives it, and a clock.
struct Rig {
    gateway: Gateway,
    stored: Stored,
    now: Now,
    child: Identity,
}

fn config() -> Config {
    Config {
        node: node(ME),
        site: SitePath::new("plant-7/line-gw").unwrap(),
        parent: node(HUB),
        labels: BTreeMap::new(),
        software: "test".into(),
        boot: "boot-1".into(),
        trust: support::trust(),
        alarms: Vec::new(),
        key: cnova_shared::keys::Signer::public_key(&cnova_shared::keys::SoftKey::ed25519_from_seed(&[9; 32])).clone(),
        renew_s: None,
        parent_trust: ParentTrust::Certified,
        appraisal: Appraisal::new([5; 32]),
    }
}

fn hello() -> v1::Hello {
    v1::Hello {
        v: 1,
        boot: "child-boot".into(),
        epoch: 0,
        generation: 0,
        digest: None,
        incarnation: 1,
        role: v1::NodeRole::Agent,
        site: SitePath::new("plant-7/plc-1").unwrap(),
        labels: BTreeMap::new(),
        capabilities: v1::Capabilities::default(),
        software: "test".into(),
        trust_version: 1,
        documents: Default::default(),
        renew: false,
        box_key: None,
        alarms: Vec::new(),
    }
}

fn report(from: u64, to: u64) -> v1::Report {
    let entry = v1::Entry {
        seq: to,
        key: format!("alarm/{to}"),
        at_ms: 5,
        body: Body::Over,
    };
    v1::Report {
        v: 1,
        incarnation: 1,
        from,
        to,
        entries: vec![entry],
        all_keys: None,
    }
}

impl Rig {
    fn boot(stored: Stored) -> Self {
        Self::boot_with(stored, BTreeMap::new())
    }

    /// With what it holds of artifacts that are not whole.
    fn boot_with(stored: Stored, partial: BTreeMap<Digest, u64>) -> Self {
        let now = Now {
            mono_ms: 1000,
            wall_ms: EPOCH_S * 1000,
        };
        let gateway = Gateway::boot(config(), stored.clone(), BTreeMap::new(), partial, now);
        let mut rig = Self {
            gateway,
            stored,
            now,
            child: identity(CHILD, 10),
        };
        rig.perform();
        rig
    }

    /// A gateway whose child has said hello while the parent is away.
    fn greeted() -> Self {
        let mut rig = Self::boot(Stored::default());
        rig.take(Event::ChildConnected(node(CHILD)));
        rig.hello();
        rig
    }

    fn take(&mut self, event: Event) -> Vec<Action> {
        self.gateway.handle(event, self.now);
        self.perform()
    }

    /// Performs all actions: what an acknowledgement or a twin depends on must be on disk by then.
    fn perform(&mut self) -> Vec<Action> {
        let mut done = Vec::new();
        while let Some(action) = self.gateway.poll_action() {
            match &action {
                Action::Persist(ops) => self.stored.apply(ops),
                Action::Ack { child, ack, .. } => {
                    let held = self
                        .stored
                        .tree
                        .received
                        .get(&(child.clone(), ack.stream))
                        .copied()
                        .unwrap_or_default();
                    assert_eq!(
                        held,
                        Position {
                            incarnation: ack.incarnation,
                            seq: ack.seq
                        },
                        "acknowledged, not kept"
                    );
                }
                Action::Forward {
                    kind: Kind::Twin,
                    bytes,
                    ..
                } => {
                    assert!(
                        self.stored.tree.twins.values().any(|b| b == bytes),
                        "handed on, not kept"
                    );
                }
                Action::SendUp(UpMessage::Relay(relay)) => {
                    for item in &relay.items {
                        assert!(
                            self.stored.spool.items.values().any(|i| *i.bytes == *item.body),
                            "relayed, not kept"
                        );
                    }
                }
                _ => {}
            }
            done.push(action);
        }
        done
    }

    fn child_says<T: serde::Serialize>(&mut self, kind: Kind, value: &T, introduce: bool) -> Vec<Action> {
        let bytes = self.child.seal(kind, value, introduce);
        self.take(Event::FromChild {
            child: node(CHILD),
            kind,
            bytes,
        })
    }

    fn hello(&mut self) -> Vec<Action> {
        self.child_says(Kind::Hello, &hello(), true)
    }

    fn report(&mut self, from: u64, to: u64) -> Vec<Action> {
        self.child_says(Kind::Report, &report(from, to), false)
    }

    fn parent_says<T: serde::Serialize>(&mut self, kind: Kind, value: &T) -> Vec<Action> {
        let bytes = seal(kind, &claims(HUB, ME), value, &[], &hub_key()).unwrap();
        self.take(Event::FromParent { kind, bytes })
    }

    /// Connects the parent, which answers both streams with what it holds of this gateway.
    fn welcome(&mut self) -> Vec<Action> {
        let mut actions = self.take(Event::ParentConnected);
        for stream in [Stream::Report, Stream::Relay] {
            let ack = v1::Ack {
                v: 1,
                stream,
                incarnation: 0,
                seq: 0,
                hello: Some("boot-1".into()),
                away_s: 0,
            };
            actions.extend(self.parent_says(Kind::Ack, &ack));
        }
        actions
    }

    /// The reports of the child in the store's spool.
    fn spooled_reports(&self) -> Vec<Vec<u8>> {
        let items = self.stored.spool.items.values();
        items.filter(|i| i.kind == "report").map(|i| i.bytes.clone()).collect()
    }
}

fn acks(actions: &[Action]) -> Vec<(u64, Option<&str>, bool)> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Ack { ack, introduce, .. } => Some((ack.seq, ack.hello.as_deref(), *introduce)),
            _ => None,
        })
        .collect()
}

fn forwards(actions: &[Action]) -> Vec<(&str, Kind, &[u8])> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Forward { child, kind, bytes } => Some((child.as_str(), *kind, bytes.as_slice())),
            _ => None,
        })
        .collect()
}

fn place(actions: &[Action], what: impl Fn(&Action) -> bool) -> usize {
    actions
        .iter()
        .position(what)
        .unwrap_or_else(|| panic!("not in {actions:?}"))
}

fn ops(actions: &[Action]) -> Vec<&Op> {
    let ops = actions
        .iter()
        .filter_map(|a| if let Action::Persist(ops) = a { Some(ops) } else { None });
    ops.flatten().collect()
}

#[test]
fn a_kept_twin_is_handed_on_byte_for_byte_while_the_parent_is_away() {
    let bytes = support::sign_twin(&support::twin(CHILD, 3, vec![support::workload("app/a", "one")]));
    let mut rig = Rig::boot(Stored::default());
    rig.welcome();
    let actions = rig.take(Event::FromParent {
        kind: Kind::Twin,
        bytes: bytes.clone(),
    });
    assert!(ops(&actions).contains(&&Op::Tree(TreeOp::PutTwin {
        node: node(CHILD),
        bytes: bytes.clone()
    })));
    assert!(forwards(&actions).is_empty(), "its way is not known");
    rig.take(Event::ParentDisconnected);

    let actions = rig.take(Event::ChildConnected(node(CHILD)));
    assert!(forwards(&actions).is_empty(), "not before it has said hello");
    let actions = rig.hello();
    assert_eq!(forwards(&actions), [(CHILD, Kind::Twin, bytes.as_slice())]);
    assert_eq!(acks(&actions), [(0, Some("child-boot"), true)]);
    let persist = place(&actions, |a| matches!(a, Action::Persist(_)));
    assert!(persist < place(&actions, |a| matches!(a, Action::Ack { .. })));
    assert!(
        !actions.iter().any(|a| matches!(a, Action::SendUp(_))),
        "the parent is away"
    );

    // The same from the disk, after a restart that never saw the parent.
    let mut again = Rig::boot(rig.stored.clone());
    assert_eq!(
        again.gateway.tree().desired(&node(CHILD)),
        Some(Version {
            epoch: 1,
            generation: 3
        })
    );
    again.take(Event::ChildConnected(node(CHILD)));
    assert_eq!(forwards(&again.hello()), [(CHILD, Kind::Twin, bytes.as_slice())]);

    // It is repeated until it is reported, and not after.
    rig.now.mono_ms += 500;
    assert_eq!(
        forwards(&rig.take(Event::Tick)),
        [(CHILD, Kind::Twin, bytes.as_slice())]
    );
    let digest = cnova_shared::twin::VerifiedTwin::reopen(&bytes, &support::trust())
        .unwrap()
        .digest();
    let body = Body::Twin {
        epoch: 1,
        generation: 3,
        digest,
        verified_ms: 1,
        committed_ms: 2,
    };
    let entry = v1::Entry {
        seq: 1,
        key: "twin".into(),
        at_ms: 1,
        body,
    };
    let has = v1::Report {
        entries: vec![entry],
        ..report(0, 1)
    };
    assert_eq!(acks(&rig.child_says(Kind::Report, &has, false)), [(1, None, false)]);
    rig.now.mono_ms += 3_600_000;
    assert!(forwards(&rig.take(Event::Tick)).is_empty());
}

#[test]
fn a_changed_twin_and_an_older_one_are_not_kept() {
    let mut rig = Rig::greeted();
    rig.welcome();
    let bytes = support::sign_twin(&support::twin(CHILD, 3, vec![]));
    assert_eq!(
        forwards(&rig.take(Event::FromParent {
            kind: Kind::Twin,
            bytes: bytes.clone()
        }))
        .len(),
        1
    );
    let mut changed = support::sign_twin(&support::twin(CHILD, 4, vec![]));
    *changed.last_mut().unwrap() ^= 1;
    let older = support::sign_twin(&support::twin(CHILD, 2, vec![]));
    let another = support::sign_twin(&support::twin(CHILD, 3, vec![support::workload("app/a", "one")]));
    for bad in [changed, older, another] {
        let actions = rig.take(Event::FromParent {
            kind: Kind::Twin,
            bytes: bad,
        });
        assert!(matches!(actions[..], [Action::Note(_)]), "{actions:?}");
    }
    assert_eq!(rig.stored.tree.twins[&node(CHILD)], bytes);
}

#[test]
fn a_report_is_kept_before_it_is_acknowledged() {
    let mut rig = Rig::greeted();
    let actions = rig.report(0, 1);
    let signed = rig.child.seal(Kind::Report, &report(0, 1), false);
    assert!(
        matches!(&actions[..], [Action::Persist(_), Action::Ack { .. }]),
        "{actions:?}"
    );
    assert_eq!(acks(&actions), [(1, None, false)]);
    let position = Position { incarnation: 1, seq: 1 };
    let received = Op::Tree(TreeOp::Received {
        child: node(CHILD),
        stream: Stream::Report,
        position,
    });
    assert!(ops(&actions).contains(&&received), "{actions:?}");
    let put = |op: &&Op| matches!(op, Op::Spool(SpoolOp::Put { item, .. }) if item.bytes == signed);
    assert_eq!(
        ops(&actions).into_iter().filter(put).count(),
        1,
        "byte for byte: {actions:?}"
    );
}

#[test]
fn a_report_that_comes_again_is_acknowledged_and_not_kept_twice() {
    let mut rig = Rig::greeted();
    rig.report(0, 1);
    rig.report(1, 2);
    let (stored, spooled) = (rig.stored.clone(), rig.gateway.spooled());
    for (from, to) in [(1, 2), (0, 1), (0, 2)] {
        let actions = rig.report(from, to);
        assert!(matches!(&actions[..], [Action::Ack { .. }]), "{actions:?}");
        assert_eq!(acks(&actions), [(2, None, false)]);
    }
    assert_eq!(rig.gateway.spooled(), spooled);
    assert_eq!(rig.stored, stored);
    // Also by a gateway that was started anew in between.
    let mut again = Rig::boot(rig.stored.clone());
    let before = again.stored.spool.clone();
    assert_eq!(acks(&again.report(1, 2)), [(2, None, false)]);
    assert_eq!(again.stored.spool, before);
}

#[test]
fn a_report_after_a_gap_is_not_taken() {
    let mut rig = Rig::greeted();
    rig.report(0, 1);
    let stored = rig.stored.clone();
    let actions = rig.report(2, 3);
    assert!(matches!(&actions[..], [Action::Ack { .. }]), "{actions:?}");
    assert_eq!(acks(&actions), [(1, None, false)], "the child goes back to here");
    assert_eq!(rig.stored, stored);
    assert_eq!(acks(&rig.report(1, 3)), [(3, None, false)], "told whole, it is taken");
    assert_eq!(rig.spooled_reports().len(), 2);
}

#[test]
fn what_a_child_did_not_sign_is_not_taken() {
    let mut rig = Rig::greeted();
    let stored = rig.stored.clone();
    let mut changed = rig.child.seal(Kind::Report, &report(0, 1), false);
    *changed.last_mut().unwrap() ^= 1;
    let other = identity("plc-2", 11).seal(Kind::Report, &report(0, 1), true);
    let hello_of_another = identity("plc-2", 11).seal(Kind::Hello, &hello(), true);
    let as_hello = rig.child.seal(Kind::Report, &report(0, 1), true);
    for (kind, bytes) in [
        (Kind::Report, changed),
        (Kind::Report, other),
        (Kind::Hello, hello_of_another),
        (Kind::Hello, as_hello),
        (Kind::Report, b"junk".to_vec()),
    ] {
        let actions = rig.take(Event::FromChild {
            child: node(CHILD),
            kind,
            bytes,
        });
        assert!(matches!(&actions[..], [Action::Note(_)]), "{actions:?}");
    }
    assert_eq!(rig.stored, stored);
}

#[test]
fn what_was_said_while_the_parent_was_away_goes_up_unchanged() {
    let mut rig = Rig::greeted();
    rig.report(0, 1);
    let expected: Vec<Vec<u8>> = rig.stored.spool.items.values().map(|i| i.bytes.clone()).collect();
    assert_eq!(expected.len(), 2, "a hello and a report");
    let mut rig = Rig::boot(rig.stored);
    let actions = rig.welcome();
    assert!(matches!(actions[0], Action::SendUp(UpMessage::Hello(_))), "{actions:?}");
    let relays: Vec<&v1::Relay> = actions
        .iter()
        .filter_map(|a| {
            if let Action::SendUp(UpMessage::Relay(r)) = a {
                Some(r)
            } else {
                None
            }
        })
        .collect();
    assert_eq!(relays.len(), 1);
    let bodies: Vec<Vec<u8>> = relays[0].items.iter().map(|i| i.body.to_vec()).collect();
    assert_eq!(bodies, expected);
    let (incarnation, seq) = (relays[0].incarnation, relays[0].to);
    let ack = v1::Ack {
        v: 1,
        stream: Stream::Relay,
        incarnation,
        seq,
        hello: None,
        away_s: 0,
    };
    rig.parent_says(Kind::Ack, &ack);
    assert!(
        rig.stored.spool.items.is_empty() && rig.gateway.spooled() == 0,
        "the parent has it"
    );
}

#[test]
fn an_artifact_is_fetched_once_and_served_whole_only() {
    let mut rig = Rig::greeted();
    let digest = Digest::of(b"one");
    let want = v1::ChunkRequest {
        v: 1,
        digest,
        offset: 0,
        length: 100,
        base: None,
    };
    assert!(
        rig.child_says(Kind::ChunkRequest, &want, false).is_empty(),
        "it waits for the parent"
    );
    let asked = |actions: &[Action]| {
        actions
            .iter()
            .filter(|a| matches!(a, Action::SendUp(UpMessage::ChunkRequest(_))))
            .count()
    };
    assert_eq!(asked(&rig.welcome()), 1);
    assert_eq!(
        asked(&rig.child_says(Kind::ChunkRequest, &want, false)),
        0,
        "it is on its way"
    );
    let chunk = v1::Chunk {
        v: 1,
        digest,
        offset: 0,
        total: 150,
        data: vec![0; 150],
        missing: None,
    };
    let actions = rig.parent_says(Kind::Chunk, &chunk);
    assert!(
        matches!(&actions[..], [Action::AppendChunk { complete: true, .. }]),
        "{actions:?}"
    );
    let serve = Action::ServeChunk {
        child: node(CHILD),
        digest,
        offset: 0,
        length: 100,
    };
    assert_eq!(
        rig.take(Event::ArtifactStored { digest, size: 150 }),
        std::slice::from_ref(&serve),
        "one answer"
    );
    rig.take(Event::ParentDisconnected);
    assert_eq!(
        rig.child_says(Kind::ChunkRequest, &want, false),
        [serve],
        "from the cache, with no parent"
    );
}

/// The power was cut between the last byte and the check: nobody knows any more how long it is.
#[test]
fn an_artifact_that_was_whole_when_the_gateway_stopped_is_served_by_the_next_one() {
    let (digest, size) = (Digest::of(b"one"), 150);
    let partial = BTreeMap::from([(digest, size)]);
    let mut rig = Rig::boot_with(Stored::default(), partial);
    rig.take(Event::ChildConnected(node(CHILD)));
    rig.hello();
    rig.welcome();
    let want = |offset, length| v1::ChunkRequest {
        v: 1,
        digest,
        offset,
        length,
        base: None,
    };
    let asked = |actions: &[Action]| -> Vec<(u64, u64)> {
        let one = |a: &Action| match a {
            Action::SendUp(UpMessage::ChunkRequest(r)) => Some((r.offset, r.length)),
            _ => None,
        };
        actions.iter().filter_map(one).collect()
    };
    let first = asked(&rig.child_says(Kind::ChunkRequest, &want(0, 100), false));
    assert_eq!(first[0].0, size);
    // As a hub answers who asks beyond the end.
    let chunk = |offset, data: &[u8], missing: Option<&str>| v1::Chunk {
        v: 1,
        digest,
        offset,
        total: size,
        data: data.to_vec(),
        missing: missing.map(str::to_owned),
    };
    let beyond = chunk(size, &[], Some("it has 150 bytes, byte 150 was asked for"));
    let actions = rig.parent_says(Kind::Chunk, &beyond);
    assert_eq!(asked(&actions), [(size - 1, 1)], "{actions:?}");
    let actions = rig.parent_says(Kind::Chunk, &chunk(size - 1, &[0], None));
    assert!(
        matches!(&actions[..], [Action::AppendChunk { complete: true, .. }]),
        "{actions:?}"
    );
    let actions = rig.take(Event::ArtifactStored { digest, size });
    assert!(matches!(&actions[..], [Action::ServeChunk { .. }]), "{actions:?}");
}

fn renew() -> v1::Enrol {
    v1::Enrol {
        v: 1,
        ticket: 5,
        step: v1::EnrolStep::Renew {
            key: cnova_shared::keys::Signer::public_key(&support::soft(10)).clone(),
        },
    }
}

fn refusal(ticket: u64) -> v1::Enrolled {
    v1::Enrolled {
        v: 1,
        ticket,
        answer: v1::EnrolAnswer::Refused(v1::EnrolRefused {
            gate: "token".into(),
            message: "m".into(),
            advice: "a".into(),
            passing: false,
        }),
    }
}

#[test]
fn what_a_child_asks_about_its_certificate_is_carried_unchanged_and_never_kept() {
    let mut rig = Rig::greeted();
    let before = rig.stored.clone();
    let away = rig.child_says(Kind::Enrol, &renew(), false);
    assert!(!away.iter().any(|a| matches!(a, Action::CarryUp { .. })), "{away:?}");
    rig.welcome();
    let bytes = rig.child.seal(Kind::Enrol, &renew(), false);
    let child = node(CHILD);
    let kind = Kind::Enrol;
    let carried = rig.take(Event::FromChild {
        child: child.clone(),
        kind,
        bytes: bytes.clone(),
    });
    assert!(carried.contains(&Action::CarryUp { kind, bytes }), "{carried:?}");
    // Somebody else's key under the child's name goes nowhere.
    let forged = identity(CHILD, 11).seal(Kind::Enrol, &renew(), false);
    let refused = rig.take(Event::FromChild {
        child: child.clone(),
        kind,
        bytes: forged,
    });
    assert!(
        !refused.iter().any(|a| matches!(a, Action::CarryUp { .. })),
        "{refused:?}"
    );
    assert_eq!(
        rig.stored.spool.items.len(),
        before.spool.items.len(),
        "nothing waits on the disk"
    );

    let answer = seal(Kind::Enrolled, &claims(HUB, CHILD), &refusal(5), &[], &hub_key()).unwrap();
    let kind = Kind::Enrolled;
    let down = rig.take(Event::FromParent {
        kind,
        bytes: answer.clone(),
    });
    let bytes = answer;
    assert!(down.contains(&Action::Forward { child, kind, bytes }), "{down:?}");
}

#[test]
fn a_newcomer_is_answered_by_the_hub_and_by_nobody_else() {
    let mut rig = Rig::greeted();
    let step = || {
        v1::EnrolStep::Finish(v1::EnrolFinish {
            session: vec![1],
            proof: vec![2],
        })
    };
    let gate = |actions: &[Action]| {
        actions.iter().find_map(|a| match a {
            Action::AnswerNewcomer {
                door,
                answer: v1::EnrolAnswer::Refused(r),
            } => Some((*door, r.gate.clone())),
            _ => None,
        })
    };
    let away = rig.take(Event::Newcomer { door: 1, step: step() });
    assert_eq!(gate(&away), Some((1, "hub-away".into())));
    rig.welcome();
    let asked = rig.take(Event::Newcomer { door: 2, step: step() });
    let ticket = asked.iter().find_map(|a| match a {
        Action::SendUp(UpMessage::Enrol(enrol)) => Some(enrol.ticket),
        _ => None,
    });
    let ticket = ticket.unwrap();
    // The parent is a gateway or a liar: only what the hub signed for this gateway counts.
    let child_key = cnova_shared::keys::SoftKey::ed25519_from_seed(&[10; 32]);
    for bytes in [
        seal(Kind::Enrolled, &claims(HUB, ME), &refusal(ticket), &[], &child_key).unwrap(),
        seal(Kind::Command, &claims(HUB, ME), &refusal(ticket), &[], &hub_key()).unwrap(),
        seal(Kind::Enrolled, &claims(HUB, ME), &refusal(ticket + 9), &[], &hub_key()).unwrap(),
    ] {
        let kind = Kind::Enrolled;
        assert_eq!(gate(&rig.take(Event::FromParent { kind, bytes })), None);
    }
    assert_eq!(
        gate(&rig.parent_says(Kind::Enrolled, &refusal(ticket))),
        Some((2, "token".into()))
    );
    assert_eq!(gate(&rig.parent_says(Kind::Enrolled, &refusal(ticket))), None, "once");
}
