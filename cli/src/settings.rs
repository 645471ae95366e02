//! Which hub, with which token: flags over environment over `~/.config/cnova/config.toml`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::args::Global;

const DEFAULT_HUB: &str = "http://127.0.0.1:8080";

/// The settings could not be put together.
#[derive(Debug, Error)]
pub(crate) enum SettingsError {
    #[error("cannot read the configuration {}: {source}", path.display())]
    Config { path: PathBuf, source: io::Error },
    #[error("the configuration {} is not understood: {reason}\n  it may hold: hub = \"URL\", token_file = \"FILE\", ca = \"FILE\"", path.display())]
    NotToml { path: PathBuf, reason: String },
    #[error("cannot read the token file {}: {source}\n  make a token with: cnova token new --name NAME --role operator", path.display())]
    TokenFile { path: PathBuf, source: io::Error },
    #[error("{from} holds no token: it is empty, or has spaces or line breaks inside")]
    BadToken { from: String },
    #[error("cannot read the authorities {}: {source}", path.display())]
    Authorities { path: PathBuf, source: io::Error },
    #[error(
        "the hub's address {url:?} ({from}) is not a URL\n  it looks like http://127.0.0.1:8080 or https://hub.example"
    )]
    BadUrl { url: String, from: &'static str },
}

/// Which hub, and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Without a slash at its end.
    pub(crate) hub: String,
    pub(crate) token: Option<String>,
    /// PEM.
    pub(crate) ca: Option<Vec<u8>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    hub: Option<String>,
    token_file: Option<PathBuf>,
    ca: Option<PathBuf>,
}

/// A variable of the environment; an empty one counts as absent.
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// Puts the settings together.
pub(crate) fn resolve(global: &Global, env: &dyn Fn(&str) -> Option<String>) -> Result<Settings, SettingsError> {
    let file = read_config(env)?;
    let (url, from) = match (&global.hub, env("CNOVA_HUB"), &file.hub) {
        (Some(url), ..) => (url.clone(), "--hub"),
        (None, Some(url), _) => (url, "CNOVA_HUB"),
        (None, None, Some(url)) => (url.clone(), "config.toml"),
        (None, None, None) => (DEFAULT_HUB.to_owned(), "default"),
    };
    let hub = url.trim_end_matches('/').to_owned();
    let rest = hub.strip_prefix("http://").or_else(|| hub.strip_prefix("https://"));
    if rest.is_none_or(|r| r.is_empty() || r.contains(['?', '#', '@', ' '])) {
        return Err(SettingsError::BadUrl { url, from });
    }
    let ca = global
        .ca
        .clone()
        .or_else(|| env("CNOVA_CA").map(PathBuf::from))
        .or_else(|| file.ca.clone());
    let ca = ca.map(|path| {
        let path = from_home(path, env);
        fs::read(&path).map_err(|source| SettingsError::Authorities { path, source })
    });
    Ok(Settings {
        hub,
        token: token(global, env, &file)?,
        ca: ca.transpose()?,
    })
}

/// A file that a flag names goes before a token that the environment holds: the nearer word wins.
fn token(
    global: &Global,
    env: &dyn Fn(&str) -> Option<String>,
    file: &ConfigFile,
) -> Result<Option<String>, SettingsError> {
    if let Some(token) = &global.token {
        return check_token(token, "--token").map(Some);
    }
    if let Some(path) = &global.token_file {
        return read_token(path).map(Some);
    }
    if let Some(token) = env("CNOVA_TOKEN") {
        return check_token(&token, "CNOVA_TOKEN").map(Some);
    }
    let path = env("CNOVA_TOKEN_FILE")
        .map(PathBuf::from)
        .or_else(|| file.token_file.clone());
    path.map(|p| read_token(&from_home(p, env))).transpose()
}

fn read_token(path: &Path) -> Result<String, SettingsError> {
    let text = fs::read_to_string(path).map_err(|source| SettingsError::TokenFile {
        path: path.to_owned(),
        source,
    })?;
    check_token(&text, &path.display().to_string())
}

fn check_token(text: &str, from: &str) -> Result<String, SettingsError> {
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(SettingsError::BadToken { from: from.to_owned() });
    }
    Ok(token.to_owned())
}

fn read_config(env: &dyn Fn(&str) -> Option<String>) -> Result<ConfigFile, SettingsError> {
    let folder = env("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| env("HOME").map(|h| Path::new(&h).join(".config")));
    let Some(path) = folder.map(|f| f.join("cnova/config.toml")) else {
        return Ok(ConfigFile::default());
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(ConfigFile::default()),
        Err(source) => return Err(SettingsError::Config { path, source }),
    };
    let parsed: Result<ConfigFile, _> = toml::from_str(&text);
    let mut file = parsed.map_err(|e| SettingsError::NotToml {
        path: path.clone(),
        reason: e.to_string(),
    })?;
    // Like every file that a configuration names: relative to it.
    for named in [&mut file.token_file, &mut file.ca].into_iter().flatten() {
        if !named.starts_with("~")
            && let Some(folder) = path.parent()
        {
            *named = folder.join(&*named);
        }
    }
    Ok(file)
}

fn from_home(path: PathBuf, env: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    match (path.strip_prefix("~"), env("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_go_before_the_environment_and_that_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("cnova")).unwrap();
        fs::write(
            dir.path().join("cnova/config.toml"),
            "hub = \"http://file:1/\"\ntoken_file = \"t\"\n",
        )
        .unwrap();
        fs::write(dir.path().join("cnova/t"), "from-file\n").unwrap();
        let home = dir.path().to_str().unwrap().to_owned();
        let only_file = |n: &str| (n == "XDG_CONFIG_HOME").then(|| home.clone());
        let s = resolve(&Global::default(), &only_file).unwrap();
        assert_eq!(
            (s.hub.as_str(), s.token.as_deref()),
            ("http://file:1", Some("from-file"))
        );

        let with_env = |n: &str| match n {
            "CNOVA_HUB" => Some("https://env".to_owned()),
            "CNOVA_TOKEN" => Some("from-env".to_owned()),
            _ => only_file(n),
        };
        let s = resolve(&Global::default(), &with_env).unwrap();
        assert_eq!((s.hub.as_str(), s.token.as_deref()), ("https://env", Some("from-env")));

        let token_file = Some(dir.path().join("cnova/t"));
        let flags = Global {
            hub: Some("http://flag:2".into()),
            token_file,
            ..Global::default()
        };
        let s = resolve(&flags, &with_env).unwrap();
        assert_eq!(
            (s.hub.as_str(), s.token.as_deref()),
            ("http://flag:2", Some("from-file"))
        );
    }

    #[test]
    fn nonsense_is_refused_with_its_place() {
        let none = |_: &str| None;
        for hub in ["hub:8080", "ftp://x", "http://", "http://a b", "http://user:pass@hub"] {
            let flags = Global {
                hub: Some(hub.into()),
                ..Global::default()
            };
            assert!(
                matches!(resolve(&flags, &none), Err(SettingsError::BadUrl { .. })),
                "{hub}"
            );
        }
        let flags = Global {
            token: Some("a\nb".into()),
            ..Global::default()
        };
        assert!(matches!(resolve(&flags, &none), Err(SettingsError::BadToken { .. })));
    }
}
