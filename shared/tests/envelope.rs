//! Nothing but the exact bytes that were signed is taken, and no bytes at all make a reader panic.

#![allow(clippy::unwrap_used)]

mod support;

use cnova_shared::bundle::{self, Bundle, BundleError, Role, SigningKey, TrustBundle};
use cnova_shared::certificate;
use cnova_shared::envelope::{
    Endorsement, EnvelopeError, Introduction, SealError, Untrusted, VerifiedBytes, peek, seal, seal_payload,
};
use cnova_shared::ids::NodeId;
use cnova_shared::keys::{Algorithm, PublicKey, Signer, SoftKey};
use cnova_shared::limits;
use cnova_shared::parent::Parent;
use cnova_shared::topics::Kind;
use cnova_shared::twin::{TwinError, VerifiedTwin};
use cnova_shared::wire::v1;
use coset::cbor::value::Value;
use proptest::prelude::*;
use support::{EPOCH_S, HUB, KEY_ENDS_S, claims, hub_key, node, root_key, soft, trust};

fn open_twin(bytes: &[u8]) -> Result<VerifiedTwin, TwinError> {
    VerifiedTwin::open(bytes, &trust(), EPOCH_S)
}

fn small_twin() -> v1::Twin {
    support::twin("plc-1", 1, vec![support::workload("app/a", "artifact")])
}

/// What a reader of introduced messages does: the chain, the author's name, the signature, the reader's own name.
fn open_report(bytes: &[u8], authorities: &[Vec<u8>]) -> Result<v1::Report, String> {
    let untrusted = Untrusted::read(bytes).map_err(|e| e.to_string())?;
    let leaf = certificate::verify(&untrusted.x5chain, authorities, EPOCH_S).map_err(|e| e.to_string())?;
    if leaf.node != untrusted.claims.iss {
        return Err("another author".into());
    }
    let verified = untrusted.verify(Kind::Report, &leaf.key).map_err(|e| e.to_string())?;
    let meant = verified.meant_for(&node("hub"), EPOCH_S).map_err(|e| e.to_string())?;
    Ok(meant.decode::<v1::Report>().map_err(|e| e.to_string())?.into_value())
}

/// The signature alone, with the author's key known beforehand.
fn open_with(bytes: &[u8], kind: Kind, key: &PublicKey) -> Result<VerifiedBytes, EnvelopeError> {
    Untrusted::read(bytes)?.verify(kind, key)
}

fn small_report() -> v1::Report {
    let entry = v1::Entry {
        seq: 1,
        key: "alarm/x".into(),
        at_ms: 5,
        body: v1::Body::Over,
    };
    v1::Report {
        v: 1,
        incarnation: 1,
        from: 0,
        to: 1,
        entries: vec![entry],
        all_keys: None,
    }
}

fn signed_report() -> Vec<u8> {
    support::identity("plc-1", 10).seal(Kind::Report, &small_report(), true)
}

fn signed_bundle() -> Vec<u8> {
    bundle::sign(&support::contents(support::ca_der()), &[&root_key()]).unwrap()
}

/// Every bit of every byte, every length, and every byte put behind.
fn refuses_every_change(bytes: &[u8], opens: impl Fn(&[u8]) -> bool) {
    assert!(opens(bytes), "unchanged");
    let mut changed = bytes.to_vec();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            changed[at] ^= 1 << bit;
            assert!(
                !opens(&changed),
                "taken with bit {bit} of byte {at} of {} flipped",
                bytes.len()
            );
            changed[at] ^= 1 << bit;
        }
        assert!(!opens(&bytes[..at]), "taken when cut to {at} bytes");
    }
    for last in 0..=255 {
        changed.push(last);
        assert!(!opens(&changed), "taken with {last} behind it");
        changed.pop();
    }
    assert!(!opens(&[bytes, bytes].concat()), "taken twice in a row");
}

#[test]
fn a_twin_is_taken_unchanged_or_not_at_all() {
    let trust = trust();
    refuses_every_change(&support::sign_twin(&small_twin()), |b| {
        VerifiedTwin::open(b, &trust, EPOCH_S).is_ok()
    });
}

