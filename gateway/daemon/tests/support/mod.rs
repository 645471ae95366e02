//! A tree in one test: an authority, a hub's key, a trust bundle, and the files that a gateway is installed with.
#![allow(dead_code, unreachable_pub)]

pub mod actors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cnova_shared::bundle::{self, Bundle, Role, SigningKey, TrustBundle};
use cnova_shared::envelope::{self, Claims};
use cnova_shared::ids::{NodeId, SitePath};
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde::Serialize;

/// The most that anything here waits.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `future`, but not for ever.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

pub fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A node's certificate and key.
pub struct Issued {
    pub node: NodeId,
    pub site: SitePath,
    pub certificate: Vec<u8>,
    pub key_der: Vec<u8>,
    pub certificate_pem: String,
    pub key_pem: String,
}

impl Issued {
    pub fn signer(&self) -> SoftKey {
        SoftKey::from_pkcs8(&self.key_der).unwrap()
    }

    /// Signs as this node.
    pub fn seal<T: Serialize>(&self, kind: Kind, aud: &str, value: &T, introduce: bool) -> Vec<u8> {
        let claims = Claims {
            iss: self.node.clone(),
            aud: node(aud),
            iat: now_s(),
            exp: None,
        };
        let chain = [self.certificate.clone()];
        envelope::seal(
            kind,
            &claims,
            value,
            if introduce { &chain } else { &[] },
            &self.signer(),
        )
        .unwrap()
    }
}

/// The keys at the root of one tree.
pub struct Plant {
    issuer: Issuer<'static, KeyPair>,
    pub authority: Vec<u8>,
    pub hub_key: SoftKey,
    pub bundle: Vec<u8>,
    pub trust: TrustBundle,
    generation: AtomicU64,
}

impl Plant {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Plant 7");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let authority = certificate.der().to_vec();
        let (root, hub_key) = (
            SoftKey::ed25519_from_seed(&[1; 32]),
            SoftKey::ed25519_from_seed(&[2; 32]),
        );
        let contents = Bundle {
            v: 1,
            version: 3,
            issued_at: 1,
            roots: vec![root.public_key().clone()],
            threshold: 1,
            keys: vec![SigningKey {
                key: hub_key.public_key().clone(),
                roles: vec![Role::Twin],
                not_after: now_s() + 86_400,
            }],
            authorities: vec![authority.clone().into()],
            builders: Vec::new(),
            attestation: None,
        };
        let bundle = bundle::sign(&contents, &[&root]).unwrap();
        let trust = TrustBundle::flashed(&bundle).unwrap();
        let issuer = Issuer::new(params, key);
        Self {
            issuer,
            authority,
            hub_key,
            bundle,
            trust,
            generation: AtomicU64::new(0),
        }
    }

    pub fn issue(&self, name: &str, site: &str) -> Issued {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let urn = format!("urn:cnova:site:{site}");
        params
            .subject_alt_names
            .push(SanType::URI(urn.as_str().try_into().unwrap()));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued {
            node: node(name),
            site: SitePath::new(site).unwrap(),
            certificate: certificate.der().to_vec(),
            key_der: key.serialize_der(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }

    /// A twin for `name`, one generation above the last, signed by the hub.
    pub fn twin(&self, name: &str) -> Vec<u8> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let twin = v1::Twin {
            v: v1::VERSION,
            node: node(name),
            epoch: 1,
            generation,
            workloads: Vec::new(),
            secrets: Vec::new(),
            system: None,
        };
        let claims = Claims {
            iss: node("hub"),
            aud: node(name),
            iat: now_s(),
            exp: None,
        };
        envelope::seal(Kind::Twin, &claims, &twin, &[], &self.hub_key).unwrap()
    }
}

/// The files of one node in a folder.
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub trust_bundle: PathBuf,
}

impl Files {
    pub fn write(folder: &Path, issued: &Issued, plant: &Plant) -> Self {
        let at = |suffix: &str| folder.join(format!("{}.{suffix}", issued.node));
        let files = Self {
            certificate: at("pem"),
            key: at("key"),
            trust_bundle: at("trust"),
        };
        std::fs::write(&files.certificate, &issued.certificate_pem).unwrap();
        std::fs::write(&files.key, &issued.key_pem).unwrap();
        std::fs::write(&files.trust_bundle, &plant.bundle).unwrap();
        files
    }
}

/// A hello of an agent without a twin.
pub fn hello(issued: &Issued, boot: &str) -> v1::Hello {
    v1::Hello {
        v: v1::VERSION,
        boot: boot.to_owned(),
        epoch: 0,
        generation: 0,
        digest: None,
        incarnation: 1,
        role: v1::NodeRole::Agent,
        site: issued.site.clone(),
        labels: BTreeMap::new(),
        capabilities: v1::Capabilities::default(),
        software: "test".to_owned(),
        trust_version: 3,
        documents: Default::default(),
        renew: false,
        box_key: None,
        alarms: Vec::new(),
    }
}

/// A report with one entry, `from < seq <= from + 1`.
pub fn report(from: u64, key: &str, detail: &str) -> v1::Report {
    let body = v1::Body::Alarm(v1::Alarm {
        code: key.to_owned(),
        detail: detail.to_owned(),
    });
    let entry = v1::Entry {
        seq: from + 1,
        key: key.to_owned(),
        at_ms: 1,
        body,
    };
    v1::Report {
        v: v1::VERSION,
        incarnation: 1,
        from,
        to: from + 1,
        entries: vec![entry],
        all_keys: None,
    }
}

/// A disk of a given size. Needs root.
pub struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// Mounts one; says loudly when it may not.
    pub fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "cnova-test"])
            .arg(folder.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(folder)),
            other => {
                eprintln!("SKIPPED: no tmpfs can be mounted here (it needs root): {other:?}");
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        let status = std::process::Command::new("mount")
            .args(["-o", &options])
            .arg(self.path())
            .status()
            .unwrap();
        assert!(status.success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
