//! A node's key and certificate.

use std::path::Path;
use std::time::Duration;

use cnova_shared::certificate::{self, SITE_URN};
use cnova_shared::ids::{NodeId, SitePath};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};
use serde_json::json;

use super::files::{self, Access};
use super::{BUNDLE, CA_CERTIFICATE, CA_KEY, DAY_S, TrustError};
use crate::age::date;
use crate::args::IssueArgs;
use crate::output::Screen;

/// Sets when a certificate begins and ends.
///
/// It begins with 2024, before this program was written. A node without a battery-backed clock starts in the past (1970,
/// or the day its image was built); a certificate that begins "now" would then not be valid yet, and the node could not
/// connect to where it would learn the time. The beginning protects nothing here: these keys did not exist before.
pub(super) fn set_validity(params: &mut CertificateParams, ends_s: u64) {
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(ends_s);
}

/// Runs `trust issue`.
pub(super) fn run(args: &IssueArgs, now_s: u64, screen: &mut Screen<'_>) -> Result<(), TrustError> {
    let (ca_path, ca_key_path) = (args.dir.join(CA_CERTIFICATE), args.dir.join(CA_KEY));
    let bundle = files::read_bundle(&args.dir.join(BUNDLE))?;
    let ca = files::read_certificate(&ca_path)?;
    let ca_key_pem = String::from_utf8(files::read(&ca_key_path)?);
    let ca_key = ca_key_pem.ok().and_then(|pem| KeyPair::from_pem(&pem).ok());
    let ca_key = ca_key.ok_or(TrustError::NotAKey { path: ca_key_path })?;
    let ends_s = now_s + args.days * DAY_S;
    let ends_s = end_within(&ca, &ca_path, args.node.as_str(), ends_s)?;

    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let issuer = Issuer::from_ca_cert_der(&ca.into(), ca_key)?;
    let certificate = params(&args.node, &args.site, ends_s)?.signed_by(&key, &issuer)?;
    // What every peer of this node will do.
    certificate::verify(&[certificate.der().to_vec()], &bundle.authorities(), now_s)
        .map_err(|source| TrustError::CertificateNotAccepted { ca: ca_path, source })?;

    let out = args
        .out
        .clone()
        .unwrap_or_else(|| args.dir.join("nodes").join(args.node.as_str()));
    files::create_folder(&out)?;
    let (pem_path, key_path, bundle_path) = (out.join("node.pem"), out.join("node.key"), out.join(BUNDLE));
    for path in [&pem_path, &key_path, &bundle_path] {
        if path.exists() {
            return Err(TrustError::Exists { path: path.clone() });
        }
    }
    files::create(&key_path, key.serialize_pem().as_bytes(), Access::Private)?;
    files::create(&pem_path, certificate.pem().as_bytes(), Access::Public)?;
    files::create(&bundle_path, bundle.bytes(), Access::Public)?;

    let ends = date(ends_s);
    let value = json!({ "node": args.node, "site": args.site, "folder": out, "not_after": ends });
    let text = format!(
        "{} at {}: certified until {ends}; node.pem, node.key and {BUNDLE} in {}",
        args.node,
        args.site,
        out.display()
    );
    Ok(screen.document(&value, |s| s.line(&text))?)
}

/// A node's certificate that nobody gets, to see whether one by this issuer would be accepted; DER.
pub(super) fn probe(issuer: &Issuer<'_, &KeyPair>, ends_s: u64) -> Result<Vec<u8>, TrustError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let name = |_| rcgen::Error::CouldNotParseCertificate;
    let (node, site) = (
        NodeId::new("probe").map_err(name)?,
        SitePath::new("probe").map_err(name)?,
    );
    Ok(params(&node, &site, ends_s)?.signed_by(&key, issuer)?.der().to_vec())
}

fn params(node: &NodeId, site: &SitePath, ends_s: u64) -> Result<CertificateParams, TrustError> {
    let mut p = CertificateParams::default();
    p.distinguished_name = rcgen::DistinguishedName::new();
    p.distinguished_name.push(DnType::CommonName, node.as_str());
    p.subject_alt_names = vec![
        SanType::DnsName(node.as_str().try_into()?),
        SanType::URI(format!("{SITE_URN}{site}").as_str().try_into()?),
    ];
    p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // A gateway is a server to its children and a client to its parent.
    p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    p.use_authority_key_identifier_extension = true;
    set_validity(&mut p, ends_s);
    Ok(p)
}

/// When the certificate ends: "as long as the CA" means the CA's end, though the CA was made some seconds before. A chain ends with its first certificate that ends: a node would drop out with years left
/// on its own.
pub(super) fn end_within(ca: &[u8], path: &Path, node: &str, ends_s: u64) -> Result<u64, TrustError> {
    let bad = || TrustError::NotACertificate { path: path.to_owned() };
    let ca_ends_s = files::not_after_s(ca).ok_or_else(bad)?;
    if ca_ends_s.saturating_add(DAY_S) <= ends_s {
        let (ca_ends, node_ends) = (date(ca_ends_s), date(ends_s));
        return Err(TrustError::OutlivesCa {
            node: node.to_owned(),
            ca_ends,
            node_ends,
        });
    }
    Ok(ends_s.min(ca_ends_s))
}
