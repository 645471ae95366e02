//! Quotes: those of real TPMs hold, and every way to tamper with one is refused by its own name.

#![allow(clippy::unwrap_used)]

mod support;

use cnova_attestation::Pcr;
use cnova_attestation::evidence::{Evidence, TpmEvidence, qualifying};
use cnova_attestation::quote::{QuoteError, VerifiedEvidence, VerifiedQuote, verify, verify_evidence};
use cnova_attestation::tpm::TpmError;
use cnova_shared::ids::Digest;
use cnova_shared::keys::Signer;
use serde_bytes::ByteBuf;
use support::{
    KINDS, PCRS, Shown, SoftTpm, attest, digest, evidence, node, quote_attest, session, session_key, vector,
};

fn ak(kind: &str) -> Vec<u8> {
    vector(&format!("{kind}/ak.pub"))
}

fn check(kind: &str, evidence: &Evidence) -> Result<VerifiedQuote, QuoteError> {
    verify(evidence, &node("plc-1"), &vector("nonce"), &ak(kind))
}

fn tampered(kind: &str, change: impl FnOnce(&mut TpmEvidence)) -> QuoteError {
    let mut evidence = evidence(kind);
    change(evidence.tpm.as_mut().unwrap());
    check(kind, &evidence).expect_err("a tampered quote was taken")
}

#[test]
fn quotes_of_real_tpms_hold() {
    for kind in KINDS {
        let quote = check(kind, &evidence(kind)).unwrap();
        assert!(quote.pcrs().keys().eq(PCRS.iter()));
        assert_eq!(quote.session_key(), session().public_key());
        assert!(quote.clock().reset_count > 0, "swtpm_setup started it before");
        let boot = digest("boot 4");
        let zero = Digest([0; 32]);
        assert_eq!(
            quote.pcrs()[&4],
            cnova_attestation::event_log::extended(&zero, &boot_file(4))
        );
        assert_ne!(quote.pcrs()[&4], boot);
        assert_eq!(quote.pcrs()[&14], zero);
    }
}

/// make.sh extends with SHA-256 of "boot N".
fn boot_file(pcr: u8) -> Pcr {
    digest(&format!("boot {pcr}"))
}

#[test]
fn a_replayed_quote_is_refused() {
    let again = evidence("p256");
    let refused = verify(&again, &node("plc-1"), &[5; 32], &ak("p256"));
    assert_eq!(refused, Err(QuoteError::StaleNonce));
    // With the new nonce written over it, the quote still is over the old one.
    let mut again = again;
    again.nonce = vec![5; 32];
    let refused = verify(&again, &node("plc-1"), &[5; 32], &ak("p256"));
    assert_eq!(refused, Err(QuoteError::NotBound));
}

#[test]
fn a_quote_is_bound_to_the_session_key() {
    let mut stolen = evidence("p256");
    stolen.session_key = cnova_shared::keys::SoftKey::ed25519_from_seed(&[8; 32])
        .public_key()
        .clone();
    assert_eq!(check("p256", &stolen), Err(QuoteError::NotBound));
}

#[test]
fn a_quote_of_another_tpm_is_refused() {
    let other = evidence("rsa2048");
    assert_eq!(check("p256", &other), Err(QuoteError::OtherTpm));
    let refused = tampered("p256", |t| t.quote = other.tpm.unwrap().quote);
    assert_eq!(refused, QuoteError::BadSignature);
    let about_another = verify(&evidence("p256"), &node("plc-2"), &vector("nonce"), &ak("p256"));
    assert!(matches!(about_another, Err(QuoteError::OtherNode { .. })));
}

#[test]
fn changed_values_are_refused() {
    for kind in KINDS {
        let refused = tampered(kind, |t| {
            t.quote.pcrs.insert(4, digest("another boot"));
        });
        assert_eq!(refused, QuoteError::OtherValues);
        let missing = tampered(kind, |t| {
            t.quote.pcrs.remove(&4);
        });
        assert_eq!(missing, QuoteError::OtherRegisters);
        let extra = tampered(kind, |t| {
            t.quote.pcrs.insert(9, digest("more"));
        });
        assert_eq!(extra, QuoteError::OtherRegisters);
        let swapped = tampered(kind, |t| {
            let (a, b) = (t.quote.pcrs[&0], t.quote.pcrs[&2]);
            t.quote.pcrs.extend([(0, b), (2, a)]);
        });
        assert_eq!(swapped, QuoteError::OtherValues);
    }
}

