//! A new signing key for the hub, announced by a new trust bundle that the root keys sign.

use std::fs;
use std::path::{Path, PathBuf};

use cnova_shared::bundle::{self, Bundle, TrustBundle};
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::limits;
use serde_json::json;

use super::files::{self, Access};
use super::init::hub_signing_key;
use super::{BUNDLE, DAY_S, HUB_KEY, ROOTS, TrustError};
use crate::age::date;
use crate::output::Screen;

/// Runs `trust rotate`.
pub(super) fn run(
    dir: &Path,
    roots_dir: Option<&Path>,
    overlap_days: u64,
    now_s: u64,
    screen: &mut Screen<'_>,
) -> Result<(), TrustError> {
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
    let (key, pem) = files::new_signing_key()?;
    let next = successor(old.contents(), &key, now_s, overlap_days);
    let signers: Vec<&dyn Signer> = roots.iter().map(|k| k as &dyn Signer).collect();
    let signed = bundle::sign(&next, &signers).map_err(TrustError::NotAccepted)?;
    // What every node will do.
    old.succeed(&signed).map_err(TrustError::NotAccepted)?;

    // The old ones are kept under their version. The bundle goes first: cut off between the two, the hub still has a
    // key that both bundles name, and another `rotate` goes on from there.
    let (v, hub_key) = (old.contents().version, dir.join(HUB_KEY));
    keep(
        &bundle_path,
        &dir.join(format!("trust-bundle.v{v}.cose")),
        Access::Public,
    )?;
    keep(&hub_key, &dir.join(format!("hub-signing.v{v}.key")), Access::Private)?;
    files::replace(&bundle_path, &signed, Access::Public)?;
    files::replace(&hub_key, pem.as_bytes(), Access::Private)?;

    let until = date(now_s + overlap_days * DAY_S);
    let id = key.public_key().id();
    let value = json!({ "dir": dir, "version": next.version, "hub_key": id.to_string(), "old_keys_until": until });
    screen.document(&value, |s| {
        let dir = dir.display();
        s.line(&format!(
            "{dir}: trust bundle version {}, hub key {id}; older keys sign until {until}",
            next.version
        ))?;
        s.line("Next:")?;
        s.line(&format!("  1. bring {dir}/{BUNDLE} to the nodes, gateways and the hub"))?;
        s.line(&format!(
            "  2. when they have it, and before {until}, give the hub {dir}/{HUB_KEY} and restart it"
        ))
    })?;
    Ok(())
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

/// The same bundle with one more key. Keys that ran out stay in it: a node checks the twin that it runs again at every
/// boot, and needs the key that signed it however old both are.
fn successor(old: &Bundle, key: &SoftKey, now_s: u64, overlap_days: u64) -> Bundle {
    let last = now_s + overlap_days * DAY_S;
    let mut keys = old.keys.clone();
    for k in &mut keys {
        k.not_after = k.not_after.min(last);
    }
    keys.push(hub_signing_key(key, now_s));
    // Full after dozens of rotations; the oldest then goes.
    if keys.len() > limits::BUNDLE_KEYS {
        keys.remove(0);
    }
    Bundle {
        version: old.version + 1,
        issued_at: now_s,
        keys,
        ..old.clone()
    }
}

/// Keeps a copy; one that a run left that was cut off is the same file.
fn keep(path: &Path, copy: &Path, access: Access) -> Result<(), TrustError> {
    let content = files::read(path)?;
    if copy.exists() && files::read(copy)? == content {
        return Ok(());
    }
    files::create(copy, &content, access)
}
