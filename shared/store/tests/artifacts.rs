//! Artifacts: fetched in pieces, resumed, refused when they are something else, kept and thrown away.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use cnova_shared::ids::Digest;
use cnova_store::{AppendError, ArtifactError, Artifacts, FinishError};

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 % 251) as u8).collect()
}

fn open(dir: &tempfile::TempDir) -> Artifacts {
    Artifacts::open(dir.path(), 1 << 20).unwrap()
}

#[test]
fn pieces_become_an_artifact_across_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(10_000);
    let digest = Digest::of(&data);
    {
        let store = open(&dir);
        store.append(&digest, 0, &data[..4000]).unwrap();
        store.append(&digest, 4000, &data[4000..6000]).unwrap();
    }
    let store = open(&dir);
    let (whole, partial) = store.scan().unwrap();
    assert!(whole.is_empty() && !store.has(&digest));
    assert_eq!(partial.get(&digest), Some(&6000));
    assert!(matches!(
        store.append(&digest, 5000, &data[5000..]),
        Err(AppendError::NotNext { length: 6000, .. })
    ));
    assert!(matches!(
        store.append(&digest, 7000, &data[7000..]),
        Err(AppendError::NotNext { .. })
    ));
    store.append(&digest, 6000, &data[6000..]).unwrap();
    // Cut off before it was checked: its last byte is asked for again.
    store.append(&digest, 9999, &data[9999..]).unwrap();
    store.finish(&digest).unwrap();
    store.finish(&digest).unwrap();
    assert!(store.has(&digest) && store.verify(&digest).unwrap());
    assert_eq!(
        fs::metadata(store.path(&digest)).unwrap().permissions().mode() & 0o777,
        0o444
    );
    let (whole, partial) = store.scan().unwrap();
    assert_eq!((whole, partial.len()), (BTreeSet::from([digest]), 0));
    assert_eq!(
        store.read(&digest, 9_990, 100).unwrap(),
        (data[9_990..].to_vec(), 10_000)
    );
    assert_eq!(store.read(&digest, 20_000, 100).unwrap(), (Vec::new(), 10_000));
    assert_eq!((store.used(), store.bytes_written()), (10_000, 4_001));
}

#[test]
fn another_digest_is_thrown_away_and_fetched_anew() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let data = bytes(5000);
    let digest = Digest::of(&data);
    let mut wrong = data.clone();
    wrong[17] ^= 1;
    store.append(&digest, 0, &wrong).unwrap();
    match store.finish(&digest) {
        Err(FinishError::Mismatch { expected, found }) => assert_eq!((expected, found), (digest, Digest::of(&wrong))),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.used(), 0);
    // Truncated: fewer bytes than the digest is of.
    store.append(&digest, 0, &data[..4999]).unwrap();
    assert!(matches!(store.finish(&digest), Err(FinishError::Mismatch { .. })));
    // Begun anew over an old partial file.
    store.append(&digest, 0, &data[..100]).unwrap();
    store.append(&digest, 0, &data).unwrap();
    store.finish(&digest).unwrap();
    assert_eq!(store.used(), 5000);
}

#[test]
fn a_damaged_artifact_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (digest, size) = store.import(&bytes(1000)).unwrap();
    assert_eq!((size, store.verify(&digest).unwrap()), (1000, true));
    let path = store.path(&digest);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, b"rot").unwrap();
    assert!(!store.verify(&digest).unwrap());
    store.remove(&digest).unwrap();
    assert!(!store.has(&digest));
}

#[test]
fn the_bound_is_kept_and_what_is_not_wanted_goes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Artifacts::open(dir.path(), 10_000).unwrap();
    let (kept, _) = store.import(&bytes(6000)).unwrap();
    let other = Digest::of(b"other");
    store.append(&other, 0, &bytes(3000)).unwrap();
    let error = store.append(&other, 3000, &bytes(2000)).unwrap_err();
    assert!(
        matches!(error, AppendError::Artifact(ArtifactError::NoRoom { used: 9000, .. })),
        "{error}"
    );
    assert!(matches!(store.import(&bytes(5000)), Err(ArtifactError::NoRoom { .. })));
    store.keep(&[kept]).unwrap();
    assert_eq!((store.used(), store.scan().unwrap().1.len()), (6000, 0));
    assert!(store.has(&kept));
    store.keep(&[]).unwrap();
    assert_eq!(store.used(), 0);
}

#[test]
fn files_are_imported_and_strange_names_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let file = dir.path().join("module.wasm");
    fs::write(&file, bytes(70_000)).unwrap();
    let (digest, size) = store.import_file(&file).unwrap();
    assert_eq!((digest, size), (Digest::of(&bytes(70_000)), 70_000));
    assert_eq!(store.import_file(&file).unwrap(), (digest, size));
    assert!(matches!(
        store.import_file(&dir.path().join("gone")),
        Err(ArtifactError::Io { .. })
    ));
    fs::write(dir.path().join("sha256/README"), "x").unwrap();
    fs::write(dir.path().join("sha256").join(Digest::of(b"empty").hex()), "").unwrap();
    assert_eq!(store.scan().unwrap().0, BTreeSet::from([digest]));
}
