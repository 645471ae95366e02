//! `hub.toml` and its drop-ins in `hub.d/`: read whole, with every bad value named.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cnova_attestation::appraiser::Rhythm;
use cnova_hub_core::cndl::SitePattern;
use cnova_hub_core::{Appraisal, DelegationRules};
use cnova_link::config::{self, IdentityConfig, RootKind};
use cnova_shared::ids::NodeId;
use cnova_shared::time::seconds_of;
use cnova_shared::trust_documents::Right;
use serde::Deserialize;

/// Least room for the store: the schema, and twins of the largest size in the file and in its journal.
const STORE_BYTES_MIN: u64 = 16 << 20;
const STORE_BYTES: u64 = 8 << 30;
const ARTIFACT_BYTES: u64 = 20 << 30;
/// A week: who applied an application on Monday may apply the one before again.
const KEEP_UNUSED_HOURS: u64 = 7 * 24;
/// A gateway that nobody reached for a year decides nothing any more.
const DELEGATION_HOURS_MAX: u64 = 366 * 24;
const API_PORT: u16 = 8080;
/// The program that compiles Wasm, beside this one.
const AOT_WORKER: &str = "cnova-aot";

/// What the files say, checked. Every path is absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file that it was read from.
    pub path: PathBuf,
    /// The hub's name; the certificate's when no file names one.
    pub node: Option<NodeId>,
    /// Where it keeps its state; only it writes there.
    pub state_dir: PathBuf,
    /// Where people and tools reach it.
    pub api: SocketAddr,
    /// How children reach it.
    pub children: Children,
    /// Its node key, and whom it trusts.
    pub identity: IdentityConfig,
    /// The keys that may sign twins (PEM, PKCS #8): the hub takes the one that the trust bundle lets sign longest.
    pub signing_keys: Vec<PathBuf>,
    /// The keys with which it approves boots (PEM, PKCS #8, P-256); without any it approves none.
    pub boot_policy_keys: Vec<PathBuf>,
    /// Which gateways may decide for their sites while the hub is away.
    pub delegation: DelegationRules,
    /// Who may use the API.
    pub tokens: PathBuf,
    /// Rego texts; the built-in policy when there are none.
    pub policy_dir: Option<PathBuf>,
    /// The program that compiles Wasm.
    pub aot_worker: PathBuf,
    /// How nodes become nodes; nobody is enrolled where nothing is said.
    pub enrolment: Option<Enrolment>,
    /// How nodes are attested.
    pub attestation: Attestation,
    /// How much it may keep.
    pub limits: Limits,
    /// How it logs.
    pub log: LogFormat,
}

/// `[attestation]`. docs/ATTESTATION.md says what it means.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attestation {
    /// Seconds between two attestations of a node.
    pub period_seconds: u64,
    /// Hours for which a result may be relied on.
    pub valid_hours: u64,
    /// Seconds for which a node that was started anew keeps what it had, until it has attested.
    pub grace_seconds: u64,
    /// The register of the launch log; the nodes' configuration must say the same.
    pub launch_pcr: u8,
    /// The registers by which nodes' ledger keys are bound to approved boots; all that a reference set names but the launch
    /// register where it is empty.
    pub boot_policy_pcrs: BTreeSet<u8>,
    /// Whether a node whose disk was rolled back is let out of quarantine as soon as it was told what is newest. Else an
    /// operator does it (`cnova attest release`).
    pub release: bool,
}

impl Default for Attestation {
    fn default() -> Self {
        let rhythm = Rhythm::default();
        Self {
            period_seconds: rhythm.period_ms / 1000,
            valid_hours: rhythm.valid_s / 3600,
            grace_seconds: rhythm.grace_s,
            launch_pcr: cnova_attestation::DEFAULT_LAUNCH_PCR,
            boot_policy_pcrs: BTreeSet::new(),
            release: true,
        }
    }
}

