//! What real TPMs showed (tests/vectors).

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::PathBuf;

use cnova_attestation::enrol::Makers;
use cnova_attestation::event_log::Slice;
use cnova_attestation::evidence::{Evidence, TpmEvidence};
use cnova_attestation::{Quote, TpmEnrolment};
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::keys::{Algorithm, PublicKey, SoftKey};
use serde_bytes::ByteBuf;

/// When golden messages are made: 2027-01-01.
pub const NOW_S: u64 = 1_798_761_600;

/// A day on which the certificates among the vectors are in their time.
pub fn vectors_now() -> u64 {
    String::from_utf8(vector("now")).unwrap().trim().parse().unwrap()
}

pub const KINDS: [&str; 3] = ["rsa2048", "p256", "p384"];

pub fn vector(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/vectors")
        .join(path);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; tests/vectors/make.sh makes it", path.display()))
}

pub fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

/// The key of this boot in all tests: Ed25519 from a seed of 32 times 7.
pub fn session() -> SoftKey {
    SoftKey::ed25519_from_seed(&[7; 32])
}

pub fn session_key() -> PublicKey {
    PublicKey {
        algorithm: Algorithm::Ed25519,
        bytes: vector("session.pub"),
    }
}

pub fn makers() -> Makers {
    Makers {
        roots: vec![vector("root.der")],
        intermediates: vec![vector("issuer.der")],
    }
}

pub fn request(kind: &str) -> TpmEnrolment {
    let file = |name: &str| ByteBuf::from(vector(&format!("{kind}/{name}")));
    TpmEnrolment {
        ek_certificates: vec![file("ek.crt")],
        ek_public: file("ek.pub"),
        ak_public: file("ak.pub"),
        device_public: file("dev.pub"),
        certify: file("certify.attest"),
        certify_signature: file("certify.sig"),
    }
}

/// The evidence of the TPM of `kind`, for the nonce in the vectors.
pub fn evidence(kind: &str) -> Evidence {
    let file = |name: &str| vector(&format!("{kind}/{name}"));
    let values = file("pcrs");
    let values = values.chunks_exact(32).map(|v| Digest(v.try_into().unwrap()));
    Evidence {
        node: node("plc-1"),
        nonce: vector("nonce"),
        iat: NOW_S,
        session_key: session_key(),
        tpm: Some(TpmEvidence {
            quote: Quote {
                attest: ByteBuf::from(file("quote.attest")),
                signature: ByteBuf::from(file("quote.sig")),
                pcrs: PCRS.into_iter().zip(values).collect(),
            },
            ak_public: file("ak.pub"),
            log: Slice::default(),
            firmware_log: None,
        }),
    }
}

/// Random bytes that are not: 1, 2, 3, ... Enough to make the same credential again.
pub fn counting() -> impl FnMut(&mut [u8]) {
    let mut next = 0_u8;
    move |bytes| {
        for b in bytes {
            next = next.wrapping_add(1);
            *b = next;
        }
    }
}

pub use cnova_attestation::testing::*;

/// [`SoftTpm::evidence_of`] with the session key of all tests.
pub trait Shown {
    fn evidence(&self, name: &str, nonce: &[u8], log: Slice) -> Evidence;
}

impl Shown for SoftTpm {
    fn evidence(&self, name: &str, nonce: &[u8], log: Slice) -> Evidence {
        self.evidence_of(&node(name), nonce, &session_key(), log, NOW_S)
    }
}
