//! Chains of trust bundles, revocations and delegations: what is taken, what is refused, and what stays genuine.

#![allow(clippy::unwrap_used)]

#[path = "support/rotation.rs"]
mod rotation;
mod support;

use std::collections::BTreeMap;

use cnova_shared::bundle::{self, BundleError, Role, TrustBundle};
use cnova_shared::envelope::{Endorsement, EnvelopeError, Introduction, seal_document, seal_payload};
use cnova_shared::ids::SitePath;
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::limits;
use cnova_shared::parent::{Parent, ParentError};
use cnova_shared::topics::Kind;
use cnova_shared::trust::{Holder, StoredTrust, TrustError, TrustOp, TrustState, batches};
use cnova_shared::trust_documents::{BootPolicy, Delegation, Document, DocumentError, PolicyBoot, Right};
use cnova_shared::twin::{TwinError, VerifiedTwin};
use cnova_shared::wire::v1::{NodeRole, TrustItem, TrustItemKind};
use rotation::*;
use support::{EPOCH_S, claims, hub_key, identity, node, soft, twin};

fn site(path: &str) -> SitePath {
    SitePath::new(path).unwrap()
}

fn lacking(
    state: &TrustState,
    trust_version: u64,
    documents: &BTreeMap<String, u64>,
    child: &str,
    path: &str,
) -> Vec<TrustItem> {
    lacking_as(state, NodeRole::Agent, trust_version, documents, child, path)
}

fn lacking_as(
    state: &TrustState,
    role: NodeRole,
    trust_version: u64,
    documents: &BTreeMap<String, u64>,
    child: &str,
    path: &str,
) -> Vec<TrustItem> {
    state.lacking(&Holder {
        node: &node(child),
        site: &site(path),
        role,
        trust_version,
        documents,
    })
}

/// A node that has taken the bundles up to this version, and its store.
fn at(version: u64) -> (TrustState, StoredTrust) {
    let (mut state, mut stored) = (TrustState::from(flashed()), StoredTrust::default());
    for v in 2..=version {
        let op = state.take(&bundle_item(v), EPOCH_S).unwrap().unwrap();
        stored.apply(&op);
    }
    (state, stored)
}

#[test]
fn a_node_that_missed_bundles_takes_them_in_their_order() {
    let (hub, _) = at(4);
    let missing = lacking(&hub, 1, &BTreeMap::new(), "plc-1", "plant-7/plc-1");
    assert_eq!(missing.len(), 3);
    let mut state = TrustState::from(flashed());
    // The last one alone is signed by a root that this node does not know.
    let alone = state.take(&missing[2], EPOCH_S).unwrap_err();
    assert!(
        matches!(
            alone,
            TrustError::Bundle(BundleError::TooFewSignatures { whose: "old", .. })
        ),
        "{alone}"
    );
    for item in &missing {
        assert!(state.take(item, EPOCH_S).unwrap().is_some());
    }
    assert_eq!(state.version(), 4);
    // Said again, they change nothing.
    assert!(missing.iter().all(|i| state.take(i, EPOCH_S).unwrap().is_none()));
    let newest = lacking(&hub, 3, &BTreeMap::new(), "plc-1", "plant-7/plc-1");
    assert_eq!(newest, [bundle_item(4)]);
    assert!(lacking(&hub, 4, &BTreeMap::new(), "plc-1", "a").is_empty());
}

#[test]
fn an_older_bundle_is_refused() {
    let mut state = TrustState::from(TrustBundle::flashed(&bundle(2)).unwrap());
    let error = state.take(&bundle_item(1), EPOCH_S).unwrap_err();
    assert!(error.is_rollback(), "{error}");
    // After a change of roots the old ones' signature counts for nothing.
    state.take(&bundle_item(3), EPOCH_S).unwrap();
    state.take(&bundle_item(1), EPOCH_S).unwrap_err();
    assert_eq!(state.version(), 3);
}

