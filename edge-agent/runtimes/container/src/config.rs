//! What the node's owner decides about all containers: a JSON file, and two variables that override it in tests.

use std::io;
use std::path::{Path, PathBuf};

use cnova_oci::IDS_PER_CONTAINER;
use serde::Deserialize;

/// Where the file is unless [`FILE_VARIABLE`] names another.
const FILE: &str = "/etc/cnova/container.json";
const FILE_VARIABLE: &str = "CNOVA_CONTAINER_CONFIG";
/// Name or path of the OCI runtime for `isolation: sandbox`.
const SANDBOX_VARIABLE: &str = "CNOVA_OCI_SANDBOX";
/// Name or path of the OCI runtime for `isolation: vm`.
const VM_VARIABLE: &str = "CNOVA_OCI_VM";
/// First host id of containers: above those of people and services, below those that systemd gives out.
const ID_BASE: u32 = 1_000_000;
/// Longest file, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// The configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Config {
    /// First of the 65536 host ids that all containers share.
    pub(crate) id_base: u32,
    /// OCI runtimes to look for, best first, for `isolation: sandbox`.
    pub(crate) sandbox: Vec<String>,
    /// The same for `isolation: vm`.
    pub(crate) vm: Vec<String>,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is not valid: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{path}: idBase {base} leaves no room for {IDS_PER_CONTAINER} ids, or holds the node's own")]
    IdBase { path: PathBuf, base: u32 },
}

impl Default for Config {
    fn default() -> Config {
        Config {
            id_base: ID_BASE,
            sandbox: vec!["runsc".into()],
            vm: vec!["kata-runtime".into()],
        }
    }
}

impl Config {
    pub(crate) fn read() -> Result<Config, ConfigError> {
        let path = std::env::var_os(FILE_VARIABLE).map_or_else(|| PathBuf::from(FILE), PathBuf::from);
        let mut config = match read_file(&path)? {
            Some(text) => Config::parse(&path, &text)?,
            None => Config::default(),
        };
        if let Ok(name) = std::env::var(SANDBOX_VARIABLE) {
            config.sandbox = vec![name];
        }
        if let Ok(name) = std::env::var(VM_VARIABLE) {
            config.vm = vec![name];
        }
        Ok(config)
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Config, ConfigError> {
        let path = path.to_owned();
        let config: Config = match serde_json::from_slice(text) {
            Ok(config) => config,
            Err(source) => return Err(ConfigError::Json { path, source }),
        };
        let base = config.id_base;
        if !(IDS_PER_CONTAINER..=u32::MAX - 2 * IDS_PER_CONTAINER).contains(&base) {
            return Err(ConfigError::IdBase { path, base });
        }
        Ok(config)
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, ConfigError> {
    use io::Read;
    let read = || -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        std::fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
        Ok(text)
    };
    match read() {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_configuration_is_refused() {
        let parse = |text: &str| Config::parse(Path::new("c.json"), text.as_bytes());
        assert_eq!(parse("{}").unwrap(), Config::default());
        assert_eq!(
            parse(r#"{"idBase": 200000, "sandbox": ["crun"]}"#).unwrap().sandbox,
            ["crun"]
        );
        for wrong in [
            "7",
            r#"{"idBase": 0}"#,
            r#"{"idBase": 4294967295}"#,
            r#"{"sandbx": []}"#,
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
