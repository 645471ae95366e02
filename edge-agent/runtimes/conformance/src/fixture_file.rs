//! Fixtures as a file, for runtimes that are not written in Rust.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use cnova_ral::{Spec, Stream};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Behaviour, Case, Fixture, sha256};

/// The file in the folder that `--fixtures` names.
pub const FIXTURES_FILE: &str = "fixtures.json";
/// Longest fixtures file, in bytes.
const FILE_BYTES_MAX: usize = 1 << 20;

/// Why a fixtures file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FixtureError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// It is not what it must be.
    #[error("{path}: {source}")]
    Json {
        /// Which file.
        path: PathBuf,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// One of its cases is wrong.
    #[error("{path}: behaviour `{behaviour}`: {reason}")]
    Case {
        /// Which file.
        path: PathBuf,
        /// Which case.
        behaviour: Behaviour,
        /// What is wrong with it.
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FixturesFile {
    runtime: String,
    behaviours: BTreeMap<Behaviour, Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    not_applicable: Option<String>,
    spec: Option<Map<String, Value>>,
    code: Option<i32>,
    signal: Option<i32>,
    #[serde(default)]
    stdout: Vec<String>,
    #[serde(default)]
    stderr: Vec<String>,
    detail: Option<String>,
    /// A program and its arguments.
    stimulus: Option<Vec<String>>,
}

impl Fixture {
    /// Reads `fixtures.json` in `dir`. Paths of artifacts, parts and mounts in it may be relative to `dir`; a digest that
    /// is not given is computed.
    ///
    /// # Errors
    /// What is wrong in which file and where.
    pub fn load(exe: &Path, dir: &Path) -> Result<Fixture, FixtureError> {
        let read = |path: &Path| {
            let path = path.to_owned();
            move |source| FixtureError::Read { path, source }
        };
        let dir = std::fs::canonicalize(dir).map_err(read(dir))?;
        let exe = std::fs::canonicalize(exe).map_err(read(exe))?;
        let path = dir.join(FIXTURES_FILE);
        let text = std::fs::read(&path).map_err(read(&path))?;
        if text.len() > FILE_BYTES_MAX {
            let source = io::Error::other(format!("it is longer than {FILE_BYTES_MAX} bytes"));
            return Err(FixtureError::Read { path, source });
        }
        let file: FixturesFile = serde_json::from_slice(&text).map_err(|source| FixtureError::Json {
            path: path.clone(),
            source,
        })?;
        let mut fixture = Fixture::new(exe, &file.runtime).map_err(read(&dir))?;
        for (behaviour, entry) in file.behaviours {
            let case = entry.into_case(&dir).map_err(|reason| FixtureError::Case {
                path: path.clone(),
                behaviour,
                reason,
            })?;
            fixture.cases.insert(behaviour, case);
        }
        Ok(fixture)
    }
}

impl Entry {
    fn into_case(self, dir: &Path) -> Result<Result<Case, String>, String> {
        let spec = match (self.not_applicable, self.spec) {
            (Some(reason), None) => return Ok(Err(reason)),
            (None, Some(spec)) => spec,
            _ => return Err("it needs either `spec` or `not_applicable`".into()),
        };
        let mut case = Case::new(whole_spec(spec, dir)?);
        case.code = self.code;
        case.signal = self.signal;
        case.detail = self.detail;
        case.lines
            .extend(self.stdout.into_iter().map(|line| (Stream::Stdout, line)));
        case.lines
            .extend(self.stderr.into_iter().map(|line| (Stream::Stderr, line)));
        if let Some(words) = self.stimulus {
            let (program, arguments) = words.split_first().ok_or("`stimulus` is empty")?;
            let (program, arguments, dir) = (program.clone(), arguments.to_vec(), dir.to_owned());
            case = case.stimulus(move || {
                let status = Command::new(&program).args(&arguments).current_dir(&dir).status();
                if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
                    eprintln!("stimulus {program}: {status:?}");
                }
            });
        }
        Ok(Ok(case))
    }
}

/// What a case need not say is filled in.
fn whole_spec(mut spec: Map<String, Value>, dir: &Path) -> Result<Spec, String> {
    let absolute = |value: &mut Value| {
        if let Some(text) = value.as_str() {
            *value = Value::String(dir.join(text).to_string_lossy().into_owned());
        }
    };
    for (list, field) in [("parts", "path"), ("mounts", "host")] {
        let entries = spec.get_mut(list).and_then(Value::as_array_mut);
        entries
            .into_iter()
            .flatten()
            .filter_map(|e| e.get_mut(field))
            .for_each(absolute);
    }
    let artifact = spec.get_mut("artifact").ok_or("`spec.artifact` is missing")?;
    absolute(artifact);
    let artifact = PathBuf::from(artifact.as_str().ok_or("`spec.artifact` is not a path")?);
    if !spec.contains_key("digest") {
        let digest = sha256(&artifact).map_err(|e| e.to_string())?;
        spec.insert("digest".into(), digest.into());
    }
    for part in spec
        .get_mut("parts")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let part = part.as_object_mut().ok_or("a part is not an object")?;
        if !part.contains_key("digest") {
            let path = part.get("path").and_then(Value::as_str).ok_or("a part has no path")?;
            let digest = sha256(Path::new(path)).map_err(|e| e.to_string())?;
            part.insert("digest".into(), digest.into());
        }
    }
    spec.entry("ral").or_insert(cnova_ral::RAL_VERSION.into());
    spec.entry("workload").or_insert("suite".into());
    let spec: Spec = serde_json::from_value(Value::Object(spec)).map_err(|e| format!("spec: {e}"))?;
    spec.check().map_err(|e| format!("spec: {e}"))?;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Fixture, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.bin"), "abc").unwrap();
        std::fs::write(dir.path().join(FIXTURES_FILE), text).unwrap();
        Fixture::load(Path::new("/bin/true"), dir.path()).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_not_said_is_filled_in() {
        let fixture = load(
            r#"{"runtime":"x","behaviours":{
                "exits_with":{"code":7,"spec":{"artifact":"a.bin","parts":[{"path":"a.bin"}],"settings":{"k":1}}},
                "fails":{"not_applicable":"it never does"}}}"#,
        )
        .unwrap();
        let case = fixture.get(Behaviour::ExitsWith).unwrap();
        assert_eq!(case.code, Some(7));
        assert!(case.spec.artifact.is_absolute());
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(
            (case.spec.digest.as_str(), case.spec.parts[0].digest.as_str()),
            (abc, abc)
        );
        let reason = fixture.get(Behaviour::Fails).unwrap_err();
        assert_eq!(reason, crate::Stop::NotApplicable("fails: it never does".into()));
        assert!(matches!(fixture.get(Behaviour::Prints), Err(crate::Stop::Failed(_))));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("{", "fixtures.json"),
            (r#"{"runtime":"x","behaviours":{"flies":{}}}"#, "flies"),
            (
                r#"{"runtime":"x","behaviours":{"fails":{}}}"#,
                "`fails`: it needs either",
            ),
            (r#"{"runtime":"x","behaviours":{"fails":{"spec":{}}}}"#, "artifact"),
            (
                r#"{"runtime":"x","behaviours":{"fails":{"spec":{"artifact":"b.bin"}}}}"#,
                "b.bin",
            ),
            (r#"{"runtime":"x","behaviours":{"fails":{"specs":{}}}}"#, "specs"),
        ] {
            let message = load(text).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }
}
