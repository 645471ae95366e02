//! Envelopes that prove something, and every way in which they prove nothing.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use cnova_provenance::{
    AOT_BUILD_TYPE, AOT_BUILDER, Dependency, FrameError, Made, PAYLOAD_TYPE, ProvenanceError, StatementError, Subject,
    check_workload, make, matches, pae, rfc3339, sign, verify,
};
use cnova_shared::bundle::{Bundle, TrustedBuilder};
use cnova_shared::ids::Digest;
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::wire::v1::{self, AttestationPolicy};
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

const CI: &str = "https://ci.example/line-2";
const NOW: u64 = 1_795_000_000;

fn ci() -> SoftKey {
    SoftKey::ed25519_from_seed(&[7; 32])
}

fn hub() -> SoftKey {
    SoftKey::ed25519_from_seed(&[8; 32])
}

fn es256() -> SoftKey {
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    SoftKey::from_pkcs8(der.as_ref()).unwrap()
}

fn trusted(key: &SoftKey, builder: &str, level: u8) -> TrustedBuilder {
    TrustedBuilder {
        key: key.public_key().clone(),
        builder: builder.to_owned(),
        level,
        not_after: NOW + 1000,
    }
}

fn statement(builder: &str, build_type: &str, subjects: &[Digest], materials: &[Digest]) -> Vec<u8> {
    let subject = |d: &Digest| Subject {
        name: d.short(),
        digest: *d,
    };
    let dependencies: Vec<Dependency> = materials
        .iter()
        .map(|m| Dependency::of_file("file:x".into(), m))
        .collect();
    make(&Made {
        subjects: &subjects.iter().map(subject).collect::<Vec<_>>(),
        build_type,
        parameters: json!({"command": ["make"]}),
        dependencies: &dependencies,
        builder,
        builder_version: BTreeMap::new(),
        started_s: NOW,
        finished_s: NOW + 5,
    })
}

fn signed(key: &SoftKey, builder: &str, subject: Digest) -> Vec<u8> {
    sign(&statement(builder, "urn:x:build", &[subject], &[]), &[key]).unwrap()
}

fn app() -> Digest {
    Digest::of(b"app")
}

fn policy(min_level: u8, builders: &[&str]) -> AttestationPolicy {
    AttestationPolicy {
        required: true,
        min_level,
        builders: builders.iter().map(|b| (*b).to_owned()).collect(),
        files: false,
    }
}

fn try_it(
    envelope: &[u8],
    policy: &AttestationPolicy,
    builders: &[TrustedBuilder],
) -> Result<(String, u8), ProvenanceError> {
    verify(envelope, &[policy], builders, Some(NOW), &app()).map(|v| (v.builder().to_owned(), v.level()))
}

#[test]
fn what_a_trusted_builder_signed_is_proved() {
    for key in [ci(), es256()] {
        let envelope = signed(&key, CI, app());
        assert!(!envelope.contains(&b'\n'), "an envelope is one line");
        let proved = try_it(
            &envelope,
            &policy(2, &["https://ci.example/*"]),
            &[trusted(&key, CI, 2)],
        );
        assert_eq!(proved, Ok((CI.to_owned(), 2)), "{key:?}");
    }
}

/// The worked example of the DSSE specification, protocol.md.
#[test]
fn the_encoding_that_is_signed_is_the_one_of_the_specification() {
    assert_eq!(
        pae("http://example.com/HelloWorld", b"hello world"),
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    );
    assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
    assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
    assert_eq!(rfc3339(1_795_238_338), "2026-11-21T05:18:58Z");
}

