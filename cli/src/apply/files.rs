//! Artifacts: hashed where they lie, and brought to the hub when it does not have them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cnova_shared::ids::Digest;
use cnova_shared::limits;
use ring::digest::{Context, SHA256};

use super::ApplyError;
use super::manifests::{FileReference, ManifestFile};
use crate::artifact;
use crate::client::Hub;
use crate::output::Screen;
use crate::provenance;

const READ_BYTES: usize = 64 * 1024;

/// A file that a manifest names, with what it holds.
#[derive(Debug)]
pub(super) struct LocalFile {
    /// As written in the manifest.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) digest: Digest,
    pub(super) bytes: u64,
    /// Whether it is an image; digest and size are those of its manifest then.
    pub(super) is_image: bool,
}

/// Hashes every file that a manifest names.
pub(super) fn hash_all(manifest: &ManifestFile) -> Result<Vec<LocalFile>, ApplyError> {
    // An absolute path is against the format: it is not read, and the hub says where it stands.
    let relative = manifest
        .references()
        .into_iter()
        .filter(|r| !Path::new(&r.name).is_absolute());
    relative.map(|r| hash_one(manifest, r)).collect()
}

fn hash_one(manifest: &ManifestFile, reference: FileReference) -> Result<LocalFile, ApplyError> {
    let FileReference {
        name,
        pointer,
        is_image,
    } = reference;
    let path = manifest.path.parent().unwrap_or(Path::new("")).join(&name);
    let at = manifest.source_name();
    if is_image && path.exists() {
        return match artifact::identify(&path) {
            Ok((digest, bytes)) => Ok(LocalFile {
                name,
                path,
                digest,
                bytes,
                is_image,
            }),
            Err(source) => Err(ApplyError::Image {
                manifest: at,
                pointer,
                source: Box::new(source),
            }),
        };
    }
    match hash(&path) {
        Ok((digest, bytes)) if bytes <= limits::ARTIFACT_BYTES => Ok(LocalFile {
            name,
            path,
            digest,
            bytes,
            is_image: false,
        }),
        Ok((_, bytes)) => {
            let max = limits::ARTIFACT_BYTES;
            Err(ApplyError::ArtifactTooLarge {
                manifest: at,
                pointer,
                file: name,
                bytes,
                max,
            })
        }
        Err(source) => Err(ApplyError::Artifact {
            manifest: at,
            pointer,
            file: name,
            path,
            source,
        }),
    }
}

/// Digest and size. Reading stops where the file is too large to be an artifact.
fn hash(path: &Path) -> io::Result<(Digest, u64)> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if metadata.len() > limits::ARTIFACT_BYTES {
        return Ok((Digest([0; 32]), metadata.len()));
    }
    let (mut context, mut total) = (Context::new(&SHA256), 0);
    let mut buffer = vec![0; READ_BYTES];
    while total <= limits::ARTIFACT_BYTES {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        context.update(&buffer[..n]);
        total += n as u64;
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    Ok((Digest(digest), total))
}

/// The files that the hub does not have, each content once.
pub(super) fn missing<'f>(hub: &Hub, files: &'f [LocalFile]) -> Result<Vec<&'f LocalFile>, ApplyError> {
    let (mut asked, mut missing) = (BTreeSet::new(), Vec::new());
    for file in files {
        if !asked.insert(file.digest) {
            continue;
        }
        let lacking = if file.is_image {
            artifact::is_lacking(hub, &file.path)?
        } else {
            !hub.has_artifact(&file.digest)?
        };
        if lacking {
            missing.push(file);
        }
    }
    Ok(missing)
}

/// Uploads files, and says so.
pub(super) fn upload(hub: &Hub, files: &[&LocalFile], screen: &mut Screen<'_>) -> Result<(), ApplyError> {
    for file in files {
        if file.is_image {
            artifact::upload(hub, &file.path, screen)?;
            continue;
        }
        let path = || file.path.clone();
        let open = File::open(&file.path).map_err(|source| ApplyError::Read { path: path(), source })?;
        let uploaded = hub.upload(&file.digest, &open);
        uploaded.map_err(|source| ApplyError::Upload { path: path(), source })?;
        say("uploaded", file, screen)?;
    }
    Ok(())
}

/// Brings the provenance that lies beside files to the hub.
pub(super) fn attach(hub: &Hub, files: &[LocalFile], screen: &mut Screen<'_>) -> Result<(), ApplyError> {
    let mut done = BTreeSet::new();
    for file in files.iter().filter(|f| done.insert(&f.path)) {
        provenance::attach_beside(hub, &file.path, &file.digest, screen)?;
    }
    Ok(())
}

/// One line for people about a file.
pub(super) fn say(done: &str, file: &LocalFile, screen: &mut Screen<'_>) -> io::Result<()> {
    if screen.is_table() {
        let LocalFile {
            name, bytes, digest, ..
        } = file;
        screen.line(&format!("{done} {name} ({bytes} bytes, {})", digest.short()))?;
        screen.flush()?;
    }
    Ok(())
}