#[test]
fn a_report_is_taken_unchanged_or_not_at_all() {
    let key = soft(10).public_key().clone();
    refuses_every_change(&signed_report(), |b| open_with(b, Kind::Report, &key).is_ok());
}

#[test]
fn an_introduced_report_is_taken_unchanged_or_not_at_all() {
    let authorities = [support::ca_der()];
    refuses_every_change(&signed_report(), |b| open_report(b, &authorities).is_ok());
}

#[test]
fn a_trust_bundle_is_taken_unchanged_or_not_at_all() {
    refuses_every_change(&signed_bundle(), |b| TrustBundle::flashed(b).is_ok());
}

#[test]
fn an_es256_message_is_taken_unchanged_or_not_at_all() {
    let rng = ring::rand::SystemRandom::new();
    let alg = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = ring::signature::EcdsaKeyPair::generate_pkcs8(alg, &rng).unwrap();
    let key = SoftKey::from_pkcs8(pkcs8.as_ref()).unwrap();
    let bytes = seal(Kind::Report, &claims("plc-1", "hub"), &small_report(), &[], &key).unwrap();
    refuses_every_change(&bytes, |b| open_with(b, Kind::Report, key.public_key()).is_ok());
}

#[test]
fn a_kind_is_not_taken_for_another() {
    let key = hub_key().public_key().clone();
    for signed in Kind::ALL {
        let bytes = seal_payload(
            signed,
            &claims(HUB, "plc-1"),
            vec![0],
            Introduction::default(),
            &hub_key(),
        )
        .unwrap();
        for read in Kind::ALL {
            let opened = open_with(&bytes, read, &key);
            assert_eq!(opened.is_ok(), signed == read, "{signed:?} read as {read:?}");
            if let Err(e) = opened {
                assert!(matches!(e, EnvelopeError::BadSignature { .. }), "{e}");
            }
        }
    }
    let command = seal(Kind::Command, &claims(HUB, "plc-1"), &small_twin(), &[], &hub_key()).unwrap();
    assert_eq!(open_twin(&command).unwrap_err().code(), "bad-signature");
}

#[test]
fn what_is_for_another_or_too_old_is_refused() {
    let key = hub_key().public_key().clone();
    let mut to_plc = claims(HUB, "plc-1");
    to_plc.exp = Some(EPOCH_S + 60);
    let bytes = seal_payload(Kind::Command, &to_plc, vec![0], Introduction::default(), &hub_key()).unwrap();
    let opened = || open_with(&bytes, Kind::Command, &key).unwrap();
    assert!(opened().meant_for(&node("plc-1"), EPOCH_S + 59).is_ok());
    let (me, aud) = (node("plc-2"), node("plc-1"));
    assert_eq!(
        opened().meant_for(&me, EPOCH_S),
        Err(EnvelopeError::WrongAudience { aud, me: me.clone() })
    );
    for now in [EPOCH_S + 60, EPOCH_S + 61, u64::MAX] {
        let expired = EnvelopeError::Expired { exp: EPOCH_S + 60, now };
        assert_eq!(opened().meant_for(&node("plc-1"), now), Err(expired));
    }
    let taken = |b: &[u8], me: &str, now| Parent::open_hub(Kind::Command, b, &node(me), &trust(), now).is_ok();
    assert!(taken(&bytes, "plc-1", EPOCH_S));
    assert!(!taken(&bytes, "plc-2", EPOCH_S) && !taken(&bytes, "plc-1", EPOCH_S + 60));
    // A twin whose envelope is for another node than the one it names.
    let swapped = seal(Kind::Twin, &claims(HUB, "plc-2"), &small_twin(), &[], &hub_key()).unwrap();
    assert_eq!(open_twin(&swapped).unwrap_err().code(), "invalid");
}

