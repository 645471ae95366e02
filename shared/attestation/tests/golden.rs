//! The bytes of version 1, and the envelope around them. A change here is a change of the wire.
//!
//! `CNOVA_WRITE_GOLDEN=1 cargo nextest run -p cnova-attestation --test golden` writes the files anew.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use cnova_attestation::ear::{Ear, Finding, Status, TrustVector, VerifierId};
use cnova_attestation::event_log::{Launch, Slice};
use cnova_attestation::evidence::{Evidence, PROFILE_TPM, TpmEvidence, qualifying};
use cnova_attestation::reference::{
    PcrReference, ReferenceError, ReferenceSet, References, Selector, VerifiedReferences, check, seal,
};
use cnova_attestation::{Quote, encode_cose_key, limits};
use cnova_shared::bundle::{Bundle, Role, SigningKey, TrustBundle, sign};
use cnova_shared::certificate::Tier;
use cnova_shared::envelope::{Claims, EnvelopeError, Introduction, Untrusted, seal_payload};
use cnova_shared::ids::{Digest, SitePath};
use cnova_shared::keys::{Algorithm, PublicKey, Signer, SoftKey};
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::{Challenge, LogPrefix, TrustItemKind, Versioned};
use cnova_shared::wire::{decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;
use support::{NOW_S, digest, node, session, session_key, vector};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn assert_golden<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, value: &T) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    let made = encode(value).unwrap();
    if std::env::var("CNOVA_WRITE_GOLDEN").is_ok_and(|v| v == "1") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &made).unwrap();
    }
    let file = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; CNOVA_WRITE_GOLDEN=1 writes it", path.display()));
    assert_eq!(
        hex(&made),
        hex(&file),
        "{name} differs: nodes in the field would not read this"
    );
    assert_eq!(decode::<T>(&file).unwrap(), *value);
}

fn es256() -> PublicKey {
    PublicKey {
        algorithm: Algorithm::Es256,
        bytes: [&[4_u8][..], &[0x11; 32], &[0x22; 32]].concat(),
    }
}

fn evidence() -> Evidence {
    Evidence {
        node: node("plc-1"),
        nonce: (0..32).collect(),
        iat: NOW_S,
        session_key: session_key(),
        tpm: Some(TpmEvidence {
            quote: Quote {
                attest: ByteBuf::from(vec![0xa1; 3]),
                signature: ByteBuf::from(vec![0xa2; 3]),
                pcrs: BTreeMap::from([(0, digest("zero")), (14, digest("fourteen"))]),
            },
            ak_public: vec![0xa4; 3],
            log: Slice {
                from: 2,
                total: 4,
                entries: vec![ByteBuf::from(vec![1]), ByteBuf::from(vec![2, 3])],
            },
            firmware_log: Some(vec![0xa6; 3]),
        }),
    }
}

fn soft() -> Evidence {
    Evidence {
        tpm: None,
        ..evidence()
    }
}

fn ear() -> Ear {
    Ear {
        subject: node("plc-1"),
        key: es256(),
        nonce: (0..32).collect(),
        iat: NOW_S,
        exp: NOW_S + 600,
        verifier: VerifierId {
            developer: "Cloudnova".into(),
            build: "cnova-hub 0.1.0".into(),
        },
        status: Status::Contraindicated,
        vector: TrustVector {
            instance_identity: 2,
            configuration: 96,
            executables: 33,
            hardware: 2,
        },
        policy: "image-1 (references 7)".into(),
        tier: Tier::Tpm,
        boot_measured: true,
        findings: vec![Finding {
            code: "pcr-mismatch".into(),
            detail: "PCR 4 differs".into(),
            pcr: Some(4),
            got: Some(digest("four")),
            expected: vec!["image-1".into()],
            event: Some("event 17".into()),
        }],
    }
}

fn references() -> References {
    References {
        v: 1,
        version: 7,
        sets: vec![ReferenceSet {
            name: "image-1".into(),
            nodes: Selector {
                all: false,
                nodes: BTreeSet::from([node("plc-1")]),
                site: Some(SitePath::new("plant-7").unwrap()),
                labels: BTreeMap::from([("model".into(), "x".into())]),
            },
            pcrs: BTreeMap::from([(
                4,
                PcrReference {
                    values: BTreeSet::from([digest("four")]),
                    events: BTreeSet::from([digest("event")]),
                },
            )]),
            agents: BTreeSet::from([digest("agent")]),
            runtimes: BTreeSet::from([digest("runtime")]),
            artifacts: BTreeSet::from([digest("artifact")]),
        }],
    }
}

