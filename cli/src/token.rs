//! `cnova token new`: a token for a person or a script, and its hash for the hub.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::ValueEnum;
use cnova_shared::ids::{Digest, Name};
use ring::rand::{SecureRandom, SystemRandom};
use serde::Deserialize;
use serde_json::json;
use thiserror::Error;

use crate::args::Token;
use crate::output::Screen;

const TOKEN_BYTES: usize = 32;

/// No token was made.
#[derive(Debug, Error)]
pub(crate) enum TokenError {
    #[error("the system gave no random bytes")]
    NoRandomness,
    #[error("cannot read the token file {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a token file: {reason}\n  nothing was added to it", path.display())]
    NotATokenFile { path: PathBuf, reason: String },
    #[error("{} has a token of the name {name} already: choose another name, or remove that entry to take the token away", path.display())]
    NameTaken { path: PathBuf, name: Name },
    #[error("cannot add to the token file {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

#[derive(Deserialize)]
struct TokenFile {
    #[serde(default)]
    token: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
}

/// Runs the command.
pub(crate) fn run(what: &Token, screen: &mut Screen<'_>) -> Result<(), TokenError> {
    let Token::New { name, role, tokens } = what;
    let old = read(tokens)?;
    if names(tokens, &old)?.iter().any(|n| n == name.as_str()) {
        return Err(TokenError::NameTaken {
            path: tokens.clone(),
            name: name.clone(),
        });
    }
    let mut random = [0; TOKEN_BYTES];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| TokenError::NoRandomness)?;
    let token = URL_SAFE_NO_PAD.encode(random);
    let role = role
        .to_possible_value()
        .map(|v| v.get_name().to_owned())
        .unwrap_or_default();
    // The hub hashes what it is shown: the text, not the bytes that it stands for.
    let entry = format!(
        "[[token]]\nname = \"{name}\"\nrole = \"{role}\"\nsha256 = \"{}\"\n",
        Digest::of(token.as_bytes()).hex()
    );
    let gap = if old.is_empty() {
        ""
    } else if old.ends_with('\n') {
        "\n"
    } else {
        "\n\n"
    };
    append(tokens, &format!("{gap}{entry}")).map_err(|source| TokenError::Write {
        path: tokens.clone(),
        source,
    })?;
    screen.document(&json!({ "name": name, "role": role, "token": token }), |s| {
        s.line(&token)
    })?;
    screen.flush()?;
    let note = format!("Its hash is in {}. The token is not shown again.", tokens.display());
    // Beside the token, so that standard output holds nothing else.
    let _ = writeln!(io::stderr(), "{note}");
    Ok(())
}

fn read(path: &Path) -> Result<String, TokenError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(TokenError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn names(path: &Path, text: &str) -> Result<Vec<String>, TokenError> {
    let parsed: Result<TokenFile, _> = toml::from_str(text);
    let file = parsed.map_err(|e| TokenError::NotATokenFile {
        path: path.to_owned(),
        reason: e.to_string(),
    })?;
    Ok(file.token.into_iter().map(|t| t.name).collect())
}

/// In one write, so that a reader sees the entry whole or not at all.
fn append(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
