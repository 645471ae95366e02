//! Another language's COSE library agrees: it verifies a twin, an attestation result and an evidence message of ours, with
//! the TPM's quote in it, and we verify what it signs. `scripts/interop/cose.py` holds none of our code.
//!
//! Needs what `scripts/setup test` installs from PyPI; says so and does nothing where that is missing.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use cnova_attestation::ear::{Ear, Status, TrustVector, VerifierId};
use cnova_root_of_trust::{RootOfTrust, Soft};
use cnova_shared::certificate::Tier;
use cnova_shared::envelope::{CONTENT_TYPE, Claims, Introduction, Untrusted, seal_payload};
use cnova_shared::keys::{Algorithm, PublicKey, Signer, SoftKey};
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::Challenge;
use cnova_shared::wire::{decode, encode};
use serde_json::{Value, json};
use support::{NOW_S, PCRS, node, session, vector};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = (0..text.len()).step_by(2);
    pairs
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

fn root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// What the other side says; nothing where it is not installed.
fn ask(wanted: &Value) -> Option<Value> {
    let libraries = root("target/interop");
    if !libraries.join("pycose").is_dir() {
        eprintln!("skipped: pycose is not in target/interop: `scripts/setup test` gets it from PyPI");
        return None;
    }
    let mut python = Command::new("python3")
        .arg(root("scripts/interop/cose.py"))
        .env("PYTHONPATH", libraries)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    python
        .stdin
        .take()
        .unwrap()
        .write_all(wanted.to_string().as_bytes())
        .unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn question(cose: &[u8], kind: &str, key: &PublicKey) -> Value {
    let alg = match key.algorithm {
        Algorithm::Ed25519 => "EdDSA",
        Algorithm::Es256 => "ES256",
    };
    json!({
        "cose": hex(cose),
        "aad": format!("cnova/v1/{kind}"),
        "key": {"alg": alg, "public": hex(&key.bytes)},
    })
}

fn assert_only_that_holds(answer: &Value) {
    let of = |name: &str| answer[name].as_bool().unwrap();
    assert!(of("holds"), "{answer}");
    assert!(!of("holds_as_another_kind"), "{answer}");
    assert!(!of("holds_when_changed"), "{answer}");
}

fn claims(iss: &str, aud: &str) -> Claims {
    Claims {
        iss: node(iss),
        aud: node(aud),
        iat: NOW_S,
        exp: None,
    }
}

fn sealed(kind: Kind, claims: &Claims, payload: Vec<u8>, signer: &dyn Signer) -> Vec<u8> {
    seal_payload(kind, claims, payload, Introduction::default(), signer).unwrap()
}

#[test]
fn another_library_verifies_a_twin_as_it_was_frozen() {
    let hub = SoftKey::ed25519_from_seed(&[3; 32]);
    let twin = fs::read(root("shared/tests/golden/twin.cose")).unwrap();
    let Some(answers) = ask(&json!({"verify": [question(&twin, "twin", hub.public_key())], "sign": []})) else {
        return;
    };
    let answer = &answers["verify"][0];
    assert_only_that_holds(answer);
    let (ours, _) = cnova_shared::envelope::peek(&twin).unwrap();
    assert_eq!(answer["claims"]["1"], ours.iss.as_str());
    assert_eq!(answer["claims"]["3"], ours.aud.as_str());
    assert_eq!(answer["claims"]["6"], ours.iat);
    assert_eq!(answer["payload"]["node"], ours.aud.as_str());
}

#[test]
fn another_library_verifies_a_result_of_either_algorithm_and_reads_it() {
    let ear = Ear {
        subject: node("plc-1"),
        key: session().public_key().clone(),
        nonce: (0..32).collect(),
        iat: NOW_S,
        exp: NOW_S + 600,
        verifier: VerifierId {
            developer: "Cloudnova".into(),
            build: "cnova-hub 0.1.0".into(),
        },
        status: Status::Affirming,
        vector: TrustVector {
            instance_identity: 2,
            configuration: 2,
            executables: 2,
            hardware: 2,
        },
        policy: "image-1 (references 7)".into(),
        tier: Tier::Tpm,
        boot_measured: true,
        findings: Vec::new(),
    };
    let folder = tempfile::tempdir().unwrap();
    // P-256, as it is used with TPMs and by HSMs.
    let es256 = Soft::open_or_create(&folder.path().join("key")).unwrap().device_key();
    let ed25519 = SoftKey::ed25519_from_seed(&[1; 32]);
    let signers: [&dyn Signer; 2] = [&ed25519, &*es256];
    let wanted: Vec<Value> = signers
        .iter()
        .map(|signer| {
            let cose = sealed(Kind::Ear, &claims("hub", "plc-1"), ear.encode().unwrap(), *signer);
            question(&cose, "ear", signer.public_key())
        })
        .collect();
    let Some(answers) = ask(&json!({"verify": wanted, "sign": []})) else {
        return;
    };
    for answer in answers["verify"].as_array().unwrap() {
        assert_only_that_holds(answer);
        let claims = &answer["payload"];
        // RFC 9711 and the EAR draft: nonce, expiry, profile, and the submodule with its status.
        assert_eq!(claims["10"], hex(&ear.nonce));
        assert_eq!((&claims["4"], &claims["6"]), (&json!(NOW_S + 600), &json!(NOW_S)));
        assert_eq!(claims["265"], "urn:cnova:ear:1");
        assert_eq!(claims["266"]["node"]["1000"], Status::Affirming.code());
    }
}

#[test]
fn another_library_verifies_evidence_and_the_quote_in_it() {
    let session = session();
    let evidence = support::evidence("p256");
    let cose = sealed(
        Kind::Evidence,
        &claims("plc-1", "hub"),
        evidence.encode().unwrap(),
        &session,
    );
    let Some(answers) = ask(&json!({"verify": [question(&cose, "evidence", session.public_key())], "sign": []})) else {
        return;
    };
    let answer = &answers["verify"][0];
    assert_only_that_holds(answer);
    assert_eq!(answer["payload"]["10"], hex(&vector("nonce")));
    let quote = &answer["quote"];
    assert_eq!(quote["registers"], json!(PCRS));
    assert_eq!(quote["values_agree"], true, "{quote}");
    assert_eq!(quote["binds_nonce_and_session"], true, "{quote}");
}

#[test]
fn we_verify_what_another_library_signs() {
    let key = SoftKey::ed25519_from_seed(&[5; 32]);
    let challenge = Challenge {
        v: 1,
        nonce: vec![5; 32],
        log: None,
    };
    let claims = claims("hub", "plc-1");
    let wanted = json!({"verify": [], "sign": [{
        "aad": "cnova/v1/challenge",
        "seed": "05".repeat(32),
        "kid": hex(&key.public_key().id().0),
        "content_type": CONTENT_TYPE,
        "claims": BTreeMap::from([("1", json!("hub")), ("3", json!("plc-1")), ("6", json!(NOW_S))]),
        "payload": hex(&encode(&challenge).unwrap()),
    }]});
    let Some(answers) = ask(&wanted) else { return };
    let cose = unhex(answers["sign"][0].as_str().unwrap());
    let open = |bytes: &[u8], kind| Untrusted::read(bytes).unwrap().verify(kind, key.public_key());
    let opened = open(&cose, Kind::Challenge).unwrap();
    assert_eq!(opened.claims(), &claims);
    assert_eq!(opened.decode::<Challenge>().unwrap().into_value(), challenge);
    assert!(open(&cose, Kind::Ear).is_err());
    // Byte for byte what we make of the same.
    let payload = encode(&challenge).unwrap();
    assert_eq!(
        hex(&cose),
        hex(&sealed(Kind::Challenge, &claims, payload.clone(), &key))
    );
    assert_eq!(decode::<Challenge>(&payload).unwrap(), challenge);
}
