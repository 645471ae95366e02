//! `gateway.toml`: read whole, with every bad value named at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use cnova_shared::ids::{NodeId, SitePath};
use serde::Deserialize;

/// Least room for the store: the schema, and one twin of the largest size in the file and in its journal.
const STORE_BYTES_MIN: u64 = 4 << 20;
/// Room for the store when nothing is said: ten thousand descendants with twins of some kilobytes.
const STORE_BYTES: u64 = 512 << 20;
/// Room for artifacts when nothing is said.
const CACHE_BYTES: u64 = 4 << 30;
/// Most labels, as they go with every hello.
const LABELS_MAX: usize = 64;
/// Longest label, key or value.
const LABEL_LEN_MAX: usize = 255;

/// What the file says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The gateway's name; the certificate's when the file names none.
    pub node: Option<NodeId>,
    /// Its place in the tree; the certificate's when the file names none.
    pub site: Option<SitePath>,
    /// Where it keeps its state; only it writes there.
    pub state_dir: PathBuf,
    /// The node above it.
    pub parent: Parent,
    /// Its keys and whom it trusts.
    pub identity: IdentityFiles,
    /// Labels for its hello.
    pub labels: BTreeMap<String, String>,
    /// How children reach it.
    pub children: Children,
    /// How much it may keep.
    pub limits: StoreLimits,
    /// How it logs.
    pub log: LogFormat,
}

/// The node above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its name; its certificate must carry it.
    pub node: NodeId,
    /// `host:port`.
    pub address: String,
}

/// Files of the identity.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityFiles {
    /// The node certificate and its intermediates, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM (PKCS #8).
    pub key: PathBuf,
    /// The signed trust bundle.
    pub trust_bundle: PathBuf,
}

/// How children reach the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Children {
    /// They connect to this process.
    Listen(SocketAddr),
    /// They and this process connect to an MQTT 5 broker.
    Broker(ExternalBroker),
}