#[test]
fn a_key_is_used_with_its_own_algorithm_only() {
    let bytes = support::sign_twin(&small_twin());
    let ours = hub_key().public_key().clone();
    let other = PublicKey {
        algorithm: Algorithm::Es256,
        bytes: ours.bytes.clone(),
    };
    assert_eq!(other.id(), ours.id());
    let unknown = Err(EnvelopeError::UnknownKey {
        iss: node(HUB),
        kid: ours.id(),
    });
    assert_eq!(open_with(&bytes, Kind::Twin, &other), unknown);
    assert_eq!(open_with(&bytes, Kind::Twin, soft(99).public_key()), unknown);
    // The header names ES256, the key with that id is Ed25519.
    let crafted = Raw {
        protected: header_with(1, Value::from(-7)),
        ..Raw::twin()
    }
    .bytes();
    assert_eq!(open_with(&crafted, Kind::Twin, &ours), unknown);
    assert_eq!(open_with(&crafted, Kind::Twin, &other).unwrap_err(), {
        EnvelopeError::BadSignature {
            iss: node(HUB),
            kid: ours.id(),
        }
    });
    assert!(matches!(
        open_twin(&crafted).unwrap_err().code(),
        "unknown-key" | "key-expired"
    ));
    // A rogue key that claims the hub's id.
    let rogue = Raw {
        key: soft(99),
        ..Raw::twin()
    }
    .bytes();
    assert_eq!(open_twin(&rogue).unwrap_err().code(), "bad-signature");
}

/// An envelope that is put together by hand and properly signed by the hub's key, whatever its header is.
struct Raw {
    tag: Option<u64>,
    protected: Vec<(Value, Value)>,
    unprotected: Vec<(Value, Value)>,
    payload: Vec<u8>,
    key: SoftKey,
    detached: bool,
}

fn cwt() -> Vec<(Value, Value)> {
    vec![
        (Value::from(1), Value::from(HUB)),
        (Value::from(3), Value::from("plc-1")),
        (Value::from(6), Value::from(EPOCH_S)),
    ]
}

fn header() -> Vec<(Value, Value)> {
    vec![
        (Value::from(1), Value::from(-8)),
        (Value::from(3), Value::from(cnova_shared::envelope::CONTENT_TYPE)),
        (Value::from(4), Value::Bytes(hub_key().public_key().id().0.to_vec())),
        (Value::from(15), Value::Map(cwt())),
    ]
}

/// The usual header with one label's value replaced, or put behind.
fn header_with(label: i64, value: Value) -> Vec<(Value, Value)> {
    let mut header = header();
    match header.iter_mut().find(|(l, _)| *l == Value::from(label)) {
        Some(field) => field.1 = value,
        None => header.push((Value::from(label), value)),
    }
    header
}

fn header_without(label: i64) -> Vec<(Value, Value)> {
    header().into_iter().filter(|(l, _)| *l != Value::from(label)).collect()
}

fn cbor(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    coset::cbor::into_writer(value, &mut bytes).unwrap();
    bytes
}

