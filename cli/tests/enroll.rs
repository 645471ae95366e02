//! `cnova enroll` and `cnova trust issuer`.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use cnova_shared::bundle::TrustBundle;
use cnova_shared::ids::Digest;
use serde_json::{Value, json};
use support::{FakeHub, Place, json as answer};

#[test]
fn a_token_goes_to_standard_output_and_nothing_else_does() {
    let hub = FakeHub::start(|_, _| {
        answer(
            201,
            json!({"id": "0123456789ab", "token": "cnova-enrol-secret", "expires_s": 1_790_000_000}),
        )
    });
    let place = Place::new();
    let run = place.ask(
        &hub,
        &[
            "enroll",
            "token",
            "--site",
            "plant-7/*",
            "--uses",
            "3",
            "--expires",
            "7d",
        ],
    );
    let run = run.assert_ok();
    assert_eq!(run.out, "cnova-enrol-secret\n");
    assert!(
        run.err.contains("0123456789ab") && !run.err.contains("secret"),
        "{}",
        run.err
    );
    let asked = &hub.requests()[0];
    assert_eq!(asked.line, "POST /v1/enrolment/tokens");
    let want = json!({"site": "plant-7/*", "name": null, "uses": 3, "expires_in_s": 604_800});
    assert_eq!(asked.json(), want);
    for bad in [["--expires", "tomorrow"], ["--uses", "0"]] {
        let all = [&["enroll", "token", "--site", "a"], &bad[..]].concat();
        assert_eq!(place.ask(&hub, &all).code, 2);
    }
}

#[test]
fn a_tpm_is_named_by_its_certificate_or_its_fingerprint() {
    let hub = FakeHub::start(|_, _| answer(200, json!({"result": "done"})));
    let place = Place::new();
    place.run(&["trust", "init", "trust"]).assert_ok();
    // Any certificate will do; a TPM's NV index pads it.
    let pem = fs::read(place.dir.path().join("trust/ca.pem")).unwrap();
    let der = <rustls_pki_types::CertificateDer<'_> as rustls_pki_types::pem::PemObject>::from_pem_slice(&pem).unwrap();
    let print = Digest::of(&der);
    place.write("padded.der", [&der[..], &[0xff; 32]].concat());
    let rest = ["--name", "plc-1", "--site", "plant-7/plc-1"];
    for given in [
        ["--certificate", "trust/ca.pem"],
        ["--certificate", "padded.der"],
        ["--fingerprint", &print.hex()],
    ] {
        let all = [&["enroll", "ek"], &given[..], &rest].concat();
        place.ask(&hub, &all).assert_ok();
    }
    let want = json!({"fingerprint": print, "node": "plc-1", "site": "plant-7/plc-1"});
    assert!(hub.requests().iter().all(|r| r.json() == want), "{:?}", hub.requests());
    place.write("no.pem", "no certificate");
    let run = place.ask(
        &hub,
        &[&["enroll", "ek", "--certificate", "no.pem"], &rest[..]].concat(),
    );
    assert!(
        run.code == 1 && run.err.contains("no.pem is not a certificate"),
        "{run:?}"
    );
    let run = place.ask(&hub, &[&["enroll", "ek", "--fingerprint", "12"], &rest[..]].concat());
    assert!(run.code == 2 && run.err.contains("64 hexadecimal digits"), "{run:?}");
    assert_eq!(place.ask(&hub, &[&["enroll", "ek"], &rest[..]].concat()).code, 2);
}

#[test]
fn what_there_is_is_listed_and_taken_back() {
    let list = json!({
        "tokens": [{"id": "0123456789ab", "site": "plant-7/*", "name": "", "expires_s": 1_790_000_000, "uses_left": 2,
            "by": "boss", "made_s": 1}],
        "known": [{"fingerprint": "ab", "node": "plc-2", "site": "plant-7/plc-2", "by": "boss", "made_s": 1}],
        "nodes": [{"node": "plc-1", "site": "plant-7/plc-1", "tier": "tpm", "ek": "cd", "key": "0011", "first_s": 0,
            "last_s": 0, "not_after_s": 0}],
    });
    let served = list.clone();
    let hub = FakeHub::start(move |r, _| match r.line.split(' ').next() {
        Some("GET") => answer(200, served.clone()),
        _ => answer(200, json!({"result": "done"})),
    });
    let place = Place::new();
    let run = place.ask(&hub, &["enroll", "list"]).assert_ok();
    for word in ["0123456789ab", "any", "plc-2", "plc-1", "tpm"] {
        assert!(run.out.contains(word), "{word}: {}", run.out);
    }
    let raw: Value = place.ask(&hub, &["enroll", "list", "-o", "json"]).assert_ok().json();
    assert_eq!(raw, list);
    place.ask(&hub, &["enroll", "revoke-token", "0123456789ab"]).assert_ok();
    place.ask(&hub, &["enroll", "remove-ek", &"ab".repeat(32)]).assert_ok();
    place.ask(&hub, &["enroll", "forget", "plc-1"]).assert_ok();
    let lines = hub.lines();
    assert_eq!(
        lines[2..],
        [
            "DELETE /v1/enrolment/tokens/0123456789ab".to_owned(),
            format!("DELETE /v1/enrolment/eks/sha256:{}", "ab".repeat(32)),
            "DELETE /v1/enrolment/nodes/plc-1".to_owned(),
        ]
    );
}

#[test]
fn the_issuer_is_made_under_the_ca_and_never_twice() {
    let place = Place::new();
    place.run(&["trust", "init", "trust"]).assert_ok();
    let run = place.run(&["trust", "issuer", "trust"]).assert_ok();
    assert!(run.out.contains("hub-issuer.pem"), "{}", run.out);
    let dir = place.dir.path().join("trust");
    let made = fs::read(dir.join("hub-issuer.pem")).unwrap();
    assert!(
        place
            .run(&["trust", "issuer", "trust"])
            .err
            .contains("nothing is overwritten")
    );
    assert_eq!(fs::read(dir.join("hub-issuer.pem")).unwrap(), made);
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(dir.join("hub-issuer.key")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // Another tree's CA does not belong to this bundle.
    place.run(&["trust", "init", "other"]).assert_ok();
    for file in ["ca.pem", "ca.key"] {
        fs::copy(place.dir.path().join("other").join(file), dir.join(file)).unwrap();
    }
    for file in ["hub-issuer.pem", "hub-issuer.key"] {
        fs::remove_file(dir.join(file)).unwrap();
    }
    let run = place.run(&["trust", "issuer", "trust"]);
    assert!(run.code == 1 && run.err.contains("would not be accepted"), "{run:?}");
    TrustBundle::flashed(&fs::read(dir.join("trust-bundle.cose")).unwrap()).unwrap();
}
