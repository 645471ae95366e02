//! The whole flow against an emulated TPM: admission with a credential that the TPM itself opens, then a launch log, a quote
//! and its appraisal. Needs swtpm and tpm2-tools; says so and does nothing where they are missing.

#![allow(clippy::unwrap_used)]

mod support;
#[path = "support/swtpm.rs"]
mod swtpm_process;

use std::collections::BTreeMap;
use std::time::SystemTime;

use cnova_attestation::appraise::{Subject, appraise};
use cnova_attestation::ear::Status;
use cnova_attestation::enrol::{self, EnrolError, Makers};
use cnova_attestation::event_log::{Boot, Event, Launch, Log, slice};
use cnova_attestation::evidence::{Evidence, TpmEvidence, qualifying};
use cnova_attestation::quote::{VerifiedEvidence, verify_evidence};
use cnova_attestation::reference::{ReferenceSet, References, Selector};
use cnova_attestation::{Credential, Quote, TpmEnrolment};
use cnova_shared::certificate::Tier;
use cnova_shared::ids::{Digest, SitePath};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_bytes::ByteBuf;
use support::{NOW_S, PCRS, digest, node, session_key};
use swtpm_process::{Swtpm, missing};

fn der(tpm: &Swtpm, pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_file(tpm.path(pem)).unwrap().to_vec()
}

fn makers(tpm: &Swtpm) -> Makers {
    Makers {
        roots: vec![der(tpm, "ca/swtpm-localca-rootca-cert.pem")],
        intermediates: vec![der(tpm, "ca/issuercert.pem")],
    }
}

fn request(tpm: &Swtpm, ek: &str, certificate: &str, qualifying: &[u8]) -> TpmEnrolment {
    let (certify, signature) = tpm.certify(qualifying);
    TpmEnrolment {
        ek_certificates: vec![ByteBuf::from(tpm.read(certificate))],
        ek_public: ByteBuf::from(tpm.public(ek)),
        ak_public: ByteBuf::from(tpm.public("0x81000011")),
        device_public: ByteBuf::from(tpm.public("0x81000012")),
        certify: ByteBuf::from(certify),
        certify_signature: ByteBuf::from(signature),
    }
}

fn activate(tpm: &Swtpm, ek: &str, credential: &Credential) -> Result<Vec<u8>, String> {
    // The file of tpm2-tools: a magic number, a version, then the two structures.
    let file = [
        &[0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1],
        &credential.blob[..],
        &credential.secret,
    ]
    .concat();
    tpm.write("credential", &file);
    let activate = format!("tpm2_activatecredential -Q -c 0x81000011 -C {ek} -i credential -o secret");
    if ek == "0x81010016" {
        // The P-384 template of the TCG lets the endorsement key be used with its empty password.
        tpm.try_run(&activate)?;
    } else {
        tpm.run("tpm2_startauthsession --policy-session -S session.ctx");
        tpm.run("tpm2_policysecret -Q -S session.ctx -c e");
        let activated = tpm.try_run(&format!("{activate} -P session:session.ctx"));
        tpm.run("tpm2_flushcontext session.ctx");
        activated?;
    }
    Ok(tpm.read("secret"))
}

/// The emulator's certificates begin today.
fn today() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_1970.unwrap().as_secs() + 60
}

fn random(bytes: &mut [u8]) {
    use ring::rand::SecureRandom;
    ring::rand::SystemRandom::new().fill(bytes).unwrap();
}

#[test]
fn a_real_tpm_opens_what_was_made_for_it_and_nothing_else() {
    if let Some(why) = missing() {
        eprintln!("skipped: {why}");
        return;
    }
    let tpm = Swtpm::start();
    tpm.make_keys();
    tpm.run_and_flush("tpm2_createek -Q -c 0x81010020 -G ecc");
    for (ek, certificate) in [
        ("0x81010001", "state/ek-rsa2048.crt"),
        ("0x81010016", "state/ek-secp384r1.crt"),
    ] {
        let request = request(&tpm, ek, certificate, b"this request");
        // Ten credentials: an ephemeral point or a shared secret may begin with a zero.
        for _ in 0..10 {
            let pending = enrol::begin(&request, &makers(&tpm), today(), &mut random).unwrap();
            let secret = activate(&tpm, ek, pending.credential()).unwrap();
            let enrolled = pending.finish(&secret, b"this request").unwrap();
            assert_eq!(enrolled.ak_public, request.ak_public.to_vec());
        }
        // Made for another attestation key: this TPM refuses.
        let mut other = request.clone();
        other.ak_public = other.device_public.clone();
        let pending = enrol::begin(&other, &makers(&tpm), today(), &mut random).unwrap();
        activate(&tpm, ek, pending.credential()).expect_err("a credential for another key was opened");
        assert_eq!(pending.finish(&[0; 32], b"this request"), Err(EnrolError::NotActivated));
    }
    // The emulator's maker certifies no P-256 key, so the credential alone.
    let ek = cnova_attestation::tpm::Public::read(&tpm.public("0x81010020")).unwrap();
    let name = cnova_attestation::tpm::Public::read(&tpm.public("0x81000011"))
        .unwrap()
        .name();
    for _ in 0..10 {
        let credential = cnova_attestation::credential::make(&ek, &name, &[42; 32], &mut random).unwrap();
        assert_eq!(activate(&tpm, "0x81010020", &credential).unwrap(), [42; 32]);
    }
}