/// As cosign writes them: no key id, the older name of the statement, base64 for URLs, and r || s as COSE has it.
#[test]
fn envelopes_of_other_tools_are_read() {
    let key = es256();
    let mut text: Value = serde_json::from_slice(&statement(CI, "urn:x", &[app()], &[])).unwrap();
    text["_type"] = json!("https://in-toto.io/Statement/v0.1");
    let payload = text.to_string().into_bytes();
    let raw = key.sign(&pae(PAYLOAD_TYPE, &payload)).unwrap();
    for (payload_text, keyid) in [
        (URL_SAFE_NO_PAD.encode(&payload), ""),
        (STANDARD.encode(&payload), "SHA256:abcdef"),
    ] {
        let envelope = json!({
            "payloadType": PAYLOAD_TYPE, "payload": payload_text,
            "signatures": [{"keyid": keyid, "sig": STANDARD.encode(&raw)}],
        });
        let proved = try_it(
            envelope.to_string().as_bytes(),
            &policy(0, &[]),
            &[trusted(&key, CI, 1)],
        );
        assert_eq!(proved, Ok((CI.to_owned(), 1)));
    }
}

#[test]
fn every_other_envelope_says_what_is_wrong_with_it() {
    let (key, any) = (ci(), policy(0, &[]));
    let builders = [trusted(&key, CI, 2), trusted(&hub(), AOT_BUILDER, 3)];
    let good = signed(&key, CI, app());

    let stranger = SoftKey::ed25519_from_seed(&[9; 32]);
    let unknown = try_it(&signed(&stranger, CI, app()), &any, &builders).unwrap_err();
    assert!(matches!(unknown, ProvenanceError::NoKnownKey { .. }), "{unknown}");
    assert!(unknown.to_string().contains(&stranger.public_key().id().to_string()));

    let other = try_it(&signed(&key, CI, Digest::of(b"other")), &any, &builders).unwrap_err();
    assert!(matches!(other, ProvenanceError::OtherSubject { .. }), "{other}");

    let unlisted = try_it(&good, &policy(0, &["https://other.example/*"]), &builders).unwrap_err();
    assert!(
        matches!(unlisted, ProvenanceError::BuilderNotListed { .. }),
        "{unlisted}"
    );

    let low = try_it(&good, &policy(3, &[]), &builders).unwrap_err();
    assert!(
        matches!(
            low,
            ProvenanceError::LevelTooLow {
                level: 2,
                needed: 3,
                ..
            }
        ),
        "{low}"
    );

    // A key that is trusted, for another builder: the level of that one is not to be had.
    let posing = try_it(&signed(&key, AOT_BUILDER, app()), &any, &builders).unwrap_err();
    assert!(matches!(posing, ProvenanceError::NotThisBuilder { .. }), "{posing}");

    let late = verify(&good, &[&any], &builders, Some(NOW + 1000), &app()).unwrap_err();
    assert!(matches!(late, ProvenanceError::BuilderExpired { .. }), "{late}");
    assert!(
        verify(&good, &[&any], &builders, None, &app()).is_ok(),
        "what was accepted stays accepted"
    );

    let mut text: Value = serde_json::from_slice(&good).unwrap();
    let forged = statement(CI, "urn:x:build", &[app()], &[Digest::of(b"harmless")]);
    text["payload"] = json!(STANDARD.encode(forged));
    let changed = try_it(text.to_string().as_bytes(), &any, &builders).unwrap_err();
    assert_eq!(
        changed,
        ProvenanceError::BadSignature {
            key: key.public_key().id()
        }
    );
}