/// An MQTT 5 broker beside the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalBroker {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The name in its certificate; the gateway's own when the file names none, as that is what children expect.
    pub server_name: Option<String>,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Largest database.
    pub max_store_bytes: u64,
    /// Most bytes of artifacts.
    pub max_cache_bytes: u64,
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
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}. Name another file with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not the TOML that is expected.
    #[error("{path} is not a gateway configuration: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// Values in it are wrong.
    #[error("{path} has {} wrong value(s); correct all of them:\n  {}", .problems.len(), .problems.join("\n  "))]
    Values {
        /// The file.
        path: PathBuf,
        /// Each with its name, its value and the rule.
        problems: Vec<String>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node: Option<String>,
    site: Option<String>,
    state_dir: PathBuf,
    parent: FileParent,
    identity: IdentityFiles,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    listen: Option<FileListen>,
    external_broker: Option<FileBroker>,
    #[serde(default)]
    limits: FileLimits,
    #[serde(default)]
    log: FileLog,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileParent {
    node: String,
    address: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileListen {
    address: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileBroker {
    host: String,
    port: u16,
    server_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLimits {
    max_store_bytes: Option<u64>,
    max_cache_bytes: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLog {
    #[serde(default)]
    format: LogFormat,
}

/// What was wrong so far.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, what: impl Into<String>) {
        self.0.push(what.into());
    }

    fn take<T, E: std::fmt::Display>(&mut self, name: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|e| self.add(format!("{name}: {e}"))).ok()
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] with everything that is wrong in it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// [`ConfigError`] with everything that is wrong in it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text)
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
        let mut problems = Problems::default();
        let checked = check(file, &mut problems);
        match checked {
            Some(config) if problems.0.is_empty() => Ok(config),
            _ => Err(ConfigError::Values { path: path.to_owned(), problems: problems.0 }),
        }
    }
}

fn check(file: File, problems: &mut Problems) -> Option<Config> {
    let node = file.node.map(|n| problems.take("node", NodeId::new(n)));
    let site = file.site.map(|s| problems.take("site", SitePath::new(s)));
    let parent = problems.take("parent.node", NodeId::new(&file.parent.node));
    if !is_host_and_port(&file.parent.address) {
        problems.add(format!("parent.address: {:?} is not host:port", file.parent.address));
    }
    if let (Some(Some(node)), Some(parent)) = (&node, &parent)
        && node == parent
    {
        problems.add(format!("parent.node: a gateway cannot be its own parent, {node}"));
    }
    if !file.state_dir.is_absolute() {
        problems.add(format!("state_dir: {} is not an absolute path", file.state_dir.display()));
    }
    check_labels(&file.labels, problems);
    let children = check_children(file.listen, file.external_broker, problems);
    let limits = check_limits(&file.limits, problems);
    Some(Config {
        node: node.flatten(),
        site: site.flatten(),
        state_dir: file.state_dir,
        parent: Parent { node: parent?, address: file.parent.address },
        identity: file.identity,
        labels: file.labels,
        children: children?,
        limits,
        log: file.log.format,
    })
}

fn is_host_and_port(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
}

fn check_labels(labels: &BTreeMap<String, String>, problems: &mut Problems) {
    if labels.len() > LABELS_MAX {
        problems.add(format!("labels: {} of them, at most {LABELS_MAX}", labels.len()));
    }
    for (key, value) in labels {
        if key.is_empty() || key.len() > LABEL_LEN_MAX || value.len() > LABEL_LEN_MAX {
            problems.add(format!("labels.{key}: key and value have at most {LABEL_LEN_MAX} bytes"));
        }
    }
}

fn check_children(
    listen: Option<FileListen>,
    broker: Option<FileBroker>,
    problems: &mut Problems,
) -> Option<Children> {
    match (listen, broker) {
        (Some(listen), None) => {
            problems.take("listen.address", listen.address.parse()).map(Children::Listen)
        }
        (None, Some(FileBroker { host, port, server_name })) => {
            if host.is_empty() || port == 0 {
                problems.add("external_broker: host and port must be named");
            }
            Some(Children::Broker(ExternalBroker { host, port, server_name }))
        }
        _ => {
            problems.add("either [listen] or [external_broker] must be there, and not both");
            None
        }
    }
}

fn check_limits(limits: &FileLimits, problems: &mut Problems) -> StoreLimits {
    let max_store_bytes = limits.max_store_bytes.unwrap_or(STORE_BYTES);
    if max_store_bytes < STORE_BYTES_MIN {
        problems.add(format!("limits.max_store_bytes: {max_store_bytes} is below {STORE_BYTES_MIN}"));
    }
    StoreLimits { max_store_bytes, max_cache_bytes: limits.max_cache_bytes.unwrap_or(CACHE_BYTES) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        node = "gw-1"
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

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("gateway.toml"))
    }

    #[test]
    fn a_good_file_is_taken() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.node.unwrap().as_str(), "gw-1");
        assert_eq!(config.children, Children::Listen("0.0.0.0:8883".parse().unwrap()));
        assert_eq!(config.limits, StoreLimits { max_store_bytes: STORE_BYTES, max_cache_bytes: CACHE_BYTES });
    }

    #[test]
    fn every_wrong_value_is_named_at_once() {
        let text = GOOD
            .replace("\"gw-1\"", "\"GW\"")
            .replace("hub.example:8883", "hub.example")
            .replace("/var/lib/cnova/gateway", "state")
            + "[external_broker]\nhost = \"b\"\nport = 1\n[limits]\nmax_store_bytes = 1\n";
        let ConfigError::Values { problems, .. } = parse(&text).unwrap_err() else { panic!("values") };
        assert_eq!(problems.len(), 5, "{problems:?}");
        for (name, problem) in ["node", "parent.address", "state_dir", "either", "limits.max"].iter().zip(&problems) {
            assert!(problem.starts_with(name), "{problem}");
        }
    }

    #[test]
    fn a_misspelt_setting_is_an_error_with_its_line() {
        let error = parse(&GOOD.replace("state_dir", "statedir")).unwrap_err().to_string();
        assert!(error.contains("statedir") && error.contains("line 4"), "{error}");
    }
}
