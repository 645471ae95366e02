//! `trust`, `token`, `completions`, `version`: real files.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use cnova_shared::bundle::{BundleError, Role, TrustBundle};
use cnova_shared::certificate;
use cnova_shared::ids::Digest;
use cnova_shared::keys::{Algorithm, Signer, SoftKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use support::Place;

const DAY_S: u64 = 86_400;

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn bundle(path: &Path) -> TrustBundle {
    TrustBundle::flashed(&fs::read(path).unwrap()).unwrap()
}

fn key(path: &Path) -> SoftKey {
    let der = PrivatePkcs8KeyDer::from_pem_slice(&fs::read(path).unwrap()).unwrap();
    SoftKey::from_pkcs8(der.secret_pkcs8_der()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn init_makes_a_bundle_that_its_roots_signed() {
    let place = Place::new();
    let run = place.run(&["trust", "init", "trust", "--tree", "acme"]).assert_ok();
    assert!(
        run.out
            .starts_with("trust: tree acme, 3 root keys of which 2 must sign"),
        "{}",
        run.out
    );
    let dir = place.dir.path().join("trust");
    let b = bundle(&dir.join("trust-bundle.cose"));
    let c = b.contents();
    assert_eq!(
        (c.v, c.version, c.roots.len(), c.threshold, c.keys.len()),
        (1, 1, 3, 2, 2)
    );
    assert!(now_s().abs_diff(c.issued_at) < 60);
    let hub = key(&dir.join("hub-signing.key"));
    assert_eq!(hub.public_key().algorithm, Algorithm::Ed25519);
    let id = hub.public_key().id();
    assert!(b.key(id, Role::Twin, now_s() + 729 * DAY_S).is_some());
    assert!(b.key(id, Role::Twin, now_s() + 731 * DAY_S).is_none());
    assert!(
        b.key(id, Role::Attestation, now_s()).is_some(),
        "revocations and delegations"
    );
    assert!(b.key(id, Role::BootPolicy, now_s()).is_none());
    let boots = key(&dir.join("boot-policy.key"));
    assert_eq!(boots.public_key().algorithm, Algorithm::Es256);
    assert_eq!(mode(&dir.join("boot-policy.key")), 0o600);
    let id = boots.public_key().id();
    assert!(b.key(id, Role::BootPolicy, now_s() + 3000 * DAY_S).is_some());
    assert!(b.key(id, Role::Twin, now_s()).is_none());
    for i in 1..=3 {
        let path = dir.join(format!("roots/root-{i}.key"));
        assert!(c.roots.contains(key(&path).public_key()));
        assert_eq!(mode(&path), 0o600);
    }
    assert_eq!(
        (
            mode(&dir),
            mode(&dir.join("ca.key")),
            mode(&dir.join("hub-signing.key"))
        ),
        (0o700, 0o600, 0o600)
    );
    let ca = CertificateDer::from_pem_slice(&fs::read(dir.join("ca.pem")).unwrap()).unwrap();
    assert_eq!(b.authorities(), [ca.to_vec()]);
    assert_eq!(
        fs::read_dir(place.dir.path()).unwrap().count(),
        1,
        "nothing is left beside it"
    );

    let before = fs::read(dir.join("hub-signing.key")).unwrap();
    let again = place.run(&["trust", "init", "trust"]);
    assert_eq!(again.code, 1);
    assert!(
        again.err.contains("trust is there already, and nothing is overwritten"),
        "{}",
        again.err
    );
    assert_eq!(fs::read(dir.join("hub-signing.key")).unwrap(), before);
    let never = place.run(&["trust", "init", "other", "--roots", "1", "--threshold", "2"]);
    assert!(
        never.code == 1 && never.err.contains("2 of 1 root keys can never sign"),
        "{}",
        never.err
    );
}

#[test]
fn an_issued_certificate_speaks_for_its_node_even_when_its_clock_is_slow() {
    let place = Place::new();
    place.run(&["trust", "init", "t"]).assert_ok();
    let issue = [
        "trust",
        "issue",
        "plc-14",
        "--site",
        "plant-7/line-2/plc-14",
        "--dir",
        "t",
        "--days",
        "30",
    ];
    place.run(&issue).assert_ok();
    let folder = place.dir.path().join("t/nodes/plc-14");
    let der = CertificateDer::from_pem_slice(&fs::read(folder.join("node.pem")).unwrap())
        .unwrap()
        .to_vec();
    let b = bundle(&folder.join("trust-bundle.cose"));
    let verify = |at_s| certificate::verify(std::slice::from_ref(&der), &b.authorities(), at_s);
    let node = verify(now_s()).unwrap();
    assert_eq!(node.node.as_str(), "plc-14");
    assert_eq!(node.site.unwrap().as_str(), "plant-7/line-2/plc-14");
    assert_eq!(&node.key, key(&folder.join("node.key")).public_key());
    assert_eq!(node.key.algorithm, Algorithm::Es256);
    assert_eq!(mode(&folder.join("node.key")), 0o600);
    verify(1_704_153_600).expect("2024-01-02: an image's build date is a clock that is slow");
    assert!(verify(now_s() + 31 * DAY_S).is_err());
    check_names(&der);

    let again = place.run(&issue);
    assert!(
        again.code == 1 && again.err.contains("nothing is overwritten"),
        "{}",
        again.err
    );
    // The CA's clock second is over: as many days from now end a second after the CA.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let long = place.run(&["trust", "issue", "x", "--site", "x", "--dir", "t", "--days", "3650"]);
    assert_eq!(
        long.code, 0,
        "the CA was made a moment before, for as many days: {}",
        long.err
    );
    let bad = place.run(&["trust", "issue", "PLC 14", "--site", "x", "--dir", "t"]);
    assert!(bad.code == 2 && bad.err.contains("node id"), "{}", bad.err);
    let none = place.run(&["trust", "issue", "y", "--site", "y", "--dir", "nowhere"]);
    assert!(
        none.code == 1 && none.err.contains("cannot read nowhere/trust-bundle.cose"),
        "{}",
        none.err
    );
}

fn check_names(der: &[u8]) {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(der).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert!(names.value.general_names.contains(&GeneralName::DNSName("plc-14")));
    let usage = certificate.extended_key_usage().unwrap().unwrap();
    assert!(usage.value.client_auth && usage.value.server_auth && !usage.value.any);
    assert!(!certificate.is_ca());
}

#[test]
fn a_certificate_of_another_ca_is_not_issued() {
    let place = Place::new();
    place.run(&["trust", "init", "a"]).assert_ok();
    place.run(&["trust", "init", "b"]).assert_ok();
    fs::copy(place.dir.path().join("b/ca.key"), place.dir.path().join("a/ca.key")).unwrap();
    let run = place.run(&["trust", "issue", "x", "--site", "x", "--dir", "a"]);
    assert!(
        run.code == 1 && run.err.contains("would not be accepted"),
        "{}",
        run.err
    );
    assert!(!place.dir.path().join("a/nodes").exists());
}

#[test]
fn rotation_announces_a_new_key_and_lets_the_old_one_overlap() {
    let place = Place::new();
    place.run(&["trust", "init", "t"]).assert_ok();
    let dir = place.dir.path().join("t");
    let (first, first_key) = (
        bundle(&dir.join("trust-bundle.cose")),
        key(&dir.join("hub-signing.key")),
    );
    place.run(&["trust", "rotate", "t", "--overlap-days", "10"]).assert_ok();
    let second = first
        .succeed(&fs::read(dir.join("trust-bundle.cose")).unwrap())
        .unwrap();
    let second_key = key(&dir.join("hub-signing.key"));
    let (old, new) = (first_key.public_key().id(), second_key.public_key().id());
    assert_ne!(old, new);
    assert_eq!(second.contents().version, 2);
    assert!(second.key(old, Role::Twin, now_s() + 9 * DAY_S).is_some());
    assert!(second.key(old, Role::Twin, now_s() + 11 * DAY_S).is_none());
    assert!(
        second.key_at_any_time(old, Role::Twin).is_some(),
        "what it signed keeps running"
    );
    assert!(second.key(new, Role::Twin, now_s() + 700 * DAY_S).is_some());
    assert_eq!(fs::read(dir.join("trust-bundle.v1.cose")).unwrap(), first.bytes());
    assert_eq!(
        key(&dir.join("hub-signing.v1.key")).public_key(),
        first_key.public_key()
    );
    assert_eq!(mode(&dir.join("hub-signing.key")), 0o600);
    assert_eq!(
        second.succeed(first.bytes()).unwrap_err(),
        BundleError::NotNewer { offered: 1, held: 2 }
    );

    // One root is lost: two of three still do. Then one more, and they do not.
    fs::remove_file(dir.join("roots/root-1.key")).unwrap();
    place.run(&["trust", "rotate", "t"]).assert_ok();
    second
        .succeed(&fs::read(dir.join("trust-bundle.cose")).unwrap())
        .unwrap();
    fs::remove_file(dir.join("roots/root-2.key")).unwrap();
    let (before, key_before) = (
        fs::read(dir.join("trust-bundle.cose")).unwrap(),
        fs::read(dir.join("hub-signing.key")).unwrap(),
    );
    let run = place.run(&["trust", "rotate", "t"]);
    assert!(
        run.code == 1 && run.err.contains("1 of the old root keys signed it, 2 are needed"),
        "{}",
        run.err
    );
    assert_eq!(fs::read(dir.join("trust-bundle.cose")).unwrap(), before);
    assert_eq!(fs::read(dir.join("hub-signing.key")).unwrap(), key_before);
}

#[test]
fn a_bundle_is_shown_only_when_its_signatures_hold() {
    let place = Place::new();
    place
        .run(&["trust", "init", "t", "--tree", "acme", "--roots", "1"])
        .assert_ok();
    let run = place.run(&["trust", "show", "t/trust-bundle.cose"]).assert_ok();
    for part in [
        "trust bundle version 1 of 20",
        "signed by at least 1 of its own 1 roots",
        "valid",
        "CN=acme node CA",
    ] {
        assert!(run.out.contains(part), "{part} is not in {}", run.out);
    }
    let run = place
        .run(&["trust", "show", "t/trust-bundle.cose", "-o", "json"])
        .assert_ok();
    assert_eq!(run.json()["keys"][0]["roles"][0], "twin");
    let path = place.dir.path().join("t/trust-bundle.cose");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(place.dir.path().join("bad.cose"), bytes).unwrap();
    let run = place.run(&["trust", "show", "bad.cose"]);
    assert!(
        run.code == 1 && run.err.contains("bad.cose: 0 of the new root keys signed it"),
        "{}",
        run.err
    );
    let run = place.run(&["trust", "show", "t/ca.pem"]);
    assert!(run.code == 1 && run.err.contains("not a trust bundle"), "{}", run.err);
}

#[test]
fn a_token_is_printed_once_and_its_hash_kept() {
    let place = Place::new();
    let run = place
        .run(&["token", "new", "--name", "ci", "--role", "operator"])
        .assert_ok();
    let token = run.out.trim_end();
    assert_eq!(token.len(), 43);
    assert!(
        token
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    );
    let path = place.dir.path().join("tokens.toml");
    let entry = format!(
        "[[token]]\nname = \"ci\"\nrole = \"operator\"\nsha256 = \"{}\"\n",
        Digest::of(token.as_bytes()).hex()
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), entry);
    assert_eq!(mode(&path), 0o600);
    let second = place
        .run(&["token", "new", "--name", "ops", "--role", "viewer"])
        .assert_ok();
    assert_ne!(second.out, run.out);
    assert!(
        fs::read_to_string(&path)
            .unwrap()
            .starts_with(&format!("{entry}\n[[token]]\nname = \"ops\""))
    );
    let taken = place.run(&["token", "new", "--name", "ci", "--role", "admin"]);
    assert!(
        taken.code == 1 && taken.err.contains("of the name ci already"),
        "{}",
        taken.err
    );
    fs::write(&path, "not toml [").unwrap();
    let broken = place.run(&["token", "new", "--name", "x", "--role", "admin"]);
    assert!(
        broken.code == 1 && broken.err.contains("nothing was added"),
        "{}",
        broken.err
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "not toml [");
}

#[test]
fn completions_version_and_help() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let run = place.run(&["completions", shell]).assert_ok();
        assert!(run.out.contains("cnova") && run.out.len() > 1000, "{shell}");
    }
    assert!(place.run(&["version"]).assert_ok().out.starts_with("cnova 0."));
    assert_eq!(
        place.run(&["version", "-o", "json"]).assert_ok().json()["manifest"],
        "cnova/v1"
    );
    let help = place.run(&["--help"]).assert_ok().out;
    for part in [
        "CNOVA_TOKEN_FILE",
        "Exit codes:",
        "3  the hub cannot be reached",
        "config.toml",
    ] {
        assert!(help.contains(part), "{part}");
    }
    assert_eq!(place.run(&["get", "cows"]).code, 2);
    assert_eq!(place.run(&["get", "history", "Not A Node"]).code, 2);
}

