//! Rotation, revocation and delegation at a gateway, also while the hub is away.

#![allow(clippy::unwrap_used)]

#[path = "../../../shared/tests/support/rotation.rs"]
mod rotation;
#[path = "../../../shared/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use cnova_attestation::parent::ParentTrust;
use cnova_gateway_core::{Action, Appraisal, Config, Event, Gateway, Op, Stored, UpMessage};
use cnova_shared::envelope::seal;
use cnova_shared::ids::SitePath;
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::limits;
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::tree::TreeOp;
use cnova_shared::trust_documents::{Delegation, Right};
use cnova_shared::wire::v1::{self, Body, TrustItem};
use rotation::*;
use support::{EPOCH_S, HUB, Identity, claims, hub_key, identity, node, twin};

const ME: &str = "line-gw";
const CHILD: &str = "plc-1";

struct Rig {
    gateway: Gateway,
    stored: Stored,
    now: Now,
    child: Identity,
}

fn hello(trust_version: u64) -> v1::Hello {
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
        trust_version,
        documents: BTreeMap::new(),
        renew: false,
        box_key: None,
        alarms: Vec::new(),
    }
}

impl Rig {
    fn boot(stored: Stored) -> Self {
        let now = Now {
            mono_ms: 1000,
            wall_ms: EPOCH_S * 1000,
        };
        let config = Config {
            node: node(ME),
            site: SitePath::new("plant-7").unwrap(),
            parent: node(HUB),
            labels: BTreeMap::new(),
            software: "test".into(),
            boot: "boot-1".into(),
            trust: flashed(),
            alarms: Vec::new(),
            key: identity(ME, 20).key.public_key().clone(),
            renew_s: None,
            parent_trust: ParentTrust::Certified,
            appraisal: Appraisal::new([5; 32]),
        };
        let gateway = Gateway::boot(config, stored.clone(), BTreeMap::new(), BTreeMap::new(), now);
        let mut rig = Self {
            gateway,
            stored,
            now,
            child: identity(CHILD, 10),
        };
        rig.perform();
        rig
    }

    fn take(&mut self, event: Event) -> Vec<Action> {
        self.gateway.handle(event, self.now);
        self.perform()
    }

    fn perform(&mut self) -> Vec<Action> {
        let mut done = Vec::new();
        while let Some(action) = self.gateway.poll_action() {
            if let Action::Persist(ops) = &action {
                self.stored.apply(ops);
            }
            done.push(action);
        }
        done
    }

    fn child_says<T: serde::Serialize>(&mut self, kind: Kind, value: &T) -> Vec<Action> {
        let bytes = self.child.seal(kind, value, kind == Kind::Hello);
        let child = node(CHILD);
        self.take(Event::FromChild { child, kind, bytes })
    }

    fn trust(&mut self, items: Vec<TrustItem>, key: &SoftKey) -> Vec<Action> {
        let bytes = seal(Kind::Trust, &claims(HUB, ME), &trust_message(items), &[], key).unwrap();
        self.take(Event::FromParent {
            kind: Kind::Trust,
            bytes,
        })
    }

    fn twin_by(&mut self, key: &SoftKey, generation: u64) -> Vec<Action> {
        let bytes = twin_by(key, &twin(CHILD, generation, Vec::new()));
        self.take(Event::FromParent {
            kind: Kind::Twin,
            bytes,
        })
    }

    fn wait(&mut self, ms: u64) -> Vec<Action> {
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
        self.take(Event::Tick)
    }

    fn alarm(&self, code: &str) -> bool {
        let key = format!("alarm/{code}");
        let mut entries = self.stored.stream.entries.iter();
        entries.any(|e| e.key == key && matches!(e.body, Body::Alarm(_)))
    }
}

fn handed_on(actions: &[Action]) -> Vec<&v1::Trust> {
    let mut all = Vec::new();
    for action in actions {
        if let Action::Trust { trust, .. } = action {
            all.push(trust);
        }
    }
    all
}

fn forwarded(actions: &[Action]) -> bool {
    actions
        .iter()
        .any(|a| matches!(a, Action::Forward { kind: Kind::Twin, .. }))
}

/// A gateway whose child holds the first bundle, with this gateway's parent connected.
fn greeted() -> Rig {
    let mut rig = Rig::boot(Stored::default());
    rig.take(Event::ParentConnected);
    rig.take(Event::ChildConnected(node(CHILD)));
    rig.child_says(Kind::Hello, &hello(1));
    rig
}

