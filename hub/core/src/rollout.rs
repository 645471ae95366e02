//! From placements to twins: what each node shall run, whole.
//!
//! All nodes of a change are one wave today. Waves with health gates will choose which of the composed twins to sign
//! next; nothing before or after this stage changes for that.

use std::collections::{BTreeMap, BTreeSet};

use cnova_shared::ids::{Digest, Name, WorkloadId};
use cnova_shared::wire::v1;

use crate::api::CompileKey;
use crate::cndl::{ArtifactRef, RestartPolicy, RuntimeKind, WorkloadDef};
use crate::placement::Placement;

/// An application, placed.
#[derive(Debug)]
pub struct PlacedApp<'a> {
    /// Its name.
    pub name: &'a Name,
    /// Its generation.
    pub generation: u64,
    /// Where it goes.
    pub placement: &'a Placement,
}

/// What is known of artifacts.
#[derive(Debug)]
pub struct ArtifactView<'a> {
    /// Uploaded ones.
    pub uploaded: &'a BTreeMap<Digest, u64>,
    /// Precompiled ones.
    pub compiled: &'a BTreeMap<CompileKey, v1::Artifact>,
}

/// What one node shall run, or what must be compiled before that can be said.
#[derive(Debug, Default)]
pub struct Composed {
    /// All workloads, in order of their ids.
    pub workloads: Vec<v1::Workload>,
    /// Compilations that are still missing.
    pub missing: BTreeSet<CompileKey>,
    /// Workloads that cannot be composed, and why.
    pub problems: BTreeMap<WorkloadId, String>,
}

/// The target and engine of a node's Wasm runtime.
#[must_use]
pub fn wasm_target(capabilities: &v1::Capabilities) -> Option<(&str, &str)> {
    let runtime = capabilities
        .runtimes
        .iter()
        .find(|r| r.name == RuntimeKind::Wasm.as_str())?;
    Some((runtime.targets.first()?, &runtime.engine))
}

/// Composes one node's workloads from all applications.
#[must_use]
pub fn compose(
    node: &str,
    capabilities: &v1::Capabilities,
    apps: &[PlacedApp<'_>],
    artifacts: &ArtifactView<'_>,
) -> Composed {
    let mut composed = Composed::default();
    for app in apps {
        let application = app.placement.manifest().application();
        for def in &application.workloads {
            let here = app
                .placement
                .workloads()
                .get(&def.name)
                .is_some_and(|w| w.nodes.contains(node));
            let Ok(name) = Name::new(&def.name) else { continue };
            if !here {
                continue;
            }
            let id = WorkloadId {
                application: app.name.clone(),
                name,
            };
            match workload(id.clone(), app.generation, def, capabilities, artifacts) {
                Ok(w) => composed.workloads.push(w),
                Err(Unready::Compile(key)) => {
                    composed.missing.insert(key);
                }
                Err(Unready::Problem(why)) => {
                    composed.problems.insert(id, why);
                }
            }
        }
    }
    composed.workloads.sort_by(|a, b| a.id.cmp(&b.id));
    composed
}

enum Unready {
    Compile(CompileKey),
    Problem(String),
}

fn digest_of(artifact: &ArtifactRef) -> Result<Digest, Unready> {
    let text = artifact
        .digest()
        .ok_or_else(|| Unready::Problem("an artifact is still a file".into()))?;
    text.parse().map_err(|e| Unready::Problem(format!("{e}")))
}

fn uploaded(artifacts: &ArtifactView<'_>, digest: Digest) -> Result<v1::Artifact, Unready> {
    match artifacts.uploaded.get(&digest) {
        Some(size) => Ok(v1::Artifact { digest, size: *size }),
        None => Err(Unready::Problem(format!("artifact {digest} was never uploaded"))),
    }
}

fn workload(
    id: WorkloadId,
    app_generation: u64,
    def: &WorkloadDef,
    capabilities: &v1::Capabilities,
    artifacts: &ArtifactView<'_>,
) -> Result<v1::Workload, Unready> {
    let source = digest_of(&def.artifact)?;
    let artifact = match def.runtime {
        RuntimeKind::Wasm => {
            let (target, engine) = wasm_target(capabilities)
                .ok_or_else(|| Unready::Problem("the node names no target for its Wasm runtime".into()))?;
            let key = CompileKey {
                source,
                target: target.to_owned(),
                engine: engine.to_owned(),
            };
            artifacts.compiled.get(&key).cloned().ok_or(Unready::Compile(key))?
        }
        RuntimeKind::Container | RuntimeKind::Ebpf => uploaded(artifacts, source)?,
    };
    let mut files = Vec::with_capacity(def.files.len());
    for f in &def.files {
        files.push(v1::InputFile {
            path: f.path.clone(),
            artifact: uploaded(artifacts, digest_of(&f.artifact)?)?,
        });
    }
    Ok(v1::Workload {
        id,
        app_generation,
        runtime: def.runtime.as_str().to_owned(),
        artifact,
        source,
        files,
        args: def.args.clone(),
        env: def.env.clone(),
        memory_bytes: def.resources.memory_bytes.unwrap_or(0),
        cpu_millis: u64::from(def.resources.cpu_millis),
        log_bytes: def.limits.log_bytes,
        wall_seconds: def.limits.wall_time_ms.map(|ms| ms.div_ceil(1000)),
        grants: v1::Grants {
            clocks: def.grants.clocks,
            random: def.grants.random,
            network: def.grants.network.clone(),
            threads: false,
            nn: false,
        },
        restart: restart(def),
        stop_grace_ms: def.stop_grace_ms,
        priority: u32::from(def.priority),
        settings: if def.settings.is_empty() {
            String::new()
        } else {
            serde_json::to_string(&def.settings).unwrap_or_default()
        },
        parts: Vec::new(),
        volumes: Vec::new(),
        needs: Vec::new(),
        accelerators: Vec::new(),
        devices: Vec::new(),
        schedule: None,
        power: v1::PowerLevel::default(),
        health: v1::Health::default(),
        on_bad_update: v1::OnBadUpdate::default(),
    })
}

fn restart(def: &WorkloadDef) -> v1::Restart {
    v1::Restart {
        policy: match def.restart.policy {
            RestartPolicy::Always => v1::RestartPolicy::Always,
            RestartPolicy::OnFailure => v1::RestartPolicy::OnFailure,
            RestartPolicy::Never => v1::RestartPolicy::Never,
        },
        backoff_min_ms: def.restart.backoff_min_ms,
        backoff_max_ms: def.restart.backoff_max_ms,
        crash_loop_after: def.restart.crash_loop_after,
    }
}