#[test]
fn frames_and_statements_of_other_kinds_are_refused() {
    let (key, any) = (ci(), policy(0, &[]));
    let builders = [trusted(&key, CI, 2)];
    let frame = |change: &dyn Fn(&mut Value)| {
        let mut text: Value = serde_json::from_slice(&signed(&key, CI, app())).unwrap();
        change(&mut text);
        try_it(text.to_string().as_bytes(), &any, &builders).unwrap_err()
    };
    let typed = frame(&|t| t["payloadType"] = json!("text/plain"));
    assert_eq!(
        typed,
        ProvenanceError::Frame(FrameError::OtherType("text/plain".into()))
    );
    assert_eq!(
        frame(&|t| t["signatures"] = json!([])),
        ProvenanceError::Frame(FrameError::Signatures(0))
    );
    let many: Vec<Value> = (0..9).map(|_| json!({"sig": "AAAA"})).collect();
    assert_eq!(
        frame(&|t| t["signatures"] = json!(many)),
        ProvenanceError::Frame(FrameError::Signatures(9))
    );
    let large = vec![b' '; cnova_shared::limits::PROVENANCE_BYTES + 1];
    assert!(matches!(
        try_it(&large, &any, &builders),
        Err(ProvenanceError::Frame(FrameError::TooLarge { .. }))
    ));

    let said = |change: &dyn Fn(&mut Value)| {
        let mut text: Value = serde_json::from_slice(&statement(CI, "urn:x", &[app()], &[])).unwrap();
        change(&mut text);
        let envelope = sign(text.to_string().as_bytes(), &[&key]).unwrap();
        try_it(&envelope, &any, &builders).unwrap_err()
    };
    let vuln = said(&|t| t["predicateType"] = json!("https://cosign.sigstore.dev/attestation/vuln/v1"));
    assert!(
        matches!(vuln, ProvenanceError::Statement(StatementError::OtherPredicate(_))),
        "{vuln}"
    );
    let typed = said(&|t| t["_type"] = json!("https://in-toto.io/Link/v1"));
    assert!(
        matches!(typed, ProvenanceError::Statement(StatementError::OtherType(_))),
        "{typed}"
    );
    let bare = said(&|t| t["predicate"] = json!({}));
    assert!(
        matches!(bare, ProvenanceError::Statement(StatementError::NotAStatement(_))),
        "{bare}"
    );
    let many = said(&|t| t["subject"] = json!(vec![json!({"digest": {}}); 1025]));
    assert!(
        matches!(many, ProvenanceError::Statement(StatementError::TooMany(1025, 0))),
        "{many}"
    );
}

/// What is in an envelope is not even looked at before one of its signatures holds.
#[test]
fn nothing_is_parsed_that_nobody_signed() {
    let payload = STANDARD.encode("{ this is not JSON");
    let envelope = json!({"payloadType": PAYLOAD_TYPE, "payload": payload, "signatures": [{"sig": "AAAA"}]});
    let why = try_it(
        envelope.to_string().as_bytes(),
        &policy(0, &[]),
        &[trusted(&ci(), CI, 2)],
    )
    .unwrap_err();
    assert!(matches!(why, ProvenanceError::NoKnownKey { .. }), "{why}");
}

#[test]
fn one_good_signature_of_several_is_enough_and_the_best_builder_counts() {
    let (key, other) = (ci(), SoftKey::ed25519_from_seed(&[9; 32]));
    let payload = statement(CI, "urn:x", &[app()], &[]);
    let envelope = sign(&payload, &[&other, &key]).unwrap();
    let one = [trusted(&key, CI, 1)];
    assert_eq!(try_it(&envelope, &policy(0, &[]), &one), Ok((CI.to_owned(), 1)));
    let both = [trusted(&key, CI, 1), trusted(&other, CI, 3)];
    assert_eq!(try_it(&envelope, &policy(3, &[]), &both), Ok((CI.to_owned(), 3)));
}

#[test]
fn patterns_of_builders() {
    for (pattern, uri, is) in [
        (CI, CI, true),
        ("https://ci.example/*", CI, true),
        ("*", CI, true),
        ("https://*/line-2", CI, true),
        ("https://*/line-*", CI, true),
        ("https://ci.example/line-2*", CI, true),
        ("https://ci.example/line-", CI, false),
        ("https://ci.example", CI, false),
        ("ci.example/line-2", CI, false),
        ("https://*/line-3", CI, false),
        ("a*a", "a", false),
        ("", "", true),
    ] {
        assert_eq!(matches(pattern, uri), is, "{pattern} {uri}");
    }
}

fn bundle(builders: Vec<TrustedBuilder>, attestation: Option<AttestationPolicy>) -> Bundle {
    Bundle {
        v: 1,
        version: 1,
        issued_at: NOW,
        roots: vec![ci().public_key().clone()],
        threshold: 1,
        keys: Vec::new(),
        authorities: Vec::new(),
        builders,
        attestation,
    }
}

