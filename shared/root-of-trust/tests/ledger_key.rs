//! The sealed ledger key, with a TPM and without.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use cnova_root_of_trust::ledger_key::{LedgerKey, LedgerKeyError, SealedKey};
use cnova_root_of_trust::tpm::EkKind;
use cnova_root_of_trust::{RootOfTrust, Soft, Tpm};
use cnova_shared::keys::Signer;
use support::{es256, start};

/// Bytes of the key on the disk, in any file of the folder.
fn lies_in_clear(folder: &std::path::Path, key: &LedgerKey) -> bool {
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|f| fs::read(f.unwrap().path()).unwrap());
    let found = files.map(|bytes| bytes.windows(16).any(|w| key.expose().windows(16).any(|k| k == w)));
    found.into_iter().any(|found| found)
}

fn opens_here_alone(root: &dyn RootOfTrust, other: &dyn RootOfTrust) {
    let folder = tempfile::tempdir().unwrap();
    let sealed = SealedKey::in_folder(folder.path());
    let made = sealed.open_here(root).unwrap();
    assert_ne!(made.expose(), &[0; 32]);
    assert_eq!(sealed.open_here(root).unwrap().expose(), made.expose());
    assert!(!lies_in_clear(folder.path(), &made));
    let mode = fs::metadata(sealed.path()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let before = fs::read(sealed.path()).unwrap();
    assert!(matches!(sealed.open_here(other), Err(LedgerKeyError::Root(_))));
    assert_eq!(fs::read(sealed.path()).unwrap(), before, "it is not replaced");
    for length in [0, 1, before.len() / 2, before.len() - 1] {
        fs::write(sealed.path(), &before[..length]).unwrap();
        let error = sealed.open_here(root).unwrap_err().to_string();
        assert!(error.contains("ledger.key"), "{length}: {error}");
        assert_eq!(fs::read(sealed.path()).unwrap(), &before[..length]);
    }
    assert_eq!(format!("{made:?}"), "LedgerKey(..)");
    let another = SealedKey::in_folder(tempfile::tempdir().unwrap().path());
    assert!(another.open_here(root).is_err(), "its folder is gone");
}

#[test]
fn without_a_tpm_it_opens_with_the_nodes_key_alone() {
    let folder = tempfile::tempdir().unwrap();
    let soft = |name: &str| Soft::open_or_create(&folder.path().join(name)).unwrap();
    opens_here_alone(&soft("one.pem"), &soft("two.pem"));
}

#[test]
fn with_a_tpm_it_opens_in_this_one_alone_whatever_was_booted() {
    let (Some(mut swtpm), Some(other)) = (start(EkKind::P384), start(EkKind::P384)) else {
        return;
    };
    let tpm = Tpm::open(swtpm.config()).unwrap();
    opens_here_alone(&tpm, &Tpm::open(other.config()).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let sealed = SealedKey::in_folder(folder.path());
    let made = sealed.open_here(&tpm).unwrap();
    tpm.extend(7, &cnova_shared::ids::Digest::of(b"another boot")).unwrap();
    assert_eq!(sealed.open_here(&tpm).unwrap().expose(), made.expose());
    swtpm.reboot();
    assert_eq!(sealed.open_here(&tpm).unwrap().expose(), made.expose());
    // What only an approved boot opens, the TPM itself does not open otherwise.
    let under_policy = tpm.seal(b"secret", es256().public_key()).unwrap();
    assert!(tpm.unseal_here(&under_policy).is_err());
}