#[test]
fn the_bytes_of_version_1() {
    assert_golden("evidence-tpm.cbor", &evidence());
    assert_golden("evidence-soft.cbor", &soft());
    assert_golden("ear.cbor", &ear());
    assert_golden("references.cbor", &references());
}

#[test]
fn evidence_is_the_eat_that_its_page_says() {
    let key = encode_cose_key(&session_key());
    assert_eq!(
        hex(&key),
        format!("a3010120062158 20{}", hex(&vector("session.pub"))).replace(' ', "")
    );
    let other = encode_cose_key(&es256());
    assert_eq!(
        hex(&other),
        format!("a4010220012158 20{}225820{}", "11".repeat(32), "22".repeat(32)).replace(' ', "")
    );
    let nonce: String = (0..32).map(|n| format!("{n:02x}")).collect();
    let iat = format!("1a{NOW_S:08x}");
    let profile: String = "urn:cnova:evidence:soft:1"
        .bytes()
        .map(|b| format!("{b:02x}"))
        .collect();
    // {6: iat, 8: {1: COSE_Key}, 10: nonce, 256: 'plc-1', 265: profile}
    let wanted = format!(
        "a506{iat}08a101{}0a5820{nonce}19010045706c632d31190109 7819{profile}",
        hex(&key)
    );
    assert_eq!(hex(&soft().encode().unwrap()), wanted.replace(' ', ""));
    // ..., -70001: {...}
    let tpm = hex(&evidence().encode().unwrap());
    assert!(tpm.contains("3a00011170a60143a1a1a10243a2a2a203a2005820"), "{tpm}");
    assert!(
        tpm.ends_with(
            "0443a4a4a405a3010202040382410142020306 43a6a6a6"
                .replace(' ', "")
                .as_str()
        ),
        "{tpm}"
    );
    assert_eq!(evidence().profile(), PROFILE_TPM);
    // What make.sh computed by itself for the vectors' quotes.
    let bound = qualifying(&vector("nonce"), &session_key());
    assert!(vector("p384/quote.attest").windows(32).any(|w| w == bound.0));
}

#[test]
fn malformed_evidence_is_refused_with_a_reason() {
    let bytes = encode(&evidence()).unwrap();
    let refused = |change: &dyn Fn(&mut Evidence)| {
        let mut e = evidence();
        change(&mut e);
        let read = decode::<Evidence>(&encode(&e).unwrap()).unwrap_err().to_string();
        let sent = e.encode().unwrap_err().to_string();
        assert!(sent.ends_with(&read) || sent.contains(&read), "{sent} / {read}");
        read
    };
    assert!(refused(&|e| e.nonce = vec![1; 31]).contains("31 bytes"));
    let big = |n| ByteBuf::from(vec![0; n]);
    assert!(refused(&|e| e.tpm.as_mut().unwrap().quote.attest = big(1025)).contains("the attestation"));
    assert!(refused(&|e| e.tpm.as_mut().unwrap().firmware_log = Some(vec![0; 200_000])).contains("firmware"));
    assert!(refused(&|e| e.tpm.as_mut().unwrap().log.entries = vec![big(1025)]).contains("an entry"));
    assert!(refused(&|e| e.tpm.as_mut().unwrap().log.entries = vec![big(1000); 99]).contains("the part"));
    assert!(refused(&|e| e.tpm.as_mut().unwrap().log.entries = vec![big(1); 3000]).contains("3000 entries"));
    assert!(
        refused(&|e| {
            e.tpm.as_mut().unwrap().quote.pcrs.insert(24, digest("x"));
        })
        .contains("PCR 24")
    );
    let replaced = |from: &[u8], to: &[u8]| {
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        let changed = [&bytes[..at], to, &bytes[at + from.len()..]].concat();
        decode::<Evidence>(&changed).unwrap_err().to_string()
    };
    assert!(replaced(b"tpm:1", b"tpm:2").contains("urn:cnova:evidence:tpm:2"));
    assert!(replaced(b"evidence:tpm:1", b"evidence:soft").contains("not known"));
    assert!(replaced(b"plc-1", b"plc-!").contains("node id"));
    // The same label twice: 6 becomes 10.
    assert!(replaced(&[0xa6, 0x06, 0x1a], &[0xa6, 0x0a, 0x1a]).contains("invalid type"));
    let twice = [&[0xa6, 0x06, 0x00, 0x06][..], &bytes[2..]].concat();
    assert!(
        decode::<Evidence>(&twice)
            .unwrap_err()
            .to_string()
            .contains("label 6 stands in it twice")
    );
    for len in 0..bytes.len() {
        assert!(decode::<Evidence>(&bytes[..len]).is_err());
    }
}

