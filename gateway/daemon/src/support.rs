//! `cnova-gateway support-bundle`: what somebody needs who helps from afar, without anything that is secret.

use std::path::{Path, PathBuf};

use cnova_link::support::{Place, Program, SupportError, make_plain};

use crate::config::Config;
use crate::store;

/// Keys of `gateway.toml` whose values are nobody's secret.
const HARMLESS: [&str; 25] = [
    "node",
    "site",
    "state_dir",
    "log.*",
    "parent.node",
    "parent.address",
    "identity.certificate",
    "identity.key",
    "identity.trust_bundle",
    "identity.root",
    "identity.tcti",
    "enrolment.endpoints",
    "enrolment.server",
    "enrolment.token_file",
    "enrolment.listen",
    "attestation.pcrs",
    "attestation.hub_away_seconds",
    "attestation.launch_pcr",
    "attestation.parent",
    "labels.*",
    "listen.address",
    "external_broker.host",
    "external_broker.port",
    "external_broker.server_name",
    "limits.*",
];

/// Makes a bundle; what is said about it, for a person.
///
/// # Errors
/// [`SupportError`]: it could not be written. What cannot be read is left out, and the manifest says why.
pub fn make(settings: &Path, out: Option<PathBuf>) -> Result<String, SupportError> {
    let program = Program {
        name: "cnova-gateway",
        version: env!("CARGO_PKG_VERSION"),
        settings,
        harmless: &HARMLESS,
    };
    let place = Config::load(settings).map_err(|e| e.to_string()).map(|config| Place {
        database: config.state_dir.join(store::FILE),
        state_dir: config.state_dir,
        certificate: config.identity.certificate,
    });
    make_plain(&program, place, out, |copy| {
        cnova_store::count_rows(copy).map_err(|e| e.to_string())
    })
}
