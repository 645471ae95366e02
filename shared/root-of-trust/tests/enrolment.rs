//! Enrolment with each kind of endorsement key, and quotes, as tools of others see them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use cnova_attestation::Credential;
use cnova_root_of_trust::testing::Maker;
use cnova_root_of_trust::tpm::EkKind;
use cnova_root_of_trust::{RootError, RootOfTrust, Tpm, TpmConfig};
use cnova_shared::ids::Digest;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::sign::public_key_to_spki;

mod support;
use support::{fixed_of, make_credential, name, p256_of, sized, start, start_by, tool, try_tool};

/// tcg-kp-EKCertificate, 2.23.133.8.1.
const EK_CERTIFICATE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];

fn enrols_with(kind: Option<EkKind>, ek_type: u16, ek_bytes: usize) {
    let maker = Maker::new();
    let Some(swtpm) = start_by(&maker, kind) else {
        return;
    };
    let tpm = Tpm::open(swtpm.config()).unwrap();
    let qualifying = Digest::of(b"nonce of the hub");
    let enrolment = tpm.enrolment(&qualifying.0).unwrap();

    assert_eq!(
        u16::from_be_bytes([enrolment.ek_public[0], enrolment.ek_public[1]]),
        ek_type
    );
    assert_eq!(enrolment.ek_public.len(), ek_bytes);
    match kind {
        Some(_) => assert_chain(&enrolment.ek_certificates[0], maker.certificate()),
        None => assert!(enrolment.ek_certificates.is_empty()),
    }

    // The attestation key speaks for the device key.
    let ak = p256_of(&enrolment.ak_public);
    assert!(ak.verifies(&enrolment.certify, &fixed_of(&enrolment.certify_signature)));
    assert!(enrolment.certify.windows(32).any(|w| w == qualifying.0));
    let device_name = name(&enrolment.device_public);
    assert!(enrolment.certify.windows(device_name.len()).any(|w| w == device_name));
    assert_eq!(p256_of(&enrolment.device_public), *tpm.device_key().public_key());
    assert_eq!(tpm.attestation_key().unwrap(), enrolment.ak_public.to_vec());

    // A credential that another implementation makes opens here, and only for this attestation key.
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &[u8]| make_credential(folder.path(), &enrolment.ek_public, name, b"0123456789abcdef");
    let good = make(&name(&enrolment.ak_public));
    assert_eq!(tpm.activate(&good).unwrap().as_slice(), b"0123456789abcdef");
    let wrong = tpm.activate(&make(&device_name));
    assert!(
        matches!(
            wrong,
            Err(RootError::Refused {
                command: "TPM2_ActivateCredential",
                ..
            })
        ),
        "{wrong:?}"
    );
    let mut bent = good.clone();
    bent.blob[20] ^= 1;
    assert!(matches!(tpm.activate(&bent), Err(RootError::Refused { .. })));
    let odd = Credential {
        blob: vec![0, 9, 1].into(),
        secret: good.secret.clone(),
    };
    assert!(tpm.activate(&odd).unwrap_err().to_string().contains("TPM2B_ID_OBJECT"));
    assert_eq!(tpm.activate(&good).unwrap().as_slice(), b"0123456789abcdef");
}

fn assert_chain(ek: &[u8], maker: &[u8]) {
    let (ek, maker) = (CertificateDer::from(ek), CertificateDer::from(maker));
    let anchor = webpki::anchor_from_trusted_cert(&maker).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs(),
    ));
    let certificate = webpki::EndEntityCert::try_from(&ek).unwrap();
    let usage = webpki::KeyUsage::required(EK_CERTIFICATE);
    certificate
        .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &[anchor], &[], now, usage, None, None)
        .unwrap();
}

#[test]
fn enrols_with_p384() {
    enrols_with(Some(EkKind::P384), 0x23, 170);
}

#[test]
fn enrols_with_p256() {
    enrols_with(Some(EkKind::P256), 0x23, 122);
}

#[test]
fn enrols_with_p256_of_the_high_range() {
    enrols_with(Some(EkKind::P256High), 0x23, 122);
}

#[test]
fn enrols_with_rsa_2048() {
    enrols_with(Some(EkKind::Rsa2048), 1, 314);
}

#[test]
fn enrols_with_rsa_2048_of_the_high_range() {
    enrols_with(Some(EkKind::Rsa2048High), 1, 314);
}

#[test]
fn enrols_without_any_certificate() {
    enrols_with(None, 0x23, 122);
}

#[test]
fn the_configuration_can_choose_the_endorsement_key() {
    // swtpm has certificates for P-384 and RSA-2048.
    let Some(swtpm) = start(EkKind::P384) else {
        return;
    };
    let enrolment = |ek: Option<EkKind>| {
        let tpm = Tpm::open(TpmConfig { ek, ..swtpm.config() }).unwrap();
        tpm.enrolment(&[]).unwrap()
    };
    assert_eq!(enrolment(None).ek_public[..2], [0, 0x23]);
    let rsa = enrolment(Some(EkKind::Rsa2048));
    assert_eq!(rsa.ek_public[..2], [0, 1]);
    assert_chain(&rsa.ek_certificates[0], swtpm.maker_certificate());
    let uncertified = enrolment(Some(EkKind::P256));
    assert!(uncertified.ek_certificates.is_empty());
}

