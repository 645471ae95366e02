//! Gateways in the hub's place: they get reference values in time, and what they found is shown when the hub is back.

#![allow(clippy::unwrap_used)]

#[path = "../../../shared/tests/support/rotation.rs"]
mod rotation;
#[path = "../../../shared/tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};

use cnova_attestation::ear::{Ear, Status, TrustVector, VerifierId};
use cnova_attestation::reference::{self, PcrReference, ReferenceSet, Selector};
use cnova_hub_core::api::AttestChange;
use cnova_hub_core::{Action, Appraisal, Config, DelegationRules, Draft, Event, Hub, Op, Stored};
use cnova_shared::bundle::TrustBundle;
use cnova_shared::certificate::Tier;
use cnova_shared::envelope::{Claims, seal};
use cnova_shared::ids::Digest;
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::trust::TrustOp;
use cnova_shared::trust_documents::Document;
use cnova_shared::wire::v1::{self, TrustItemKind};
use rotation::*;
use support::{EPOCH_S, HUB, Identity, certified, claims, hub_key, node, soft};

const GATEWAY: &str = "line-gw";
const CHILD: &str = "plc-1";

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
            trust: TrustBundle::flashed(&bundle(2)).unwrap(),
            appraisal: Appraisal::new([7; 32]),
            enrolment: None,
            delegation: DelegationRules {
                gateways: [node(GATEWAY)].into(),
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
                Action::SignEar(ear) => {
                    let (node, bytes) = (ear.subject.clone(), sign(ear, HUB, &key));
                    self.hub.handle(Event::EarSigned { node, bytes }, self.now);
                }
                Action::SignDocument(draft) => {
                    let signed = match &**draft {
                        Draft::Delegation(d) => d.seal(&node(HUB), now_s, &key).unwrap(),
                        Draft::References(r) => reference::seal(r, &claims(HUB, "fleet"), &key).unwrap(),
                        other => panic!("{other:?}"),
                    };
                    self.hub
                        .handle(Event::DocumentSigned(draft.clone(), Ok(signed)), self.now);
                }
                _ => {}
            }
            done.push(action);
        }
        done
    }

    fn says(&mut self, who: &Identity, kind: Kind, bytes: Vec<u8>) -> Vec<Action> {
        let child = who.node.clone();
        self.take(Event::ChildConnected(child.clone()));
        self.take(Event::FromChild { child, kind, bytes })
    }

    fn hello(&mut self, who: &Identity, role: v1::NodeRole, documents: &[(&str, u64)]) -> Vec<Action> {
        let hello = v1::Hello {
            v: 1,
            boot: "b".into(),
            epoch: 0,
            generation: 0,
            digest: None,
            incarnation: 1,
            role,
            site: site_of(who).parse().unwrap(),
            labels: BTreeMap::new(),
            capabilities: v1::Capabilities::default(),
            software: "test".into(),
            trust_version: 2,
            documents: documents.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect(),
            renew: false,
            box_key: None,
            alarms: Vec::new(),
        };
        self.says(who, Kind::Hello, who.seal(Kind::Hello, &hello, true))
    }

    fn add_references(&mut self, name: &str) -> Vec<Action> {
        let values = BTreeSet::from([Digest::of(name.as_bytes())]);
        let events = BTreeSet::new();
        let set = ReferenceSet {
            name: name.into(),
            nodes: Selector {
                all: true,
                ..Selector::default()
            },
            pcrs: BTreeMap::from([(7, PcrReference { values, events })]),
            ..ReferenceSet::default()
        };
        let change = AttestChange::PutSet(Box::new(set));
        self.take(Event::Attest { request: 1, change })
    }

    /// The gateway reports what it says it found.
    fn reports(&mut self, gateway: &Identity, seq: u64, ear: Vec<u8>) -> Vec<Action> {
        let entry = v1::Entry {
            seq,
            key: format!("appraised/{CHILD}"),
            at_ms: 5,
            body: v1::Body::Appraised {
                node: node(CHILD),
                ear: ear.into(),
            },
        };
        let report = v1::Report {
            v: 1,
            incarnation: 1,
            from: seq - 1,
            to: seq,
            entries: vec![entry],
            all_keys: (seq == 1).then(|| vec![format!("appraised/{CHILD}")]),
        };
        self.says(gateway, Kind::Report, gateway.seal(Kind::Report, &report, false))
    }
}

fn site_of(who: &Identity) -> String {
    match who.node.as_str() {
        GATEWAY => "plant-7/line-2".into(),
        other => format!("plant-7/line-2/{other}"),
    }
}

fn gateway() -> Identity {
    certified(GATEWAY, 20, "plant-7/line-2", None)
}

fn child() -> Identity {
    certified(CHILD, 10, "plant-7/line-2/plc-1", Some(b"its attestation key"))
}

fn sign(ear: &Ear, iss: &str, key: &SoftKey) -> Vec<u8> {
    let claims = Claims {
        iss: node(iss),
        aud: ear.subject.clone(),
        iat: ear.iat,
        exp: Some(ear.exp),
    };
    seal(Kind::Ear, &claims, ear, &[], key).unwrap()
}

fn found(status: Status, iat: u64) -> Ear {
    Ear {
        subject: node(CHILD),
        key: soft(10).public_key().clone(),
        nonce: vec![1; 32],
        iat,
        exp: iat + 3600,
        verifier: VerifierId {
            developer: "Cloudnova".into(),
            build: "cnova at line-gw".into(),
        },
        status,
        vector: TrustVector::default(),
        policy: "image (references 1)".into(),
        tier: Tier::Tpm,
        boot_measured: true,
        findings: Vec::new(),
    }
}

