//! The hub's own issuing authority, under the offline one: with it the hub enrols nodes and renews their certificates.

use std::path::Path;

use cnova_shared::certificate;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::json;

use super::files::{self, Access};
use super::issue::{end_within, probe, set_validity};
use super::{BUNDLE, CA_CERTIFICATE, CA_KEY, DAY_S, ISSUER_CERTIFICATE, ISSUER_KEY, TrustError};
use crate::age::date;
use crate::output::Screen;

/// Runs `trust issuer`.
pub(super) fn run(dir: &Path, days: u64, now_s: u64, screen: &mut Screen<'_>) -> Result<(), TrustError> {
    let (ca_path, ca_key_path) = (dir.join(CA_CERTIFICATE), dir.join(CA_KEY));
    let bundle = files::read_bundle(&dir.join(BUNDLE))?;
    let ca = files::read_certificate(&ca_path)?;
    let ca_key_pem = String::from_utf8(files::read(&ca_key_path)?);
    let ca_key = ca_key_pem.ok().and_then(|pem| KeyPair::from_pem(&pem).ok());
    let ca_key = ca_key.ok_or(TrustError::NotAKey { path: ca_key_path })?;
    let ends_s = end_within(&ca, &ca_path, "the hub's issuer", now_s + days * DAY_S)?;

    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let name = files::subject(&ca).unwrap_or_default();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("hub issuer under {name}"));
    // Nothing but nodes below it.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, ends_s);
    let issuer = Issuer::from_ca_cert_der(&ca.into(), ca_key)?;
    let certificate = params.signed_by(&key, &issuer)?;

    // What every peer of a node will do with what it issues.
    let own = Issuer::from_ca_cert_der(certificate.der(), &key)?;
    let chain = [probe(&own, ends_s)?, certificate.der().to_vec()];
    certificate::verify(&chain, &bundle.authorities(), now_s)
        .map_err(|source| TrustError::IssuerNotAccepted { ca: ca_path, source })?;

    let (pem_path, key_path) = (dir.join(ISSUER_CERTIFICATE), dir.join(ISSUER_KEY));
    for path in [&pem_path, &key_path] {
        if path.exists() {
            return Err(TrustError::Exists { path: path.clone() });
        }
    }
    files::create(&key_path, key.serialize_pem().as_bytes(), Access::Private)?;
    files::create(&pem_path, certificate.pem().as_bytes(), Access::Public)?;
    let ends = date(ends_s);
    let value = json!({ "certificate": pem_path, "key": key_path, "not_after": ends });
    let text = format!(
        "the hub may issue until {ends}: give it {} and {} ([enrolment] in hub.toml)",
        pem_path.display(),
        key_path.display()
    );
    Ok(screen.document(&value, |s| s.line(&text))?)
}
