//! Wire form <-> domain form. Both ways are total on what the checks let through.

use cnova_shared::wire::v1::{AcceleratorClaim, TrustRequirement};

use super::model::{
    Application, ArtifactRef, FileInput, Grants, Limits, Need, PlacementRule, Replicas, Resources, Restart,
    RestartPolicy, RuntimeKind, ScheduleDef, SecretDef, VolumeDef, WorkloadDef,
};
use super::site_pattern::{InvalidSitePattern, SitePattern};
use super::wire;
use super::wire_attestation::in_force;
use super::wire_conditions as condition;
use super::wire_secrets::Secret;
use super::wire_values as value;

impl TryFrom<wire::Document> for Application {
    type Error = InvalidSitePattern;

    fn try_from(document: wire::Document) -> Result<Self, Self::Error> {
        let name = document.metadata.name.0;
        let policy = document.attestation_policy;
        let convert = |w: wire::Workload| {
            let attestation = in_force(w.attestation_policy.as_ref(), policy.as_ref());
            WorkloadDef::try_from(w).map(|def| WorkloadDef { attestation, ..def })
        };
        let mut workloads = document
            .workloads
            .into_iter()
            .map(convert)
            .collect::<Result<Vec<_>, _>>()?;
        for need in workloads.iter_mut().flat_map(|w| &mut w.needs) {
            if need.application.as_deref() == Some(&name) {
                need.application = None;
            }
        }
        Ok(Self {
            name,
            labels: document.metadata.labels.0,
            workloads,
        })
    }
}

impl TryFrom<wire::Workload> for WorkloadDef {
    type Error = InvalidSitePattern;

    fn try_from(w: wire::Workload) -> Result<Self, Self::Error> {
        let runtime: RuntimeKind = w.runtime.into();
        Ok(Self {
            name: w.name.0,
            runtime,
            artifact: w.artifact.into(),
            files: w
                .files
                .into_iter()
                .map(|f| FileInput {
                    path: f.path.0,
                    artifact: f.artifact.into(),
                })
                .collect(),
            args: w.args.into_iter().map(|a| a.0).collect(),
            env: w.env.0,
            secrets: w.secrets.into_iter().map(SecretDef::from).collect(),
            resources: Resources {
                memory_bytes: w.resources.memory.map(|m| m.0),
                cpu_millis: w.resources.cpu.0,
            },
            limits: Limits {
                log_bytes: w.limits.log.0,
                wall_time_ms: w.limits.wall_time.map(|t| t.0),
            },
            grants: Grants {
                clocks: w.grants.clocks,
                random: w.grants.random,
                network: w.grants.network.into_iter().map(|p| p.0).collect(),
                threads: w.grants.threads,
                nn: w.grants.nn,
            },
            restart: Restart {
                policy: w.restart.policy.into(),
                backoff_min_ms: w.restart.backoff_min.0,
                backoff_max_ms: w.restart.backoff_max.0,
                crash_loop_after: w.restart.crash_loop_after,
            },
            stop_grace_ms: w.stop_grace.0,
            settings: super::settings::canonical(runtime, w.settings),
            volumes: w.volumes.into_iter().map(VolumeDef::from).collect(),
            needs: w.needs.into_iter().map(Need::from).collect(),
            accelerators: w.accelerators.into_iter().map(AcceleratorClaim::from).collect(),
            devices: w.devices.into_iter().map(|d| d.0).collect(),
            schedule: w.schedule.map(ScheduleDef::from),
            power: w.power.into(),
            health: w.health.into(),
            on_bad_update: w.on_bad_update.into(),
            attestation: in_force(w.attestation_policy.as_ref(), None),
            priority: w.priority,
            placement: PlacementRule {
                site: SitePattern::new(&w.placement.site)?,
                labels: w.placement.labels.0,
                replicas: match w.placement.replicas {
                    value::Replicas::Count(n) => Replicas::Count(n),
                    value::Replicas::Each => Replicas::Each,
                },
                spread: w.placement.spread,
                trust: match w.placement.trust {
                    wire::Trust::None => TrustRequirement::None,
                    wire::Trust::Tpm => TrustRequirement::Tpm,
                    wire::Trust::Attested => TrustRequirement::Attested,
                },
            },
        })
    }
}

impl From<wire::Artifact> for ArtifactRef {
    fn from(artifact: wire::Artifact) -> Self {
        let size = artifact.size;
        match artifact.digest {
            Some(digest) => Self::Digest { digest, size },
            // The schema has made sure that exactly one of the two is there.
            None => Self::File {
                path: artifact.file.unwrap_or_default(),
                size,
            },
        }
    }
}

