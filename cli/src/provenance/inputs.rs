//! What went into a build: files, by their content.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cnova_provenance::{Dependency, MATERIALS_MAX};
use cnova_shared::ids::Digest;
use cnova_shared::limits;
use ring::digest::{Context, SHA256};

use super::AttestError;

const READ_BYTES: usize = 64 * 1024;
/// Folders that hold no inputs of their own.
const PASSED_OVER: [&str; 1] = [".git"];

/// The SHA-256 of a file and its length.
fn hash(path: &Path) -> io::Result<(Digest, u64)> {
    let mut file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let (mut context, mut total, mut buffer) = (Context::new(&SHA256), 0, vec![0; READ_BYTES]);
    loop {
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

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> AttestError {
    let path = path.to_owned();
    move |source| AttestError::Read { path, source }
}

/// The digest of a file that is to be an artifact.
pub(super) fn hash_artifact(path: &Path) -> Result<Digest, AttestError> {
    let (digest, bytes) = hash(path).map_err(unreadable(path))?;
    if bytes == 0 || bytes > limits::ARTIFACT_BYTES {
        let path = path.to_owned();
        return Err(AttestError::Size { path, bytes });
    }
    Ok(digest)
}

/// A file as a dependency, by its path as it was given.
pub(super) fn of_file(path: &Path) -> Result<Dependency, AttestError> {
    let (digest, _) = hash(path).map_err(unreadable(path))?;
    Ok(Dependency::of_file(format!("file:{}", path.display()), &digest))
}

/// Something that was named as an ingredient: a file, or a digest.
pub(super) fn of_material(text: &str) -> Result<Dependency, AttestError> {
    if let Ok(digest) = text.parse::<Digest>() {
        return Ok(Dependency::of_file(format!("urn:cnova:artifact:{digest}"), &digest));
    }
    if Path::new(text).is_file() {
        return of_file(Path::new(text));
    }
    Err(AttestError::Material(text.to_owned()))
}

/// The files that are named, and those in the folders that are named. Links are not followed.
pub(super) fn of_paths(paths: &[PathBuf]) -> Result<Vec<Dependency>, AttestError> {
    let mut files = Vec::new();
    for path in paths {
        collect(path, &mut files)?;
    }
    files.sort();
    files.dedup();
    files.iter().map(|path| of_file(path)).collect()
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), AttestError> {
    let kind = fs::symlink_metadata(path).map_err(unreadable(path))?;
    if !kind.is_dir() {
        if kind.is_file() {
            files.push(path.to_owned());
        }
        return check(files.len());
    }
    for entry in fs::read_dir(path).map_err(unreadable(path))? {
        let entry = entry.map_err(unreadable(path))?;
        if !PASSED_OVER.iter().any(|p| entry.file_name() == *p) {
            collect(&entry.path(), files)?;
        }
    }
    Ok(())
}

/// Refuses more inputs than a statement can name.
pub(super) fn check(found: usize) -> Result<(), AttestError> {
    if found > MATERIALS_MAX {
        return Err(AttestError::TooManyInputs {
            found,
            max: MATERIALS_MAX,
        });
    }
    Ok(())
}
