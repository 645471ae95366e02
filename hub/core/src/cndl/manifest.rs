//! The sealed result of parsing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::errors::{ManifestError, ManifestErrors, quoted};
use super::model::{Application, ArtifactRef, SecretDef, WorkloadDef};
use super::tree::{Node, Position};
use super::{MAX_MANIFEST_BYTES, Origin, checks, convert_error, schema, tree, wire};

/// A manifest that passed the schema and every check. Only [`parse`](super::parse) makes one.
///
/// It serializes to its canonical form; two are equal if they mean the same, whatever they were written in.
#[derive(Clone, Debug)]
pub struct Manifest {
    application: Application,
    source_name: String,
    /// Where each artifact and each secret's name stands, for errors that only show when it is looked up.
    places: BTreeMap<String, Position>,
}

impl PartialEq for Manifest {
    fn eq(&self, other: &Self) -> bool {
        self.application == other.application
    }
}

impl Serialize for Manifest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        wire::Document::from(&self.application).serialize(serializer)
    }
}

impl Manifest {
    pub(super) fn parse(text: &str, source_name: &str, origin: Origin) -> Result<Self, ManifestErrors> {
        let fail = |errors| ManifestErrors::new(source_name, errors);
        let tree = tree::read(text).map_err(|e| fail(vec![e]))?;
        let value = tree.to_value();
        let mut errors = schema::check(&tree, &value);
        let more = checks::check(&tree, &value, &errors, origin);
        errors.extend(more);
        if !errors.is_empty() {
            return Err(fail(errors));
        }
        let document: wire::Document =
            serde_json::from_value(value).map_err(|e| fail(vec![convert_error(&e.to_string())]))?;
        let application = Application::try_from(document).map_err(|e| fail(vec![convert_error(&e.to_string())]))?;
        let places = artifacts(&application)
            .map(|(pointer, _)| pointer)
            .chain(secrets(&application).map(|(pointer, ..)| pointer))
            .map(|pointer| (pointer.clone(), tree.position_of(&pointer)))
            .collect();
        let manifest = Self {
            application,
            source_name: source_name.to_owned(),
            places,
        };
        manifest.check_written_form(&tree).map_err(|e| fail(vec![e]))?;
        Ok(manifest)
    }

    /// What it says.
    #[must_use]
    pub const fn application(&self) -> &Application {
        &self.application
    }

    /// The name that the caller gave the text, usually its path.
    #[must_use]
    pub fn source_name(&self) -> &str {
        &self.source_name
    }

