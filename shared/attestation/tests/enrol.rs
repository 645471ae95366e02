//! The five gates of enrolment, with what real TPMs showed.

#![allow(clippy::unwrap_used)]

mod support;

use cnova_attestation::TpmEnrolment;
use cnova_attestation::enrol::{self, ChainError, EnrolError, Makers, Part, Pending};
use cnova_attestation::tpm::TpmError;
use serde_bytes::ByteBuf;
use support::{KINDS, SoftTpm, attest, counting, ecc_public, makers, request, sized, vector, vectors_now};

fn begin(request: &TpmEnrolment) -> Result<Pending, EnrolError> {
    enrol::begin(request, &makers(), vectors_now(), &mut counting())
}

/// The secret that [`counting`] gives to the first who asks.
fn secret() -> Vec<u8> {
    (1..=32).collect()
}

fn qualifying(kind: &str) -> Vec<u8> {
    format!("vector-{kind}").into_bytes()
}

fn refused_at_begin(request: &TpmEnrolment) -> EnrolError {
    begin(request).expect_err("a gate was passed that must not be")
}

fn refused_at_finish(request: &TpmEnrolment, qualifying: &[u8]) -> EnrolError {
    let pending = begin(request).unwrap();
    pending
        .finish(&secret(), qualifying)
        .expect_err("a gate was passed that must not be")
}

#[test]
fn each_kind_of_endorsement_key_is_admitted() {
    for kind in KINDS {
        let request = request(kind);
        let enrolled = begin(&request).unwrap().finish(&secret(), &qualifying(kind)).unwrap();
        assert_eq!(enrolled.ak_public, request.ak_public.to_vec());
        assert_eq!(enrolled.ek_fingerprint, enrol::ek_fingerprint(&request.ek_public));
        assert_eq!(enrolled.device_key.bytes.len(), 65);
        // TPMT_PUBLIC of P-256 ends with x and y, each with its length.
        let public = &request.device_public;
        assert_eq!(enrolled.device_key.bytes[1..33], public[22..54]);
    }
}

#[test]
fn the_chain_may_come_with_the_request_or_from_the_trust_store() {
    let mut request = request("p384");
    let only_root = Makers {
        intermediates: Vec::new(),
        ..makers()
    };
    let refused = enrol::begin(&request, &only_root, vectors_now(), &mut counting());
    assert!(matches!(refused, Err(EnrolError::Chain(ChainError::NotTrusted { .. }))));
    request.ek_certificates.push(ByteBuf::from(vector("issuer.der")));
    enrol::begin(&request, &only_root, vectors_now(), &mut counting()).unwrap();
    // As read from a TPM's memory of fixed size.
    request.ek_certificates[0].extend([0xff; 200]);
    enrol::begin(&request, &only_root, vectors_now(), &mut counting()).unwrap();
}

#[test]
fn gate_1_needs_a_chain_to_a_maker() {
    let good = request("rsa2048");
    let none = TpmEnrolment {
        ek_certificates: Vec::new(),
        ..good.clone()
    };
    assert_eq!(refused_at_begin(&none), EnrolError::Chain(ChainError::Missing));
    let strangers = rcgen::generate_simple_self_signed(["maker.example".to_owned()]).unwrap();
    let strangers = Makers {
        roots: vec![strangers.cert.der().to_vec()],
        intermediates: vec![vector("issuer.der")],
    };
    let refused = enrol::begin(&good, &strangers, vectors_now(), &mut counting()).unwrap_err();
    assert!(
        matches!(refused, EnrolError::Chain(ChainError::NotTrusted { .. })),
        "{refused}"
    );
    assert!(refused.to_string().starts_with("gate 1 of 5"), "{refused}");
    assert!(refused.to_string().contains("swtpm-localca"), "{refused}");
    let refused = enrol::begin(&good, &Makers::default(), vectors_now(), &mut counting()).unwrap_err();
    assert!(
        matches!(refused, EnrolError::Chain(ChainError::NoRoots(_))),
        "{refused}"
    );
    let in_1970 = enrol::begin(&good, &makers(), 1, &mut counting()).unwrap_err();
    assert!(
        matches!(in_1970, EnrolError::Chain(ChainError::NotTrusted { .. })),
        "{in_1970}"
    );
    let mut many = good.clone();
    many.ek_certificates = vec![good.ek_certificates[0].clone(); 9];
    assert_eq!(refused_at_begin(&many), EnrolError::Chain(ChainError::TooLarge(9)));
}

#[test]
fn gate_1_takes_only_certificates_of_endorsement_keys() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::from_params(&params, &key);
    let trusted = Makers {
        roots: vec![root.der().to_vec()],
        intermediates: Vec::new(),
    };
    for purposes in [vec![], vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth]] {
        let mut params = rcgen::CertificateParams::new(["ek.example".to_owned()]).unwrap();
        params.extended_key_usages = purposes.clone();
        let leaf_key = rcgen::KeyPair::generate().unwrap();
        let leaf = params.signed_by(&leaf_key, &issuer).unwrap();
        let mut request = request("p256");
        request.ek_certificates = vec![ByteBuf::from(leaf.der().to_vec())];
        let refused = enrol::begin(&request, &trusted, vectors_now(), &mut counting()).unwrap_err();
        if purposes.is_empty() {
            assert_eq!(refused, EnrolError::Chain(ChainError::OtherPurpose));
        } else {
            assert!(
                matches!(refused, EnrolError::Chain(ChainError::NotTrusted { .. })),
                "{refused}"
            );
        }
    }
}

