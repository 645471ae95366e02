//! Which files are manifests, and the files that they name.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ApplyError;

/// What `apiVersion` says in a manifest of ours.
const API_VERSION: &str = "cnova/v1";
/// Largest manifest that is read; the hub's own limit, of the same size, has the last word.
const MANIFEST_BYTES: u64 = 1024 * 1024;
/// Deepest folder below the one that was named.
const FOLDER_DEPTH: usize = 8;
/// Most files and folders that are looked at below one folder.
const FOLDER_ENTRIES: usize = 10_000;

/// A manifest as it stands in its file.
#[derive(Clone, Debug)]
pub(super) struct ManifestFile {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// A file that a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileReference {
    /// As written.
    pub(super) name: String,
    /// The JSON pointer to it.
    pub(super) pointer: String,
    /// Whether it is the program of a container: an image, of which more than one file is uploaded.
    pub(super) is_image: bool,
}

impl ManifestFile {
    pub(super) fn source_name(&self) -> String {
        self.path.display().to_string()
    }

    /// Whether it is of kind System, which has a place of its own at the hub.
    pub(super) fn is_system(&self) -> bool {
        parse(&self.text).is_some_and(|v| v.get("kind").and_then(Value::as_str) == Some("System"))
    }

    /// The files that it names. A text that cannot be read names none: the hub says what is wrong with it, and where.
    pub(super) fn references(&self) -> Vec<FileReference> {
        parse(&self.text).map(|v| references(&v)).unwrap_or_default()
    }
}

/// Reads every manifest that the paths mean, each once.
pub(super) fn read_all(paths: &[PathBuf]) -> Result<Vec<ManifestFile>, ApplyError> {
    let (mut manifests, mut seen) = (Vec::new(), BTreeSet::new());
    for path in paths {
        let is_folder = fs::metadata(path)
            .map_err(|source| ApplyError::Read {
                path: path.clone(),
                source,
            })?
            .is_dir();
        let found = if is_folder { in_folder(path)? } else { vec![read(path)?] };
        for manifest in found {
            let identity = fs::canonicalize(&manifest.path).unwrap_or_else(|_| manifest.path.clone());
            if seen.insert(identity) {
                manifests.push(manifest);
            }
        }
    }
    Ok(manifests)
}