#[test]
fn unknown_claims_are_ignored() {
    let bytes = encode(&soft()).unwrap();
    // One more entry under an integer, and one under a text.
    let more = [&[0xa7][..], &bytes[1..], &[0x19, 0x03, 0xe7, 0x01, 0x61, b'x', 0x80]].concat();
    assert_eq!(decode::<Evidence>(&more).unwrap(), soft());
}

#[test]
fn a_challenge_names_what_is_known_of_the_log_only_where_something_is() {
    let plain = Challenge {
        v: 1,
        nonce: vec![5; 32],
        log: None,
    };
    let bytes = encode(&plain).unwrap();
    assert_eq!(hex(&bytes), format!("a2617601656e6f6e63655820{}", "05".repeat(32)));
    assert_eq!(decode::<Challenge>(&bytes).unwrap(), plain);
    let with_log = Challenge {
        log: Some(LogPrefix {
            count: 3,
            pcr: Digest([6; 32]),
        }),
        ..plain
    };
    let bytes = encode(&with_log).unwrap();
    let log = format!("636c6f67a2616e0361705820{}", "06".repeat(32));
    assert_eq!(hex(&bytes), format!("a3617601656e6f6e63655820{}{log}", "05".repeat(32)));
    assert_eq!(decode::<Challenge>(&bytes).unwrap(), with_log);
}

fn claims() -> Claims {
    Claims {
        iss: node("plc-1"),
        aud: node("hub"),
        iat: NOW_S,
        exp: None,
    }
}

#[test]
fn evidence_and_results_travel_in_envelopes_of_their_own_kind() {
    let key = session();
    let sealed = seal_payload(
        Kind::Evidence,
        &claims(),
        evidence().encode().unwrap(),
        Introduction::default(),
        &key,
    )
    .unwrap();
    let open = |kind| Untrusted::read(&sealed).unwrap().verify(kind, key.public_key());
    let verified = open(Kind::Evidence).unwrap().decode::<Evidence>().unwrap();
    assert_eq!((verified.value(), verified.value().version()), (&evidence(), 1));
    assert!(matches!(open(Kind::Ear), Err(EnvelopeError::BadSignature { .. })));
    let as_ear = open(Kind::Evidence).unwrap().decode::<Ear>();
    assert!(matches!(as_ear, Err(EnvelopeError::BadPayload { .. })));

    let hub = SoftKey::ed25519_from_seed(&[1; 32]);
    let sealed = seal_payload(
        Kind::Ear,
        &claims(),
        ear().encode().unwrap(),
        Introduction::default(),
        &hub,
    )
    .unwrap();
    let verified = Untrusted::read(&sealed)
        .unwrap()
        .verify(Kind::Ear, hub.public_key())
        .unwrap();
    assert_eq!(verified.decode::<Ear>().unwrap().into_value(), ear());
    // Forged: signed by somebody else, or changed afterwards.
    let forged = seal_payload(
        Kind::Ear,
        &claims(),
        ear().encode().unwrap(),
        Introduction::default(),
        &key,
    )
    .unwrap();
    let refused = Untrusted::read(&forged).unwrap().verify(Kind::Ear, hub.public_key());
    assert!(matches!(refused, Err(EnvelopeError::UnknownKey { .. })));
    let at = sealed
        .windows(5)
        .position(|w| w == [0x19, 0x03, 0xe8, 0x18, 0x60])
        .unwrap();
    let affirming = [&sealed[..at + 3], &[0x18, 0x02], &sealed[at + 5..]].concat();
    let refused = Untrusted::read(&affirming).unwrap().verify(Kind::Ear, hub.public_key());
    assert!(matches!(refused, Err(EnvelopeError::BadSignature { .. })));
}