#[test]
fn a_store_is_not_believed_for_being_there() {
    let (_, mut stored) = at(4);
    let (state, faults) = TrustState::restore(flashed(), stored.clone());
    assert_eq!((state.version(), faults.len()), (4, 0));
    let forged = stored.bundles.get_mut(&3).unwrap();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let (state, faults) = TrustState::restore(flashed(), stored);
    assert_eq!(state.version(), 2, "4 follows from 3 alone");
    assert_eq!(faults.len(), 2, "{faults:?}");
}

#[test]
fn a_twin_of_a_key_that_was_taken_away_stays_genuine_and_nothing_new_of_it_is_taken() {
    let bytes = twin_by(&hub_key(), &twin("plc-1", 1, Vec::new()));
    let (state, _) = at(3);
    let error = VerifiedTwin::open(&bytes, state.bundle(), EPOCH_S).unwrap_err();
    assert!(
        matches!(error, TwinError::Envelope(EnvelopeError::UnknownKey { .. })),
        "{error}"
    );
    let again = state.reopen_twin(&bytes).unwrap();
    assert!(!state.names(again.kid(), Role::Twin));
    // A node that was flashed with the new bundle never trusted the old key.
    let fresh = TrustState::from(state.bundle().clone());
    assert!(fresh.reopen_twin(&bytes).is_err());
}

#[test]
fn a_list_of_revocations_only_goes_up_unless_its_key_was_stolen() {
    let (mut state, mut stored) = at(2);
    let thief = hub_key();
    // The thief takes the highest version that there is.
    let stolen = revocations(u64::MAX, &[("plc-1", None)], &thief);
    stored.apply(&state.take(&stolen, EPOCH_S).unwrap().unwrap());
    let mine = revocations(7, &[("plc-2", None)], &second_key());
    assert!(state.take(&mine, EPOCH_S).unwrap_err().is_rollback());
    stored.apply(&state.take(&bundle_item(3), EPOCH_S).unwrap().unwrap());
    assert!(
        state.documents().is_empty(),
        "a list of a stolen key is not said to be held"
    );
    assert!(state.take(&stolen, EPOCH_S).unwrap().is_none(), "it is held still");
    stored.apply(&state.take(&mine, EPOCH_S).unwrap().unwrap());
    assert!(state.revoked(&node("plc-1"), None).is_none() && state.revoked(&node("plc-2"), None).is_some());
    let older = revocations(6, &[], &second_key());
    assert!(state.take(&older, EPOCH_S).unwrap_err().is_rollback());
    let (restored, faults) = TrustState::restore(flashed(), stored);
    assert!(faults.is_empty() && restored.revoked(&node("plc-2"), None).is_some());
    assert_eq!(restored.documents(), BTreeMap::from([("r".to_owned(), 7)]));
}

#[test]
fn a_revoked_key_leaves_the_name_to_another_device() {
    let (mut state, _) = at(2);
    let (old, new) = (hub_key().public_key().id(), second_key().public_key().id());
    let list = revocations(1, &[("plc-1", Some(old))], &second_key());
    state.take(&list, EPOCH_S).unwrap();
    assert!(state.revoked(&node("plc-1"), Some(old)).is_some());
    assert!(state.revoked(&node("plc-1"), Some(new)).is_none());
    assert!(state.revoked(&node("plc-1"), None).is_none());
}

#[test]
fn documents_are_signed_by_keys_with_their_role_and_are_what_they_say() {
    let mut first = TrustState::from(flashed());
    let by_twin_key = revocations(1, &[], &hub_key());
    assert!(
        first.take(&by_twin_key, EPOCH_S).is_err(),
        "the first bundle gives no such role"
    );
    let (mut state, _) = at(2);
    let disguised = TrustItem {
        kind: TrustItemKind::Delegation,
        ..by_twin_key
    };
    let error = state.take(&disguised, EPOCH_S).unwrap_err();
    assert!(matches!(error, TrustError::Document { .. }), "{error}");
    assert!(state.delegations().next().is_none());
}

