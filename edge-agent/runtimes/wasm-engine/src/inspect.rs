//! What a Wasm file is and what it needs, found out before anything is compiled.

use wasmparser::{Encoding, ExternalKind, Parser, Payload, Validator, WasmFeatures};

/// Interfaces that the runtime offers to modules: the second only with `grants.nn`.
const MODULE_NAMESPACES: [&str; 2] = ["wasi_snapshot_preview1", "wasi_ephemeral_nn"];
/// Interfaces that the runtime offers to components: the last only with `grants.nn`.
const COMPONENT_PACKAGES: [&str; 7] = [
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:filesystem/",
    "wasi:io/",
    "wasi:random/",
    "wasi:sockets/",
    "wasi:nn/",
];
/// What a runnable module exports.
const MODULE_ENTRY: &str = "_start";
/// What a runnable component exports: a program, or a workload that is asked.
const COMPONENT_ENTRIES: [&str; 2] = ["wasi:cli/run@0.2.", "cnova:workload/lifecycle@1."];
/// Imports that are listed; a file may have more.
const IMPORTS_MAX: usize = 1_000;
/// Longest name of an import that is kept, in bytes; the rest is cut off.
const IMPORT_BYTES_MAX: usize = 200;

/// Proposals worth naming when they are what a file is refused for.
const NAMED: [(WasmFeatures, &str); 6] = [
    (WasmFeatures::THREADS, "threads and shared memory"),
    (WasmFeatures::MEMORY64, "64-bit memories"),
    (WasmFeatures::RELAXED_SIMD, "relaxed SIMD"),
    (WasmFeatures::EXCEPTIONS, "exceptions"),
    (WasmFeatures::LEGACY_EXCEPTIONS, "legacy exceptions"),
    (WasmFeatures::CM_ASYNC, "component-model async"),
];

/// The two shapes of Wasm that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A core module for WASI preview 1.
    Module,
    /// A component for WASI 0.2.
    Component,
}

impl Kind {
    /// `module` or `component`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Module => "module",
            Kind::Component => "component",
        }
    }
}

/// What was found out about a valid and runnable file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Its shape.
    pub kind: Kind,
    /// What it imports: `namespace.function` for a module, an interface's name for a component. Sorted.
    pub imports: Vec<String>,
}

/// Why a file will never run here.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// Something else entirely.
    #[error("not a WebAssembly binary: it does not begin with \\0asm; {what}")]
    NotWasm {
        /// What it looks like.
        what: &'static str,
    },
    /// Damaged, or made by a broken tool.
    #[error("not valid WebAssembly: {reason}")]
    Invalid {
        /// What the validator said, with the offset.
        reason: String,
    },
    /// Valid, but for an engine with more proposals than ours.
    #[error("needs {feature}, which the runtime does not offer: build it without")]
    Feature {
        /// The proposal.
        feature: &'static str,
    },
    /// It wants something from the host that no runtime gives.
    #[error(
        "imports `{import}`, which the runtime does not offer: it has WASI preview 1, WASI 0.2 without HTTP, and wasi-nn"
    )]
    Import {
        /// The first such import.
        import: String,
    },
    /// A library, not a program.
    #[error(
        "has no entry point: a module must export `_start`, a component `wasi:cli/run@0.2.x` or \
         `cnova:workload/lifecycle@1.x`"
    )]
    NoEntry,
}

/// Validates a file and lists what it imports. It neither compiles nor runs anything.
pub fn inspect(bytes: &[u8]) -> Result<Inspection, InspectError> {
    if !bytes.starts_with(b"\0asm") {
        return Err(InspectError::NotWasm {
            what: looks_like(bytes),
        });
    }
    let ours = WasmFeatures::from_bits_truncate(crate::features().bits());
    if let Err(error) = validate(bytes, ours) {
        return Err(blame(bytes, ours, &error));
    }
    let found = read(bytes).map_err(|error| InspectError::Invalid {
        reason: error.to_string(),
    })?;
    if let Some(import) = found.foreign {
        return Err(InspectError::Import { import });
    }
    if !found.has_entry {
        return Err(InspectError::NoEntry);
    }
    let mut imports = found.imports;
    imports.sort();
    imports.dedup();
    Ok(Inspection {
        kind: found.kind,
        imports,
    })
}

