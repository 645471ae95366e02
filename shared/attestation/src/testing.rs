//! A TPM in software that says whatever a test wants it to. It keeps nothing secret and proves nothing.

#![allow(
    missing_docs,
    clippy::must_use_candidate,
    clippy::unwrap_used,
    reason = "for tests alone"
)]

use std::collections::BTreeMap;

use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::keys::PublicKey;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_bytes::ByteBuf;

use crate::event_log::{Event, Log, Prepared, Slice, ZERO, extended};
use crate::evidence::{Evidence, TpmEvidence, qualifying};
use crate::{Pcr, Quote};

/// The registers that it quotes.
pub const PCRS: [u8; 10] = [0, 1, 2, 3, 4, 5, 6, 7, 11, 14];

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

impl Default for SoftTpm {
    fn default() -> Self {
        Self::new()
    }
}

impl SoftTpm {
    pub fn new() -> Self {
        Self::with_key(&Self::make_key())
    }

    /// An attestation key, PKCS #8.
    pub fn make_key() -> Vec<u8> {
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        key.unwrap().as_ref().to_vec()
    }

    /// A machine of its own with this attestation key.
    pub fn with_key(pkcs8: &[u8]) -> Self {
        let rng = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &rng).unwrap();
        Self {
            pcrs: booted(),
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

    /// What a node with this TPM answers to a challenge.
    pub fn evidence_of(&self, node: &NodeId, nonce: &[u8], session: &PublicKey, log: Slice, iat: u64) -> Evidence {
        Evidence {
            node: node.clone(),
            nonce: nonce.to_vec(),
            iat,
            tpm: Some(TpmEvidence {
                quote: self.quote(&qualifying(nonce, session)),
                ak_public: self.ak_public(),
                log,
                firmware_log: None,
            }),
            session_key: session.clone(),
        }
    }

    /// The machine is started anew: registers, launch log and counter as after a reset.
    pub fn reboot(&mut self) {
        self.reset_count += 1;
        self.log = Log::new();
        self.file.clear();
        self.pcrs = booted();
    }
}

fn booted() -> BTreeMap<u8, Pcr> {
    let mut pcrs: BTreeMap<u8, Pcr> = PCRS.into_iter().map(|p| (p, ZERO)).collect();
    for pcr in [0, 2, 4, 7, 11] {
        pcrs.insert(pcr, Digest::of(format!("boot {pcr}").as_bytes()));
    }
    pcrs
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
