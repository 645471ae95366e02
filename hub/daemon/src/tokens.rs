//! Who may use the API: names, roles and the hashes of their tokens.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use cnova_shared::ids::Digest;
use serde::{Deserialize, Serialize};

/// Shortest token that `hash-token` takes; `openssl rand -hex 32` makes 64 characters.
pub const TOKEN_CHARS_MIN: usize = 16;
/// Most tokens in one file; each request is compared with all of them.
pub const TOKENS_MAX: usize = 1000;

/// What a caller may do; each role may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Look.
    Viewer,
    /// Apply, delete and upload.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// The name in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The name of the token.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

/// All tokens.
#[derive(Clone, Debug, Default)]
pub struct Tokens(Vec<(Caller, [u8; 32])>);

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The file cannot be read.
    #[error(
        "cannot read the tokens {path}: {source}; make it with: printf '[[token]]\\nname = \"me\"\\nrole = \"admin\"\\n\
         sha256 = \"%s\"\\n' \"$(cnova-hub hash-token < token)\" > {path}"
    )]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// It is not understood.
    #[error("{path}: {reason}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    role: Role,
    sha256: String,
}

impl Tokens {
    /// Reads the file.
    ///
    /// # Errors
    /// [`TokensError`]; a file without any token is one, as nobody could use the hub.
    pub fn load(path: &Path) -> Result<Self, TokensError> {
        let text = std::fs::read_to_string(path).map_err(|source| TokensError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|reason| TokensError::Invalid {
            path: path.to_owned(),
            reason,
        })
    }

    /// Reads the text of the file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|e| e.to_string().trim().to_owned())?;
        let (mut tokens, mut names) = (Vec::new(), BTreeSet::new());
        for Entry { name, role, sha256 } in file.token {
            let digest: Digest = sha256.parse().map_err(|_| {
                format!(
                    "token {name:?}: sha256 is not 64 lower-case hexadecimal digits; `cnova-hub hash-token` prints them"
                )
            })?;
            if name.is_empty() || !names.insert(name.clone()) {
                return Err(format!(
                    "token {name:?}: each has a name of its own; it stands in the audit log"
                ));
            }
            tokens.push((Caller { name, role }, digest.0));
        }
        match tokens.len() {
            0 => Err("no [[token]] in it: nobody could use the hub".into()),
            1..=TOKENS_MAX => Ok(Self(tokens)),
            more => Err(format!("{more} tokens, at most {TOKENS_MAX}")),
        }
    }

    /// Whose token this is. Takes the same time whatever the token and wherever it stands.
    #[must_use]
    pub fn find(&self, token: &str) -> Option<&Caller> {
        let offered = Digest::of(token.as_bytes()).0;
        let mut found = None;
        for (caller, known) in &self.0 {
            if is_same(&offered, known) {
                found = Some(caller);
            }
        }
        found
    }
}

/// Compares without stopping at the first difference.
fn is_same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let differences = a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y));
    std::hint::black_box(differences) == 0
}

/// The hash of a token, as it stands in the file.
///
/// # Errors
/// When it is too short, or holds what cannot stand in an HTTP header.
pub fn hash(token: &str) -> Result<String, String> {
    let token = token.trim();
    if token.len() < TOKEN_CHARS_MIN || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!(
            "a token has at least {TOKEN_CHARS_MIN} printable ASCII characters and no spaces; make one with: openssl rand -hex 32"
        ));
    }
    Ok(Digest::of(token.as_bytes()).hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_by_their_hash_alone() {
        let token = "0123456789abcdef";
        let text = format!(
            "[[token]]\nname = \"ops\"\nrole = \"operator\"\nsha256 = \"{}\"",
            hash(token).unwrap()
        );
        let tokens = Tokens::parse(&text).unwrap();
        assert_eq!(
            tokens.find(token),
            Some(&Caller {
                name: "ops".into(),
                role: Role::Operator
            })
        );
        assert_eq!(tokens.find("0123456789abcdeF"), None);
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
    }

    #[test]
    fn wrong_files_say_what_is_wrong() {
        let entry = |sha: &str| format!("[[token]]\nname = \"a\"\nrole = \"viewer\"\nsha256 = \"{sha}\"\n");
        let good = entry(&"a".repeat(64));
        for (text, word) in [
            (String::new(), "nobody"),
            (entry("abc"), "hash-token"),
            (format!("{good}{good}"), "name of its own"),
            (good.replace("viewer", "root"), "unknown variant"),
        ] {
            let error = Tokens::parse(&text).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        assert!(hash("short").is_err());
    }
}