#[test]
fn malformed_results_are_refused() {
    let bytes = encode(&ear()).unwrap();
    for len in 0..bytes.len() {
        assert!(decode::<Ear>(&bytes[..len]).is_err());
    }
    let replaced = |from: &[u8], to: &[u8]| {
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        let changed = [&bytes[..at], to, &bytes[at + from.len()..]].concat();
        decode::<Ear>(&changed).unwrap_err().to_string()
    };
    assert!(replaced(b"urn:cnova:ear:1", b"urn:cnova:ear:9").contains("ear:9"));
    assert!(replaced(&[0x19, 0x03, 0xe8, 0x18, 0x60], &[0x19, 0x03, 0xe8, 0x18, 0x61]).contains("status 97"));
    assert!(replaced(b"\x64node", b"\x64nope").contains("no submodule"));
    // What a verifier writes is cut to what a reader takes.
    let finding = Finding {
        detail: "ä".repeat(400),
        expected: vec!["set".into(); 9],
        ..ear().findings[0].clone()
    };
    let long = Ear {
        policy: "p".repeat(600),
        findings: vec![finding; 40],
        ..ear()
    };
    let read: Ear = decode(&long.encode().unwrap()).unwrap();
    assert_eq!(
        (read.findings.len(), read.policy.len()),
        (limits::FINDINGS, limits::RESULT_TEXT_BYTES)
    );
    assert_eq!(read.findings[0].expected.len(), limits::FINDING_NAMES);
}

fn trust(roles: Vec<Role>) -> TrustBundle {
    let root = SoftKey::ed25519_from_seed(&[9; 32]);
    let bundle = Bundle {
        v: 1,
        version: 1,
        issued_at: 0,
        roots: vec![root.public_key().clone()],
        threshold: 1,
        keys: vec![SigningKey {
            key: SoftKey::ed25519_from_seed(&[1; 32]).public_key().clone(),
            roles,
            not_after: NOW_S + 1000,
        }],
        authorities: vec![ByteBuf::from(vec![1])],
        builders: Vec::new(),
        attestation: None,
    };
    TrustBundle::flashed(&sign(&bundle, &[&root]).unwrap()).unwrap()
}

#[test]
fn references_need_a_hub_key_with_the_role() {
    let hub = SoftKey::ed25519_from_seed(&[1; 32]);
    let sealed = seal(&references(), &claims(), &hub).unwrap();
    let good = trust(vec![Role::Attestation]);
    let opened = VerifiedReferences::open(&sealed, &good, NOW_S).unwrap();
    assert_eq!(
        (opened.references(), opened.iat(), opened.bytes()),
        (&references(), NOW_S, sealed.as_slice())
    );
    let refused = VerifiedReferences::open(&sealed, &good, NOW_S + 2000).unwrap_err();
    assert!(matches!(
        refused,
        ReferenceError::Envelope(EnvelopeError::KeyExpired { .. })
    ));
    VerifiedReferences::reopen(&sealed, &good).unwrap();
    let refused = VerifiedReferences::open(&sealed, &trust(vec![Role::Twin]), NOW_S).unwrap_err();
    assert!(matches!(
        refused,
        ReferenceError::Envelope(EnvelopeError::UnknownKey { .. })
    ));
    // A document is no message, and a message no document.
    let untrusted = Untrusted::read(&sealed).unwrap();
    assert!(matches!(
        untrusted.verify(Kind::Trust, hub.public_key()),
        Err(EnvelopeError::BadSignature { .. })
    ));
    let untrusted = Untrusted::read(&sealed).unwrap();
    let other = untrusted.verify_document(TrustItemKind::Delegation, hub.public_key());
    assert!(matches!(other, Err(EnvelopeError::BadSignature { .. })));
    let message = seal_payload(
        Kind::Trust,
        &claims(),
        encode(&references()).unwrap(),
        Introduction::default(),
        &hub,
    )
    .unwrap();
    VerifiedReferences::open(&message, &good, NOW_S).expect_err("a message was taken for a document");
    let mut changed = sealed;
    *changed.last_mut().unwrap() ^= 1;
    VerifiedReferences::open(&changed, &good, NOW_S).expect_err("a changed document was taken");
}