#[test]
fn a_delegation_covers_its_site_and_ends() {
    let gateway = node("line-2-gw");
    let d = delegation(1, &gateway, "plant-7/line-2", EPOCH_S + 100);
    let bytes = delegation_item(&d, &second_key()).body;
    let (state, _) = at(2);
    let opened = Delegation::open(&bytes, state.bundle(), EPOCH_S).unwrap();
    for (path, covered) in [
        ("plant-7/line-2", true),
        ("plant-7/line-2/plc-1", true),
        ("plant-7/line-20/plc-1", false),
        ("plant-7", false),
    ] {
        assert_eq!(opened.value().covers(&site(path)), covered, "{path}");
    }
    let here = site("plant-7/line-2/plc-1");
    assert!(d.allows(Right::Appraise, &here, EPOCH_S) && !d.allows(Right::MoveFloating, &here, EPOCH_S));
    assert!(!d.allows(Right::Appraise, &here, EPOCH_S + 100));
    let over = Delegation::open(&bytes, state.bundle(), EPOCH_S + 100).unwrap_err();
    assert!(matches!(over, DocumentError::Over { .. }), "{over}");
}

#[test]
fn a_child_gets_the_delegations_that_concern_it() {
    let (mut state, _) = at(2);
    let d = delegation(5, &node("line-2-gw"), "plant-7/line-2", EPOCH_S + 100);
    state.take(&delegation_item(&d, &second_key()), EPOCH_S).unwrap();
    let gets = |child: &str, path: &str, held: u64| {
        let documents = BTreeMap::from([("d/line-2-gw".to_owned(), held)]);
        !lacking(&state, 2, &documents, child, path).is_empty()
    };
    assert!(gets("plc-1", "plant-7/line-2/plc-1", 0), "it is decided for");
    assert!(gets("plant-gw", "plant-7", 4), "it hands it on");
    assert!(!gets("plc-1", "plant-7/line-2/plc-1", 5), "it has it");
    assert!(!gets("plc-9", "plant-7/line-3/plc-9", 0), "it is nothing to it");
}

#[test]
fn a_long_chain_is_cut_into_messages() {
    let item = |n: usize| TrustItem {
        kind: TrustItemKind::Bundle,
        body: vec![0; n].into(),
    };
    let cut = batches(vec![
        item(limits::BATCH_BYTES - 1),
        item(1),
        item(1),
        item(limits::BATCH_BYTES + 1),
        item(1),
    ]);
    assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1, 1]);
}

/// A list of revocations names certified keys. A parent that signs with a session key falls under it all the same.
#[test]
fn a_parent_with_a_session_key_is_revoked_by_its_certified_one() {
    let (mut state, _) = at(2);
    let gateway = identity("line-gw", 20);
    let session = soft(77);
    let vouched = Endorsement::make(&gateway.node, session.public_key().clone(), &gateway.key).unwrap();
    let introduction = Introduction {
        chain: &gateway.chain,
        endorsement: Some(&vouched),
    };
    let said = |introduction| {
        let claims = claims("line-gw", "plc-1");
        seal_payload(Kind::Ack, &claims, vec![0], introduction, &session).unwrap()
    };
    let mut parent = Parent::new(gateway.node.clone());
    let me = node("plc-1");
    parent
        .open(Kind::Ack, &said(introduction), &me, &state, EPOCH_S)
        .unwrap();
    parent
        .open(Kind::Ack, &said(Introduction::default()), &me, &state, EPOCH_S)
        .unwrap();

    let other = identity("line-gw", 21).key.public_key().id();
    state
        .take(&revocations(1, &[("line-gw", Some(other))], &second_key()), EPOCH_S)
        .unwrap();
    assert_eq!(parent.revoked(&state), None, "another device had this name");
    let this = gateway.key.public_key().id();
    state
        .take(&revocations(2, &[("line-gw", Some(this))], &second_key()), EPOCH_S)
        .unwrap();
    assert!(parent.revoked(&state).is_some());
    let refused = parent.open(Kind::Ack, &said(Introduction::default()), &me, &state, EPOCH_S);
    assert!(matches!(refused, Err(ParentError::Revoked(_))), "{refused:?}");
}

