//! The newest trust bundle beside the store, so that a hub that was given it over its API starts with it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use cnova_shared::bundle::TrustBundle;

/// The configured bundle, or the one that this hub took later.
#[must_use]
pub fn newest(configured: &TrustBundle, copy: &Path) -> TrustBundle {
    let kept = fs::read(copy).ok().and_then(|bytes| TrustBundle::flashed(&bytes).ok());
    let version = configured.contents().version;
    let newer = kept.filter(|k| k.contents().version > version);
    newer.unwrap_or_else(|| configured.clone())
}

/// Keeps a bundle. It is on the disk when this returns.
///
/// # Errors
/// When it cannot be written; the old one is then still there.
pub fn keep(copy: &Path, bytes: &[u8]) -> io::Result<()> {
    let next = copy.with_extension("next");
    let mut file = File::create(&next)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&next, copy)?;
    match copy.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
