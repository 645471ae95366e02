//! What real TPMs showed (tests/vectors), and a TPM in software that says whatever a test wants it to.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use cnova_attestation::enrol::Makers;
use cnova_attestation::event_log::{Event, Log, Prepared, Slice, ZERO, extended};
use cnova_attestation::evidence::{Evidence, TpmEvidence, qualifying};
use cnova_attestation::{Pcr, Quote, TpmEnrolment};
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::keys::{Algorithm, PublicKey, SoftKey};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_bytes::ByteBuf;

/// When golden messages are made: 2027-01-01.
pub const NOW_S: u64 = 1_798_761_600;

/// A day on which the certificates among the vectors are in their time.
pub fn vectors_now() -> u64 {
    String::from_utf8(vector("now")).unwrap().trim().parse().unwrap()
}

pub const KINDS: [&str; 3] = ["rsa2048", "p256", "p384"];
pub const PCRS: [u8; 10] = [0, 1, 2, 3, 4, 5, 6, 7, 11, 14];

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

pub fn be16(value: usize) -> [u8; 2] {
    u16::try_from(value).unwrap().to_be_bytes()
}

pub fn sized(bytes: &[u8]) -> Vec<u8> {
    [&be16(bytes.len()), bytes].concat()
}

/// A TPM in software: registers, an attestation key, a launch log.
pub struct SoftTpm {
    pub pcrs: BTreeMap<u8, Pcr>,
    pub reset_count: u32,
    pub log: Log,
    pub file: Vec<u8>,
    key: EcdsaKeyPair,
}

impl SoftTpm {
    pub fn new() -> Self {
        let rng = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &rng).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref(), &rng).unwrap();
        let mut pcrs: BTreeMap<u8, Pcr> = PCRS.into_iter().map(|p| (p, ZERO)).collect();
        for pcr in [0, 2, 4, 7, 11] {
            pcrs.insert(pcr, digest(&format!("boot {pcr}")));
        }
        Self {
            pcrs,
            reset_count: 3,
            log: Log::new(),
            file: Vec::new(),
            key,
        }
    }

    /// `TPMT_PUBLIC` of a restricted signing key of P-256.
    pub fn ak_public(&self) -> Vec<u8> {
        ecc_public(0x0005_0072, self.key.public_key().as_ref())
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature = self.key.sign(&SystemRandom::new(), message).unwrap();
        let (r, s) = signature.as_ref().split_at(32);
        [&[0x00, 0x18, 0x00, 0x0b][..], &sized(r), &sized(s)].concat()
    }

    pub fn quote(&self, extra: &Digest) -> Quote {
        let attest = quote_attest(&self.pcrs, self.reset_count, extra);
        Quote {
            signature: ByteBuf::from(self.sign(&attest)),
            attest: ByteBuf::from(attest),
            pcrs: self.pcrs.clone(),
        }
    }

    /// As an agent does it: log, sync, extend.
    pub fn log_and_extend(&mut self, event: Event) -> Prepared {
        let prepared = self.log_only(event);
        self.extend(&prepared);
        prepared
    }

    pub fn log_only(&mut self, event: Event) -> Prepared {
        let prepared = self.log.prepare(event).unwrap();
        self.file.extend(&prepared.record);
        self.log.append(&prepared).unwrap();
        prepared
    }

    pub fn extend(&mut self, prepared: &Prepared) {
        let register = self.pcrs[&14];
        self.pcrs.insert(14, extended(&register, &prepared.digest));
    }

    pub fn evidence(&self, name: &str, nonce: &[u8], log: Slice) -> Evidence {
        let key = session_key();
        Evidence {
            node: node(name),
            nonce: nonce.to_vec(),
            iat: NOW_S,
            tpm: Some(TpmEvidence {
                quote: self.quote(&qualifying(nonce, &key)),
                ak_public: self.ak_public(),
                log,
                firmware_log: None,
            }),
            session_key: key,
        }
    }
}

pub fn ecc_public(attributes: u32, point: &[u8]) -> Vec<u8> {
    let (x, y) = point[1..].split_at(32);
    let head = [0x00, 0x23, 0x00, 0x0b];
    // No policy, no symmetric algorithm, ECDSA with SHA-256, P-256, no key derivation.
    let parameters = [0, 0, 0x00, 0x10, 0x00, 0x18, 0x00, 0x0b, 0x00, 0x03, 0x00, 0x10];
    [&head[..], &attributes.to_be_bytes(), &parameters, &sized(x), &sized(y)].concat()
}

pub fn quote_attest(pcrs: &BTreeMap<u8, Pcr>, reset_count: u32, extra: &Digest) -> Vec<u8> {
    let mut select = [0_u8; 3];
    for pcr in pcrs.keys() {
        select[usize::from(pcr / 8)] |= 1 << (pcr % 8);
    }
    let values: Vec<u8> = pcrs.values().flat_map(|v| v.0).collect();
    let selection = [&[0, 0, 0, 1, 0x00, 0x0b, 3][..], &select].concat();
    attest(
        0x8018,
        reset_count,
        &extra.0,
        &[selection, sized(&Digest::of(&values).0)].concat(),
    )
}

pub fn attest(kind: u16, reset_count: u32, extra: &[u8], body: &[u8]) -> Vec<u8> {
    let signer = [&[0x00, 0x0b][..], &[9; 32]].concat();
    [
        &0xff54_4347_u32.to_be_bytes()[..],
        &kind.to_be_bytes(),
        &sized(&signer),
        &sized(extra),
        &123_456_u64.to_be_bytes(),
        &reset_count.to_be_bytes(),
        &1_u32.to_be_bytes(),
        &[1],
        &0x2019_1023_0016_3636_u64.to_be_bytes(),
        body,
    ]
    .concat()
}
