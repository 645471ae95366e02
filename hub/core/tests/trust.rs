//! What the fleet trusts, at the hub: bundles, revocations, delegations, and everything in force signed anew.

#![allow(clippy::unwrap_used)]

#[path = "../../../shared/tests/support/rotation.rs"]
mod rotation;
#[path = "../../../shared/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use cnova_attestation::reference;
use cnova_hub_core::{Action, Appraisal, Config, DelegationRules, Draft, Event, Hub, Op, Outcome, Stored};
use cnova_shared::ids::SitePath;
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::limits;
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::trust::TrustOp;
use cnova_shared::trust_documents::Document;
use cnova_shared::wire::v1;
use rotation::*;
use support::{EPOCH_S, HUB, Identity, claims, hub_key, identity, node};

struct Rig {
    hub: Hub,
    stored: Stored,
    now: Now,
    key: fn() -> SoftKey,
}

impl Rig {
    fn boot(stored: Stored) -> Self {
        let now = Now {
            mono_ms: 1000,
            wall_ms: EPOCH_S * 1000,
        };
        let config = Config {
            node: node(HUB),
            trust: flashed(),
            appraisal: Appraisal::new([7; 32]),
            enrolment: None,
            delegation: DelegationRules {
                gateways: [node("line-gw")].into(),
                ..DelegationRules::default()
            },
        };
        let hub = Hub::boot(config, stored.clone(), now);
        let mut rig = Self {
            hub,
            stored,
            now,
            key: hub_key,
        };
        rig.perform();
        let id = hub_key().public_key().id();
        rig.take(Event::Signer(id));
        rig
    }

    fn take(&mut self, event: Event) -> Vec<Action> {
        self.hub.handle(event, self.now);
        self.perform()
    }

    /// Signs at once, as the daemon does.
    fn perform(&mut self) -> Vec<Action> {
        let mut done = Vec::new();
        while let Some(action) = self.hub.poll_action() {
            let key = (self.key)();
            let now_s = self.now.wall_ms / 1000;
            match &action {
                Action::Persist(ops) => self.stored.apply(ops),
                Action::SignTwin(twin) => self.hub.handle(Event::TwinSigned(twin_by(&key, twin)), self.now),
                Action::SignDocument(draft) => {
                    let signed = match &**draft {
                        Draft::Revocations(list) => list.seal(&node(HUB), now_s, &key),
                        Draft::Delegation(d) => d.seal(&node(HUB), now_s, &key),
                        Draft::BootPolicy(p) => p.seal(&node(HUB), now_s, &key),
                        Draft::References(r) => Ok(reference::seal(r, &claims(HUB, "fleet"), &key).unwrap()),
                    };
                    let signed = signed.map_err(|e| e.to_string());
                    self.hub.handle(Event::DocumentSigned(draft.clone(), signed), self.now);
                }
                _ => {}
            }
            done.push(action);
        }
        done
    }

    fn hello(&mut self, who: &Identity, role: v1::NodeRole, trust_version: u64) -> Vec<Action> {
        let hello = v1::Hello {
            v: 1,
            boot: "b".into(),
            epoch: 0,
            generation: 0,
            digest: None,
            incarnation: 1,
            role,
            site: SitePath::new(format!("plant-7/{}", who.node)).unwrap(),
            labels: BTreeMap::new(),
            capabilities: v1::Capabilities::default(),
            software: "test".into(),
            trust_version,
            documents: BTreeMap::new(),
            renew: false,
            box_key: None,
            alarms: Vec::new(),
        };
        let bytes = who.seal(Kind::Hello, &hello, true);
        let child = who.node.clone();
        let kind = Kind::Hello;
        self.take(Event::FromChild { child, kind, bytes })
    }

    /// The next bundle, with the second key.
    fn rotate(&mut self, version: u64) -> Vec<Action> {
        let bytes = bundle(version);
        let mut actions = self.take(Event::PushBundle {
            request: version,
            bytes,
        });
        self.key = second_key;
        actions.extend(self.take(Event::Signer(second_key().public_key().id())));
        actions
    }
}

fn answer(actions: &[Action]) -> &Outcome {
    for action in actions {
        if let Action::Answer { outcome, .. } = action {
            return outcome;
        }
    }
    panic!("no answer in {actions:?}")
}

fn sent(actions: &[Action]) -> Vec<v1::TrustItem> {
    let items = |a: &Action| match a {
        Action::Trust { trust, .. } => trust.items.clone(),
        _ => Vec::new(),
    };
    actions.iter().flat_map(items).collect()
}

#[test]
fn the_hub_keeps_every_bundle_and_sends_each_node_what_it_missed() {
    let mut rig = Rig::boot(Stored::default());
    assert_eq!(rig.stored.trust.bundles.keys().copied().collect::<Vec<_>>(), [1]);
    for version in 2..=4 {
        let actions = rig.rotate(version);
        assert!(
            matches!(answer(&actions), Outcome::Trusted { changed: true, .. }),
            "{actions:?}"
        );
    }
    let mut rig = Rig::boot(rig.stored.clone());
    assert_eq!(rig.hub.trust().version(), 4);
    let child = identity("plc-1", 10);
    rig.take(Event::ChildConnected(node("plc-1")));
    let actions = rig.hello(&child, v1::NodeRole::Agent, 2);
    assert_eq!(sent(&actions), [bundle_item(3), bundle_item(4)]);
    let actions = rig.take(Event::PushBundle {
        request: 9,
        bytes: bundle(2),
    });
    assert!(
        matches!(answer(&actions), Outcome::Trusted { changed: false, .. }),
        "it is in the chain"
    );
    let mut other = Rig::boot(Stored::default());
    let actions = other.take(Event::PushBundle {
        request: 9,
        bytes: bundle(4),
    });
    assert!(matches!(answer(&actions), Outcome::Refused { .. }), "a link is missing");
}