#[test]
fn approved_boots_are_taken_kept_and_handed_on_as_one_document() {
    let key = new_boot_key();
    let (mut state, mut stored) = (TrustState::from(flashed()), StoredTrust::default());
    let image = approved_boot("image-1", &["plc-1"], ("a", "b"), &[&key]);
    let first = boot_policy(5, vec![image.clone()], &hub_key());
    // The flashed bundle lets nobody sign it.
    assert!(matches!(state.take(&first, EPOCH_S), Err(TrustError::Document { .. })));
    for item in [bundle_with_boot_keys(2, &[&key]), first.clone()] {
        stored.apply(&state.take(&item, EPOCH_S).unwrap().unwrap());
    }
    assert_eq!(state.take(&first, EPOCH_S), Ok(None), "said again");
    assert_eq!(state.documents()["b"], 5);
    let next = approved_boot("image-2", &["plc-1"], ("a", "c"), &[&key]);
    let second = boot_policy(6, vec![image.clone(), next], &hub_key());
    stored.apply(&state.take(&second, EPOCH_S).unwrap().unwrap());

    // Rolled back, of another kind, by somebody else, against the rules: not taken.
    let older = state.take(&first, EPOCH_S).unwrap_err();
    assert!(older.is_rollback(), "{older}");
    let as_another = TrustItem {
        kind: TrustItemKind::Revocations,
        ..second.clone()
    };
    assert!(state.take(&as_another, EPOCH_S).is_err());
    assert!(
        state
            .take(&boot_policy(7, vec![image.clone()], &soft(77)), EPOCH_S)
            .is_err()
    );
    let references = TrustItem {
        kind: TrustItemKind::Unknown,
        ..second.clone()
    };
    let unknown = state.take(&references, EPOCH_S);
    assert!(matches!(unknown, Err(TrustError::UnknownKind(_))), "{unknown:?}");

    // It comes back from the disk; a changed one is left out, and said.
    let (restored, faults) = TrustState::restore(flashed(), stored.clone());
    assert_eq!((restored.documents(), faults.len()), (state.documents(), 0));
    let mut bent = stored.clone();
    bent.documents.get_mut(&TrustItemKind::BootPolicy).unwrap()[90] ^= 1;
    let (restored, faults) = TrustState::restore(flashed(), bent);
    assert!(
        restored.boot_policy().is_none() && faults[0].contains("boot-policy"),
        "{faults:?}"
    );

    // A child gets it until it says that it holds it.
    let held = |held| {
        lacking(
            &state,
            2,
            &BTreeMap::from([("b".to_owned(), held)]),
            "plc-1",
            "plant-7/plc-1",
        )
    };
    assert_eq!(held(5), [second]);
    assert!(held(6).is_empty());
    // Once its key has left the bundle it is not handed on, and a lower version of the new key replaces it.
    let mut late = state.clone();
    late.take(&bundle_by_second_key(3, &key), EPOCH_S).unwrap();
    assert!(lacking(&late, 3, &BTreeMap::new(), "plc-1", "plant-7/plc-1").is_empty());
    assert!(!late.documents().contains_key("b"));
    let low = boot_policy(1, vec![image], &second_key());
    assert!(late.take(&low, EPOCH_S).unwrap().is_some());
}

/// A bundle in which another key signs documents.
fn bundle_by_second_key(version: u64, boots: &SoftKey) -> TrustItem {
    let mut item = bundle_with_boot_keys(version, &[boots]);
    let mut contents = TrustBundle::flashed(&item.body).unwrap().contents().clone();
    contents.keys[0].key = second_key().public_key().clone();
    item.body = bundle::sign(&contents, &[&support::root_key()]).unwrap().into();
    item
}