#[test]
fn a_key_for_boots_is_replaced_by_itself() {
    let place = Place::new();
    place.run(&["trust", "init", "t"]).assert_ok();
    let dir = place.dir.path().join("t");
    let newest = || bundle(&dir.join("trust-bundle.cose"));
    let id_of = |file: &str| key(&dir.join(file)).public_key().id();
    let (hub, first) = (id_of("hub-signing.key"), id_of("boot-policy.key"));
    place.run(&["trust", "rotate", "t", "--overlap-days", "1"]).assert_ok();
    assert!(
        newest().key(first, Role::BootPolicy, now_s() + 1000 * DAY_S).is_some(),
        "it outlives the hub's signing key"
    );
    place
        .run(&["trust", "boot-policy-key", "t", "--overlap-days", "10"])
        .assert_ok();
    let second = id_of("boot-policy.key");
    assert_ne!(first, second);
    assert_eq!(id_of("boot-policy.v2.key"), first);
    let b = newest();
    assert_eq!(b.contents().version, 3);
    assert!(b.key(second, Role::BootPolicy, now_s() + 1000 * DAY_S).is_some());
    assert!(b.key(first, Role::BootPolicy, now_s() + 9 * DAY_S).is_some());
    assert!(b.key(first, Role::BootPolicy, now_s() + 11 * DAY_S).is_none());
    assert!(b.key_at_any_time(hub, Role::Twin).is_some());
    assert!(
        b.key(id_of("hub-signing.key"), Role::Twin, now_s() + 700 * DAY_S)
            .is_some()
    );

    // Stolen: it is out at once, and the hub's signing key is not touched.
    let signing = id_of("hub-signing.key");
    place
        .run(&["trust", "revoke", "t", "--key", &second.to_string()])
        .assert_ok();
    let b = newest();
    assert!(b.key_at_any_time(second, Role::BootPolicy).is_none());
    assert!(b.key(id_of("boot-policy.key"), Role::BootPolicy, now_s()).is_some());
    assert_eq!(id_of("hub-signing.key"), signing);

    // A tree of before there were such keys: the first one is made the same way.
    fs::remove_file(dir.join("boot-policy.key")).unwrap();
    place.run(&["trust", "boot-policy-key", "t"]).assert_ok();
    assert!(
        newest()
            .key(id_of("boot-policy.key"), Role::BootPolicy, now_s())
            .is_some()
    );
}

#[test]
fn a_stolen_key_leaves_the_bundle_at_once() {
    let place = Place::new();
    place.run(&["trust", "init", "t"]).assert_ok();
    let dir = place.dir.path().join("t");
    let first = bundle(&dir.join("trust-bundle.cose"));
    let stolen = key(&dir.join("hub-signing.key")).public_key().id();
    let run = place.run(&["trust", "revoke", "t", "--key", "0011223344556677"]);
    assert!(run.code == 1 && run.err.contains(&stolen.to_string()), "{}", run.err);
    let run = place.run(&["trust", "revoke", "t", "--key", "stolen"]);
    assert!(run.code == 1 && run.err.contains("is not a key id"), "{}", run.err);
    place
        .run(&["trust", "revoke", "t", "--key", &stolen.to_string()])
        .assert_ok();
    let second = first
        .succeed(&fs::read(dir.join("trust-bundle.cose")).unwrap())
        .unwrap();
    let new = key(&dir.join("hub-signing.key")).public_key().id();
    assert!(second.key_at_any_time(stolen, Role::Twin).is_none());
    assert!(second.key(new, Role::Twin, now_s()).is_some() && second.key(new, Role::Attestation, now_s()).is_some());
}
