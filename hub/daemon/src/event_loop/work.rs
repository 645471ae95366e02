//! Work beside the loop: compilations, and looks into artifacts.

use cnova_hub_core::{CompileKey, Event, InspectKey};
use cnova_shared::ids::Digest;

use super::{Completion, EventLoop};
use crate::compile::Compiled;
use crate::inspect::{inspect, inspect_bundle};

impl EventLoop {
    /// The core hears of the provenance first: whatever is decided of the result may depend on it.
    pub(super) fn on_compiled(&mut self, key: CompileKey, result: Result<Compiled, String>) {
        let result = result.map(|compiled| {
            self.handle(Event::ProvenanceAdded {
                subject: compiled.artifact.digest,
                artifact: compiled.provenance,
                envelope: compiled.envelope,
            });
            compiled.artifact
        });
        self.handle(Event::Compiled { key, result });
    }

    pub(super) fn compile(&self, key: CompileKey) {
        tracing::info!(source = %key.source, target = key.target, engine = key.engine, "compiling");
        let (compiler, done) = (self.parts.compiler.clone(), self.completions.0.clone());
        tokio::spawn(async move {
            let result = compiler.compile(key.clone()).await.map_err(|e| e.to_string());
            // The loop may have ended.
            let _ = done.send(Completion::Compiled(key, result)).await;
        });
    }

    pub(super) fn inspect(&self, key: InspectKey) {
        let (library, done) = (self.parts.library.clone(), self.completions.0.clone());
        let slots = self.inspections.clone();
        tokio::spawn(async move {
            let Ok(_slot) = slots.acquire().await else { return };
            let looked = tokio::task::spawn_blocking(move || inspect(&library, &key)).await;
            let result = looked.unwrap_or_else(|e| Err(format!("it could not be looked into: {e}")));
            // The loop may have ended.
            let _ = done.send(Completion::Inspected(key, result)).await;
        });
    }

    pub(super) fn inspect_bundle(&self, bundle: Digest) {
        let (library, done) = (self.parts.library.clone(), self.completions.0.clone());
        let slots = self.inspections.clone();
        tokio::spawn(async move {
            let Ok(_slot) = slots.acquire().await else { return };
            let looked = tokio::task::spawn_blocking(move || inspect_bundle(&library, &bundle)).await;
            let result = looked.unwrap_or_else(|e| Err(format!("it could not be looked into: {e}")));
            // The loop may have ended.
            let _ = done.send(Completion::Bundle(bundle, result.map(Box::new))).await;
        });
    }
}