/// What a file that is no WebAssembly looks like, for the person who named the wrong one.
fn looks_like(bytes: &[u8]) -> &'static str {
    let text = bytes.trim_ascii_start();
    match bytes {
        [] => "it is empty",
        [0x7f, b'E', b'L', b'F', ..] => {
            "it is an ELF program or an artifact that is compiled already: give the .wasm file"
        }
        [0x1f, 0x8b, ..] => "it is compressed with gzip: unpack it first",
        [b'P', b'K', 3, 4, ..] => "it is a zip archive: unpack it first",
        [b'#', b'!', ..] => "it is a script",
        _ if text.starts_with(b"(module") || text.starts_with(b"(component") => {
            "it is WebAssembly as text: make it binary first, with `wasm-tools parse`"
        }
        _ => "it is of no kind known here",
    }
}

fn validate(bytes: &[u8], features: WasmFeatures) -> wasmparser::Result<()> {
    Validator::new_with_features(features).validate_all(bytes).map(|_| ())
}

/// The proposal whose absence makes the file invalid, or else that it is invalid with all of them.
fn blame(bytes: &[u8], ours: WasmFeatures, error: &wasmparser::BinaryReaderError) -> InspectError {
    let everything = NAMED.iter().fold(ours, |all, (feature, _)| all | *feature);
    if validate(bytes, everything).is_ok()
        && let Some((_, feature)) = NAMED
            .iter()
            .find(|(feature, _)| validate(bytes, everything & !*feature).is_err())
    {
        return InspectError::Feature { feature };
    }
    InspectError::Invalid {
        reason: error.to_string(),
    }
}

struct Found {
    kind: Kind,
    imports: Vec<String>,
    foreign: Option<String>,
    has_entry: bool,
}

impl Found {
    fn import(&mut self, offered: bool, mut name: String) {
        name.truncate(name.floor_char_boundary(IMPORT_BYTES_MAX));
        if !offered && self.foreign.is_none() {
            self.foreign = Some(name.clone());
        }
        if self.imports.len() < IMPORTS_MAX {
            self.imports.push(name);
        }
    }
}

fn read(bytes: &[u8]) -> wasmparser::Result<Found> {
    let mut found = Found {
        kind: Kind::Module,
        imports: Vec::new(),
        foreign: None,
        has_entry: false,
    };
    // A component holds modules and components: only what the outermost one imports and exports counts.
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::Version {
                encoding: Encoding::Component,
                ..
            } if depth == 0 => found.kind = Kind::Component,
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            payload if depth == 0 => outermost(payload, &mut found)?,
            _ => {}
        }
    }
    Ok(found)
}

fn outermost(payload: Payload<'_>, found: &mut Found) -> wasmparser::Result<()> {
    match payload {
        Payload::ImportSection(imports) => {
            for import in imports.into_imports() {
                let import = import?;
                found.import(
                    MODULE_NAMESPACES.contains(&import.module),
                    format!("{}.{}", import.module, import.name),
                );
            }
        }
        Payload::ExportSection(exports) => {
            for export in exports {
                let export = export?;
                found.has_entry |= export.name == MODULE_ENTRY && export.kind == ExternalKind::Func;
            }
        }
        Payload::ComponentImportSection(imports) => {
            for import in imports {
                let name = import?.name.name;
                let offered = COMPONENT_PACKAGES.iter().any(|package| name.starts_with(package));
                found.import(offered, name.to_owned());
            }
        }
        Payload::ComponentExportSection(exports) => {
            for export in exports {
                let name = export?.name.name;
                found.has_entry |= COMPONENT_ENTRIES.iter().any(|entry| name.starts_with(entry));
            }
        }
        _ => {}
    }
    Ok(())
}
