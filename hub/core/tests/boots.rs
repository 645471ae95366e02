//! Boots that the hub approves: what follows from the reference values, and what becomes of it.

#![allow(clippy::unwrap_used)]

#[path = "../../../shared/tests/support/rotation.rs"]
mod rotation;
#[path = "../../../shared/tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};

use cnova_attestation::reference::{PcrReference, ReferenceSet, Selector};
use cnova_hub_core::{
    Action, Appraisal, AttestChange, Config, DelegationRules, Draft, Event, Hub, Op, Outcome, Stored,
};
use cnova_shared::ids::Digest;
use cnova_shared::keys::{KeyId, Signer, SoftKey};
use cnova_shared::time::Now;
use cnova_shared::trust::TrustOp;
use cnova_shared::trust_documents::{BootPolicy, Document, PolicyBoot};
use cnova_shared::wire::v1::TrustItemKind;
use rotation::*;
use support::{EPOCH_S, HUB, hub_key, node};

const LAUNCH_PCR: u8 = 14;

struct Rig {
    hub: Hub,
    stored: Stored,
    now: Now,
    approvers: Vec<SoftKey>,
    documents: usize,
    notes: Vec<String>,
}

impl Rig {
    /// A hub that holds a bundle which names `named`, and has the keys `approvers`.
    fn boot(stored: Stored, named: &[&SoftKey], approvers: Vec<SoftKey>, boot_pcrs: &[u8]) -> Self {
        let now = Now {
            mono_ms: 1000,
            wall_ms: EPOCH_S * 1000,
        };
        let appraisal = Appraisal {
            boot_pcrs: boot_pcrs.iter().copied().collect(),
            ..Appraisal::new([7; 32])
        };
        assert_eq!(appraisal.launch_pcr, LAUNCH_PCR);
        let config = Config {
            node: node(HUB),
            trust: flashed(),
            appraisal,
            enrolment: None,
            delegation: DelegationRules::default(),
        };
        let hub = Hub::boot(config, stored.clone(), now);
        let mut rig = Self {
            hub,
            stored,
            now,
            approvers,
            documents: 0,
            notes: Vec::new(),
        };
        rig.perform();
        let version = rig.hub.trust().version() + 1;
        rig.take(Event::PushBundle {
            request: 1,
            bytes: bundle_with_boot_keys(version, named).body.into_vec(),
        });
        rig.take(Event::Signer(hub_key().public_key().id()));
        let ids: BTreeSet<KeyId> = rig.approvers.iter().map(|k| k.public_key().id()).collect();
        rig.take(Event::Approvers(ids));
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
            match &action {
                Action::Persist(ops) => self.stored.apply(ops),
                Action::Note(text) => self.notes.push(text.clone()),
                Action::SignDocument(draft) => {
                    let policy = match &**draft {
                        Draft::BootPolicy(policy) => policy,
                        // What gateways appraise by is not looked at here.
                        Draft::References(_) => continue,
                        other => panic!("{other:?}"),
                    };
                    self.documents += 1;
                    let mut policy = policy.clone();
                    for boot in &mut policy.boots {
                        for key in &self.approvers {
                            boot.approve(key).unwrap();
                        }
                    }
                    policy.boots.retain(|b| !b.signatures.is_empty());
                    let signed = policy.seal(&node(HUB), self.now.wall_ms / 1000, &hub_key());
                    let signed = signed.map_err(|e| e.to_string());
                    self.hub.handle(Event::DocumentSigned(draft.clone(), signed), self.now);
                }
                _ => {}
            }
            done.push(action);
        }
        done
    }

    fn put(&mut self, set: ReferenceSet) -> String {
        let change = AttestChange::PutSet(Box::new(set));
        text(&self.take(Event::Attest { request: 2, change }))
    }

    fn drop_set(&mut self, name: &str) {
        let change = AttestChange::DropSet(name.into());
        self.take(Event::Attest { request: 3, change });
    }

    fn policy(&self) -> &BootPolicy {
        self.hub.trust().boot_policy().unwrap().value()
    }

    fn names(&self) -> Vec<&str> {
        self.policy().boots.iter().map(|b| b.name.as_str()).collect()
    }
}