impl Raw {
    fn twin() -> Self {
        let payload = cnova_shared::wire::encode(&small_twin()).unwrap();
        let (protected, unprotected) = (header(), Vec::new());
        Self {
            tag: Some(18),
            protected,
            unprotected,
            payload,
            key: hub_key(),
            detached: false,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let protected = Value::Bytes(cbor(&Value::Map(self.protected.clone())));
        let payload = Value::Bytes(self.payload.clone());
        let aad = Value::Bytes(b"cnova/v1/twin".to_vec());
        let signed = cbor(&Value::Array(vec![
            "Signature1".into(),
            protected.clone(),
            aad,
            payload.clone(),
        ]));
        let signature = Value::Bytes(self.key.sign(&signed).unwrap());
        let payload = if self.detached { Value::Null } else { payload };
        let array = Value::Array(vec![
            protected,
            Value::Map(self.unprotected.clone()),
            payload,
            signature,
        ]);
        cbor(&match self.tag {
            Some(tag) => Value::Tag(tag, Box::new(array)),
            None => array,
        })
    }
}

#[test]
#[allow(clippy::too_many_lines)] // a table
fn only_our_form_of_the_envelope_is_read() {
    assert_eq!(
        Raw::twin().bytes(),
        support::sign_twin(&small_twin()),
        "by hand as by coset"
    );
    let twice = |label: i64| {
        let mut h = header();
        let again = h.iter().find(|(l, _)| *l == Value::from(label)).unwrap().clone();
        h.push(again);
        h
    };
    let with = |protected| Raw {
        protected,
        ..Raw::twin()
    };
    let text = |t: &str| Value::from(t);
    let certs = |n: usize| Value::Array(vec![Value::Bytes(vec![1]); n]);
    let no_claim = |label: i64| Value::Map(cwt().into_iter().filter(|(l, _)| *l != Value::from(label)).collect());
    let claim = |label: i64, value: Value| {
        let mut map: Vec<_> = cwt().into_iter().filter(|(l, _)| *l != Value::from(label)).collect();
        map.push((Value::from(label), value));
        Value::Map(map)
    };
    let cases = vec![
        (
            "untagged",
            Raw {
                tag: None,
                ..Raw::twin()
            },
        ),
        (
            "tagged as COSE_Sign",
            Raw {
                tag: Some(98),
                ..Raw::twin()
            },
        ),
        (
            "tagged as COSE_Mac0",
            Raw {
                tag: Some(17),
                ..Raw::twin()
            },
        ),
        (
            "an unprotected kid",
            Raw {
                unprotected: vec![(4.into(), Value::Bytes(vec![0; 8]))],
                ..Raw::twin()
            },
        ),
        (
            "an unprotected unknown label",
            Raw {
                unprotected: vec![(text("x"), 1.into())],
                ..Raw::twin()
            },
        ),
        ("a critical header", with(header_with(2, Value::Array(vec![4.into()])))),
        (
            "an unknown critical header",
            with(header_with(2, Value::Array(vec![text("x")]))),
        ),
        ("an empty crit", with(header_with(2, Value::Array(Vec::new())))),
        ("no algorithm", with(header_without(1))),
        ("an algorithm that is not ours", with(header_with(1, Value::from(-35)))),
        ("the algorithm as text", with(header_with(1, text("EdDSA")))),
        ("no content type", with(header_without(3))),
        ("another content type", with(header_with(3, text("application/cbor")))),
        ("no kid", with(header_without(4))),
        ("a short kid", with(header_with(4, Value::Bytes(vec![0; 7])))),
        ("a long kid", with(header_with(4, Value::Bytes(vec![0; 9])))),
        ("no claims", with(header_without(15))),
        ("claims that are no map", with(header_with(15, 1.into()))),
        ("no iss", with(header_with(15, no_claim(1)))),
        ("no aud", with(header_with(15, no_claim(3)))),
        ("no iat", with(header_with(15, no_claim(6)))),
        ("an iss that is no node", with(header_with(15, claim(1, text("Plc+1"))))),
        ("an aud that is no node", with(header_with(15, claim(3, text("#"))))),
        ("a negative iat", with(header_with(15, claim(6, Value::from(-1))))),
        ("an exp that is no time", with(header_with(15, claim(4, text("never"))))),
        ("a negative exp", with(header_with(15, claim(4, Value::from(-1))))),
        ("two algorithms", with(twice(1))),
        ("two content types", with(twice(3))),
        ("two kids", with(twice(4))),
        ("two sets of claims", with(twice(15))),
        ("an x5chain list of one", with(header_with(33, certs(1)))),
        ("an empty x5chain", with(header_with(33, certs(0)))),
        (
            "a long x5chain",
            with(header_with(33, certs(limits::X5CHAIN_CERTS + 1))),
        ),
        (
            "an x5chain of text",
            with(header_with(33, Value::Array(vec![text("a"), text("b")]))),
        ),
    ];
    for (what, raw) in cases {
        let bytes = raw.bytes();
        assert!(
            matches!(Untrusted::read(&bytes), Err(EnvelopeError::Malformed(_))),
            "{what} was read"
        );
        assert!(peek(&bytes).is_err(), "{what}");
        assert_eq!(open_twin(&bytes).unwrap_err().code(), "malformed", "{what}");
    }
    let detached = Raw {
        detached: true,
        ..Raw::twin()
    }
    .bytes();
    assert!(open_twin(&detached).is_err(), "no payload");
}

/// The same structure in longer or indefinite CBOR is not the same message.
#[test]
fn another_encoding_of_the_same_envelope_is_refused() {
    let ours = support::sign_twin(&small_twin());
    assert_eq!(ours[..2], [0xd2, 0x84]);
    let long_tag = [&[0xd8, 18], &ours[1..]].concat();
    let long_array = [&[0xd2, 0x98, 4], &ours[2..]].concat();
    let endless = [&[0xd2, 0x9f], &ours[2..], &[0xff]].concat();
    let at = 4 + usize::from(ours[3]);
    assert_eq!(
        (ours[2], ours[at]),
        (0x58, 0xa0),
        "a header of less than 256 bytes, then the empty map"
    );
    let endless_map = [&ours[..at], &[0xbf, 0xff], &ours[at + 1..]].concat();
    let long_header = [&[0xd2, 0x84, 0x59, 0, ours[3]], &ours[4..]].concat();
    for changed in [long_tag, long_array, endless, endless_map, long_header] {
        assert_eq!(open_twin(&changed).unwrap_err().code(), "malformed");
    }
}

#[test]
fn what_is_too_large_is_neither_made_nor_read() {
    let big = vec![0; limits::MESSAGE_BYTES + 1];
    let too_large = EnvelopeError::TooLarge {
        len: big.len(),
        max: limits::MESSAGE_BYTES,
    };
    assert_eq!(Untrusted::read(&big).unwrap_err(), too_large);
    for (kind, max) in [(Kind::Twin, limits::TWIN_BYTES), (Kind::Report, limits::MESSAGE_BYTES)] {
        let made = |len: usize| {
            seal_payload(
                kind,
                &claims(HUB, "plc-1"),
                vec![0; len],
                Introduction::default(),
                &hub_key(),
            )
        };
        let around = made(max - 1000).unwrap().len() - (max - 1000);
        assert_eq!(made(max - around).unwrap().len(), max);
        assert!(matches!(made(max - around + 1), Err(SealError::Encode { .. })));
        assert!(Untrusted::read(&made(max - around).unwrap()).is_ok());
    }
    // Signed by the hub all the same, and a little too large for a twin.
    let raw = Raw {
        payload: vec![0; limits::TWIN_BYTES],
        ..Raw::twin()
    }
    .bytes();
    assert!(raw.len() > limits::TWIN_BYTES && raw.len() < limits::MESSAGE_BYTES);
    assert_eq!(open_twin(&raw).unwrap_err().code(), "too-large");
    let bundle = vec![0; limits::BUNDLE_BYTES + 1];
    assert!(matches!(TrustBundle::flashed(&bundle), Err(BundleError::Malformed(why)) if why.contains("at most")));
}

fn never_panics(bytes: &[u8]) {
    let _ = Untrusted::read(bytes).map(|u| u.verify(Kind::Twin, hub_key().public_key()).is_ok());
    let _ = TrustBundle::flashed(bytes);
    let _ = certificate::read(bytes);
    let _ = certificate::verify(&[bytes.to_vec()], &[bytes.to_vec()], EPOCH_S);
}

/// Depth and lengths that are only claimed.
#[test]
fn hostile_cbor_is_survived() {
    for byte in [0x81, 0x9f, 0xa1, 0xbf, 0xd2, 0xc0, 0xd8, 0x5f, 0x7f, 0x30, 0x00, 0xff] {
        never_panics(&vec![byte; limits::BUNDLE_BYTES]);
        never_panics(&[&[0xd2, 0x84][..], &vec![byte; limits::BUNDLE_BYTES - 2]].concat());
        never_panics(&[&[0xd8, 98, 0x84][..], &vec![byte; limits::BUNDLE_BYTES - 3]].concat());
        // Inside the protected header's byte string.
        let inner = vec![byte; 0xff00];
        never_panics(&[&[0xd2, 0x84, 0x59, 0xff, 0x00][..], &inner, &[0xa0, 0x40, 0x40]].concat());
    }
    for head in [0x5b, 0x7b, 0x9b, 0xbb, 0xdb] {
        for top in [0x00, 0x10, 0x7f, 0xff] {
            let claimed = [&[head, top][..], &[0xff; 7]].concat();
            never_panics(&claimed);
            never_panics(&[&[0xd2, 0x84][..], &claimed].concat());
            never_panics(&[&[0xd2, 0x84, 0x49][..], &claimed, &[0xa0, 0x40, 0x40]].concat());
        }
    }
    // A bundle whose payload is deep: the one place where bytes are decoded before a signature held.
    for byte in [0x81, 0x9f, 0xa1, 0xbf] {
        let payload = vec![byte; 0xf000];
        let bundle = [&[0xd8, 98, 0x84, 0x40, 0xa0, 0x59, 0xf0, 0x00][..], &payload, &[0x80]].concat();
        assert!(TrustBundle::flashed(&bundle).is_err());
    }
}

fn large_twin() -> Vec<u8> {
    let many = (0..60)
        .map(|i| support::workload(&format!("app/w{i}"), "artifact"))
        .collect();
    support::sign_twin(&support::twin("plc-1", 1, many))
}

/// Some bytes replaced, put in or taken out.
fn mutate(bytes: &mut Vec<u8>, changes: &[(u8, usize, u8)]) {
    for &(what, at, byte) in changes {
        let at = at % (bytes.len() + 1);
        match what {
            0 => bytes.insert(at, byte),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 if at < bytes.len() => bytes[at] ^= byte,
            3 => bytes.truncate(at),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        never_panics(&bytes);
        never_panics(&[&[0xd2, 0x84][..], &bytes].concat());
        never_panics(&[&[0xd8, 98, 0x84][..], &bytes].concat());
        never_panics(&[&[0x30, 0x82][..], &bytes].concat());
    }

    #[test]
    fn mutated_messages_never_panic_and_are_never_taken(
        which in 0..4usize,
        changes in proptest::collection::vec((0..4u8, any::<usize>(), 1..=255u8), 1..4),
    ) {
        let valid = match which {
            0 => support::sign_twin(&small_twin()),
            1 => signed_report(),
            2 => signed_bundle(),
            _ => support::ca_der(),
        };
        let mut bytes = valid.clone();
        mutate(&mut bytes, &changes);
        never_panics(&bytes);
        if bytes != valid {
            prop_assert!(open_twin(&bytes).is_err());
            prop_assert!(open_report(&bytes, &[support::ca_der()]).is_err());
            prop_assert!(TrustBundle::flashed(&bytes).is_err());
        }
    }
}

#[test]
fn a_large_twin_is_taken_unchanged_or_not_at_all() {
    let (valid, trust) = (large_twin(), trust());
    assert!(valid.len() > 8000 && open_twin(&valid).is_ok());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(3000)
    });
    runner
        .run(&(0..valid.len(), 0..8u8), |(at, bit)| {
            let mut changed = valid.clone();
            changed[at] ^= 1 << bit;
            prop_assert!(VerifiedTwin::open(&changed, &trust, EPOCH_S).is_err());
            prop_assert!(VerifiedTwin::open(&valid[..at], &trust, EPOCH_S).is_err());
            Ok(())
        })
        .unwrap();
}