#[test]
fn a_node_is_told_its_own_boots_by_keys_of_the_newest_bundle() {
    let (old, new, stranger) = (new_boot_key(), new_boot_key(), new_boot_key());
    let here = site("plant-7/line-2/plc-1");
    let boots = |policy: &BootPolicy, name: &str, trust: &TrustBundle| {
        policy.for_node(&node(name), &here, &BTreeMap::new(), trust)
    };
    let mut by_site = approved_boot("line", &[], ("s", "s"), &[&old]);
    by_site.nodes.site = Some(site("plant-7/line-2"));
    let policy = BootPolicy::new(
        1,
        vec![
            approved_boot("mine", &["plc-1"], ("a", "b"), &[&old, &new, &stranger]),
            approved_boot("theirs", &["plc-2"], ("a", "b"), &[&old]),
            by_site,
        ],
    );
    let bundle = |keys: &[&SoftKey]| TrustBundle::flashed(&bundle_with_boot_keys(2, keys).body).unwrap();
    let mine = boots(&policy, "plc-1", &bundle(&[&old, &new]));
    let names: Vec<_> = mine
        .approved
        .iter()
        .map(|a| (a.name.as_str(), a.approver.id()))
        .collect();
    let (old_id, new_id) = (old.public_key().id(), new.public_key().id());
    // By the key that lasts longest first; by no key that the bundle does not name.
    assert_eq!(names, [("mine", new_id), ("mine", old_id), ("line", old_id)]);
    assert_eq!(mine.pcrs(), [0, 7]);
    assert_eq!(mine.fitting(&registers(("a", "b"))).unwrap().approver.id(), new_id);
    assert_eq!(mine.fitting(&registers(("s", "s"))).unwrap().name, "line");
    let other = registers(("a", "x"));
    assert_eq!(mine.fitting(&other), None);
    let why = mine.differing(&other);
    assert!(
        why.starts_with("PCR 7 holds sha256:") && why.ends_with("(mine)"),
        "{why}"
    );
    assert!(mine.fitting(&BTreeMap::new()).is_none());

    // The key was taken away, and the document with the next one has not come: that says nothing.
    assert!(!policy.is_overtaken(&node("plc-1"), &here, &BTreeMap::new(), &bundle(&[&new])));
    let none = bundle(&[&new_boot_key()]);
    assert!(policy.is_overtaken(&node("plc-1"), &here, &BTreeMap::new(), &none));
    let elsewhere = site("plant-9/plc-9");
    assert!(
        !policy.is_overtaken(&node("plc-9"), &elsewhere, &BTreeMap::new(), &none),
        "nothing was said of it"
    );

    // A signature of another boot does not approve this one.
    let mut forged = policy.clone();
    forged.boots[0].signatures = forged.boots[2].signatures.clone();
    let mine = boots(&forged, "plc-1", &bundle(&[&old]));
    assert_eq!(mine.fitting(&registers(("a", "b"))), None);
    assert!(
        mine.differing(&registers(("a", "b")))
            .contains("not signed by a key that may")
    );
}

/// Keys that were made within one second last equally long, and a node must not stay with the one that goes.
#[test]
fn of_boot_keys_that_last_equally_long_the_newer_one_counts() {
    let (old, new) = (new_boot_key(), new_boot_key());
    let mut item = bundle_with_boot_keys(2, &[&old, &new]);
    let mut contents = TrustBundle::flashed(&item.body).unwrap().contents().clone();
    let last = contents.keys.last().unwrap().not_after;
    for key in contents.keys.iter_mut().filter(|k| k.roles.contains(&Role::BootPolicy)) {
        key.not_after = last;
    }
    item.body = bundle::sign(&contents, &[&support::root_key()]).unwrap().into();
    let trust = TrustBundle::flashed(&item.body).unwrap();
    let policy = BootPolicy::new(1, vec![approved_boot("mine", &["plc-1"], ("a", "b"), &[&old, &new])]);
    let mine = policy.for_node(&node("plc-1"), &site("plant-7/plc-1"), &BTreeMap::new(), &trust);
    let approver = &mine.fitting(&registers(("a", "b"))).unwrap().approver;
    assert_eq!(approver.id(), new.public_key().id());
}

