//! `cnova enroll`: who may become a node, and who did.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cnova_shared::ids::Digest;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::age::{date, timestamp};
use crate::args::Enroll;
use crate::client::Hub;
use crate::failure::read_and_print_error;
use crate::output::{Screen, Table};
use crate::routes;

/// Largest certificate file that is read.
const CERTIFICATE_BYTES: u64 = 64 * 1024;

read_and_print_error!(EnrollError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a certificate, PEM or DER", path.display())]
    NotACertificate { path: PathBuf },
    #[error("{given:?} is no fingerprint: 64 hexadecimal digits, as tpm2_readpublic and `cnova enroll list` show them")]
    NotAFingerprint { given: String },
    #[error("the hub's answer to {path} is not understood: {reason}\n  print it as it is with -o json")]
    NotUnderstood { path: &'static str, reason: String },
});

#[derive(Deserialize)]
struct Info {
    tokens: Vec<TokenRow>,
    known: Vec<KnownRow>,
    nodes: Vec<NodeRow>,
}

#[derive(Deserialize)]
struct TokenRow {
    id: String,
    site: String,
    name: String,
    expires_s: u64,
    uses_left: u32,
    by: String,
}

#[derive(Deserialize)]
struct KnownRow {
    fingerprint: String,
    node: String,
    site: String,
    by: String,
}

#[derive(Deserialize)]
struct NodeRow {
    node: String,
    site: String,
    tier: String,
    key: String,
    first_s: u64,
    last_s: u64,
    not_after_s: u64,
}

#[derive(Deserialize)]
struct Made {
    id: String,
    token: String,
    expires_s: u64,
}

/// Runs the command.
pub(crate) fn run(what: &Enroll, hub: &Hub, screen: &mut Screen<'_>) -> Result<(), EnrollError> {
    match what {
        Enroll::Token {
            site,
            name,
            uses,
            expires,
        } => token(
            hub,
            &json!({"site": site, "name": name, "uses": uses, "expires_in_s": expires}),
            screen,
        ),
        Enroll::Ek {
            fingerprint,
            certificate,
            name,
            site,
        } => {
            let fingerprint = match (fingerprint, certificate) {
                (Some(text), _) => read_fingerprint(text)?,
                (None, Some(path)) => Digest::of(&read_certificate(path)?),
                // clap wants one of them.
                (None, None) => return Err(EnrollError::NotAFingerprint { given: String::new() }),
            };
            let body = json!({"fingerprint": fingerprint, "node": name, "site": site});
            let _: Value = hub.post(routes::ENROLMENT_EKS, &body)?;
            say(
                screen,
                &format!("the TPM {} is admitted as {name} at {site}", fingerprint.hex()),
            )
        }
        Enroll::List => list(hub, screen),
        Enroll::RevokeToken { id } => {
            hub.delete(&routes::enrolment_token(id))?;
            say(
                screen,
                &format!("token {id} admits nobody any more; those that it admitted stay"),
            )
        }
        Enroll::RemoveEk { fingerprint } => {
            let fingerprint = read_fingerprint(fingerprint)?;
            hub.delete(&routes::enrolment_ek(&fingerprint))?;
            let text = "the TPM is no longer known beforehand; a node that it became stays one";
            say(screen, text)
        }
        Enroll::Forget { node } => {
            hub.delete(&routes::enrolment_node(node))?;
            let text = format!(
                "{node}: the name is free for another TPM or key; its certificate, if it has one, holds until it ends"
            );
            say(screen, &text)
        }
    }
}

fn say(screen: &mut Screen<'_>, text: &str) -> Result<(), EnrollError> {
    Ok(screen.document(&json!({"done": text}), |s| s.line(text))?)
}

fn token(hub: &Hub, body: &Value, screen: &mut Screen<'_>) -> Result<(), EnrollError> {
    let made: Made = hub.post(routes::ENROLMENT_TOKENS, body)?;
    let value = json!({"id": made.id, "token": made.token, "expires_s": made.expires_s});
    screen.document(&value, |s| s.line(&made.token))?;
    screen.flush()?;
    let until = timestamp(made.expires_s.saturating_mul(1000));
    // Beside the token, so that standard output holds nothing else.
    let _ = writeln!(
        io::stderr(),
        "Token {}, until {until}. Put it where token_file in [enrolment] points; it is not shown again.",
        made.id
    );
    Ok(())
}

fn list(hub: &Hub, screen: &mut Screen<'_>) -> Result<(), EnrollError> {
    let value: Value = hub.get(routes::ENROLMENT)?;
    if !screen.is_table() {
        return Ok(screen.document(&value, |_| Ok(()))?);
    }
    let info: Info = serde_json::from_value(value).map_err(|e| EnrollError::NotUnderstood {
        path: routes::ENROLMENT,
        reason: e.to_string(),
    })?;
    let mut tokens = Table::new(["TOKEN", "SITE", "NAME", "USES LEFT", "UNTIL", "BY"]);
    for t in info.tokens {
        let name = if t.name.is_empty() { "any".to_owned() } else { t.name };
        let until = timestamp(t.expires_s.saturating_mul(1000));
        tokens.row([t.id, t.site, name, t.uses_left.to_string(), until, t.by]);
    }
    let mut known = Table::new(["KNOWN TPM", "NODE", "SITE", "BY"]);
    for k in info.known {
        known.row([k.fingerprint, k.node, k.site, k.by]);
    }
    let mut nodes = Table::new(["NODE", "SITE", "TIER", "KEY", "ENROLLED", "CERTIFIED", "UNTIL"]);
    for n in info.nodes {
        let [first, last, until] = [n.first_s, n.last_s, n.not_after_s].map(date);
        nodes.row([n.node, n.site, n.tier, n.key, first, last, until]);
    }
    screen.table(&tokens)?;
    screen.line("")?;
    screen.table(&known)?;
    screen.line("")?;
    Ok(screen.table(&nodes)?)
}

fn read_fingerprint(text: &str) -> Result<Digest, EnrollError> {
    let plain = text
        .strip_prefix("sha256:")
        .unwrap_or(text)
        .replace(':', "")
        .to_ascii_lowercase();
    plain
        .parse()
        .map_err(|_| EnrollError::NotAFingerprint { given: text.to_owned() })
}

/// The DER of a certificate file; what follows it (a TPM's NV index is padded) does not belong to it.
fn read_certificate(path: &Path) -> Result<Vec<u8>, EnrollError> {
    let fail = |source| EnrollError::Read {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(fail)?.len() > CERTIFICATE_BYTES {
        return Err(fail(io::Error::other(format!("more than {CERTIFICATE_BYTES} bytes"))));
    }
    let bytes = fs::read(path).map_err(fail)?;
    let der = match CertificateDer::from_pem_slice(&bytes) {
        Ok(der) => der.to_vec(),
        Err(_) => bytes,
    };
    let bad = || EnrollError::NotACertificate { path: path.to_owned() };
    let (rest, _) = X509Certificate::from_der(&der).map_err(|_| bad())?;
    let length = der.len() - rest.len();
    Ok(der[..length].to_vec())
}