fn keys(of: &[u8]) -> Vec<PublicKey> {
    of.iter().map(|n| soft(*n).public_key().clone()).collect()
}

/// A bundle of version `version` with these roots, signed by those keys.
fn rotated(version: u64, roots: &[u8], threshold: u32, signers: &[u8]) -> Vec<u8> {
    let contents = Bundle {
        version,
        roots: keys(roots),
        threshold,
        ..support::contents(support::ca_der())
    };
    let signers: Vec<SoftKey> = signers.iter().map(|n| soft(*n)).collect();
    let signers: Vec<&dyn Signer> = signers.iter().map(|k| k as &dyn Signer).collect();
    bundle::sign(&contents, &signers).unwrap()
}

fn too_few(whose: &'static str, valid: usize, threshold: u32) -> Result<TrustBundle, BundleError> {
    Err(BundleError::TooFewSignatures {
        whose,
        valid,
        threshold,
    })
}

#[test]
fn a_bundle_succeeds_with_a_threshold_of_old_and_new_roots() {
    let old = TrustBundle::flashed(&rotated(5, &[20, 21, 22], 2, &[20, 21])).unwrap();
    let next = |signers: &[u8]| old.succeed(&rotated(6, &[22, 30, 31], 2, signers));
    assert_eq!(next(&[20, 21, 30, 31]).unwrap().contents().version, 6);
    assert_eq!(
        next(&[21, 22, 30]).unwrap().contents().roots,
        keys(&[22, 30, 31]),
        "22 counts for both"
    );
    assert_eq!(next(&[20, 30, 31]), too_few("old", 1, 2));
    assert_eq!(
        next(&[20, 20, 20, 30, 31]),
        too_few("old", 1, 2),
        "one key, three signatures"
    );
    assert_eq!(next(&[30, 31]), too_few("old", 0, 1), "by the new roots alone");
    assert_eq!(next(&[]), too_few("old", 0, 1));
    assert_eq!(next(&[20, 21, 30]), too_few("new", 1, 2));
    assert_eq!(next(&[20, 21]), too_few("new", 0, 2));
    assert_eq!(next(&[20, 21, 98, 99]), too_few("new", 0, 2), "strangers do not count");

    for offered in [0, 4, 5] {
        let again = old.succeed(&rotated(offered, &[20, 21, 22], 2, &[20, 21]));
        assert_eq!(again, Err(BundleError::NotNewer { offered, held: 5 }));
    }
    // The new bundle's own threshold holds for the one after it; the first one's roots have no say any more.
    let new = next(&[20, 21, 30, 31]).unwrap();
    assert_eq!(
        new.succeed(&rotated(7, &[20, 21, 22], 2, &[20, 21, 22])),
        too_few("old", 1, 2)
    );
    assert!(new.succeed(&rotated(7, &[20, 21, 22], 2, &[20, 21, 22, 31])).is_ok());

    assert_eq!(
        TrustBundle::flashed(&rotated(1, &[20, 21], 2, &[20])),
        too_few("new", 1, 2)
    );
    assert_eq!(
        TrustBundle::flashed(&rotated(1, &[20, 21], 2, &[20, 20])),
        too_few("new", 1, 2)
    );
}