#[test]
fn a_document_of_boots_keeps_its_rules() {
    let key = new_boot_key();
    let good = approved_boot("image", &["plc-1"], ("a", "b"), &[&key]);
    let fails = |boot: PolicyBoot| BootPolicy::new(1, vec![boot]).check().unwrap_err();
    assert_eq!(BootPolicy::new(1, vec![good.clone()]).check(), Ok(()));
    assert!(BootPolicy::new(0, Vec::new()).check().is_err());
    let mut bad = good.clone();
    bad.name.clear();
    fails(bad);
    let mut bad = good.clone();
    bad.nodes.nodes.clear();
    assert!(fails(bad).contains("selects no node"));
    let mut bad = good.clone();
    bad.values.clear();
    assert!(fails(bad).contains("registers"));
    let mut bad = good.clone();
    bad.values.insert(24, bad.values[&0]);
    assert!(fails(bad).contains("registers"));
    let mut bad = good.clone();
    bad.signatures.push(bad.signatures[0].clone());
    assert!(fails(bad).contains("one for each key"));
    let mut bad = good.clone();
    bad.signatures[0].signature.pop();
    assert!(fails(bad).contains("64 bytes"));
    let many = vec![good; limits::BOOTS_APPROVED + 1];
    assert!(BootPolicy::new(1, many).check().unwrap_err().contains("at most"));
}

/// What reference values look like to this crate: a version, and what it does not read.
#[derive(serde::Serialize)]
struct References {
    v: u32,
    n: u64,
    s: &'static str,
}

fn references(version: u64, says: &'static str, key: &cnova_shared::keys::SoftKey) -> TrustItem {
    let kind = TrustItemKind::References;
    let value = References {
        v: 1,
        n: version,
        s: says,
    };
    let sealed = seal_document(
        kind,
        &claims(support::HUB, "fleet"),
        &value,
        limits::REFERENCES_BYTES,
        key,
    )
    .unwrap();
    TrustItem {
        kind,
        body: sealed.into(),
    }
}

#[test]
fn reference_values_only_go_up_and_are_signed_by_a_key_for_them() {
    let (mut state, mut stored) = at(2);
    let (old, new) = (hub_key(), second_key());
    stored.apply(&state.take(&references(5, "five", &old), EPOCH_S).unwrap().unwrap());
    assert!(
        state.take(&references(5, "five", &old), EPOCH_S).unwrap().is_none(),
        "it is here"
    );
    for (version, says) in [(4, "four"), (5, "other")] {
        let error = state.take(&references(version, says, &old), EPOCH_S).unwrap_err();
        assert!(error.is_rollback(), "{error}");
    }
    state.take(&references(9, "nine", &soft(99)), EPOCH_S).unwrap_err();
    assert_eq!(state.documents().get("references"), Some(&5));
    // Another kind's document, of a key that may sign both.
    let disguised = TrustItem {
        kind: TrustItemKind::Revocations,
        ..references(9, "nine", &old)
    };
    state.take(&disguised, EPOCH_S).unwrap_err();
    // Whoever stole the old key may have signed any version; what it signed is not said to be held once it is gone.
    stored.apply(
        &state
            .take(&references(u64::MAX, "stolen", &old), EPOCH_S)
            .unwrap()
            .unwrap(),
    );
    stored.apply(&state.take(&bundle_item(3), EPOCH_S).unwrap().unwrap());
    assert!(state.kept(TrustItemKind::References).is_none());
    assert_eq!(state.documents().get("references"), None);
    stored.apply(&state.take(&references(6, "six", &new), EPOCH_S).unwrap().unwrap());
    let (restored, faults) = TrustState::restore(flashed(), stored.clone());
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(restored.kept(TrustItemKind::References).unwrap().version(), 6);
    let last = stored
        .documents
        .get_mut(&TrustItemKind::References)
        .unwrap()
        .last_mut()
        .unwrap();
    *last ^= 1;
    let (restored, faults) = TrustState::restore(flashed(), stored);
    assert_eq!((restored.kept(TrustItemKind::References), faults.len()), (None, 1));
}