fn workload(artifact: &Digest, source: &Digest, envelopes: &[Vec<u8>]) -> v1::Workload {
    let named = |e: &Vec<u8>| v1::Artifact {
        digest: Digest::of(e),
        size: e.len() as u64,
    };
    v1::Workload {
        id: "app/a".parse().unwrap(),
        app_generation: 1,
        runtime: "wasm".into(),
        artifact: v1::Artifact {
            digest: *artifact,
            size: 3,
        },
        source: *source,
        files: vec![v1::InputFile {
            path: "/data/x".into(),
            artifact: v1::Artifact {
                digest: Digest::of(b"file"),
                size: 4,
            },
        }],
        args: Vec::new(),
        env: BTreeMap::new(),
        memory_bytes: 1,
        cpu_millis: 1,
        log_bytes: 1,
        wall_seconds: None,
        grants: v1::Grants::default(),
        restart: v1::Restart {
            policy: v1::RestartPolicy::Always,
            backoff_min_ms: 1,
            backoff_max_ms: 1,
            crash_loop_after: 1,
        },
        stop_grace_ms: 0,
        priority: 0,
        settings: String::new(),
        parts: Vec::new(),
        volumes: Vec::new(),
        needs: Vec::new(),
        accelerators: Vec::new(),
        devices: Vec::new(),
        schedule: None,
        power: v1::PowerLevel::default(),
        health: v1::Health::default(),
        on_bad_update: v1::OnBadUpdate::default(),
        trust: v1::TrustRequirement::default(),
        provenance: envelopes.iter().map(named).collect(),
        attestation: Some(policy(2, &["https://ci.example/*"])),
        secrets: Vec::new(),
    }
}

fn check(w: &v1::Workload, envelopes: &[Vec<u8>], bundle: &Bundle) -> Result<(), String> {
    let held = envelopes.iter().map(|e| (Digest::of(e), e.clone())).collect();
    check_workload(w, &held, bundle, Some(NOW)).map_err(|e| e.to_string())
}

#[test]
fn what_was_compiled_is_proved_through_its_source() {
    let (source, compiled) = (app(), Digest::of(b"machine code"));
    let of_source = signed(&ci(), CI, source);
    let link = |builder: &str, key: &SoftKey, material: Digest| {
        sign(&statement(builder, AOT_BUILD_TYPE, &[compiled], &[material]), &[key]).unwrap()
    };
    let of_hub = link(AOT_BUILDER, &hub(), source);
    let trust = bundle(vec![trusted(&ci(), CI, 2), trusted(&hub(), AOT_BUILDER, 3)], None);
    let judge =
        |envelopes: &[Vec<u8>], trust: &Bundle| check(&workload(&compiled, &source, envelopes), envelopes, trust);

    assert_eq!(judge(&[of_hub.clone(), of_source.clone()], &trust), Ok(()));
    // The source alone says nothing of the machine code, and the machine code nothing of who built the source.
    let no_link = judge(std::slice::from_ref(&of_source), &trust).unwrap_err();
    assert!(no_link.contains(&format!("its compiled form {compiled}")), "{no_link}");
    let no_source = judge(std::slice::from_ref(&of_hub), &trust).unwrap_err();
    assert!(
        no_source.starts_with(&format!("artifact {source} has no provenance that holds")),
        "{no_source}"
    );
    let from_other = judge(
        &[link(AOT_BUILDER, &hub(), Digest::of(b"evil")), of_source.clone()],
        &trust,
    )
    .unwrap_err();
    assert!(from_other.contains("it was compiled from"), "{from_other}");
    // Another builder, however trusted, is not the compiler.
    let by_ci = judge(&[link(CI, &ci(), source), of_source.clone()], &trust).unwrap_err();
    assert!(by_ci.contains("may"), "{by_ci}");
    // The level counts for the compiler, too.
    let low = bundle(vec![trusted(&ci(), CI, 2), trusted(&hub(), AOT_BUILDER, 1)], None);
    let by_low = judge(&[of_hub.clone(), of_source], &low).unwrap_err();
    assert!(by_low.contains("up to SLSA build level 1, and level 2"), "{by_low}");
    // The hub signs whatever it compiles; as the origin of a source that counts for nothing.
    let mut laundered = workload(&compiled, &compiled, std::slice::from_ref(&of_hub));
    laundered.attestation = Some(policy(0, &[]));
    let why = check(&laundered, &[of_hub], &trust).unwrap_err();
    assert!(why.contains("only says that the hub compiled it"), "{why}");
}

