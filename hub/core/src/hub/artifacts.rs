//! Artifacts: uploaded, looked into, used, and at last removed.

use super::*;
use crate::views::ArtifactInfo;

/// Failures that are kept to be told; more than that many artifacts do not fail at once.
const FAILURES_KEPT: usize = 1024;

impl Hub {
    pub(crate) fn artifact_view(&self) -> ArtifactView<'_> {
        ArtifactView {
            uploaded: &self.artifacts,
            compiled: &self.compiled,
            failed: &self.failed,
            inspected: &self.inspected,
            provenance: &self.provenance,
            trust: self.trust.bundle().contents(),
            secrets: &self.secrets,
        }
    }

    pub(super) fn on_uploaded(&mut self, digest: Digest, size: u64, now: Now) {
        if self.artifacts.insert(digest, size).is_none() {
            self.ops.push(Op::PutArtifact { digest, size });
        }
        // It may be what a composition that failed was waiting for.
        let failures = self.failed.len() + self.inspected.len();
        self.failed.retain(|key, _| key.source != digest);
        self.inspected
            .retain(|key, result| key.digest != digest || result.is_ok());
        let short_of_it = self.apps.values().any(|a| !a.problems.is_empty());
        if short_of_it || self.failed.len() + self.inspected.len() < failures {
            self.reconcile(now);
        }
    }

    /// Has an artifact looked into, once.
    pub(super) fn inspect(&mut self, key: InspectKey) {
        if !self.inspected.contains_key(&key) && self.inspecting.insert(key) {
            self.effects.push_back(Action::Inspect(key));
        }
    }

    pub(super) fn on_inspected(&mut self, key: InspectKey, result: Inspection, now: Now) {
        self.inspecting.remove(&key);
        if let Err(why) = &result {
            self.note(format!(
                "artifact {} is of no use to {}: {why}",
                key.digest,
                key.runtime.as_str()
            ));
        }
        self.inspected.insert(key, result.map_err(|why| limits::clip(&why)));
        while self.inspected.values().filter(|r| r.is_err()).count() > FAILURES_KEPT {
            let first = self.inspected.iter().find(|(_, r)| r.is_err()).map(|(k, _)| *k);
            first.and_then(|k| self.inspected.remove(&k));
        }
        self.judge_candidates(now);
        self.reconcile(now);
    }

    pub(super) fn keep_failure(&mut self, key: CompileKey, why: &str) {
        self.failed.insert(key, limits::clip(why));
        while self.failed.len() > FAILURES_KEPT {
            self.failed.pop_first();
        }
    }

    /// What applications, twins and those that wait refer to.
    fn used(&self) -> BTreeSet<Digest> {
        let manifests = self.apps.values().map(|a| a.placement.manifest().manifest());
        let manifests = manifests.chain(self.candidates.iter().map(|c| c.manifest.manifest()));
        let mut used: BTreeSet<Digest> = manifests
            .flat_map(|m| m.digests())
            .filter_map(|d| d.parse().ok())
            .collect();
        used.extend(self.used_bundles());
        for w in self.composed.values().flat_map(|made| &made.workloads) {
            used.extend([w.source, w.artifact.digest]);
            used.extend(w.parts.iter().map(|p| p.digest));
            used.extend(w.files.iter().map(|f| f.artifact.digest));
            used.extend(w.provenance.iter().map(|p| p.digest));
        }
        let named = self.inspected.iter().filter(|(key, _)| used.contains(&key.digest));
        let parts: Vec<Digest> = named.flat_map(|(_, r)| r.iter().flatten()).map(|p| p.digest).collect();
        used.extend(parts);
        // What was compiled from a source in use is used where the next node of that target comes.
        let compiled = self.compiled.iter().filter(|(key, _)| used.contains(&key.source));
        let compiled: Vec<Digest> = compiled.map(|(_, a)| a.digest).collect();
        used.extend(compiled);
        let provenance = used.iter().filter_map(|d| self.provenance.get(d)).flatten();
        let provenance: Vec<Digest> = provenance.map(|p| p.artifact.digest).collect();
        used.extend(provenance);
        used
    }

    /// Artifacts that nothing refers to.
    #[must_use]
    pub fn unused_artifacts(&self) -> BTreeSet<Digest> {
        if !self.inspecting.is_empty() {
            // What an image refers to is not known yet.
            return BTreeSet::new();
        }
        let used = self.used();
        self.artifacts.keys().filter(|d| !used.contains(d)).copied().collect()
    }

    /// All artifacts, and what uses each.
    #[must_use]
    pub fn artifacts(&self) -> Vec<ArtifactInfo> {
        let mut users: BTreeMap<Digest, BTreeSet<String>> = BTreeMap::new();
        let mut add = |digest: Option<Digest>, user: String| {
            if let Some(digest) = digest {
                users.entry(digest).or_default().insert(user);
            }
        };
        for (name, app) in &self.apps {
            for def in &app.placement.manifest().application().workloads {
                let id = format!("{name}/{}", def.name);
                let read = |a: &cndl::ArtifactRef| a.digest().and_then(|d| d.parse::<Digest>().ok());
                let source = read(&def.artifact);
                add(source, id.clone());
                for file in &def.files {
                    add(read(&file.artifact), format!("{id} {}", file.path));
                }
                for (_, parts) in self.inspected.iter().filter(|(k, _)| Some(k.digest) == source) {
                    parts
                        .iter()
                        .flatten()
                        .for_each(|p| add(Some(p.digest), format!("{id} (part)")));
                }
                for p in source.iter().filter_map(|s| self.provenance.get(s)).flatten() {
                    add(Some(p.artifact.digest), format!("{id} (provenance)"));
                }
                for (key, artifact) in self.compiled.iter().filter(|(k, _)| Some(k.source) == source) {
                    add(Some(artifact.digest), format!("{id} (for {})", key.target));
                }
            }
        }
        for (node, made) in &self.composed {
            for w in &made.workloads {
                for digest in std::iter::once(w.source).chain(w.artifacts().map(|a| a.digest)) {
                    add(Some(digest), format!("the twin of {node}"));
                }
            }
        }
        for system in self.systems() {
            add(Some(system.bundle), format!("system {}", system.name));
        }
        let info = |(digest, size): (&Digest, &u64)| ArtifactInfo {
            digest: *digest,
            size: *size,
            used_by: users.get(digest).into_iter().flatten().cloned().collect(),
        };
        self.artifacts.iter().map(info).collect()
    }

    pub(super) fn on_collect(&mut self, digests: &BTreeSet<Digest>) {
        let unused = self.unused_artifacts();
        let gone: BTreeSet<Digest> = digests.intersection(&unused).copied().collect();
        if gone.is_empty() {
            return;
        }
        for digest in &gone {
            self.artifacts.remove(digest);
            self.compiled.retain(|_, a| a.digest != *digest);
            self.inspected.retain(|key, _| key.digest != *digest);
            self.forget_provenance(digest);
            self.ops.push(Op::DropArtifact { digest: *digest });
        }
        self.note(format!("{} artifact(s) that nothing used are removed", gone.len()));
        self.effects.push_back(Action::RemoveArtifacts(gone));
    }
}