#[test]
fn a_chain_is_kept_before_it_is_handed_on_and_said_again_until_the_child_says_that_it_has_it() {
    let mut rig = greeted();
    let actions = rig.trust(vec![bundle_item(2), bundle_item(3)], &hub_key());
    let kept = actions
        .iter()
        .position(|a| matches!(a, Action::Persist(ops) if ops.iter().any(|o| matches!(o, Op::Trust(_)))));
    let sent = actions.iter().position(|a| matches!(a, Action::Trust { .. }));
    assert!(kept.unwrap() < sent.unwrap());
    assert_eq!(handed_on(&actions)[0].items, [bundle_item(2), bundle_item(3)]);
    assert!(handed_on(&rig.wait(limits::TRUST_RESEND_MIN_MS - 1000)).is_empty());
    assert_eq!(handed_on(&rig.wait(1000)).len(), 1);
    let actions = rig.child_says(Kind::Hello, &hello(2));
    assert_eq!(handed_on(&actions)[0].items, [bundle_item(3)], "it has the other one");
    assert!(handed_on(&rig.child_says(Kind::Hello, &hello(3))).is_empty());
    assert!(handed_on(&rig.wait(limits::TRUST_RESEND_MAX_MS * 2)).is_empty());
    // And this gateway says what it holds.
    let mut rig = Rig::boot(rig.stored.clone());
    let actions = rig.take(Event::ParentConnected);
    let said = actions.iter().find_map(|a| match a {
        Action::SendUp(UpMessage::Hello(h)) => Some(h.trust_version),
        _ => None,
    });
    assert_eq!(said, Some(3));
}

#[test]
fn a_stolen_key_is_cut_off_also_while_the_hub_is_away() {
    let mut rig = greeted();
    assert!(forwarded(&rig.twin_by(&hub_key(), 1)));
    rig.trust(vec![bundle_item(2), bundle_item(3)], &hub_key());
    rig.take(Event::ParentDisconnected);
    let actions = rig.twin_by(&hub_key(), 2);
    assert!(!forwarded(&actions));
    let refused = actions
        .iter()
        .any(|a| matches!(a, Action::Note(n) if n.contains("is not trusted here")));
    assert!(refused, "{actions:?}");
    // What it held of that key before is not sent any more either, not even after a restart.
    assert!(!forwarded(&rig.wait(limits::RESEND_MAX_MS * 2)));
    let mut rig = Rig::boot(rig.stored.clone());
    rig.take(Event::ChildConnected(node(CHILD)));
    let actions = rig.child_says(Kind::Hello, &hello(1));
    assert!(
        !forwarded(&actions) && handed_on(&actions).len() == 1,
        "the child hears of the rotation from its gateway"
    );
}

#[test]
fn the_same_twin_signed_anew_replaces_the_stored_bytes_and_goes_to_whoever_needs_it() {
    let mut rig = greeted();
    rig.twin_by(&hub_key(), 1);
    rig.trust(vec![bundle_item(2), bundle_item(3)], &hub_key());
    let renewed = twin_by(&second_key(), &twin(CHILD, 1, Vec::new()));
    let actions = rig.twin_by(&second_key(), 1);
    let put = |op: &Op| matches!(op, Op::Tree(TreeOp::PutTwin { bytes, .. }) if *bytes == renewed);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Persist(ops) if ops.iter().any(put)))
    );
    assert!(forwarded(&actions), "the child has no twin yet");
    let same = v1::Hello {
        epoch: 1,
        generation: 1,
        digest: Some(
            cnova_shared::twin::VerifiedTwin::reopen(&renewed, rig.gateway.trust().bundle())
                .unwrap()
                .digest(),
        ),
        ..hello(3)
    };
    assert!(!forwarded(&rig.child_says(Kind::Hello, &same)));
    let by_old_key = v1::Hello { renew: true, ..same };
    assert!(forwarded(&rig.child_says(Kind::Hello, &by_old_key)));
}

