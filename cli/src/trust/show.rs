//! A trust bundle for people.

use std::path::Path;

use cnova_shared::bundle::{Bundle, Role, SigningKey};
use cnova_shared::ids::Digest;
use serde_json::{Value, json};

use super::{TrustError, files};
use crate::age::{date, timestamp};
use crate::output::{Screen, Table};

/// Runs `trust show`.
pub(super) fn run(file: &Path, now_s: u64, screen: &mut Screen<'_>) -> Result<(), TrustError> {
    let bundle = files::read_bundle(file)?;
    let content = bundle.contents();
    screen.document(&to_value(content), |s| {
        let digest = Digest::of(bundle.bytes());
        let (version, made) = (content.version, date(content.issued_at));
        s.line(&format!(
            "trust bundle version {version} of {made} ({} bytes, {digest})",
            bundle.bytes().len()
        ))?;
        s.line(&format!(
            "signed by at least {} of its own {} roots:",
            content.threshold,
            content.roots.len()
        ))?;
        let mut roots = Table::new(["ROOT", "ALGORITHM"]);
        for key in &content.roots {
            roots.row([key.id().to_string(), format!("{:?}", key.algorithm)]);
        }
        s.indented_table(&roots)?;
        s.line("the hub may sign with:")?;
        let mut keys = Table::new(["KEY", "ALGORITHM", "ROLES", "UNTIL", "STATE"]);
        for k in &content.keys {
            let state = if now_s < k.not_after { "valid" } else { "ran out" };
            let id = k.key.id().to_string();
            keys.row([
                id,
                format!("{:?}", k.key.algorithm),
                roles(k).join(","),
                date(k.not_after),
                state.to_owned(),
            ]);
        }
        s.indented_table(&keys)?;
        s.line("nodes are certified by:")?;
        let mut authorities = Table::new(["AUTHORITY", "UNTIL", "SHA-256"]);
        for der in bundle.authorities() {
            let until = files::not_after_s(&der).map(date).unwrap_or_default();
            authorities.row([
                files::subject(&der).unwrap_or_default(),
                until,
                Digest::of(&der).short(),
            ]);
        }
        s.indented_table(&authorities)?;
        super::builder::print(content, now_s, s)
    })?;
    Ok(())
}

fn roles(key: &SigningKey) -> Vec<&'static str> {
    let name = |r: &Role| match r {
        Role::Twin => "twin",
        Role::Attestation => "attestation",
        Role::BootPolicy => "boot-policy",
        Role::Unknown => "unknown",
    };
    key.roles.iter().map(name).collect()
}

fn to_value(content: &Bundle) -> Value {
    let keys: Vec<Value> = content
        .keys
        .iter()
        .map(|k| {
            json!({
                "id": k.key.id().to_string(),
                "algorithm": format!("{:?}", k.key.algorithm),
                "roles": roles(k),
                "not_after": timestamp(k.not_after.saturating_mul(1000)),
            })
        })
        .collect();
    let roots: Vec<Value> = content
        .roots
        .iter()
        .map(|k| json!({ "id": k.id().to_string(), "algorithm": format!("{:?}", k.algorithm) }))
        .collect();
    let authorities: Vec<Value> = content
        .authorities
        .iter()
        .map(|der| json!({ "subject": files::subject(der), "sha256": Digest::of(der).hex() }))
        .collect();
    let builders = super::builder::to_value(content);
    json!({
        "builders": builders["builders"],
        "provenance_required": builders["required"],
        "version": content.version,
        "issued_at": timestamp(content.issued_at.saturating_mul(1000)),
        "threshold": content.threshold,
        "roots": roots,
        "keys": keys,
        "authorities": authorities,
    })
}