fn read(path: &Path) -> Result<ManifestFile, ApplyError> {
    let failed = |source| ApplyError::Read {
        path: path.to_owned(),
        source,
    };
    let file = fs::File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes > MANIFEST_BYTES {
        return Err(ApplyError::ManifestTooLarge {
            path: path.to_owned(),
            bytes,
            max: MANIFEST_BYTES,
        });
    }
    let mut content = Vec::new();
    // A pipe has no size to look at beforehand.
    file.take(MANIFEST_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() as u64 > MANIFEST_BYTES {
        let bytes = content.len() as u64;
        return Err(ApplyError::ManifestTooLarge {
            path: path.to_owned(),
            bytes,
            max: MANIFEST_BYTES,
        });
    }
    let text = String::from_utf8(content).map_err(|_| ApplyError::NotText { path: path.to_owned() })?;
    Ok(ManifestFile {
        path: path.to_owned(),
        text,
    })
}

fn in_folder(folder: &Path) -> Result<Vec<ManifestFile>, ApplyError> {
    let mut found = Vec::new();
    let mut looked_at = 0;
    let mut waiting = vec![(folder.to_owned(), 0)];
    while let Some((path, depth)) = waiting.pop() {
        let mut entries = list(&path).map_err(|source| ApplyError::Read {
            path: path.clone(),
            source,
        })?;
        entries.sort();
        looked_at += entries.len();
        if looked_at > FOLDER_ENTRIES || depth > FOLDER_DEPTH {
            let (path, max, entries) = (folder.to_owned(), FOLDER_DEPTH, FOLDER_ENTRIES);
            return Err(ApplyError::FolderTooLarge { path, max, entries });
        }
        for (entry, is_folder) in entries {
            let name = entry
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default();
            let is_yaml_or_json = entry
                .extension()
                .is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
            if name.starts_with('.') {
                continue;
            } else if is_folder && name != "build" {
                waiting.push((entry, depth + 1));
            } else if !is_folder && is_yaml_or_json {
                found.extend(if_manifest(&entry)?);
            }
        }
    }
    if found.is_empty() {
        return Err(ApplyError::NoManifests {
            path: folder.to_owned(),
        });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Links to folders are not followed: they can make a folder endless.
fn list(folder: &Path) -> io::Result<Vec<(PathBuf, bool)>> {
    fs::read_dir(folder)?
        .map(|entry| entry.and_then(|e| Ok((e.path(), e.file_type()?.is_dir()))))
        .collect()
}

/// Other YAML and JSON may lie beside the manifests. Only a file that was named is sent whatever it holds.
fn if_manifest(path: &Path) -> Result<Option<ManifestFile>, ApplyError> {
    let manifest = match read(path) {
        Ok(manifest) => manifest,
        Err(ApplyError::ManifestTooLarge { .. } | ApplyError::NotText { .. }) => return Ok(None),
        Err(e) => return Err(e),
    };
    let is_ours = match parse(&manifest.text) {
        Some(value) => value.get("apiVersion").and_then(Value::as_str) == Some(API_VERSION),
        // It looks like one and cannot be read: the hub shall say where it is broken.
        None => manifest.text.contains("apiVersion") && manifest.text.contains(API_VERSION),
    };
    Ok(is_ours.then_some(manifest))
}

fn parse(text: &str) -> Option<Value> {
    serde_json::from_str(text)
        .ok()
        .or_else(|| serde_saphyr::from_str(text).ok())
}

/// Every file at the places where the formats have one: `artifact.file`, and a system's `bundle.file`.
fn references(manifest: &Value) -> Vec<FileReference> {
    let list = |v: Option<&Value>| v.and_then(Value::as_array).cloned().unwrap_or_default();
    let mut found: Vec<FileReference> = Vec::new();
    if let Some(name) = manifest.pointer("/bundle/file").and_then(Value::as_str) {
        found.push(FileReference {
            name: name.to_owned(),
            pointer: "/bundle/file".to_owned(),
            is_image: false,
        });
        return found;
    }
    let mut add = |holder: &Value, pointer: String, is_image: bool| {
        if let Some(name) = holder.pointer("/artifact/file").and_then(Value::as_str)
            && !found.iter().any(|f| f.name == name)
        {
            found.push(FileReference {
                name: name.to_owned(),
                pointer: format!("{pointer}/artifact/file"),
                is_image,
            });
        }
    };
    for (w, workload) in list(manifest.get("workloads")).iter().enumerate() {
        let is_image = workload.get("runtime").and_then(Value::as_str) == Some("container");
        add(workload, format!("/workloads/{w}"), is_image);
        for (f, file) in list(workload.get("files")).iter().enumerate() {
            add(file, format!("/workloads/{w}/files/{f}"), false);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str) -> ManifestFile {
        ManifestFile {
            path: "m.yaml".into(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn files_are_found_where_the_format_has_them() {
        let text = "workloads:\n- name: a\n  artifact: {file: build/a.wasm}\n  files:\n  - path: /x\n    artifact: {file: x.txt}\n  - artifact: {digest: d}\n- artifact: {file: build/a.wasm}\n";
        let found = manifest(text).references();
        let flat: Vec<(&str, &str)> = found.iter().map(|f| (f.name.as_str(), f.pointer.as_str())).collect();
        assert_eq!(
            flat,
            [
                ("build/a.wasm", "/workloads/0/artifact/file"),
                ("x.txt", "/workloads/0/files/0/artifact/file")
            ]
        );
    }

    #[test]
    fn a_system_names_its_bundle() {
        let system = manifest("kind: System\nbundle: {file: out/system-2.cnova}\n");
        assert!(system.is_system() && !manifest("kind: Application\n").is_system());
        let found = system.references();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].name.as_str(), found[0].pointer.as_str()),
            ("out/system-2.cnova", "/bundle/file")
        );
    }

    #[test]
    fn odd_texts_name_no_files() {
        for odd in [
            "",
            "{",
            "- a",
            "workloads: 3",
            "workloads: [1, {artifact: 2}, {files: {}}]",
            "a: [\n",
            "artifact: {file: 7}",
        ] {
            assert_eq!(manifest(odd).references(), [], "{odd}");
        }
    }

    #[test]
    fn a_folder_means_its_manifests() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("b.yaml", "apiVersion: cnova/v1\n");
        put("sub/a.json", "{\"apiVersion\": \"cnova/v1\"}");
        put("broken.yml", "apiVersion: cnova/v1\nx: [");
        put("other.yaml", "apiVersion: apps/v1\n");
        put("notes.txt", "apiVersion: cnova/v1\n");
        put("build/c.yaml", "apiVersion: cnova/v1\n");
        put(".git/d.yaml", "apiVersion: cnova/v1\n");
        let found = read_all(&[dir.path().to_owned(), dir.path().join("b.yaml")]).unwrap();
        let names: Vec<_> = found
            .iter()
            .map(|m| m.path.strip_prefix(dir.path()).unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["b.yaml", "broken.yml", "sub/a.json"]);
        let build = read_all(&[dir.path().join("build/c.yaml")]).unwrap();
        assert_eq!(build.len(), 1, "a file that is named is taken wherever it lies");
    }
}
