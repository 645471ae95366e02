//! Applications: applied, compiled for, stored, deleted.

use super::*;

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
        let waits_for = self.compilations(&manifest);
        if let Some(why) = waits_for.iter().find_map(|k| self.failed.get(k)) {
            let why = why.clone();
            return self.refuse(request, vec![why]);
        }
        let waits_for: BTreeSet<_> = waits_for
            .into_iter()
            .filter(|k| !self.compiled.contains_key(k))
            .collect();
        let candidate = Candidate {
            request,
            manifest,
            waits_for,
            since_ms: now.wall_ms,
        };
        if candidate.waits_for.is_empty() {
            return self.commit(candidate, now);
        }
        for key in candidate.waits_for.clone() {
            self.compile(key);
        }
        self.candidates.push(candidate);
    }

    pub(super) fn compile(&mut self, key: CompileKey) {
        if self.compiling.insert(key.clone()) {
            self.effects.push_back(Action::Compile(key));
        }
    }

    /// Everything that must be compiled for a manifest on the targets of all nodes that could run it. Without any such
    /// node it is compiled for one target all the same, so that a file that is not Wasm is refused now and not later.
    pub(super) fn compilations(&self, manifest: &AdmittedManifest) -> BTreeSet<CompileKey> {
        let name = Name::new(&manifest.application().name).ok();
        let views = self.node_views(name.as_ref());
        let placement = LabelsAndResources.place(manifest, &views, &CurrentPlacement::default());
        let mut keys = BTreeSet::new();
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
                    caps.and_then(rollout::wasm_target)
                        .map(|(t, e)| (t.to_owned(), e.to_owned())),
                );
            }
            if targets.is_empty() {
                targets.insert((DEFAULT_TARGET.0.to_owned(), DEFAULT_TARGET.1.to_owned()));
            }
            keys.extend(
                targets
                    .into_iter()
                    .map(|(target, engine)| CompileKey { source, target, engine }),
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
                self.compiled.insert(key.clone(), artifact);
            }
            Err(why) => {
                let why = format!("artifact {} cannot be compiled for {}: {why}", key.source, key.target);
                self.note(why.clone());
                self.failed.insert(key.clone(), limits::clip(&why));
            }
        }
        for mut candidate in std::mem::take(&mut self.candidates) {
            if !candidate.waits_for.remove(&key) {
                self.candidates.push(candidate);
            } else if let Some(why) = self.failed.get(&key).cloned() {
                self.refuse(candidate.request, vec![why]);
            } else if candidate.waits_for.is_empty() {
                self.commit(candidate, now);
            } else {
                self.candidates.push(candidate);
            }
        }
        // A failure may be the worker's and not the module's; the next apply tries again.
        self.failed.remove(&key);
        self.reconcile(now);
    }
}