#[test]
fn reference_values_go_to_gateways_that_may_appraise_and_to_those_on_the_way() {
    let (mut state, _) = at(2);
    state.take(&references(5, "five", &second_key()), EPOCH_S).unwrap();
    let needs = |state: &TrustState, role, child: &str, path: &str| {
        let none = BTreeMap::new();
        let items = lacking_as(state, role, 2, &none, child, path);
        items.iter().any(|i| i.kind == TrustItemKind::References)
    };
    assert!(
        !needs(&state, NodeRole::Gateway, "line-gw", "plant-7/line-2"),
        "it has no delegation"
    );
    let d = delegation(1, &node("line-gw"), "plant-7/line-2", EPOCH_S + 100);
    state.take(&delegation_item(&d, &second_key()), EPOCH_S).unwrap();
    for (role, child, path, expected) in [
        (NodeRole::Gateway, "line-gw", "plant-7/line-2", true),
        (NodeRole::Gateway, "area-gw", "plant-7", true),
        (NodeRole::Gateway, "other-gw", "plant-7/line-3", false),
        (NodeRole::Agent, "plc-1", "plant-7/line-2/plc-1", false),
    ] {
        assert_eq!(needs(&state, role, child, path), expected, "{child}");
    }
    let has = BTreeMap::from([("references".to_owned(), 5), ("d/line-gw".to_owned(), 1)]);
    assert!(lacking_as(&state, NodeRole::Gateway, 2, &has, "line-gw", "plant-7/line-2").is_empty());
    // Without the right nobody needs them.
    let taken_back = Delegation {
        version: 2,
        rights: Vec::new(),
        ..d
    };
    state
        .take(&delegation_item(&taken_back, &second_key()), EPOCH_S)
        .unwrap();
    assert!(!needs(&state, NodeRole::Gateway, "line-gw", "plant-7/line-2"));
}

#[test]
fn an_agent_leaves_reference_values_aside_and_takes_the_rest() {
    let (mut state, _) = at(2);
    let items = [references(5, "five", &second_key()), revocations(1, &[], &second_key())];
    let mut gateway = state.clone();
    let taken = state.take_all(&items, NodeRole::Agent, EPOCH_S);
    assert!(
        taken.refused.is_empty() && matches!(taken.ops[..], [TrustOp::PutRevocations(_)]),
        "{taken:?}"
    );
    assert!(
        state.take_all(&items, NodeRole::Agent, EPOCH_S).is_known(),
        "whoever repeats it does not know"
    );
    assert_eq!(gateway.take_all(&items, NodeRole::Gateway, EPOCH_S).ops.len(), 2);
    let older = [revocations(1, &[("plc-1", None)], &second_key())];
    let taken = gateway.take_all(&older, NodeRole::Gateway, EPOCH_S);
    assert!(taken.is_older && taken.is_known() && taken.refused.len() == 1);
}

#[test]
fn rows_of_a_store_are_what_was_written() {
    let ops = [
        TrustOp::PutBundle {
            version: 3,
            bytes: vec![1],
        },
        TrustOp::PutRevocations(vec![2]),
        TrustOp::PutDelegation {
            gateway: node("line-gw"),
            bytes: vec![3],
        },
        TrustOp::PutDocument {
            kind: TrustItemKind::References,
            bytes: vec![4],
        },
    ];
    let (mut image, mut rows) = (StoredTrust::default(), StoredTrust::default());
    for op in &ops {
        image.apply(op);
        let (kind, name, version, bytes) = op.row();
        rows.put_row(kind, name, version, bytes.to_vec()).unwrap();
    }
    assert_eq!(image, rows);
    rows.put_row("unknown", "", 0, Vec::new()).unwrap_err();
}
