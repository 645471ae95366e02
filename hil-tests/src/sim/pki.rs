//! Keys and certificates of the simulated tree. All are made from fixed seeds, so that every byte of a run follows
//! from the run's own seed.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use cnova_attestation::testing::SoftTpm;
use cnova_shared::bundle::{self, Bundle, Role, SigningKey, TrustBundle, TrustedBuilder};
use cnova_shared::certificate;
use cnova_shared::envelope::{Claims, Endorsement, Introduction, seal, seal_payload};
use cnova_shared::ids::{Digest, NodeId, SitePath};
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
    /// Its certificate where it has a TPM.
    pub tpm_chain: Vec<Vec<u8>>,
    /// Its TPM's attestation key, PKCS #8.
    pub ak: Vec<u8>,
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

impl Identity {
    /// Signs a message as this node, which has a TPM, with the session key of its `life`.
    #[must_use]
    pub fn seal_in<T: Serialize>(
        &self,
        life: u64,
        kind: Kind,
        aud: &str,
        iat: u64,
        value: &T,
        introduce: bool,
    ) -> Vec<u8> {
        let session = self.session(life);
        let claims = Claims {
            iss: self.node.clone(),
            aud: id(aud),
            iat,
            exp: None,
        };
        let endorsement = introduce.then(|| {
            let made = Endorsement::make(&self.node, session.public_key().clone(), &self.key);
            made.expect("the simulator's keys sign")
        });
        let introduction = Introduction {
            chain: if introduce { &self.tpm_chain } else { &[] },
            endorsement: endorsement.as_ref(),
        };
        let payload = cnova_shared::wire::encode(value).expect("the simulator's messages can be encoded");
        seal_payload(kind, &claims, payload, introduction, &session).expect("the simulator's messages can be sealed")
    }

    /// The key that it signs with in its `life`, where it has a TPM.
    #[must_use]
    pub fn session(&self, life: u64) -> SoftKey {
        let seed = Digest::of(format!("{} {life}", self.node).as_bytes());
        SoftKey::ed25519_from_seed(&seed.0)
    }
}

/// The whole simulated public-key infrastructure.
pub struct Pki {
    /// All nodes. The hub's own key is not the one that it signs twins with.
    pub nodes: BTreeMap<NodeId, Identity>,
    /// The hub's signing keys; which one signs follows the trust bundle ([`Pki::hub_key`]).
    pub hub_keys: Vec<SoftKey>,
    /// Trust bundles of versions 1, 2 and so on, each signed by the roots of the one before it.
    pub bundles: Vec<Vec<u8>>,
    /// The key of the builder of most artifacts.
    pub builder_key: SoftKey,
    /// A key that no bundle names.
    pub rogue_key: SoftKey,
    /// The trust bundle that every node was flashed with: the first.
    pub trust: TrustBundle,
}

impl Pki {
    /// The key that the hub signs with when the bundle of this version is in force.
    #[must_use]
    pub fn hub_key(&self, version: u64) -> &SoftKey {
        let which = usize::try_from(version / 2).unwrap_or(0);
        &self.hub_keys[which.min(self.hub_keys.len() - 1)]
    }

    /// The bundle that follows the one of this version.
    #[must_use]
    pub fn after(&self, version: u64) -> Option<&Vec<u8>> {
        self.bundles.get(usize::try_from(version).ok()?)
    }
}

/// How many bundles there are.
pub const BUNDLES: u64 = 6;

/// Even versions bring a new key beside the old one, odd ones take the old one away; version 4 brings a new root too, which
/// signs alone from then on. What the hub compiled with older keys stays believed.
fn bundles(authority: &[u8], keys: &[SoftKey], builder: &SoftKey) -> Vec<Vec<u8>> {
    let roots = [2, 6].map(|n| SoftKey::ed25519_from_seed(&seed(n)));
    let named = |key: &SoftKey| SigningKey {
        key: key.public_key().clone(),
        roles: vec![Role::Twin, Role::Attestation],
        not_after: EPOCH_S + 100 * 365 * 86_400,
    };
    let trusted = |key: &SoftKey, builder: &str, level| TrustedBuilder {
        key: key.public_key().clone(),
        builder: builder.to_owned(),
        level,
        not_after: EPOCH_S + 100 * 365 * 86_400,
    };
    let bundle = |version: u64| {
        let which = usize::try_from(version / 2).expect("few bundles");
        let before = (version.is_multiple_of(2)).then(|| &keys[which - 1]);
        let root = &roots[usize::from(version >= 4)];
        let contents = Bundle {
            v: 1,
            version,
            issued_at: EPOCH_S,
            roots: vec![root.public_key().clone()],
            threshold: 1,
            keys: before.into_iter().chain([&keys[which]]).map(named).collect(),
            authorities: vec![serde_bytes::ByteBuf::from(authority.to_vec())],
            builders: (keys[..=which].iter())
                .map(|key| trusted(key, cnova_provenance::AOT_BUILDER, 3))
                .chain([trusted(builder, BUILDER, 2)])
                .collect(),
            attestation: None,
        };
        let signers: Vec<&dyn Signer> = if version == 4 {
            vec![&roots[0], &roots[1]]
        } else {
            vec![root]
        };
        bundle::sign(&contents, &signers).expect("the roots sign")
    };
    (1..=BUNDLES).map(bundle).collect()
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
    for (i, name) in [AREA, LINE].into_iter().chain(AGENTS).chain([HUB]).enumerate() {
        let n = 10 + u8::try_from(i).expect("few nodes");
        let mut p = params(name);
        let urn = format!("{}{}", cnova_shared::certificate::SITE_URN, site(name));
        p.subject_alt_names
            .push(SanType::URI(urn.try_into().expect("a site is ASCII")));
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let ak = SoftTpm::make_key();
        let der = p.signed_by(&key_pair(n), &issuer).expect("the CA signs").der().to_vec();
        let pinned = Digest::of(&SoftTpm::with_key(&ak).ak_public()).to_string();
        let pinned = format!("{}{}", certificate::AK_URN, pinned.trim_start_matches("sha256:"));
        for urn in [certificate::TPM_URN.to_owned(), pinned] {
            let name = SanType::URI(urn.try_into().expect("a name is ASCII"));
            p.subject_alt_names.push(name);
        }
        let with_tpm = p.signed_by(&key_pair(n), &issuer).expect("the CA signs").der().to_vec();
        let key = SoftKey::ed25519_from_seed(&seed(n));
        nodes.insert(
            id(name),
            Identity {
                node: id(name),
                key,
                chain: vec![der],
                tpm_chain: vec![with_tpm],
                ak,
            },
        );
    }
    let hub_keys: Vec<SoftKey> = (0..=BUNDLES / 2)
        .map(|n| SoftKey::ed25519_from_seed(&seed(100 + u8::try_from(n).expect("few keys"))))
        .collect();
    let builder_key = SoftKey::ed25519_from_seed(&seed(5));
    let bundles = bundles(&ca_der, &hub_keys, &builder_key);
    let trust = TrustBundle::flashed(&bundles[0]).expect("the bundle holds");
    Pki {
        nodes,
        hub_keys,
        bundles,
        builder_key,
        rogue_key: SoftKey::ed25519_from_seed(&seed(4)),
        trust,
    }
}
