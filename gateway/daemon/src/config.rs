//! `gateway.toml` and its drop-ins in `gateway.d/`: read whole, with every bad value named.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use cnova_link::config::{self, AttestationConfig, EnrolmentConfig, IdentityConfig, ParentConfig};
use cnova_shared::ids::{NodeId, SitePath};
use serde::Deserialize;

/// Least room for the store: the schema, and twins of the largest size in the file and in its journal.
const STORE_BYTES_MIN: u64 = 8 << 20;
const STORE_BYTES: u64 = 512 << 20;
const CACHE_BYTES: u64 = 4 << 30;
/// Most labels, as they go with every hello.
const LABELS_MAX: usize = 64;
/// Longest label, key or value.
const LABEL_LEN_MAX: usize = 255;

/// Registers that a launch log can use: those that no firmware uses and that only a reset clears.
const LAUNCH_PCRS: std::ops::RangeInclusive<u8> = 8..=15;
/// Longest time for which a gateway waits for the hub before it appraises, seconds.
const HUB_AWAY_SECONDS_MAX: u64 = 7 * 86_400;

/// What the files say, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The gateway's name; the certificate's when no file names one.
    pub node: Option<NodeId>,
    /// Its place in the tree; the certificate's when no file names one.
    pub site: Option<SitePath>,
    /// Where it keeps its state; only it writes there.
    pub state_dir: PathBuf,
    /// The node above it.
    pub parent: ParentConfig,
    /// Its keys and whom it trusts.
    pub identity: IdentityConfig,
    /// How it gets its certificate, and where its own door for newcomers is.
    pub enrolment: Option<EnrolmentConfig>,
    /// What its TPM is asked for.
    pub attestation: AttestationConfig,
    /// Labels for its hello.
    pub labels: BTreeMap<String, String>,
    /// How children reach it.
    pub children: Children,
    /// How much it may keep.
    pub limits: Limits,
    /// How it logs.
    pub log: LogFormat,
}

/// How children reach the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Children {
    /// They connect to this process.
    Listen(SocketAddr),
    /// They and this process connect to an MQTT 5 broker.
    Broker(ExternalBroker),
}

/// `[external_broker]`: an MQTT 5 broker beside the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalBroker {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The name in its certificate; the gateway's own when nothing is said, as that is what children expect there.
    pub server_name: Option<String>,
}

/// `[limits]`: how much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest database, bytes.
    pub max_store_bytes: u64,
    /// Most bytes of artifacts.
    pub max_cache_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_store_bytes: STORE_BYTES,
            max_cache_bytes: CACHE_BYTES,
        }
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
    site: Option<SitePath>,
    state_dir: PathBuf,
    parent: ParentConfig,
    identity: IdentityConfig,
    enrolment: Option<EnrolmentConfig>,
    #[serde(default)]
    attestation: AttestationConfig,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    listen: Option<Listen>,
    external_broker: Option<ExternalBroker>,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    log: Log,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listen {
    address: SocketAddr,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Log {
    format: LogFormat,
}

impl Config {
    /// Reads and checks a file and its drop-ins.
    ///
    /// # Errors
    /// [`ConfigError`]: the first thing that is not understood, with its line, or every value that breaks a rule.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file: File = config::load_toml(path)?;
        check(file).map_err(|problems| ConfigError::Values {
            path: path.to_owned(),
            problems,
        })
    }
}