#[test]
fn gate_2_refuses_the_certificate_of_another_tpm() {
    for (kind, other) in [("rsa2048", "p256"), ("p256", "p384"), ("p384", "rsa2048")] {
        let mut mixed = request(kind);
        mixed.ek_certificates = request(other).ek_certificates;
        assert_eq!(refused_at_begin(&mixed), EnrolError::OtherEndorsementKey);
    }
}

#[test]
fn gate_2_refuses_an_endorsement_key_that_signs() {
    let mut request = request("p256");
    // TPMA_OBJECT stands after type and name algorithm; sign is bit 18, restricted bit 16.
    request.ek_public[5] |= 0x04;
    assert_eq!(
        refused_at_begin(&request),
        EnrolError::EndorsementKey("sign is set".into())
    );
    request.ek_public[5] = 0x02;
    assert_eq!(
        refused_at_begin(&request),
        EnrolError::EndorsementKey("restricted is not set".into())
    );
}

#[test]
fn gate_3_needs_the_secret() {
    let mut wrong = secret();
    wrong[31] ^= 1;
    let padded = [secret(), vec![0]].concat();
    for answer in [wrong.as_slice(), &[], &secret()[..31], &padded] {
        let refused = begin(&request("p256")).unwrap().finish(answer, &qualifying("p256"));
        assert_eq!(refused, Err(EnrolError::NotActivated));
    }
}

#[test]
fn gate_4_refuses_a_key_that_signs_anything() {
    for kind in KINDS {
        let file = |name: &str| ByteBuf::from(vector(&format!("{kind}/{name}")));
        let weak = TpmEnrolment {
            ak_public: file("weak.pub"),
            certify: file("weak-certify.attest"),
            certify_signature: file("weak-certify.sig"),
            ..request(kind)
        };
        let refused = refused_at_finish(&weak, &qualifying(kind));
        assert_eq!(refused, EnrolError::AttestationKey("restricted is not set".into()));
    }
}

#[test]
fn gate_4_names_every_attribute() {
    let tpm = SoftTpm::new();
    let all = 0x0005_0072;
    let faults = [
        (all & !0x02, "fixedTPM is not set"),
        (all & !0x10, "fixedParent is not set"),
        (all & !0x20, "sensitiveDataOrigin is not set"),
        (all & !0x40, "userWithAuth is not set"),
        (all & !0x4_0000, "sign is not set"),
        (all | 0x2_0000, "decrypt is set"),
        (all & !0x12, "fixedTPM is not set, fixedParent is not set"),
    ];
    let point = [&[4][..], &tpm.ak_public()[22..54], &tpm.ak_public()[56..88]].concat();
    for (attributes, fault) in faults {
        let mut request = request("p256");
        request.ak_public = ByteBuf::from(ecc_public(attributes, &point));
        let refused = refused_at_finish(&request, &qualifying("p256"));
        assert_eq!(refused, EnrolError::AttestationKey(fault.into()));
    }
}

#[test]
fn gate_5_refuses_what_was_not_certified_for_this_request() {
    let good = request("p384");
    assert_eq!(refused_at_finish(&good, b"another request"), EnrolError::Replayed);
    let other_key = TpmEnrolment {
        device_public: request("p256").device_public,
        ..good.clone()
    };
    assert_eq!(
        refused_at_finish(&other_key, &qualifying("p384")),
        EnrolError::OtherDeviceKey
    );
    let other_signer = TpmEnrolment {
        certify_signature: request("p256").certify_signature,
        ..good.clone()
    };
    assert_eq!(
        refused_at_finish(&other_signer, &qualifying("p384")),
        EnrolError::BadSignature
    );
    let mut changed = good.clone();
    *changed.certify.last_mut().unwrap() ^= 1;
    assert_eq!(
        refused_at_finish(&changed, &qualifying("p384")),
        EnrolError::BadSignature
    );
    let quoted = TpmEnrolment {
        certify: ByteBuf::from(vector("p384/quote.attest")),
        certify_signature: ByteBuf::from(vector("p384/quote.sig")),
        ..good
    };
    assert_eq!(
        refused_at_finish(&quoted, &qualifying("p384")),
        EnrolError::NotCertification
    );
}

#[test]
fn gate_5_refuses_device_keys_that_could_leave_or_do_more() {
    let tpm = SoftTpm::new();
    let point = [&[4][..], &tpm.ak_public()[22..54], &tpm.ak_public()[56..88]].concat();
    let good = 0x0004_0072;
    for (attributes, fault) in [
        (good & !0x02, "fixedTPM is not set"),
        (good & !0x20, "sensitiveDataOrigin is not set"),
        (good | 0x1_0000, "restricted is set"),
        (good | 0x2_0000, "decrypt is set"),
    ] {
        let device = ecc_public(attributes, &point);
        let name = [&[0x00, 0x0b][..], &cnova_shared::ids::Digest::of(&device).0].concat();
        let certify = attest(0x8017, 1, b"q", &[sized(&name), sized(&name)].concat());
        let request = TpmEnrolment {
            ak_public: ByteBuf::from(tpm.ak_public()),
            device_public: ByteBuf::from(device),
            certify_signature: ByteBuf::from(tpm.sign(&certify)),
            certify: ByteBuf::from(certify),
            ..request("p256")
        };
        assert_eq!(refused_at_finish(&request, b"q"), EnrolError::DeviceKey(fault.into()));
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let mut short = request("p256");
    short.ak_public.truncate(40);
    let EnrolError::Malformed { part, reason } = refused_at_begin(&short) else {
        panic!("another error")
    };
    assert_eq!((part, reason), (Part::AttestationKey, TpmError::Short("its x")));
    let mut long = request("p256");
    long.ek_public = ByteBuf::from(vec![0; 2000]);
    assert!(matches!(
        refused_at_begin(&long),
        EnrolError::Malformed {
            part: Part::EndorsementKey,
            ..
        }
    ));
}
