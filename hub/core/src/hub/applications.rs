//! Applications: applied, compiled for, stored, deleted.

use super::*;
use crate::cndl::Application;

impl Hub {
    pub(super) fn on_apply(&mut self, request: RequestId, manifest: AdmittedManifest, now: Now) {
        let files = manifest.manifest().unresolved_files();
        if !files.is_empty() {
            let list = files.into_iter().collect::<Vec<_>>().join(", ");
            let why =
                format!("the manifest names files ({list}); upload them and name their digests, as `cnova apply` does");
            return self.refuse(request, vec![why]);
        }
        let unknown: Vec<String> = manifest
            .manifest()
            .digests()
            .into_iter()
            .filter(|d| d.parse().map_or(true, |d: Digest| !self.artifacts.contains_key(&d)))
            .map(|d| format!("artifact {d} was never uploaded"))
            .collect();
        if !unknown.is_empty() {
            return self.refuse(request, unknown);
        }
        let mistakes = self.secret_mistakes(manifest.manifest());
        if !mistakes.is_empty() {
            return self.answer(request, Outcome::Mistakes(manifest.manifest().mistakes(mistakes)));
        }
        if let Some(why) = self.circle_through_others(manifest.application()) {
            return self.refuse(request, vec![why]);
        }
        let compilations = self.compilations(&manifest);
        self.compile_unproved_again(&compilations, manifest.application(), now.wall_ms / 1000);
        let candidate = Candidate {
            request,
            compilations,
            inspections: inspections(manifest.application()),
            manifest,
            since_ms: now.wall_ms,
        };
        // A failure may have been the worker's and not the artifact's: it is tried again.
        self.failed.retain(|key, _| !candidate.compilations.contains_key(key));
        self.inspected
            .retain(|key, result| result.is_ok() || !candidate.inspections.contains_key(key));
        for key in candidate.compilations.keys().filter(|k| !self.compiled.contains_key(k)) {
            if self.compiling.insert(key.clone()) {
                self.effects.push_back(Action::Compile(key.clone()));
            }
        }
        for key in candidate.inspections.keys() {
            self.inspect(*key);
        }
        self.candidates.push(candidate);
        self.judge_candidates(now);
    }

    /// What an earlier version of this program compiled has no provenance, and what an earlier key of the hub signed may
    /// be out of time; where provenance is asked for, it is compiled again.
    fn compile_unproved_again(&mut self, keys: &BTreeMap<CompileKey, String>, application: &Application, now_s: u64) {
        for (key, workload) in keys {
            let is_asked = application
                .workload(workload)
                .is_some_and(|d| self.artifact_view().must_prove(d));
            let proved = |a: &v1::Artifact| self.is_proved_compiled(&a.digest, &key.source, now_s);
            if is_asked && self.compiled.get(key).is_some_and(|a| !proved(a)) {
                self.compiled.remove(key);
            }
        }
    }

    /// Commits the candidates whose artifacts are all there, and turns those down whose artifacts are not what they
    /// should be.
    pub(super) fn judge_candidates(&mut self, now: Now) {
        for candidate in std::mem::take(&mut self.candidates) {
            match self.judge(&candidate, now.wall_ms / 1000) {
                None => self.candidates.push(candidate),
                Some(mistakes) if mistakes.is_empty() => self.commit(candidate, now),
                Some(mistakes) => {
                    let errors = candidate.manifest.manifest().artifact_mistakes(mistakes);
                    self.answer(candidate.request, Outcome::Mistakes(errors));
                }
            }
        }
    }

    /// What is wrong with a candidate's artifacts; `None` while that is not known yet.
    fn judge(&self, candidate: &Candidate, now_s: u64) -> Option<Vec<(String, String, Option<String>)>> {
        let mut mistakes = Vec::new();
        for (key, workload) in &candidate.compilations {
            match (self.compiled.contains_key(key), self.failed.get(key)) {
                (true, _) => {}
                (false, Some(why)) => mistakes.push((workload.clone(), why.clone(), None)),
                (false, None) => return None,
            }
        }
        let view = self.artifact_view();
        for (key, workload) in &candidate.inspections {
            let named = self.inspected.get(key)?;
            let verdict = named.as_ref().map_err(Clone::clone).and_then(|n| view.parts(key, n));
            if let Err(why) = verdict {
                mistakes.push((workload.clone(), why, None));
            }
        }
        let compiled = candidate.compilations.keys().filter_map(|k| {
            let artifact = self.compiled.get(k)?;
            Some((k.source, artifact.digest))
        });
        let application = candidate.manifest.application();
        mistakes.extend(self.unproven(application, compiled.collect::<Vec<_>>().as_slice(), Some(now_s)));
        Some(mistakes)
    }