#[test]
fn the_bundle_asks_where_the_twin_does_not_and_files_where_they_are_meant() {
    let envelope = signed(&ci(), CI, app());
    let mut trust = bundle(vec![trusted(&ci(), CI, 2)], None);
    let mut w = workload(&app(), &app(), &[]);
    w.attestation = None;
    assert_eq!(check(&w, &[], &trust), Ok(()));
    trust.attestation = Some(policy(1, &[]));
    assert_eq!(
        check(&w, &[], &trust),
        Err(format!("artifact {} has no provenance", app()))
    );
    let mut w = workload(&app(), &app(), std::slice::from_ref(&envelope));
    w.attestation = Some(AttestationPolicy::default());
    assert_eq!(check(&w, std::slice::from_ref(&envelope), &trust), Ok(()));
    trust.attestation = Some(policy(3, &[]));
    assert!(
        check(&w, std::slice::from_ref(&envelope), &trust).is_err(),
        "no twin loosens what the bundle asks"
    );
    trust.attestation = Some(AttestationPolicy {
        files: true,
        ..policy(1, &[])
    });
    let why = check(&w, std::slice::from_ref(&envelope), &trust).unwrap_err();
    assert!(
        why.starts_with(&format!("file /data/x {}", Digest::of(b"file"))),
        "{why}"
    );
    let both = sign(&statement(CI, "urn:x", &[app(), Digest::of(b"file")], &[]), &[&ci()]).unwrap();
    let w = workload(&app(), &app(), std::slice::from_ref(&both));
    assert_eq!(check(&w, &[both], &trust), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is changed of an envelope, it proves what it proved before or nothing, and nothing panics.
    #[test]
    fn changed_envelopes_never_prove_anything_else(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..6),
    ) {
        let builders = [trusted(&ci(), CI, 2), trusted(&hub(), AOT_BUILDER, 3)];
        let original = signed(&ci(), CI, app());
        let mut envelope = original.clone();
        for (at, byte, kind) in edits {
            let at = at.index(envelope.len());
            match kind {
                0 => envelope[at] = byte,
                1 => { envelope.remove(at); }
                _ => envelope.insert(at, byte),
            }
        }
        let other = verify(&envelope, &[], &builders, None, &Digest::of(b"other"));
        prop_assert!(other.is_err(), "it proves another artifact");
        if let Ok(proved) = verify(&envelope, &[], &builders, None, &app()) {
            // White space, base64's spare bits and the key's id are not signed.
            prop_assert_eq!((proved.builder(), proved.level()), (CI, 2));
            let payload = |e: &[u8]| serde_json::from_slice::<Value>(e).unwrap()["payload"].clone();
            let bytes = |e: &[u8]| STANDARD.decode(payload(e).as_str().unwrap()).ok();
            prop_assert!(bytes(&envelope).is_none_or(|b| Some(b) == bytes(&original)));
        }
    }

    #[test]
    fn changed_payloads_and_signatures_never_hold(at in any::<prop::sample::Index>(), bit in 0..8u8, of_payload: bool) {
        let builders = [trusted(&ci(), CI, 2)];
        let mut text: Value = serde_json::from_slice(&signed(&ci(), CI, app())).unwrap();
        let place = if of_payload { &mut text["payload"] } else { &mut text["signatures"][0]["sig"] };
        let mut bytes = STANDARD.decode(place.as_str().unwrap()).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        *place = json!(STANDARD.encode(bytes));
        let held = verify(text.to_string().as_bytes(), &[], &builders, None, &app());
        prop_assert_eq!(held, Err(ProvenanceError::BadSignature { key: ci().public_key().id() }));
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(verify(&bytes, &[], &[trusted(&ci(), CI, 2)], None, &app()).is_err());
        let signed = sign(&bytes, &[&ci()]).unwrap();
        prop_assert!(verify(&signed, &[], &[trusted(&ci(), CI, 2)], None, &app()).is_err());
    }
}
