//! Compiling ahead of time: Wasm in, machine code for one target out.

use wasmtime::Engine;

use crate::{InspectError, Kind, TARGETS, config, inspect};

/// Why a file was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum PrecompileError {
    /// No artifacts are made for this target.
    #[error("target `{target}` is not one of {}", TARGETS.join(", "))]
    Target {
        /// What was asked for.
        target: String,
    },
    /// The file would not run.
    #[error(transparent)]
    Wasm(#[from] InspectError),
    /// The engine could not be set up for the target: an error of ours.
    #[error("cannot set up the compiler for `{target}`: {reason}")]
    Engine {
        /// What was asked for.
        target: String,
        /// What the engine said.
        reason: String,
    },
    /// The compiler gave up on a valid file, such as one with a function beyond its limits.
    #[error("cannot compile for `{target}`: {reason}")]
    Compile {
        /// What was asked for.
        target: String,
        /// What the compiler said.
        reason: String,
    },
}

impl PrecompileError {
    /// A short name for programs: `target`, `not_wasm`, `invalid`, `feature`, `import`, `no_entry`, `engine`, `compile`.
    pub fn code(&self) -> &'static str {
        match self {
            PrecompileError::Target { .. } => "target",
            PrecompileError::Wasm(InspectError::NotWasm { .. }) => "not_wasm",
            PrecompileError::Wasm(InspectError::Invalid { .. }) => "invalid",
            PrecompileError::Wasm(InspectError::Feature { .. }) => "feature",
            PrecompileError::Wasm(InspectError::Import { .. }) => "import",
            PrecompileError::Wasm(InspectError::NoEntry) => "no_entry",
            PrecompileError::Engine { .. } => "engine",
            PrecompileError::Compile { .. } => "compile",
        }
    }
}

/// Compiles a module or component for one of [`TARGETS`], for the oldest CPU of that architecture.
/// Cranelift may panic or take long on hostile input: call this in a process that may die.
pub fn precompile(target: &str, bytes: &[u8]) -> Result<Vec<u8>, PrecompileError> {
    let target = TARGETS
        .into_iter()
        .find(|known| *known == target)
        .ok_or_else(|| PrecompileError::Target {
            target: target.to_owned(),
        })?;
    let kind = inspect(bytes)?.kind;
    let mut config = config();
    // Naming the target, even this machine's, keeps the features of this machine's CPU out of the code.
    config.target(target).map_err(|error| engine_error(target, &error))?;
    let engine = Engine::new(&config).map_err(|error| engine_error(target, &error))?;
    let compiled = match kind {
        Kind::Module => engine.precompile_module(bytes),
        Kind::Component => engine.precompile_component(bytes),
    };
    compiled.map_err(|error| PrecompileError::Compile {
        target: target.to_owned(),
        reason: format!("{error:#}"),
    })
}

fn engine_error(target: &str, error: &wasmtime::Error) -> PrecompileError {
    PrecompileError::Engine {
        target: target.to_owned(),
        reason: format!("{error:#}"),
    }
}