fn quoted(tpm: &Swtpm, nonce: &[u8], log: &[u8]) -> Evidence {
    let extra = qualifying(nonce, &session_key());
    tpm.run(&format!(
        "tpm2_quote -Q -c 0x81000011 -l sha256:0,1,2,3,4,5,6,7,11,14 -q {} -m attest -s sig -o pcrs",
        extra.hex()
    ));
    tpm.run("tpm2_pcrread -Q sha256:0,1,2,3,4,5,6,7 -o first");
    tpm.run("tpm2_pcrread -Q sha256:11,14 -o second");
    let values = [tpm.read("first"), tpm.read("second")].concat();
    let values = values.chunks_exact(32).map(|v| Digest(v.try_into().unwrap()));
    Evidence {
        node: node("plc-1"),
        nonce: nonce.to_vec(),
        iat: NOW_S,
        session_key: session_key(),
        tpm: Some(TpmEvidence {
            quote: Quote {
                attest: ByteBuf::from(tpm.read("attest")),
                signature: ByteBuf::from(tpm.read("sig")),
                pcrs: PCRS.into_iter().zip(values).collect(),
            },
            ak_public: tpm.public("0x81000011"),
            log: slice(log, None),
            firmware_log: None,
        }),
    }
}

#[test]
fn what_a_real_tpm_launched_is_proven_and_one_extension_more_is_seen() {
    if let Some(why) = missing() {
        eprintln!("skipped: {why}");
        return;
    }
    let tpm = Swtpm::start();
    tpm.make_keys();
    tpm.run(&format!("tpm2_pcrextend 4:sha256={}", digest("kernel").hex()));
    let (mut log, mut file) = (Log::new(), Vec::new());
    let mut happen = |event| {
        let prepared = log.prepare(event).unwrap();
        file.extend(&prepared.record);
        log.append(&prepared).unwrap();
        tpm.run(&format!("tpm2_pcrextend 14:sha256={}", prepared.digest.hex()));
    };
    happen(Event::Boot(Boot {
        agent: digest("agent"),
        version: "0.1.0".into(),
        boot: "b".into(),
        before: None,
    }));
    let launch = Launch {
        workload: "vibration-watch/detector".into(),
        artifact: digest("artifact"),
        spec: digest("spec"),
        runtime: digest("runtime"),
    };
    happen(Event::Launch(launch.clone()));
    let nonce = [9; 32];
    let ak = tpm.public("0x81000011");
    let verified = |nonce: &[u8]| {
        let evidence = quoted(&tpm, nonce, &file);
        verify_evidence(&evidence, &node("plc-1"), nonce, Some(&ak)).unwrap()
    };
    let first = verified(&nonce);
    let VerifiedEvidence::Tpm(quote) = &first else {
        panic!("a quote")
    };
    let everyone = Selector {
        all: true,
        ..Selector::default()
    };
    let references = References {
        v: 1,
        version: 1,
        sets: vec![ReferenceSet::observed("image-1", everyone, quote, 14)],
    };
    cnova_attestation::reference::check(&references).unwrap();
    assert_eq!(references.sets[0].pcrs.len(), 9);
    let (me, site, labels) = (node("plc-1"), SitePath::new("plant/plc-1").unwrap(), BTreeMap::new());
    let subject = Subject {
        node: &me,
        site: &site,
        labels: &labels,
        tier: Tier::Tpm,
        launch_pcr: Some(14),
    };
    let appraisal = appraise(&subject, &first, &references, None);
    assert_eq!(
        (appraisal.status, &appraisal.findings),
        (Status::Affirming, &Vec::new())
    );
    let proven = appraisal.log.unwrap();
    assert_eq!((proven.proven, &proven.launched[0].launch), (2, &launch));

    // One event that is in no log.
    tpm.run(&format!("tpm2_pcrextend 14:sha256={}", digest("hidden launch").hex()));
    tpm.run(&format!("tpm2_pcrextend 7:sha256={}", digest("other key").hex()));
    let second = appraise(&subject, &verified(&[10; 32]), &references, None);
    assert_eq!(second.status, Status::Contraindicated);
    let about: Vec<_> = second.findings.iter().map(|f| (f.code.as_str(), f.pcr)).collect();
    assert_eq!(about, [("pcr-mismatch", Some(7)), ("launch-log", Some(14))]);
}