#[test]
fn references_keep_their_rules() {
    let broken = |change: &dyn Fn(&mut References)| {
        let mut r = references();
        change(&mut r);
        check(&r).unwrap_err().to_string()
    };
    assert!(broken(&|r| r.v = 2).contains("version 2"));
    assert!(broken(&|r| r.sets[0].name = String::new()).contains("a name has"));
    assert!(broken(&|r| r.sets.push(r.sets[0].clone())).contains("same name"));
    assert!(broken(&|r| r.sets[0].nodes = Selector::default()).contains("selects no node"));
    assert!(broken(&|r| r.sets[0].pcrs.clear()).contains("no register"));
    assert!(broken(&|r| r.sets[0].pcrs.get_mut(&4).unwrap().values.clear()).contains("PCR 4: 0 values"));
    assert!(
        broken(&|r| {
            r.sets[0].pcrs.insert(24, PcrReference::default());
        })
        .contains("PCR 24")
    );
    assert!(
        broken(&|r| {
            r.sets[0].artifacts = (0..2000).map(|n| digest(&n.to_string())).collect();
        })
        .contains("2000 names")
    );
    let many = |r: &mut References| {
        r.sets = (0..300)
            .map(|n| ReferenceSet {
                name: format!("s{n}"),
                ..r.sets[0].clone()
            })
            .collect();
    };
    assert!(broken(&many).contains("300 sets"));
}

#[test]
fn selectors_select_whom_they_name() {
    let (me, site) = (node("plc-1"), SitePath::new("plant-7/line-2").unwrap());
    let labels = BTreeMap::from([("model".to_owned(), "x".to_owned())]);
    let selects = |s: &Selector| s.selects(&me, &site, &labels);
    let at = |path: &str| Selector {
        site: Some(SitePath::new(path).unwrap()),
        ..Selector::default()
    };
    let named = Selector {
        nodes: BTreeSet::from([node("plc-1")]),
        ..Selector::default()
    };
    assert!(selects(&named) && selects(&at("plant-7")) && selects(&at("plant-7/line-2")));
    assert!(!selects(&at("plant")) && !selects(&at("plant-7/line-2/x")) && !selects(&Selector::default()));
    let mut labelled = at("plant-7");
    labelled.labels.insert("model".into(), "y".into());
    assert!(!selects(&labelled));
    labelled.nodes.insert(node("plc-1"));
    assert!(selects(&labelled), "who is named is selected whatever its labels");
    labelled = at("plant-7");
    labelled.labels.insert("model".into(), "x".into());
    assert!(selects(&labelled));
    assert!(selects(&Selector {
        all: true,
        ..Selector::default()
    }));
}

#[test]
fn the_largest_entry_and_log_fit_into_evidence() {
    let entry = Launch {
        workload: "w".repeat(limits::ENTRY_TEXT_BYTES),
        artifact: Digest([1; 32]),
        spec: Digest([2; 32]),
        runtime: Digest([3; 32]),
    };
    assert!(encode(&entry).unwrap().len() < limits::ENTRY_BYTES);
    let mut full = evidence();
    let tpm = full.tpm.as_mut().unwrap();
    let big = |n| ByteBuf::from(vec![0; n]);
    tpm.quote.attest = big(limits::TPM_STRUCTURE_BYTES);
    tpm.quote.signature = big(limits::TPM_STRUCTURE_BYTES);
    tpm.ak_public = vec![0; limits::TPM_STRUCTURE_BYTES];
    tpm.quote.pcrs = (0..limits::PCRS).map(|p| (p, digest("x"))).collect();
    tpm.firmware_log = Some(vec![0; limits::FIRMWARE_LOG_BYTES]);
    tpm.log.entries = vec![big(limits::SLICE_BYTES / limits::SLICE_ENTRIES); limits::SLICE_ENTRIES];
    assert!(full.encode().unwrap().len() <= limits::EVIDENCE_BYTES);
}
