//! Configuration errors name the file and the line, in drop-ins too.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use cnova_link::config::{ConfigError, IdentityConfig, ParentConfig, load_toml};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    parent: ParentConfig,
    identity: IdentityConfig,
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    list: Vec<u32>,
}

const GOOD: &str = r#"
list = [1, 2]
[parent]
node = "gw-1"
address = "10.0.0.1:8883"
[identity]
certificate = "/c"
key = "/k"
trust_bundle = "/t"
[labels]
a = "1"
b = "2"
"#;

fn write(dir: &Path, files: &[(&str, &str)]) -> std::path::PathBuf {
    for (name, text) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir.join("agent.toml")
}

fn invalid(files: &[(&str, &str)]) -> (String, usize, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), files);
    match load_toml::<Config>(&path) {
        Err(ConfigError::Invalid { path, line, reason }) => (
            path.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned(),
            line,
            reason,
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn drop_ins_are_merged_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(
        dir.path(),
        &[
            ("agent.toml", GOOD),
            ("agent.d/20-b.toml", "list = [3]\n[labels]\nb = \"20\"\n"),
            (
                "agent.d/10-a.toml",
                "[parent]\naddress = \"[::1]:1\"\n[labels]\nb = \"10\"\nc = \"3\"\n",
            ),
            ("agent.d/README", "not toml"),
        ],
    );
    let config: Config = load_toml(&path).unwrap();
    assert_eq!(
        (config.parent.node.as_str(), config.parent.address.to_string().as_str()),
        ("gw-1", "[::1]:1")
    );
    assert_eq!(config.identity.key, Path::new("/k"));
    assert_eq!(config.list, [3]);
    let labels: Vec<_> = config.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["a=1", "b=20", "c=3"]);
}

#[test]
fn errors_name_file_line_and_reason() {
    let (file, line, reason) = invalid(&[("agent.toml", "a = 1\nb = \n")]);
    assert_eq!((file.as_str(), line), ("agent.toml", 2), "{reason}");

    let typo = GOOD.replace("address", "adress");
    let (file, line, reason) = invalid(&[("agent.toml", &typo)]);
    assert_eq!((file.as_str(), line), ("agent.toml", 5), "{reason}");
    assert!(reason.contains("adress"), "{reason}");

    let (file, line, reason) = invalid(&[
        ("agent.toml", GOOD),
        (
            "agent.d/a.toml",
            "# fine\n[labels]\nx = \"y\"\n[parent]\nnode = \"GW\"\n",
        ),
    ]);
    assert_eq!((file.as_str(), line), ("agent.d/a.toml", 5), "{reason}");
    assert!(reason.contains("node id"), "{reason}");

    let (file, line, reason) = invalid(&[("agent.toml", GOOD), ("agent.d/a.toml", "\nlist = [1, \"x\"]\n")]);
    assert_eq!((file.as_str(), line), ("agent.d/a.toml", 2), "{reason}");

    let (file, line, reason) = invalid(&[("agent.toml", GOOD), ("agent.d/a.toml", "\nnew_key = 1\n")]);
    assert_eq!((file.as_str(), line), ("agent.d/a.toml", 2), "{reason}");

    let (file, line, reason) = invalid(&[("agent.toml", &GOOD.replace("key = \"/k\"\n", ""))]);
    assert_eq!((file.as_str(), line), ("agent.toml", 6), "{reason}");
}

#[test]
fn what_is_missing_altogether_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let error = load_toml::<Config>(&dir.path().join("agent.toml")).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
    let path = write(dir.path(), &[("agent.toml", "list = []\n")]);
    let text = load_toml::<Config>(&path).unwrap_err().to_string();
    assert!(text.contains("agent.toml") && text.contains("parent"), "{text}");
}
