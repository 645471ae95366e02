//! What is wrong with an identity is said with the file and what to do.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use cnova_link::{FloorClock, Identity, IdentityError};
use cnova_shared::envelope::Untrusted;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::Reply;
use support::{Files, Pki, node};

fn refused(files: &Files) -> (IdentityError, String) {
    let error = Identity::load(&files.certificate, &files.key, &files.trust_bundle).unwrap_err();
    let text = error.to_string();
    (error, text)
}

#[test]
fn a_good_one_is_loaded_and_signs() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path());
    let me = pki.issue("plc-1").load();
    assert_eq!(
        (me.node().as_str(), me.site().unwrap().as_str()),
        ("plc-1", "plant-7/plc-1")
    );
    assert!(me.warnings().is_empty());
    let reply = Reply {
        v: 1,
        id: 7,
        ok: true,
        text: "x".into(),
    };
    for introduce in [false, true] {
        let bytes = me
            .seal(Kind::Reply, &node("hub"), 1000, Some(2000), &reply, introduce)
            .unwrap();
        let untrusted = Untrusted::read(&bytes).unwrap();
        assert_eq!(untrusted.x5chain.len(), usize::from(introduce));
        assert_eq!((untrusted.claims.iss.as_str(), untrusted.claims.iat), ("plc-1", 1000));
        let key = cnova_shared::certificate::read(&me.chain()[0]).unwrap().key;
        let verified = untrusted.verify(Kind::Reply, &key).unwrap().decode::<Reply>().unwrap();
        assert_eq!(verified.value(), &reply);
    }
}

#[test]
fn a_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let good = Pki::new(dir.path()).issue("plc-1");
    for (which, name) in [(0, "the certificate"), (1, "the key"), (2, "the trust bundle")] {
        let mut files = good.clone();
        let field = [&mut files.certificate, &mut files.key, &mut files.trust_bundle][which].clone();
        let gone = field.with_extension("gone");
        *[&mut files.certificate, &mut files.key, &mut files.trust_bundle][which] = gone.clone();
        let (error, text) = refused(&files);
        assert!(matches!(error, IdentityError::Read { .. }), "{text}");
        assert!(text.contains(name) && text.contains(gone.to_str().unwrap()), "{text}");
    }
}

#[test]
fn what_is_not_pem_or_of_another_node_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path());
    let (one, two) = (pki.issue("plc-1"), pki.issue("plc-2"));
    let garbage = dir.path().join("garbage");
    fs::write(&garbage, b"\x30\x82 not pem").unwrap();

    let (error, text) = refused(&Files {
        certificate: garbage.clone(),
        ..one.clone()
    });
    assert!(matches!(error, IdentityError::NotCertificates { .. }), "{text}");
    let (error, text) = refused(&Files {
        certificate: one.key.clone(),
        ..one.clone()
    });
    assert!(matches!(error, IdentityError::NotCertificates { .. }), "{text}");
    let (error, text) = refused(&Files {
        key: garbage.clone(),
        ..one.clone()
    });
    assert!(
        matches!(error, IdentityError::NotAKey { .. }) && text.contains("openssl pkcs8"),
        "{text}"
    );
    let (error, text) = refused(&Files {
        key: two.key,
        ..one.clone()
    });
    assert!(
        matches!(error, IdentityError::KeyOfAnother { .. }) && text.contains("plc-1"),
        "{text}"
    );
    let (error, text) = refused(&Files {
        trust_bundle: garbage,
        ..one.clone()
    });
    assert!(matches!(error, IdentityError::Trust { .. }), "{text}");
}

#[test]
fn a_tampered_trust_bundle_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path());
    let files = pki.issue("plc-1");
    let mut bytes = pki.bundle();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&files.trust_bundle, bytes).unwrap();
    assert!(matches!(refused(&files).0, IdentityError::Trust { .. }));
}

#[test]
fn a_key_that_everybody_reads_is_warned_about() {
    let dir = tempfile::tempdir().unwrap();
    let files = Pki::new(dir.path()).issue("plc-1");
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
    let warnings = files.load().warnings().to_vec();
    assert!(matches!(&warnings[..], [w] if w.contains("chmod")), "{warnings:?}");
}

#[test]
fn the_clock_never_goes_below_its_floor() {
    let clock = FloorClock::new(9_000_000_000);
    assert_eq!(clock.now_s(), 9_000_000_000);
    clock.raise(5);
    assert_eq!(clock.now_s(), 9_000_000_000);
    clock.raise(9_000_000_001);
    assert_eq!(clock.now_s(), 9_000_000_001);
    assert!(FloorClock::new(0).now_s() > 1_700_000_000);
}
