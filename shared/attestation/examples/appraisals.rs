//! Appraisals per second on one core: envelope, quote, launch log, reference values, and the signed result.
//!
//! `cargo run --release -p cnova-attestation --example appraisals`

#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::time::Instant;

use cnova_attestation::appraise::{Issue, LogState, Subject, appraise};
use cnova_attestation::ear::{Status, VerifierId};
use cnova_attestation::event_log::{Boot, Event, Launch, slice};
use cnova_attestation::evidence::Evidence;
use cnova_attestation::quote::verify_evidence;
use cnova_attestation::reference::{PcrReference, ReferenceSet, References, Selector};
use cnova_shared::certificate::Tier;
use cnova_shared::envelope::{Claims, Introduction, Untrusted, seal_payload};
use cnova_shared::ids::SitePath;
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::topics::Kind;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use support::{NOW_S, Shown, SoftTpm, digest, node, session};

const ROUNDS: u32 = 4000;
const LAUNCHES: usize = 20;
const NONCE: [u8; 32] = [3; 32];

fn machine() -> SoftTpm {
    let mut tpm = SoftTpm::new();
    tpm.log_and_extend(Event::Boot(Boot {
        agent: digest("agent"),
        version: "0.1.0".into(),
        boot: "b-1".into(),
        before: None,
    }));
    for n in 0..LAUNCHES {
        tpm.log_and_extend(Event::Launch(Launch {
            workload: format!("app/workload-{n}"),
            artifact: digest(&n.to_string()),
            spec: digest("spec"),
            runtime: digest("runtime"),
        }));
    }
    tpm
}

fn references(tpm: &SoftTpm) -> References {
    let one = |value: &_| PcrReference {
        values: BTreeSet::from([*value]),
        events: BTreeSet::new(),
    };
    let boot = tpm.pcrs.iter().filter(|(pcr, _)| **pcr != 14);
    References {
        v: 1,
        version: 1,
        sets: vec![ReferenceSet {
            name: "image".into(),
            nodes: Selector {
                all: true,
                ..Selector::default()
            },
            pcrs: boot.map(|(pcr, value)| (*pcr, one(value))).collect(),
            ..ReferenceSet::default()
        }],
    }
}

struct Hub {
    tpm: SoftTpm,
    references: References,
    key: SoftKey,
}

impl Hub {
    /// One appraisal from bytes to bytes.
    fn appraise(&self, sealed: &[u8], signer: &dyn Signer, retained: Option<&LogState>) -> (Vec<u8>, Option<LogState>) {
        let (me, site, labels) = (node("plc-1"), SitePath::new("plant").unwrap(), BTreeMap::new());
        let verified = Untrusted::read(sealed)
            .unwrap()
            .verify(Kind::Evidence, signer.public_key());
        let evidence = verified.unwrap().decode::<Evidence>().unwrap();
        let evidence = verify_evidence(evidence.value(), &me, &NONCE, Some(&self.tpm.ak_public())).unwrap();
        let subject = Subject {
            node: &me,
            site: &site,
            labels: &labels,
            tier: Tier::Tpm,
            launch_pcr: Some(14),
        };
        let appraisal = appraise(&subject, &evidence, &self.references, retained);
        assert_eq!(appraisal.status, Status::Affirming);
        let ear = appraisal.ear(Issue {
            key: signer.public_key().clone(),
            verifier: VerifierId {
                developer: "Cloudnova".into(),
                build: "example".into(),
            },
            iat: NOW_S,
            exp: NOW_S + 600,
        });
        let sealed = seal_payload(
            Kind::Ear,
            &claims("hub", "plc-1"),
            ear.encode().unwrap(),
            Introduction::default(),
            &self.key,
        );
        (sealed.unwrap(), appraisal.log)
    }
}

fn claims(iss: &str, aud: &str) -> Claims {
    Claims {
        iss: node(iss),
        aud: node(aud),
        iat: NOW_S,
        exp: None,
    }
}

fn main() {
    let tpm = machine();
    let hub = Hub {
        references: references(&tpm),
        key: SoftKey::ed25519_from_seed(&[1; 32]),
        tpm,
    };
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    let es256 = SoftKey::from_pkcs8(der.as_ref()).unwrap();
    let ed25519 = session();
    for (name, signer) in [("Ed25519", &ed25519 as &dyn Signer), ("ES256", &es256)] {
        let seal = |log| {
            let evidence = hub.tpm.evidence("plc-1", &NONCE, log);
            seal_payload(
                Kind::Evidence,
                &claims("plc-1", "hub"),
                evidence.encode().unwrap(),
                Introduction::default(),
                signer,
            )
            .unwrap()
        };
        let first = seal(slice(&hub.tpm.file, None));
        let (_, state) = hub.appraise(&first, signer, None);
        let state = state.unwrap();
        let again = seal(slice(&hub.tpm.file, Some(&state.prefix())));
        for (what, sealed, retained) in [("whole log", &first, None), ("nothing new", &again, Some(&state))] {
            let begin = Instant::now();
            for _ in 0..ROUNDS {
                black_box(hub.appraise(black_box(sealed), signer, retained));
            }
            let took = begin.elapsed();
            println!(
                "evidence signed with {name}, {what} ({} bytes): {:.0} appraisals/s, {:.0} us each",
                sealed.len(),
                f64::from(ROUNDS) / took.as_secs_f64(),
                took.as_secs_f64() * 1e6 / f64::from(ROUNDS)
            );
        }
    }
}