fn sent(actions: &[Action], kind: TrustItemKind) -> Vec<String> {
    let to = |a: &Action| match a {
        Action::Trust { child, trust } if trust.items.iter().any(|i| i.kind == kind) => Some(child.to_string()),
        _ => None,
    };
    actions.iter().filter_map(to).collect()
}

#[test]
fn reference_values_are_on_their_way_before_anything_else_is() {
    let mut rig = Rig::boot(Stored::default());
    rig.hello(&gateway(), v1::NodeRole::Gateway, &[]);
    rig.hello(&child(), v1::NodeRole::Agent, &[]);
    assert!(rig.hub.trust().delegation(&node(GATEWAY)).is_some());
    let actions = rig.add_references("image-1");
    assert_eq!(
        sent(&actions, TrustItemKind::References),
        [GATEWAY],
        "and to nobody else"
    );
    let kept = |op: &Op| {
        matches!(
            op,
            Op::Trust(TrustOp::PutDocument {
                kind: TrustItemKind::References,
                ..
            })
        )
    };
    let at = |found: &dyn Fn(&Action) -> bool| actions.iter().position(found).unwrap();
    let persisted = at(&|a| matches!(a, Action::Persist(ops) if ops.iter().any(kept)));
    assert!(
        persisted < at(&|a| matches!(a, Action::Trust { .. })),
        "on disk before it is sent"
    );
    let info = rig.hub.references_info();
    assert_eq!(
        (info.version, info.awaited.len()),
        (EPOCH_S, 1),
        "above what a lost store had"
    );
    let version = info.version;
    rig.hello(
        &gateway(),
        v1::NodeRole::Gateway,
        &[("references", version), ("d/line-gw", EPOCH_S)],
    );
    assert!(rig.hub.references_info().awaited.is_empty());
    assert_eq!(
        sent(&rig.add_references("image-2"), TrustItemKind::References),
        [GATEWAY]
    );
    assert_eq!(rig.hub.references_info().version, version + 1);
    // A hub that died between the two is not without: it signs at its next start.
    let mut stored = rig.stored.clone();
    stored.trust.documents.clear();
    let mut rig = Rig::boot(stored);
    let actions = rig.hello(&gateway(), v1::NodeRole::Gateway, &[("references", version)]);
    assert_eq!(sent(&actions, TrustItemKind::References), [GATEWAY]);
}

#[test]
fn what_a_gateway_found_while_the_hub_was_away_is_shown_and_judged_anew() {
    let mut rig = Rig::boot(Stored::default());
    rig.hello(&gateway(), v1::NodeRole::Gateway, &[]);
    rig.hello(&child(), v1::NodeRole::Agent, &[]);
    let ear = found(Status::Affirming, EPOCH_S + 10);
    // Somebody else's signature, and the hub's own: neither is the gateway's appraisal.
    for (seq, key, iss) in [(1, soft(99), GATEWAY), (2, hub_key(), HUB)] {
        let actions = rig.reports(&gateway(), seq, sign(&ear, iss, &key));
        let said = |a: &Action| matches!(a, Action::Note(n) if n.contains("is not believed"));
        assert!(actions.iter().any(said), "{actions:?}");
        assert!(rig.hub.attestation(&node(CHILD)).unwrap().by_gateway.is_none());
    }
    rig.now.mono_ms += 10 * 3_600_000;
    let actions = rig.reports(&gateway(), 3, sign(&ear, GATEWAY, &soft(20)));
    let asked = |a: &Action| matches!(a, Action::Challenge { node, .. } if node.as_str() == CHILD);
    assert!(actions.iter().any(asked), "the hub judges for itself: {actions:?}");
    let shown = rig.hub.attestation(&node(CHILD)).unwrap();
    let by_gateway = shown.by_gateway.unwrap();
    assert_eq!(
        (by_gateway.gateway.as_str(), by_gateway.status.as_str()),
        (GATEWAY, "affirming")
    );
    assert_eq!(
        (by_gateway.judged_s, by_gateway.expires_s),
        (EPOCH_S + 10, EPOCH_S + 3610)
    );
    assert_eq!(shown.standing, "pending", "it is no word of the hub's");
    // It is shown after a restart, too.
    let rig = Rig::boot(rig.stored.clone());
    assert!(rig.hub.attestation(&node(CHILD)).unwrap().by_gateway.is_some());
}

#[test]
fn results_are_signed_anew_when_the_hubs_key_changes() {
    let mut rig = Rig::boot(Stored::default());
    rig.hello(&child(), v1::NodeRole::Agent, &[]);
    let bytes = sign(&found(Status::Affirming, EPOCH_S), HUB, &hub_key());
    let about = node(CHILD);
    rig.take(Event::EarSigned { node: about, bytes });
    rig.key = second_key;
    let id = second_key().public_key().id();
    let actions = rig.take(Event::Signer(id));
    let forwarded = actions.iter().find_map(|a| match a {
        Action::Forward {
            kind: Kind::Ear, bytes, ..
        } => Some(bytes.clone()),
        _ => None,
    });
    let untrusted = cnova_shared::envelope::Untrusted::read(forwarded.as_ref().unwrap()).unwrap();
    assert_eq!(untrusted.kid, id);
    let again = untrusted.verify(Kind::Ear, second_key().public_key()).unwrap();
    assert_eq!(
        again.decode::<Ear>().unwrap().into_value(),
        found(Status::Affirming, EPOCH_S)
    );
    assert_eq!(rig.stored.ears[&node(CHILD)], forwarded.unwrap());
}
