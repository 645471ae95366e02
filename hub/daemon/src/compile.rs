//! Compiling Wasm: the worker runs, its output becomes an artifact.

use std::path::PathBuf;
use std::sync::Arc;

use cnova_aot::{AotError, AotLimits, precompile_in_subprocess};
use cnova_hub_core::CompileKey;
use cnova_provenance::{AOT_BUILD_TYPE, AOT_BUILDER, Dependency, Made, Subject};
use cnova_shared::ids::Digest;
use cnova_shared::keys::SignError;
use cnova_shared::wire::v1;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::library::Library;
use crate::signer::Signer;

/// Workers at once; each may take 2 GiB of address space and a core.
pub const COMPILES_AT_ONCE: usize = 2;

/// What came of a compilation.
#[derive(Debug)]
pub struct Compiled {
    /// The machine code.
    pub artifact: v1::Artifact,
    /// The hub's word on what it was compiled from, as an artifact.
    pub provenance: v1::Artifact,
    /// Its bytes.
    pub envelope: Vec<u8>,
}

/// Starts the workers.
#[derive(Debug)]
pub struct Compiler {
    worker: PathBuf,
    library: Arc<Library>,
    signer: Arc<Signer>,
    clock: Clock,
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
    /// What it was compiled from cannot be attested.
    #[error("its provenance was not signed: {0}")]
    Sign(#[from] SignError),
    /// The hub is ending.
    #[error("the hub is stopping")]
    Stopping,
}

impl Compiler {
    /// A compiler that starts `worker`, and signs what it makes.
    #[must_use]
    pub fn new(worker: PathBuf, library: Arc<Library>, signer: Arc<Signer>, clock: Clock) -> Self {
        Self {
            worker,
            library,
            signer,
            clock,
            slots: Semaphore::new(COMPILES_AT_ONCE),
        }
    }

    /// Compiles one artifact for one target, when it is its turn.
    ///
    /// # Errors
    /// [`CompileError`].
    pub async fn compile(self: Arc<Self>, key: CompileKey) -> Result<Compiled, CompileError> {
        let _slot = self.slots.acquire().await.map_err(|_| CompileError::Stopping)?;
        let this = self.clone();
        let compiled = tokio::task::spawn_blocking(move || this.run(&key)).await;
        compiled.map_err(|_| CompileError::Stopping)?
    }

    fn run(&self, key: &CompileKey) -> Result<Compiled, CompileError> {
        let started_s = self.clock.now_s();
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
        let envelope = self.attest(key, digest, started_s)?;
        let (envelope_digest, envelope_size) = self.library.keep(&envelope)?;
        Ok(Compiled {
            artifact: v1::Artifact { digest, size },
            provenance: v1::Artifact {
                digest: envelope_digest,
                size: envelope_size,
            },
            envelope,
        })
    }

    /// The node loads what was compiled, and a person signed the source: this binds the one to the other.
    fn attest(&self, key: &CompileKey, compiled: Digest, started_s: u64) -> Result<Vec<u8>, SignError> {
        let source = format!("urn:cnova:artifact:{}", key.source);
        let versions = [
            ("cnova-hub".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("engine".to_owned(), key.engine.clone()),
        ];
        let statement = cnova_provenance::make(&Made {
            subjects: &[Subject {
                name: format!("{}.{}.cwasm", key.source.hex(), key.target),
                digest: compiled,
            }],
            build_type: AOT_BUILD_TYPE,
            parameters: json!({"target": key.target, "engine": key.engine}),
            dependencies: &[Dependency::of_file(source, &key.source)],
            builder: AOT_BUILDER,
            builder_version: versions.into(),
            started_s,
            finished_s: self.clock.now_s(),
        });
        self.signer.provenance(&statement)
    }
}