fn text(actions: &[Action]) -> String {
    let answer = actions.iter().find_map(|a| match a {
        Action::Answer { outcome, .. } => Some(outcome),
        _ => None,
    });
    match answer.unwrap() {
        Outcome::Attested { text } => text.clone(),
        other => panic!("{other:?}"),
    }
}

fn set(name: &str, pcrs: &[(u8, &[&str])]) -> ReferenceSet {
    let reference = |values: &[&str]| PcrReference {
        values: values.iter().map(|v| Digest::of(v.as_bytes())).collect(),
        events: BTreeSet::new(),
    };
    ReferenceSet {
        name: name.into(),
        nodes: Selector {
            nodes: [node("plc-1")].into(),
            ..Selector::default()
        },
        pcrs: pcrs.iter().map(|(pcr, values)| (*pcr, reference(values))).collect(),
        ..ReferenceSet::default()
    }
}

fn is_signed(boot: &PolicyBoot, key: &SoftKey) -> bool {
    boot.is_signed_by(key.public_key().id())
}

#[test]
fn every_reference_set_is_a_boot_and_the_launch_register_never_is() {
    let key = new_boot_key();
    let mut rig = Rig::boot(Stored::default(), &[&key], vec![new_copy(&key)], &[]);
    assert!(rig.hub.trust().boot_policy().is_none_or(|p| p.value().boots.is_empty()));
    let said = rig.put(set("image-1", &[(0, &["a"]), (7, &["b"]), (LAUNCH_PCR, &["shim"])]));
    assert!(said.ends_with("; nodes that boot so open their ledger keys"), "{said}");
    let boot = &rig.policy().boots[0];
    assert_eq!(boot.values, registers(("a", "b")));
    assert_eq!(boot.nodes.nodes, BTreeSet::from([node("plc-1")]));
    assert!(is_signed(boot, &key));
    let on_disk = &rig.stored.trust.documents[&TrustItemKind::BootPolicy];
    assert_eq!(on_disk, rig.hub.trust().boot_policy().unwrap().bytes());
    assert_eq!(rig.hub.trust_info().boots[0].name, "image-1");

    // The next image beside it, before it is rolled out; then the old one goes.
    let before = (rig.policy().version, rig.policy().boots[0].signatures.clone());
    rig.put(set("image-2", &[(0, &["a"]), (7, &["c"])]));
    assert_eq!(rig.names(), ["image-1", "image-2"]);
    assert!(rig.policy().version > before.0);
    assert_eq!(rig.hub.trust_info().boot_policy_version, rig.policy().version);
    rig.drop_set("image-1");
    assert_eq!(rig.names(), ["image-2"]);

    // Nothing new is signed where nothing changed, also after a restart.
    let documents = rig.documents;
    rig.put(set("image-2", &[(0, &["a"]), (7, &["c"])]));
    assert_eq!(rig.documents, documents);
    let again = Hub::boot(
        Config {
            node: node(HUB),
            trust: flashed(),
            appraisal: Appraisal::new([8; 32]),
            enrolment: None,
            delegation: DelegationRules::default(),
        },
        rig.stored.clone(),
        rig.now,
    );
    assert_eq!(again.trust().boot_policy(), rig.hub.trust().boot_policy());
    rig.hub = again;
    rig.perform();
    rig.take(Event::Signer(hub_key().public_key().id()));
    rig.take(Event::Approvers([key.public_key().id()].into()));
    assert_eq!(rig.documents, documents);
}

/// A key cannot be cloned.
fn new_copy(key: &SoftKey) -> SoftKey {
    KEYS.with_borrow(|keys| SoftKey::from_pkcs8(&keys[&key.public_key().id()]).unwrap())
}

thread_local! {
    static KEYS: std::cell::RefCell<BTreeMap<KeyId, Vec<u8>>> = const { std::cell::RefCell::new(BTreeMap::new()) };
}

fn new_boot_key() -> SoftKey {
    let der = rcgen::KeyPair::generate().unwrap().serialize_der();
    let key = SoftKey::from_pkcs8(&der).unwrap();
    KEYS.with_borrow_mut(|keys| keys.insert(key.public_key().id(), der));
    key
}

