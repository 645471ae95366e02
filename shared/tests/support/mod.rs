//! Keys, certificates and twins for tests, all from fixed seeds: the same bytes on every run. The tests of the agent's
//! and the gateway's core use this file too.

// Every test file uses another part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;

use cnova_shared::bundle::{self, Bundle, Role, SigningKey, TrustBundle};
use cnova_shared::envelope::{Claims, seal};
use cnova_shared::ids::{Digest, HUB_AUDIENCE, NodeId, WorkloadId};
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use serde::Serialize;

/// When everything here was set up, seconds since 1970.
pub const EPOCH_S: u64 = 1_790_000_000;
/// When the hub's key runs out.
pub const KEY_ENDS_S: u64 = EPOCH_S + 365 * 86_400;
/// The hub.
pub const HUB: &str = "hub-1";

pub fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub fn workload_id(name: &str) -> WorkloadId {
    name.parse().unwrap()
}

pub fn soft(n: u8) -> SoftKey {
    SoftKey::ed25519_from_seed(&[n; 32])
}

pub fn root_key() -> SoftKey {
    soft(2)
}

pub fn hub_key() -> SoftKey {
    soft(3)
}

/// A node's key and certificate.
pub struct Identity {
    pub node: NodeId,
    pub key: SoftKey,
    pub chain: Vec<Vec<u8>>,
}

impl Identity {
    /// Signs a message to the hub; `introduce` puts the certificate into it.
    pub fn seal<T: Serialize>(&self, kind: Kind, value: &T, introduce: bool) -> Vec<u8> {
        let chain: &[Vec<u8>] = if introduce { &self.chain } else { &[] };
        seal(kind, &claims(self.node.as_str(), HUB_AUDIENCE), value, chain, &self.key).unwrap()
    }
}

pub fn claims(iss: &str, aud: &str) -> Claims {
    Claims {
        iss: node(iss),
        aud: node(aud),
        iat: EPOCH_S,
        exp: None,
    }
}

/// PKCS #8 version 1 of an Ed25519 seed (RFC 8410 section 7).
fn key_pair(n: u8) -> KeyPair {
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend_from_slice(&[n; 32]);
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(der);
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519).unwrap()
}

fn params(cn: &str) -> CertificateParams {
    let mut p = CertificateParams::new(vec![cn.to_owned()]).unwrap();
    p.distinguished_name = rcgen::DistinguishedName::new();
    p.distinguished_name.push(DnType::CommonName, cn);
    p.not_before = rcgen::date_time_ymd(2024, 1, 1);
    p.not_after = rcgen::date_time_ymd(2060, 1, 1);
    p.serial_number = Some(rcgen::SerialNumber::from(cn.as_bytes()[..cn.len().min(16)].to_vec()));
    p
}

fn ca_params() -> CertificateParams {
    let mut ca = params("test-ca");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca
}

/// The authority's certificate.
pub fn ca_der() -> Vec<u8> {
    ca_params().self_signed(&key_pair(1)).unwrap().der().to_vec()
}

/// A certified node whose key is made from `n`.
pub fn identity(name: &str, n: u8) -> Identity {
    certified(name, n, &format!("plant-7/{name}"), None)
}

/// A node at `site`; with a TPM when its attestation key (`TPMT_PUBLIC`) is named.
pub fn certified(name: &str, n: u8, site: &str, ak: Option<&[u8]>) -> Identity {
    let mut p = params(name);
    let mut urns = vec![format!("{}{site}", cnova_shared::certificate::SITE_URN)];
    if let Some(ak) = ak {
        let digest = Digest::of(ak).to_string();
        urns.push(cnova_shared::certificate::TPM_URN.into());
        urns.push(format!(
            "{}{}",
            cnova_shared::certificate::AK_URN,
            digest.trim_start_matches("sha256:")
        ));
    }
    for urn in urns {
        p.subject_alt_names.push(SanType::URI(urn.try_into().unwrap()));
    }
    p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let der = p
        .signed_by(&key_pair(n), &Issuer::new(ca_params(), key_pair(1)))
        .unwrap()
        .der()
        .to_vec();
    Identity {
        node: node(name),
        key: soft(n),
        chain: vec![der],
    }
}

/// What the trust bundle says: one root, one hub key, one authority.
pub fn contents(authority: Vec<u8>) -> Bundle {
    let key = hub_key().public_key().clone();
    Bundle {
        v: 1,
        version: 1,
        issued_at: EPOCH_S,
        roots: vec![root_key().public_key().clone()],
        threshold: 1,
        keys: vec![SigningKey {
            key,
            roles: vec![Role::Twin],
            not_after: KEY_ENDS_S,
        }],
        authorities: vec![serde_bytes::ByteBuf::from(authority)],
        builders: Vec::new(),
        attestation: None,
    }
}

pub fn trust() -> TrustBundle {
    TrustBundle::flashed(&bundle::sign(&contents(ca_der()), &[&root_key()]).unwrap()).unwrap()
}

/// A workload whose artifact is named by `artifact`.
pub fn workload(id: &str, artifact: &str) -> v1::Workload {
    v1::Workload {
        id: workload_id(id),
        app_generation: 1,
        runtime: "wasm".into(),
        artifact: v1::Artifact {
            digest: Digest::of(artifact.as_bytes()),
            size: 1000,
        },
        source: Digest::of(b"source"),
        files: Vec::new(),
        args: Vec::new(),
        env: BTreeMap::new(),
        memory_bytes: 1024 * 1024,
        cpu_millis: 100,
        log_bytes: 4096,
        wall_seconds: None,
        grants: v1::Grants::default(),
        restart: v1::Restart {
            policy: v1::RestartPolicy::Always,
            backoff_min_ms: 1000,
            backoff_max_ms: 8000,
            crash_loop_after: 3,
        },
        stop_grace_ms: 2000,
        priority: 10,
        settings: String::new(),
        parts: Vec::new(),
        volumes: Vec::new(),
        needs: Vec::new(),
        accelerators: Vec::new(),
        devices: Vec::new(),
        schedule: None,
        power: v1::PowerLevel::default(),
        health: v1::Health::default(),
        on_bad_update: v1::OnBadUpdate::default(),
        trust: v1::TrustRequirement::default(),
        provenance: Vec::new(),
        attestation: None,
        secrets: Vec::new(),
    }
}

pub fn twin(name: &str, generation: u64, workloads: Vec<v1::Workload>) -> v1::Twin {
    v1::Twin {
        v: v1::VERSION,
        node: node(name),
        epoch: 1,
        generation,
        workloads,
        secrets: Vec::new(),
        system: None,
    }
}

/// A twin as the hub signs it.
pub fn sign_twin(twin: &v1::Twin) -> Vec<u8> {
    seal(Kind::Twin, &claims(HUB, twin.node.as_str()), twin, &[], &hub_key()).unwrap()
}