#[test]
fn a_revoked_node_is_not_heard_also_after_a_restart_without_the_hub() {
    let mut rig = greeted();
    rig.trust(vec![bundle_item(2)], &hub_key());
    let key = rig.child.key.public_key().id();
    let actions = rig.trust(vec![revocations(9, &[(CHILD, Some(key))], &second_key())], &hub_key());
    let view = actions.iter().find_map(|a| match a {
        Action::TrustChanged(view) => Some(view.clone()),
        _ => None,
    });
    let why = view.unwrap().refuses(&rig.child.chain[0]).unwrap();
    assert_eq!(why, "plc-1 is revoked: stolen");
    let report = v1::Report {
        v: 1,
        incarnation: 1,
        from: 0,
        to: 1,
        entries: Vec::new(),
        all_keys: None,
    };
    let before = rig.gateway.spooled();
    rig.child_says(Kind::Report, &report);
    assert!(!forwarded(&rig.twin_by(&second_key(), 1)), "and it gets nothing new");
    let mut rig = Rig::boot(rig.stored.clone());
    rig.take(Event::ChildConnected(node(CHILD)));
    let actions = rig.child_says(Kind::Hello, &hello(2));
    let refused = actions
        .iter()
        .any(|a| matches!(a, Action::Note(n) if n.contains("revoked: stolen")));
    assert!(
        refused && !actions.iter().any(|a| matches!(a, Action::Ack { .. })),
        "{actions:?}"
    );
    assert_eq!(rig.gateway.spooled(), before);
    // Another device may take the name.
    rig.child = identity(CHILD, 11);
    let actions = rig.child_says(Kind::Hello, &hello(2));
    assert!(actions.iter().any(|a| matches!(a, Action::Ack { .. })), "{actions:?}");
}

#[test]
fn a_revoked_node_is_not_heard_when_another_gateway_carries_it() {
    let mut rig = Rig::boot(Stored::default());
    rig.take(Event::ParentConnected);
    rig.trust(vec![bundle_item(2)], &hub_key());
    let carrier = identity("cell-gw", 20);
    let gateway = v1::Hello {
        role: v1::NodeRole::Gateway,
        site: SitePath::new("plant-7/cell-gw").unwrap(),
        ..hello(2)
    };
    let from = |kind, bytes| Event::FromChild {
        child: node("cell-gw"),
        kind,
        bytes,
    };
    rig.take(from(Kind::Hello, carrier.seal(Kind::Hello, &gateway, true)));
    let carried = |from: u64, child: &Identity| {
        let item = v1::RelayItem {
            kind: "hello".into(),
            body: child.seal(Kind::Hello, &hello(2), true).into(),
        };
        v1::Relay {
            v: 1,
            incarnation: 1,
            from,
            to: from + 1,
            items: vec![item],
        }
    };
    let relay = carrier.seal(Kind::Relay, &carried(0, &rig.child), false);
    rig.take(from(Kind::Relay, relay));
    assert!(rig.gateway.tree().via(&node(CHILD)).is_some());
    rig.trust(vec![revocations(9, &[(CHILD, None)], &second_key())], &hub_key());
    let before = rig.gateway.spooled();
    let relay = carrier.seal(Kind::Relay, &carried(1, &rig.child), false);
    let actions = rig.take(from(Kind::Relay, relay));
    let refused = actions
        .iter()
        .any(|a| matches!(a, Action::Note(n) if n.contains("revoked: stolen")));
    assert!(refused && rig.gateway.spooled() == before, "{actions:?}");
}

#[test]
fn a_delegation_is_kept_and_handed_to_the_children_it_decides_for() {
    let mut rig = greeted();
    rig.trust(vec![bundle_item(2)], &hub_key());
    rig.child_says(Kind::Hello, &hello(2));
    let d = Delegation {
        key: identity(ME, 20).key.public_key().clone(),
        ..delegation(3, &node(ME), "plant-7", EPOCH_S + 100)
    };
    let item = delegation_item(&d, &second_key());
    let actions = rig.trust(vec![item.clone()], &hub_key());
    assert_eq!(handed_on(&actions)[0].items, [item]);
    assert!(rig.gateway.delegated(Right::Appraise, rig.now).is_some());
    assert!(rig.gateway.delegated(Right::MoveFloating, rig.now).is_none());
    let has = v1::Hello {
        documents: BTreeMap::from([(format!("d/{ME}"), 3)]),
        ..hello(2)
    };
    assert!(handed_on(&rig.child_says(Kind::Hello, &has)).is_empty());
    rig.wait(100_000);
    assert!(rig.gateway.delegated(Right::Appraise, rig.now).is_none(), "it is over");
}

#[test]
fn an_older_bundle_is_refused_and_reported() {
    let mut rig = greeted();
    rig.trust(vec![bundle_item(3)], &hub_key());
    rig.trust(vec![bundle_item(2)], &second_key());
    assert_eq!(rig.gateway.trust().version(), 3);
    assert!(rig.alarm("trust-refused"));
}
