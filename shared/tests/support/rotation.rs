//! A chain of trust bundles: version 2 brings a new key beside the first, version 3 takes the first away and brings a new
//! root, version 4 is signed by that root alone.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;

use cnova_shared::bundle::{self, Bundle, Role, SigningKey, TrustBundle};
use cnova_shared::envelope::seal;
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::keys::{KeyId, Signer, SoftKey};
use cnova_shared::selector::Selector;
use cnova_shared::topics::Kind;
use cnova_shared::trust_documents::{BootPolicy, Delegation, Document, PolicyBoot, Revocations, RevokedNode, Right};
use cnova_shared::wire::v1::{self, TrustItem, TrustItemKind};

use crate::support::{EPOCH_S, HUB, KEY_ENDS_S, ca_der, claims, contents, hub_key, node, root_key, soft};

/// The hub's key from version 2 on.
pub fn second_key() -> SoftKey {
    soft(41)
}

fn second_root() -> SoftKey {
    soft(42)
}

fn may_sign(key: &SoftKey) -> SigningKey {
    SigningKey {
        key: key.public_key().clone(),
        roles: vec![Role::Twin, Role::Attestation],
        not_after: KEY_ENDS_S,
    }
}

/// The signed bundle of this version, from 1 to 4.
pub fn bundle(version: u64) -> Vec<u8> {
    let first = contents(ca_der());
    let (keys, roots): (Vec<SigningKey>, Vec<SoftKey>) = match version {
        1 => return bundle::sign(&first, &[&root_key()]).unwrap(),
        2 => (vec![may_sign(&hub_key()), may_sign(&second_key())], vec![root_key()]),
        3 => (vec![may_sign(&second_key())], vec![second_root(), root_key()]),
        _ => (vec![may_sign(&second_key())], vec![second_root()]),
    };
    let contents = Bundle {
        version,
        issued_at: EPOCH_S + version,
        roots: vec![roots[0].public_key().clone()],
        keys,
        ..first
    };
    let signers: Vec<&dyn Signer> = roots.iter().map(|k| k as &dyn Signer).collect();
    bundle::sign(&contents, &signers).unwrap()
}

pub fn flashed() -> TrustBundle {
    TrustBundle::flashed(&bundle(1)).unwrap()
}

pub fn bundle_item(version: u64) -> TrustItem {
    TrustItem {
        kind: TrustItemKind::Bundle,
        body: bundle(version).into(),
    }
}

pub fn trust_message(items: Vec<TrustItem>) -> v1::Trust {
    v1::Trust { v: 1, items }
}

/// A list of revocations by `key`.
pub fn revocations(version: u64, nodes: &[(&str, Option<KeyId>)], key: &SoftKey) -> TrustItem {
    let nodes = nodes.iter().map(|(name, key)| RevokedNode {
        node: node(name),
        is_whole: key.is_none(),
        keys: key.iter().copied().collect(),
        reason: "stolen".into(),
        at_s: EPOCH_S,
    });
    let list = Revocations::new(version, EPOCH_S, nodes.collect());
    TrustItem {
        kind: TrustItemKind::Revocations,
        body: list.seal(&node(HUB), EPOCH_S, key).unwrap().into(),
    }
}

pub fn delegation(version: u64, gateway: &NodeId, site: &str, not_after: u64) -> Delegation {
    Delegation {
        v: 1,
        kind: TrustItemKind::Delegation,
        version,
        gateway: gateway.clone(),
        key: soft(60).public_key().clone(),
        site: site.parse().unwrap(),
        not_after,
        rights: vec![Right::Appraise],
    }
}

pub fn delegation_item(delegation: &Delegation, key: &SoftKey) -> TrustItem {
    TrustItem {
        kind: TrustItemKind::Delegation,
        body: delegation.seal(&node(HUB), EPOCH_S, key).unwrap().into(),
    }
}

/// A twin by `key`.
pub fn twin_by(key: &SoftKey, twin: &v1::Twin) -> Vec<u8> {
    seal(Kind::Twin, &claims(HUB, twin.node.as_str()), twin, &[], key).unwrap()
}

/// A new key for boots.
pub fn new_boot_key() -> SoftKey {
    SoftKey::from_pkcs8(&rcgen::KeyPair::generate().unwrap().serialize_der()).unwrap()
}

/// The next bundle after the flashed one: the hub's key may sign documents, and these may approve boots, the last one
/// longest.
pub fn bundle_with_boot_keys(version: u64, keys: &[&SoftKey]) -> TrustItem {
    let for_boots = keys.iter().zip(1..).map(|(key, n)| SigningKey {
        key: key.public_key().clone(),
        roles: vec![Role::BootPolicy],
        not_after: KEY_ENDS_S + n,
    });
    let contents = Bundle {
        version,
        issued_at: EPOCH_S + version,
        keys: [may_sign(&hub_key())].into_iter().chain(for_boots).collect(),
        ..contents(ca_der())
    };
    TrustItem {
        kind: TrustItemKind::Bundle,
        body: bundle::sign(&contents, &[&root_key()]).unwrap().into(),
    }
}

/// A boot for these nodes, whose registers 0 and 7 hold the digests of `zero` and `seven`, approved by `keys`.
pub fn approved_boot(name: &str, nodes: &[&str], values: (&str, &str), keys: &[&SoftKey]) -> PolicyBoot {
    let mut boot = PolicyBoot {
        name: name.into(),
        nodes: Selector {
            nodes: nodes.iter().map(|n| node(n)).collect(),
            ..Selector::default()
        },
        values: registers(values),
        signatures: Vec::new(),
    };
    for key in keys {
        boot.approve(*key).unwrap();
    }
    boot
}

pub fn registers((zero, seven): (&str, &str)) -> BTreeMap<u8, Digest> {
    BTreeMap::from([(0, Digest::of(zero.as_bytes())), (7, Digest::of(seven.as_bytes()))])
}

/// A document of approved boots by `key`.
pub fn boot_policy(version: u64, boots: Vec<PolicyBoot>, key: &SoftKey) -> TrustItem {
    TrustItem {
        kind: TrustItemKind::BootPolicy,
        body: BootPolicy::new(version, boots)
            .seal(&node(HUB), EPOCH_S, key)
            .unwrap()
            .into(),
    }
}
