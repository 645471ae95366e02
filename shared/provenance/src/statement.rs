//! In-toto statements (version 1) whose predicate is SLSA provenance (version 1).

use std::collections::BTreeMap;

use cnova_shared::ids::Digest;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use thiserror::Error;

/// `_type` of a statement that is made here.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// The same statement under its older name, as cosign writes it.
const OLDER_STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v0.1";
/// `predicateType` of SLSA provenance, version 1.
pub const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// Most subjects of one statement.
pub const SUBJECTS_MAX: usize = 1024;
/// Most dependencies of one statement.
pub const MATERIALS_MAX: usize = 4096;

/// A signed payload that is not provenance.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StatementError {
    /// Not the JSON of a statement.
    #[error("its payload is not an in-toto statement: {0}")]
    NotAStatement(String),
    /// Another kind of statement.
    #[error("its payload is of type {0:?}, not {STATEMENT_TYPE}")]
    OtherType(String),
    /// Another predicate.
    #[error("it is about something else than provenance: predicate type {0:?}, not {PREDICATE_TYPE}")]
    OtherPredicate(String),
    /// Too many subjects or dependencies.
    #[error("it names {0} subjects and {1} dependencies; {SUBJECTS_MAX} and {MATERIALS_MAX} are looked at")]
    TooMany(usize, usize),
}

/// What a statement says, as far as it is looked at.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub(crate) subjects: Vec<Digest>,
    pub(crate) builder: String,
    pub(crate) build_type: String,
    pub(crate) materials: Vec<Digest>,
}

#[derive(Deserialize)]
struct Head {
    #[serde(rename = "_type")]
    kind: String,
    #[serde(rename = "predicateType")]
    predicate_type: String,
}

#[derive(Deserialize)]
struct Wire {
    subject: Vec<WireSubject>,
    predicate: Predicate,
}

#[derive(Deserialize)]
struct WireSubject {
    #[serde(default)]
    digest: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Predicate {
    build_definition: BuildDefinition,
    run_details: RunDetails,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BuildDefinition {
    build_type: String,
    #[serde(default)]
    resolved_dependencies: Vec<WireSubject>,
}

#[derive(Deserialize)]
struct RunDetails {
    builder: WireBuilder,
}

#[derive(Deserialize)]
struct WireBuilder {
    id: String,
}

/// The SHA-256 of each that has one.
fn sha256(named: &[WireSubject]) -> Vec<Digest> {
    let one = |s: &WireSubject| {
        s.digest
            .get("sha256")
            .and_then(|hex| format!("sha256:{hex}").parse().ok())
    };
    named.iter().filter_map(one).collect()
}

impl Statement {
    /// Parses a payload whose signature held.
    pub(crate) fn read(payload: &[u8]) -> Result<Self, StatementError> {
        let bad = |e: serde_json::Error| StatementError::NotAStatement(e.to_string());
        let head: Head = serde_json::from_slice(payload).map_err(bad)?;
        if ![STATEMENT_TYPE, OLDER_STATEMENT_TYPE].contains(&head.kind.as_str()) {
            return Err(StatementError::OtherType(clip(&head.kind)));
        }
        if head.predicate_type != PREDICATE_TYPE {
            return Err(StatementError::OtherPredicate(clip(&head.predicate_type)));
        }
        let wire: Wire = serde_json::from_slice(payload).map_err(bad)?;
        let (definition, run) = (wire.predicate.build_definition, wire.predicate.run_details);
        let (subjects, dependencies) = (wire.subject.len(), definition.resolved_dependencies.len());
        if subjects > SUBJECTS_MAX || dependencies > MATERIALS_MAX {
            return Err(StatementError::TooMany(subjects, dependencies));
        }
        Ok(Self {
            subjects: sha256(&wire.subject),
            builder: run.builder.id,
            build_type: definition.build_type,
            materials: sha256(&definition.resolved_dependencies),
        })
    }
}

fn clip(text: &str) -> String {
    cnova_shared::limits::clip_to(text, 80)
}

/// What a build made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Its name, for people.
    pub name: String,
    /// Its bytes.
    pub digest: Digest,
}

/// Something that went into a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// Where it is from.
    pub uri: String,
    /// By algorithm (`sha256`, `gitCommit`), in hexadecimal.
    pub digest: BTreeMap<String, String>,
    /// Further words about it.
    pub annotations: Map<String, Value>,
}

impl Dependency {
    /// A file by its content.
    #[must_use]
    pub fn of_file(uri: String, digest: &Digest) -> Self {
        Self {
            uri,
            digest: BTreeMap::from([("sha256".to_owned(), digest.hex())]),
            annotations: Map::new(),
        }
    }
}

/// A build, as it is put into a statement.
#[derive(Clone, Debug, PartialEq)]
pub struct Made<'a> {
    /// What it made.
    pub subjects: &'a [Subject],
    /// What kind of build it was, a URI.
    pub build_type: &'a str,
    /// What it was asked to do.
    pub parameters: Value,
    /// What went into it.
    pub dependencies: &'a [Dependency],
    /// Who built, a URI.
    pub builder: &'a str,
    /// Programs that took part, with their versions.
    pub builder_version: BTreeMap<String, String>,
    /// When it began, seconds since 1970.
    pub started_s: u64,
    /// When it was over, seconds since 1970.
    pub finished_s: u64,
}

/// The statement as the payload of an envelope.
#[must_use]
pub fn make(made: &Made<'_>) -> Vec<u8> {
    let subject = |s: &Subject| json!({"name": s.name, "digest": {"sha256": s.digest.hex()}});
    let dependency = |d: &Dependency| {
        let mut value = json!({"uri": d.uri, "digest": d.digest});
        if !d.annotations.is_empty() {
            value["annotations"] = Value::Object(d.annotations.clone());
        }
        value
    };
    let mut builder = json!({"id": made.builder});
    if !made.builder_version.is_empty() {
        builder["version"] = json!(made.builder_version);
    }
    let statement = json!({
        "_type": STATEMENT_TYPE,
        "subject": made.subjects.iter().map(subject).collect::<Vec<_>>(),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": made.build_type,
                "externalParameters": made.parameters,
                "resolvedDependencies": made.dependencies.iter().map(dependency).collect::<Vec<_>>(),
            },
            "runDetails": {
                "builder": builder,
                "metadata": {"startedOn": rfc3339(made.started_s), "finishedOn": rfc3339(made.finished_s)},
            },
        },
    });
    statement.to_string().into_bytes()
}

/// A time as RFC 3339 has it, in UTC: `2026-11-21T15:00:00Z`. Days are counted in eras of 400 years from 1 March 0000.
#[must_use]
pub fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}