impl Attestation {
    fn check(&self, problems: &mut Vec<String>) {
        let valid_s = self.valid_hours.saturating_mul(3600);
        if self.period_seconds == 0 || valid_s <= self.period_seconds {
            problems.push("attestation: a result must be valid for longer than the period, which is not 0".into());
        }
        // 0 to 7 are the firmware's; 16 and above can be reset or are the system's.
        if !(8..=15).contains(&self.launch_pcr) {
            let pcr = self.launch_pcr;
            problems.push(format!("attestation.launch_pcr: {pcr} is not one of 8 to 15"));
        }
        // 16 and 23 can be reset by any local root, and 17 to 22 begin anew without a reboot.
        if let Some(pcr) = self
            .boot_policy_pcrs
            .iter()
            .find(|p| **p > 15 || **p == self.launch_pcr)
        {
            problems.push(format!(
                "attestation.boot_policy_pcrs: {pcr} is not one of 0 to 15, or is the register of the launch log"
            ));
        }
    }

    /// For the core; `seed` is random.
    #[must_use]
    pub fn to_core(&self, seed: [u8; 32]) -> Appraisal {
        Appraisal {
            rhythm: Rhythm {
                period_ms: self.period_seconds.saturating_mul(1000),
                valid_s: self.valid_hours.saturating_mul(3600),
                grace_s: self.grace_seconds,
            },
            launch_pcr: self.launch_pcr,
            boot_pcrs: self.boot_policy_pcrs.clone(),
            releases: self.release,
            seed,
        }
    }
}

/// `[enrolment]`, checked. docs/ENROLMENT.md says how to set it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// Where newcomers that hang directly below the hub ask; those behind gateways ask there.
    pub listen: Option<SocketAddr>,
    /// The certificate that the hub issues with, PEM (`cnova trust issuer`).
    pub issuer_certificate: PathBuf,
    /// Its key, PEM, PKCS #8.
    pub issuer_key: PathBuf,
    /// The folder with certificates of TPM makers, PEM or DER.
    pub tpm_roots: Option<PathBuf>,
    /// Whether keys in files are admitted, with a token.
    pub allow_soft: bool,
    /// How long a certificate lasts, seconds.
    pub lifetime_s: u64,
}

/// How children reach the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Children {
    /// They connect to this process.
    Listen(SocketAddr),
    /// They and this process connect to an MQTT 5 broker.
    Broker(ExternalBroker),
}

/// `[external_broker]`: an MQTT 5 broker beside the hub.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalBroker {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The name in its certificate; the hub's own when nothing is said, as that is what children expect there.
    pub server_name: Option<String>,
}

/// `[limits]`: how much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest database, bytes.
    pub max_store_bytes: u64,
    /// Most bytes of artifacts.
    pub max_artifact_bytes: u64,
    /// Hours after which an artifact that nothing uses is removed; 0 never removes any.
    pub keep_unused_hours: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_store_bytes: STORE_BYTES,
            max_artifact_bytes: ARTIFACT_BYTES,
            keep_unused_hours: KEEP_UNUSED_HOURS,
        }
    }
}

