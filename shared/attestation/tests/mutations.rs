//! Ten thousand mutations of each structure of real TPMs: read strictly, never with a panic, and never taken for genuine.

#![allow(clippy::unwrap_used)]

mod support;

use cnova_attestation::TpmEnrolment;
use cnova_attestation::enrol;
use cnova_attestation::evidence::Evidence;
use cnova_attestation::quote::verify;
use cnova_attestation::tpm::{Attest, Public, Signature};
use cnova_shared::wire::{decode, encode};
use serde_bytes::ByteBuf;
use support::{KINDS, counting, evidence, makers, node, request, vector, vectors_now};

const MUTATIONS: u64 = 10_000;

/// A small generator (SplitMix64): the same mutations in every run.
struct Mutator(u64);

impl Mutator {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.number() % u64::try_from(n.max(1)).unwrap()).unwrap()
    }

    /// One to four changes: a bit, a byte, a cut, something inserted, something doubled.
    fn mutate(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = bytes.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(out.len());
            match self.below(6) {
                0 if !out.is_empty() => out[at] ^= 1 << self.below(8),
                1 if !out.is_empty() => out[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                2 => out.truncate(at),
                3 => out.insert(at, self.number().to_le_bytes()[0]),
                4 if !out.is_empty() => drop(out.remove(at)),
                _ => {
                    let tail = out[at..].to_vec();
                    out.extend(tail.iter().take(64));
                }
            }
        }
        out
    }
}

#[test]
fn structures_are_read_or_refused() {
    for kind in KINDS {
        let mut mutator = Mutator(1);
        let (attest, certify) = (
            vector(&format!("{kind}/quote.attest")),
            vector(&format!("{kind}/certify.attest")),
        );
        let (ek, ak) = (vector(&format!("{kind}/ek.pub")), vector(&format!("{kind}/ak.pub")));
        let signature = vector(&format!("{kind}/quote.sig"));
        let mut refused = 0_u64;
        for _ in 0..MUTATIONS {
            refused += u64::from(Attest::read(&mutator.mutate(&attest)).is_err());
            refused += u64::from(Attest::read(&mutator.mutate(&certify)).is_err());
            refused += u64::from(Signature::read(&mutator.mutate(&signature)).is_err());
            for public in [&ek, &ak] {
                let changed = mutator.mutate(public);
                match Public::read(&changed) {
                    Err(_) => refused += 1,
                    // What is taken is taken whole: its bytes are those that its name is made of.
                    Ok(public) => assert_eq!(public.bytes(), changed),
                }
            }
        }
        assert!(refused > 2 * MUTATIONS, "{kind}: only {refused} were refused");
    }
}

#[test]
fn no_mutated_quote_is_taken() {
    for kind in KINDS {
        let mut mutator = Mutator(2);
        let good = evidence(kind);
        let ak = vector(&format!("{kind}/ak.pub"));
        let (me, nonce) = (node("plc-1"), vector("nonce"));
        for _ in 0..MUTATIONS / 4 {
            let mut changed = good.clone();
            let tpm = changed.tpm.as_mut().unwrap();
            let field = if mutator.below(2) == 0 {
                &mut tpm.quote.attest
            } else {
                &mut tpm.quote.signature
            };
            *field = ByteBuf::from(mutator.mutate(field));
            let same = changed == good;
            let taken = verify(&changed, &me, &nonce, &ak).is_ok();
            assert!(
                !taken || same || padded_alike(&changed, &good),
                "a mutated quote was taken"
            );
        }
    }
}

/// A coordinate with a leading zero more or less is the same signature.
fn padded_alike(a: &Evidence, b: &Evidence) -> bool {
    let read = |e: &Evidence| Signature::read(&e.tpm.as_ref().unwrap().quote.signature).unwrap();
    let attest = |e: &Evidence| e.tpm.as_ref().unwrap().quote.attest.clone();
    attest(a) == attest(b) && read(a) == read(b)
}

#[test]
fn mutated_evidence_is_read_or_refused() {
    let mut mutator = Mutator(3);
    let bytes = encode(&evidence("p256")).unwrap();
    for _ in 0..MUTATIONS {
        if let Ok(read) = decode::<Evidence>(&mutator.mutate(&bytes)) {
            read.encode().unwrap();
        }
    }
}

#[test]
fn mutated_enrolments_are_refused() {
    for kind in KINDS {
        let mut mutator = Mutator(4);
        let good = request(kind);
        for _ in 0..MUTATIONS / 50 {
            let mut changed: TpmEnrolment = good.clone();
            let field = match mutator.below(6) {
                0 => &mut changed.ek_certificates[0],
                1 => &mut changed.ek_public,
                2 => &mut changed.ak_public,
                3 => &mut changed.device_public,
                4 => &mut changed.certify,
                _ => &mut changed.certify_signature,
            };
            let before = field.clone();
            *field = ByteBuf::from(mutator.mutate(field));
            if *field == before {
                continue;
            }
            let ek_only = changed.ek_public != good.ek_public;
            let admitted = enrol::begin(&changed, &makers(), vectors_now(), &mut counting())
                .and_then(|p| p.finish(&(1..=32).collect::<Vec<u8>>(), format!("vector-{kind}").as_bytes()));
            // A real TPM would not open a credential for another public area; without one, only the key is compared.
            assert!(
                admitted.is_err() || ek_only || padding_only(&changed, &good),
                "{kind}: a mutated enrolment was admitted"
            );
        }
    }
}

fn padding_only(changed: &TpmEnrolment, good: &TpmEnrolment) -> bool {
    let certificate = changed.ek_certificates[0].starts_with(&good.ek_certificates[0]);
    let signature = Signature::read(&changed.certify_signature) == Signature::read(&good.certify_signature);
    certificate && signature && changed.certify == good.certify && changed.device_public == good.device_public
}