    /// A circle of needs that goes through other applications, in words.
    fn circle_through_others(&self, application: &Application) -> Option<String> {
        let others = self.apps.values().map(|a| a.placement.manifest().application());
        let others = others.filter(|a| a.name != application.name);
        let all = others.chain(std::iter::once(application));
        let needs: BTreeMap<(&str, &str), Vec<(&str, &str)>> = all
            .flat_map(|a| a.workloads.iter().map(move |w| (a, w)))
            .map(|(a, w)| {
                let needed = w.needs.iter();
                let target = needed.map(|n| (n.application.as_deref().unwrap_or(&a.name), n.workload.as_str()));
                ((a.name.as_str(), w.name.as_str()), target.collect())
            })
            .collect();
        let path = application
            .workloads
            .iter()
            .find_map(|w| way_back(&needs, (&application.name, &w.name)))?;
        let names: Vec<String> = path.iter().map(|(a, w)| format!("{a}/{w}")).collect();
        Some(format!(
            "the needs go in a circle through other applications, so that none would ever start: {}",
            names.join(" -> ")
        ))
    }

    pub(super) fn compile(&mut self, key: CompileKey) {
        if self.compiling.insert(key.clone()) {
            self.effects.push_back(Action::Compile(key));
        }
    }

    /// Everything that must be compiled for a manifest on the targets of all nodes that could run it. Without any such
    /// node it is compiled for one target all the same, so that a file that is not Wasm is refused now and not later.
    pub(super) fn compilations(&self, manifest: &AdmittedManifest) -> BTreeMap<CompileKey, String> {
        let name = Name::new(&manifest.application().name).ok();
        let views = self.node_views(name.as_ref());
        let placement = LabelsAndResources.place(manifest, &views, &CurrentPlacement::default());
        let mut keys = BTreeMap::new();
        for def in manifest
            .application()
            .workloads
            .iter()
            .filter(|w| w.runtime == RuntimeKind::Wasm)
        {
            let Some(source) = def.artifact.digest().and_then(|d| d.parse().ok()) else {
                continue;
            };
            let nodes = placement
                .workloads()
                .get(&def.name)
                .map(|p| p.nodes.clone())
                .unwrap_or_default();
            let mut targets: BTreeSet<(String, String)> = BTreeSet::new();
            for record in nodes
                .iter()
                .filter_map(|n| self.inventory.nodes().get(&NodeId::new(n).ok()?))
            {
                let caps = record.hello.as_ref().map(|h| &h.capabilities);
                targets.extend(
                    caps.and_then(|c| rollout::wasm_target(def, c))
                        .map(|(t, e)| (t.to_owned(), e.to_owned())),
                );
            }
            if targets.is_empty() {
                let target = if def.pulley() {
                    rollout::PULLEY_TARGET
                } else {
                    DEFAULT_TARGET.0
                };
                targets.insert((target.to_owned(), DEFAULT_TARGET.1.to_owned()));
            }
            keys.extend(
                targets
                    .into_iter()
                    .map(|(target, engine)| (CompileKey { source, target, engine }, def.name.clone())),
            );
        }
        keys
    }

