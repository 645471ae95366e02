//! The state of the sources, by git, where they are in a repository and git is installed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cnova_provenance::Dependency;
use serde_json::{Map, Value, json};

use super::AttestError;
use super::inputs;

/// Most files that differ from the commit and are recorded by their content.
const CHANGED_MAX: usize = 1000;

fn ask(folder: &Path, arguments: &[&str]) -> Option<Vec<u8>> {
    let mut git = Command::new("git");
    git.arg("-C")
        .arg(folder)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let output = git.output().ok()?;
    output.status.success().then_some(output.stdout)
}

fn line(folder: &Path, arguments: &[&str]) -> Option<String> {
    let text = String::from_utf8(ask(folder, arguments)?).ok()?;
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

/// The commit that the sources are at, whether they differ from it, and in what. Nothing outside of a repository.
pub(super) fn state(folder: &Path) -> Result<Vec<Dependency>, AttestError> {
    let Some(commit) = line(folder, &["rev-parse", "--verify", "HEAD"]) else {
        return Ok(Vec::new());
    };
    let top = line(folder, &["rev-parse", "--show-toplevel"]).map_or_else(|| folder.to_owned(), PathBuf::from);
    let changed = changed(&top);
    let mut annotations = Map::new();
    annotations.insert("dirty".to_owned(), Value::Bool(!changed.is_empty()));
    let left_out = changed.len().saturating_sub(CHANGED_MAX);
    if left_out > 0 {
        annotations.insert("changedFilesLeftOut".to_owned(), json!(left_out));
    }
    let mut all = vec![Dependency {
        uri: uri(&top),
        digest: BTreeMap::from([("gitCommit".to_owned(), commit)]),
        annotations,
    }];
    // What was deleted has no content.
    for path in changed.iter().take(CHANGED_MAX).filter(|p| top.join(p).is_file()) {
        let mut one = inputs::of_file(&top.join(path))?;
        one.uri = format!("file:{}", path.display());
        all.push(one);
    }
    Ok(all)
}

/// Files that differ from the commit, those that git does not know included.
fn changed(top: &Path) -> Vec<PathBuf> {
    let list = ask(
        top,
        &[
            "status",
            "--porcelain=v1",
            "-z",
            "--untracked-files=all",
            "--no-renames",
        ],
    );
    let list = list.unwrap_or_default();
    let entries = list.split(|b| *b == 0).filter(|e| e.len() > 3);
    // Two letters and a space stand before each path.
    entries
        .map(|e| PathBuf::from(String::from_utf8_lossy(&e[3..]).into_owned()))
        .collect()
}

fn uri(top: &Path) -> String {
    match line(top, &["remote", "get-url", "origin"]) {
        Some(url) => format!("git+{}", without_credentials(&url)),
        None => format!("git+file:{}", top.file_name().unwrap_or_default().to_string_lossy()),
    }
}

/// A URL may hold a password, and provenance is for everybody to read.
fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_reaches_the_provenance() {
        for (url, shown) in [
            ("https://ann:secret@git.example/a/b.git", "https://git.example/a/b.git"),
            ("https://token@git.example", "https://git.example"),
            ("ssh://git@git.example:22/a@b", "ssh://git.example:22/a@b"),
            ("git@git.example:a/b.git", "git@git.example:a/b.git"),
        ] {
            assert_eq!(without_credentials(url), shown);
        }
    }
}