impl Limits {
    /// How long an artifact that nothing uses is kept; zero for ever.
    #[must_use]
    pub fn keep_unused(&self) -> Duration {
        Duration::from_secs(self.keep_unused_hours.saturating_mul(3600))
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read or understood.
    #[error(transparent)]
    File(#[from] config::ConfigError),
    /// Values in it break a rule.
    #[error("{path}: {} value(s) to correct:\n  {}", .problems.len(), .problems.join("\n  "))]
    Values {
        /// The main file.
        path: PathBuf,
        /// Each with its name, its value and the rule.
        problems: Vec<String>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node: Option<NodeId>,
    state_dir: PathBuf,
    tokens: PathBuf,
    policy_dir: Option<PathBuf>,
    aot_worker: Option<PathBuf>,
    identity: IdentityConfig,
    signing: Signing,
    #[serde(default)]
    delegation: Delegation,
    #[serde(default)]
    api: Api,
    mqtt: Option<Mqtt>,
    external_broker: Option<ExternalBroker>,
    enrolment: Option<EnrolmentFile>,
    #[serde(default)]
    attestation: Attestation,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    log: Log,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signing {
    key: PathBuf,
    #[serde(default)]
    more: Vec<PathBuf>,
    #[serde(default)]
    boot_policy: Vec<PathBuf>,
}

/// `[delegation]`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Delegation {
    gateways: BTreeSet<NodeId>,
    sites: Vec<String>,
    rights: Option<Vec<Right>>,
    hours: Option<u64>,
}

impl Delegation {
    fn rules(self, problems: &mut Vec<String>) -> DelegationRules {
        let mut rules = DelegationRules {
            gateways: self.gateways,
            ..DelegationRules::default()
        };
        for text in self.sites {
            match SitePattern::new(&text) {
                Ok(pattern) => rules.sites.push(pattern),
                Err(e) => problems.push(format!("delegation.sites: {text:?} {e}")),
            }
        }
        if let Some(rights) = self.rights {
            if rights.is_empty() || rights.contains(&Right::Unknown) {
                problems.push("delegation.rights: at least one of \"appraise\" and \"move-floating\"".into());
            }
            rules.rights = rights;
        }
        if let Some(hours) = self.hours {
            if !(1..=DELEGATION_HOURS_MAX).contains(&hours) {
                problems.push(format!(
                    "delegation.hours: {hours} is not from 1 to {DELEGATION_HOURS_MAX}"
                ));
            }
            rules.hours = hours;
        }
        rules
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Api {
    listen: SocketAddr,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, API_PORT).into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnrolmentFile {
    listen: Option<SocketAddr>,
    issuer_certificate: PathBuf,
    issuer_key: PathBuf,
    tpm_roots: Option<PathBuf>,
    #[serde(default)]
    allow_soft: bool,
    #[serde(default = "lifetime")]
    lifetime: String,
}

fn lifetime() -> String {
    "90d".to_owned()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mqtt {
    listen: SocketAddr,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Log {
    format: LogFormat,
}

impl Config {
    /// Reads and checks a file and its drop-ins. Relative paths are taken from the file's folder.
    ///
    /// # Errors
    /// [`ConfigError`]: the first thing that is not understood, with its line, or every value that breaks a rule.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file: File = config::load_toml(path)?;
        check(path, file).map_err(|problems| ConfigError::Values {
            path: path.to_owned(),
            problems,
        })
    }

    /// Where the database is.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.state_dir.join("hub.db")
    }

    /// Where a copy of the newest trust bundle is.
    #[must_use]
    pub fn newest_bundle(&self) -> PathBuf {
        self.state_dir.join("trust-bundle.cose")
    }

    /// Where copies of the database are.
    #[must_use]
    pub fn backups(&self) -> PathBuf {
        self.state_dir.join("backup")
    }
}

fn check(path: &Path, file: File) -> Result<Config, Vec<String>> {
    let mut problems = Vec::new();
    let folder = std::path::absolute(path.parent().unwrap_or(Path::new("."))).unwrap_or_default();
    let at = |p: PathBuf| folder.join(p);
    if !file.state_dir.is_absolute() {
        problems.push(format!(
            "state_dir: {} is not an absolute path",
            file.state_dir.display()
        ));
    }
    if file.limits.max_store_bytes < STORE_BYTES_MIN {
        problems.push(format!(
            "limits.max_store_bytes: {} is below {STORE_BYTES_MIN}",
            file.limits.max_store_bytes
        ));
    }
    let delegation = file.delegation.rules(&mut problems);
    let children = children(file.mqtt, file.external_broker, &mut problems);
    if file.identity.root != RootKind::Soft || file.identity.key.as_os_str().is_empty() {
        problems.push("identity: the hub's own key is a file; name it with key, and no root".into());
    }
    let enrolment = file.enrolment.map(|e| {
        let lifetime_s = seconds_of(&e.lifetime).unwrap_or_else(|| {
            let given = &e.lifetime;
            problems.push(format!(
                "enrolment.lifetime: {given:?} is no span; write 90d, 24h, 30m or 45s"
            ));
            0
        });
        Enrolment {
            listen: e.listen,
            issuer_certificate: at(e.issuer_certificate),
            issuer_key: at(e.issuer_key),
            tpm_roots: e.tpm_roots.map(at),
            allow_soft: e.allow_soft,
            lifetime_s,
        }
    });
    file.attestation.check(&mut problems);
    let Some(children) = children.filter(|_| problems.is_empty()) else {
        return Err(problems);
    };
    let IdentityConfig {
        certificate,
        key,
        trust_bundle,
        ..
    } = file.identity;
    Ok(Config {
        path: path.to_owned(),
        node: file.node,
        state_dir: file.state_dir,
        api: file.api.listen,
        children,
        identity: IdentityConfig {
            certificate: at(certificate),
            key: at(key),
            trust_bundle: at(trust_bundle),
            root: RootKind::Soft,
            tcti: None,
        },
        signing_keys: std::iter::once(file.signing.key)
            .chain(file.signing.more)
            .map(at)
            .collect(),
        boot_policy_keys: file.signing.boot_policy.into_iter().map(at).collect(),
        delegation,
        tokens: at(file.tokens),
        policy_dir: file.policy_dir.map(at),
        aot_worker: file.aot_worker.map_or_else(beside_this_program, at),
        enrolment,
        attestation: file.attestation,
        limits: file.limits,
        log: file.log.format,
    })
}

fn children(mqtt: Option<Mqtt>, broker: Option<ExternalBroker>, problems: &mut Vec<String>) -> Option<Children> {
    match (mqtt, broker) {
        (Some(mqtt), None) => Some(Children::Listen(mqtt.listen)),
        (None, Some(broker)) => {
            if broker.host.is_empty() || broker.port == 0 {
                problems.push("external_broker: host and port must be named".into());
            }
            Some(Children::Broker(broker))
        }
        _ => {
            problems.push("either [mqtt] or [external_broker] must be there, and not both".into());
            None
        }
    }
}

fn beside_this_program() -> PathBuf {
    let this = std::env::current_exe().unwrap_or_default();
    this.with_file_name(AOT_WORKER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"state_dir = "/var/lib/cnova/hub"
tokens = "tokens.toml"
[identity]
certificate = "/etc/cnova/hub.pem"
key = "hub.key"
trust_bundle = "trust.cose"
[signing]
key = "signing.key"
[mqtt]
listen = "0.0.0.0:8883"
"#;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hub.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    #[test]
    fn a_good_file_is_taken_with_its_defaults() {
        let config = load(GOOD).unwrap();
        assert_eq!(config.api, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(config.children, Children::Listen("0.0.0.0:8883".parse().unwrap()));
        assert_eq!(config.identity.certificate, Path::new("/etc/cnova/hub.pem"));
        assert_eq!(config.tokens, config.path.with_file_name("tokens.toml"));
        assert!(config.aot_worker.is_absolute() && config.aot_worker.ends_with(AOT_WORKER));
        assert_eq!((config.node, config.policy_dir), (None, None));
    }

    #[test]
    fn the_example_is_taken() {
        let config = load(include_str!("../hub.toml")).unwrap();
        assert_eq!(config.limits, Limits::default());
    }

    #[test]
    fn every_value_that_breaks_a_rule_is_named_at_once() {
        let text = GOOD.replace("/var/lib/cnova/hub", "state")
            + "[external_broker]\nhost = \"b\"\nport = 1\n[limits]\nmax_store_bytes = 1\n";
        let ConfigError::Values { problems, .. } = load(&text).unwrap_err() else {
            panic!("values")
        };
        assert_eq!(problems.len(), 3, "{problems:?}");
        for (name, problem) in ["state_dir", "limits.max", "either"].iter().zip(&problems) {
            assert!(problem.starts_with(name), "{problem}");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error_with_its_line() {
        for (wrong, line) in [
            (GOOD.replace("tokens", "token"), 2),
            (GOOD.replace("0.0.0.0", "any"), 10),
        ] {
            let error = load(&wrong).unwrap_err().to_string();
            assert!(error.contains(&format!("hub.toml:{line}:")), "{error}");
        }
    }
}