    /// Stores an application whose artifacts are all there, places it and answers.
    pub(super) fn commit(&mut self, candidate: Candidate, now: Now) {
        let Candidate {
            request,
            manifest,
            since_ms,
            ..
        } = candidate;
        let name = match Name::new(&manifest.application().name) {
            Ok(name) => name,
            Err(e) => return self.refuse(request, vec![e.to_string()]),
        };
        let current = self.apps.get(&name);
        let changed = current.is_none_or(|a| a.placement.manifest().manifest() != manifest.manifest());
        let before = current
            .map(|a| a.generation)
            .or(self.deleted.get(&name).copied())
            .unwrap_or(0);
        let was = current.map(|a| a.placement.to_current()).unwrap_or_default();
        let generation = if changed { before + 1 } else { before };
        let placement = LabelsAndResources.place(&manifest, &self.node_views(Some(&name)), &was);
        let outcome = Outcome::Applied {
            name: name.clone(),
            generation,
            changed,
            placed: placement.to_current().workloads,
            unplaced: unplaced(&placement),
        };
        if changed {
            self.stage(
                &name,
                generation,
                "admitted",
                since_ms,
                format!("by {}", manifest.context().user),
            );
            self.stage(&name, generation, "placed", now.wall_ms, placed_on(&placement));
        }
        self.deleted.remove(&name);
        self.apps.insert(
            name.clone(),
            App {
                generation,
                placement,
                problems: BTreeMap::new(),
            },
        );
        self.persist_app(&name);
        self.answer(request, outcome);
        self.reconcile(now);
    }

    pub(super) fn persist_app(&mut self, name: &Name) {
        let Some(app) = self.apps.get(name) else { return };
        let manifest = app.placement.manifest();
        let stored = StoredApp {
            generation: app.generation,
            manifest: cndl::canonical_json(manifest.manifest()),
            user: manifest.context().user.clone(),
            admitted_s: manifest.context().now_unix_s,
            placement: app.placement.to_current(),
        };
        self.ops.push(Op::PutApp {
            name: name.clone(),
            app: stored,
        });
    }

    pub(super) fn on_delete(&mut self, request: RequestId, name: &Name, now: Now) {
        let Some(app) = self.apps.remove(name) else {
            return self.answer(
                request,
                Outcome::NotFound {
                    what: format!("application {name}"),
                },
            );
        };
        self.deleted.insert(name.clone(), app.generation);
        self.ops.push(Op::DeleteApp {
            name: name.clone(),
            generation: app.generation,
        });
        self.answer(request, Outcome::Deleted { name: name.clone() });
        self.reconcile(now);
    }

    pub(super) fn on_compiled(&mut self, key: CompileKey, result: Result<v1::Artifact, String>, now: Now) {
        self.compiling.remove(&key);
        match result {
            Ok(artifact) => {
                self.artifacts.insert(artifact.digest, artifact.size);
                self.ops.push(Op::PutCompiled {
                    key: key.clone(),
                    artifact: artifact.clone(),
                });
                self.compiled.insert(key, artifact);
            }
            Err(why) => {
                let why = format!("artifact {} cannot be compiled for {}: {why}", key.source, key.target);
                self.note(why.clone());
                self.keep_failure(key, &why);
            }
        }
        self.judge_candidates(now);
        self.reconcile(now);
    }
}

pub(super) fn inspections(application: &Application) -> BTreeMap<InspectKey, String> {
    let looked_into = application.workloads.iter().filter(|w| w.runtime != RuntimeKind::Wasm);
    let key = |w: &crate::cndl::WorkloadDef| {
        let digest = w.artifact.digest()?.parse().ok()?;
        let runtime = w.runtime;
        Some((InspectKey { digest, runtime }, w.name.clone()))
    };
    looked_into.filter_map(key).collect()
}

type Place<'a> = (&'a str, &'a str);

/// The shortest way along needs from a workload back to itself.
fn way_back<'a>(needs: &BTreeMap<Place<'a>, Vec<Place<'a>>>, start: Place<'a>) -> Option<Vec<Place<'a>>> {
    let mut came_from: BTreeMap<Place<'a>, Place<'a>> = BTreeMap::new();
    let mut waiting = VecDeque::from([start]);
    while let Some(at) = waiting.pop_front() {
        for next in needs.get(&at).into_iter().flatten() {
            if *next == start {
                let mut path = vec![start, at];
                while let Some(before) = path.last().filter(|p| **p != start).and_then(|p| came_from.get(p)) {
                    path.push(*before);
                }
                path.reverse();
                return Some(path);
            }
            if !came_from.contains_key(next) {
                came_from.insert(*next, at);
                waiting.push_back(*next);
            }
        }
    }
    None
}
