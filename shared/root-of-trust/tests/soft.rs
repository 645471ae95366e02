//! A key in a file.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use cnova_attestation::Credential;
use cnova_root_of_trust::{BootApproval, RootError, RootOfTrust, Soft};
use cnova_shared::certificate::Tier;
use cnova_shared::ids::Digest;
use cnova_shared::keys::{Algorithm, Signer};

mod support;
use support::es256;

#[test]
fn a_key_is_made_once_and_only_for_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    assert!(matches!(Soft::open(&path), Err(RootError::File(_))));
    assert!(!path.exists());
    let first = Soft::open_or_create(&path).unwrap();
    assert_eq!(first.tier(), Tier::Soft);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        1,
        "nothing is left beside it"
    );
    let key = first.device_key();
    assert_eq!(key.public_key().algorithm, Algorithm::Es256);
    assert!(key.public_key().verifies(b"m", &key.sign(b"m").unwrap()));
    for again in [Soft::open_or_create(&path).unwrap(), Soft::open(&path).unwrap()] {
        assert_eq!(again.device_key().public_key(), key.public_key());
    }
}

#[test]
fn openssl_reads_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    let key = Soft::open_or_create(&path).unwrap().device_key();
    let output = Command::new("openssl")
        .args(["pkey", "-pubout", "-outform", "der", "-in"])
        .arg(&path)
        .output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: openssl is not installed; that it reads our keys was not tested");
        return;
    };
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.ends_with(&key.public_key().bytes));
}

#[test]
fn many_that_start_at_once_have_one_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || Soft::open_or_create(&path).unwrap().device_key().public_key().clone())
        })
        .collect();
    let keys: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    assert!(keys.iter().all(|k| *k == keys[0]), "{keys:?}");
}

#[test]
fn a_file_that_is_no_key_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    for text in [
        "",
        "nonsense",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ] {
        fs::write(&path, text).unwrap();
        let error = Soft::open_or_create(&path).unwrap_err().to_string();
        assert!(error.contains("key.pem") && error.contains("openssl"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    let error = Soft::open_or_create(Path::new("/no/such/folder/key.pem"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("/no/such/folder/key.pem"), "{error}");
}

#[test]
fn what_is_sealed_opens_with_the_same_key_and_approver_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    let soft = Soft::open_or_create(&path).unwrap();
    let other = Soft::open_or_create(&folder.path().join("other.pem")).unwrap();
    let (approver, stranger) = (es256(), es256());
    let none = BootApproval::none();
    let sealed = soft.seal(b"the ledger's key", approver.public_key()).unwrap();
    assert_ne!(sealed, soft.seal(b"the ledger's key", approver.public_key()).unwrap());
    let reopened = Soft::open(&path).unwrap();
    let opened = reopened.unseal(&sealed, approver.public_key(), &none).unwrap();
    assert_eq!(opened.as_slice(), b"the ledger's key");
    assert!(matches!(
        soft.unseal(&sealed, stranger.public_key(), &none),
        Err(RootError::NotOurs { .. })
    ));
    assert!(matches!(
        other.unseal(&sealed, approver.public_key(), &none),
        Err(RootError::NotOurs { .. })
    ));
    for at in 0..sealed.len() {
        let mut bent = sealed.clone();
        bent[at] ^= 1;
        assert!(soft.unseal(&bent, approver.public_key(), &none).is_err(), "{at}");
        assert!(
            soft.unseal(&sealed[..at], approver.public_key(), &none).is_err(),
            "{at}"
        );
    }
    assert!(soft.seal(&[0; 128], approver.public_key()).is_ok());
    assert!(matches!(
        soft.seal(&[0; 129], approver.public_key()),
        Err(RootError::Refused { .. })
    ));
}

#[test]
fn it_never_claims_to_be_a_tpm() {
    let folder = tempfile::tempdir().unwrap();
    let soft = Soft::open_or_create(&folder.path().join("key.pem")).unwrap();
    let d = Digest::of(b"d");
    let credential = Credential {
        blob: vec![].into(),
        secret: vec![].into(),
    };
    let refusals = [
        soft.enrolment(b"q").map(|_| ()),
        soft.activate(&credential).map(|_| ()),
        soft.quote(&d, &[0]).map(|_| ()),
        soft.attestation_key().map(|_| ()),
        soft.read_pcrs(&[0]).map(|_| ()),
        soft.extend(14, &d),
        soft.count_up().map(|_| ()),
    ];
    for refusal in refusals {
        assert!(matches!(refusal, Err(RootError::NoTpm { .. })), "{refusal:?}");
    }
    assert_eq!(soft.counter(), Ok(None));
}
