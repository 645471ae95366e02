//! A small tree for tests: an authority, certified nodes, a hub key and the trust bundle that vouches for them.

// Every test file uses another part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cnova_broker::{Endpoint, EndpointConfig, EndpointEvent, Limits, TlsMaterial};
use cnova_link::Identity;
use cnova_shared::bundle::{self, Bundle, Role, SigningKey, TrustedBuilder};
use cnova_shared::ids::NodeId;
use cnova_shared::keys::{Signer, SoftKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use tokio::sync::mpsc;

/// The most that anything here waits.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `future`, but not for ever.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

pub struct Pki {
    issuer: Issuer<'static, KeyPair>,
    pub authority: Vec<u8>,
    pub root: SoftKey,
    pub hub_key: SoftKey,
    pub dir: PathBuf,
}

/// The three files of a node.
#[derive(Clone)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub trust_bundle: PathBuf,
}

impl Files {
    pub fn load(&self) -> Identity {
        Identity::load(&self.certificate, &self.key, &self.trust_bundle).unwrap()
    }
}

impl Pki {
    pub fn new(dir: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Plant 7");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap().der().to_vec();
        let pki = Self {
            issuer: Issuer::new(params, key),
            authority,
            root: SoftKey::ed25519_from_seed(&[1; 32]),
            hub_key: SoftKey::ed25519_from_seed(&[2; 32]),
            dir: dir.to_owned(),
        };
        fs::write(dir.join("trust.cose"), pki.bundle()).unwrap();
        pki
    }

    pub fn bundle(&self) -> Vec<u8> {
        self.bundle_with(1, Vec::new())
    }

    /// A bundle that names builders.
    pub fn bundle_with(&self, version: u64, builders: Vec<TrustedBuilder>) -> Vec<u8> {
        let bundle = Bundle {
            v: 1,
            version,
            issued_at: 1_700_000_000,
            roots: vec![self.root.public_key().clone()],
            threshold: 1,
            keys: vec![SigningKey {
                key: self.hub_key.public_key().clone(),
                roles: vec![Role::Twin],
                not_after: u64::from(u32::MAX),
            }],
            authorities: vec![self.authority.clone().into()],
            builders,
            attestation: None,
        };
        bundle::sign(&bundle, &[&self.root]).unwrap()
    }

    pub fn issue(&self, node: &str) -> Files {
        self.issue_with(node, |_| {})
    }

    pub fn issue_with(&self, node: &str, change: impl FnOnce(&mut CertificateParams)) -> Files {
        let mut params = CertificateParams::new(vec![node.to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(
            format!("urn:cnova:site:plant-7/{node}").try_into().unwrap(),
        ));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, node);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = Files {
            certificate: self.dir.join(format!("{node}.pem")),
            key: self.dir.join(format!("{node}.key")),
            trust_bundle: self.dir.join("trust.cose"),
        };
        fs::write(&files.certificate, certificate.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
        files
    }
}

pub fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// A parent's endpoint with the identity in `files`; port 0 takes a free one.
pub async fn endpoint(files: &Files, listen: &str) -> (Endpoint, mpsc::Receiver<EndpointEvent>) {
    let identity = files.load();
    let tls = TlsMaterial {
        own: identity.certified(),
        client_ca: identity.tls_authorities(),
    };
    let config = EndpointConfig {
        listen: listen.parse().unwrap(),
        tls,
        limits: Limits::default(),
    };
    Endpoint::start(config).await.unwrap()
}
