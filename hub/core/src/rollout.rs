//! From placements to twins: what each node shall run, whole.
//!
//! All nodes of a change are one wave today. Waves with health gates will choose which of the composed twins to sign
//! next; nothing before or after this stage changes for that.

mod proof;

use std::collections::{BTreeMap, BTreeSet};

use cnova_shared::bundle::Bundle;
use cnova_shared::ids::{Digest, Name, WorkloadId};
use cnova_shared::wire::v1;

use crate::api::{CompileKey, InspectKey, Inspection};
use crate::cndl::{ArtifactRef, Need, RestartPolicy, RuntimeKind, ScheduleDef, SecretDef, VolumeDef, WorkloadDef};
use crate::placement::Placement;
use crate::secrets::StoredSecret;
use crate::stored::StoredProvenance;

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

/// What is known of artifacts, and of what else workloads are given.
#[derive(Debug)]
pub struct ArtifactView<'a> {
    /// Uploaded ones.
    pub uploaded: &'a BTreeMap<Digest, u64>,
    /// Precompiled ones.
    pub compiled: &'a BTreeMap<CompileKey, v1::Artifact>,
    /// Compilations that failed, and why.
    pub failed: &'a BTreeMap<CompileKey, String>,
    /// Artifacts that were looked into.
    pub inspected: &'a BTreeMap<InspectKey, Inspection>,
    /// Provenance by artifact.
    pub provenance: &'a BTreeMap<Digest, Vec<StoredProvenance>>,
    /// Which builders are believed, and what every workload must prove.
    pub trust: &'a Bundle,
    /// The secrets that there are.
    pub secrets: &'a BTreeMap<Name, StoredSecret>,
}

impl ArtifactView<'_> {
    /// The parts of an artifact that was looked into, all of them uploaded; or what is wrong.
    ///
    /// # Errors
    /// Why the runtime could do nothing with it.
    pub fn parts(&self, key: &InspectKey, named: &[v1::Artifact]) -> Result<Vec<v1::Artifact>, String> {
        let image = key.digest;
        let part = |(i, part): (usize, &v1::Artifact)| {
            let what = if i == 0 {
                "configuration".to_owned()
            } else {
                format!("layer {i} of {}", named.len() - 1)
            };
            match self.uploaded.get(&part.digest) {
                Some(size) if *size == part.size => Ok(part.clone()),
                Some(size) => Err(format!(
                    "image {image} says that its {what} has {} bytes; {} has {size}",
                    part.size, part.digest
                )),
                None => Err(format!(
                    "{what} ({}) of image {image} was never uploaded: cnova artifact import IMAGE",
                    part.digest
                )),
            }
        };
        named.iter().enumerate().map(part).collect()
    }
}

/// What one node shall run, or what must be compiled before that can be said.
#[derive(Debug, Default)]
pub struct Composed {
    /// All workloads, in order of their ids.
    pub workloads: Vec<v1::Workload>,
    /// Compilations that are still missing.
    pub missing: BTreeSet<CompileKey>,
    /// Artifacts that must be looked into first.
    pub uninspected: BTreeSet<InspectKey>,
    /// Workloads that cannot be composed, and why.
    pub problems: BTreeMap<WorkloadId, String>,
}

/// What portable bytecode is compiled for, whatever the node's processor is.
pub const PULLEY_TARGET: &str = "pulley64";