fn check(file: File) -> Result<Config, Vec<String>> {
    let mut problems = Vec::new();
    if file.node.as_ref() == Some(&file.parent.node) {
        problems.push(format!("parent.node: {} cannot be its own parent", file.parent.node));
    }
    if !file.state_dir.is_absolute() {
        problems.push(format!(
            "state_dir: {} is not an absolute path",
            file.state_dir.display()
        ));
    }
    if file.labels.len() > LABELS_MAX {
        problems.push(format!("labels: {} of them, at most {LABELS_MAX}", file.labels.len()));
    }
    let long = |(k, v): &(&String, &String)| k.is_empty() || k.len().max(v.len()) > LABEL_LEN_MAX;
    for (key, _) in file.labels.iter().filter(long) {
        problems.push(format!(
            "labels.{key}: a key has 1 to {LABEL_LEN_MAX} bytes, a value at most {LABEL_LEN_MAX}"
        ));
    }
    if file.limits.max_store_bytes < STORE_BYTES_MIN {
        let given = file.limits.max_store_bytes;
        problems.push(format!("limits.max_store_bytes: {given} is below {STORE_BYTES_MIN}"));
    }
    let AttestationConfig {
        hub_away_seconds: away,
        launch_pcr: pcr,
        ..
    } = file.attestation;
    if !(1..=HUB_AWAY_SECONDS_MAX).contains(&away) {
        problems.push(format!(
            "attestation.hub_away_seconds: {away} is not from 1 to {HUB_AWAY_SECONDS_MAX}"
        ));
    }
    if !LAUNCH_PCRS.contains(&pcr) {
        problems.push(format!("attestation.launch_pcr: {pcr} is not one of 8 to 15"));
    }
    let children = match (file.listen, file.external_broker) {
        (Some(listen), None) => Some(Children::Listen(listen.address)),
        (None, Some(broker)) => {
            if broker.host.is_empty() || broker.port == 0 {
                problems.push("external_broker: host and port must be named".into());
            }
            Some(Children::Broker(broker))
        }
        _ => {
            problems.push("either [listen] or [external_broker] must be there, and not both".into());
            None
        }
    };
    match children {
        Some(children) if problems.is_empty() => Ok(Config {
            node: file.node,
            site: file.site,
            state_dir: file.state_dir,
            parent: file.parent,
            identity: file.identity,
            enrolment: file.enrolment,
            attestation: file.attestation,
            labels: file.labels,
            children,
            limits: file.limits,
            log: file.log.format,
        }),
        _ => Err(problems),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"node = "gw-1"
site = "plant-7/line-2"
state_dir = "/var/lib/cnova/gateway"
[parent]
node = "hub"
address = "hub.example:8883"
[identity]
certificate = "/etc/cnova/node.pem"
key = "/etc/cnova/node.key"
trust_bundle = "/etc/cnova/trust.cose"
[labels]
zone = "a"
[listen]
address = "0.0.0.0:8883"
"#;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    #[test]
    fn a_good_file_is_taken() {
        let config = load(GOOD).unwrap();
        assert_eq!(config.node.unwrap().as_str(), "gw-1");
        assert_eq!(config.children, Children::Listen("0.0.0.0:8883".parse().unwrap()));
        assert_eq!(
            config.limits,
            Limits {
                max_store_bytes: STORE_BYTES,
                max_cache_bytes: CACHE_BYTES
            }
        );
        assert_eq!(config.log, LogFormat::Text);
    }

    #[test]
    fn every_value_that_breaks_a_rule_is_named_at_once() {
        let text = GOOD
            .replace("node = \"hub\"", "node = \"gw-1\"")
            .replace("/var/lib/cnova/gateway", "state")
            + "[external_broker]\nhost = \"b\"\nport = 1\n[limits]\nmax_store_bytes = 1\n\
               [attestation]\nhub_away_seconds = 0\nlaunch_pcr = 16\n";
        let ConfigError::Values { problems, .. } = load(&text).unwrap_err() else {
            panic!("values")
        };
        assert_eq!(problems.len(), 6, "{problems:?}");
        let names = [
            "parent.node",
            "state_dir",
            "limits.max",
            "attestation.hub_away_seconds",
            "attestation.launch_pcr",
            "either",
        ];
        for (name, problem) in names.iter().zip(&problems) {
            assert!(problem.starts_with(name), "{problem}");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error_with_its_line() {
        for (wrong, line) in [
            (GOOD.replace("state_dir", "statedir"), 3),
            (GOOD.replace("gw-1", "GW"), 1),
        ] {
            let error = load(&wrong).unwrap_err().to_string();
            assert!(error.contains(&format!("gateway.toml:{line}:")), "{error}");
        }
    }
}