#[test]
fn every_changed_byte_of_the_attestation_is_refused() {
    let len = vector("p384/quote.attest").len();
    for at in 0..len {
        let refused = tampered("p384", |t| t.quote.attest[at] ^= 1);
        assert_eq!(refused, QuoteError::BadSignature, "byte {at}");
    }
}

#[test]
fn only_quotes_of_the_sha256_bank_count() {
    let tpm = SoftTpm::new();
    let nonce = vector("nonce");
    let extra = qualifying(&nonce, &session_key());
    let with = |attest: Vec<u8>| {
        let mut evidence = tpm.evidence("plc-1", &nonce, Default::default());
        let tpm_part = evidence.tpm.as_mut().unwrap();
        tpm_part.quote.signature = ByteBuf::from(tpm.sign(&attest));
        tpm_part.quote.attest = ByteBuf::from(attest);
        verify(&evidence, &node("plc-1"), &nonce, &tpm.ak_public())
    };
    let good = quote_attest(&tpm.pcrs, 1, &extra);
    with(good.clone()).unwrap();
    let bank = good.windows(3).position(|w| w == [0x00, 0x0b, 3]).unwrap();
    let mut sha1 = good.clone();
    sha1[bank + 1] = 0x04;
    assert_eq!(with(sha1), Err(QuoteError::OtherRegisters));
    let name = [&[0x00, 0x0b][..], &[1; 32]].concat();
    let certify = attest(
        0x8017,
        1,
        &extra.0,
        &[support::sized(&name), support::sized(&name)].concat(),
    );
    assert_eq!(with(certify), Err(QuoteError::NotQuote));
    let mut foreign = good.clone();
    foreign[0] = 0;
    let reason = TpmError::NotGenerated;
    let what = "the attestation";
    assert_eq!(with(foreign), Err(QuoteError::Malformed { what, reason }));
    let reason = TpmError::Trailing(1);
    assert_eq!(
        with([good, vec![0]].concat()),
        Err(QuoteError::Malformed { what, reason })
    );
}

#[test]
fn short_coordinates_of_a_signature_are_padded() {
    // One signature in 256 has an r that begins with a zero, which a TPM leaves out.
    let tpm = SoftTpm::new();
    let nonce = vector("nonce");
    let mut tried = 0;
    loop {
        let mut evidence = tpm.evidence("plc-1", &nonce, Default::default());
        let quote = &mut evidence.tpm.as_mut().unwrap().quote;
        tried += 1;
        if quote.signature[6] == 0 {
            let short = [&quote.signature[..4], &[0, 31], &quote.signature[7..]].concat();
            quote.signature = ByteBuf::from(short);
            verify(&evidence, &node("plc-1"), &nonce, &tpm.ak_public()).unwrap();
            break;
        }
        assert!(tried < 20_000, "no short signature in {tried}");
    }
}

#[test]
fn tiers_are_not_mixed_up() {
    let soft = Evidence {
        tpm: None,
        ..evidence("p256")
    };
    let me = node("plc-1");
    let nonce = vector("nonce");
    assert_eq!(verify(&soft, &me, &nonce, &ak("p256")), Err(QuoteError::NoQuote));
    let verified = verify_evidence(&soft, &me, &nonce, None).unwrap();
    assert!(matches!(verified, VerifiedEvidence::Soft(_)));
    assert_eq!(verify_evidence(&soft, &me, &[1; 32], None), Err(QuoteError::StaleNonce));
    let refused = verify_evidence(&evidence("p256"), &me, &nonce, None);
    assert!(matches!(refused, Err(QuoteError::NotEnrolled { .. })));
    let verified = verify_evidence(&evidence("p256"), &me, &nonce, Some(&ak("p256"))).unwrap();
    assert_eq!(verified.node(), &me);
    assert_eq!(verified.nonce(), nonce);
}