#[test]
fn a_bundle_of_the_wrong_shape_is_neither_signed_nor_taken() {
    let good = support::contents(support::ca_der());
    let many = |n: u8| (0..n).map(|i| soft(i).public_key().clone()).collect::<Vec<_>>();
    let wrong = [
        Bundle { v: 2, ..good.clone() },
        Bundle {
            threshold: 0,
            ..good.clone()
        },
        Bundle {
            threshold: 2,
            ..good.clone()
        },
        Bundle {
            roots: Vec::new(),
            ..good.clone()
        },
        Bundle {
            roots: many(65),
            ..good.clone()
        },
        Bundle {
            keys: Vec::new(),
            ..good.clone()
        },
        Bundle {
            authorities: Vec::new(),
            ..good.clone()
        },
    ];
    for contents in wrong {
        assert!(
            matches!(bundle::sign(&contents, &[&root_key()]), Err(BundleError::Malformed(_))),
            "{contents:?}"
        );
    }
    assert!(
        TrustBundle::flashed(&support::sign_twin(&small_twin())).is_err(),
        "a twin is no bundle"
    );
}

/// A bundle with one of the root's names twice would count one signer as two.
#[test]
fn a_root_that_is_named_twice_counts_once() {
    assert!(TrustBundle::flashed(&rotated(1, &[20, 20], 2, &[20])).is_err());
}