impl From<wire::Runtime> for RuntimeKind {
    fn from(runtime: wire::Runtime) -> Self {
        match runtime {
            wire::Runtime::Wasm => Self::Wasm,
            wire::Runtime::Container => Self::Container,
            wire::Runtime::Ebpf => Self::Ebpf,
        }
    }
}

impl From<wire::RestartPolicy> for RestartPolicy {
    fn from(policy: wire::RestartPolicy) -> Self {
        match policy {
            wire::RestartPolicy::Always => Self::Always,
            wire::RestartPolicy::OnFailure => Self::OnFailure,
            wire::RestartPolicy::Never => Self::Never,
        }
    }
}

impl From<&Application> for wire::Document {
    fn from(application: &Application) -> Self {
        Self {
            api_version: wire::ApiVersion::V1,
            kind: wire::DocumentKind::Application,
            metadata: wire::Metadata {
                name: value::Name(application.name.clone()),
                labels: value::Labels(application.labels.clone()),
            },
            // Each workload's says all.
            attestation_policy: None,
            workloads: application.workloads.iter().map(wire::Workload::from).collect(),
        }
    }
}

impl From<&WorkloadDef> for wire::Workload {
    fn from(w: &WorkloadDef) -> Self {
        Self {
            name: value::Name(w.name.clone()),
            runtime: w.runtime.into(),
            artifact: (&w.artifact).into(),
            files: w
                .files
                .iter()
                .map(|f| wire::FileInput {
                    path: value::AbsolutePath(f.path.clone()),
                    artifact: (&f.artifact).into(),
                })
                .collect(),
            args: w.args.iter().cloned().map(value::Text).collect(),
            env: value::Environment(w.env.clone()),
            secrets: w.secrets.iter().map(Secret::from).collect(),
            resources: wire::Resources {
                memory: w.resources.memory_bytes.map(value::Size),
                cpu: value::Cpu(w.resources.cpu_millis),
            },
            limits: wire::Limits {
                log: value::Size(w.limits.log_bytes),
                wall_time: w.limits.wall_time_ms.map(value::Duration),
            },
            grants: wire::Grants {
                clocks: w.grants.clocks,
                random: w.grants.random,
                network: w.grants.network.iter().cloned().map(value::Peer).collect(),
                threads: w.grants.threads,
                nn: w.grants.nn,
            },
            restart: wire::Restart {
                policy: w.restart.policy.into(),
                backoff_min: value::Duration(w.restart.backoff_min_ms),
                backoff_max: value::Duration(w.restart.backoff_max_ms),
                crash_loop_after: w.restart.crash_loop_after,
            },
            stop_grace: value::Duration(w.stop_grace_ms),
            settings: w.settings.clone(),
            volumes: w.volumes.iter().map(condition::Volume::from).collect(),
            needs: w.needs.iter().map(condition::Need::from).collect(),
            accelerators: w.accelerators.iter().map(condition::Accelerator::from).collect(),
            devices: w.devices.iter().cloned().map(value::Name).collect(),
            schedule: w.schedule.as_ref().map(condition::Schedule::from),
            power: w.power.into(),
            health: (&w.health).into(),
            on_bad_update: w.on_bad_update.into(),
            attestation_policy: w.attestation.as_ref().map(Into::into),
            priority: w.priority,
            placement: (&w.placement).into(),
        }
    }
}

impl From<&PlacementRule> for wire::Placement {
    fn from(rule: &PlacementRule) -> Self {
        Self {
            site: rule.site.as_str().to_owned(),
            labels: value::Labels(rule.labels.clone()),
            replicas: match rule.replicas {
                Replicas::Count(n) => value::Replicas::Count(n),
                Replicas::Each => value::Replicas::Each,
            },
            spread: rule.spread,
            trust: match rule.trust {
                TrustRequirement::None => wire::Trust::None,
                TrustRequirement::Tpm => wire::Trust::Tpm,
                TrustRequirement::Attested => wire::Trust::Attested,
            },
        }
    }
}

impl From<&ArtifactRef> for wire::Artifact {
    fn from(artifact: &ArtifactRef) -> Self {
        Self {
            file: artifact.file().map(str::to_owned),
            digest: artifact.digest().map(str::to_owned),
            size: artifact.size(),
        }
    }
}

impl From<RuntimeKind> for wire::Runtime {
    fn from(runtime: RuntimeKind) -> Self {
        match runtime {
            RuntimeKind::Wasm => Self::Wasm,
            RuntimeKind::Container => Self::Container,
            RuntimeKind::Ebpf => Self::Ebpf,
        }
    }
}

impl From<RestartPolicy> for wire::RestartPolicy {
    fn from(policy: RestartPolicy) -> Self {
        match policy {
            RestartPolicy::Always => Self::Always,
            RestartPolicy::OnFailure => Self::OnFailure,
            RestartPolicy::Never => Self::Never,
        }
    }
}
