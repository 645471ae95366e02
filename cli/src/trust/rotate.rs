//! A new signing key for the hub, announced by a new trust bundle that the root keys sign.

use std::fs;
use std::path::{Path, PathBuf};

use cnova_provenance::AOT_BUILDER;
use cnova_shared::bundle::{self, Bundle, TrustBundle, TrustedBuilder};
use cnova_shared::keys::{KeyId, Signer, SoftKey};
use cnova_shared::limits;
use serde_json::json;

use super::boot_key;
use super::builder::hub_builder;
use super::files::{self, Access};
use super::init::hub_signing_key;
use super::{BUNDLE, DAY_S, HUB_KEY, ROOTS, TrustError};
use crate::age::date;
use crate::output::Screen;

/// What becomes of the keys that the bundle names.
#[derive(Clone, Copy)]
pub(super) enum Old {
    /// They sign for so many days more.
    Overlap(u64),
    /// This one is taken out at once; the others stay as they are.
    Revoke(KeyId),
}

/// Runs `trust rotate` and `trust revoke`.
pub(super) fn run(
    dir: &Path,
    roots_dir: Option<&Path>,
    old_keys: Old,
    now_s: u64,
    screen: &mut Screen<'_>,
) -> Result<(), TrustError> {
    let (key, pem) = files::new_signing_key()?;
    let successor = |old: &Bundle| successor(old, &key, now_s, old_keys);
    // The bundle goes first: cut off between the two, the hub still has a key that both bundles name, and another
    // `rotate` goes on from there.
    let (version, next) = publish(dir, roots_dir, now_s, successor)?;
    let hub_key = dir.join(HUB_KEY);
    keep(
        &hub_key,
        &dir.join(format!("hub-signing.v{version}.key")),
        Access::Private,
    )?;
    files::replace(&hub_key, pem.as_bytes(), Access::Private)?;

    report(dir, next.version, key.public_key().id(), old_keys, now_s, screen)
}

fn report(
    dir: &Path,
    version: u64,
    id: KeyId,
    old_keys: Old,
    now_s: u64,
    screen: &mut Screen<'_>,
) -> Result<(), TrustError> {
    let (value, what) = match old_keys {
        Old::Overlap(days) => {
            let until = date(now_s + days * DAY_S);
            let value = json!({ "dir": dir, "version": version, "hub_key": id.to_string(), "old_keys_until": until });
            (value, format!("older keys sign until {until}"))
        }
        Old::Revoke(key) => {
            let value =
                json!({ "dir": dir, "version": version, "hub_key": id.to_string(), "revoked": key.to_string() });
            (value, format!("key {key} signs nothing any more"))
        }
    };
    screen.document(&value, |s| {
        let dir = dir.display();
        s.line(&format!("{dir}: trust bundle version {version}, hub key {id}; {what}"))?;
        s.line("Next:")?;
        s.line(&format!(
            "  1. give the hub {dir}/{HUB_KEY}, beside the key that it has ([signing] more in hub.toml)"
        ))?;
        s.line(&format!("  2. roll the bundle out: cnova trust push {dir}/{BUNDLE}"))
    })?;
    Ok(())
}

/// Has the roots sign a newer bundle, keeps the old one under its version, and puts the new one in its place. Gives the
/// version of the old one, and the new one.
pub(super) fn publish(
    dir: &Path,
    roots_dir: Option<&Path>,
    now_s: u64,
    change: impl FnOnce(&Bundle) -> Result<Bundle, TrustError>,
) -> Result<(u64, Bundle), TrustError> {
    let bundle_path = dir.join(BUNDLE);
    let old = files::read_bundle(&bundle_path)?;
    let issued_at = old.contents().issued_at;
    if now_s < issued_at {
        return Err(TrustError::ClockBehind {
            now: date(now_s),
            issued: date(issued_at),
        });
    }
    let roots_dir = roots_dir.map_or_else(|| dir.join(ROOTS), Path::to_owned);
    let roots = read_roots(&roots_dir, &old)?;
    let next = change(old.contents())?;
    let signers: Vec<&dyn Signer> = roots.iter().map(|k| k as &dyn Signer).collect();
    let signed = bundle::sign(&next, &signers).map_err(TrustError::NotAccepted)?;
    // What every node will do.
    old.succeed(&signed).map_err(TrustError::NotAccepted)?;
    let version = old.contents().version;
    keep(
        &bundle_path,
        &dir.join(format!("trust-bundle.v{version}.cose")),
        Access::Public,
    )?;
    files::replace(&bundle_path, &signed, Access::Public)?;
    Ok((version, next))
}

