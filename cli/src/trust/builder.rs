//! Builders: whose provenance is believed, how far, and whether every workload needs it.

use std::path::{Path, PathBuf};

use cnova_provenance::AOT_BUILDER;
use cnova_shared::bundle::{Bundle, TrustedBuilder};
use cnova_shared::keys::{PublicKey, Signer};
use cnova_shared::limits;
use cnova_shared::wire::v1::AttestationPolicy;
use serde_json::{Value, json};

use super::files::{self, Access};
use super::rotate::publish;
use super::{BUNDLE, DAY_S, HUB_KEY, TrustError};
use crate::age::{date, timestamp};
use crate::args::{AddArgs, Builder, RequireArgs};
use crate::output::{Screen, Table};

/// Runs `trust builder`.
pub(super) fn run(what: &Builder, now_s: u64, screen: &mut Screen<'_>) -> Result<(), TrustError> {
    match what {
        Builder::Key { file } => make_key(file, screen),
        Builder::Add(args) => add(args, now_s, screen),
        Builder::Remove { dir, key, roots } => remove(dir, key, roots.as_deref(), now_s, screen),
        Builder::Require(args) => require(args, now_s, screen),
        Builder::List { file } => {
            let bundle = files::read_bundle(file)?;
            let content = bundle.contents();
            Ok(screen.document(&to_value(content), |s| print(content, now_s, s))?)
        }
    }
}

fn make_key(file: &Path, screen: &mut Screen<'_>) -> Result<(), TrustError> {
    let (key, pem) = files::new_signing_key()?;
    let mut public = file.as_os_str().to_owned();
    public.push(".pub");
    let public = PathBuf::from(public);
    files::create(file, pem.as_bytes(), Access::Private)?;
    files::create(&public, files::public_pem(key.public_key()).as_bytes(), Access::Public)?;
    let id = key.public_key().id();
    let value = json!({"key": file, "public": public, "id": id.to_string()});
    screen.document(&value, |s| {
        s.line(&format!("{}: key {id}, for the builder alone", file.display()))?;
        let public = public.display();
        s.line(&format!("{public}: its public half; trust it with: cnova trust builder add DIR --key {public} --builder URI --level N"))
    })?;
    Ok(())
}

fn add(args: &AddArgs, now_s: u64, screen: &mut Screen<'_>) -> Result<(), TrustError> {
    let (key, builder) = match (&args.key, args.hub_key) {
        (Some(path), false) => (files::read_public_key(path)?, args.builder.clone().unwrap_or_default()),
        _ => {
            let hub = files::read_key(&args.dir.join(HUB_KEY))?;
            let builder = args.builder.clone().unwrap_or_else(|| AOT_BUILDER.to_owned());
            (hub.public_key().clone(), builder)
        }
    };
    let entry = TrustedBuilder {
        key,
        builder,
        level: args.level,
        not_after: now_s + args.days * DAY_S,
    };
    change(&args.dir, args.roots.as_deref(), now_s, screen, |bundle| {
        bundle
            .builders
            .retain(|b| (&b.key, &b.builder) != (&entry.key, &entry.builder));
        bundle.builders.push(entry);
        Ok(())
    })
}

fn remove(dir: &Path, key: &str, roots: Option<&Path>, now_s: u64, screen: &mut Screen<'_>) -> Result<(), TrustError> {
    change(dir, roots, now_s, screen, |bundle| {
        let before = bundle.builders.len();
        bundle.builders.retain(|b| b.key.id().to_string() != key);
        if bundle.builders.len() < before {
            return Ok(());
        }
        Err(TrustError::NoSuchBuilder {
            key: key.to_owned(),
            known: bundle.builders.iter().map(|b| b.key.id()).collect(),
        })
    })
}

fn require(args: &RequireArgs, now_s: u64, screen: &mut Screen<'_>) -> Result<(), TrustError> {
    if args.builders.len() > limits::POLICY_BUILDERS {
        return Err(TrustError::TooManyPatterns(args.builders.len()));
    }
    let policy = AttestationPolicy {
        required: true,
        min_level: args.min_level,
        builders: args.builders.clone(),
        files: args.files,
    };
    change(&args.dir, args.roots.as_deref(), now_s, screen, |bundle| {
        bundle.attestation = (!args.off).then_some(policy);
        Ok(())
    })
}

/// Puts a changed bundle in the place of the one that is there.
fn change(
    dir: &Path,
    roots: Option<&Path>,
    now_s: u64,
    screen: &mut Screen<'_>,
    edit: impl FnOnce(&mut Bundle) -> Result<(), TrustError>,
) -> Result<(), TrustError> {
    let (_, next) = publish(dir, roots, now_s, |old| {
        let mut next = Bundle {
            version: old.version + 1,
            issued_at: now_s,
            ..old.clone()
        };
        edit(&mut next)?;
        Ok(next)
    })?;
    let mut value = to_value(&next);
    value["dir"] = json!(dir);
    screen.document(&value, |s| {
        let dir = dir.display();
        s.line(&format!("{dir}: trust bundle version {}", next.version))?;
        print(&next, now_s, s)?;
        s.line(&format!(
            "Next: bring {dir}/{BUNDLE} to the hub, the gateways and the nodes"
        ))
    })?;
    Ok(())
}

/// The builders of a bundle, for people.
pub(super) fn print(content: &Bundle, now_s: u64, screen: &mut Screen<'_>) -> std::io::Result<()> {
    if content.builders.is_empty() {
        screen.line("no builder is trusted")?;
    } else {
        screen.line("provenance is believed of:")?;
        let mut builders = Table::new(["KEY", "BUILDER", "LEVEL", "UNTIL", "STATE"]);
        for b in &content.builders {
            let state = if now_s < b.not_after { "valid" } else { "ran out" };
            builders.row([
                b.key.id().to_string(),
                b.builder.clone(),
                b.level.to_string(),
                date(b.not_after),
                state.to_owned(),
            ]);
        }
        screen.indented_table(&builders)?;
    }
    let Some(policy) = content.attestation.as_ref().filter(|p| p.required) else {
        return Ok(());
    };
    let by = if policy.builders.is_empty() {
        String::new()
    } else {
        format!(" by {}", policy.builders.join(", "))
    };
    let files = if policy.files { ", and its files" } else { "" };
    screen.line(&format!(
        "every workload{files} must have provenance of level {} or higher{by}",
        policy.min_level
    ))
}

/// The same for programs.
pub(super) fn to_value(content: &Bundle) -> Value {
    let builder = |b: &TrustedBuilder| {
        json!({
            "id": b.key.id().to_string(),
            "algorithm": format!("{:?}", b.key.algorithm),
            "builder": b.builder,
            "level": b.level,
            "not_after": timestamp(b.not_after.saturating_mul(1000)),
        })
    };
    let policy = content.attestation.as_ref().filter(|p| p.required);
    json!({
        "version": content.version,
        "builders": content.builders.iter().map(builder).collect::<Vec<_>>(),
        "required": policy.map(|p| json!({"min_level": p.min_level, "builders": p.builders, "files": p.files})),
    })
}

/// The hub's key as the builder that compiles Wasm.
pub(super) fn hub_builder(key: &PublicKey, level: u8, not_after: u64) -> TrustedBuilder {
    TrustedBuilder {
        key: key.clone(),
        builder: AOT_BUILDER.to_owned(),
        level,
        not_after,
    }
}
