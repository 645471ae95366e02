//! `cnova trust`: the keys that a fleet trusts. Works on files alone; run it on a machine that you keep offline.

use std::io;
use std::path::PathBuf;

use cnova_shared::bundle::BundleError;
use cnova_shared::certificate::CertificateError;
use cnova_shared::keys::KeyId;
use thiserror::Error;

use crate::age;
use crate::args::Trust;
use crate::output::Screen;

mod boot_key;
mod builder;
mod files;
mod init;
mod issue;
mod issuer;
mod push;
mod rotate;
mod show;

pub(crate) const BUNDLE: &str = "trust-bundle.cose";
const HUB_KEY: &str = "hub-signing.key";
const BOOT_KEY: &str = "boot-policy.key";
const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const ISSUER_CERTIFICATE: &str = "hub-issuer.pem";
const ISSUER_KEY: &str = "hub-issuer.key";
const ROOTS: &str = "roots";

use rotate::Old;

const DAY_S: u64 = 86_400;
/// How long a new hub key may sign.
const HUB_KEY_DAYS: u64 = 2 * 365;

/// Keys were not made, or not shown.
#[derive(Debug, Error)]
pub(crate) enum TrustError {
    #[error("{} is there already, and nothing is overwritten: choose another place, or move it away", path.display())]
    Exists { path: PathBuf },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{threshold} of {roots} root keys can never sign: the threshold is at most the number of roots")]
    Threshold { roots: u32, threshold: u32 },
    #[error("{} is not a private key (PEM, PKCS #8, Ed25519 or P-256)", path.display())]
    NotAKey { path: PathBuf },
    #[error("{} is not a certificate in PEM form", path.display())]
    NotACertificate { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Bundle { path: PathBuf, source: BundleError },
    #[error(
        "the new trust bundle would not be accepted: {0}\n  are these the root keys of this bundle, and enough of them?"
    )]
    NotAccepted(BundleError),
    #[error("{} holds no root key of this trust bundle (its roots: {})", path.display(), join(roots))]
    NoRoots { path: PathBuf, roots: Vec<KeyId> },
    #[error(
        "this machine's clock says {now}, and the trust bundle was made on {issued}: set the clock, or the new key ends too early"
    )]
    ClockBehind { now: String, issued: String },
    #[error("the CA ends on {ca_ends} and {node} would be certified until {node_ends}: choose fewer --days")]
    OutlivesCa {
        node: String,
        ca_ends: String,
        node_ends: String,
    },
    #[error("the certificate would not be accepted: {source}\n  does {} belong to this trust bundle?", ca.display())]
    CertificateNotAccepted { ca: PathBuf, source: CertificateError },
    #[error("no builder of this trust bundle has the key {key} (its builders: {})", join(known))]
    NoSuchBuilder { key: String, known: Vec<KeyId> },
    #[error("{0} patterns of builders; at most 16 are taken")]
    TooManyPatterns(usize),
    #[error("{} is neither a public nor a private key (PEM; Ed25519 or P-256)", path.display())]
    NotAPublicKey { path: PathBuf },
    #[error(
        "what the issuer issues would not be accepted: {source}\n  {} may have been made by an earlier cnova, which allowed no issuer below it: make the tree anew with `cnova trust init`", ca.display()
    )]
    IssuerNotAccepted { ca: PathBuf, source: CertificateError },
    #[error("the trust bundle names no key {key} (its keys: {})", join(keys))]
    NoSuchKey { key: KeyId, keys: Vec<KeyId> },
    #[error("{0:?} is not a key id: 16 hexadecimal digits, as cnova trust show prints them")]
    NotAKeyId(String),
    #[error("the system gave no random bytes")]
    NoRandomness,
    #[error("the certificate was not made: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// Reads a private key.
pub(crate) fn read_key(path: &std::path::Path) -> Result<cnova_shared::keys::SoftKey, TrustError> {
    files::read_key(path)
}

fn join(keys: &[KeyId]) -> String {
    keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

pub(crate) use push::{PushError, run as push};

/// A key id as it is printed.
fn key_id(text: &str) -> Result<KeyId, TrustError> {
    let bad = || TrustError::NotAKeyId(text.to_owned());
    let mut id = [0; 8];
    if text.len() != 2 * id.len() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(bad());
    }
    for (i, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
    }
    Ok(KeyId(id))
}

/// Runs the command.
pub(crate) fn run(what: &Trust, screen: &mut Screen<'_>) -> Result<(), TrustError> {
    let now_s = age::now_ms() / 1000;
    match what {
        Trust::Init {
            dir,
            tree,
            roots,
            threshold,
            hub_level,
        } => {
            let plan = init::Plan {
                tree,
                roots: *roots,
                threshold: threshold.unwrap_or(roots / 2 + 1),
                hub_level: *hub_level,
            };
            init::run(dir, &plan, now_s, screen)
        }
        Trust::Builder(args) => builder::run(&args.what, now_s, screen),
        Trust::Issue(args) => issue::run(args, now_s, screen),
        Trust::Issuer { dir, days } => issuer::run(dir, *days, now_s, screen),
        Trust::Rotate {
            dir,
            overlap_days,
            roots,
        } => rotate::run(dir, roots.as_deref(), Old::Overlap(*overlap_days), now_s, screen),
        Trust::Revoke { dir, key, roots } => {
            let (key, roots) = (key_id(key)?, roots.as_deref());
            if boot_key::is_one(dir, key)? {
                return boot_key::run(dir, roots, Old::Revoke(key), now_s, screen);
            }
            rotate::run(dir, roots, Old::Revoke(key), now_s, screen)
        }
        Trust::BootPolicyKey {
            dir,
            overlap_days,
            roots,
        } => boot_key::run(dir, roots.as_deref(), Old::Overlap(*overlap_days), now_s, screen),
        Trust::Show { file } => show::run(file, now_s, screen),
        // It alone needs a hub; `main` runs it.
        Trust::Push { .. } => Ok(()),
    }
}