/// The target and engine that a Wasm workload is compiled for on a node.
#[must_use]
pub fn wasm_target<'a>(def: &WorkloadDef, capabilities: &'a v1::Capabilities) -> Option<(&'a str, &'a str)> {
    let runtime = capabilities
        .runtimes
        .iter()
        .find(|r| r.name == RuntimeKind::Wasm.as_str())?;
    let target = if def.pulley() {
        PULLEY_TARGET
    } else {
        runtime.targets.first()?
    };
    Some((target, &runtime.engine))
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
                Err(Unready::Inspect(key)) => {
                    composed.uninspected.insert(key);
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
    Inspect(InspectKey),
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

/// What a node loads of a Wasm workload.
fn compiled(
    def: &WorkloadDef,
    source: Digest,
    capabilities: &v1::Capabilities,
    artifacts: &ArtifactView<'_>,
) -> Result<v1::Artifact, Unready> {
    let (target, engine) = wasm_target(def, capabilities)
        .ok_or_else(|| Unready::Problem("the node names no target for its Wasm runtime".into()))?;
    let key = CompileKey {
        source,
        target: target.to_owned(),
        engine: engine.to_owned(),
    };
    // What was compiled before the hub signed what it compiles is compiled again where that has to be proved.
    let compiled = artifacts.compiled.get(&key);
    let compiled = compiled.filter(|a| !artifacts.must_prove(def) || artifacts.provenance.contains_key(&a.digest));
    match (compiled, artifacts.failed.get(&key)) {
        (Some(artifact), _) => Ok(artifact.clone()),
        (None, Some(why)) => Err(Unready::Problem(why.clone())),
        (None, None) => Err(Unready::Compile(key)),
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
    let mut parts = Vec::new();
    let artifact = match def.runtime {
        RuntimeKind::Wasm => compiled(def, source, capabilities, artifacts)?,
        RuntimeKind::Container | RuntimeKind::Ebpf => {
            let artifact = uploaded(artifacts, source)?;
            let key = InspectKey {
                digest: source,
                runtime: def.runtime,
            };
            parts = match artifacts.inspected.get(&key) {
                None => return Err(Unready::Inspect(key)),
                Some(Err(why)) => return Err(Unready::Problem(why.clone())),
                Some(Ok(named)) => artifacts.parts(&key, named).map_err(Unready::Problem)?,
            };
            artifact
        }
    };
    let mut files = Vec::with_capacity(def.files.len());
    for f in &def.files {
        files.push(v1::InputFile {
            path: f.path.clone(),
            artifact: uploaded(artifacts, digest_of(&f.artifact)?)?,
        });
    }
    let provenance = artifacts
        .provenance_of(def, source, &artifact, &files)
        .map_err(Unready::Problem)?;
    Ok(v1::Workload {
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
            threads: def.grants.threads,
            nn: def.grants.nn,
        },
        restart: restart(def),
        stop_grace_ms: def.stop_grace_ms,
        priority: u32::from(def.priority),
        settings: if def.settings.is_empty() {
            String::new()
        } else {
            serde_json::to_string(&def.settings).unwrap_or_default()
        },
        parts,
        volumes: volumes(def)?,
        needs: needs(&id, def)?,
        accelerators: def.accelerators.clone(),
        devices: def.devices.clone(),
        schedule: def.schedule.as_ref().map(schedule),
        power: def.power,
        health: def.health.clone(),
        on_bad_update: def.on_bad_update,
        trust: def.placement.trust,
        provenance,
        attestation: def.attestation.clone(),
        secrets: secrets(def, artifacts.secrets)?,
        id,
    })
}

/// The checks of the manifest let only names through.
fn name(text: &str) -> Result<Name, Unready> {
    Name::new(text).map_err(|e| Unready::Problem(e.to_string()))
}

/// Each in the newest version that there is.
fn secrets(def: &WorkloadDef, known: &BTreeMap<Name, StoredSecret>) -> Result<Vec<v1::SecretUse>, Unready> {
    let given = |s: &SecretDef| {
        let name = name(&s.name)?;
        let missing = || Unready::Problem(format!("there is no secret {name}: cnova secret set {name}"));
        let version = known.get(&name).ok_or_else(missing)?.version;
        Ok(v1::SecretUse {
            name,
            version,
            target: s.target.clone(),
        })
    };
    def.secrets.iter().map(given).collect()
}

fn volumes(def: &WorkloadDef) -> Result<Vec<v1::Volume>, Unready> {
    let volume = |v: &VolumeDef| {
        Ok(v1::Volume {
            name: name(&v.name)?,
            path: v.path.clone(),
        })
    };
    def.volumes.iter().map(volume).collect()
}

fn needs(id: &WorkloadId, def: &WorkloadDef) -> Result<Vec<v1::Dependency>, Unready> {
    let need = |n: &Need| {
        let application = match &n.application {
            Some(other) => name(other)?,
            None => id.application.clone(),
        };
        Ok(v1::Dependency {
            id: WorkloadId {
                application,
                name: name(&n.workload)?,
            },
            condition: n.condition,
        })
    };
    def.needs.iter().map(need).collect()
}

/// Whole seconds; what is finer is rounded up, so that a window is never shorter than was asked for.
pub(crate) fn schedule(def: &ScheduleDef) -> v1::Schedule {
    v1::Schedule {
        cron: def.cron.clone(),
        zone: def.zone.clone(),
        window_seconds: def.window_ms.map(|ms| ms.div_ceil(1000)),
        late_seconds: def.late_ms.div_ceil(1000),
    }
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
