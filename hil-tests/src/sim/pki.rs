//! Keys and certificates of the simulated tree. All are made from fixed seeds, so that every byte of a run follows
//! from the run's own seed.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use cnova_shared::bundle::{self, Bundle, Role, SigningKey, TrustBundle, TrustedBuilder};
use cnova_shared::envelope::{Claims, seal};
use cnova_shared::ids::{NodeId, SitePath};
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::topics::Kind;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use serde::Serialize;

/// When the simulated tree was set up, seconds since 1970.
pub const EPOCH_S: u64 = 1_790_000_000;
/// Who builds most artifacts.
pub const BUILDER: &str = "https://ci.sim/line";
/// The hub.
pub const HUB: &str = "hub-1";
/// The gateway below it.
pub const AREA: &str = "area-gw";
/// The gateway below that.
pub const LINE: &str = "line-gw";
/// The agents below that.
pub const AGENTS: [&str; 3] = ["plc-1", "plc-2", "plc-3"];

/// A node's key and certificate.
pub struct Identity {
    /// Its name.
    pub node: NodeId,
    /// Its key.
    pub key: SoftKey,
    /// Its certificate, alone in its chain.
    pub chain: Vec<Vec<u8>>,
}

impl Identity {
    /// Signs a message as this node.
    #[must_use]
    pub fn seal<T: Serialize>(&self, kind: Kind, aud: &str, iat: u64, value: &T, introduce: bool) -> Vec<u8> {
        let claims = Claims {
            iss: self.node.clone(),
            aud: id(aud),
            iat,
            exp: None,
        };
        let chain: &[Vec<u8>] = if introduce { &self.chain } else { &[] };
        seal(kind, &claims, value, chain, &self.key).expect("the simulator's messages can be encoded")
    }
}

/// The whole simulated public-key infrastructure.
pub struct Pki {
    /// All nodes but the hub.
    pub nodes: BTreeMap<NodeId, Identity>,
    /// The hub's signing key.
    pub hub_key: SoftKey,
    /// The key of the builder of most artifacts.
    pub builder_key: SoftKey,
    /// A key that no bundle names.
    pub rogue_key: SoftKey,
    /// The trust bundle.
    pub trust: TrustBundle,
}

/// A node id that is known to be well-formed.
#[must_use]
pub fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("the simulator's names are valid")
}

/// Where a simulated node hangs.
#[must_use]
pub fn site(name: &str) -> SitePath {
    let path = match name {
        HUB => "hub".to_owned(),
        AREA => "plant-7".to_owned(),
        LINE => "plant-7/line-2".to_owned(),
        agent => format!("plant-7/line-2/{agent}"),
    };
    SitePath::new(path).expect("the simulator's sites are valid")
}

fn seed(n: u8) -> [u8; 32] {
    [n; 32]
}

/// PKCS #8 version 1 of an Ed25519 seed (RFC 8410 section 7).
fn pkcs8(seed: &[u8; 32]) -> Vec<u8> {
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend_from_slice(seed);
    der
}

fn key_pair(n: u8) -> KeyPair {
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(pkcs8(&seed(n)));
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519).expect("a seed is a key")
}

fn params(cn: &str) -> CertificateParams {
    let mut p = CertificateParams::new(vec![cn.to_owned()]).expect("a node id is a DNS name");
    p.distinguished_name = rcgen::DistinguishedName::new();
    p.distinguished_name.push(DnType::CommonName, cn);
    p.not_before = rcgen::date_time_ymd(2024, 1, 1);
    p.not_after = rcgen::date_time_ymd(2060, 1, 1);
    p.serial_number = Some(rcgen::SerialNumber::from(cn.as_bytes()[..cn.len().min(16)].to_vec()));
    p
}

/// The infrastructure, made once per process.
pub fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    PKI.get_or_init(make)
}

fn make() -> Pki {
    let ca_key = key_pair(1);
    let mut ca = params("sim-ca");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_der = ca.self_signed(&ca_key).expect("the CA signs itself").der().to_vec();
    let issuer = Issuer::new(ca, ca_key);
    let mut nodes = BTreeMap::new();
    for (i, name) in [AREA, LINE].into_iter().chain(AGENTS).enumerate() {
        let n = 10 + u8::try_from(i).expect("few nodes");
        let mut p = params(name);
        let urn = format!("{}{}", cnova_shared::certificate::SITE_URN, site(name));
        p.subject_alt_names
            .push(SanType::URI(urn.try_into().expect("a site is ASCII")));
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let der = p.signed_by(&key_pair(n), &issuer).expect("the CA signs").der().to_vec();
        let key = SoftKey::ed25519_from_seed(&seed(n));
        nodes.insert(
            id(name),
            Identity {
                node: id(name),
                key,
                chain: vec![der],
            },
        );
    }
    let (root, hub_key) = (
        SoftKey::ed25519_from_seed(&seed(2)),
        SoftKey::ed25519_from_seed(&seed(3)),
    );
    let builder_key = SoftKey::ed25519_from_seed(&seed(5));
    let not_after = EPOCH_S + 10 * 365 * 86_400;
    let trusted = |key: &SoftKey, builder: &str, level| TrustedBuilder {
        key: key.public_key().clone(),
        builder: builder.to_owned(),
        level,
        not_after,
    };
    let builders = vec![
        trusted(&hub_key, cnova_provenance::AOT_BUILDER, 3),
        trusted(&builder_key, BUILDER, 2),
    ];
    let contents = Bundle {
        v: 1,
        version: 1,
        issued_at: EPOCH_S,
        roots: vec![root.public_key().clone()],
        threshold: 1,
        keys: vec![SigningKey {
            key: hub_key.public_key().clone(),
            roles: vec![Role::Twin],
            not_after,
        }],
        authorities: vec![serde_bytes::ByteBuf::from(ca_der)],
        builders,
        attestation: None,
    };
    let bytes = bundle::sign(&contents, &[&root]).expect("the root signs");
    let trust = TrustBundle::flashed(&bytes).expect("the bundle holds");
    Pki {
        nodes,
        hub_key,
        builder_key,
        rogue_key: SoftKey::ed25519_from_seed(&seed(4)),
        trust,
    }
}
