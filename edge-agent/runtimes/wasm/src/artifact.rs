//! The precompiled artifact: checked, then mapped.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cnova_ral::Spec;
use cnova_ral::settings::Wasm;
use ring::digest::{Context, SHA256};
use wasmtime::component::Component;
use wasmtime::{Engine, Module, Precompiled};

/// Read at a time while hashing, in bytes.
const CHUNK_BYTES: usize = 64 << 10;
/// How much of a foreign file is shown.
const BEGINNING_BYTES: usize = 16;

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
    #[error("artifact {path} is WebAssembly that is not compiled yet: the hub must compile it for this node first")]
    NotPrecompiled { path: PathBuf },
    #[error(
        "artifact {path} is no WebAssembly and nothing compiled from it: it begins with {beginning}; is the \
         workload's `runtime` right?"
    )]
    Foreign { path: PathBuf, beginning: String },
    #[error(
        "artifact {path} is for the interpreter ({}), which only `settings.pulley: true` allows",
        cnova_wasm_engine::PULLEY_TARGET
    )]
    Pulley { path: PathBuf },
    #[error(
        "artifact {path} is machine code, but `settings.pulley` says interpreter: the hub must compile it for {}",
        cnova_wasm_engine::PULLEY_TARGET
    )]
    NotPulley { path: PathBuf },
    #[error(
        "artifact {path} does not load: {reason} (this runtime takes {})",
        cnova_wasm_engine::ENGINE
    )]
    Load { path: PathBuf, reason: String },
}

/// Opens the file once, checks its digest and maps the very file that was checked.
pub(crate) fn load(engine: &Engine, spec: &Spec, settings: &Wasm) -> Result<Artifact, ArtifactError> {
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
    map(engine, &file, path, settings.pulley)
}

fn map(engine: &Engine, file: &File, path: &Path, pulley: bool) -> Result<Artifact, ArtifactError> {
    let load_error = |error: wasmtime::Error| {
        let (path, reason) = (path.to_owned(), format!("{error:#}"));
        // wasmtime's words: "Module was compiled for architecture '...'".
        match (
            pulley,
            reason.contains("compiled for architecture"),
            reason.contains("'pulley"),
        ) {
            (false, true, true) => ArtifactError::Pulley { path },
            (true, true, _) => ArtifactError::NotPulley { path },
            _ => ArtifactError::Load { path, reason },
        }
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
        Ok(None) | Err(_) => Err(foreign(file, path)),
    }
}

/// What is wrong with a file that nothing of ours was made of.
fn foreign(file: &File, path: &Path) -> ArtifactError {
    let path = path.to_owned();
    let mut beginning = [0; BEGINNING_BYTES];
    let count = match file.read_at(&mut beginning, 0) {
        Ok(count) => count,
        Err(source) => return ArtifactError::Read { path, source },
    };
    let beginning = &beginning[..count];
    if beginning.starts_with(b"\0asm") {
        return ArtifactError::NotPrecompiled { path };
    }
    let beginning = match beginning {
        [] => "nothing: it is empty".to_owned(),
        _ => format!("`{}`", beginning.escape_ascii()),
    };
    ArtifactError::Foreign { path, beginning }
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
