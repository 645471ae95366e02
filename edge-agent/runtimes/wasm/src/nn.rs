//! wasi-nn, for workloads with `grants.nn`: the worker that computes, and the two interfaces by which guests reach it.
//!
//! The interfaces are our own. Those of wasmtime's wasi-nn end the process when a guest gives a pointer outside its
//! memory, and keep whatever a guest piles up.

mod wit;
mod witx;
mod worker;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use cnova_ral::Spec;
use cnova_ral::settings::Wasm;
use cnova_wasm_nn::{
    Answer, Code, Encoding, Failure, GRAPHS_MAX, MODEL_BYTES_MAX, NAME_BYTES_MAX, Request, Slot, Target, Tensor,
    check_shape,
};

pub(crate) use self::wit::add_to_component_linker;
pub(crate) use self::witx::add_to_module_linker;
pub(crate) use self::worker::is_installed;
use self::worker::{Accelerator, StartError, Worker};
use crate::control::Shared;

/// Why a workload does not get the inference that its spec grants.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NnError {
    #[error("grants.nn: {0}")]
    Start(#[from] StartError),
    #[error("settings.models names {count} models, at most {GRAPHS_MAX} are allowed")]
    TooMany { count: usize },
    #[error("settings.models: `{file}` of model `{name}` lies in none of the workload's files and folders")]
    NoFile { name: String, file: String },
    #[error("settings.models: model `{name}`: {source}")]
    Model { name: String, source: Failure },
}

/// One workload's inference.
pub(crate) struct Nn {
    worker: Worker,
    /// Models by the names of the settings.
    models: BTreeMap<String, u32>,
    shared: Arc<Shared>,
    /// What a component has made and not dropped.
    objects: wit::Objects,
}

impl Nn {
    /// Starts the worker and loads the models that the settings name.
    pub(crate) async fn start(spec: &Spec, settings: &Wasm, shared: &Arc<Shared>) -> Result<Nn, NnError> {
        let count = settings.models.len();
        if count > GRAPHS_MAX {
            return Err(NnError::TooMany { count });
        }
        let worker = Worker::start(Accelerator::of(&spec.devices), &spec.limits, shared).await?;
        let mut nn = Nn {
            worker,
            models: BTreeMap::new(),
            shared: shared.clone(),
            objects: wit::Objects::default(),
        };
        for model in &settings.models {
            let name = model.name.clone();
            let path = host_path(spec, &model.file).ok_or_else(|| NnError::NoFile {
                name: name.clone(),
                file: model.file.clone(),
            })?;
            let loaded = nn.handle(&Request::LoadFile { path }, &[]).await;
            let graph = loaded.map_err(|source| NnError::Model {
                name: name.clone(),
                source,
            })?;
            nn.models.insert(name, graph);
        }
        Ok(nn)
    }

    /// Says in the workload's log what failed, since preview 1 has only numbers for it.
    fn note(&self, failure: &Failure) {
        self.shared
            .with_output(|output| output.say(&format!("wasi-nn: {failure}")));
    }

    async fn handle(&mut self, request: &Request, body: &[&[u8]]) -> Result<u32, Failure> {
        match self.worker.call(request, body).await? {
            (Answer::Handle { id }, _) => Ok(id),
            _ => Err(odd()),
        }
    }

    async fn load(&mut self, encoding: Encoding, target: Target, parts: &[&[u8]]) -> Result<u32, Failure> {
        let lengths: Vec<u64> = parts.iter().map(|part| part.len() as u64).collect();
        let bytes: u64 = lengths.iter().sum();
        if bytes > MODEL_BYTES_MAX {
            let message = format!("a model of {bytes} bytes, at most {MODEL_BYTES_MAX} are allowed");
            return Err(Failure::new(Code::TooLarge, message));
        }
        let request = Request::Load {
            encoding,
            target,
            parts: lengths,
        };
        self.handle(&request, parts).await
    }

    fn named(&self, name: &str) -> Result<u32, Failure> {
        let known = || self.models.keys().cloned().collect::<Vec<_>>().join(", ");
        self.models.get(name).copied().ok_or_else(|| {
            let name: String = name.chars().take(NAME_BYTES_MAX).collect();
            let message = format!("there is no model `{name}`; settings.models has: {}", known());
            Failure::new(Code::NotFound, message)
        })
    }

    async fn context(&mut self, graph: u32) -> Result<u32, Failure> {
        self.handle(&Request::Context { graph }, &[]).await
    }

    async fn set_input(&mut self, context: u32, slot: Slot, tensor: &Tensor) -> Result<(), Failure> {
        check_shape(&tensor.dimensions, tensor.kind, tensor.data.len() as u64)?;
        let request = Request::SetInput {
            context,
            slot,
            dimensions: tensor.dimensions.clone(),
            kind: tensor.kind,
        };
        match self.worker.call(&request, &[&tensor.data]).await? {
            (Answer::Done, _) => Ok(()),
            _ => Err(odd()),
        }
    }

    async fn compute(&mut self, context: u32) -> Result<Vec<String>, Failure> {
        match self.worker.call(&Request::Compute { context }, &[]).await? {
            (Answer::Outputs { names }, _) => Ok(names),
            _ => Err(odd()),
        }
    }

    async fn output(&mut self, context: u32, index: u32) -> Result<Tensor, Failure> {
        match self.worker.call(&Request::Output { context, index }, &[]).await? {
            (Answer::Tensor { dimensions, kind }, data) => Ok(Tensor { dimensions, kind, data }),
            _ => Err(odd()),
        }
    }

    /// Forgets a model, unless the settings name it.
    async fn drop_graph(&mut self, graph: u32) {
        if !self.models.values().any(|named| *named == graph) {
            let _ = self.worker.call(&Request::DropGraph { graph }, &[]).await;
        }
    }

    async fn drop_context(&mut self, context: u32) {
        let _ = self.worker.call(&Request::DropContext { context }, &[]).await;
    }
}

fn odd() -> Failure {
    Failure::runtime("the worker gave an answer that does not fit: it is of another version")
}

/// Where a file of the workload lies on the host.
fn host_path(spec: &Spec, file: &str) -> Option<PathBuf> {
    let file = Path::new("/").join(file);
    if file.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    // The innermost mount is the one that the workload sees.
    let mounts = spec.mounts.iter().filter(|mount| file.starts_with(&mount.guest));
    let mount = mounts.max_by_key(|mount| mount.guest.components().count())?;
    match file.strip_prefix(&mount.guest) {
        Ok(rest) if rest.as_os_str().is_empty() => Some(mount.host.clone()),
        Ok(rest) => Some(mount.host.join(rest)),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_file_is_found_in_the_innermost_mount() {
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "ral": 1, "workload": "w", "artifact": "/a", "digest": "",
            "mounts": [
                {"guest": "/data", "host": "/h/data"},
                {"guest": "/data/models", "host": "/h/m"},
                {"guest": "/one.onnx", "host": "/h/1"},
            ],
        }))
        .unwrap();
        let found = |file| host_path(&spec, file).map(|path| path.to_string_lossy().into_owned());
        assert_eq!(found("/data/a.onnx").as_deref(), Some("/h/data/a.onnx"));
        assert_eq!(found("data/models/a.onnx").as_deref(), Some("/h/m/a.onnx"));
        assert_eq!(found("/one.onnx").as_deref(), Some("/h/1"));
        assert_eq!(found("/data/../../etc/passwd"), None);
        assert_eq!(found("/elsewhere"), None);
    }
}
