//! The precompiled artifact: checked, then mapped.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use cnova_ral::Spec;
use ring::digest::{Context, SHA256};
use wasmtime::component::Component;
use wasmtime::{Engine, Module, Precompiled};

/// Read at a time while hashing, in bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// Machine code that is mapped and ready to be instantiated.
pub(crate) enum Artifact {
    /// For WASI preview 1.
    Module(Module),
    /// For WASI 0.2.
    Component(Component),
}

/// Why an artifact is not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArtifactError {
    #[error("cannot read artifact {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("artifact {path} has digest sha256:{found}, the spec says {wanted}: fetch it again")]
    Digest {
        path: PathBuf,
        found: String,
        wanted: String,
    },
    #[error("artifact {path} is not precompiled: the hub must compile it for this node first")]
    NotPrecompiled { path: PathBuf },
    #[error(
        "artifact {path} does not load: {reason} (this runtime takes {})",
        cnova_wasm_engine::ENGINE
    )]
    Load { path: PathBuf, reason: String },
}

/// Opens the file once, checks its digest and maps the very file that was checked.
pub(crate) fn load(engine: &Engine, spec: &Spec) -> Result<Artifact, ArtifactError> {
    let path = &spec.artifact;
    let read_error = |source| ArtifactError::Read {
        path: path.clone(),
        source,
    };
    let mut file = File::open(path).map_err(read_error)?;
    let found = sha256(&mut file).map_err(read_error)?;
    if spec.sha256().is_none_or(|wanted| wanted != found) {
        return Err(ArtifactError::Digest {
            path: path.clone(),
            found: hex(&found),
            wanted: spec.digest.clone(),
        });
    }
    map(engine, &file, path)
}

fn map(engine: &Engine, file: &File, path: &Path) -> Result<Artifact, ArtifactError> {
    let load_error = |error: wasmtime::Error| ArtifactError::Load {
        path: path.to_owned(),
        reason: format!("{error:#}"),
    };
    // Not by its own name, behind which another file may lie by now.
    let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
    match Engine::detect_precompiled_file(&opened) {
        // SAFETY: loading trusts every byte. The digest was just found to be the one in the spec, which comes from a
        // verified twin, and artifacts are written once and never changed in place.
        Ok(Some(Precompiled::Module)) => unsafe { Module::deserialize_file(engine, &opened) }
            .map(Artifact::Module)
            .map_err(load_error),
        // SAFETY: as above.
        Ok(Some(Precompiled::Component)) => unsafe { Component::deserialize_file(engine, &opened) }
            .map(Artifact::Component)
            .map_err(load_error),
        Ok(None) | Err(_) => Err(ArtifactError::NotPrecompiled { path: path.to_owned() }),
    }
}

fn sha256(file: &mut File) -> io::Result<[u8; 32]> {
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => context.update(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
