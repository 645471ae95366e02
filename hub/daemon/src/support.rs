//! `cnova-hub support-bundle`: what somebody needs who helps from afar, without anything that is secret.

use std::path::{Path, PathBuf};

use cnova_link::support::{Place, Program, SupportError, make_plain};

use crate::config::Config;

/// Keys of `hub.toml` whose values are nobody's secret: of keys and tokens only where they lie.
const HARMLESS: [&str; 28] = [
    "node",
    "state_dir",
    "tokens",
    "policy_dir",
    "aot_worker",
    "identity.certificate",
    "identity.key",
    "identity.trust_bundle",
    "identity.root",
    "identity.tcti",
    "signing.key",
    "signing.more",
    "signing.boot_policy",
    "delegation.*",
    "api.listen",
    "mqtt.listen",
    "external_broker.host",
    "external_broker.port",
    "external_broker.server_name",
    "enrolment.listen",
    "enrolment.issuer_certificate",
    "enrolment.issuer_key",
    "enrolment.tpm_roots",
    "enrolment.allow_soft",
    "enrolment.lifetime",
    "attestation.*",
    "limits.*",
    "log.*",
];

/// Makes a bundle; what is said about it, for a person.
///
/// # Errors
/// [`SupportError`]: it could not be written. What cannot be read is left out, and the manifest says why.
pub fn make(settings: &Path, out: Option<PathBuf>) -> Result<String, SupportError> {
    let program = Program {
        name: "cnova-hub",
        version: env!("CARGO_PKG_VERSION"),
        settings,
        harmless: &HARMLESS,
    };
    let place = Config::load(settings).map_err(|e| e.to_string()).map(|config| Place {
        database: config.database(),
        state_dir: config.state_dir,
        certificate: config.identity.certificate,
    });
    make_plain(&program, place, out, |copy| {
        cnova_store::count_rows(copy).map_err(|e| e.to_string())
    })
}
