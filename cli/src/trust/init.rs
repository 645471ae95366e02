//! The first keys of a tree.

use std::fs;
use std::path::{Path, PathBuf};

use cnova_shared::bundle::{self, Bundle, Role, SigningKey, TrustBundle};
use cnova_shared::ids::Name;
use cnova_shared::keys::{Signer, SoftKey};
use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::json;

use super::boot_key;
use super::builder::hub_builder;
use super::files::{self, Access};
use super::issue::set_validity;
use super::{
    BOOT_KEY, BUNDLE, CA_CERTIFICATE, CA_KEY, DAY_S, HUB_KEY, HUB_KEY_DAYS, ISSUER_CERTIFICATE, ISSUER_KEY, ROOTS,
    TrustError,
};
use crate::output::Screen;

const CA_DAYS: u64 = 10 * 365;
const FIRST_VERSION: u64 = 1;

/// What is to be made.
pub(super) struct Plan<'a> {
    /// The tree's name.
    pub(super) tree: &'a Name,
    /// How many root keys.
    pub(super) roots: u32,
    /// How many of them must sign.
    pub(super) threshold: u32,
    /// SLSA build level of the hub as compiler of Wasm.
    pub(super) hub_level: u8,
}

/// Runs `trust init`.
pub(super) fn run(dir: &Path, plan: &Plan<'_>, now_s: u64, screen: &mut Screen<'_>) -> Result<(), TrustError> {
    let Plan {
        tree,
        roots,
        threshold,
        hub_level,
    } = *plan;
    if threshold > roots {
        return Err(TrustError::Threshold { roots, threshold });
    }
    refuse_if_used(dir)?;
    let root_keys = (0..roots)
        .map(|_| files::new_signing_key())
        .collect::<Result<Vec<_>, _>>()?;
    let (hub_key, hub_pem) = files::new_signing_key()?;
    let (boot_key, boot_pem) = boot_key::new_key()?;
    let (ca, ca_key) = new_ca(tree, now_s)?;
    let content = Bundle {
        v: 1,
        version: FIRST_VERSION,
        issued_at: now_s,
        roots: root_keys.iter().map(|(key, _)| key.public_key().clone()).collect(),
        threshold,
        builders: vec![hub_builder(
            hub_key.public_key(),
            hub_level,
            now_s + HUB_KEY_DAYS * DAY_S,
        )],
        keys: vec![hub_signing_key(&hub_key, now_s), boot_key::named(&boot_key, now_s)],
        authorities: vec![ca.der().to_vec().into()],
        attestation: None,
    };
    let signers: Vec<&dyn Signer> = root_keys.iter().map(|(key, _)| key as &dyn Signer).collect();
    let signed = bundle::sign(&content, &signers).map_err(TrustError::NotAccepted)?;
    TrustBundle::flashed(&signed).map_err(TrustError::NotAccepted)?;

    // Into a folder beside it, renamed when it is whole: a run that is cut off leaves nothing that looks finished.
    let next = beside(dir);
    files::create_folder(&next.join(ROOTS))?;
    for (i, (_, pem)) in root_keys.iter().enumerate() {
        files::create(
            &next.join(ROOTS).join(format!("root-{}.key", i + 1)),
            pem.as_bytes(),
            Access::Private,
        )?;
    }
    files::create(&next.join(HUB_KEY), hub_pem.as_bytes(), Access::Private)?;
    files::create(&next.join(BOOT_KEY), boot_pem.as_bytes(), Access::Private)?;
    files::create(&next.join(CA_KEY), ca_key.serialize_pem().as_bytes(), Access::Private)?;
    files::create(&next.join(CA_CERTIFICATE), ca.pem().as_bytes(), Access::Public)?;
    files::create(&next.join(BUNDLE), &signed, Access::Public)?;
    let renamed = fs::rename(&next, dir).and_then(|()| files::sync_folder(dir.parent().unwrap_or(Path::new("."))));
    renamed.map_err(|source| TrustError::Write {
        path: dir.to_owned(),
        source,
    })?;
    report(dir, tree, &content, screen)
}

/// A hub key with its roles and its end: twins and commands, and what the hub says of nodes (attestation results, reference
/// values, revocations, delegations).
pub(super) fn hub_signing_key(key: &SoftKey, now_s: u64) -> SigningKey {
    let not_after = now_s + HUB_KEY_DAYS * DAY_S;
    SigningKey {
        key: key.public_key().clone(),
        roles: vec![Role::Twin, Role::Attestation],
        not_after,
    }
}

fn refuse_if_used(dir: &Path) -> Result<(), TrustError> {
    match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(TrustError::Read {
            path: dir.to_owned(),
            source,
        }),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(TrustError::Exists { path: dir.to_owned() }),
        },
    }
}

fn beside(dir: &Path) -> PathBuf {
    let name = dir
        .components()
        .next_back()
        .map(|c| c.as_os_str().to_string_lossy().into_owned())
        .unwrap_or_default();
    let parent = dir.parent().unwrap_or(Path::new(""));
    parent.join(format!(".{name}.{}", std::process::id()))
}

fn new_ca(tree: &Name, now_s: u64) -> Result<(Certificate, KeyPair), TrustError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{tree} node CA"));
    // One below it: the hub's issuer.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now_s + CA_DAYS * DAY_S);
    Ok((params.self_signed(&key)?, key))
}

fn report(dir: &Path, tree: &Name, content: &Bundle, screen: &mut Screen<'_>) -> Result<(), TrustError> {
    let (n, threshold) = (content.roots.len(), content.threshold);
    let value = json!({
        "dir": dir, "tree": tree, "version": content.version, "roots": n, "threshold": threshold,
        "hub_key": content.keys.first().map(|k| k.key.id().to_string()),
    });
    screen.document(&value, |s| {
        let dir = dir.display();
        s.line(&format!(
            "{dir}: tree {tree}, {n} root keys of which {threshold} must sign, trust bundle version 1"
        ))?;
        s.line("Next:")?;
        s.line(&format!(
            "  move {dir}/{ROOTS} and {dir}/{CA_KEY} to where no network is; {ROOTS} to more than one place"
        ))?;
        s.line(&format!("  give the hub {dir}/{HUB_KEY} and {dir}/{BUNDLE}"))?;
        s.line(&format!(
            "  let the hub approve boots of nodes with a TPM: give it {dir}/{BOOT_KEY} ([signing] boot_policy in hub.toml)"
        ))?;
        s.line(&format!(
            "  let the hub enrol nodes by itself: cnova trust issuer {dir}, and give it {dir}/{ISSUER_KEY} and {dir}/{ISSUER_CERTIFICATE}"
        ))?;
        s.line(&format!(
            "  certify the hub, as every node: cnova trust issue hub --site hub --dir {dir}"
        ))?;
        s.line(&format!(
            "  certify each node: cnova trust issue NODE --site PATH --dir {dir}"
        ))
    })?;
    Ok(())
}