/// The root keys in a folder that are roots of this bundle.
fn read_roots(folder: &Path, bundle: &TrustBundle) -> Result<Vec<SoftKey>, TrustError> {
    let unreadable = |source| TrustError::Read {
        path: folder.to_owned(),
        source,
    };
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(unreadable)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()
        .map_err(unreadable)?;
    paths.sort();
    let mut roots = Vec::new();
    for path in paths
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "key" || e == "pem"))
    {
        let key = files::read_key(path)?;
        if bundle.contents().roots.contains(key.public_key()) {
            roots.push(key);
        }
    }
    if roots.is_empty() {
        let known = bundle
            .contents()
            .roots
            .iter()
            .map(cnova_shared::keys::PublicKey::id)
            .collect();
        return Err(TrustError::NoRoots {
            path: folder.to_owned(),
            roots: known,
        });
    }
    Ok(roots)
}

/// The same bundle with one more key. Keys that ran out stay in it: nodes that missed some bundles still know then what is
/// genuine. A revoked one goes.
fn successor(old: &Bundle, key: &SoftKey, now_s: u64, old_keys: Old) -> Result<Bundle, TrustError> {
    let mut keys = old.keys.clone();
    match old_keys {
        Old::Overlap(days) => {
            let last = now_s + days * DAY_S;
            // Keys that approve boots are replaced by themselves: `boot-policy-key`.
            for k in keys.iter_mut().filter(|k| !boot_key::is_for_boots(k)) {
                k.not_after = k.not_after.min(last);
            }
        }
        Old::Revoke(id) => {
            keys.retain(|k| k.key.id() != id);
            if keys.len() == old.keys.len() {
                let known = old.keys.iter().map(|k| k.key.id()).collect();
                return Err(TrustError::NoSuchKey { key: id, keys: known });
            }
        }
    }
    keys.push(hub_signing_key(key, now_s));
    // Full after dozens of rotations; the oldest then goes.
    if keys.len() > limits::BUNDLE_KEYS
        && let Some(oldest) = keys.iter().position(|k| !boot_key::is_for_boots(k))
    {
        keys.remove(oldest);
    }
    Ok(Bundle {
        version: old.version + 1,
        issued_at: now_s,
        keys,
        builders: builders(old, key, now_s, old_keys),
        ..old.clone()
    })
}

/// The hub's new key compiles Wasm as far believed as the old one, whose time ends with its overlap; what a revoked one
/// signed is compiled again.
fn builders(old: &Bundle, key: &SoftKey, now_s: u64, old_keys: Old) -> Vec<TrustedBuilder> {
    let mut builders = old.builders.clone();
    let is_hub = |b: &&mut TrustedBuilder| b.builder == AOT_BUILDER && old.keys.iter().any(|k| k.key == b.key);
    let mut level = None;
    for b in builders.iter_mut().filter(is_hub) {
        if let Old::Overlap(days) = old_keys {
            b.not_after = b.not_after.min(now_s + days * DAY_S);
        }
        level = level.max(Some(b.level));
    }
    if let Old::Revoke(id) = old_keys {
        builders.retain(|b| b.key.id() != id);
    }
    let not_after = hub_signing_key(key, now_s).not_after;
    builders.extend(level.map(|level| hub_builder(key.public_key(), level, not_after)));
    // What the oldest of them signed is compiled again.
    if builders.len() > limits::BUNDLE_BUILDERS
        && let Some(oldest) = builders.iter().position(|b| b.builder == AOT_BUILDER)
    {
        builders.remove(oldest);
    }
    builders
}

/// Keeps a copy; one that a run left that was cut off is the same file.
pub(super) fn keep(path: &Path, copy: &Path, access: Access) -> Result<(), TrustError> {
    let content = files::read(path)?;
    if copy.exists() && files::read(copy)? == content {
        return Ok(());
    }
    files::create(copy, &content, access)
}
