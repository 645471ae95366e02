//! Compiling Wasm: the worker runs, its output becomes an artifact.

use std::path::PathBuf;
use std::sync::Arc;

use cnova_aot::{AotError, AotLimits, precompile_in_subprocess};
use cnova_hub_core::CompileKey;
use cnova_shared::wire::v1;
use tokio::sync::Semaphore;

use crate::library::Library;

/// Workers at once; each may take 2 GiB of address space and a core.
pub const COMPILES_AT_ONCE: usize = 2;

/// Starts the workers.
#[derive(Debug)]
pub struct Compiler {
    worker: PathBuf,
    library: Arc<Library>,
    slots: Semaphore,
}

/// Why there is no compiled artifact.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The source is not here.
    #[error("its file is not on the hub's disk: upload it again")]
    NoSource,
    /// The worker turned it down.
    #[error("{message} [{code}]")]
    Rejected {
        /// A sentence.
        message: String,
        /// A word for programs.
        code: String,
    },
    /// The worker failed.
    #[error(transparent)]
    Worker(AotError),
    /// The worker compiles for another engine than the node has.
    #[error("the node's engine is {node} and this hub compiles for {hub}: update the older one")]
    OtherEngine {
        /// What the node said.
        node: String,
        /// What the worker said.
        hub: String,
    },
    /// The result cannot be kept.
    #[error("{0}")]
    Keep(#[from] cnova_store::ArtifactError),
    /// The hub is ending.
    #[error("the hub is stopping")]
    Stopping,
}

impl Compiler {
    /// A compiler that starts `worker`.
    #[must_use]
    pub fn new(worker: PathBuf, library: Arc<Library>) -> Self {
        Self {
            worker,
            library,
            slots: Semaphore::new(COMPILES_AT_ONCE),
        }
    }

    /// Compiles one artifact for one target, when it is its turn.
    ///
    /// # Errors
    /// [`CompileError`].
    pub async fn compile(self: Arc<Self>, key: CompileKey) -> Result<v1::Artifact, CompileError> {
        let _slot = self.slots.acquire().await.map_err(|_| CompileError::Stopping)?;
        let this = self.clone();
        let compiled = tokio::task::spawn_blocking(move || this.run(&key)).await;
        compiled.map_err(|_| CompileError::Stopping)?
    }

    fn run(&self, key: &CompileKey) -> Result<v1::Artifact, CompileError> {
        let artifacts = self.library.artifacts();
        if !artifacts.has(&key.source) {
            return Err(CompileError::NoSource);
        }
        let (input, output) = (artifacts.path(&key.source), self.library.draft());
        let outcome = precompile_in_subprocess(&self.worker, &input, &key.target, output.path(), &AotLimits::default())
            .map_err(|error| match error {
                AotError::Rejected { rejection, .. } => CompileError::Rejected {
                    message: rejection.message,
                    code: rejection.code,
                },
                other => CompileError::Worker(other),
            })?;
        if outcome.engine != key.engine {
            return Err(CompileError::OtherEngine {
                node: key.engine.clone(),
                hub: outcome.engine,
            });
        }
        let (digest, size) = self.library.import(&output)?;
        Ok(v1::Artifact { digest, size })
    }
}