#[test]
fn twins_in_force_are_signed_anew_by_a_new_key_with_their_versions() {
    let mut rig = Rig::boot(Stored::default());
    // Somebody else's store was restored here: the node says that it has a twin, and is overtaken.
    let child = identity("plc-1", 10);
    rig.take(Event::ChildConnected(node("plc-1")));
    rig.hello(&child, v1::NodeRole::Agent, 1);
    let held = support::twin("plc-1", 3, Vec::new());
    rig.stored.tree.twins.insert(node("plc-1"), twin_by(&hub_key(), &held));
    let mut rig = Rig::boot(rig.stored.clone());
    rig.rotate(2);
    let bytes = &rig.stored.tree.twins[&node("plc-1")];
    assert_eq!(
        *bytes,
        twin_by(&second_key(), &held),
        "the same twin by the new key, on disk"
    );
    assert_eq!(rig.hub.twin(&node("plc-1")), Some(held));
}

#[test]
fn a_node_is_revoked_and_let_in_again() {
    let mut rig = Rig::boot(Stored::default());
    let revoke = |request| Event::Revoke {
        request,
        node: node("plc-1"),
        keys_only: false,
        reason: "stolen".into(),
    };
    let actions = rig.take(revoke(1));
    assert!(
        matches!(answer(&actions), Outcome::Refused { reasons } if reasons[0].contains("role attestation")),
        "the first bundle does not let the hub sign that: {actions:?}"
    );
    rig.rotate(2);
    let child = identity("plc-1", 10);
    rig.take(Event::ChildConnected(node("plc-1")));
    rig.hello(&child, v1::NodeRole::Agent, 2);
    let actions = rig.take(revoke(2));
    assert!(matches!(answer(&actions), Outcome::Trusted { .. }), "{actions:?}");
    let persisted = |a: &Action| matches!(a, Action::Persist(ops) if ops.iter().any(|o| matches!(o, Op::Trust(TrustOp::PutRevocations(_)))));
    let position = |f: &dyn Fn(&Action) -> bool| actions.iter().position(f).unwrap();
    assert!(position(&persisted) < position(&|a| matches!(a, Action::Answer { .. })));
    assert_eq!(rig.hub.node(&node("plc-1")).unwrap().trust, "REVOKED");
    let mut rig = Rig::boot(rig.stored.clone());
    rig.key = second_key;
    rig.take(Event::Signer(second_key().public_key().id()));
    let before = rig.hub.trust_info().revocations_version;
    let new_key = true;
    let actions = rig.take(Event::Readmit {
        request: 3,
        node: node("plc-1"),
        new_key,
    });
    assert!(matches!(answer(&actions), Outcome::Trusted { .. }), "{actions:?}");
    assert!(rig.hub.trust_info().revocations_version > before);
    rig.take(Event::ChildConnected(node("plc-1")));
    let acked = |actions: &[Action]| actions.iter().any(|a| matches!(a, Action::Ack { .. }));
    assert!(
        !acked(&rig.hello(&child, v1::NodeRole::Agent, 2)),
        "the old key stays refused"
    );
    assert!(acked(&rig.hello(&identity("plc-1", 11), v1::NodeRole::Agent, 2)));
}

#[test]
fn gateways_that_may_decide_get_a_delegation_and_it_is_renewed_long_before_its_end() {
    let mut rig = Rig::boot(Stored::default());
    rig.rotate(2);
    let gateway = identity("line-gw", 20);
    rig.take(Event::ChildConnected(node("line-gw")));
    rig.hello(&gateway, v1::NodeRole::Gateway, 2);
    rig.take(Event::Tick);
    let of = |rig: &Rig| rig.hub.trust().delegation(&node("line-gw")).unwrap().value().clone();
    let first = of(&rig);
    assert_eq!(first.key, *gateway.key.public_key());
    assert_eq!(first.site.as_str(), "plant-7/line-gw");
    let half = rig.hub.trust_info().delegations[0].not_after - EPOCH_S;
    rig.now.wall_ms += half * 1000 / 2 + 1000;
    rig.now.mono_ms += 3_600_000;
    rig.take(Event::Tick);
    let second = of(&rig);
    assert!(second.version > first.version && second.not_after > first.not_after);
    rig.take(Event::Revoke {
        request: 1,
        node: node("line-gw"),
        keys_only: false,
        reason: "opened".into(),
    });
    rig.now.mono_ms += 3_600_000;
    rig.take(Event::Tick);
    assert!(of(&rig).rights.is_empty(), "what it may decide is taken back");
}

#[test]
fn a_node_that_stays_behind_is_an_alarm() {
    let mut rig = Rig::boot(Stored::default());
    rig.take(Event::ChildConnected(node("plc-1")));
    rig.hello(&identity("plc-1", 10), v1::NodeRole::Agent, 1);
    rig.rotate(2);
    let alarms = |rig: &Rig| rig.hub.node(&node("plc-1")).unwrap().alarms;
    assert!(alarms(&rig).is_empty());
    assert_eq!(rig.hub.trust_info().behind, BTreeMap::from([(node("plc-1"), 1)]));
    rig.now.wall_ms += limits::TRUST_BEHIND_MS;
    rig.take(Event::Tick);
    assert_eq!(alarms(&rig)[0].code, "trust-behind");
}