#[test]
fn values_that_go_together_in_several_ways_are_several_boots_and_not_too_many() {
    let key = new_boot_key();
    let mut rig = Rig::boot(Stored::default(), &[&key], vec![new_copy(&key)], &[0, 7]);
    rig.put(set("two", &[(0, &["a", "x"]), (7, &["b"]), (4, &["not looked at"])]));
    let boots: Vec<_> = rig.policy().boots.iter().map(|b| b.values.clone()).collect();
    assert_eq!(boots.len(), 2);
    assert!(boots.contains(&registers(("a", "b"))) && boots.contains(&registers(("x", "b"))));

    let said = rig.put(set("short", &[(0, &["a"])]));
    assert!(
        said.ends_with("not approved as anybody's own boot: it says nothing of PCR 7"),
        "{said}"
    );
    assert_eq!(rig.names(), ["two", "two"]);
    assert!(rig.notes.iter().any(|n| n.contains("short")), "{:?}", rig.notes);
    let many: Vec<String> = (0..7).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let said = rig.put(set("wide", &[(0, &many), (7, &many)]));
    assert!(said.contains("in more than 32 ways"), "{said}");
    assert_eq!(rig.names(), ["two", "two"]);
}

#[test]
fn a_new_key_approves_beside_the_old_one_and_a_key_that_was_taken_away_says_nothing() {
    let (old, new) = (new_boot_key(), new_boot_key());
    let mut rig = Rig::boot(Stored::default(), &[&old], vec![new_copy(&old)], &[]);
    rig.put(set("image", &[(0, &["a"]), (7, &["b"])]));
    let by_old = rig.policy().boots[0].signatures[0].clone();

    // Rotated, with both at hand, then with the new one alone: what the old one said stays.
    for approvers in [vec![new_copy(&old), new_copy(&new)], vec![new_copy(&new)]] {
        rig = Rig::boot(rig.stored.clone(), &[&old, &new], approvers, &[]);
        let boot = &rig.policy().boots[0];
        assert!(is_signed(boot, &old) && is_signed(boot, &new));
    }
    assert!(rig.policy().boots[0].signatures.contains(&by_old) || is_signed(&rig.policy().boots[0], &old));
    // Taken away by the roots.
    let rig = Rig::boot(rig.stored.clone(), &[&new], vec![new_copy(&new)], &[]);
    let boot = &rig.policy().boots[0];
    assert!(!is_signed(boot, &old) && is_signed(boot, &new));
}

#[test]
fn a_hub_without_such_a_key_approves_nothing_and_takes_back_what_is_no_longer_wanted() {
    let key = new_boot_key();
    let mut rig = Rig::boot(Stored::default(), &[&key], Vec::new(), &[]);
    let said = rig.put(set("image-1", &[(0, &["a"]), (7, &["b"])]));
    assert!(!said.contains("ledger"), "{said}");
    assert!(rig.hub.trust().boot_policy().is_none());
    assert_eq!(rig.documents, 0);

    // One that had it once.
    let mut rig = Rig::boot(rig.stored.clone(), &[&key], vec![new_copy(&key)], &[]);
    rig.put(set("image-2", &[(0, &["a"]), (7, &["c"])]));
    assert_eq!(rig.names(), ["image-1", "image-2"]);
    let mut rig = Rig::boot(rig.stored.clone(), &[&key], Vec::new(), &[]);
    assert_eq!(rig.names(), ["image-1", "image-2"], "what was approved stays approved");
    rig.put(set("image-3", &[(0, &["a"]), (7, &["d"])]));
    assert_eq!(rig.names(), ["image-1", "image-2"]);
    let actions = {
        let change = AttestChange::DropSet("image-1".into());
        rig.take(Event::Attest { request: 3, change })
    };
    assert_eq!(rig.names(), ["image-2"]);
    let put = |a: &Action| matches!(a, Action::Persist(ops) if ops.iter().any(|o| matches!(o, Op::Trust(TrustOp::PutDocument { .. }))));
    assert!(actions.iter().any(put), "{actions:?}");
}