#[test]
fn a_key_that_ran_out_signs_nothing_new() {
    let (bytes, trust) = (support::sign_twin(&small_twin()), trust());
    let (iss, kid) = (node(HUB), hub_key().public_key().id());
    assert!(VerifiedTwin::open(&bytes, &trust, KEY_ENDS_S - 1).is_ok());
    for now in [KEY_ENDS_S, KEY_ENDS_S + 1, u64::MAX] {
        let expired = EnvelopeError::KeyExpired { iss: iss.clone(), kid };
        assert_eq!(
            VerifiedTwin::open(&bytes, &trust, now),
            Err(TwinError::Envelope(expired))
        );
    }
    assert_eq!(*VerifiedTwin::reopen(&bytes, &trust).unwrap().twin(), small_twin());
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    assert_eq!(
        VerifiedTwin::reopen(&changed, &trust).unwrap_err().code(),
        "bad-signature"
    );
}

/// Keys taken out of the bundle, or put there for something else, are unknown also for what was accepted before.
#[test]
fn a_key_without_the_role_is_unknown() {
    let bytes = support::sign_twin(&small_twin());
    let with = |keys: Vec<SigningKey>| {
        let contents = Bundle {
            keys,
            ..support::contents(support::ca_der())
        };
        TrustBundle::flashed(&bundle::sign(&contents, &[&root_key()]).unwrap()).unwrap()
    };
    let key = |n: u8, roles| SigningKey {
        key: soft(n).public_key().clone(),
        roles,
        not_after: KEY_ENDS_S,
    };
    for keys in [
        vec![key(99, vec![Role::Twin])],
        vec![key(3, vec![Role::Attestation])],
        vec![key(3, Vec::new())],
    ] {
        let trust = with(keys);
        assert_eq!(
            VerifiedTwin::open(&bytes, &trust, EPOCH_S).unwrap_err().code(),
            "unknown-key"
        );
        assert_eq!(VerifiedTwin::reopen(&bytes, &trust).unwrap_err().code(), "unknown-key");
    }
    assert!(
        VerifiedTwin::open(
            &bytes,
            &with(vec![key(9, vec![Role::Twin]), key(3, vec![Role::Twin])]),
            EPOCH_S
        )
        .is_ok()
    );
}