#[test]
fn what_the_tpm_holds_of_the_chain_is_shown() {
    let Some(swtpm) = start(EkKind::P384) else {
        return;
    };
    let (first, second) = (Maker::new(), Maker::new());
    // One certificate crosses two indices, as the profile allows.
    let both = [first.certificate(), second.certificate()].concat();
    let (head, tail) = both.split_at(first.certificate().len() + 40);
    swtpm.write_nv(0x01C0_0100, head);
    swtpm.write_nv(0x01C0_0101, tail);
    let enrolment = Tpm::open(swtpm.config()).unwrap().enrolment(&[]).unwrap();
    let chain: Vec<&[u8]> = enrolment.ek_certificates[1..].iter().map(|c| c.as_slice()).collect();
    assert_eq!(chain, [first.certificate(), second.certificate()]);
}

#[test]
fn a_certificate_about_another_key_is_named() {
    let maker = Maker::new();
    let Some(swtpm) = start_by(&maker, None) else {
        return;
    };
    swtpm.write_nv(EkKind::P256.certificate_index(), maker.certificate());
    let tpm = Tpm::open(swtpm.config()).unwrap();
    let text = tpm.enrolment(&[]).unwrap_err().to_string();
    assert!(text.contains("0x01c0000a") && text.contains("another key"), "{text}");
    assert!(matches!(tpm.enrolment(&[0; 33]), Err(RootError::Refused { .. })));
}

/// What `tpm2_quote -o` writes: C structures, TPML_PCR_SELECTION and then as many TPML_DIGEST as it takes. (With `-l`
/// tpm2_checkquote 5.4 miscounts from the eighth value on.)
fn pcr_file(pcrs: &BTreeMap<u8, Digest>) -> Vec<u8> {
    let mut bitmap = [0_u8; 4];
    pcrs.keys().for_each(|p| bitmap[usize::from(p / 8)] |= 1 << (p % 8));
    let mut out = [&1_u32.to_le_bytes()[..], &0x0B_u16.to_le_bytes(), &[3], &bitmap, &[0]].concat();
    out.resize(4 + 16 * 8, 0);
    let lists: Vec<&Digest> = pcrs.values().collect();
    out.extend(u32::try_from(lists.len().div_ceil(8)).unwrap().to_le_bytes());
    for list in lists.chunks(8) {
        let end = out.len() + 4 + 8 * 66;
        out.extend(u32::try_from(list.len()).unwrap().to_le_bytes());
        for digest in list {
            out.extend(32_u16.to_le_bytes());
            out.extend(digest.0);
            out.extend([0; 32]);
        }
        out.resize(end, 0);
    }
    out
}

#[test]
fn tpm2_checkquote_accepts_our_quotes_and_no_others() {
    let Some(swtpm) = start(EkKind::P384) else {
        return;
    };
    let tpm = Tpm::open(swtpm.config()).unwrap();
    tpm.extend(14, &Digest::of(b"launch")).unwrap();
    let nonce = Digest::of(b"nonce");
    // More than one read returns, and in no order.
    let quote = tpm.quote(&nonce, &[14, 0, 1, 2, 3, 4, 5, 6, 7, 11]).unwrap();
    assert_eq!(quote.pcrs.len(), 10);
    assert_eq!(
        quote.pcrs[&14],
        Digest::of(&[[0; 32], Digest::of(b"launch").0].concat())
    );

    let folder = tempfile::tempdir().unwrap();
    let path = |f: &str| folder.path().join(f);
    let ak = tpm.attestation_key().unwrap();
    let spki = public_key_to_spki(&rustls::pki_types::alg_id::ECDSA_P256, &p256_of(&ak).bytes);
    fs::write(path("ak.der"), &spki).unwrap();
    tool(
        std::process::Command::new("openssl")
            .args(["pkey", "-pubin", "-inform", "der", "-in"])
            .arg(path("ak.der"))
            .arg("-out")
            .arg(path("ak.pem")),
    );
    fs::write(path("ak.tss"), sized(&ak)).unwrap();
    fs::write(path("message"), &quote.attest).unwrap();
    fs::write(path("signature"), &quote.signature).unwrap();
    fs::write(path("values"), pcr_file(&quote.pcrs)).unwrap();
    let mut other = quote.pcrs.clone();
    other.insert(7, nonce);
    fs::write(path("other-values"), pcr_file(&other)).unwrap();
    let check = |key: &str, values: &str, nonce: &Digest| {
        let mut check = std::process::Command::new("tpm2_checkquote");
        check
            .arg("-u")
            .arg(path(key))
            .arg("-m")
            .arg(path("message"))
            .arg("-s")
            .arg(path("signature"));
        check.arg("-f").arg(path(values)).args(["-g", "sha256"]);
        try_tool(check.args(["-q", &nonce.hex()]))
    };
    for key in ["ak.pem", "ak.tss"] {
        check(key, "values", &nonce).unwrap();
        check(key, "other-values", &nonce).unwrap_err();
        check(key, "values", &Digest::of(b"stale")).unwrap_err();
    }
    let mut bent = quote.attest.to_vec();
    *bent.last_mut().unwrap() ^= 1;
    fs::write(path("message"), bent).unwrap();
    check("ak.pem", "values", &nonce).unwrap_err();
}