    /// The canonical form as a value: every default filled in, memory in bytes, CPU in cores, durations in seconds.
    #[must_use]
    pub fn to_value(&self) -> Value {
        // Nothing in the wire form can fail to serialize: keys are text and numbers are finite.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Artifacts that are still files beside the manifest. The hub refuses a manifest that has any.
    #[must_use]
    pub fn unresolved_files(&self) -> BTreeSet<&str> {
        artifacts(&self.application)
            .filter_map(|(_, artifact)| artifact.file())
            .collect()
    }

    /// Digests of all artifacts that are already named by their content.
    #[must_use]
    pub fn digests(&self) -> BTreeSet<&str> {
        artifacts(&self.application)
            .filter_map(|(_, artifact)| artifact.digest())
            .collect()
    }

    /// What only showed when the programs of workloads were looked into, each at the place of its artifact: the
    /// workload's name, what is wrong, and what would be right.
    #[must_use]
    pub fn artifact_mistakes(&self, found: Vec<(String, String, Option<String>)>) -> ManifestErrors {
        let at = |(workload, message, hint): (String, String, Option<String>)| {
            let index = self.application.workloads.iter().position(|w| w.name == workload);
            let pointer = format!("/workloads/{}/artifact", index.unwrap_or_default());
            (pointer, message, hint)
        };
        self.mistakes(found.into_iter().map(at).collect())
    }

    /// What only showed when artifacts and secrets were looked up: the JSON pointer of each, what is wrong, and what
    /// would be right.
    #[must_use]
    pub fn mistakes(&self, found: Vec<(String, String, Option<String>)>) -> ManifestErrors {
        let place = |(pointer, message, hint): (String, String, Option<String>)| {
            let Position { line, column } = self.places.get(&pointer).copied().unwrap_or(Position::START);
            ManifestError {
                line,
                column,
                pointer,
                message,
                hint,
            }
        };
        ManifestErrors::new(&self.source_name, found.into_iter().map(place).collect())
    }

    /// The secrets that its workloads are given, each with the JSON pointer of its name.
    pub fn secrets(&self) -> impl Iterator<Item = (String, &WorkloadDef, &SecretDef)> {
        secrets(&self.application)
    }

    /// Replaces each file by the digest (`sha256:<64 hex digits>`) that the map gives for its path as written.
    ///
    /// # Errors
    /// Every file that the map does not name, and every digest that is not one.
    pub fn resolve_files(mut self, digests: &BTreeMap<String, String>) -> Result<Self, ManifestErrors> {
        let mut errors = Vec::new();
        for workload_index in 0..self.application.workloads.len() {
            let at = format!("/workloads/{workload_index}");
            let workload = &mut self.application.workloads[workload_index];
            let program = std::iter::once((format!("{at}/artifact"), &mut workload.artifact));
            let inputs = workload
                .files
                .iter_mut()
                .enumerate()
                .map(|(i, file)| (format!("{at}/files/{i}/artifact"), &mut file.artifact));
            for (pointer, artifact) in program.chain(inputs) {
                if let Err((message, hint)) = resolve(artifact, digests) {
                    let position = self.places.get(&pointer).copied().unwrap_or(Position::START);
                    let Position { line, column } = position;
                    errors.push(ManifestError {
                        line,
                        column,
                        pointer,
                        message,
                        hint,
                    });
                }
            }
        }
        if errors.is_empty() {
            Ok(self)
        } else {
            Err(ManifestErrors::new(&self.source_name, errors))
        }
    }

    /// The hub stores the canonical form and parses it again at boot: what is accepted once must be accepted then,
    /// with its defaults and aliases written out and its files replaced by digests.
    fn check_written_form(&self, tree: &Node) -> Result<(), ManifestError> {
        let written = super::canonical_json(self);
        let bytes = written.len() + artifacts(&self.application).count() * DIGEST_BYTES;
        let refusal = if bytes > MAX_MANIFEST_BYTES {
            Some(format!(
                "it has {bytes} bytes; at most {MAX_MANIFEST_BYTES} are accepted"
            ))
        } else {
            tree::read(&written).err().map(|e| e.message)
        };
        let Some(why) = refusal else { return Ok(()) };
        let Position { line, column } = tree.position;
        let message = format!("cannot be stored with its defaults and aliases written out: {why}");
        Err(ManifestError {
            line,
            column,
            pointer: String::new(),
            message,
            hint: None,
        })
    }
}

/// Room for the digest that will replace a shorter file name.
const DIGEST_BYTES: usize = 80;

/// All artifacts with their JSON pointers, in the order of the manifest.
fn artifacts(application: &Application) -> impl Iterator<Item = (String, &ArtifactRef)> {
    application.workloads.iter().enumerate().flat_map(|(w, workload)| {
        let inputs = workload.files.iter().enumerate();
        std::iter::once((format!("/workloads/{w}/artifact"), &workload.artifact))
            .chain(inputs.map(move |(f, file)| (format!("/workloads/{w}/files/{f}/artifact"), &file.artifact)))
    })
}

/// All secrets with the JSON pointers of their names.
fn secrets(application: &Application) -> impl Iterator<Item = (String, &WorkloadDef, &SecretDef)> {
    application.workloads.iter().enumerate().flat_map(|(w, workload)| {
        let given = workload.secrets.iter().enumerate();
        given.map(move |(s, secret)| (format!("/workloads/{w}/secrets/{s}/name"), workload, secret))
    })
}

pub(super) fn resolve(
    artifact: &mut ArtifactRef,
    digests: &BTreeMap<String, String>,
) -> Result<(), (String, Option<String>)> {
    let ArtifactRef::File { path, size } = artifact else {
        return Ok(());
    };
    let Some(digest) = digests.get(path.as_str()) else {
        let hint = "upload it first; `cnova apply` does".to_owned();
        return Err((format!("the file {} has not been uploaded", quoted(path)), Some(hint)));
    };
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        let message = format!("the file {} was given the digest {}", quoted(path), quoted(digest));
        return Err((
            message,
            Some("a digest is \"sha256:\" and 64 lowercase hex digits".to_owned()),
        ));
    }
    *artifact = ArtifactRef::Digest {
        digest: digest.clone(),
        size: *size,
    };
    Ok(())
}