#[test]
fn a_certificate_speaks_for_its_node_only() {
    let authorities = [support::ca_der()];
    let id = support::identity("plc-1", 10);
    let read = certificate::read(&id.chain[0]).unwrap();
    assert_eq!(
        (read.node, &read.key),
        (NodeId::new("plc-1").unwrap(), id.key.public_key())
    );
    assert_eq!(read.site.unwrap().as_str(), "plant-7/plc-1");
    assert!(certificate::verify(&id.chain, &authorities, EPOCH_S).is_ok());
    assert!(
        certificate::verify(&id.chain, &authorities, 1_000_000_000).is_err(),
        "before it begins"
    );
    assert!(
        certificate::verify(&id.chain, &authorities, 3_000_000_000).is_err(),
        "after it ends"
    );
    assert!(
        certificate::verify(&id.chain, &id.chain, EPOCH_S).is_err(),
        "its own authority"
    );
    assert!(certificate::verify(&[], &authorities, EPOCH_S).is_err());
    assert!(certificate::verify(&id.chain, &[], EPOCH_S).is_err());
}

/// A node whose certified key is slow lets it vouch for a session key once; the session key signs from then on.
#[test]
fn a_session_key_speaks_only_when_the_certified_key_vouches_for_it() {
    let plc = support::identity("plc-1", 10);
    let session = support::soft(77);
    let vouched = Endorsement::make(&plc.node, session.public_key().clone(), &plc.key).unwrap();
    let sealed = |endorsement: &Endorsement, signer: &SoftKey| {
        let introduction = Introduction {
            chain: &plc.chain,
            endorsement: Some(endorsement),
        };
        seal_payload(Kind::Hello, &claims("plc-1", "hub"), vec![0], introduction, signer).unwrap()
    };
    let certificate = certificate::read(&plc.chain[0]).unwrap();

    let good = sealed(&vouched, &session);
    let untrusted = Untrusted::read(&good).unwrap();
    assert_eq!(untrusted.endorsement.as_ref(), Some(&vouched));
    let key = untrusted.speaker(&certificate).unwrap();
    assert_eq!(key, *session.public_key());
    untrusted.verify(Kind::Hello, &key).unwrap();

    // A key that nobody vouched for, one that another node's key vouched for, and one vouched for under another name.
    let other = support::identity("plc-2", 11);
    let by_other = Endorsement::make(&plc.node, session.public_key().clone(), &other.key).unwrap();
    let for_other = Endorsement::make(&other.node, session.public_key().clone(), &plc.key).unwrap();
    let rogue = Endorsement {
        key: support::soft(78).public_key().clone(),
        signature: vouched.signature.clone(),
    };
    for bad in [by_other, for_other, rogue] {
        let bytes = sealed(&bad, &session);
        let refused = Untrusted::read(&bytes).unwrap().speaker(&certificate);
        assert!(
            matches!(refused, Err(EnvelopeError::BadEndorsement { .. })),
            "{refused:?}"
        );
    }
    // The session key of the hello does not help who signs with another one.
    let by_rogue = sealed(&vouched, &support::soft(78));
    let refused = Untrusted::read(&by_rogue).unwrap().verify(Kind::Hello, &key);
    assert!(matches!(refused, Err(EnvelopeError::UnknownKey { .. })), "{refused:?}");
}
