//! The key with which the hub approves boots: nodes with a TPM seal what is secret for it.

use std::path::Path;

use cnova_shared::bundle::{Bundle, Role, SigningKey};
use cnova_shared::keys::{KeyId, Signer, SoftKey};
use cnova_shared::limits;
use rcgen::KeyPair;
use serde_json::json;

use super::files::{self, Access};
use super::rotate::{Old, keep, publish};
use super::{BOOT_KEY, BUNDLE, DAY_S, TrustError};
use crate::age::date;
use crate::output::Screen;

/// For how long a new one may approve. Nodes go on after that with what it approved.
const BOOT_KEY_DAYS: u64 = 10 * 365;

/// A new key, and its PEM. P-256, because TPMs check its signatures.
pub(super) fn new_key() -> Result<(SoftKey, String), TrustError> {
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let key = SoftKey::from_pkcs8(&pair.serialize_der()).map_err(|_| TrustError::NoRandomness)?;
    Ok((key, pair.serialize_pem()))
}

/// The key as a bundle names it.
pub(super) fn named(key: &SoftKey, now_s: u64) -> SigningKey {
    SigningKey {
        key: key.public_key().clone(),
        roles: vec![Role::BootPolicy],
        not_after: now_s + BOOT_KEY_DAYS * DAY_S,
    }
}

/// Whether a key approves boots and nothing else.
pub(super) fn is_for_boots(key: &SigningKey) -> bool {
    key.roles == [Role::BootPolicy]
}

/// Whether the bundle in this folder names a key of this id for boots alone.
pub(super) fn is_one(dir: &Path, id: KeyId) -> Result<bool, TrustError> {
    let bundle = files::read_bundle(&dir.join(BUNDLE))?;
    let mut keys = bundle.contents().keys.iter();
    Ok(keys.any(|k| k.key.id() == id && is_for_boots(k)))
}

/// Runs `trust boot-policy-key`, and `trust revoke` of such a key.
pub(super) fn run(
    dir: &Path,
    roots_dir: Option<&Path>,
    old_keys: Old,
    now_s: u64,
    screen: &mut Screen<'_>,
) -> Result<(), TrustError> {
    let (key, pem) = new_key()?;
    let (version, next) = publish(dir, roots_dir, now_s, |old| Ok(successor(old, &key, now_s, old_keys)))?;
    let path = dir.join(BOOT_KEY);
    // A tree of before there were such keys has none.
    if path.exists() {
        keep(&path, &dir.join(format!("boot-policy.v{version}.key")), Access::Private)?;
    }
    files::replace(&path, pem.as_bytes(), Access::Private)?;
    report(dir, next.version, key.public_key().id(), old_keys, now_s, screen)
}

/// The same bundle with one more key for boots.
fn successor(old: &Bundle, key: &SoftKey, now_s: u64, old_keys: Old) -> Bundle {
    let mut keys = old.keys.clone();
    match old_keys {
        Old::Overlap(days) => {
            for k in keys.iter_mut().filter(|k| is_for_boots(k)) {
                k.not_after = k.not_after.min(now_s + days * DAY_S);
            }
        }
        Old::Revoke(id) => keys.retain(|k| k.key.id() != id),
    }
    keys.push(named(key, now_s));
    if keys.len() > limits::BUNDLE_KEYS
        && let Some(oldest) = keys.iter().position(is_for_boots)
    {
        keys.remove(oldest);
    }
    Bundle {
        version: old.version + 1,
        issued_at: now_s,
        keys,
        ..old.clone()
    }
}

fn report(
    dir: &Path,
    version: u64,
    id: KeyId,
    old_keys: Old,
    now_s: u64,
    screen: &mut Screen<'_>,
) -> Result<(), TrustError> {
    let (until, what) = match old_keys {
        Old::Overlap(days) => {
            let until = date(now_s + days * DAY_S);
            let what = format!("older ones approve until {until}");
            (Some(until), what)
        }
        Old::Revoke(key) => (None, format!("key {key} approves nothing any more")),
    };
    let value = json!({ "dir": dir, "version": version, "boot_policy_key": id.to_string(), "old_keys_until": until });
    screen.document(&value, |s| {
        let dir = dir.display();
        s.line(&format!("{dir}: trust bundle version {version}, boot-policy key {id}; {what}"))?;
        s.line("Next:")?;
        s.line(&format!(
            "  1. give the hub {dir}/{BOOT_KEY}, beside the key that it has ([signing] boot_policy in hub.toml), and restart it"
        ))?;
        s.line(&format!("  2. roll the bundle out: cnova trust push {dir}/{BUNDLE}"))
    })?;
    Ok(())
}
